"""Answers that are owed: a provisional answer was given, the cloud's will follow under the same id.

Owns the outbox and the answer store from the flow's side. An answer is owed durably before its provisional is sent, and
forgotten only after the final one is stored, so it is delivered at least once whatever dies in between.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

import msgspec

from edgewise.contracts import (
    Action,
    Answer,
    AnswerStore,
    Clock,
    CloudReply,
    Decision,
    Outbox,
    Reason,
    Reference,
    Request,
    Source,
    Status,
)
from edgewise.errors import CloudError, CloudRefusedError, RequestError, StoreError
from edgewise.router.background import Background
from edgewise.router.escalation import Escalation
from edgewise.router.instruments import Instruments

_log = logging.getLogger("edgewise.router")
_BATCH = 64
_LONGEST_PAUSE_S = 600.0


class _Retry(NamedTuple):
    """How often an owed request has failed, and when, in monotonic seconds, it is asked for again."""

    attempts: int
    due: float


_FRESH = _Retry(0, 0.0)


class Deliveries:
    """What is owed, to whom, and the caretaker that sees to it.

    Args:
        cloud: Where the final answers come from.
        outbox: Durable requests; None owes only within this process.
        answers: Where clients pick updates up; None delivers only on open streams.
        background: Where late calls and the caretaker run.
        instruments: Where provisional answers are counted.
        clock: Time.
        retry_s: Half the seconds until the second attempt at an item that failed; doubled at every further one.
        on_final: Told of each late final answer, and of who gave it, once it is stored.
    """

    def __init__(
        self,
        cloud: Escalation,
        outbox: Outbox | None,
        answers: AnswerStore | None,
        background: Background,
        instruments: Instruments,
        *,
        clock: Clock,
        retry_s: float,
        on_final: Callable[[Request, Answer, Reference], None],
    ) -> None:
        self._cloud = cloud
        self._outbox = outbox
        self._answers = answers
        self._background = background
        self._instruments = instruments
        self._clock = clock
        self._retry_s = retry_s
        self._on_final = on_final
        self._under_way: set[tuple[str, str]] = set()
        self._retries: dict[tuple[str, str], _Retry] = {}
        self._wake = asyncio.Event()
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
            RequestError: An earlier request's answer is kept under the same id.
            OutboxFullError: No more can be owed.
        """
        self.tend()
        if self._answers is not None and self._answers.get(request.tenant, request.id) is not None:
            raise _id_taken(request)
        if self._outbox is not None and not self._outbox.put(request):
            raise _id_taken(request)
        if self._answers is not None:
            self._answers.put(request.tenant, provisional)
        self._instruments.provisional.inc("sent")
        self._show_open()
        if call is None or _failed(call):
            self.tend()
            return None
        self._under_way.add((request.tenant, request.id))
        return self._background.start(self._late(request, provisional, call))

    def tend(self) -> None:
        """Wake the caretaker, or start it where there is something to take care of and it is not at work already."""
        self._wake.set()
        idle = self._caretaker is None or self._caretaker.done()
        if idle and not self._background.closed and (self._cloud.is_open or self._something_waits):
            self._caretaker = self._background.start(self._take_care())

    @property
    def _something_waits(self) -> bool:
        return self._outbox is not None and len(self._outbox) > len(self._under_way)

    async def _late(self, request: Request, provisional: Answer, call: asyncio.Task[CloudReply]) -> Answer | None:
        try:
            return await self._settle(request, call, provisional)
        finally:
            self._under_way.discard((request.tenant, request.id))
            self.tend()

    async def _take_care(self) -> None:
        """Probe a cloud behind an open breaker, then bring the answers that are owed, until neither is left."""
        while self._cloud.is_open or self._something_waits:
            self._wake.clear()
            if self._cloud.is_open:
                await asyncio.sleep(self._cloud.seconds_to_probe())
                await self._cloud.probe()
            elif owed := self._due():
                await self._bring(owed)
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._seconds_to_retry())

    async def _bring(self, owed: list[Request]) -> None:
        """Ask for each; one that fails does not keep the others waiting, and is asked for less and less often."""
        for request in owed:
            if self._cloud.is_open:
                return
            if await self._settle(request, self._cloud.ask(request), None) is None:
                attempts = self._retries.get((request.tenant, request.id), _FRESH).attempts + 1
                pause = min(self._retry_s * 2**attempts, _LONGEST_PAUSE_S)
                self._retries[request.tenant, request.id] = _Retry(attempts, self._clock.monotonic() + pause)

    async def _settle(self, request: Request, call: Awaitable[CloudReply], provisional: Answer | None) -> Answer | None:
        """Store what the call brings: the final answer, or that there will be none; None where it stays owed."""
        try:
            reply = await call
            return self._deliver(request, reply, provisional or self._provisional(request))
        except CloudRefusedError as error:
            return self._abandon(request, error, provisional or self._provisional(request))
        except (CloudError, StoreError) as error:
            _log.warning("Request %s is still owed its final answer: %s", request.id, error)
            return None

    def _abandon(self, request: Request, error: CloudRefusedError, provisional: Answer) -> Answer:
        """The cloud will never answer this one: say so in the stored answer, and forget the debt."""
        _log.error("Request %s keeps its provisional answer: %s", request.id, error)
        decision = msgspec.structs.replace(provisional.decision, reason=Reason.CLOUD_REFUSED)
        self._instruments.provisional.inc("abandoned")
        return self._store(request, msgspec.structs.replace(provisional, decision=decision))

    def _deliver(self, request: Request, reply: CloudReply, provisional: Answer) -> Answer:
        final = self._store(request, final_answer(provisional, reply))
        self._instruments.provisional.inc("corrected")
        self._on_final(request, final, reply.reference)
        return final

    def _store(self, request: Request, answer: Answer) -> Answer:
        """Keep the answer, then forget the debt."""
        if self._answers is not None:
            self._answers.put(request.tenant, answer)
        if self._outbox is not None:
            self._outbox.done(request.tenant, request.id)
        self._retries.pop((request.tenant, request.id), None)
        self._show_open()
        return answer

    def _show_open(self) -> None:
        if self._outbox is not None:
            self._instruments.provisional_open.set(float(len(self._outbox)))

    def _due(self) -> list[Request]:
        """Owed requests, oldest first, that nothing is under way for and that do not pause after a failure."""
        if self._outbox is None:
            return []
        now = self._clock.monotonic()
        pausing = {key for key, retry in self._retries.items() if retry.due > now}
        pending = self._outbox.pending(_BATCH + len(self._under_way) + len(pausing))
        return [request for request in pending if (request.tenant, request.id) not in self._under_way | pausing]

    def _seconds_to_retry(self) -> float:
        now = self._clock.monotonic()
        return max(0.0, min((retry.due for retry in self._retries.values()), default=now + self._retry_s) - now)

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


def _failed(call: asyncio.Task[CloudReply]) -> bool:
    return call.done() and (call.cancelled() or call.exception() is not None)


def _id_taken(request: Request) -> RequestError:
    return RequestError(
        "id",
        f"The id {request.id!r} belongs to an earlier request whose answer was provisional.",
        f"Pick that answer up at /v1/answers/{request.id}, or send a new id.",
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
