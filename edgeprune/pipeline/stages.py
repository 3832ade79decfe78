"""The stages of a run, one row each, and running them."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgeprune import __version__
from edgeprune.artifact import SIDECAR_FORMAT
from edgeprune.errors import RunError
from edgeprune.files import sha256_file, sha256_json
from edgeprune.launch import world
from edgeprune.measurement_format import MEASUREMENT_FORMAT
from edgeprune.pipeline.events import recorded
from edgeprune.pipeline.folder import RunFolder, is_run_folder
from edgeprune.pipeline.sharing import agree_on_data, hand_out
from edgeprune.pipeline.twins import take_over
from edgeprune.verdict import VERDICTS_FORMAT


@dataclass(frozen=True)
class Stage:
    """One arrow of the pipeline.

    Attributes:
        name: Of the stage.
        command: The command that runs it.
        reads: Files of the run folder.
        writes: Files of the run folder.
        settings: Settings that decide what it writes.
        work: ``module:function``; called with the run's context, gives the stage's facts. Imported only when
            it runs, so that the stages of the device side work without torch.
        also_reads: ``module:function`` that gives whatever else decides the result (hashes of data, files).
        wanted: ``module:function`` that says whether the run has this stage at all; empty: it has.
        together: Of several processes all work on it; the other stages are rank 0's, and the rest wait.

    In the name of a file ``{variant}`` stands for ``.fp16`` or ``.int8`` if the target asks for that.
    """

    name: str
    command: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    settings: tuple[str, ...]
    work: str
    also_reads: str
    wanted: str = ""
    together: bool = False


HOST = "edgeprune.pipeline.host"
CARD = "edgeprune.pipeline.card"
DEVICE = "edgeprune.pipeline.device"
VARIANTS = "edgeprune.pipeline.variants"
DATA = ("data", "image_size", "seed", "device")
PLAN = (
    "max_macs_ratio", "max_params_ratio", "max_size_bytes", "max_latency_ratio", "min_channels", "min_share",
    "keep", "constants",
)  # fmt: skip
MEASURED = (
    "dense{variant}.onnx", "dense{variant}.onnx.json", "slim{variant}.onnx", "slim{variant}.onnx.json"
)  # fmt: skip

STAGES: tuple[Stage, ...] = (
    Stage(
        "train", "train", (), ("dense.safetensors",),
        ("model", "num_classes", "cutout", *DATA), f"{HOST}:train_dense", f"{HOST}:identity_of_dense",
        together=True,
    ),
    Stage(
        "score", "prune", ("dense.safetensors",), ("scores.npz", "sparse.safetensors"),
        ("scheme", "scheme_options", "channel_select", "inexact", "cutout", *DATA),
        f"{HOST}:score", f"{HOST}:identity_of_scoring", together=True,
    ),
    Stage(
        "plan", "prune", ("scores.npz", "sparse.safetensors"), ("plan.json",),
        ("seed", "channel_select", "inexact", *PLAN), f"{HOST}:plan", f"{HOST}:identity_of_plan",
    ),
    Stage(
        "slim", "prune", ("plan.json", "sparse.safetensors"), ("pruned.safetensors",),
        DATA, f"{HOST}:slim_down", f"{HOST}:identity_of_data",
    ),
    Stage(
        "refit", "prune", ("pruned.safetensors", "plan.json", "sparse.safetensors"),
        ("refitted.safetensors",),
        ("refit", "refit_images", *DATA), f"{HOST}:refit_weights", f"{HOST}:identity_of_data",
    ),
    Stage(
        "finetune", "finetune", ("refitted.safetensors", "dense.safetensors", "plan.json"),
        ("slim.safetensors",),
        (*DATA, "cutout", "distill"), f"{HOST}:finetune", f"{HOST}:identity_of_finetuning",
        together=True,
    ),
    Stage(  # apart, since it is the same for every plan
        "export-dense", "export", ("dense.safetensors",), ("dense.onnx", "dense.onnx.json"),
        ("opset", "dynamic_batch", "tolerance"), f"{HOST}:export_dense", f"{HOST}:identity_of_data",
    ),
    Stage(
        "export", "export", ("dense.onnx", "dense.onnx.json", "slim.safetensors", "plan.json"),
        ("slim.onnx", "slim.onnx.json"),
        ("opset", "dynamic_batch", "tolerance"), f"{HOST}:export_slim", f"{HOST}:identity_of_data",
    ),
    Stage(
        "convert", "export",
        ("dense.onnx", "dense.onnx.json", "slim.onnx", "slim.onnx.json"), MEASURED,
        ("variant_tolerance",), f"{VARIANTS}:convert_both", f"{VARIANTS}:identity_of_variants",
        f"{VARIANTS}:has_variants",
    ),
    Stage(
        "ort", "export", MEASURED,
        ("dense{variant}.ort", "dense{variant}.ort.json", "slim{variant}.ort", "slim{variant}.ort.json"),
        (), f"{VARIANTS}:write_ort_files", f"{VARIANTS}:identity_of_variants", f"{VARIANTS}:has_ort_files",
    ),
    Stage(
        "bench", "bench", MEASURED, ("measurement.json",),
        ("processes", "budget_seconds", "instructions", "latency"),
        f"{DEVICE}:bench_both", f"{DEVICE}:identity_of_machine",
    ),
    Stage(
        "gate", "gate", ("measurement.json",), ("verdicts.json", "junit.xml"),
        (), f"{DEVICE}:gate_measurement", f"{DEVICE}:identity_of_target",
    ),
    Stage(
        "report", "report", ("measurement.json", "verdicts.json"), ("report.md", "report.html"),
        (), f"{DEVICE}:write_reports", f"{DEVICE}:identity_of_report",
    ),
    Stage(
        "card", "report", ("measurement.json",), ("model_card.md",),
        (), f"{CARD}:write_card", f"{CARD}:identity_of_card",
    ),
)  # fmt: skip

FORMATS = (SIDECAR_FORMAT, MEASUREMENT_FORMAT, VERDICTS_FORMAT)
"""Of what stages write and others read strictly: what is in an older one is to be made again."""
TRAINING = {"train", "prune", "finetune"}
COMMANDS: tuple[str, ...] = tuple(dict.fromkeys(stage.command for stage in STAGES))


def run_stages(context: Any, commands: Iterable[str], stages: Sequence[Stage] = STAGES) -> None:
    """Run all stages of the given commands in order, skipping those whose inputs have not changed.

    Args:
        context: The run (``edgeprune.pipeline.context.Context``).
        commands: Among ``COMMANDS``.
        stages: Of them those that belong to the commands are run.

    Raises:
        RunError: A file that a stage reads is not there.
        EdgepruneError: Whatever a stage raises; the stages before it are kept.
    """
    wanted = set(commands)
    run: RunFolder = context.run
    here = world()
    with contextlib.ExitStack() as stack:
        if here.first:
            stack.enter_context(run.locked())
            if not is_run_folder(run.path):
                run.save()
            stack.enter_context(recorded(context, trains=bool(wanted & TRAINING)))
        here.from_first(partial(_prepare, context, wanted, stages))
        for stage in stages:
            inputs = here.from_first(partial(_begin, context, stage, wanted))
            if inputs is None:
                continue
            started = time.monotonic()
            if stage.together:
                hand_out(run, files_of(context, stage.reads) if here.first else (), (leftovers(stage),))
                agree_on_data(context)
                facts = function(stage.work)(context)
            else:
                facts = here.from_first(partial(function(stage.work), context))
            if here.first:
                run.record(stage.name, inputs, files_of(context, stage.writes), facts)
            clear(run, stage)
            context.listener.stage(stage.name, "done", f"{time.monotonic() - started:.1f} s")


def stages_until(name: str | None) -> tuple[Stage, ...]:
    """The stages up to the one of a name, with it; None: all."""
    names = [stage.name for stage in STAGES]
    return STAGES if name is None else STAGES[: names.index(name) + 1]


def _prepare(context: Any, wanted: set[str], stages: Iterable[Stage]) -> None:
    """Find out what is wrong before anything takes long."""
    if wanted - {"train", "finetune"}:
        _ = context.target  # a wrong target should not wait for the end of a training
    if "gate" in wanted:
        _ = context.release  # nor a wrong file of an earlier one
    if "export" in wanted:
        function(f"{VARIANTS}:check")(context)
    coming: set[str] = set()
    for stage in stages:
        if has(context, stage, wanted):
            check_reads(context, stage, coming)
            coming |= set(files_of(context, stage.writes))
    if "report" in wanted and "gate" not in wanted:
        function(f"{DEVICE}:check_verdicts")(context)


def _begin(context: Any, stage: Stage, wanted: set[str]) -> str | None:
    """Hash of what decides a stage's result; None: it has nothing to do."""
    if not has(context, stage, wanted):
        return None
    inputs = inputs_of(context, stage)
    writes = files_of(context, stage.writes)
    if context.run.is_current(stage.name, inputs, writes):
        context.listener.stage(stage.name, "skipped")
        return None
    if twin := take_over(context.run, stage.name, inputs, writes, context.twins):
        clear(context.run, stage)
        context.listener.stage(stage.name, "taken", twin)
        return None
    context.listener.stage(stage.name, "begin")
    return inputs


def leftovers(stage: Stage) -> str:
    """What a stage that was interrupted leaves behind, as for ``glob``."""
    return f"{stage.name}*.checkpoint*"


def clear(run: RunFolder, stage: Stage) -> None:
    """Take away what a finished stage no longer needs."""
    for leftover in run.path.glob(leftovers(stage)):
        leftover.unlink()


def has(context: Any, stage: Stage, wanted: set[str]) -> bool:
    """Whether the commands have a stage, and the run has it at all."""
    return stage.command in wanted and (not stage.wanted or bool(function(stage.wanted)(context)))


def check_reads(context: Any, stage: Stage, coming: set[str]) -> None:
    """See that the files are there that a stage reads.

    Args:
        context: The run.
        stage: Of it.
        coming: Files that stages before it will write.

    Raises:
        RunError: One is not.
    """
    run: RunFolder = context.run
    reads = files_of(context, stage.reads)
    missing = [name for name in reads if name not in coming and not run.file(name).is_file()]
    if missing:
        maker = next(other for other in STAGES if missing[0] in files_of(context, other.writes))
        raise RunError(
            f"could not {stage.command}",
            where=str(run.file(missing[0])),
            value="not there",
            expected=f"the result of `edgeprune {maker.command}`",
            hint=f"Run `edgeprune {maker.command} --out {run.path}{of_further(context)}` first.",
        )


def inputs_of(context: Any, stage: Stage) -> str:
    """Hash of all that decides what a stage writes."""
    check_reads(context, stage, set())
    run: RunFolder = context.run
    settings = run.settings.to_json()
    return sha256_json(
        {
            "version": __version__,
            "formats": None if stage.command in TRAINING else FORMATS,
            "settings": {key: settings[key] for key in stage.settings},
            "files": {name: sha256_file(run.file(name)) for name in files_of(context, stage.reads)},
            "also": function(stage.also_reads)(context),
        }
    )


def of_further(context: Any) -> str:
    """The option that names a further target; empty for the run's own."""
    return "" if context.further is None else f" --target {context.further[1].path}"


def files_of(context: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of a stage's files in this run."""
    return tuple(name.format(variant=variant_of(context)) if "{" in name else name for name in names)


def variant_of(context: Any) -> str:
    """What stands before the suffix of a file in the target's precision."""
    precision = context.target.runtime.precision
    return "" if precision == "fp32" else f".{precision}"


def function(place: str) -> Callable[[Any], Any]:
    """Import ``module:function``."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
