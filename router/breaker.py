"""A circuit breaker (Nygard, Release It!, 2007): stops asking a cloud that keeps failing. Pure: time is passed in.

Half-open probes are the owner's to make, off the request path, so that no request ever waits on a cloud known dead.
"""

from __future__ import annotations


class Breaker:
    """Closed until a run of failures, then open until a probe succeeds.

    Args:
        failures_to_open: Consecutive failures that open it.
        cool_down_s: Seconds between opening, or a failed probe, and the next probe.
    """

    def __init__(self, *, failures_to_open: int = 3, cool_down_s: float = 5.0) -> None:
        self._failures_to_open = failures_to_open
        self._cool_down_s = cool_down_s
        self._failures = 0
        self._probe_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests must not wait for the cloud."""
        return self._probe_at is not None

    def seconds_to_probe(self, now: float) -> float:
        """Seconds until the next probe is due; 0 where it is due or the breaker is closed."""
        return 0.0 if self._probe_at is None else max(0.0, self._probe_at - now)

    def succeeded(self) -> None:
        """A call or a probe succeeded: close."""
        self._failures = 0
        self._probe_at = None

    def failed(self, now: float) -> None:
        """A call or a probe failed; enough of them in a row open the breaker."""
        self._failures += 1
        if self._failures >= self._failures_to_open:
            self._probe_at = now + self._cool_down_s
