"""The verdicts as JUnit XML, which CI servers show beside the tests. Device side: no torch."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from edgeprune.metrics import GATED
from edgeprune.report.content import printable, verdict_row
from edgeprune.verdict import Verdict


def junit_xml(
    verdicts: Sequence[Verdict], *, suite: str = "edgeprune", facts: Mapping[str, str] | None = None
) -> str:
    """The verdicts as JUnit XML: a test case for each budget.

    A budget that failed or was not measured is a failure; one that cannot be told is an error, since nothing
    was decided; a target without budgets gives one skipped case, so that CI shows that nothing was gated.

    Args:
        verdicts: From the gate.
        suite: Name of the suite, e.g. the target's.
        facts: Properties of the suite, e.g. the hash of the ONNX file.
    """
    states = [verdict.state for verdict in verdicts]
    counts = {
        "tests": len(verdicts) or 1,
        "failures": states.count("failed") + states.count("unmeasured"),
        "errors": states.count("cannot tell"),
        "skipped": 0 if verdicts else 1,
    }
    attributes = {key: str(count) for key, count in counts.items()}
    root = ET.Element("testsuites", {"name": "edgeprune", **attributes})
    node = ET.SubElement(root, "testsuite", {"name": printable(suite), **attributes})
    if facts:
        properties = ET.SubElement(node, "properties")
        for key, value in facts.items():
            ET.SubElement(properties, "property", {"name": printable(key), "value": printable(value)})
    for verdict in verdicts:
        _test_case(node, suite, verdict)
    if not verdicts:
        case = ET.SubElement(node, "testcase", {"name": "budgets", "classname": printable(suite)})
        ET.SubElement(case, "skipped", {"message": "there are no budgets"})
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _test_case(node: ET.Element, suite: str, verdict: Verdict) -> None:
    case = ET.SubElement(node, "testcase", {"name": verdict.budget.key, "classname": printable(suite)})
    _, measured, limit, _, _ = verdict_row(verdict)
    facts = printable(f"{GATED[verdict.metric].text}: {measured}, limit {limit}")
    if verdict.state == "passed":
        ET.SubElement(case, "system-out").text = f"{facts}, {printable(verdict.text)}"
        return
    kind = "error" if verdict.state == "cannot tell" else "failure"
    problem = ET.SubElement(case, kind, {"type": verdict.state, "message": printable(verdict.text)})
    problem.text = facts
