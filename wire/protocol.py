"""uvicorn's HTTP protocol on httptools: guarded against heads and bodies that do not end, and with a short way for us.

Owns what happens before the application hears of a request. httptools has no limit on the head of a request; uvicorn's
pure-Python protocol, which runs where httptools does not, limits heads by itself and has none of what follows.

Three extensions spare a small request half of what ASGI costs; an application that does not know them notices nothing:

- An application may have `at_once(scope, body)`, which is called when a small request is here, before a task is made
  for it. It gives the whole reply, or the application that goes on with this request, or None: itself.
- `scope[WHOLE_BODY]` is the body where all of it was here before the application was called.
- A message "http.response.start" may carry the whole body as `WHOLE_BODY`; `send` tells by True that it was sent.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from edgewise.wire.http import ARRIVED_S, WHOLE_BODY, AsgiApp, Header, Message, Receive, Reply, Scope, Send

AtOnce: TypeAlias = Callable[[Scope, bytes], Reply | AsgiApp | None]

MAX_HEAD_BYTES = 64 * 1024
"""Request line, headers and trailers of one request."""

HEAD_TIMEOUT_S = 10.0
"""Seconds from the connection, or from the first byte of a later request, until its headers are complete; also from a
reply that did not wait for the body until the body is over."""

SEND_TIMEOUT_S = 10.0
"""Seconds without progress after which a client does not read what it is sent."""

MAX_PIPELINED = 8
"""Requests of one connection that wait for the one before them; behind them nothing is read, not even that the client
left."""

_HEADER_OVERHEAD_BYTES = 4  # ": " and the end of the line

_MESSAGE = b"The head of the request is too large."
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_MESSAGE), _MESSAGE)
)


_log = logging.getLogger("edgewise.wire.protocol")
"""Errors of the application, and warnings of what clients send where somebody has set its level: else anybody could
fill the log."""
if _log.level == logging.NOTSET:
    _log.setLevel(logging.ERROR)


class _HeadTooLargeError(Exception):
    """Stops the parser; the parser's own error is told to the client."""


class _AmbiguousHostError(Exception):
    """Stops the parser, as above."""


class _Cycle(RequestResponseCycle):
    """One request and its reply."""

    async def run_asgi(self, app: AsgiApp) -> None:  # type: ignore[override]
        """As uvicorn does it; an application that was cancelled at the end of service has said so to its client."""
        await super().run_asgi(_until_cancelled(app))  # type: ignore[arg-type]

    async def send(self, message: Message) -> bool | None:  # type: ignore[override]
        """As ASGI has it; True where the message's whole body was sent too."""
        body = message.get(WHOLE_BODY)
        if body is None or self.response_started or self.disconnected or self.flow.write_paused:
            await self._send_on(message)
            return None
        closes = not self.keep_alive or any(name == b"connection" for name, _ in message["headers"])
        if closes or self.scope["method"] == "HEAD":
            await self._send_on(message)
            return None
        self._send_whole(message["status"], message["headers"], body)
        return True

    async def _send_on(self, message: Message) -> None:
        try:
            await super().send(message)  # type: ignore[arg-type]
        except asyncio.CancelledError:  # it waited for a client who does not read
            self.disconnected = True
            self.transport.abort()
            raise

    def _send_whole(self, status: int, headers: list[Header], body: bytes) -> None:
        data = _whole(status, [*self.default_headers, *headers], body)
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(data)
        self.message_event.set()
        self.on_response()


def _until_cancelled(app: AsgiApp) -> AsgiApp:
    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return run


def _whole(status: int, headers: Sequence[Header], body: bytes) -> bytes:
    lines = [b"%b: %b\r\n" % pair for pair in headers]
    head = b"".join((STATUS_LINE[status], *lines))
    # Neither a name nor a value may end its line: what follows would be read as headers, or as a reply of its own.
    if head.count(b"\n") != len(lines) + 1 or head.count(b"\r") != len(lines) + 1:
        raise RuntimeError("Invalid HTTP header value.")
    return b"%b\r\n%b" % (head, body)


class GuardedProtocol(HttpToolsProtocol):
    """Refuses a head that is too large with 431, and closes a connection whose head or unread body does not end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.logger = _log
        self._respond: AtOnce | None = getattr(self.app, "at_once", None)
        self._early: bytes | None = None
        """What is here of the body of a request that may be answered at once; None where it has a cycle."""
        self._head_bytes = 0
        self._hosts = 0
        self._silent_bytes = 0
        """Received since the parser last said anything: an unfinished header is told only when it ends."""
        self._in_head = True
        self._in_message = True
        self._deadline_s = math.inf
        self._ahead: RequestResponseCycle | None = None
        """Of pipelined requests the one that is answered, or was when the last of them began; `cycle` is the last."""
        self._unsent_bytes = 0
        self._progress_s = math.inf
        """When it was last seen that the client reads, or has nothing to read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Wait for the first head."""
        super().connection_made(transport)
        self._deadline_s = self.loop.time() + HEAD_TIMEOUT_S

    def data_received(self, data: bytes) -> None:
        """Parse what has come; refuse a header that does not end, and wait no longer than that for the rest."""
        self._silent_bytes += len(data)
        super().data_received(data)
        if self._silent_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()
        if self._early is not None:
            self._begin_early(self.app, more_body=True)
        is_answered = self.cycle is None or self.cycle.response_complete
        if self._in_head or (self._in_message and is_answered):
            if self._deadline_s == math.inf:
                self._deadline_s = self.loop.time() + HEAD_TIMEOUT_S
        elif not is_answered:
            self._deadline_s = math.inf  # the application has limits of its own

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: whoever answers it hears so, and what waits behind is not begun."""
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        super().connection_lost(exc)  # tells the last one only
        for cycle in waiting if self._ahead is None else (self._ahead, *waiting):
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()

    def check_deadline(self, now_s: float) -> None:
        """Close the connection if what it waits for is overdue or its client does not read.

        `now_s` is the event loop's time. The server asks every connection now and then: a timer for each request would
        cost more than all of this.
        """
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes == 0 or unsent_bytes != self._unsent_bytes:
            self._unsent_bytes, self._progress_s = unsent_bytes, now_s
        elif now_s - self._progress_s >= SEND_TIMEOUT_S:
            self.transport.abort()  # to close it would be to wait for the client
            return
        if now_s < self._deadline_s:
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:  # the head of a pipelined request: the one before it still waits for its answer
            self._deadline_s = now_s + HEAD_TIMEOUT_S

    def send_400_response(self, msg: str) -> None:
        """Tell a head that is too large from one that is not HTTP."""
        self._early = None
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._silent_bytes = self._head_bytes = self._hosts = 0
        self._in_head = self._in_message = True
        self._deadline_s = math.inf
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request line."""
        self._count(len(url))
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header, or a trailer."""
        self._count(len(name) + len(value) + _HEADER_OVERHEAD_BYTES)
        if not self._in_head:
            return  # no application of ours reads trailers, and a late header must not change what was decided
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._silent_bytes = 0
        self._in_head = False
        version = self.parser.get_http_version()
        if self._hosts != 1 and version == "1.1":
            raise _AmbiguousHostError  # RFC 9112, section 3.2: a proxy in front may have gone by the other one
        if self.parser.should_upgrade() and self._should_upgrade():
            super().on_headers_complete()
            return
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[ARRIVED_S] = time.monotonic()
        scope["http_version"] = version
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["raw_path"], scope["query_string"] = _split(self.url)
        path = scope["raw_path"].decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        if self._may_be_answered_at_once():
            self._early = b""
        else:
            self._begin_cycle(self.app)

    def on_body(self, body: bytes) -> None:
        """A piece of the body; the application limits those."""
        self._silent_bytes = 0
        if self._early is None:
            super().on_body(body)
            return
        self._early += body
        if len(self._early) > HIGH_WATER_LIMIT:
            self._begin_early(self.app, more_body=True)

    def on_message_complete(self) -> None:
        """All of the request is here."""
        self._in_message = False
        if self._early is not None:
            self._answer_early(self._early)
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """A reply is sent: begin the next request, or wait for it."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._ahead, app = self.pipeline.pop()
            self._start_asgi_task(self._ahead, app)
        else:
            self._deadline_s = self.loop.time() + (HEAD_TIMEOUT_S if self._in_message else self.timeout_keep_alive)

    def _may_be_answered_at_once(self) -> bool:
        return (
            self._respond is not None
            and self.scope["method"] == "POST"
            and self.scope["http_version"] == "1.1"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.expect_100_continue
            and not self.flow.write_paused
            and self.parser.should_keep_alive()
        )

    def _answer_early(self, body: bytes) -> None:
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        found = self._respond(scope, body) if self._respond is not None else None
        if isinstance(found, Reply):
            self._early = None
            lines = [*self.server_state.default_headers, *found.lines()]
            self.transport.write(_whole(found.status, lines, found.body))
            self.on_response_complete()
            return
        scope[WHOLE_BODY] = body
        self._begin_early(found or self.app, more_body=False)

    def _begin_early(self, app: AsgiApp, *, more_body: bool) -> None:
        body, self._early = self._early, None
        self._begin_cycle(app)
        self.cycle.body += body or b""
        self.cycle.more_body = more_body
        self.cycle.message_event.set()

    def _begin_cycle(self, app: AsgiApp) -> None:
        """As uvicorn does it, with our cycle."""
        previous = self.cycle
        self.cycle = _Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=self.scope["http_version"] != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if previous is None or previous.response_complete:
            self._start_asgi_task(self.cycle, app)  # type: ignore[arg-type]
            return
        if not self.pipeline:
            self._ahead = previous
        self.pipeline.appendleft((self.cycle, app))  # type: ignore[arg-type]
        if len(self.pipeline) >= MAX_PIPELINED:
            self.flow.pause_reading()

    def _count(self, size: int) -> None:
        self._silent_bytes = 0
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLargeError

    def _refuse(self) -> None:
        self.transport.write(_REFUSAL)
        self.transport.close()


def _split(url: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request's target."""
    if url.startswith(b"/") and b"?" not in url and b"#" not in url and not url.startswith(b"//"):
        return url, b""
    parsed = httptools.parse_url(url)
    return parsed.path, parsed.query or b""
