"""One response of server-sent events: its head, its pieces, its end, and the client who leaves or does not read.

Owns no event and no word of one. Format: HTML Living Standard, section 9.2, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Protocol

from edgewise.wire.faults import SHUTTING_DOWN, Fault, fault_of
from edgewise.wire.http import ClientGoneError, Header, Receive, Send, unless_client_leaves

CONTENT_TYPE = b"text/event-stream"
KEEP_ALIVE_S = 15.0
SEND_TIMEOUT_S = 10.0
"""Seconds that a piece may wait for a client to read those before it."""

KEEP_ALIVE = b": keep-alive\n\n"


class Closable(Protocol):
    """What gives events until it is closed."""

    async def aclose(self) -> None:
        """Close it, and wait until it is."""


async def unless_listener_leaves(receive: Receive, work: Coroutine[Any, Any, None], telling: Closable) -> None:
    """Await `work`, which tells what `telling` gives, cancel it when the client disconnects, and close `telling`.

    It is closed when nobody watches any more: a server calls the end of a response a disconnection too.

    Raises:
        ClientGoneError: The client disconnected before the end.
    """
    async with aclosing(telling):
        await unless_client_leaves(receive, work)


class EventResponse:
    """A response of server-sent events, which ends well or with an error, as the block does that it is entered for.

    Args:
        send: As ASGI has it.
        timeout_s: Seconds that a client may take to read what it was sent.
        encode_fault: The last event of a stream that cannot go on.
        on_fault: Told of an error that ended the stream.
    """

    def __init__(
        self,
        send: Send,
        timeout_s: float,
        encode_fault: Callable[[Fault], bytes],
        on_fault: Callable[[Fault], None] = lambda _: None,
    ) -> None:
        self._send = send
        self._sending = _Sending(timeout_s)
        self._encode_fault = encode_fault
        self._on_fault = on_fault

    async def begin(self, headers: Iterable[Header]) -> None:
        """Send the head: from here on the status is 200, whatever comes."""
        lines = [
            (b"content-type", CONTENT_TYPE),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # else nginx keeps events back
            *headers,
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": lines})

    async def put(self, data: bytes, *, more: bool = True) -> None:
        """Send a piece, inside the block.

        Raises:
            ClientGoneError: The client does not read.
        """
        await self._sending.do(self._send({"type": "http.response.body", "body": data, "more_body": more}))

    async def __aenter__(self) -> EventResponse:
        """Itself."""
        self._sending.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """End the response: what was begun as an answer cannot end as an error of HTTP.

        Cancelled is who tells it by the server's end, or by a client who left and hears nothing of this; whoever waits
        for the response knows which, and hears of it.
        """
        try:
            return await self._end(error)
        finally:
            self._sending.end()

    async def _end(self, error: BaseException | None) -> bool:
        if error is None:
            await self.put(b"", more=False)
            return False
        if isinstance(error, asyncio.CancelledError):
            await self.put(self._encode_fault(SHUTTING_DOWN), more=False)
            return False
        if not isinstance(error, Exception) or isinstance(error, ClientGoneError):
            return False
        fault = fault_of(error)
        self._on_fault(fault)
        await self.put(self._encode_fault(fault), more=False)
        return True


class _Sending:
    """Sends one piece after the other, and gives up on a client who takes too long to read one.

    One timer for all pieces, set to the end of the time of the piece that is under way when it rings: one for each
    would cost more than to send it.

    Args:
        timeout_s: Seconds that a piece may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since_s: float | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_stuck = False

    def begin(self) -> None:
        """The running task is about to send."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer = self._loop.call_later(self._timeout_s, self._look)

    def end(self) -> None:
        """Nothing more will be sent."""
        if self._timer is not None:
            self._timer.cancel()

    async def do(self, sending: Awaitable[Any]) -> None:
        """Wait until a piece is sent.

        Raises:
            ClientGoneError: It takes too long, and was cancelled.
        """
        self._since_s = self._loop.time()
        try:
            await sending
        except asyncio.CancelledError:
            if self._is_stuck and self._task is not None and self._task.uncancel() == 0:
                raise ClientGoneError from None
            raise
        finally:
            self._since_s = None

    def _look(self) -> None:
        now_s = self._loop.time()
        since_s = now_s if self._since_s is None else self._since_s
        if self._task is not None and now_s >= since_s + self._timeout_s:
            self._is_stuck = True
            self._task.cancel()
            return
        self._timer = self._loop.call_at(since_s + self._timeout_s, self._look)
