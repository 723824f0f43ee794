"""Every figure of every candidate, in tables and one by one.

Owns how figures are set out. A column in which no candidate has a figure is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgewise.quantize.page import figures
from edgewise.quantize.page.figures import Figure
from edgewise.quantize.page.front import with_figures
from edgewise.quantize.page.nodes import Child, Node, extend, node, number
from edgewise.quantize.report import Candidate, Report, Setting
from edgewise.quantize.statistics import Quality


def figure_tables(report: Report) -> Node:
    """The section with a table of costs, one of answers, and one of further settings."""
    task = report.checkpoint.task
    what = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    return node(
        "section",
        node("h2", "Every figure"),
        node("p", "Press a column's name to sort by it. The best figure of a column is bold.", class_="hint"),
        _table(report, f"What it costs, on {what}, batch of one", figures.cost_figures(task)),
        _table(report, "How it answers, on the tuning part", figures.quality_figures(task)),
        _settings_table(report),
        id="figures",
    )


def figure_list(report: Report, candidate: Candidate) -> Node | None:
    """All figures of one candidate; None where it has none."""
    task = report.checkpoint.task
    pairs = []
    for figure in (*figures.cost_figures(task), *figures.quality_figures(task)):
        value = figure.read(candidate)
        if value is not None:
            look = "key" if figure.key else None
            name = node("dt", figure.name, title=figure.meaning)
            pairs.append(node("div", name, node("dd", number(value, figure.text(value))), class_=look))
    return node("dl", *pairs, class_="figures") if pairs else None


def parts_table(report: Report) -> Node:
    """The winner beside the baseline on each part of the data."""
    parts: list[tuple[str, Quality, float | None]] = []
    winner = report.candidate(report.winner)
    if winner.quality is not None:
        parts.append(("tuning: chosen on it", winner.quality, winner.drop_bound))
    if report.gate is not None:
        parts.append(("gate: no choice has seen it", report.gate.quality, report.gate.bound))
    if report.test is not None:
        parts.append(("test: touched once, after the gate", report.test, None))
    columns = _part_columns(report.checkpoint.task)
    used = [column for column in columns if any(column[1](q, bound) is not None for _, q, bound in parts)]
    head = node("tr", node("th", "part", scope="col"), *(node("th", name, scope="col") for name, _, _ in used))
    rows = []
    for name, answers, bound in parts:
        cells = [_cell(read(answers, bound), text) for _, read, text in used]
        rows.append(node("tr", node("th", name, scope="row"), *cells))
    return scrolling(node("table", node("thead", head), node("tbody", *rows)))


def setting_name(setting: Setting) -> str:
    """A setting in words."""
    length = "own lengths" if setting.tokens is None else f"{setting.tokens} tokens"
    return f"{length}, {setting.threads} thread{'s' if setting.threads > 1 else ''}"


PartColumn = tuple[str, Callable[[Quality, float | None], float | None], Callable[[float], str]]


def _part_columns(task: str) -> tuple[PartColumn, ...]:
    worth = figures.accuracy(task)
    return (
        ("items", lambda q, _: q.n, figures.count),
        (worth.name, lambda q, _: q.accuracy, worth.text),
        ("baseline", lambda q, _: q.baseline_accuracy, worth.text),
        ("drop", lambda q, _: q.drop, figures.points),
        ("drop, at most", lambda _, bound: bound, figures.points),
        ("lost", lambda q, _: q.lost, figures.count),
        ("won", lambda q, _: q.won, figures.count),
        ("flips", lambda q, _: q.flips, figures.percent),
        ("least cosine", lambda q, _: q.cosine_min, figures.ratio),
        ("NLL", lambda q, _: q.nll, figures.ratio),
        ("baseline NLL", lambda q, _: q.baseline_nll, figures.ratio),
        ("KLD", lambda q, _: q.kld, figures.ratio),
        ("calibration error", lambda q, _: q.calibration_error, figures.ratio),
        ("AUROC", lambda q, _: q.auroc, figures.ratio),
        ("unknown tokens", lambda q, _: q.unknown_share, figures.percent),
    )


def _table(report: Report, title: str, shown: Sequence[Figure]) -> Node:
    keyed = with_figures(report)
    candidates = [candidate for _, candidate in keyed]
    used = [figure for figure in shown if any(figure.read(candidate) is not None for candidate in candidates)]
    best = [figure.best(candidates) for figure in used]
    rows = []
    for key, candidate in keyed:
        read = [(figure, figure.read(candidate), top) for figure, top in zip(used, best, strict=True)]
        cells = [_cell(value, figure.text, best=value == top) for figure, value, top in read]
        rows.append(_row(report, key, candidate, cells))
    return sortable(title, [(figure.name, figure.meaning) for figure in used], rows)


def _settings_table(report: Report) -> Node | None:
    found = {setting_name(s): None for _, c in with_figures(report) if c.performance for s in c.performance.settings}
    if not found:
        return None
    rows = []
    for key, candidate in with_figures(report):
        if candidate.performance is not None and candidate.performance.settings:
            by_name = {setting_name(setting): setting.latency for setting in candidate.performance.settings}
            cells = []
            for name in found:
                cells += [
                    _cell(latency.p50_ms if (latency := by_name.get(name)) else None, figures.milliseconds),
                    _cell(latency.p95_ms if latency else None, figures.milliseconds),
                ]
            rows.append(_row(report, key, candidate, cells))
    heads = [(f"{name}: {which}", "") for name in found for which in ("p50", "p95")]
    return sortable("Latency at other lengths and threads", heads, rows)


def _row(report: Report, key: str, candidate: Candidate, cells: Sequence[Node]) -> Node:
    name = node("th", candidate_name(report, candidate, key), scope="row")
    return node("tr", name, *cells, data_c=key, class_="winner" if candidate.id == report.winner else None)


def candidate_name(report: Report, candidate: Candidate, key: str) -> Node:
    """Its name, a link to its details, and what marks it."""
    link = node("a", candidate.id, href=f"#{key}")
    marks: list[Child] = []
    if candidate.id == report.winner:
        marks.append(node("span", "winner", class_="chip winner"))
    if candidate.on_front:
        marks.append(node("span", "front", class_="chip", title="No other candidate is at least as good in all"))
    if candidate.state != "measured":
        look = "chip failed" if candidate.state == "failed" else "chip"
        marks.append(node("span", candidate.state, class_=look))
    return extend(node("span", link, class_="who"), marks)


def _cell(value: float | None, text: Callable[[float], str], *, best: bool = False) -> Node:
    return node("td") if value is None else node("td", number(value, text(value)), class_="best" if best else None)


def sortable(title: str, heads: Sequence[tuple[str, str]], rows: Sequence[Node], *, first: str = "candidate") -> Node:
    """A table with a caption whose rows can be sorted by each column; a column has a name and a meaning."""
    names = [
        node("th", node("button", name, type="button", title=meaning or None), scope="col") for name, meaning in heads
    ]
    head = node("tr", node("th", node("button", first, type="button"), scope="col"), *names)
    table = node("table", node("caption", title), node("thead", head), node("tbody", *rows), class_="sortable")
    return scrolling(table)


def scrolling(table: Node) -> Node:
    """A table that scrolls sideways where it is too wide."""
    return node("div", table, class_="scroll", tabindex="0", role="region", aria_label="table")
