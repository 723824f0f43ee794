"""One and the same decision for every request: the baselines, and data that must not leave. Pure."""

from __future__ import annotations

from edgewise.contracts import Action, Decision, Prediction, Reason, Request


class Always:
    """Takes one decision.

    Args:
        action: What it decides.
        reason: Why; also the policy's name.
    """

    def __init__(self, action: Action, reason: Reason) -> None:
        self.name = str(reason)
        self._decision = Decision(action=action, reason=reason, policy=self.name)

    def before(self, request: Request) -> Decision | None:
        """The decision."""
        return self._decision

    def after(self, request: Request, prediction: Prediction, score: float) -> Decision:
        """The same decision."""
        return self._decision


EDGE_ONLY = Always(Action.LOCAL, Reason.EDGE_ONLY)
CLOUD_ONLY = Always(Action.ESCALATE, Reason.CLOUD_ONLY)
LOCAL_ONLY = Always(Action.LOCAL, Reason.LOCAL_ONLY)
