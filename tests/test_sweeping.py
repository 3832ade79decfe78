"""A sweep by its command: real plans and surgery; the export and the device are fakes, to be quick."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.artifact import Artifact
from edgeprune.cost import count_macs, count_params
from edgeprune.errors import ExportError
from edgeprune.onnx_export import write_artifact
from edgeprune.pipeline import host
from edgeprune.pipeline.events import read_events
from edgeprune.pipeline.folder import locked
from edgeprune.pipeline.sweeping import running
from edgeprune.runners import RUNNERS
from edgeprune.training import evaluate
from tests.conftest import edgeprune, run
from tests.test_measurement import FakeRunner

SWEEP = [
    "sweep", "--model", "tiny:net", "--data", "digits", "--epochs", "0", "--no-refit",
    "--schemes", "magnitude,random", "--target", "test.toml", "--out", "s",
]  # fmt: skip
POINTS = ("magnitude-macs-0.4", "magnitude-macs-0.7", "random-macs-0.4", "random-macs-0.7")
RATIOS = (0.3, 0.5, 0.7)
POINTS_OF_SIX = [f"{name}-macs-{ratio}" for name in ("magnitude", "random") for ratio in RATIOS]

Runner = Callable[..., tuple[int, str, str]]


class Exports:
    """In the place of ``export``: a small file of as many weights as the network has parameters."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.stop: Callable[[Path], None] = lambda _: None

    def __call__(self, model: Any, example: Any, path: Path, *, data: Any, **more: Any) -> Artifact:
        self.stop(path)
        self.made.append(f"{path.parent.name}/{path.name}")
        params = count_params(model)
        weights = numpy_helper.from_array(np.zeros(params, np.float32), "w")
        same = helper.make_node("Identity", ["w"], ["y"])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [params])
        graph = helper.make_graph([same], "g", [], [out], [weights])
        payload = helper.make_model(graph).SerializeToString()
        accuracy = {"test": evaluate(model, data.test)}
        sha256 = hashlib.sha256(payload).hexdigest()
        macs = count_macs(model, example)
        made = Artifact(
            path,
            sha256,
            len(payload),
            (1, 3, 32, 32),
            macs,
            params,
            0.0,
            accuracy,
            provenance=more["provenance"],
        )
        write_artifact(made, payload)
        return made


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Exports:
    found = Exports()
    monkeypatch.setattr(host, "export", found)
    monkeypatch.setitem(RUNNERS, "local", FakeRunner)
    return found


@pytest.fixture
def go(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exports: Exports
) -> Runner:
    """Runs a command in the workplace, in this process."""
    del exports
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.syspath_prepend(str(workplace))
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    return lambda *words: run(capsys, *words)


def begun(folder: Path) -> Counter[str]:
    """How often each stage has been begun, over all points."""
    return Counter(
        event["stage"]
        for path in (folder / "points").iterdir()
        for event in read_events(path / "events.jsonl")
        if event["event"] == "stage" and event["status"] == "begin"
    )


EACH_ONCE = Counter(
    {"train": 1, "export-dense": 1, "score": 2}
    | dict.fromkeys(("plan", "slim", "refit", "finetune", "export", "bench", "gate", "report", "card"), 4)
)


def test_a_sweep_does_what_is_the_same_once_and_goes_on_where_it_was_killed(
    go: Runner, exports: Exports, workplace: Path
) -> None:
    def kill(path: Path) -> None:
        if "random-macs-0.4" in str(path) and path.name == "slim.onnx":
            raise KeyboardInterrupt

    exports.stop = kill
    code, out, err = go(*SWEEP, "--ratios", "0.4,0.7")
    assert (code, out) == (130, "")
    assert "Run the same command again to go on" in err
    before = begun(workplace / "s")
    assert before["train"] == before["export-dense"] == 1
    assert before["score"] == 2
    assert before["bench"] == 0
    exports.stop = lambda _: None

    code, out, err = go("sweep", "--out", "s")
    assert code == 0, err
    # The stage that was cut off was begun twice, nothing else was.
    assert begun(workplace / "s") == EACH_ONCE + Counter(export=1)
    assert Counter(name.rpartition("/")[2] for name in exports.made) == {"dense.onnx": 1, "slim.onnx": 4}
    assert "magnitude-macs-0.7: bench done" in err
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines[2:7]] == [
        ["dense", "-"], ["magnitude", "0.4"], ["magnitude", "0.7"], ["random", "0.4"], ["random", "0.7"]
    ]  # fmt: skip

    sweep = json.loads((workplace / "s" / "sweep.json").read_text())
    assert [one["name"] for one in sweep["points"]] == list(POINTS)
    assert all(one["state"] == "passed" and one["error"] is None for one in sweep["points"])
    sizes = {one["name"]: one["measured"]["size"] for one in sweep["points"]}
    assert sizes[sweep["best"]] == min(sizes.values())
    assert (workplace / "s" / "best").resolve() == (workplace / "s" / "points" / sweep["best"]).resolve()
    ratio = sweep["points"][0]["measured"]["latency_ratio"]
    assert ratio["low"] < ratio["value"] < ratio["high"]
    assert ratio["value"] == pytest.approx(0.5, abs=1e-3)
    assert {"dense", *POINTS} >= set(sweep["fronts"]["size"]) > set()
    assert f"{sweep['best']} is the smallest" in " ".join(out.split())
    dense = {(workplace / "s" / "points" / name / "dense.safetensors").stat().st_ino for name in POINTS}
    assert len(dense) == 1
    page, text = ((workplace / "s" / f"sweep.{kind}").read_text() for kind in ("html", "md"))
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/", "")
    assert all(name.rpartition("-")[2] in text for name in POINTS)
    assert not (workplace / "s" / ".token").exists()

    # Once more: nothing is begun at all. A file that somebody has written over is made again, and it alone.
    code, out, err = go("sweep", "--out", "s", "--json")
    assert json.loads(out) == {
        "out": "s",
        **{k: v for k, v in sweep.items() if k not in ("format", "plan", "failures")},
    }
    assert begun(workplace / "s") == EACH_ONCE + Counter(export=1)
    (workplace / "s" / "points" / POINTS[1] / "verdicts.json").write_text("{}")
    assert go("sweep", "--out", "s")[0] == 0
    assert begun(workplace / "s") == EACH_ONCE + Counter(export=1, gate=1)


def test_a_point_is_a_run_like_any_other(go: Runner, workplace: Path) -> None:
    assert go(*SWEEP, "--ratios", "0.7")[0] == 0
    words = [word for word in SWEEP[1:-2] if word not in ("--schemes", "magnitude,random")]
    own = ["--scheme", "random", "--max-macs-ratio", "0.7"]
    code, _, err = go("run", *words, *own, "--out", "s/points/random-macs-0.7")
    assert code == 0
    assert err.count("nothing has changed, skipped") == err.count("\n")
    assert go("run", *words, *own, "--out", "alone")[0] == 0
    files = {path.name for path in (workplace / "alone").iterdir()}
    assert files == {path.name for path in (workplace / "s" / "points" / "random-macs-0.7").iterdir()}
    measured = {"events.jsonl", "run.json", "report.md", "report.html", "model_card.md", "measurement.json"}
    for name in files - measured:
        one, two = (workplace / folder / name for folder in ("alone", "s/points/random-macs-0.7"))
        assert one.read_bytes() == two.read_bytes(), name
    assert go("gate", "s/points/random-macs-0.7")[0] == 0
    assert go("report", "s/best")[0] == 0


def test_a_point_that_fails_stops_no_other(go: Runner, workplace: Path) -> None:
    code, out, err = go(*SWEEP, "--schemes", "magnitude", "--ratios", "0.0001,0.7")
    assert code == 2
    assert "1 of 2 points failed to run" in " ".join(out.split())
    assert "magnitude-macs-0.0001: could not reach the budget" in " ".join((out + err).split())
    sweep = json.loads((workplace / "s" / "sweep.json").read_text())
    assert [one["state"] for one in sweep["points"]] == ["error", "passed"]
    assert sweep["best"] == "magnitude-macs-0.7"
    assert begun(workplace / "s")["bench"] == 1
    # Without them the same folder passes.
    assert go("sweep", "--ratios", "0.7", "--out", "s")[0] == 0
    assert begun(workplace / "s")["bench"] == 1


def test_a_scheme_that_fails_is_tried_once(go: Runner, workplace: Path) -> None:
    words = ["--schemes", "sglp-ib", "--scheme-option", "images=4"]
    code, out, _ = go(*SWEEP, *words, "--ratios", "0.4,0.7")
    assert code == 2
    assert begun(workplace / "s")["score"] == 1
    assert "No point could be run." in out
    assert " ".join(out.split()).count("could not calibrate: images is 4, expected at least 20") == 2


def test_nothing_passes_and_the_closest_is_named(go: Runner, workplace: Path) -> None:
    (workplace / "test.toml").write_text('name = "t"\nchannel_multiple = 1\n[budgets]\nmax_size = "1 kB"\n')
    code, out, _ = go(*SWEEP, "--schemes", "magnitude", "--ratios", "0.4,0.7")
    assert code == 1
    text = " ".join(out.split())
    assert "No point passes all budgets." in text
    sweep = json.loads((workplace / "s" / "sweep.json").read_text())
    sizes = {one["name"]: one["measured"]["size"] for one in sweep["points"]}
    assert sweep["closest"] == min(sizes, key=sizes.__getitem__)
    assert f"{sweep['closest']} came closest" in text
    assert "limit 1 kB: missed by " in text
    assert sweep["points"][0]["misses"][0].startswith("ONNX file ")
    assert not (workplace / "s" / "best").exists()


def test_an_unfinished_one_has_no_best(go: Runner, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert go(*SWEEP, "--schemes", "magnitude", "--ratios", "0.333333333")[0] == 0
    assert (workplace / "s" / "best").is_dir()
    assert "--ratios 0.333333333 " in (workplace / "s" / "sweep.md").read_text()  # the same plan again
    monkeypatch.setattr(running, "_make", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        go("sweep", "--ratios", "0.7", "--out", "s")
    assert not (workplace / "s" / "best").is_symlink()


def test_what_is_every_points_ends_the_sweep(go: Runner, exports: Exports, workplace: Path) -> None:
    def refuse(_: Path) -> None:
        raise ExportError("could not export the network", where="it", value="odd", expected="another")

    exports.stop = refuse
    code, _, err = go(*SWEEP, "--ratios", "0.4")
    assert code == 2
    assert "could not export the network: it is odd" in err
    assert "points failed" not in err
    assert begun(workplace / "s")["score"] == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--ratios", "0.3,0.30"], "--ratios is 0.3,0.3, expected different numbers above 0 and at most 1"),
        (["--ratios", "0,0.5"], "--ratios is 0,0.5, expected different numbers above 0"),
        (["--ratios", "nan"], "--ratios is nan, expected different numbers"),
        (["--ratios", "a"], "--ratios is 'a', expected numbers as 0.3,0.5,0.7"),
        ([], "could not start a sweep: --ratios is missing"),
        (["--ratios", "0.5", "--schemes", "magnitude,magnitude"], "--schemes is magnitude,magnitude, exp"),
        (["--ratios", "0.5", "--schemes", "papers"], "its name is 'papers', expected one of proximal-ns"),
        (["--ratios", "0.5", "--scheme-option", "l1=1"], "'l1', expected an option of magnitude or random"),
        (["--ratios", "0.5", "--scheme-option", "taylor:images=9"], "for taylor, expected one of the"),
        (["--ratios", "0.5", "--scheme-option", "magnitude:q=9"], "an option is 'q', expected one of p"),
        (["--ratios", "0.5", "--scheme-option", "p"], "'p', expected KEY=VALUE or SCHEME:KEY=VALUE"),
        (["--ratios", "0.5", "--max-macs-ratio", "0.4"], "--max-macs-ratio is given beside --ratio-of macs"),
        (["--ratios", "0.5", "--ratio-of", "latency", "--jobs", "2"], "--jobs is 2, expected neither"),
        (["--ratios", "0.5", "--max-latency-ratio", "0.5", "--engine", "dask"], "--engine is dask, exp"),
        (["--ratios", "0.5", "--scheduler", "tcp://x:1"], "expected an engine. Add --engine dask"),
        (["--ratios", "0.5", "--out", "test.toml"], "could not start the sweep: test.toml is a file"),
        (["--ratios", "0.5", "--out", "."], "is a folder with other files (test.toml, tiny.py …)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_done(
    go: Runner, exports: Exports, words: list[str], text: str
) -> None:
    code, _, err = go(*SWEEP, *words)
    assert code == 2
    assert text in " ".join(err.split())
    assert exports.made == []


def test_options_go_to_the_schemes_that_have_them(
    go: Runner, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ExportError("enough")

    words = ["--scheme-option", "p=2", "--scheme-option", "random:seed=5"]
    code, out, _ = go(*SWEEP, *words, "--ratios", "0.7", "--ratio-of", "params", "--json")
    assert code == 0
    assert [one["name"] for one in json.loads(out)["points"]] == ["magnitude-params-0.7", "random-params-0.7"]
    options = {
        path.name: json.loads((path / "run.json").read_text())["settings"]["scheme_options"]
        for path in (workplace / "s" / "points").iterdir()
    }
    assert options == {"magnitude-params-0.7": {"p": "2"}, "random-params-0.7": {"seed": "5"}}
    # The page says how it was made, and that makes it again.
    text = (workplace / "s" / "sweep.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("edgeprune sweep "))
    assert "--ratio-of params --schemes magnitude,random --scheme-option p=2" in line
    before = json.loads((workplace / "s" / "sweep.json").read_text())["plan"]
    plan = workplace / "s" / "sweep.json"
    monkeypatch.setattr(running, "_make", refuse)
    assert go(*line.split()[1:])[0] == 2
    assert json.loads(plan.read_text())["plan"] == before


def test_a_folder_in_use_or_of_another_format_is_refused(go: Runner, workplace: Path) -> None:
    with locked(workplace / "s"):
        code, _, err = go(*SWEEP, "--ratios", "0.7")
    assert code == 2
    assert "s is in use by another edgeprune process" in " ".join(err.split())
    plan: dict[str, Any] = {"settings": {"model": "m"}, "schemes": [], "ratios": [], "ratio_of": "macs"}
    for other in (
        [], {"format": 99}, {"format": 1}, {"format": 1, "plan": {}}, {"format": 1, "plan": 3},
        {"format": 1, "plan": {**plan, "scheme_options": []}},
        {"format": 1, "plan": {**plan, "ratios": ["many"], "scheme_options": {}}},
        {"format": 1, "plan": {**plan, "scheme_options": {}}, "failures": {"p": {}}},
    ):  # fmt: skip
        (workplace / "s" / "sweep.json").write_text(json.dumps(other))
        code, _, err = go(*SWEEP, "--ratios", "0.7")
        assert code == 2
        assert "could not open the sweep: s/sweep.json is of another format" in " ".join(err.split())


@pytest.mark.slow
def test_six_points_by_the_real_command_killed_and_resumed(workplace: Path) -> None:
    """kill -9 in the middle, then ^C with two jobs, then to the end; and the same from a cluster of two."""
    words = [*SWEEP[:-2], "--ratios", "0.3,0.5,0.7", "--processes", "2"]

    def stopped(number: int, done: str, *more: str) -> None:
        child = subprocess.Popen(
            [sys.executable, "-m", "edgeprune", *words, "--out", "s", *more],
            cwd=workplace, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            for _ in range(1200):
                if (workplace / "s" / "points" / done).is_file() or child.poll() is not None:
                    break
                time.sleep(0.1)
            assert child.poll() is None, "it ended before it could be stopped"
            os.killpg(child.pid, number) if number == signal.SIGINT else child.send_signal(number)
            child.wait(60)
        finally:
            child.kill()

    stopped(signal.SIGKILL, "magnitude-macs-0.3/slim.onnx")
    stopped(signal.SIGINT, "magnitude-macs-0.7/slim.onnx", "--jobs", "2")
    last = edgeprune(*words, "--out", "s", cwd=workplace)
    assert last.returncode == 0, last.stderr
    counted = begun(workplace / "s")
    assert counted["train"] == counted["export-dense"] == 1
    assert counted["score"] == 2
    assert counted["bench"] == 6
    assert 6 <= counted["export"] <= 6 + 1 + 2  # those that were cut off
    assert json.loads((workplace / "s" / "sweep.json").read_text())["best"].endswith("0.3")

    dask = edgeprune(*words, "--out", "d", "--engine", "dask", "--jobs", "2", cwd=workplace)
    assert dask.returncode == 0, dask.stderr
    assert begun(workplace / "d")["train"] == 1
    names = ("dense.onnx", "slim.onnx", "slim.onnx.json", "plan.json", "scores.npz", "slim.safetensors")
    for point in POINTS_OF_SIX:
        for name in names:
            one, two = (workplace / folder / "points" / point / name for folder in "sd")
            assert one.read_bytes() == two.read_bytes(), one
    left_out = {"--ratios", "0.3,0.5,0.7", "--schemes", "magnitude,random"}
    alone = [word for word in words[1:] if word not in left_out]
    own = ["--scheme", "random", "--max-macs-ratio", "0.5", "--out", "alone"]
    assert edgeprune("run", *alone, *own, cwd=workplace).returncode == 0
    whole = (workplace / "alone" / "slim.onnx").read_bytes()
    assert whole == (workplace / "s" / "points" / "random-macs-0.5" / "slim.onnx").read_bytes()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(go: Runner, workplace: Path, width: int) -> None:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    assert go(*SWEEP, "--ratios", "0.4,0.7")[0] == 0
    told: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: told.append(message.text))
        page.on("request", lambda request: told.append(request.url))
        page.goto(f"file://{workplace / 's' / 'sweep.html'}")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("svg[role=img]").count() == 3
        assert page.locator("tbody tr").count() == 5
        browser.close()
    assert told == [f"file://{workplace / 's' / 'sweep.html'}"]
