"""How much does the promise cost, and does a better signal buy it back?

    python benchmarks/router/power.py [--inputs 20000] [--sets 1000] [--data DATA]

First `certify` is held against brute force: on random inputs, ties, NaN and degenerate ones among them, every threshold
is tried with scipy's exact binomial, and threshold, share and refusal must be the same.

Then, for both pairs of pairs.py at n = 2,000 and alpha = 1 %, each signal: what it was worth on the tuning part, the
best possible threshold's share on the pool (the lowest whose risk on the pool itself is at most alpha), and over many
calibration sets the share that `certify` gives, beside the empirical threshold's broken promises. What is fitted, is
fitted on the tuning part; which signal is taken, `compare_signals` says there by the area under risk over coverage.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from borrowed import DATA, WORK, Goal, machine, tables
from numpy.typing import NDArray
from pairs import NAMES, Pair, Part, describe, prepare_pair
from practices import Curve, Kept, best_possible, curve, empirical, kept
from scipy.stats import binom

from edgewise.contracts import Prediction
from edgewise.errors import TooFewItemsError
from edgewise.router.certificate import certify
from edgewise.router.combination import fit_combination
from edgewise.router.fitted import Fitted
from edgewise.router.neighbours import embeddings_of, fit_neighbours
from edgewise.router.selection import SignalFigures, compare_signals
from edgewise.router.signals import score_of

N, ALPHA, DELTA = 2000, 0.01, 0.05
OUT_OF_SCOPE = "oos"
POOLS = 200
_SEED = 44


@dataclass(frozen=True)
class Certified:
    """What a threshold came to on some items: the threshold, or None where nothing can be certified; and its share."""

    threshold: float | None
    local_share: float


def by_brute_force(scores: NDArray[np.float64], disagree: NDArray[np.bool_], alpha: float, delta: float) -> Certified:
    """Try every threshold with scipy's binomial."""
    found = curve(scores, disagree, "agreement")
    # Above all scores nothing is lost: where even that does not certify, nothing can.
    if binom.cdf(0, found.n, alpha) > delta:
        return Certified(None, 0.0)
    place = int(np.flatnonzero(binom.cdf(found.lost, found.n, alpha) <= delta)[-1])
    return Certified(float(found.thresholds[place]), float(found.local[place] / found.n))


def by_formula(scores: NDArray[np.float64], disagree: NDArray[np.bool_], alpha: float, delta: float) -> Certified:
    """Ask `certify`."""
    try:
        bound = certify(scores, disagree, alpha=alpha, delta=delta)
    except TooFewItemsError:
        return Certified(None, 0.0)
    return Certified(bound.threshold, bound.local_share)


def random_input(
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], float, float]:
    """Scores, disagreements, alpha and delta: small and large, tied and not, with and without NaN."""
    n = int(rng.integers(1, 3000)) if rng.random() < 0.3 else int(rng.integers(1, 300))
    scores = rng.random(n)
    if rng.random() < 0.5:
        scores = np.round(scores, int(rng.integers(0, 3)))
    if rng.random() < 0.3:
        scores[rng.random(n) < rng.random()] = np.nan
    rate = float(rng.choice([0.0, 1.0, rng.random(), 0.02]))
    disagree = rng.random(n) < rate * (1 - np.nan_to_num(scores) if rng.random() < 0.5 else 1)
    return scores, disagree, float(10 ** rng.uniform(-3, -0.1)), float(10 ** rng.uniform(-4, -0.1))


def differences(inputs: int) -> tuple[int, int]:
    """On how many random inputs formula and brute force differ, and how many they refuse."""
    rng = np.random.default_rng(_SEED)
    differing = refused = 0
    for _ in range(inputs):
        given = random_input(rng)
        truth = by_brute_force(*given)
        refused += truth.threshold is None
        differing += by_formula(*given) != truth
    return differing, refused


@dataclass(frozen=True)
class Row:
    """One signal on one pair.

    Attributes:
        pair: The pair.
        signal: Its name and options.
        fitted: What stands beside it: "", or "kNN veto".
        aurc: On the tuning part.
        auroc: On the tuning part.
        tuning_share: Best possible share on the tuning part, as counted there.
        best: Best possible share on the pool.
        gain: What that is above the margin's.
        gain_low: 5 % quantile of the gain over pools drawn from this one with replacement.
        gain_high: 95 % quantile.
        certified: Over the calibration sets.
        empirical: The empirical threshold over the same sets.
        out_of_scope_local: Share of the pool's out-of-scope items that the best possible threshold answers locally;
            None where the pool has none.
    """

    pair: str
    signal: str
    fitted: str
    aurc: float
    auroc: float | None
    tuning_share: float
    best: float
    gain: float
    gain_low: float
    gain_high: float
    certified: Kept
    empirical: Kept
    out_of_scope_local: float | None


def fit(tuning: Part, predictions: Sequence[Prediction], *, veto: bool) -> Fitted:
    """Fit on the tuning part: the combination, and the neighbours that veto where asked for."""
    embeddings = embeddings_of(predictions) if veto else None
    neighbours = None if embeddings is None else fit_neighbours(embeddings)
    return Fitted(neighbours, None, fit_combination(predictions, tuning.disagree, neighbours=neighbours))


def rows_of(pair: Pair, sets: int) -> list[Row]:
    """All signals, the best on the tuning part first; then the same under the veto of the neighbours."""
    predictions, tuning = pair.pool.predictions(), pair.tuning.predictions()
    rng = np.random.default_rng([_SEED, len(predictions)])
    drawn = rng.integers(0, len(predictions), size=(sets, N))
    pools = [np.arange(len(predictions)), *rng.integers(0, len(predictions), size=(POOLS, len(predictions)))]
    margins = np.array([score_of(prediction, "margin") for prediction in predictions])
    reference = _best_shares(margins, pair.pool.disagree, pools)
    rows = []
    for veto in (False, True) if pair.pool.embeddings is not None else (False,):
        fitted = fit(pair.tuning, tuning, veto=veto)
        for figures in compare_signals(tuning, pair.tuning.disagree, alpha=ALPHA, fitted=fitted):
            tables.say(f"{pair.name}: {figures.signal}{', kNN veto' if veto else ''}")
            scores = np.array([score_of(prediction, figures.signal, fitted) for prediction in predictions])
            gains = _best_shares(scores, pair.pool.disagree, pools) - reference
            rows.append(_row(pair, figures, scores, drawn, gains, veto=veto))
    return rows


def _best_shares(
    scores: NDArray[np.float64], disagree: NDArray[np.bool_], pools: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Best possible share on each of some pools, shape (pools,)."""
    populations = [curve(scores[places], disagree[places], "agreement") for places in pools]
    return np.array([_share(population, best_possible(population, ALPHA)) for population in populations])


def _row(
    pair: Pair,
    figures: SignalFigures,
    scores: NDArray[np.float64],
    drawn: NDArray[np.int64],
    gains: NDArray[np.float64],
    *,
    veto: bool,
) -> Row:
    disagree = pair.pool.disagree
    population = curve(scores, disagree, "agreement")
    bounds = [certify(scores[places], disagree[places], alpha=ALPHA, delta=DELTA) for places in drawn]
    picked = [empirical(curve(scores[places], disagree[places], "agreement"), ALPHA) for places in drawn]
    best = best_possible(population, ALPHA)
    return Row(
        pair=pair.name,
        signal=figures.signal,
        fitted="kNN veto" if veto else "",
        aurc=figures.aurc,
        auroc=figures.auroc,
        tuning_share=figures.local_share,
        best=_share(population, best),
        gain=float(gains[0]),
        gain_low=float(np.quantile(gains[1:], 0.05)),
        gain_high=float(np.quantile(gains[1:], 0.95)),
        certified=kept(population, np.array([bound.threshold for bound in bounds]), ALPHA),
        empirical=kept(population, np.array(picked), ALPHA),
        out_of_scope_local=_out_of_scope(pair, scores > best),
    )


def _share(population: Curve, threshold: float) -> float:
    return float(population.local[population.at(np.array([threshold]))][0] / population.n)


def _out_of_scope(pair: Pair, local: NDArray[np.bool_]) -> float | None:
    if OUT_OF_SCOPE not in pair.labels:
        return None
    return float(local[pair.pool.truth == pair.labels.index(OUT_OF_SCOPE)].mean())


def goals(differing: int, inputs: int, rows: Sequence[Row]) -> list[Goal]:
    """Brute force; and on each pair whether the signal that the tuning part chooses raises the best possible."""
    what = "certify equals a brute-force exact binomial on every input tried"
    found = [Goal(what, f"{differing} of {inputs} random inputs differ", differing == 0)]
    for pair in dict.fromkeys(row.pair for row in rows):
        plain = {row.signal: row for row in rows if row.pair == pair and not row.fitted}
        chosen, margin = next(iter(plain.values())), plain["margin"]
        text = f"{chosen.signal}: best possible {chosen.best:.3f}, margin {margin.best:.3f} ({_gain(chosen)})"
        text += f"; certified {chosen.certified.local_share:.3f} against {margin.certified.local_share:.3f}"
        found.append(
            Goal(f"{pair}: the signal chosen on the tuning part raises the best", text, chosen.best > margin.best)
        )
    return found


def show(rows: Sequence[Row], pairs: Mapping[str, Pair], found: Sequence[Goal]) -> None:
    """Print it all."""
    columns = (
        *(
            "signal",
            "",
            "AURC",
            "AUROC",
            "tuning share",
            "best possible",
            "gain (5-95 % of pools)",
            "certified (5-95 % of sets)",
            "of best",
        ),
        *("broken %", "empirical", "broken %", "oos local %"),
    )
    for name, pair in pairs.items():
        tables.CONSOLE.print(describe(pair))
        title = f"{name}, agreement at n={N}, alpha={ALPHA:.0%}, delta={DELTA:.0%}: shares answered locally"
        tables.show_table(title, columns, [_cells(row) for row in rows if row.pair == name])
    tables.show_goals(found)


def _cells(row: Row) -> tuple[str, ...]:
    certified = row.certified
    return (
        row.signal,
        row.fitted,
        f"{row.aurc:.4f}",
        "-" if row.auroc is None else f"{row.auroc:.3f}",
        f"{row.tuning_share:.3f}",
        f"{row.best:.3f}",
        _gain(row),
        f"{certified.local_share:.3f} ({certified.local_low:.3f}-{certified.local_high:.3f})",
        f"{certified.local_share / row.best:.2f}" if row.best else "-",
        f"{100 * certified.rate:.1f}",
        f"{row.empirical.local_share:.3f}",
        f"{100 * row.empirical.rate:.1f}",
        tables.percent(row.out_of_scope_local, 1),
    )


def _gain(row: Row) -> str:
    return f"{row.gain:+.3f}, {row.gain_low:+.3f} to {row.gain_high:+.3f}"


def main() -> int:
    """Run the command line."""
    options = tables.parser(__doc__, WORK / "results" / "router-power.json")
    options.add_argument("--data", type=Path, default=DATA, help="folder with clinc150 (default: %(default)s)")
    options.add_argument("--sets", type=int, default=1000, help="calibration sets (default: %(default)s)")
    options.add_argument("--inputs", type=int, default=20000, help="inputs for brute force (default: %(default)s)")
    arguments = options.parse_args()
    where = machine()
    differing, refused = differences(arguments.inputs)
    tables.say(f"brute force: {differing} of {arguments.inputs} inputs differ, {refused} refused by both")
    pairs = {name: prepare_pair(name, arguments.work or WORK, arguments.data, tables.say) for name in NAMES}
    rows = [row for pair in pairs.values() for row in rows_of(pair, arguments.sets)]
    found = goals(differing, arguments.inputs, rows)
    show(rows, pairs, found)
    facts = {"n": N, "alpha": ALPHA, "delta": DELTA, "inputs": arguments.inputs, "refused": refused}
    tables.write_json(arguments.out, {"machine": where, **facts, "rows": rows, "goals": found})
    return 0 if all(goal.met for goal in found) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
