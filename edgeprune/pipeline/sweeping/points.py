"""What a sweep goes through: schemes by ratios, each a run of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from edgeprune.errors import UsageError
from edgeprune.pipeline.settings import Settings

RatioOf = Literal["macs", "params", "latency"]
PROBLEM = "could not plan the sweep"


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: Of its folder, e.g. ``"magnitude-macs-0.5"``.
        scheme: Pruning scheme.
        ratio: What its plan may keep.
        settings: Of the run, as `edgeprune run` would have them.
    """

    name: str
    scheme: str
    ratio: float
    settings: Settings


@dataclass(frozen=True)
class SweepPlan:
    """The points of a sweep.

    Attributes:
        settings: What all points have in common.
        schemes: Pruning schemes, keys of ``SCHEMES``.
        ratios: Above 0, at most 1.
        ratio_of: What they bound: multiply-adds, parameters or latency, slim / dense.
        scheme_options: Hyper-parameters by scheme; those of the key ``""`` go to every scheme that has them.
    """

    settings: Settings
    schemes: tuple[str, ...]
    ratios: tuple[float, ...]
    ratio_of: RatioOf = "macs"
    scheme_options: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """The setting that the ratios go into."""
        return f"max_{self.ratio_of}_ratio"

    def points(self) -> tuple[Point, ...]:
        """The points, scheme by scheme.

        Raises:
            UsageError: There is none, one is there twice, or a scheme or a value is unknown.
        """
        check_list("--schemes", self.schemes, "different schemes, e.g. magnitude,sglp-ib")
        rule = "different numbers above 0 and at most 1, e.g. 0.3,0.5,0.7"
        check_list("--ratios", [f"{ratio:g}" for ratio in self.ratios], rule)
        if not all(math.isfinite(ratio) and 0 < ratio <= 1 for ratio in self.ratios):
            raise UsageError(
                PROBLEM,
                where="--ratios",
                value=",".join(f"{ratio:g}" for ratio in self.ratios),
                expected=rule,
            )
        if self.ratio_of not in get_args(RatioOf):
            expected = " or ".join(get_args(RatioOf))
            raise UsageError(PROBLEM, where="--ratio-of", value=self.ratio_of, expected=expected)
        if getattr(self.settings, self.setting) is not None:
            raise UsageError(
                PROBLEM,
                where=f"--{self.setting.replace('_', '-')}",
                value=f"given beside --ratio-of {self.ratio_of}",
                expected="one of both",
                hint="The ratios of a sweep are its values.",
            )
        options = {scheme: self.options_of(scheme) for scheme in self.schemes}

        def settings_of(scheme: str, ratio: float) -> Settings:
            own: dict[str, Any] = {"scheme": scheme, "scheme_options": options[scheme], self.setting: ratio}
            return replace(self.settings, **own)

        return tuple(
            Point(f"{scheme}-{self.ratio_of}-{ratio:g}", scheme, ratio, settings_of(scheme, ratio))
            for scheme in self.schemes
            for ratio in self.ratios
        )

    def options_of(self, scheme: str) -> dict[str, Any]:
        """A scheme's hyper-parameters.

        Raises:
            UsageError: The scheme is unknown, or it or all of them have no such option.
        """
        from edgeprune.schemes import SCHEMES, make_scheme

        for named in (*self.schemes, *filter(None, self.scheme_options)):
            if named not in SCHEMES:
                make_scheme(named)  # raises: it lists what there is
        known = {name: {item.name for item in fields(SCHEMES[name])} for name in self.schemes}  # type: ignore[arg-type]
        for named in filter(None, self.scheme_options):
            if named not in self.schemes:
                expected = f"one of the sweep's: {', '.join(self.schemes)}"
                raise UsageError(PROBLEM, where="--scheme-option", value=f"for {named}", expected=expected)
        common = self.scheme_options.get("", {})
        for key in common:
            if not any(key in names for names in known.values()):
                raise UsageError(
                    PROBLEM,
                    where="--scheme-option",
                    value=repr(key),
                    expected=f"an option of {' or '.join(self.schemes)}",
                )
        options = {key: value for key, value in common.items() if key in known[scheme]}
        options |= self.scheme_options.get(scheme, {})
        make_scheme(scheme, **options)  # a wrong value should not wait for the end of a training
        return options

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary."""
        return {
            "settings": self.settings.to_json(),
            "schemes": list(self.schemes),
            "ratios": list(self.ratios),
            "ratio_of": self.ratio_of,
            "scheme_options": self.scheme_options,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> SweepPlan:
        """Read what ``to_json`` wrote.

        Raises:
            UsageError: Its settings are of another version.
        """
        return SweepPlan(
            Settings.from_json(value["settings"]),
            tuple(map(str, value["schemes"])),
            tuple(map(float, value["ratios"])),
            value["ratio_of"],
            {name: dict(options) for name, options in value["scheme_options"].items()},
        )


def check_list(option: str, values: Sequence[str], rule: str) -> None:
    """There is something in a list, and nothing twice.

    Raises:
        UsageError: There is nothing, or something is there twice.
    """
    if not values or len(set(values)) < len(values):
        value = ",".join(values) if values else "missing"
        raise UsageError(PROBLEM, where=option, value=value, expected=rule)
