"""The public surface: what `import edgeprune as ep` offers, pinned."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import edgeprune as ep

SURFACE = {
    "bench": "(artifact, target, *, baseline=None, processes=30, runs=70, budget_seconds=None, "
    "instructions=False, latency=True, on_progress=None, runner=None)",
    "convert": "(artifact, path, *, precision, provider='CPUExecutionProvider', data=None, images=512, "
    "tolerance=None)",
    "count_macs": "(model, example)",
    "count_params": "(model)",
    "evaluate": "(model, loader)",
    "exit_code": "(verdicts)",
    "export": "(model, example, path, *, data=None, dynamic_batch=False, opset=18, tolerance=0.0001, "
    "provenance=None, verify_input=None)",
    "find_groups": "(model, example, *, exact=True, channel_select=False)",
    "gate": "(budgets, measurement, *, release=None)",
    "list_targets": "()",
    "load_artifact": "(path)",
    "load_data": "(spec, *, batch_size=128, seed=0, normalization=None, download=False, image_size=None, "
    "cutout=0)",
    "load_measurement": "(path)",
    "load_model": "(source, *, num_classes=None, weights=None)",
    "load_slim": "(path)",
    "load_target": "(name_or_path)",
    "make_plan": "(dense, groups, scores, example, *, max_macs_ratio=None, max_params_ratio=None, "
    "max_size_bytes=None, max_latency_ratio=None, target=None, channel_multiple=None, min_channels=1, "
    "keep=(), constants='auto', min_share=0.0, on_progress=None)",
    "predict": "(model, loader)",
    "refit": "(model, dense, plan, data, *, images=300, places=256, seed=0)",
    "save_slim": "(model, plan, path, *, source=None)",
    "slim": "(model, plan, *, example=None)",
    "to_ort_format": "(artifact, path, *, provider='CPUExecutionProvider', data=None)",
    "train": "(model, data, *, recipe=None, teacher=None, seed=0, select='best', after_step=None, "
    "penalty=None, sparsity=None, macs_ratio=None, "
    "extra_state=None, checkpoint=None, phase='train', on_progress=None, **changes)",
}
CLASSES = {
    "Artifact", "Budget", "ChannelGroup", "Checkpoints", "Data", "EdgepruneError", "Estimate", "Measurement",
    "Member", "Normalization", "Plan", "Recipe", "Refit", "Scores", "Target", "Verdict",
}  # fmt: skip


def bare(function: object) -> str:
    """Signature without annotations."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def test_the_surface_is_what_it_was() -> None:
    assert set(ep.__all__) == {*SURFACE, *CLASSES, "schemes", "__version__"}
    for name, signature in SURFACE.items():
        assert bare(getattr(ep, name)) == signature, name
    for name in CLASSES:
        assert inspect.isclass(getattr(ep, name)), name


def test_the_pin_would_notice_a_change() -> None:
    def slim(model: object, plan: object) -> None: ...

    assert bare(slim) != SURFACE["slim"]


def test_schemes_have_the_papers_parameters() -> None:
    assert ep.schemes.ProximalNS(l1=0.0045, beta=100.0, epochs=160).l1 == 0.0045
    assert ep.schemes.Magnitude()
    assert ep.schemes.Random(seed=0)
    assert set(ep.schemes.SCHEMES) == {
        "proximal-ns", "sglp-ib", "stlp-ib", "obs", "hsic-lasso", "taylor", "activation-weight", "magnitude",
        "bn-scale", "random",
    }  # fmt: skip


def test_everything_public_is_documented() -> None:
    for name in {*SURFACE, *CLASSES}:
        doc = inspect.getdoc(getattr(ep, name)) or ""
        assert len(doc) > 20, name
        if name in SURFACE:
            few = len(inspect.signature(getattr(ep, name)).parameters) <= 2
            assert "Args:" in doc or few, name


def test_no_public_function_has_its_modules_name() -> None:
    # Importing a submodule would rebind the name to the module.
    for name in SURFACE:
        assert name not in ep._HOME, name
        assert not isinstance(getattr(ep, name), ModuleType)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pruner'"):
        ep.Pruner  # noqa: B018
    assert "slim" in dir(ep)


def test_names_come_on_first_use_and_torch_only_with_them() -> None:
    code = (
        "import sys, edgeprune as ep; assert 'torch' not in sys.modules; ep.load_target('local-cpu');"
        "ep.bench; ep.gate; assert 'torch' not in sys.modules; ep.slim; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
