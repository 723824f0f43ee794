"""The messages of `WS /v1/stream`, as pure functions between bytes and values.

Owns their shape and does no I/O. Messages are JSON in text frames. A client sends::

    {"type": "predict", …the fields of POST /v1/predict, "traceparent"}      "traceparent" is optional
    {"type": "generate", "messages" or "prompt", …the fields of `GenerateMessage`, "traceparent"}
    {"type": "cancel", "id"}                                                  of an id not in flight does nothing
    {"type": "interrupt", "id"}                                               the same, and the text so far is told

and is told, each with the request's id::

    {"type": "token", "id", "text", "source", "logprob", "top"}
    {"type": "answer", …an answer}   {"type": "revise", …an answer}   {"type": "interrupted", "id", "text"}
    {"type": "done", "id", "pending"}   {"type": "error", "id", "error": {"code", "message", "field", "remedy"}}

Every request ends with one "done" or one "error". An error without an id belongs to a message whose id cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from edgewise.contracts import Answered, Event, Request, Revised, Source, Token
from edgewise.dialogue import MAX_TOP_LOGPROBS, Prompt, TokenChoice
from edgewise.errors import RequestError
from edgewise.wire import native
from edgewise.wire.events import encode_done
from edgewise.wire.faults import Fault
from edgewise.wire.openai import GENERATION_TASK
from edgewise.wire.parsing import checked_id, decode_json
from edgewise.wire.prompt_messages import ChatMessage, ResponseFormat, SamplingFields, ToolBody, ToolChoice


class PredictMessage(native.PredictRequest, frozen=True, kw_only=True, tag_field="type", tag="predict"):
    """A request; `traceparent` stands for the header of HTTP."""

    traceparent: str | None = None


class GenerateMessage(
    SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="generate"
):
    """A request for a text; exactly one of `messages` and `prompt` is given.

    Attributes:
        messages: A conversation, oldest message first.
        prompt: A text to continue as it is.
        model: As in `native.PredictRequest`.
        id: As in `native.PredictRequest`.
        tools: What may be called.
        tool_choice: Whether something is called, and what.
        response_format: What the answer has to be.
        begun: What the answer begins with already; it is continued.
        top_logprobs: How many of the likeliest tokens each token tells beside its own.
        budget_ms: As in `contracts.Request`: until the first token is needed.
        mode: As in `contracts.Request`.
        profile: As in `contracts.Request`.
        data_policy: As in `contracts.Request`.
        session: As in `contracts.Request`; what was computed for its earlier turns is used again.
        attributes: As in `contracts.Request`.
        traceparent: Stands for the header of HTTP.
    """

    messages: list[ChatMessage] | None = None
    prompt: str | None = None
    model: str | None = None
    id: str | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoice = None
    response_format: ResponseFormat | None = None
    begun: str | None = None
    top_logprobs: int | None = None
    budget_ms: float | None = None
    mode: str | None = None
    profile: str | None = None
    data_policy: str | None = None
    session: str | None = None
    attributes: dict[str, str] | None = None
    traceparent: str | None = None


class InterruptMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="interrupt"):
    """The end of a text that has been read far enough."""

    id: str


class CancelMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="cancel"):
    """The end of a request whose answer nobody waits for any more."""

    id: str


ClientMessage: TypeAlias = PredictMessage | GenerateMessage | CancelMessage | InterruptMessage


class _AnyMessage(msgspec.Struct, frozen=True):
    """What can be read of a message that is none of ours."""

    id: str = ""
    type: Any = None


class ErrorMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="error"):
    """What went wrong with a request, or with a message."""

    id: str = ""
    error: native.ErrorDetail


class TokenMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="token"):
    """A piece of a text; what nobody says of it is left out."""

    id: str
    text: str
    source: Source | None = None
    logprob: float | None = None
    top: tuple[TokenChoice, ...] = ()


class InterruptedMessage(msgspec.Struct, frozen=True, tag_field="type", tag="interrupted"):
    """A text ended because its reader wished so; `text` is what was told of it."""

    id: str
    text: str


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_any_decoder = msgspec.json.Decoder(_AnyMessage)
_FIELDS = {
    "predict": ("type", *PredictMessage.__struct_fields__),
    "generate": ("type", *GenerateMessage.__struct_fields__),
    "cancel": ("type", "id"),
    "interrupt": ("type", "id"),
}


def decode_message(data: bytes) -> ClientMessage:
    """Read one message of a client.

    Raises:
        RequestError: It is none; names the field.
    """
    with suppress(RequestError):
        return decode_json(data, _decoder, ())
    # Once more, and the error names the fields of the message that was meant.
    return decode_json(data, _decoder, _FIELDS.get(_type_of(data), _FIELDS["predict"]))


def _type_of(data: bytes) -> str:
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return str(_any_decoder.decode(data).type)
    return ""


def generate_request(
    sent: GenerateMessage,
    *,
    tenant: str,
    new_id: Callable[[], str],
    max_budget_ms: float,
    arrived_s: float,
) -> Request:
    """The request that a message asks for; arguments as `native.decode_request`.

    Raises:
        RequestError: A field holds what it may not; names it.
        MissingExtraError: There are schemas, and what reads them is not installed.
    """
    frame = native.PredictRequest(
        inputs="",
        id=sent.id,
        budget_ms=sent.budget_ms,
        mode=sent.mode,
        profile=sent.profile,
        data_policy=sent.data_policy,
        session=sent.session,
        attributes=sent.attributes or {},
    )
    request = native.request_of(frame, tenant=tenant, new_id=new_id, max_budget_ms=max_budget_ms, arrived_s=arrived_s)
    return msgspec.structs.replace(request, inputs=_prompt(sent), task=GENERATION_TASK, revisable=True)


def _prompt(sent: GenerateMessage) -> Prompt:
    from edgewise.wire import prompts  # most doors never hear of one

    top_logprobs = prompts.checked_number(sent.top_logprobs, "top_logprobs", 0, MAX_TOP_LOGPROBS) or 0
    if (sent.messages is None) == (sent.prompt is None):
        raise RequestError("messages", "messages: needs exactly one of messages and prompt.", "Send one of them.")
    if sent.messages is not None:
        return prompts.chat_prompt(
            sent,
            sent.messages,
            tools=sent.tools,
            tool_choice=sent.tool_choice,
            response_format=sent.response_format,
            begun=sent.begun,
            top_logprobs=top_logprobs,
        )
    if sent.tools or sent.tool_choice:
        raise RequestError("tools", "tools: a text that is continued calls none.", "Send messages, or no tools.")
    text = (sent.prompt or "") + (sent.begun or "")
    return prompts.text_prompt(sent, text, response_format=sent.response_format, top_logprobs=top_logprobs)


def id_of(data: bytes) -> str:
    """The id in a message that cannot be used, or "" where there is none that could be one."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestError):
        return checked_id(_any_decoder.decode(data).id)
    return ""


def encode_event(event: Event) -> bytes:
    """One event as a message."""
    if isinstance(event, Token):
        message = TokenMessage(id=event.id, text=event.text, source=event.source, logprob=event.logprob, top=event.top)
        return _encoder.encode(message)
    if isinstance(event, Answered):
        return _typed("answer", native.encode_answer(event.answer))
    if isinstance(event, Revised):
        return _typed("revise", native.encode_answer(event.answer))
    return _typed("done", encode_done(event))


def encode_interrupted(request_id: str, text: str) -> bytes:
    """The end of a text that was interrupted, as a message."""
    return _encoder.encode(InterruptedMessage(request_id, text))


def encode_fault(fault: Fault, request_id: str) -> bytes:
    """An error as a message."""
    detail = native.ErrorDetail(fault.code, fault.message, fault.field, fault.remedy)
    return _encoder.encode(ErrorMessage(id=request_id, error=detail))


def _typed(kind: str, body: bytes) -> bytes:
    """The body of HTTP, an object that is not empty, with its type in front."""
    return b'{"type":"%s",%s' % (kind.encode(), body[1:])
