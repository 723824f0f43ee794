"""The server's half of the Open Inference Protocol: infer requests become requests of the flow, answers become tensors.

Owns which tensors stand for what (documented in `edgewise.wire.oip`) and does no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise import __version__
from edgewise.contracts import Answer, DataPolicy, Input, Mode, Request, ServiceInfo, Status
from edgewise.errors import RequestError
from edgewise.wire.oip_messages import (
    InferBody,
    InferReply,
    InputTensor,
    ModelMetadata,
    OutputTensor,
    Parameter,
    RequestedOutput,
    TensorMetadata,
)
from edgewise.wire.parsing import (
    DEFAULT_MAX_BUDGET_MS,
    checked_budget,
    checked_choice,
    checked_id,
    checked_text,
    decode_base64,
    decode_json,
    flat_numbers,
    float32_of,
    shown,
)

DEFAULT_MAX_ITEMS = 64

_EMBEDDING_TASK = "feature-extraction"
_PIXEL_TYPES = ("UINT8", "FP32")
_REQUEST_FIELDS = ("id", "parameters", "inputs", "outputs")

_encoder = msgspec.json.Encoder()
_request_decoder = msgspec.json.Decoder(InferBody)


class InferCall(msgspec.Struct, frozen=True):
    """One decoded infer request.

    Attributes:
        id: The client's id, or a new one; the response carries it.
        requests: One request an item, in order.
        outputs: Names of the outputs to send, in order.
    """

    id: str
    requests: tuple[Request, ...]
    outputs: tuple[str, ...]


def decode_infer_request(
    body: bytes,
    info: ServiceInfo,
    *,
    tenant: str,
    new_id: Callable[[], str],
    max_items: int = DEFAULT_MAX_ITEMS,
    max_budget_ms: float = DEFAULT_MAX_BUDGET_MS,
) -> InferCall:
    """Read an infer request as N requests of the flow.

    Args:
        body: What the client sent.
        info: The service that will answer; says which inputs and outputs exist.
        tenant: Whose it is.
        new_id: Makes an id where the client gave none.
        max_items: The largest N taken.
        max_budget_ms: The largest budget taken, in milliseconds.

    Raises:
        RequestError: It is not an infer request for this service; names the field.
    """
    sent = decode_json(body, _request_decoder, _REQUEST_FIELDS)
    items = _decode_items(sent.inputs, info, max_items)
    call_id = checked_id(sent.id) if sent.id else new_id()
    options = _decode_options(sent.parameters, max_budget_ms)
    requests = tuple(
        Request(id=item_id, inputs=item, tenant=tenant, **options)
        for item_id, item in zip(item_ids(call_id, len(items)), items, strict=True)
    )
    return InferCall(call_id, requests, _checked_outputs(sent.outputs, info))


def item_ids(call_id: str, count: int) -> list[str]:
    """The request ids of the items of one infer request."""
    return [call_id] if count == 1 else [f"{call_id}-{index}" for index in range(count)]


def _decode_options(parameters: Mapping[str, Any], max_budget_ms: float) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parameters.items():
        field = f"parameters.{name}"
        if value is None:
            continue
        if name == "budget_ms":
            options[name] = checked_budget(_checked_number(value, field), field, max_budget_ms)
        elif name == "mode":
            options[name] = checked_choice(value, Mode, field)
        elif name == "data_policy":
            options[name] = checked_choice(value, DataPolicy, field)
        elif name == "profile":
            options[name] = checked_text(value, field)
        elif name == "session":
            options[name] = checked_id(checked_text(value, field), field)
    return options


def _checked_number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(field, f"{field}: {shown(value)} is not a number.", "Send a number of milliseconds.")
    try:
        return float(value)
    except OverflowError:  # a whole number beyond any float; out of range like any other too large
        return math.inf


def _checked_outputs(requested: Sequence[RequestedOutput], info: ServiceInfo) -> tuple[str, ...]:
    offered = tuple(tensor.name for tensor in _output_metadata(info))
    for index, output in enumerate(requested):
        if output.name not in offered:
            field = f"outputs[{index}].name"
            raise RequestError(
                field, f"{field}: {shown(output.name)} is not an output.", f"Choose from: {', '.join(offered)}."
            )
    return tuple(dict.fromkeys(output.name for output in requested)) or offered


def _decode_items(inputs: Sequence[InputTensor], info: ServiceInfo, max_items: int) -> list[Input]:
    offered = {"text": ("text",), "image": ("image", "pixels")}[info.input]
    if len(inputs) != 1 or inputs[0].name not in offered:
        names = ", ".join(shown(tensor.name) for tensor in inputs) or "none"
        raise RequestError(
            "inputs",
            f"inputs: the tensors are {names}.",
            f"Send exactly one tensor, named {' or '.join(repr(name) for name in offered)}.",
        )
    tensor, field = inputs[0], "inputs[0]"
    if "binary_data_size" in tensor.parameters:
        raise RequestError(
            f"{field}.parameters.binary_data_size",
            f"{field}: binary tensor data is not spoken here.",
            "Send the data as JSON (tritonclient: set_data_from_numpy(…, binary_data=False)).",
        )
    data = tensor.data
    if data is None:
        raise RequestError(f"{field}.data", f"{field}.data: missing.", "Send the tensor's data, flat or nested.")
    _check_count(tensor.shape, f"{field}.shape", max_items)
    if tensor.name == "pixels":
        return list(_decode_pixels(tensor, data, field))
    texts = _decode_strings(tensor, data, field)
    if tensor.name == "text":
        return list(texts)
    return [decode_base64(text, f"{field}.data[{index}]") for index, text in enumerate(texts)]


def _check_count(shape: list[int], field: str, max_items: int) -> None:
    if not shape or min(shape) < 1:
        raise RequestError(field, f"{field}: {shown(shape)} holds no item.", "Send sizes of 1 or more, items first.")
    if shape[0] > max_items:
        raise RequestError(
            field, f"{field}: {shape[0]} items are too many.", f"Send at most {max_items} items in one request."
        )


def _decode_strings(tensor: InputTensor, data: list[Any], field: str) -> list[str]:
    _check_datatype(tensor, field, ("BYTES",))
    shape = tensor.shape
    if len(shape) > 2 or shape[1:] not in ([], [1]):
        raise RequestError(
            f"{field}.shape", f"{field}.shape: {shown(shape)} is not a list of items.", "Send the shape [N]."
        )
    nested = len(shape) == 2 and all(isinstance(row, list) and len(row) == 1 for row in data)
    flat = [row[0] for row in data] if nested else data
    if len(flat) != shape[0]:
        raise _size_error(field, shape, len(flat))
    for index, item in enumerate(flat):
        if not isinstance(item, str):
            where = f"{field}.data[{index}]"
            raise RequestError(where, f"{where}: {shown(item)} is not a string.", "Send BYTES elements as strings.")
    return flat


def _decode_pixels(tensor: InputTensor, data: list[Any], field: str) -> NDArray[Any]:
    _check_datatype(tensor, field, _PIXEL_TYPES)
    shape = tensor.shape
    if len(shape) not in (3, 4):
        raise RequestError(
            f"{field}.shape",
            f"{field}.shape: {shown(shape)} does not hold images.",
            "Send [N, height, width] or [N, height, width, channels].",
        )
    remedy = f"Send numbers of {tensor.datatype}, flat or nested as the shape says."
    numbers, found = flat_numbers(data, f"{field}.data", max_dimensions=len(shape), remedy=remedy)
    if len(numbers) != math.prod(shape) or (len(found) > 1 and found != shape):
        raise _size_error(field, shape, len(numbers))
    return _narrowed(numbers, tensor.datatype, f"{field}.data").reshape(shape)


def _narrowed(numbers: list[int | float], datatype: str, field: str) -> NDArray[Any]:
    array: NDArray[Any] | None
    if datatype == "FP32":
        array = float32_of(numbers)
    else:
        whole = all(type(number) is int and 0 <= number <= 255 for number in numbers)
        array = np.array(numbers, np.uint8) if whole else None
    if array is None:
        raise RequestError(
            field, f"{field}: holds something that is not {datatype}.", "Send numbers within the range of the datatype."
        )
    return array


def _check_datatype(tensor: InputTensor, field: str, allowed: tuple[str, ...]) -> None:
    if tensor.datatype not in allowed:
        raise RequestError(
            f"{field}.datatype",
            f"{field}.datatype: {shown(tensor.datatype)} does not fit the tensor {tensor.name!r}.",
            f"Send {' or '.join(allowed)}.",
        )


def _size_error(field: str, shape: list[int], count: int) -> RequestError:
    return RequestError(
        f"{field}.data",
        f"{field}.data: {count} elements do not fill the shape {shown(shape)}.",
        "Send as many elements as the shape says, flat or nested.",
    )


def encode_infer_response(info: ServiceInfo, call: InferCall, answers: Sequence[Answer]) -> bytes:
    """Write the answers to the items of `call`, in its order."""
    columns = _columns(answers)
    reply = InferReply(
        model_name=info.name,
        model_version=info.version,
        id=call.id,
        parameters=_facts(answers),
        outputs=[columns[name] for name in call.outputs],
    )
    return _encoder.encode(reply)


def _columns(answers: Sequence[Answer]) -> dict[str, OutputTensor]:
    count = len(answers)
    vectors = [answer.output for answer in answers if not isinstance(answer.output, str)]
    tensors = [
        OutputTensor("status", "BYTES", [count], [answer.status.value for answer in answers]),
        OutputTensor("source", "BYTES", [count], [answer.source.value for answer in answers]),
        OutputTensor("reason", "BYTES", [count], [answer.decision.reason.value for answer in answers]),
        OutputTensor("score", "FP64", [count], [_finite(answer.decision.score) for answer in answers]),
    ]
    if vectors:
        flat = [number for vector in vectors for number in vector]
        tensors.append(OutputTensor("embedding", "FP32", [count, len(vectors[0])], flat))
    else:
        tensors.append(OutputTensor("label", "BYTES", [count], [answer.output for answer in answers]))
    return {tensor.name: tensor for tensor in tensors}


def _facts(answers: Sequence[Answer]) -> dict[str, Parameter]:
    facts: dict[str, Parameter] = {
        "provisional": sum(answer.status is Status.PROVISIONAL for answer in answers),
        "total_ms": max(answer.timings_ms["total"] for answer in answers),
    }
    shared: dict[str, set[str | None]] = {
        "model_digest": {answer.model_digest for answer in answers},
        "policy": {answer.decision.policy for answer in answers},
        "certificate_id": {answer.decision.certificate_id for answer in answers},
    }
    facts.update({name: values.pop() for name, values in shared.items() if len(values) == 1 and None not in values})
    return facts


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def encode_error(message: str) -> bytes:
    """Write an error in the protocol's shape, `{"error": message}`."""
    return _encoder.encode({"error": message})


def encode_server_metadata() -> bytes:
    """Write the body of `GET /v2`."""
    return _encoder.encode({"name": "edgewise", "version": __version__, "extensions": []})


def encode_model_metadata(info: ServiceInfo) -> bytes:
    """Write the body of `GET /v2/models/{name}`; `parameters` carry the task, the labels and the role."""
    metadata = ModelMetadata(
        name=info.name,
        versions=[info.version],
        platform="edgewise",
        inputs=_input_metadata(info),
        outputs=_output_metadata(info),
        parameters={"task": info.task, "labels": list(info.labels), "role": info.role},
    )
    return _encoder.encode(metadata)


def _input_metadata(info: ServiceInfo) -> list[TensorMetadata]:
    if info.input == "text":
        return [TensorMetadata("text", "BYTES", [-1])]
    return [TensorMetadata("image", "BYTES", [-1]), TensorMetadata("pixels", "UINT8", [-1, -1, -1, -1])]


def _output_metadata(info: ServiceInfo) -> list[TensorMetadata]:
    first = (
        TensorMetadata("embedding", "FP32", [-1, -1])
        if info.task == _EMBEDDING_TASK
        else TensorMetadata("label", "BYTES", [-1])
    )
    words = [TensorMetadata(name, "BYTES", [-1]) for name in ("status", "source", "reason")]
    return [first, *words, TensorMetadata("score", "FP64", [-1])]
