"""What a native program was built for, from its ELF header. Device side: no torch."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

# e_machine -> Android's name of the ABI
ABIS = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a", 243: "riscv64"}
NOTE_SEGMENT = 4


@dataclass(frozen=True)
class Program:
    """A native program or library.

    Attributes:
        abi: Android's name of its ABI; ``"machine N"`` if Android has none.
        api_level: The oldest Android that it runs on; None if it does not say, as programs that are not for
            Android.
    """

    abi: str
    api_level: int | None


def read_program(path: Path) -> Program | None:
    """The header of a file; None if it is not an ELF file."""
    data = path.read_bytes()
    try:
        return _parse(data)
    except (struct.error, IndexError):
        return None


def _parse(data: bytes) -> Program | None:
    if data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] != 1:  # every Android is little-endian
        return None
    wide = data[4] == 2
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q" if wide else "<I", data, 32 if wide else 28)
    size, count = struct.unpack_from("<HH", data, 54 if wide else 42)
    api_level = None
    for k in range(count):
        at = table + k * size
        kind = struct.unpack_from("<I", data, at)[0]
        start = struct.unpack_from("<Q" if wide else "<I", data, at + (8 if wide else 4))[0]
        length = struct.unpack_from("<Q" if wide else "<I", data, at + (32 if wide else 16))[0]
        if kind == NOTE_SEGMENT:
            found = _android_note(data[start : start + length])
            api_level = found if found is not None else api_level
    return Program(ABIS.get(machine, f"machine {machine}"), api_level)


def _android_note(notes: bytes) -> int | None:
    """The API level in a segment of notes; each is name size, value size, type, name, value, padded to 4."""
    at = 0
    while at + 12 <= len(notes):
        name_size, value_size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        value_at = at + 12 + -(-name_size // 4) * 4
        if name == b"Android\0" and kind == 1:
            return int(struct.unpack_from("<I", notes, value_at)[0])
        at = value_at + -(-value_size // 4) * 4
    return None
