"""Which waiting requests are computed next. Pure rules over a queue: no clock, no thread, no I/O."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from edgewise.contracts import Prediction, Request


@dataclass(frozen=True)
class Result:
    """A prediction and where its time went.

    Attributes:
        prediction: The prediction.
        queued_ms: Milliseconds from arrival to the start of its batch.
        engine_ms: Milliseconds its batch took.
    """

    prediction: Prediction
    queued_ms: float
    engine_ms: float


@dataclass(frozen=True, eq=False)
class Pending:
    """A request that waits for the engine.

    Attributes:
        request: The request.
        arrived_s: When it came, monotonic seconds.
        deadline_s: When its budget is spent; `inf` without one.
        result: Where its result goes; done before that once its caller gave up or its budget was spent.
    """

    request: Request
    arrived_s: float
    deadline_s: float
    result: asyncio.Future[Result]


def take_batch(queue: deque[Pending], now_s: float, max_batch: int) -> tuple[list[Pending], list[Pending]]:
    """Take the next batch off the queue, in order of arrival.

    Args:
        queue: Waiting requests, oldest first; what is taken or given up leaves it.
        now_s: Monotonic seconds.
        max_batch: Most requests in a batch, at least 1.

    Returns:
        The batch, and the requests whose budget was spent before they reached it. Those whose callers gave up are in
        neither.
    """
    batch: list[Pending] = []
    spent: list[Pending] = []
    while queue and len(batch) < max_batch:
        item = queue.popleft()
        if item.result.done():
            continue
        (batch if item.deadline_s > now_s else spent).append(item)
    return batch, spent


def enough(waiting: int, last_batch: int, max_batch: int) -> bool:
    """Whether to start now instead of waiting for more.

    Callers that came together tend to come back together, so a batch waits for as many as the last one had. A lone
    caller therefore never waits for neighbours it does not have.

    Args:
        waiting: Requests in the queue.
        last_batch: Size of the last batch; 0 before the first.
        max_batch: Most requests in a batch.
    """
    return waiting >= min(max(last_batch, 1), max_batch)
