"""The front door: one ASGI application over any `AnswerService`.

It is the gateway where the router stands behind it and the cloud service where an engine does. Owns routes, limits,
keys and the life of a connection; how a request is answered is the service's business, and what bytes mean is the
codecs'. Hot routes are answered here without a framework; `pages` has the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from edgewise import telemetry, tracing
from edgewise.contracts import AnswerStore, new_id
from edgewise.telemetry import Metrics
from edgewise.wire import oip, openai, openapi
from edgewise.wire.accesslog import TENANT, observe
from edgewise.wire.admission import Gate, Places, Rates
from edgewise.wire.asking import Asking
from edgewise.wire.catalog import Catalog, Models
from edgewise.wire.events import EventStreams, Updates
from edgewise.wire.faults import SHUTTING_DOWN, Fault, fault_of
from edgewise.wire.http import (
    AsgiApp,
    ClientGoneError,
    Headers,
    Receive,
    Reply,
    Scope,
    Send,
    Sending,
    check_body,
    header,
    read_body,
    reply,
    trace_headers,
    unless_client_leaves,
)
from edgewise.wire.inference import PREDICT, Hot, Inference
from edgewise.wire.keys import ApiKeys, Hosts
from edgewise.wire.pages import Pages
from edgewise.wire.parsing import DEFAULT_MAX_BUDGET_MS
from edgewise.wire.stream import MAX_MESSAGE_BYTES, StreamLimits, Streams, refuse

if TYPE_CHECKING:
    from edgewise.wire.generating import Generating

_ALIVE = b'{"status":"alive"}'
_ANSWERS = "/v1/answers/"
_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Paths that need no key; `/v2/models/…/ready` is the other kind."""

PostHandler: TypeAlias = Callable[[bytes, str, Headers, Receive, Send], Awaitable[None]]
"""Answers a hot route: body, tenant, headers, receive, send."""


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
        posts: Mapping[str, PostHandler],
        access_log: bool,
    ) -> None:
        self._metrics = metrics
        self._keys = keys
        self._limits = limits
        self._lifespan = lifespan
        self._writes = access_log
        self._hosts = None if limits.hosts is None else Hosts(limits.hosts)
        rates = None if limits.rate_per_s is None else Rates(limits.rate_per_s, limits.burst)
        room_bytes = max(limits.max_buffered_bytes, limits.max_body_bytes)
        self._gate = Gate(limits.max_concurrency, room_bytes, rates)
        self._streams = Places(limits.max_streams, "streams are open")
        asking = Asking(metrics)
        self._inference = Inference(
            catalog, asking, new_id, max_items=limits.max_items, max_budget_ms=limits.max_budget_ms
        )
        updates = Updates(answers, limits.max_wait_ms / 1000, limits.max_polls)
        self._begin_generating = partial(self._generating_with, catalog, asking, updates, new_id)
        self._events = EventStreams(updates, asking.count)
        self._sockets = Streams(
            catalog,
            updates=updates,
            count=asking.count,
            on_fault=self._count_fault,
            new_id=new_id,
            max_budget_ms=limits.max_budget_ms,
            limits=StreamLimits(max_message_bytes=min(MAX_MESSAGE_BYTES, limits.max_body_bytes)),
        )
        self._errors = metrics.counter(*telemetry.REQUEST_ERRORS)
        self._in_flight_gauge = metrics.gauge(*telemetry.IN_FLIGHT)
        self._posts: Mapping[str, PostHandler] = {
            openai.CHAT: lambda *asked: self._generating.chat(*asked),
            openai.COMPLETIONS: lambda *asked: self._generating.complete(*asked),
            **posts,
        }
        self._pages = Pages(
            catalog,
            answers=answers,
            render_metrics=self._render_metrics,
            max_wait_ms=limits.max_wait_ms,
            polls=Places(limits.max_polls, "clients wait for an answer"),
            on_fault=self._count_fault,
            report=report,
            drain=self._gate.drain,
            events=self._events,
            streams=self._streams,
            document=partial(self._document, catalog, answers is not None),
        ).app()

    def drain(self) -> None:
        """Service ends: `/readyz` says so, and nothing waits for later answers. Call it in the event loop's thread."""
        self._gate.drain.begin()

    @cached_property
    def _generating(self) -> Generating:
        """Answers requests for texts; imported with the first one, which most doors never hear."""
        return self._begin_generating()

    def _generating_with(
        self, catalog: Catalog, asking: Asking, updates: Updates, new_id: Callable[[], str]
    ) -> Generating:
        from edgewise.wire.generating import Generating

        return Generating(
            catalog,
            asking,
            new_id,
            updates=updates,
            streams=self._streams,
            on_fault=self._count_fault,
            max_budget_ms=self._limits.max_budget_ms,
        )

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

    def at_once(self, scope: Scope, body: bytes) -> Reply | AsgiApp | None:
        """Answer a small request whose body is here without making a task, where that takes no waiting.

        Returns:
            The reply; or the application that goes on with this request; or None: it is one for `__call__`.
        """
        hot = None if self._writes or tracing.on() else self._inference.at(scope["path"])
        headers = Headers(scope)
        if hot is None or scope["method"] != "POST" or _wants_events(headers):
            return None
        try:
            tenant = self._admit(scope, headers)
            check_body(headers, self._limits.max_body_bytes, len(body))
            found = hot(body, tenant, headers)
        except Exception as error:  # as in `_serve_http`
            return self._failed(fault_of(error), scope["path"], headers)
        if isinstance(found, Reply):
            return found
        self._gate.slots.take()  # there is one: nothing has run since `_admit`
        self._gate.room.taken += len(body)  # is here already, whatever the limit says
        return partial(self._go_on, found, len(body), headers)

    async def _go_on(
        self, work: Coroutine[Any, Any, Reply], size: int, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send the reply that `work` brings; its slot and the room of its body are taken already."""
        sending = Sending(send, self._gate.room)
        sending.hold(size)
        await self._guarded(self._finish(work, receive, sending), scope, sending, headers)

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope)
        sending = Sending(send, self._gate.room)
        hot = self._inference.at(scope["path"])
        post = self._posts.get(scope["path"])
        if hot is None and post is None:
            work = self._serve_rest(scope, receive, sending, headers)
        else:
            work = self._serve_post(hot, post, scope, receive, sending, headers)
        await self._guarded(work, scope, sending, headers)

    async def _guarded(self, work: Coroutine[Any, Any, None], scope: Scope, send: Sending, headers: Headers) -> None:
        """Await `work`; whatever it raises, the client gets one reply and never a traceback."""
        try:
            await work
        except ClientGoneError as gone:
            self._count_fault(gone)
        except asyncio.CancelledError:
            if send.has_begun:
                return  # what was begun has said so, or its client does not read
            await _send(self._failed(SHUTTING_DOWN, scope["path"], headers), send)
            raise
        except Exception as error:  # of any service
            failed = self._failed(fault_of(error), scope["path"], headers)
            if not send.has_begun:
                await _send(failed, send)
        finally:
            send.let_go()

    async def _serve_post(
        self,
        hot: Hot | None,
        post: PostHandler | None,
        scope: Scope,
        receive: Receive,
        send: Sending,
        headers: Headers,
    ) -> None:
        limits, room = self._limits, self._gate.room
        _check_method(scope, "POST")
        tenant = self._admit(scope, headers)  # nobody sends a body in vain
        body = await read_body(
            scope, receive, headers, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s, room=room
        )
        send.hold(len(body))
        if post is not None:
            with self._gate.slots:
                answering = post(body, tenant, headers, receive, send)
                del body  # an answer may take long, and the body's room is given back when it begins
                await answering
        elif scope["path"] == PREDICT and _wants_events(headers):
            with self._streams:
                telling = self._events.predict(
                    *self._inference.request(body, tenant, headers), headers, self._gate, receive, send
                )
                del body  # the stream may last, and its room is given back when it begins
                await telling
        elif hot is not None:
            self._gate.slots.check()
            found = hot(body, tenant, headers)
            del body  # its room is given back before the client has read the reply
            await self._send_answer(found, receive, send)

    async def _send_answer(self, found: Reply | Coroutine[Any, Any, Reply], receive: Receive, send: Send) -> None:
        if isinstance(found, Reply):
            await _send(found, send)
        else:
            self._gate.slots.take()  # there is one: nothing has run since it was checked
            await self._finish(found, receive, send)

    async def _finish(self, work: Coroutine[Any, Any, Reply], receive: Receive, send: Send) -> None:
        try:
            found = await unless_client_leaves(receive, work)
        finally:
            self._gate.slots.give()
        await _send(found, send)

    def _admit(self, scope: Scope, headers: Headers) -> str:
        tenant = scope[TENANT] = self._tenant(headers)
        self._gate.admit(tenant, headers.arrived_s)
        return tenant

    async def _serve_rest(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        path = scope["path"]
        if path == "/healthz":
            _check_method(scope, "GET", "HEAD")
            await reply(send, 200, _ALIVE)
            return
        scope[TENANT] = "" if _is_open(path) else self._tenant(headers)
        if path.startswith(_ANSWERS):
            self._gate.rate(scope[TENANT], headers.arrived_s)
        # Starlette raises again what its own handler has answered and `fault_of` has logged.
        with contextlib.suppress(Exception):
            await self._pages(scope, receive, send)

    async def _serve_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a WebSocket in, or refuse it before it opens."""
        try:
            tenant = self._tenant(Headers(scope))
            with self._streams:
                await self._sockets.serve(scope, receive, send, tenant, self._gate)
        except Fault as fault:
            self._count_fault(fault)
            await refuse(fault, scope, send)

    def _tenant(self, headers: Headers) -> str:
        """Whose request it is.

        Raises:
            Fault: It is nobody's, or was not meant for this server.
        """
        if self._hosts is not None:
            self._hosts.check(headers)
        return self._keys.tenant(headers)

    def _failed(self, fault: Fault, path: str, headers: Headers) -> Reply:
        self._count_fault(fault)
        extra = (header(name.encode(), value) for name, value in fault.headers.items())
        return Reply(fault.status, fault.body(path), (*extra, *trace_headers(headers)))

    def _count_fault(self, fault: Fault) -> None:
        self._errors.inc(fault.code)

    def _document(self, catalog: Catalog, keeps_answers: bool) -> Mapping[str, Any]:
        limits = self._limits
        served = openapi.Served(
            models=[served.info for served in catalog.models().values()],
            has_keys=self._keys.are_configured,
            keeps_answers=keeps_answers,
            posts=self._posts,
            max_items=limits.max_items,
            max_budget_ms=limits.max_budget_ms,
            max_wait_ms=limits.max_wait_ms,
        )
        return openapi.document(served)

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


async def _send(found: Reply, send: Send) -> None:
    await reply(send, found.status, found.body, content_type=found.content_type, headers=found.headers)


def _check_method(scope: Scope, *allowed: str) -> None:
    if scope["method"] not in allowed:
        allow = {"allow": ", ".join(allowed)}
        raise Fault(405, "method_not_allowed", "The method does not fit the path.", headers=allow)


def _wants_events(headers: Headers) -> bool:
    return b"text/event-stream" in headers.get(b"accept", b"")


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or (path.startswith("/v2/models/") and path.endswith("/ready"))
