"""Which token an answer goes on with, and how likely it was.

Owns the random numbers of one answer: a generator of its own, one number a token, so that the same seed gives the same
answer whoever else is in the batch. How a token is drawn is `edge.choice`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.dialogue import Sampling
from edgewise.edge.choice import Odds, draw
from edgewise.edge.constrained import Constraint
from edgewise.errors import CloudResponseError

_SEEDS = 2**64 - 1


class Choice(NamedTuple):
    """A token that was chosen.

    Attributes:
        token: Its id.
        logprob: Its natural log-probability under the model.
        margin: Its probability minus that of the likeliest other one, where it was asked for.
        top: The likeliest ids with their log-probabilities, the likeliest first.
    """

    token: int
    logprob: float
    margin: float | None = None
    top: Sequence[tuple[int, float]] = ()


class Chooser:
    """Chooses the tokens of one answer.

    Args:
        sampling: By which rules.
        vocabulary: Ids that stand for something; a model may have more logits.
        constraint: What they have to keep to, or None.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, constraint: Constraint | None = None) -> None:
        self._constraint = constraint
        self._sampling = sampling
        self._vocabulary = vocabulary
        self._random = np.random.default_rng(None if sampling.seed is None else sampling.seed & _SEEDS)

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow."""
        return self._constraint is not None and self._constraint.is_over

    def choose(self, logits: NDArray[np.float32], *, first: bool = False) -> Choice:
        """Choose one token.

        Args:
            logits: Shape (vocabulary,).
            first: Whether its margin is asked for.

        Raises:
            InputError: What it has to keep to is too complex to go on with.
            CloudResponseError: The logits are no numbers.
        """
        logits = logits[: self._vocabulary]
        if not np.isfinite(logits.max()):
            raise CloudResponseError("The model computed logits that are no numbers.", "See the service's log.")
        token = self._chosen(logits)
        odds = Odds(logits)
        top = [(other, odds.logprob(other)) for other in odds.likeliest(self._sampling.top_logprobs)]
        return Choice(token, odds.logprob(token), odds.margin(token) if first else None, top)

    def _chosen(self, logits: NDArray[np.float32]) -> int:
        constraint, rules = self._constraint, self._sampling
        allowed = logits if constraint is None else constraint.masked(logits)
        token = int(allowed.argmax()) if rules.is_greedy else draw(allowed, rules, float(self._random.random()))
        if constraint is not None:
            constraint.take(token)
        return token
