"""OpenAI's protocol, `/v1/embeddings` and `/v1/models`, as pure functions between bytes and values.

Owns the shape of its JSON, also of its errors, and does no I/O; texts that models write are `completions`'.
Specification: OpenAI API reference, "Embeddings" and "Models". What is ours stands beside what is theirs: `budget_ms`,
`mode`, `profile` and `data_policy` as further fields of the body (`extra_body` in their client) or as headers
`x-edgewise-…`, the body first; and in each embedding `id`, `status`, `source` and `reason`.

N inputs are N requests of the flow. Texts only: token ids belong to a tokenizer that a client cannot know here.
`usage` counts no tokens and says 0: who answered, and with which tokenizer, differs from item to item.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from edgewise.contracts import Answer, DataPolicy, Mode, Reason, Request, Served, ServiceInfo, Source, Status
from edgewise.errors import RequestError
from edgewise.wire.oip import item_ids
from edgewise.wire.parsing import (
    DEFAULT_MAX_BUDGET_MS,
    checked_budget,
    checked_choice,
    checked_text,
    decode_json,
    shown,
)

EMBEDDINGS = "/v1/embeddings"
MODELS = "/v1/models"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDING_TASK = "feature-extraction"
GENERATION_TASK = "text-generation"

_HEADER = "x-edgewise-"


class EmbeddingsBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of `POST /v1/embeddings`; fields that are not listed are ignored, as clients of this protocol expect.

    Attributes:
        model: Name of the model.
        input: A text, or several.
        encoding_format: "float", or "base64" of little-endian 32-bit floats.
        dimensions: The width that is wanted; only the model's own is given.
        user: Ignored.
        budget_ms: As in `contracts.Request`.
        mode: As in `contracts.Request`.
        profile: As in `contracts.Request`.
        data_policy: As in `contracts.Request`.
    """

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    budget_ms: float | None = None
    mode: str | None = None
    profile: str | None = None
    data_policy: str | None = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One embedding, with what our answers say of themselves."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: tuple[float, ...] | str
    id: str
    status: Status
    source: Source
    reason: Reason


class Usage(msgspec.Struct, frozen=True):
    """Tokens; not counted here."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsReply(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a reply to `POST /v1/embeddings`."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage = Usage()


class ModelBody(msgspec.Struct, frozen=True, kw_only=True):
    """One model; version, task and role are ours.

    Attributes:
        created: 0: when a model was made is not known here.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "edgewise"
    version: str
    task: str
    role: str


class ModelsReply(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


class OpenAIErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong; `type` is theirs, `code` ours."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(msgspec.Struct, frozen=True):
    """The body of every error of this protocol."""

    error: OpenAIErrorDetail


class EmbeddingsCall(msgspec.Struct, frozen=True, kw_only=True):
    """One decoded request for embeddings.

    Attributes:
        model: The model it names.
        requests: One request an input, in order.
        as_base64: Whether vectors are wanted in base64.
        dimensions: The width that is wanted, or None for any.
    """

    model: str
    requests: tuple[Request, ...]
    as_base64: bool
    dimensions: int | None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(EmbeddingsBody)


def is_ours(path: str) -> bool:
    """Whether errors at `path` have this protocol's shape."""
    return path in (EMBEDDINGS, MODELS, CHAT, COMPLETIONS) or path.startswith(f"{MODELS}/")


def decode_embeddings(
    body: bytes,
    headers: Mapping[bytes, bytes],
    *,
    tenant: str,
    new_id: Callable[[], str],
    max_items: int,
    max_budget_ms: float = DEFAULT_MAX_BUDGET_MS,
    arrived_s: float | None = None,
) -> EmbeddingsCall:
    """Read a request for embeddings as N requests of the flow.

    Args:
        body: What the client sent.
        headers: The request's, by lower-case name.
        tenant: Whose it is.
        new_id: Makes the id.
        max_items: The largest N taken.
        max_budget_ms: The largest budget taken, in milliseconds.
        arrived_s: When its head was here, in monotonic seconds.

    Raises:
        RequestError: It is no such request; names the field.
    """
    sent = decode_json(body, _decoder, EmbeddingsBody.__struct_fields__)
    texts = [sent.input] if isinstance(sent.input, str) else sent.input
    if not 0 < len(texts) <= max_items:
        raise RequestError("input", f"input: {len(texts)} texts.", f"Send 1 to {max_items} texts in one request.")
    if "" in texts:
        raise RequestError("input", "input: a text is empty.", "Send texts of one character or more.")
    options = flow_options(
        headers,
        max_budget_ms,
        budget_ms=sent.budget_ms,
        mode=sent.mode,
        profile=sent.profile,
        data_policy=sent.data_policy,
    )
    ids = item_ids(new_id(), len(texts))
    requests = tuple(
        Request(id=item, inputs=text, tenant=tenant, task=EMBEDDING_TASK, arrived_s=arrived_s, **options)
        for item, text in zip(ids, texts, strict=True)
    )
    return EmbeddingsCall(
        model=sent.model, requests=requests, as_base64=sent.encoding_format == "base64", dimensions=sent.dimensions
    )


def flow_options(
    headers: Mapping[bytes, bytes],
    max_budget_ms: float,
    *,
    budget_ms: float | None,
    mode: str | None,
    profile: str | None,
    data_policy: str | None,
) -> dict[str, Any]:
    """The fields of ours in a body or in headers, as fields of `contracts.Request`.

    Raises:
        RequestError: One of them cannot be used; names it.
    """
    options: dict[str, Any] = {}
    budget, field = given(budget_ms, "budget_ms", headers)
    if budget is not None:
        options["budget_ms"] = checked_budget(_number(budget, field), field, max_budget_ms)
    wish, field = given(mode, "mode", headers)
    if wish is not None:
        options["mode"] = checked_choice(wish, Mode, field)
    policy, field = given(data_policy, "data_policy", headers)
    if policy is not None:
        options["data_policy"] = checked_choice(policy, DataPolicy, field)
    name, field = given(profile, "profile", headers)
    if name is not None:
        options["profile"] = checked_text(name, field)
    return options


def given(value: Any, name: str, headers: Mapping[bytes, bytes]) -> tuple[Any, str]:
    """A value of ours and where it was found: in the body, else in a header."""
    if value is not None:
        return value, name
    header = _HEADER + name.replace("_", "-")
    sent = headers.get(header.encode())
    return (None, name) if sent is None else (sent.decode("latin-1"), header)


def _number(value: float | str, field: str) -> float:
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise RequestError(field, f"{field}: {shown(value)} is no number.", "Send whole milliseconds in digits.")
    return float(value)


def makes_embeddings(info: ServiceInfo) -> bool:
    """Whether a model makes embeddings of texts."""
    return info.task == EMBEDDING_TASK and info.input == "text"


def check_embedder(info: ServiceInfo) -> None:
    """Find out whether a model makes embeddings of texts.

    Raises:
        RequestError: It does something else.
    """
    check_not_generator(info)
    if not makes_embeddings(info):
        raise RequestError(
            "model",
            f"model: {info.name} does {info.task}, no embeddings.",
            "Name a model whose task fits: GET /v1/models.",
        )


def writes(info: ServiceInfo) -> bool:
    """Whether a model writes texts."""
    return info.task == GENERATION_TASK


def check_generator(info: ServiceInfo, remedy: str = "") -> None:
    """Find out whether a model writes texts.

    Args:
        info: The model.
        remedy: How it is asked instead; over HTTP unless given.

    Raises:
        RequestError: It does something else.
    """
    if not writes(info):
        remedy = remedy or f"Ask it at {EMBEDDINGS if makes_embeddings(info) else '/v1/predict'}."
        raise RequestError("model", f"model: {info.name} does {info.task} and writes no text.", remedy)


def check_not_generator(info: ServiceInfo, remedy: str = "") -> None:
    """Find out whether a model is asked for one label or one vector. Arguments as `check_generator`.

    Raises:
        RequestError: It writes texts.
    """
    if writes(info):
        remedy = remedy or f"Ask it at {CHAT} or {COMPLETIONS}."
        raise RequestError("model", f"model: {info.name} writes texts, and is not asked here.", remedy)


def encode_embeddings(info: ServiceInfo, call: EmbeddingsCall, answers: Sequence[Answer]) -> bytes:
    """Write the answers to the inputs of `call`, in its order.

    Raises:
        RequestError: The width that was asked for is not the model's.
    """
    rows = [answer.output for answer in answers if not isinstance(answer.output, str)]
    if len(rows) != len(answers):
        raise RuntimeError(f"{info.name} answered a request for embeddings with a text.")
    if call.dimensions is not None and any(len(row) != call.dimensions for row in rows):
        raise RequestError(
            "dimensions",
            f"dimensions: {shown(call.dimensions)}; {info.name} gives {len(rows[0])}.",
            "Leave dimensions out.",
        )
    data = [
        Embedding(
            index=index,
            embedding=_base64(row) if call.as_base64 else row,
            id=answer.id,
            status=answer.status,
            source=answer.source,
            reason=answer.decision.reason,
        )
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]
    return _encoder.encode(EmbeddingsReply(data=data, model=info.name))


def _base64(row: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(row, "<f4").tobytes()).decode("ascii")


def encode_models(served: Iterable[Served]) -> bytes:
    """Write the body of `GET /v1/models`."""
    return _encoder.encode(ModelsReply(data=[_model(one.info) for one in served]))


def encode_model(info: ServiceInfo) -> bytes:
    """Write the body of `GET /v1/models/{id}`."""
    return _encoder.encode(_model(info))


def _model(info: ServiceInfo) -> ModelBody:
    return ModelBody(id=info.name, version=info.version, task=info.task, role=info.role)


def encode_error(status: int, code: str, message: str, *, field: str = "") -> bytes:
    """Write an error in this protocol's shape."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return _encoder.encode(OpenAIError(OpenAIErrorDetail(message, kind, field or None, code)))


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
