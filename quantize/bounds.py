"""How much worse than the baseline a candidate can be, as far as some items tell. Pure.

Owns the choice of the bound for a kind of model, and the bound for answers that are right in part. The exact bound for
right and wrong is in `statistics.py`.

Where the worth of an answer is a share or a cosine, the bound on the mean drop comes from betting (Waudby-Smith &
Ramdas 2024, theorem 3; the bets are in `router/betting.py`): it holds for any n and any distribution of values that lie
in a known range, items being drawn independently.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgewise.contracts import FloatArray
from edgewise.quantize.quality import Compared
from edgewise.quantize.statistics import MOST_ITEMS, drop_bound, items_needed, smallest
from edgewise.router.betting import mean_ruled_out, shuffled

_ABOUT = 1.02


def bound_of(compared: Compared, delta: float, *, seed: int = 0) -> float:
    """Upper bound on the mean drop in worth that holds with probability at least 1 - delta.

    Of a classifier the exact one on P(lost) - P(won), see `drop_bound`; of the others `mean_bound` of the paired drops.

    Args:
        compared: A candidate beside the baseline, on items drawn independently.
        delta: Allowed probability that the bound fails, in (0, 1).
        seed: Of the order in which the items are looked at.
    """
    if compared.kind == "classifier":
        return drop_bound(compared.quality.lost, compared.quality.won, compared.quality.n, delta)
    low, high = _range(compared)
    return mean_bound(_drops(compared), delta, low=low, high=high, seed=seed)


def needed_for(compared: Compared, max_drop: float, delta: float, *, seed: int = 0) -> int | None:
    """About how many items like these would show that the mean drop is at most `max_drop`.

    Of a classifier see `items_needed`. Of the others an estimate: these items are repeated until the bound suffices.

    Args:
        compared: A candidate beside the baseline.
        max_drop: Allowed drop.
        delta: Allowed probability that the bound fails.
        seed: Of the order in which the items are looked at.

    Returns:
        A number of items, or None where no number would do, or none up to a million.
    """
    quality = compared.quality
    if compared.kind == "classifier":
        return items_needed(max_drop, delta, lost_rate=quality.lost / quality.n, won_rate=quality.won / quality.n)
    low, high = _range(compared)
    drops, allowed = _scaled(_drops(compared), low, high, seed), (max_drop - low) / (high - low)
    if quality.drop >= max_drop:
        return None
    return _first(lambda n: mean_ruled_out(shuffled(np.resize(drops, n), seed), allowed, delta))


def mean_bound(values: FloatArray, delta: float, *, low: float, high: float, seed: int = 0) -> float:
    """Upper bound on the mean of bounded values that holds with probability at least 1 - delta.

    A mean m is ruled out where a gambler who bets on values below m multiplies his capital by 1/delta at any time,
    which happens to the true mean with probability delta at most (Ville). The bets are the paper's predictable plug-in
    ones for n values. The values are looked at in an order drawn with `seed`, since data are often sorted, and a bound
    that depended on that would not hold. Never less than the mean of the values: bets that went well early could rule
    that out, and nobody would believe it.

    Args:
        values: Shape (n,), n at least 1, each in [low, high], drawn independently.
        delta: Allowed probability that the bound fails, in (0, 1).
        low: The least that a value can be.
        high: The most.
        seed: Of the order.

    Raises:
        ValueError: A value lies outside the range, or is NaN.
    """
    scaled = _scaled(values, low, high, seed)
    bound = low + (high - low) * smallest(lambda mean: mean_ruled_out(scaled, mean, delta))
    return max(bound, float(values.mean()))


def _drops(compared: Compared) -> FloatArray:
    return np.asarray(compared.baseline_worth - compared.worth)


def _range(compared: Compared) -> tuple[float, float]:
    """What a drop can be: of an embedder 1 minus a cosine, of the others the difference of two shares."""
    return (0.0, 2.0) if compared.kind == "embedder" else (-1.0, 1.0)


def _scaled(values: FloatArray, low: float, high: float, seed: int) -> FloatArray:
    # Written so that a NaN counts as outside.
    if not ((values >= low) & (values <= high)).all():
        raise ValueError(f"A value lies outside [{low:g}, {high:g}].")
    return shuffled((values - low) / (high - low), seed)


def _first(enough: Callable[[int], bool]) -> int | None:
    """About the smallest n that is enough, to 2 %; None where none up to a million is."""
    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_ITEMS:
            return None
    low = high // 2
    while high - low > 1 and high > low * _ABOUT:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
