"""What certify and evaluate show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from edgewise.rendering.words import facts, megabytes, percent

if TYPE_CHECKING:
    from edgewise.contracts import Certificate
    from edgewise.jobs.certify import Certified
    from edgewise.jobs.evaluate import Summary


def certificate_sentence(certificate: Certificate) -> str:
    """The promise in words a manager understands."""
    bound = certificate.bound
    if bound.local_share == 0:
        return (
            f"No threshold keeps the promise of at most {percent(bound.alpha)} with {percent(1 - bound.delta)} "
            "confidence: every request goes to the cloud."
        )
    return (
        f"With {percent(1 - bound.delta)} confidence, at most {percent(bound.alpha)} of all requests like the "
        f"{bound.n} certifying ones are answered locally, as final, and differently from {certificate.reference.name}. "
        f"About {percent(bound.local_share)} of requests are answered locally."
    )


def certified_view(found: Certified) -> RenderableType:
    """A certificate and where it lies."""
    certificate, bound = found.certificate, found.certificate.bound
    table = facts()
    table.add_row("certificate", str(found.path) + (" (unchanged)" if found.reused else ""))
    table.add_row("answer locally iff", f"{certificate.signal} > {bound.threshold:.6g}")
    table.add_row("answered locally", f"{percent(bound.local_share)} of the certifying items")
    if found.disagreements is not None:
        table.add_row("differ from the cloud", f"{found.disagreements} of {bound.n} items, locally answered or not")
    table.add_row("allowed among the local ones", f"{bound.k} of {bound.n} items")
    table.add_row("reference", f"{certificate.reference.name} {certificate.reference.version}")
    return Group(certificate_sentence(certificate), table)


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
        (
            "promised",
            f"at most {percent(summary.alpha)} expected, with {percent(1 - summary.delta)} confidence; "
            f"up to {summary.unsurprising_up_to} of {n} would be no surprise",
        ),
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


def _latency(percentiles: Any) -> str:
    known = [f"{name} {value:.2f}" for name, value in percentiles.items() if value is not None]
    return ", ".join(known) or "none"
