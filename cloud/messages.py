"""What a service and its workers say to each other: messages, and their bytes.

Owns encoding only, in MessagePack with numpy arrays as raw bytes; nothing is pickled. Over a stream socket each message
is a frame: its length in four bytes, big-endian, then the message.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from edgewise import errors
from edgewise.contracts import Input, Prediction, ServiceInfo
from edgewise.errors import CheckpointError, CloudResponseError, EdgewiseError, InputError, RequestError

HEADER = struct.Struct(">I")
"""The length of the message that follows, in bytes."""

MAX_MESSAGE_BYTES = 1 << 30
"""A longer one is none of ours; the front door takes far smaller bodies."""

_ARRAY = 1
_ARRAY_KINDS = "buif"


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """What a worker loads; the first message to it.

    Attributes:
        path: Folder of a checkpoint or a bundle.
        name: Model name; None takes the folder's.
        threads: Threads that compute; None takes every core.
        engine: What computes a checkpoint: "auto", "torch" or "onnx".
        beat_s: Seconds between two signs of life.
    """

    path: str
    name: str | None = None
    threads: int | None = None
    engine: str = "auto"
    beat_s: float = 1.0


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The worker is warm and computes.

    Attributes:
        info: What it serves.
        engine: What computes it, in the words of `EngineSpec`.
    """

    info: ServiceInfo
    engine: str = "auto"


class NotLoaded(msgspec.Struct, frozen=True, tag="not_loaded"):
    """The worker cannot load its model, and ends.

    Attributes:
        kind: Name of the error's class.
        problem: What was wrong.
        remedy: What helps.
    """

    kind: str
    problem: str
    remedy: str

    def error(self) -> EdgewiseError:
        """The error that the worker had."""
        kind = getattr(errors, self.kind, None)
        # Those with arguments of their own become the base that says the same words.
        if not (isinstance(kind, type) and issubclass(kind, InputError) and kind.__init__ is EdgewiseError.__init__):
            kind = CheckpointError
        return kind(self.problem, self.remedy)


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """The worker lives."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Why an item has no prediction.

    Attributes:
        field: The field at fault, where the item itself is; empty where the engine is.
        problem: What was wrong.
        remedy: What helps.
    """

    field: str
    problem: str
    remedy: str


class Predicted(msgspec.Struct, frozen=True, tag="predicted"):
    """The prediction of an item."""

    prediction: Prediction


class Computed(msgspec.Struct, frozen=True, tag="computed"):
    """One outcome an item of a batch, in order."""

    outcomes: list[Predicted | Failed]


FromWorker: TypeAlias = Loaded | NotLoaded | Beat | Computed


def encode(message: EngineSpec | FromWorker) -> bytes:
    """Write a message other than a batch."""
    return _encoder.encode(message)


def decode_spec(data: bytes) -> EngineSpec:
    """Read what a worker shall load.

    Raises:
        ValueError: It is not that.
    """
    return _spec_decoder.decode(data)


def decode_reply(data: bytes) -> FromWorker:
    """Read what a worker says.

    Raises:
        ValueError: It is no message.
    """
    return _reply_decoder.decode(data)


def encode_batch(inputs: Sequence[Input]) -> bytes:
    """Write the items of a batch.

    Raises:
        InputError: An item cannot be written: a text that is not valid Unicode, or an array of something else than
            numbers.
    """
    try:
        return _encoder.encode(list(inputs))
    except UnicodeEncodeError as error:
        raise InputError("A text of the batch is not valid Unicode.", "Replace its lone surrogates.") from error


def decode_batch(data: bytes) -> list[Input]:
    """Read the items of a batch.

    Raises:
        ValueError: It is no batch.
    """
    items: list[Input] = _batch_decoder.decode(data)
    return items


def encode_outcomes(outcomes: Sequence[Prediction | EdgewiseError]) -> bytes:
    """Write the outcomes of a batch as a `Computed`."""
    return encode(Computed([_packed(outcome) for outcome in outcomes]))


def unpacked(computed: Computed) -> list[Prediction | EdgewiseError]:
    """The outcomes of a batch, errors as they were raised."""
    return [item.prediction if isinstance(item, Predicted) else _error(item) for item in computed.outcomes]


def _packed(outcome: Prediction | EdgewiseError) -> Predicted | Failed:
    if isinstance(outcome, Prediction):
        return Predicted(outcome)
    return Failed(getattr(outcome, "field", ""), outcome.problem, outcome.remedy)


def _error(failed: Failed) -> EdgewiseError:
    if failed.field:
        return RequestError(failed.field, failed.problem, failed.remedy)
    return CloudResponseError(failed.problem, failed.remedy)


def _array_out(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"A {type(value).__name__} has no bytes.")
    if value.dtype.kind not in _ARRAY_KINDS:
        raise InputError(f"An array of type {value.dtype} cannot be sent.", "Give whole numbers or floats.")
    return msgspec.msgpack.Ext(_ARRAY, msgspec.msgpack.encode((value.dtype.str, value.shape, value.tobytes())))


def _array_in(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise ValueError(f"Nothing is written with the code {code}.")
    dtype, shape, numbers = _array_decoder.decode(data)
    return np.ndarray(shape, np.dtype(dtype), buffer=numbers)


def _as_it_is(kind: type, value: Any) -> Any:
    """Arrays are read where they stand; their type says nothing more."""
    return value


_encoder = msgspec.msgpack.Encoder(enc_hook=_array_out)
_array_decoder = msgspec.msgpack.Decoder(tuple[str, tuple[int, ...], bytes])
_spec_decoder = msgspec.msgpack.Decoder(EngineSpec)
_batch_decoder = msgspec.msgpack.Decoder(list[Any], ext_hook=_array_in)
_reply_decoder: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(
    FromWorker, ext_hook=_array_in, dec_hook=_as_it_is
)
