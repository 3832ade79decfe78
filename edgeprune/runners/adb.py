"""Runs onnxruntime_perf_test on an Android device over adb. Device side: no torch.

There is no Python on a phone, so the worker cannot run there. What takes its place runs one network per
process: slim and dense take turns by process instead of inside one, memory is not told apart from the
program's own, and a profile proves where the nodes run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from edgeprune.errors import ArtifactError, MeasurementError, TargetError
from edgeprune.runners.android import Phone
from edgeprune.runners.board import last_line
from edgeprune.runners.elf import read_program
from edgeprune.runners.local import PROBLEMS, TIMEOUT_S, LocalRunner
from edgeprune.runners.perf_test import (
    PROVIDERS,
    WARM_UP,
    Timing,
    arguments,
    check_runtime,
    read_profile,
    read_timing,
)
from edgeprune.runners.thermal import Thermal, read_thermal, thermal_notes
from edgeprune.target import Runtime

FIRST_API = 24  # Android 7: from here on adb brings exit statuses and the end of input over
# NNAPI is part of Android since 8.1.
FIRST_API_OF = {"NnapiExecutionProvider": 27}
RESULT = "edgeprune-result"
SERIAL = re.compile(r"[A-Za-z0-9][\w.:-]*", re.ASCII)
GET_IT = (
    "It comes with a build of onnxruntime for Android (build.sh --android --android_abi arm64-v8a "
    "--build_shared_lib, with --use_xnnpack and the like): name it as runtime.perf_test in the target."
)
PROPERTIES = (
    "ro.product.manufacturer",
    "ro.product.model",
    "ro.soc.model",
    "ro.build.version.release",
    "ro.build.version.sdk",
    "ro.product.cpu.abilist",
)
FACTS = (
    *(f"getprop {name}" for name in PROPERTIES),
    "nproc",
    "cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "cat /proc/loadavg",
    "uname -srm",
)
HEAT = ("dumpsys thermalservice", "dumpsys battery", "settings get global low_power")
HOW = (
    "onnxruntime_perf_test runs one network per process: slim and dense took turns by process (slim, dense, "
    "dense, slim), which is noisier than turns inside a process, and its first inference is told in whole "
    "milliseconds, rounded up here."
)
NO_MEMORY = (
    "onnxruntime_perf_test tells the peak of its whole process alone, not what the network takes of it"
)


class AdbRunner:
    """Jobs on an Android device.

    Program, libraries and each model are pushed once, into a private folder there that goes at the end; see
    ``Guard``.

    Attributes:
        runtime: How to run the models.
        timeout_s: A process that takes longer is ended.
    """

    def __init__(self, runtime: Runtime, timeout_s: float = TIMEOUT_S) -> None:
        """Nothing is reached before the first job.

        Raises:
            TargetError: The serial or a provider option is wrong.
            MeasurementError: onnxruntime_perf_test has no such provider on Android.
        """
        self.runtime, self.timeout_s = runtime, timeout_s
        if runtime.host is not None and not SERIAL.fullmatch(runtime.host):
            raise TargetError(
                "could not use the target file",
                where="runtime.host",
                value=repr(runtime.host),
                expected="a serial as `adb devices` lists it",
            )
        if runtime.provider not in PROVIDERS:
            raise MeasurementError(
                "could not measure on Android",
                where="runtime.provider",
                value=runtime.provider,
                expected=f"one of {', '.join(PROVIDERS)}",
            )
        check_runtime(runtime)
        self._phone: Phone | None = None
        self._facts: dict[str, str] = {}
        self._run_s: dict[str, float] = {}
        self._heat: Thermal | None = None

    def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
        """Do one job; see ``Runner.run``."""
        jobs: dict[str, Callable[..., dict[str, Any]]] = {
            "environment": self._environment,
            "placement": self._placement,
            "latency": self._latency,
        }
        problem = PROBLEMS.get(job, f"could not do the job '{job}'")
        if job not in (*jobs, "memory"):
            raise MeasurementError(
                problem,
                where="runtime.runner",
                value="'adb', which brings no Python",
                expected="a runner that takes the worker: 'local' or 'ssh'",
            )
        if job == "memory":
            figures = ("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes")
            return {**dict.fromkeys(figures), "method": None, "why": NO_MEMORY}
        try:
            phone = self._open(problem)
            return jobs[job](phone, [Path(model).resolve() for model in models], **options)
        except BaseException:
            self.close()  # ends what may still run there; a later job starts anew
            raise

    def notes(self) -> list[str]:
        """What the heat says, before the first job and now, and how times were taken."""
        if self._phone is None or self._heat is None:
            return []
        after = read_thermal(*self._phone.ask(HEAT))
        return [
            f"Before the measurement: {self._heat.text()}; after it: {after.text()}.",
            *thermal_notes(self._heat, after),
            HOW,
        ]

    def close(self) -> None:
        """End what runs on the device and take everything away there; harmless if nothing is open."""
        phone, self._phone = self._phone, None
        self._run_s.clear()
        if phone is not None:
            phone.close()

    def __enter__(self) -> AdbRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- jobs -----------------------------------------------------------------------------------------------

    def _environment(self, _: Phone, __: Sequence[Path]) -> dict[str, Any]:
        facts = self._facts
        load = facts["cat /proc/loadavg"].split()
        heat = self._heat
        return {
            "onnxruntime": _version(self._program()),
            "platform": f"Android {facts['ro.build.version.release']} (API {facts['ro.build.version.sdk']})",
            "kernel": facts["uname -srm"] or None,
            "machine": facts["ro.product.cpu.abilist"].split(",")[0],
            "device": f"{facts['ro.product.manufacturer']} {facts['ro.product.model']}".strip(),
            "cpu": facts["ro.soc.model"],
            "cores": int(facts["nproc"]) if facts["nproc"].isdigit() else 1,
            "governor": facts["cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"] or None,
            "load_average": float(load[0]) if load else None,
            "temperature": heat.text() if heat else None,
            "program": "onnxruntime_perf_test",
        }

    def _placement(self, phone: Phone, models: Sequence[Path]) -> dict[str, Any]:
        """Load the model here first, so that a fault of the file is one, then profile it there."""
        (model,) = models
        inputs = self._check(model)
        path = phone.push_model(model)
        profile = f"{phone.folder}/profile"
        # It is written when the program ends, to a name with the time in it.
        call = self._call(phone, 2, path, profile=f"{profile}/p")
        _, written = self._perf_test(phone, f"rm -rf {profile}; mkdir {profile}; {call}", f"{profile}/*")
        try:
            found = read_profile(written, self.runtime.provider)
        except ValueError as reason:
            raise MeasurementError(
                phone.problem,
                where="onnxruntime_perf_test",
                value=f"writing {reason}, so it is not proven where {model.name} runs",
                hint="Build it from onnxruntime 1.17 or later.",
            ) from None
        if not found["nodes"].get(self.runtime.provider):
            count = sum(found["nodes"].values())
            raise MeasurementError(
                phone.problem,
                where=self.runtime.provider,
                value=f"in the program, but took none of the {count} nodes of {model}",
                hint="See `adb logcat` for the reason, or measure on the CPU provider.",
            )
        return {**found, "inputs": inputs}

    def _latency(
        self,
        phone: Phone,
        models: Sequence[Path],
        *,
        runs: int,
        min_runs: int = 1,
        seconds: float = 3.0,
        **_: Any,
    ) -> dict[str, Any]:
        """Processes in turns: slim, dense, dense, slim; half of the runs of each network in each."""
        paths = [phone.push_model(model) for model in models]
        for path in paths:
            if path not in self._run_s:  # how long a run takes, so that the time is kept
                self._run_s[path] = self._time(phone, path, 1).samples_ns[0] / 1e9
        slowest_s = sum(self._run_s[path] for path in paths)
        count = max(1, -(-min(runs, max(min_runs, int(seconds / slowest_s))) // 2))
        found: list[list[Timing]] = [[] for _ in paths]
        for index in [*range(len(paths)), *reversed(range(len(paths)))]:
            timing = self._time(phone, paths[index], count)
            found[index].append(timing)
            self._run_s[paths[index]] = sorted(timing.samples_ns)[count // 2] / 1e9
        return {
            "models": [
                {
                    "load_ns": timings[0].load_ns,
                    "first_ns": timings[0].first_ns,
                    "samples_ns": [one for timing in timings for one in timing.samples_ns],
                }
                for timings in found
            ]
        }

    # --- the program there ----------------------------------------------------------------------------------

    def _call(self, phone: Phone, runs: int, model: str, *, profile: str = "", result: str = "") -> str:
        words = [*arguments(self.runtime, runs), *(["-p", profile] if profile else []), model]
        words += [result] if result else []
        folder = phone.folder
        where = f"cd {folder} && export LD_LIBRARY_PATH={folder} ADSP_LIBRARY_PATH={folder}"
        return f"{where} && ./onnxruntime_perf_test {' '.join(shlex.quote(word) for word in words)}"

    def _time(self, phone: Phone, path: str, count: int) -> Timing:
        """One process of so many runs."""
        runs, result = count + WARM_UP, f"{phone.folder}/result"
        call = self._call(phone, runs, path, result=result)
        said, rest = self._perf_test(phone, f"rm -f {result}; {call}", result)
        try:
            return read_timing(said, rest, runs)
        except ValueError as reason:
            raise MeasurementError(
                phone.problem,
                where="onnxruntime_perf_test",
                value=f"writing something else than expected ({reason})",
                hint="Build it from onnxruntime 1.17 or later.",
            ) from None

    def _perf_test(self, phone: Phone, script: str, written: str) -> tuple[str, str]:
        """Run a script that calls it: what it said, and what it wrote to a file."""
        whole = f"{script}; e=$?; echo; echo {RESULT}; cat {written} 2>/dev/null; (exit $e)"
        output, status = phone.job(whole, self.timeout_s)
        said, _, rest = output.partition(f"{RESULT}\n")
        if status:
            self._raise_program_fault(phone.problem, status, said)
        return said, rest

    def _raise_program_fault(self, problem: str, status: int, said: str) -> NoReturn:
        last = last_line(said)
        if status == 128 + 9:
            value, hint = "killed by signal 9", "The device most likely ran out of memory."
        elif "CANNOT LINK EXECUTABLE" in said:
            value = f"without a library that it needs ({last})"
            hint = "Put the libraries that it was built with, libc++_shared.so too, into its folder here."
        elif re.search(r"is not supported in this build|not included in perf test", said):
            value, hint = f"built without {self.runtime.provider}", GET_IT
        elif 128 < status < 160:
            value = f"killed by signal {status - 128} ({last})"
            hint = "onnxruntime or the provider crashed: try another version, or the CPU provider."
        else:
            value, hint = f"ending with exit status {status} ({last or 'no words'})", "See `adb logcat`."
        raise MeasurementError(problem, where="onnxruntime_perf_test", value=value, hint=hint)

    def _check(self, model: Path) -> list[dict[str, Any]]:
        """The inputs of a model, by running it once here on the CPU provider.

        Raises:
            ArtifactError: It is no model, or its shape is open in more than the batch.
        """
        here = LocalRunner(Runtime(dims=self.runtime.dims))
        inputs: list[dict[str, Any]] = here.run("placement", [model])["inputs"]
        wanted = dict(self.runtime.inputs)
        if self.runtime.input and inputs:
            wanted.setdefault(inputs[0]["name"], self.runtime.input)
        shapes = {one["name"]: tuple(one["shape"]) for one in inputs}
        for name, shape in wanted.items():
            if shapes.get(name) != shape:
                raise ArtifactError(
                    "could not run the ONNX file",
                    where=str(model),
                    value=f"made for, or with an open batch run on, {list(shapes.get(name, ()))} at '{name}'",
                    expected=f"{list(shape)} as the target asks",
                    hint="onnxruntime_perf_test runs open dimensions as 1: fix the shape in the file, or "
                    "give the dimension's size under [runtime.dims].",
                )
        return inputs

    # --- connection -----------------------------------------------------------------------------------------

    def _open(self, problem: str) -> Phone:
        """Find the device, check that the program fits it, and bring it over, once."""
        if self._phone is not None:
            self._phone.problem = problem
            return self._phone
        program = self._program()
        phone = Phone(problem, self.runtime.host)
        names = (*PROPERTIES, *FACTS[len(PROPERTIES) :])
        self._facts = dict(zip(names, phone.ask(FACTS), strict=True))
        self._check_program(problem, program)
        self._heat = read_thermal(*phone.ask(HEAT))
        self._phone = phone
        phone.open()
        phone.push(program, "onnxruntime_perf_test")
        for library in sorted(program.parent.glob("*.so")):
            phone.push(library, library.name)
        phone.shell(f"chmod 700 {phone.folder}/onnxruntime_perf_test")
        return phone

    def _program(self) -> Path:
        path = Path(self.runtime.perf_test or "").expanduser()
        if not path.is_file():
            value = f"'{path}', which is not there" if self.runtime.perf_test else "missing"
            raise MeasurementError(
                "could not measure on Android",
                where="runtime.perf_test",
                value=value,
                expected="onnxruntime_perf_test for the device",
                hint=GET_IT,
            )
        return path

    def _check_program(self, problem: str, path: Path) -> None:
        """Whether the program runs on this device at all."""
        api = int(self._facts["ro.build.version.sdk"] or 0)
        abis = self._facts["ro.product.cpu.abilist"].split(",")
        least = max(FIRST_API, FIRST_API_OF.get(self.runtime.provider, 0))
        if api < least:
            raise MeasurementError(
                problem,
                where="the device",
                value=f"at Android API level {api}",
                expected=f"{least} or higher for {self.runtime.provider}",
            )
        program = read_program(path)
        if program is None or program.abi not in abis:
            what = "no program for Android" if program is None else f"built for {program.abi}"
            raise MeasurementError(
                problem,
                where="runtime.perf_test",
                value=f"'{path}', {what}",
                expected=f"the device's {' or '.join(abis)}",
                hint=GET_IT,
            )
        if program.api_level is not None and program.api_level > api:
            raise MeasurementError(
                problem,
                where="runtime.perf_test",
                value=f"'{path}', built for API level {program.api_level}",
                expected=f"at most the device's {api}",
                hint=f"Build it with --android_api {api} or less.",
            )


def _version(program: Path) -> str:
    """Of onnxruntime, which its library carries as the name of its symbols' version."""
    for file in (program.parent / "libonnxruntime.so", program):
        found = re.search(rb"VERS_(\d+\.\d+\.\d+)", file.read_bytes()) if file.is_file() else None
        if found:
            return found[1].decode()
    return "unknown"
