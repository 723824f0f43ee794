"""What became of a language model's weights, read off the graph that the builder wrote.

Owns the facts, and one correction: for models that share one table between embedding and head, the 8-bit graph of
onnxruntime-genai 0.15 asks for a 4-bit table that it never wrote. Reads and writes the graph alone, never its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.errors import CheckpointError

_EMBEDDINGS = ("Gather", "GatherBlockQuantized")
# What some models do to each logit behind the head: bias, scale, soft-capping, a mask, another type.
_AFTER_HEAD = ("Add", "Mul", "Div", "Tanh", "Where", "Cast")
FLOAT = 32
"""Bits of a weight that is not quantized."""


@dataclass(frozen=True)
class Matrix:
    """A matrix that the graph multiplies with.

    Attributes:
        name: The node's name.
        bits: 4, 8, or 32 for float.
        weights: Its numbers.
        block_size: Numbers that share a scale; 0 for float.
        accuracy_level: 4 multiplies in int8, 0 in float32.
    """

    name: str
    bits: int
    weights: int
    block_size: int = 0
    accuracy_level: int = 0


@dataclass(frozen=True)
class Built:
    """A built graph.

    Attributes:
        matrices: All but the head.
        head: The one that gives the logits.
        embedding_bits: Of the embedding table.
        shared: Whether embedding and head are one table.
    """

    matrices: tuple[Matrix, ...]
    head: Matrix
    embedding_bits: int
    shared: bool

    def facts(self) -> tuple[str, ...]:
        """What became of the weights, in sentences."""
        table = "one table with the head" if self.shared else "a table of its own"
        return (
            *self._counts(),
            f"head in {_bits(self.head.bits)}",
            f"embedding in {_bits(self.embedding_bits)}, {table}",
        )

    def _counts(self) -> list[str]:
        """A sentence for each kind of matrix, the most frequent first."""
        total = sum(matrix.weights for matrix in self.matrices)
        kinds: dict[tuple[int, int, int], list[Matrix]] = {}
        for matrix in self.matrices:
            kinds.setdefault((matrix.bits, matrix.block_size, matrix.accuracy_level), []).append(matrix)
        ordered = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
        return [_count(kind, found, len(self.matrices), total) for kind, found in ordered]

    def above(self, bits: int) -> tuple[str, ...]:
        """Names of what has more bits than promised, embedding and head included."""
        names = [matrix.name for matrix in (*self.matrices, self.head) if matrix.bits > bits]
        return (*names, "embedding") if self.embedding_bits > bits else tuple(names)


def read(path: Path) -> Built:
    """Read the graph at `path`.

    Raises:
        CheckpointError: It is none of the builder's graphs, or contradicts itself.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    matrices = [found for node in model.graph.node if (found := _matrix(node, weights)) is not None]
    makers = {name: node for node in model.graph.node for name in node.output}
    head = _head(makers)
    last = next((matrix for matrix in matrices if head is not None and matrix.name == head.name), None)
    embedding = embedding_of(model)
    if head is None or last is None or embedding is None:
        raise CheckpointError(f"{path} has no head or no embedding that could be read.", "Check the builder's version.")
    source = _source(embedding.input[0], makers)
    if source not in weights:
        raise CheckpointError(f"The embedding of {path} reads {source!r}, which is not there.", "Check the builder.")
    bits = int(_attribute(embedding, "bits", 4)) if embedding.op_type == "GatherBlockQuantized" else FLOAT
    shared = source in head.input
    if shared and bits != last.bits:
        raise CheckpointError(
            f"The embedding of {path} reads the head's {_bits(last.bits)} table as {_bits(bits)}.", "Check the builder."
        )
    return Built(tuple(matrix for matrix in matrices if matrix is not last), last, bits, shared)


def mend_shared_table(path: Path) -> bool:
    """Let the embedding read the head's table as it was written, if the builder got its name and bits wrong.

    Returns:
        Whether there was anything to mend.
    """
    import numpy as np
    import onnx

    model = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    embedding, head = embedding_of(model), _head(makers)
    if embedding is None or head is None or embedding.op_type != "GatherBlockQuantized":
        return False
    reshape = makers.get(embedding.input[0])
    if reshape is None or head.op_type != "MatMulNBits" or reshape.input[0] in weights:
        return False
    bits, rows, width = (int(_attribute(head, name, 0)) for name in ("bits", "N", "K"))
    reshape.input[0] = head.input[1]
    next(field for field in embedding.attribute if field.name == "bits").i = bits
    shape = np.array([rows, width * bits // 8], np.int64)
    constant = next(field for field in makers[reshape.input[1]].attribute if field.name == "value")
    constant.t.CopyFrom(onnx.numpy_helper.from_array(shape, constant.t.name))
    onnx.save(model, path)
    return True


def _matrix(node: Any, weights: Any) -> Matrix | None:
    if node.op_type == "MatMulNBits":
        bits, block, level, rows, width = (
            int(_attribute(node, name, 0)) for name in ("bits", "block_size", "accuracy_level", "N", "K")
        )
        return Matrix(node.name, bits, rows * width, block, level)
    if node.op_type == "MatMul" and node.input[1] in weights:
        rows, width = weights[node.input[1]].dims
        return Matrix(node.name, FLOAT, rows * width)
    return None


def embedding_of(model: Any) -> Any | None:
    """The node that looks the tokens of a prompt up, if it can be told."""
    return next(
        (node for node in model.graph.node if node.op_type in _EMBEDDINGS and node.input[1] == "input_ids"), None
    )


def _head(makers: Any) -> Any | None:
    """The node that multiplies with the head, behind which each logit may be changed by itself."""
    node = makers.get("logits")
    while node is not None and node.op_type in _AFTER_HEAD:
        before = (makers[name] for name in node.input if name in makers)
        node = next((maker for maker in before if maker.op_type != "Constant"), None)
    return node


def _source(name: str, makers: Any) -> str:
    """The initializer behind a chain of reshapes and transpositions."""
    while name in makers:
        name = makers[name].input[0]
    return name


def _attribute(node: Any, name: str, otherwise: int) -> int:
    return next((field.i for field in node.attribute if field.name == name), otherwise)


def _count(kind: tuple[int, int, int], found: list[Matrix], of: int, total: int) -> str:
    bits, block, level = kind
    share = sum(matrix.weights for matrix in found) / total
    how = f" in blocks of {block}, accuracy level {level}" if block else ""
    return f"{len(found)} of {of} matrices ({share:.0%} of their weights) in {_bits(bits)}{how}"


def _bits(bits: int) -> str:
    return "float32" if bits == FLOAT else f"{bits} bits"
