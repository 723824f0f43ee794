"""Every route of a door, as a table: what it takes, and what it may reply.

Owns the facts that the OpenAPI document tells; `openapi` puts them into its form. A test holds the table against the
routes, so that neither has one that the other lacks. Routes of models that write are `text_operations`'. The WebSocket
is not in it: OpenAPI has no words for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import msgspec

from edgewise.contracts import DataPolicy, Mode, ServiceInfo
from edgewise.telemetry import CONTENT_TYPE as METRICS_TYPE
from edgewise.wire import native, oip, openai, verify
from edgewise.wire.oip_messages import InferBody

Schema: TypeAlias = type | Mapping[str, Any]
"""A struct, or a JSON Schema."""

JSON = "application/json"
EVENTS = "text/event-stream"
BINARY = "application/octet-stream"


class FrontPage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of `GET /`; `promise` only where something is promised."""

    name: str
    version: str
    service: ServiceInfo
    models: list[ServiceInfo]
    endpoints: tuple[str, ...]
    promise: Mapping[str, Any] | None = None


class OipError(msgspec.Struct, frozen=True):
    """The body of every error of the Open Inference Protocol."""

    error: str


class Reply(NamedTuple):
    """What a route replies when all is well.

    Attributes:
        text: In words.
        content: Schema by media type; empty where there is no body.
        headers: Names of the headers that it may have.
    """

    text: str
    content: Mapping[str, Schema]
    headers: tuple[str, ...] = ()


class Parameter(NamedTuple):
    """A parameter outside the body.

    Attributes:
        name: Its name.
        place: "path", "query" or "header".
        schema: Its schema; a word for one that depends on what is served: see `openapi`.
        text: In words.
    """

    name: str
    place: str
    schema: Mapping[str, Any] | str
    text: str


class Operation(NamedTuple):
    """One method at one path.

    Attributes:
        method: In lower case.
        path: With its parameters in braces.
        id: Its name in generated clients.
        text: What it does.
        replies: By status.
        faults: Statuses of its own errors, beside those of every route.
        error: The body of its errors.
        parameters: Outside the body.
        bodies: Schema of the body by media type; empty where it takes none.
        is_open: Whether it needs no key.
        is_needed: Whether a body must be sent.
    """

    method: str
    path: str
    id: str
    text: str
    replies: Mapping[int, Reply]
    faults: tuple[int, ...] = ()
    error: type = native.ErrorBody
    parameters: tuple[Parameter, ...] = ()
    bodies: Mapping[str, Schema] = {}
    is_open: bool = False
    is_needed: bool = True


FACTS = ("x-edgewise-id", "x-edgewise-source", "x-edgewise-reason", "x-edgewise-status", "x-edgewise-model-digest")
TRACE = ("traceparent",)
_POSTED = (400, 404, 408, 413, 415, 429)
"""What every route with a body may refuse."""

ASKED = (*_POSTED, 422)
"""What every route that asks a model may refuse."""

LEAVES_THE_PROCESS = {
    "properties": {"mode": {"const": Mode.CLOUD_ONLY.value}, "data_policy": {"const": DataPolicy.LOCAL_ONLY.value}},
    "required": ["mode", "data_policy"],
}
"""Asks the cloud, and forbids that the data leave the process."""

_STREAM = {
    "type": "object",
    "description": "One event; `data` is JSON: a native answer, whether an update is pending, or a native error.",
    "properties": {
        "event": {"enum": ["answer", "revise", "done", "error"]},
        "id": {"type": "string"},
        "data": {"type": "string"},
    },
    "required": ["event", "id", "data"],
}
_BYTES = {"type": "string", "format": "binary", "description": "The JSON, then the tensors."}


def _object(**properties: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ok(content: Schema, text: str = "It is so.", headers: tuple[str, ...] = ()) -> Mapping[int, Reply]:
    return {200: Reply(text, {JSON: content}, headers)}


_READY = _ok(_object(ready={"const": True}), "Ready.")
_ANSWER_ID = Parameter("id", "path", {"type": "string", "minLength": 1}, "The id of a request.")
_WAIT = Parameter("wait_ms", "query", "wait_ms", "Milliseconds to wait for the final answer.")
_MODEL = Parameter("model", "path", "model", "Name of a model.")
_VERSION = Parameter("version", "path", "version", "Version of that model.")
OURS = tuple(
    Parameter(f"x-edgewise-{name.replace('_', '-')}", "header", word, f"As `{name}` in the body, which goes before it.")
    for name, word in (
        ("budget_ms", "whole_ms"),
        ("mode", "mode"),
        ("profile", "profile"),
        ("data_policy", "data_policy"),
    )
)

_NATIVE = (
    Operation(
        "post",
        "/v1/predict",
        "predict",
        "Answer one item; as a stream of events where the client accepts text/event-stream.",
        {200: Reply("The first whole answer.", {JSON: native.AnswerBody, EVENTS: _STREAM}, (*FACTS, *TRACE))},
        faults=ASKED,
        bodies={JSON: native.PredictRequest},
    ),
    Operation(
        "get",
        "/v1/answers/{id}",
        "answer",
        "The newest answer to a request that was answered provisionally.",
        _ok(native.AnswerBody, "The newest answer.", FACTS),
        faults=(400, 404, 429),
        parameters=(_ANSWER_ID, _WAIT),
    ),
    Operation(
        "get",
        "/v1/answers/{id}/events",
        "answerEvents",
        "The same as a stream of events, which ends when the answer is final or time is up.",
        {
            200: Reply("The stream.", {EVENTS: _STREAM}, (*FACTS, *TRACE)),
            204: Reply("The client has seen all of it: its last-event-id ends with /done.", {}),
        },
        faults=(400, 404, 429),
        parameters=(_ANSWER_ID, _WAIT),
    ),
)

_VERIFY = Operation(
    "post",
    verify.VERIFY,
    "verify",
    "Say how much of a draft stands, by the words of the model that is served, and what comes next.",
    _ok(verify.VerifyReply, "What stands, and the next token."),
    faults=(*_POSTED, 409),
    bodies={JSON: verify.VerifyRequest},
)

_OPENAI = (
    Operation(
        "post",
        openai.EMBEDDINGS,
        "embeddings",
        "Embeddings of texts, in OpenAI's protocol.",
        _ok(openai.EmbeddingsReply, "One embedding a text.", (*FACTS, *TRACE)),
        faults=ASKED,
        error=openai.OpenAIError,
        parameters=OURS,
        bodies={JSON: openai.EmbeddingsBody},
    ),
    Operation(
        "get",
        openai.MODELS,
        "models",
        "The models that are served, in OpenAI's protocol.",
        _ok(openai.ModelsReply, "All of them."),
        error=openai.OpenAIError,
    ),
    Operation(
        "get",
        f"{openai.MODELS}/{{model}}",
        "model",
        "One model, in OpenAI's protocol.",
        _ok(openai.ModelBody, "The model."),
        faults=(404,),
        error=openai.OpenAIError,
        parameters=(_MODEL,),
    ),
)


def _of_model(path: str, suffix: str, parameters: tuple[Parameter, ...]) -> tuple[Operation, ...]:
    """The routes of one model, or of one version of it."""
    return (
        Operation(
            "post",
            f"{path}/infer",
            f"infer{suffix}",
            "Answer the items of a tensor, in the Open Inference Protocol, in JSON or with its binary extension.",
            {
                200: Reply(
                    "One answer an item.",
                    {JSON: oip.InferReply, BINARY: _BYTES},
                    (*FACTS, *TRACE, "inference-header-content-length"),
                )
            },
            faults=ASKED,
            error=OipError,
            parameters=parameters,
            bodies={JSON: InferBody},
        ),
        Operation(
            "get",
            path,
            f"metadata{suffix}",
            "What a model takes and gives.",
            _ok(oip.ModelMetadata, "Its metadata."),
            faults=(404,),
            error=OipError,
            parameters=parameters,
        ),
        Operation(
            "get",
            f"{path}/ready",
            f"modelReady{suffix}",
            "Whether a model is ready.",
            _ok(_object(name={"type": "string"}, ready={"const": True}), "It is."),
            faults=(404,),
            error=OipError,
            parameters=parameters,
            is_open=True,
        ),
    )


_OIP = (
    Operation(
        "get",
        "/v2",
        "server",
        "Name, version and extensions of the server.",
        _ok(
            _object(
                name={"const": "edgewise"},
                version={"type": "string"},
                extensions={"type": "array", "items": {"type": "string"}},
            )
        ),
        error=OipError,
    ),
    Operation(
        "get",
        "/v2/health/live",
        "live",
        "Whether the process lives.",
        _ok(_object(live={"const": True})),
        error=OipError,
        is_open=True,
    ),
    Operation("get", "/v2/health/ready", "ready", "Whether all is ready.", _READY, error=OipError, is_open=True),
    *_of_model("/v2/models/{model}", "", (_MODEL,)),
    *_of_model("/v2/models/{model}/versions/{version}", "OfVersion", (_MODEL, _VERSION)),
)

_CHANGE = {
    "type": "object",
    "properties": {"parameters": {"type": "object", "maxProperties": 0}},
    "additionalProperties": False,
}
_STATE = _object(
    name={"type": "string"}, version={"type": "string"}, state={"type": "string"}, reason={"type": "string"}
)


def _repository(method: str, text: str) -> Operation:
    return Operation(
        "post",
        f"/v2/repository/models/{{model}}/{method}",
        f"{method}Model",
        text,
        _ok({"type": "object", "maxProperties": 0}, "Done."),
        faults=(*_POSTED, 403),
        error=OipError,
        parameters=(_MODEL,),
        bodies={JSON: _CHANGE},
        is_needed=False,
    )


_REPOSITORY = (
    Operation(
        "post",
        "/v2/repository/index",
        "repositoryIndex",
        "The models of the repository, and their states.",
        _ok({"type": "array", "items": _STATE}, "All of them."),
        faults=_POSTED,
        error=OipError,
        bodies={JSON: {**_object(), "properties": {"ready": {"type": "boolean"}}, "additionalProperties": False}},
        is_needed=False,
    ),
    _repository("load", "Read a model again from its configured path."),
    _repository("unload", "Serve a model no longer."),
)

_REST = (
    Operation("get", "/", "frontPage", "What is served here, and what it promises.", _ok(FrontPage)),
    Operation(
        "get",
        "/healthz",
        "alive",
        "Whether the process lives.",
        _ok(_object(status={"const": "alive"})),
        is_open=True,
    ),
    Operation(
        "get",
        "/readyz",
        "readyToAnswer",
        "Whether it can answer.",
        _ok(_object(status={"const": "ready"})),
        is_open=True,
    ),
    Operation(
        "get",
        "/metrics",
        "metrics",
        "Metrics in Prometheus' text format.",
        {200: Reply("All of them.", {METRICS_TYPE.split(";")[0]: {"type": "string"}})},
    ),
    Operation("get", "/openapi.json", "document", "This document.", _ok({"type": "object"})),
)

OPERATIONS: tuple[Operation, ...] = (*_NATIVE, _VERIFY, *_OPENAI, *_OIP, *_REPOSITORY, *_REST)
