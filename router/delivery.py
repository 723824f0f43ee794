"""Answers that are owed: a provisional answer was given, the cloud's will follow under the same id.

Owns the outbox and the answer store from the flow's side. An answer is owed durably before its provisional is sent, and
forgotten only after the final one is stored, so it is delivered at least once whatever dies in between.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from edgewise.contracts import (
    Action,
    Answer,
    AnswerStore,
    CloudReply,
    Decision,
    Outbox,
    Reason,
    Request,
    Source,
    Status,
)
from edgewise.errors import CloudError
from edgewise.router.background import Background
from edgewise.router.escalation import Escalation
from edgewise.router.instruments import Instruments

_log = logging.getLogger("edgewise.router")
_BATCH = 64


class Deliveries:
    """What is owed, to whom, and the caretaker that sees to it.

    Args:
        cloud: Where the final answers come from.
        outbox: Durable requests; None owes only within this process.
        answers: Where clients pick updates up; None delivers only on open streams.
        background: Where late calls and the caretaker run.
        instruments: Where provisional answers are counted.
        retry_s: Seconds between attempts while the cloud fails without its breaker opening.
        on_final: Told of each late final answer once it is stored.
    """

    def __init__(
        self,
        cloud: Escalation,
        outbox: Outbox | None,
        answers: AnswerStore | None,
        background: Background,
        instruments: Instruments,
        *,
        retry_s: float,
        on_final: Callable[[Request, Answer], None],
    ) -> None:
        self._cloud = cloud
        self._outbox = outbox
        self._answers = answers
        self._background = background
        self._instruments = instruments
        self._retry_s = retry_s
        self._on_final = on_final
        self._under_way: set[tuple[str, str]] = set()
        self._caretaker: asyncio.Task[None] | None = None
        self._show_open()

    @property
    def durable(self) -> bool:
        """Whether what is owed survives this process."""
        return self._outbox is not None

    def owe(
        self, request: Request, provisional: Answer, call: asyncio.Task[CloudReply] | None
    ) -> asyncio.Task[Answer | None] | None:
        """Owe the final answer; returns the task that may still bring it where the request's own call goes on.

        Raises:
            OutboxFullError: No more can be owed.
        """
        if self._outbox is not None:
            self._outbox.put(request)
        if self._answers is not None:
            self._answers.put(request.tenant, provisional)
        self._instruments.provisional.inc("sent")
        self._show_open()
        if call is None or call.done():
            self.tend()
            return None
        self._under_way.add((request.tenant, request.id))
        return self._background.start(self._late(request, provisional, call))

    def tend(self) -> None:
        """Start the caretaker where there is something to take care of and it is not at work already."""
        idle = self._caretaker is None or self._caretaker.done()
        if idle and (self._cloud.is_open or self._waiting()):
            self._caretaker = self._background.start(self._take_care())

    async def _late(self, request: Request, provisional: Answer, call: asyncio.Task[CloudReply]) -> Answer | None:
        try:
            reply = await call
        except CloudError as error:
            _log.warning("Request %s is still owed its final answer: %s", request.id, error)
            return None
        else:
            return self._deliver(request, final_answer(provisional, reply))
        finally:
            self._under_way.discard((request.tenant, request.id))
            self.tend()

    async def _take_care(self) -> None:
        """Probe a cloud behind an open breaker, then bring the answers that are owed, until neither is left."""
        while True:
            if self._cloud.is_open:
                await asyncio.sleep(self._cloud.seconds_to_probe())
                await self._cloud.probe()
            elif owed := self._waiting():
                await self._bring(owed)
            else:
                return

    async def _bring(self, owed: list[Request]) -> None:
        for request in owed:
            try:
                reply = await self._cloud.ask(request)
            except CloudError as error:
                _log.warning("Request %s is still owed its final answer: %s", request.id, error)
                await asyncio.sleep(self._retry_s)
                return
            self._deliver(request, final_answer(self._provisional(request), reply))

    def _deliver(self, request: Request, final: Answer) -> Answer:
        """Store the final answer, then forget the debt."""
        if self._answers is not None:
            self._answers.put(request.tenant, final)
        if self._outbox is not None:
            self._outbox.done(request.tenant, request.id)
        self._instruments.provisional.inc("corrected")
        self._show_open()
        self._on_final(request, final)
        return final

    def _show_open(self) -> None:
        if self._outbox is not None:
            self._instruments.provisional_open.set(float(len(self._outbox)))

    def _waiting(self) -> list[Request]:
        """Owed requests that nothing is under way for, oldest first."""
        if self._outbox is None:
            return []
        pending = self._outbox.pending(_BATCH + len(self._under_way))
        return [request for request in pending if (request.tenant, request.id) not in self._under_way]

    def _provisional(self, request: Request) -> Answer:
        stored = self._answers.get(request.tenant, request.id) if self._answers is not None else None
        return stored or Answer(
            id=request.id,
            output="",
            status=Status.PROVISIONAL,
            source=Source.EDGE,
            decision=Decision(action=Action.ESCALATE, reason=Reason.CLOUD_FAILED, policy="outbox"),
            timings_ms={"total": 0.0},
            model_digest="",
        )


def final_answer(provisional: Answer, reply: CloudReply) -> Answer:
    """The cloud's answer in the place of a provisional one; the decision that led there stays."""
    return msgspec.structs.replace(
        provisional,
        output=reply.output,
        status=Status.FINAL,
        source=Source.CLOUD,
        model_digest=reply.reference.version,
    )
