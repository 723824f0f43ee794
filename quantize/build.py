"""Builds one candidate's graph in a worker process. Owns no technique: `recipes/` and `transforms/` do."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgewise.quantize.recipes import RECIPES, Aids, Outcome
from edgewise.quantize.transforms import TRANSFORMS


class BuildJob(msgspec.Struct, frozen=True):
    """Apply transforms and a recipe.

    Attributes:
        recipe: The recipe's name.
        options: Its options, defaults included.
        source: The graph that it reads.
        out: Where the quantized graph goes.
        seed: Seed of whatever it draws.
        aids: What it may read beside the graph.
        transforms: Names of the transforms.
    """

    recipe: str
    options: dict[str, str | int | float | bool]
    source: str
    out: str
    seed: int
    aids: Aids = Aids()
    transforms: tuple[str, ...] = ()


def build_here(job: BuildJob) -> Outcome:
    """Apply the transforms that come before the recipe, the recipe, and the transforms that come after it.

    A transform that finds nothing to do makes the whole inapplicable: it would be the candidate without it once more.

    Raises:
        InputError: The graph, or what should be read beside it, cannot be used.
    """
    out = Path(job.out)
    steps: list[Path] = []
    try:
        return _build(job, out, steps)
    finally:
        for step in steps:
            step.unlink(missing_ok=True)
            step.with_suffix(".feeds.npz").unlink(missing_ok=True)


def _build(job: BuildJob, out: Path, steps: list[Path]) -> Outcome:
    recipe = RECIPES[job.recipe]
    chosen = [TRANSFORMS[name] for name in TRANSFORMS if name in job.transforms]
    graph, aids, outcomes = Path(job.source), job.aids, []

    def step(name: str) -> Path:
        steps.append(out.with_suffix(f".{name}.onnx"))
        return steps[-1]

    for kind in chosen:
        if not kind.after:
            before, graph = graph, step(kind.name)
            changed = kind.apply(before, graph, aids=aids)
            if changed.outcome.inapplicable:
                return changed.outcome
            outcomes.append(changed.outcome)
            aids = changed.aids
    options = msgspec.convert(job.options, recipe.options)
    quantized = step("quantized")
    outcomes.append(recipe.apply(graph, quantized, options, seed=job.seed, aids=aids))
    if outcomes[-1].inapplicable:
        return outcomes[-1]
    for kind in chosen:
        if kind.after:
            before, quantized = quantized, step(kind.name)
            outcomes.append(kind.apply(before, quantized, aids=aids).outcome)
            if outcomes[-1].inapplicable:
                return outcomes[-1]
    if recipe.prepared or chosen:
        _forget_shapes(quantized, out)
    else:
        quantized.replace(out)
    return _merge(outcomes)


def _forget_shapes(graph: Path, out: Path) -> None:
    """Write the graph without the shapes that its tools noted down.

    With them onnxruntime fuses every addition with the normalization behind it into a node that takes several times as
    long as the two alone; it infers what it needs by itself.
    """
    import onnx

    model = onnx.load(graph)
    model.graph.ClearField("value_info")
    onnx.save(model, out)


def _merge(outcomes: list[Outcome]) -> Outcome:
    return Outcome(
        facts=tuple(fact for outcome in outcomes for fact in outcome.facts),
        skipped=tuple(dict.fromkeys(name for outcome in outcomes for name in outcome.skipped)),
        tokenizer=next((outcome.tokenizer for outcome in outcomes if outcome.tokenizer), ""),
        max_unknown_share=next(
            (outcome.max_unknown_share for outcome in outcomes if outcome.max_unknown_share is not None), None
        ),
        unknown_share=next((outcome.unknown_share for outcome in outcomes if outcome.unknown_share is not None), None),
    )
