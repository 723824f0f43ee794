"""What each target counts as lost, the bound that it takes, and what other bounds on the risk would give.

Owns the way from answers to the vectors that `router.certificate` takes. The mathematics is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import Bound, FloatArray, Output, Prediction
from edgewise.errors import TooFewItemsError
from edgewise.jobs.parts import Answered
from edgewise.router.certificate import (
    TARGET_ACCURACY,
    TARGET_AGREEMENT,
    TARGET_SELECTIVE,
    certify,
    certify_accuracy,
    certify_selective,
    threshold_grid,
)

LABELLED = (TARGET_ACCURACY, TARGET_SELECTIVE)
"""Targets that need labels, and a grid of thresholds from the tuning part."""

_OTHER_ALPHAS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class CurveRow:
    """What would be certified at one bound on the risk, each row a statement of its own.

    Attributes:
        alpha: The bound on the risk.
        bound: What these items certify there; None where they are too few.
        needed: Items needed where they are too few, else None.
        accuracy: Of edge and cloud together at that threshold; None without labels.
    """

    alpha: float
    bound: Bound | None
    needed: int | None
    accuracy: float | None


def losses(target: str, answered: Answered) -> NDArray[np.float64]:
    """What answering each item locally would lose, shape (n,): 0 or 1, and of accuracy also -1 where it gains."""
    if target == TARGET_AGREEMENT:
        return disagreements(answered).astype(np.float64)
    edge, cloud = edge_right(answered), cloud_right(answered)
    if target == TARGET_SELECTIVE:
        return (~edge).astype(np.float64)
    return cloud.astype(np.float64) - edge.astype(np.float64)


def disagreements(answered: Answered) -> NDArray[np.bool_]:
    """Where edge and cloud differ, shape (n,)."""
    return np.array([not answered.agree(edge.output, cloud) for edge, cloud in _pairs(answered)])


def edge_right(answered: Answered) -> NDArray[np.bool_]:
    """Where the edge gives the label, shape (n,)."""
    pairs = zip(answered.edge, answered.part.labels, strict=True)
    return np.array([answered.agree(edge.output, label) for edge, label in pairs])


def cloud_right(answered: Answered) -> NDArray[np.bool_]:
    """Where the cloud gives the label, shape (n,)."""
    pairs = zip(answered.cloud, answered.part.labels, strict=True)
    return np.array([answered.agree(cloud, label) for cloud, label in pairs])


def _pairs(answered: Answered) -> Iterator[tuple[Prediction, Output]]:
    return zip(answered.edge, answered.cloud, strict=True)


Bounder = Callable[[float], Bound]
"""From alpha to what the certifying items prove at it; raises `TooFewItemsError`."""


def bounder(
    target: str, scores: FloatArray, answered: Answered, *, delta: float, tuned: tuple[FloatArray, FloatArray] | None
) -> Bounder:
    """The certifying function of a target, for one set of items.

    Args:
        target: One of `TARGETS`.
        scores: Confidence of the certifying items, shape (n,).
        answered: The certifying items.
        delta: Probability with which the bound may fail.
        tuned: Scores and losses of the tuning part, from which the thresholds of accuracy and selective risk are taken.
    """
    if target == TARGET_AGREEMENT:
        disagree = disagreements(answered)
        return lambda alpha: certify(scores, disagree, alpha=alpha, delta=delta)
    if tuned is None:
        raise ValueError(f"target {target!r} needs a tuning part")

    def grid(alpha: float) -> FloatArray:
        return threshold_grid(*tuned, target=target, n=len(scores), alpha=alpha, delta=delta)

    edge = edge_right(answered)
    if target == TARGET_SELECTIVE:
        return lambda alpha: certify_selective(scores, ~edge, alpha=alpha, delta=delta, grid=grid(alpha))
    cloud = cloud_right(answered)
    return lambda alpha: certify_accuracy(scores, edge, cloud, alpha=alpha, delta=delta, grid=grid(alpha))


def curve(
    bound_at: Bounder, scores: FloatArray, answered: Answered, alpha: float, *, labelled: bool
) -> tuple[CurveRow, ...]:
    """What would be certified at a quarter, half, once and twice alpha."""
    alphas = [factor * alpha for factor in _OTHER_ALPHAS if factor * alpha < 1]
    return tuple(_row(bound_at, scores, answered, other, labelled=labelled) for other in alphas)


def _row(bound_at: Bounder, scores: FloatArray, answered: Answered, alpha: float, *, labelled: bool) -> CurveRow:
    try:
        bound = bound_at(alpha)
    except TooFewItemsError as error:
        return CurveRow(alpha, None, error.needed, None)
    return CurveRow(alpha, bound, None, _accuracy(bound, scores, answered) if labelled else None)


def _accuracy(bound: Bound, scores: FloatArray, answered: Answered) -> float:
    with np.errstate(invalid="ignore"):
        local = np.asarray(scores) > bound.threshold
    return float(np.where(local, edge_right(answered), cloud_right(answered)).mean())
