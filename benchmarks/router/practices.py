"""How thresholds are usually picked, and what a threshold is worth on a whole population. Pure.

A referee brings rulers of its own: nothing here comes from the code under test, the binomial is scipy's. A threshold t
answers locally every item whose score is above t, and so does each function's: infinity answers nothing, minus
infinity everything; an item without a score (NaN) never.

The loss of an item, by target: "agreement" edge and cloud differ (0, 1); "accuracy" edge wrong minus cloud wrong (-1,
0, 1); "selective" edge wrong (0, 1). The risk is the sum of the losses of the locally answered items over all items, or
over the locally answered ones where the target is "selective".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

TARGETS = ("agreement", "accuracy", "selective")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Curve:
    """What every threshold that makes a difference comes to on some items, from nothing answered locally to everything.

    Attributes:
        thresholds: Falling; the highest score first, minus infinity last, shape (m,).
        local: Items above each, shape (m,).
        lost: Sum of their losses, shape (m,).
        n: All items.
        target: One of TARGETS.
    """

    thresholds: NDArray[np.float64]
    local: NDArray[np.int64]
    lost: NDArray[np.int64]
    n: int
    target: str

    @property
    def risk(self) -> NDArray[np.float64]:
        """The risk at each threshold, shape (m,)."""
        return np.asarray(self.lost / self.weighed)

    @property
    def weighed(self) -> NDArray[np.int64]:
        """What the losses are divided by at each threshold, shape (m,)."""
        return np.maximum(self.local, 1) if self.target == "selective" else np.full(len(self.local), self.n)

    def within(self, alpha: float) -> NDArray[np.bool_]:
        """Whether the risk is at most alpha, at each threshold, shape (m,)."""
        # Whole numbers on the left: no rounding may make a violation of a risk that is alpha exactly.
        return np.asarray(self.lost <= alpha * self.weighed + _ROUNDING)

    def at(self, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Place of each of some thresholds on the curve: of the lowest one that answers the same items."""
        # The place where it would be inserted into the falling scores; minus infinity is last whatever comes before.
        return np.asarray(np.searchsorted(-self.thresholds[:-1], -thresholds, side="left"))


def curve(scores: NDArray[Any], losses: NDArray[Any], target: str) -> Curve:
    """Try every threshold.

    Args:
        scores: Shape (n,), larger is more confident.
        losses: Shape (n,); see the module.
        target: One of TARGETS.
    """
    known = ~np.isnan(scores)
    order = np.argsort(-scores[known], kind="stable")
    ranked, lost = scores[known][order], np.concatenate([[0], np.cumsum(losses[known][order].astype(np.int64))])
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])) if len(ranked) else np.array([], int)
    local = np.concatenate([starts, [len(ranked)]])
    return Curve(np.concatenate([ranked[starts], [-math.inf]]), local, lost[local], len(scores), target)


def losses_of(
    target: str, disagree: NDArray[np.bool_], edge_correct: NDArray[np.bool_], cloud_correct: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Losses of items, shape (n,)."""
    by_target = {
        "agreement": disagree.astype(np.int64),
        "accuracy": cloud_correct.astype(np.int64) - edge_correct,
        "selective": (~edge_correct).astype(np.int64),
    }
    return np.asarray(by_target[target])


def best_possible(population: Curve, alpha: float) -> float:
    """The lowest threshold whose risk on the population itself is at most alpha."""
    return empirical(population, alpha)


def empirical(found: Curve, alpha: float) -> float:
    """Usual practice: the threshold that answers most with a risk of at most alpha on the calibration items."""
    return _last(found, found.within(alpha))


def conformal(found: Curve, alpha: float) -> float:
    """Conformal risk control (Angelopoulos et al. 2022): (n R + 1) / (n + 1) <= alpha; it bounds the mean risk.

    The accuracy target's risk is not monotone, and is made so by its supremum over all higher thresholds (section 4.3).
    Of the selective risk n is the number of locally answered items: the usual adaptation, for which nothing is proved.
    """
    passing = found.lost + 1 <= alpha * (found.weighed + 1) + _ROUNDING
    return _last(found, passing if found.target != "accuracy" else np.cumsum(~passing) == 0)


def hoeffding_bonferroni(found: Curve, grid: NDArray[np.float64], alpha: float, delta: float) -> float:
    """Learn then Test (Angelopoulos et al. 2021): Hoeffding's p-values of a grid's thresholds, against delta / m."""
    places = found.at(grid)
    width = 2 if found.target == "accuracy" else 1
    slack = np.maximum(alpha - found.risk[places], 0) / width
    p_values = np.exp(-2 * found.weighed[places] * slack**2)
    return _lowest(grid, p_values, delta)


def binomial_bonferroni(found: Curve, grid: NDArray[np.float64], alpha: float, delta: float) -> float | None:
    """The same with the exact binomial; None where a loss is not 0 or 1."""
    if found.target == "accuracy":
        return None
    places = found.at(grid)
    p_values = np.where(found.local[places] > 0, binom.cdf(found.lost[places], found.weighed[places], alpha), 1.0)
    return _lowest(grid, p_values, delta)


def even_grid(scores: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Thresholds that answer evenly spread shares of some items, from none to all, falling, shape (count,)."""
    known = scores[~np.isnan(scores)]
    return np.unique(np.quantile(known, np.linspace(0, 1, count)))[::-1].astype(np.float64)


def _lowest(grid: NDArray[np.float64], p_values: NDArray[np.float64], delta: float) -> float:
    passing = grid[p_values <= delta / len(grid)]
    return float(passing.min()) if len(passing) else math.inf


def _last(found: Curve, passing: NDArray[np.bool_]) -> float:
    places = np.flatnonzero(passing)
    return float(found.thresholds[places[-1]]) if len(places) else math.inf


@dataclass(frozen=True)
class Kept:
    """How a method kept its promise over many calibration sets.

    Attributes:
        sets: Calibration sets.
        violations: Sets whose threshold has a risk above alpha on the population.
        rate: Their share.
        low: Lower end of its exact two-sided 95 % interval (Clopper & Pearson 1934).
        high: Upper end.
        local_share: Mean share of the population that is answered locally.
        local_low: 5 % quantile of it over the sets.
        local_high: 95 % quantile.
        risk: Mean risk on the population.
    """

    sets: int
    violations: int
    rate: float
    low: float
    high: float
    local_share: float
    local_low: float
    local_high: float
    risk: float


def kept(population: Curve, thresholds: NDArray[np.float64], alpha: float) -> Kept:
    """Judge the thresholds of many sets, shape (sets,), on the whole population."""
    places = population.at(thresholds)
    shares = population.local[places] / population.n
    broken = int((~population.within(alpha)[places]).sum())
    interval = binomtest(broken, len(thresholds)).proportion_ci(0.95, method="exact")
    return Kept(
        sets=len(thresholds),
        violations=broken,
        rate=broken / len(thresholds),
        low=float(interval.low),
        high=float(interval.high),
        local_share=float(shares.mean()),
        local_low=float(np.quantile(shares, 0.05)),
        local_high=float(np.quantile(shares, 0.95)),
        risk=float(population.risk[places].mean()),
    )


def tolerated(sets: int, delta: float, cells: int, error: float = 0.01) -> int:
    """Most violations among `sets` that a true rate of delta explains in each of `cells` cells at once.

    One-sided; with probability at least 1 - `error` no cell whose rate is delta counts more (Bonferroni).
    """
    return int(binom.ppf(1 - error / cells, sets, delta))
