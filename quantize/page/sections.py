"""The rest of the page: the verdict, what to beware of, how sure the drop is, each candidate, and the run itself.

Owns the order and the words of these sections; what they show is read off the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgewise.edge import Device
from edgewise.quantize.page import figures
from edgewise.quantize.page.figures import Figure
from edgewise.quantize.page.nodes import Child, Node, node, number
from edgewise.quantize.page.tables import candidate_name, figure_list, parts_table, setting_name
from edgewise.quantize.page.tracks import drop_tracks, stage_tracks
from edgewise.quantize.report import Candidate, Report
from edgewise.quantize.select import Verdict

VERDICTS: dict[Verdict, tuple[str, str]] = {
    "met": ("✓", "Goal met"),
    "missed": ("✗", "Goal missed"),
    "untested": ("?", "Not tested"),
}
"""A sign and words for each verdict."""


def opening(report: Report) -> Node:
    """The headline with the verdict, why the winner won, what to beware of, and the winner beside the baseline."""
    sign, words = VERDICTS[report.verdict]
    beware = list(concerns(report))
    notes = node("ul", *(node("li", text) for text in beware), class_="concerns") if beware else None
    return node(
        "header",
        node("p", "Quantization of ", node("b", report.checkpoint.name), class_="eyebrow"),
        node("p", node("span", sign, aria_hidden="true"), f" {words}", class_=f"verdict {report.verdict}"),
        node("h1", report.headline),
        node("p", report.why, class_="why"),
        notes,
        _tiles(report),
    )


def concerns(report: Report) -> Iterator[str]:
    """What the reader should know before trusting the headline, the worst first."""
    if report.test is not None and report.test.drop > report.max_drop:
        yield (
            f"On the test part {report.winner} lost {figures.points(report.test.drop)}, more than the "
            f"{figures.points(report.max_drop)} allowed."
        )
    if report.gate_overlap:
        yield (
            f"{report.gate_overlap} items of the gate part occur in the tuning part as well; the bound holds for items "
            "drawn apart."
        )
    if report.test_overlap:
        yield f"{report.test_overlap} items of the test part occur in the tuning or the gate part as well."
    if report.candidate(report.winner).skipped:
        yield f"{report.winner} leaves weights as they were that its recipe promised to quantize; they are named below."
    yield from _worse_than_baseline(report)
    missing = [candidate.id for candidate in report.candidates if candidate.state in ("failed", "inapplicable")]
    if missing:
        yield f"Not measured: {', '.join(missing)}."
    if report.built_on is not None and report.built_on.isa != report.device.isa:
        yield f"Built on {report.built_on.isa}; latency and memory were measured on {report.device.isa}."


def how_sure(report: Report) -> Node:
    """The drops with their bounds, and the winner on each part of the data."""
    tracks = drop_tracks(report)
    confidence: list[Child] = []
    if report.gate is not None:
        share = report.gate.confidence
        confidence = [" The gate's bound holds with ", number(share, f"{100 * share:g} %"), " confidence."]
    return node(
        "section",
        node("h2", "What it loses, and how sure that is"),
        node("p", report.gate.sentence, class_="sentence") if report.gate is not None else None,
        node(
            "p",
            "A dot is the measured drop in points of accuracy; the line beside it reaches to the upper bound. The "
            "dashed line is the allowed drop, ",
            number(report.max_drop, figures.points(report.max_drop)),
            ". Bounds from the tuning part are no promise, since the choice has seen it.",
            *confidence,
            class_="hint",
        )
        if tracks is not None
        else None,
        tracks,
        node("h3", f"The winner, {report.winner}, beside the baseline"),
        parts_table(report),
        id="loss",
    )


def candidate_cards(report: Report) -> Node:
    """Each candidate with its options, what became of its weights, and its figures."""
    cards = [_card(report, candidate, f"c{index}") for index, candidate in enumerate(report.candidates)]
    return node("section", node("h2", "Candidates"), *cards, id="candidates")


def the_run(report: Report) -> Node:
    """Stages, machines, tools, checkpoint, export and data."""
    checkpoint, export = report.checkpoint, report.export
    shown: list[tuple[str, Child]] = [
        ("checkpoint", checkpoint.name),
        ("architecture", checkpoint.architecture),
        ("task", checkpoint.task),
        ("labels", number(checkpoint.labels, str(checkpoint.labels)) if checkpoint.labels else None),
        ("weights", number(checkpoint.size_bytes, figures.megabytes(checkpoint.size_bytes))),
        ("longest text", _tokens(checkpoint.max_length)),
        ("digest", _code(checkpoint.digest)),
    ]
    exported: list[tuple[str, Child]] = [
        ("exporter", export.exporter),
        ("items compared with the checkpoint", number(export.samples, str(export.samples))),
        ("largest difference", number(export.largest_difference, f"{export.largest_difference:.2g}")),
        ("allowed difference", number(export.allowed_difference, f"{export.allowed_difference:.2g}")),
    ]
    data: list[tuple[str, Child]] = [
        ("tuning part", _code(report.data_digest)),
        ("gate part", _code(report.gate_digest)),
        ("test part", _code(report.test_digest)),
    ]
    tools: list[tuple[str, Child]] = [(name, version) for name, version in report.tools.items()]
    machines = [_panel("Measured on" if report.built_on else "Machine", _machine(report.device))]
    if report.built_on is not None:
        machines.append(_panel("Built on", _machine(report.built_on)))
    peak = report.peak_rss_bytes
    return node(
        "section",
        node("h2", "The run"),
        node("h3", "Time of each stage"),
        stage_tracks(report.stages),
        node("p", "Peak memory of the run's processes: ", number(peak, figures.megabytes(peak))) if peak else None,
        node("div", _panel("Checkpoint", shown), _panel("Export", exported), *machines, class_="panels"),
        node("div", _panel("Tools", tools), _panel("Data digests", data), class_="panels"),
        id="run",
    )


def _worse_than_baseline(report: Report) -> Iterator[str]:
    baseline = report.candidates[0]
    shown = [candidate for candidate in report.candidates[1:] if candidate.state == "measured"]
    for figure, words in ((figures.SIZE, "No smaller than"), (figures.speed(report.checkpoint.task), "Slower than")):
        level = figure.read(baseline)
        if level is None:
            continue
        worse = [c.id for c in shown if (value := figure.read(c)) is not None and _loses(figure, value, level)]
        if worse:
            yield f"{words} {baseline.id}: {', '.join(worse)}."


def _loses(figure: Figure, value: float, level: float) -> bool:
    if figure is figures.SIZE:
        return value >= level
    return value > level if figure.better == "lower" else value < level


def _tiles(report: Report) -> Node:
    task = report.checkpoint.task
    winner, baseline = report.candidate(report.winner), report.candidates[0]
    tiles = [_tile(figure, winner, baseline) for figure in (figures.SIZE, figures.speed(task), figures.accuracy(task))]
    sure = _sure_tile(report)
    return node("div", *tiles, sure, class_="tiles")


def _tile(figure: Figure, winner: Candidate, baseline: Candidate) -> Node | None:
    value, before = figure.read(winner), figure.read(baseline)
    if value is None or before is None:
        return None
    largest = max(value, before, 1e-12)
    bars = [
        node("i", class_=look, style=f"width:{100 * max(part, 0) / largest:.2f}%")
        for look, part in (("after", value), ("before", before))
    ]
    return node(
        "div",
        node("span", figure.name, class_="what"),
        node("strong", number(value, figure.text(value))),
        node("span", *bars, class_="bars", aria_hidden="true"),
        node("small", f"{baseline.id}: ", number(before, figure.text(before))),
        class_="tile",
    )


def _sure_tile(report: Report) -> Node | None:
    winner = report.candidate(report.winner)
    if report.gate is None and winner.quality is None:
        return None
    if report.gate is not None:
        shown, what, note = report.gate.bound, "drop, at most", "gate, measured: "
        seen = report.gate.quality.drop
    else:
        drop = winner.quality.drop if winner.quality is not None else 0.0
        shown, what, note, seen = drop, "drop, tuning part only", "allowed: ", report.max_drop
    extra = report.test.drop if report.test is not None else None
    return node(
        "div",
        node("span", what, class_="what"),
        node("strong", number(shown, figures.points(shown))),
        node("small", note, number(seen, figures.points(seen))),
        node("small", "test, measured: ", number(extra, figures.points(extra))) if extra is not None else None,
        class_=f"tile {report.verdict}",
    )


def _card(report: Report, candidate: Candidate, key: str) -> Node:
    summary = node("summary", candidate_name(report, candidate, key))
    parts: list[Child] = [
        node("p", candidate.problem, class_="problem") if candidate.problem else None,
        node("p", "Recipe ", node("b", candidate.recipe)),
        node("p", "Asked for as ", node("code", candidate.spelling)) if candidate.spelling else None,
        _panel("Options", [(name, _option(value)) for name, value in candidate.options.items()]),
        _listed("What became of the weights", candidate.facts),
        _listed("Promised, and not quantized", candidate.skipped),
        figure_list(report, candidate),
        _settings(candidate),
        node("p", "Bundle ", _code(candidate.model_digest), class_="digest") if candidate.model_digest else None,
    ]
    shown = candidate.id == report.winner
    return node("details", summary, *parts, id=key, data_c=key, open="" if shown else None)


def _settings(candidate: Candidate) -> Node | None:
    settings = candidate.performance.settings if candidate.performance is not None else ()
    rows: list[tuple[str, Child]] = [
        (
            setting_name(setting),
            node(
                "span",
                number(setting.latency.p50_ms, f"p50 {figures.milliseconds(setting.latency.p50_ms)}"),
                ", ",
                number(setting.latency.p95_ms, f"p95 {figures.milliseconds(setting.latency.p95_ms)}"),
            ),
        )
        for setting in settings
    ]
    return _panel("Other lengths and threads", rows)


def _machine(device: Device) -> list[tuple[str, Child]]:
    memory = device.memory_bytes
    return [
        ("processor class", device.isa),
        ("architecture", device.machine),
        ("cores", number(device.cores, str(device.cores))),
        ("memory", number(memory, f"{memory / 1e9:.1f} GB") if memory else None),
        ("onnxruntime", device.onnxruntime),
        ("Python", device.python),
    ]


def _panel(title: str, rows: Sequence[tuple[str, Child]]) -> Node | None:
    """A titled list of names and values; None where there are none."""
    pairs = [node("div", node("dt", name), node("dd", value)) for name, value in rows if value is not None]
    return node("div", node("h4", title), node("dl", *pairs), class_="panel") if pairs else None


def _listed(title: str, texts: Sequence[str]) -> Node | None:
    if not texts:
        return None
    return node("div", node("h4", title), node("ul", *(node("li", text) for text in texts)), class_="panel")


def _option(value: str | float) -> Child:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else number(value, str(value))


def _tokens(length: int | None) -> Node | None:
    return None if length is None else number(length, f"{length} tokens")


def _code(digest: str | None) -> Node | None:
    return node("code", digest) if digest else None
