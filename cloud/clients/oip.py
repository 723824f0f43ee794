"""A cloud that speaks the Open Inference Protocol v2 over HTTP: our own service, a gateway, KServe, Triton.

Owns which calls are made. What counts as a reference answer is `tensors`' to say, bytes are `wire.oip`'s, and
connections `http`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import httpx
import msgspec

from edgewise.cloud.clients.connections import Network
from edgewise.cloud.clients.http import HttpBackend, NotServedError, Response, authorization
from edgewise.cloud.clients.lasting import Lasting
from edgewise.cloud.clients.tensors import Tensors
from edgewise.contracts import CloudReply, Input, Reference, Request
from edgewise.dialogue import Prompt
from edgewise.errors import CloudResponseError, CloudTimeoutError
from edgewise.wire import oip

_MAX_BUDGET_MS = 600_000.0
"""The longest budget a server of ours accepts; a longer time-out is sent as this much."""


class OipClient:
    """One model behind one server.

    A certificate speaks of one version of one model, so a reply counts only if it names the version that answered and
    is final: a provisional answer, which a gateway gives while its own cloud is away, is refused.

    Args:
        url: The server's base URL.
        model: The model's name; None asks the server, which only our own front door answers (`GET /`).
        api_key: Sent as a bearer token.
        tensors: What the model calls its tensors, where it is none of ours.
        network: How to connect.
        transport: Replaces the network, for tests.

    Raises:
        ConfigError: The URL or the key cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        tensors: Tensors | None = None,
        network: Network | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._model = model
        self._discovered: str | None = None
        self._tensors = tensors or Tensors()
        self._extensions = Lasting(self._ask_extensions, time.monotonic)
        self._http = HttpBackend(
            url, headers=authorization(api_key), secret=api_key, network=network, transport=transport
        )

    async def describe(self, *, timeout_s: float) -> Reference:
        """Ask which model and version answers there.

        Raises:
            CloudUnreachableError: There is no connection.
            CloudTimeoutError: No answer within `timeout_s`.
            CloudResponseError: It knows no such model, or does not say which one version it serves.
        """
        async with self._http.within(timeout_s):
            response = await self._of_model(lambda path: self._http.exchange("GET", path))
        metadata = self._http.decoded(response, oip.decode_model_metadata)
        if len(metadata.versions) != 1:
            listed = ", ".join(metadata.versions) or "none"
            raise CloudResponseError(
                f"{response.url} serves the versions {listed}; a certificate needs exactly one.",
                "Serve one version of the model.",
            )
        return self._tensors.reference(metadata.name, metadata.versions[0])

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        """Ask for the final answer to one request; cancelling closes the connection, which the server notices.

        The server is sent an id of ours, `upstream_id`.

        Raises:
            CloudRefusedError: The item cannot be written in this protocol, or the server refuses it as it is.
            CloudUnreachableError: There is no connection.
            CloudTimeoutError: No answer within `timeout_s`. The server is told what is left of the request's budget,
                and of `timeout_s` as its patience; without a budget, or once it is spent, that alone.
            CloudResponseError: An error, or something that is not a final answer of a named version.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        request = msgspec.structs.replace(request, id=upstream_id(request))

        async def infer(path: str) -> Response:
            left_ms, wanted_ms = self._left_ms(deadline, timeout_s), _wanted_ms(request)
            framed = self._tensors.encoded(request, left_ms, wanted_ms=wanted_ms, binary=binary)
            return await self._http.exchange("POST", f"{path}/infer", framed.body, _frame_headers(framed))

        binary = not isinstance(request.inputs, str)
        if binary:
            # What cannot be written is refused before anything is asked.
            self._tensors.encoded(request, timeout_s * 1e3, binary=True)
        async with self._http.within(timeout_s):
            binary = binary and oip.EXTENSION in await self._extensions.get()
            response = await self._of_model(infer)
        json_bytes = _json_bytes(response)
        return self._http.decoded(response, lambda body: self._tensors.cloud_reply(body, json_bytes))

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def _ask_extensions(self) -> tuple[str, ...]:
        """What the server speaks besides the protocol itself; nothing, where it does not say."""
        try:
            return msgspec.json.decode((await self._http.exchange("GET", "/v2")).body, type=_Server).extensions
        except (CloudResponseError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ()

    def _left_ms(self, deadline: float, timeout_s: float) -> float:
        left_ms = (deadline - asyncio.get_running_loop().time()) * 1e3
        if left_ms <= 0:
            raise CloudTimeoutError(
                f"No time is left of {timeout_s:g} s to ask {self._http.base}.", "Allow it more time."
            )
        return min(left_ms, _MAX_BUDGET_MS)

    async def _of_model(self, ask: Callable[[str], Awaitable[Response]]) -> Response:
        """What `ask` brings from the model's path; a name the server once gave is asked for anew where it is gone."""
        if self._model is not None:
            return await ask(_path(self._model))
        if self._discovered is not None:
            try:
                return await ask(_path(self._discovered))
            except NotServedError:
                # Deployed again under another name: the new one, and its version, come with the reply.
                self._discovered = None
        response = await self._http.exchange("GET", "/")
        name = self._http.decoded(response, _served_model)
        response = await ask(_path(name))
        self._discovered = name
        return response


def upstream_id(request: Request) -> str:
    """The id under which a server behind this gateway hears of a request: 32 hex digits, the same at every attempt.

    All requests come to it under this gateway's one key, so that ids which are unique within a tenant here would
    collide there, and the server would refuse the second tenant's item. So tenant, id and item are all in it.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"edgewise.up.1")
    texts = (part.encode("utf-8", "surrogatepass") for part in (request.tenant, request.id, request.task))
    for part in (*texts, *_item_parts(request.inputs)):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _item_parts(item: Input) -> tuple[bytes, ...]:
    if isinstance(item, str):
        return b"text", item.encode("utf-8", "surrogatepass")
    if isinstance(item, bytes):
        return b"file", item
    if isinstance(item, Prompt):
        return b"prompt", msgspec.msgpack.encode(item)
    return b"array", item.dtype.str.encode(), repr(item.shape).encode(), item.tobytes()


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _served_model(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_FrontPage).service.name
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CloudResponseError(
            f"This server does not say which model it serves: {error}.", "Name the model, or check the URL."
        ) from error


def _frame_headers(framed: oip.Framed) -> dict[str, str]:
    if framed.json_bytes is None:
        return {}
    return {oip.HEADER.decode(): str(framed.json_bytes), "content-type": oip.CONTENT_TYPE.decode()}


def _wanted_ms(request: Request) -> float | None:
    """What is left of the request's own budget; None where it has none, or it is spent."""
    if request.budget_ms is None or request.arrived_s is None:
        return None
    left_ms = request.budget_ms - (time.monotonic() - request.arrived_s) * 1e3
    return left_ms if left_ms > 0 else None


def _json_bytes(response: Response) -> int | None:
    value = response.headers.get(oip.HEADER.decode(), "")
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 12 else None


class _Server(msgspec.Struct):
    extensions: tuple[str, ...] = ()


class _Service(msgspec.Struct):
    name: str


class _FrontPage(msgspec.Struct):
    service: _Service
