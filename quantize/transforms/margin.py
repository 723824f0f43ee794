"""Puts the margin into a classifier's graph: Softmax, the two largest, their difference.

The runtime then gives the router's confidence signal with the logits, and the device computes no softmax in Python. It
comes after quantization: nothing in it has a weight, and the logits stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewise.quantize.technique import Aids, Outcome
from edgewise.quantize.transforms.base import Changed, TransformKind

OUTPUT = "margin"
"""The output's name."""

LOGITS = "logits"
"""The output that it is computed from."""


def apply(source: Path, out: Path, *, aids: Aids) -> Changed:
    """Append an output "margin", float32 of shape (batch,): largest probability minus second largest."""
    import onnx

    model = onnx.load(source)
    reason = _why_not(model)
    if reason:
        return Changed(Outcome(inapplicable=reason), aids)
    _append(model)
    onnx.checker.check_model(model)
    onnx.save(model, out)
    outputs = ", ".join(value.name for value in onnx.load(out, load_external_data=False).graph.output)
    return Changed(Outcome((f"the graph gives {outputs}",)), aids)


def _why_not(model: Any) -> str:
    outputs = {value.name: value.type.tensor_type for value in model.graph.output}
    if OUTPUT in outputs:
        return "the graph has an output margin already"
    if LOGITS not in outputs:
        return "the graph gives no logits, so it has no margin"
    dims = outputs[LOGITS].shape.dim
    if len(dims) != 2 or dims[1].dim_value == 1:
        return f"a margin needs logits of shape (batch, classes), these have {_shape(dims)}"
    return ""


def _shape(dims: Any) -> str:
    return "(" + ", ".join(dim.dim_param or str(dim.dim_value) for dim in dims) + ")"


def _append(model: Any) -> None:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    names = {name: f"edgewise_margin_{name}" for name in ("two", "first", "second", "shares", "top", "at", "a", "b")}
    constants = {"two": np.array([2], np.int64), "first": np.array(0, np.int64), "second": np.array(1, np.int64)}
    model.graph.initializer.extend(numpy_helper.from_array(value, names[key]) for key, value in constants.items())
    model.graph.node.extend(
        [
            helper.make_node("Softmax", [LOGITS], [names["shares"]], names["shares"], axis=1),
            helper.make_node(
                "TopK", [names["shares"], names["two"]], [names["top"], names["at"]], names["top"], axis=1
            ),
            helper.make_node("Gather", [names["top"], names["first"]], [names["a"]], names["a"], axis=1),
            helper.make_node("Gather", [names["top"], names["second"]], [names["b"]], names["b"], axis=1),
            helper.make_node("Sub", [names["a"], names["b"]], [OUTPUT], OUTPUT),
        ]
    )
    logits = next(value for value in model.graph.output if value.name == LOGITS)
    batch = logits.type.tensor_type.shape.dim[0]
    size = batch.dim_param or batch.dim_value or "batch"
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [size]))


KIND = TransformKind("margin", "Softmax and the difference of the two largest in the graph", apply, after=True)
"""Listed in the registry."""
