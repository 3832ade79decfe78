"""JUnit XML of the gate: golden, by a schema, and read by a consumer."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import junitparser
import pytest

from edgeprune.outcome import Outcome
from edgeprune.report import junit_xml
from tests.gating import golden_lines
from tests.test_gate_outputs import ALL, ALL_STATES, AWAY, BARE, NASTY, PI


def test_junit_golden() -> None:
    golden_lines("junit.xml", junit_xml(ALL, facts={"onnx_sha256": "s" * 64}).splitlines())


def test_junit_is_read_by_its_consumer(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(junit_xml(ALL), encoding="utf-8")
    read = junitparser.JUnitXml.fromfile(str(path))
    suites = list(read)
    assert [suite.name for suite in suites] == [outcome.name for outcome in ALL]
    for suite in suites:
        written = (suite.tests, suite.failures, suite.errors, suite.skipped)
        suite.update_statistics()
        assert (suite.tests, suite.failures, suite.errors, suite.skipped) == written
    assert (read.tests, read.failures, read.errors) == (10, 2, 2)
    results = {case.name: case.result for case in suites[0]}
    assert results["max_size"] == []
    assert isinstance(results["max_latency_p95"][0], junitparser.Failure)
    assert isinstance(results["max_size_vs_release"][0], junitparser.Failure)
    assert isinstance(results["max_latency_p50"][0], junitparser.Error)
    assert isinstance(results["max_peak_memory"][0], junitparser.Skipped)
    assert results["max_latency_p95"][0].message.startswith("missed by ")


def test_junit_keeps_to_the_schema() -> None:
    xmlschema = pytest.importorskip("xmlschema")
    schema = xmlschema.XMLSchema(str(Path(__file__).parent / "junit.xsd"))
    for outcomes in (ALL, (PI,), (AWAY,), (BARE,), ()):
        schema.validate(junit_xml(outcomes, facts={"a": "b"}))
    for spoilt in (  # the control
        junit_xml(ALL).replace("<failure ", "<failed ").replace("</failure>", "</failed>"),
        junit_xml(ALL).replace('<testsuites name="edgeprune"', '<testsuites skipped="1"'),
        junit_xml(ALL).replace(' errors="1"', ' errors="one"'),
        junit_xml(ALL).replace('<testcase name="max_size"', "<testcase"),
    ):
        with pytest.raises(xmlschema.XMLSchemaValidationError):
            schema.validate(spoilt)


def test_junit_without_budgets_is_skipped_and_not_green() -> None:
    suite = ET.fromstring(junit_xml([BARE])).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("skipped"), suite.get("failures")) == ("1", "1", "0")
    assert suite.find("testcase/skipped").get("message") == "there are no budgets"  # type: ignore[union-attr]


def test_junit_stays_well_formed() -> None:
    verdicts = (replace(ALL_STATES[2], text=NASTY), *ALL_STATES)
    text = junit_xml([Outcome("x", NASTY, verdicts)], facts={NASTY: NASTY})
    assert 'alert("1")' in ET.fromstring(text).find("testsuite").get("name")  # type: ignore[union-attr, operator]
    with pytest.raises(ET.ParseError):  # the control: XML does not take the character that was removed
        ET.fromstring(text.replace("edgeprune", "\x1b", 1))
