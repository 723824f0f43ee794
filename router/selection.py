"""Which signal orders the items best: risk over coverage on a part that certifies nothing. Pure.

Owns the figures and the choice of temperature and p. It may look at the tuning part as often as it likes: what is
certified afterwards comes from other items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import FloatArray, Prediction
from edgewise.errors import CertificateError
from edgewise.router.combination import cross_fitted
from edgewise.router.fitted import Fitted
from edgewise.router.ranking import aurc, auroc, local_share
from edgewise.router.signals import COMBINED, GENERATOR_SIGNALS, SIGNALS, check_signal, score_of, signal_named

TEMPERATURES = (0.25, 0.5, 0.7, 1.4, 2.0, 3.0, 5.0, 10.0)
NORMS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)

_TRIED = {
    **dict.fromkeys(("margin", "max_probability", "entropy", "energy"), ("temperature", TEMPERATURES)),
    "pnorm": ("p", NORMS),
}


@dataclass(frozen=True)
class SignalFigures:
    """What a signal is worth on the items it was compared on.

    Attributes:
        signal: Its name and options.
        aurc: Area under the curve of risk over coverage; smaller is better.
        auroc: Probability that an item without loss scores above one with; None where all or none have a loss.
        local_share: The largest share of items that can be answered locally with at most alpha of all items lost; as
            counted on these items, so nothing that is promised.
    """

    signal: str
    aurc: float
    auroc: float | None
    local_share: float


def compare_signals(
    predictions: Sequence[Prediction],
    losses: Sequence[bool] | NDArray[np.bool_],
    *,
    alpha: float,
    fitted: Fitted | None = None,
    names: Iterable[str] | None = None,
) -> list[SignalFigures]:
    """Compare signals on the tuning part.

    Temperature and p are the ones of the smallest AURC on a small grid; the row names them. "combined" is judged by
    cross-fitting, since it was fitted on these very items, and distances to neighbours leave the item itself
    out.

    Args:
        predictions: What the edge model says of the items, in the order in which `fitted` was fitted to them.
        losses: Whether each counts against the edge, shape (n,).
        alpha: Bound on the risk that the local share is counted at, in (0, 1).
        fitted: What was fitted on the same items; its neighbours veto, and its combination is compared.
        names: Signals to compare as they are spelled; all that apply, and their best options, where not given.

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

    def figures(signal: str, scores: FloatArray) -> SignalFigures:
        scores = np.where(foreign, math.nan, scores)
        return SignalFigures(signal, aurc(scores, wrong), auroc(scores, wrong), local_share(scores, wrong, alpha))

    def scored(signal: str) -> SignalFigures:
        if signal == COMBINED:
            return figures(signal, cross_fitted(predictions, wrong, neighbours=fitted.neighbours if fitted else None))
        return figures(signal, np.array([score_of(prediction, signal) for prediction in predictions]))

    if names is not None:
        chosen = list(dict.fromkeys(names))
        for name in chosen:
            check_signal(name, fitted)
        rows = [scored(name) for name in chosen]
    else:
        rows = [scored(name) for name in _applicable(predictions, fitted)]
        rows += _tuned(predictions, rows, figures)
    return sorted(rows, key=lambda row: (row.aurc, -row.local_share))


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
    plain: Sequence[SignalFigures],
    figures: Callable[[str, FloatArray], SignalFigures],
) -> list[SignalFigures]:
    """Of each signal with an option the best value on the grid, where it is better than the default."""
    present = np.array([prediction.logits is not None for prediction in predictions])
    known = [prediction.logits for prediction in predictions if prediction.logits is not None]
    if not known:
        return []
    logits = np.stack(known)
    scores = np.full(len(predictions), math.nan)
    rows = []
    for name, (option, values) in _TRIED.items():
        found = []
        for value in values:
            text = f"{name}:{option}={value:g}"
            scores[present] = signal_named(text)(logits)
            found.append(figures(text, scores))
        best = min(found, key=lambda row: row.aurc)
        if all(best.aurc < row.aurc for row in plain if row.signal == name):
            rows.append(best)
    return rows


def _foreign(predictions: Sequence[Prediction], fitted: Fitted | None) -> NDArray[np.bool_]:
    """Out of distribution by the model's word or by the neighbours, each item left out of its own; shape (n,)."""
    foreign = np.array([prediction.out_of_distribution for prediction in predictions])
    neighbours = fitted.neighbours if fitted is not None else None
    if neighbours is not None:
        for at, prediction in enumerate(predictions):
            if prediction.embedding is not None:
                foreign[at] |= not neighbours.distance_left_out(prediction.embedding) <= neighbours.cut
    return foreign
