"""The figures of a measurement, and the exact bound on an accuracy drop where an answer is right or wrong. Pure.

Owns the structs and the binomial arithmetic, and no opinion on what a good value is. What fills a `Quality` is in
`quality.py`, the bound for answers that are right in part in `bounds.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import FloatArray

# Share of delta that the bound on lost items may fail with; the rest is for the bound on won ones. Won items are few
# where a gate is passed, so most of it goes where the size of the bound is decided.
_LOST_SHARE = 0.8
MOST_ITEMS = 1_000_000
"""More than anybody labels: beyond it, no number of items is told."""


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How a candidate answers, beside the baseline, on the same items.

    An answer is worth 1 if right and 0 if wrong; of a tagger, the share of words with the right tag; of a generator,
    the share of the data's tokens that it would have said next; of an embedder, its cosine to the baseline's.

    Attributes:
        n: Items.
        accuracy: Mean worth.
        baseline_accuracy: The baseline's.
        drop: baseline_accuracy - accuracy.
        lost: Items whose answer is worth less than the baseline's.
        won: Items whose answer is worth more.
        flips: Share of items with another answer than the baseline's, right or wrong; of a generator, of tokens with
            another likeliest one; of an embedder, of items with another nearest neighbour among the items.
        calibration_error: Expected calibration error of its probabilities, of a tagger those of words; None where it
            gives none.
        auroc: How well its margin tells right answers from wrong ones, of a tagger the smallest margin of a word
            wholly right ones from others; None where all or none are right, or it has no margin.
        cosine_mean: Of an embedder: mean cosine to the baseline's embeddings.
        cosine_min: The smallest.
        nll: Of a generator: mean negative log-likelihood of a token of the data, in nats.
        baseline_nll: The baseline's.
        kld: Of a generator: mean Kullback-Leibler divergence of its next-token distribution from the baseline's, in
            nats.
        unknown_share: Share of the data's tokens that its vocabulary lacks, where that was cut down.
    """

    n: int
    accuracy: float
    baseline_accuracy: float
    drop: float
    lost: int
    won: int
    flips: float
    calibration_error: float | None = None
    auroc: float | None = None
    cosine_mean: float | None = None
    cosine_min: float | None = None
    nll: float | None = None
    baseline_nll: float | None = None
    kld: float | None = None
    unknown_share: float | None = None


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of a single prediction, preprocessing included.

    Attributes:
        calls: Timed calls.
        mean_ms: Mean.
        p50_ms: Median.
        p95_ms: 95 % quantile.
        p99_ms: 99 % quantile.
    """

    calls: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def latency(calls_ms: FloatArray) -> Latency:
    """Summarise timed calls, shape (n,), n at least 1."""
    middle, high, highest = np.quantile(calls_ms, [0.5, 0.95, 0.99])
    return Latency(
        calls=len(calls_ms),
        mean_ms=float(calls_ms.mean()),
        p50_ms=float(middle),
        p95_ms=float(high),
        p99_ms=float(highest),
    )


def drop_bound(lost: int, won: int, n: int, delta: float) -> float:
    """Upper bound on the accuracy drop P(lost) - P(won) that holds with probability at least 1 - delta.

    Two one-sided exact binomial bounds (Clopper & Pearson 1934) by Bonferroni: an upper one on P(lost) at 0.8 delta
    minus a lower one on P(won) at 0.2 delta. Valid for any n, and conservative: paired approximations are smaller, but
    none of them holds for the handful of lost items that a gate turns on.

    Args:
        lost: Items that the baseline has right and the candidate wrong.
        won: Items the other way round.
        n: All items, drawn independently.
        delta: Allowed probability that the bound fails, in (0, 1).
    """
    return upper_rate(lost, n, _LOST_SHARE * delta) - lower_rate(won, n, (1 - _LOST_SHARE) * delta)


def items_needed(max_drop: float, delta: float, *, lost_rate: float = 0.0, won_rate: float = 0.0) -> int | None:
    """Smallest n at which the bound is at most `max_drop`, items being lost and won at these rates.

    Without rates: the smallest n that can pass at all. None where no n can, or none up to a million.

    Args:
        max_drop: Allowed drop, in (0, 1).
        delta: Allowed probability that the bound fails.
        lost_rate: Expected share of lost items.
        won_rate: Expected share of won items.
    """

    def passes(n: int) -> bool:
        # Rates come from counts: a product that should be whole may lie a rounding error beside it.
        lost, won = math.ceil(lost_rate * n - 1e-9), math.floor(won_rate * n + 1e-9)
        return drop_bound(lost, won, n, delta) <= max_drop

    if lost_rate - won_rate >= max_drop:
        return None
    high = 1
    while not passes(high):
        high *= 2
        if high > MOST_ITEMS:
            return None
    low = high // 2
    # Rounding to whole items makes the bound saw-toothed; the n found is enough, one slightly smaller may be too.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def upper_rate(count: int, n: int, delta: float) -> float:
    """Clopper & Pearson's one-sided upper bound on a rate: the p with P(X <= count; n, p) = delta."""
    if count >= n:
        return 1.0
    coefficients = _log_coefficients(count, n)
    return smallest(lambda p: _cdf(coefficients, n, p) <= delta)


def lower_rate(count: int, n: int, delta: float) -> float:
    """Clopper & Pearson's one-sided lower bound on a rate: the p with P(X >= count; n, p) = delta."""
    if count <= 0:
        return 0.0
    coefficients = _log_coefficients(count - 1, n)
    return smallest(lambda p: 1.0 - _cdf(coefficients, n, p) >= delta)


def _log_coefficients(count: int, n: int) -> NDArray[np.float64]:
    """Logarithms of C(n, i) for i = 0 … count."""
    steps = np.log(np.arange(n, n - count, -1.0)) - np.log(np.arange(1.0, count + 1.0))
    return np.concatenate([[0.0], np.cumsum(steps)])


def _cdf(log_coefficients: NDArray[np.float64], n: int, p: float) -> float:
    """P(X <= len - 1) for X binomial(n, p), 0 < p < 1."""
    counts = np.arange(len(log_coefficients))
    terms = log_coefficients + counts * math.log(p) + (n - counts) * math.log1p(-p)
    return float(np.exp(terms).sum())


def smallest(holds: Callable[[float], bool]) -> float:
    """The smallest p in (0, 1) at which a condition holds that holds from there on; to the last bit."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
