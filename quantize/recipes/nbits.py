"""Matrices in 4 or 8 bits by block (MatMulNBits), by one of four methods, for the recipes that do so.

Owns the methods. `blocks.py` owns how codes are stored, `gptq.py` how GPTQ finds them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edgewise.errors import MissingExtraError
from edgewise.quantize import graph
from edgewise.quantize.calibration import read_feeds
from edgewise.quantize.recipes import gptq
from edgewise.quantize.recipes.blocks import Blocks, Floats, Method, matmul, round_to_nearest, split
from edgewise.quantize.surgery import copy_of, drop_repeated_weights, upgrade_opset

MethodName = Literal["rtn", "hqq", "k_quant", "gptq"]

BlockSize = Literal[16, 32, 64, 128]


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How the codes are laid out.

    Attributes:
        bits: 4 or 8.
        block_size: Values that share a scale.
        symmetric: Whether there are no zero points.
        accuracy_level: 4 multiplies in int8, 0 in float32.
    """

    bits: Literal[4, 8] = 4
    block_size: BlockSize = 32
    symmetric: bool = False
    accuracy_level: Literal[0, 4] = 4

    def __str__(self) -> str:
        return f"{self.bits} bits in blocks of {self.block_size}"


def check_method(method: MethodName, *, symmetric: bool) -> None:
    """Refuse a method that has no symmetric form; for `__post_init__` of options.

    Raises:
        ValueError: It has none.
    """
    if symmetric and method in ("hqq", "k_quant"):
        raise ValueError(f"{method} places the zero itself: symmetric=true goes with rtn and gptq")


def needs(method: MethodName) -> frozenset[str]:
    """What a method reads beside the graph."""
    return frozenset({"calibration"}) if method == "gptq" else frozenset()


def quantize(
    model: Any,
    layout: Layout,
    method: MethodName,
    *,
    source: Path,
    scratch: Path,
    calibration: str,
    only: Collection[str] = (),
) -> Any:
    """The model with its eligible matrices in blocks.

    Args:
        model: A prepared ModelProto; left as it is. It may have its tables quantized already.
        layout: How the codes are laid out.
        method: How they are found.
        source: The float graph, for what needs calibration.
        scratch: Where a copy of it goes meanwhile.
        calibration: The calibration data's file.
        only: Names of the matrices meant; empty means all.

    Raises:
        DataError: GPTQ has no calibration data, or it does not reach a matrix.
    """
    wanted = graph.eligible_weights(model, "MatMul")
    names = {
        node.name
        for node, tensor in graph.eligible(model)
        if node.op_type == "MatMul" and tensor.name in wanted and (not only or tensor.name in only)
    }
    if not names:
        return copy_of(model)
    if method == "rtn":
        return _by_tool(model, ("MatMul",), layout, names)
    if method == "gptq":
        how = _gptq(layout, source, scratch, calibration)
    else:
        how = _k_quant(layout) if method == "k_quant" else _hqq(layout)
    return matmul(model, names, layout.bits, layout.accuracy_level, how)


def gather4(model: Any, layout: Layout) -> Any:
    """The model with its eligible embedding tables in 4 bits (GatherBlockQuantized), rounded to nearest."""
    names = set(graph.eligible_names(model, "Gather"))
    if not names:
        return copy_of(model)
    return _by_tool(upgrade_opset(copy_of(model), graph.INT4_OPSET), ("Gather",), layout, names)


def _by_tool(model: Any, kinds: tuple[str, ...], layout: Layout, names: Collection[str]) -> Any:
    """Round to nearest, by onnxruntime's quantizer."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    copy = copy_of(model)
    config = DefaultWeightOnlyQuantConfig(
        block_size=layout.block_size,
        is_symmetric=layout.symmetric,
        accuracy_level=layout.accuracy_level,
        op_types_to_quantize=kinds,
        # Blocks run along the rows of a matrix and along each row of a table.
        quant_axes=(("MatMul", 0), ("Gather", 1)),
        bits=layout.bits,
    )
    others = [node.name for node in copy.graph.node if node.op_type in kinds and node.name not in names]
    quantizer = MatMulNBitsQuantizer(copy, nodes_to_exclude=others, algo_config=config)
    quantizer.process()
    drop_repeated_weights(quantizer.model.model)
    return quantizer.model.model


def _gptq(layout: Layout, source: Path, scratch: Path, calibration: str) -> Method:
    import onnx

    feeds = read_feeds(calibration)
    nodes = gptq.inputs_by_weight(onnx.load(source))
    sums = gptq.hessians(source, nodes, feeds, scratch)

    def method(name: str, weight: Floats) -> Blocks:
        return gptq.solve(weight, sums[name], layout.bits, layout.block_size, symmetric=layout.symmetric)

    return method


def _k_quant(layout: Layout) -> Method:
    """k-quant, llama.cpp's: scale and minimum by weighted least squares over 20 grids a block."""
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    def method(name: str, weight: Floats) -> Blocks:
        values = split(weight, layout.block_size)
        plain = round_to_nearest(weight, layout.bits, layout.block_size, symmetric=False)
        with np.errstate(divide="ignore", invalid="ignore"):  # blocks of one value only; it keeps the plain grid there
            codes, scales, zeros = quant_tensor_k_quant_cpu(values, layout.bits, layout.block_size)
        # Its minimum is no code where zero lies outside the block's range.
        spans = (values.min(axis=-1) <= 0) & (values.max(axis=-1) >= 0)
        return Blocks(
            np.where(spans[..., None], codes.reshape(values.shape), plain.codes).astype(np.uint8),
            np.where(spans, scales.reshape(spans.shape), plain.scales).astype(np.float32),
            np.where(spans, zeros.reshape(spans.shape), np.asarray(plain.zeros)).astype(np.uint8),
        )

    return method


def _hqq(layout: Layout) -> Method:
    """Half-quadratic quantization (Badri and Shaji, 2023): zeros, as floats, that leave few large errors."""
    from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig, HQQWeightOnlyQuantizer

    try:
        import torch
    except ImportError as e:
        raise MissingExtraError("the method hqq", "quantize") from e
    tool = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=layout.block_size, bits=layout.bits))

    def method(name: str, weight: Floats) -> Blocks:
        padded = split(weight, layout.block_size)
        flat = torch.from_numpy(padded.reshape(len(weight), -1))
        codes, scales, zeros = tool.quantize_internal(flat, bits=layout.bits, group_size=layout.block_size)
        shape = padded.shape[:2]
        return Blocks(
            codes.numpy().astype(np.uint8).reshape(padded.shape),
            scales.numpy().astype(np.float32).reshape(shape),
            zeros.numpy().astype(np.float32).reshape(shape),
        )

    return method
