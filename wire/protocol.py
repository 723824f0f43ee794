"""uvicorn's HTTP protocol on httptools: guarded against heads and bodies that do not end, and with a short way for us.

Owns what happens before the application hears of a request. httptools has no limit on the head of a request; uvicorn's
pure-Python protocol, which runs where httptools does not, limits heads by itself and has none of what follows.

Two extensions spare a small request and a whole reply half of what ASGI's messages cost; an application that does not
know them notices nothing. `scope[WHOLE_BODY]` is the body where all of it was here before the application was
called. A message "http.response.start" may carry the whole body as `WHOLE_BODY`, and `send` tells by True that it
was sent.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from edgewise.wire.http import ARRIVED_S, WHOLE_BODY, Message

MAX_HEAD_BYTES = 64 * 1024
"""Request line, headers and trailers of one request."""

HEAD_TIMEOUT_S = 10.0
"""Seconds from the connection, or from the first byte of a later request, until its headers are complete; also from a
reply that did not wait for the body until the body is over."""

_HEADER_OVERHEAD_BYTES = 4  # ": " and the end of the line

_MESSAGE = b"The head of the request is too large."
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_MESSAGE), _MESSAGE)
)


class _HeadTooLargeError(Exception):
    """Stops the parser; the parser's own error is told to the client."""


class _Cycle(RequestResponseCycle):
    """One request and its reply."""

    async def send(self, message: Message) -> bool | None:  # type: ignore[override]
        """As ASGI has it; True where the message's whole body was sent too."""
        body = message.get(WHOLE_BODY)
        if body is None or self.response_started or self.disconnected or self.flow.write_paused:
            await super().send(message)  # type: ignore[arg-type]
            return None
        if self.scope["method"] == "HEAD" or not self.keep_alive:
            await super().send(message)  # type: ignore[arg-type]
            return None
        self._send_whole(message["status"], message["headers"], body)
        return True

    def _send_whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        lines = [b"%b: %b\r\n" % pair for pair in (*self.default_headers, *headers)]
        head = b"".join((STATUS_LINE[status], *lines))
        # Neither a name nor a value may end its line: what follows would be read as headers, or as a reply of its own.
        if head.count(b"\n") != len(lines) + 1 or head.count(b"\r") != len(lines) + 1:
            raise RuntimeError("Invalid HTTP header value.")
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(b"%b\r\n%b" % (head, body))
        self.message_event.set()
        self.on_response()


class GuardedProtocol(HttpToolsProtocol):
    """Refuses a head that is too large with 431, and closes a connection whose head or unread body does not end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_bytes = 0
        self._silent_bytes = 0
        """Received since the parser last said anything: an unfinished header is told only when it ends."""
        self._in_head = True
        self._in_message = True
        self._deadline_s = math.inf

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
        is_answered = self.cycle is None or self.cycle.response_complete
        if self._in_head or (self._in_message and is_answered):
            if self._deadline_s == math.inf:
                self._deadline_s = self.loop.time() + HEAD_TIMEOUT_S
        elif not is_answered:
            self._deadline_s = math.inf  # the application has limits of its own

    def send_400_response(self, msg: str) -> None:
        """Tell a head that is too large from one that is not HTTP."""
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._silent_bytes = self._head_bytes = 0
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
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there: as uvicorn's own, on our cycle."""
        self._silent_bytes = 0
        self._in_head = False
        if self.parser.should_upgrade() and self._should_upgrade():
            super().on_headers_complete()
            return
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[ARRIVED_S] = time.monotonic()
        scope["http_version"] = version = self.parser.get_http_version()
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["raw_path"], scope["query_string"] = _split(self.url)
        path = scope["raw_path"].decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
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
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if previous is None or previous.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:  # the one before it on this connection is still being answered
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """A piece of the body; the application limits those."""
        self._silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of the request is here."""
        self._in_message = False
        super().on_message_complete()
        cycle = self.cycle
        if cycle is not None and len(cycle.body) <= HIGH_WATER_LIMIT:
            self.scope[WHOLE_BODY] = bytes(cycle.body)  # type: ignore[literal-required]

    def on_response_complete(self) -> None:
        """The reply is sent: begin the next request, or wait for it."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._deadline_s = self.loop.time() + (HEAD_TIMEOUT_S if self._in_message else self.timeout_keep_alive)

    def check_deadline(self, now_s: float) -> None:
        """Close the connection if what it waits for is overdue; `now_s` is the event loop's time.

        The server asks every connection now and then: a timer for each request would cost more than all of this.
        """
        if now_s < self._deadline_s:
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:  # the head of a pipelined request: the one before it still waits for its answer
            self._deadline_s = now_s + HEAD_TIMEOUT_S

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
