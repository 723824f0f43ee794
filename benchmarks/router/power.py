"""How much does the promise cost, and does a better signal buy it back?

    python benchmarks/router/power.py [--inputs 20000] [--sets 1000] [--splits 20] [--data DATA]

First `certify` is held against brute force: on random inputs, ties, NaN and degenerate ones among them, every threshold
is tried with scipy's exact binomial, and threshold, share and refusal must be the same.

Then, for both pairs of pairs.py at n = 2,000 and alpha = 1 %, each signal: what it was worth on the tuning part, the
best possible threshold's share on the pool (the lowest whose risk on the pool itself is at most alpha), and over many
calibration sets the share that `certify` gives, beside the empirical threshold's broken promises. What is fitted, is
fitted on the tuning part; which signal is taken, `choose` says there as for `edgewise certify --signal auto`.

One split into tuning part and pool is one draw. So both are put together and split anew, at random and in the same
sizes, as often as --splits says; each time everything is fitted, compared and chosen again, and what the chosen signal
gains over the margin on the new pool is averaged. The goal is a mean gain above 0 by two standard errors on one pair at
least, and below 0 by two on none. The splits share items, so the standard error is of the split, not of the data.
"""

from __future__ import annotations

import collections
import dataclasses
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
from edgewise.router.neighbours import Outcomes, embeddings_of, fit_neighbours
from edgewise.router.selection import STANDARD_ERRORS, SignalFigures, choose, compare_signals
from edgewise.router.signals import score_of

N, ALPHA, DELTA = 2000, 0.01, 0.05
OUT_OF_SCOPE = "oos"
POOLS = 200
DEFAULT = "margin"
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
        better_by: How far that lies below the margin's there, in standard errors.
        taken: Whether this is the signal that certify would take.
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
    better_by: float
    taken: bool
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
    """Fit on the tuning part: the neighbours, which veto where asked for, and the combination, which reads them."""
    embeddings, wrong = embeddings_of(predictions), tuning.disagree
    neighbours = None
    if embeddings is not None:
        neighbours = fit_neighbours(embeddings, Outcomes(tuning.cloud.astype(np.int32), wrong))
        neighbours = neighbours if veto else neighbours.without_veto()
    return Fitted(neighbours, None, fit_combination(predictions, wrong, neighbours=neighbours))


@dataclass(frozen=True)
class Resplit:
    """What the chosen signal gains over the margin on one pair, over many splits into tuning part and pool.

    Attributes:
        pair: The pair.
        gains: Best possible share of the chosen signal less the margin's, one a split.
        chosen: How often each signal was chosen.
    """

    pair: str
    gains: tuple[float, ...]
    chosen: dict[str, int]

    @property
    def mean(self) -> float:
        """The mean gain."""
        return float(np.mean(self.gains))

    @property
    def error(self) -> float:
        """Its standard error."""
        return float(np.std(self.gains, ddof=1) / np.sqrt(len(self.gains)))


def resplit(pair: Pair, splits: int) -> Resplit:
    """Split tuning part and pool anew, fit and choose on the one, and look at the other."""
    everything = _joined(pair.tuning, pair.pool)
    rng = np.random.default_rng([_SEED, splits])
    gains, chosen = [], collections.Counter[str]()
    for number in range(splits):
        order = rng.permutation(len(everything))
        gain, signal = _gain_of_chosen(
            _some(everything, order[: len(pair.tuning)]), _some(everything, order[len(pair.tuning) :])
        )
        tables.say(f"{pair.name}: split {number + 1} of {splits}: {signal}, {gain:+.4f}")
        gains.append(gain)
        chosen[signal] += 1
    return Resplit(pair.name, tuple(gains), dict(chosen))


def _gain_of_chosen(tuning: Part, pool: Part) -> tuple[float, str]:
    """What the signal chosen on the tuning part gains on the pool, and its name."""
    known, predictions = tuning.predictions(), pool.predictions()
    fitted = fit(tuning, known, veto=False)
    signal = choose(compare_signals(known, tuning.disagree, alpha=ALPHA, fitted=fitted), DEFAULT).signal
    whole = [np.arange(len(pool))]
    shares = [
        _best_shares(np.array([score_of(found, name, fitted) for found in predictions]), pool.disagree, whole)[0]
        for name in (signal, DEFAULT)
    ]
    return float(shares[0] - shares[1]), signal


def _joined(one: Part, other: Part) -> Part:
    arrays = {
        field.name: np.concatenate([getattr(one, field.name), getattr(other, field.name)])
        for field in dataclasses.fields(Part)
        if field.name != "texts" and getattr(one, field.name) is not None
    }
    return dataclasses.replace(one, texts=one.texts + other.texts, **arrays)


def _some(part: Part, places: NDArray[np.int64]) -> Part:
    arrays = {
        field.name: getattr(part, field.name)[places]
        for field in dataclasses.fields(Part)
        if field.name != "texts" and getattr(part, field.name) is not None
    }
    return dataclasses.replace(part, texts=tuple(part.texts[place] for place in places), **arrays)


def rows_of(pair: Pair, sets: int) -> list[Row]:
    """All signals, the best on the tuning part first; then the same under the veto of the neighbours."""
    predictions, tuning = pair.pool.predictions(), pair.tuning.predictions()
    rng = np.random.default_rng([_SEED, len(predictions)])
    drawn = rng.integers(0, len(predictions), size=(sets, N))
    pools = [np.arange(len(predictions)), *rng.integers(0, len(predictions), size=(POOLS, len(predictions)))]
    margins = np.array([score_of(prediction, DEFAULT) for prediction in predictions])
    reference = _best_shares(margins, pair.pool.disagree, pools)
    rows = []
    for veto in (False, True) if pair.pool.embeddings is not None else (False,):
        fitted = fit(pair.tuning, tuning, veto=veto)
        compared = compare_signals(tuning, pair.tuning.disagree, alpha=ALPHA, fitted=fitted)
        taken = choose(compared, DEFAULT).signal
        for figures in compared:
            tables.say(f"{pair.name}: {figures.signal}{', kNN veto' if veto else ''}")
            scores = np.array([score_of(prediction, figures.signal, fitted) for prediction in predictions])
            gains = _best_shares(scores, pair.pool.disagree, pools) - reference
            rows.append(_row(pair, figures, scores, drawn, gains, veto=veto, taken=figures.signal == taken))
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
    taken: bool,
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
        better_by=figures.better_by,
        taken=taken,
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


def goals(differing: int, inputs: int, found: Sequence[Resplit]) -> list[Goal]:
    """Brute force; and over all splits, whether the signal that the tuning part chooses is worth it."""
    what = "certify equals a brute-force exact binomial on every input tried"
    brute = Goal(what, f"{differing} of {inputs} random inputs differ", differing == 0)
    what = "the signal chosen on the tuning part raises the best possible share on one pair, and lowers it on none"
    gained = [pair.mean > STANDARD_ERRORS * pair.error for pair in found]
    lost = [pair.mean < -STANDARD_ERRORS * pair.error for pair in found]
    text = "; ".join(f"{pair.pair} {_mean_gain(pair)}" for pair in found)
    return [brute, Goal(what, text, any(gained) and not any(lost))]


def _mean_gain(pair: Resplit) -> str:
    return f"{100 * pair.mean:+.2f} points (standard error {100 * pair.error:.2f}, {len(pair.gains)} splits)"


def show(rows: Sequence[Row], pairs: Mapping[str, Pair], splits: Sequence[Resplit], found: Sequence[Goal]) -> None:
    """Print it all."""
    columns = (
        *(
            "signal",
            "",
            "AURC",
            "better by, se",
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
    for split in splits:
        chosen = ", ".join(f"{signal} {count}" for signal, count in split.chosen.items())
        tables.CONSOLE.print(f"{split.pair}, split anew: the chosen signal gains {_mean_gain(split)}; chosen: {chosen}")
    tables.show_goals(found)


def _cells(row: Row) -> tuple[str, ...]:
    certified = row.certified
    return (
        row.signal + (" (taken)" if row.taken else ""),
        row.fitted,
        f"{row.aurc:.4f}",
        f"{row.better_by:+.1f}",
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
    options.add_argument("--splits", type=int, default=20, help="new splits of the parts (default: %(default)s)")
    arguments = options.parse_args()
    if arguments.splits < 2:
        options.error("--splits needs 2 or more for a standard error")
    where = machine()
    differing, refused = differences(arguments.inputs)
    tables.say(f"brute force: {differing} of {arguments.inputs} inputs differ, {refused} refused by both")
    pairs = {name: prepare_pair(name, arguments.work or WORK, arguments.data, tables.say) for name in NAMES}
    rows = [row for pair in pairs.values() for row in rows_of(pair, arguments.sets)]
    splits = [resplit(pair, arguments.splits) for pair in pairs.values()]
    found = goals(differing, arguments.inputs, splits)
    show(rows, pairs, splits, found)
    facts = {"n": N, "alpha": ALPHA, "delta": DELTA, "inputs": arguments.inputs, "refused": refused}
    tables.write_json(arguments.out, {"machine": where, **facts, "rows": rows, "splits": splits, "goals": found})
    return 0 if all(goal.met for goal in found) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
