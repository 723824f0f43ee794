"""What recipes need to know of an ONNX graph, and its preparation for them.

Owns which weights count as eligible, and the proof of what became of them. Quantizes nothing. Everything that needs
`onnx` imports it when called; these functions run in a worker process.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgewise.errors import CheckpointError
from edgewise.quantize.surgery import inner_graphs, keep_weights

MIN_ELEMENTS = 4096
"""Matrices and tables with fewer values stay as they are: they are too small to matter and often too sensitive.

A convolution's kernel counts whatever its size: its cost is in the positions that it is applied to.
"""

NOTHING = "the graph has no matrix and no embedding table worth quantizing"
"""Why a recipe for matrices and tables does not apply."""

INT4_OPSET = 21
"""The first ai.onnx opset with 4-bit integer tensors."""


_WEIGHT_INPUT = {"MatMul": 1, "Gather": 0, "Conv": 1}

_WHAT = {"MatMul": "matrix weights", "Gather": "embedding tables", "Conv": "convolution kernels"}


class PrepareJob(msgspec.Struct, frozen=True):
    """Prepare an exported graph for the recipes.

    Attributes:
        source: The exported ONNX file.
        out: Where the prepared one goes.
    """

    source: str
    out: str


class Prepared(msgspec.Struct, frozen=True):
    """What was found in the prepared graph.

    Attributes:
        weights: Eligible weights by kind of node: "MatMul", "Gather" and "Conv".
        float_bytes: Bytes of all float32 weights.
    """

    weights: dict[str, int]
    float_bytes: int


def prepare_here(job: PrepareJob) -> Prepared:
    """Fold constants, write each linear layer as a MatMul, name every node and infer shapes.

    The recipes' tools look for a MatMul whose weight is a constant, and skip everything else in silence. A weight
    behind a Transpose or an Identity, or in a Gemm, would stay in float32 without a word; here it becomes what they
    look for.

    Raises:
        CheckpointError: A weight that is not finite.
    """
    import onnx

    folded = _fold_constants(Path(job.source), Path(job.out))
    model = onnx.load(folded)
    # Shapes that an exporter noted down contradict the transposed weights below.
    model.graph.ClearField("value_info")
    _gemm_to_matmul(model)
    _name_nodes(model)
    _drop_unused_opsets(model)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    require_finite(model)
    onnx.save(model, job.out)
    weights = Counter(node.op_type for node, _ in eligible(model))
    return Prepared(dict(weights), float_bytes(model))


def eligible(model: Any) -> Iterator[tuple[Any, Any]]:
    """Each node with a weight worth quantizing, with that weight.

    A MatMul by a constant matrix or a Gather of rows from a constant table (an embedding) of at least `MIN_ELEMENTS`
    values, or a Conv with a constant kernel; all in float32. Nodes inside branches (If, Loop) are not among them.
    """
    yield from _eligible(model.graph.node, model.graph.initializer)


def _eligible(nodes: Any, initializers: Any) -> Iterator[tuple[Any, Any]]:
    import onnx

    weights = {tensor.name: tensor for tensor in initializers if tensor.data_type == onnx.TensorProto.FLOAT}
    for node in nodes:
        position = _WEIGHT_INPUT.get(node.op_type)
        tensor = weights.get(node.input[position]) if position is not None else None
        if tensor is not None and _worthwhile(node, tensor):
            yield node, tensor


def _worthwhile(node: Any, tensor: Any) -> bool:
    if node.op_type == "Conv":
        return True
    if len(tensor.dims) != 2 or tensor.dims[0] * tensor.dims[1] < MIN_ELEMENTS:
        return False
    return node.op_type == "MatMul" or _axis(node) == 0


def in_branches(model: Any, kinds: Collection[str]) -> tuple[str, ...]:
    """Weights of these kinds of nodes that would be eligible outside the branch (If, Loop) that no tool looks into."""
    found = set()
    for node in model.graph.node:
        for inner in inner_graphs(node):
            known = [*model.graph.initializer, *inner.initializer]
            found |= {tensor.name for child, tensor in _eligible(inner.node, known) if child.op_type in kinds}
    return tuple(sorted(found))


def eligible_weights(model: Any, kind: str) -> dict[str, Any]:
    """The eligible weights of one kind of node by name, in the order of their first use."""
    found: dict[str, Any] = {}
    for node, tensor in eligible(model):
        if node.op_type == kind:
            found.setdefault(tensor.name, tensor)
    return found


def require_finite(model: Any) -> None:
    """Refuse a model with a float weight that is not finite.

    Raises:
        CheckpointError: One holds NaN or infinity; it is named.
    """
    import numpy as np
    import onnx

    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        # An attention mask is built from single infinities on purpose.
        if values.size > 1 and not np.isfinite(values).all():
            bad = int(values.size - np.isfinite(values).sum())
            raise CheckpointError(
                f"The weight {tensor.name!r} holds {bad} values that are not finite (NaN or infinity).",
                "The checkpoint is damaged or its training diverged: use another one.",
            )


def has_eligible(model: Any, kinds: tuple[str, ...]) -> bool:
    """Whether there is an eligible node of one of these kinds."""
    return any(node.op_type in kinds for node, _ in eligible(model))


def eligible_names(model: Any, kind: str) -> list[str]:
    """Names of the eligible nodes of one kind: "MatMul", "Gather" or "Conv"."""
    return [node.name for node, _ in eligible(model) if node.op_type == kind]


def float_bytes(model: Any) -> int:
    """Bytes of all float32 weights."""
    return sum(_float_weights(model).values())


def facts(before: Any, after: Any, promised: Mapping[str, str]) -> tuple[str, ...]:
    """What became of the weights, read off the written graph and not off what the tool was asked to do.

    Args:
        before: The prepared graph.
        after: The graph that a recipe wrote.
        promised: Kind of node ("MatMul", "Gather", "Conv") to what the recipe promised for its weights, such as "int8".

    Returns:
        One sentence a kind of node that occurs, and one on what stayed in float32.
    """
    left = _float_weights(after)
    found = [_fact(before, left, kind, promise) for kind, promise in promised.items() if has_eligible(before, (kind,))]
    return (*found, _left_over(after, left, float_bytes(before)))


def skipped(before: Any, after: Any, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Eligible weights of these kinds of nodes that are float32 still, and those inside branches."""
    left = _float_weights(after)
    kept = {tensor.name for node, tensor in eligible(before) if node.op_type in kinds and tensor.name in left}
    return tuple(sorted(kept.union(in_branches(before, kinds))))


def _fact(before: Any, left: Mapping[str, int], kind: str, promise: str) -> str:
    names = {tensor.name for node, tensor in eligible(before) if node.op_type == kind}
    done = sum(1 for name in names if name not in left)
    return f"{done} of {len(names)} {_WHAT[kind]} in {promise}"


def _left_over(after: Any, left: Mapping[str, int], before_bytes: int) -> str:
    total = sum(left.values())
    if not total:
        return "nothing left in float32"
    users: Counter[str] = Counter()
    for name, size in left.items():
        user = next((node.op_type for node in after.graph.node if name in node.input), "unused")
        users[user] += size
    kinds = ", ".join(f"{kind} {size} bytes" for kind, size in sorted(users.items(), key=lambda item: -item[1])[:3])
    return f"{total} of {before_bytes} float32 bytes left ({kinds})"


def _float_weights(model: Any) -> dict[str, int]:
    import onnx

    sizes = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            count = 1
            for side in tensor.dims:
                count *= side
            sizes[tensor.name] = 4 * count
    return sizes


def _axis(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def _fold_constants(source: Path, out: Path) -> Path:
    """Let onnxruntime fold what is constant: its basic level is the same on every machine."""
    import onnxruntime

    folded = out.with_suffix(".folded.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return folded


def _gemm_to_matmul(model: Any) -> None:
    """Write each Gemm by a constant matrix as MatMul and Add; a Gemm that scales or transposes its input stays."""
    import onnx

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        tensor = weights.get(node.input[1]) if node.op_type == "Gemm" else None
        if tensor is None or not _plain_gemm(node):
            nodes.append(node)
            continue
        name = _weight_for_matmul(model, node, tensor)
        has_bias = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}_matmul" if has_bias else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], name], [product], f"{node.name}_matmul"))
        if has_bias:
            nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{node.name}_add"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unused_weights(model)


def _plain_gemm(node: Any) -> bool:
    values = {attribute.name: attribute for attribute in node.attribute}
    scaled = any(name in values and values[name].f != 1.0 for name in ("alpha", "beta"))
    return not scaled and not ("transA" in values and values["transA"].i)


def _weight_for_matmul(model: Any, node: Any, tensor: Any) -> str:
    """Name of the weight as MatMul wants it: transposed, under a new name, where the Gemm transposes it."""
    import numpy as np
    from onnx import numpy_helper

    transposes = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    if not transposes:
        return str(tensor.name)
    name = f"{tensor.name}_transposed"
    if all(other.name != name for other in model.graph.initializer):
        values = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _drop_unused_weights(model: Any) -> None:
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    # A subgraph (If, Loop) may use an outer weight; then nothing is dropped.
    if any(attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute):
        return
    keep_weights(model, {index for index, tensor in enumerate(model.graph.initializer) if tensor.name in used})


def _name_nodes(model: Any) -> None:
    """Give each node a name of its own: the tools address nodes by name."""
    given = {node.name for node in model.graph.node}
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = next(
                name for number in itertools.count(index) if (name := f"{node.op_type}_{number}") not in taken | given
            )
        taken.add(node.name)


def _drop_unused_opsets(model: Any) -> None:
    """Keep the opsets that nodes use: onnxruntime writes down every domain it knows."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain == "ai.onnx"]
    del model.opset_import[:]
    model.opset_import.extend(kept)
