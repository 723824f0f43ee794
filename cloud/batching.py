"""Which waiting requests are computed next. Pure rules over a queue: no clock, no thread, no I/O.

The most urgent request is always in the next batch. Urgent is what must be answered soon, or has waited long, so that
nobody starves. It is joined by requests of like length, in the same order, while the batch stays under its cap and is
done in time for everyone in it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from edgewise.cloud.costs import Costs
from edgewise.cloud.grouping import MAX_WASTE
from edgewise.contracts import Input, Prediction, Request

PATIENCE_S = 1.0
"""A request is as urgent as one whose budget ends so long after its own arrival: who came later than that is behind."""

_SHORTEST, _LONGEST = 8, 2048


@dataclass(frozen=True)
class Result:
    """A prediction and where its time went.

    Attributes:
        prediction: The prediction.
        queued_ms: Milliseconds from arrival to the start of its batch.
        engine_ms: Milliseconds its batch took.
        batch: Requests in its batch.
    """

    prediction: Prediction
    queued_ms: float
    engine_ms: float
    batch: int


@dataclass(frozen=True, eq=False)
class Pending:
    """A request that waits for the engine.

    Attributes:
        request: The request.
        arrived_s: When it came, monotonic seconds.
        wanted_s: When its budget is spent; `inf` without one.
        deadline_s: From when on nobody waits for it: the same, or when its caller's patience ends.
        length: How long its item is, in units of `length_of`.
        started: Done once its batch is computed.
        result: Where its result goes; done before that once its caller gave up or its budget was spent.
    """

    request: Request
    arrived_s: float
    wanted_s: float
    deadline_s: float
    length: int
    started: asyncio.Future[None]
    result: asyncio.Future[Result]


class Taken(NamedTuple):
    """What became of a queue. Requests whose callers gave up are in none of the three.

    Attributes:
        batch: To be computed now, the most urgent first.
        spent: Those whose budget is spent, or cannot be met any more.
        waiting: Those that go on waiting.
    """

    batch: list[Pending]
    spent: list[Pending]
    waiting: list[Pending]


def length_of(item: Input) -> int:
    """How long an item is, for telling like from unlike: the characters of a text, and 1 for any image.

    Tokens would be exact, and are not known before the engine has read the item. Each text has a few special ones, and
    nearly every model cuts texts off at 512 tokens.
    """
    return min(_SHORTEST + len(item), _LONGEST) if isinstance(item, str) else 1


def take_batch(queue: Iterable[Pending], now_s: float, max_batch: int, costs: Costs) -> Taken:
    """Take the next batch.

    Args:
        queue: Waiting requests.
        now_s: Monotonic seconds.
        max_batch: Most requests in a batch, at least 1.
        costs: What is known of the engine's times.

    Returns:
        The batch, empty only where nobody waits who can be answered in time; who is told that it cannot; who waits on.
    """
    waits = (item for item in queue if not item.result.done())
    alive = sorted(waits, key=lambda item: due_s(item, now_s, costs))
    spent = [item for item in alive if not can_be_met(item, now_s, costs)]
    hopeful = [item for item in alive if can_be_met(item, now_s, costs)]
    batch: list[Pending] = []
    waiting: list[Pending] = []
    growing = _Growing(now_s, max_batch, costs)
    for item in hopeful:
        (batch if growing.takes(item) else waiting).append(item)
    return Taken(batch, spent, waiting)


def can_be_met(item: Pending, now_s: float, costs: Costs) -> bool:
    """Whether an item that starts now, alone, can be answered while somebody waits for it."""
    return item.deadline_s - now_s > costs.lower(1, item.length, now_s)


def due_s(item: Pending, now_s: float, costs: Costs) -> float:
    """When an item should be answered, monotonic seconds.

    One whose budget is lost makes nobody else lose theirs until half of its caller's patience is over: sooner, and the
    lost ones of one burst would make all that come after it late.
    """
    if item.wanted_s < item.deadline_s and aim_s(item, now_s, costs) != item.wanted_s:
        return item.arrived_s + (item.deadline_s - item.arrived_s) / 2
    return min(item.wanted_s, item.arrived_s + PATIENCE_S)


def aim_s(item: Pending, now_s: float, costs: Costs) -> float:
    """When a batch with an item in it has to be done: within its budget while that can be met, else its patience."""
    return item.wanted_s if item.wanted_s - now_s > costs.lower(1, item.length, now_s) else item.deadline_s


class _Growing:
    """A batch while it is put together."""

    def __init__(self, now_s: float, max_batch: int, costs: Costs) -> None:
        self._now_s = now_s
        self._max_batch = max_batch
        self._costs = costs
        self._items = 0
        self._longest = 0
        self._real = 0
        self._deadline_s = math.inf

    def takes(self, item: Pending) -> bool:
        """Take an item in where it fits; the first always does."""
        items, longest = self._items + 1, max(self._longest, item.length)
        real = self._real + item.length
        deadline_s = min(self._deadline_s, aim_s(item, self._now_s, self._costs))
        fits = items <= self._max_batch and items * longest <= real * (1 + MAX_WASTE)
        in_time = deadline_s == math.inf or self._now_s + self._costs.upper(items, longest) <= deadline_s
        if self._items and not (fits and in_time):
            return False
        self._items, self._longest, self._real, self._deadline_s = items, longest, real, deadline_s
        return True


def share(waiting: int, free: int, max_batch: int) -> int:
    """Most requests of the next batch where `free` slots wait for work: all of them get some."""
    return min(max_batch, max(1, math.ceil(waiting / max(free, 1))))


def in_a_hurry(queue: Iterable[Pending], now_s: float, wait_s: float, costs: Costs) -> bool:
    """Whether somebody waits who would be answered late if the batch started `wait_s` seconds from now."""
    return any(aim_s(item, now_s, costs) < now_s + wait_s + costs.upper(1, item.length) for item in queue)


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
