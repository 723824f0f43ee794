"""`/v1/chat/completions` and `/v1/completions`: a text that a model writes, whole or as it is written.

Owns what a client is told and when a stream ends; what bytes mean is `completions`' and `completion_replies`', and what
is answered the service's. The first event decides the status, so that an error is one of HTTP wherever it can be; later
ones end the stream with an error in its own words, and without its DONE. A stream ends with the first whole answer:
this protocol has no words for an update, which is picked up under the same id. Whoever leaves ends what is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import TypeAlias

import msgspec

from edgewise.contracts import Answer, Answered, Done, Event, Request, Served, Token
from edgewise.wire import openai
from edgewise.wire.admission import Places
from edgewise.wire.asking import Asking
from edgewise.wire.catalog import Catalog
from edgewise.wire.completion_replies import Telling, encode_break, encode_reply
from edgewise.wire.completions import Body, Call, call_of, decode_chat, decode_completion
from edgewise.wire.event_response import (
    KEEP_ALIVE,
    KEEP_ALIVE_S,
    SEND_TIMEOUT_S,
    EventResponse,
    unless_listener_leaves,
)
from edgewise.wire.events import Feed, Updates, asked
from edgewise.wire.facts import answer_headers
from edgewise.wire.faults import Fault
from edgewise.wire.http import Header, Headers, Receive, Send, header, reply, trace_headers, unless_client_leaves

_Found: TypeAlias = tuple[Answer, list[Token]]


class Generating:
    """Answers requests for texts.

    Args:
        catalog: The models served now.
        asking: Asks them, and counts their answers.
        new_id: Makes the id of a request.
        updates: Where owed updates would be waited for; none is here.
        streams: Places for streams.
        on_fault: Told of each error that ends a stream.
        max_budget_ms: The largest budget, in milliseconds.
        now_s: The time, in seconds since the epoch.
        keep_alive_s: Seconds of silence after which a comment is sent.
        send_timeout_s: Seconds that a client may take to read what it was sent.
    """

    def __init__(
        self,
        catalog: Catalog,
        asking: Asking,
        new_id: Callable[[], str],
        *,
        updates: Updates,
        streams: Places,
        on_fault: Callable[[Fault], None],
        max_budget_ms: float,
        now_s: Callable[[], float] = time.time,
        keep_alive_s: float = KEEP_ALIVE_S,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        self._catalog = catalog
        self._asking = asking
        self._new_id = new_id
        self._updates = updates
        self._streams = streams
        self._on_fault = on_fault
        self._max_budget_ms = max_budget_ms
        self._now_s = now_s
        self._keep_alive_s = keep_alive_s
        self._send_timeout_s = send_timeout_s

    async def chat(self, body: bytes, tenant: str, headers: Headers, receive: Receive, send: Send) -> None:
        """Answer `POST /v1/chat/completions`; a `PostHandler` of the door.

        Raises:
            Exception: What the request is refused for, or what the service raises before its first event.
            ClientGoneError: The client left, and its work was cancelled.
        """
        sent = decode_chat(body)
        del body  # the answer may take long
        await self._answer(sent, tenant, headers, receive, send)

    async def complete(self, body: bytes, tenant: str, headers: Headers, receive: Receive, send: Send) -> None:
        """Answer `POST /v1/completions`; raises as `chat`."""
        sent = decode_completion(body)
        del body
        await self._answer(sent, tenant, headers, receive, send)

    async def _answer(self, sent: Body, tenant: str, headers: Headers, receive: Receive, send: Send) -> None:
        served = self._writer(sent.model)
        call = call_of(
            sent,
            headers,
            tenant=tenant,
            new_id=self._new_id,
            max_budget_ms=self._max_budget_ms,
            arrived_s=headers.arrived_s,
        )
        if not call.streams:
            await self._reply(served, call, headers, receive, send)
            return
        with self._streams:
            events = asked(served, call.request, self._updates, self._asking.count)
            coming = Feed(events, self._keep_alive_s)
            telling = Telling(served.info.name, call, self._now_s())
            await unless_listener_leaves(receive, self._stream(coming, telling, call.request.id, headers, send), coming)

    def _writer(self, name: str) -> Served:
        """The model of that name.

        Raises:
            Fault: Nobody of that name is served here.
            RequestError: It writes no texts.
        """
        served = self._catalog.writer(name)
        openai.check_generator(served.info)
        return served

    async def _reply(self, served: Served, call: Call, headers: Headers, receive: Receive, send: Send) -> None:
        work = self._gathered(served, call.request) if call.tells_logprobs else self._asked(served, call.request)
        answer, tokens = await unless_client_leaves(receive, work)
        body = encode_reply(served.info.name, call, answer, tokens, self._now_s())
        await reply(send, 200, body, headers=(*answer_headers(answer), *trace_headers(headers)))

    async def _asked(self, served: Served, request: Request) -> _Found:
        found = self._asking.one(served, request)
        return (found if isinstance(found, Answer) else await found), []

    async def _gathered(self, served: Served, request: Request) -> _Found:
        """The answer with its tokens, which a whole answer does not have."""
        request = msgspec.structs.replace(request, whole=True)
        tokens: list[Token] = []
        async with aclosing(asked(served, request, self._updates, self._asking.count)) as events:
            async for event in events:
                if isinstance(event, Answered):
                    return event.answer, tokens
                if isinstance(event, Token):
                    tokens.append(event)
        raise RuntimeError("A stream of events ended without an answer.")

    async def _stream(self, coming: Feed, telling: Telling, request_id: str, headers: Headers, send: Send) -> None:
        first = await _first(coming)
        async with EventResponse(send, self._send_timeout_s, encode_break, self._on_fault) as response:
            await response.begin((*_facts(first, request_id), *trace_headers(headers)))
            await response.put(telling.opening() + _encoded(first, telling))
            is_over = isinstance(first, Answered)
            while not is_over:
                await coming.wait()
                data, is_over = _joined(coming.take_all(), telling)
                if data:
                    await response.put(data)


async def _first(coming: Feed) -> Event:
    """The first event, which decides how the client is answered."""
    while (event := coming.take()) is None:
        await coming.wait()
    return event


def _joined(events: Sequence[Event], telling: Telling) -> tuple[bytes, bool]:
    """What is told of events that came together, and whether that was the end; of a pause, that there is one."""
    if not events:
        return KEEP_ALIVE, False
    pieces = []
    for event in events:
        pieces.append(_encoded(event, telling))
        if isinstance(event, Answered):
            return b"".join(pieces), True
    return b"".join(pieces), False


def _facts(first: Event, request_id: str) -> tuple[Header, ...]:
    """What is known of an answer when its stream begins: its id, and all of it where it is here already."""
    if isinstance(first, Answered):
        return answer_headers(first.answer)
    return (header(b"x-edgewise-id", request_id),)


def _encoded(event: Event, telling: Telling) -> bytes:
    if isinstance(event, Token):
        return telling.token(event)
    if isinstance(event, Answered):
        return telling.answered(event.answer)
    ended = "done" if isinstance(event, Done) else "revised"
    raise RuntimeError(f"A stream of events was {ended} before it was answered.")
