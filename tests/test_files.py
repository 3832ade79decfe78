"""What files hold is read strictly: nothing is taken that could not be written again."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from edgeprune.errors import ReleaseError
from edgeprune.files import alone_with, read_json, write_json


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": 1, "b": {"a": 1}, "a": 2}', "the key 'a' stands there twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "1e999 is no number"),
        ('{"a": 1' + 400 * "0" + "}", "a number of 401 digits"),
        (f"{100_000 * '['}", "nested too deeply"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"\\uDC00": 1}', "surrogates not allowed"),
        ("", "Expecting value"),
        ('{"a": 1', "delimiter"),
    ],
)
def test_what_nobody_could_write_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(ReleaseError, match=rf"could not read the release: .*{fault}"):
        read_json(path, ReleaseError, "release")


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
def test_a_device_that_never_ends_is_not_read(name: str) -> None:
    with pytest.raises(
        ReleaseError, match=f"could not read the release: {name} is a device, expected a file"
    ):
        read_json(Path(name), ReleaseError, "release")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ReleaseError, match=r"f\.json is not text, expected JSON"):
        read_json(path, ReleaseError, "release")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    value = {"a": [1, 0.5, -3, 10**200, 1e-320], "": {"a": None}, "ä": "\N{GRINNING FACE} \\ud800"}
    write_json(tmp_path / "f.json", value)
    assert read_json(tmp_path / "f.json", ReleaseError, "release") == value


def test_two_that_change_one_file_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "release.json"

    with alone_with(path):
        assert list(path.parent.iterdir()) == []
        assert not lockable(path.parent)
    assert lockable(path.parent)


def lockable(folder: Path) -> bool:
    """Whether another could lock a folder now."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(handle)
