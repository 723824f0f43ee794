"""A fact about a server that its answers do not carry: asked for once, and again when it has grown old."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")

KEEP_S = 60.0
"""How long a fact is believed. A router's own probes renew it sooner."""


class Lasting(Generic[T]):
    """A fact that is believed for `KEEP_S` seconds.

    Args:
        ask: Asks the server.
        now: Monotonic seconds.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], now: Callable[[], float]) -> None:
        self._ask = ask
        self._now = now
        self._known: tuple[float, T] | None = None
        self._asking = asyncio.Lock()

    async def renewed(self) -> T:
        """The fact, asked for now."""
        fact = await self._ask()
        self._known = (self._now(), fact)
        return fact

    async def get(self) -> T:
        """The fact, asked for where it has grown old; calls at the same time ask once."""
        async with self._asking:
            return self._known[1] if self._known is not None and self._is_fresh() else await self.renewed()

    async def beside(self, call: Callable[[], Awaitable[U]]) -> tuple[U, T]:
        """What a call brings, and the fact; where that has grown old, both are asked for at the same time.

        Raises:
            Exception: Whatever the call or the asking raises; the other is cancelled.
        """
        if self._is_fresh():
            # Read after the call: it may have been renewed meanwhile.
            reply = await call()
            return reply, await self.get()
        try:
            async with asyncio.TaskGroup() as group:
                calling, asking = group.create_task(_awaited(call)), group.create_task(self.get())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return calling.result(), asking.result()

    def _is_fresh(self) -> bool:
        return self._known is not None and self._now() - self._known[0] <= KEEP_S


async def _awaited(call: Callable[[], Awaitable[U]]) -> U:
    return await call()
