"""Speculative sampling: which drafted tokens stand, what follows them, and when drafting pays.

Pure rules over numbers that are passed in; runs no model, draws no random number and knows no clock.

A cheap model drafts k tokens, each drawn from a distribution q of its own. The target looks at all of them in one
forward pass and keeps the longest run that it can, then adds one token of its own. What comes out is distributed as the
target alone would have written it, whatever the draft was: a bad draft costs time and nothing else. Sources: Leviathan,
Kalman & Matias 2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1 and appendix A.1; Chen et
al. 2023, "Accelerating Large Language Model Decoding with Speculative Sampling", algorithm 2 and theorem 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewise.dialogue import Sampling
from edgewise.edge.choice import candidates

Probabilities: TypeAlias = NDArray[np.float64]


class Drawn(NamedTuple):
    """What one drafted token was drawn from; every id that is not named had probability 0.

    Attributes:
        ids: Distinct ids, shape (m,).
        probabilities: Theirs, shape (m,), each above 0; taken relative to their sum.
    """

    ids: NDArray[np.integer[Any]]
    probabilities: Probabilities


class Verdict(NamedTuple):
    """What became of a draft.

    Attributes:
        accepted: How many of its tokens stand, from the first one on.
        token: The target's own token behind them.
    """

    accepted: int
    token: int


def target_distribution(logits: NDArray[np.float32], sampling: Sampling) -> Probabilities:
    """What plain sampling draws from: what `edge.choice` draws from, by the same rule to the last tie.

    Args:
        logits: Shape (vocabulary,).
        sampling: A temperature above 0, `top_k` and `top_p`.

    Returns:
        Shape (vocabulary,), sums to 1.
    """
    tokens, sums = candidates(logits, sampling)
    found: Probabilities = np.zeros(logits.shape)
    found[tokens] = np.diff(sums, prepend=0.0) / sums[-1]
    return found


def accept_greedy(draft: Sequence[int], likeliest: Sequence[int]) -> Verdict:
    """The draft stands as long as it says what the target would; then the target's own word.

    Args:
        draft: k ids.
        likeliest: The target's likeliest id before each drafted token, and behind the last: k + 1 ids.
    """
    accepted = next((at for at, token in enumerate(draft) if token != likeliest[at]), len(draft))
    return Verdict(accepted, int(likeliest[accepted]))


def accept_sampled(
    draft: Sequence[int],
    drawn: Sequence[Drawn | None],
    target: Callable[[int], Probabilities],
    uniforms: Sequence[float],
) -> Verdict:
    """Speculative sampling: accept x with probability min(1, p(x) / q(x)), else draw from norm(max(p - q, 0)).

    Where all k are accepted, one more is drawn from p behind them.

    Args:
        draft: k ids.
        drawn: What each was drawn from, with the id itself in it; None where it was not drawn: q is 1 there.
        target: Gives p, shape (vocabulary,), at each of the k + 1 places; asked in order, as far as needed.
        uniforms: k + 1 independent numbers, uniform in [0, 1), that the draft knew nothing of.
    """
    for at, token in enumerate(draft):
        p, q = target(at), drawn[at]
        if uniforms[at] * _probability(q, token) >= p[token]:
            return Verdict(at, draw(_residual(p, q, token), uniforms[len(draft)]))
    return Verdict(len(draft), draw(target(len(draft)), uniforms[len(draft)]))


def _probability(q: Drawn | None, token: int) -> float:
    if q is None:
        return 1.0
    return float(q.probabilities[q.ids == token].sum() / q.probabilities.sum())


def _residual(p: Probabilities, q: Drawn | None, token: int) -> Probabilities:
    """max(p - q, 0), relative to nothing yet."""
    rest = p.copy()
    if q is None:
        rest[token] = 0.0
    else:
        rest[q.ids] = np.maximum(rest[q.ids] - q.probabilities / q.probabilities.sum(), 0.0)
    # Where p is q but for rounding, nothing is left, and a draw from either is a draw from p.
    return rest if rest.any() else p


def draw(weights: Probabilities, uniform: float) -> int:
    """The id at which the cumulated weights, relative to their sum, pass `uniform` in [0, 1)."""
    cumulated = np.cumsum(weights)
    found = int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))
    # Rounding may put the product on the very sum; the last id with any weight is meant.
    return min(found, int(np.flatnonzero(weights)[-1]))


@dataclass(frozen=True)
class Costs:
    """What a round of drafting takes, in milliseconds.

    Attributes:
        draft_ms: A drafted token.
        verify_ms: The target's forward pass over one token.
        verify_token_ms: Each token more in that pass.
        rtt_ms: From sending a request to having its reply, without what the target computes.
    """

    draft_ms: float
    verify_ms: float
    verify_token_ms: float
    rtt_ms: float

    def compute_ms(self, k: int) -> float:
        """A round of `k` drafted tokens, without the network."""
        return k * self.draft_ms + self.verify_ms + k * self.verify_token_ms

    def token_ms(self, acceptance: float, k: int) -> float:
        """Time of a token of the answer when rounds draft `k`."""
        return (self.compute_ms(k) + self.rtt_ms) / tokens_per_round(acceptance, k)


def tokens_per_round(acceptance: float, k: int) -> float:
    """Expected tokens of the answer that a round of `k` drafted ones brings: (1 - a^(k+1)) / (1 - a).

    Leviathan et al. 2023, equation 1; k + 1 where everything is accepted.

    Args:
        acceptance: Probability that a drafted token is accepted, given that those before it were.
        k: Drafted tokens.
    """
    return k + 1.0 if acceptance >= 1.0 else (1.0 - acceptance ** (k + 1)) / (1.0 - acceptance)


def best_k(acceptance: float, costs: Costs, most: int) -> int:
    """How many tokens to draft a round, 1 to `most`, for the most tokens a second.

    As Leviathan et al. 2023, section 3.5, with the round trip among the costs of a round.
    """
    return min(range(1, most + 1), key=lambda k: costs.token_ms(acceptance, k))


def break_even_rtt_ms(acceptance: float, k: int, costs: Costs, plain_ms: float, *, tokens: float = math.inf) -> float:
    """The round-trip time at which drafting over the network is as fast as plain streaming; below it drafting wins.

    Let E = `tokens_per_round`. Drafting takes (c + R) / E a token, where c = `compute_ms(k)`: every round pays the
    round trip R. A stream pays it once an answer: t + R / n a token, where t = `plain_ms` and n = `tokens`. Equal at
    R = (E t - c) / (1 - E / n). Without a network (R = 0) this is theorem 3.8 of Leviathan et al. 2023: E t > c.

    Args:
        acceptance: See `tokens_per_round`.
        k: Drafted tokens a round.
        costs: Of a round; its own `rtt_ms` is not looked at.
        plain_ms: A token of the target's own stream.
        tokens: Length of an answer.

    Returns:
        Milliseconds. Negative: drafting loses on any network. Infinite: an answer takes one round.
    """
    gained = tokens_per_round(acceptance, k)
    if gained >= tokens:
        return math.inf
    return (gained * plain_ms - costs.compute_ms(k)) / (1.0 - gained / tokens)
