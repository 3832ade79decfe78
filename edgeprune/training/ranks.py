"""Several processes, on one machine or on many, that do one job: what they tell each other, and who speaks.

``torchrun`` starts the processes; a *rank* is one of them, and rank 0 the first. In the block of `joined`,
`train`, `evaluate` and the schemes work on all ranks, so every rank has to call them. Elsewhere a process is
alone, and everything below does what one process does.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from edgeprune.data import Loader, UserLoader, completed
from edgeprune.errors import RankError
from edgeprune.launch import ALONE, World, being, launched_rank, world

Result = TypeVar("Result")

PATIENCE = timedelta(hours=24)
"""How long the others wait for what only rank 0 does, e.g. a measurement."""

SILENCE = timedelta(minutes=30)
"""How long ranks wait for each other in a training step before they give the job up."""

PAUSE_S = 2.0
"""What a rank leaves the one that tells why: the launcher ends every process as soon as one of them ends."""

_CLAIM = "edgeprune/failed"
_FAILED = "edgeprune: rank 0 has failed"


@dataclass(frozen=True)
class Ranks(World):
    """Several processes.

    Attributes:
        talk: Group for Python objects: on the CPU whatever the device, and patient; who waits in it sleeps.
        store: What all ranks can read, while the launcher lives even if a rank does not.
    """

    talk: dist.ProcessGroup | None = None
    store: Any = None

    def from_first(self, work: Callable[[], Result]) -> Result:
        """See `World.from_first`.

        Raises:
            RankError: A rank is gone.
        """
        found: list[Any] = [None]
        if self.first:
            try:
                with being(ALONE):
                    found = [work()]
            except BaseException:
                self.claim()  # before the others hear of it
                with contextlib.suppress(RuntimeError):
                    dist.broadcast_object_list([_FAILED], 0, self.talk)
                raise
        with telling(self):
            dist.broadcast_object_list(found, 0, self.talk)
        if isinstance(found[0], str) and found[0] == _FAILED:
            raise gone(self)
        return found[0]  # type: ignore[no-any-return]

    def gather(self, value: Result) -> list[Result]:
        """See `World.gather`.

        Raises:
            RankError: A rank is gone.
        """
        found: list[Any] = [None] * self.size
        with telling(self):
            dist.all_gather_object(found, value, self.talk)
        return found

    def claim(self) -> bool:
        """Whether this rank is the first that fails, and so the one that says why."""
        try:
            return bool(self.store.compare_set(_CLAIM, "", str(self.rank)) == str(self.rank).encode())
        except RuntimeError:  # the launcher is gone as well
            return True


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started with this one; without torchrun: stay alone.

    Tensors travel by gloo, on GPUs by nccl. An error that leaves the block stays as it is on the rank that
    failed first; on the others it is a `RankError` that is ``told``, so that a job can end with one message.

    Raises:
        RankError: Another rank has failed or is gone, or the ranks did not find each other.

    Example:
        >>> with joined() as here:  # doctest: +SKIP
        ...     history = train(model, data, epochs=10)
        ...     if here.first:
        ...         torch.save(model.state_dict(), "dense.pt")
    """
    if launched_rank() is None or world().size > 1:
        yield world()
        return
    own = not dist.is_initialized()
    here = _meet()
    try:
        with being(here):
            yield here
    except (Exception, KeyboardInterrupt) as error:
        if here.claim():
            raise
        silent = gone(here)
        silent.told = True
        with contextlib.suppress(KeyboardInterrupt):  # which the launcher may cause meanwhile
            time.sleep(PAUSE_S)
        raise silent from error
    finally:
        if own:
            with contextlib.suppress(RuntimeError):  # of a group that has lost a rank
                dist.destroy_process_group()


def _meet() -> Ranks:
    """Start the process group, or take the one there is."""
    local = int(os.environ["LOCAL_RANK"])
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=SILENCE)))
        if not dist.is_initialized():
            gpus = torch.cuda.device_count()
            if local < gpus:
                torch.cuda.set_device(local)
            backend = "cpu:gloo,cuda:nccl" if gpus and dist.is_nccl_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=SILENCE)
        talk = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as reason:
        raise RankError(
            "could not start",
            where="the job's processes",
            value=f"out of reach ({str(reason).splitlines()[0]})",
            expected="as many as torchrun was told to start",
            hint="Check --nnodes, --nproc-per-node and --rdzv-endpoint.",
        ) from reason
    assert isinstance(talk, dist.ProcessGroup)  # an int for a rank that is not in it; every rank is
    return Ranks(rank, size, local, talk, store)


@contextlib.contextmanager
def telling(here: World) -> Iterator[None]:
    """Around what ranks tell each other: a rank that is gone becomes a `RankError`."""
    try:
        yield
    except RuntimeError as reason:  # gloo's is no other
        raise gone(here) from reason


def gone(here: World) -> RankError:
    """The error for a rank that does not answer."""
    return RankError(
        "could not go on",
        where=f"one of the job's {here.size} processes",
        value="gone",
        expected="all of them",
        hint="Run the same command again: it goes on from the last checkpoint.",
    )


# --- a training step ---------------------------------------------------------------------------------------


def own_part(loader: UserLoader) -> Loader:
    """This rank's part of each of a loader's batches."""
    here, whole = world(), completed(loader)
    return whole if here.size == 1 else whole.shard(here.rank, here.size)


@dataclass(frozen=True)
class Sum:
    """Of one step over all ranks: mean loss () on the device, images, and whether a rank wants to stop."""

    loss: Tensor
    images: int
    stop: bool


class Gradients:
    """Gradients of the mean loss over all ranks' images.

    By hand instead of ``DistributedDataParallel``: that averages over ranks and not over images (wrong where
    a batch does not divide), wraps the network, which hooks, teachers and surgery would have to unwrap, and
    needs other messages for the loss and for a wish to stop. Here one flat bucket has them all, and its sum
    has the same bits on every rank, so that the optimizer and every hook after it do the same everywhere.

    Args:
        model: Network whose parameters that require a gradient are averaged; shared ones count once.

    Attributes:
        images: This rank's images in this step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.images = 0

    def take(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch to run the network on: the one given, or if it has no images one that does not count.

        A rank without images still has to take part in every exchange of the step, and many networks cannot
        run on none.
        """
        self.images = len(labels)
        if self.images:
            return inputs, labels
        return inputs.new_zeros(1, *inputs.shape[1:]), labels.new_zeros(1)

    def backward(self, loss: Tensor, *, stop: bool = False) -> Sum:
        """Leave in ``.grad``, which was None, the gradient of the mean loss over the images of all ranks.

        A parameter that no rank's loss hangs on keeps None.

        Args:
            loss: Mean over what `take` gave.
            stop: This rank wants to stop after this step.

        Raises:
            RankError: A rank is gone.
        """
        here = world()
        if not isinstance(here, Ranks):
            torch.autograd.backward(loss)
            return Sum(loss.detach(), self.images, stop)
        # A sum over images, so that norms that are synchronised meet the same loss on all ranks.
        total = loss * self.images
        torch.autograd.backward(total)
        grads = [parameter.grad for parameter in self.parameters]
        kind = functools.reduce(torch.promote_types, (p.dtype for p in self.parameters), torch.float32)
        flat = [
            torch.zeros(parameter.numel(), dtype=kind, device=loss.device)
            if grad is None
            else grad.flatten().to(kind)
            for parameter, grad in zip(self.parameters, grads, strict=True)
        ]
        bucket = torch.cat([total.detach().to(kind).reshape(1), *flat])
        # What the host has to know goes by the host, which so never waits for a GPU.
        counts = torch.tensor([self.images, stop, *(grad is not None for grad in grads)])
        with telling(here):
            dist.all_reduce(counts, group=here.talk)
            dist.all_reduce(bucket)
        images, stops, *used = counts.tolist()
        bucket /= images
        means = torch.split(bucket[1:], [parameter.numel() for parameter in self.parameters])
        for parameter, mean, count in zip(self.parameters, means, used, strict=True):
            parameter.grad = mean.view_as(parameter).to(parameter.dtype) if count else None
        return Sum(bucket[0], images, stops > 0)


@torch.no_grad()
def share_state(model: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0, in place."""
    here = world()
    if here.size > 1:
        with telling(here):
            for tensor in {id(value): value for value in model.state_dict().values()}.values():
                dense = tensor.contiguous()
                dist.broadcast(dense, 0)
                tensor.copy_(dense)
