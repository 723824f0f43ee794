"""Does the promise hold? Thresholds of edgewise, of the usual practices and of MAPIE, judged on whole populations.

    python benchmarks/router/guarantee.py [--sets 1000] [--mapie-sets 200] [--data DATA]

For both pairs of pairs.py, each target, alpha and n, calibration sets are drawn with replacement from the pool; each
method picks its threshold by the margin, and the risk of that threshold is taken over the whole pool. The items of a
set are thus independent draws from the very population that the risk is about; splitting a finite pool in two would tie
the halves to each other. Every method gets the same sets; MAPIE, which takes some 10 ms each, the first ones only.

Thresholds to choose from, where a method wants some, come from the tuning part, which is disjoint from the pool.
Met where no cell of edgewise has more violations than a true rate of delta explains in all of them at once, at 99 %.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from borrowed import DATA, WORK, Goal, machine, tables
from numpy.typing import NDArray
from pairs import NAMES, Pair, Part, describe, prepare_pair
from practices import (
    TARGETS,
    Curve,
    Kept,
    best_possible,
    binomial_bonferroni,
    conformal,
    curve,
    empirical,
    even_grid,
    hoeffding_bonferroni,
    kept,
    losses_of,
    tolerated,
)

from edgewise.errors import TooFewItemsError
from edgewise.router.certificate import certify, certify_accuracy, certify_selective, threshold_grid
from edgewise.router.signals import signal_named

ALPHAS = (0.005, 0.01, 0.02, 0.05)
SIZES = (300, 1000, 2000)
DELTA = 0.05
SIGNAL = "margin"
GRID = 50
"""Thresholds of the Bonferroni rows."""

_SEED = 4

OURS = "edgewise"
MAPIE = {"MAPIE, default": "bonferroni_holm", "MAPIE, fixed sequence": "fixed_sequence"}
METHODS = (
    OURS,
    "empirical",
    "conformal risk control",
    "Bonferroni, Hoeffding",
    "Bonferroni, binomial",
    *MAPIE,
)
ASIDE = "best possible"


@dataclass(frozen=True)
class Question:
    """One target at one alpha and n, on one pair.

    Attributes:
        pair: Name of the pair.
        target: One of TARGETS.
        alpha: Bound on the risk.
        n: Items of a calibration set.
    """

    pair: str
    target: str
    alpha: float
    n: int


@dataclass(frozen=True)
class Cell:
    """What one method made of a question.

    Attributes:
        question: The question.
        method: Its name.
        kept: How it kept the promise; None where it gave no threshold.
        refused: Why it gave none, or "".
    """

    question: Question
    method: str
    kept: Kept | None
    refused: str = ""


@dataclass(frozen=True)
class Scored:
    """A part of a pair as one target sees it.

    Attributes:
        scores: Shape (n,).
        losses: Shape (n,); see practices.py.
        part: The part.
    """

    scores: NDArray[np.float64]
    losses: NDArray[np.int64]
    part: Part


def scored(part: Part, target: str) -> Scored:
    """Scores of the serving path's logits, and losses."""
    losses = losses_of(target, part.disagree, part.edge_correct, part.cloud_correct)
    return Scored(np.asarray(signal_named(SIGNAL)(part.edge_logits), dtype=np.float64), losses, part)


def draws(items: int, n: int, sets: int) -> NDArray[np.int64]:
    """Calibration sets, drawn with replacement: places of items, shape (sets, n)."""
    return np.random.default_rng([_SEED, items, n]).integers(0, items, size=(sets, n))


def certified(pool: Scored, places: NDArray[np.int64], grid: NDArray[np.float64], question: Question) -> float:
    """The threshold that edgewise certifies on one calibration set.

    Raises:
        TooFewItemsError: The set is too small to certify anything.
    """
    scores, part = pool.scores[places], pool.part
    alpha = question.alpha
    if question.target == "agreement":
        return certify(scores, part.disagree[places], alpha=alpha, delta=DELTA).threshold
    edge_correct = part.edge_correct[places]
    if question.target == "selective":
        return certify_selective(scores, ~edge_correct, alpha=alpha, delta=DELTA, grid=grid).threshold
    cloud_correct = part.cloud_correct[places]
    return certify_accuracy(scores, edge_correct, cloud_correct, alpha=alpha, delta=DELTA, grid=grid).threshold


def answer(pair: Pair, question: Question, sets: int, mapie_sets: int) -> Iterator[Cell]:
    """Ask every method."""
    pool, tuning = scored(pair.pool, question.target), scored(pair.tuning, question.target)
    population = curve(pool.scores, pool.losses, question.target)
    drawn = draws(len(pair.pool), question.n, sets)
    best = np.array([best_possible(population, question.alpha)])
    yield Cell(question, ASIDE, kept(population, best, question.alpha))
    yield _ours(pool, tuning, population, drawn, question)
    curves = [curve(pool.scores[places], pool.losses[places], question.target) for places in drawn]
    for name, pick in _usual(even_grid(tuning.scores, GRID), question.alpha).items():
        yield _judged(name, [pick(found) for found in curves], population, question)
    for name, correction in MAPIE.items():
        yield _judged(name, _mapie(pool, drawn[:mapie_sets], question, correction), population, question)


def _ours(pool: Scored, tuning: Scored, population: Curve, drawn: NDArray[np.int64], question: Question) -> Cell:
    alpha, n = question.alpha, question.n
    grid = np.array([])
    if question.target != "agreement":
        grid = threshold_grid(tuning.scores, tuning.losses, target=question.target, n=n, alpha=alpha, delta=DELTA)
    try:
        thresholds = [certified(pool, places, grid, question) for places in drawn]
    except TooFewItemsError as error:
        return Cell(question, OURS, None, str(error))
    return _judged(OURS, thresholds, population, question)


def _usual(grid: NDArray[np.float64], alpha: float) -> dict[str, Callable[[Curve], float | None]]:
    return {
        "empirical": lambda found: empirical(found, alpha),
        "conformal risk control": lambda found: conformal(found, alpha),
        "Bonferroni, Hoeffding": lambda found: hoeffding_bonferroni(found, grid, alpha, DELTA),
        "Bonferroni, binomial": lambda found: binomial_bonferroni(found, grid, alpha, DELTA),
    }


def _mapie(pool: Scored, drawn: NDArray[np.int64], question: Question, correction: str) -> list[float | None]:
    from mapie_peer import mapie  # takes seconds to import, which --help need not spend

    how = {"target": question.target, "alpha": question.alpha, "delta": DELTA, "correction": correction}
    return [mapie(pool.scores[places], pool.losses[places], **how) for places in drawn]


def _judged(method: str, thresholds: Sequence[float | None], population: Curve, question: Question) -> Cell:
    given = np.array([threshold for threshold in thresholds if threshold is not None], dtype=np.float64)
    if not len(given):
        return Cell(question, method, None, "not for this target")
    return Cell(question, method, kept(population, given, question.alpha))


def promise(cells: Sequence[Cell], method: str = OURS) -> Goal:
    """Whether a method's cells are all within what delta explains."""
    judged = [(cell.question, cell.kept) for cell in cells if cell.method == method and cell.kept is not None]
    limit = {found.sets: tolerated(found.sets, DELTA, len(judged)) for _, found in judged}
    broken = [question for question, found in judged if found.violations > limit[found.sets]]
    refused = sum(cell.method == method and cell.kept is None for cell in cells)
    worst = max((found.rate for _, found in judged), default=math.nan)
    what = f"{method}: in every cell at most {DELTA:.0%} of the calibration sets break alpha, within binomial error"
    found = (
        f"{len(judged) - len(broken)} of {len(judged)} cells; worst rate {worst:.1%}, tolerated "
        f"{' / '.join(f'{count / sets:.1%}' for sets, count in limit.items())}; {refused} refused"
    )
    return Goal(what, found, bool(judged) and not broken)


def rows(cells: Sequence[Cell], pair: str, target: str) -> list[tuple[str, ...]]:
    """The table of one pair and target: a line a method, a column a cell."""
    found = {(cell.method, cell.question): cell for cell in cells}
    questions = [Question(pair, target, alpha, n) for n in SIZES for alpha in ALPHAS]
    return [(method, *(_shown(found[method, question]) for question in questions)) for method in (ASIDE, *METHODS)]


def _shown(cell: Cell) -> str:
    if cell.kept is None:
        return "refused" if cell.method == OURS else "-"
    if cell.method == ASIDE:
        return f"{cell.kept.local_share:.3f}"
    mark = "*" if cell.kept.violations > tolerated(cell.kept.sets, DELTA, 1) else ""
    return f"{100 * cell.kept.rate:.1f}{mark} {cell.kept.local_share:.3f}"


def show(cells: Sequence[Cell], pairs: Sequence[Pair], goals: Sequence[Goal]) -> None:
    """Print it all."""
    columns = ("", *(f"n={n} {100 * alpha:g}%" for n in SIZES for alpha in ALPHAS))
    for pair in pairs:
        tables.CONSOLE.print(describe(pair))
        for target in TARGETS:
            title = f"{pair.name}, {target}: sets that break alpha in %, mean local share"
            tables.show_table(title, columns, rows(cells, pair.name, target))
    tables.CONSOLE.print(f"* more sets than a true rate of {DELTA:.0%} explains, one-sided 99 %.")
    for reason in dict.fromkeys(cell.refused for cell in cells if cell.method == OURS and cell.refused):
        tables.CONSOLE.print(f"refused: {reason}")
    tables.show_goals(goals)


def main() -> int:
    """Run the command line."""
    options = tables.parser(__doc__, WORK / "results" / "router-guarantee.json")
    options.add_argument("--data", type=Path, default=DATA, help="folder with clinc150 (default: %(default)s)")
    options.add_argument("--sets", type=int, default=1000, help="calibration sets (default: %(default)s)")
    options.add_argument("--mapie-sets", type=int, default=200, help="of these for MAPIE (default: %(default)s)")
    arguments = options.parse_args()
    where = machine()
    pairs = [prepare_pair(name, arguments.work or WORK, arguments.data, tables.say) for name in NAMES]
    cells: list[Cell] = []
    for pair in pairs:
        for target in TARGETS:
            tables.say(f"{pair.name}, {target}: {len(SIZES) * len(ALPHAS)} cells")
            for question in (Question(pair.name, target, alpha, n) for n in SIZES for alpha in ALPHAS):
                cells += answer(pair, question, arguments.sets, arguments.mapie_sets)
    goals = [promise(cells)]
    show(cells, pairs, goals)
    facts: dict[str, Any] = {"delta": DELTA, "signal": SIGNAL, "pairs": {pair.name: describe(pair) for pair in pairs}}
    tables.write_json(arguments.out, {"machine": where, **facts, "cells": cells, "goals": goals})
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
