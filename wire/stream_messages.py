"""The messages of `WS /v1/stream`, as pure functions between bytes and values.

Owns their shape and does no I/O. Messages are JSON in text frames. A client sends::

    {"type": "predict", …the fields of POST /v1/predict, "traceparent"}      "traceparent" is optional
    {"type": "cancel", "id"}                                                  of an id not in flight does nothing

and is told, each with the request's id::

    {"type": "answer", …an answer}   {"type": "revise", …an answer}
    {"type": "done", "id", "pending"}   {"type": "error", "id", "error": {"code", "message", "field", "remedy"}}

Every request ends with one "done" or one "error". An error without an id belongs to a message whose id cannot be read.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypeAlias

import msgspec

from edgewise.contracts import Answered, Done, Event, Revised
from edgewise.errors import RequestError
from edgewise.wire import native
from edgewise.wire.events import encode_done
from edgewise.wire.faults import Fault
from edgewise.wire.parsing import checked_id, decode_json


class PredictMessage(native.PredictRequest, frozen=True, kw_only=True, tag_field="type", tag="predict"):
    """A request; `traceparent` stands for the header of HTTP."""

    traceparent: str | None = None


class CancelMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="cancel"):
    """The end of a request whose answer nobody waits for any more."""

    id: str


ClientMessage: TypeAlias = PredictMessage | CancelMessage


class _AnyMessage(msgspec.Struct, frozen=True):
    """What can be read of a message that is none of ours."""

    id: str = ""


class ErrorMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="error"):
    """What went wrong with a request, or with a message."""

    id: str = ""
    error: native.ErrorDetail


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_any_decoder = msgspec.json.Decoder(_AnyMessage)
_FIELDS = ("type", *PredictMessage.__struct_fields__)


def decode_message(data: bytes) -> ClientMessage:
    """Read one message of a client.

    Raises:
        RequestError: It is none; names the field.
    """
    return decode_json(data, _decoder, _FIELDS)


def id_of(data: bytes) -> str:
    """The id in a message that cannot be used, or "" where there is none that could be one."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestError):
        return checked_id(_any_decoder.decode(data).id)
    return ""


def encode_event(event: Event) -> bytes:
    """One event as a message; empty for pieces of text, which no model here sends yet."""
    if isinstance(event, Answered):
        return _typed("answer", native.encode_answer(event.answer))
    if isinstance(event, Revised):
        return _typed("revise", native.encode_answer(event.answer))
    return _typed("done", encode_done(event)) if isinstance(event, Done) else b""


def encode_fault(fault: Fault, request_id: str) -> bytes:
    """An error as a message."""
    detail = native.ErrorDetail(fault.code, fault.message, fault.field, fault.remedy)
    return _encoder.encode(ErrorMessage(id=request_id, error=detail))


def _typed(kind: str, body: bytes) -> bytes:
    """The body of HTTP, an object that is not empty, with its type in front."""
    return b'{"type":"%s",%s' % (kind.encode(), body[1:])
