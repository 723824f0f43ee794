"""Betting against a mean: a gambler's capital rules out what would hardly have let it grow so. Pure.

Whoever bets on values below m with stakes fixed before each value is seen has, where the true mean is m or more, an
expected capital that never grows; it reaches 1/delta at any time with probability delta at most (Ville 1939). Hence a
mean against which the capital did reach 1/delta is ruled out at delta, for any n and any distribution of independent
values in a known range (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting").

Owns the two ways to bet that are used here. What the values are is said in `bounds.py` and in `quantize/bounds.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import FloatArray

# The largest share of its capital that a plug-in bet may lose; the paper takes 1/2 or 3/4.
_STAKE = 0.75

# Relative rounding of a sum of logarithms: without it the smallest n could fail by the last bit.
_ROUNDING = 1e-12


def rules_out(growth: FloatArray, delta: float) -> bool:
    """Whether the capital reaches 1/delta at any time.

    Args:
        growth: Logarithm of the factor by which each bet multiplies the capital, shape (n,), in the order of the bets.
        delta: Probability of being wrong, in (0, 1).
    """
    return bool(np.cumsum(growth).max() >= -math.log(delta) * (1 - _ROUNDING))


def mean_ruled_out(values: FloatArray, mean: float, delta: float) -> bool:
    """Whether values in [0, 1], in this order, rule out this mean and every larger one; monotone in `mean`.

    The bets are the paper's predictable plug-in ones for n values, which need no idea of what the values are like.

    Args:
        values: Shape (n,), n at least 1, each in [0, 1].
        mean: In [0, 1].
        delta: Probability of being wrong, in (0, 1).
    """
    bets = np.minimum(_plug_in_bets(values, delta), _STAKE / (1.0 - mean) if mean < 1.0 else np.inf)
    return rules_out(np.log1p(bets * (mean - values)), delta)


def net_loss_growth(n: int, alpha: float, delta: float) -> NDArray[np.float64]:
    """Growth of the capital at each net loss 0, 1 and -1 (in this order, so that the loss is the index), shape (3,).

    One stake for all bets against "the mean is alpha or more": the one that grows fastest (Kelly 1956) where k of the n
    items are lost and none is won, with k the most that it still rules out alpha with. Net losses are mostly 0, and
    there a stake that need not be learnt from the items wins over one that must. At k = 0 it is the whole capital, so
    that the smallest n that can certify is the exact binomial test's.

    Args:
        n: Items, at least as many as certify anything where none is lost.
        alpha: The mean to rule out, in (0, 1).
        delta: Probability of being wrong, in (0, 1).
    """
    rate = _affordable_losses(n, alpha, delta) / n
    stake = (alpha - rate) / (alpha * (1 - alpha))
    # 1 + stake * (alpha - loss), written so that a whole stake loses exactly everything.
    kept, lost, won = (1 - rate) / (1 - alpha), rate / alpha, 1 + stake * (1 + alpha)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log([kept, lost, won]))


def shuffled(values: NDArray[Any], seed: int) -> NDArray[Any]:
    """Values in an order drawn with `seed`: data are often sorted, and bets on sorted values prove nothing."""
    return np.asarray(np.random.default_rng(seed).permutation(values))


def _affordable_losses(n: int, alpha: float, delta: float) -> int:
    """The largest k for which n * KL(k/n, alpha) >= log(1/delta), Chernoff's bound; at least 0."""
    rates = np.arange(math.ceil(n * alpha)) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        of_lost = np.where(rates > 0, rates * np.log(rates / alpha), 0.0)
    divergence = of_lost + (1 - rates) * np.log((1 - rates) / (1 - alpha))
    return max(int((n * divergence >= -math.log(delta)).sum()) - 1, 0)


def _plug_in_bets(values: FloatArray, delta: float) -> FloatArray:
    """The paper's bets (its equation 26, one-sided): each one depends on earlier values only."""
    count = np.arange(1, len(values) + 1)
    means = (0.5 + np.cumsum(values)) / (count + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    return np.asarray(np.sqrt(-2.0 * math.log(delta) / (len(values) * before)))
