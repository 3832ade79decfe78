"""Measures in a browser, on any phone and without a toolchain: one page that runs onnxruntime-web.

The page is served to one browser behind a token, does the jobs of the worker, and posts the answers. What
stands for the worker's fresh process is a fresh web worker: a new JavaScript world, a new WebAssembly memory,
new threads and a new GPU device, but within one page, so the operating system's process, the places of its
code and what the browser has compiled are shared. The interval between processes may therefore be narrower
than a measurement after a restart of the browser would show; a note says so.

Before anything is timed both networks run on the input that the CPU provider of this machine ran, and the
outputs are compared: a mismatch is an error, not a figure. Times include what a page pays on every inference,
such as the copies of input and output. A software adapter is no device: its time is never a latency.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from edgeprune.errors import ArtifactError, EdgepruneError, MeasurementError, TargetError
from edgeprune.external_data import files_of
from edgeprune.runners.browser.answers import ENVIRONMENT, is_whole
from edgeprune.runners.browser.certificate import make_tls
from edgeprune.runners.browser.desk import Desk, Gone
from edgeprune.runners.browser.invitation import LOOPBACK, invite, serving_address
from edgeprune.runners.browser.library import BACKENDS, find_library
from edgeprune.runners.browser.server import PageServer
from edgeprune.runners.local import PROBLEMS, TIMEOUT_S, LocalRunner
from edgeprune.statistics import ratio_estimate
from edgeprune.target import Runtime
from edgeprune.units import format_quantity

__all__ = ["BrowserRunner"]

WAIT_S = 300.0
END_S = 3.0  # for the page to hear that it is over
# Largest |browser - CPU| / max |CPU| of an output that is called the same. GPUs reorder and contract sums,
# and what is behind WebNN may compute in float16.
TOLERANCE = {"wasm": 1e-4, "webgpu": 1e-3, "webnn": 2e-2}
TOLERANCE_BY_PRECISION = {"fp32": 0.0, "fp16": 1e-2, "int8": 5e-2}
NO_MEMORY = "a page is not told the peak memory of the process that runs it"
NEXT_STEP = "Open the address on the device, and keep the page in front and its screen on."


class BrowserRunner:
    """Hands the jobs of the worker to the page of one browser; a context manager, which ends the server.

    Args:
        runtime: How to run the models; ``host`` and ``web`` are the defaults of the arguments below.
        host: IP address of this machine to serve on, or ``"lan"``: its address on the local network. None:
            127.0.0.1, which no other machine reaches.
        port: 0: any that is free.
        web: Folder of onnxruntime-web; None: ``node_modules`` here or above.
        say: Is told the address of the page, as lines for a terminal.
        wait_s: How long to wait for a browser.
        timeout_s: A job that takes longer is given up.
        lost_s: A page that says nothing for so long is given up.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        host: str | None = None,
        port: int = 0,
        web: str | None = None,
        say: Callable[[str], None] | None = None,
        wait_s: float = WAIT_S,
        timeout_s: float = TIMEOUT_S,
        lost_s: float = 60.0,
    ) -> None:
        if runtime.strict:
            raise TargetError(
                "could not use the target file",
                where="runtime.strict",
                value="true",
                expected='false with runner = "browser"',
                hint="The placement tells what the provider left to the CPU: give max_cpu_nodes as a budget.",
            )
        self.runtime = replace(runtime, host=host or runtime.host, web=web or runtime.web)
        self.port, self.say, self.timeout_s = port, say, timeout_s
        self.desk = Desk(wait_s, lost_s)
        self.server: PageServer | None = None
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.models: dict[Path, dict[str, Any]] = {}
        self.samples: dict[Path, list[list[int]]] = {}
        self.checked: list[str] = []
        self.software = ""
        self.version = ""

    def __enter__(self) -> BrowserRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        reason = None
        if fault is not None:
            reason = str(fault) if isinstance(fault, EdgepruneError) else "Stopped on the other side."
        self.close(reason)

    def close(self, reason: str | None = None) -> None:
        """Tell the page how it ended, and stop the server.

        Args:
            reason: Why there is no result; None: there is one.
        """
        if self.server is not None:
            self.desk.end({"error": reason} if reason else {"result": self.result()}, END_S)
            self.server.close()
            self.server = None
        if self.folder is not None:
            self.folder.cleanup()
            self.folder = None

    def notes(self) -> list[str]:
        """None: each placement carries its own."""
        return []

    def step(self, done: int, total: int, text: str) -> None:
        """Let the page show how far the measurement is."""
        self.desk.status = {"done": done, "total": total, "text": text}

    def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
        """Do one job; see ``Runner.run``."""
        if job == "memory":
            names = ("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes")
            return {**dict.fromkeys(names), "method": None, "why": NO_MEMORY}
        if job not in ("environment", "placement", "latency"):
            raise MeasurementError(
                PROBLEMS[job],
                where="runtime.runner",
                value="'browser', whose page cannot do that",
                expected="a runner that takes the worker: 'local' or 'ssh'",
            )
        if job == "latency" and self.software:
            self._refuse_software()
        self.start()
        known = [self._model(Path(model)) for model in models]
        request = {
            "job": job,
            "backend": BACKENDS[self.runtime.provider][0],
            "provider": self.runtime.provider,
            "provider_options": dict(self.runtime.provider_options),
            "threads": self.runtime.threads,
            "models": known,
            **options,
        }
        answer = self._ask(job, request)
        if job == "environment":
            return self._environment(answer)
        if job == "placement":
            return self._placement(Path(models[0]), answer)
        self._keep(models, answer)
        return answer

    # --- the server -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve the page, and say where, unless that is done.

        Raises:
            MeasurementError: The library, the address or what HTTPS takes is not there.
        """
        if self.server is not None:
            return
        library = find_library(self.runtime.provider, self.runtime.web)
        address = serving_address(self.runtime.host)
        tls = None if address in LOOPBACK else make_tls(address)
        token = secrets.token_urlsafe(16)
        try:
            self.server = PageServer(address, self.port, token, self.desk, tls and tls.context)
        except OSError as reason:
            raise MeasurementError(
                "could not serve the page",
                where="--host",
                value=f"'{address}', port {self.port or 'any'} ({reason.strerror})",
                expected="an address of this machine and a port that is free",
                hint='"lan" stands for its address on the local network.',
            ) from None
        self.folder = tempfile.TemporaryDirectory(prefix="edgeprune-page-")
        self.version = library.version
        self.server.publish(library.script, "ort.mjs")
        self.server.publish(library.wasm, "ort.wasm")
        if self.say:
            self.say(invite(self.server.url, self.desk.wait_s, tls and tls.fingerprint))

    def _model(self, path: Path) -> dict[str, Any]:
        """Serve a model with the input and the outputs of the CPU provider here, once."""
        if path not in self.models:
            assert self.server is not None
            assert self.folder is not None
            if path.is_file() and len(files_of(path)) > 1:
                raise ArtifactError(
                    "could not run the ONNX file in the browser",
                    where=str(path),
                    value="one with external data",
                    expected="one file",
                    hint="The page loads one file: save the weights inside it.",
                )
            number = len(self.models)
            folder = Path(self.folder.name, str(number))
            folder.mkdir()
            here = LocalRunner(
                replace(
                    self.runtime,
                    runner="local",
                    provider="CPUExecutionProvider",
                    provider_options={},
                    python=None,
                    threads=1,
                )
            )
            found = here.run("reference", [path], folder=str(folder))
            for value in (*found["inputs"], *found["outputs"]):
                value["url"] = self.server.publish(folder / value["file"], f"{number}/{value['file']}")
            url = self.server.publish(path.resolve(), f"{number}/model.onnx")
            self.models[path] = {"name": path.name, "url": url, **found}
        return self.models[path]

    # --- answers --------------------------------------------------------------------------------------------

    def _ask(self, job: str, request: dict[str, Any]) -> dict[str, Any]:
        problem = PROBLEMS[job]
        try:
            answer = self.desk.ask(request, self.timeout_s)
        except Gone as reason:
            raise MeasurementError(problem, where="the page", value=str(reason), hint=NEXT_STEP) from None
        fault = answer.get("error")
        if isinstance(fault, dict):
            message = str(fault.get("message", "a failure without a text"))
            if fault.get("kind") == "model":
                where = str(fault.get("model", "the network"))
                raise ArtifactError(f"{problem} in the browser", where=where, value=message)
            hint = str(fault.get("hint", ""))
            where = self.runtime.provider if fault.get("kind") == "provider" else "the page"
            raise MeasurementError(problem, where=where, value=message, hint=hint)
        if not is_whole(job, answer, len(request["models"])):
            raise MeasurementError(
                problem,
                where="the page",
                value="answering in another form",
                hint="Load it anew; a browser's extension may have changed it.",
            )
        return answer

    def _environment(self, answer: dict[str, Any]) -> dict[str, Any]:
        self.software = answer["software_adapter"]
        return {
            "onnxruntime": f"{self.version} (onnxruntime-web)",
            **{key: answer.get(key) for key in ENVIRONMENT},
            "governor": None,
            "load_average": None,
        }

    def _placement(self, path: Path, answer: dict[str, Any]) -> dict[str, Any]:
        """Refuse outputs that are not those of the CPU, and a provider that took no node."""
        provider, backend = self.runtime.provider, BACKENDS[self.runtime.provider][0]
        limit = max(TOLERANCE[backend], TOLERANCE_BY_PRECISION[self.runtime.precision])
        difference = answer["difference"]
        if difference is None or difference > limit:
            shown = "not a number" if difference is None else f"{difference:.2g} of the largest output"
            raise MeasurementError(
                "could not trust the browser's outputs",
                where=path.name,
                value=f"computed with a difference of {shown} to the CPU here",
                expected=f"at most {limit:g}",
                hint="Try CPUExecutionProvider (WebAssembly), another browser, or another onnxruntime-web.",
            )
        nodes, left = answer["nodes"], answer["left_to_cpu"]
        if provider not in nodes:
            raise MeasurementError(
                PROBLEMS["placement"],
                where=provider,
                value=f"listed, but took none of the {sum(nodes.values())} nodes of {path.name}",
                hint="CPUExecutionProvider is WebAssembly, which every browser has.",
            )
        self.software = self.software or answer["software_adapter"]
        repeat, notes = int(answer["repeat"]), []
        self.models[path]["repeat"] = repeat
        if repeat > 1:
            notes.append(
                f"{path.name}: a sample is the mean of {repeat} inferences, since the browser's clock has "
                f"steps of {answer['clock_step_ms'] * 1e3:.0f} us: it hides high percentiles of single ones."
            )
        total = sum(nodes.values())
        self.checked.append(
            f"{path.name}: {nodes[provider]} of {total} nodes, outputs within {difference:.1g}"
        )
        inputs = [
            {key: value[key] for key in ("name", "type", "shape")} for value in self.models[path]["inputs"]
        ]
        return {
            "source": "profile",
            "nodes": nodes,
            "left_to_cpu": left,
            "inputs": inputs,
            "output_difference": difference,
            "notes": notes,
        }

    def _refuse_software(self) -> None:
        raise MeasurementError(
            PROBLEMS["latency"],
            where="the browser's GPU",
            value=f"'{self.software}', which is a processor that acts as one",
            expected="a real one: the time of a software adapter says nothing of any device",
            hint=f"As a test of function it worked ({'; '.join(self.checked)}).",
        )

    def _keep(self, models: Sequence[Path], answer: dict[str, Any]) -> None:
        """Keep what the page shows at the end."""
        for path, timed in zip(models, answer["models"], strict=True):
            self.samples.setdefault(Path(path), []).append(timed["samples_ns"])

    def result(self) -> dict[str, Any]:
        """What the page shows at the end: each network's median and, of two, the ratio with its interval."""
        found: dict[str, Any] = {
            "medians": [
                {"name": path.name, "seconds": middle, "text": format_quantity(middle, "time")}
                for path in self.models
                if path in self.samples
                for middle in [median(ns for process in self.samples[path] for ns in process) / 1e9]
            ],
            "processes": min(map(len, self.samples.values()), default=0),
        }
        if len(self.samples) == 2 and found["processes"] > 1:
            slim, dense = (self.samples[path] for path in self.models)
            pairs = [list(zip(*both, strict=True)) for both in zip(slim, dense, strict=True)]
            ratio = ratio_estimate(pairs)
            found["ratio"] = [ratio.value, ratio.low, ratio.high]
        return found
