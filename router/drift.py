"""Whether live scores still look like the certifying ones. Pure.

A hint, never a proof: scores can drift while the promise is kept, and the promise can break without them. Only the
audits (`audit.py`) speak of the promise; this speaks at once, without a call to the cloud.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from edgewise.router.binomial import binomial_cdf

_NOTEWORTHY = 0.25
"""A population stability index above it is commonly read as a significant shift (Siddiqi 2006)."""

_RARE = 0.001
"""Probability with which the out-of-distribution share alone gives a false hint, at any one moment."""


class ScoreDrift:
    """Compares a sliding window of live scores with the deciles of the certifying ones.

    A decile that is there twice lies in a tie, whose share it does not tell; it divides nothing.

    Args:
        deciles: The nine inner deciles of the certifying scores; none where they are not known, and then nothing is
            ever hinted at.
        out_of_distribution_share: Share of the certifying items without a score, in [0, 1].
        window: Live scores that are looked at.
    """

    def __init__(self, deciles: Sequence[float], out_of_distribution_share: float, window: int = 1000) -> None:
        ranks = {decile: rank for rank, decile in enumerate(deciles, start=1) if list(deciles).count(decile) == 1}
        self._edges = list(ranks)
        bounds = [0, *ranks.values(), 10]
        scored = 1.0 - out_of_distribution_share
        shares = [scored * (high - low) / 10 for low, high in itertools.pairwise(bounds)]
        # The last bin is of items without a score. No share is 0, or a single item there would be infinitely strange.
        self._expected = [max(share, 0.5 / window) for share in [*shares, out_of_distribution_share]]
        self._known = len(deciles) > 0
        self._window = window
        self._bins: deque[int] = deque()
        self._counts = [0] * len(self._expected)
        # One in a window is no surprise, even if the few certifying items showed none.
        usual = min(max(out_of_distribution_share, 1 / window), 1 - 1e-9)
        self._most_unscored = next(k for k, reached in enumerate(binomial_cdf(window, usual)) if reached >= 1 - _RARE)

    def update(self, score: float) -> None:
        """Take the score of one request; NaN is none."""
        found = len(self._counts) - 1 if math.isnan(score) else bisect_left(self._edges, score)
        self._bins.append(found)
        self._counts[found] += 1
        if len(self._bins) > self._window:
            self._counts[self._bins.popleft()] -= 1

    @property
    def is_full(self) -> bool:
        """Whether the window is full; before, the index is mostly noise."""
        return len(self._bins) >= self._window

    @property
    def index(self) -> float:
        """Population stability index of the window: sum of (live - expected) * log(live / expected); 0 when empty."""
        if not self._bins or not self._known:
            return 0.0
        least = 0.5 / self._window
        live = [max(count / len(self._bins), least) for count in self._counts]
        return sum((now - then) * math.log(now / then) for now, then in zip(live, self._expected, strict=True))

    @property
    def hint(self) -> bool:
        """Whether a full window looks unlike the certifying items, in its scores or in how many have none."""
        if not self.is_full or not self._known:
            return False
        return self.index > _NOTEWORTHY or self._counts[-1] > self._most_unscored
