"""What a plan is told as: the values of `plan.json`, and its first line. Pure.

Owns the words. What was chosen, and what is proved of it, is told from outside.
"""

from __future__ import annotations

from edgewise.contracts import Certificate
from edgewise.jobs.parts import Part
from edgewise.jobs.planning.choice import Choice
from edgewise.jobs.planning.job import PlanJob
from edgewise.jobs.planning.opening import Work
from edgewise.jobs.pricing import Costs
from edgewise.quantize import joint
from edgewise.quantize.joint import JointPlan, Outcome, Price
from edgewise.router.certificate import TARGET_ACCURACY, TARGET_AGREEMENT


def result(
    job: PlanJob,
    work: Work,
    choice: Choice,
    costs: Costs,
    certificate: Certificate,
    others: tuple[joint.Practice, ...],
) -> JointPlan:
    """Everything that was found out, as `plan.json` holds it."""
    cloud_only = costs.cloud_only()
    chosen = next(option for option in choice.options if option.chosen)
    outcome: Outcome = "planned"
    if choice.bound.local_share == 0:
        outcome = "nothing_certifies"
    elif chosen.price.total > cloud_only.total:
        outcome = "cloud_is_cheaper"
    return JointPlan(
        headline=headline(outcome, chosen, cloud_only, certificate),
        outcome=outcome,
        options=choice.options,
        cloud_only=cloud_only,
        practices=others,
        target=job.target,
        alpha=job.alpha,
        delta=job.delta,
        pay="share" if job.pay == "share" else "split",
        m=choice.m,
        reference=(certificate.reference.name, certificate.reference.version),
        tuning=_part(work.tuning.part),
        certifying=_part(work.certifying.part),
        cost=costs.told(),
        certificate_id=certificate.id,
        model=job.model.resolve().name,
        created=certificate.created,
        runtime=certificate.runtime,
        isa=certificate.isa,
    )


def _part(part: Part) -> joint.Part:
    return joint.Part(len(part.examples), part.digest)


def headline(outcome: Outcome, chosen: joint.Option, cloud_only: Price, certificate: Certificate) -> str:
    """The first line: what is promised and what it saves, or why there is no plan."""
    bound, who = certificate.bound, f"{chosen.recipe} with {chosen.signal}"
    alpha, confidence = f"{100 * bound.alpha:.4g} %", f"{100 * (1 - bound.delta):.4g} % confidence"
    if outcome == "nothing_certifies":
        return f"No threshold of {who} keeps the promise of at most {alpha} with {confidence}: all goes to the cloud."
    own, alone = (f"{1e3 * price.total:.4g}" for price in (chosen.price, cloud_only))
    if outcome == "cloud_is_cheaper":
        return f"The cloud alone is cheaper: 1,000 requests cost {alone} there, and {own} with {who} before it."
    promise = {
        TARGET_AGREEMENT: f"at most {alpha} of all requests there and differently from {certificate.reference.name}",
        TARGET_ACCURACY: f"at the cost of at most {alpha} of accuracy",
    }.get(certificate.target, f"at most {alpha} of those wrongly")
    calls = f"1,000 requests make {1e3 * (1 - bound.local_share):.0f} cloud calls"
    saved = f" and cost {own} instead of {alone}" if cloud_only.total > 0 else ""
    return f"{who} answers {100 * bound.local_share:.4g} % at the edge, {promise}, with {confidence}. {calls}{saved}."
