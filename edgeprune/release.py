"""The release file: what was released, on which figures, for teams to commit. Device side: no torch.

It holds the current release for each target, a line for each fact. Earlier ones are in the repository's
history: `git log -p release.json` shows them.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune import __version__
from edgeprune.errors import ReleaseError
from edgeprune.files import read_json, write_text
from edgeprune.measurement import Measurement
from edgeprune.record import Record, comparable_runtime, record_of
from edgeprune.repository import commit_of
from edgeprune.verdict import Verdict

RELEASE_FORMAT = 1
PROBLEM = "could not read the release file"
INLINE = 4  # entries of a table that goes into one line


@dataclass(frozen=True)
class Entry:
    """One artifact that passed on one target.

    Attributes:
        date: When it was released, UTC, as ``"2026-11-21T16:40:00Z"``.
        edgeprune: Version that wrote it.
        git: ``commit`` and ``dirty`` of the user's repository; None: there is none.
        verdicts: Budget's key -> ``limit``, ``measured`` and ``state``, as texts.
        record: What was measured.
    """

    date: str
    edgeprune: str
    git: dict[str, Any] | None
    verdicts: dict[str, dict[str, str]]
    record: Record

    @property
    def place(self) -> tuple[str, str]:
        """File name and target: what a later release takes the place of."""
        return self.record.artifact.path.name, self.record.target_name


@dataclass(frozen=True)
class Release:
    """What a release file holds.

    Attributes:
        entries: One for each artifact and target.
    """

    entries: tuple[Entry, ...] = ()

    def record_for(self, measurement: Measurement) -> Record | None:
        """What was released for the way in which a measurement was run; None: nothing.

        Of several the one for the target, and then the file, of that name is taken.
        """
        wanted = comparable_runtime(measurement.runtime)
        return self.best_match(wanted, measurement.target_name, measurement.artifact.path.name)

    def best_match(self, runtime: dict[str, Any], target_name: str, file_name: str) -> Record | None:
        """The record of the same runtime, by preference of that target and file."""
        found = [entry.record for entry in self.entries if entry.record.runtime == runtime]
        found.sort(key=lambda one: (one.target_name != target_name, one.artifact.path.name != file_name))
        return found[0] if found else None

    def with_entries(self, entries: Sequence[Entry]) -> Release:
        """The same with some entries added, or put in the place of earlier ones.

        One that says nothing new leaves the earlier one, with its date and commit, in its place.
        """
        every = {entry.place: entry for entry in self.entries}
        for entry in entries:
            held = every.get(entry.place)
            if held is None or (held.record, held.verdicts) != (entry.record, entry.verdicts):
                every[entry.place] = entry
        return Release(tuple(every.values()))

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, in a stable order."""
        rows = [{**vars(entry), "record": entry.record.to_json()} for entry in self.entries]
        return {"format": RELEASE_FORMAT, "releases": rows}

    @classmethod
    def from_json(cls, content: Any, where: str = "the release") -> Release:
        """Read what ``to_json`` gives, strictly.

        Raises:
            ReleaseError: It is of another format, or a part of it is wrong.
        """

        def refuse(value: str, hint: str = "Take the file from git again, or release anew.") -> ReleaseError:
            rule = f"format {RELEASE_FORMAT} as `edgeprune release` writes it"
            return ReleaseError(PROBLEM, where=where, value=value, expected=rule, hint=hint)

        if not isinstance(content, dict) or "releases" not in content:
            raise refuse("not a release file")
        if content.get("format") != RELEASE_FORMAT:
            raise refuse(f"of format {content.get('format')}", "Update edgeprune, or release anew.")
        rows = content["releases"]
        if set(content) != {"format", "releases"} or not isinstance(rows, list) or not rows:
            raise refuse("with missing or unknown keys")
        entries = []
        for number, row in enumerate(rows, 1):
            fault = _entry_fault(row)
            if fault:
                raise refuse(f"wrong in release {number}: {fault}")
            record = Record.from_json(row["record"], f"release {number} in {where}")
            entries.append(Entry(**{**row, "record": record}))
        if len({entry.place for entry in entries}) < len(entries):
            raise refuse("with two releases of one file for one target")
        return cls(tuple(entries))


def load_release(path: Path | str) -> Release:
    """Read a release file.

    Raises:
        ReleaseError: The file is absent, not JSON, or not a release file.
    """
    content = read_json(Path(path), ReleaseError, "release file", "`edgeprune release` writes one.")
    return Release.from_json(content, str(path))


def entry_of(measurement: Measurement, verdicts: Sequence[Verdict], *, ignore: Path | None = None) -> Entry:
    """An entry on a measurement that passed, as of now and of the working folder's commit.

    Args:
        measurement: Of the released file.
        verdicts: On it; all must have passed, which is for the caller to see to.
        ignore: The release file, whose own change does not count as one.
    """
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0, tzinfo=None)
    texts = {
        verdict.budget.key: {
            "limit": verdict.budget.text, "measured": verdict.measured_text, "state": verdict.state,
        }
        for verdict in verdicts
    }  # fmt: skip
    return Entry(f"{now.isoformat()}Z", __version__, commit_of(ignore=ignore), texts, record_of(measurement))


def write_release(path: Path | str, release: Release) -> None:
    """Write a release file, atomically, a line for each fact."""
    write_text(Path(path), lines_of(release.to_json()) + "\n")


def lines_of(value: Any, indent: int = 0) -> str:
    """JSON with a line for each fact: lists of plain values and small tables stay in one line.

    Example:
        >>> print(lines_of({"shape": [1, 3, 32, 32], "size": 4}))
        {
         "shape": [1, 3, 32, 32],
         "size": 4
        }
    """
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    nested = any(isinstance(one, dict | list) for one in inner)
    if not nested and not (isinstance(value, dict) and len(value) > INLINE):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    margin = " " * (indent + 1)
    if isinstance(value, dict):
        rows = [f"{json.dumps(key)}: {lines_of(one, indent + 1)}" for key, one in value.items()]
    else:
        rows = [lines_of(one, indent + 1) for one in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{margin}" + f",\n{margin}".join(rows) + f"\n{' ' * indent}{closing}"


def _entry_fault(row: Any) -> str | None:
    """What is wrong with an entry but for its record; None if nothing is."""
    keys = {"date", "edgeprune", "git", "verdicts", "record"}
    if not isinstance(row, dict) or set(row) != keys:
        return f"expected the keys {', '.join(sorted(keys))}"
    if not isinstance(row["date"], str) or not isinstance(row["edgeprune"], str):
        return "'date' or 'edgeprune' is no text"
    git, verdicts = row["git"], row["verdicts"]
    if git is not None and (not isinstance(git, dict) or set(git) != {"commit", "dirty"}):
        return "'git' is neither null nor commit and dirty"
    if not isinstance(verdicts, dict) or not all(_is_verdict(one) for one in verdicts.values()):
        return "'verdicts' are not limit, measured and state"
    return None


def _is_verdict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"limit", "measured", "state"}
        and all(isinstance(text, str) for text in value.values())
    )


# --- what is compared ---------------------------------------------------------------------------------------


def records_in(path: Path) -> tuple[Record, ...]:
    """The records of a release file, a measurement or a run folder.

    Raises:
        EdgepruneError: It is none of them, or broken.
    """
    if path.is_dir():
        path = path / "measurement.json"
    hint = "`edgeprune release` writes the one, `edgeprune bench` the other."
    content = read_json(path, ReleaseError, "release file or measurement", hint)
    if isinstance(content, dict) and "latency_samples_s" in content:
        return (record_of(Measurement.from_json(content, str(path))),)
    return tuple(entry.record for entry in Release.from_json(content, str(path)).entries)


def matched(nows: Sequence[Record], befores: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(now, before) of each record that has a partner.

    Partners run in the same way, by preference on the target and then in the file of the same name. Two that
    are alone are partners in any case: the comparison says what differs.
    """
    if len(nows) == len(befores) == 1:
        return [(nows[0], befores[0])]
    release = Release(tuple(Entry("", "", None, {}, record) for record in befores))
    found = [(now, release.best_match(now.runtime, now.target_name, now.artifact.path.name)) for now in nows]
    return [(now, before) for now, before in found if before is not None]
