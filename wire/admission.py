"""How much one process takes on at once: requests, polls, and bytes of bodies in memory.

Owns counters and the reply to one too many; who takes a place, and for how long, is the door's business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from edgewise.wire.faults import Fault

_REMEDY = "Try again after the seconds in retry-after."


class Places:
    """A limited number of places, each held for the length of a `with` block.

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

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            Fault: None is free.
        """
        self.check()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class Room:
    """Bytes that all bodies together may take in memory.

    Args:
        limit: How many there are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.taken = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Give a function that takes a number of bytes; they are given back when the block ends.

        The function raises a `Fault` when there is no room for so many.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self.taken + size > self._limit:
                raise Fault(429, "too_many_requests", "Too many bodies are being read already.", remedy=_REMEDY)
            self.taken += size
            held += size

        try:
            yield hold
        finally:
            self.taken -= held
