"""How long a batch takes, learned from the batches before it. Pure: times are passed in.

The model is `seconds = fixed + slope · (items · longest)`: what a batch costs whatever is in it, and what each padded
unit of length costs. It is fitted by least squares in which older batches count less and less, so that it follows a
machine that gets busier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_FORGET = 0.95
"""Weight of all that was seen before, at each new batch: about the last 20 count."""

_OUTLIER = 4.0
"""A batch counts as this many times its estimate at most: one stall must not look like a slow engine."""

_SPREADS = 2.0
"""Spreads of the error that an upper or lower estimate lies from the fit, as TCP has it (RFC 6298 takes 4)."""

_REACH = 2.0
"""Standard deviations of the loads seen, above their mean, to which a lower estimate follows the slope."""

HALF_LIFE_S = 1.0
"""After so long without a batch a lower estimate is half: nobody is refused for ever over what once was slow."""


@dataclass(frozen=True)
class Costs:
    """What is known of an engine's times; nothing at first. Each observation makes a new one.

    Attributes:
        weight: Batches that count, older ones less.
        load: Weighted sum of items · longest.
        seconds: Weighted sum of the times.
        load_load: Weighted sum of the squared loads.
        load_seconds: Weighted sum of load times time.
        spread_s: Mean absolute error of the estimates, seconds.
        seen_s: When the last batch ended, monotonic seconds.
    """

    weight: float = 0.0
    load: float = 0.0
    seconds: float = 0.0
    load_load: float = 0.0
    load_seconds: float = 0.0
    spread_s: float = 0.0
    seen_s: float = 0.0

    def observed(self, items: int, longest: int, seconds: float, now_s: float) -> Costs:
        """What is known after one more batch.

        Args:
            items: Items in it.
            longest: Length of its longest.
            seconds: What it took.
            now_s: Monotonic seconds.
        """
        load = float(items * longest)
        expected = self.expected(items, longest)
        counted = min(seconds, _OUTLIER * expected) if self.weight else seconds
        error = abs(counted - expected) if self.weight else counted / 2
        return Costs(
            weight=self.weight * _FORGET + 1,
            load=self.load * _FORGET + load,
            seconds=self.seconds * _FORGET + counted,
            load_load=self.load_load * _FORGET + load * load,
            load_seconds=self.load_seconds * _FORGET + load * counted,
            spread_s=self.spread_s + (error - self.spread_s) * (0.25 if self.weight else 1.0),
            seen_s=now_s,
        )

    def expected(self, items: int, longest: int) -> float:
        """Seconds that a batch of this shape takes; 0 before the first."""
        return self._fitted(items * longest) if self.weight else 0.0

    def upper(self, items: int, longest: int) -> float:
        """Seconds that a batch of this shape seldom exceeds."""
        return self.expected(items, longest) + _SPREADS * self.spread_s

    def lower(self, items: int, longest: int, now_s: float) -> float:
        """Seconds that a batch of this shape takes at least; the less sure, the longer the last batch is ago.

        What is larger than the batches seen is taken to cost no more than the largest of them: nobody is refused over
        a cost that was never seen, and so could never be put right.
        """
        if not self.weight:
            return 0.0
        fresh = math.pow(0.5, max(now_s - self.seen_s, 0.0) / HALF_LIFE_S)
        seen = self.load / self.weight + _REACH * math.sqrt(max(self._varied(), 0.0))
        return fresh * max(self._fitted(min(items * longest, seen)) - _SPREADS * self.spread_s, 0.0)

    def _fitted(self, load: float) -> float:
        mean_load, mean_s, varied = self.load / self.weight, self.seconds / self.weight, self._varied()
        steepest = mean_s / mean_load
        # Batches of one shape tell no slope; then a batch costs in proportion, which no engine exceeds for long.
        known = varied > 1e-6 * mean_load * mean_load
        slope = (self.load_seconds / self.weight - mean_load * mean_s) / varied if known else steepest
        return mean_s + min(max(slope, 0.0), steepest) * (load - mean_load)

    def _varied(self) -> float:
        mean_load = self.load / self.weight
        return self.load_load / self.weight - mean_load * mean_load
