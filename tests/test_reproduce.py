"""scripts/reproduce: rows are command lines that exist; the table has published figures beside ours."""

from __future__ import annotations

import runpy
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeprune.cli import cli

SCRIPT = Path(__file__).parent.parent / "scripts" / "reproduce"
OPTIONS: dict[str, Any] = {
    "data": "somewhere", "seed": 3, "epochs": 2, "precision": "bf16", "device": None, "compile": False,
    "weights": None, "out": Path("out"), "baseline": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_every_row_is_commands_that_exist(script: dict[str, Any]) -> None:
    assert len(script["ROWS"]) == 14
    for row in script["ROWS"].values():
        for baseline in (False, True):
            words = script["commands"](row, SimpleNamespace(**OPTIONS | {"baseline": baseline}))
            parsed = [cli.commands[name].make_context(name, list(rest)).params for name, *rest in words]
            assert {one["epochs"] for one in parsed} == {2}
            proximal = row.scheme == "proximal-ns"
            assert [name for name, *_ in words][-3:] == ["train", "prune", "finetune"]
            assert len(words) == 3 + (baseline and proximal)
            train, prune, finetune = parsed[-3:]
            assert train["data"] == f"{row.data}:somewhere"
            assert train["train_epochs"] == (0 if proximal else None)
            assert (prune["scheme"], prune["channel_multiple"]) == (row.scheme, 1)
            # A network that was never trained teaches nothing.
            assert finetune["distill"] is (False if proximal else None)
            wanted = [one for one in (row.params_cut, row.macs_cut) if one is not None]
            kept = [prune["max_params_ratio"], prune["max_macs_ratio"]]
            if not proximal:
                assert [one for one in kept if one is not None] == pytest.approx(
                    [1 - c / 100 for c in wanted]
                )


def test_the_table_has_both(script: dict[str, Any]) -> None:
    row = script["ROWS"]["vgg16-cifar10-sglp"]
    facts = {
        "train": {"test_accuracy": 0.94}, "slim": {"test_accuracy": 0.5}, "refit": {"test_accuracy": 0.9},
        "finetune": {"test_accuracy": 0.9377},
        "plan": {"slim_params": 15, "dense_params": 100, "slim_macs": 39, "dense_macs": 100},
    }  # fmt: skip
    told = script["table"]("vgg16-cifar10-sglp", row, facts, 2)
    assert "shortened to 2 epochs: no reproduction" in told
    assert "| dense, test | 93.96 % | 94.00 % |" in told
    assert "| fine-tuned | 94.10 % | 93.77 % |" in told
    assert "| refitted | - | 90.00 % |" in told
    assert "| MACs cut | 61.00 % | 61.00 % |" in told
    proximal = script["ROWS"]["vgg19-cifar100-proximal"]
    told = script["table"]("x", proximal, facts, None)
    assert "the whole recipe" in told
    assert "| dense, test | - | - |" in told
    assert "| dense, test | - | 70.00 % |" in script["table"](
        "x", proximal, facts | {"baseline": {"test_accuracy": 0.7}}, None
    )


@pytest.mark.parametrize(("code", "ends"), [(0, "facts"), (128 + signal.SIGTERM, None), (1, 1)])
def test_a_command_ends_or_goes_on_later(
    code: int, ends: object, script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho log\necho \'{{"stages": "facts"}}\'\nexit {code}\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    if ends == 1:
        with pytest.raises(SystemExit, match="1"):
            script["work"](["train"], time.monotonic() + 60)
    else:
        assert script["work"](["train"], time.monotonic() + 60) == ends


def test_time_that_is_up_ends_a_command_by_a_signal(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text(
        f"#!/bin/sh\ntrap 'echo ended > \"{tmp_path}/told\"; exit 143' TERM\nsleep 9 >/dev/null 2>&1 & wait\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    assert script["work"](["train"], 0.0) is None
    assert (tmp_path / "told").read_text() == "ended\n"
