"""A circuit breaker (Nygard, Release It!, 2007): stops asking a cloud that fails, or is slow, too often. Pure.

It opens when at least half of the latest outcomes are failures. A mere run of failures would do for a cloud that is
dead, but a busy gateway meets every short run by chance: at 50 calls a second, of which one in five fails, three
failures in a row come every three seconds, and four in five calls would have been answered. Old outcomes say little of
now: a gateway with little traffic goes by its latest few, where half of them and a run are the same.

Half-open probes are the owner's to make, off the request path, so that no request ever waits on a cloud known dead.
Time is passed in. Whether an outcome is a failure is `escalation`'s to say.
"""

from __future__ import annotations

from collections import deque

_WINDOW = 20
"""Outcomes that are looked at."""

_WINDOW_S = 30.0
"""Seconds after which an outcome is no longer looked at, where enough newer ones are there."""


class Breaker:
    """Closed until too much fails, then open until a probe succeeds.

    A cloud that keeps failing soon after its probes succeeded is left alone longer and longer: each opening within
    `max_cool_down_s` of the closing before it doubles the cool-down, up to that ceiling; a longer good time undoes all.

    Args:
        failures_to_open: Failures that it takes at least; they must also be half of the last 20 outcomes. Outcomes of
            more than 30 seconds ago do not count beyond this number.
        cool_down_s: Seconds between opening, or a failed probe, and the next probe.
        max_cool_down_s: The most that it grows to.
    """

    def __init__(self, *, failures_to_open: int = 3, cool_down_s: float = 5.0, max_cool_down_s: float = 60.0) -> None:
        self._failures_to_open = failures_to_open
        self._cool_down_s = cool_down_s
        self._max_cool_down_s = max(cool_down_s, max_cool_down_s)
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=max(_WINDOW, failures_to_open))
        self._probe_at: float | None = None
        self._reopenings = 0
        self._closed_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests must not wait for the cloud."""
        return self._probe_at is not None

    @property
    def cool_down_s(self) -> float:
        """Seconds between probes now."""
        # 2 ** 64 cool-downs are beyond every ceiling; without the bound the power would overflow some day.
        return min(self._cool_down_s * 2.0 ** min(self._reopenings, 64), self._max_cool_down_s)

    def seconds_to_probe(self, now: float) -> float:
        """Seconds until the next probe is due; 0 where it is due or the breaker is closed."""
        return 0.0 if self._probe_at is None else max(0.0, self._probe_at - now)

    def succeeded(self, now: float) -> None:
        """A call succeeded. One that was under way when it opened changes nothing: only a probe closes."""
        if not self.is_open:
            self._note(now, failed=False)

    def failed(self, now: float) -> None:
        """A call failed. One that was under way when it opened puts no probe off."""
        if self.is_open:
            return
        self._note(now, failed=True)
        failures = sum(failed for _, failed in self._outcomes)
        if failures >= self._failures_to_open and 2 * failures >= len(self._outcomes):
            self._open(now)

    def probe_succeeded(self, now: float) -> None:
        """A probe succeeded: close."""
        if self.is_open:
            self._probe_at = None
            self._closed_at = now
            self._outcomes.clear()

    def probe_failed(self, now: float) -> None:
        """A probe failed: the next one after another cool-down. Of a closed breaker it is an outcome like any other."""
        if self.is_open:
            self._probe_at = now + self.cool_down_s
        else:
            self.failed(now)

    def _open(self, now: float) -> None:
        recent = self._closed_at is not None and now - self._closed_at < self._max_cool_down_s
        self._reopenings = self._reopenings + 1 if recent else 0
        self._probe_at = now + self.cool_down_s
        self._outcomes.clear()

    def _note(self, now: float, *, failed: bool) -> None:
        self._outcomes.append((now, failed))
        while len(self._outcomes) > self._failures_to_open and now - self._outcomes[0][0] > _WINDOW_S:
            self._outcomes.popleft()
