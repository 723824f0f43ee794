"""Answers that are owed: a provisional answer was given, the cloud's will follow under the same id.

Owns the outbox and the answer store from the flow's side. An answer is owed durably before its provisional is sent, and
forgotten only after the final one is stored and its webhooks are owed it, so it is delivered at least once whatever
dies in between. A request that comes again under its id is given what is kept, and is owed no second answer. What
cannot be delivered for too long, or has to make room for newer requests, is settled too: its provisional answer says
that it is the last word. The order in which is asked, and how many at a time, are `backlog`'s.
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
    Debt,
    Decision,
    Outbox,
    Reason,
    Reference,
    Request,
    Source,
    Status,
)
from edgewise.errors import (
    CloudError,
    CloudGivenUpError,
    CloudRefusedError,
    CloudThrottledError,
    CloudUnreachableError,
    OutboxFullError,
    RequestError,
    StoreError,
    frames,
    outline,
)
from edgewise.router.agreeing import Agreement
from edgewise.router.background import Background
from edgewise.router.backlog import Backlog, Key, Ramp, key_of
from edgewise.router.cachekey import item_digest
from edgewise.router.escalation import Escalation
from edgewise.router.instruments import Instruments

_log = logging.getLogger("edgewise.router")
_AT_ONCE = 32
_LOOK_S = 60.0
"""The longest pause between two looks at what became too old."""


class Owed(NamedTuple):
    """What a request is given for now.

    Attributes:
        answer: The answer: its own provisional one, or what is kept where it came before.
        update: The task that may still bring the final one, where the request's own call goes on.
    """

    answer: Answer
    update: asyncio.Task[Answer | None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether another answer follows."""
        return not self.answer.is_settled


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
        hooks: Told of the tenant and each settled answer, after it is stored and before its debt is forgotten; also a
            second time, where something dies in between.
        max_age_s: Seconds after which an answer is owed no more.
        drop_oldest: Whether the oldest make room where the outbox is full; else one more request is refused.
        at_once: Owed answers that are asked for at the same time, at most.
        agree: Whether the cloud says the same as an answer that was given before its own; None: whether it is the same.
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
        hooks: Callable[[str, Answer], None] | None = None,
        max_age_s: float = 7 * 24 * 3600.0,
        drop_oldest: bool = False,
        at_once: int = _AT_ONCE,
        agree: Agreement | None = None,
    ) -> None:
        self._cloud = cloud
        self._outbox = outbox
        self._answers = answers
        self._background = background
        self._instruments = instruments
        self._clock = clock
        self._on_final = on_final
        self._hooks = hooks
        self._max_age_s = max_age_s
        self._drop_oldest = drop_oldest
        self._agree = agree or Agreement()
        self._backlog = Backlog(retry_s)
        self._ramp = Ramp(at_once)
        self._asking: set[asyncio.Task[None]] = set()
        self._storing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._caretaker: asyncio.Task[None] | None = None
        self._tried_out = False
        for debt in outbox.debts() if outbox is not None else ():
            self._backlog.add(debt)
        self._show_open()

    @property
    def durable(self) -> bool:
        """Whether what is owed survives this process."""
        return self._outbox is not None

    def owe(self, request: Request, provisional: Answer, call: asyncio.Future[CloudReply] | None) -> Owed:
        """Owe the final answer, unless it is owed or kept already: once under an id, however often that comes.

        Raises:
            RequestError: Another request's answer is owed or kept under the same id.
            OutboxFullError: No more can be owed.
            StoreError: The store cannot be written; nothing is owed then.
        """
        self.tend()
        item = item_digest(request)
        earlier = self._earlier(request, item)
        if earlier is not None:
            return Owed(earlier)
        goes_on = call is not None and not _failed(call)
        if not self._put(request, provisional, item, busy=goes_on):
            return Owed(provisional)
        if call is not None and not goes_on and not was_given_up(call):
            self._pause(request)
        self._instruments.provisional.inc("sent")
        self._show_open()
        if call is None or not goes_on:
            self.tend()
            return Owed(provisional)
        return Owed(provisional, self._background.start(self._late(request, provisional, call)))

    def earlier(self, request: Request) -> Answer | None:
        """What is kept under the request's id, where it came before; whoever tells a text as it is written asks first.

        Raises:
            RequestError: Another request's answer is kept under it.
        """
        return self._earlier(request, item_digest(request))

    def keep(self, request: Request, answer: Answer) -> Answer:
        """Keep a provisional answer that no update follows, for pick-up; gives what is kept by now.

        Raises:
            RequestError: Another request's answer is kept under the same id.
        """
        if self._answers is None:
            return answer
        item = item_digest(request)
        earlier = self._earlier(request, item)
        if earlier is not None:
            return earlier
        self._answers.put(request.tenant, answer, item=item)
        return answer

    def tend(self) -> None:
        """Wake the caretaker, or start it where there is something to take care of and it is not at work already."""
        self._wake.set()
        idle = self._caretaker is None or self._caretaker.done()
        if idle and not self._background.closed and (self._cloud.is_open or self._backlog.waiting):
            self._caretaker = self._background.start(self._take_care())

    # What is owed from now on

    def _earlier(self, request: Request, item: bytes) -> Answer | None:
        """What is kept under the id, where it is this very request's; None where nothing is, or its debt lapsed.

        Raises:
            RequestError: It is another's.
        """
        kept = None if self._answers is None else self._answers.find(request.tenant, request.id)
        if kept is None:
            return None
        if kept.item != item and (kept.item is not None or not self._owes(request, item)):
            raise _id_taken(request)
        # Whoever asks again still wants to know.
        return None if kept.answer.decision.reason is Reason.EXPIRED else kept.answer

    def _owes(self, request: Request, item: bytes) -> bool:
        """Whether this very request is owed."""
        owed = None if self._outbox is None else self._outbox.request(request.tenant, request.id)
        return owed is not None and item_digest(owed) == item

    def _put(self, request: Request, provisional: Answer, item: bytes, *, busy: bool) -> bool:
        """Owe the answer and keep the provisional one: both, or none of them; False where it is owed already.

        Raises:
            RequestError: Another request's answer is owed under the id.
        """
        is_new = self._outbox is None or self._fit(self._outbox, request)
        if not is_new and not self._owes(request, item):
            raise _id_taken(request)
        try:
            if self._answers is not None:
                self._answers.put(request.tenant, provisional, item=item)
        except StoreError:
            # The caller hears that it failed, so that its id must not stay taken.
            if self._outbox is not None and is_new:
                self._outbox.done(request.tenant, request.id)
            raise
        if self._outbox is not None and is_new:
            self._backlog.add(Debt(request.tenant, request.id, request.session, self._clock.time()), busy=busy)
        return is_new

    def _fit(self, outbox: Outbox, request: Request) -> bool:
        """Put a request into the outbox, where that is full in the place of what is too old or may be dropped."""
        try:
            return outbox.put(request)
        except OutboxFullError:
            if not self._lapse_old() and not self._drop_oldest:
                raise
        if self._drop_oldest:
            for debt in outbox.in_the_way(request):
                self._lapse(debt, "dropped")
        return outbox.put(request)

    async def _late(self, request: Request, provisional: Answer, call: asyncio.Future[CloudReply]) -> Answer | None:
        try:
            return await self._settle(request, _reply_of(call), provisional)
        except CloudGivenUpError:
            if self._outbox is None:  # then nobody else asks for it
                return await self._settled_anew(request, provisional)
            self._backlog.idle((request.tenant, request.id))
            return None
        finally:
            if not was_given_up(call):
                self._pause(request)
            self.tend()

    async def _settled_anew(self, request: Request, provisional: Answer) -> Answer | None:
        """What asking again brings; nothing where that hangs over the next time that the cloud goes away, too."""
        with suppress(CloudGivenUpError):
            return await self._settle(request, self._cloud.ask(request), provisional)
        return None

    def _pause(self, request: Request) -> None:
        """Its own call brought nothing just now: a moment later is soon enough to ask again, if it is still owed."""
        self._backlog.put_back((request.tenant, request.id), self._clock.monotonic())

    # What is owed so far

    async def _take_care(self) -> None:
        """Probe a cloud behind an open breaker, then bring the answers that are owed, until neither is left."""
        while self._cloud.is_open or self._backlog.waiting or self._asking:
            self._wake.clear()
            self._lapse_old()
            if self._cloud.is_open:
                if not await self._is_woken(self._cloud.seconds_to_probe()):
                    await self._probe()
            elif not self._start_some():
                await self._is_woken(self._seconds_to_look())

    async def _is_woken(self, within_s: float) -> bool:
        """Wait until something has changed, or for so long; whether it has."""
        # Not wait_for: where it is woken and cancelled at once, Python 3.11's forgets that it was cancelled.
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                return await self._wake.wait()
        return False

    async def _probe(self) -> None:
        """Try the cloud out with an owed request: nothing else proves that it predicts again.

        Every other time it is only asked who it is: it may be the request that cannot be answered.
        """
        debt = None if self._tried_out else self._backlog.take(self._clock.monotonic())
        self._tried_out = debt is not None
        if debt is None:
            await self._cloud.probe()
        else:
            await self._bring(debt, self._cloud.try_out)

    def _start_some(self) -> bool:
        """Ask for as many as the ramp allows; whether any was left to ask for."""
        started = False
        while len(self._asking) < self._ramp.limit:
            debt = self._backlog.take(self._clock.monotonic())
            if debt is None:
                break
            started = True
            task = self._background.start(self._bring(debt, self._cloud.ask))
            self._asking.add(task)
            task.add_done_callback(self._brought)
        return started

    def _brought(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        self._wake.set()

    async def _bring(self, debt: Debt, ask: Callable[[Request], Awaitable[CloudReply]]) -> None:
        """Ask for one; one that fails does not keep others waiting, and is asked for less and less often."""
        key = key_of(debt)
        try:
            settled = await self._asked(debt, ask)
        except CloudGivenUpError:  # which says nothing of the item, nor of the cloud as it is now
            self._backlog.idle(key)
            return
        except asyncio.CancelledError:
            self._backlog.idle(key)
            raise
        except Exception as error:  # whatever comes of a client of somebody else's must not end, or spin, the drain
            _log.error("Request %s is still owed its final answer: %s", debt.id, type(error).__name__)
            settled = False
        now = self._clock.monotonic()
        if settled:
            self._ramp.succeeded()
            return
        self._ramp.failed()
        if self._cloud.is_open:
            self._backlog.put_back(key, now)
        else:
            self._backlog.failed(key, now)

    async def _asked(self, debt: Debt, ask: Callable[[Request], Awaitable[CloudReply]]) -> bool:
        """Whether one that is owed is settled now."""
        try:
            earlier = self._answers.get(debt.tenant, debt.id) if self._answers is not None else None
            if earlier is not None and earlier.is_settled:
                # Whoever stored it died before the debt was forgotten.
                self._forget(key_of(debt), earlier)
                return True
            request = self._outbox.request(debt.tenant, debt.id) if self._outbox is not None else None
        except StoreError as error:
            _log.error("Request %s is still owed its final answer: %s", debt.id, error)
            return False
        if request is None:
            self._backlog.settled(key_of(debt))
            return True
        return await self._settle(request, ask(request), earlier or _unknown(debt)) is not None

    async def _settle(self, request: Request, call: Awaitable[CloudReply], provisional: Answer) -> Answer | None:
        """Store what the call brings: the final answer, or that there will be none; None where it stays owed.

        Raises:
            CloudGivenUpError: It stays owed, and is to be asked for at once.
        """
        try:
            reply = await call
            final = await self._final(provisional, reply)
            # Each waits for the disk: one a turn of the loop, so that requests are answered in between.
            async with self._storing:
                await asyncio.sleep(0)
                return self._deliver(request, reply, provisional, final)
        except CloudRefusedError as error:
            return self._abandon(request, error, provisional)
        except CloudGivenUpError:
            raise
        except (CloudError, StoreError) as error:
            if isinstance(error, CloudThrottledError) and error.retry_after_s is not None:
                self._backlog.hold(error.retry_after_s, self._clock.monotonic())
            told = outline(error) if isinstance(error, CloudError) else error
            _log.warning("Request %s is still owed its final answer: %s", request.id, told)
            return None

    def _deliver(self, request: Request, reply: CloudReply, provisional: Answer, found: Answer) -> Answer:
        lapsed = self._lapsed(request, provisional)
        if lapsed is not None:
            return lapsed
        final = self._store(request.tenant, found, item_digest(request))
        self._instruments.provisional.inc("corrected")
        self._on_final(request, final, reply.reference)
        return final

    async def _final(self, provisional: Answer, reply: CloudReply) -> Answer:
        """The cloud's answer; the text that was told at once where the cloud says the same in other words."""
        is_text = provisional.decision.reason is Reason.SPECULATIVE and provisional.written is not None
        if is_text and not reply.fail_over and await self._confirms(provisional, reply):
            return msgspec.structs.replace(provisional, status=Status.FINAL)
        return final_answer(provisional, reply)

    async def _confirms(self, provisional: Answer, reply: CloudReply) -> bool:
        try:
            return await self._agree.beside(provisional.output, provisional.written, reply)
        except Exception as error:  # a judge may be a user's own function
            _log.error("The judge of a certificate failed; the cloud's answer counts: %s", frames(error))
            return False

    def _abandon(self, request: Request, error: CloudRefusedError, provisional: Answer) -> Answer | None:
        """The cloud will never answer this one: say so in the stored answer, and forget the debt."""
        try:
            lapsed = self._lapsed(request, provisional)
            if lapsed is not None:
                return lapsed
            last_word = _last_word(provisional, Reason.CLOUD_REFUSED)
            settled = self._store(request.tenant, last_word, item_digest(request))
        except StoreError as trouble:
            _log.warning("Request %s is still owed its last word: %s", request.id, trouble)
            return None
        _log.warning("Request %s keeps its provisional answer: %s", request.id, outline(error))
        self._instruments.provisional.inc("abandoned")
        return settled

    def _lapsed(self, request: Request, provisional: Answer) -> Answer | None:
        """What settled the debt while its call was under way: told as the last word, it stays the last one.

        None where it is owed still.
        """
        if self._outbox is None or (request.tenant, request.id) in self._backlog:
            return None
        kept = None if self._answers is None else self._answers.get(request.tenant, request.id)
        return kept or _last_word(provisional, Reason.EXPIRED)

    def _lapse_old(self) -> bool:
        """Settle what is owed for too long; whether there was any."""
        old = self._backlog.owed_before(self._clock.time() - self._max_age_s)
        try:
            for debt in old:
                self._lapse(debt, "expired")
        except StoreError as error:
            _log.error("What is owed for too long cannot be settled: %s", error)
        return bool(old)

    def _lapse(self, debt: Debt, event: str) -> None:
        """Owe one no more: its provisional answer is the last word."""
        earlier = self._answers.get(debt.tenant, debt.id) if self._answers is not None else None
        self._store(debt.tenant, _last_word(earlier or _unknown(debt), Reason.EXPIRED))
        self._instruments.provisional.inc(event)
        _log.warning("Request %s keeps its provisional answer: the cloud's is owed no more (%s).", debt.id, event)

    def _store(self, tenant: str, answer: Answer, item: bytes | None = None) -> Answer:
        """Keep the answer, then forget the debt."""
        if self._answers is not None:
            self._answers.put(tenant, answer, item=item)
        self._forget((tenant, answer.id), answer)
        return answer

    def _forget(self, key: Key, answer: Answer) -> None:
        """Owe the settled answer to webhooks, and then nothing more."""
        if self._hooks is not None:
            self._hooks(key[0], answer)
        if self._outbox is not None:
            self._outbox.done(*key)
        self._backlog.settled(key)
        self._show_open()

    def _show_open(self) -> None:
        if self._outbox is not None:
            self._instruments.provisional_open.set(float(len(self._outbox)))

    def _seconds_to_look(self) -> float:
        """Until when nothing can be asked for, unless somebody wakes the caretaker: with each answer there is room."""
        has_room = len(self._asking) < self._ramp.limit
        pausing_s = self._backlog.seconds_to_next(self._clock.monotonic()) if has_room else None
        return _LOOK_S if pausing_s is None else min(pausing_s, _LOOK_S)


async def _reply_of(call: asyncio.Future[CloudReply]) -> CloudReply:
    """What a call brings that others may wait for too: whoever stops waiting here does not end it."""
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if call.cancelled() and task is not None and not task.cancelling():
            raise CloudUnreachableError("The call was given up.") from error
        raise


def _last_word(provisional: Answer, reason: Reason) -> Answer:
    return msgspec.structs.replace(provisional, decision=msgspec.structs.replace(provisional.decision, reason=reason))


def _unknown(debt: Debt) -> Answer:
    """What stands for a provisional answer that is not kept."""
    return Answer(
        id=debt.id,
        output="",
        status=Status.PROVISIONAL,
        source=Source.EDGE,
        decision=Decision(action=Action.ESCALATE, reason=Reason.CLOUD_FAILED, policy="outbox"),
        timings_ms={"total": 0.0},
        model_digest="",
    )


def _failed(call: asyncio.Future[CloudReply]) -> bool:
    return call.done() and (call.cancelled() or call.exception() is not None)


def was_given_up(call: asyncio.Future[CloudReply]) -> bool:
    """Whether a call was given up because the cloud came back, so that it is to be asked anew."""
    return call.done() and not call.cancelled() and isinstance(call.exception(), CloudGivenUpError)


def _id_taken(request: Request) -> RequestError:
    return RequestError(
        "id",
        f"The id {request.id!r} belongs to an earlier request for another item, whose answer was provisional.",
        f"Pick that answer up at /v1/answers/{request.id}, or send a new id.",
    )


def final_answer(provisional: Answer, reply: CloudReply) -> Answer:
    """The cloud's answer in the place of a provisional one; the decision that led there stays, but for a fail-over."""
    decision = provisional.decision
    return msgspec.structs.replace(
        provisional,
        output=reply.output,
        status=Status.FINAL,
        source=Source.CLOUD,
        decision=msgspec.structs.replace(decision, reason=Reason.FAIL_OVER) if reply.fail_over else decision,
        model_digest=reply.reference.version,
        written=reply.written,
    )
