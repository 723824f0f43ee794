"""Putting requests to a service: an answer at once where it knows one, else the work that brings it.

Owns how answers are counted and timed; who waits for the work, and until when, is the door's business.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeAlias

from edgewise import telemetry
from edgewise.contracts import Answer, AnswerService, Request, Served, answer
from edgewise.telemetry import Metrics

Work: TypeAlias = Coroutine[Any, Any, Answer]
"""Brings an answer; must be awaited or closed."""


class Asking:
    """Asks services.

    Args:
        metrics: Where answers are counted and timed.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter(*telemetry.REQUESTS)
        self._seconds = metrics.histogram(*telemetry.REQUEST_SECONDS)
        self._quantiles = metrics.quantiles(*telemetry.REQUEST_QUANTILES)

    def one(self, served: Served, request: Request) -> Answer | Work:
        """The first whole answer to a request, or the work that brings it. Both raise what the service raises."""
        started_s = time.perf_counter()
        found = _respond(served.service, request)
        if not isinstance(found, Answer):
            return self._awaited(served, found, started_s)
        self.count(served, found, started_s)
        return found

    def all(self, served: Served, requests: Sequence[Request]) -> list[Answer] | Coroutine[Any, Any, list[Answer]]:
        """The answers to all requests, asked at once, or the work that brings them; the first that fails cancels it."""
        if len(requests) == 1:
            found = self.one(served, requests[0])
            return [found] if isinstance(found, Answer) else _listed(found)
        return self._gathered(served, requests)

    def count(self, served: Served, found: Answer, started_s: float) -> None:
        """Count an answer that was asked for at `started_s`, in seconds of `perf_counter`."""
        model, source = served.info.name, found.source
        seconds = time.perf_counter() - started_s
        self._seconds.observe(seconds, model, source)
        self._quantiles.observe(seconds, model, source)
        self._requests.inc(model, source, found.decision.reason, found.status)

    async def _gathered(self, served: Served, requests: Sequence[Request]) -> list[Answer]:
        try:
            async with asyncio.TaskGroup() as group:
                found = [self._begun(group, served, request) for request in requests]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [one if isinstance(one, Answer) else one.result() for one in found]

    def _begun(self, group: asyncio.TaskGroup, served: Served, request: Request) -> Answer | asyncio.Task[Answer]:
        started_s = time.perf_counter()
        found = _respond(served.service, request)
        if isinstance(found, Answer):
            self.count(served, found, started_s)
            return found
        task = group.create_task(found)
        task.add_done_callback(partial(self._count_task, served, started_s))
        return task

    def _count_task(self, served: Served, started_s: float, task: asyncio.Task[Answer]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.count(served, task.result(), started_s)

    async def _awaited(self, served: Served, work: Work, started_s: float) -> Answer:
        found = await work
        self.count(served, found, started_s)
        return found


def _respond(service: AnswerService, request: Request) -> Answer | Work:
    """As `PromptService.respond`, also of a service that has only streams."""
    respond = getattr(service, "respond", None)
    found: Answer | Work = answer(service, request) if respond is None else respond(request)
    return found


async def _listed(work: Work) -> list[Answer]:
    return [await work]
