"""edgeprune: prune a trained CNN, export it to ONNX, measure it, release it only within its budgets.

The names below are imported on first use, so that ``import edgeprune`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgeprune import schemes
    from edgeprune.artifact import Artifact, load_artifact
    from edgeprune.benchmark import bench
    from edgeprune.budget import Budget
    from edgeprune.channels import ChannelGroup, Member
    from edgeprune.cost import count_macs, count_params
    from edgeprune.data import Data, Normalization, load_data
    from edgeprune.errors import EdgepruneError
    from edgeprune.groups import find_groups
    from edgeprune.measurement import Measurement, load_measurement
    from edgeprune.metrics import Estimate
    from edgeprune.models import load_model
    from edgeprune.onnx_export import export
    from edgeprune.ort_format import to_ort_format
    from edgeprune.plan import Plan
    from edgeprune.refitting import Refit, refit
    from edgeprune.schemes import Scores
    from edgeprune.selection import make_plan
    from edgeprune.surgery import load_slim, save_slim, slim
    from edgeprune.target import Target, list_targets, load_target
    from edgeprune.training import Checkpoints, Recipe, evaluate, predict, train
    from edgeprune.variants import convert
    from edgeprune.verdict import Verdict, exit_code, gate

_HOME = {
    "artifact": ("Artifact", "load_artifact"),
    "benchmark": ("bench",),
    "budget": ("Budget",),
    "cost": ("count_macs", "count_params"),
    "data": ("Data", "Normalization", "load_data"),
    "errors": ("EdgepruneError",),
    "channels": ("ChannelGroup", "Member"),
    "groups": ("find_groups",),
    "measurement": ("Measurement", "load_measurement"),
    "metrics": ("Estimate",),
    "models": ("load_model",),
    "onnx_export": ("export",),
    "ort_format": ("to_ort_format",),
    "plan": ("Plan",),
    "refitting": ("Refit", "refit"),
    "schemes": ("Scores", "schemes"),
    "selection": ("make_plan",),
    "surgery": ("load_slim", "save_slim", "slim"),
    "target": ("Target", "list_targets", "load_target"),
    "training": ("Checkpoints", "Recipe", "evaluate", "predict", "train"),
    "variants": ("convert",),
    "verdict": ("Verdict", "exit_code", "gate"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Artifact",
    "Budget",
    "ChannelGroup",
    "Checkpoints",
    "Data",
    "EdgepruneError",
    "Estimate",
    "Measurement",
    "Member",
    "Normalization",
    "Plan",
    "Recipe",
    "Refit",
    "Scores",
    "Target",
    "Verdict",
    "__version__",
    "bench",
    "convert",
    "count_macs",
    "count_params",
    "evaluate",
    "exit_code",
    "export",
    "find_groups",
    "gate",
    "list_targets",
    "load_artifact",
    "load_data",
    "load_measurement",
    "load_model",
    "load_slim",
    "load_target",
    "make_plan",
    "predict",
    "refit",
    "save_slim",
    "schemes",
    "slim",
    "to_ort_format",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'edgeprune' has no attribute {name!r}")
    module = importlib.import_module(f"edgeprune.{_MODULE_OF[name]}")
    value = module if name == _MODULE_OF[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
