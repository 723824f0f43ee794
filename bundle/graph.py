"""Finds the external-data locations of an ONNX graph without the onnx package, which a device does not have.

A graph comes from whoever made the bundle, and each of its tensors may name a file to read. This scan sees every such
name before the runtime does, so that a bundle is refused whose graph points anywhere but at its own weight blobs. It
reads only what it needs of the protobuf encoding (https://protobuf.dev/programming-guides/encoding/) and validates
nothing else of the model: the runtime does that.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64

# Which fields of which message lead to tensors (onnx.proto): message -> field number -> message.
_PATHS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}


def external_locations(model: bytes) -> frozenset[str]:
    """Every file name that a tensor anywhere in an ONNX model refers to.

    Args:
        model: A serialised ModelProto.

    Raises:
        ValueError: The bytes are not a protobuf message, or nest too deeply.
    """
    return frozenset(_locations(memoryview(model), "Model", 0))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"its messages nest deeper than {_MAX_DEPTH}")
    children = _PATHS[kind]
    for field, value in _fields(message):
        child = children.get(field)
        if child is None:
            continue
        if child == "Entry":
            yield from _location(value)
        else:
            yield from _locations(value, child, depth + 1)


def _location(entry: memoryview) -> Iterator[str]:
    """The value of a key-value pair, if its key is "location".

    A repeated field counts every time, which is stricter than protobuf, where the last one wins. Without a value it is
    the empty name.
    """
    pairs = list(_fields(entry))
    if any(field == 1 and bytes(value) == b"location" for field, value in pairs):
        values = [str(value, "utf-8", "replace") for field, value in pairs if field == 2]
        yield from values or [""]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message; the others are skipped."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        wire = tag & 7
        if tag >> 32:  # C++ protobuf cuts a tag to 32 bits, and would see another field than this scan
            raise ValueError("a field number is out of range")
        if wire == _BYTES:
            size, at = _varint(message, at)
            if size > end - at:
                raise ValueError("a field is longer than its message")
            yield tag >> 3, message[at : at + size]
            at += size
        elif wire == _VARINT:
            _, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} does not occur in ONNX")
    if at != end:
        raise ValueError("it ends in the middle of a field")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("it ends in the middle of a number")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
