"""How long the cloud usually takes: quantiles over its latest replies. Pure.

Owns the window that hedging and the bound on slow calls share. What is shown to people is the metrics' own.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

_WINDOW = 512


class LatencyWindow:
    """The latest latencies, in order of arrival and in order of size.

    A call that was cut short counts with the time that it had taken by then: it would have taken longer. Every quantile
    below the place where calls are cut stays exact so, as hedging's p95 does, behind which alone calls are cut.

    Args:
        size: How many are looked at.
    """

    def __init__(self, size: int = _WINDOW) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []
        self._size = size

    def observe(self, seconds: float) -> None:
        """A call took so long."""
        if len(self._latest) == self._size:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(seconds)
        insort(self._sorted, seconds)

    def quantile(self, share: float) -> float | None:
        """The nearest-rank quantile, in seconds; None where nothing was observed.

        Args:
            share: In [0, 1].
        """
        if not self._sorted:
            return None
        return self._sorted[max(0, math.ceil(share * len(self._sorted)) - 1)]

    def __len__(self) -> int:
        return len(self._latest)
