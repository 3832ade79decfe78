"""Are the docs in step with the code? And the rules of the house that no linter knows.

Prints every fault and ends with 1 if there is one.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 400
MAX_BYTES = 1_000_000

MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])(?:/(?:home|Users)/\w|/(?:root|work|mnt)/\w|[A-Z]:\\\\?Users\\)")
REGISTRY = re.compile(r"\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|conda\.anaconda\.org)\b")


def shell_lines(text: str) -> Iterator[list[str]]:
    """The words of each command in a Markdown text's code blocks and inline code."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:^(?: {4}|\t)[^\n]*\n)+", text, flags=re.MULTILINE)
    blocks += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            except ValueError:  # prose or Python with a lone quote
                continue
            if words:
                yield words


def readme_faults(text: str, group: click.Group, names: Iterable[str]) -> Iterator[str]:
    """Commands, options, scripts, links and Python names that do not exist, and commands left out.

    Args:
        text: The README.
        group: The command line.
        names: Public names of the package.
    """
    named = set()
    for words in shell_lines(text):
        if words[0].startswith("scripts/") and not (ROOT / words[0]).is_file():
            yield f"README names {words[0]}, which is not there"
        if words[0] != "edgeprune":
            continue
        chosen: click.Command = group
        for word in words[1:]:
            option = word.partition("=")[0]
            known = {text for entry in chosen.params for text in (*entry.opts, *entry.secondary_opts)}
            if chosen is group and word in group.commands:
                chosen = group.commands[word]
                named.add(word)
            elif chosen is group and not word.startswith("-"):
                yield f"README names the command edgeprune {word}, which is not there"
                break
            elif option.startswith("--") and option not in known | {"--help", "--version"}:
                yield f"README names {option} of edgeprune {chosen.name}, which is not there"
    for command in sorted(set(group.commands) - named):
        yield f"README never names edgeprune {command}"
    for name in sorted(set(re.findall(r"\bep\.(\w+)", text)) - set(names)):
        yield f"README names ep.{name}, which is not there"
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", text):
        if not (ROOT / link).exists():
            yield f"README links to {link}, which is not there"


def file_faults(name: str, content: bytes) -> Iterator[str]:
    """What is wrong with one file, apart from its meaning."""
    if len(content) > MAX_BYTES:
        yield f"{name} has {len(content)} bytes, more than {MAX_BYTES}"
    text = content.decode("utf-8", "replace")
    lines = text.splitlines()
    if name.startswith("edgeprune/") and name.endswith(".py") and len(lines) >= MAX_LINES:
        yield f"{name} has {len(lines)} lines, expected fewer than {MAX_LINES}"
    for number, line in enumerate(lines, 1):
        for rule, what in ((MACHINE_PATH, "a path of one machine"), (REGISTRY, "a package registry")):
            found = rule.search(line)
            if found:
                yield f"{name}:{number} names {what}: {found[0]}"


def files_of_the_repository() -> list[str]:
    """What git tracks, and what it would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def main() -> int:
    import edgeprune
    from edgeprune.cli import cli

    faults = list(readme_faults((ROOT / "README.md").read_text(encoding="utf-8"), cli, edgeprune.__all__))
    for name in files_of_the_repository():
        faults += file_faults(name, (ROOT / name).read_bytes())
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
