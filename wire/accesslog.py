"""One line a request: what was asked where, by whom, and what became of it. Never the payload, the key or the query.

Owns the line and its fields; where lines go is the standard logging's, under the name "edgewise.access". Spans of
requests are kept here too: both want to see a reply pass by, and nothing of this runs while both are off.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import msgspec

from edgewise import tracing
from edgewise.wire.http import WHOLE_BODY, Message, Receive, Scope, Send

log = logging.getLogger("edgewise.access")
"""Gives one JSON object a request, at level INFO."""


def write_to_stderr() -> None:
    """Have the lines written, one JSON object a line, unless the process has said where they go."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO)


TENANT = "edgewise.tenant"
"""Where the door leaves the tenant in the ASGI scope."""

Serve: TypeAlias = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

_FACTS = {
    b"x-edgewise-id": "id",
    b"x-edgewise-source": "source",
    b"x-edgewise-reason": "reason",
    b"x-edgewise-status": "answer",
}
_SPAN_FACTS = {"source": "edgewise.source", "reason": "edgewise.reason", "answer": "edgewise.status"}
_encoder = msgspec.json.Encoder()


class _Watched:
    """Passes a reply on, and notes what it says of itself."""

    def __init__(self, send: Send, traceparent: str | None) -> None:
        self._send = send
        self._traceparent = traceparent
        self.status = 499  # what proxies log where a client left before its answer
        self.size_bytes = 0
        self.facts: dict[str, str] = {}

    async def __call__(self, message: Message) -> bool | None:
        if message["type"] == "http.response.start":
            message = self._noted(message)
        elif message["type"] == "http.response.body":
            self.size_bytes += len(message.get("body", b""))
        if await self._send(message) is not True:
            return None
        self.size_bytes += len(message[WHOLE_BODY])
        return True

    def _noted(self, message: Message) -> Message:
        headers = list(message.get("headers", ()))
        self.status = message["status"]
        self.facts = {_FACTS[name]: value.decode("latin-1") for name, value in headers if name in _FACTS}
        if self._traceparent is not None:  # the span's own, in place of the caller's
            headers = [pair for pair in headers if pair[0] != b"traceparent"]
            headers.append((b"traceparent", self._traceparent.encode("ascii")))
        return {**message, "headers": headers}


async def observe(serve: Serve, scope: Scope, receive: Receive, send: Send, *, write: bool) -> None:
    """Serve a request inside a span, and write its line.

    Args:
        serve: Serves it, and leaves its tenant in the scope.
        scope: The request's.
        receive: As ASGI has it.
        send: As ASGI has it.
        write: Whether to write the line.
    """
    started = time.perf_counter()
    parent = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
    with tracing.span("request", kind="server", parent=parent) as span:
        watched = _Watched(send, tracing.traceparent())
        span.set("http.request.method", scope["method"])
        span.set("url.path", scope["path"])
        try:
            await serve(scope, receive, watched)
        finally:
            span.set("http.response.status_code", watched.status)
            for name, key in _SPAN_FACTS.items():
                if name in watched.facts:
                    span.set(key, watched.facts[name])
            if write:
                _write(scope, watched, time.perf_counter() - started)


def _write(scope: Scope, watched: _Watched, seconds: float) -> None:
    line = {
        "time": time.time(),
        "method": scope["method"],
        "route": scope["path"],
        "status": watched.status,
        "tenant": scope.get(TENANT, ""),
        **watched.facts,
        "ms": round(seconds * 1000, 3),
        "bytes": watched.size_bytes,
    }
    log.info("%s", _encoder.encode(line).decode())
