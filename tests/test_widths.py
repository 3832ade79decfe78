"""Latency against width: the rule on devices that are made up, then a real run, its text and its drawing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeprune import widths
from edgeprune.errors import MeasurementError, UsageError
from edgeprune.report import widths_svg, widths_text
from edgeprune.report.widths import chart, conclusion
from edgeprune.runners import RUNNERS
from edgeprune.target import Runtime, Target
from edgeprune.widths import KINDS, Curve, WidthReport, curve_of, layer, measure_widths
from tests.conftest import run

TARGET = Target("test device", 8, Runtime(input=(1, 3, 32, 32)), (), Path("test.toml"), "ab" * 32)
WIDTHS = tuple(range(32, 97))


def straight(width: int) -> float:
    return 20 + 3.0 * width


def stepped(step: int, slow_path: float = 1.0, need: int = 1) -> Callable[[int], float]:
    """Pads to ``step``; widths that are no multiples of ``need`` take another path, so much slower."""

    def latency(width: int) -> float:
        return straight(math.ceil(width / step) * step) * (slow_path if width % need else 1.0)

    return latency


def curve(latency: Callable[[int], float], noise: float = 0.005, processes: int = 10, seed: int = 0) -> Curve:
    random = np.random.default_rng(seed)
    exact = np.array([latency(width) for width in WIDTHS])[:, None] * 1e-6
    # A process is slower or faster as a whole; what is left is noise of each figure.
    errors = random.normal(0, 0.1, processes) + random.normal(0, noise, (len(WIDTHS), processes))
    return curve_of("conv", 32, 28, WIDTHS, exact * np.exp(errors))


@pytest.mark.parametrize(
    ("latency", "multiple"),
    [
        (stepped(16), 16),
        (stepped(8), 8),
        (stepped(32), 32),
        (stepped(16, slow_path=1.3, need=4), 16),
        (stepped(1, slow_path=1.3, need=4), 4),
        (stepped(1, slow_path=1.5, need=2), 2),
        # A straight line is no reason to round, whatever a width costs anyway.
        (straight, 1),
        (lambda width: 3.0 * width, 1),
        (lambda width: 50.0 + 0 * width, 1),
        # Steps that are too small to be worth coarser widths.
        (stepped(2), 1),
        (stepped(4), 1),
    ],
)
def test_the_rule(latency: Callable[[int], float], multiple: int) -> None:
    assert curve(latency).multiple == multiple


@pytest.mark.parametrize("seed", range(10))
def test_noise_is_no_reason_to_round(seed: int) -> None:
    assert curve(straight, noise=0.1, seed=seed).multiple == 1


def test_steps_that_drown_in_noise_are_not_claimed() -> None:
    quiet, noisy = curve(stepped(16)), curve(stepped(16), noise=1.0, processes=3)
    assert (quiet.multiple, noisy.multiple) == (16, 1)
    assert noisy.prices[1].high / noisy.prices[1].low > quiet.prices[1].high / quiet.prices[1].low


def test_prices_are_those_above_the_line() -> None:
    found = curve(stepped(1, slow_path=1.2, need=2), noise=0.0).prices
    aligned = {m: estimate.value for m, estimate in found.items()}
    assert aligned == pytest.approx({1: 1.2 ** (32 / 65), **dict.fromkeys((2, 4, 8, 16, 32), 1.0)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 33])
def test_layers_are_what_they_are_called(kind: str, width: int) -> None:
    file = onnx.load_from_string(layer(kind, width, 6, 5))
    onnx.checker.check_model(file, full_check=True)
    shapes = {one.name: tuple(one.dims) for one in file.graph.initializer}
    outer = {"make": (width, 6, 3, 3), "read": (6, width, 3, 3)}
    deep = {"make": (width, 6, 1, 1), "each": (width, 1, 3, 3), "read": (6, width, 1, 1)}
    assert shapes == (outer if kind == "conv" else deep)


class Device:
    """Pads widths to 8; the provider leaves Relu to the CPU if asked to."""

    left: Sequence[dict[str, str]] = ()

    def __init__(self, runtime: Runtime) -> None:
        assert runtime.input is None, "the shape of the target's network is not that of a layer"

    def notes(self) -> list[str]:
        return []

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
        if job == "environment":
            return {"load_average": 9.0, "cores": 4, "governor": None}
        if job == "placement":
            return {"left_to_cpu": list(self.left)}
        names = [path.stem.split("-") for path in models]
        assert all(onnx.load(path).ir_version for path in models[:1])
        times = [round(1000 * stepped(8)(int(width))) for _, width in names]
        return {"models": [{"samples_ns": [time] * options["runs"]} for time in times]}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> type[Device]:
    monkeypatch.setitem(RUNNERS, "local", Device)
    return Device


@pytest.fixture(scope="module")
def made() -> WidthReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RUNNERS, "local", Device)
        return measure_widths(TARGET, input_width=4, processes=2)


@pytest.fixture
def report(made: WidthReport) -> WidthReport:
    return made


def test_a_measurement(report: WidthReport) -> None:
    assert [one.kind for one in report.curves] == list(KINDS)
    assert report.multiple == 8
    assert report.notes == ("The load average was 9.0 on 4 cores: end other work and measure again.",)
    assert report.curves[0].latency_s[1] == pytest.approx([140e-6, 140e-6])
    written = json.loads(json.dumps(report.to_json()))
    assert written["channel_multiple"] == 8
    assert "through the multiples of 32" in written["rule"]


@pytest.mark.usefixtures("device")
def test_progress_is_told() -> None:
    steps: list[tuple[int, int, str]] = []
    measure_widths(
        TARGET, kinds=["conv"], input_width=4, processes=2, on_progress=lambda *step: steps.append(step)
    )
    texts = ["conv: placement", "conv: process 1 of 2", "conv: process 2 of 2"]
    assert steps == [(k, 3, text) for k, text in enumerate(texts)]


def test_what_is_left_to_the_cpu_is_said(device: type[Device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "left", [{"name": "active", "op_type": "Relu"}])
    notes = measure_widths(TARGET, kinds=["conv"], input_width=4, processes=2).notes
    assert notes[1:] == tuple(
        f"conv, width {width}: the provider left Relu to the CPU." for width in (32, 33, 96)
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kinds": []}, "kinds is empty, expected one or more of conv, depthwise"),
        ({"kinds": ["pool"]}, "kinds is pool"),
        ({"first": 33, "last": 64}, "the range of widths is 33 to 64, expected one that holds two"),
        ({"first": 0}, "first is 0, expected >= 1"),
        ({"size": 2}, "size is 2, expected >= 3"),
        ({"processes": 1}, "processes is 1, expected >= 2"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        measure_widths(TARGET, **options)


def test_another_precision_is_refused() -> None:
    target = replace(TARGET, runtime=replace(TARGET.runtime, precision="int8"))
    with pytest.raises(MeasurementError, match=r"runtime\.precision is 'int8', expected 'fp32'"):
        measure_widths(target)


def test_the_text_fits_a_terminal(report: WidthReport) -> None:
    lines = widths_text(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "test device: latency of a convolution against its width"
    assert "channel_multiple = 8 is right: test device has channel_multiple = 8." in lines
    assert lines[-1].startswith("note: The load average")


def test_the_bars_are_steps(report: WidthReport) -> None:
    rows = chart(report.curves[0]).splitlines()
    assert rows[0].startswith("    308 µs ")
    # 89 to 96 alone reach the top; all bars stand on the ground.
    assert rows[0].rstrip().count("█") == 8
    assert rows[0].endswith("█")
    assert rows[-2].count("█") == len(WIDTHS)
    assert rows[-1].split() == ["width", *map(str, range(32, 97, 8))]
    wide = replace(
        report.curves[0], widths=tuple(range(32, 132)), latency_s=tuple((1.0, 1.0) for _ in range(100))
    )
    assert max(map(len, chart(wide).splitlines())) <= 80
    assert chart(wide).count("width") == 2


@pytest.mark.parametrize(
    ("multiple", "text"),
    [
        (16, "Suggested: channel_multiple = 16; test device has channel_multiple = 8."),
        (None, "No multiple is clearly better than any width here; test device has channel_multiple = 8."),
    ],
)
def test_the_conclusion(report: WidthReport, multiple: int | None, text: str) -> None:
    assert conclusion(replace(report, multiple=multiple)) == text


def test_the_drawing_has_each_width(report: WidthReport) -> None:
    named = replace(report, target_name="<a & b>")
    root = ElementTree.fromstring(widths_svg(named))
    dots = [one for one in root.iter() if one.tag.endswith("circle")]
    assert len(dots) == 2 * len(WIDTHS)
    assert sum(one.get("class") == "dot on" for one in dots) == 2 * len([w for w in WIDTHS if w % 8 == 0])
    assert "<a & b>" in "".join(root.itertext())
    left = [float(str(one.get("cx"))) for one in dots[: len(WIDTHS)]]
    assert left == sorted(left)


@pytest.mark.usefixtures("device")
def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = tmp_path / "w.svg"
    code, out, _ = run(
        capsys, "widths", "--kind", "conv", "--processes", "2", "--input-width", "4", "--draw", str(drawing)
    )
    assert code == 0
    assert "suggested: 8" in out
    assert out.splitlines()[-1] == f"drawing: {drawing}"
    assert drawing.read_text().startswith("<svg")
    monkeypatch.setattr(
        widths, "layer", lambda kind, width, *_: layer(kind, width, 4, 28)
    )  # it has no options
    code, out, _ = run(capsys, "bench", "--widths", "--processes", "2", "--json")
    found = json.loads(out)
    assert (code, found["exit_code"], found["channel_multiple"]) == (0, 0, 8)
    assert [one["kind"] for one in found["curves"]] == list(KINDS)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["widths", "--draw", "w.png"], "--draw is w.png, expected a name that ends in .svg"),
        (["widths", "--kind", "pool"], "--kind"),
        (["widths", "--to", "40"], "the range of widths is 32 to 40"),
        (["bench", "--widths", "slim.onnx"], "a file or option is slim.onnx, expected none beside --widths"),
    ],
)
def test_mistakes(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *words)
    assert code == 2
    assert text in err


@pytest.mark.parametrize("kind", KINDS)
def test_layers_run(kind: str) -> None:
    session = onnxruntime.InferenceSession(layer(kind, 33, 6, 5), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.ones((1, 6, 5, 5), np.float32)})
    assert found.shape == (1, 6, 5, 5)
    assert 1e-3 < np.abs(found).max() < 1e3


@pytest.mark.slow
def test_a_real_device() -> None:
    """Two processes of a narrow layer: figures come out, whatever the machine likes."""
    found = measure_widths(
        replace(TARGET, runtime=Runtime()), kinds=["depthwise"], first=32, last=64, input_width=4, size=4,
        processes=2,
    )  # fmt: skip
    assert len(found.curves[0].latency_s) == 33
    assert all(0 < time < 1 for row in found.curves[0].latency_s for time in row)
    assert found.environment["onnxruntime"]
