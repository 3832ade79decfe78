"""The whole job as stages in a run folder; a stage whose inputs have not changed is skipped."""

from edgeprune.pipeline.folder import Listener, RunFolder, Silent
from edgeprune.pipeline.settings import Settings
from edgeprune.pipeline.stages import COMMANDS, STAGES, run_stages

__all__ = ["COMMANDS", "STAGES", "Listener", "RunFolder", "Settings", "Silent", "run_stages"]
