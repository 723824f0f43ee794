"""`report.html`: a report to look at, in one file that opens offline.

Owns what people see of a run. Every figure on it stands in `report.json` too, and is read off the report, never
computed here; the report itself travels inside the page. The plots are SVG that is drawn here, without a plotting
library: a page stays below a few hundred kilobytes, prints, follows the reader's colour scheme, reads aloud, shows
its plots without JavaScript, and a run can be looked at where only the base install is.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edgewise.quantize.joint import JointPlan
from edgewise.quantize.page.nodes import Node, document, node, script_data
from edgewise.quantize.page.planned import OUTCOMES, plan_section
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
_PLAN = ("plan", "The plan")
_FILES = {"report": "report.json", "plan-data": "plan.json"}

__all__ = ["PAGE", "render_page", "render_plan"]


def render_page(report: Report, plan: JointPlan | None = None) -> str:
    """The report as an HTML page that refers to nothing outside itself. The same report gives the same page.

    Args:
        report: Of any kind of model; what it does not hold is left out.
        plan: The joint plan that was made of the run, if there is one.
    """
    keys = {candidate.id: f"c{index}" for index, candidate in enumerate(report.candidates)}
    parts = [
        opening(report),
        *([plan_section(plan, keys)] if plan is not None else []),
        trade_offs(report),
        how_sure(report),
        candidate_cards(report),
        figure_tables(report),
        the_run(report),
    ]
    places = (_PLAN, *_PLACES) if plan is not None else _PLACES
    carried: dict[str, msgspec.Struct] = {"report": report, **({"plan-data": plan} if plan is not None else {})}
    title = f"{VERDICTS[report.verdict][1]} · {report.checkpoint.name}"
    return _page(title, places, parts, carried)


def render_plan(plan: JointPlan) -> str:
    """A plan alone as such a page, for a model of which there is no report."""
    names = dict.fromkeys(option.recipe for option in plan.options)
    keys = {name: f"o{index}" for index, name in enumerate(names)}
    header = node("header", node("p", "Plan for ", node("b", plan.model), class_="eyebrow"))
    title = f"{OUTCOMES[plan.outcome][1]} · {plan.model}"
    return _page(title, (_PLAN,), [header, plan_section(plan, keys)], {"plan-data": plan})


def _page(
    title: str, places: Sequence[tuple[str, str]], parts: Sequence[Node], carried: Mapping[str, msgspec.Struct]
) -> str:
    """The frame of a page.

    Args:
        title: What the browser's tab says.
        places: Sections by id, with their names.
        parts: What the page shows.
        carried: The values whose figures it shows, by the id of the element that holds their JSON.
    """
    style, script = _asset("page.css"), _asset("page.js")
    head = node(
        "head",
        node("meta", charset="utf-8"),
        # Only this very script may run, whatever else a text of the report might smuggle in.
        node("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("title", f"{title} · edgewise"),
        node("style", style),
    )
    body = node(
        "body",
        node("nav", *(node("a", name, href=f"#{place}") for place, name in places), aria_label="Sections"),
        node("main", *parts),
        node("footer", *(_saved(of) for of in carried)),
        node("div", id="tip", role="status", hidden=""),
        *(
            node("script", script_data(msgspec.json.encode(value)), type="application/json", id=of)
            for of, value in carried.items()
        ),
        node("script", script),
    )
    return document(node("html", head, body, lang="en"))


def _saved(of: str) -> Node:
    file = _FILES[of]
    button = node("button", "Save it", class_="save", type="button", data_of=of, data_file=file, hidden="")
    what = "Every figure" if of == "report" else "Every figure of the plan"
    return node("p", f"{what} stands in {file}, which this page carries. ", button)


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
