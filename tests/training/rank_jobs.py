"""What one of several processes does in a test: ``python -m tests.training.rank_jobs JOB FOLDER``.

Each rank saves what its job gives as ``FOLDER/RANK.pt``. Without torchrun's variables it is the one process
that the others are compared with.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune.data import Data, Loader, load_data
from edgeprune.errors import DataError, RankError
from edgeprune.groups import find_groups
from edgeprune.launch import ALONE, World, being, world
from edgeprune.models import load_model
from edgeprune.schemes import ProximalNS, make_scheme
from edgeprune.schemes.proximal_ns import batch_norm_weights
from edgeprune.selection import make_plan
from edgeprune.training import evaluate, ranks, train
from edgeprune.training.ranks import Gradients, Ranks, Sum, gone, joined, own_part, share_state
from edgeprune.training.sync_norms import synchronised
from tests.training.fakes import make_data, make_net

MOMENT = timedelta(seconds=1)


class Tied(nn.Module):
    """Norms with and without a weight, a weight that is used twice, one that is not used, and one frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, momentum=None)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.bare = nn.BatchNorm2d(4, affine=False)
        self.flat = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)
        self.last.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.bare(self.middle(x))) + self.middle(x)
        found: Tensor = self.last(self.flat(x.flatten(2)).mean(2).view(x.size(0), -1))
        return found


def step(images: int, *, norms: bool = True) -> dict[str, Any]:
    """Loss, gradients and buffers of one step on a batch of so many images."""
    draw = torch.Generator().manual_seed(images)
    inputs = torch.randn(images, 3, 6, 6, generator=draw, dtype=torch.float64) * 3 + 5
    labels = torch.randint(0, 3, (images,), generator=draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(world().rank)  # other weights on each rank: those of rank 0 are to count
        model = Tied().double().train()
    share_state(model)
    here, gradients = world(), Gradients(model)
    part = gradients.take(
        inputs.tensor_split(here.size)[here.rank], labels.tensor_split(here.size)[here.rank]
    )
    keys = list(model.state_dict())
    swapped = synchronised(model, lambda: gradients.images > 0) if norms else contextlib.nullcontext()
    with swapped:
        done = gradients.backward(F.cross_entropy(model(part[0]), part[1]), stop=here.rank == 1)
    assert keys == list(model.state_dict())
    assert all("forward" not in vars(module) for module in model.modules())
    return {
        "loss": float(done.loss),
        "images": done.images,
        "stop": done.stop,
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "state": model.state_dict(),
    }


def steps() -> dict[str, Any]:
    """Batches that divide, that do not, and that leave a rank without images."""
    return {str(images): step(images) for images in (8, 7, 2, 1)}


def talk() -> dict[str, Any]:
    """What ranks tell each other, and training of a tiny network with dropout off."""
    here = world()
    seen: list[World] = []

    def work() -> str:
        seen.append(world())
        return f"from {here.rank}"

    data = make_data()
    model = make_net()
    model[3] = nn.Dropout(0.0)
    history = train(model, data, epochs=2, lr=0.05, seed=1)
    sparse = make_net()
    sparse[3] = nn.Dropout(0.0)
    scores = ProximalNS(epochs=2, lr=0.05, l1=0.02, beta=5.0).fit(
        sparse, find_groups(sparse, data.example), data
    )
    return {
        "told": here.from_first(work),
        "alone": [one.size for one in seen],
        "gathered": here.gather(here.rank),
        "spread": here.spread([3, 1, 2], [3.0, 1.0, 2.0], lambda item: item * 10),
        "losses": [epoch.loss for epoch in history.epochs],
        "accuracies": [epoch.val_accuracy for epoch in history.epochs],
        "state": model.state_dict(),
        "sparse": sparse.state_dict(),
        "scores": dict(scores),
        "accuracy": evaluate(model, data.val),
        "parts": [len(labels) for _, labels in own_part(data.train)],
        "scheme_scores": {name: dict(scheme_scores(name, make_net(), data)) for name in ("sglp-ib", "obs")},
    }


def scheme_scores(name: str, model: nn.Module, data: Data) -> Any:
    """Scores of a scheme that looks."""
    return make_scheme(name, images=12).fit(model, find_groups(model, data.example), data)


def errors() -> dict[str, str]:
    """Who tells of an error of one rank."""
    found = {}
    for rank in range(2 if world().size > 1 else 0):
        try:
            failing(rank)
        except RankError as error:
            found[f"rank {rank}"] = "told" if error.told else "not told"
        except DataError as error:
            found[f"rank {rank}"] = type(error).__name__
    return found


def failing(rank: int) -> None:
    """A job in the job, in which one rank fails while the other waits for it."""
    here = world()
    assert isinstance(here, Ranks)
    ranks.PAUSE_S = 0.0
    inner = replace(here, store=dist.PrefixStore(f"failing {rank}", here.store))
    with being(ALONE), mock.patch("edgeprune.training.ranks._meet", return_value=inner), joined() as again:
        if rank == 0:
            again.from_first(fail)
        elif again.rank == rank:
            fail()
        else:
            time.sleep(1)
            raise gone(again)  # as if a message to the other had found nobody


def fail() -> None:
    raise DataError("could not load")


def quick() -> dict[str, Any]:
    """All of it that is fast."""
    return {
        "steps": steps(),
        "unsynchronised": step(7, norms=False),
        "talk": talk(),
        "errors": errors(),
    }


def digits() -> Data:
    """20 batches of 54 images, the last of 53; augmented."""
    return load_data("digits", batch_size=54)


def resnet() -> nn.Module:
    """The same ResNet-20 each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return load_model("resnet20", num_classes=10)


@dataclass(frozen=True)
class Doubled:
    """A loader in float64: in float32 rounding grows a hundredfold in a few steps, on one process too."""

    loader: Loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((inputs.double(), labels) for inputs, labels in self.loader)

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def samples(self) -> int:
        return self.loader.samples

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)


def doubled(data: Data) -> Data:
    """All of it that trains in float64."""
    return replace(data, train=Doubled(data.train), val=Doubled(data.val), example=data.example.double())


def small() -> nn.Module:
    """Two convolutions with batch norms, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for width, wider in ((3, 16), (16, 32)):
            layers += [nn.Conv2d(width, wider, 3, stride=2, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def nudged(network: nn.Module) -> nn.Module:
    """With weights that differ by about the last bit of a float32."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 6e-8 * torch.randn(parameter.shape, generator=generator))
    return network


def loss_curve(network: nn.Module, data: Data, **changes: Any) -> list[float]:
    """Losses of the first 20 steps."""
    losses: list[float] = []

    class Listening(Gradients):
        def backward(self, loss: Tensor, *, stop: bool = False) -> Sum:
            done = super().backward(loss, stop=stop)
            losses.append(float(done.loss))
            return done

    with mock.patch("edgeprune.training.loop.Gradients", Listening):
        train(network, data, epochs=1, lr=0.01, select="last", **changes)
    return losses


def curve() -> dict[str, Any]:
    """The losses, and the plans of a lasso scheme and of proximal NS."""
    data, dense, sparse = digits(), resnet(), resnet().double()
    for gamma in batch_norm_weights(sparse):
        with torch.no_grad():
            gamma.copy_(torch.linspace(0.05, 1, len(gamma)))
    groups = find_groups(dense, data.example)
    looked = make_scheme("sglp-ib", images=40, lambdas=20).fit(dense, groups, data)
    trained = ProximalNS(epochs=1, lr=0.01, l1=2.0, beta=5.0).fit(sparse, groups, doubled(data))
    sparse.float()
    return {
        "losses": loss_curve(resnet().double(), doubled(data)),
        "small": loss_curve(small(), data),
        "scores": dict(looked),
        "zeros": sum(int((score == 0).sum()) for score in trained.values()),
        "scored": sum(score.numel() for score in trained.values()),
        "plans": {
            "sglp-ib": make_plan(dense, groups, looked, data.example, max_macs_ratio=0.6).to_json(),
            "proximal-ns": make_plan(sparse, groups, trained, data.example).to_json(),
        },
    }


def unsynchronised() -> dict[str, Any]:
    """The losses without synchronised norms, and the statistics that are left."""
    network = resnet().double()
    losses = loss_curve(network, doubled(digits()), sync_norms=False)
    return {"losses": losses, "mean": network.bn1.running_mean}


def chaos() -> dict[str, Any]:
    """ResNet-20 in float32 as it is, and with weights that differ in their last bit."""
    return {"as it is": loss_curve(resnet(), digits()), "nudged": loss_curve(nudged(resnet()), digits())}


JOBS: dict[str, Callable[[], dict[str, Any]]] = {
    "quick": quick,
    "curve": curve,
    "unsynchronised": unsynchronised,
    "chaos": chaos,
}


def main() -> None:
    job, folder = sys.argv[1:]
    torch.set_num_threads(1)
    with joined() as here:
        torch.save(JOBS[job](), Path(folder) / f"{here.rank}.pt")


if __name__ == "__main__":
    main()
