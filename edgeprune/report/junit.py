"""The verdicts as JUnit XML, which CI servers show beside the tests. Device side: no torch."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from edgeprune.metrics import GATED
from edgeprune.outcome import Outcome
from edgeprune.report.content import printable, verdict_row
from edgeprune.verdict import Verdict

KINDS = {"failed": "failure", "unmeasured": "failure", "cannot tell": "error", "skipped": "skipped"}
"""State -> element of a test case; one that passed has none."""


def junit_xml(outcomes: Sequence[Outcome], *, facts: Mapping[str, str] | None = None) -> str:
    """The verdicts as JUnit XML: a suite for each target, a test case for each budget.

    A budget that failed or was not measured is a failure; one that cannot be told is an error, since nothing
    was decided; a target that could not be measured is one error. A target without budgets gives one skipped
    case, so that CI shows that nothing was gated.

    Args:
        outcomes: From the gate, one for each target.
        facts: Properties of every suite, e.g. the hash of the ONNX file.
    """
    root = ET.Element("testsuites", {"name": "edgeprune"})
    for outcome in outcomes:
        _suite(root, outcome, facts or {})
    for what in ("tests", "failures", "errors"):
        root.set(what, str(sum(int(suite.get(what, "0")) for suite in root)))
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, outcome: Outcome, facts: Mapping[str, str]) -> None:
    suite = ET.SubElement(root, "testsuite", {"name": printable(outcome.name)})
    if facts:
        properties = ET.SubElement(suite, "properties")
        for key, value in facts.items():
            ET.SubElement(properties, "property", {"name": printable(key), "value": printable(value)})
    for verdict in outcome.verdicts:
        _test_case(suite, outcome.name, verdict)
    if outcome.error:
        case = _case(suite, outcome.name, "measurement")
        ET.SubElement(case, "error", {"type": "not measured", "message": printable(outcome.error)})
    elif not outcome.verdicts:
        case = _case(suite, outcome.name, "budgets")
        ET.SubElement(case, "skipped", {"message": "there are no budgets"})
    found = [child.tag for case in suite.iter("testcase") for child in case]
    counts = {"tests": len(suite.findall("testcase"))}
    counts |= {f"{kind}s": found.count(kind) for kind in ("failure", "error")}
    counts["skipped"] = found.count("skipped")
    for what, count in counts.items():
        suite.set(what, str(count))


def _case(suite: ET.Element, target: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", {"name": name, "classname": printable(target)})


def _test_case(suite: ET.Element, target: str, verdict: Verdict) -> None:
    case = _case(suite, target, verdict.budget.key)
    _, measured, limit, _, _ = verdict_row(verdict)
    facts = printable(f"{GATED[verdict.metric].text}: {measured}, limit {limit}")
    if verdict.state == "passed":
        ET.SubElement(case, "system-out").text = f"{facts}, {printable(verdict.text)}"
        return
    problem = ET.SubElement(
        case, KINDS[verdict.state], {"type": verdict.state, "message": printable(verdict.text)}
    )
    problem.text = facts
