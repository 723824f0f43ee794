"""The native protocol, `/v1/predict` and `/v1/answers/{id}`, as pure functions between bytes and values.

Owns the shape of its JSON and does no I/O. A request is one item::

    {"inputs": "a text" | {"image": "<base64 of a PNG, JPEG, …>"} | {"pixels": [[…], …]},
     "model", "id", "task", "budget_ms", "mode", "profile", "data_policy", "session", "attributes"}    all optional

and every answer has all of these fields::

    {"id", "output": "a label" | [floats], "status": "final" | "provisional", "source": "edge" | "cloud" | "cache",
     "reason", "model_digest",
     "decision": {"action", "policy", "score", "threshold", "certificate_id"},
     "timings_ms": {"total": …}}

and that of a model that writes texts also `written`: why it ended, its counts of tokens, and the tools that it calls.

JSON has no NaN and no infinity. In `score` and `threshold` NaN (no confidence) is null, as is None, and the
infinities are the strings "inf" and "-inf" (a threshold of "inf" answers nothing locally). Elsewhere both are null.

An error is `{"error": {"code", "message", "field", "remedy"}}`; `field` and `remedy` are left out where there are none.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from edgewise.contracts import (
    Action,
    Answer,
    DataPolicy,
    Decision,
    Input,
    Mode,
    Output,
    Reason,
    Request,
    Source,
    Status,
)
from edgewise.dialogue import Prompt, Written
from edgewise.errors import CloudResponseError, InputError, RequestError
from edgewise.wire.parsing import (
    DEFAULT_MAX_BUDGET_MS,
    checked_attributes,
    checked_budget,
    checked_choice,
    checked_id,
    checked_text,
    decode_base64,
    decode_json,
    pixels_from_nested,
)

JsonFloat: TypeAlias = float | Literal["inf", "-inf"] | None


class ImageInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An item that is not text; exactly one field is set.

    Attributes:
        image: An encoded image file in base64.
        pixels: Nested lists, (height, width) or (height, width, channels).
    """

    image: str | None = None
    pixels: list[Any] | None = None


class PredictRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The body of `POST /v1/predict`; its fields mean what those of `contracts.Request` mean.

    Attributes:
        model: Name of the model to ask, where several are served; None asks the default.
    """

    inputs: str | ImageInput
    model: str | None = None
    id: str | None = None
    task: str = ""
    budget_ms: float | None = None
    mode: str | None = None
    profile: str | None = None
    data_policy: str | None = None
    session: str | None = None
    attributes: dict[str, str] = {}  # msgspec copies an empty default


class DecisionBody(msgspec.Struct, frozen=True, kw_only=True):
    """The grounds of an answer; `reason` stands beside it at the top level."""

    action: Action
    policy: str
    score: JsonFloat
    threshold: JsonFloat
    certificate_id: str | None


class AnswerBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an answer; `written` is there where a language model wrote it."""

    id: str
    output: Output
    status: Status
    source: Source
    reason: Reason
    model_digest: str
    decision: DecisionBody
    timings_ms: Mapping[str, float]
    written: Written | msgspec.UnsetType = msgspec.UNSET


class ErrorDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong, for programs (`code`, `field`) and for people (`message`, `remedy`)."""

    code: str
    message: str
    field: str = ""
    remedy: str = ""


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every error."""

    error: ErrorDetail


_encoder = msgspec.json.Encoder()
_request_decoder = msgspec.json.Decoder(PredictRequest)
_answer_decoder = msgspec.json.Decoder(AnswerBody)
_error_decoder = msgspec.json.Decoder(ErrorBody)


def decode_request(
    body: bytes,
    *,
    tenant: str,
    new_id: Callable[[], str],
    max_budget_ms: float = DEFAULT_MAX_BUDGET_MS,
    arrived_s: float | None = None,
) -> tuple[Request, str | None]:
    """Read the body of `POST /v1/predict`: the request, and the model it names.

    Args:
        body: What the client sent.
        tenant: Whose it is.
        new_id: Makes an id where the client gave none.
        max_budget_ms: The largest budget taken, in milliseconds.
        arrived_s: When its head was here, in monotonic seconds.

    Raises:
        RequestError: It is not a request; names the field.
    """
    sent = decode_json(body, _request_decoder, PredictRequest.__struct_fields__)
    return request_of(sent, tenant=tenant, new_id=new_id, max_budget_ms=max_budget_ms, arrived_s=arrived_s), sent.model


def request_of(
    sent: PredictRequest,
    *,
    tenant: str,
    new_id: Callable[[], str],
    max_budget_ms: float = DEFAULT_MAX_BUDGET_MS,
    arrived_s: float | None = None,
) -> Request:
    """The request that a body asks for; arguments and errors as `decode_request`."""
    return Request(
        id=new_id() if sent.id is None else checked_id(sent.id),
        inputs=_decode_input(sent.inputs),
        tenant=tenant,
        task=sent.task and checked_text(sent.task, "task"),
        budget_ms=checked_budget(sent.budget_ms, "budget_ms", max_budget_ms),
        mode=None if sent.mode is None else checked_choice(sent.mode, Mode, "mode"),
        profile=None if sent.profile is None else checked_text(sent.profile, "profile"),
        data_policy=DataPolicy.ANY
        if sent.data_policy is None
        else checked_choice(sent.data_policy, DataPolicy, "data_policy"),
        session=None if sent.session is None else checked_id(sent.session, "session"),
        attributes=checked_attributes(sent.attributes),
        arrived_s=arrived_s,
    )


def _decode_input(inputs: str | ImageInput) -> Input:
    if isinstance(inputs, str):
        return inputs
    if inputs.image is not None and inputs.pixels is None:
        return decode_base64(inputs.image, "inputs.image")
    if inputs.pixels is not None and inputs.image is None:
        return pixels_from_nested(inputs.pixels, "inputs.pixels")
    raise RequestError(
        "inputs",
        "inputs: needs exactly one of image and pixels.",
        'Send a text, {"image": base64} or {"pixels": rows}.',
    )


def encode_request(request: Request) -> bytes:
    """Write the body of `POST /v1/predict`; the tenant travels as the API key instead.

    Raises:
        InputError: The item is an array that is not an image's pixels.
    """
    body = PredictRequest(
        inputs=_encode_input(request.inputs),
        id=request.id,
        task=request.task,
        budget_ms=request.budget_ms,
        mode=request.mode,
        profile=request.profile,
        data_policy=None if request.data_policy is DataPolicy.ANY else request.data_policy,
        session=request.session,
        attributes=dict(request.attributes),
    )
    return _encoder.encode(body)


def _encode_input(item: Input) -> str | ImageInput:
    if isinstance(item, str):
        return item
    if isinstance(item, bytes):
        return ImageInput(image=base64.b64encode(item).decode("ascii"))
    if isinstance(item, Prompt):
        raise InputError("A prompt cannot be sent over this protocol.", "Choose a backend that speaks OpenAI's.")
    if item.dtype == np.uint8:
        return ImageInput(pixels=item.tolist())
    if item.dtype.kind == "f" and np.isfinite(item).all():
        return ImageInput(pixels=item.astype(np.float32).tolist())
    raise InputError(f"Pixels of type {item.dtype} cannot be sent.", "Give uint8, or finite floats.")


def encode_answer(answer: Answer) -> bytes:
    """Write an answer as documented above."""
    return _encoder.encode(
        AnswerBody(
            id=answer.id,
            output=answer.output,
            status=answer.status,
            source=answer.source,
            reason=answer.decision.reason,
            model_digest=answer.model_digest,
            decision=decision_body(answer.decision),
            timings_ms=answer.timings_ms,
            written=msgspec.UNSET if answer.written is None else answer.written,
        )
    )


def decision_body(decision: Decision) -> DecisionBody:
    """The grounds of an answer, as every JSON of ours tells them."""
    return DecisionBody(
        action=decision.action,
        policy=decision.policy,
        score=to_json_float(decision.score),
        threshold=to_json_float(decision.threshold),
        certificate_id=decision.certificate_id,
    )


def decode_answer(body: bytes) -> Answer:
    """Read an answer that `encode_answer` wrote; unknown fields of a newer server are ignored.

    Raises:
        CloudResponseError: It is not an answer.
    """
    try:
        sent = _answer_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CloudResponseError(
            f"The server's answer cannot be read: {error}.", "Check its address and version."
        ) from error
    decision = Decision(
        action=sent.decision.action,
        reason=sent.reason,
        policy=sent.decision.policy,
        score=_from_json_float(sent.decision.score),
        threshold=_from_json_float(sent.decision.threshold),
        certificate_id=sent.decision.certificate_id,
    )
    return Answer(
        id=sent.id,
        output=sent.output,
        status=sent.status,
        source=sent.source,
        decision=decision,
        timings_ms=sent.timings_ms,
        model_digest=sent.model_digest,
        written=None if sent.written is msgspec.UNSET else sent.written,
    )


def encode_error(code: str, message: str, *, field: str = "", remedy: str = "") -> bytes:
    """Write an error as documented above."""
    return _encoder.encode(ErrorBody(ErrorDetail(code, message, field, remedy)))


def decode_error(body: bytes) -> ErrorDetail | None:
    """Read an error that `encode_error` wrote, or None where it is something else."""
    try:
        return _error_decoder.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def to_json_float(value: float | None) -> JsonFloat:
    """`value` as JSON can carry it: null for NaN, "inf" and "-inf" for the infinities."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _from_json_float(value: JsonFloat) -> float | None:
    return None if value is None else float(value)
