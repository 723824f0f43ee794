"""An `AnswerService` that answers at once, records what it was asked, and misbehaves when it is told to.

Tests load it by path: under pytest's importlib mode a test cannot import its neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

from edgewise.contracts import (
    Action,
    Answer,
    Answered,
    Decision,
    Done,
    Event,
    Output,
    Reason,
    Request,
    Served,
    ServiceInfo,
    Source,
    Status,
)


def service_info(**changes: object) -> ServiceInfo:
    fields = {
        "name": "newswire",
        "version": "sha256:1",
        "task": "text-classification",
        "labels": ("acq", "earn"),
        "input": "text",
        "role": "gateway",
    }
    return ServiceInfo(**{**fields, **changes})


def served(
    service: object, ready: Callable[[], str | None] | None = None, **changes: object
) -> Callable[[], Mapping[str, Served]]:
    """What a front door takes: one model, named as `service_info` says."""
    info = service_info(**changes)
    models = {info.name: Served(info=info, service=service, ready=ready or (lambda: None))}
    return lambda: models


def make_answer(
    request_id: str = "1",
    output: Output = "earn",
    *,
    status: Status = Status.FINAL,
    source: Source = Source.EDGE,
    reason: Reason = Reason.CONFIDENT,
    score: float | None = 0.75,
    threshold: float | None = 0.5,
    certificate_id: str | None = "cert-1",
    model_digest: str = "sha256:1",
) -> Answer:
    return Answer(
        id=request_id,
        output=output,
        status=status,
        source=source,
        decision=Decision(
            action=Action.LOCAL,
            reason=reason,
            policy="certified",
            score=score,
            threshold=threshold,
            certificate_id=certificate_id,
        ),
        timings_ms={"total": 1.5},
        model_digest=model_digest,
    )


class FakeService:
    """Answers with `make(request)`; `error` is raised instead, and `hold` is awaited first.

    Attributes:
        requests: What was asked, in order.
        cancelled: Ids of requests whose work was cancelled while it was held.
        entered: Set when a request has arrived.
    """

    def __init__(self) -> None:
        self.make: Callable[[Request], Answer] = lambda request: make_answer(request.id)
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.requests: list[Request] = []
        self.cancelled: list[str] = []
        self.entered = asyncio.Event()

    async def events(self, request: Request) -> AsyncIterator[Event]:
        self.requests.append(request)
        self.entered.set()
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        if self.error is not None:
            raise self.error
        answer = self.make(request)
        yield Answered(answer)
        yield Done(request.id, pending=answer.status is Status.PROVISIONAL)
