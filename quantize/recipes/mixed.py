"""Mixed precision by layer: matrices that moved the answers most keep more bits.

How much each one moves them is measured before (`quantize/sensitivity.py`), one matrix at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgewise.quantize import graph
from edgewise.quantize.recipes import int8_dynamic, nbits
from edgewise.quantize.recipes.base import Aids, Outcome, Recipe
from edgewise.quantize.recipes.blocks import gather8
from edgewise.quantize.sensitivity import read_distances
from edgewise.quantize.surgery import copy_of


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        low: Precision of most matrices: "int4" in blocks of 32, or "int8" dynamic.
        high: Precision of the most sensitive: "int8" dynamic, or "fp32".
        share: Share of the matrices' bytes that may stay at the high precision, from 0 to 1.
        embedding: Bits of embedding tables: 4, 8 or 32.
    """

    low: Literal["int4", "int8"] = "int4"
    high: Literal["int8", "fp32"] = "int8"
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.25
    embedding: Literal[4, 8, 32] = 4

    def __post_init__(self) -> None:
        if self.low == self.high:
            raise ValueError("low and high are both int8: take int8_dynamic, or high=fp32")


def apply(source: Path, out: Path, options: Options, *, seed: int, aids: Aids) -> Outcome:  # nothing is drawn
    """Choose the matrices that keep more bits, then quantize tables, the other matrices, and these.

    Raises:
        DataError: No measured sensitivity, or not of this graph or precision.
    """
    import onnx

    before = onnx.load(source)
    weights = graph.eligible_weights(before, "MatMul")
    if not weights:
        return Outcome(inapplicable="the graph has no matrix worth quantizing")
    distances = read_distances(aids.sensitivity, options.low, list(weights))
    sizes = {name: 4 * int(tensor.dims[0]) * int(tensor.dims[1]) for name, tensor in weights.items()}
    high = keep_high(distances, sizes, options.share)
    _quantize(before, source, out, options, [name for name in weights if name not in high], high)
    after = onnx.load(out)
    kinds = ("MatMul",) if options.embedding == 32 else ("MatMul", "Gather")
    return Outcome(_facts(before, after, kinds, options, high), _skipped(before, after, kinds, options, high))


def keep_high(distances: dict[str, float], sizes: dict[str, int], share: float) -> tuple[str, ...]:
    """The most sensitive weights that fit into a share of all bytes, most sensitive first."""
    budget = share * sum(sizes.values())
    kept: list[str] = []
    for name in sorted(distances, key=lambda name: (-distances[name], name)):
        if sizes[name] <= budget:
            kept.append(name)
            budget -= sizes[name]
    return tuple(kept)


def _quantize(before: Any, source: Path, out: Path, options: Options, low: list[str], high: tuple[str, ...]) -> None:
    import onnx

    model = {4: lambda: nbits.gather4(before, nbits.Layout()), 8: lambda: gather8(before)}.get(
        options.embedding, lambda: copy_of(before)
    )()
    if options.low == "int4" and low:
        model = nbits.quantize(model, nbits.Layout(), "rtn", source=source, scratch=out, calibration="", only=low)
    in_int8 = [*(low if options.low == "int8" else ()), *(high if options.high == "int8" else ())]
    if in_int8:
        int8_dynamic.quantize(model, out, ("MatMul",), int8_dynamic.Options(), only=in_int8)
    else:
        onnx.save(model, out)


def _facts(before: Any, after: Any, kinds: tuple[str, ...], options: Options, high: tuple[str, ...]) -> tuple[str, ...]:
    mixture = f"{options.low}, the most sensitive in {options.high}"
    promised = {"MatMul": mixture, "Gather": f"{options.embedding} bits in blocks"}
    found = graph.facts(before, after, {kind: promised[kind] for kind in kinds})
    names = ", ".join(high) if high else "none"
    return (*found, f"{len(high)} matrices in {options.high}, most sensitive first: {names}")


def _skipped(
    before: Any, after: Any, kinds: tuple[str, ...], options: Options, high: tuple[str, ...]
) -> tuple[str, ...]:
    meant = set(high) if options.high == "fp32" else set()
    return tuple(name for name in graph.skipped(before, after, kinds) if name not in meant)


RECIPE = Recipe(
    "mixed",
    "4 bits for most matrices, more for those that the answers depend on most",
    Options,
    apply,
    needs=frozenset({"sensitivity"}),
)
"""Listed in the registry."""
