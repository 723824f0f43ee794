"""4-bit weights in blocks (MatMulNBits), and 4-bit embedding rows (GatherBlockQuantized).

Smallest; on CPUs usually slower than int8 for encoders. Round to nearest, so no calibration data is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from edgewise.quantize import graph
from edgewise.quantize.recipes.base import Aids, Outcome, Recipe


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        block_size: Values that share a scale; smaller is more accurate and larger on disk.
        symmetric: No zero points: a little smaller, a little less accurate.
        accuracy_level: 4 multiplies in int8, 0 in float32. Without 4 it is slower than the float model.
        embedding: Embedding tables in 4 bits too.
    """

    block_size: Literal[16, 32, 64, 128] = 32
    symmetric: bool = False
    accuracy_level: Literal[0, 4] = 4
    embedding: bool = True


def apply(source: Path, out: Path, options: Options, *, seed: int, aids: Aids) -> Outcome:  # nothing is drawn
    """Quantize the eligible matrices, and embeddings if asked, with onnxruntime's n-bit quantizer."""
    import onnx

    before = onnx.load(source)
    kinds = ("MatMul", "Gather") if options.embedding else ("MatMul",)
    if not graph.has_eligible(before, kinds):
        return Outcome(inapplicable=graph.NOTHING)
    onnx.save(quantize(before, kinds, options), out)
    after = onnx.load(out)
    promised = dict.fromkeys(kinds, f"4 bits in blocks of {options.block_size}")
    return Outcome(graph.facts(before, after, promised), graph.skipped(before, after, kinds))


def quantize(model: Any, kinds: tuple[str, ...], options: Options) -> Any:
    """The model with the eligible weights of these kinds of nodes in 4 bits.

    Args:
        model: A prepared ModelProto; left as it is.
        kinds: "MatMul", "Gather".
        options: How.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if graph.eligible_names(copy, "Gather") and "Gather" in kinds:
        copy = graph.upgrade_opset(copy, graph.INT4_OPSET)
    config = DefaultWeightOnlyQuantConfig(
        block_size=options.block_size,
        is_symmetric=options.symmetric,
        accuracy_level=options.accuracy_level,
        op_types_to_quantize=kinds,
        # Blocks run along the rows of a matrix and along each row of a table.
        quant_axes=(("MatMul", 0), ("Gather", 1)),
        bits=4,
    )
    quantizer = MatMulNBitsQuantizer(copy, nodes_to_exclude=graph.other_names(copy, kinds), algo_config=config)
    quantizer.process()
    graph.drop_repeated_weights(quantizer.model.model)
    return quantizer.model.model


RECIPE = Recipe("int4_matmul", "4-bit weights and embeddings in blocks of 32", Options, apply)
