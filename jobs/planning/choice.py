"""Which recipe with which signal is the plan, and how that choice is paid for. Pure.

Owns the comparison on the tuning part, the choice, and what other ways of choosing would have given. Asks no model and
no cloud; what a request costs is told from outside, what a bound proves is `router.certificate`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import Bound
from edgewise.jobs.parts import Answered
from edgewise.jobs.planning.job import PlanJob, check_items
from edgewise.jobs.scoring import edge_scores
from edgewise.jobs.targets import bounder, losses
from edgewise.quantize.joint import CertifiedShare, CurvePoint, Infinite, Option, Price
from edgewise.router.certificate import (
    TARGET_AGREEMENT,
    TARGET_SELECTIVE,
    allowed_disagreements,
    certify_accuracy,
    certify_selective,
    threshold_grid,
)
from edgewise.router.fitted import Fitted
from edgewise.router.selection import SignalFigures, compare_signals

_CURVE_POINTS = 24
_INTERVAL_DELTA = 0.05
"""Of the interval around a local share; see `contracts.Bound`."""

Vector = NDArray[np.float64]
Pricing = Callable[[float, float], Price]
"""What a request costs, from the milliseconds of an edge answer and the share that is answered locally."""


@dataclass(frozen=True)
class Evidence:
    """A candidate, and what it and the cloud answered.

    Attributes:
        name: Its id.
        model_digest: Its bundle's.
        size_bytes: Bytes of its bundle.
        edge_ms: Median latency of one answer.
        signal: The score that its bundle names.
        fitted: What was fitted on the tuning part, for the combined signal; None where nothing could be.
        tuning: The tuning part.
        certifying: The certifying part.
    """

    name: str
    model_digest: str
    size_bytes: int
    edge_ms: float
    signal: str
    fitted: Fitted | None
    tuning: Answered
    certifying: Answered

    def tuned(self, signal: str, target: str) -> tuple[Vector, Vector]:
        """Scores and losses of the tuning part."""
        return edge_scores(self.tuning.edge, signal, self.fitted), losses(target, self.tuning)

    def scores(self, signal: str) -> Vector:
        """Scores of the certifying part."""
        return edge_scores(self.certifying.edge, signal, self.fitted)


@dataclass(frozen=True)
class Pair:
    """A candidate with a signal, and how it did on the tuning part.

    Attributes:
        evidence: The candidate.
        figures: The signal's.
        expected_share: Share that the tuning part leads to expect locally.
    """

    evidence: Evidence
    figures: SignalFigures
    expected_share: float

    @property
    def signal(self) -> str:
        """The signal's name."""
        return self.figures.signal


@dataclass(frozen=True)
class Choice:
    """What was chosen, and everything it was chosen from.

    Attributes:
        pair: The candidate with its signal.
        bound: What is proved of it, the choice paid for.
        options: All, the cheapest first.
        m: How many were certified at most.
    """

    pair: Pair
    bound: Bound
    options: tuple[Option, ...]
    m: int


def compare(evidence: Sequence[Evidence], job: PlanJob) -> list[Pair]:
    """Every candidate with every signal on the tuning part, the best signal of each candidate first.

    Raises:
        ConfigError: There is no such signal.
    """
    return [pair for candidate in evidence for pair in _compared(candidate, job)]


def _compared(candidate: Evidence, job: PlanJob) -> list[Pair]:
    lost = losses(job.target, candidate.tuning)
    # What the certifying items will allow, not alpha itself: few items allow less.
    n = len(candidate.certifying.edge)
    rate = max(allowed_disagreements(n, job.alpha, job.delta), 0) / n
    found = compare_signals(
        candidate.tuning.edge, lost > 0, alpha=rate, fitted=candidate.fitted, names=job.signals or None
    )
    if job.target == TARGET_AGREEMENT:
        # The share counted there is cross-fitted where the signal was fitted to these very items.
        return [Pair(candidate, figures, figures.local_share) for figures in found]
    return [
        Pair(candidate, figures, _expected(candidate.tuned(figures.signal, job.target), n, job)) for figures in found
    ]


def _expected(tuned: tuple[Vector, Vector], n: int, job: PlanJob) -> float:
    """The share of `n` certifying items that would be certified if they were like the tuning ones.

    The tuning items are repeated until they are as many, so that the very test that is to come is tried.
    """
    scores, lost = (np.resize(values, n) for values in tuned)
    grid = threshold_grid(*tuned, target=job.target, n=n, alpha=job.alpha, delta=job.delta)
    if job.target == TARGET_SELECTIVE:
        return certify_selective(scores, lost > 0, alpha=job.alpha, delta=job.delta, grid=grid).local_share
    edge, cloud = lost <= 0, lost >= 0
    return certify_accuracy(scores, edge, cloud, alpha=job.alpha, delta=job.delta, grid=grid).local_share


def _operating_points(scores: Vector, lost: Vector, target: str) -> tuple[Vector, Vector]:
    """Shares above each threshold that parts the items, and the risk seen there; the highest threshold first."""
    order = np.argsort(-scores, kind="stable")
    order = order[: np.count_nonzero(~np.isnan(scores))]
    ranked, running = scores[order], np.cumsum(lost[order])
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(order) else np.empty(0, np.int64)
    counts = ends + 1.0
    return counts / len(scores), running[ends] / (counts if target == TARGET_SELECTIVE else float(len(scores)))


def choose(pairs: Sequence[Pair], job: PlanJob, pricing: Pricing) -> Choice:
    """Choose the cheapest that certifies, and pay for having looked at all.

    "split" chooses by what the tuning part leads to expect, and puts that one option to the test at delta. "share" puts
    all m to the test, each at delta/m (Bonferroni), and takes the cheapest of what is proved: that promise fails with
    probability at most delta, whichever option it is about.

    Args:
        pairs: At least one.
        job: What is asked for.
        pricing: What a request costs.

    Raises:
        CertificateError: There are too few certifying items.
    """
    m = len(pairs) if job.pay == "share" else 1
    check_items(len(pairs[0].evidence.certifying.edge), job, m)
    expected = [pair.expected_share for pair in pairs]
    bounds: list[Bound | None]
    if job.pay == "share":
        bounds = [bound_of(pair, job, job.delta / m) for pair in pairs]
        chosen = _cheapest(pairs, _shares(bounds, expected), pricing)
    else:
        chosen = _cheapest(pairs, expected, pricing)
        bounds = [bound_of(pair, job, job.delta) if index == chosen else None for index, pair in enumerate(pairs)]
    best = _best_signals(pairs, _shares(bounds, expected), pricing)
    options = [
        _option(pair, bound, job, pricing, m, chosen=index == chosen, curved=index in best)
        for index, (pair, bound) in enumerate(zip(pairs, bounds, strict=True))
    ]
    options.sort(key=lambda option: _rank(option.price, share_of(option), option.size_bytes))
    certified = bounds[chosen] or bound_of(pairs[chosen], job, job.delta / m)
    return Choice(pairs[chosen], _paid(certified, job.delta, m), tuple(options), m)


def _shares(bounds: Sequence[Bound | None], expected: Sequence[float]) -> list[float]:
    return [share if bound is None else bound.local_share for bound, share in zip(bounds, expected, strict=True)]


def share_of(option: Option) -> float:
    """The share that an option answers locally: the certified one, or else the expected one."""
    return option.expected_share if option.certified is None else option.certified.local_share


def _cheapest(pairs: Sequence[Pair], shares: Sequence[float], pricing: Pricing) -> int:
    def rank(index: int) -> tuple[float, float, float, int]:
        candidate = pairs[index].evidence
        return _rank(pricing(candidate.edge_ms, shares[index]), shares[index], candidate.size_bytes)

    return min(range(len(pairs)), key=rank)


def _rank(price: Price, share: float, size_bytes: int) -> tuple[float, float, float, int]:
    """The order of options: by cost; where that is the same, fewer cloud calls, then less waiting, then fewer bytes."""
    return float(f"{price.total:.9g}"), -share, price.latency_ms, size_bytes


def _best_signals(pairs: Sequence[Pair], shares: Sequence[float], pricing: Pricing) -> set[int]:
    """The index of each candidate's best signal."""
    by_candidate: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        by_candidate.setdefault(pair.evidence.name, []).append(index)
    return {
        own[_cheapest([pairs[index] for index in own], [shares[index] for index in own], pricing)]
        for own in by_candidate.values()
    }


def bound_of(pair: Pair, job: PlanJob, delta: float) -> Bound:
    """What the certifying part proves of a candidate with a signal."""
    candidate = pair.evidence
    tuned = candidate.tuned(pair.signal, job.target)
    return bounder(job.target, candidate.scores(pair.signal), candidate.certifying, delta=delta, tuned=tuned)(job.alpha)


def _paid(bound: Bound, delta: float, m: int) -> Bound:
    """The bound as it stands after the choice among m: at delta, and its share's interval wide enough for all m."""
    if m == 1:
        return bound
    # Dvoretzky, Kiefer & Wolfowitz with Massart's constant, for m distributions of scores at once.
    half = math.sqrt(math.log(2 * m / _INTERVAL_DELTA) / (2 * bound.n))
    interval = (max(bound.local_share - half, 0.0), min(bound.local_share + half, 1.0))
    return msgspec.structs.replace(bound, delta=delta, local_share_interval=interval)


def _option(
    pair: Pair, bound: Bound | None, job: PlanJob, pricing: Pricing, m: int, *, chosen: bool, curved: bool
) -> Option:
    candidate = pair.evidence
    share = pair.expected_share if bound is None else bound.local_share
    return Option(
        recipe=candidate.name,
        signal=pair.signal,
        model_digest=candidate.model_digest,
        size_bytes=candidate.size_bytes,
        edge_ms=candidate.edge_ms,
        aurc=pair.figures.aurc,
        auroc=_finite(pair.figures.auroc),
        expected_share=pair.expected_share,
        certified=None if bound is None else _certified(bound, job, m),
        price=pricing(candidate.edge_ms, share),
        curve=_curve(pair, job, pricing) if curved else (),
        chosen=chosen,
    )


def _certified(bound: Bound, job: PlanJob, m: int) -> CertifiedShare:
    return CertifiedShare(
        threshold=written(bound.threshold),
        local_share=bound.local_share,
        local_share_interval=_paid(bound, job.delta, m).local_share_interval,
        k=bound.k,
        delta=bound.delta,
    )


def _curve(pair: Pair, job: PlanJob, pricing: Pricing) -> tuple[CurvePoint, ...]:
    """Evenly spread thresholds of the tuning part, the highest, which answers nothing locally, first."""
    tuned = pair.evidence.tuned(pair.signal, job.target)
    shares, risks = (np.append(0.0, found) for found in _operating_points(*tuned, job.target))
    kept = np.unique(np.linspace(0, len(shares) - 1, _CURVE_POINTS).round().astype(int))
    return tuple(
        CurvePoint(float(shares[at]), float(risks[at]), pricing(pair.evidence.edge_ms, float(shares[at])))
        for at in kept
    )


def written(threshold: float) -> float | Infinite:
    """A threshold as JSON can hold it."""
    if math.isinf(threshold):
        return "inf" if threshold > 0 else "-inf"
    return threshold


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
