"""The model repository extension of the Open Inference Protocol: which models there are, load one again, unload one.

Owns the routes and who may ask. Nothing about a model is taken from a request but its name: a load reads again what
stands at the path that the operator configured. Specification: Triton's `extension_model_repository`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from edgewise.errors import RequestError
from edgewise.wire.door import PostHandler
from edgewise.wire.faults import Fault
from edgewise.wire.http import Headers, Receive, Send, reply
from edgewise.wire.keys import PUBLIC_TENANT
from edgewise.wire.parsing import decode_json

_PREFIX = "/v2/repository"
_encoder = msgspec.json.Encoder()


class Repository(Protocol):
    """Models that can be loaded again."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every model that can be loaded."""
        ...

    def index(self) -> Sequence[Any]:
        """A line a model: its `name`, `version`, `state` and `reason`."""
        ...

    async def load(self, name: str) -> Any:
        """Load what stands at a model's path now."""
        ...

    async def unload(self, name: str) -> None:
        """Serve a model no longer."""
        ...


class _IndexBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ready: bool = False


class _ChangeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    parameters: Mapping[str, Any] = {}


_index_decoder = msgspec.json.Decoder(_IndexBody)
_change_decoder = msgspec.json.Decoder(_ChangeBody)


def repository_routes(repository: Repository, admins: Collection[str]) -> dict[str, PostHandler]:
    """The extension's routes, for `front_door(posts=…)`.

    Args:
        repository: The models.
        admins: Tenants that may load and unload, and who are told why a model is not ready.
    """
    routes: dict[str, PostHandler] = {f"{_PREFIX}/index": _Index(repository, admins)}
    for name in repository.names:
        model = f"{_PREFIX}/models/{name}"
        routes[f"{model}/load"] = _Change(name, admins, repository, load=True)
        routes[f"{model}/unload"] = _Change(name, admins, repository, load=False)
    return routes


class _Index:
    """Answers `POST /v2/repository/index`; reasons, which may name the server's paths, only to admins."""

    def __init__(self, repository: Repository, admins: Collection[str]) -> None:
        self._repository = repository
        self._admins = admins

    async def __call__(self, body: bytes, tenant: str, headers: Headers, receive: Receive, send: Send) -> None:
        asked = decode_json(body, _index_decoder, ("ready",)) if body else _IndexBody()
        lines = [line for line in self._repository.index() if line.state == "READY" or not asked.ready]
        if tenant not in self._admins:
            lines = [msgspec.structs.replace(line, reason="") for line in lines]
        await reply(send, 200, _encoder.encode(lines))


class _Change:
    """Answers `POST /v2/repository/models/{name}/load` or `…/unload`."""

    def __init__(self, name: str, admins: Collection[str], repository: Repository, *, load: bool) -> None:
        self._name = name
        self._admins = admins
        self._work = repository.load if load else repository.unload
        # A client may say what shall become of dependents; there are none here.
        self._ignored = frozenset() if load else frozenset({"unload_dependents"})

    async def __call__(self, body: bytes, tenant: str, headers: Headers, receive: Receive, send: Send) -> None:
        if tenant not in self._admins:
            raise _forbidden(tenant)
        sent = decode_json(body, _change_decoder, ("parameters",)) if body else _ChangeBody()
        for name in sent.parameters:
            if name not in self._ignored:
                raise RequestError(
                    f"parameters.{name}",
                    f"parameters.{name}: a model's files and settings are never taken from a request.",
                    "Put the files at the model's configured path, and ask again without parameters.",
                )
        await self._work(self._name)
        await reply(send, 200, b"{}")


def _forbidden(tenant: str) -> Fault:
    remedy = (
        "Bind to loopback and start with --allow-load, or configure API keys and --admins."
        if tenant == PUBLIC_TENANT
        else "Ask with the key of a tenant that --admins names."
    )
    return Fault(403, "forbidden", "This client may not load or unload models.", remedy=remedy)
