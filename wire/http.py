"""One HTTP request through ASGI, without a framework: reading a bounded body, sending one reply, noticing who left.

Owns bytes and messages of ASGI; knows no route and no protocol.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

from edgewise import tracing
from edgewise.wire.admission import Room
from edgewise.wire.faults import Fault

T = TypeVar("T")
Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[Any]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
Header: TypeAlias = tuple[bytes, bytes]

WHOLE_BODY = "edgewise.whole_body"
"""Where our server leaves a small body in the ASGI scope, and where `reply` puts the body in its first message; see
`protocol`."""

ARRIVED_S = "edgewise.arrived_s"
"""Where our server leaves the time in the ASGI scope at which the head was complete, in monotonic seconds."""


class Headers(dict[bytes, bytes]):
    """A request's headers by lower-case name; of several of one name the last.

    Args:
        scope: The request's.

    Attributes:
        arrived_s: When the head was here, in monotonic seconds.
    """

    __slots__ = ("arrived_s",)

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope["headers"])
        self.arrived_s: float = scope.get(ARRIVED_S) or time.monotonic()


JSON = b"application/json"

_LONGEST_LENGTH = 19
"""Digits of the largest number of bytes that there can be; Python refuses to read some thousand of them."""

_NOT_PRINTABLE = re.compile(rb"[^\x20-\x7e]")


class ClientGoneError(Fault):
    """The client left before its answer; the status is never seen, and is the one that proxies log."""

    def __init__(self) -> None:
        super().__init__(499, "client_gone", "The client left before its answer.")


async def read_body(
    scope: Scope, receive: Receive, headers: Headers, *, max_bytes: int, timeout_s: float, room: Room
) -> bytes:
    """Read a whole body, stopping as soon as it is too large, whether or not its length was announced.

    Args:
        scope: The request's; has the body where the server had all of it before the application was called.
        receive: Gives the next message.
        headers: The request's.
        max_bytes: The largest body.
        timeout_s: Seconds until all of it must be here.
        room: Where the body is kept; its length has to be given back there once the body is done with.

    Raises:
        Fault: It is larger than `max_bytes`, late, one too many, or encoded in a way that is not read here.
        ClientGoneError: The client left in the middle.
    """
    check_body(headers, max_bytes)
    whole: bytes | None = scope.get(WHOLE_BODY)
    if whole is not None and len(whole) <= max_bytes:
        room.take(len(whole))
        return whole
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_pieces(receive, max_bytes, room)
    except TimeoutError:
        raise Fault(
            408,
            "request_timeout",
            f"The body was not here after {timeout_s:g} s.",
            remedy="Send it at once, or a smaller one.",
            headers={"connection": "close"},
        ) from None


def check_body(headers: Headers, max_bytes: int, here: int = 0) -> None:
    """Find out whether a body can be read.

    Args:
        headers: They may announce its size.
        max_bytes: The largest body.
        here: Bytes of it that are here already, announced or not.

    Raises:
        Fault: It is larger than `max_bytes`, or encoded in a way that is not read here.
    """
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise Fault(415, "unsupported_encoding", "The body is compressed.", remedy="Send it without content-encoding.")
    announced = headers.get(b"content-length", b"0")
    if len(announced) > _LONGEST_LENGTH:
        raise Fault(
            400,
            "invalid_request",
            f"content-length has {len(announced)} digits.",
            field="content-length",
            remedy="Send the number of bytes of the body.",
        )
    _check_size(max(here, int(announced) if announced.isdigit() else 0), max_bytes)


async def _read_pieces(receive: Receive, max_bytes: int, room: Room) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        more = True
        while more:
            chunk, more = _piece(await receive())
            _check_size(size + len(chunk), max_bytes)
            room.take(len(chunk))
            size += len(chunk)
            chunks.append(chunk)
    except BaseException:
        room.give(size)
        raise
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _piece(message: Message) -> tuple[bytes, bool]:
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message.get("body", b""), message.get("more_body", False)


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise Fault(
            413,
            "payload_too_large",
            f"The body is larger than {max_bytes} bytes.",
            remedy="Send fewer or smaller items.",
        )


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it when the client disconnects.

    Call it only after the whole body was read.

    Raises:
        ClientGoneError: The client disconnected; `work` was cancelled and has ended.
    """
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("A request is answered inside a task.")
    watch = asyncio.get_running_loop().create_task(_cancel_on_disconnect(receive, task))
    try:
        return await work
    except asyncio.CancelledError:
        # Cancelled by the watch, and by nobody else: the server's own cancellation must go on.
        if watch.done() and not watch.cancelled() and task.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        watch.cancel()


async def _cancel_on_disconnect(receive: Receive, task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


class Sending:
    """Passes a reply on, and gives the room of the request's body back when it begins.

    Who does not read a reply must keep no other client's body out.

    Args:
        send: As ASGI has it.
        room: Where the body is kept.

    Attributes:
        has_begun: Whether a reply has begun, so that no other can be sent.
    """

    __slots__ = ("_held_bytes", "_room", "_send", "has_begun")

    def __init__(self, send: Send, room: Room) -> None:
        self._send = send
        self._room = room
        self._held_bytes = 0
        self.has_begun = False

    def hold(self, size: int) -> None:
        """Give back `size` bytes of the room, which are taken already, when the reply begins."""
        self._held_bytes = size

    def let_go(self) -> None:
        """Give back what is held, if it has not been."""
        self._room.give(self._held_bytes)
        self._held_bytes = 0

    async def __call__(self, message: Message) -> Any:
        """Send a message; a first one that cannot be sent begins nothing."""
        begun, self.has_begun = self.has_begun, True
        self.let_go()
        try:
            return await self._send(message)
        except Exception:
            self.has_begun = begun
            raise


class Reply(NamedTuple):
    """One whole response.

    Attributes:
        status: The status code.
        body: The body.
        headers: Headers besides type and length.
        content_type: What the body is.
    """

    status: int
    body: bytes
    headers: tuple[Header, ...] = ()
    content_type: bytes = JSON

    def lines(self) -> list[Header]:
        """All headers."""
        return _lines(self.content_type, self.body, self.headers)


def _lines(content_type: bytes, body: bytes, headers: Iterable[Header]) -> list[Header]:
    return [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]


async def reply(
    send: Send, status: int, body: bytes, *, content_type: bytes = JSON, headers: Iterable[Header] = ()
) -> None:
    """Send one whole response."""
    lines = _lines(content_type, body, headers)
    start = {"type": "http.response.start", "status": status, "headers": lines, WHOLE_BODY: body}
    if await send(start) is not True:
        await send({"type": "http.response.body", "body": body})


def header(name: bytes, value: str) -> Header:
    """A header whose value holds nothing but printable ASCII; what cannot be sent becomes "?"."""
    if value.isascii() and value.isprintable():
        return name, value.encode("ascii")
    return name, _NOT_PRINTABLE.sub(b"?", value.encode("utf-8", "replace"))


def trace_headers(headers: Headers) -> tuple[Header, ...]:
    """The request's `traceparent`, for the reply, if it is a valid one."""
    value = headers.get(b"traceparent")
    return ((b"traceparent", value),) if value and tracing.parse_traceparent(value) is not None else ()
