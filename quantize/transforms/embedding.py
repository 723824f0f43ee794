"""Gives a classifier's embedding beside its logits: what its last linear layer reads becomes an output of its own.

The router measures how far it lies from the embeddings of known inputs. Nothing is computed that was not computed
before. It comes before quantization, where the layer is still one plain matrix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from edgewise.quantize.technique import Aids, Outcome
from edgewise.quantize.transforms.base import Changed, TransformKind

OUTPUT = "sentence_embedding"
"""The output's name, as the edge model reads it."""

LOGITS = "logits"
"""The output that the last layer computes."""

_PASSED = ("Add", "Cast", "Identity")
"""What may stand between the layer and the logits."""


class _Layer(NamedTuple):
    """The last linear layer: the tensor that it reads, and its width."""

    tensor: str
    width: int


def apply(source: Path, out: Path, *, aids: Aids) -> Changed:
    """Append an output "sentence_embedding", float32 of shape (batch, width)."""
    import onnx

    model = onnx.load(source)
    found = _last_layer(model)
    if isinstance(found, str):
        return Changed(Outcome(inapplicable=found), aids)
    _declare(model, found)
    onnx.checker.check_model(model)
    onnx.save(model, out)
    return Changed(Outcome((f"the graph gives an embedding of {found.width} numbers",)), aids)


def _last_layer(model: Any) -> _Layer | str:
    """The layer that the logits come from, or why there is none."""
    outputs = {value.name: value.type.tensor_type for value in model.graph.output}
    if OUTPUT in outputs:
        return "the graph gives an embedding already"
    if LOGITS not in outputs:
        return "the graph gives no logits, so it has no layer before them"
    if len(outputs[LOGITS].shape.dim) != 2:
        return f"an embedding needs logits of shape (batch, classes), these have {len(outputs[LOGITS].shape.dim)} axes"
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    node = _passed_through(makers.get(LOGITS), makers, tensors)
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.input[1] not in tensors:
        kind = "no node" if node is None else node.op_type
        return f"the logits come from {kind}, not from a matrix that a vector is multiplied by"
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    sizes = tensors[node.input[1]].dims
    if len(sizes) != 2 or flags.get("transA"):
        return "the last matrix is not multiplied by one vector an item"
    tensor = node.input[0]
    if OUTPUT in makers and tensor != OUTPUT:
        return f"another tensor of the graph is called {OUTPUT}"
    return _Layer(tensor, int(sizes[1] if flags.get("transB") else sizes[0]))


def _passed_through(node: Any, makers: Any, tensors: Any) -> Any:
    """The first node, on the way back from the logits, that is no bias, cast or name."""
    while node is not None and node.op_type in _PASSED:
        node = next((makers[name] for name in node.input if name not in tensors and name in makers), None)
    return node


def _declare(model: Any, layer: _Layer) -> None:
    from onnx import TensorProto, helper

    if layer.tensor != OUTPUT:
        model.graph.node.append(helper.make_node("Identity", [layer.tensor], [OUTPUT], "edgewise_embedding"))
    logits = next(value for value in model.graph.output if value.name == LOGITS)
    batch = logits.type.tensor_type.shape.dim[0]
    size = batch.dim_param or batch.dim_value or "batch"
    kind = logits.type.tensor_type.elem_type or TensorProto.FLOAT
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, kind, [size, layer.width]))


KIND = TransformKind("embedding", "what the last linear layer reads as an output, for distances between inputs", apply)
"""Listed in the registry."""
