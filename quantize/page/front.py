"""Which candidates stand out: the front of two figures, and how much of the allowed drop a candidate uses. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from edgewise.quantize.report import Candidate, Report

Loss: TypeAlias = Literal["none", "little", "allowed", "over"]

LOSSES: tuple[tuple[Loss, str], ...] = (
    ("none", "loses nothing"),
    ("little", "up to half of the allowed drop"),
    ("allowed", "up to the allowed drop"),
    ("over", "more than allowed"),
)
"""Classes of drop, the least first, in the words of the legend."""


def loss_of(candidate: Candidate, max_drop: float) -> Loss:
    """The class of a measured candidate's drop on the tuning part."""
    drop = candidate.quality.drop if candidate.quality is not None else 0.0
    if drop <= 0:
        return "none"
    if drop > max_drop:
        return "over"
    return "little" if drop <= max_drop / 2 else "allowed"


def front_of(pairs: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The pairs that no other pair is at least as good as in both and better in one; lower is better in both.

    Ascending in the first, hence descending in the second; equal pairs once.
    """
    found: list[tuple[float, float]] = []
    for first, second in sorted(set(pairs)):
        if not found or second < found[-1][1]:
            found.append((first, second))
    return tuple(found)


def with_figures(report: Report) -> list[tuple[str, Candidate]]:
    """The candidates that have figures, the baseline first, each with what ties it together on the page.

    Those that a search explored have some as well, measured less closely than the others.
    """
    keyed = ((f"c{index}", candidate) for index, candidate in enumerate(report.candidates))
    return [(key, found) for key, found in keyed if found.performance is not None or found.quality is not None]
