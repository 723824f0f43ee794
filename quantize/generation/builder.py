"""Builds one precision of a language model with onnxruntime-genai's builder, and proves what it promised.

Owns the call of the builder and the checks on what it wrote: weights off the graph, the tokenizer by its round trip.
`genai_here` runs in a worker process: the builder loads torch and prints a lot.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgewise.errors import CheckpointError, MissingExtraError
from edgewise.quantize.generation import graph
from edgewise.quantize.generation.embedding import quantize_embedding
from edgewise.quantize.generation.tokenizer import require_round_trip
from edgewise.quantize.technique import Outcome

GRAPH = "model.onnx"


class GenaiJob(msgspec.Struct, frozen=True):
    """Build a language model.

    Attributes:
        recipe: Its name in `GENERATION_RECIPES`.
        options: Its options, defaults included.
        source: The checkpoint's folder.
        out: Where the built folder goes; exists and is empty.
        seed: Seed of whatever it draws.
    """

    recipe: str
    options: dict[str, str | int | float | bool]
    source: str
    out: str
    seed: int


@dataclass(frozen=True)
class Order:
    """What the builder is asked for, and what it must deliver.

    Attributes:
        precision: In its own words.
        extra: Its extra options.
        bits: Most bits a weight may have, embedding and head included.
        lowest: Fewest bits; some weights must have these and some `bits`. None where all have the same.
    """

    precision: str
    extra: Mapping[str, str]
    bits: int
    lowest: int | None = None


def genai_here(job: GenaiJob) -> Outcome:
    """Apply the recipe in this process.

    Raises:
        CheckpointError: The builder cannot build it, or its tokenizer does not survive packing.
    """
    from edgewise.quantize.generation.recipes import GENERATION_RECIPES
    from edgewise.quantize.technique import Aids

    recipe = GENERATION_RECIPES[job.recipe]
    options = msgspec.convert(job.options, recipe.options)
    return recipe.apply(Path(job.source), Path(job.out), options, seed=job.seed, aids=Aids())


def build(source: Path, out: Path, order: Order) -> Outcome:
    """Build the checkpoint at `source` into the folder `out`.

    Raises:
        CheckpointError: The builder cannot build it, it wrote something else than was ordered, or the tokenizer does
            not survive packing.
        MissingExtraError: onnxruntime-genai is not installed.
    """
    _call(source, out, order)
    mended = graph.mend_shared_table(out / GRAPH)
    if order.bits < graph.FLOAT:
        quantize_embedding(out / GRAPH, order.bits, int(order.extra["block_size"]))
    built = graph.read(out / GRAPH)
    _require_lowest(built, order)
    require_round_trip(source, out)
    table = ("the embedding was pointed at the head's table, which the builder had named wrongly",) if mended else ()
    return Outcome((*built.facts(), *table), built.above(order.bits))


def _call(source: Path, out: Path, order: Order) -> None:
    try:
        from onnxruntime_genai.models import builder
    except ImportError as e:
        raise MissingExtraError("Building a language model", "quantize") from e
    extra: dict[str, Any] = dict(order.extra)
    cache = out / ".cache"
    try:
        builder.check_extra_options(None, str(source), str(out), order.precision, "cpu", str(cache), extra)
        builder.create_model(None, str(source), str(out), order.precision, "cpu", str(cache), **extra)
    except NotImplementedError as e:
        raise CheckpointError(f"onnxruntime-genai's builder cannot build {source}: {e}", "Give another model.") from e
    except Exception as e:  # the builder, torch and transformers each raise their own
        said = (str(e).strip().splitlines() or [""])[0].rstrip(".")
        problem = f"onnxruntime-genai's builder failed on {source}: {type(e).__name__}{': ' if said else ''}{said}."
        # What concerns the model fails the baseline already, which has no blocks.
        blocks = "block_size" in order.extra
        unknown = "It may not know such a config.json: compare it with a published model's, or give another model."
        raise CheckpointError(problem, "Try another block size." if blocks else unknown) from e
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _require_lowest(built: graph.Built, order: Order) -> None:
    """Fewer bits than promised would pass for a smaller model: it must be what its name says."""
    found = {matrix.bits for matrix in (*built.matrices, built.head)}
    lowest = order.lowest or order.bits
    if min(found) < lowest or (order.lowest and not {order.lowest, order.bits} <= found):
        raise CheckpointError(
            f"onnxruntime-genai's builder wrote weights of {sorted(found)} bits, not of {lowest} to {order.bits}.",
            "Check its version.",
        )
