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
from edgewise.errors import RequestError
from edgewise.telemetry import Metrics

_ITEM = "inputs"
"""What a service calls the item of a request."""

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

    def all(
        self, served: Served, requests: Sequence[Request], field: str
    ) -> list[Answer] | Coroutine[Any, Any, list[Answer]]:
        """The answers to all requests, asked at once, or the work that brings them; the first that fails cancels it.

        Args:
            served: Who is asked.
            requests: What is asked.
            field: Where the items stand in what the client sent, for the error of one that cannot be read.
        """
        if len(requests) > 1:
            return self._gathered(served, requests, field)
        try:
            found = self.one(served, requests[0])
        except RequestError as error:
            raise _placed(error, field) from error
        return [found] if isinstance(found, Answer) else _listed(found, field)

    def count(self, served: Served, found: Answer, started_s: float) -> None:
        """Count an answer that was asked for at `started_s`, in seconds of `perf_counter`."""
        model, source = served.info.name, found.source
        seconds = time.perf_counter() - started_s
        self._seconds.observe(seconds, model, source)
        self._quantiles.observe(seconds, model, source)
        self._requests.inc(model, source, found.decision.reason, found.status)

    async def _gathered(self, served: Served, requests: Sequence[Request], field: str) -> list[Answer]:
        found: list[Answer | asyncio.Task[Answer]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for request in requests:
                    found.append(self._begun(group, served, request))  # noqa: PERF401  # how far it came names the item
        except ExceptionGroup as errors:
            error = errors.exceptions[0]
            failed = (place for place, one in enumerate(found) if not isinstance(one, Answer) and _raised(one) is error)
            raise _placed(error, f"{field}[{next(failed, len(found))}]") from None
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


async def _listed(work: Work, field: str) -> list[Answer]:
    try:
        return [await work]
    except RequestError as error:
        raise _placed(error, field) from error


def _raised(task: asyncio.Task[Answer]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


def _placed(error: Exception, field: str) -> Exception:
    """An error of an item, in the words of the protocol that it came by; any other as it is."""
    if not isinstance(error, RequestError) or error.field != _ITEM:
        return error
    return RequestError(field, f"{field}: {error.problem}", error.remedy, code=error.code)
