"""scripts/in_step.py: every fault that it looks for is planted here."""

import importlib.util
from pathlib import Path

import click
import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "in_step.py"
SPEC = importlib.util.spec_from_file_location("in_step", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
in_step = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(in_step)


@click.group()
def toy() -> None: ...


@toy.command()
@click.option("--out", "-o")
@click.option("--fast/--slow")
def run(out: str, fast: bool) -> None: ...


@toy.command()
def gate() -> None: ...


README = """
Run `scripts/test`. See the [licence](LICENSE) and [this part](#part) and [elsewhere](https://example.org/x).

    edgeprune gate --help

```
$ edgeprune run --out here \\
    --fast      # it isn't slow
```
```python
import edgeprune as ep
ep.slim(network, "edgeprune run it's")
```
"""


def readme_faults(text: str) -> list[str]:
    return list(in_step.readme_faults(text, toy, ["slim", "load_data"]))


def test_a_readme_in_step() -> None:
    assert readme_faults(README) == []


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ("`edgeprune prune`", "README names the command edgeprune prune, which is not there"),
        ("`edgeprune run --output=x`", "README names --output of edgeprune run, which is not there"),
        ("    edgeprune gate --fast\n", "README names --fast of edgeprune gate, which is not there"),
        (
            "```sh\nedgeprune run \\\n --quick\n```\n",
            "README names --quick of edgeprune run, which is not there",
        ),
        ("`edgeprune --quick`", "README names --quick of edgeprune toy, which is not there"),
        ("`scripts/tests --all`", "README names scripts/tests, which is not there"),
        ("`ep.prune(model)`", "README names ep.prune, which is not there"),
        ("[more](docs/more.md#top)", "README links to docs/more.md, which is not there"),
    ],
)
def test_a_readme_out_of_step(added: str, fault: str) -> None:
    assert readme_faults(f"{README}\n{added}\n") == [fault]


def test_a_command_that_the_readme_leaves_out() -> None:
    assert readme_faults(README.replace("edgeprune gate --help", "")) == ["README never names edgeprune gate"]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("edgeprune/x.py", "\n" * 400, "has 400 lines, expected fewer than 400"),
        ("a.md", "x" * 1_000_001, "has 1000001 bytes"),
        ("a.py", "\nDATA = '/" + "home/me/data'", "a.py:2 names a path of one machine: /" + "home/m"),
        ("a.py", "x = Path('/" + "root/data')", "a path of one machine"),
        ("a.md", "see /" + "Users/me", "a path of one machine"),
        ("a.toml", "index = 'https://" + "pypi" + ".org/simple'", "a package registry: pypi" + ".org"),
    ],
)
def test_a_file_with_a_fault(name: str, content: str, fault: str) -> None:
    (found,) = in_step.file_faults(name, content.encode())
    assert fault in found


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("edgeprune/x.py", "\n" * 399),
        ("tests/test_x.py", "\n" * 2000),
        ("a.py", 'x = "runs/home/x", "~/root/x", f"{folder}/work/x", "https://example.org/home/page"'),
        ("picture.png", "\0\1"),
    ],
)
def test_a_file_without_a_fault(name: str, content: str) -> None:
    assert list(in_step.file_faults(name, content.encode())) == []


@pytest.mark.skipif(not (in_step.ROOT / ".git").exists(), reason="not a git checkout")
def test_the_files_of_this_repository_are_listed() -> None:
    names = in_step.files_of_the_repository()
    assert "pyproject.toml" in names
    assert not [name for name in names if name.startswith((".venv/", ".git/"))]
