"""What certify, explain and evaluate show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table

from edgewise.contracts import Action, Reason
from edgewise.rendering.words import apart, facts, megabytes, percent, threshold
from edgewise.router.certificate import TARGET_ACCURACY, TARGET_AGREEMENT, TARGET_SELECTIVE, items_needed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgewise.contracts import Certificate, Groups
    from edgewise.jobs.certifying.certify import Certified, Price
    from edgewise.jobs.certifying.tuning import TuningRecord
    from edgewise.jobs.evaluate import Summary
    from edgewise.jobs.explain import Explained
    from edgewise.jobs.targets import CurveRow


_WHY = {
    Reason.CONFIDENT: "its score lies above the threshold",
    Reason.BELOW_THRESHOLD: "its score does not lie above the threshold",
    Reason.UNLISTED_GROUP: "it is of no listed group",
    Reason.OUT_OF_DISTRIBUTION: "it is unlike anything that the model was made for",
    Reason.TOO_COMPLEX: "its text looks so hard that the edge model is not asked",
    Reason.CERTIFICATE_VOID: "no certificate is in force",
    Reason.CERTIFICATE_EXPIRED: "the certificate's stated life is over, or the clock is wrong",
}
_SHOWN = 72
_NOTHING_COMPUTED = (
    "Nothing was computed: the certificate of exactly this job was there. Costs, other bounds and how often edge and "
    "cloud differ are shown where one is issued: --overwrite in place of --cached."
)


def certificate_sentence(certificate: Certificate) -> str:
    """The promise in words a manager understands."""
    n, share = _share(certificate)
    confidence = percent(1 - _delta(certificate))
    if share == 0:
        return (
            f"No threshold keeps the promise of at most {percent(certificate.bound.alpha)} with {confidence} "
            "confidence: every request goes to the cloud."
        )
    until = f" The promise ends at {certificate.expires}." if certificate.expires else ""
    return (
        f"With {confidence} confidence, {_promise(certificate, n)}. About {percent(share)} of requests are answered "
        f"locally.{until}"
    )


def _promise(certificate: Certificate, n: int) -> str:
    alpha, cloud = percent(certificate.bound.alpha), certificate.reference.name
    if certificate.target == TARGET_ACCURACY:
        return f"over all requests like the {n} certifying ones, at most {alpha} of accuracy is lost to {cloud} alone"
    if certificate.target == TARGET_SELECTIVE:
        return f"of the requests like the {n} certifying ones that are answered locally, at most {alpha} are wrong"
    differ = f"are answered locally, as final, and differently from {cloud}"
    if certificate.groups is None:
        return f"at most {alpha} of all requests like the {n} certifying ones {differ}"
    count, by = len(certificate.groups.bounds), certificate.groups.by
    return f"in each of the {count} groups by {by}, at most {alpha} of requests like the {n} certifying ones {differ}"


def _share(certificate: Certificate) -> tuple[int, float]:
    """The certifying items, and the share of them above their threshold."""
    bounds = [certificate.bound] if certificate.groups is None else list(certificate.groups.bounds.values())
    n = sum(bound.n for bound in bounds)
    return n, sum(bound.local_share * bound.n for bound in bounds) / n if n else 0.0


def _delta(certificate: Certificate) -> float:
    """The probability that the promise fails, over all groups."""
    return certificate.bound.delta * (1 if certificate.groups is None else len(certificate.groups.bounds))


def certified_view(found: Certified) -> RenderableType:
    """A certificate, where it lies, and what led to it."""
    certificate, bound = found.certificate, found.certificate.bound
    table = facts()
    table.add_row("certificate", str(found.path) + (" (unchanged)" if found.reused else ""))
    if certificate.groups is None:
        low, high = bound.local_share_interval
        table.add_row("answer locally iff", f"{certificate.signal} > {threshold(bound.threshold)}")
        table.add_row(
            "answered locally",
            f"{percent(bound.local_share)} of the certifying items; of all such requests {percent(low)} to "
            f"{percent(high)}, with 95 % confidence",
        )
        table.add_row(*_counted(found))
    if found.disagreements is not None:
        n, _ = _share(certificate)
        table.add_row("differ from the cloud", f"{found.disagreements} of {n} items, locally answered or not")
    if certificate.out_of_distribution_share:
        table.add_row("escalated unscored", f"{percent(certificate.out_of_distribution_share)} of the certifying items")
    table.add_row("reference", f"{certificate.reference.name} {certificate.reference.version}")
    if certificate.judge:
        table.add_row("texts agree by", certificate.judge.partition("@")[0])
    if certificate.expires:
        table.add_row("valid until", certificate.expires)
    if found.price is not None:
        table.add_row("cost of a request", _price_words(found.price))
    if found.plot is not None:
        table.add_row("operating curve", str(found.plot))
    parts: list[RenderableType] = [certificate_sentence(certificate), table]
    if certificate.groups is not None:
        parts += ["", _groups_table(certificate.groups), _price_of_groups(certificate)]
    if found.tuning is not None:
        parts += ["", _signals_table(found.tuning)]
    if found.curve:
        parts += ["", _curve_table(found.curve)]
    if found.reused:
        parts += ["", _NOTHING_COMPUTED]
    return Group(*parts)


def _counted(found: Certified) -> tuple[str, str]:
    """What the local answers to the certifying items may cost, or cost."""
    bound, local = found.certificate.bound, found.local
    if found.certificate.target == TARGET_AGREEMENT:
        return "allowed among the local ones", f"{bound.k} of {bound.n} items"
    if found.certificate.target == TARGET_SELECTIVE:
        return "wrong among the local ones", f"{bound.k} of {round(bound.local_share * bound.n)} items"
    if local is None:
        return "lost by local answers", f"{bound.k} of {bound.n} items, those won not taken off"
    net = local.lost - local.won
    balance = f"net {abs(net)} {'lost' if net >= 0 else 'won'} of {bound.n} items, {percent(abs(net) / bound.n)}"
    return "lost and won by local answers", f"{local.lost} lost, {local.won} won: {balance}"


def _groups_table(groups: Groups) -> Table:
    table = _listing(f"group by {groups.by}", "items", "threshold", "answered locally", "may differ")
    for name, bound in groups.bounds.items():
        few = bound.n < items_needed(bound.alpha, bound.delta)
        above = "too few items" if few else threshold(bound.threshold)
        table.add_row(name, str(bound.n), above, percent(bound.local_share), str(bound.k))
    return table


def _price_of_groups(certificate: Certificate) -> str:
    """What the groups cost in items."""
    alpha, delta = certificate.bound.alpha, certificate.bound.delta
    return (
        f"The price of groups: each needs {items_needed(alpha, delta)} items of its own, where "
        f"{items_needed(alpha, _delta(certificate))} would do for all requests together."
    )


def _price_words(price: Price) -> str:
    alone = f"the cloud alone {price.cloud_only.total:.4g} with {price.cloud_only.latency_ms:.4g} ms"
    if price.cheapest.threshold == math.inf and price.cheapest.cost == price.cloud_only:
        return f"cheapest is {alone}, without the edge"
    return f"{price.cheapest.cost.total:.4g} with {price.cheapest.cost.latency_ms:.4g} ms of waiting; {alone}"


def _signals_table(tuning: TuningRecord) -> Table:
    table = _listing(
        "signal, on the tuning part", "AURC", "better by, in se", "AUROC", "local at alpha, as counted", ""
    )
    for row in tuning.signals:
        auroc = "" if row.auroc is None else f"{row.auroc:.4f}"
        taken = "taken" if row.signal == tuning.signal else ""
        table.add_row(row.signal, f"{row.aurc:.5f}", f"{row.better_by:+.1f}", auroc, percent(row.local_share), taken)
    return table


def _curve_table(curve: Sequence[CurveRow]) -> Table:
    labelled = any(row.accuracy is not None for row in curve)
    table = _listing("each row alone: at most", "threshold", "answered locally", *(["accuracy"] if labelled else []))
    for row in curve:
        if row.bound is None:
            cells = ["", f"{row.needed} items needed", ""]
        else:
            accuracy = "" if row.accuracy is None else percent(row.accuracy)
            cells = [threshold(row.bound.threshold), percent(row.bound.local_share), accuracy]
        table.add_row(percent(row.alpha), *cells[: 3 if labelled else 2])
    return table


def explained_view(rows: Sequence[Explained]) -> RenderableType:
    """What the router would decide on each item, and why."""
    parts: list[RenderableType] = []
    for row in rows:
        parts += [*([""] if parts else []), *_explained(row)]
    notes = dict.fromkeys(note for row in rows for note in row.notes)
    return Group(*parts, "", *notes) if notes else Group(*parts)


def _explained(row: Explained) -> list[RenderableType]:
    where = "answered here" if row.action == Action.LOCAL else "escalated"
    score = _score(row)
    tenth = "" if row.tenth is None else f"; in tenth {row.tenth} of 10 of the certifying scores"
    table = facts()
    table.add_row("edge answer", row.output)
    table.add_row("decision", f"{where}: {_why(row)}")
    table.add_row(f"score ({row.signal})", f"{score}{tenth}")
    if row.grouped_by is not None:
        listed = "" if row.group in row.groups else f"; listed are {', '.join(row.groups)}"
        table.add_row(f"group by {row.grouped_by}", f"{row.group or 'none'}{listed}")
    if row.distance_cut is not None:
        table.add_row("distance", f"{_figure(row.distance)}, out of distribution beyond {_figure(row.distance_cut)}")
    if row.complexity_cut is not None:
        cut = (
            "which escalates nothing here"
            if row.complexity_cut == "inf"
            else f"escalated at once above {_figure(row.complexity_cut)}"
        )
        table.add_row("complexity", f"{_figure(row.complexity)}, {cut}")
    table.add_row("other signals", ", ".join(f"{name} {_figure(value)}" for name, value in row.signals.items()))
    parts: list[RenderableType] = [_shortened(row.input), table]
    if any(item.text is not None for item in row.nearest):
        near = _listing(f"nearest by {row.nearest_by}", "distance", "label", "edge answer")
        for item in row.nearest:
            text = f"item {item.position}" if item.text is None else _shortened(item.text)
            near.add_row(text, f"{item.distance:.4f}", item.label or "", item.edge or "")
        parts.append(near)
    return parts


def _why(row: Explained) -> str:
    """The reason in words."""
    if row.reason is Reason.UNLISTED_GROUP and row.group is None:
        return f"{_WHY[row.reason]}; name one with --attribute {row.grouped_by}={row.groups[0]}"
    return _WHY.get(row.reason, row.reason.value)


def _score(row: Explained) -> str:
    """The score, and the threshold where there is one."""
    if row.threshold is None:
        return _figure(row.score)
    above = float(row.threshold)
    if row.score is None:
        return f"none, threshold {threshold(above)}"
    return ", threshold ".join(apart(row.score, above))


def _listing(*columns: str) -> Table:
    """A table with a heading a column; figures stand to the right."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _figure(value: float | str | None) -> str:
    return "none" if value is None else value if isinstance(value, str) else f"{value:.6g}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def summary_view(summary: Summary) -> RenderableType:
    """An evaluation as a table."""
    table = facts()
    lost, n = summary.local_disagreements, summary.n_test
    rows = [
        ("accuracy, cloud alone", percent(summary.cloud_accuracy)),
        ("accuracy, edge alone", percent(summary.edge_accuracy)),
        ("accuracy, routed", percent(summary.routed_accuracy)),
        ("answered locally", percent(summary.local_share)),
        (
            "local and different from the cloud",
            f"{percent(summary.local_disagreement)} of all requests: {lost} of {n}",
        ),
        (f"promised: {_RISKS[summary.target]}", _promised(summary)),
        ("different, given local", percent(summary.disagreement_given_local)),
        ("answered provisionally", percent(summary.provisional_share)),
        ("cloud calls saved", f"{summary.cloud_calls_saved} of {n}"),
        ("latency local, ms", _latency(summary.latency_ms["local"])),
        ("latency escalated, ms", _latency(summary.latency_ms["escalated"])),
        ("bundle", megabytes(summary.bundle_bytes)),
        ("fp32 checkpoint", megabytes(summary.checkpoint_bytes)),
        ("certified on, tested on", f"{summary.n_certify}, {n} items"),
        ("wall time", f"{summary.wall_s:.1f} s"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


_RISKS = {
    TARGET_AGREEMENT: "local and different",
    TARGET_ACCURACY: "accuracy lost by local answers",
    TARGET_SELECTIVE: "wrong, given local",
}
"""The risk that each target bounds, in words."""


def _promised(summary: Summary) -> str:
    bound = f"at most {percent(summary.alpha)} expected, with {percent(1 - summary.delta)} confidence"
    if summary.unsurprising_up_to is None:
        return f"{bound}; seen: {percent(summary.risk)}"
    return f"{bound}; up to {summary.unsurprising_up_to} of {summary.n_test} would be no surprise"


def _latency(percentiles: Any) -> str:
    known = [f"{name} {value:.2f}" for name, value in percentiles.items() if value is not None]
    return ", ".join(known) or "none"
