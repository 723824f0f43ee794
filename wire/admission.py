"""How much one process takes on: requests at once and a second, polls, streams, and bytes of bodies in memory.

Owns counters and the reply to one too many; who takes a place, and for how long, is the door's business. Time is
passed in.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from edgewise.wire.faults import Fault

T = TypeVar("T")

_REMEDY = "Try again after the seconds in retry-after."


class Places:
    """A limited number of places, each held for the length of a `with` block, or from `take` to `give`.

    Args:
        limit: How many there are.
        holders: Who holds them, for the message.
    """

    def __init__(self, limit: int, holders: str) -> None:
        self._limit = limit
        self._holders = holders
        self.taken = 0

    def check(self) -> None:
        """Find out whether a place is free, without taking it.

        Raises:
            Fault: None is.
        """
        if self.taken >= self._limit:
            raise Fault(429, "too_many_requests", f"{self.taken} {self._holders} already.", remedy=_REMEDY)

    def take(self) -> None:
        """Take a place; whoever takes it gives it back.

        Raises:
            Fault: None is free.
        """
        self.check()
        self.taken += 1

    def give(self) -> None:
        """Give a place back."""
        self.taken -= 1

    def __enter__(self) -> None:
        """Take a place.

        Raises:
            Fault: None is free.
        """
        self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the place back."""
        self.taken -= 1


class Room:
    """Bytes that all bodies together may take in memory.

    Args:
        limit: How many there are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.taken = 0

    def take(self, size: int) -> None:
        """Take `size` bytes; whoever takes them gives them back.

        Raises:
            Fault: There is no room for so many.
        """
        if self.taken + size > self._limit:
            raise Fault(429, "too_many_requests", "Too many bodies are being read already.", remedy=_REMEDY)
        self.taken += size

    def give(self, size: int) -> None:
        """Give `size` bytes back."""
        self.taken -= size


class Rates:
    """Requests a second by tenant: a token bucket each (the generic cell rate algorithm, ITU-T I.371, 1993).

    A tenant's bucket is one number, the time at which it will be full again.

    Args:
        per_s: Requests a second that a tenant may send for ever; above 0.
        burst: Requests that it may send at once, after a silence; 1 or more.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self._interval_s = 1 / per_s
        self._reach_s = self._interval_s * burst
        self._full_s: dict[str, float] = {}

    def take(self, tenant: str, now_s: float) -> None:
        """Count a request of a tenant at `now_s`, in monotonic seconds.

        Raises:
            Fault: It has sent too many; `retry-after` tells when one more will be taken. This one does not count.
        """
        full_s = max(self._full_s.get(tenant, now_s), now_s) + self._interval_s
        early_s = full_s - self._reach_s - now_s
        if early_s > _ROUNDING_S:
            wait_s = math.ceil(early_s)
            raise Fault(
                429,
                "rate_limited",
                f"More than {1 / self._interval_s:g} requests a second.",
                remedy=_REMEDY,
                headers={"retry-after": str(wait_s)},
            )
        self._full_s[tenant] = full_s


_ROUNDING_S = 1e-9  # sums of intervals are not exact


class Drain:
    """The end of service: from its beginning nothing waits for what may come later."""

    def __init__(self) -> None:
        self.has_begun = False
        self._waiting: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        """Service ends: every `race` is lost. Call it in the thread of the event loop."""
        if self.has_begun:
            return
        self.has_begun = True
        for task in self._waiting:
            task.cancel()

    async def race(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Await `work`; None, and `work` is cancelled, where service ends first."""
        if self.has_begun:
            work.close()
            return None
        task = asyncio.get_running_loop().create_task(work)
        self._waiting.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            if self.has_begun and not _is_cancelled():
                return None
            raise
        finally:
            self._waiting.discard(task)


def _is_cancelled() -> bool:
    """Whether somebody cancels the running task itself, not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Gate:
    """What everything that answers requests shares: the places, the room, the rates and the end.

    Args:
        max_concurrency: The most requests answered at once.
        max_buffered_bytes: Bytes of all bodies together.
        rates: Requests a second by tenant; None sets no limit.
    """

    def __init__(self, max_concurrency: int, max_buffered_bytes: int, rates: Rates | None) -> None:
        self.slots = Places(max_concurrency, "requests are being answered")
        self.room = Room(max_buffered_bytes)
        self.drain = Drain()
        self._rates = rates

    def rate(self, tenant: str, now_s: float) -> None:
        """Count one request of a tenant at `now_s`, in monotonic seconds, that takes no slot.

        Raises:
            Fault: The tenant sends too many.
        """
        if self._rates is not None:
            self._rates.take(tenant, now_s)

    def admit(self, tenant: str, now_s: float) -> None:
        """Let one request of a tenant in at `now_s`, in monotonic seconds; its slot is taken later, with `slots`.

        Raises:
            Fault: The tenant sends too many, or no slot is free.
        """
        self.rate(tenant, now_s)
        self.slots.check()
