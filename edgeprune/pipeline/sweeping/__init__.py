"""The same dense network through many plans: run, compared, and the smallest that passes chosen."""

from edgeprune.pipeline.sweeping.choice import Outcome
from edgeprune.pipeline.sweeping.folder import SweepFolder, check_new, is_sweep_folder, open_sweep
from edgeprune.pipeline.sweeping.page import report_of
from edgeprune.pipeline.sweeping.points import Point, SweepPlan
from edgeprune.pipeline.sweeping.running import run_sweep

__all__ = [
    "Outcome", "Point", "SweepFolder", "SweepPlan", "check_new", "is_sweep_folder", "open_sweep", "report_of",
    "run_sweep",
]  # fmt: skip
