"""The signal "combined": what predicts best, from several signals at once, that the edge agrees. Pure.

Owns the features and their fit on the tuning part. Its score is a log-odds: it orders items, and no more is asked of a
score; what it is worth is the certificate's to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import FloatArray, Prediction
from edgewise.errors import CertificateError
from edgewise.router.isotonic import Isotonic, fit_isotonic
from edgewise.router.logistic import fit_logistic, standardiser
from edgewise.router.neighbours import NOWHERE, Around, Neighbours
from edgewise.router.ranking import aurc
from edgewise.router.signals import low_quantile

CLASSIFIER_FEATURES = ("margin", "gap", "max_probability", "entropy", "energy", "max_logit", "pnorm")
"""Of logits: signals by their names, and the gap between the two largest logits, which is their log-odds."""

GENERATOR_FEATURES = ("mean_logprob", "low_logprob", "first_margin")
"""Of generated texts; the mean is corrected for length, and each goes through isotonic regression."""

RIDGES = (2.0, 20.0, 200.0)
"""Precisions of the priors that are tried: few losses say little of each predicted class."""

FOLDS = 5
_CERTAIN = np.array(-100.0)
_TINY = 1e-300
_LEAST_ITEMS = 20


@dataclass(frozen=True, eq=False)
class ClassifierCombination:
    """Logistic regression on features of the logits and of what lies around, with an effect of each predicted class.

    Attributes:
        weights: Of `CLASSIFIER_FEATURES`, shape (7,); of `neighbours.Around` too where there are neighbours, (10,).
        intercept: The intercept.
        effects: What each predicted class adds, shape (classes,); near 0 where the tuning part has few of them.
    """

    weights: FloatArray
    intercept: float
    effects: FloatArray

    @property
    def reads_neighbours(self) -> bool:
        """Whether a score needs what lies around."""
        return len(self.weights) > len(CLASSIFIER_FEATURES)

    def score(self, prediction: Prediction, around: Around | None = None) -> float:
        """Log-odds that the edge agrees; NaN without logits of this model, or without surroundings that are needed."""
        logits = prediction.logits
        if logits is None or logits.shape != self.effects.shape:
            return math.nan
        features = classifier_features(logits)
        score = float(features.dot(self.weights[: len(features)])) + self.intercept
        if self.reads_neighbours:
            distance, vote, error_rate = around or NOWHERE
            of_distance, of_vote, of_errors = self.weights[len(features) :].tolist()
            score += of_distance * distance + of_vote * vote + of_errors * error_rate
        return score + float(self.effects[logits.argmax()])


@dataclass(frozen=True, eq=False)
class GeneratorCombination:
    """Logistic regression on isotonic log-odds of three signals of a generated text, and on the signals themselves.

    Attributes:
        length: Slope and intercept of the mean log-probability on the logarithm of the number of tokens, shape (2,).
        curves: Isotonic log-odds of each of `GENERATOR_FEATURES`.
        weights: Of the three log-odds, then of the three signals, shape (6,).
        intercept: The intercept.
    """

    length: FloatArray
    curves: tuple[Isotonic, ...]
    weights: FloatArray
    intercept: float

    reads_neighbours = False

    def score(self, prediction: Prediction, around: Around | None = None) -> float:
        """Log-odds that the edge agrees; NaN where a signal is missing. What lies around plays no part."""
        found = generator_features(prediction)
        if found is None:
            return math.nan
        values, tokens = found
        return float(np.add.reduce(self.columns(values[None], np.array([tokens]))[0] * self.weights)) + self.intercept

    def columns(self, values: FloatArray, tokens: FloatArray) -> FloatArray:
        """What is weighed, shape (n, 6), of signals (n, 3) and numbers of tokens (n,)."""
        return _columns(values, tokens, self.length, self.curves)


Combination: TypeAlias = ClassifierCombination | GeneratorCombination


def classifier_features(logits: FloatArray) -> FloatArray:
    """`CLASSIFIER_FEATURES` of logits (…, classes), shape (…, 7), float64; each as the signal of its name has it."""
    shifted = logits.astype(np.float64, order="C")
    classes = shifted.shape[-1]
    highest = np.maximum.reduce(shifted, axis=-1, keepdims=True)
    shifted -= highest
    # A class that is ruled out, its logit -inf, is no evidence of any size: 100 nats stand for certain.
    np.maximum(shifted, _CERTAIN, out=shifted)
    shares = np.exp(shifted)
    total = np.add.reduce(shares, axis=-1)
    log_total = np.log(total)
    shares *= shifted
    spread = np.add.reduce(shares, axis=-1) / total
    below = np.add.reduce(shifted, axis=-1, keepdims=True) / classes
    powers = shifted - below
    powers *= powers
    powers *= powers
    norm = np.sqrt(np.sqrt(np.add.reduce(powers, axis=-1)))
    shifted.partition(-min(2, classes), axis=-1)
    second = shifted[..., -2] if classes > 1 else np.full_like(total, _CERTAIN)
    features = np.empty((*total.shape, len(CLASSIFIER_FEATURES)))
    features[..., 0] = (1.0 - np.exp(second)) / total
    features[..., 1] = -second
    features[..., 2] = 1.0 / total
    # log p = shifted - log total, so the entropy needs no logarithm of each class.
    features[..., 3] = spread - log_total
    features[..., 5] = top = highest[..., 0]
    features[..., 4] = top + log_total
    # Logits that are all the same have norm 0 and mean 0; to any other norm this adds nothing.
    features[..., 6] = -below[..., 0] / (norm + _TINY)
    return features


def generator_features(prediction: Prediction) -> tuple[FloatArray, int] | None:
    """`GENERATOR_FEATURES`, shape (3,), the mean as it is, and the number of tokens; None where one is missing."""
    logprobs = prediction.token_logprobs
    if logprobs is None or not len(logprobs) or prediction.margin is None:
        return None
    exact = np.asarray(logprobs, dtype=np.float64)
    values = np.array([exact.mean(), low_quantile(exact), prediction.margin])
    return (values, len(exact)) if np.isfinite(values).all() else None


def fit_combination(
    predictions: Sequence[Prediction],
    disagree: Sequence[bool] | NDArray[np.bool_],
    *,
    neighbours: Neighbours | None = None,
    ridge: float | None = None,
) -> Combination:
    """Fit on the tuning part. Items out of distribution, or without what the features read, are left out.

    Args:
        predictions: What the edge model says of the tuning items: all of a classifier, or all of a generator.
        disagree: Whether each counts against the edge, shape (n,).
        neighbours: As fitted on the same items; where they keep outcomes, what lies around each item, itself left out,
            is a feature of a classifier.
        ridge: Precision of the normal priors on the coefficients; None takes the one of `RIDGES` that orders items
            best that it was not fitted to.

    Raises:
        CertificateError: Fewer than 20 items can be used, or they are of different models.
    """
    wrong = np.asarray(disagree, dtype=np.bool_)
    if len(wrong) != len(predictions):
        raise CertificateError(f"{len(predictions)} predictions go with {len(wrong)} losses.", "Give one loss each.")
    items = _items(predictions, neighbours)
    if ridge is None:
        ridge, _ = _best_ridge(items, wrong)
    return items.fit(np.arange(len(wrong)), wrong, ridge)


def cross_fitted(
    predictions: Sequence[Prediction],
    disagree: Sequence[bool] | NDArray[np.bool_],
    *,
    neighbours: Neighbours | None = None,
) -> FloatArray:
    """Scores of tuning items, shape (n,), each by a fit to the other folds, the ridge chosen among `RIDGES` by them.

    Raises:
        CertificateError: As `fit_combination`, with four fifths of the items.
    """
    return _best_ridge(_items(predictions, neighbours), np.asarray(disagree, dtype=np.bool_))[1]


def _best_ridge(items: _Items, wrong: NDArray[np.bool_]) -> tuple[float, FloatArray]:
    """The ridge of the smallest AURC, and the scores by it, each from a fit without the item's fold."""
    scores = {ridge: _held_out(items, wrong, ridge) for ridge in RIDGES}
    best = min(RIDGES, key=lambda ridge: aurc(scores[ridge], wrong))
    return best, scores[best]


def _held_out(items: _Items, wrong: NDArray[np.bool_], ridge: float) -> FloatArray:
    fold = np.arange(len(wrong)) % FOLDS
    scores = np.full(len(wrong), math.nan)
    for number in range(FOLDS):
        found = items.fit(np.flatnonzero(fold != number), wrong, ridge)
        inside = np.flatnonzero(fold == number)
        scores[inside] = items.scores(found, inside)
    return scores


@dataclass(frozen=True)
class _Classified:
    """Items of a classifier, their features computed once for all fits.

    Attributes:
        columns: Features, shape (n, 7) or, with what lies around, (n, 10); NaN in items that cannot be used.
        predicted: Index of each predicted label, shape (n,).
        classes: How many labels there are.
    """

    columns: FloatArray
    predicted: NDArray[np.intp]
    classes: int

    def fit(self, rows: NDArray[np.intp], wrong: NDArray[np.bool_], ridge: float) -> ClassifierCombination:
        rows = rows[np.isfinite(self.columns[rows]).all(axis=1)]
        _require(len(rows))
        return ClassifierCombination(*_fit(self.columns[rows], ~wrong[rows], self.predicted[rows], self.classes, ridge))

    def scores(self, found: Combination, rows: NDArray[np.intp]) -> FloatArray:
        if not isinstance(found, ClassifierCombination):
            return np.full(len(rows), math.nan)
        return self.columns[rows] @ found.weights + found.intercept + found.effects[self.predicted[rows]]


@dataclass(frozen=True)
class _Generated:
    """Generated texts.

    Attributes:
        values: `GENERATOR_FEATURES`, shape (n, 3); NaN in items that cannot be used.
        tokens: Number of tokens of each, shape (n,).
    """

    values: FloatArray
    tokens: FloatArray

    def fit(self, rows: NDArray[np.intp], wrong: NDArray[np.bool_], ridge: float) -> GeneratorCombination:
        rows = rows[np.isfinite(self.values[rows]).all(axis=1)]
        _require(len(rows))
        values, tokens, agree = self.values[rows], self.tokens[rows], ~wrong[rows]
        length = _length_effect(values[:, 0], tokens)
        curves = tuple(
            fit_isotonic(column, agree.astype(np.float64)) for column in _corrected(values, tokens, length).T
        )
        columns = _columns(values, tokens, length, curves)
        weights, intercept, _ = _fit(columns, agree, np.zeros(len(agree), np.intp), 1, ridge, effects=False)
        return GeneratorCombination(length, curves, weights, intercept)

    def scores(self, found: Combination, rows: NDArray[np.intp]) -> FloatArray:
        if not isinstance(found, GeneratorCombination):
            return np.full(len(rows), math.nan)
        return found.columns(self.values[rows], self.tokens[rows]) @ found.weights + found.intercept


_Items: TypeAlias = _Classified | _Generated


def _items(predictions: Sequence[Prediction], neighbours: Neighbours | None) -> _Items:
    if any(prediction.logits is not None for prediction in predictions):
        return _classified(predictions, neighbours)
    values, tokens = np.full((len(predictions), len(GENERATOR_FEATURES)), math.nan), np.ones(len(predictions))
    for at, prediction in enumerate(predictions):
        found = generator_features(prediction)
        if found is not None:
            values[at], tokens[at] = found
    return _Generated(values, tokens)


def _classified(predictions: Sequence[Prediction], neighbours: Neighbours | None) -> _Classified:
    given = [
        (at, prediction.logits)
        for at, prediction in enumerate(predictions)
        if prediction.logits is not None and not prediction.out_of_distribution
    ]
    _require(len(given))
    widths = {len(logits) for _, logits in given}
    if len(widths) > 1:
        raise CertificateError(f"The predictions have {sorted(widths)} classes.", "Give those of one model.")
    rows, logits = [at for at, _ in given], np.stack([logits for _, logits in given])
    predicted = np.zeros(len(predictions), np.intp)
    predicted[rows] = logits.argmax(axis=1)
    columns = np.full((len(predictions), len(CLASSIFIER_FEATURES)), math.nan)
    columns[rows] = classifier_features(logits)
    if neighbours is not None and neighbours.outcomes is not None:
        columns = np.column_stack([columns, _surroundings(predictions, predicted, neighbours)])
    return _Classified(columns, predicted, logits.shape[1])


def _surroundings(predictions: Sequence[Prediction], predicted: NDArray[np.intp], neighbours: Neighbours) -> FloatArray:
    """What lies around each item, itself left out, shape (n, 3); NaN for an item without an embedding."""
    columns = np.full((len(predictions), len(Around._fields)), math.nan)
    for at, prediction in enumerate(predictions):
        if prediction.embedding is not None:
            columns[at] = neighbours.around_left_out(prediction.embedding, int(predicted[at]))
    return columns


def _length_effect(means: FloatArray, tokens: FloatArray) -> FloatArray:
    """Slope and intercept of the least-squares line of the mean log-probability on log tokens."""
    lengths = np.log(tokens)
    spread = float(lengths.var())
    slope = float(((lengths - lengths.mean()) * means).mean() / spread) if spread > 0 else 0.0
    return np.array([slope, means.mean() - slope * lengths.mean()])


def _corrected(values: FloatArray, tokens: FloatArray, length: FloatArray) -> FloatArray:
    """The signals, the mean log-probability less what texts of its length have on average."""
    corrected = values.astype(np.float64)
    corrected[:, 0] -= length[0] * np.log(tokens) + length[1]
    return corrected


def _columns(values: FloatArray, tokens: FloatArray, length: FloatArray, curves: Sequence[Isotonic]) -> FloatArray:
    corrected = _corrected(values, tokens, length)
    curved = [curve(column) for curve, column in zip(curves, corrected.T, strict=True)]
    return np.column_stack([*curved, corrected])


def _fit(
    columns: FloatArray,
    agree: NDArray[np.bool_],
    groups: NDArray[np.intp],
    group_count: int,
    ridge: float,
    *,
    effects: bool = True,
) -> tuple[FloatArray, float, FloatArray]:
    """Weights of the columns as they are: those of the standardised ones, taken back."""
    mean, scale = standardiser(columns)
    found = fit_logistic((columns - mean) / scale, agree, groups, group_count, ridge=ridge)
    weights = found.weights / scale
    lone = 0.0 if effects else float(found.effects[0])
    return weights, found.intercept + lone - float(weights @ mean), found.effects


def _require(items: int) -> None:
    if items < _LEAST_ITEMS:
        raise CertificateError(
            f"{items} tuning items with a score cannot support the signal 'combined': {_LEAST_ITEMS} are needed.",
            "Give more tuning items, or choose another signal.",
        )
