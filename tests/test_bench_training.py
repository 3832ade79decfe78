"""scripts/bench_training on digits, a small network and two steps."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_training"
QUICK = [
    "--network", "resnet20", "--batch-size", "4", "--steps", "2", "--rounds", "3", "--workers", "0",
    "--device", "cpu",
]  # fmt: skip


def bench(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *QUICK, *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(ended.value.code or 0)


def test_both_loops_are_timed_in_one_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(monkeypatch, "--json", "--min-ratio", "0") == 0
    told = json.loads(capsys.readouterr().out)
    (result,) = told["results"]
    assert len(result["ours_images_per_s"]) == len(result["plain_images_per_s"]) == 3  # without the warm-up
    assert result["ratios"] == [
        a / b for a, b in zip(result["ours_images_per_s"], result["plain_images_per_s"], strict=True)
    ]
    least, median, most = sorted(result["ratios"])
    assert result["ratio_median"] == median
    assert 0 < least <= result["ratio_p25"] <= median * 1.000001
    assert median * 0.999999 <= result["ratio_p75"] <= most
    assert result["images_per_round"] == 8
    assert result["macs"] == 40_551_040
    rate = sorted(result["ours_images_per_s"])[1]
    assert result["peak_share"] == pytest.approx(rate * 40_551_040 * 6 / result["peak_flops"])
    assert (told["precision"], told["device"]) == ("fp32", "cpu")


def test_a_ratio_below_the_limit_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        bench(monkeypatch, "--rounds", "1", "--warm-up", "0", "--min-ratio", "1e9", "--precision", "bf16")
        == 1
    )
    printed = capsys.readouterr().out
    assert "edgeprune bf16; plain loop fp32, 0 workers" in printed
    assert "resnet20: edgeprune" in printed
    assert "limit 1e+09: FAILED" in printed


def test_the_rounds_take_turns() -> None:
    script = runpy.run_path(str(SCRIPT))
    data = script["part_of_data"](script["load_data"]("digits", batch_size=4), 2, 4)
    turns = []

    class Plain:
        def round(self) -> float:
            turns.append("plain")
            return 1.0

    rounds = script["Rounds"](data.train, Plain(), torch.device("cpu"))
    for epoch in range(4):
        rounds.set_epoch(epoch)
        turns.append("ours")
        assert [len(labels) for _, labels in rounds] == [4, 4]
    rounds.catch_up(4)
    assert turns == ["plain", "ours", "ours", "plain", "plain", "ours", "ours", "plain"]
    assert len(rounds.ours_per_s) == len(rounds.plain_per_s) == 4


def test_the_plain_loop_sees_the_same_images_augmented_and_learns() -> None:
    script = runpy.run_path(str(SCRIPT))
    data = script["part_of_data"](script["load_data"]("digits", batch_size=16), 4, 16)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    before = network[1].weight.clone()
    plain = script["PlainLoop"](network, data.train, torch.device("cpu"), 0, "fp32")
    assert plain.round() > 0
    assert not torch.equal(network[1].weight, before)
    images, labels = next(iter(plain.batches))
    assert (images.shape, labels.shape) == ((16, 3, 32, 32), (16,))
    known = {int(label) for label in data.train.labels[data.train.positions]}
    assert set(labels.tolist()) <= known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds is 0, expected at least 1"),
        (["--data", "cifar11:x"], "could not load the data set"),
        (["--batch-size", "5000"], "--data has no whole batch of 5000"),
        (["--data", "digits", "--batch-size", "1"], "--batch-size is 1, expected at least 2"),
    ],
)
def test_wrong_usage(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(monkeypatch, *options) == 2
    assert message in capsys.readouterr().err
