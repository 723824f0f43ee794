"""The OpenAPI document of a door, made of the table of its operations and the very types that it decodes and encodes.

Owns the form (OpenAPI 3.1.1) and what types alone do not tell: which words a field takes, which numbers are in range,
and what the models that are served now accept. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec

from edgewise import __version__
from edgewise.contracts import DataPolicy, Mode, ServiceInfo
from edgewise.wire import native, openai
from edgewise.wire.oip_messages import InferBody, InputTensor
from edgewise.wire.operations import LEAVES_THE_PROCESS, OPERATIONS, Operation, Parameter, Reply, Schema
from edgewise.wire.parsing import ID_PATTERN, MAX_ATTRIBUTE_CHARACTERS, MAX_ATTRIBUTES, MAX_TEXT_CHARACTERS
from edgewise.wire.verify import VERIFY

Json: TypeAlias = dict[str, Any]

_REF = "#/components/schemas/{name}"
_JSON = "application/json"

_FAULTS: Mapping[int, str] = {
    400: "The body, a parameter or an item cannot be used; `field` or `param` names it.",
    401: "API keys are configured, and the request carries none of them.",
    403: "A web page asks and no API keys are configured, or this client may not.",
    404: "No such model, version or answer.",
    409: "Client and server are not of one mind; `code` says how, and the remedy what to do.",
    408: "The body was not here in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    421: "The request was meant for another host.",
    422: "The cloud is well and refuses this very item.",
    429: "Too much at once; come back later.",
    500: "A defect; the message holds the id under which the log has it.",
    503: "There is no answer now, or the service starts or ends; try later.",
    504: "The budget was spent before there was an answer.",
}
_ALWAYS = (500, 503, 504)
_CLOSED = (403, 421)
"""What every route that needs a key may also reply."""

_FAULT_HEADERS = {429: ("retry-after",), 503: ("retry-after",), 401: ("www-authenticate",)}

_HEADERS: Mapping[str, tuple[str, Json]] = {
    "x-edgewise-id": ("Id of the single answer.", {"type": "string"}),
    "x-edgewise-source": ("Where the single answer was computed.", {"type": "string"}),
    "x-edgewise-reason": ("Why it was.", {"type": "string"}),
    "x-edgewise-status": ("Whether it may still change.", {"type": "string"}),
    "x-edgewise-model-digest": ("The model that computed it.", {"type": "string"}),
    "traceparent": ("The request's, where that was valid.", {"type": "string"}),
    "inference-header-content-length": ("Bytes of the JSON in front of the tensors.", {"type": "string"}),
    "retry-after": ("Seconds to wait.", {"type": "string", "pattern": "^[0-9]+$"}),
    "www-authenticate": ("How to send a key.", {"type": "string"}),
}

_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


class Served(NamedTuple):
    """What a door serves now, as far as its document depends on it.

    Attributes:
        models: What the models say of themselves.
        has_keys: Whether API keys are configured.
        keeps_answers: Whether answers are kept for later pick-up.
        posts: Paths of further routes that this door has.
        max_items: The most items in one request.
        max_budget_ms: The largest budget.
        max_wait_ms: The longest poll.
    """

    models: Sequence[ServiceInfo]
    has_keys: bool
    keeps_answers: bool
    posts: Collection[str]
    max_items: int
    max_budget_ms: float
    max_wait_ms: float


def operations_of(served: Served) -> list[Operation]:
    """The operations that make sense with what is served: embeddings where a model makes them, and so on."""
    offered = [operation for operation in OPERATIONS if _is_offered(operation, served)]
    if _writers(served):
        from edgewise.wire.text_operations import TEXT_OPERATIONS  # most doors never tell of them

        offered += TEXT_OPERATIONS
    return offered


def _is_offered(operation: Operation, served: Served) -> bool:
    if operation.path == openai.EMBEDDINGS:
        return any(openai.makes_embeddings(info) for info in served.models)
    if operation.path == VERIFY:
        return VERIFY in served.posts
    if operation.path == "/v1/predict" or operation.path.endswith("/infer"):
        return not served.models or len(_writers(served)) < len(served.models)
    if operation.path.startswith("/v1/answers/"):
        return served.keeps_answers
    if operation.path.startswith("/v2/repository"):
        paths = (operation.path.replace("{model}", info.name) for info in served.models)
        return any(path in served.posts for path in paths)
    return True


def document(served: Served) -> Json:
    """The OpenAPI document."""
    operations = operations_of(served)
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, served)
    found: Json = {
        "openapi": "3.1.1",
        "info": {
            "title": "edgewise",
            "version": __version__,
            "description": "Answers of an edge gateway or a cloud service. WS /v1/stream is not described here.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": _components(operations, served)},
    }
    if served.has_keys:
        found["components"]["securitySchemes"] = _SECURITY
        found["security"] = [{name: []} for name in _SECURITY]
    return found


def _operation(operation: Operation, served: Served) -> Json:
    found: Json = {
        "operationId": operation.id,
        "summary": operation.text,
        "responses": {
            **{str(status): _reply(reply) for status, reply in operation.replies.items()},
            **{str(status): _fault(status, operation) for status in _faults_of(operation, served)},
        },
    }
    if operation.parameters:
        found["parameters"] = [_parameter(parameter, served) for parameter in operation.parameters]
    if operation.bodies:
        found["requestBody"] = {"required": operation.is_needed, "content": _content(operation.bodies)}
        example = _example(operation, served)
        if example is not None:
            found["requestBody"]["content"][_JSON]["example"] = example
    if operation.is_open:
        found["security"] = []
    return found


def _example(operation: Operation, served: Served) -> Json | None:
    """A body that is answered by what is served now; None where no text is read."""
    reads = [info.name for info in served.models if info.input == "text" and not openai.writes(info)]
    embeds = [info.name for info in served.models if openai.makes_embeddings(info)]
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [_EXAMPLE]}
    bodies: dict[type, Json] = {}
    if reads:
        bodies[native.PredictRequest] = {"inputs": _EXAMPLE, "model": reads[0], "budget_ms": 5000}
        bodies[InferBody] = {"inputs": [tensor], "parameters": {"budget_ms": 5000}}
    if embeds:
        bodies[openai.EmbeddingsBody] = {"input": [_EXAMPLE], "model": embeds[0]}
    if _writers(served):
        from edgewise.wire.text_operations import examples

        bodies |= examples(_writers(served)[0])
    body = operation.bodies[_JSON]
    return bodies.get(body) if isinstance(body, type) else None


def _writers(served: Served) -> list[str]:
    return [info.name for info in served.models if openai.writes(info)]


_EXAMPLE = "grain exports rose in march"


def _faults_of(operation: Operation, served: Served) -> list[int]:
    always = _ALWAYS if operation.is_open else (*_ALWAYS, *_CLOSED, *((401,) if served.has_keys else ()))
    return sorted({*operation.faults, *always})


def _reply(reply: Reply) -> Json:
    found: Json = {"description": reply.text}
    if reply.content:
        found["content"] = _content(reply.content)
    if reply.headers:
        found["headers"] = _headers(reply.headers)
    return found


def _fault(status: int, operation: Operation) -> Json:
    found: Json = {"description": _FAULTS[status], "content": _content({_JSON: operation.error})}
    if status in _FAULT_HEADERS:
        found["headers"] = _headers(_FAULT_HEADERS[status])
    return found


def _headers(names: Iterable[str]) -> Json:
    return {name: {"description": _HEADERS[name][0], "schema": _HEADERS[name][1]} for name in names}


def _content(by_type: Mapping[str, Schema]) -> Json:
    return {kind: {"schema": _schema(schema)} for kind, schema in by_type.items()}


def _schema(schema: Schema) -> Mapping[str, Any]:
    return {"$ref": _REF.format(name=schema.__name__)} if isinstance(schema, type) else schema


def _parameter(parameter: Parameter, served: Served) -> Json:
    schema = parameter.schema
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.text,
        "schema": _words(served)[schema] if isinstance(schema, str) else schema,
    }


def _words(served: Served) -> Mapping[str, Json]:
    """Schemas that depend on what is served, by their word."""
    return {
        "model": {"type": "string", "enum": [info.name for info in served.models]},
        "version": {"type": "string", "enum": sorted({info.version for info in served.models})},
        "task": {"type": "string", "enum": ["", *sorted({info.task for info in served.models})]},
        "wait_ms": {"type": "number", "minimum": 0, "maximum": served.max_wait_ms, "default": 0},
        "budget_ms": {"type": "number", "exclusiveMinimum": 0, "maximum": served.max_budget_ms},
        "patience_ms": {"type": "number", "exclusiveMinimum": 0, "maximum": served.max_budget_ms},
        "whole_ms": {"type": "integer", "minimum": 1, "maximum": int(served.max_budget_ms)},
        "mode": {"type": "string", "enum": [mode.value for mode in Mode]},
        "data_policy": {"type": "string", "enum": [policy.value for policy in DataPolicy]},
        "profile": {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARACTERS},
        "id": {"type": "string", "pattern": f"^{ID_PATTERN}$"},
        "session": {"type": "string", "pattern": f"^{ID_PATTERN}$"},
        "attributes": {
            "type": "object",
            "maxProperties": MAX_ATTRIBUTES,
            "propertyNames": {"maxLength": MAX_ATTRIBUTE_CHARACTERS},
            "additionalProperties": {"type": "string", "maxLength": MAX_ATTRIBUTE_CHARACTERS},
        },
    }


def _components(operations: Iterable[Operation], served: Served) -> Json:
    named = [
        schema
        for operation in operations
        for content in (operation.bodies, {_JSON: operation.error}, *(r.content for r in operation.replies.values()))
        for schema in content.values()
        if isinstance(schema, type)
    ]
    _, found = msgspec.json.schema_components(dict.fromkeys(named), ref_template=_REF)
    for component in found.values():
        # The docstring's first sentence; what follows speaks to readers of the code.
        component["description"] = component.get("description", "").split("\n\n")[0]
    for name, narrow in _NARROWED.items():
        if name in found:
            narrow(found, served)
    if _writers(served):
        from edgewise.wire import text_operations

        text_operations.narrow(found, _words(served), _writers(served))
    return found


def _predict_body(components: Json, served: Served) -> None:
    body = components[native.PredictRequest.__name__]
    words = _words(served)
    for name in ("model", "id", "budget_ms", "mode", "profile", "data_policy", "session"):
        body["properties"][name] = _or_null(words[name])
    for name in ("task", "attributes"):
        body["properties"][name] = words[name]
    kinds = {info.input for info in served.models}
    readable = [{"type": "string"}] if "text" in kinds else []
    readable += [{"$ref": _REF.format(name=native.ImageInput.__name__)}] if kinds - {"text"} else []
    body["properties"]["inputs"] = {"anyOf": readable} if readable else {"type": "string"}
    if not kinds - {"text"}:
        del components[native.ImageInput.__name__]
    body["not"] = LEAVES_THE_PROCESS


def _image_input(components: Json, served: Served) -> None:
    body = components[native.ImageInput.__name__]
    body["properties"] = {
        "image": {"type": "string", "contentEncoding": "base64", "minLength": 1},
        "pixels": {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1}},
    }
    body["oneOf"] = [{"required": [name]} for name in body["properties"]]


def _embeddings_body(components: Json, served: Served) -> None:
    properties = components[openai.EmbeddingsBody.__name__]["properties"]
    words = _words(served)
    for name in ("budget_ms", "mode", "profile", "data_policy"):
        properties[name] = _or_null(words[name])
    names = [info.name for info in served.models if openai.makes_embeddings(info)]
    text = {"type": "string", "minLength": 1}
    properties["model"] = {"type": "string", "enum": names}
    properties["input"] = {
        "anyOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": served.max_items}]
    }
    components[openai.EmbeddingsBody.__name__]["not"] = LEAVES_THE_PROCESS


def _infer_body(components: Json, served: Served) -> None:
    properties = components[InferBody.__name__]["properties"]
    words = _words(served)
    names = ("budget_ms", "patience_ms", "mode", "profile", "data_policy", "session", "attributes")
    properties["id"] = {"anyOf": [words["id"], {"const": ""}]}
    properties["parameters"] = {"type": "object", "properties": {name: _or_null(words[name]) for name in names}}
    properties["inputs"] |= {"minItems": 1, "maxItems": 1}
    tensor = components[InputTensor.__name__]["properties"]
    tensor["name"] |= {"enum": ["text", "image", "pixels"]}
    tensor["datatype"] |= {"enum": ["BYTES", "UINT8", "FP32"]}
    tensor["shape"] |= {"minItems": 1, "maxItems": 4, "items": {"type": "integer", "minimum": 1}}


_NARROWED = {
    native.ImageInput.__name__: _image_input,
    native.PredictRequest.__name__: _predict_body,
    openai.EmbeddingsBody.__name__: _embeddings_body,
    InferBody.__name__: _infer_body,
}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}], "default": None}
