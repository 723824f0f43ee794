"""Where a request is answered, as its policy and the promise of that moment have it. Owns the lock around that."""

from __future__ import annotations

from typing import NamedTuple

from edgewise.contracts import Action, Decision, Prediction
from edgewise.router.judgement import Judgement
from edgewise.router.promise import Promise
from edgewise.router.recall import Recall
from edgewise.router.turn import Turn


class Decided(NamedTuple):
    """Where a request is answered, and what the edge model says unless it was not asked."""

    decision: Decision
    prediction: Prediction | None


class Deciding:
    """Asks policies.

    Args:
        judgement: Scores and decides.
        promise: Whose lock guards what decisions rest on and change.
        recall: Told of local decisions: what they rest on now is what their answers are kept under.
    """

    def __init__(self, judgement: Judgement, promise: Promise, recall: Recall) -> None:
        self._judgement = judgement
        self._lock = promise.lock
        self._recall = recall

    def before(self, turn: Turn) -> Decision | None:
        """What is decided without the edge model, if anything is."""
        with self._lock:
            return turn.policy.before(turn.request)

    def after(self, turn: Turn, before: Decision | None, prediction: Prediction) -> Decided:
        """What is decided with what the edge model says."""
        with self._lock:
            decision = before or self._judgement.decide(turn.policy, turn.request, prediction)
            if decision.action is Action.LOCAL and turn.draw is None:
                self._recall.renew_key(turn)
        return Decided(decision, prediction)
