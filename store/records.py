"""Requests and answers as bytes on disk, in MessagePack.

Owns the stored shape: the kind of an input is written out, nothing is pickled, and fields may only be added with a
default, so that an older file stays readable.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import msgspec
import numpy as np

from edgewise.contracts import Answer, DataPolicy, Input, Mode, Request
from edgewise.dialogue import Prompt
from edgewise.errors import InputError, StoreError

T = TypeVar("T")

_ARRAY_KINDS = "buif"
"""numpy's kinds of booleans, whole numbers and floats; nothing else is an image's pixels."""


class TextItem(msgspec.Struct, frozen=True, tag="text"):
    """A text."""

    text: str


class FileItem(msgspec.Struct, frozen=True, tag="file"):
    """An encoded image file."""

    data: bytes


class ArrayItem(msgspec.Struct, frozen=True, tag="array"):
    """Raw pixels in C order.

    Attributes:
        dtype: numpy's type string with byte order, for instance "|u1" or "<f4".
        shape: Its shape.
        data: Its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class PromptItem(msgspec.Struct, frozen=True, tag="prompt"):
    """What a language model is asked."""

    prompt: Prompt


StoredItem: TypeAlias = TextItem | FileItem | ArrayItem | PromptItem


class StoredRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it stands on disk."""

    id: str
    item: StoredItem
    tenant: str
    task: str
    budget_ms: float | None
    mode: Mode | None
    profile: str | None
    data_policy: DataPolicy
    session: str | None
    attributes: dict[str, str]


_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(StoredRequest)
_answer_decoder = msgspec.msgpack.Decoder(Answer)


def encode_request(request: Request) -> bytes:
    """Write a request.

    Raises:
        InputError: Its item cannot be kept.
    """
    stored = StoredRequest(
        id=request.id,
        item=_encode_item(request.inputs),
        tenant=request.tenant,
        task=request.task,
        budget_ms=request.budget_ms,
        mode=request.mode,
        profile=request.profile,
        data_policy=request.data_policy,
        session=request.session,
        attributes=dict(request.attributes),
    )
    try:
        return _encoder.encode(stored)
    except UnicodeEncodeError as error:
        raise InputError("A text of the request is not valid Unicode.", "Replace its lone surrogates.") from error


def _encode_item(item: Input) -> StoredItem:
    if isinstance(item, str):
        return TextItem(item)
    if isinstance(item, bytes):
        return FileItem(item)
    if isinstance(item, Prompt):
        return PromptItem(item)
    if item.dtype.kind not in _ARRAY_KINDS:
        raise InputError(f"An array of type {item.dtype} cannot be kept.", "Give whole numbers or floats.")
    return ArrayItem(item.dtype.str, item.shape, item.tobytes())


def decode_request(data: bytes) -> Request:
    """Read a request.

    Raises:
        StoreError: The bytes are not a stored request.
    """
    stored = _decode(_request_decoder, data, "request")
    return Request(
        id=stored.id,
        inputs=_decode_item(stored.item),
        tenant=stored.tenant,
        task=stored.task,
        budget_ms=stored.budget_ms,
        mode=stored.mode,
        profile=stored.profile,
        data_policy=stored.data_policy,
        session=stored.session,
        attributes=stored.attributes,
    )


def _decode_item(item: StoredItem) -> Input:
    if isinstance(item, TextItem):
        return item.text
    if isinstance(item, FileItem):
        return item.data
    if isinstance(item, PromptItem):
        return item.prompt
    try:
        return np.ndarray(item.shape, np.dtype(item.dtype), buffer=item.data)
    except (TypeError, ValueError) as error:
        raise StoreError(f"A stored array cannot be read: {error}.", "Restore the store from a backup.") from error


def encode_answer(answer: Answer) -> bytes:
    """Write an answer."""
    return _encoder.encode(answer)


def decode_answer(data: bytes) -> Answer:
    """Read an answer.

    Raises:
        StoreError: The bytes are not a stored answer.
    """
    return _decode(_answer_decoder, data, "answer")


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes, what: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"A stored {what} cannot be read: {error}.", "Restore the store from a backup.") from error
