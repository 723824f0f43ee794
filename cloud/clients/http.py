"""Requests to one base URL over HTTP; a status that is no success is a CloudError that names the URL and the remedy.

Owns what a status means and the excerpt of what a server said. Connections are `connections`'; knows no protocol and
retries nothing.
"""

from __future__ import annotations

import email.utils
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from edgewise.cloud.clients.connections import Connections, Network, pieces, within
from edgewise.errors import (
    CloudCredentialsError,
    CloudError,
    CloudRefusedError,
    CloudResponseError,
    CloudThrottledError,
    CloudTimeoutError,
    ConfigError,
)

T = TypeVar("T")

_EXCERPT_CHARACTERS = 200

_NOT_THE_ITEMS_FAULT = frozenset({401, 402, 403, 404, 405, 407, 408, 421, 423, 425, 426, 429})
"""Refusals (4xx) that a key, another address or a later moment mends; every other speaks of what was sent."""


class NotServedError(CloudResponseError):
    """The server knows no such path, hence no such model (404)."""


class ConflictError(CloudRefusedError):
    """What was sent contradicts what the server has (409).

    Args:
        problem: What was wrong.
        remedy: What the reader can do about it.
        body: What the server said.
    """

    def __init__(self, problem: str, remedy: str = "", *, body: bytes = b"") -> None:
        super().__init__(problem, remedy)
        self.body = body


@dataclass(frozen=True)
class Response:
    """A whole response.

    Attributes:
        url: Where it came from.
        status: HTTP status.
        body: At most `connections.MAX_RESPONSE_BYTES`.
        headers: Its headers, names in lower case.
    """

    url: str
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class HttpBackend:
    """Keep-alive connections to one base URL.

    Args:
        url: http:// or https://, with or without a path.
        headers: Sent with every request.
        secret: Never shown in an error, also where a server sends it back.
        network: How to connect.
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
        network: Network | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base = checked_url(url, whose="cloud", key="`api_key`")
        self._headers = headers or {}
        self._secret = secret
        # Building the TLS context costs tens of milliseconds; plain HTTP does without.
        self._connections = Connections(network or Network(), tls=self.base.startswith("https:"), transport=transport)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._connections.aclose()

    def within(self, timeout_s: float) -> AbstractAsyncContextManager[None]:
        """Bound everything in the block: connecting, sending, and a response that drips or never comes.

        Raises:
            CloudTimeoutError: The block took longer than `timeout_s`.
        """
        return within(timeout_s, self.base)

    async def exchange(
        self, method: str, path: str, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send one request and read its whole response; bound it by `within`.

        Args:
            method: GET or POST.
            path: Path under the base URL.
            content: The body, JSON unless `headers` say otherwise.
            headers: More headers.

        Raises:
            CloudUnreachableError: There is no connection.
            CloudRefusedError: It refuses this very content, and would again.
            CloudThrottledError: It has enough to do.
            CloudCredentialsError: It does not take the key.
            NotServedError: It knows no such path.
            CloudResponseError: The connection broke, the response is no HTTP or too large, or its status is not 200.
        """
        async with self._opened(method, path, content, headers) as streamed:
            return await self._whole(streamed, of_content=content is not None)

    @asynccontextmanager
    async def stream(
        self, path: str, content: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Post a request and read its response as it comes; leaving the block early closes the connection.

        Raises:
            CloudError: As `exchange`; also while the response is read.
        """
        async with self._opened("POST", path, content, headers) as streamed:
            if streamed.status_code != 200:
                await self._whole(streamed, of_content=True)
            yield pieces(streamed)

    def decoded(self, response: Response, decode: Callable[[bytes], T]) -> T:
        """Decode a response's body.

        Raises:
            CloudResponseError: As `decode` does, told with the URL and the body's start, without the secret.
        """
        return decoded(response.url, response.body, decode, self._secret)

    def excerpt(self, text: str) -> str:
        """The start of what a server sent, on one line and without the secret."""
        return excerpt(text, self._secret)

    def _opened(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str] | None
    ) -> AbstractAsyncContextManager[httpx.Response]:
        of_content = {} if content is None else {"content-type": "application/json"}
        sent = {**self._headers, **of_content, **(headers or {})}
        return self._connections.open(method, self.base + path, content=content, headers=sent)

    async def _whole(self, streamed: httpx.Response, *, of_content: bool) -> Response:
        body = b"".join([piece async for piece in pieces(streamed)])
        response = Response(str(streamed.request.url), streamed.status_code, body, streamed.headers)
        if response.status != 200:
            raise self._refusal(response, of_content=of_content)
        return response

    def _refusal(self, response: Response, *, of_content: bool) -> CloudError:
        error = self._kind_of(response, of_content=of_content)
        error.status = response.status
        return error

    def _kind_of(self, response: Response, *, of_content: bool) -> CloudError:
        said = self.excerpt(response.body.decode("utf-8", "replace")) or "nothing more"
        problem = f"{response.url} answered with status {response.status}: {said}"
        remedy = _remedy(response.status)
        retry_after_s = seconds_to_wait(response.headers)
        if response.status == 429 or (response.status == 503 and retry_after_s is not None):
            return CloudThrottledError(problem, remedy, retry_after_s=retry_after_s)
        if response.status == 504:
            return CloudTimeoutError(problem, "Check its load, or allow it more time.")
        if response.status in (401, 403):
            return CloudCredentialsError(problem, remedy)
        if response.status == 404:
            return NotServedError(problem, remedy)
        if response.status == 409 and of_content:
            return ConflictError(problem, remedy, body=response.body)
        if of_content and 400 <= response.status < 500 and response.status not in _NOT_THE_ITEMS_FAULT:
            return CloudRefusedError(problem, remedy if response.status == 413 else _REFUSED)
        return CloudResponseError(problem, remedy)


def authorization(api_key: str | None) -> dict[str, str]:
    """The header that carries a key as a bearer token; none without a key.

    Raises:
        ConfigError: No header takes the key.
    """
    if api_key is None:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key:
        raise ConfigError("The API key is empty or holds characters that no HTTP header takes.", "Check the key.")
    return {"authorization": f"Bearer {api_key}"}


def excerpt(text: str, *secrets: str | None) -> str:
    """The start of what a server sent, on one line and without the secrets."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT_CHARACTERS else line[:_EXCERPT_CHARACTERS] + "…"


def decoded(url: str, body: bytes, decode: Callable[[bytes], T], *secrets: str | None) -> T:
    """Decode what a server sent; what is wrong with it is told with its URL and its start, without the secrets.

    Raises:
        CloudRefusedError: `decode` raises one.
        CloudThrottledError: It raises one.
        CloudResponseError: It raises another.
    """
    try:
        return decode(body)
    except CloudResponseError as error:
        said = excerpt(body.decode("utf-8", "replace"), *secrets)
        kinds = (CloudRefusedError, CloudThrottledError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), CloudResponseError)
        raise kind(f"{url}: {excerpt(error.problem, *secrets)} It sent: {said}", error.remedy) from error


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` says (RFC 9110, section 10.2.3): seconds, or a date, counted from the server's own `Date`."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        until, sent = (email.utils.parsedate_to_datetime(text) for text in (value, headers.get("date", "")))
        return max(0.0, (until - sent).total_seconds())
    except (ValueError, TypeError):  # no dates, or one with and one without a time zone
        return None


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


_REFUSED = "Change what is sent: as it is, it would be refused again."


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "Check the API key: it is unknown, has expired, or may not ask this."
    if status == 404:
        return "Check the URL and the model name."
    if status in (429, 503):
        return "It has more work than it takes; try again later."
    if status == 413:
        return "Send a smaller item, or allow larger ones there."
    return "See the service's log." if status >= 500 else "Check that this address speaks the protocol asked of it."
