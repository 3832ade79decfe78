"""The command line. Only here is anything printed, and only here does the process end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from edgeprune import __version__
from edgeprune.cli.bench import bench
from edgeprune.cli.compare import compare
from edgeprune.cli.convert import convert
from edgeprune.cli.doctor import doctor
from edgeprune.cli.gate import gate
from edgeprune.cli.information import groups, targets
from edgeprune.cli.release import release
from edgeprune.cli.stages import export, finetune, prune, report, run, train
from edgeprune.cli.sweep import sweep
from edgeprune.cli.verify import verify
from edgeprune.cli.widths import widths
from edgeprune.errors import EdgepruneError, Interrupted, RankError
from edgeprune.launch import launched_rank

INTERRUPTED = 130
SIGNALLED = 128
"""Added to the number of a signal, as shells do."""
TOGETHER = {"run", "train", "prune", "finetune"}
"""Commands that several processes work on."""
HOST_PACKAGES = {"torch", "torchvision", "onnx", "onnxscript", "onnxsim", "safetensors", "scipy", "sklearn"}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, "--version", prog_name="edgeprune")
def cli() -> None:
    """Prune a CNN, export it to ONNX, measure it, gate its release.

    \b
    edgeprune run --model resnet20 --data digits --max-macs-ratio 0.6
    edgeprune bench slim.onnx --baseline dense.onnx --target local-cpu
    edgeprune gate --target local-cpu

    Exit codes: 0 passed, 1 a budget failed, 2 wrong usage or bad input, 3 could
    not measure or cannot tell; 128 + its number if a signal ended it.
    """  # noqa: D301 (click's mark for text that is not to be re-wrapped)


COMMANDS = (
    run, sweep, train, prune, finetune, export, convert, bench, gate, report, release, compare, verify,
    widths, groups, targets, doctor,
)  # fmt: skip
for command in COMMANDS:
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    words = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in words
    try:
        with _sigterm_interrupts(), _ranks(words):
            # Without standalone mode click hands back what `Context.exit` was given.
            code = cli.main(words, prog_name="edgeprune", standalone_mode=False)
    except RankError as error:
        if error.told:
            sys.exit(error.exit_code)
        _fail(str(error), error.exit_code, as_json)
    except EdgepruneError as error:
        _fail(str(error), error.exit_code, as_json)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" Try `{context.command_path} --help`." if context is not None else ""
        text = error.format_message()
        text = text if text.endswith("?") else text.rstrip(".") + "."
        _fail(f"{text}{hint}", EdgepruneError.exit_code, as_json)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in HOST_PACKAGES:
            raise
        hint = 'Install what is missing with `pip install "edgeprune[train]"`.'
        _fail(
            f"this command needs the host side's packages, and there is no {error.name}. {hint}", 2, as_json
        )
    except (KeyboardInterrupt, click.Abort) as error:
        cause = error.__cause__ if isinstance(error, click.Abort) else error  # click wraps what it catches
        known = isinstance(cause, Interrupted)
        _fail(
            f"{cause if known else 'interrupted'}. Run the same command again to go on.",
            SIGNALLED + cause.number if isinstance(cause, Interrupted) else INTERRUPTED,
            as_json,
        )
    except OSError as error:
        # A full disk, a read-only folder, a missing right: the user's to mend, not a bug.
        _fail(
            f"could not read or write: {error.filename or 'a file'} is {error.strerror or error}.", 2, as_json
        )
    sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def _ranks(words: list[str]) -> Iterator[None]:
    """Of several processes that torchrun started: all for a command that trains, else only the first."""
    rank = launched_rank()
    if rank is None:
        yield
        return
    if not TOGETHER & {*words[:1]}:
        if rank:
            sys.exit(0)
        yield
        return
    from edgeprune.training.ranks import joined

    def interrupt(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)  # torchrun's way to end a job, also when another rank is gone
    with contextlib.ExitStack() as stack:
        # Once all is over nothing is to cut off the message, or what runs at the process's end.
        stack.callback(signal.signal, signal.SIGTERM, signal.SIG_IGN)
        if rank:  # what everybody knows is said once
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))  # noqa: PTH123
            warnings.simplefilter("ignore")
        stack.enter_context(joined())
        yield


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends the work as ^C does: files half-written and processes begun are cleaned up."""

    def interrupt(number: int, _: object) -> None:
        raise Interrupted(number)

    if launched_rank() is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, exit_code: int, as_json: bool) -> NoReturn:
    click.echo(f"edgeprune: {message}", err=True)
    if as_json:
        failure: dict[str, Any] = {"error": message, "exit_code": exit_code}
        click.echo(json.dumps(failure))
    sys.exit(exit_code)
