"""Trains in forked processes, each killed by SIGKILL at one step; then once to the end, and once undisturbed.

Usage: kill_steps.py FOLDER '{KIND: [PHASE:EPOCH:STEP, ...]}' with KIND dense, proximal or finetune. Prints
JSON, for each kind: what each process was ended by, the steps that each did, and the hashes of the resumed
and the undisturbed weights.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from edgeprune.schemes import ProximalNS
from edgeprune.training import Checkpoints, Recipe, train
from edgeprune.training.checkpoint import digest
from edgeprune.training.loop import Training
from tests.schemes.conftest import make_groups
from tests.schemes.conftest import make_net as make_sparse_net
from tests.training.fakes import make_data, make_net

RECIPE = Recipe(epochs=3, lr=0.05, ema=0.9, mixup=0.4, label_smoothing=0.1, clip=1.0, warmup_epochs=1)


def work(kind: str, files: Checkpoints | None) -> str:
    """One training; the hash of its weights."""
    data = make_data(contrast=1.0)
    if kind == "proximal":
        model = make_sparse_net()
        scheme = ProximalNS(l1=1.5, beta=2.0, epochs=2, debias_epochs=2)
        scores = scheme.fit(model, make_groups(), data, checkpoint=files, recipe=Recipe(nesterov=True))
        return digest(model.state_dict()) + digest(scores)
    model = make_net()
    adam = {"optimizer": "adamw", "lr": 0.01} if kind == "finetune" else {}
    teacher = make_net(3) if kind == "finetune" else None
    train(model, data, recipe=RECIPE.changed(**adam), teacher=teacher, checkpoint=files, phase=kind)
    return digest(model.state_dict())


def child(kind: str, files: Checkpoints | None, moment: str, out: Path) -> None:
    step, done = Training._step, 0

    def step_or_die(self: Any, epoch: int, *batch: Any) -> None:
        nonlocal done
        if f"{self.reporter.phase}:{epoch}:{self.run_.tally.step}" == moment:
            out.write_text(json.dumps(done))
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, epoch, *batch)
        done += 1

    Training._step = step_or_die  # type: ignore[method-assign]
    value = work(kind, files)
    out.write_text(json.dumps([value, done]))


def kill_all(folder: Path, kind: str, moments: list[str]) -> dict[str, list[Any]]:
    files, out = Checkpoints(folder / f"{kind}.checkpoint", steps=2), folder / "out.json"
    found: dict[str, list[Any]] = {"ended": [], "steps": [], "hashes": []}
    for moment in [*moments, "", "undisturbed"]:
        pid = os.fork()
        if pid == 0:
            child(kind, None if moment == "undisturbed" else files, moment, out)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        found["ended"].append(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status))
        told = json.loads(out.read_text())
        found["steps"].append(told if isinstance(told, int) else told[1])
        found["hashes"] += [] if isinstance(told, int) else [told[0]]
    return found


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads: they are idle here
    torch.set_num_threads(1)
    # What torch imports at its first step is imported before the forks, so that each is quick.
    train(make_net(), make_data(), epochs=1)
    folder, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    print(json.dumps({kind: kill_all(folder, kind, moments) for kind, moments in wanted.items()}))


if __name__ == "__main__":
    main()
