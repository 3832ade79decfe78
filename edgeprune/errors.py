"""Every error that edgeprune raises on purpose. The CLI catches these and nothing else."""

from __future__ import annotations

import signal


class EdgepruneError(Exception):
    """Something the user can act on.

    The message follows one template::

        <what could not be done>: <where> is <value>, expected <rule>. <One next step.>

    Args:
        problem: What could not be done, e.g. ``"could not load the data set"``.
        where: The argument, key or file at fault.
        value: What was found there.
        expected: The rule that ``value`` breaks.
        hint: One next step, a full sentence.
    """

    exit_code = 2

    def __init__(
        self, problem: str, *, where: str = "", value: object = "", expected: str = "", hint: str = ""
    ) -> None:
        self.problem, self.where, self.value, self.expected, self.hint = problem, where, value, expected, hint
        text = problem
        if where:
            text += f": {where} is {value}"
            text += f", expected {expected}" if expected else ""
        text = text if text.endswith("?") else text.rstrip(".") + "."
        super().__init__(f"{text} {hint}".rstrip())


class UsageError(EdgepruneError):
    """An option or argument is wrong."""


class TargetError(EdgepruneError):
    """A target file is wrong; the message lists every fault of the file."""


class ArtifactError(EdgepruneError):
    """An ONNX file or its sidecar is missing, broken or does not match."""


class ReleaseError(EdgepruneError):
    """A release file is missing, broken or of another format, or nothing in it can be compared."""


class DataError(EdgepruneError):
    """A data set is missing, truncated or of the wrong shape."""


class ModelError(EdgepruneError):
    """A network or its weights cannot be loaded."""


class PlanError(EdgepruneError):
    """A plan cannot be made (the message says what can) or does not fit its network."""


class InexactWarning(UserWarning):
    """A plan cut what only an inexact cut can remove; the message says by how much the function changed."""


class SlimError(EdgepruneError):
    """Surgery would change the function of the network; nothing was handed over."""


class TrainingError(EdgepruneError):
    """Training cannot go on, e.g. a loss that is not finite."""


class CheckpointWarning(UserWarning):
    """The newest checkpoint is broken; training goes on from the one before it."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; not an error, and without a handler it ends the process as ^C does.

    Args:
        number: The signal's.
        state: What has become of the work, a clause, e.g. ``"the checkpoint is written"``.
    """

    def __init__(self, number: int, state: str = "") -> None:
        self.number, self.state = number, state
        text = f"interrupted by {signal.Signals(number).name}"
        super().__init__(f"{text}, {state}" if state else text)


class SchemeError(EdgepruneError):
    """A scheme cannot score the channels, e.g. a layer returns numbers that are not finite."""


class ExportError(EdgepruneError):
    """The ONNX file cannot be made, or its outputs differ from torch's."""


class RunError(EdgepruneError):
    """A run folder lacks what a stage reads, or belongs to another run."""


class MeasurementError(EdgepruneError):
    """A provider, device or tool is absent, so nothing could be measured."""

    exit_code = 3


class RankError(EdgepruneError):
    """A job of several processes cannot go on because one of them failed, is gone or never came.

    Attributes:
        told: Another process has said why.
    """

    told = False
