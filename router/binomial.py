"""Exact binomial arithmetic: how many losses a number of items may show, and how many items are needed. Pure.

Owns what all targets share, and the check of alpha and delta. What counts as a loss is in `bounds.py`.
"""

from __future__ import annotations

import itertools
import math
import numbers
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import ConfigError

_ROUNDING = 1e-9
"""Relative distance from delta under which a floating-point binomial sum is settled by exact fractions."""

_LARGEST_EXACT = 10_000
_SMALLEST = 1e-9


def items_needed(alpha: float, delta: float) -> int:
    """Smallest n that can certify anything: (1-alpha)^n <= delta.

    Raises:
        ConfigError: alpha or delta is outside (0, 1).
    """
    check_open_unit("alpha", alpha)
    check_open_unit("delta", delta)
    guess = math.ceil(math.log(delta) / math.log1p(-alpha))
    return next(n for n in itertools.count(max(guess - 1, 1)) if _none_lost_is_enough(n, alpha, delta))


def group_items_needed(alpha: float, delta: float, groups: int) -> int:
    """Smallest n that *each* of several groups needs, for each is certified at delta divided by their number.

    Args:
        alpha: Bound on the risk in each group, in (0, 1).
        delta: Probability with which any of the bounds may fail, in (0, 1).
        groups: Number of groups, at least 1.

    Raises:
        ConfigError: alpha or delta / groups is outside (0, 1).
    """
    return items_needed(alpha, delta / groups)


def allowed_disagreements(n: int, alpha: float, delta: float) -> int:
    """k*: the largest k with BinomCDF(k; n, alpha) <= delta, or -1 where there is none."""
    cdf = binomial_cdf(n, alpha)
    k = int(np.searchsorted(cdf, delta, side="right")) - 1
    while k + 1 <= n and _near(cdf[k + 1], delta) and _exact_cdf(k + 1, n, alpha) <= Fraction(delta):
        k += 1
    while k >= 0 and _near(cdf[k], delta) and _exact_cdf(k, n, alpha) > Fraction(delta):
        k -= 1
    return k


def unsurprising_violations(n: int, alpha: float) -> int:
    """Violations among `n` requests that a risk of exactly alpha exceeds with at most 5 % probability.

    A certificate bounds the expected share of violations; what is counted on `n` requests scatters around it.
    """
    return int(np.searchsorted(binomial_cdf(n, alpha), 0.95))


def binomial_cdf(n: int, alpha: float) -> NDArray[np.float64]:
    """BinomCDF(k; n, alpha) for k = 0 … n, summed in log space so that (1-alpha)^n may underflow."""
    k = np.arange(n, dtype=np.float64)
    steps = np.log((n - k) / (k + 1)) + math.log(alpha) - math.log1p(-alpha)
    log_pmf = n * math.log1p(-alpha) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.cumsum(np.exp(log_pmf))


def check_open_unit(name: str, value: float) -> None:
    """Raise where a probability is outside (0, 1), or so near to its ends that arithmetic ends there.

    Raises:
        ConfigError: It is.
    """
    if not isinstance(value, numbers.Real) or not _SMALLEST <= value <= 1 - _SMALLEST:
        raise ConfigError(f"{name} is {value!r}.", f"Give {name} between 0 and 1, both excluded, such as 0.01.")


def _none_lost_is_enough(n: int, alpha: float, delta: float) -> bool:
    """(1-alpha)^n <= delta; where rounding could decide and n is too large for fractions, the safe side."""
    needed, reached = -math.log(delta), -n * math.log1p(-alpha)
    if abs(reached - needed) > _ROUNDING * needed:
        return reached > needed
    return n <= _LARGEST_EXACT and _exact_cdf(0, n, alpha) <= Fraction(delta)


def _exact_cdf(k: int, n: int, alpha: float) -> Fraction:
    p = Fraction(alpha)
    return sum((math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)), Fraction(0))


def _near(cdf: float, delta: float) -> bool:
    return abs(cdf - delta) <= _ROUNDING * delta
