"""scripts/bench_schemes on a small network: its parts in this process instead of processes of their own."""

import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeprune as ep

SCRIPTS = Path(__file__).parents[1] / "scripts"
QUICK = ["resnet20", "--images", "20", "--lambdas", "2", "--solver-lambdas", "2", "--path-ratio", "0.3"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The script's names; all parts are measured in this process, by one thread."""
    monkeypatch.syspath_prepend(SCRIPTS)
    found = runpy.run_path(str(SCRIPTS / "bench_schemes"))

    def here(file: str, *words: str, threads: int, limit_s: float) -> dict[str, Any]:
        assert (file, threads, limit_s) == (str(SCRIPTS / "bench_schemes"), 1, 900)
        monkeypatch.setattr(sys, "argv", [file, *words])
        out = io.StringIO()
        with redirect_stdout(out):
            assert found["main"]() == 0
        return dict(json.loads(out.getvalue()))

    monkeypatch.setitem(found["main"].__globals__, "fresh", here)
    return dict(found["main"].__globals__)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Random ones."""
    torch.manual_seed(0)
    file = tmp_path / "weights.pt"
    torch.save(ep.load_model("resnet20", num_classes=10).state_dict(), file)
    return f"resnet20={file}"


def run(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench_schemes", "--threads", "1", *words])
    return int(script["main"]())


@pytest.mark.slow
def test_measures_all_parts(script, weights, monkeypatch, capsys):
    threads = torch.get_num_threads()
    assert run(script, monkeypatch, *QUICK, "--weights", weights, "--json", "--min-ratio", "0") == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("sglp-ib", "stlp-ib"):
        part = found[name]
        assert (part["images"], part["classes"], part["layers"], part["lambdas"]) == (20, 10, 19, 2)
        assert part["largest_gap"] <= 1e-6
        assert min(part["statistics_s"], part["path_s"]) > 0
    ours, theirs = found["ours"], found["theirs"]
    assert len(ours["grid"]) == 2
    assert list(ours["units"].values()).count(64) == 6
    assert set(ours["objective"]) == set(theirs["objective"])
    assert ours["unsolved"] == 0
    assert found["most_above"] <= 1e-6
    assert found["most_below"] <= 1e-3  # of random weights, scikit-learn does not solve all
    assert found["ratio"] == theirs["s"] / ours["s"] > 0
    options = script["argparse"].Namespace(threads=1, min_ratio=0, images=20)
    text = script["described"](found, options)
    assert "HSIC lasso of all 19 layers at 2 lambdas" in text
    assert text.startswith("resnet20, weights weights.pt, digits: 20 images, 19 layers, ")
    torch.set_num_threads(threads)


@pytest.fixture
def measured(script, monkeypatch):
    """All parts at once, without a network."""
    parts = {
        "sglp-ib": {"statistics_s": 1.0, "path_s": 2.0, "statistics_peak_bytes": 1e6, "path_peak_bytes": 2e6},
        "ours": {
            "s": 1.0,
            "peak_bytes": 1e6,
            "grid": [0.1],
            "unsolved": 0,
            "objective": {"conv": [1.0]},
            "units": {"conv": 16},
        },
        "theirs": {"s": 25.0, "peak_bytes": 1e6, "unsolved": 0, "objective": {"conv": [1.0]}},
    }
    about = {"images": 20, "classes": 10, "layers": 1, "units": 16, "lambdas": 60, "largest_gap": 1e-7}
    parts["sglp-ib"] |= about
    parts["stlp-ib"] = parts["sglp-ib"]

    def fresh(*words: str, **_: object) -> dict[str, Any]:
        return parts[words[2].removeprefix("--part=")]

    monkeypatch.setitem(script["main"].__globals__, "fresh", fresh)
    return parts


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"s": 19.0}, 1),
        ({"objective": {"conv": [1 - 2e-6]}}, 1),
        ({"objective": {"conv": [1 + 2e-6]}}, 0),
    ],
)
def test_slower_or_worse_than_scikit_learn_fails(
    change, code, script, measured, weights, monkeypatch, capsys
):
    measured["theirs"].update(change)
    assert run(script, monkeypatch, "resnet20", "--weights", weights) == code
    text = capsys.readouterr().out
    assert ("FAILED" in text) == bool(code)
    assert "sglp-ib: 3.0 s; statistics 1.0 s, +1 MB; 60 lambdas 2.0 s, +2 MB" in text


@pytest.mark.parametrize(
    ("ended", "said"), [({"crash": "MemoryError"}, "MemoryError"), ({"too_slow": 9.0}, "it took over 900 s")]
)
def test_a_part_that_does_not_end_is_named(ended, said, script, measured, weights, monkeypatch, capsys):
    measured["theirs"].clear()
    measured["theirs"].update(ended)
    assert run(script, monkeypatch, "resnet20", "--weights", weights) == 3
    assert capsys.readouterr().err == f"could not measure: resnet20, theirs: {said}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resnet19"], "no such network: resnet19; there are resnet20, "),
        (["--weights", "resnet56"], "resnet56 is not NETWORK=FILE with a file that is there"),
        (["--weights", f"resnet20={__file__}"], "weights for resnet20, which is not among the networks"),
        (["--images", "1"], "--images is 1, expected at least 2"),
        (["--solver-lambdas", "0"], "--solver-lambdas is 0, expected at least 1"),
        (["--path-ratio", "1"], "--path-ratio is 1.0, expected between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(words, said, script, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(script, monkeypatch, *words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_data_that_is_not_there(script, monkeypatch, capsys, tmp_path):
    assert run(script, monkeypatch, "resnet20", "--data", f"cifar10:{tmp_path}") == 2
    assert "could not measure: could not load the data set: " in capsys.readouterr().err


def test_a_scheme_that_does_not_end_leaves_the_rest(script, measured, weights, monkeypatch, capsys):
    measured["sglp-ib"].clear()
    measured["sglp-ib"] |= {"crash": "MemoryError"}
    measured["stlp-ib"] = {"too_slow": 9.0}
    assert run(script, monkeypatch, "resnet20", "--weights", weights) == 3
    text = capsys.readouterr().out
    assert "sglp-ib: NOT MEASURED: MemoryError" in text
    assert "stlp-ib: NOT MEASURED: it took over 900 s" in text
    assert "25.0 times as fast" in text
