"""How well scores order items: risk over coverage, and what can be answered at a given risk. Pure.

Owns the figures; which signal is chosen by them is `selection`'s.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import FloatArray


def aurc(scores: FloatArray, losses: NDArray[np.bool_]) -> float:
    """Area under the risk-coverage curve (Geifman, Uziel & El-Yaniv 2019): the mean risk of the k best, k from 1 to n.

    Items of one score come in random order, and the mean over the orders is taken; NaN comes last.

    Args:
        scores: Shape (n,), n at least 1; larger is more confident.
        losses: Shape (n,).
    """
    _, place, counts = _ranks(scores)
    sums = np.bincount(place, losses, len(counts))
    expected = np.repeat(sums / counts, counts)
    return float(np.mean(np.cumsum(expected) / np.arange(1, len(scores) + 1)))


def resamples(n: int, count: int, seed: int) -> NDArray[np.int64]:
    """How often each of n items comes in each of `count` bootstrap samples of n (Efron 1979), shape (count, n)."""
    drawn = np.random.default_rng(seed).integers(0, n, size=(count, n))
    drawn += n * np.arange(count)[:, np.newaxis]
    return np.bincount(drawn.reshape(-1), minlength=count * n).reshape(count, n)


def resampled_aurc(scores: FloatArray, losses: NDArray[np.bool_], counts: NDArray[np.int64]) -> FloatArray:
    """The `aurc` of each bootstrap sample, shape (samples,).

    Args:
        scores: Shape (n,).
        losses: Shape (n,).
        counts: How often each item comes in each sample, shape (samples, n); n items in each.
    """
    _, place, _ = _ranks(scores)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    ranked = counts[:, order]
    items = np.add.reduceat(ranked, starts, axis=1)
    lost = np.add.reduceat(ranked * losses[order], starts, axis=1)
    before = np.cumsum(items, axis=1) - items
    rate = lost / np.maximum(items, 1)
    # Within a tie, the sum over j of (lost before + j rate) / (items before + j), by harmonic numbers.
    harmonic = np.append(0.0, np.cumsum(1.0 / np.arange(1, len(scores) + 1)))
    spread = harmonic[before + items] - harmonic[before]
    sums = rate * items + (np.cumsum(lost, axis=1) - lost - rate * before) * spread
    return np.asarray(sums.sum(axis=1) / len(scores))


def auroc(scores: FloatArray, losses: NDArray[np.bool_]) -> float | None:
    """Probability that an item without loss scores above one with, a tie counting half (Mann & Whitney 1947).

    NaN counts below all others.

    Args:
        scores: Shape (n,).
        losses: Shape (n,).

    Returns:
        In [0, 1]; None where all items have a loss, or none has.
    """
    lost = int(losses.sum())
    kept = len(losses) - lost
    if not lost or not kept:
        return None
    _, place, counts = _ranks(scores)
    middle = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((middle[losses].sum() - lost * (lost + 1) / 2) / (lost * kept))


def local_share(scores: FloatArray, losses: NDArray[np.bool_], alpha: float) -> float:
    """Largest share of items above one threshold with losses there of at most alpha of all items, as counted here.

    Args:
        scores: Shape (n,).
        losses: Shape (n,).
        alpha: Bound on lost items over all items.
    """
    distinct, place, counts = _ranks(scores)
    known = int((~np.isnan(distinct)).sum())
    lost = np.cumsum(np.bincount(place, losses, len(counts)))[:known]
    within = np.flatnonzero(lost <= alpha * len(scores))
    return float(counts[: within[-1] + 1].sum() / len(scores)) if len(within) else 0.0


def _ranks(scores: FloatArray) -> tuple[FloatArray, NDArray[np.intp], NDArray[np.intp]]:
    """Distinct scores from the highest down, NaN last as one; the place of each item among them; how many each has."""
    keyed = np.where(np.isnan(scores), np.inf, -scores)
    distinct, place, counts = np.unique(keyed, return_inverse=True, return_counts=True)
    return np.where(np.isposinf(distinct), math.nan, -distinct), place.reshape(-1), counts
