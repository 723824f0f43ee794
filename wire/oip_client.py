"""The client's half of the Open Inference Protocol: requests become infer requests, responses are read with suspicion.

Does no I/O. What a server sends amiss is a `CloudResponseError`, never a wrong answer.
"""

from __future__ import annotations

import base64
import math
from typing import Any, TypeVar

import msgspec
import numpy as np

from edgewise.contracts import DataPolicy, Input, Mode, Request
from edgewise.errors import CloudResponseError, InputError
from edgewise.wire.oip_messages import InferBody, InferReply, InputTensor, ModelMetadata
from edgewise.wire.parsing import shown

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_reply_decoder = msgspec.json.Decoder(InferReply)
_metadata_decoder = msgspec.json.Decoder(ModelMetadata)
_error_decoder = msgspec.json.Decoder(dict[str, Any])


def encode_infer_request(request: Request, *, budget_ms: float | None, mode: Mode | None = None) -> bytes:
    """Write one request as an infer request of one item.

    The request's own mode and profile govern the service that received it and are not passed on to the next one.

    Args:
        request: The request.
        budget_ms: What is left of its budget, in milliseconds; None sets no limit.
        mode: The mode to ask of the server; None leaves it to the server.

    Raises:
        InputError: The item is an array that is not an image's pixels.
    """
    options = {
        "budget_ms": budget_ms,
        "mode": mode,
        "session": request.session,
        "data_policy": None if request.data_policy is DataPolicy.ANY else request.data_policy,
    }
    parameters = {name: value for name, value in options.items() if value is not None}
    return _encoder.encode(InferBody(id=request.id, parameters=parameters, inputs=[_encode_item(request.inputs)]))


def _encode_item(item: Input) -> InputTensor:
    if isinstance(item, str):
        return InputTensor("text", [1], "BYTES", [item])
    if isinstance(item, bytes):
        return InputTensor("image", [1], "BYTES", [base64.b64encode(item).decode("ascii")])
    if item.dtype == np.uint8:
        return InputTensor("pixels", [1, *item.shape], "UINT8", item.ravel().tolist())
    if item.dtype.kind == "f" and np.isfinite(item).all():
        return InputTensor("pixels", [1, *item.shape], "FP32", item.astype(np.float32).ravel().tolist())
    raise InputError(f"Pixels of type {item.dtype} cannot be sent.", "Give uint8, or finite floats.")


def decode_infer_response(body: bytes) -> InferReply:
    """Read a server's infer response; data comes out flat.

    Raises:
        CloudResponseError: It is not an infer response, or a tensor's data does not fill its shape.
    """
    reply = _decode_reply(body, _reply_decoder, "infer response")
    outputs = []
    for tensor in reply.outputs:
        flat = _flattened(tensor.data)
        if len(flat) != math.prod(tensor.shape):
            raise CloudResponseError(
                f"The server's output '{tensor.name}' has {len(flat)} elements for the shape {shown(tensor.shape)}."
            )
        outputs.append(msgspec.structs.replace(tensor, data=flat))
    return msgspec.structs.replace(reply, outputs=outputs)


def decode_model_metadata(body: bytes) -> ModelMetadata:
    """Read a server's model metadata.

    Raises:
        CloudResponseError: It is not model metadata.
    """
    return _decode_reply(body, _metadata_decoder, "model metadata")


def decode_error(body: bytes) -> str | None:
    """The message of an error response, or None where the body is something else."""
    try:
        message = _error_decoder.decode(body).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return message if isinstance(message, str) else None


def _decode_reply(body: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CloudResponseError(
            f"The server sent no {what}: {error}.", "Check that the address speaks the Open Inference Protocol v2."
        ) from error


def _flattened(data: list[Any]) -> list[Any]:
    while data and all(isinstance(item, list) for item in data):
        data = [element for row in data for element in row]
    return data
