"""One training loop: dense training, proximal NS (by its hooks) and fine-tuning (by its teacher)."""

from edgeprune.training.checkpoint import Stateful
from edgeprune.training.checkpoint_files import Checkpoints
from edgeprune.training.evaluation import evaluate, predict
from edgeprune.training.loop import train
from edgeprune.training.progress import Epoch, History, Progress
from edgeprune.training.recipe import PRESETS, Preset, Recipe, find_preset
from edgeprune.training.schedule import learning_rate

__all__ = [
    "PRESETS", "Checkpoints", "Epoch", "History", "Preset", "Progress", "Recipe", "Stateful", "evaluate",
    "find_preset", "learning_rate", "predict", "train",
]  # fmt: skip
