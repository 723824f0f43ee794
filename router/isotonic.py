"""Isotonic regression: the non-decreasing steps nearest to some points, and the line through them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgewise.contracts import FloatArray

_PRIOR_ITEMS = 1.0


def pool_adjacent_violators(values: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The non-decreasing sequence with the least weighted squares from `values` (Ayer et al. 1955; Barlow et al. 1972).

    Args:
        values: Shape (n,), in the order of what they depend on.
        weights: Shape (n,), all above 0.

    Returns:
        Means of the blocks, shape (blocks,), strictly increasing; and how many values each pools, shape (blocks,).
    """
    means: list[float] = []
    masses: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, size = value, weight, 1
        while means and means[-1] >= mean:
            before, heavy = means.pop(), masses.pop()
            mean = (before * heavy + mean * mass) / (heavy + mass)
            mass += heavy
            size += sizes.pop()
        means.append(mean)
        masses.append(mass)
        sizes.append(size)
    return np.array(means), np.array(sizes, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Isotonic:
    """A non-decreasing line through the centres of an isotonic regression's blocks, as log-odds.

    Centred isotonic regression (Oron & Flournoy 2017): between two blocks it rises, where the step function would give
    many items one and the same score.

    Attributes:
        at: Shape (knots,), strictly increasing.
        log_odds: Shape (knots,), non-decreasing.
    """

    at: FloatArray
    log_odds: FloatArray

    def __call__(self, values: FloatArray) -> FloatArray:
        """Log-odds at `values`; those of the outermost knots beyond them, NaN for NaN."""
        # A curve of one knot would give its value for NaN too.
        return np.where(np.isnan(values), np.nan, np.interp(values, self.at, self.log_odds))


def fit_isotonic(values: FloatArray, target: FloatArray) -> Isotonic:
    """Fit the probability of `target` as it rises with `values`.

    A block counts one item more, of the mean of all, so that a pure one is not held for certain.

    Args:
        values: Shape (n,), finite, n at least 1.
        target: Shape (n,), in [0, 1].
    """
    at, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    weights = counts.astype(np.float64)
    means, sizes = pool_adjacent_violators(np.bincount(place, target) / weights, weights)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    masses = np.add.reduceat(weights, starts)
    centres = np.add.reduceat(at * weights, starts) / masses
    overall = (target.sum() + 0.5) / (len(target) + 1.0)
    shares = (means * masses + overall * _PRIOR_ITEMS) / (masses + _PRIOR_ITEMS)
    # Blocks of different size lean on the prior by different amounts, which may turn two of them around.
    shares = np.maximum.accumulate(shares)
    return Isotonic(centres, np.log(shares / (1.0 - shares)))
