"""From the answers to the certifying items to what they prove.

Owns the choice of the bound and what goes with it into a certificate. The mathematics is `router.certificate`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import Bound, Groups
from edgewise.errors import CertificateError
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
from edgewise.router.signals import SIGNALS

_TENTHS = np.arange(1, 10) / 10


@dataclass(frozen=True)
class Proof:
    """What the certifying items prove.

    Attributes:
        bound: The bound; with groups, the one of the group with the fewest local answers.
        groups: Bounds by group, or None.
        curve: What would be certified at other bounds on the risk; empty with groups.
        scores: Scores of the items, shape (n,).
        listed: Which items are of a listed group, shape (n,); None without groups.
    """

    bound: Bound
    groups: Groups | None
    curve: tuple[CurveRow, ...]
    scores: NDArray[np.float64]
    listed: NDArray[np.bool_] | None = None

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
        CertificateError: No item has a score.
    """
    fitted: Fitted | None = None if tuned is None else tuned.fitted
    scores = served_scores(answered.part.examples, answered.edge, signal, fitted)
    _refuse_unscored(answered, scores, signal, fitted)
    if names:
        members = answered.part.groups or [str(prediction.output) for prediction in answered.edge]
        listed = np.array([member in names for member in members], dtype=bool)
        groups = _grouped(job, answered, scores, members, listed, names)
        fewest = min(groups.bounds.values(), key=lambda bound: bound.local_share * bound.n)
        return Proof(fewest, groups, (), scores, listed)
    thresholds = None if tuned is None else (tuned.scores, tuned.losses)
    bound_at: Bounder = bounder(job.target, scores, answered, delta=job.delta, tuned=thresholds)
    return Proof(bound_at(job.alpha), None, curve(bound_at, scores, answered, job.alpha, labelled=labelled), scores)


def _refuse_unscored(answered: Answered, scores: NDArray[np.float64], signal: str, fitted: Fitted | None) -> None:
    """Without a single score nothing can be local, and a threshold would be found all the same."""
    if not np.isnan(scores).all():
        return
    examples, edge = answered.part.examples, answered.edge
    others = [name for name in SIGNALS if not np.isnan(served_scores(examples, edge, name, fitted)).all()]
    raise CertificateError(
        f"No item of {answered.part.path} has a score by the signal {signal!r}.",
        f"Choose one that gives scores: {', '.join(others)}."
        if others
        else "All are out of distribution or too complex: certify on items that the model was made for, or leave out "
        "--veto and --complexity.",
    )


def _grouped(
    job: CertifyJob,
    answered: Answered,
    scores: NDArray[np.float64],
    members: Sequence[str],
    listed: NDArray[np.bool_],
    names: tuple[str, ...],
) -> Groups:
    """A bound for each group; items of other groups, whose requests are escalated, are left out."""
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
