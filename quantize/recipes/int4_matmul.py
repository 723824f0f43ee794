"""4-bit weights in blocks (MatMulNBits), and 4-bit embedding rows (GatherBlockQuantized).

Smallest; on CPUs usually slower than int8 for encoders. Embedding rows are rounded to nearest, whatever the method.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edgewise.quantize import graph
from edgewise.quantize.recipes import nbits
from edgewise.quantize.recipes.base import Aids, Outcome, Recipe


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        block_size: Values that share a scale; smaller is more accurate and larger on disk.
        symmetric: No zero points: a little smaller, a little less accurate. Only with rtn and gptq.
        accuracy_level: 4 multiplies in int8, 0 in float32. Without 4 it is slower than the float model.
        embedding: Embedding tables in 4 bits too.
        method: How codes are found: "rtn" rounds to nearest, "hqq" and "k_quant" fit each block's grid to its values,
            "gptq" makes up for rounding errors on calibration data. hqq's zero points are floats, which multiply
            slower.
    """

    block_size: nbits.BlockSize = 32
    symmetric: bool = False
    accuracy_level: Literal[0, 4] = 4
    embedding: bool = True
    method: nbits.MethodName = "rtn"

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
        block_size=options.block_size, symmetric=options.symmetric, accuracy_level=options.accuracy_level
    )
    model = nbits.gather4(before, layout) if options.embedding else before
    scratch = out.with_suffix(".observed.onnx")
    model = nbits.quantize(model, layout, options.method, source=source, scratch=scratch, calibration=aids.calibration)
    onnx.save(model, out)
    after = onnx.load(out)
    promised = {"MatMul": f"{layout} by {options.method}", "Gather": str(layout)}
    return Outcome(
        graph.facts(before, after, {kind: promised[kind] for kind in kinds}), graph.skipped(before, after, kinds)
    )


def _needs(options: Options) -> frozenset[str]:
    return nbits.needs(options.method)


RECIPE = Recipe("int4_matmul", "4-bit weights and embeddings in blocks of 32", Options, apply, also_needs=_needs)
"""Listed in the registry."""
