"""The answer to a request as a stream of events, and that stream as server-sent events.

Owns what a client is told and when the telling ends; what is answered is the service's business. A stream has the
events "answer", where that was provisional "revise", and "done"; the first two carry the native answer. It ends where
nothing more will come, or nothing more is waited for: then "done" has `pending`, and the update is picked up elsewhere,
under the same id. Closing a stream means what `contracts.AnswerService` says.

Format: HTML Living Standard, section 9.2, "Server-sent events". The id of an event is "<request id>/<event>", so that
a client which comes back can drop what it has seen.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import partial
from typing import TypeAlias

import msgspec

from edgewise.contracts import (
    Answer,
    Answered,
    AnswerStore,
    Done,
    Event,
    Request,
    Revised,
    Served,
    Status,
    Token,
)
from edgewise.wire import native
from edgewise.wire.admission import Drain, Gate
from edgewise.wire.event_response import (
    KEEP_ALIVE,
    KEEP_ALIVE_S,
    SEND_TIMEOUT_S,
    EventResponse,
    unless_listener_leaves,
)
from edgewise.wire.facts import answer_headers
from edgewise.wire.faults import Fault
from edgewise.wire.http import (
    Header,
    Headers,
    Receive,
    Send,
    trace_headers,
)

_encoder = msgspec.json.Encoder()


class DoneBody(msgspec.Struct, frozen=True):
    """The data of "done".

    Attributes:
        id: The request's.
        pending: Whether an update is still owed, to be picked up under the same id.
    """

    id: str
    pending: bool


Count: TypeAlias = Callable[[Served, Answer, float], None]
"""Counts a first whole answer to a request that was put at that `time.perf_counter`."""


class Updates:
    """Where owed updates are waited for.

    Args:
        answers: Where they arrive, or None.
        wait_s: Seconds to wait for one.
        limit: How many are waited for at once; one more is left to be picked up.
    """

    def __init__(self, answers: AnswerStore | None, wait_s: float, limit: int) -> None:
        self._answers = answers
        self._wait_s = wait_s
        self._limit = limit
        self._waiting = 0

    async def of(self, tenant: str, request_id: str, wait_s: float | None = None) -> AsyncGenerator[Event, None]:
        """The update of a request that was answered provisionally, if it comes, and "done"."""
        newest = None
        if self._answers is not None and self._waiting < self._limit:
            self._waiting += 1
            try:
                timeout_s = self._wait_s if wait_s is None else wait_s
                newest = await self._answers.wait_final(tenant, request_id, timeout_s=timeout_s)
            finally:
                self._waiting -= 1
        if newest is not None and newest.status is Status.FINAL:
            yield Revised(newest)
        yield Done(request_id, pending=newest is None or not newest.is_settled)


async def asked(served: Served, request: Request, updates: Updates, count: Count) -> AsyncGenerator[Event, None]:
    """The events of a request, and what the service itself does not wait for: an update that it owes.

    Args:
        served: Whom to ask.
        request: What.
        updates: Where an owed update is waited for.
        count: Told of the first answer.

    Raises:
        Exception: Whatever the service raises.
    """
    started = time.perf_counter()
    events: AsyncIterator[Event] = served.service.events(request)
    tenant, request_id, is_owed = request.tenant, request.id, False
    try:
        async for event in events:
            if isinstance(event, Answered):
                count(served, event.answer, started)
            is_owed = isinstance(event, Done) and event.pending
            if is_owed:
                break
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
    if is_owed:
        del request, events, close  # an update is waited for long, and inputs may be large
        async for late in updates.of(tenant, request_id):
            yield late


async def kept(updates: Updates, tenant: str, answer: Answer, wait_s: float) -> AsyncGenerator[Event, None]:
    """The events of a kept answer: what is known now, then the update that it waits for."""
    yield Answered(answer)
    if answer.is_settled:
        yield Done(answer.id)
        return
    async for event in updates.of(tenant, answer.id, wait_s):
        yield event


async def told(
    events: AsyncGenerator[Event, None], drain: Drain, *, pause_s: float = math.inf
) -> AsyncGenerator[Event | None, None]:
    """Events as they come, and None each time that none has come for `pause_s`, until "done" or the end of service.

    The first answer is waited for whatever happens. After it the end of service ends the stream: "done" is then
    pending. A task of its own iterates over `events`, so that waiting can stop without breaking off what is under way.

    Raises:
        Exception: Whatever `events` raises.
    """
    feed = Feed(events, pause_s)
    provisional: Answer | None = None
    try:
        while True:
            if provisional is None:
                await feed.wait()
            elif await drain.race(feed.wait()) is None:
                yield Done(provisional.id, pending=not provisional.is_settled)
                return
            event = feed.take()
            if isinstance(event, Answered):
                provisional = event.answer
            yield event
            if isinstance(event, Done):
                return
    finally:
        await feed.aclose()


class Feed:
    """Events on their way from the task that iterates over them to the one that tells them.

    One timer looks for pauses: a timer for each event would cost as much as the event.

    Args:
        events: The events; a task of its own iterates over them from now on.
        pause_s: Seconds without any after which a wait ends.
    """

    def __init__(self, events: AsyncGenerator[Event, None], pause_s: float = math.inf) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[Event | Exception] = deque()
        self._news = asyncio.Event()
        self._pause_s = pause_s
        self._last_s = self._loop.time()
        self._timer = None if math.isinf(pause_s) else self._loop.call_later(pause_s, self._look)
        self._task = self._loop.create_task(self._pump(events))

    async def _pump(self, events: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    self._put(event)
            self._put(RuntimeError("A stream of events ended before it was done."))
        except Exception as error:  # raised again where the events are taken
            self._put(error)

    def _put(self, event: Event | Exception) -> None:
        self._arrived.append(event)
        self._last_s = self._loop.time()
        self._news.set()

    def _look(self) -> None:
        now_s = self._loop.time()
        if now_s >= self._last_s + self._pause_s:
            self._last_s = now_s
            self._news.set()
        self._timer = self._loop.call_at(self._last_s + self._pause_s, self._look)

    async def wait(self) -> bool:
        """Wait until there is something to take, or nothing has come for a pause."""
        if not self._arrived:
            self._news.clear()
            await self._news.wait()
        return True

    def take(self) -> Event | None:
        """What has arrived, oldest first, or None.

        Raises:
            Exception: What the events ended with.
        """
        if not self._arrived:
            return None
        event = self._arrived.popleft()
        if isinstance(event, Exception):
            raise event
        return event

    def take_all(self) -> list[Event]:
        """All that has arrived, oldest first; an error is raised once nothing is left before it.

        Raises:
            Exception: What the events ended with.
        """
        found: list[Event] = []
        while self._arrived and not (found and isinstance(self._arrived[0], Exception)):
            event = self.take()
            found += [] if event is None else [event]
        return found

    async def aclose(self) -> None:
        """Close the events, and wait until they are."""
        if self._timer is not None:
            self._timer.cancel()
        self._task.cancel()
        await asyncio.wait({self._task})


def encode_event(event: Event) -> bytes:
    """One event as bytes; empty for pieces of text, which are told by the protocols of `generating` and `stream`."""
    if isinstance(event, Answered):
        return _framed("answer", event.answer.id, native.encode_answer(event.answer))
    if isinstance(event, Revised):
        return _framed("revise", event.answer.id, native.encode_answer(event.answer))
    if isinstance(event, Token):
        return b""
    # A client that comes back behind "done" is told to stop; behind "pending" it may go on waiting.
    return _framed("done", event.id, encode_done(event), "pending" if event.pending else "done")


def encode_done(event: Done) -> bytes:
    """The data of "done"."""
    return _encoder.encode(DoneBody(event.id, event.pending))


def encode_fault(fault: Fault, request_id: str) -> bytes:
    """The event that ends a stream which cannot go on; its data is a native error."""
    return _framed("error", request_id, fault.body(""))


def _framed(name: str, request_id: str, data: bytes, word: str = "") -> bytes:
    return b"event: %s\nid: %s/%s\ndata: %s\n\n" % (name.encode(), request_id.encode(), (word or name).encode(), data)


def has_seen_all(headers: Headers, request_id: str) -> bool:
    """Whether a client that comes back has already been told that nothing more will come."""
    return headers.get(b"last-event-id", b"") == f"{request_id}/done".encode()


class EventStreams:
    """Answers in server-sent events.

    Args:
        updates: Where owed updates are waited for.
        count: Told of each first answer.
        keep_alive_s: Seconds of silence after which a comment is sent.
        send_timeout_s: Seconds that a client may take to read what it was sent.
    """

    def __init__(
        self,
        updates: Updates,
        count: Count,
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        self._updates = updates
        self._count = count
        self._keep_alive_s = keep_alive_s
        self._send_timeout_s = send_timeout_s

    async def predict(
        self, served: Served, request: Request, headers: Headers, gate: Gate, receive: Receive, send: Send
    ) -> None:
        """Answer one request; a slot is held until its first answer, whose facts are headers too.

        Raises:
            ClientGoneError: The client left; before the first answer its work was cancelled.
            Exception: What the service raises before its first answer.
        """
        telling = told(asked(served, request, self._updates, self._count), gate.drain, pause_s=self._keep_alive_s)
        work = self._tell(telling, gate.slots, request.id, headers, send)
        del request
        await unless_listener_leaves(receive, work, telling)

    async def kept(
        self, answer: Answer, tenant: str, headers: Headers, drain: Drain, wait_s: float, receive: Receive, send: Send
    ) -> None:
        """Tell a kept answer and, within `wait_s`, its update.

        Raises:
            ClientGoneError: The client left.
        """
        telling = told(kept(self._updates, tenant, answer, wait_s), drain, pause_s=self._keep_alive_s)
        work = self._tell(telling, nullcontext(), answer.id, headers, send)
        await unless_listener_leaves(receive, work, telling)

    async def _tell(
        self,
        telling: AsyncGenerator[Event | None, None],
        slot: AbstractContextManager[None],
        request_id: str,
        headers: Headers,
        send: Send,
    ) -> None:
        with slot:
            first = await _first(telling)
        response = EventResponse(send, self._send_timeout_s, partial(encode_fault, request_id=request_id))
        async with response:
            await response.begin(_headers(first, headers))
            await response.put(encode_event(first))
            async for event in telling:
                await response.put(KEEP_ALIVE if event is None else encode_event(event))


def _headers(first: Event, headers: Headers) -> tuple[Header, ...]:
    facts = answer_headers(first.answer) if isinstance(first, Answered) else ()
    return (*facts, *trace_headers(headers))


async def _first(telling: AsyncIterator[Event | None]) -> Event:
    """The first event that has something to tell."""
    async for event in telling:
        if event is not None and not isinstance(event, Token):
            return event
    raise RuntimeError("A stream of events ended before it began.")
