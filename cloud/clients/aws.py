"""Calls to AWS: botocore signs, addresses and parses them in threads; the bytes go over our own connections.

Owns the way between botocore's threads and the event loop, and what AWS's errors mean. Knows no operation.

botocore has no asynchronous face, and a thread that waits on a socket of its own cannot be cancelled. So its hook
`before-send` hands each signed request to the event loop, and what comes back is fed to botocore's own parser. A call
that is given up, or whose time is over, thereby closes its connection at once and frees its thread; time-outs, sizes
and errors are those of every other client.

Credentials come from botocore's standard chain and nowhere else, and are never shown. What the chain itself asks the
network for (a role, a single sign-on) goes over botocore's connections, with botocore's time-outs.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, aclosing
from importlib.util import find_spec
from itertools import chain
from typing import Any, TypeVar

from edgewise import tracing
from edgewise.cloud.clients.aws_errors import translated
from edgewise.cloud.clients.connections import Connections, Network, paced, pieces, within
from edgewise.cloud.clients.http import checked_url
from edgewise.errors import (
    CloudCredentialsError,
    CloudTimeoutError,
    ConfigError,
    EdgewiseError,
    MissingExtraError,
)

T = TypeVar("T")

MAX_CALLS = 64
"""Calls at the same time of one client, each with a thread; more wait within their own time."""

_MORE_TIME = "Allow it more time."
_GRACE_S = 5.0
"""A thread waits so much longer than its call may take, in case the event loop is gone."""

RENEW_S = 1.0
"""Refused credentials are read anew from the standard chain at most so often."""

_exchange: contextvars.ContextVar[_Exchange] = contextvars.ContextVar("edgewise-aws-exchange")


class Aws:
    """Clients of AWS services for one backend.

    Args:
        urls: Address by botocore's name of the service; None leaves it to botocore, by region.
        region: Region; None leaves it to the standard chain.
        network: How to connect.

    Raises:
        ConfigError: An address cannot be used.
        MissingExtraError: boto3 is not installed.
    """

    def __init__(self, urls: Mapping[str, str | None], *, region: str | None, network: Network | None) -> None:
        if find_spec("boto3") is None:
            raise MissingExtraError("Asking AWS", "aws")
        self._urls = {
            service: None if url is None else checked_url(url, whose="cloud", key="AWS credentials")
            for service, url in urls.items()
        }
        self._region = region
        tls = any(url is None or url.startswith("https:") for url in self._urls.values())
        self._connections = Connections(network or Network(), tls=tls)
        self._threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="edgewise-aws")
        self._session: Any = None
        self._clients: dict[str, Any] = {}

    def whom(self, service: str) -> str:
        """Whom a call to a service waits for, for messages."""
        return self._urls[service] or f"AWS {service}{f' in {self._region}' if self._region else ''}"

    def within(self, service: str, timeout_s: float) -> AbstractAsyncContextManager[None]:
        """Bound several calls together.

        Raises:
            CloudTimeoutError: The block took longer than `timeout_s`.
        """
        return within(timeout_s, self.whom(service))

    async def call(
        self,
        service: str,
        operation: str,
        parameters: Mapping[str, Any],
        read: Callable[[Any], T],
        *,
        timeout_s: float,
    ) -> T:
        """One call with a whole answer; cancelling it closes its connection.

        Args:
            service: botocore's name of the service.
            operation: botocore's name of the operation, as a method.
            parameters: Its parameters.
            read: Takes out of the parsed answer what is wanted, in the thread, where a body may be read.
            timeout_s: Seconds for everything, waiting for a thread included.

        Raises:
            CloudError: As AWS's error means, or there is no answer in time.
        """
        exchange = self._begun(timeout_s)
        try:
            async with within(timeout_s, self.whom(service)):
                work = asyncio.get_running_loop().run_in_executor(
                    self._threads, self._called, exchange, service, operation, parameters, read
                )
                return await work
        finally:
            exchange.give_up()

    async def events(
        self, service: str, operation: str, parameters: Mapping[str, Any], name: str, *, timeout_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """One call whose answer is an event stream; closing the iterator closes its connection.

        Args:
            service: botocore's name of the service.
            operation: botocore's name of the operation, as a method.
            parameters: Its parameters.
            name: Member of the answer that holds the stream.
            timeout_s: Seconds until the stream has to be over.

        Yields:
            The answer without the stream, then every event.

        Raises:
            CloudError: As AWS's error means, also one in mid-stream; or it is not whole in time, or breaks off.
        """
        events = self._streamed(service, operation, parameters, name, timeout_s)
        async with aclosing(paced(events, timeout_s, self.whom(service))) as paced_events:
            async for event in paced_events:
                yield event

    async def aclose(self) -> None:
        """Close the connections; threads end as their calls do."""
        await self._connections.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _streamed(
        self, service: str, operation: str, parameters: Mapping[str, Any], name: str, timeout_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        exchange = self._begun(timeout_s)
        read: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        def hand_over(answer: dict[str, Any]) -> None:
            about = {key: value for key, value in answer.items() if key != name}
            for event in chain((about,), answer[name]):
                loop.call_soon_threadsafe(read.put_nowait, event)

        work = loop.run_in_executor(self._threads, self._called, exchange, service, operation, parameters, hand_over)
        try:
            while not (work.done() and read.empty()):
                getting = asyncio.ensure_future(read.get())
                try:
                    waited: set[asyncio.Future[Any]] = {getting, work}
                    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    if getting.done():
                        yield getting.result()
                finally:
                    getting.cancel()
            await work
        finally:
            # Its outcome is nobody's any more, and must not be logged as forgotten.
            work.cancel()
            exchange.give_up()

    def _begun(self, timeout_s: float) -> _Exchange:
        return _Exchange(self._connections, asyncio.get_running_loop(), timeout_s + _GRACE_S)

    # From here on in botocore's threads.

    def _called(
        self,
        exchange: _Exchange,
        service: str,
        operation: str,
        parameters: Mapping[str, Any],
        read: Callable[[Any], T],
    ) -> T:
        token = _exchange.set(exchange)
        session = None
        try:
            session, client = self._client(service)
            return read(getattr(client, operation)(**parameters))
        except EdgewiseError:
            raise
        except Exception as error:  # a hostile body makes botocore's parsers raise nearly anything
            meant = translated(error, self.whom(service), exchange.secrets)
            if isinstance(meant, CloudCredentialsError):
                _shared.doubt(session)
            raise meant from error
        finally:
            _exchange.reset(token)
            exchange.give_up()

    def _client(self, service: str) -> tuple[Any, Any]:
        """The session and its client of a service."""
        with _making:
            session = _shared.current()
            if session is not self._session:
                self._session, self._clients = session, {}
            if service not in self._clients:
                self._clients[service] = self._made(session, service)
            return session, self._clients[service]

    def _made(self, session: Any, service: str) -> Any:
        from botocore.config import Config

        settings = Config(
            # Retries are the router's, inside the request's budget; addresses of proxies are nobody's.
            retries={"total_max_attempts": 1, "mode": "standard"},
            proxies={},
            user_agent_extra="edgewise",
        )
        made = session.client(service, region_name=self._region, endpoint_url=self._urls[service], config=settings)
        made.meta.events.register("before-send", lambda request, **_: _exchange.get().send(request))
        return made


class _SharedSession:
    """One for the process: it holds the models of the services, which take long to read, and the credentials.

    Keys out of a file or the environment are read once a session. So one whose credentials were refused is made anew
    for the next call, but not before it is `RENEW_S` old: they may be refused for good.
    """

    def __init__(self) -> None:
        self._session: Any = None
        self._made_s = 0.0
        self._doubted = False

    def current(self) -> Any:
        """The session to sign with; to be called under `_making`."""
        import boto3

        if self._session is None or (self._doubted and time.monotonic() - self._made_s >= RENEW_S):
            self._session, self._made_s, self._doubted = boto3.session.Session(), time.monotonic(), False
        return self._session

    def doubt(self, session: Any) -> None:
        """The credentials of this session were refused."""
        with _making:
            self._doubted = self._doubted or session is self._session


_shared = _SharedSession()
_making = threading.Lock()
"""botocore's sessions make one client at a time."""


class _Exchange:
    """One call's way from botocore's thread to the event loop's connections and back.

    It is also the raw body of the response that botocore gets, of which it uses `stream`, `read` and `close`.
    """

    def __init__(self, connections: Connections, loop: asyncio.AbstractEventLoop, patience_s: float) -> None:
        self._connections = connections
        self._loop = loop
        self._patience_s = patience_s
        self._trace = tracing.traceparent()
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pumping: Future[None] | None = None
        self._given_up = False
        self.secrets: tuple[str, ...] = ()

    def give_up(self) -> None:
        """Close the connection; the thread that reads from it is told. Does nothing where all has been read."""
        self._given_up = True
        if self._pumping is not None:
            self._pumping.cancel()

    # In botocore's thread.

    def send(self, request: Any) -> Any:
        """Send a signed request; gives botocore's kind of response, whose body is still to come."""
        from botocore.awsrequest import AWSResponse

        headers = {
            name: value if isinstance(value, str) else value.decode("latin-1")
            for name, value in request.headers.items()
        }
        self.secrets = _secrets(headers)
        body = request.body
        content = body.encode() if isinstance(body, str) else bytes(body) if body else None
        pump = self._pump(request.method, request.url, content, headers)
        try:
            self._pumping = asyncio.run_coroutine_threadsafe(pump, self._loop)
        except RuntimeError as error:  # the loop is closed
            pump.close()
            raise CloudTimeoutError("The call was given up.", _MORE_TIME) from error
        self._pumping.add_done_callback(lambda _: self._arrived.put(_OVER))
        # It may have been given up before there was anything to cancel.
        if self._given_up:
            self._pumping.cancel()
        status, received = self._next()
        return AWSResponse(request.url, status, received, self)

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        """The body as it comes."""
        while piece := self._next():
            yield piece

    def read(self, amt: int | None = None) -> bytes:
        """The rest of the body, however much is asked for."""
        return b"".join(self.stream())

    def close(self) -> None:
        """Close the connection."""
        self.give_up()

    def _next(self) -> Any:
        try:
            item = self._arrived.get(timeout=self._patience_s)
        except queue.Empty:
            item = _OVER
        if item is _OVER:
            raise CloudTimeoutError("The call was given up.", _MORE_TIME)
        if isinstance(item, BaseException):
            raise item
        return item

    # In the event loop.

    async def _pump(self, method: str, url: str, content: bytes | None, headers: dict[str, str]) -> None:
        trace = {"traceparent": self._trace} if self._trace else {}
        try:
            async with self._connections.open(method, url, content=content, headers={**trace, **headers}) as response:
                self._arrived.put((response.status_code, _readable(response.headers)))
                async for piece in pieces(response):
                    if piece:
                        self._arrived.put(piece)
            self._arrived.put(b"")
        except EdgewiseError as error:
            self._arrived.put(error)


_OVER = object()


def _readable(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers without those that speak of the bytes on the wire, which our own connections have read already."""
    of_the_wire = ("content-encoding", "content-length", "transfer-encoding")
    return {name: value for name, value in headers.items() if name.lower() not in of_the_wire}


def _secrets(headers: Mapping[str, str]) -> tuple[str, ...]:
    """What of a signed request nobody may see in a message: a session's token, a bearer token."""
    named = {name.lower(): value for name, value in headers.items()}
    bearer = named.get("authorization", "").partition("Bearer ")[2]
    return tuple(secret for secret in (named.get("x-amz-security-token"), bearer) if secret)


def checked_keyless(api_key: str | None) -> None:
    """AWS takes no key of the configuration.

    Raises:
        ConfigError: One is given.
    """
    if api_key is not None:
        raise ConfigError(
            "A key is given, and AWS is asked with the credentials of the standard chain.",
            "Drop api_key_env; set AWS_PROFILE, a role, or AWS_BEARER_TOKEN_BEDROCK instead.",
        )
