"""The embedding of a language model that shares no table with its head: the builder leaves it in float32.

Owns that table's way into blocks. What the builder quantized itself stays as it wrote it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgewise.quantize.generation.graph import embedding_of
from edgewise.quantize.recipes.blocks import Blocks, add_table, drop_unused, read_table, round_to_nearest

_ROWS = 8192
"""Rows that are rounded at once: rounding holds a row several times over, and tables are large."""

_MOST_BYTES = 1 << 30
"""Codes of a table at most: they go into the graph's own file, which holds less than 2 GiB."""


def quantize_embedding(path: Path, bits: int, block_size: int) -> bool:
    """Put the float32 embedding of the graph at `path` into blocks, each value rounded to nearest.

    Args:
        path: The graph; weights that lie beside it stay there.
        bits: 4 or 8.
        block_size: Values of a row that share a scale.

    Returns:
        Whether it had one that can be put so.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    node = embedding_of(model)
    tensor = next((one for one in model.graph.initializer if node is not None and one.name == node.input[0]), None)
    if node is None or tensor is None or not _fits(tensor, bits):
        return False
    table = onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent))
    rows, width = table.shape
    parts = [
        round_to_nearest(table[start : start + _ROWS], bits, block_size, symmetric=False)
        for start in range(0, rows, _ROWS)
    ]
    add_table(model, tensor.name, _joined(parts), bits, width)
    read_table(node, bits, block_size)
    drop_unused(model, {tensor.name})
    onnx.save(model, path)
    return True


def _fits(tensor: Any, bits: int) -> bool:
    """Whether it is float32, and can be stored: two codes of 4 bits share a byte of their row."""
    import onnx

    rows, width = tensor.dims
    is_float = tensor.data_type == onnx.TensorProto.FLOAT
    return bool(is_float and (bits == 8 or width % 2 == 0) and rows * width * bits // 8 <= _MOST_BYTES)


def _joined(parts: list[Blocks]) -> Blocks:
    return Blocks(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([np.asarray(part.zeros) for part in parts]),
    )
