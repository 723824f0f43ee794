"""Rows with a picture each: the accuracy drops with their bounds, and the time of the stages.

Owns where things stand in a row. Rows are plain HTML, so that their text stays readable on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgewise.quantize.page import figures
from edgewise.quantize.page.front import loss_of
from edgewise.quantize.page.nodes import Node, node, number
from edgewise.quantize.page.scale import Scale, scale_around
from edgewise.quantize.report import Candidate, Report, Stage

_MOST_ROWS = 20
_FARTHEST = 6.0
"""Drops beyond this many times the allowed one are drawn at the edge, lest they press all others together."""


@dataclass(frozen=True)
class _Row:
    name: str
    note: str
    drop: float
    bound: float | None
    look: str
    key: str | None = None


def drop_tracks(report: Report) -> Node | None:
    """Each drop as a dot, its bound as a line to the right of it; None where nothing but the baseline is measured."""
    rows = [*_certain_rows(report), *_candidate_rows(report)]
    if not rows:
        return None
    farthest = max(_FARTHEST * report.max_drop, 0.02)
    ends = [0.0, report.max_drop, *(v for row in rows for v in (row.drop, row.bound) if v is not None)]
    shown = [min(max(value, -farthest), farthest) for value in ends]
    scale = scale_around(shown, 0, 100, log=False, least_span=0.01, margin=0.06)
    return node("div", *(_drop_row(row, scale, report) for row in rows), _axis(scale), class_="tracks")


def stage_tracks(stages: Sequence[Stage]) -> Node:
    """Each stage's time as a bar."""
    longest = max((stage.seconds for stage in stages), default=0.0) or 1.0
    return node("div", *(_stage_row(stage, longest) for stage in stages), class_="tracks stages")


def _certain_rows(report: Report) -> list[_Row]:
    rows = []
    if report.gate is not None:
        rows.append(_Row(report.winner, "gate", report.gate.quality.drop, report.gate.bound, "sure"))
    if report.test is not None:
        rows.append(_Row(report.winner, "test", report.test.drop, None, "sure"))
    return rows


def _candidate_rows(report: Report) -> list[_Row]:
    """The candidates on the tuning part; where there are many, those of the front and the winner."""
    numbered = [(i, found) for i, found in enumerate(report.candidates) if found.state == "measured"][1:]
    if len(numbered) > _MOST_ROWS:
        kept = [(index, found) for index, found in numbered if found.on_front or found.id == report.winner]
        numbered = kept[:_MOST_ROWS]
    return [_tuning_row(found, f"c{index}", report.max_drop) for index, found in numbered if found.quality is not None]


def _tuning_row(candidate: Candidate, key: str, max_drop: float) -> _Row:
    drop = candidate.quality.drop if candidate.quality is not None else 0.0
    return _Row(candidate.id, "tuning", drop, candidate.drop_bound, loss_of(candidate, max_drop), key)


def _drop_row(row: _Row, scale: Scale, report: Report) -> Node:
    dot, zero, allowed = (scale.position(value) for value in (row.drop, 0.0, report.max_drop))
    beyond = row.drop > scale.high
    track = node(
        "span",
        node("i", class_="zero", style=f"left:{zero:.2f}%"),
        node("i", class_="allowed", style=f"left:{allowed:.2f}%"),
        _whisker(dot, scale.position(row.bound)) if row.bound is not None else None,
        node(
            "i",
            "▸" if beyond else None,
            class_=f"dot {row.look}{' beyond' if beyond else ''}",
            style=f"left:{dot:.2f}%",
        ),
        class_="track",
        aria_hidden="true",
    )
    told = node("span", number(row.drop, figures.points(row.drop)), class_="told")
    if row.bound is not None:
        told.append(node("span", "at most ", number(row.bound, figures.points(row.bound)), class_="bound"))
    name = node("span", row.name, node("small", row.note), class_="name")
    return node("div", name, track, told, class_=f"row {row.look}", data_c=row.key)


def _whisker(start: float, end: float) -> Node:
    return node("i", class_="whisker", style=f"left:{start:.2f}%;width:{max(end - start, 0):.2f}%")


def _axis(scale: Scale) -> Node:
    """Ticks in points; the scale is in shares."""
    percent = Scale(100 * scale.low, 100 * scale.high, scale.start, scale.end, log=False)
    ticks = [node("i", f"{tick:g}", style=f"left:{percent.position(tick):.2f}%") for tick in percent.ticks()]
    name = node("span", class_="name")
    return node(
        "div",
        name,
        node("span", *ticks, class_="track"),
        node("span", class_="told"),
        class_="row axis",
        aria_hidden="true",
    )


def _stage_row(stage: Stage, longest: float) -> Node:
    return node(
        "div",
        node("span", stage.name, class_="name"),
        node(
            "span",
            node("i", class_="bar", style=f"width:{100 * stage.seconds / longest:.2f}%"),
            class_="track",
            aria_hidden="true",
        ),
        node("span", number(stage.seconds, figures.seconds(stage.seconds)), class_="told"),
        class_="row",
    )
