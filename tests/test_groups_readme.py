"""scripts/groups_readme: what it cuts, what it leaves alone, and that the README is as it writes it."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "groups_readme"


@pytest.fixture
def script() -> Any:
    loader = SourceFileLoader("groups_readme", str(SCRIPT))
    spec = importlib.util.spec_from_loader("groups_readme", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


TREE = """net  9 params
       units
├── a      1
│   └── makes   a  weight
├── frozenish 2
├── c      3
└── frozen 4
    └── reaches the output: d

can be cut
"""


def test_what_is_cut(script: Any) -> None:
    head, tail = TREE[: TREE.index("├── frozenish")], TREE[TREE.index("└── frozen ") :].rstrip()
    assert script.shortened(TREE, 1) == f"{head}…\n{tail}"
    assert script.shortened(TREE, 2) == f"{head}├── frozenish 2\n…\n{tail}"
    assert script.shortened(TREE, 3) == TREE.rstrip()
    all_free = TREE.replace("├── c      3\n└── frozen 4\n    └── reaches the output: d", "└── c      3")
    assert script.shortened(all_free, 1) == f"{head}…\n\ncan be cut"


def test_only_the_section_is_written(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(script, "printed", lambda words: asked.append(words) or TREE)
    readme = tmp_path / "README.md"
    before = f"# top\n\n{script.BEGIN}\nold\n{script.END}\n\nbelow\n"
    readme.write_text(before, encoding="utf-8")
    assert script.main(["--check"], readme) == 1
    assert readme.read_text(encoding="utf-8") == before
    assert script.main([], readme) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(
        f"# top\n\n{script.BEGIN}\n\n```console\n$ edgeprune groups --model torchvision:res"
    )
    assert text.endswith(f"```\n\n{script.END}\n\nbelow\n")
    assert "old" not in text
    assert script.main(["--check"], readme) == 0
    assert script.main([], readme) == 0
    assert readme.read_text(encoding="utf-8") == text
    assert asked[0] == ["groups", "--model", "torchvision:resnet50"]
    answers = capsys.readouterr().out.splitlines()
    assert [line.split(" is ")[1] for line in answers] == [
        "out of date. Run scripts/groups_readme.", "written.", "up to date.", "up to date."
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "{BEGIN}", "{END}{BEGIN}", "{BEGIN}{END}{BEGIN}", "{BEGIN}{END}{END}"])
def test_without_marks_nothing_is_written(script: Any, tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text.format(BEGIN=script.BEGIN, END=script.END), encoding="utf-8")
    before = readme.read_bytes()
    with pytest.raises(SystemExit, match=r"README\.md does not have the lines"):
        script.main([], readme)
    assert readme.read_bytes() == before


@pytest.mark.slow
def test_the_readme_is_up_to_date(script: Any) -> None:
    assert script.main(["--check"]) == 0
