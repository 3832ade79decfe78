"""What was found, for people and for CI. Device side: no torch.

``make_report`` decides what is said; the writers only lay it out.
"""

from edgeprune.report.classes import ClassStructure, class_structure
from edgeprune.report.content import Report, make_report, reasons
from edgeprune.report.curves import Curves, training_curves
from edgeprune.report.junit import junit_xml
from edgeprune.report.markdown import report_markdown
from edgeprune.report.page import report_html
from edgeprune.report.pull_request import github_annotations, pull_request_markdown
from edgeprune.report.terminal import comparison_table, reason_lines, verdict_table
from edgeprune.report.why import why_lines
from edgeprune.report.widths import widths_svg, widths_text

__all__ = [
    "ClassStructure",
    "Curves",
    "Report",
    "class_structure",
    "comparison_table",
    "github_annotations",
    "junit_xml",
    "make_report",
    "pull_request_markdown",
    "reason_lines",
    "reasons",
    "report_html",
    "report_markdown",
    "training_curves",
    "verdict_table",
    "why_lines",
    "widths_svg",
    "widths_text",
]
