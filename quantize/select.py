"""Picks the winner among measured candidates, and judges it at the gate. Pure.

Owns the rules and their words. A choice sees the tuning part only; the gate sees the winner only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from edgewise.errors import ConfigError
from edgewise.quantize.statistics import Quality

Verdict: TypeAlias = Literal["met", "missed", "untested"]
Prefer: TypeAlias = Literal["balanced", "size", "speed"]

PREFERENCES: tuple[Prefer, ...] = ("balanced", "size", "speed")
"""What a choice may prefer, the default first."""

SAME = 1.03
"""Within 3 % two figures count as equal: a repeated measurement differs by as much."""

HARDLY_SLOWER = 1.1
"""A balanced choice gives up at most a tenth of the speed for size; the headline says so where it does."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate as far as a choice looks at it.

    Attributes:
        id: Its name.
        size_bytes: Bytes of its bundle.
        p50_ms: Median latency. Not the 95 % quantile: a busy moment of the machine moves that by more than recipes do.
        drop: Accuracy lost on the tuning part against the baseline.
    """

    id: str
    size_bytes: int
    p50_ms: float
    drop: float


class Pick(msgspec.Struct, frozen=True):
    """The winner, and why in a sentence."""

    id: str
    why: str


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """The winner on data that no choice has seen.

    Attributes:
        verdict: "met" iff the bound is at most max_drop.
        bound: Upper bound on the accuracy drop, at `confidence`.
        max_drop: Allowed drop.
        confidence: Confidence of the bound.
        quality: Winner against baseline on the gate part.
        items_needed: Items at which the bound would be small enough at the rates seen; None where no number would do.
        sentence: The verdict in words.
    """

    verdict: Verdict
    bound: float
    max_drop: float
    confidence: float
    quality: Quality
    items_needed: int | None
    sentence: str


def check_preference(name: str) -> Prefer:
    """The preference of that name.

    Raises:
        ConfigError: There is none.
    """
    found = next((preference for preference in PREFERENCES if preference == name), None)
    if found is None:
        raise ConfigError(f"{name!r} cannot be preferred.", f"Choose one of: {', '.join(PREFERENCES)}.")
    return found


def front(entries: Sequence[Entry]) -> frozenset[str]:
    """Ids of the Pareto front: those for which no other is at least as good in size, p50 and drop, and better in one.

    Of entries alike in all three, all are on it.
    """
    return frozenset(entry.id for entry in entries if not any(_dominates(other, entry) for other in entries))


def _dominates(other: Entry, entry: Entry) -> bool:
    theirs, own = _figures(other), _figures(entry)
    return theirs != own and all(a <= b for a, b in zip(theirs, own, strict=True))


def _figures(entry: Entry) -> tuple[float, float, float]:
    return entry.size_bytes, entry.p50_ms, entry.drop


def pick(baseline: Entry, candidates: Sequence[Entry], *, max_drop: float, prefer: Prefer) -> Pick:
    """Choose among the baseline and the candidates that lose at most `max_drop` on the tuning part.

    "balanced" looks at those that are not larger than the baseline and at most a tenth slower, and takes the smallest
    product of size and median latency, so that a tenth off either counts the same. "size" takes the smallest and
    "speed" the fastest, at whatever cost to the other. Within 3 % the other figure decides. The baseline takes part.

    Args:
        baseline: The float32 bundle.
        candidates: The others; may be empty.
        max_drop: Allowed drop in accuracy.
        prefer: What to prefer.
    """
    allowed = [entry for entry in candidates if entry.drop <= max_drop]
    if prefer == "balanced":
        allowed = [entry for entry in allowed if _no_worse(entry, baseline)]
    best = _best([baseline, *allowed], prefer)
    return Pick(best.id, _why(best, baseline, candidates, allowed, max_drop, prefer))


def judge(quality: Quality, *, bound: float, needed: int | None, max_drop: float, confidence: float) -> Gate:
    """Judge the winner by the bound on its accuracy drop on the gate part.

    Args:
        quality: Winner against baseline on the gate part.
        bound: Upper bound on its drop.
        needed: About how many items would show less than `max_drop`, where the bound does not; None if none would.
        max_drop: Allowed drop.
        confidence: Confidence of the bound, in (0, 1).
    """
    met = bound <= max_drop
    return Gate(
        verdict="met" if met else "missed",
        bound=bound,
        max_drop=max_drop,
        confidence=confidence,
        quality=quality,
        items_needed=None if met else needed,
        sentence=_sentence(quality, bound, max_drop, confidence, needed),
    )


def points(share: float) -> str:
    """A share of accuracy in percentage points."""
    return f"{100 * share:.2f} points"


def _best(entries: Sequence[Entry], prefer: Prefer) -> Entry:
    first, second = _KEYS[prefer]
    least = min(map(first, entries))
    return min((entry for entry in entries if first(entry) <= least * SAME), key=second)


def _no_worse(entry: Entry, baseline: Entry) -> bool:
    return entry.size_bytes <= baseline.size_bytes and entry.p50_ms <= baseline.p50_ms * HARDLY_SLOWER


def _size(entry: Entry) -> float:
    return entry.size_bytes


def _p50(entry: Entry) -> float:
    return entry.p50_ms


def _product(entry: Entry) -> float:
    return entry.size_bytes * entry.p50_ms


_KEYS: Mapping[Prefer, tuple[Callable[[Entry], float], Callable[[Entry], float]]] = {
    "balanced": (_product, _p50),
    "size": (_size, _p50),
    "speed": (_p50, _size),
}

_SUPERLATIVE: Mapping[Prefer, str] = {
    "balanced": "has the smallest product of size and p50",
    "size": "is the smallest",
    "speed": "has the smallest p50",
}


def _why(
    best: Entry, baseline: Entry, candidates: Sequence[Entry], allowed: Sequence[Entry], max_drop: float, prefer: Prefer
) -> str:
    if not candidates:
        return f"{best.id} is all there is: no other candidate came about."
    least = min(candidates, key=lambda entry: entry.drop)
    if least.drop > max_drop:
        return (
            f"{baseline.id} stays: no candidate loses at most {points(max_drop)} on the tuning part; the best, "
            f"{least.id}, loses {points(least.drop)}."
        )
    limits = f"lose at most {points(max_drop)} on the tuning part"
    if prefer == "balanced":
        limits += f" and are neither larger nor over a tenth slower than {baseline.id}"
    if not allowed:
        return f"{baseline.id} stays: there are no candidates that {limits}."
    figures = f"({best.size_bytes / 1e6:.1f} MB, p50 {best.p50_ms:.2f} ms)"
    return (
        f"{best.id} {_SUPERLATIVE[prefer]} {figures} of {baseline.id} and the candidates that {limits} "
        f"({len(allowed)} of {len(candidates)}); it {'loses' if best.drop >= 0 else 'gains'} {points(abs(best.drop))}."
    )


def _seen(quality: Quality) -> str:
    if quality.cosine_mean is not None:
        return f"mean cosine {quality.cosine_mean:.4f} over {quality.n} gate items"
    if quality.nll is not None:
        return f"{quality.accuracy:.4f} of the tokens of {quality.n} gate texts, {quality.baseline_accuracy:.4f} before"
    return f"{quality.lost} of {quality.n} gate items lost and {quality.won} won"


def _sentence(quality: Quality, bound: float, max_drop: float, confidence: float, needed: int | None) -> str:
    share = f"{confidence:.4g}"
    proved = f"{_seen(quality)}: with confidence {share} the accuracy drop is at most {points(bound)}"
    if bound <= max_drop and quality.baseline_accuracy <= max_drop:
        return (
            f"Met in name only, for nothing is measured: {_seen(quality)}, and the baseline has no more right than the "
            f"{points(max_drop)} that may be lost. Allow a smaller drop, or give data that it answers: a chat model "
            "dialogues as its template writes them."
        )
    if bound <= max_drop:
        return f"Met: {proved}; {points(max_drop)} are allowed."
    if needed is None:
        return f"Missed: {proved}; {points(max_drop)} are allowed, and no number of such items would show it."
    return f"Missed: {proved}; {points(max_drop)} are allowed. At these rates {needed} items would be needed."
