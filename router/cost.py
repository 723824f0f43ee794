"""What an answer costs, in money and in waiting, and which certified threshold costs least. Pure.

Owns the formula. The figures come from the configuration, certified thresholds from `bounds.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgewise.contracts import Bound
from edgewise.errors import CertificateError, ConfigError
from edgewise.router.bounds import above

_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, kw_only=True)
class Region:
    """Where the cloud answers from.

    Attributes:
        name: Its name.
        rtt_ms: Milliseconds there and back.
        price_per_call: Price of a call there; None takes the price of all calls.
        cloud_ms: Milliseconds that the cloud works on an answer.
    """

    name: str
    rtt_ms: float
    price_per_call: float | None = None
    cloud_ms: float = 0.0

    def __post_init__(self) -> None:
        key = f"cost.regions.{self.name}"
        _check(f"{key}.rtt_ms", self.rtt_ms)
        _check(f"{key}.price_per_call", self.price_per_call or 0.0)
        _check(f"{key}.cloud_ms", self.cloud_ms)

    @property
    def waiting_ms(self) -> float:
        """Milliseconds until its answer is here."""
        return self.rtt_ms + self.cloud_ms


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a request is expected to cost.

    Attributes:
        money: In the currency of the prices.
        latency_ms: Milliseconds until its final answer.
        total: Money plus what the waiting is worth.
    """

    money: float
    latency_ms: float
    total: float


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Prices and times, one currency; nothing costs anything where it is left out.

    Attributes:
        price_per_call: Price of a cloud call.
        price_per_1k_tokens: Price of 1,000 tokens that a cloud call is billed for.
        edge_ms: Milliseconds of an edge answer.
        edge_joules: Energy of an edge answer.
        price_per_kwh: Price of the device's energy.
        price_per_second: What a second of waiting is worth.
        regions: Where the cloud answers from; none stands for a cloud that answers at once.

    Raises:
        ConfigError: A figure is negative, infinite or not a number.
    """

    price_per_call: float = 0.0
    price_per_1k_tokens: float = 0.0
    edge_ms: float = 0.0
    edge_joules: float = 0.0
    price_per_kwh: float = 0.0
    price_per_second: float = 0.0
    regions: tuple[Region, ...] = ()

    def __post_init__(self) -> None:
        for key in (
            "price_per_call",
            "price_per_1k_tokens",
            "edge_ms",
            "edge_joules",
            "price_per_kwh",
            "price_per_second",
        ):
            _check(f"cost.{key}", getattr(self, key))

    def nearest(self) -> Region:
        """The region whose answer is here first; of equals the cheapest, then the first by name."""
        regions = self.regions or (Region(name="cloud", rtt_ms=0.0),)
        return min(regions, key=lambda region: (region.waiting_ms, self._price_in(region), region.name))

    def expected(self, local_share: float, *, edge_ms: float | None = None, tokens: float = 0.0) -> Cost:
        """What a request costs on average where the edge always answers first and the cloud the rest.

        Args:
            local_share: Share of the requests that stay at the edge, in [0, 1].
            edge_ms: Milliseconds of an edge answer; None takes the model's.
            tokens: Tokens that an escalated request is billed for, on average.
        """
        escalated = 1.0 - local_share
        return self._cost(1.0, escalated, tokens * escalated, self.edge_ms if edge_ms is None else edge_ms)

    def cloud_only(self, *, tokens: float = 0.0) -> Cost:
        """What a request costs on average where the edge is not asked at all.

        Args:
            tokens: Tokens that a request is billed for, on average.
        """
        return self._cost(0.0, 1.0, tokens, self.edge_ms)

    def _cost(self, asked_edge: float, escalated: float, tokens: float, edge_ms: float) -> Cost:
        region = self.nearest()
        energy = self.edge_joules / _JOULES_PER_KWH * self.price_per_kwh
        called = escalated * self._price_in(region) + tokens / 1000 * self.price_per_1k_tokens
        money = asked_edge * energy + called
        latency_ms = asked_edge * edge_ms + escalated * region.waiting_ms
        return Cost(money=money, latency_ms=latency_ms, total=money + self.price_per_second * latency_ms / 1000)

    def _price_in(self, region: Region) -> float:
        return self.price_per_call if region.price_per_call is None else region.price_per_call


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The cheapest way that keeps the promise.

    Attributes:
        threshold: Answer locally iff score > threshold; infinity where it is cheapest to ask only the cloud, and not
            even the edge first.
        cost: What a request then costs on average.
    """

    threshold: float
    cost: Cost


def cheapest(
    bound: Bound, scores: ArrayLike, model: CostModel, *, tokens: ArrayLike | None = None, edge_ms: float | None = None
) -> Choice:
    """Choose among all thresholds that certify the one with the least expected cost.

    Once the edge has answered, an escalation can only add to the cost, item by item. So of all certified thresholds the
    lowest is the cheapest, whatever the prices; they decide whether it beats asking only the cloud, which keeps every
    promise and spares the edge's time and energy. All thresholds hold at once: the choice costs no confidence.

    Args:
        bound: What was certified, for any target.
        scores: Scores of items like the requests to come, shape (n,), n at least 1; NaN is escalated.
        model: Prices and times.
        tokens: Tokens that each item is billed for if escalated, shape (n,); None counts none.
        edge_ms: Milliseconds of an edge answer; None takes the model's.

    Raises:
        CertificateError: There is no item, or tokens are not one finite number an item, none negative.
    """
    score_vector = np.asarray(scores, dtype=np.float64)
    billed = np.zeros(score_vector.shape) if tokens is None else np.asarray(tokens, dtype=np.float64)
    _check_items(score_vector, billed)
    local = above(score_vector, bound.threshold)
    escalated_tokens = float(billed[~local].mean()) if not local.all() else 0.0
    cost = model.expected(float(local.mean()), edge_ms=edge_ms, tokens=escalated_tokens)
    cloud_only = model.cloud_only(tokens=float(billed.mean()))
    if cloud_only.total < cost.total:
        return Choice(threshold=math.inf, cost=cloud_only)
    return Choice(threshold=bound.threshold, cost=cost)


def _check_items(scores: NDArray[np.float64], tokens: NDArray[np.float64]) -> None:
    if scores.ndim != 1 or not scores.size or tokens.shape != scores.shape:
        raise CertificateError(
            f"scores have shape {scores.shape} and tokens {tokens.shape}.",
            "Give one of each for every item, and an item.",
        )
    if not (np.isfinite(tokens) & (tokens >= 0)).all():
        raise CertificateError("tokens hold a negative or infinite number, or NaN.", "Give counts of tokens.")


def _check(key: str, value: float) -> None:
    # Written so that a NaN is refused too.
    if not 0 <= value < math.inf:
        raise ConfigError(f"{key} is {value!r}.", f"Give {key} as a number that is not negative.")
