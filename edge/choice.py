"""Which token comes next.

Owns how a token is taken from the logits of the whole vocabulary, and how likely it was. Runs no model, and draws no
random number by itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.dialogue import Sampling


class Odds:
    """How likely the model itself holds each token, whatever the temperature and whatever is allowed.

    Args:
        logits: Shape (vocabulary,), float32.
        likeliest: The token with the largest one, where it is known.
        room: An array of the same shape to work in, until the next `Odds` is given it. A fresh one for every token
            would cost more than the arithmetic.
    """

    def __init__(
        self,
        logits: NDArray[np.float32],
        *,
        likeliest: int | None = None,
        room: NDArray[np.float32] | None = None,
    ) -> None:
        self._logits = logits
        self._top = logits[logits.argmax() if likeliest is None else likeliest]
        self._weights = np.subtract(logits, self._top, out=room)
        np.exp(self._weights, out=self._weights)
        self._log_total = math.log(float(self._weights.sum()))

    def logprob(self, token: int) -> float:
        """The natural log-probability of a token."""
        return float(self._logits[token] - self._top) - self._log_total

    def margin(self, token: int) -> float:
        """The token's probability minus that of the likeliest other one."""
        own = float(self._weights[token])
        self._weights[token] = 0.0
        other = float(self._weights.max())
        self._weights[token] = own
        return (own - other) * math.exp(-self._log_total)

    def likeliest(self, count: int) -> list[int]:
        """The likeliest tokens, the likeliest first."""
        count = min(count, self._logits.size)
        if count < 1:
            return []
        found = np.sort(np.argpartition(self._logits, -count)[-count:])
        return [int(token) for token in found[np.argsort(-self._logits[found], kind="stable")]]


class Candidates(NamedTuple):
    """What a token is drawn from; every other one is never drawn.

    Attributes:
        tokens: Distinct ids, shape (m,).
        sums: Their weights, cumulated, shape (m,), float64; a token's probability is its weight relative to the last.
    """

    tokens: NDArray[np.intp]
    sums: NDArray[np.float64]


def draw(logits: NDArray[np.float32], sampling: Sampling, random: float) -> int:
    """A token drawn from its `candidates`.

    Args:
        logits: Shape (vocabulary,), float32; a token at -inf is never drawn.
        sampling: A temperature above 0, `top_k` and `top_p`.
        random: Drawn uniformly from [0, 1).
    """
    tokens, sums = candidates(logits, sampling)
    return int(tokens[min(int(np.searchsorted(sums, random * sums[-1], side="right")), tokens.size - 1)])


def candidates(logits: NDArray[np.float32], sampling: Sampling) -> Candidates:
    """What a token is drawn from: with the temperature, the likeliest ones that `top_k` and then `top_p` leave.

    Nucleus sampling is that of Holtzman et al. (2020), "The Curious Case of Neural Text Degeneration", section 3.1: the
    smallest set of likeliest tokens that hold `top_p` of the probability together. Of equally likely tokens the one
    with the smaller id counts as likelier.

    Args:
        logits: Shape (vocabulary,), float32; a token at -inf is never drawn.
        sampling: A temperature above 0, `top_k` and `top_p`.
    """
    with np.errstate(all="ignore"):  # a temperature next to 0 overflows, which is looked at below
        weights = np.exp((logits - logits.max()) / np.float32(sampling.temperature)).astype(np.float64)
    if not np.isfinite(weights).all():
        return Candidates(np.array([logits.argmax()]), np.ones(1))
    tokens = _likeliest(weights, sampling)
    sums = np.cumsum(weights[tokens])
    if sampling.top_p < 1 and _sorts(sampling, weights.size):
        whole = sums[-1] if 0 < sampling.top_k < weights.size else weights.sum()
        kept = min(int(np.searchsorted(sums, sampling.top_p * whole)) + 1, sums.size)
        tokens, sums = tokens[:kept], sums[:kept]
    return Candidates(tokens, sums)


def _sorts(sampling: Sampling, size: int) -> bool:
    return sampling.top_p < 1 or 0 < sampling.top_k < size


def _likeliest(weights: NDArray[np.float64], sampling: Sampling) -> NDArray[np.intp]:
    """The tokens that may be drawn before `top_p` is looked at, the likeliest first where that matters."""
    size = weights.size
    if not _sorts(sampling, size):
        return np.flatnonzero(weights > 0)
    limited = 0 < sampling.top_k < size
    # Sorting the whole vocabulary would cost milliseconds. All tokens below this hold less than 1 - top_p together, so
    # none of them belongs to the nucleus.
    floor = 0.0 if limited else (1 - sampling.top_p) * float(weights.sum()) / size
    if limited:
        floor = float(np.partition(weights, size - sampling.top_k)[size - sampling.top_k])
    tokens = np.flatnonzero((weights >= floor) & (weights > 0))
    tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
    return tokens[: sampling.top_k] if limited else tokens
