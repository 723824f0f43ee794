"""Which questions need the strong model, told before either has answered? RouteLLM's MMLU and GSM8K.

    python benchmarks/router/routellm.py [--data DATA] [--seeds 3]

DATA/routellm holds, of lm-sys/RouteLLM, whether Mixtral-8x7B-Instruct (the weak model, ours to answer locally) and
GPT-4-1106 (the strong one) were right. Questions go to the strong model in the order of a score of their text; with a
share x of them there the accuracy is a(x), and what counts is the smallest x that recovers 50 % or 80 % of the gap
between a(0) and a(1). Random routing needs 50 % and 80 %.

The score is our `Complexity`, five-fold: what it is fitted with, its ridge included, comes from the other four folds.
The loss that it predicts is "the strong model is right and the weak one is wrong", or "the weak one is wrong"; MMLU's
subject is an attribute of the request. A TF-IDF ridge regression of scikit-learn is the rival.

On top: of one fold, part of which gives the grid, calibration sets of 2,000 are drawn with replacement;
`certify_accuracy` says how much of the rest may stay with the weak model, at an accuracy that is at most alpha below
the strong one's.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from borrowed import DATA, WORK, Goal, machine, tables
from numpy.typing import NDArray
from practices import Kept, best_possible, curve, kept, losses_of

from edgewise.errors import DataError, TooFewItemsError
from edgewise.router.certificate import certify_accuracy, threshold_grid
from edgewise.router.complexity_fit import fit_complexity

FOLDS = 5
GAPS = (0.5, 0.8)
PUBLISHED_MMLU = 0.35
"""Strong calls for half of the gap on MMLU, about: the best router that RouteLLM publishes (Ong et al. 2024)."""

N, DELTA, ALPHAS = 2000, 0.05, (0.01, 0.02, 0.05)
SETS = 200
GRID_SHARE = 0.2
_SEED = 1106

Scorer = Callable[["Questions", NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]
"""Questions, places to fit on, places to score: the need of the strong model, larger is more, shape (scored,)."""


@dataclass(frozen=True)
class Questions:
    """One benchmark's questions, n of them.

    Attributes:
        name: "mmlu" or "gsm8k".
        texts: The prompts.
        attributes: The subject of each, where there is one.
        weak: Whether the weak model is right, shape (n,).
        strong: Whether the strong model is right, shape (n,).
    """

    name: str
    texts: tuple[str, ...]
    attributes: tuple[Mapping[str, str], ...]
    weak: NDArray[np.bool_]
    strong: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def gain(self) -> NDArray[np.int64]:
        """What the strong model adds to each, -1, 0 or 1, shape (n,)."""
        return self.strong.astype(np.int64) - self.weak


def read_questions(name: str, data: Path) -> Questions:
    """Read DATA/routellm/NAME.jsonl.gz.

    Raises:
        DataError: It is not there.
    """
    path = data / "routellm" / f"{name}.jsonl.gz"
    if not path.exists():
        raise DataError(f"There is no {path}.", "Name the folder that holds routellm with --data.")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return Questions(
        name,
        tuple(row["prompt"] for row in rows),
        tuple({"subject": row["subject"]} if "subject" in row else {} for row in rows),
        np.array([row["weak_correct"] for row in rows], dtype=np.bool_),
        np.array([row["strong_correct"] for row in rows], dtype=np.bool_),
    )


def calls_needed(need: NDArray[np.float64], gain: NDArray[np.int64], share_of_gap: float) -> float:
    """Smallest share of strong calls that recovers a share of the gap, those of the greatest need first.

    Questions of one need come in random order, and the expectation over the orders is taken.

    Args:
        need: Shape (n,).
        gain: Shape (n,); its sum, the gap, is above 0.
        share_of_gap: In (0, 1].
    """
    _, place, counts = np.unique(-need, return_inverse=True, return_counts=True)
    gained = np.repeat(np.bincount(place, gain) / counts, counts)
    reached = np.flatnonzero(np.cumsum(gained) >= share_of_gap * gain.sum() - 1e-9)
    return float((reached[0] + 1) / len(gain))


@dataclass(frozen=True)
class ComplexityScorer:
    """Our predictor.

    Attributes:
        loss: What it predicts, "strong gains" or "weak wrong".
        names: Attributes that it may see.
    """

    loss: str
    names: tuple[str, ...] = ()

    def __call__(self, questions: Questions, fit: NDArray[np.int64], ask: NDArray[np.int64]) -> NDArray[np.float64]:
        wrong = ~questions.weak if self.loss == "weak wrong" else questions.strong & ~questions.weak
        fitted = fit_complexity(
            [questions.texts[at] for at in fit],
            wrong[fit],
            attributes=[questions.attributes[at] for at in fit],
            names=self.names,
        )
        return np.array([fitted.score(questions.texts[at], questions.attributes[at]) for at in ask])


@dataclass(frozen=True)
class LengthScorer:
    """The longer, the harder."""

    def __call__(self, questions: Questions, fit: NDArray[np.int64], ask: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.array([float(len(questions.texts[at])) for at in ask])


@dataclass(frozen=True)
class RidgeScorer:
    """scikit-learn: ridge regression of the gain on TF-IDF of words and pairs.

    Attributes:
        with_subject: Whether the subject is one more word.
    """

    with_subject: bool

    def __call__(self, questions: Questions, fit: NDArray[np.int64], ask: NDArray[np.int64]) -> NDArray[np.float64]:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline

        def told(at: int) -> str:
            subject = questions.attributes[at].get("subject", "") if self.with_subject else ""
            return f"subject{subject} {questions.texts[at]}"

        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), Ridge(alpha=10.0))
        model.fit([told(at) for at in fit], questions.gain[fit])
        return np.asarray(model.predict([told(at) for at in ask]))


def scorers(questions: Questions) -> dict[str, Scorer]:
    """Every scorer by its name in the table."""
    found: dict[str, Scorer] = {"length": LengthScorer(), "TF-IDF ridge (scikit-learn)": RidgeScorer(False)}
    for loss in ("weak wrong", "strong gains"):
        found[f"complexity, {loss}"] = ComplexityScorer(loss)
    if any(questions.attributes):
        found["TF-IDF ridge with subject (scikit-learn)"] = RidgeScorer(True)
        found[OURS] = ComplexityScorer("strong gains", ("subject",))
    return found


OURS = "complexity, strong gains, with subject"


@dataclass(frozen=True)
class Row:
    """One scorer on one benchmark.

    Attributes:
        benchmark: The benchmark.
        scorer: Its name.
        calls: By share of the gap, strong calls needed in each fold of each seed.
    """

    benchmark: str
    scorer: str
    calls: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Fold:
    """A held-out fold as scored by a predictor that did not see it.

    Attributes:
        places: Its questions, shape (m,).
        need: Their scores, shape (m,).
    """

    places: NDArray[np.int64]
    need: NDArray[np.float64]


def parts(items: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Of each fold, places to fit on and places to score."""
    order = np.random.default_rng([_SEED, seed]).permutation(items)
    asked = [order[number::FOLDS] for number in range(FOLDS)]
    return [(np.setdiff1d(order, ask), ask) for ask in asked]


def cross_fit(questions: Questions, score: Scorer, seed: int) -> list[Fold]:
    """Score every question by what was fitted on the other folds, a process a fold."""
    split = parts(len(questions), seed)
    with ProcessPoolExecutor(min(FOLDS, os.cpu_count() or 1)) as pool:
        running = [pool.submit(score, questions, fit, ask) for fit, ask in split]
        return [Fold(ask, found.result()) for (_, ask), found in zip(split, running, strict=True)]


def row_of(questions: Questions, name: str, seeds: Sequence[Sequence[Fold]]) -> Row:
    """Strong calls needed in every fold."""
    calls = {
        f"{gap:.0%}": tuple(
            calls_needed(fold.need, questions.gain[fold.places], gap) for folds in seeds for fold in folds
        )
        for gap in GAPS
    }
    return Row(questions.name, name, calls)


@dataclass(frozen=True)
class Promise:
    """A certificate over one fold.

    Attributes:
        benchmark: The benchmark.
        scorer: Whose scores.
        alpha: Accuracy that may be lost.
        best: Best possible share of weak answers.
        kept: Over the calibration sets; None where it was refused.
        refused: Why, or "".
    """

    benchmark: str
    scorer: str
    alpha: float
    best: float
    kept: Kept | None
    refused: str = ""


def certify_fold(questions: Questions, name: str, fold: Fold, alpha: float) -> Promise:
    """Certify on many calibration sets, drawn from the part of the fold that does not give the grid."""
    confidence, losses = -fold.need, -questions.gain[fold.places]
    cut = int(GRID_SHARE * len(losses))
    scores = confidence[cut:]
    weak, strong = questions.weak[fold.places[cut:]], questions.strong[fold.places[cut:]]
    population = curve(scores, losses_of("accuracy", weak != strong, weak, strong), "accuracy")
    best = population.local[population.at(np.array([best_possible(population, alpha)]))][0] / population.n
    grid = threshold_grid(confidence[:cut], losses[:cut], target="accuracy", n=N, alpha=alpha, delta=DELTA)
    drawn = np.random.default_rng([_SEED, len(losses)]).integers(0, len(scores), size=(SETS, N))
    try:
        thresholds = [
            certify_accuracy(
                scores[places], weak[places], strong[places], alpha=alpha, delta=DELTA, grid=grid
            ).threshold
            for places in drawn
        ]
    except TooFewItemsError as error:
        return Promise(questions.name, name, alpha, float(best), None, str(error))
    return Promise(questions.name, name, alpha, float(best), kept(population, np.array(thresholds), alpha))


def goals(rows: Sequence[Row], promises: Sequence[Promise]) -> list[Goal]:
    """Our best before-signal on MMLU against what is published, and the certificates."""
    ours = next(float(np.mean(row.calls["50%"])) for row in rows if (row.benchmark, row.scorer) == ("mmlu", OURS))
    judged = [promise.kept for promise in promises if promise.kept is not None]
    worst = max((found.low for found in judged), default=1.0)
    return [
        Goal(
            f"MMLU, half of the gap: fewer strong calls than RouteLLM's {PUBLISHED_MMLU:.0%}",
            f"{ours:.1%}, five-fold",
            ours < PUBLISHED_MMLU,
        ),
        Goal(
            f"certificates broken in at most {DELTA:.0%} of the sets, within the 95 % interval",
            f"{len(judged)} certified, largest lower end {worst:.1%}",
            bool(judged) and worst <= DELTA,
        ),
    ]


def show(rows: Sequence[Row], promises: Sequence[Promise], facts: Mapping[str, str], found: Sequence[Goal]) -> None:
    """Print it all."""
    for name, fact in facts.items():
        tables.CONSOLE.print(f"{name}: {fact}")
        cells = [("random", *(f"{100 * gap:.1f}" for gap in GAPS), "-")]
        if name == "mmlu":
            cells.append(("RouteLLM, as published, about", f"{100 * PUBLISHED_MMLU:.0f}", "-", "-"))
        cells += [_cells(row) for row in rows if row.benchmark == name]
        columns = ("", *(f"for {gap:.0%} of the gap" for gap in GAPS), "folds")
        tables.show_table(f"{name}: strong calls in %, mean (smallest-largest) of held-out folds", columns, cells)
    columns = ("", "alpha", "best possible", f"certified at n={N} (5-95 % of sets)", "broken %")
    lines = [_promise_cells(promise) for promise in promises]
    tables.show_table("share of weak answers at an accuracy at most alpha below the strong model's", columns, lines)
    tables.show_goals(found)


def _cells(row: Row) -> tuple[str, ...]:
    shown = [f"{100 * np.mean(c):.1f} ({100 * min(c):.1f}-{100 * max(c):.1f})" for c in row.calls.values()]
    return (row.scorer, *shown, str(len(next(iter(row.calls.values())))))


def _promise_cells(promise: Promise) -> tuple[str, ...]:
    found = promise.kept
    shown = "refused" if found is None else f"{found.local_share:.3f} ({found.local_low:.3f}-{found.local_high:.3f})"
    broken = "-" if found is None else f"{100 * found.rate:.1f}"
    return (f"{promise.benchmark}, {promise.scorer}", f"{promise.alpha:.1%}", f"{promise.best:.3f}", shown, broken)


def main() -> int:
    """Run the command line."""
    options = tables.parser(__doc__, WORK / "results" / "router-routellm.json")
    options.add_argument("--data", type=Path, default=DATA, help="folder with routellm (default: %(default)s)")
    options.add_argument(
        "--seeds", type=int, default=3, help="five-fold splits of GSM8K; MMLU gets one (default: %(default)s)"
    )
    arguments = options.parse_args()
    where = machine()
    rows: list[Row] = []
    promises: list[Promise] = []
    facts: dict[str, str] = {}
    for name, seeds in (("mmlu", 1), ("gsm8k", arguments.seeds)):
        questions = read_questions(name, arguments.data)
        facts[name] = (
            f"{len(questions)} questions, weak {questions.weak.mean():.1%} right, strong {questions.strong.mean():.1%}"
        )
        for scorer, score in scorers(questions).items():
            tables.say(f"{name}: {scorer}")
            folds = [cross_fit(questions, score, seed) for seed in range(seeds)]
            rows.append(row_of(questions, scorer, folds))
            if scorer == OURS:
                promises += [certify_fold(questions, scorer, folds[0][0], alpha) for alpha in ALPHAS]
    found = goals(rows, promises)
    show(rows, promises, facts, found)
    result: dict[str, Any] = {"machine": where, "benchmarks": facts, "rows": rows, "certificates": promises}
    tables.write_json(arguments.out, {**result, "published_mmlu_50": PUBLISHED_MMLU, "goals": found})
    return 0 if all(goal.met for goal in found) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
