"""Putting requests to a service: at once where it knows the answer, else while somebody watches that the client stays.

Owns how many answers are counted and timed, and that no work goes on for a client who left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from edgewise import telemetry
from edgewise.contracts import Answer, AnswerService, Request, answer
from edgewise.telemetry import Metrics
from edgewise.wire.http import Receive, unless_client_leaves


class Asking:
    """Asks services.

    Args:
        metrics: Where answers are counted and timed.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter(*telemetry.REQUESTS)
        self._seconds = metrics.histogram(*telemetry.REQUEST_SECONDS)

    async def one(self, service: AnswerService, request: Request, receive: Receive) -> Answer:
        """The first whole answer to a request.

        Args:
            service: Whom to ask.
            request: What.
            receive: Tells that the client left, after its whole body was read.

        Raises:
            ClientGoneError: It left; the work was cancelled and has ended.
            Exception: Whatever the service raises.
        """
        started = time.perf_counter()
        found = _respond(service, request)
        if not isinstance(found, Answer):
            found = await unless_client_leaves(receive, found)
        self._count(found, started)
        return found

    async def all(self, service: AnswerService, requests: Sequence[Request], receive: Receive) -> list[Answer]:
        """The answers to all requests, asked at once; the first that fails cancels the others. Raises as `one`."""
        if len(requests) == 1:
            return [await self.one(service, requests[0], receive)]
        return await unless_client_leaves(receive, self._gathered(service, requests))

    async def _gathered(self, service: AnswerService, requests: Sequence[Request]) -> list[Answer]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._waited(service, request)) for request in requests]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _waited(self, service: AnswerService, request: Request) -> Answer:
        started = time.perf_counter()
        found = _respond(service, request)
        if not isinstance(found, Answer):
            found = await found
        self._count(found, started)
        return found

    def _count(self, found: Answer, started: float) -> None:
        self._seconds.observe(time.perf_counter() - started, found.source.value)
        self._requests.inc(found.source.value, found.decision.reason.value, found.status.value)


def _respond(service: AnswerService, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
    """As `PromptService.respond`, also of a service that has only streams."""
    respond = getattr(service, "respond", None)
    found: Answer | Coroutine[Any, Any, Answer] = answer(service, request) if respond is None else respond(request)
    return found
