"""What usual ways of choosing would have given, beside the plan, on the certifying part. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgewise.jobs.planning.choice import Choice, Evidence, Pair, Pricing, bound_of, written
from edgewise.jobs.planning.job import PlanJob
from edgewise.jobs.targets import losses
from edgewise.quantize.joint import Practice
from edgewise.quantize.statistics import upper_rate
from edgewise.router.certificate import TARGET_ACCURACY, TARGET_SELECTIVE


def practices(
    choice: Choice,
    pairs: Sequence[Pair],
    job: PlanJob,
    pricing: Pricing,
    *,
    baseline: str | None,
    most_accurate: str | None,
) -> tuple[Practice, ...]:
    """What two usual ways of choosing would have given on the certifying part.

    Args:
        choice: The plan.
        pairs: Every candidate with every signal.
        job: What was asked for.
        pricing: What a request costs.
        baseline: The float32 candidate, or None.
        most_accurate: The candidate of the highest accuracy, or None.
    """
    by_name = {pair.evidence.name: pair.evidence for pair in pairs}
    found = []
    quantized = _quantized(choice, baseline)
    if baseline in by_name and quantized is not None:
        tuned_on, used_on = by_name[baseline], by_name[quantized]
        threshold = bound_of(_with(tuned_on, choice.pair), job, job.delta).threshold
        name = f"threshold tuned on {baseline}, used on {quantized}"
        found.append(_practice(name, used_on, choice.pair.signal, threshold, job, pricing))
    if most_accurate in by_name:
        best = by_name[most_accurate]
        first = next((pair for pair in pairs if pair.evidence is best and pair.signal == best.signal), None)
        plain = first or next(pair for pair in pairs if pair.evidence is best)
        threshold = bound_of(plain, job, job.delta).threshold
        found.append(_practice("most accurate recipe, then its threshold", best, plain.signal, threshold, job, pricing))
    return tuple(found)


def _quantized(choice: Choice, baseline: str | None) -> str | None:
    """The plan's candidate, or the cheapest other one where the plan is the baseline itself."""
    name = choice.pair.evidence.name
    return name if name != baseline else next((o.recipe for o in choice.options if o.recipe != baseline), None)


def _with(candidate: Evidence, pair: Pair) -> Pair:
    """A candidate with another pair's signal."""
    return replace(pair, evidence=candidate)


def _practice(
    name: str, candidate: Evidence, signal: str, threshold: float, job: PlanJob, pricing: Pricing
) -> Practice:
    scores = candidate.scores(signal)
    lost = losses(job.target, candidate.certifying)
    with np.errstate(invalid="ignore"):
        local = scores > threshold
    items = int(local.sum()) if job.target == TARGET_SELECTIVE else len(scores)
    total = float(lost[local].sum())
    bound = None if job.target == TARGET_ACCURACY else upper_rate(round(total), items, job.delta) if items else 0.0
    share = float(local.mean())
    return Practice(
        name=name,
        recipe=candidate.name,
        signal=signal,
        threshold=written(threshold),
        local_share=share,
        risk=total / items if items else 0.0,
        risk_bound=bound,
        price=pricing(candidate.edge_ms, share),
    )
