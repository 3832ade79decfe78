"""Every budget key through the real command line: passed, failed, unmeasured, optional, wrong unit, misspelt.

The messages are golden files. After a change that is meant, write them anew and read the diff:

EDGEPRUNE_WRITE_GOLDEN=1 python -m pytest tests/test_gate.py && git diff tests/golden
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgeprune.budget import BUDGET_KEYS
from edgeprune.compared import Compared
from edgeprune.files import write_json
from edgeprune.instructions import NOT_COUNTED
from edgeprune.measurement import Measurement
from edgeprune.metrics import GATED, METRICS, RELEASE_METRICS, Estimate
from edgeprune.record import record_of
from edgeprune.release import Entry, Release, load_release
from tests.conftest import run
from tests.gating import BEFORE, NOTHING, SLIM, golden_lines

UNITS = {
    "time": ("ms", 1e3),
    "rate": ("/s", 1),
    "size": ("kB", 1e-3),
    "fraction": ("%", 100),
    "drop": ("pp", 100),
}
WRONG = {
    "time": ('"12 MB"', "12"), "rate": ('"30 ms"', "30"), "size": ('"5 ms"', "5"), "count": ('"5 s"',),
    "fraction": ('"1 pp"', "0.9"), "drop": ('"1 %"', "0.01"), "ratio": ('"60 %"',), "error": ('"1 ms"',),
}  # fmt: skip
ALWAYS = {"size", "cpu_nodes"}
"""Without any sidecar or timing these are there all the same: nothing can leave them unmeasured."""


@dataclass(frozen=True)
class Place:
    """A folder with measurements and a release, and the command line on them."""

    path: Path
    capsys: pytest.CaptureFixture[str]

    def gate(self, budgets: str, measurement: str = "measurement.json", *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        target = self.path / "target.toml"
        target.write_text(f'name = "test"\n[budgets]\n{budgets}\n')
        return run(self.capsys, "gate", str(self.path / measurement), "--target", str(target), *words)

    @property
    def against(self) -> tuple[str, str]:
        """Option that names the release."""
        return "--against", str(self.path / "release.json")


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    write_json(tmp_path / "measurement.json", SLIM.to_json())
    write_json(tmp_path / "nothing.json", NOTHING.to_json())
    entry = Entry("2026-11-21T16:40:00Z", "0.1.0", None, {}, record_of(BEFORE))
    write_json(tmp_path / "release.json", Release((entry,)).to_json())
    return Place(tmp_path, capsys)


def limit(key: str, passes: bool, both: Compared) -> str:
    """A limit that a key of the measurement keeps to, or does not, as a target file has it."""
    end, _, name = key.partition("_")
    found = both.value(name)
    assert found is not None, f"{name} is not measured"
    value = found.value if isinstance(found, Estimate) else found
    quantity = GATED[name].quantity
    up = 1 if (end == "max") == passes else -1
    if quantity in ("fraction", "drop"):
        value = value + up * 0.03
    elif quantity == "count":
        value = round(value * (1.5 if up > 0 else 0.5))
    else:
        value = value * (1.6 if up > 0 else 0.6)
    unit, factor = UNITS.get(quantity, ("", 1))
    return f'"{value * factor:.4g} {unit}"' if unit else str(value) if quantity == "count" else f"{value:.4g}"


def told(out: str) -> str:
    """What is printed, on one line and without the table's head."""
    assert max(map(len, out.splitlines())) <= 80, out
    assert "\x1b" not in out
    return " ".join(out.split("─\n", 1)[-1].split())


def walk(place: Place, passes: bool) -> Iterator[str]:
    both = Compared(SLIM, load_release(place.path / "release.json"))
    for key in BUDGET_KEYS:
        budget = f"{key} = {limit(key, passes, both)}"
        code, out, err = place.gate(budget, "measurement.json", *place.against)
        assert (code, err) == (0 if passes else 1, ""), (budget, out, err)
        line = told(out)
        assert ("missed by" in line) != passes, line
        yield f"{budget}: {line}"


def test_every_key_passes(place: Place) -> None:
    golden_lines("gate_passed.txt", walk(place, passes=True))


def test_every_key_fails_and_says_by_how_much(place: Place) -> None:
    lines = list(walk(place, passes=False))
    assert all(re.search(r"missed by [\d.]", line) for line in lines)
    golden_lines("gate_failed.txt", lines)


def test_every_key_unmeasured_fails_unless_it_is_optional(place: Place) -> None:
    both = Compared(SLIM, load_release(place.path / "release.json"))
    lines = []
    for key in BUDGET_KEYS:
        if GATED[key.partition("_")[2]].name in ALWAYS:
            continue
        written = limit(key, True, both)
        code, out, err = place.gate(f"{key} = {written}", "nothing.json")
        assert (code, err) == (1, ""), (key, out, err)
        assert "unmeasured" in out, out
        lines.append(f"{key}: {told(out)}")
        code, out, err = place.gate(f"{key} = {{ limit = {written}, optional = true }}", "nothing.json")
        assert (code, err) == (0, ""), (key, out, err)
        assert "skipped" in out
        assert "passed: 0 of 1 budget met, 1 optional skipped" in out
    golden_lines("gate_unmeasured.txt", lines)
    assert len(lines) == 2 * (len(GATED) - len(ALWAYS))


def faults(place: Place, budget: str) -> str:
    """The faults of a target file as the command line tells them."""
    code, out, err = place.gate(budget)
    assert (code, out) == (2, ""), (budget, out, err)
    assert err.startswith("edgeprune: could not use the target file: ")
    assert " is wrong in 1 place:\n  1. budgets." in err
    return err.partition("  1. ")[2].strip()


def test_every_key_with_a_wrong_unit_is_refused(place: Place) -> None:
    lines = []
    for key in BUDGET_KEYS:
        quantity = GATED[key.partition("_")[2]].quantity
        for written in WRONG[quantity]:
            lines.append(faults(place, f"{key} = {written}"))
            assert lines[-1].startswith(f"budgets.{key} = {written}: expected ")
    golden_lines("gate_wrong_unit.txt", lines)


def test_every_key_misspelt_is_refused_and_the_right_one_named(place: Place) -> None:
    lines = []
    for key in BUDGET_KEYS:
        misspelt = key[:5] + key[4:]  # a letter twice
        assert misspelt not in BUDGET_KEYS
        line = faults(place, f"{misspelt} = 1")
        known = ", ".join(GATED)
        assert known in line
        lines.append(line.replace(known, "…"))
        assert line.endswith(f'Did you mean "{key}"?'), line
    golden_lines("gate_unknown.txt", lines)


def test_the_keys_are_those_of_the_metrics() -> None:
    assert len(BUDGET_KEYS) == len(set(BUDGET_KEYS)) == 2 * len(GATED)
    assert {GATED[name].basis for name in RELEASE_METRICS} == {
        name for name, metric in METRICS.items() if not metric.relative
    }
    for name, metric in METRICS.items():
        if not metric.relative:
            fraction = metric.quantity == "fraction"
            assert (f"{name}_drop" if fraction else f"{name}_ratio") in METRICS or name == "latency_p50"
            assert (f"{name}_drop_vs_release" if fraction else f"{name}_vs_release") in RELEASE_METRICS


@pytest.mark.parametrize(
    ("budget", "fault"),
    [
        ("max_size = { optional = true }", 'e.g. "1.5 MB" or { limit = "1.5 MB", optional = true }'),
        ('max_size = { limit = "1 MB", optional = 1 }', "expected a size, e.g."),
        ('max_size = { limit = "1 MB", option = true }', "expected a size, e.g."),
        ("max_size = { limit = 5, optional = true }", "expected a size with its unit"),
        ("max_macs_ratio = { limit = 0 }", "expected a ratio, above 0"),
        ('max_size_vs_release = "1 MB"', "a plain number without a unit"),
        ("size_vs_release = 1", 'Did you mean "max_size_vs_release" or "min_size_vs_release"?'),
        ("max_size_ratio_vs_release = 1", 'Did you mean "max_'),
    ],
)
def test_what_else_a_budget_must_not_be(place: Place, budget: str, fault: str) -> None:
    assert fault in faults(place, budget)


def test_an_optional_budget_that_is_measured_is_one_like_any_other(place: Place) -> None:
    assert place.gate('max_size = { limit = "1 kB", optional = true }')[0] == 1
    assert place.gate('max_size = { limit = "1 GB", optional = true }')[0] == 0
    assert place.gate('max_size = { limit = "1 GB" }')[0] == 0
    lazy = 'max_accuracy = { limit = "99 %", optional = false }'
    assert place.gate(lazy, "nothing.json")[0] == 1


def test_the_bad_end_of_the_interval_decides(place: Place) -> None:
    ratio = SLIM.value("latency_ratio")
    assert isinstance(ratio, Estimate)
    for written, code in ((ratio.high * 1.001, 0), (ratio.value, 3), (ratio.low * 0.999, 1)):
        assert place.gate(f"max_latency_ratio = {written}")[0] == code
    moved = Compared(SLIM, load_release(place.path / "release.json")).value("latency_p50_vs_release")
    assert isinstance(moved, Estimate)
    for written, code in ((moved.high * 1.001, 0), (moved.value, 3), (moved.low * 0.999, 1)):
        budget = f"max_latency_p50_vs_release = {written}"
        assert place.gate(budget, "measurement.json", *place.against)[0] == code


def test_a_release_that_knows_nothing_of_this_runtime(place: Place) -> None:
    other = replace(record_of(BEFORE), runtime=record_of(BEFORE).runtime | {"threads": 4})
    write_json(place.path / "release.json", Release((Entry("d", "0", None, {}, other),)).to_json())
    code, out, _ = place.gate("max_size_vs_release = 1.0", "measurement.json", *place.against)
    assert code == 1
    assert "The release holds nothing that was run in this way" in " ".join(out.split())


def test_what_was_nothing_in_the_release(place: Place) -> None:
    none = replace(BEFORE, placement=BEFORE.placement | {"left_to_cpu": []})
    entry = Entry("d", "0", None, {}, record_of(none))
    write_json(place.path / "release.json", Release((entry,)).to_json())
    code, out, _ = place.gate("max_cpu_nodes_vs_release = 1.0", "measurement.json", *place.against)
    assert code == 1
    assert "It was 0 in the release, and is not now." in " ".join(out.split())
    write_json(place.path / "measurement.json", replace(SLIM, placement=none.placement).to_json())
    code, out, _ = place.gate("max_cpu_nodes_vs_release = 1.0", "measurement.json", *place.against)
    assert (code, "at the limit" in out) == (0, False)


def test_what_no_measurement_on_a_simulator_could_have(place: Place) -> None:
    timeless = {"latency_samples_s": (), "load_s": (), "first_inference_s": ()}
    placement = SLIM.placement | {"functional_only": "a simulator plays the processor"}
    assert SLIM.baseline is not None
    dense = replace(SLIM.baseline, placement=placement, **timeless)
    write_json(
        place.path / "m.json", replace(SLIM, placement=placement, baseline=dense, **timeless).to_json()
    )
    for key in ("max_latency_p50_vs_release", "max_throughput_ratio", "max_latency_p95_ratio"):
        code, out, _ = place.gate(f"{key} = 1.0", "m.json", *place.against)
        assert code == 3, out
        assert "could not measure: a simulator plays the processor" in " ".join(out.split())
    code, out, _ = place.gate("max_latency_p50_vs_release = 1.0", "m.json")
    assert (code, "No earlier release was given" in " ".join(out.split())) == (1, True)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_release_file_that_is_none(place: Place, content: str | None) -> None:
    path = place.path / "release.json"
    path.unlink() if content is None else path.write_text(content)
    code, out, err = place.gate("max_size_vs_release = 1.0", "measurement.json", *place.against)
    assert (code, out) == (2, "")
    assert "could not read the release file: " in err


def test_a_planted_fault_is_noticed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the walk: a gate that lets everything pass, and a metric without a reader."""
    passing: Callable[..., str] = lambda *_: "passed"  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr("edgeprune.verdict._state", passing)
        with pytest.raises(AssertionError):
            list(walk(place, passes=False))
    monkeypatch.setattr(Measurement, "value", lambda *_: None)
    with pytest.raises(AssertionError, match="is not measured"):
        list(walk(place, passes=True))


def test_json_of_every_key_has_the_figures_of_the_table(place: Place) -> None:
    code, out, _ = place.gate('max_latency_p50 = "1 s"\nmin_accuracy = "99 %"', "measurement.json", "--json")
    rows = json.loads(out)["verdicts"]
    assert code == 1
    assert [row["state"] for row in rows] == ["passed", "failed"]
    assert rows[1]["measured"] == SLIM.value("accuracy")
    assert NOTHING.instructions == NOT_COUNTED
