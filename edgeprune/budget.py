"""A limit on one metric, as the table ``[budgets]`` of a target file has it. Device side: no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgeprune.errors import UsageError
from edgeprune.metrics import GATED
from edgeprune.toml_table import TomlTable
from edgeprune.units import KINDS, parse_quantity, show_value

BUDGET_KEYS = tuple(f"{end}_{metric}" for metric in GATED for end in ("max", "min"))
KNOWN = f"max_ or min_ and one of {', '.join(GATED)}"


@dataclass(frozen=True)
class Budget:
    """One limit.

    Attributes:
        key: As in the file, e.g. ``"max_latency_p95"``.
        metric: Key without ``max_``/``min_``; a key of ``GATED``.
        is_max: True if the metric must not be above ``limit``, False if not below.
        limit: In SI units.
        text: The limit as written, e.g. ``"12 ms"``.
        optional: If the metric is not measured, the budget is skipped instead of missed.
    """

    key: str
    metric: str
    is_max: bool
    limit: float
    text: str
    optional: bool = False


def read_budgets(table: TomlTable, hint: Callable[[str, str], str]) -> tuple[Budget, ...]:
    """The budgets of a file, in its order; what is wrong goes to the table's faults.

    A value is a limit, or a table with the limit and whether the budget is optional:
    ``max_peak_memory = { limit = "80 MB", optional = true }``.

    Args:
        table: ``[budgets]``.
        hint: See ``TomlTable.refuse_unknown``.
    """
    budgets: dict[str, Budget] = {}
    for key, value in table.values.items():
        if key not in BUDGET_KEYS:
            continue
        end, _, metric = key.partition("_")
        kind = KINDS[GATED[metric].quantity]
        written, optional = (
            (value.get("limit"), value.get("optional", False)) if isinstance(value, dict) else (value, False)
        )
        if isinstance(value, dict) and (
            set(value) - {"optional"} != {"limit"} or not isinstance(optional, bool)
        ):
            example = f"{{ limit = {kind.example}, optional = true }}"
            table.fault(key, f"expected {kind.noun}, e.g. {kind.example} or {example}")
            continue
        try:
            limit = parse_quantity(written, GATED[metric].quantity)
        except UsageError as error:
            table.fault(key, f"expected {error.expected}. {error.hint}".rstrip())
            continue
        text = " ".join(written.split()) if isinstance(written, str) else show_value(written)
        budgets[key] = Budget(key, metric, end == "max", limit, text, optional)
    for key, budget in budgets.items():
        least = budgets.get(f"min_{budget.metric}")
        if budget.is_max and least and least.limit > budget.limit:
            table.fault(key, f"below {least.key} = {least.text}, so nothing can pass")
    table.refuse_unknown(BUDGET_KEYS, KNOWN, hint=lambda key, name: _ends(key) or hint(key, name))
    return tuple(budgets.values())


def _ends(key: str) -> str:
    """A hint for a metric without max_ or min_."""
    return f' Did you mean "max_{key}" or "min_{key}"?' if key in GATED else ""
