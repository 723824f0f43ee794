"""Dynamic int8: weights in 8 bits, activations quantized at run time from their own range.

Convolutions stay in float32: onnxruntime runs a dynamic int8 convolution (ConvInteger) slower than a float one on CPUs.
Weights are signed (QInt8) and activations unsigned, the pair for which x86 and Arm have fast kernels.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from edgewise.quantize import graph
from edgewise.quantize.recipes.base import Aids, Outcome, Recipe
from edgewise.quantize.surgery import copy_of, sort_nodes


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        per_channel: One scale a column of a matrix instead of one a matrix.
        reduce_range: 7-bit weights. Keeps x86 processors without VNNI from saturating, at some accuracy elsewhere.
        embedding: Embedding tables in 8 bits too, one scale a table.
    """

    per_channel: bool = True
    reduce_range: bool = False
    embedding: bool = True


def apply(source: Path, out: Path, options: Options, *, seed: int, aids: Aids) -> Outcome:  # nothing is drawn
    """Quantize the eligible matrices, and embeddings if asked, with onnxruntime's dynamic quantizer."""
    import onnx

    before = onnx.load(source)
    kinds = ("MatMul", "Gather") if options.embedding else ("MatMul",)
    if not graph.has_eligible(before, kinds):
        return Outcome(inapplicable=graph.NOTHING)
    quantize(before, out, kinds, options)
    after = onnx.load(out)
    promised = dict.fromkeys(kinds, "int8")
    return Outcome(graph.facts(before, after, promised), graph.skipped(before, after, kinds))


def quantize(
    model: Any, out: Path, kinds: tuple[str, ...], options: Options, *, only: Collection[str] | None = None
) -> None:
    """Write the model with the eligible weights of these kinds of nodes in int8.

    Args:
        model: A prepared ModelProto; left as it is.
        out: Where the quantized one goes.
        kinds: "MatMul", "Gather".
        options: How.
        only: Names of the weights meant; None means all.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = [
        node.name
        for node, tensor in graph.eligible(model)
        if node.op_type in kinds and (only is None or tensor.name in only)
    ]
    if not names:
        # An empty list means "all nodes" to the tool.
        onnx.save(model, out)
        return
    quantize_dynamic(
        copy_of(model),
        out,
        op_types_to_quantize=list(kinds),
        nodes_to_quantize=names,
        per_channel=options.per_channel,
        reduce_range=options.reduce_range,
        weight_type=QuantType.QInt8,
        # The type assumed where shape inference gives none, as behind a fused operator.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    written = onnx.load(out)
    sort_nodes(written)
    onnx.save(written, out)


RECIPE = Recipe("int8_dynamic", "int8 weights and embeddings, activations quantized at run time", Options, apply)
