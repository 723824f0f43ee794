"""Connections to cloud backends: kept alive, bounded in time and in size; what goes wrong is a CloudError.

Owns the network and nothing of what is said over it: no protocol, no status, no retry.

Proxies and certificates named in the environment are left alone (`trust_env=False`): a gateway talks to the address in
its own configuration, and to nothing that a variable set for another program put between.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeVar

import httpx

from edgewise import tracing
from edgewise.errors import (
    CloudResponseError,
    CloudTimeoutError,
    CloudUnreachableError,
    ConfigError,
    MissingExtraError,
)

T = TypeVar("T")

MAX_RESPONSE_BYTES = 8 << 20
MAX_CONNECTIONS = 256
MAX_CALLS = 240
"""Calls on their way at once. More wait here, at no price, and not in httpx's pool: that one looks through all its
connections for each call that waits, so that a few hundred calls which hang keep it busy for seconds. The connections
beyond are for asking who is there, which must not wait behind calls that hang."""

_HEADERS = {"accept": "application/json", "accept-encoding": "identity"}


@dataclass(frozen=True)
class Network:
    """How a backend is connected to.

    Attributes:
        connect_timeout_s: Longest wait for a connection, in seconds.
        keep_alive_s: Seconds for which an idle connection is kept. Less than the server's own, so that no request is
            written into a closing one; uvicorn's is 5.
        http2: Speak HTTP/2 where the server does; over TLS only, which is where it is agreed upon.
        ca_file: Certificate authorities (PEM) to trust instead of the public ones.

    Raises:
        ConfigError: A time is not above 0, or the file holds no certificates.
        MissingExtraError: HTTP/2 is wanted and not installed.
    """

    connect_timeout_s: float = 2.0
    keep_alive_s: float = 4.0
    http2: bool = False
    ca_file: str | None = None

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "keep_alive_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Give seconds above 0.")
        if self.http2 and find_spec("h2") is None:
            raise MissingExtraError("HTTP/2 towards the cloud", "http2")


class Connections:
    """Connections that are kept and shared by all calls of one client.

    Args:
        network: How to connect.
        tls: Whether addresses are https://.
        transport: Replaces the network, for tests.

    Raises:
        ConfigError: The network's file of authorities cannot be used.
    """

    def __init__(self, network: Network, *, tls: bool, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._network = network
        self._places = asyncio.Semaphore(MAX_CALLS)
        self._client = httpx.AsyncClient(
            verify=_trusted(network.ca_file) if tls else False,
            http2=network.http2,
            timeout=httpx.Timeout(None, connect=network.connect_timeout_s),
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=MAX_CONNECTIONS,
                keepalive_expiry=network.keep_alive_s,
            ),
            trust_env=False,
            follow_redirects=False,
            transport=transport,
        )

    async def aclose(self) -> None:
        """Close them."""
        await self._client.aclose()

    @asynccontextmanager
    async def open(
        self, method: str, url: str, *, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Send one request and read its response in the block; leaving the block early closes the connection.

        Raises:
            CloudUnreachableError: There is no connection.
            CloudResponseError: The connection broke, or the response is no HTTP or too large.
        """
        trace = tracing.traceparent()
        sent = {**_HEADERS, **({"traceparent": trace} if trace else {}), **(headers or {})}
        try:
            place = self._places if content is not None else nullcontext()
            exchange = self._client.stream(method, url, content=content, headers=sent)
            async with place, _connected(exchange, url) as response:
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = str(error) or f"nothing answered within {self._network.connect_timeout_s:g} s"
            raise CloudUnreachableError(
                f"No connection to {url}: {reason}.", "Check the address, and that the service is running."
            ) from error
        except httpx.HTTPError as error:
            raise CloudResponseError(
                f"{url} broke off its answer: {error or type(error).__name__}.",
                "Check that this address speaks HTTP, and the service's log.",
            ) from error
        except UnicodeError as error:
            # A label of the host name that is empty or too long passes every check of a URL.
            raise CloudUnreachableError(f"No connection to {url}: {error}.", "Check the address.") from error


@asynccontextmanager
async def _connected(exchange: AbstractAsyncContextManager[httpx.Response], url: str) -> AsyncIterator[httpx.Response]:
    """The exchange, where the connection is not lost as soon as it is made.

    Raises:
        CloudUnreachableError: It was.
    """
    async with AsyncExitStack() as stack:
        try:
            response = await stack.enter_async_context(exchange)
        except AttributeError as error:
            # anyio asks a socket for its peer that its transport has let go of by then, and finds None.
            if error.obj is not None:
                raise
            raise CloudUnreachableError(
                f"No connection to {url}: it was reset at once.", "Check the address, and that the service is running."
            ) from error
        yield response


def within(timeout_s: float, whom: str) -> AbstractAsyncContextManager[None]:
    """Bound everything in the block: connecting, sending, and a response that drips or never comes.

    Args:
        timeout_s: Seconds.
        whom: Who is waited for, for the message.

    Raises:
        CloudTimeoutError: The block took longer than `timeout_s`.
    """
    return _until(asyncio.get_running_loop().time() + timeout_s, timeout_s, whom)


async def paced(items: AsyncGenerator[T], timeout_s: float, whom: str) -> AsyncGenerator[T]:
    """Items as they come, as long as all of them come within `timeout_s`; what the reader does meanwhile counts too.

    Raises:
        CloudTimeoutError: They did not.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    async with aclosing(items):
        while True:
            # Around each item and not around all: between them the reader runs, whom no time-out of ours may cancel.
            async with _until(deadline, timeout_s, whom):
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            yield item


@asynccontextmanager
async def _until(deadline: float, timeout_s: float, whom: str) -> AsyncIterator[None]:
    remedy = "Check its load, or allow it more time."
    if deadline <= asyncio.get_running_loop().time():
        raise CloudTimeoutError(f"No time is left of {timeout_s:g} s to ask {whom}.", remedy)
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as error:
        raise CloudTimeoutError(f"{whom} did not answer within {timeout_s:g} s.", remedy) from error


async def pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """A response's body as it comes, MAX_RESPONSE_BYTES at most.

    Raises:
        CloudResponseError: It is larger.
    """
    size = 0
    async for piece in response.aiter_bytes():
        size += len(piece)
        if size > MAX_RESPONSE_BYTES:
            raise CloudResponseError(
                f"{response.request.url} sent more than {MAX_RESPONSE_BYTES} bytes.",
                "Check the URL and the model name.",
            )
        yield piece


def _trusted(ca_file: str | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"ca_file {ca_file!r} holds no certificates that can be read: {error}.", "Give a PEM file."
        ) from error
