"""A coin: the baseline that every router has to beat. Pure; the randomness is passed in."""

from __future__ import annotations

from collections.abc import Callable

from edgewise.contracts import Action, Decision, Policy, Prediction, Reason, Request
from edgewise.errors import ConfigError
from edgewise.router.policies.base import PolicyKind, PolicyPlugs, PolicySettings


class RandomShare:
    """Answers a random share locally, uncertified.

    Args:
        local_share: Probability of a local answer, in [0, 1].
        uniform: Numbers in [0, 1).

    Raises:
        ConfigError: The share is no probability.
    """

    name = "random"

    def __init__(self, local_share: float, uniform: Callable[[], float]) -> None:
        if not 0 <= local_share <= 1:
            raise ConfigError(f"policy.local_share is {local_share!r}.", "Give a probability between 0 and 1.")
        self._local_share = local_share
        self._uniform = uniform

    def before(self, request: Request) -> Decision | None:
        """Toss the coin now: what is escalated needs no edge model."""
        return self._toss()

    def after(self, request: Request, prediction: Prediction, score: float) -> Decision:
        """Toss the coin, whatever the score."""
        return self._toss()

    def _toss(self) -> Decision:
        local = self._uniform() < self._local_share
        return Decision(action=Action.LOCAL if local else Action.ESCALATE, reason=Reason.RANDOM, policy=self.name)


def _build(settings: PolicySettings, plugs: PolicyPlugs) -> Policy:
    return RandomShare(settings.local_share, plugs.uniform)


KIND = PolicyKind("random", _build, certified=False)
