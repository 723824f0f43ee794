"""Appends to a graph the nodes that make one vector of the vectors of a text's tokens; `edge.pooling` says which.

Needs `onnx` only where it changes a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.edge.pooling import Mode, Pooling
from edgewise.errors import CheckpointError

OUTPUT = "embedding"
"""Name of the pooled output."""

_FEWEST = 1e-9
_SHORTEST = 1e-12


def append_pooling(path: Path, pooling: Pooling) -> None:
    """Let the graph at `path` give one vector a text, shape (batch, width), in place of one a token.

    Its first output, shape (batch, tokens, width), is pooled over the tokens that attention_mask marks, and becomes
    "embedding", its only output. Weights in files beside it stay there, untouched.

    Raises:
        CheckpointError: The graph gives no such output, or takes no attention_mask.
    """
    import onnx

    model = onnx.load_model(path, load_external_data=False)
    graph = model.graph
    hidden = graph.output[0]
    sides = hidden.type.tensor_type.shape.dim
    if len(sides) != 3 or "attention_mask" not in {value.name for value in graph.input}:
        raise CheckpointError(
            f"The output {hidden.name!r} of the graph cannot be pooled: it needs [batch, tokens, width] and an input "
            "attention_mask.",
            "Export the encoder's last_hidden_state, or its pooled embedding.",
        )
    _free_name(graph, OUTPUT)
    nodes = _Nodes(graph, next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))
    vector = nodes.pool(graph.output[0].name, pooling.mode)
    nodes.add("Identity", [nodes.normalize(vector) if pooling.normalize else vector], OUTPUT)
    shape = [sides[0].dim_param or sides[0].dim_value or "batch_size", sides[2].dim_value or sides[2].dim_param]
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, shape))
    _drop_unread(graph)
    onnx.save_model(model, path)


def keep_output(path: Path, name: str) -> None:
    """Drop all other outputs of the graph at `path`, and what only they needed."""
    import onnx

    model = onnx.load_model(path, load_external_data=False)
    if [value.name for value in model.graph.output] == [name]:
        return
    kept = [type(value).FromString(value.SerializeToString()) for value in model.graph.output if value.name == name]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    _drop_unread(model.graph)
    onnx.save_model(model, path)


class _Nodes:
    """Appends nodes whose values are named after the pooling."""

    def __init__(self, graph: Any, opset: int) -> None:
        self._graph = graph
        self._opset = opset
        self._count = 0

    def add(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        import onnx

        self._count += 1
        name = f"pooling_{self._count}_{op}"
        self._graph.node.append(onnx.helper.make_node(op, inputs, [output or name], name, **attributes))
        return output or name

    def pool(self, hidden: str, mode: Mode) -> str:
        """Shape (batch, width) of shape (batch, tokens, width)."""
        import onnx

        if mode == "cls":
            return self.add("Gather", [hidden, self._constant(0)], axis=1)
        mask = self.add("Cast", ["attention_mask"], to=onnx.TensorProto.FLOAT)
        column = self.add("Unsqueeze", [mask, self._constant([2])])
        if mode == "max":
            there = self.add("Cast", [column], to=onnx.TensorProto.BOOL)
            return self._largest(self.add("Where", [there, hidden, self._constant(-1e9)]))
        total = self.add("ReduceSum", [self.add("Mul", [hidden, column]), self._constant([1])], keepdims=0)
        count = self.add("ReduceSum", [mask, self._constant([1])], keepdims=1)
        if mode == "mean_sqrt_len":
            count = self.add("Sqrt", [count])
        return self.add("Div", [total, self.add("Max", [count, self._constant(_FEWEST)])])

    def normalize(self, vector: str) -> str:
        """The vector at length 1."""
        squares = self.add("ReduceSum", [self.add("Mul", [vector, vector]), self._constant([1])], keepdims=1)
        length = self.add("Max", [self.add("Sqrt", [squares]), self._constant(_SHORTEST)])
        return self.add("Div", [vector, length])

    def _largest(self, values: str) -> str:
        # ReduceMax takes its axes as an input from opset 18 on, and as an attribute before.
        if self._opset < 18:
            return self.add("ReduceMax", [values], axes=[1], keepdims=0)
        return self.add("ReduceMax", [values, self._constant([1])], keepdims=0)

    def _constant(self, value: float | list[int]) -> str:
        from onnx import numpy_helper

        dtype = np.float32 if isinstance(value, float) else np.int64
        name = f"pooling_constant_{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name


def _free_name(graph: Any, name: str) -> None:
    """Give an inner value of this name another one: an exporter may call the embedding table's rows so."""
    other = f"{name}_inner"
    for node in graph.node:
        node.input[:] = [other if value == name else value for value in node.input]
        node.output[:] = [other if value == name else value for value in node.output]
    for value in (*graph.initializer, *graph.value_info, *graph.output):
        if value.name == name:
            value.name = other


def _drop_unread(graph: Any) -> None:
    """Drop nodes and weights that lead to no output, such as the head that only a dropped output needed."""
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return  # a subgraph may read an outer value
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(type(node).FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]
