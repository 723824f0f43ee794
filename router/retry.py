"""When a failed cloud call is made again. Pure: randomness is passed in.

Only what may pass by itself is repeated: no connection, and a cloud that says it is asked too much. Pauses are random
over their whole length ("full jitter": Brooker, Exponential Backoff and Jitter, AWS 2015), so that many gateways do not
come back at once. Retries are earned by answers, one by five: a cloud that is down is asked no more often for being
down, whatever the number of attempts ("retry budget": Finagle).

Owns the rule. The calls are `escalation`'s, requests that are owed an answer `delivery`'s.
"""

from __future__ import annotations

from collections.abc import Callable

from edgewise.errors import CloudError, CloudThrottledError, CloudUnreachableError
from edgewise.router.hedging import TokenBucket

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_EARNED = 0.2


class Retry:
    """Whether and when a failed call is made again.

    Args:
        attempts: Calls for one request at most; 1 retries nothing.
        uniform: Numbers in [0, 1).
    """

    def __init__(self, attempts: int, uniform: Callable[[], float]) -> None:
        self._attempts = attempts
        self._uniform = uniform
        self._bucket = TokenBucket(_EARNED)

    def answered(self) -> None:
        """A call was answered: that earns a part of a retry."""
        self._bucket.earn()

    def pause(self, error: CloudError, made: int, left_s: float) -> float | None:
        """Seconds until the next attempt, or None where there is none to be made; one that is made counts.

        Args:
            error: Why the last attempt failed.
            made: Attempts made so far, at least 1.
            left_s: Seconds in which the answer must be there.
        """
        if made >= self._attempts or not isinstance(error, CloudUnreachableError | CloudThrottledError):
            return None
        at_least = (error.retry_after_s or 0.0) if isinstance(error, CloudThrottledError) else 0.0
        pause_s = at_least + self._uniform() * min(_FIRST_PAUSE_S * 2.0 ** (made - 1), _LONGEST_PAUSE_S)
        if pause_s >= left_s or not self._bucket.take():
            return None
        return pause_s
