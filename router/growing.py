"""A text that grows while others wait for it, on one event loop. Owns the waiting, and nothing of what grows."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Growing(Generic[T]):
    """Items in the order in which they come; for one event loop.

    Attributes:
        items: What is there by now.
        is_over: Whether nothing more will come.
        soonest: How many items the first of those who wait waits for; `inf` where nobody does.
    """

    def __init__(self) -> None:
        self.items: list[T] = []
        self.is_over = False
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []
        self.soonest = math.inf
        self._listener: Callable[[Sequence[T]], None] | None = None

    def add(self, *items: T) -> None:
        """More is there."""
        self.extend(items)

    def extend(self, items: Iterable[T]) -> None:
        """More is there, told once."""
        passed = len(self.items)
        self.items.extend(items)
        if self._listener is not None:
            self._listener(self.items[passed:])
        if len(self.items) >= self.soonest:
            self._tell()

    def end(self) -> None:
        """Nothing more will come."""
        self.is_over = True
        self._tell()

    def follow(self, listener: Callable[[Sequence[T]], None], passed: int = 0) -> None:
        """Tell a listener what is there after the first items, and what comes, as it comes; one at a time.

        That costs a call. To wake a task for each item costs a turn of the event loop.
        """
        self._listener = listener
        listener(self.items[passed:])

    def unfollow(self) -> None:
        """Tell the listener no more."""
        self._listener = None

    def sign(self, count: float = math.inf) -> asyncio.Future[None]:
        """Done once `count` items are there, or nothing more comes; waking for each of fewer would cost the most."""
        found = asyncio.get_running_loop().create_future()
        if self._is_there(count):
            found.set_result(None)
        else:
            self._waiting.append((count, found))
            self.soonest = min(count, self.soonest)
        return found

    async def reach(self, count: float = math.inf) -> None:
        """Wait until `count` items are there, or nothing more comes."""
        if not self._is_there(count):
            await self.sign(count)

    def _is_there(self, count: float) -> bool:
        return self.is_over or len(self.items) >= count

    def _tell(self) -> None:
        still = []
        for count, sign in self._waiting:
            if sign.done():
                continue
            if self._is_there(count):
                sign.set_result(None)
            else:
                still.append((count, sign))
        self._waiting = still
        self.soonest = min((count for count, _ in still), default=math.inf)
