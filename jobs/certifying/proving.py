"""From the answers to the certifying items to what they prove.

Owns the choice of the bound and what goes with it into a certificate. The mathematics is `router.certificate`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import Bound, Groups
from edgewise.jobs.certifying.job import CertifyJob
from edgewise.jobs.certifying.tuning import Tuned
from edgewise.jobs.parts import Answered
from edgewise.jobs.scoring import served_scores
from edgewise.jobs.targets import (
    Bounder,
    CurveRow,
    bounder,
    cloud_right,
    curve,
    disagreements,
    edge_right,
)
from edgewise.router.certificate import certify_groups
from edgewise.router.evaluation import CurvePoint, operating_curve
from edgewise.router.fitted import Fitted
from edgewise.router.policies.threshold import BY_LABEL

_TENTHS = np.arange(1, 10) / 10


@dataclass(frozen=True)
class Proof:
    """What the certifying items prove.

    Attributes:
        bound: The bound; with groups, the one of the group with the fewest local answers.
        groups: Bounds by group, or None.
        curve: What would be certified at other bounds on the risk; empty with groups.
        scores: Scores of the items, shape (n,).
    """

    bound: Bound
    groups: Groups | None
    curve: tuple[CurveRow, ...]
    scores: NDArray[np.float64]

    @property
    def deciles(self) -> tuple[float, ...]:
        """The nine inner deciles of the scores; none where no item has one."""
        known = self.scores[~np.isnan(self.scores)]
        return tuple(np.quantile(known, _TENTHS).tolist()) if len(known) else ()

    @property
    def unscored_share(self) -> float:
        """Share of the items that have no score."""
        return float(np.isnan(self.scores).mean())


def prove(
    job: CertifyJob, answered: Answered, signal: str, tuned: Tuned | None, names: tuple[str, ...], *, labelled: bool
) -> Proof:
    """Find the certified threshold, or one a group.

    Args:
        job: Target, alpha and delta.
        answered: The certifying items.
        signal: Name of the score.
        tuned: What the tuning part gave, or None.
        names: Groups; none for one threshold.
        labelled: Whether the items have labels that answers can be held to.

    Raises:
        TooFewItemsError: The items, or those of a group, cannot certify anything.
    """
    fitted: Fitted | None = None if tuned is None else tuned.fitted
    scores = served_scores(answered.part.examples, answered.edge, signal, fitted)
    if names:
        groups = _grouped(job, answered, scores, names)
        return Proof(min(groups.bounds.values(), key=lambda bound: bound.local_share * bound.n), groups, (), scores)
    thresholds = None if tuned is None else (tuned.scores, tuned.losses)
    bound_at: Bounder = bounder(job.target, scores, answered, delta=job.delta, tuned=thresholds)
    return Proof(bound_at(job.alpha), None, curve(bound_at, scores, answered, job.alpha, labelled=labelled), scores)


def _grouped(job: CertifyJob, answered: Answered, scores: NDArray[np.float64], names: tuple[str, ...]) -> Groups:
    """A bound for each group; items of other groups, whose requests are escalated, are left out."""
    members = answered.part.groups or [str(prediction.output) for prediction in answered.edge]
    listed = np.array([member in names for member in members], dtype=bool)
    bounds = certify_groups(
        scores[listed],
        disagreements(answered)[listed],
        [member for member in members if member in names],
        names=names,
        alpha=job.alpha,
        delta=job.delta,
    )
    return Groups(by=job.group_by or BY_LABEL, bounds=bounds)


def share_curve(answered: Answered, scores: NDArray[np.float64], *, labelled: bool) -> list[CurvePoint]:
    """Accuracy, or without labels the agreement with the cloud, at every share that is answered locally."""
    if labelled:
        return operating_curve(scores, edge_right(answered), cloud_right(answered))
    return operating_curve(scores, ~disagreements(answered), np.ones(len(scores), dtype=bool))


def certified_point(points: list[CurvePoint], proof: Proof) -> CurvePoint:
    """Where the certified thresholds lie on the curve."""
    bounds = [proof.bound] if proof.groups is None else list(proof.groups.bounds.values())
    local = sum(round(bound.local_share * bound.n) for bound in bounds)
    return points[local]
