"""Asking a service about many items: a few calls at a time, in order of the items, the first failure ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from edgewise.contracts import CloudClient, Progress, Reference
from edgewise.errors import CloudError

_T = TypeVar("_T")
_R = TypeVar("_R")


_POLL_S = 0.2


async def until_ready(check: Callable[[], Awaitable[_R]], *, wait_s: float) -> _R:
    """The first result of `check` that is no CloudError, retried for up to `wait_s` seconds.

    Raises:
        CloudError: The last one, when time is up.
    """
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        try:
            return await check()
        except CloudError:
            if asyncio.get_running_loop().time() >= deadline:
                raise
        await asyncio.sleep(_POLL_S)


async def reference_of(cloud: CloudClient, *, timeout_s: float, wait_s: float) -> Reference:
    """The model and version that answer, waiting for a cloud that is still starting.

    Raises:
        CloudError: It did not answer until time was up.
    """
    return await until_ready(lambda: cloud.describe(timeout_s=timeout_s), wait_s=wait_s)


async def ask_all(
    items: Sequence[_T], ask: Callable[[_T], Awaitable[_R]], *, concurrency: int, progress: Progress
) -> list[_R]:
    """Results of `ask` for every item, in their order.

    Args:
        items: What to ask about.
        ask: One call.
        concurrency: Calls at the same time.
        progress: Advanced by one an answer.

    Raises:
        Exception: Whatever the first failing call raised; the others are cancelled.
    """
    results: dict[int, _R] = {}
    waiting = iter(enumerate(items))

    async def work() -> None:
        for index, item in waiting:
            results[index] = await ask(item)
            progress.advance()

    workers = [asyncio.ensure_future(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[index] for index in range(len(items))]
