"""Two processes against one: the fast half. The real command line under torchrun is in test_ranks_cli."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from edgeprune.data import load_data
from edgeprune.errors import DataError, RankError
from edgeprune.launch import ALONE, VARIABLES, World, being, launched_rank, shares, world
from edgeprune.training.ranks import Gradients, joined, own_part
from edgeprune.training.sync_norms import synchronised
from tests.training import rank_jobs
from tests.training.fakes import blobs, make_net
from tests.training.rank_start import free_port, results, run_job

RANKS = 2


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Both jobs of two ranks, by rank; the first worker of a test run that needs them runs them for all."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "quick-of-two-ranks"
    with FileLock(f"{place}.lock"):
        return results(place, RANKS) if place.is_dir() else run_job("quick", RANKS, place)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def single(one_thread: None) -> dict[str, Any]:  # noqa: ARG001
    """The same in this process alone."""
    return rank_jobs.quick()


def same(first: Any, second: Any) -> bool:
    """Equal to the bit, through dictionaries and lists."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return bool(first == second)


@pytest.mark.parametrize("images", ["8", "7", "2", "1"])
def test_a_step_is_that_of_one_process(
    quick: list[dict[str, Any]], single: dict[str, Any], images: str
) -> None:
    """Norms, shared weights, a weight without gradient, parts that differ, a rank without images."""
    wanted = single["steps"][images]
    for rank in range(RANKS):
        found = quick[rank]["steps"][images]
        assert found["images"] == wanted["images"] == int(images)
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-12)
        assert found["stop"]  # rank 1 alone wanted to
        for name, gradient in wanted["gradients"].items():
            if gradient is None:
                assert found["gradients"][name] is None
            else:
                torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found["state"], wanted["state"], rtol=1e-12, atol=1e-12)
    assert not wanted["stop"]
    assert wanted["gradients"]["unused.weight"] is wanted["gradients"]["last.bias"] is None


def test_norms_that_are_not_synchronised_would_be_seen(quick: list[dict[str, Any]]) -> None:
    state, plain = quick[0]["steps"]["7"]["state"], quick[0]["unsynchronised"]["state"]
    assert not torch.allclose(state["norm.running_var"], plain["norm.running_var"], rtol=1e-3)


def test_ranks_end_with_the_same_bits(quick: list[dict[str, Any]]) -> None:
    for name in ("state", "sparse", "scores", "losses", "accuracies", "accuracy", "scheme_scores"):
        assert same(quick[0]["talk"][name], quick[1]["talk"][name]), name


def test_training_is_that_of_one_process(quick: list[dict[str, Any]], single: dict[str, Any]) -> None:
    found, wanted = quick[1]["talk"], single["talk"]
    assert found["losses"] == pytest.approx(wanted["losses"], abs=1e-5)
    assert found["accuracies"] == wanted["accuracies"]
    assert found["accuracy"] == wanted["accuracy"]
    for name in ("state", "sparse", "scores"):
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-4)
    for name, scores in wanted["scores"].items():
        assert torch.equal(found["scores"][name] == 0, scores == 0)


@pytest.mark.parametrize("scheme", ["sglp-ib", "obs"])
def test_scores_have_the_bits_of_one_process(
    quick: list[dict[str, Any]], single: dict[str, Any], scheme: str
) -> None:
    assert same(quick[1]["talk"]["scheme_scores"][scheme], single["talk"]["scheme_scores"][scheme])


def test_only_rank_0_works_and_all_hear_of_it(quick: list[dict[str, Any]]) -> None:
    assert [one["talk"]["told"] for one in quick] == ["from 0", "from 0"]
    assert [one["talk"]["alone"] for one in quick] == [[1], []]
    assert [one["talk"]["gathered"] for one in quick] == [[0, 1], [0, 1]]
    assert [one["talk"]["spread"] for one in quick] == [[30, 10, 20], [30, 10, 20]]


def test_each_rank_takes_its_part(quick: list[dict[str, Any]]) -> None:
    whole = [len(labels) for _, labels in blobs(72, 1)]
    assert [sum(parts) for parts in zip(*(one["talk"]["parts"] for one in quick), strict=True)] == whole


def test_an_error_is_told_by_the_rank_that_has_it(quick: list[dict[str, Any]]) -> None:
    assert [one["errors"]["rank 0"] for one in quick] == ["DataError", "told"]
    assert [one["errors"]["rank 1"] for one in quick] == ["told", "DataError"]


# --- one process -------------------------------------------------------------------------------------------


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert launched_rank() is None
    with joined() as here:
        assert here is world() is ALONE
        assert (here.first, here.from_first(lambda: 3), here.gather(4)) == (True, 3, [4])
    with pytest.raises(DataError, match="could not load"), joined():
        raise DataError("could not load")


@pytest.mark.parametrize(("size", "rank"), [("1", None), ("2", 1)])
def test_a_job_of_one_is_no_job(monkeypatch: pytest.MonkeyPatch, size: str, rank: int | None) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", size)
    assert launched_rank() == rank


def test_ranks_that_do_not_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (values | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("edgeprune.training.ranks.SILENCE", rank_jobs.MOMENT)
    with pytest.raises(RankError, match="could not start: the job's processes is out of reach"), joined():
        pass


def test_shares_are_even_and_whole() -> None:
    found = shares([5.0, 1.0, 1.0, 1.0, 4.0], 2)
    assert found == [[0, 2], [1, 3, 4]]
    assert shares([], 2) == [[], []]


def test_a_loader_with_shard_is_asked() -> None:
    whole = load_data("digits", batch_size=10).val
    assert own_part(whole) is whole
    with being(World(1, 2)):
        part = own_part(whole)
        assert type(part) is type(whole)
        assert torch.equal(next(iter(part))[0], next(iter(whole))[0][5:])


def test_alone_nothing_is_swapped_or_scaled() -> None:
    model, twin = make_net(), make_net()
    inputs = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model[3] = twin[3] = torch.nn.Identity()
    gradients = Gradients(model)
    assert gradients.take(inputs, torch.zeros(6))[0] is inputs
    with synchronised(model):
        done = gradients.backward(model(inputs).square().mean())
        assert "forward" not in vars(model[1])
    loss = twin(inputs).square().mean()
    loss.backward()
    assert (done.loss.item(), done.images, done.stop) == (loss.item(), 6, False)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.equal(mine.grad, other.grad)
