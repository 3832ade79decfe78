"""One training loop: dense training, proximal NS (by its hooks) and fine-tuning (by its teacher)."""

from edgeprune.training.checkpoint import Stateful
from edgeprune.training.evaluation import evaluate, predict
from edgeprune.training.loop import learning_rate, train
from edgeprune.training.progress import Epoch, History, Progress

__all__ = ["Epoch", "History", "Progress", "Stateful", "evaluate", "learning_rate", "predict", "train"]
