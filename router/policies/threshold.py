"""The certified threshold, and what stands in its place while no certificate covers local answers. Pure."""

from __future__ import annotations

from edgewise.contracts import Action, Certificate, Decision, Policy, Prediction, Reason, Request
from edgewise.router.policies.base import PolicyKind, PolicyPlugs, PolicySettings

NAME = "certified_threshold"

BY_LABEL = "label"
"""What `Groups.by` holds where the label that the edge model predicts is the group."""


class CertifiedThreshold:
    """Answers locally iff the certificate covers the score.

    Args:
        certificate: With groups, each has a threshold of its own, and a request of no listed group is escalated.
    """

    name = NAME

    def __init__(self, certificate: Certificate) -> None:
        self._id = certificate.id
        self._threshold = certificate.bound.threshold
        # Taken out of the certificate once, since a decision may cost microseconds only.
        groups = certificate.groups
        self._by = None if groups is None else groups.by
        self._by_group = {} if groups is None else {name: bound.threshold for name, bound in groups.bounds.items()}

    def before(self, request: Request) -> Decision | None:
        """Nothing is known before the edge model ran."""
        return None

    def after(self, request: Request, prediction: Prediction, score: float) -> Decision:
        """Local iff score > threshold; NaN compares false and escalates."""
        threshold = self._threshold if self._by is None else self._of_group(request, prediction)
        if threshold is None:
            return Decision(action=Action.ESCALATE, reason=Reason.UNLISTED_GROUP, policy=NAME, score=score)
        local = score > threshold
        return Decision(
            action=Action.LOCAL if local else Action.ESCALATE,
            reason=Reason.CONFIDENT if local else Reason.BELOW_THRESHOLD,
            policy=NAME,
            score=score,
            threshold=threshold,
            certificate_id=self._id,
        )

    def _of_group(self, request: Request, prediction: Prediction) -> float | None:
        group = prediction.output if self._by == BY_LABEL else request.attributes.get(self._by or "")
        return self._by_group.get(group) if isinstance(group, str) else None


class RaisedThreshold:
    """Answers locally above a threshold that was raised after an audit alarm; nothing certifies it yet.

    Args:
        threshold: The raised threshold.
    """

    name = NAME

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def before(self, request: Request) -> Decision | None:
        """Nothing is known before the edge model ran."""
        return None

    def after(self, request: Request, prediction: Prediction, score: float) -> Decision:
        """Local iff score > threshold, and without a certificate id either way."""
        local = score > self._threshold
        return Decision(
            action=Action.LOCAL if local else Action.ESCALATE,
            reason=Reason.THRESHOLD_RAISED if local else Reason.BELOW_THRESHOLD,
            policy=NAME,
            score=score,
            threshold=self._threshold,
        )


class Uncovered:
    """Escalates everything, since no certificate is in force.

    Args:
        reason: Why none is.
    """

    name = NAME

    def __init__(self, reason: Reason) -> None:
        self._reason = reason

    def before(self, request: Request) -> Decision | None:
        """The edge model runs all the same: its answer is wanted where the cloud fails, its score where audits look."""
        return None

    def after(self, request: Request, prediction: Prediction, score: float) -> Decision:
        """Escalate."""
        return Decision(action=Action.ESCALATE, reason=self._reason, policy=NAME, score=score)


def _build(settings: PolicySettings, plugs: PolicyPlugs) -> Policy:
    return plugs.certified


KIND = PolicyKind("threshold", _build, certified=True)
