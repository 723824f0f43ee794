"""Mixed: int8 matrices for speed, 4-bit embedding tables for size.

In a small encoder the embedding table is half of the bytes and none of the time, so it takes the smaller type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edgewise.quantize import graph
from edgewise.quantize.recipes import int8_dynamic, nbits
from edgewise.quantize.recipes.base import Aids, Outcome, Recipe


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        per_channel: As in int8_dynamic.
        reduce_range: As in int8_dynamic.
        block_size: As in int4_matmul, for the embedding.
        symmetric: As in int4_matmul, for the embedding.
    """

    per_channel: bool = True
    reduce_range: bool = False
    block_size: Literal[16, 32, 64, 128] = 32
    symmetric: bool = False


def apply(source: Path, out: Path, options: Options, *, seed: int, aids: Aids) -> Outcome:  # nothing is drawn
    """Quantize the embeddings first: the second tool keeps what it does not know, the other way round they fuse."""
    import onnx

    before = onnx.load(source)
    if not graph.has_eligible(before, ("Gather",)):
        return Outcome(inapplicable="the graph has no embedding table worth quantizing; int8_dynamic does the rest")
    embedding = nbits.Layout(block_size=options.block_size, symmetric=options.symmetric)
    matrices = int8_dynamic.Options(per_channel=options.per_channel, reduce_range=options.reduce_range)
    int8_dynamic.quantize(nbits.gather4(before, embedding), out, ("MatMul",), matrices)
    after = onnx.load(out)
    promised = {"MatMul": "int8", "Gather": f"4 bits in blocks of {options.block_size}"}
    return Outcome(graph.facts(before, after, promised), graph.skipped(before, after, ("MatMul", "Gather")))


RECIPE = Recipe("int8_embed4", "int8 weights, 4-bit embeddings", Options, apply)
