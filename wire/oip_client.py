"""The client's half of the Open Inference Protocol: requests become infer requests, responses are read with suspicion.

Does no I/O. What a server sends amiss is a `CloudResponseError`, never a wrong answer.
"""

from __future__ import annotations

import base64
import math
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import DataPolicy, Input, Mode, Request
from edgewise.dialogue import Prompt
from edgewise.errors import CloudResponseError, InputError
from edgewise.wire import oip_binary
from edgewise.wire.oip_binary import Chunks, Framed, FrameError
from edgewise.wire.oip_messages import InferBody, InferReply, InputTensor, ModelMetadata, OutputTensor
from edgewise.wire.parsing import shown

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_reply_decoder = msgspec.json.Decoder(InferReply)
_metadata_decoder = msgspec.json.Decoder(ModelMetadata)
_error_decoder = msgspec.json.Decoder(dict[str, Any])


def encode_infer_request(
    request: Request, *, budget_ms: float | None, patience_ms: float | None = None, mode: Mode | None = None
) -> bytes:
    """Write one request as an infer request of one item, in JSON.

    The request's own mode and profile govern the service that received it and are not passed on to the next one.

    Args:
        request: The request.
        budget_ms: What is left of its budget, in milliseconds; None sets no limit.
        patience_ms: For how long an answer is of use, in milliseconds; None: no longer than the budget.
        mode: The mode to ask of the server; None leaves it to the server.

    Raises:
        InputError: The item is an array that is not an image's pixels.
    """
    tensor = _encode_item(request.inputs)
    parameters = _parameters(request, budget_ms, patience_ms, mode)
    return _encoder.encode(InferBody(id=request.id, parameters=parameters, inputs=[tensor]))


def encode_binary_infer_request(
    request: Request, *, budget_ms: float | None, patience_ms: float | None = None, mode: Mode | None = None
) -> Framed:
    """Write one request with its item as bytes behind the JSON, and ask for the outputs as bytes too.

    For servers whose metadata lists the extension "binary_tensor_data". The length of the JSON travels as
    `Inference-Header-Content-Length`, the content type is "application/octet-stream". Arguments and errors as
    `encode_infer_request`.
    """
    tensor, chunk = _pack_item(request.inputs)
    tensor = msgspec.structs.replace(tensor, parameters={oip_binary.SIZE: len(chunk)})
    parameters = {**_parameters(request, budget_ms, patience_ms, mode), "binary_data_output": True}
    text = _encoder.encode(InferBody(id=request.id, parameters=parameters, inputs=[tensor]))
    return Framed(text + chunk, len(text))


def _parameters(
    request: Request, budget_ms: float | None, patience_ms: float | None, mode: Mode | None
) -> dict[str, Any]:
    options = {
        "budget_ms": budget_ms,
        "patience_ms": patience_ms,
        "mode": mode,
        "session": request.session,
        "data_policy": None if request.data_policy is DataPolicy.ANY else request.data_policy,
        "attributes": _encoder.encode(dict(request.attributes)).decode() if request.attributes else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _encode_item(item: Input) -> InputTensor:
    if isinstance(item, str):
        return InputTensor("text", [1], "BYTES", [item])
    if isinstance(item, bytes):
        return InputTensor("image", [1], "BYTES", [base64.b64encode(item).decode("ascii")])
    pixels, datatype = _pixels(item)
    return InputTensor("pixels", [1, *pixels.shape], datatype, pixels.ravel().tolist())


def _pack_item(item: Input) -> tuple[InputTensor, bytes]:
    if isinstance(item, str):
        return InputTensor("text", [1], "BYTES"), oip_binary.joined([item.encode()])
    if isinstance(item, bytes):
        return InputTensor("image", [1], "BYTES"), oip_binary.joined([item])
    pixels, datatype = _pixels(item)
    return InputTensor("pixels", [1, *pixels.shape], datatype), oip_binary.packed(pixels, datatype)


def _pixels(item: NDArray[Any] | Prompt) -> tuple[NDArray[Any], str]:
    if isinstance(item, Prompt):
        raise InputError("A prompt cannot be sent over this protocol.", "Choose a backend that speaks OpenAI's.")
    if item.dtype == np.uint8:
        return item, "UINT8"
    if item.dtype.kind == "f" and np.isfinite(item).all():
        return item.astype(np.float32, copy=False), "FP32"
    raise InputError(f"Pixels of type {item.dtype} cannot be sent.", "Give uint8, or finite floats.")


def decode_infer_response(body: bytes, json_bytes: int | None = None) -> InferReply:
    """Read a server's infer response; data comes out flat.

    Args:
        body: What the server sent.
        json_bytes: Its `Inference-Header-Content-Length`; None where it sent none, and all of the body is JSON.

    Raises:
        CloudResponseError: It is not an infer response, or a tensor's data does not fill its shape.
    """
    try:
        text, chunks = oip_binary.split(body, json_bytes)
    except FrameError as error:
        raise CloudResponseError(f"The server's answer is cut: {error}") from error
    reply = _decode_reply(text, _reply_decoder, "infer response")
    outputs = [_whole(tensor, chunks) for tensor in reply.outputs]
    if chunks.left:
        raise CloudResponseError(f"{chunks.left} bytes follow the last tensor of the server's answer.")
    return msgspec.structs.replace(reply, outputs=outputs)


def _whole(tensor: OutputTensor, chunks: Chunks) -> OutputTensor:
    """The tensor with its data, flat, from wherever the server put them."""
    count = math.prod(tensor.shape)
    is_binary = oip_binary.SIZE in tensor.parameters
    flat = _unpacked(tensor, chunks, count) if is_binary else _flattened(tensor.data)
    if len(flat) != count:
        raise CloudResponseError(
            f"The server's output '{tensor.name}' has {len(flat)} elements for the shape {shown(tensor.shape)}."
        )
    return msgspec.structs.replace(tensor, data=flat)


def _unpacked(tensor: OutputTensor, chunks: Chunks, count: int) -> list[Any]:
    try:
        chunk = chunks.take(tensor.parameters[oip_binary.SIZE])
        if tensor.datatype != "BYTES":
            flat: list[Any] = oip_binary.numbers(chunk, tensor.datatype, count).tolist()
            return flat
        return [str(element, "utf-8") for element in oip_binary.elements(chunk, count)]
    except (FrameError, UnicodeDecodeError) as error:
        raise CloudResponseError(f"The server's output {shown(tensor.name)} cannot be read: {error}") from error


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


def _decode_reply(body: bytes | memoryview, decoder: msgspec.json.Decoder[T], what: str) -> T:
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
