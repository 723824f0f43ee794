"""The front door: one ASGI application over any `AnswerService`.

It is the gateway where the router stands behind it and the cloud service where an engine does. Owns routes, limits,
keys and the life of a connection; how a request is answered is the service's business, and what bytes mean is the
codecs'. Hot routes are answered here without a framework; `pages` has the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeAlias

import msgspec

from edgewise import telemetry, tracing
from edgewise.contracts import AnswerStore, Request, Served, new_id
from edgewise.telemetry import Metrics
from edgewise.wire import native, oip
from edgewise.wire.accesslog import TENANT, observe
from edgewise.wire.admission import Gate, Places, Rates
from edgewise.wire.asking import Asking
from edgewise.wire.catalog import Catalog, Models, infer_path
from edgewise.wire.facts import answer_headers
from edgewise.wire.faults import Fault, fault_of
from edgewise.wire.http import (
    ClientGoneError,
    Headers,
    Receive,
    Scope,
    Send,
    header,
    read_body,
    reply,
    trace_headers,
)
from edgewise.wire.keys import ApiKeys, Hosts
from edgewise.wire.pages import Pages
from edgewise.wire.parsing import DEFAULT_MAX_BUDGET_MS

GATE = "edgewise.gate"
"""Where the door leaves its `Gate` in the scope of a WebSocket."""

_ALIVE = b'{"status":"alive"}'
_PREDICT = "/v1/predict"
_ANSWERS = "/v1/answers/"
_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Paths that need no key; `/v2/models/…/ready` is the other kind."""

PostHandler: TypeAlias = Callable[[bytes, str, Headers, Receive, Send], Awaitable[None]]
"""Answers a hot route: body, tenant, headers, receive, send."""

EventsHandler: TypeAlias = Callable[[Served, Request, Headers, Gate, Receive, Send], Awaitable[None]]
"""Answers one request as a stream of events: model, request, headers, gate, receive, send."""

StreamHandler: TypeAlias = Callable[[Scope, Receive, Send, str], Awaitable[None]]
"""Serves a WebSocket: scope, receive, send, tenant."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one client may ask of one process.

    Attributes:
        max_body_bytes: The largest body.
        max_buffered_bytes: Bytes that the bodies of all requests take together while they are read and answered; at
            least one largest body. One more is told to come back.
        body_timeout_s: Seconds until a body must be here, from the moment its headers are.
        max_items: The most items in one infer request.
        max_concurrency: The most requests answered at once; one more is told to come back. A request counts once
            its body is here, so that those who send slowly keep nobody else out.
        max_polls: The most polls that wait for an answer at once; one more is told to come back.
        max_streams: The most WebSockets and event streams open at once; one more is told to come back.
        max_budget_ms: The largest budget, in milliseconds.
        max_wait_ms: The longest poll for an answer, in milliseconds.
        rate_per_s: Requests a second that one tenant may send for ever; None sets no limit. A poll counts as one.
        burst: Requests that one tenant may send at once after a silence.
        hosts: Names by which clients may call this server, in the header `host`; None takes any. Other names are
            refused: by DNS rebinding a web page makes its own name that of a server on its reader's machine.
    """

    max_body_bytes: int = 8 * 1024 * 1024
    max_buffered_bytes: int = 256 * 1024 * 1024
    body_timeout_s: float = 10.0
    max_items: int = oip.DEFAULT_MAX_ITEMS
    max_concurrency: int = 256
    max_polls: int = 1024
    max_streams: int = 1024
    max_budget_ms: float = DEFAULT_MAX_BUDGET_MS
    max_wait_ms: float = 60_000.0
    rate_per_s: float | None = None
    burst: int = 50
    hosts: tuple[str, ...] | None = None


def front_door(
    models: Models,
    *,
    answers: AnswerStore | None,
    metrics: Metrics,
    api_keys: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    lifespan: Callable[[], AbstractAsyncContextManager[None]] | None = None,
    new_id: Callable[[], str] = new_id,
    report: Callable[[], Mapping[str, Any]] | None = None,
    stream: StreamHandler | None = None,
    events: EventsHandler | None = None,
    posts: Mapping[str, PostHandler] | Iterable[tuple[str, PostHandler]] = (),
    access_log: bool = False,
) -> FrontDoor:
    """Build the application.

    Args:
        models: Gives the models by name, at every request; the first is the default of `/v1/predict`.
        answers: Answers for later pick-up, or None where none are kept.
        metrics: Where answers and errors are counted.
        api_keys: Tenant by key; none lets everybody in, as the tenant "public".
        limits: What one client may ask.
        lifespan: Entered when the server starts and left when it stops.
        new_id: Makes the id of a request that brings none.
        report: Gives what the service promises now, for the front page; None where it promises nothing.
        stream: Serves a WebSocket whose tenant is known, one of at most `max_streams`; None closes them all. It gets
            the scope, `receive` before "websocket.connect" was read, `send` and the tenant. `scope[GATE]` is the
            `Gate` at which each request inside the stream asks: `gate.admit(tenant, now)`, then `with gate.slots:`
            around its answer; `gate.drain` tells that service ends.
        events: Answers `POST /v1/predict` where the client accepts "text/event-stream", one of at most `max_streams`;
            None answers it in JSON. It gets the model, the request, the headers, the gate (no slot is held), `receive`
            after the whole body was read, and `send`.
        posts: Further hot routes, by path; each gets the body, the tenant, the headers (with `arrived_s`), `receive`
            after the whole body was read, and `send`, and answers within the same limits as `/v1/predict`. What any
            handler raises becomes an error in the shape of its path.
        access_log: Whether to write a line a request; see `accesslog`.

    Raises:
        ConfigError: A model's name cannot stand in a URL.
    """
    return FrontDoor(
        Catalog(models),
        answers=answers,
        metrics=metrics,
        keys=ApiKeys(api_keys or {}),
        limits=limits or Limits(),
        lifespan=lifespan or contextlib.nullcontext,
        new_id=new_id,
        report=report,
        stream=stream,
        events=events,
        posts=dict(posts),
        access_log=access_log,
    )


class FrontDoor:
    """The application that `front_door` builds."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        answers: AnswerStore | None,
        metrics: Metrics,
        keys: ApiKeys,
        limits: Limits,
        lifespan: Callable[[], AbstractAsyncContextManager[None]],
        new_id: Callable[[], str],
        report: Callable[[], Mapping[str, Any]] | None,
        stream: StreamHandler | None,
        events: EventsHandler | None,
        posts: Mapping[str, PostHandler],
        access_log: bool,
    ) -> None:
        self._catalog = catalog
        self._metrics = metrics
        self._keys = keys
        self._limits = limits
        self._lifespan = lifespan
        self._new_id = new_id
        self._stream = stream
        self._events = events
        self._writes = access_log
        self._hosts = None if limits.hosts is None else Hosts(limits.hosts)
        rates = None if limits.rate_per_s is None else Rates(limits.rate_per_s, limits.burst)
        room_bytes = max(limits.max_buffered_bytes, limits.max_body_bytes)
        self._gate = Gate(limits.max_concurrency, room_bytes, rates)
        self._streams = Places(limits.max_streams, "streams are open")
        self._asking = Asking(metrics)
        self._errors = metrics.counter(*telemetry.REQUEST_ERRORS)
        self._in_flight_gauge = metrics.gauge(*telemetry.IN_FLIGHT)
        self._hot: dict[str, PostHandler] = {_PREDICT: self._predict, **posts}
        self._pages = Pages(
            catalog,
            answers=answers,
            render_metrics=self._render_metrics,
            max_wait_ms=limits.max_wait_ms,
            polls=Places(limits.max_polls, "clients wait for an answer"),
            on_fault=self._count_fault,
            report=report,
            drain=self._gate.drain,
        ).app()

    def drain(self) -> None:
        """Service ends: `/readyz` says so, and nothing waits for later answers. Call it in the event loop's thread."""
        self._gate.drain.begin()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the application's life."""
        if scope["type"] == "http":
            if self._writes or tracing.on():
                await observe(self._serve_http, scope, receive, send, write=self._writes)
            else:
                await self._serve_http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._serve_stream(scope, receive, send)

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope)
        try:
            hot = self._hot.get(scope["path"]) or self._infer_at(scope["path"])
            if hot is None:
                await self._serve_rest(scope, receive, send, headers)
            else:
                await self._serve_hot(hot, scope, receive, send, headers)
        except ClientGoneError as gone:
            self._count_fault(gone)
        except asyncio.CancelledError:
            fault = Fault(503, "shutting_down", "The service is shutting down.", remedy="Ask another instance.")
            await self._send_fault(fault, scope["path"], headers, send)
            raise
        except Exception as error:  # whatever a service raises, the client gets a body and never a traceback
            await self._send_fault(fault_of(error), scope["path"], headers, send)

    async def _serve_hot(self, hot: PostHandler, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        tenant = scope[TENANT] = self._tenant(headers)
        if scope["method"] != "POST":
            raise Fault(405, "method_not_allowed", "The method does not fit the path.", headers={"allow": "POST"})
        gate, limits = self._gate, self._limits
        gate.admit(tenant, headers.arrived_s)  # nobody sends a body in vain
        body = await read_body(
            scope,
            receive,
            headers,
            max_bytes=limits.max_body_bytes,
            timeout_s=limits.body_timeout_s,
            room=gate.room,
        )
        try:
            await hot(body, tenant, headers, receive, send)
        finally:
            gate.room.give(len(body))

    async def _serve_rest(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        path = scope["path"]
        if path == "/healthz" and scope["method"] in ("GET", "HEAD"):
            await reply(send, 200, _ALIVE)
            return
        scope[TENANT] = "" if _is_open(path) else self._tenant(headers)
        if path.startswith(_ANSWERS):
            self._gate.rate(scope[TENANT], headers.arrived_s)
        # Starlette raises again what its own handler has answered and `fault_of` has logged.
        with contextlib.suppress(Exception):
            await self._pages(scope, receive, send)

    async def _serve_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a WebSocket in, or close it before it opens: the server tells the client 403."""
        if self._stream is None:
            await send({"type": "websocket.close", "code": 1000})
            return
        try:
            tenant = self._tenant(Headers(scope))
            scope[GATE] = self._gate
            with self._streams:
                await self._stream(scope, receive, send, tenant)
        except Fault as fault:
            self._count_fault(fault)
            await send({"type": "websocket.close", "code": 1008, "reason": fault.message})

    def _tenant(self, headers: Headers) -> str:
        """Whose request it is.

        Raises:
            Fault: It is nobody's, or was not meant for this server.
        """
        if self._hosts is not None:
            self._hosts.check(headers)
        return self._keys.tenant(headers)

    def _infer_at(self, path: str) -> PostHandler | None:
        name = infer_path(path)
        return None if name is None else partial(self._infer, *name)

    async def _predict(self, body: bytes, tenant: str, headers: Headers, receive: Receive, send: Send) -> None:
        request, model = native.decode_request(
            body,
            tenant=tenant,
            new_id=self._new_id,
            max_budget_ms=self._limits.max_budget_ms,
            arrived_s=headers.arrived_s,
        )
        served = self._catalog.default() if model is None else self._catalog.named(model, field="model")
        if self._events is not None and b"text/event-stream" in headers.get(b"accept", b""):
            with self._streams:
                await self._events(served, request, headers, self._gate, receive, send)
            return
        with self._gate.slots:
            found = await self._asking.one(served.service, request, receive)
        await reply(send, 200, native.encode_answer(found), headers=(*answer_headers(found), *trace_headers(headers)))

    async def _infer(
        self,
        name: str,
        version: str | None,
        body: bytes,
        tenant: str,
        headers: Headers,
        receive: Receive,
        send: Send,
    ) -> None:
        served = self._catalog.named(name, version)
        if b"inference-header-content-length" in headers:
            raise Fault(
                400,
                "invalid_request",
                "The binary tensor extension is not spoken here.",
                field="inference-header-content-length",
                remedy="Send the tensors as JSON.",
            )
        call = oip.decode_infer_request(
            body,
            served.info,
            tenant=tenant,
            new_id=self._new_id,
            max_items=self._limits.max_items,
            max_budget_ms=self._limits.max_budget_ms,
        )
        with self._gate.slots:
            found = await self._asking.all(served.service, call.requests, receive)
        facts = answer_headers(found[0]) if len(found) == 1 else ()
        encoded = oip.encode_infer_response(served.info, call, found)
        await reply(send, 200, encoded, headers=[*facts, *trace_headers(headers)])

    async def _send_fault(self, fault: Fault, path: str, headers: Headers, send: Send) -> None:
        self._count_fault(fault)
        extra = [header(name.encode(), value) for name, value in fault.headers.items()]
        await reply(send, fault.status, fault.body(path), headers=[*extra, *trace_headers(headers)])

    def _count_fault(self, fault: Fault) -> None:
        self._errors.inc(fault.code)

    def _render_metrics(self) -> bytes:
        self._in_flight_gauge.set(self._gate.slots.taken)
        return self._metrics.render()

    async def _live(self, receive: Receive, send: Send) -> None:
        """Speak ASGI's lifespan protocol."""
        await receive()
        started = False
        try:
            async with self._lifespan():
                started = True
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:  # the protocol wants it told, and it is raised again
            stage = "shutdown" if started else "startup"
            await send({"type": f"lifespan.{stage}.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or (path.startswith("/v2/models/") and path.endswith("/ready"))
