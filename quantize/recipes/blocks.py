"""Weights in blocks that share a scale, as MatMulNBits and GatherBlockQuantized store them.

Owns the layout and the nodes. How the codes are found is a method's own: round to nearest, `gptq.py`, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.quantize import graph
from edgewise.quantize.surgery import copy_of, import_domain, keep_weights, reads

CONTRIB = "com.microsoft"
"""The domain of both operators."""

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Blocks:
    """A matrix of shape (rows, width), quantized along its rows; the value is (code - zero) times scale.

    Attributes:
        codes: Shape (rows, blocks, block size), padded at the end of each row.
        scales: Shape (rows, blocks).
        zeros: Shape (rows, blocks): codes, or float32; None where all are half of the range (symmetric).
    """

    codes: Codes
    scales: Floats
    zeros: Codes | Floats | None


Method = Callable[[str, Floats], Blocks]
"""A weight's name and the weight, one output a row, shape (outputs, inputs), to its blocks."""


def split(weight: Floats, block_size: int) -> Floats:
    """A matrix of shape (rows, width) as (rows, blocks, block size); the last block is filled with zeros."""
    rows, width = weight.shape
    blocks = -(-width // block_size)
    padded = np.zeros((rows, blocks * block_size), np.float32)
    padded[:, :width] = weight
    return padded.reshape(rows, blocks, block_size)


def grid(values: Floats, bits: int, *, symmetric: bool) -> tuple[Floats, Codes]:
    """Scale and zero of each block by its smallest and largest value, zero always among the codes.

    Args:
        values: Shape (…, block size).
        bits: 4 or 8.
        symmetric: Whether zero is the middle code.

    Returns:
        Scales and zeros, both of shape (…).
    """
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    low, high = np.minimum(values.min(axis=-1), 0), np.maximum(values.max(axis=-1), 0)
    scales = np.maximum(-low / middle, high / (middle - 1)) if symmetric else (high - low) / top
    scales = np.where(scales == 0, 1, scales).astype(np.float32)
    zeros = np.full(scales.shape, middle) if symmetric else np.clip(np.rint(-low / scales), 0, top)
    return scales, zeros.astype(np.uint8)


def round_to_nearest(weight: Floats, bits: int, block_size: int, *, symmetric: bool) -> Blocks:
    """Each value at the nearest code of its block's grid. Rows of `weight` are quantized, shape (rows, width)."""
    values = split(weight, block_size)
    scales, zeros = grid(values, bits, symmetric=symmetric)
    codes = np.clip(np.rint(values / scales[..., None]) + zeros[..., None], 0, 2**bits - 1)
    return Blocks(codes.astype(np.uint8), scales, None if symmetric else zeros)


def restored(blocks: Blocks, bits: int, width: int) -> Floats:
    """The values that the codes stand for, shape (rows, width)."""
    zeros = 2 ** (bits - 1) if blocks.zeros is None else blocks.zeros[..., None].astype(np.float32)
    values = (blocks.codes.astype(np.float32) - zeros) * blocks.scales[..., None]
    return np.asarray(values.reshape(len(values), -1)[:, :width], dtype=np.float32)


def matmul(model: Any, names: set[str], bits: int, accuracy_level: int, method: Method) -> Any:
    """The model with these MatMul nodes as MatMulNBits.

    Args:
        model: A prepared ModelProto; left as it is.
        names: Names of eligible MatMul nodes.
        bits: 4 or 8.
        accuracy_level: As of the operator; 0 leaves it unset.
        method: Finds the blocks of a weight.
    """
    from onnx import helper, numpy_helper

    copy = copy_of(model)
    made: dict[str, tuple[list[str], dict[str, int]]] = {}
    for node, tensor in list(graph.eligible(copy)):
        if node.name not in names:
            continue
        if tensor.name not in made:
            weight = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
            made[tensor.name] = _store(copy, tensor.name, method(tensor.name, weight), bits, weight.shape)
        inputs, sizes = made[tensor.name]
        level = {"accuracy_level": accuracy_level} if accuracy_level else {}
        node.CopyFrom(
            helper.make_node(
                "MatMulNBits",
                [node.input[0], *inputs],
                list(node.output),
                f"{node.name}_Q{bits}",
                domain=CONTRIB,
                **sizes,
                **level,
            )
        )
    import_domain(copy, CONTRIB)
    drop_unused(copy, set(made))
    return copy


def gather8(model: Any, *, symmetric: bool = False) -> Any:
    """The model with its eligible embedding tables in 8 bits, as GatherBlockQuantized, in the largest blocks that fit.

    onnxruntime's own quantizer skips an 8-bit Gather in silence; the operator has them since 1.23.
    """
    from onnx import numpy_helper

    copy = copy_of(model)
    done: set[str] = set()
    for node, tensor in list(graph.eligible(copy)):
        if node.op_type != "Gather":
            continue
        size = block_size_for(int(tensor.dims[1]))
        if tensor.name not in done:
            blocks = round_to_nearest(numpy_helper.to_array(tensor), 8, size, symmetric=symmetric)
            add_table(copy, tensor.name, blocks, 8, int(tensor.dims[1]))
            done.add(tensor.name)
        read_table(node, 8, size, symmetric=symmetric)
    import_domain(copy, CONTRIB)
    drop_unused(copy, done)
    return copy


def read_table(node: Any, bits: int, block_size: int, *, symmetric: bool = False) -> None:
    """Let a Gather read what `add_table` has made of its table."""
    from onnx import helper

    table, ids = node.input
    inputs = [f"{table}_Q{bits}", ids, f"{table}_scales"] + ([] if symmetric else [f"{table}_zero_points"])
    node.CopyFrom(
        helper.make_node(
            "GatherBlockQuantized",
            inputs,
            list(node.output),
            f"{node.name}_Q{bits}",
            domain=CONTRIB,
            gather_axis=0,
            quantize_axis=1,
            block_size=block_size,
            bits=bits,
        )
    )


def block_size_for(width: int) -> int:
    """The largest block size that divides a row, so that no block is padded; 16 where none does."""
    return next((size for size in (128, 64, 32) if width % size == 0), 16)


def drop_unused(model: Any, names: set[str]) -> None:
    """Drop the initializers of these names that no node reads any more."""
    used = {name for node in model.graph.node for name in reads(node)}
    gone = names - used
    keep_weights(model, {at for at, tensor in enumerate(model.graph.initializer) if tensor.name not in gone})


def _store(
    model: Any, name: str, blocks: Blocks, bits: int, shape: tuple[int, ...]
) -> tuple[list[str], dict[str, int]]:
    from onnx import numpy_helper

    rows, _, size = blocks.codes.shape
    arrays: dict[str, Any] = {f"{name}_Q{bits}": _pack(blocks.codes, bits), f"{name}_scales": blocks.scales}
    if blocks.zeros is not None:
        is_float = blocks.zeros.dtype == np.float32
        arrays[f"{name}_zero_points"] = blocks.zeros if is_float else _pack(blocks.zeros.astype(np.uint8), bits)
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in arrays.items())
    return list(arrays), {"K": shape[1], "N": rows, "bits": bits, "block_size": size}


def _pack(codes: Codes, bits: int) -> Codes:
    """4-bit codes two a byte along the last axis, the first in the lower half; 8-bit codes as they are."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.shape[-1] % 2:
        # What fills the last half byte is never read; 8 is what onnxruntime's own quantizer leaves there.
        codes = np.concatenate([codes, np.full((*codes.shape[:-1], 1), 8, np.uint8)], axis=-1)
    return np.ascontiguousarray(codes[..., ::2] | (codes[..., 1::2] << 4))


def add_table(model: Any, name: str, blocks: Blocks, bits: int, width: int) -> None:
    """Add an embedding table's codes, scales and zeros to a model, named after the float table.

    Args:
        model: A ModelProto.
        name: Name of the float table.
        blocks: Its blocks, one item a row.
        bits: 4 or 8.
        width: Numbers a row; with 4 bits an even one.
    """
    from onnx import numpy_helper

    codes = _pack(blocks.codes.reshape(len(blocks.codes), -1)[:, :width], bits)
    arrays = {f"{name}_Q{bits}": codes, f"{name}_scales": blocks.scales}
    if blocks.zeros is not None:
        arrays[f"{name}_zero_points"] = _pack(blocks.zeros.astype(np.uint8), bits)
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in arrays.items())
