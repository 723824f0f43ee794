"""Edits of an ONNX graph that keep its answers: order of nodes, opset, which initializers stay.

Owns no notion of what is worth quantizing: `graph.py` does. Everything that needs `onnx` imports it when called.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def upgrade_opset(model: Any, opset: int) -> Any:
    """The model, converted to an opset if its own is older."""
    import onnx
    from onnx import version_converter

    if opset_of(model) >= opset:
        return model
    converted = version_converter.convert_version(model, opset)
    # 4-bit tensors came with IR version 10; the converter keeps the old one.
    converted.ir_version = max(converted.ir_version, 10)
    return onnx.shape_inference.infer_shapes(converted, data_prop=True)


def opset_of(model: Any) -> int:
    """The model's ai.onnx opset."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def import_domain(model: Any, domain: str, version: int = 1) -> None:
    """Note that the model uses operators of a domain."""
    from onnx import helper

    if all(entry.domain != domain for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(domain, version))


def copy_of(model: Any) -> Any:
    """A model that can be changed while this one stays."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def inner_graphs(node: Any) -> Iterator[Any]:
    """The graphs that a node holds, such as the two branches of an If, and those inside them."""
    for attribute in node.attribute:
        for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
            yield inner
            for child in inner.node:
                yield from inner_graphs(child)


def sort_nodes(model: Any) -> None:
    """Order the nodes so that each comes after what it reads, the reads of its subgraphs included, else unchanged.

    onnxruntime's quantizer sorts without a look into subgraphs, and so breaks graphs with an If or a Loop.
    """
    waiting = dict(enumerate(model.graph.node))
    made_by = {name: index for index, node in waiting.items() for name in node.output if name}
    ordered: list[Any] = []
    done: set[int] = set()
    for start in waiting:
        stack = [start]
        while stack:
            index = stack[-1]
            needed = {made_by[name] for name in reads(waiting[index]) if name in made_by} - done - {index}
            if needed and index not in done:
                stack.extend(sorted(needed, reverse=True))
                continue
            stack.pop()
            if index not in done:
                done.add(index)
                ordered.append(waiting[index])
    nodes = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def reads(node: Any) -> Iterator[str]:
    """Names of everything that a node reads, the reads of its subgraphs included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
            for child in inner.node:
                yield from reads(child)
            yield from (value.name for value in inner.output)


def drop_repeated_weights(model: Any) -> None:
    """Keep the first initializer of each name: a tool that meets a shared weight twice writes its result twice."""
    first: dict[str, int] = {}
    for index, tensor in enumerate(model.graph.initializer):
        first.setdefault(tensor.name, index)
    keep_weights(model, set(first.values()))


def keep_weights(model: Any, indices: set[int]) -> None:
    """Drop every initializer but those at these positions."""
    for index in reversed(range(len(model.graph.initializer))):
        if index not in indices:
            del model.graph.initializer[index]
