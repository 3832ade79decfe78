"""The browser runner with a browser: Chromium without a window, on onnxruntime-web from npm."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import MeasurementError
from edgeprune.runners import BrowserRunner
from edgeprune.runners.browser import server as server_module
from edgeprune.runners.browser.invitation import serving_address
from edgeprune.runners.browser.library import find_library
from edgeprune.target import Runtime

pytestmark = pytest.mark.browser

RUNTIME = Runtime(runner="browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)  # fmt: skip
SWIFTSHADER = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")

Opener = Callable[[str], None]


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of onnxruntime-web: node_modules here, or npm's."""
    with contextlib.suppress(MeasurementError):
        return str(find_library("CPUExecutionProvider").script.parent)
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("neither node_modules/onnxruntime-web nor npm is here")
    folder = tmp_path_factory.mktemp("npm")
    words = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "onnxruntime-web@1.30.0"]
    (folder / "package.json").write_text("{}")
    done = subprocess.run(words, cwd=folder, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm could not fetch onnxruntime-web: {done.stderr.strip().splitlines()[-1:]}")
    return str(folder)


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[..., Opener]]:
    """Makes what opens the page of an invitation, and starts it; every browser ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def make(*flags: str) -> Opener:
        def opening(invitation: str) -> None:
            address = next(word for word in invitation.split() if word.startswith("http") and "://" in word)
            profile = tmp_path / f"profile{len(started)}"
            assert CHROMIUM is not None
            command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", f"{address}#start"]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            started.append(subprocess.Popen(command, start_new_session=True, **quiet))  # type: ignore[call-overload]

        return opening

    yield make
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def network(path: Path, width: int, seed: int = 0) -> Path:
    """Three convolutions on 32 x 32."""
    random = np.random.default_rng(seed)
    shapes = {"w0": (width, 3, 3, 3), "w1": (width, width, 3, 3), "w2": (10, width, 1, 1)}
    weights = [
        numpy_helper.from_array(
            (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype("f4"), name
        )
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["input", "w0"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["e"], name="third"),
        helper.make_node("GlobalAveragePool", ["e"], ["output"], name="pool"),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 10, 1, 1])],
        weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def command(folder: Path, web: str, opening: Opener, *words: str) -> tuple[int, str, str]:
    """The real command line on slim.onnx and dense.onnx; the browser opens what it prints."""
    network(folder / "slim.onnx", 8)
    network(folder / "dense.onnx", 48)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprune", "bench", "slim.onnx", "--baseline", "dense.onnx",
         "--runner", "browser", "--web", web, "--wait", "60", "--json", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert process.stderr is not None
    errors = ""
    for line in process.stderr:
        errors += line
        if line.startswith("Open this"):
            opening(line)
    with process:
        out = process.stdout.read() if process.stdout else ""
    return process.returncode, out, errors


@pytest.mark.parametrize("host", ["127.0.0.1", "lan"])
def test_webassembly(host: str, tmp_path: Path, web: str, browse: Callable[..., Opener]) -> None:
    """From the command to the measurement, on two threads; on the network over HTTPS."""
    flags = []
    if host == "lan":
        pytest.importorskip("cryptography")
        with contextlib.suppress(MeasurementError):
            # A person accepts the certificate; a browser without a window needs a flag for that.
            flags = ["--ignore-certificate-errors", f"--host-resolver-rules=EXCLUDE {serving_address('lan')}"]
        if not flags:
            pytest.skip("this machine is in no network")
    (tmp_path / "two.toml").write_text('name = "test"\n[runtime]\nrunner = "browser"\nthreads = 2\n')
    words = ("--target", "./two.toml", "--host", host, "--processes", "3")
    code, out, err = command(tmp_path, web, browse(*flags), *words)
    assert code == 0, err
    found = json.loads(out)
    assert found["environment"]["cross_origin_isolated"] is True
    assert found["environment"]["clock_step_ms"] < 0.1
    assert "onnxruntime-web" in found["environment"]["onnxruntime"]
    for side in (found, found["baseline"]):
        placement = side["placement"]
        assert (placement["source"], placement["left_to_cpu"]) == ("profile", [])
        # Each Relu is fused into its convolution, and further layout nodes may stand between.
        assert placement["nodes"]["CPUExecutionProvider"] >= 4
        assert placement["output_difference"] < 1e-5
        assert len(side["latency_samples_s"]) == 3
        assert side["memory"]["peak_bytes"] is None
    middle = [np.median(np.concatenate(side["latency_samples_s"])) for side in (found, found["baseline"])]
    assert middle[0] < middle[1]
    assert any("fresh web worker" in note for note in found["notes"])


def test_webgpu_on_a_software_adapter_works_and_is_not_timed(
    tmp_path: Path, web: str, browse: Callable[..., Opener]
) -> None:
    provider = 'provider = "WebGpuExecutionProvider"'
    (tmp_path / "gpu.toml").write_text(f'name = "test"\n[runtime]\nrunner = "browser"\n{provider}\n')
    code, out, err = command(tmp_path, web, browse(*SWIFTSHADER), "--target", "./gpu.toml")
    assert code == 3, err
    assert "'google swiftshader', which is a processor that acts as one" in err
    assert "As a test of function it worked (slim.onnx: " in err
    assert "samples" not in out
    assert not (tmp_path / "measurement.json").exists()


def test_no_webgpu(web: str, browse: Callable[..., Opener]) -> None:
    runtime = replace(RUNTIME, provider="WebGpuExecutionProvider")
    with (
        BrowserRunner(runtime, web=web, say=browse("--disable-features=WebGPU")) as runner,
        pytest.raises(MeasurementError, match="WebGpuExecutionProvider is absent"),
    ):
        runner.run("environment")


def test_no_webnn(web: str, browse: Callable[..., Opener]) -> None:
    runtime = replace(RUNTIME, provider="WebNNExecutionProvider")
    with (
        BrowserRunner(runtime, web=web, say=browse()) as runner,
        pytest.raises(MeasurementError, match="WebNNExecutionProvider is absent: this browser has no WebNN"),
    ):
        runner.run("environment")


def test_other_outputs_are_refused(tmp_path: Path, web: str, browse: Callable[..., Opener]) -> None:
    """The page gets another network than the one that ran here."""
    slim, other = network(tmp_path / "slim.onnx", 8), network(tmp_path / "other.onnx", 8, seed=1)

    class Swapping(BrowserRunner):
        def _model(self, path: Path) -> dict[str, Any]:
            found = super()._model(path)
            assert self.server is not None
            self.server.publish(other, found["url"])
            return found

    with (
        Swapping(RUNTIME, web=web, say=browse()) as runner,
        pytest.raises(
            MeasurementError, match=r"could not trust the browser's outputs: slim\.onnx is computed"
        ),
    ):
        runner.run("placement", [slim])


def test_no_threads_without_isolation(
    tmp_path: Path, web: str, browse: Callable[..., Opener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-web would go on with one thread, and say so on the console alone."""
    for name in ("Opener", "Embedder"):
        monkeypatch.delitem(server_module.HEADERS, f"Cross-Origin-{name}-Policy")
    runtime = replace(RUNTIME, threads=2)
    with (
        BrowserRunner(runtime, web=web, say=browse()) as runner,
        pytest.raises(MeasurementError, match="asked for 2 threads, which this page may not have"),
    ):
        runner.run("placement", [network(tmp_path / "slim.onnx", 8)])


def test_tensors_of_all_kinds(tmp_path: Path, web: str, browse: Callable[..., Opener]) -> None:
    kinds = ("FLOAT", "DOUBLE", "FLOAT16", "INT64", "INT32", "UINT8", "INT8", "BOOL")
    nodes, values, outputs = [], [], []
    for kind in kinds:
        values.append(helper.make_tensor_value_info(f"x{kind}", getattr(TensorProto, kind), [2, 3]))
        outputs.append(helper.make_tensor_value_info(f"y{kind}", getattr(TensorProto, kind), [2, 3]))
        nodes.append(helper.make_node("Identity", [f"x{kind}"], [f"y{kind}"]))
    graph = helper.make_graph(nodes, "g", values, outputs)
    path = tmp_path / "kinds.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with BrowserRunner(RUNTIME, web=web, say=browse()) as runner:
        answer = runner.run("placement", [path])
    assert answer["output_difference"] == 0
    assert [value["type"] for value in answer["inputs"]][:3] == [
        "tensor(float)",
        "tensor(double)",
        "tensor(float16)",
    ]


def test_a_page_that_is_closed_ends_it(tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser dies in the middle."""
    monkeypatch.setattr(server_module, "POLL_S", 0.5)

    def opening(invitation: str) -> None:
        address = next(word for word in invitation.split() if word.startswith("http://"))
        words = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"{address}#start"]
        process = subprocess.Popen(
            words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started.append(process)

    started: list[subprocess.Popen[bytes]] = []
    with BrowserRunner(RUNTIME, web=web, say=opening, lost_s=3) as runner:
        runner.run("environment")
        os.killpg(started[0].pid, signal.SIGKILL)
        started[0].wait()
        with pytest.raises(MeasurementError, match=r"the page is (no longer there|closed before)"):
            runner.run("placement", [network(tmp_path / "slim.onnx", 8)])
