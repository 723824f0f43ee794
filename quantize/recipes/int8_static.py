"""Static int8: weights in 8 bits, activations quantized by ranges that calibration data showed.

Activations are unsigned and weights signed, the pair for which CPUs have fast kernels: both signed ran 20 times slower.
The product of a matrix stays in float32, so only its input needs a range. A convolution takes and gives 8 bits, and so
do the poolings, activations and additions between convolutions. Embedding rows are in 8 bits by block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from edgewise.errors import DataError
from edgewise.quantize import graph
from edgewise.quantize.calibration import read_feeds
from edgewise.quantize.recipes.base import Aids, Outcome, Recipe
from edgewise.quantize.recipes.blocks import gather8
from edgewise.quantize.recipes.ranges import Method, Range, find_ranges
from edgewise.quantize.surgery import copy_of, sort_nodes

_BETWEEN = ("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu")
"""Kinds of nodes that stay in 8 bits where everything they read is in 8 bits."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        method: How an activation's range is found: "minmax" takes the extremes, "percentile" leaves out the rarest
            values, "entropy" the range that loses least information.
        percentile: With "percentile", the share of values inside the range, in percent.
        per_channel: One scale a column of a matrix, or a channel of a kernel, instead of one a weight.
        reduce_range: 7-bit weights, for x86 processors without VNNI, whose 8-bit products saturate.
        embedding: Embedding tables in 8 bits too, in the largest blocks that divide a row.
    """

    method: Method = "minmax"
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    per_channel: bool = True
    reduce_range: bool = False
    embedding: bool = True


def apply(source: Path, out: Path, options: Options, *, seed: int, aids: Aids) -> Outcome:  # nothing is drawn
    """Observe the ranges, quantize the eligible matrices and kernels, and the embeddings if asked.

    Raises:
        DataError: No calibration data, or a value whose range it does not show.
    """
    import onnx

    before = onnx.load(source)
    kinds = ("MatMul", "Conv", "Gather") if options.embedding else ("MatMul", "Conv")
    if not graph.has_eligible(before, ("MatMul", "Conv")):
        return Outcome(inapplicable="the graph has no matrix worth quantizing and no convolution")
    nodes = _nodes(before)
    feeds = read_feeds(aids.calibration)
    scratch = out.with_suffix(".observed.onnx")
    ranges = find_ranges(source, nodes, feeds, options.method, options.percentile, scratch)
    model = gather8(before) if options.embedding and graph.has_eligible(before, ("Gather",)) else copy_of(before)
    onnx.save(_quantize(model, [node.name for node in nodes], ranges, options), out)
    after = onnx.load(out)
    promised = {"MatMul": "int8", "Conv": "int8", "Gather": "8 bits in blocks"}
    learned = f"ranges of {len(ranges)} activations by {options.method} from {len(feeds)} items"
    return Outcome(
        (*graph.facts(before, after, {kind: promised[kind] for kind in kinds}), learned),
        graph.skipped(before, after, kinds),
    )


def _nodes(model: Any) -> list[Any]:
    """The nodes that go to 8 bits, in the graph's order."""
    weighted = {node.name for node, _ in graph.eligible(model) if node.op_type in ("MatMul", "Conv")}
    made: set[str] = set()
    found = []
    for node in model.graph.node:
        joins = node.op_type in _BETWEEN and made.issuperset(name for name in _values(model, node))
        if node.name in weighted or joins:
            found.append(node)
            made.update(node.output if node.op_type != "MatMul" else ())
    return found


def _values(model: Any, node: Any) -> list[str]:
    """What a node computes with; the bounds of a Clip are settings."""
    return list(node.input[:1] if node.op_type == "Clip" else node.input)


def _quantize(model: Any, names: list[str], ranges: dict[str, Range], options: Options) -> Any:
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    kinds = sorted({node.op_type for node in model.graph.node if node.name in names})
    quantizer = QDQQuantizer(
        model,
        options.per_channel,
        options.reduce_range,
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        names,
        [],
        kinds,
        {
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
            # The type assumed where shape inference gives none, as behind a fused operator.
            "DefaultTensorType": onnx.TensorProto.FLOAT,
        },
    )
    try:
        quantizer.quantize_model()
    except ValueError as e:
        raise DataError(f"The graph cannot be quantized with these ranges: {e}", "Use another recipe.") from e
    sort_nodes(quantizer.model.model)
    return quantizer.model.model


RECIPE = Recipe(
    "int8_static",
    "int8 weights, convolutions and embeddings, activations by calibrated ranges",
    Options,
    apply,
    needs=frozenset({"calibration"}),
)
"""Listed in the registry."""
