"""Policies: where a request is answered. Pure.

A policy sees the request before the edge model runs and the score after it. Owns no budget, no breaker and no cloud:
those can only turn an escalation into a provisional answer, never into a final local one.
"""

from __future__ import annotations

from edgewise.contracts import Action, Certificate, DataPolicy, Decision, Mode, Policy, Reason, Request
from edgewise.errors import RequestError


class CertifiedThreshold:
    """Answers locally iff the certificate covers the score; with no certificate in force it escalates everything."""

    name = "certified_threshold"

    def __init__(self, certificate: Certificate | None) -> None:
        self._certificate = certificate

    def before(self, request: Request) -> Decision | None:
        """Nothing is known before the edge model ran."""
        return None

    def after(self, request: Request, score: float) -> Decision:
        """Local iff score > threshold; NaN compares false and escalates."""
        if self._certificate is None:
            return Decision(action=Action.ESCALATE, reason=Reason.CERTIFICATE_VOID, policy=self.name, score=score)
        local = score > self._certificate.bound.threshold
        return Decision(
            action=Action.LOCAL if local else Action.ESCALATE,
            reason=Reason.CONFIDENT if local else Reason.BELOW_THRESHOLD,
            policy=self.name,
            score=score,
            threshold=self._certificate.bound.threshold,
            certificate_id=self._certificate.id,
        )


class Always:
    """Takes one and the same decision for every request; the baselines, and data that must not leave."""

    def __init__(self, action: Action, reason: Reason) -> None:
        self.name = str(reason)
        self._decision = Decision(action=action, reason=reason, policy=self.name)

    def before(self, request: Request) -> Decision | None:
        """The decision."""
        return self._decision

    def after(self, request: Request, score: float) -> Decision:
        """The same decision."""
        return self._decision


EDGE_ONLY = Always(Action.LOCAL, Reason.EDGE_ONLY)
CLOUD_ONLY = Always(Action.ESCALATE, Reason.CLOUD_ONLY)
LOCAL_ONLY = Always(Action.LOCAL, Reason.LOCAL_ONLY)


def policy_for(request: Request, mode: Mode, routed: Policy) -> Policy:
    """The policy a request falls under: its data policy first, then its mode, then the gateway's own.

    Args:
        request: The request.
        mode: Its mode, the gateway's default filled in.
        routed: The policy of guarded and speculative requests.

    Raises:
        RequestError: It must stay local and asks for the cloud only.
    """
    if request.data_policy is DataPolicy.LOCAL_ONLY:
        if mode is Mode.CLOUD_ONLY:
            raise RequestError(
                "mode",
                "mode is 'cloud_only' and data_policy is 'local_only': no place is left to answer.",
                "Drop one of the two.",
            )
        return LOCAL_ONLY
    if mode is Mode.EDGE_ONLY:
        return EDGE_ONLY
    if mode is Mode.CLOUD_ONLY:
        return CLOUD_ONLY
    return routed
