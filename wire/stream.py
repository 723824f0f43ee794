"""`WS /v1/stream`: many requests in flight on one WebSocket, each told as it is answered.

Owns the life of a connection; messages are `stream_messages`'. Requests are answered by the service, and each passes
the same gate as one over HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

import msgspec

from edgewise import tracing
from edgewise.contracts import Answered, Done, Event, Request, Served, Token
from edgewise.errors import RequestError
from edgewise.wire import native, openai
from edgewise.wire.admission import Gate
from edgewise.wire.catalog import Catalog
from edgewise.wire.events import Count, Updates, asked, told
from edgewise.wire.faults import Fault, fault_of
from edgewise.wire.http import JSON, Headers, Message, Receive, Scope, Send
from edgewise.wire.stream_messages import (
    CancelMessage,
    ClientMessage,
    GenerateMessage,
    InterruptMessage,
    PredictMessage,
    decode_message,
    encode_event,
    encode_fault,
    encode_interrupted,
    generate_request,
    id_of,
)

PATH = "/v1/stream"
MAX_MESSAGE_BYTES = 1024 * 1024
"""The largest message that a server lets through; parts of one lie in memory before anybody counts them."""


_NORMAL, _GOING_AWAY, _NO_TEXT, _POLICY, _TOO_BIG = 1000, 1001, 1003, 1008, 1009  # RFC 6455, section 7.4.1


class StreamLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may ask.

    Attributes:
        max_message_bytes: The largest message; a larger one closes the connection.
        max_in_flight: The most requests of one connection that wait for their first answer; one more is told to come
            back.
        max_bad_messages: The most messages that ask for nothing that can be answered before one that does; one more
            closes the connection.
        idle_s: Seconds without a message and without a request in flight after which the connection is closed.
        send_timeout_s: Seconds that a client may take to read what it was sent.
    """

    max_message_bytes: int
    max_in_flight: int = 128
    max_bad_messages: int = 10
    idle_s: float = 300.0
    send_timeout_s: float = 10.0


class _Close(NamedTuple):
    """How a connection ends."""

    code: int
    reason: str


class _SlowReaderError(Exception):
    """The client does not read what it is sent."""


async def refuse(fault: Fault, scope: Scope, send: Send) -> None:
    """Refuse a WebSocket before it opens, with the error's status and body where the server can send them."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _POLICY, "reason": fault.message})
        return
    lines = [(b"content-type", JSON), *((name.encode(), value.encode()) for name, value in fault.headers.items())]
    await send({"type": "websocket.http.response.start", "status": fault.status, "headers": lines})
    await send({"type": "websocket.http.response.body", "body": fault.body(PATH)})


class Streams:
    """Serves WebSockets.

    Args:
        catalog: The models that are served now.
        updates: Where owed updates are waited for.
        count: Told of each first answer.
        on_fault: Told of each error before it is sent.
        new_id: Makes the id of a request that brings none.
        max_budget_ms: The largest budget, in milliseconds.
        limits: What one connection may ask.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        updates: Updates,
        count: Count,
        on_fault: Callable[[Fault], None],
        new_id: Callable[[], str],
        max_budget_ms: float,
        limits: StreamLimits,
    ) -> None:
        self.catalog = catalog
        self.updates = updates
        self.count = count
        self.on_fault = on_fault
        self.new_id = new_id
        self.max_budget_ms = max_budget_ms
        self.limits = limits

    async def serve(self, scope: Scope, receive: Receive, send: Send, tenant: str, gate: Gate) -> None:
        """Serve one connection until it ends.

        Raises:
            Fault: There is no WebSocket at this path; nothing was accepted.
        """
        if scope["path"] != PATH:
            raise Fault(404, "not_found", "There is no WebSocket at this path.", remedy=f"Open {PATH}.")
        await receive()
        await send({"type": "websocket.accept"})
        await _Connection(self, Headers(scope), receive, send, tenant, gate).run()


class _Asked:
    """A request in flight: its task, the room of its message, the text told of it, and its first answer if told."""

    def __init__(self, task: asyncio.Task[None], held_bytes: int) -> None:
        self.task = task
        self.held_bytes = held_bytes
        self.text: list[str] = []
        self.first: Answered | None = None

    @property
    def told(self) -> str:
        """The text told so far."""
        return "".join(self.text)


class _Connection:
    """One open WebSocket."""

    def __init__(
        self, streams: Streams, headers: Headers, receive: Receive, send: Send, tenant: str, gate: Gate
    ) -> None:
        self._streams = streams
        self._limits = streams.limits
        self._traceparent = headers.get(b"traceparent")
        self._receive = receive
        self._send = send
        self._tenant = tenant
        self._gate = gate
        self._asked: dict[str, _Asked] = {}
        self._unanswered = 0
        self._bad_messages = 0
        self._stuck = asyncio.Event()

    async def run(self) -> None:
        """Take messages until the connection ends, whoever ends it; nothing of it goes on afterwards."""
        try:
            end = await self._take_messages()
        except asyncio.CancelledError:
            # The server's last word after a drain: no time is left but for a close that the client understands.
            self._cancel_all()
            await self._close(_Close(_GOING_AWAY, "the service is shutting down"))
            return
        except _SlowReaderError:
            end = None
        cancelled = self._cancel_all()
        if cancelled:
            await asyncio.wait(cancelled)
        if end is not None:
            await self._close(end)

    async def _close(self, end: _Close) -> None:
        with suppress(_SlowReaderError):
            await self._write({"type": "websocket.close", "code": end.code, "reason": end.reason})

    async def _take_messages(self) -> _Close | None:
        """Take one message after the other; how to close, or None where nobody listens any more."""
        draining = asyncio.create_task(self._gate.drain.race(asyncio.Event().wait()))
        stuck = asyncio.create_task(self._stuck.wait())
        incoming = self._next_message()
        try:
            while True:
                watched: set[asyncio.Task[Any]] = {incoming, stuck}
                watched |= {asked.task for asked in self._asked.values()} if draining.done() else {draining}
                timeout_s = None if draining.done() else self._limits.idle_s
                done, _ = await asyncio.wait(watched, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if stuck.done():
                    return None
                if incoming.done():
                    message = incoming.result()
                    if message["type"] == "websocket.disconnect":
                        return None
                    end = await self._take(message)
                    if end is not None:
                        return end
                    incoming = self._next_message()
                if draining.done() and not self._asked:
                    return _Close(_GOING_AWAY, "the service is shutting down")
                if not done and not self._asked:
                    return _Close(_NORMAL, "idle")
        finally:
            for task in (draining, stuck, incoming):
                task.cancel()

    def _next_message(self) -> asyncio.Task[Message]:
        async def receive() -> Message:
            return await self._receive()

        return asyncio.create_task(receive())

    async def _take(self, message: Message) -> _Close | None:
        """Act on one message; how to close where it must not go on."""
        text = message.get("text")
        if text is None:
            return _Close(_NO_TEXT, "send JSON in text frames")
        data = text.encode()
        if len(data) > self._limits.max_message_bytes:
            return _Close(_TOO_BIG, f"a message is larger than {self._limits.max_message_bytes} bytes")
        now_s = time.monotonic()
        try:
            self._gate.rate(self._tenant, now_s)  # nobody has a message read in vain
            await self._act(decode_message(data), len(data), now_s)
        except _SlowReaderError:
            raise
        except RequestError as error:
            return await self._bad_message(error, data)
        except Exception as error:  # whatever it is, the client is told, and the connection stays
            await self._refuse(fault_of(error), id_of(data))
        return None

    async def _bad_message(self, error: RequestError, data: bytes) -> _Close | None:
        await self._refuse(fault_of(error), id_of(data))
        self._bad_messages += 1
        if self._bad_messages > self._limits.max_bad_messages:
            return _Close(_POLICY, "too many messages that cannot be answered")
        return None

    async def _act(self, message: ClientMessage, size: int, now_s: float) -> None:
        if isinstance(message, CancelMessage):
            await self._cancel(message.id)
            return
        if isinstance(message, InterruptMessage):
            await self._interrupt(message.id)
            return
        self._check_places()
        served, request = self._asked_for(message, now_s)
        if request.id in self._asked:
            raise RequestError("id", f"id: {request.id} is in flight on this connection.", "Send another id.")
        self._gate.room.take(size)
        self._bad_messages = 0
        parent = self._traceparent if message.traceparent is None else message.traceparent.encode("ascii", "replace")
        task = asyncio.create_task(self._answer(served, request, parent))
        request_id = request.id  # and nothing else of it is kept until its update has come
        self._asked[request_id] = _Asked(task, size)
        self._unanswered += 1
        # Not the task's own business: one that is cancelled before it begins never runs.
        task.add_done_callback(lambda _: self._forget(request_id))

    def _asked_for(self, message: PredictMessage | GenerateMessage, now_s: float) -> tuple[Served, Request]:
        """Whom a message asks, and what."""
        streams = self._streams
        catalog = streams.catalog
        if isinstance(message, GenerateMessage):
            served = catalog.default() if message.model is None else catalog.writer(message.model)
            openai.check_generator(served.info, 'Send a message of the type "predict".')
            request = generate_request(
                message,
                tenant=self._tenant,
                new_id=streams.new_id,
                max_budget_ms=streams.max_budget_ms,
                arrived_s=now_s,
            )
            return served, request
        served = catalog.default() if message.model is None else catalog.named(message.model, field="model")
        openai.check_not_generator(served.info, 'Send a message of the type "generate".')
        request = native.request_of(
            message, tenant=self._tenant, new_id=streams.new_id, max_budget_ms=streams.max_budget_ms, arrived_s=now_s
        )
        return served, request

    def _check_places(self) -> None:
        """Find out whether one more request may come in.

        Raises:
            Fault: There are too many, or service ends.
        """
        if self._gate.drain.has_begun:
            raise Fault(503, "shutting_down", "The service is shutting down.", remedy="Ask another instance.")
        if self._unanswered >= self._limits.max_in_flight:
            raise Fault(
                429,
                "too_many_requests",
                f"{self._unanswered} requests of this connection wait for their answer already.",
                remedy="Wait for one.",
            )
        self._gate.slots.check()

    def _forget(self, request_id: str) -> None:
        asked_for = self._asked.pop(request_id)
        self._let_go(asked_for)
        if asked_for.first is None:
            self._unanswered -= 1

    def _let_go(self, asked_for: _Asked) -> None:
        """Give back the room of its message, if it has not been."""
        self._gate.room.give(asked_for.held_bytes)
        asked_for.held_bytes = 0

    async def _answer(self, served: Served, request: Request, parent: bytes | None) -> None:
        streams, request_id = self._streams, request.id
        events = asked(served, request, streams.updates, streams.count)
        del request
        try:
            with tracing.span("request", kind="server", parent=parent) as span:
                await self._tell(events, request_id, span)
        except _SlowReaderError:
            self._stuck.set()
        except Exception as error:  # whatever a service raises, the client is told, and the connection stays
            with suppress(_SlowReaderError):
                await self._refuse(fault_of(error), request_id)

    async def _tell(self, events: AsyncGenerator[Event, None], request_id: str, span: tracing.Span) -> None:
        asked_for = self._asked[request_id]
        async with aclosing(told(events, self._gate.drain)) as telling:
            with self._gate.slots:
                first = await self._write_out(telling, asked_for)
            if isinstance(first, Answered):
                asked_for.first = first
                self._unanswered -= 1
                span.set("edgewise.source", first.answer.source)
                span.set("edgewise.reason", first.answer.decision.reason)
                span.set("edgewise.status", first.answer.status)
            await self._say(first)
            self._let_go(asked_for)
            async for event in telling:
                await self._say(event)

    async def _write_out(self, telling: AsyncGenerator[Event | None, None], asked_for: _Asked) -> Event | None:
        """Tell pieces of text as they come; the first event that is none, and is not told yet."""
        async for event in telling:
            if not isinstance(event, Token):
                return event
            await self._say(event)
            asked_for.text.append(event.text)
            self._let_go(asked_for)
        return None

    async def _interrupt(self, request_id: str) -> None:
        """End a text and tell what was told of it; one that is whole already goes its way."""
        asked_for = self._asked.get(request_id)
        if asked_for is None or asked_for.first is not None or not await self._stopped(asked_for):
            return
        await self._write({"type": "websocket.send", "text": encode_interrupted(request_id, asked_for.told).decode()})
        await self._say(Done(request_id))

    async def _stopped(self, asked_for: _Asked) -> bool:
        """End a request's work; False where it ended by itself in the meantime, and said so."""
        asked_for.task.cancel()
        await asyncio.wait({asked_for.task})
        return asked_for.task.cancelled()

    async def _cancel(self, request_id: str) -> None:
        asked_for = self._asked.get(request_id)
        if asked_for is None or not await self._stopped(asked_for):
            return
        if asked_for.first is None:
            await self._refuse(Fault(499, "cancelled", "The request was cancelled, as asked for."), request_id)
        else:
            await self._say(Done(request_id, pending=not asked_for.first.answer.is_settled))

    def _cancel_all(self) -> list[asyncio.Task[None]]:
        tasks = [asked.task for asked in self._asked.values()]
        for task in tasks:
            task.cancel()
        return tasks

    async def _refuse(self, fault: Fault, request_id: str) -> None:
        self._streams.on_fault(fault)
        await self._write({"type": "websocket.send", "text": encode_fault(fault, request_id).decode()})

    async def _say(self, event: Event | None) -> None:
        data = b"" if event is None else encode_event(event)
        if data:
            await self._write({"type": "websocket.send", "text": data.decode()})

    async def _write(self, message: Message) -> None:
        """Send a message; one to a client who has left is dropped.

        Raises:
            _SlowReaderError: The client does not read.
        """
        try:
            async with asyncio.timeout(self._limits.send_timeout_s):
                await self._send(message)
        except TimeoutError:
            raise _SlowReaderError from None
        except OSError:  # the server's word for a client who has left; the next message says so
            return
