"""An axis: from values to pixels, and where its ticks stand. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_MANTISSAS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_INTERVALS = 5


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis.

    Attributes:
        low: The value at its start.
        high: The value at its end, above `low`.
        start: Pixel of `low`.
        end: Pixel of `high`; may lie before `start`.
        log: Whether equal distances are equal ratios; `low` is above 0 then.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool

    def position(self, value: float) -> float:
        """The pixel of a value; beyond the ends, the end's."""
        low, high, at = (
            _log(v) if self.log else v for v in (self.low, self.high, min(max(value, self.low), self.high))
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: float = math.inf) -> tuple[float, ...]:
        """Round values within the axis, at most `most`, ascending."""
        found = _log_ticks(self.low, self.high) if self.log else ()
        return tuple(tick for tick in found or _linear_ticks(self.low, self.high) if tick <= most)


def scale_around(
    values: Sequence[float], start: float, end: float, *, log: bool, least_span: float, margin: float = 0.1
) -> Scale:
    """An axis with room on both sides of all values.

    Args:
        values: At least one; above 0 for a logarithmic axis, which else is linear.
        start: Pixel of its start.
        end: Pixel of its end.
        log: Whether it is logarithmic.
        least_span: What it spans at least: a difference, or a ratio where it is logarithmic.
        margin: Room on each side, as a share of what the values span.
    """
    log = log and min(values) > 0
    low, high = (_log(v) if log else v for v in (min(values), max(values)))
    span = max(high - low, _log(least_span) if log else least_span)
    middle = (low + high) / 2
    reach = span * (0.5 + margin)
    ends = (middle - reach, middle + reach)
    low, high = (math.exp(v) for v in ends) if log else ends
    return Scale(low, high, start, end, log)


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """The coarsest round values of which three or more fit; none where too few do."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in _MANTISSAS:
        ticks = tuple(tick for power in powers for m in mantissas if low <= (tick := m * 10.0**power) <= high)
        if len(ticks) >= 3:
            return ticks
    return ()


def _linear_ticks(low: float, high: float) -> tuple[float, ...]:
    rough = (high - low) / _INTERVALS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in _STEPS if s * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return tuple(round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1))


def _log(value: float) -> float:
    return math.log(value)
