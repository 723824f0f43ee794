"""Identical work in flight is done once and shared; each who waits for it keeps its own patience.

Owns who shares what, and that work nobody waits for any longer is cancelled. What is identical, the caller's key says,
and from when on a piece of work is too old to be joined, its owner.
Nothing is remembered: work that has ended, well or badly, is done anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Work of one kind that is in flight on one event loop."""

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: bytes | None, start: Callable[[], asyncio.Future[T]]) -> Share[T]:
        """Share in the work of this key; it is started where none is in flight.

        Args:
            key: The same for identical work; None shares with nobody.
            start: Starts the work.
        """
        flight = None if key is None else self._flights.get(key)
        if flight is None or flight.is_over:
            flight = _Flight(start())
            if key is not None:
                self._flights[key] = flight
            flight.future.add_done_callback(lambda _: self._forget(key, flight))
        return Share(flight)

    def retire(self, key: bytes | None) -> None:
        """Let nobody else join the work of this key; who shares in it already goes on."""
        if key is not None:
            self._flights.pop(key, None)

    def _forget(self, key: bytes | None, flight: _Flight[T]) -> None:
        if key is not None and self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.future.cancelled():
            flight.future.exception()  # whoever wanted it may have left


class _Flight(Generic[T]):
    """One piece of work and how many wait for it."""

    __slots__ = ("future", "waiting")

    def __init__(self, future: asyncio.Future[T]) -> None:
        self.future = future
        self.waiting = 0

    @property
    def is_over(self) -> bool:
        """Whether it ended, or was cancelled for want of anybody who waits and is about to end."""
        return self.waiting == 0 or self.future.done()


class Share(Generic[T]):
    """One waiter's share in a piece of work; whoever has no use for the result any longer must leave.

    Attributes:
        future: The work. It is everybody's: cancel it by leaving.
    """

    __slots__ = ("_flight", "_left", "future")

    def __init__(self, flight: _Flight[T]) -> None:
        self._flight = flight
        self._left = False
        self.future = flight.future
        flight.waiting += 1

    async def result(self) -> T:
        """What the work brings, or raises; cancelling this wait cancels nobody else's."""
        return await asyncio.shield(self.future)

    def leave(self) -> None:
        """Wait no longer; the last one to leave cancels the work."""
        if self._left:
            return
        self._left = True
        self._flight.waiting -= 1
        if self._flight.waiting == 0:
            self.future.cancel()
