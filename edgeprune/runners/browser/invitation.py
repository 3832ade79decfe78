"""Where the page is served, and what the person at the device is told."""

from __future__ import annotations

import ipaddress
import socket
from io import StringIO

from edgeprune.errors import MeasurementError

LOOPBACK = ("127.0.0.1", "::1")


def serving_address(host: str | None) -> str:
    """The IP address to serve on."""
    if host is None:
        return LOOPBACK[0]
    if host != "lan":
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        if address is None or address.is_unspecified:
            raise MeasurementError(
                "could not serve the page",
                where="--host",
                value=f"'{host}'",
                expected='one IP address of this machine, or "lan" for its address on the local network',
            )
        return str(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # No packet is sent: the kernel only looks up from where it would go (a range for documentation).
            probe.connect(("192.0.2.1", 9))
            address = ipaddress.ip_address(probe.getsockname()[0])
        except OSError:
            address = None
    if address is None or address.is_loopback:
        raise MeasurementError(
            "could not serve the page",
            where="--host",
            value="'lan', and this machine is in no network",
            expected="a network that the device is in too",
            hint="Or give an address of this machine.",
        )
    return str(address)


def invite(url: str, wait_s: float, fingerprint: str | None) -> str:
    """What the person must be told: where the page is, and who can reach it."""
    lines = [_qr_code(url), f"Open this on the device to measure: {url}"]
    if fingerprint is None:
        lines.append(
            "Served on this machine alone. For a phone on the same network: --host lan. For one on USB: "
            "--port 8000 here, `adb reverse tcp:8000 tcp:8000`, and the same address there."
        )
    else:
        lines.append(
            "Served to the local network, to whoever has this address. The browser does not know the "
            "certificate and will ask; its SHA-256 fingerprint is"
        )
        lines.append(f"  {fingerprint}")
    lines.append(f"Waiting for it for {wait_s:.0f} s; Ctrl-C ends.")
    return "\n".join(line for line in lines if line)


def _qr_code(text: str) -> str:
    """A QR code for the terminal, or how to get one."""
    try:
        import segno
    except ImportError:
        return 'For a QR code here: pip install "edgeprune[browser]"'
    drawn = StringIO()
    segno.make(text, error="l", micro=False).terminal(drawn, compact=True)
    return drawn.getvalue().rstrip("\n")
