"""Hedged requests (Dean & Barroso, The Tail at Scale, 2013): when a second call is sent after a slow first. Pure.

A prediction is a function of its input and of the cloud's version, and changes nothing where it is computed. So asking
twice is safe for every request here: the first answer is the answer, the other call is cancelled.

Owns the rule and its cap. The two calls are `escalation`'s.
"""

from __future__ import annotations

from edgewise.router.latency import LatencyWindow

_AFTER = 0.95
_FEWEST = 20
"""Observed calls below which there is no 95th percentile to speak of."""


class TokenBucket:
    """Permissions that are earned by what happens and spent one at a time; it starts empty.

    So at any time at most `share` of what earned was spent, whatever comes in a burst.

    Args:
        share: Earned each time, in [0, 1].
        most: Kept at most: the largest burst.
    """

    def __init__(self, share: float, most: float = 10.0) -> None:
        self._share = share
        self._most = most
        self._tokens = 0.0

    def earn(self) -> None:
        """Something happened that earns."""
        self._tokens = min(self._most, self._tokens + self._share)

    def take(self) -> bool:
        """Spend one, if there is one."""
        # A fiftieth, added fifty times, must be one.
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True


class Hedging:
    """When a call gets a second one beside it.

    Args:
        latencies: What calls took so far.
        share: Second calls by first ones, at most; 0 sends none.
    """

    def __init__(self, latencies: LatencyWindow, share: float) -> None:
        self._latencies = latencies
        self._share = share
        self._bucket = TokenBucket(share)

    def begin(self) -> float | None:
        """A call begins; seconds after which a second one is due, or None where there will be none."""
        if not self._share:
            return None
        self._bucket.earn()
        return self._latencies.quantile(_AFTER) if len(self._latencies) >= _FEWEST else None

    def allowed(self) -> bool:
        """Whether the second call that is due now may be sent; counts it."""
        return self._bucket.take()
