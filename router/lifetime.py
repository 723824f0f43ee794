"""How long a certificate holds, by clocks that may be wrong. Pure.

The wall clock says when a certificate's stated life is over, and anybody can set it. The monotonic clock cannot be set,
and knows only how long this process has run. Together: a clock set back lengthens no life, a clock that jumps ahead
ends it only until it is put right.

Owns the verdict. What follows from it, and reading clocks, belongs to others.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

# Clocks of two machines differ: a certificate that looks a little younger than its birth is nothing to worry about.
_TOLERANCE_S = 24 * 3600.0


class Life(StrEnum):
    """Whether a certificate holds at this moment."""

    OK = "ok"
    EXPIRED = "expired"
    CLOCK_WRONG = "clock_wrong"
    """The clock stands before the certificate was created, so nobody can tell."""


class Lifetime:
    """The stated life of one certificate in one process.

    Its first verdict is taken for the moment it was loaded.

    Args:
        created: ISO 8601; UTC where it names no zone.
        expires: ISO 8601, or None where no end is stated: then it always holds.

    Raises:
        ValueError: Not a time.
    """

    def __init__(self, created: str, expires: str | None) -> None:
        self._ends = expires is not None
        self._created_s = 0.0 if expires is None else seconds_of(created)
        self._expires_s = 0.0 if expires is None else seconds_of(expires)
        self._deadline_s: float | None = None
        self._measured = False

    def verdict(self, now_wall_s: float, now_monotonic_s: float) -> Life:
        """Whether it holds now.

        Args:
            now_wall_s: Seconds since the epoch, by a clock that may be wrong.
            now_monotonic_s: Seconds by a clock that never runs backwards.
        """
        if not self._ends:
            return Life.OK
        wrong = not now_wall_s >= self._created_s - _TOLERANCE_S
        over = now_wall_s >= self._expires_s
        if now_monotonic_s >= self._deadline(now_wall_s, now_monotonic_s, plausible=not wrong and not over):
            return Life.EXPIRED
        if wrong:
            return Life.CLOCK_WRONG
        return Life.EXPIRED if over else Life.OK

    def _deadline(self, wall_s: float, monotonic_s: float, *, plausible: bool) -> float:
        """When its life is over by the monotonic clock: what was left when the wall clock first stood within it."""
        if self._deadline_s is None:
            # Never more than the whole life, whatever the clock says.
            self._deadline_s = monotonic_s + self._expires_s - self._created_s
        if plausible and not self._measured:
            self._measured = True
            self._deadline_s = min(self._deadline_s, monotonic_s + self._expires_s - wall_s)
        return self._deadline_s


def seconds_of(moment: str) -> float:
    """Seconds since the epoch of an ISO 8601 time; UTC where it names no zone.

    Raises:
        ValueError: Not a time.
    """
    read = datetime.fromisoformat(moment)
    return (read if read.tzinfo is not None else read.replace(tzinfo=UTC)).timestamp()
