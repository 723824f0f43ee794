"""The plots of size, speed and accuracy, their legend, and what is not in them.

Owns which figures are set against each other, and what shape, colour and fill a candidate has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from edgewise.quantize.page import figures
from edgewise.quantize.page.figures import Figure
from edgewise.quantize.page.front import LOSSES, loss_of, with_figures
from edgewise.quantize.page.nodes import Node, extend, node
from edgewise.quantize.page.plot import Axis, Limit, Point, Shape, sample, scatter
from edgewise.quantize.report import Candidate, Report

_FLOOR = 4.0
"""Accuracies this many times the allowed drop below the baseline are drawn at the bottom edge."""

_UNITS: Mapping[Callable[[float], str], tuple[str, float]] = {
    figures.megabytes: ("MB", 1e-6),
    figures.milliseconds: ("ms", 1.0),
    figures.percent: ("%", 100.0),
}
"""Of a way to write a figure: the unit of an axis, and the factor to it."""


def trade_offs(report: Report) -> Node:
    """The section with the plots."""
    task = report.checkpoint.task
    speed, accuracy = figures.speed(task), figures.accuracy(task)
    pairs = ((figures.SIZE, speed), (figures.SIZE, accuracy), (speed, accuracy), (figures.SIZE, figures.NLL))
    plots = [plot for across, up in pairs if (plot := _plot(report, across, up)) is not None]
    return node(
        "section",
        node("h2", "Trade-offs"),
        node(
            "p",
            "Each mark is a candidate, measured on the tuning part. Point at one, or tap it, for its figures; the same "
            "candidate lights up everywhere. The line joins the best that two figures allow together, among those that "
            "lose at most the allowed drop.",
            class_="hint",
        ),
        _legend(report),
        node("div", *plots, class_=f"plots {'even' if len(plots) % 2 == 0 else ''}".strip()),
        _left_out(report),
        id="trade-offs",
    )


def _plot(report: Report, across: Figure, up: Figure) -> Node | None:
    accuracy = figures.accuracy(report.checkpoint.task)
    is_accuracy = up.name == accuracy.name
    points = list(_points(report, across, up))
    if not points:
        return None
    title = f"{across.name} × {up.name}"
    baseline = accuracy.read(report.candidates[0]) if is_accuracy else None
    limit = floor = None
    if baseline is not None:
        limit = Limit(baseline - report.max_drop, f"allowed drop: {figures.points(report.max_drop)}")
        floor = baseline - _FLOOR * max(report.max_drop, 0.005)
    below = floor is not None and any(point.y < floor for point in points)
    # By size and speed alone, it would run through candidates that nobody wants.
    line = [point for point in points if point.loss != "over" and not point.small]
    picture = scatter(title, points, _axis(across), _axis(up), line=line, limit=limit, floor=floor)
    caption = node("figcaption", node("b", title))
    if below:
        extend(caption, [" Marks at the bottom edge lie below it."])
    return node("figure", caption, picture)


def _points(report: Report, across: Figure, up: Figure) -> Iterator[Point]:
    knows_front = any(candidate.on_front for candidate in report.candidates)
    for key, candidate in with_figures(report):
        x, y = across.read(candidate), up.read(candidate)
        if x is None or y is None:
            continue
        loss = loss_of(candidate, report.max_drop)
        is_winner, is_baseline = candidate.id == report.winner, candidate is report.candidates[0]
        yield Point(
            key=key,
            label=candidate.id,
            told=_told(candidate, report),
            x=x,
            y=y,
            shape=_shape(is_winner, is_baseline, over=loss == "over"),
            loss=loss,
            filled=candidate.on_front or not knows_front,
            small=candidate.state != "measured",
            rank=0 if is_winner else 1 if is_baseline else 2 if candidate.on_front else 3,
        )


def _shape(is_winner: bool, is_baseline: bool, *, over: bool) -> Shape:
    if is_winner:
        return "star"
    if is_baseline:
        return "diamond"
    return "triangle" if over else "circle"


def _told(candidate: Candidate, report: Report) -> str:
    task = report.checkpoint.task
    shown = [figure for figure in (*figures.cost_figures(task), *figures.quality_figures(task)) if figure.key]
    told = [f"{figure.name} {figure.text(value)}" for figure in shown if (value := figure.read(candidate)) is not None]
    return f"{candidate.id}: {', '.join(told)}"


def _axis(figure: Figure) -> Axis:
    unit, factor = _UNITS.get(figure.text, ("", 1.0))
    log = figure.text in (figures.megabytes, figures.milliseconds, figures.rate)
    return Axis(
        name=figure.name,
        unit=unit,
        factor=factor,
        better=figure.better,
        log=log,
        least_span=1.5 if log else 0.01 * factor,
        most=figure.most * factor,
    )


def _legend(report: Report) -> Node:
    baseline = report.candidates[0].id
    shapes: tuple[tuple[Shape, str], ...] = (
        ("star", "the winner"),
        ("diamond", f"the baseline, {baseline}"),
    )
    shown = [
        *(node("li", sample(shape, "plain"), text) for shape, text in shapes),
        *(node("li", sample("triangle" if loss == "over" else "circle", loss), text) for loss, text in LOSSES),
    ]
    if any(candidate.state != "measured" for _, candidate in with_figures(report)):
        shown.append(
            node("li", sample("circle", "plain", "small"), "small: explored by the search, measured less closely")
        )
    if any(candidate.on_front for candidate in report.candidates):
        shown.append(
            node("li", sample("circle", "plain", "hollow"), "hollow: another candidate is at least as good in all")
        )
    return node("ul", *shown, class_="legend")


def _left_out(report: Report) -> Node | None:
    shown = {key for key, candidate in with_figures(report) if candidate.performance and candidate.quality}
    missing = [candidate for index, candidate in enumerate(report.candidates) if f"c{index}" not in shown]
    if not missing:
        return None
    rows = [
        node("li", node("b", candidate.id), node("span", candidate.state, class_="chip"), candidate.problem)
        for candidate in missing
    ]
    return node("div", node("h3", "Not in the plots"), node("ul", *rows, class_="left-out"))
