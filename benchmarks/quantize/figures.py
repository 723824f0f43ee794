"""The arithmetic of the benchmarks: intervals, spreads, and when one point answers another. Pure.

A referee brings rulers of its own: calibration error and AUROC come from here and from scikit-learn, not from the code
under test. Only the bound on a paired drop is edgewise's, since it is exact and tests of its own hold it against scipy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from edgewise.quantize.statistics import drop_bound

CONFIDENCE = 0.95
SAME_SPEED = 1.03
"""Within 3 % two latencies count as equal."""

ALLOWED_LOSS = 0.05
"""Points of accuracy at which the hypervolume's box ends."""

_BINS = 15


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing: the median, the smallest and the largest."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Summarise at least one value."""
    return Spread(float(np.median(values)), float(min(values)), float(max(values)))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Spread of the ratios round by round: what slows a whole round slows both, and cancels."""
    return spread([above / below for above, below in zip(numerators, denominators, strict=True)])


@dataclass(frozen=True)
class Quality:
    """How a model answers items of the test part, beside the float32 baseline.

    Attributes:
        n: Items.
        accuracy: Share of right answers.
        accuracy_low: Lower end of its exact two-sided 95 % interval (Clopper & Pearson 1934).
        accuracy_high: Upper end.
        drop: Baseline's accuracy minus this one's, on the same items.
        drop_bound: One-sided 95 % upper bound on the drop.
        flips: Share of items with another answer than the baseline's.
        calibration_error: Expected calibration error of the largest probability, 15 bins of equal width.
        auroc: How well the margin between the two largest probabilities tells right answers from wrong ones.
    """

    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    drop: float
    drop_bound: float
    flips: float
    calibration_error: float
    auroc: float | None


def quality(logits: NDArray[Any], baseline: NDArray[Any], truth: NDArray[Any]) -> Quality:
    """Judge logits of shape (n, classes) by the right classes, shape (n,), and beside the baseline's logits."""
    answers, expected = logits.argmax(axis=1), baseline.argmax(axis=1)
    right, baseline_right = answers == truth, expected == truth
    n, lost, won = len(truth), int((baseline_right & ~right).sum()), int((right & ~baseline_right).sum())
    interval = binomtest(int(right.sum()), n).proportion_ci(CONFIDENCE, method="exact")
    probabilities = np.sort(softmax(logits), axis=1)
    return Quality(
        n=n,
        accuracy=float(right.mean()),
        accuracy_low=float(interval.low),
        accuracy_high=float(interval.high),
        drop=(lost - won) / n,
        drop_bound=drop_bound(lost, won, n, 1 - CONFIDENCE),
        flips=float((answers != expected).mean()),
        calibration_error=calibration_error(probabilities[:, -1], right),
        auroc=auroc(probabilities[:, -1] - probabilities[:, -2], right),
    )


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities of rows of logits, in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def calibration_error(confidence: NDArray[Any], right: NDArray[Any]) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3): bins of equal width, closed above."""
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(_BINS)]
    return float(sum(gaps) / len(right))


def auroc(score: NDArray[Any], right: NDArray[Any]) -> float | None:
    """Probability that a right answer scores higher than a wrong one; None where all or none are right."""
    return float(roc_auc_score(right, score)) if 0 < right.sum() < len(right) else None


@dataclass(frozen=True)
class Point:
    """A model as one point: smaller, faster and more accurate is better."""

    name: str
    size_bytes: int
    p50_ms: float
    accuracy: float
    accuracy_low: float


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats or equals in everything; of equal ones the first."""

    def beaten(place: int) -> bool:
        point = points[place]
        return any(
            _covers(other, point) and (not _covers(point, other) or rank < place)
            for rank, other in enumerate(points)
            if rank != place
        )

    return [point for place, point in enumerate(points) if not beaten(place)]


def _covers(one: Point, other: Point) -> bool:
    return one.size_bytes <= other.size_bytes and one.p50_ms <= other.p50_ms and one.accuracy >= other.accuracy


def answers(ours: Point, rival: Point, *, within_interval: bool = True) -> bool:
    """Whether a point of ours is at least as good as a rival's in size, p50 (3 % tolerance) and accuracy.

    Args:
        ours: Our point.
        rival: The rival's.
        within_interval: Whether our accuracy may lie inside the rival's interval; otherwise it must reach its value.
    """
    least = rival.accuracy_low if within_interval else rival.accuracy
    return ours.size_bytes <= rival.size_bytes and ours.p50_ms <= SAME_SPEED * rival.p50_ms and ours.accuracy >= least


@dataclass(frozen=True)
class Match:
    """Which points of our front answer one rival's point.

    Attributes:
        rival: The rival.
        by: Ours that are at least as good, accuracy taken within the rival's interval; the smallest first.
        strictly_by: Ours that also reach the rival's accuracy itself.
        loss: Where none answers: what the nearest of ours lacks, in words.
    """

    rival: str
    by: tuple[str, ...]
    strictly_by: tuple[str, ...]
    loss: str


def match(ours: Sequence[Point], rival: Point) -> Match:
    """Look for answers to a rival's point."""
    ranked = sorted(ours, key=lambda point: point.size_bytes)
    by = tuple(point.name for point in ranked if answers(point, rival))
    strictly = tuple(point.name for point in ranked if answers(point, rival, within_interval=False))
    return Match(rival.name, by, strictly, "" if by or not ours else _loss(min(ours, key=_lack_of(rival)), rival))


def _lack_of(rival: Point) -> Any:
    return lambda point: sum(_lacks(point, rival).values())


def _lacks(point: Point, rival: Point) -> dict[str, float]:
    """By how much, as a share, a point misses each demand; 0 where it meets it."""
    return {
        "size": max(0.0, point.size_bytes / rival.size_bytes - 1),
        "p50": max(0.0, point.p50_ms / (SAME_SPEED * rival.p50_ms) - 1),
        "accuracy": max(0.0, rival.accuracy_low - point.accuracy),
    }


def _loss(point: Point, rival: Point) -> str:
    lacks = [f"{share:.1%} in {name}" for name, share in _lacks(point, rival).items() if share > 0]
    return f"nearest is {point.name}, short by {' and '.join(lacks)}"


def hypervolume(points: Sequence[Point], baseline: Point) -> float:
    """Share of a box that the points dominate; more is better.

    The box goes from nothing, at once, without loss to the baseline's size, its p50 and 5 points lost. A gain in
    accuracy counts as no loss.
    """
    coordinates = [
        (
            point.size_bytes / baseline.size_bytes,
            point.p50_ms / baseline.p50_ms,
            max(0.0, baseline.accuracy - point.accuracy) / ALLOWED_LOSS,
        )
        for point in points
    ]
    return dominated_volume(coordinates)


def dominated_volume(points: Sequence[tuple[float, float, float]]) -> float:
    """Volume of the part of the unit cube that is dominated (all coordinates are costs), exactly: slab by slab."""
    inside = sorted((point for point in points if max(point) < 1), key=lambda point: point[2])
    ends = [*(point[2] for point in inside), 1.0][1:]
    return math.fsum(
        (end - point[2]) * _dominated_area([(x, y) for x, y, _ in inside[: place + 1]])
        for place, (point, end) in enumerate(zip(inside, ends, strict=True))
    )


def _dominated_area(points: Sequence[tuple[float, float]]) -> float:
    area, lowest = 0.0, 1.0
    for x, y in sorted(points):
        if y < lowest:
            area += (1.0 - x) * (lowest - y)
            lowest = y
    return area


@dataclass(frozen=True)
class Goal:
    """A target and what became of it.

    Attributes:
        what: The target in words.
        found: What was measured, in words.
        met: Whether it is met.
    """

    what: str
    found: str
    met: bool


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as what JSON holds."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(item) for name, item in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
