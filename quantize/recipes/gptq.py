"""GPTQ: rounds a matrix column by column and lets the columns still to come make up for each rounding error.

Frantar, Ashkboos, Hoefler and Alistarh (2023), "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", algorithm 1. onnxruntime 1.31 has a GPTQ of its own whose answer is round to nearest, bit for bit: it
takes the upper Cholesky factor of the inverse Hessian and then reads its columns, where below the diagonal all is zero,
so no error is ever handed on. Hence this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError
from edgewise.quantize import graph
from edgewise.quantize.calibration import Feeds, observe
from edgewise.quantize.recipes.blocks import Blocks, Codes, Floats, grid, split

Hessian = NDArray[np.float64]

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal (the paper's)."""


def hessians(source: Path, nodes: Mapping[str, Sequence[str]], feeds: Sequence[Feeds], scratch: Path) -> dict[str, Any]:
    """The sum of x xᵀ over the calibration data for each weight's input x, shape (inputs, inputs).

    Args:
        source: The float graph.
        nodes: Each weight's name to the names of the values that are multiplied by it.
        feeds: The calibration data.
        scratch: Where a copy of the graph goes meanwhile.

    Raises:
        DataError: A value that the calibration data never reaches, or one that is not finite.
    """
    values = sorted({name for names in nodes.values() for name in names})
    sums: dict[str, Hessian] = {}

    def see(name: str, value: NDArray[Any]) -> None:
        rows = value.reshape(-1, value.shape[-1]).astype(np.float64)
        if rows.size:
            sums[name] = sums.get(name, 0) + rows.T @ rows

    observe(source, values, feeds, see, scratch=scratch)
    for name in values:
        if name not in sums:
            raise DataError(f"The calibration data never reaches {name!r}.", "Give items that use the whole graph.")
        if not np.isfinite(sums[name]).all():
            raise DataError(f"The value {name!r} is not finite on the calibration data.", "Check the checkpoint.")
    return {weight: sum(sums[name] for name in names) for weight, names in nodes.items()}


def inputs_by_weight(model: Any) -> dict[str, list[str]]:
    """Each eligible matrix to the values that are multiplied by it."""
    found: dict[str, list[str]] = {}
    for node, tensor in graph.eligible(model):
        if node.op_type == "MatMul":
            found.setdefault(tensor.name, []).append(node.input[0])
    return found


def solve(weight: Floats, hessian: Hessian, bits: int, block_size: int, *, symmetric: bool) -> Blocks:
    """Blocks of a matrix of shape (outputs, inputs) whose products with the calibration data stay close.

    Args:
        weight: The matrix.
        hessian: Sum of x xᵀ over its inputs, shape (inputs, inputs).
        bits: 4 or 8.
        block_size: Inputs that share a scale.
        symmetric: Whether zero is the middle code.
    """
    rows, width = weight.shape
    left = weight.astype(np.float64)
    factor, dead = _factor(hessian)
    # An input that is always zero: nothing depends on its weights.
    left[:, dead] = 0
    count = -(-width // block_size)
    codes = np.zeros((rows, count, block_size), np.uint8)
    scales = np.zeros((rows, count), np.float32)
    zeros = np.zeros((rows, count), np.uint8)
    for block in range(count):
        start, stop = block * block_size, min((block + 1) * block_size, width)
        # The grid follows what earlier columns have handed on.
        found = grid(split(left[:, start:stop].astype(np.float32), block_size)[:, 0], bits, symmetric=symmetric)
        scales[:, block], zeros[:, block] = found
        codes[:, block] = zeros[:, block, None]
        codes[:, block, : stop - start] = _round_block(left, factor, start, stop, found, 2**bits - 1)
    return Blocks(codes, scales, None if symmetric else zeros)


def _factor(hessian: Hessian) -> tuple[Hessian, NDArray[np.bool_]]:
    """Upper Cholesky factor of the damped inverse, and which inputs are always zero."""
    damped = hessian.copy()
    dead = np.diag(damped) == 0
    at = np.arange(len(damped))
    damped[at[dead], at[dead]] = 1
    damped[at, at] += DAMPING * np.diag(damped).mean()
    return np.linalg.cholesky(np.linalg.inv(damped)).T, dead


def _round_block(left: Hessian, factor: Hessian, start: int, stop: int, found: tuple[Floats, Codes], top: int) -> Codes:
    """Round the columns of one block and hand their errors on to every later column."""
    scales, zeros = found[0].astype(np.float64), found[1].astype(np.float64)
    codes = np.zeros((len(left), stop - start), np.uint8)
    errors = np.zeros((len(left), stop - start))
    for column in range(start, stop):
        values = left[:, column]
        code = np.clip(np.rint(values / scales) + zeros, 0, top)
        error = (values - (code - zeros) * scales) / factor[column, column]
        left[:, column + 1 : stop] -= np.outer(error, factor[column, column + 1 : stop])
        codes[:, column - start] = code
        errors[:, column - start] = error
    left[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes
