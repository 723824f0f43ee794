"""Builds one candidate's graph in a worker process. Owns no technique: `recipes/` does."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgewise.quantize.recipes import RECIPES, Aids, Outcome


class BuildJob(msgspec.Struct, frozen=True):
    """Apply a recipe.

    Attributes:
        recipe: Its name.
        options: Its options, defaults included.
        source: The graph that it reads.
        out: Where the quantized graph goes.
        seed: Seed of whatever it draws.
        aids: What it may read beside the graph.
    """

    recipe: str
    options: dict[str, str | int | float | bool]
    source: str
    out: str
    seed: int
    aids: Aids = Aids()


def build_here(job: BuildJob) -> Outcome:
    """Apply the recipe in this process."""
    recipe = RECIPES[job.recipe]
    options = msgspec.convert(job.options, recipe.options)
    return recipe.apply(Path(job.source), Path(job.out), options, seed=job.seed, aids=job.aids)
