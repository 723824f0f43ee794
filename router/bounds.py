"""From scores and losses of calibration items to a threshold with a promise. Pure.

The promise: with probability at least 1-delta over the draw of the calibration items, the risk of answering locally
where score > threshold is at most alpha. It is an expected loss for requests distributed as the calibration items, not
a realised fraction, and it is silent under any shift of them.

Owns what each target counts as risk and how its threshold is found. The arithmetic is in `binomial.py` and
`betting.py`, what a bound is tied to in `certificate.py`. Reads no file and asks no cloud.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgewise.contracts import Bound
from edgewise.errors import CertificateError, ConfigError, TooFewItemsError
from edgewise.router.betting import net_loss_growth, rules_out, shuffled
from edgewise.router.binomial import allowed_disagreements, binomial_cdf, group_items_needed, items_needed

TARGET_AGREEMENT = "agreement"
TARGET_ACCURACY = "accuracy"
TARGET_SELECTIVE = "selective"
TARGETS = (TARGET_AGREEMENT, TARGET_ACCURACY, TARGET_SELECTIVE)
"""What can be bounded."""

_INTERVAL_DELTA = 0.05
"""The interval around a local share fails with this probability; it has no part in the promise."""


def certify(scores: ArrayLike, disagree: ArrayLike, *, alpha: float, delta: float) -> Bound:
    """Find the lowest threshold whose risk is certified: answer locally iff score > threshold.

    A disagreeing item is lost at every threshold below its score, so the risk falls as the threshold rises and one
    exact binomial test suffices for all thresholds at once. With k* the largest k for which
    BinomCDF(k; n, alpha) <= delta (Clopper & Pearson 1934), the threshold is the (k*+1)-th largest score among the
    disagreeing items, and minus infinity where at most k* items disagree. Ties fall on the safe side. An item whose
    score is NaN is never answered locally and counts in n.

    Args:
        scores: Confidence of each calibration item, shape (n,), from the path that serves (batch of one, same runtime).
        disagree: Whether edge and reference cloud differ on the item, shape (n,), booleans or 0 and 1.
        alpha: Bound on the risk, in (0, 1).
        delta: Probability with which the bound may fail, in (0, 1).

    Returns:
        The bound, with `.threshold`, `.local_share` and its interval, `.n` and `.k`.

    Raises:
        ConfigError: alpha or delta is outside (0, 1).
        CertificateError: The arrays have different lengths or are no vectors, or `disagree` is not boolean.
        TooFewItemsError: n is too small to certify anything; names the n needed.
    """
    score_vector, disagreement = _scores_of(scores), _flags("disagree", disagree)
    _check_lengths(score_vector, disagree=disagreement)
    n = _enough(score_vector, alpha, delta)
    alpha, delta = float(alpha), float(delta)
    k = allowed_disagreements(n, alpha, delta)
    return _bound(_threshold(score_vector[disagreement], k), score_vector, k, alpha, delta)


def certify_accuracy(
    scores: ArrayLike,
    edge_correct: ArrayLike,
    cloud_correct: ArrayLike,
    *,
    alpha: float,
    delta: float,
    grid: ArrayLike,
    seed: int = 0,
) -> Bound:
    """Find a threshold at which answering locally costs at most alpha of accuracy, over *all* requests.

    The risk is E[D * 1(score > t)] with D = edge wrong - cloud wrong, in {-1, 0, 1}. It need not fall as t rises, so
    thresholds are tested one by one, the highest first, each by betting at the whole delta, up to the first that fails
    (fixed-sequence testing: Bauer 1991; Angelopoulos et al. 2021). `betting.py` has the bets.

    Args:
        scores: Confidence of each calibration item, shape (n,); NaN is never answered locally and counts in n.
        edge_correct: Whether the edge is right, shape (n,), booleans or 0 and 1.
        cloud_correct: Whether the reference cloud is right, shape (n,).
        alpha: Bound on the risk, in (0, 1).
        delta: Probability with which the bound may fail, in (0, 1).
        grid: Thresholds to test, shape (m,), in any order, fixed before these items were looked at: see
            `threshold_grid`. Minus infinity stands for every item with a score, infinity for none.
        seed: Of the order in which the items are bet on.

    Returns:
        The bound; its threshold is infinity where nothing certifies, its k the items above it with D = 1.

    Raises:
        ConfigError: alpha or delta is outside (0, 1).
        CertificateError: The arrays do not fit, or the grid is empty or holds NaN.
        TooFewItemsError: n is too small to certify anything; names the n needed.
    """
    score_vector = _scores_of(scores)
    edge, cloud = _flags("edge_correct", edge_correct), _flags("cloud_correct", cloud_correct)
    _check_lengths(score_vector, edge_correct=edge, cloud_correct=cloud)
    thresholds = _checked_grid(grid)
    n = _enough(score_vector, alpha, delta)
    alpha, delta = float(alpha), float(delta)
    order = shuffled(np.arange(n), seed)
    losses = (cloud.astype(np.int64) - edge)[order]
    in_order = score_vector[order]
    growth = net_loss_growth(n, alpha, delta)

    def holds(threshold: float) -> bool:
        return rules_out(growth[np.where(above(in_order, threshold), losses, 0)], delta)

    found = _lowest(thresholds, holds)
    return _bound(found, score_vector, int((above(in_order, found) & (losses > 0)).sum()), alpha, delta)


def certify_selective(scores: ArrayLike, wrong: ArrayLike, *, alpha: float, delta: float, grid: ArrayLike) -> Bound:
    """Find a threshold above which at most alpha of the *local* answers are wrong.

    The risk is P(wrong | score > t). Given how many calibration items lie above t, the wrong ones among them are
    binomial, so each test is exact (Clopper & Pearson 1934). The risk need not fall as t rises: thresholds are tested
    one by one, the highest first, each at the whole delta, up to the first that fails (fixed-sequence testing). None is
    skipped for having too few items above it: which one is tested must not depend on these items.

    Args:
        scores: Confidence of each calibration item, shape (n,); NaN is never answered locally.
        wrong: Whether the edge is wrong, shape (n,), booleans or 0 and 1.
        alpha: Bound on the risk, in (0, 1).
        delta: Probability with which the bound may fail, in (0, 1).
        grid: Thresholds to test, shape (m,), in any order, fixed before these items were looked at and beginning where
            enough items are expected above: see `threshold_grid`.

    Returns:
        The bound; its threshold is infinity where nothing certifies, its k the wrong items above it.

    Raises:
        ConfigError: alpha or delta is outside (0, 1).
        CertificateError: The arrays do not fit, or the grid is empty or holds NaN.
        TooFewItemsError: n is too small to certify anything, even if all were answered locally; names the n needed.
    """
    score_vector, errors = _scores_of(scores), _flags("wrong", wrong)
    _check_lengths(score_vector, wrong=errors)
    thresholds = _checked_grid(grid)
    _enough(score_vector, alpha, delta)
    alpha, delta = float(alpha), float(delta)

    def holds(threshold: float) -> bool:
        local = above(score_vector, threshold)
        return int(errors[local].sum()) <= allowed_disagreements(int(local.sum()), alpha, delta)

    found = _lowest(thresholds, holds)
    return _bound(found, score_vector, int((above(score_vector, found) & errors).sum()), alpha, delta)


def certify_groups(
    scores: ArrayLike, disagree: ArrayLike, groups: Sequence[str], *, names: Sequence[str], alpha: float, delta: float
) -> dict[str, Bound]:
    """Certify agreement in each group on its own: the promise holds in all of them at once.

    Each group is certified at delta divided by the number of groups (Bonferroni); `group_items_needed` tells what that
    costs. A group with too few items is refused: its threshold is infinity, so that it is escalated.

    Args:
        scores: Confidence of each calibration item, shape (n,).
        disagree: Whether edge and reference cloud differ on the item, shape (n,).
        groups: The group of each item, length n.
        names: All groups, fixed before these items were looked at.
        alpha: Bound on the risk in each group, in (0, 1).
        delta: Probability with which any of the bounds may fail, in (0, 1).

    Returns:
        A bound by name, in the order of `names`; n and the shares are of the group's items.

    Raises:
        ConfigError: alpha or delta divided by the number of groups is outside (0, 1).
        CertificateError: The arrays do not fit, there is no name, one is there twice, or an item's group is none.
        TooFewItemsError: Every group has too few items; names the number that one needs.
    """
    score_vector, disagreement = _scores_of(scores), _flags("disagree", disagree)
    members = np.asarray(groups, dtype=object)
    _check_lengths(score_vector, disagree=disagreement, groups=members)
    _check_names(members, names)
    needed = group_items_needed(alpha, delta, len(names))
    alpha, share = float(alpha), float(delta) / len(names)
    sizes = {name: int((members == name).sum()) for name in names}
    if max(sizes.values()) < needed:
        largest = f"items in the largest of {len(names)} groups, each at delta/{len(names)},"
        raise TooFewItemsError(max(sizes.values()), needed, alpha, share, of=largest)
    return {
        name: certify(score_vector[members == name], disagreement[members == name], alpha=alpha, delta=share)
        if sizes[name] >= needed
        else _refused(sizes[name], alpha, share)
        for name in names
    }


def threshold_grid(
    scores: ArrayLike, losses: ArrayLike, *, target: str, n: int, alpha: float, delta: float, size: int = 200
) -> NDArray[np.float64]:
    """Thresholds to test, chosen on the tuning part: quantiles of its scores, the highest first, minus infinity last.

    For selective risk they begin where the test of n items is most likely to pass, since higher up too few items are
    left to show anything and the sequence would end there.

    Args:
        scores: Confidence of each *tuning* item, shape (m,).
        losses: Of selective risk 1 where the edge is wrong, else 0; of accuracy D, see `certify_accuracy`; shape (m,).
        target: "accuracy" or "selective".
        n: Certifying items to come.
        alpha: Bound on the risk, in (0, 1).
        delta: Probability with which the bound may fail, in (0, 1).
        size: Quantiles at most.

    Raises:
        ConfigError: alpha or delta is outside (0, 1), or the target needs no grid.
        CertificateError: The arrays do not fit, or no item has a score.
    """
    items_needed(alpha, delta)
    if target not in (TARGET_ACCURACY, TARGET_SELECTIVE):
        raise ConfigError(
            f"A grid of thresholds for {target!r} was asked for.",
            f"Only {TARGET_ACCURACY!r} and {TARGET_SELECTIVE!r} test one.",
        )
    score_vector, loss_vector = _scores_of(scores), _numbers("losses", losses)
    _check_lengths(score_vector, losses=loss_vector)
    if np.isnan(loss_vector).any():
        raise CertificateError("losses hold NaN.", "Give what each tuning item would lose.")
    if n < 1 or size < 1:
        raise CertificateError(f"n is {n} and size is {size}.", "Give numbers of 1 or more.")
    known = score_vector[np.isfinite(score_vector)]
    if not len(known):
        raise CertificateError("No tuning item has a score.", "Give items that the edge model can score.")
    levels = np.arange(size) / size
    thresholds = np.append(np.unique(np.quantile(known, levels, method="lower"))[::-1], -np.inf)
    if target == TARGET_ACCURACY:
        return thresholds
    likely = [
        _expected_p_value(loss_vector[above(score_vector, t)] > 0, len(loss_vector), n, alpha) for t in thresholds
    ]
    return thresholds[int(np.argmin(likely)) :]


def above(scores: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    """Which items are answered locally: score > threshold, NaN never; shape as given."""
    with np.errstate(invalid="ignore"):
        return np.asarray(scores > threshold)


def _expected_p_value(wrong_above: NDArray[np.bool_], tuning: int, n: int, alpha: float) -> float:
    """What the exact test of n items would give if they were like the tuning ones, one more of which is wrong."""
    local = len(wrong_above)
    expected = round(n * local / tuning)
    rate = (int(wrong_above.sum()) + 1) / (local + 1)
    return float(binomial_cdf(expected, alpha)[min(math.floor(expected * rate), expected)])


def _lowest(thresholds: NDArray[np.float64], holds: Callable[[float], bool]) -> float:
    """The last threshold, from the top, before the first that does not hold; infinity where that is the first."""
    lowest = math.inf
    for threshold in thresholds.tolist():
        if not holds(threshold):
            break
        lowest = threshold
    return lowest


def _threshold(disagreeing_scores: NDArray[np.float64], k: int) -> float:
    """The (k+1)-th largest of the disagreeing items' scores, NaN left out."""
    comparable = disagreeing_scores[~np.isnan(disagreeing_scores)]
    if len(comparable) <= k:
        return -math.inf
    return float(np.sort(comparable)[-(k + 1)])


def _bound(threshold: float, scores: NDArray[np.float64], k: int, alpha: float, delta: float) -> Bound:
    n, share = len(scores), float(above(scores, threshold).mean())
    return Bound(
        threshold=threshold,
        local_share=share,
        n=n,
        k=k,
        alpha=alpha,
        delta=delta,
        local_share_interval=(0.0, 0.0) if threshold == math.inf else _share_interval(share, n),
    )


def _refused(n: int, alpha: float, delta: float) -> Bound:
    return Bound(
        threshold=math.inf, local_share=0.0, n=n, k=0, alpha=alpha, delta=delta, local_share_interval=(0.0, 0.0)
    )


def _share_interval(share: float, n: int) -> tuple[float, float]:
    """Dvoretzky, Kiefer & Wolfowitz (1956), with Massart's constant (1990): for all thresholds at once."""
    reach = math.sqrt(math.log(2 / _INTERVAL_DELTA) / (2 * n))
    return max(share - reach, 0.0), min(share + reach, 1.0)


def _enough(scores: NDArray[np.float64], alpha: float, delta: float) -> int:
    n, needed = len(scores), items_needed(alpha, delta)
    if n < needed:
        raise TooFewItemsError(n, needed, alpha, delta)
    return n


def _scores_of(scores: ArrayLike) -> NDArray[np.float64]:
    return _numbers("scores", scores)


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float64]:
    given = _array(name, values)
    if given.size and given.dtype.kind not in "buif":
        raise CertificateError(f"{name} are of type {given.dtype}.", "Give numbers.")
    return given.astype(np.float64)


def _array(name: str, values: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise CertificateError(f"{name} are no vector: {error}.", "Give one entry a calibration item.") from error


def _flags(name: str, flags: ArrayLike) -> NDArray[np.bool_]:
    given = _array(name, flags)
    if given.size and given.dtype != np.bool_ and not np.isin(given, (0, 1)).all():
        raise CertificateError(f"{name} holds values other than 0 and 1.", "Give booleans, one a calibration item.")
    return given.astype(np.bool_)


def _check_lengths(scores: NDArray[np.float64], **others: NDArray[np.generic]) -> None:
    for name, other in others.items():
        if scores.ndim != 1 or other.shape != scores.shape:
            raise CertificateError(
                f"scores have shape {scores.shape} and {name} has shape {other.shape}.",
                "Give vectors of one length, one entry a calibration item.",
            )


def _check_names(members: NDArray[np.generic], names: Sequence[str]) -> None:
    if not names or len(set(names)) != len(names):
        raise CertificateError(f"The groups are {list(names)}.", "Name at least one group, and each only once.")
    strange = sorted({str(member) for member in members} - set(names))
    if strange:
        raise CertificateError(
            f"Calibration items are of group {', '.join(map(repr, strange[:5]))}, which is not among the names.",
            "Name every group before certifying, or leave these items out.",
        )


def _checked_grid(grid: ArrayLike) -> NDArray[np.float64]:
    """Thresholds without repetition, the highest first; infinity, which answers nothing locally, needs no test."""
    thresholds = _numbers("thresholds", grid)
    if thresholds.ndim != 1 or not thresholds.size:
        raise CertificateError(
            f"The grid has shape {thresholds.shape}.", "Give a vector of thresholds, such as threshold_grid chooses."
        )
    if np.isnan(thresholds).any():
        raise CertificateError("The grid holds NaN.", "Give numbers; minus infinity is every item with a score.")
    return np.unique(thresholds[thresholds < np.inf])[::-1]
