"""Tensors of an infer request become items: texts, image files and pixels, whether they came as JSON or as bytes.

Owns which input tensors stand for what (documented in `edgewise.wire.oip`), and the words about those that do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import Input, ServiceInfo
from edgewise.errors import RequestError
from edgewise.wire import oip_binary
from edgewise.wire.oip_binary import Chunks, FrameError
from edgewise.wire.oip_messages import InputTensor
from edgewise.wire.parsing import decode_base64, flat_numbers, float32_of, shown

_PIXEL_TYPES = ("UINT8", "FP32")


def decode_items(inputs: Sequence[InputTensor], chunks: Chunks, info: ServiceInfo, max_items: int) -> list[Input]:
    """The items of an infer request, in order.

    Args:
        inputs: Its tensors.
        chunks: What followed its JSON.
        info: The service that will answer.
        max_items: The most items taken.

    Raises:
        RequestError: They are not what the service takes; names the field, or the tensor.
    """
    binary = [_chunk(tensor, f"inputs[{place}]", chunks) for place, tensor in enumerate(inputs)]
    if chunks.left:
        raise RequestError(
            "inputs",
            f"inputs: {chunks.left} bytes follow the last tensor{_last_name(inputs)}.",
            f"Send the JSON, then as many bytes as the tensors' {oip_binary.SIZE} announce.",
        )
    tensor, field = _only_tensor(inputs, info), "inputs[0]"
    _check_count(tensor.shape, f"{field}.shape", max_items)
    if tensor.name == "pixels":
        return list(_decode_pixels(tensor, binary[0], field))
    if binary[0] is not None:
        return _decode_elements(tensor, binary[0], field)
    texts = _decode_strings(tensor, field)
    if tensor.name == "text":
        return list(texts)
    return [decode_base64(text, f"{field}.data[{index}]") for index, text in enumerate(texts)]


def _chunk(tensor: InputTensor, field: str, chunks: Chunks) -> memoryview | None:
    size = tensor.parameters.get(oip_binary.SIZE)
    if size is None:
        return None
    if tensor.data is not None:
        raise RequestError(
            f"{field}.data", f"{field}: the tensor {shown(tensor.name)} has data in JSON and in bytes.", "Send one."
        )
    try:
        return chunks.take(size)
    except FrameError as error:
        raise _frame_error(tensor, f"{field}.parameters.{oip_binary.SIZE}", error) from error


def _frame_error(tensor: InputTensor, field: str, error: FrameError) -> RequestError:
    return RequestError(
        field,
        f"{field}: of the tensor {shown(tensor.name)}, {error}",
        "Send the JSON, its length in inference-header-content-length, then the tensors' bytes in their order.",
    )


def _last_name(inputs: Sequence[InputTensor]) -> str:
    return f" {shown(inputs[-1].name)}" if inputs else ""


def _only_tensor(inputs: Sequence[InputTensor], info: ServiceInfo) -> InputTensor:
    offered = {"text": ("text",), "image": ("image", "pixels")}[info.input]
    if len(inputs) != 1 or inputs[0].name not in offered:
        names = ", ".join(shown(tensor.name) for tensor in inputs[:8]) or "none"
        raise RequestError(
            "inputs",
            f"inputs: the tensors are {names}.",
            f"Send exactly one tensor, named {' or '.join(repr(name) for name in offered)}.",
        )
    return inputs[0]


def _check_count(shape: list[int], field: str, max_items: int) -> None:
    if not shape or min(shape) < 1:
        raise RequestError(field, f"{field}: {shown(shape)} holds no item.", "Send sizes of 1 or more, items first.")
    if shape[0] > max_items:
        raise RequestError(
            field, f"{field}: {shape[0]} items are too many.", f"Send at most {max_items} items in one request."
        )


def _check_strings(tensor: InputTensor, field: str) -> None:
    _check_datatype(tensor, field, ("BYTES",))
    if len(tensor.shape) > 2 or tensor.shape[1:] not in ([], [1]):
        raise RequestError(
            f"{field}.shape", f"{field}.shape: {shown(tensor.shape)} is not a list of items.", "Send the shape [N]."
        )


def _decode_elements(tensor: InputTensor, data: memoryview, field: str) -> list[Input]:
    _check_strings(tensor, field)
    try:
        found = oip_binary.elements(data, tensor.shape[0])
    except FrameError as error:
        raise _frame_error(tensor, field, error) from error
    if tensor.name == "text":
        return [_decode_text(element, f"{field}[{index}]") for index, element in enumerate(found)]
    for index, element in enumerate(found):
        if not element:
            raise RequestError(f"{field}[{index}]", f"{field}[{index}]: empty.", "Send the bytes of the file.")
    return [bytes(element) for element in found]


def _decode_text(element: memoryview, field: str) -> str:
    try:
        return str(element, "utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(field, f"{field}: not UTF-8 ({error.reason}).", "Encode texts as UTF-8.") from error


def _decode_strings(tensor: InputTensor, field: str) -> list[str]:
    data, shape = _json_data(tensor, field), tensor.shape
    _check_strings(tensor, field)
    nested = len(shape) == 2 and all(isinstance(row, list) and len(row) == 1 for row in data)
    flat = [row[0] for row in data] if nested else data
    if len(flat) != shape[0]:
        raise _size_error(field, shape, len(flat))
    for index, item in enumerate(flat):
        if not isinstance(item, str):
            where = f"{field}.data[{index}]"
            raise RequestError(where, f"{where}: {shown(item)} is not a string.", "Send BYTES elements as strings.")
    return flat


def _decode_pixels(tensor: InputTensor, binary: memoryview | None, field: str) -> NDArray[Any]:
    _check_datatype(tensor, field, _PIXEL_TYPES)
    if len(tensor.shape) not in (3, 4):
        raise RequestError(
            f"{field}.shape",
            f"{field}.shape: {shown(tensor.shape)} does not hold images.",
            "Send [N, height, width] or [N, height, width, channels].",
        )
    flat = _json_pixels(tensor, field) if binary is None else _binary_pixels(tensor, binary, field)
    return flat.reshape(tensor.shape)


def _binary_pixels(tensor: InputTensor, data: memoryview, field: str) -> NDArray[Any]:
    try:
        found = oip_binary.numbers(data, tensor.datatype, math.prod(tensor.shape))
    except FrameError as error:
        raise _frame_error(tensor, field, error) from error
    if tensor.datatype == "FP32" and not np.isfinite(found).all():
        raise RequestError(field, f"{field}: holds something that is not a finite FP32.", "Send finite numbers.")
    # Bytes stand wherever the JSON ended; kernels want whole words at whole addresses.
    return found if found.flags.aligned else found.copy()


def _json_pixels(tensor: InputTensor, field: str) -> NDArray[Any]:
    data, shape = _json_data(tensor, field), tensor.shape
    remedy = f"Send numbers of {tensor.datatype}, flat or nested as the shape says."
    flat, found = flat_numbers(data, f"{field}.data", max_dimensions=len(shape), remedy=remedy)
    if len(flat) != math.prod(shape) or (len(found) > 1 and found != shape):
        raise _size_error(field, shape, len(flat))
    return _narrowed(flat, tensor.datatype, f"{field}.data")


def _json_data(tensor: InputTensor, field: str) -> list[Any]:
    if tensor.data is None:
        raise RequestError(f"{field}.data", f"{field}.data: missing.", "Send the tensor's data, flat or nested.")
    return tensor.data


def _narrowed(flat: list[int | float], datatype: str, field: str) -> NDArray[Any]:
    array: NDArray[Any] | None
    if datatype == "FP32":
        array = float32_of(flat)
    else:
        whole = all(type(number) is int and 0 <= number <= 255 for number in flat)
        array = np.array(flat, np.uint8) if whole else None
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
