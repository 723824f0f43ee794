"""`report.html`: a report to look at, in one file that opens offline.

Owns what people see of a run. Every figure on it stands in `report.json` too, and is read off the report, never
computed here; the report itself travels inside the page. The plots are SVG that is drawn here, without a plotting
library: a page stays below a few hundred kilobytes, prints, follows the reader's colour scheme, reads aloud, shows
its plots without JavaScript, and a run can be looked at where only the base install is.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import msgspec

from edgewise.quantize.page.nodes import document, node, script_data
from edgewise.quantize.page.sections import VERDICTS, candidate_cards, how_sure, opening, the_run
from edgewise.quantize.page.tables import figure_tables
from edgewise.quantize.page.trade_offs import trade_offs
from edgewise.quantize.report import Report

PAGE = "report.html"
"""The page's name in a run folder."""

_HERE = Path(__file__).parent
_PLACES = (
    ("trade-offs", "Trade-offs"),
    ("loss", "Loss"),
    ("candidates", "Candidates"),
    ("figures", "Every figure"),
    ("run", "The run"),
)

__all__ = ["PAGE", "render_page"]


def render_page(report: Report) -> str:
    """The report as an HTML page that refers to nothing outside itself. The same report gives the same page.

    Args:
        report: Of any kind of model; what it does not hold is left out.
    """
    style, script = _asset("page.css"), _asset("page.js")
    head = node(
        "head",
        node("meta", charset="utf-8"),
        # Only this very script may run, whatever else a text of the report might smuggle in.
        node("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("title", f"{VERDICTS[report.verdict][1]} · {report.checkpoint.name} · edgewise"),
        node("style", style),
    )
    body = node(
        "body",
        node("nav", *(node("a", name, href=f"#{place}") for place, name in _PLACES), aria_label="Sections"),
        node(
            "main",
            opening(report),
            trade_offs(report),
            how_sure(report),
            candidate_cards(report),
            figure_tables(report),
            the_run(report),
        ),
        node(
            "footer",
            node(
                "p",
                "Every figure stands in report.json, which this page carries. ",
                node("button", "Save it", id="save", type="button", hidden=""),
            ),
        ),
        node("div", id="tip", role="status", hidden=""),
        node("script", script_data(msgspec.json.encode(report)), type="application/json", id="report"),
        node("script", script),
    )
    return document(node("html", head, body, lang="en"))


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
