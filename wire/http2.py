"""Running an application on granian, which speaks HTTP/2 too, until a signal drains it.

As `serve`, with what granian lets one say: its own limits on heads (64 KiB and 10 s over HTTP/1.1, 64 KiB over HTTP/2)
and its own parser; requests are answered by the same application with the same limits on bodies, rates and places. The
short way of `protocol` is uvicorn's only. Owns the life of the application and the end of service, for granian's
embedded server ends both as soon as it is told to stop.
"""

from __future__ import annotations

import asyncio
import importlib.util
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from edgewise.errors import MissingExtraError
from edgewise.wire.faults import SHUTTING_DOWN
from edgewise.wire.http import AsgiApp, Receive, Scope, Send, reply
from edgewise.wire.protocol import HEAD_TIMEOUT_S, MAX_HEAD_BYTES
from edgewise.wire.serve import DEFAULT_PORT, bind

_CONNECT_S = 0.01
_FLUSH_S = 0.2
_CLOSE_S = 1.0
_STARTUP_S = 10.0


def check_installed() -> None:
    """Find out whether granian is there.

    Raises:
        MissingExtraError: It is not.
    """
    if importlib.util.find_spec("granian") is None:
        raise MissingExtraError("Serving HTTP/2", "http2")


def serve_http2(
    app: AsgiApp,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    on_bound: Callable[[str, int], None] | None = None,
    drain_s: float = 10.0,
    linger_s: float = 0.0,
) -> None:
    """Serve HTTP/1.1 and HTTP/2 (without TLS: "prior knowledge") until SIGTERM or SIGINT; arguments as `serve`.

    Raises:
        ConfigError: The address cannot be bound.
        MissingExtraError: granian is not installed.
        Exception: Whatever the application's lifespan raised while starting or stopping.
    """
    check_installed()
    import uvloop

    with bind(host, port) as sock:  # says what is wrong with an address, and finds a free port; granian binds its own
        address, bound_port = sock.getsockname()[:2]
    uvloop.run(_serve(app, address, bound_port, on_bound, drain_s, linger_s))


class _InFlight:
    """The application, with the requests that it is answering."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_open = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_open and scope["type"] == "http":
            await reply(send, 503, SHUTTING_DOWN.body(scope["path"]), headers=[(b"retry-after", b"1")])
            return
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("A request is answered inside a task.")
        self._tasks.add(task)
        try:
            await self._app(scope, receive, send)
        finally:
            self._tasks.discard(task)

    async def finish(self, drain_s: float) -> None:
        """Take no more requests, wait until all are answered, and cancel those that are not after `drain_s`."""
        self._is_open = False
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=drain_s)
            for task in late:
                task.cancel()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), 1.0)


async def _serve(
    app: AsgiApp,
    host: str,
    port: int,
    on_bound: Callable[[str, int], None] | None,
    drain_s: float,
    linger_s: float,
) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings, HTTP2Settings
    from granian.server.embed import Server

    requests = _InFlight(app)
    server = Server(
        requests,
        address=host,
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.auto,
        http1_settings=HTTP1Settings(header_read_timeout=int(HEAD_TIMEOUT_S * 1000), max_buffer_size=MAX_HEAD_BYTES),
        http2_settings=HTTP2Settings(max_headers_size=MAX_HEAD_BYTES),
        log_enabled=False,
    )
    stop = asyncio.Event()
    async with _life(app):
        serving = asyncio.create_task(server.serve())
        serving.add_done_callback(lambda _: stop.set())
        await _until_connected(host, port, serving)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        if on_bound is not None:
            on_bound(host, port)
        await stop.wait()
        getattr(app, "drain", lambda: None)()
        await asyncio.sleep(linger_s)
        # Answered first: told to stop, granian says so to HTTP/2 clients at once, and some then drop what they have not
        # read. When a reply has left, granian tells nobody.
        await requests.finish(drain_s)
        await asyncio.sleep(_FLUSH_S)
        server.stop()  # type: ignore[no-untyped-call]  # granian says no types here
        # granian waits for ever for clients that keep an idle connection.
        await asyncio.wait({serving}, timeout=_CLOSE_S)
        if serving.done():
            serving.result()  # raises what ended it
        serving.cancel()


async def _until_connected(host: str, port: int, serving: asyncio.Task[None]) -> None:
    """Return once the server takes connections; raises what ended it."""
    async with asyncio.timeout(_STARTUP_S):
        while not serving.done():
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(_CONNECT_S)
            else:
                writer.close()
                return
    await serving


@asynccontextmanager
async def _life(app: AsgiApp) -> AsyncIterator[None]:
    """Speak the server's side of ASGI's lifespan protocol while the block runs."""
    asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    told: asyncio.Queue[Any] = asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}}, asked.get, told.put))

    async def step(name: str) -> None:
        asked.put_nowait({"type": f"lifespan.{name}"})
        message = await told.get()
        if message["type"] != f"lifespan.{name}.complete":
            await life  # raises what the application raised
            raise RuntimeError(f"The application did not {name}: {message.get('message', '')}.")

    await step("startup")
    try:
        yield
    finally:
        await step("shutdown")
        await life
