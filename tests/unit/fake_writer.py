"""An `AnswerService` that writes texts token by token, records what becomes of them, and misbehaves as it is told.

Tests load it by path: under pytest's importlib mode a test cannot import its neighbours.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

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
    Revised,
    Served,
    ServiceInfo,
    Source,
    Status,
    Token,
)
from edgewise.dialogue import Finish, Prompt, TokenChoice, ToolCall, Written

TEXT = ("Grain", " exports", " rose", " in", " March", ".")


def service_info(**changes: object) -> ServiceInfo:
    fields = {
        "name": "writer",
        "version": "sha256:1",
        "task": "text-generation",
        "labels": (),
        "input": "text",
        "role": "gateway",
    }
    return ServiceInfo(**{**fields, **changes})


def served(service: object, **beside: Served):
    """What a front door takes: the writer, and others beside it."""
    models = {"writer": Served(info=service_info(), service=service, ready=lambda: None), **beside}
    return lambda: models


def written(**changes: object) -> Written:
    return Written(**{"finish": Finish.STOP, "prompt_tokens": 7, "completion_tokens": 6, "cached_tokens": 4, **changes})


def make_answer(request_id: str, output: Output = "Grain exports rose in March.", **changes: object) -> Answer:
    fields = {
        "status": Status.FINAL,
        "source": Source.EDGE,
        "decision": Decision(action=Action.LOCAL, reason=Reason.CONFIDENT, policy="certified", score=0.9),
        "timings_ms": {"total": 1.5},
        "model_digest": "sha256:1",
        "written": written(),
    }
    return Answer(id=request_id, output=output, **{**fields, **changes})


class Writer:
    """Writes `tokens`, then answers with what `answer` gives, which is their text unless it is told otherwise.

    Attributes:
        tokens: What is written.
        output: The answer's text; None joins the tokens.
        changes: Other fields of the answer.
        error: Raised behind `error_after` tokens, where there is one.
        error_after: See there.
        is_endless: Tokens go on until somebody closes the stream.
        calls: Tools that the answer calls.
        revision: Output of the final answer that follows.
        requests: What was asked, in order.
        open: Streams that were begun and have not ended; whatever ends them.
        begun: Set when a stream was begun.
        closed: Set whenever the last stream has ended.
        told: Tokens that were handed on, by request.
        gate: Awaited before each token but the first, where there is one.
        wait_first: Whether it is awaited before the first too.
    """

    def __init__(self) -> None:
        self.tokens: tuple[str, ...] = TEXT
        self.top: tuple[TokenChoice, ...] = ()
        self.logprob: float | None = -0.25
        self.output: str | None = None
        self.changes: dict[str, object] = {}
        self.error: Exception | None = None
        self.error_after = 0
        self.is_endless = False
        self.calls: tuple[ToolCall, ...] = ()
        self.revision: str | None = None
        self.requests: list[Request] = []
        self.open = 0
        self.begun = asyncio.Event()
        self.closed = threading.Event()
        self.told: dict[str, int] = {}
        self.gate: asyncio.Event | None = None
        self.wait_first = False

    async def events(self, request: Request) -> AsyncIterator[Event]:
        assert isinstance(request.inputs, Prompt)
        self.requests.append(request)
        self.open += 1
        self.begun.set()
        self.closed.clear()
        try:
            async for event in self._write(request):
                yield event
        finally:
            self.open -= 1
            if not self.open:
                self.closed.set()

    async def _write(self, request: Request) -> AsyncIterator[Event]:
        count = 0
        while self.is_endless or count < len(self.tokens):
            self._fail(count)
            if self.gate is not None and (count or self.wait_first):
                await self.gate.wait()
            await asyncio.sleep(0)
            yield Token(
                id=request.id,
                text=self.tokens[count % len(self.tokens)],
                logprob=self.logprob,
                source=Source.EDGE,
                top=self.top,
            )
            count += 1
            self.told[request.id] = count
        self._fail(count)
        output = "".join(self.tokens) if self.output is None else self.output
        how = written(tool_calls=self.calls, finish=Finish.TOOL_CALLS if self.calls else Finish.STOP)
        yield Answered(make_answer(request.id, output, **{"written": how, **self.changes}))
        if self.revision is not None:
            yield Revised(make_answer(request.id, self.revision, source=Source.CLOUD))
        yield Done(request.id)

    def _fail(self, count: int) -> None:
        if self.error is not None and count == self.error_after:
            raise self.error
