"""8-bit weights in blocks (MatMulNBits), and 8-bit embedding rows: the most accurate of the small ones.

Only the weights are rounded: activations stay in float32 and, with accuracy level 4, are quantized by block as they are
multiplied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edgewise.quantize import graph
from edgewise.quantize.recipes import nbits
from edgewise.quantize.recipes.base import Aids, Outcome, Recipe
from edgewise.quantize.recipes.blocks import gather8


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        block_size: Values of a matrix that share a scale.
        symmetric: No zero points. Only with rtn.
        accuracy_level: 4 multiplies in int8, 0 in float32. Without 4 it is slower than the float model.
        embedding: Embedding tables in 8 bits too, in the largest blocks that divide a row.
        method: "rtn" rounds to nearest, "k_quant" fits each block's grid to its values.
    """

    block_size: nbits.BlockSize = 32
    symmetric: bool = False
    accuracy_level: Literal[0, 4] = 4
    embedding: bool = True
    method: Literal["rtn", "k_quant"] = "rtn"

    def __post_init__(self) -> None:
        nbits.check_method(self.method, symmetric=self.symmetric)


def apply(source: Path, out: Path, options: Options, *, seed: int, aids: Aids) -> Outcome:  # nothing is drawn
    """Quantize the embeddings if asked, then the eligible matrices."""
    import onnx

    before = onnx.load(source)
    kinds = ("MatMul", "Gather") if options.embedding else ("MatMul",)
    if not graph.has_eligible(before, kinds):
        return Outcome(inapplicable=graph.NOTHING)
    layout = nbits.Layout(
        bits=8, block_size=options.block_size, symmetric=options.symmetric, accuracy_level=options.accuracy_level
    )
    model = gather8(before, symmetric=options.symmetric) if options.embedding else before
    scratch = out.with_suffix(".observed.onnx")
    model = nbits.quantize(model, layout, options.method, source=source, scratch=scratch, calibration=aids.calibration)
    onnx.save(model, out)
    after = onnx.load(out)
    promised = {"MatMul": f"{layout} by {options.method}", "Gather": "8 bits in blocks"}
    return Outcome(
        graph.facts(before, after, {kind: promised[kind] for kind in kinds}), graph.skipped(before, after, kinds)
    )


RECIPE = Recipe("int8_matmul", "8-bit weights and embeddings in blocks, activations in float32", Options, apply)
"""Listed in the registry."""
