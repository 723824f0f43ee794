"""Tensors as bytes beside the JSON: the binary tensor data extension of the Open Inference Protocol, both directions.

Owns the frame (a header, `Inference-Header-Content-Length`, says where the JSON ends; the tensors follow it in their
order, without gaps) and the layout of a tensor: numbers little-endian and row-major; BYTES elements each behind its
length in four bytes. Reading copies nothing. Knows neither requests nor responses. Specification: Triton's
`extension_binary_data.md`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

EXTENSION = "binary_tensor_data"
HEADER = b"inference-header-content-length"
CONTENT_TYPE = b"application/octet-stream"
SIZE = "binary_data_size"
"""Parameter of a tensor: its number of bytes."""

_LENGTH_BYTES = 4
_DTYPES = {
    "BOOL": "?",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
}


class Framed(NamedTuple):
    """A body that may hold tensors as bytes.

    Attributes:
        body: JSON, then the tensors.
        json_bytes: Length of the JSON, for `Inference-Header-Content-Length`; None where there is nothing but JSON,
            and the header is left out.
    """

    body: bytes
    json_bytes: int | None = None


class FrameError(ValueError):
    """Bytes that are no tensor, or not the one announced; the message is a sentence about that tensor."""


class Chunks:
    """The tensors behind the JSON, taken one after the other.

    Args:
        data: What follows the JSON.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._place = 0

    def take(self, size: object) -> memoryview:
        """The next `size` bytes.

        Raises:
            FrameError: That is no size, or there are fewer bytes left.
        """
        if type(size) is not int or size < 0:
            raise FrameError(f"{SIZE} is not a number of bytes.")
        left = len(self._data) - self._place
        if size > left:
            raise FrameError(f"{size} bytes are announced, and {left} are left in the body.")
        self._place += size
        return self._data[self._place - size : self._place]

    @property
    def left(self) -> int:
        """Bytes that nobody has taken."""
        return len(self._data) - self._place


def split(body: bytes, json_bytes: int | None) -> tuple[memoryview, Chunks]:
    """The JSON of a body, and the tensors behind it.

    Raises:
        FrameError: The JSON would be longer than the body.
    """
    view = memoryview(body)
    end = len(body) if json_bytes is None else json_bytes
    if not 0 <= end <= len(body):
        raise FrameError(f"The JSON would have {end} bytes, and the body has {len(body)}.")
    return view[:end], Chunks(view[end:])


def elements(data: memoryview, count: int) -> list[memoryview]:
    """The elements of a BYTES tensor.

    Raises:
        FrameError: They are not exactly `count`.
    """
    found: list[memoryview] = []
    place = 0
    while place < len(data):
        start = place + _LENGTH_BYTES
        if len(found) == count:
            raise FrameError(f"{len(data) - place} bytes follow its {count} elements.")
        if start > len(data):
            raise FrameError(f"element {len(found)} ends within its length.")
        place = start + int.from_bytes(data[start - _LENGTH_BYTES : start], "little")
        if place > len(data):
            raise FrameError(f"element {len(found)} has {place - start} bytes, and {len(data) - start} are left.")
        found.append(data[start:place])
    if len(found) != count:
        raise FrameError(f"{len(found)} elements do not fill its shape of {count}.")
    return found


def joined(items: Iterable[bytes]) -> bytes:
    """The elements of a BYTES tensor as its bytes."""
    return b"".join(part for item in items for part in (len(item).to_bytes(_LENGTH_BYTES, "little"), item))


def numbers(data: memoryview, datatype: str, count: int) -> NDArray[Any]:
    """The numbers of a tensor, shape (count,), as a view of `data` that cannot be written to.

    Raises:
        FrameError: The datatype has no numbers, or there are not exactly `count`.
    """
    dtype = _DTYPES.get(datatype)
    if dtype is None:
        raise FrameError(f"its datatype {datatype!r:.40} is not known.")
    if len(data) != count * np.dtype(dtype).itemsize:  # not told: a shape can take more bytes than Python writes out
        raise FrameError(f"{len(data)} bytes do not fill its shape in {datatype}.")
    return np.frombuffer(data, dtype)


def packed(array: NDArray[Any], datatype: str) -> bytes:
    """An array as the bytes of a tensor of that datatype, row-major."""
    return np.ascontiguousarray(array, _DTYPES[datatype]).tobytes()
