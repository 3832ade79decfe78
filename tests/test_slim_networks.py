"""A slim network is an ordinary module: whatever users do with networks works with it."""

from __future__ import annotations

import copy
import functools
import io
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgeprune.groups import find_groups
from edgeprune.models import load_model
from edgeprune.selection import make_plan
from edgeprune.surgery import slim, slim_structure
from tests.networks import built, half_scores, randomise


@functools.cache
def halved(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Dense network, slim network, a batch of inputs."""
    if name == "resnet20":
        torch.manual_seed(0)
        dense, x = load_model(name), torch.randn(1, 3, 32, 32)
        randomise(dense)
    else:
        dense, (x,) = built(name)
    groups = find_groups(dense, x)
    plan = make_plan(dense, groups, half_scores(groups), x, constants="off")
    return dense, slim(dense, plan, example=x), torch.cat([x, -x])


@pytest.fixture(params=["resnet20", "grouped"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pruned(name: str) -> nn.Module:
    return copy.deepcopy(halved(name)[1])


@pytest.fixture
def batch(name: str) -> Tensor:
    return halved(name)[2]


@torch.no_grad()
def same(ours: nn.Module, theirs: nn.Module, batch: Tensor) -> bool:
    return torch.allclose(ours(batch), theirs(batch), rtol=1e-4, atol=1e-5)


def test_what_modules_say_of_themselves_is_true(name: str, pruned: nn.Module) -> None:
    told = {key: repr(module) for key, module in pruned.named_modules()}
    dense = {key: repr(module) for key, module in halved(name)[0].named_modules()}
    changed = 0
    for key, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d):
            out, into, *_ = module.weight.shape
            assert told[key].startswith(f"Conv2d({into * module.groups}, {out}, ")
            assert (f"groups={module.groups}" in told[key]) == (module.groups > 1)
        elif isinstance(module, nn.BatchNorm2d):
            assert told[key].startswith(f"BatchNorm2d({len(module.running_mean)}, ")
        elif isinstance(module, nn.Linear):
            out, into = module.weight.shape
            assert told[key].startswith(f"Linear(in_features={into}, out_features={out}, ")
        else:
            continue
        changed += told[key] != dense[key]
    assert changed > 4
    assert list(told) == list(dense)


def test_a_deep_copy_is_another_network(pruned: nn.Module, batch: Tensor) -> None:
    twin = copy.deepcopy(pruned)
    assert same(twin, pruned, batch)
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in pruned.parameters())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert not same(twin, pruned, batch)


def test_its_state_goes_through_a_file(name: str, pruned: nn.Module, batch: Tensor) -> None:
    file = io.BytesIO()
    torch.save(pruned.state_dict(), file)
    file.seek(0)
    dense, _, x = halved(name)
    groups = find_groups(dense, x)
    other = copy.deepcopy(dense)
    slim_structure(other, make_plan(dense, groups, half_scores(groups), x[:1], constants="off"))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not same(other, pruned, batch)
    assert list(other.state_dict()) == list(pruned.state_dict()) == list(dense.state_dict())
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert same(other, pruned, batch)
    with pytest.raises(RuntimeError, match="size mismatch"):
        copy.deepcopy(dense).load_state_dict(pruned.state_dict())


def test_it_goes_through_torch_export(pruned: nn.Module, batch: Tensor) -> None:
    size = torch.export.Dim("n", min=2, max=16)
    # In a Sequential: the hand-written networks take *inputs, which need other dynamic shapes.
    program = torch.export.export(nn.Sequential(pruned), (batch,), dynamic_shapes=({0: size},))
    assert same(program.module(), pruned, torch.cat([batch, 2 * batch]))


def test_it_goes_through_jit_trace(pruned: nn.Module, batch: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit
        warnings.simplefilter("ignore", FutureWarning)
        traced = torch.jit.trace(pruned, batch)
        assert same(traced, pruned, 3 * batch)


def test_it_compiles(pruned: nn.Module, batch: Tensor) -> None:
    torch._dynamo.reset()
    assert same(torch.compile(pruned, backend="eager", fullgraph=True), pruned, batch)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_it_compiles_with_inductor(pruned: nn.Module, batch: Tensor) -> None:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        assert same(torch.compile(pruned, fullgraph=True), pruned, batch)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_it_trains_in_data_parallel(pruned: nn.Module, batch: Tensor) -> None:
    alone = copy.deepcopy(pruned).train()
    wrapped = DistributedDataParallel(pruned.train())
    for net in (alone, wrapped):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())
            optimizer.step()
    before, after, other = (
        nn.utils.parameters_to_vector(net.parameters())
        for net in (copy.deepcopy(wrapped.module), wrapped, alone)
    )
    assert torch.equal(before, after)
    assert torch.allclose(after, other, rtol=1e-4, atol=1e-6)
