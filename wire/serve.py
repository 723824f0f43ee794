"""Running an ASGI application on a socket with uvicorn, until a signal drains it.

Owns sockets, signals and threads. Prints nothing; what goes wrong is raised.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Literal

import uvicorn

from edgewise.errors import ConfigError
from edgewise.wire.http import AsgiApp, Receive, Scope, Send
from edgewise.wire.sockets import PING_EVERY_S, PING_TIMEOUT_S, StreamProtocol
from edgewise.wire.stream import MAX_MESSAGE_BYTES

DEFAULT_PORT = 8700

_KEEP_ALIVE_S = 75
"""Longer than client pools usually keep an idle connection, so that no request meets one that the server closes."""

_STOP_WAIT_S = 30.0
_MAX_PORT = 65535

_RAISED_ANYWAY = logging.Logger("edgewise.wire.lifespan", logging.CRITICAL)


def serve(
    app: AsgiApp,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    on_bound: Callable[[str, int], None] | None = None,
    drain_s: float = 10.0,
    linger_s: float = 0.0,
) -> None:
    """Serve until SIGTERM or SIGINT, then take no new connection and let requests in flight finish.

    An application that has `drain()` is told at once that service ends.

    Args:
        app: The application.
        host: The address to bind.
        port: The port to bind; 0 takes a free one.
        on_bound: Told the address and the port once the application has started and connections are taken.
        drain_s: Seconds that requests in flight get to finish; then they are cancelled.
        linger_s: Seconds before that in which new connections are still taken.

    Raises:
        ConfigError: The address cannot be bound.
        Exception: Whatever the application's lifespan raised while starting or stopping.
    """
    sock = bind(host, port)
    try:
        life = _Life(app)
        _Server(life, on_bound, drain_s, linger_s).run_until_stopped(sock)
    finally:
        sock.close()


def bind(host: str, port: int) -> socket.socket:
    """Bind a TCP socket without listening on it yet.

    Raises:
        ConfigError: The address is unknown, taken, or not ours to bind.
    """
    if not 0 <= port <= _MAX_PORT:
        raise ConfigError(f"{port} is not a port.", f"Give 1 to {_MAX_PORT}, or 0 for a free one.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            f"The address {host}:{port} cannot be used: {error}.", "Give a host of this machine."
        ) from error
    sock = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _bind_error(host, port, error) from error
    return sock


def _bind_error(host: str, port: int, error: OSError) -> ConfigError:
    code = error.errno
    if code == errno.EADDRINUSE:
        return ConfigError(
            f"Port {port} on {host} is in use.", "Stop what uses it, or give another port (0 takes a free one)."
        )
    if code == errno.EACCES:
        return ConfigError(f"Port {port} may not be bound.", "Give a port of 1024 or more.")
    if code == errno.EADDRNOTAVAIL:
        return ConfigError(f"{host} is not an address of this machine.", "Give one that is, or 127.0.0.1.")
    return ConfigError(f"The address {host}:{port} cannot be bound: {error}.", "Give another host or port.")


class _Life:
    """The application, remembering what its lifespan raised: uvicorn would end the process instead."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self.at_once = getattr(app, "at_once", None)
        """What our protocol asks first; see `protocol`."""
        self.error: Exception | None = None

    def drain(self) -> None:
        """Tell the application that service ends, if it wants to know."""
        drain = getattr(self._app, "drain", None)
        if drain is not None:
            drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # kept for `serve` to raise: the server only logs it
            self.error = error
            raise


def _http_protocol() -> type[asyncio.Protocol] | Literal["h11"]:
    try:
        from edgewise.wire.protocol import GuardedProtocol
    except ImportError:  # httptools is for CPython only
        return "h11"
    return GuardedProtocol


class _Server(uvicorn.Server):
    """uvicorn's server, told when it is bound, raising instead of exiting, and ending well after a signal."""

    def __init__(
        self, life: _Life, on_bound: Callable[[str, int], None] | None, drain_s: float, linger_s: float = 0.0
    ) -> None:
        config = uvicorn.Config(
            life,
            lifespan="on",
            interface="asgi3",
            http=_http_protocol(),
            ws=StreamProtocol,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=PING_EVERY_S,
            ws_ping_timeout=PING_TIMEOUT_S,
            ws_per_message_deflate=False,  # a message would cost more memory than its size tells
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(drain_s),
        )
        super().__init__(config)
        self._life = life
        self._on_bound = on_bound
        self._linger_s = linger_s
        self._stopping_s: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run_until_stopped(self, sock: socket.socket) -> None:
        """Serve on a bound socket; raises what the application's lifespan raised."""
        try:
            self.run(sockets=[sock])
        except SystemExit as end:
            raise self._life.error or RuntimeError(f"The server ended with exit code {end.code}.") from None
        if self._life.error is not None:
            raise self._life.error

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: close the connections whose deadline is over, and find out whether to stop."""
        now_s = asyncio.get_running_loop().time()
        for connection in tuple(self.server_state.connections):
            check = getattr(connection, "check_deadline", None)
            if check is not None:
                check(now_s)
        return await super().on_tick(counter) and self._has_lingered(now_s)

    def _has_lingered(self, now_s: float) -> bool:
        if self._stopping_s is None:
            self._stopping_s = now_s
            self._life.drain()
        return self.force_exit or now_s - self._stopping_s >= self._linger_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, take connections, and say so."""
        self._loop = asyncio.get_running_loop()
        # What a lifespan raises is raised by `serve`; uvicorn need not write it too.
        self.lifespan.logger = _RAISED_ANYWAY
        await super().startup(sockets)
        if self._on_bound is not None and sockets:
            host, port = sockets[0].getsockname()[:2]
            self._on_bound(host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the application that service ends, and let what is in flight finish."""
        self._life.drain()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at once at a second Ctrl-C.

        uvicorn would raise the signal again after draining, and the process would end by it instead of with code 0.
        """
        if not self.started:  # nobody waits for an answer, and a model may take long to load
            raise KeyboardInterrupt
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._life.drain)


class BackgroundServer:
    """An application served from a thread while a `with` block runs, for tests and notebooks.

    Args:
        app: The application.
        host: The address to bind.
        port: The port to bind; 0 takes a free one.
        drain_s: Seconds that requests in flight get to finish at the end.

    Attributes:
        host: The bound address, inside the block.
        port: The bound port, inside the block.
    """

    def __init__(self, app: AsgiApp, *, host: str = "127.0.0.1", port: int = 0, drain_s: float = 10.0) -> None:
        self.host = host
        self.port = port
        self._drain_s = drain_s
        self._server = _Server(_Life(app), self._bound, drain_s)
        self._settled = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="edgewise-server", daemon=True)

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def __enter__(self) -> BackgroundServer:
        self._socket = bind(self.host, self.port)
        self._thread.start()
        self._settled.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(self._drain_s + _STOP_WAIT_S)
        if self._thread.is_alive():
            raise RuntimeError("The server did not stop.")
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._server.run_until_stopped(self._socket)
        except BaseException as problem:
            self._error = problem
        finally:
            self._socket.close()
            self._settled.set()

    def _bound(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._settled.set()
