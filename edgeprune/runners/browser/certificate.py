"""TLS for an address of the LAN: browsers lend threads, a fine clock and WebGPU to secure pages alone."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import ssl
import tempfile
from pathlib import Path
from typing import NamedTuple

from edgeprune.errors import MeasurementError

DAYS = 7


class Tls(NamedTuple):
    """A server's context, and the fingerprint by which a person can know its certificate again."""

    context: ssl.SSLContext
    fingerprint: str


def make_tls(address: str) -> Tls:
    """A fresh key, and a certificate for one IP address that nobody else vouches for.

    Raises:
        MeasurementError: The package ``cryptography`` is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID
    except ImportError:
        raise MeasurementError(
            "could not serve the page",
            where="the package cryptography",
            value="not installed",
            expected="here: a browser measures on pages from the LAN only if they come over HTTPS",
            hint='Install it with `pip install "edgeprune[browser]"`, or serve on 127.0.0.1 (`--host`).',
        ) from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "edgeprune")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks of phones differ
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(names, critical=False)
        .add_extension(usage, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    handle, path = tempfile.mkstemp(suffix=".pem")  # for this user's eyes; ssl reads from files alone
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        context.load_cert_chain(path)
    finally:
        Path(path).unlink()
    digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest().upper()
    return Tls(context, ":".join(digest[at : at + 2] for at in range(0, len(digest), 2)))
