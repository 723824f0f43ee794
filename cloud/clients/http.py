"""One bounded HTTP exchange with a cloud backend; what goes wrong is a CloudError that names the URL and the remedy.

Owns connections, the total time-out and the size of a response. Knows no protocol and retries nothing.

Proxies and certificates named in the environment are left alone (`trust_env=False`): a gateway talks to the address in
its own configuration, and to nothing that a variable set for another program put between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from edgewise.errors import (
    CloudRefusedError,
    CloudResponseError,
    CloudTimeoutError,
    CloudUnreachableError,
    ConfigError,
)

MAX_RESPONSE_BYTES = 8 << 20
MAX_CONNECTIONS = 256

_IDLE_S = 4.0
"""Idle connections go before a server drops them (uvicorn: 5 s), so that no request is written into a closing one."""

_EXCERPT_CHARACTERS = 200

_NOT_THE_ITEMS_FAULT = frozenset({401, 402, 403, 404, 405, 407, 408, 421, 423, 425, 426, 429})
"""Refusals (4xx) that a key, another address or a later moment mends; every other speaks of what was sent."""


class NotServedError(CloudResponseError):
    """The server knows no such path, hence no such model (404)."""


@dataclass(frozen=True)
class Response:
    """A whole response.

    Attributes:
        url: Where it came from.
        status: HTTP status.
        body: At most MAX_RESPONSE_BYTES.
    """

    url: str
    status: int
    body: bytes


class HttpBackend:
    """Keep-alive connections to one base URL.

    Args:
        url: http:// or https://, with or without a path.
        headers: Sent with every request.
        secret: Never shown in an error, also where a server sends it back.
        connect_timeout_s: Longest wait for a connection.
        transport: Replaces the network, for tests.

    Raises:
        ConfigError: The URL is not one of HTTP, or carries a password, a query or a fragment.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        secret: str | None = None,
        connect_timeout_s: float = 2.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base = checked_url(url, whose="cloud", key="`api_key`")
        self._secret = secret
        self._connect_timeout_s = connect_timeout_s
        self._client = httpx.AsyncClient(
            # Building the TLS context costs tens of milliseconds; plain HTTP does without.
            verify=self.base.startswith("https:"),
            headers={"accept": "application/json", "accept-encoding": "identity", **(headers or {})},
            timeout=httpx.Timeout(None, connect=connect_timeout_s),
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS, keepalive_expiry=_IDLE_S
            ),
            trust_env=False,
            follow_redirects=False,
            transport=transport,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    @asynccontextmanager
    async def within(self, timeout_s: float) -> AsyncIterator[None]:
        """Bound everything in the block: connecting, sending, and a response that drips or never comes.

        Raises:
            CloudTimeoutError: The block took longer than `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError as error:
            raise CloudTimeoutError(
                f"{self.base} did not answer within {timeout_s:g} s.", "Check its load, or allow it more time."
            ) from error

    async def exchange(self, method: str, path: str, content: bytes | None = None) -> Response:
        """Send one request and read its whole response; bound it by `within`.

        Raises:
            CloudUnreachableError: There is no connection.
            CloudRefusedError: It refuses this very content, and would again.
            NotServedError: It knows no such path.
            CloudResponseError: The connection broke, the response is no HTTP or too large, or its status is not 200.
        """
        url = self.base + path
        headers = {} if content is None else {"content-type": "application/json"}
        try:
            async with self._client.stream(method, url, content=content, headers=headers) as streamed:
                response = Response(url, streamed.status_code, await _read(streamed))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = str(error) or f"nothing answered within {self._connect_timeout_s:g} s"
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
        if response.status != 200:
            raise self._refusal(response, of_content=content is not None)
        return response

    def excerpt(self, text: str) -> str:
        """The start of what a server sent, on one line and without the secret."""
        if self._secret:
            text = text.replace(self._secret, "***")
        line = " ".join(text.split())
        return line if len(line) <= _EXCERPT_CHARACTERS else line[:_EXCERPT_CHARACTERS] + "…"

    def _refusal(self, response: Response, *, of_content: bool) -> CloudResponseError:
        said = self.excerpt(response.body.decode("utf-8", "replace")) or "nothing more"
        problem = f"{response.url} answered with status {response.status}: {said}"
        if response.status == 404:
            return NotServedError(problem, _remedy(404))
        if of_content and 400 <= response.status < 500 and response.status not in _NOT_THE_ITEMS_FAULT:
            return CloudRefusedError(problem, _remedy(response.status))
        return CloudResponseError(problem, _remedy(response.status))


def checked_url(url: str, *, whose: str, key: str) -> str:
    """The URL without a slash at its end.

    Args:
        url: http:// or https://, with or without a path.
        whose: Who answers there, for messages.
        key: Where a key is given instead of in the URL, for messages.

    Raises:
        ConfigError: It is not one of HTTP, or carries a password, a query or a fragment.
    """
    if "@" in url:
        # Not shown: it may be a password.
        raise ConfigError(f"The {whose} URL carries a user name or a password.", f"Give the key as {key} instead.")
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise ConfigError(f"The {whose} URL {url!r} is not a URL: {error}.", _URL_REMEDY) from error
    usable = parsed.scheme in ("http", "https") and parsed.host and len(url.split()) == 1
    if not usable or parsed.query or parsed.fragment or not 0 < (parsed.port or 80) < 1 << 16:
        raise ConfigError(f"The {whose} URL {url!r} cannot be used.", _URL_REMEDY)
    return str(parsed).rstrip("/")


_URL_REMEDY = "Give http://host:port or https://host, without a query or a fragment."


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "Check the API key."
    if status == 404:
        return "Check the URL and the model name."
    if status in (429, 503):
        return "It has more work than it takes; try again later."
    if status == 413:
        return "Send a smaller item, or allow larger ones there."
    return "See the service's log." if status >= 500 else "Check that this address speaks the protocol asked of it."


async def _read(streamed: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in streamed.aiter_bytes():
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise CloudResponseError(
                f"{streamed.request.url} sent more than {MAX_RESPONSE_BYTES} bytes.",
                "Check the URL and the model name.",
            )
    return bytes(body)
