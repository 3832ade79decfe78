"""Atomic writes, hashes and JSON: a file is whole or it is not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgepruneError

TEMPORARY = ".edgeprune-tmp-"
DIGITS = 300
"""Of a whole number in JSON, at most: a longer one is no float."""
UMASK = os.umask(0)
os.umask(UMASK)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it takes the place of ``path`` in one step.

    On an exception ``path`` is left as it was and the temporary file is removed. A process killed in
    between leaves at most a file whose name starts with ``TEMPORARY``.

    Example:
        >>> with replacing(Path("model.onnx")) as temporary:  # doctest: +SKIP
        ...     onnx.save(model, temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~UMASK)  # some writers make files that only their owner may read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Let no other process change a file between its reading and its writing anew: they wait for each other.

    Its folder is locked, since the file itself is replaced, and another one would be left behind.
    """
    import fcntl  # only here: measuring does not take it, and Windows has none

    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, error: type[EdgepruneError], what: str, hint: str = "") -> Any:
    """Read JSON from ``path``, strictly: what ``write_json`` could not have written is refused.

    Args:
        path: The file.
        error: The class to raise.
        what: What the file holds, for the message, e.g. ``"plan"``.
        hint: One next step, a full sentence, e.g. what writes such a file.

    Raises:
        EdgepruneError: The file is absent or not JSON, names a key twice (as a merge by hand leaves it), or
            holds a number or a text that nothing can write again (NaN, 1e999, half of a surrogate pair).
    """

    def refuse(value: str, expected: str) -> EdgepruneError:
        return error(f"could not read the {what}", where=str(path), value=value, expected=expected, hint=hint)

    if Path(path).is_char_device():  # some never end
        raise refuse("a device", "a file")
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = json.loads(
            text, object_pairs_hook=_without_twins, parse_constant=_finite, parse_float=_finite,
            parse_int=_whole,
        )  # fmt: skip
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except FileNotFoundError:
        raise refuse("not there", "a file") from None
    except OSError as reason:
        raise refuse(f"unreadable ({reason.strerror or reason})", "a file") from None
    except UnicodeDecodeError:
        raise refuse("not text", "JSON") from None
    except RecursionError:
        raise refuse("not JSON (nested too deeply)", "JSON") from None
    except ValueError as reason:
        raise refuse(f"not JSON ({reason})", "JSON") from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twins = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in twins if twins.count(key) > 1)!r} stands there twice")
    return table


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no number")
    return float(text)


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Sequence[Path]) -> str:
    """SHA-256 of files one after the other, in hex; of one file as ``sha256_file`` has it."""
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a value in canonical JSON (sorted keys, no spaces), in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
