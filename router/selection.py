"""Which signal orders the items best: risk over coverage on a part that certifies nothing. Pure.

Owns the comparison and the choice, that of temperature and p too. It may look at the tuning part as often as it likes:
what is certified afterwards comes from other items.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import FloatArray, Prediction
from edgewise.errors import CertificateError
from edgewise.router.combination import cross_fitted
from edgewise.router.fitted import Fitted
from edgewise.router.ranking import aurc, auroc, local_share, resampled_aurc, resamples
from edgewise.router.signals import COMBINED, GENERATOR_SIGNALS, SIGNALS, check_signal, score_of, signal_named

TEMPERATURES = (0.25, 0.5, 0.7, 1.4, 2.0, 3.0, 5.0, 10.0)
NORMS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)

_TRIED = {
    **dict.fromkeys(("margin", "max_probability", "entropy", "energy"), ("temperature", TEMPERATURES)),
    "pnorm": ("p", NORMS),
}


STANDARD_ERRORS = 2.0
"""By how much another signal must beat the default: a smaller lead is as likely luck, and luck does not repeat."""

_RESAMPLES = 200
_SEED = 4
_ROUNDING = 1e-12


@dataclass(frozen=True)
class SignalFigures:
    """What a signal is worth on the items it was compared on.

    Attributes:
        signal: Its name and options.
        aurc: Area under the curve of risk over coverage; smaller is better.
        better_by: How far its AURC lies below the default signal's, in standard errors of that difference; 0 of the
            default itself, and where nothing parts them.
        auroc: Probability that an item without loss scores above one with; None where all or none have a loss.
        local_share: The largest share of items that can be answered locally with at most alpha of all items lost; as
            counted on these items, so nothing that is promised.
    """

    signal: str
    aurc: float
    better_by: float
    auroc: float | None
    local_share: float


def compare_signals(
    predictions: Sequence[Prediction],
    losses: Sequence[bool] | NDArray[np.bool_],
    *,
    alpha: float,
    fitted: Fitted | None = None,
    names: Iterable[str] | None = None,
    default: str | None = None,
) -> list[SignalFigures]:
    """Compare signals on the tuning part.

    Temperature and p are the ones of the smallest AURC on a small grid; the row names them. "combined" is judged by
    cross-fitting, since it was fitted on these very items, and its neighbours leave the item itself out. The standard
    error of a difference is the one over bootstrap samples of the items, the same for both signals (Efron 1979).

    Args:
        predictions: What the edge model says of the items, in the order in which `fitted` was fitted to them.
        losses: Whether each counts against the edge, shape (n,).
        alpha: Bound on the risk that the local share is counted at, in (0, 1).
        fitted: What was fitted on the same items; its neighbours veto where they have a cut, and its combination is
            compared.
        names: Signals to compare as they are spelled; all that apply, and their best options, where not given.
        default: The signal that others are held against; where not given, "margin", of generated texts "mean_logprob".

    Returns:
        A row a signal, the smallest AURC first, then the larger local share; of equals the simpler one.

    Raises:
        CertificateError: No items, or not one loss each.
        ConfigError: An unknown signal.
    """
    wrong = np.asarray(losses, dtype=np.bool_)
    if len(wrong) != len(predictions) or not len(wrong):
        raise CertificateError(f"{len(predictions)} predictions go with {len(wrong)} losses.", "Give one loss each.")
    foreign = _foreign(predictions, fitted)

    def score(signal: str) -> FloatArray:
        check_signal(signal, fitted)
        if signal == COMBINED:
            scores = cross_fitted(predictions, wrong, neighbours=fitted.neighbours if fitted else None)
        else:
            scores = np.array([score_of(prediction, signal) for prediction in predictions])
        return np.where(foreign, math.nan, scores)

    applicable = _applicable(predictions, fitted) if names is None else list(names)
    found = {name: score(name) for name in applicable}
    if names is None:
        found |= _tuned(predictions, wrong, foreign, found)
    default = default or ("mean_logprob" if _generated(predictions) else "margin")
    reference = found[default] if default in found else score(default)
    rows = _figures(found, reference, wrong, alpha)
    return sorted(rows, key=lambda row: (row.aurc, -row.local_share))


def choose(rows: Sequence[SignalFigures], default: str) -> SignalFigures:
    """The best signal that clearly beats the default; the default where none does.

    Taking the smallest AURC of many, whatever the lead, would often take a signal that is worse on new items. So the
    one of the simplest stands that is within reach of the best, as Breiman et al. 1984 prune trees by a standard error.

    Args:
        rows: As `compare_signals` gives them, held against this default.
        default: The signal that needs no reason; where it is not among the rows, the first row is taken.
    """
    clearly = [row for row in rows if row.better_by > STANDARD_ERRORS]
    return next(iter(clearly), next((row for row in rows if row.signal == default), rows[0]))


def _figures(
    found: Mapping[str, FloatArray], reference: FloatArray, wrong: NDArray[np.bool_], alpha: float
) -> list[SignalFigures]:
    counts = resamples(len(wrong), _RESAMPLES, _SEED)
    usual, usual_resampled = aurc(reference, wrong), resampled_aurc(reference, wrong, counts)
    rows = []
    for signal, scores in found.items():
        area = aurc(scores, wrong)
        error = float(np.std(usual_resampled - resampled_aurc(scores, wrong, counts)))
        lead = usual - area
        # Signals of one order differ by rounding alone, and by as much in every sample.
        better_by = lead / error if abs(lead) > _ROUNDING and error > _ROUNDING else 0.0
        rows.append(SignalFigures(signal, area, better_by, auroc(scores, wrong), local_share(scores, wrong, alpha)))
    return rows


def _generated(predictions: Sequence[Prediction]) -> bool:
    return all(prediction.logits is None for prediction in predictions)


def _applicable(predictions: Sequence[Prediction], fitted: Fitted | None) -> list[str]:
    """Signals without options that give at least one item a score."""
    names: list[str] = []
    if any(prediction.logits is not None for prediction in predictions):
        names += SIGNALS
    if any(prediction.token_logprobs is not None for prediction in predictions):
        names += GENERATOR_SIGNALS
    return [*names, COMBINED] if fitted is not None and fitted.combination is not None else names


def _tuned(
    predictions: Sequence[Prediction],
    wrong: NDArray[np.bool_],
    foreign: NDArray[np.bool_],
    plain: Mapping[str, FloatArray],
) -> dict[str, FloatArray]:
    """Of each signal with an option the scores by the best value on the grid, where it is better than the default."""
    present = np.array([prediction.logits is not None for prediction in predictions])
    known = [prediction.logits for prediction in predictions if prediction.logits is not None]
    if not known:
        return {}
    logits = np.stack(known)
    found = {}
    for name, (option, values) in _TRIED.items():
        tried = {}
        for value in values:
            text = f"{name}:{option}={value:g}"
            tried[text] = np.full(len(predictions), math.nan)
            tried[text][present] = signal_named(text)(logits)
            tried[text][foreign] = math.nan
        areas = {text: aurc(scores, wrong) for text, scores in tried.items()}
        best = min(areas, key=areas.__getitem__)
        if name not in plain or areas[best] < aurc(plain[name], wrong):
            found[best] = tried[best]
    return found


def _foreign(predictions: Sequence[Prediction], fitted: Fitted | None) -> NDArray[np.bool_]:
    """Out of distribution by the model's word or by the neighbours, each item left out of its own; shape (n,)."""
    foreign = np.array([prediction.out_of_distribution for prediction in predictions])
    neighbours = fitted.neighbours if fitted is not None else None
    if neighbours is not None and neighbours.vetoes:
        for at, prediction in enumerate(predictions):
            if prediction.embedding is not None:
                foreign[at] |= not neighbours.distance_left_out(prediction.embedding) <= neighbours.cut
    return foreign
