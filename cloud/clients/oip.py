"""A cloud that speaks the Open Inference Protocol v2 over HTTP: our own service, a gateway, KServe, Triton.

Owns which calls are made and what counts as a reference answer. Bytes are `wire.oip`'s, connections `http`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import quote

import httpx
import msgspec

from edgewise.cloud.clients.http import HttpBackend, NotServedError, Response
from edgewise.contracts import FINAL_PROVISIONALS, CloudReply, Reference, Request, Status
from edgewise.errors import CloudRefusedError, CloudResponseError, CloudTimeoutError, ConfigError, InputError
from edgewise.wire import oip

T = TypeVar("T")

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
        connect_timeout_s: Longest wait for a connection, in seconds.
        transport: Replaces the network, for tests.

    Raises:
        ConfigError: The URL, the key or a time-out cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        connect_timeout_s: float = 2.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not connect_timeout_s > 0:
            raise ConfigError(f"connect_timeout_s is {connect_timeout_s}.", "Give seconds above 0.")
        self._model = model
        self._discovered: str | None = None
        self._http = HttpBackend(
            url,
            headers=_authorization(api_key),
            secret=api_key,
            connect_timeout_s=connect_timeout_s,
            transport=transport,
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
        metadata = self._decoded(response, oip.decode_model_metadata)
        if len(metadata.versions) != 1:
            listed = ", ".join(metadata.versions) or "none"
            raise CloudResponseError(
                f"{response.url} serves the versions {listed}; a certificate needs exactly one.",
                "Serve one version of the model.",
            )
        return Reference(metadata.name, metadata.versions[0])

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        """Ask for the final answer to one request; cancelling closes the connection, which the server notices.

        Raises:
            CloudRefusedError: The item cannot be written in this protocol, or the server refuses it as it is.
            CloudUnreachableError: There is no connection.
            CloudTimeoutError: No answer within `timeout_s`, which the server is told as the budget.
            CloudResponseError: An error, or something that is not a final answer of a named version.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s

        async def infer(path: str) -> Response:
            content = _encoded(request, self._left_ms(deadline, timeout_s))
            return await self._http.exchange("POST", f"{path}/infer", content)

        async with self._http.within(timeout_s):
            response = await self._of_model(infer)
        return self._decoded(response, _cloud_reply)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

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
        name = self._decoded(response, _served_model)
        response = await ask(_path(name))
        self._discovered = name
        return response

    def _decoded(self, response: Response, decode: Callable[[bytes], T]) -> T:
        """Decode a body; what is wrong with it is told with its URL and its start."""
        try:
            return decode(response.body)
        except CloudResponseError as error:
            said = self._http.excerpt(response.body.decode("utf-8", "replace"))
            kind = CloudRefusedError if isinstance(error, CloudRefusedError) else CloudResponseError
            raise kind(f"{response.url}: {self._http.excerpt(error.problem)} It sent: {said}", error.remedy) from error


def _authorization(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key:
        raise ConfigError("The API key is empty or holds characters that no HTTP header takes.", "Check the key.")
    return {"authorization": f"Bearer {api_key}"}


def _encoded(request: Request, budget_ms: float) -> bytes:
    try:
        return oip.encode_infer_request(request, budget_ms=budget_ms)
    except InputError as error:
        raise CloudRefusedError(error.problem, error.remedy) from error
    except UnicodeEncodeError as error:
        raise CloudRefusedError(f"The text cannot be sent as UTF-8: {error.reason}.", "Send valid Unicode.") from error


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _served_model(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_FrontPage).service.name
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CloudResponseError(
            f"This server does not say which model it serves: {error}.", "Name the model, or check the URL."
        ) from error


class _Service(msgspec.Struct):
    name: str


class _FrontPage(msgspec.Struct):
    service: _Service


def _cloud_reply(body: bytes) -> CloudReply:
    reply = oip.decode_infer_response(body)
    if not reply.model_version:
        raise CloudResponseError(
            f"The model {reply.model_name} does not say which version answered.",
            "Serve it with a version; a certificate speaks of one version only.",
        )
    if reply.status() is not Status.FINAL and _is_last_word(reply):
        raise CloudRefusedError(
            f"The model {reply.model_name} answered provisionally: its own cloud refuses this item, or is not asked.",
            "Change the item, or the policy of the service behind that gateway.",
        )
    if reply.status() is not Status.FINAL:
        raise CloudResponseError(
            f"The model {reply.model_name} answered provisionally: its own cloud did not answer.",
            "Check the service behind that gateway.",
        )
    return CloudReply(reply.output(), Reference(reply.model_name, reply.model_version))


def _is_last_word(reply: oip.InferReply) -> bool:
    """Whether a gateway gives as its reason that no final answer will follow its provisional one."""
    reasons = [tensor.data for tensor in reply.outputs if tensor.name == "reason"]
    return any([reason] in reasons for reason in FINAL_PROVISIONALS)
