"""Fits the complexity of texts on the tuning part: logistic regression over sparse hashed columns. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import FloatArray
from edgewise.errors import CertificateError, ConfigError
from edgewise.router.complexity import (
    ATTRIBUTE_BUCKETS,
    LEXICAL,
    WORD_BUCKETS,
    Complexity,
    Features,
    attribute_buckets,
    cut_for_precision,
    features_of,
)
from edgewise.router.logistic import sigmoid, standardiser

PRECISION = 0.8
"""Share of what is turned away that has to be wrong."""

RIDGES = (4.0, 16.0, 64.0)
"""Precisions of the prior on each coefficient that are tried."""

FOLDS = 5
_LEAST_ITEMS = 50
_NEWTON_STEPS = 8
_GRADIENT_STEPS = 60
_WIDTH = WORD_BUCKETS + ATTRIBUTE_BUCKETS + len(LEXICAL) + 1


class _Sparse(NamedTuple):
    """A matrix of n rows by its entries; products through counting, for numpy has no sparse ones."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: FloatArray
    n: int

    def times(self, vector: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(self.rows, self.values * vector[self.columns], self.n), dtype=np.float64)

    def transposed_times(self, vector: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(self.columns, self.values * vector[self.rows], _WIDTH), dtype=np.float64)

    def part(self, chosen: NDArray[np.bool_]) -> _Sparse:
        number = np.cumsum(chosen) - 1
        kept = chosen[self.rows]
        return _Sparse(number[self.rows[kept]], self.columns[kept], self.values[kept], int(chosen.sum()))


def fit_complexity(
    texts: Sequence[str],
    wrong: Sequence[bool] | NDArray[np.bool_],
    *,
    attributes: Sequence[Mapping[str, str]] | None = None,
    names: Sequence[str] = (),
    precision: float = PRECISION,
    ridges: Sequence[float] = RIDGES,
) -> Complexity:
    """Fit on the tuning part; the ridge is the one of the smallest cross-fitted loss, and so is the cut's evidence.

    Args:
        texts: The tuning texts.
        wrong: Whether the edge is wrong, or differs, on each; shape (n,).
        attributes: Attributes of each item, where some count.
        names: Names of the attributes that count, such as "subject".
        precision: Share of the texts above the cut that has to be wrong, in (0, 1].
        ridges: Precisions of the prior to choose from.

    Raises:
        CertificateError: Fewer than 50 texts, or not one loss a text.
        ConfigError: The precision is not in (0, 1].
    """
    losses = np.asarray(wrong, dtype=np.bool_)
    _check(texts, losses, attributes, precision)
    features = [features_of(text) for text in texts]
    rarity = _rarity(features)
    lexical = np.array([item.lexical for item in features])
    mean, scale = standardiser(lexical)
    buckets = attribute_buckets(attributes or [{}] * len(texts), names)
    matrix = _matrix(features, rarity, (lexical - mean) / scale, buckets)
    ridge, held_out = _choose_ridge(matrix, losses, ridges)
    beta = _fit(matrix, losses, ridge)
    words, rest = beta[:WORD_BUCKETS], beta[WORD_BUCKETS:]
    weights = rest[ATTRIBUTE_BUCKETS:-1] / scale
    return Complexity(
        words=words * rarity,
        rarity=rarity**2,
        lexical=weights,
        intercept=float(rest[-1] - weights @ mean),
        cut=cut_for_precision(held_out, losses, precision),
        attributes=tuple(names),
        attribute_weights=rest[:ATTRIBUTE_BUCKETS],
    )


def _check(
    texts: Sequence[str],
    wrong: NDArray[np.bool_],
    attributes: Sequence[Mapping[str, str]] | None,
    precision: float,
) -> None:
    if not 0 < precision <= 1:
        raise ConfigError(f"The precision of the complexity is {precision!r}.", "Give one in (0, 1].")
    if len(wrong) != len(texts) or len(attributes or texts) != len(texts):
        raise CertificateError(f"{len(texts)} texts go with {len(wrong)} losses.", "Give one loss a text.")
    if len(texts) < _LEAST_ITEMS:
        raise CertificateError(
            f"{len(texts)} texts cannot tell what is too complex: {_LEAST_ITEMS} are needed.", "Give more."
        )


def _rarity(features: Sequence[Features]) -> FloatArray:
    """Inverse document frequency of each bucket, log((1 + n) / (1 + df)) + 1, shape (4096,)."""
    frequency = np.zeros(WORD_BUCKETS)
    for item in features:
        frequency[np.unique(item.buckets).astype(np.int64)] += 1
    return np.log((1 + len(features)) / (1 + frequency)) + 1.0


def _matrix(
    features: Sequence[Features], rarity: FloatArray, lexical: FloatArray, attributes: Sequence[Sequence[int]]
) -> _Sparse:
    """Columns: roots of the counts times the rarity, each text to length 1; attributes; lexical features; 1."""
    rows, columns, values = [], [], []
    dense = np.arange(WORD_BUCKETS + ATTRIBUTE_BUCKETS, _WIDTH)
    for row, item in enumerate(features):
        buckets, counts = np.unique(np.asarray(item.buckets, dtype=np.int64), return_counts=True)
        weights = np.sqrt(counts) * rarity[buckets]
        weights /= max(float(np.linalg.norm(weights)), 1e-12)
        own = np.array(attributes[row], dtype=np.int64) + WORD_BUCKETS
        columns.append(np.concatenate([buckets, own, dense]))
        values.append(np.concatenate([weights, np.ones(len(own)), lexical[row], [1.0]]))
        rows.append(np.full(len(columns[-1]), row))
    return _Sparse(np.concatenate(rows), np.concatenate(columns), np.concatenate(values), len(features))


def _choose_ridge(matrix: _Sparse, wrong: NDArray[np.bool_], ridges: Sequence[float]) -> tuple[float, FloatArray]:
    """The ridge of the smallest cross-fitted loss, and the cross-fitted probabilities under it, shape (n,)."""
    fold = np.arange(matrix.n) % FOLDS
    best: tuple[float, float, FloatArray] | None = None
    for ridge in ridges:
        log_odds = np.empty(matrix.n)
        for number in range(FOLDS):
            inside = fold == number
            beta = _fit(matrix.part(~inside), wrong[~inside], ridge)
            log_odds[inside] = matrix.part(inside).times(beta)
        loss = float((np.logaddexp(0.0, log_odds) - wrong * log_odds).mean())
        if best is None or loss < best[0]:
            best = loss, ridge, sigmoid(log_odds)
    if best is None:
        raise ConfigError("No ridge was given.", "Give one or more.")
    return best[1], best[2]


def _fit(matrix: _Sparse, wrong: NDArray[np.bool_], ridge: float) -> FloatArray:
    """Penalised maximum likelihood by Newton's method, each step by conjugate gradients; shape (columns,)."""
    penalty = np.full(_WIDTH, ridge)
    penalty[-1] = 1e-2
    beta = np.zeros(_WIDTH)
    truth = wrong.astype(np.float64)
    for _ in range(_NEWTON_STEPS):
        share = sigmoid(matrix.times(beta))
        weight = share * (1.0 - share)
        gradient = matrix.transposed_times(truth - share) - penalty * beta

        def curvature(vector: FloatArray, weight: FloatArray = weight) -> FloatArray:
            return matrix.transposed_times(weight * matrix.times(vector)) + penalty * vector

        step = _solve(curvature, gradient)
        beta = beta + step
        if float(np.abs(step).max()) < 1e-4:
            break
    return beta


def _solve(operator: Callable[[FloatArray], FloatArray], target: FloatArray) -> FloatArray:
    """Conjugate gradients (Hestenes & Stiefel 1952) to a thousandth of the target's length."""
    found, residual = np.zeros_like(target), target.copy()
    direction, size = residual.copy(), float(residual @ residual)
    enough = 1e-6 * size
    for _ in range(_GRADIENT_STEPS):
        if size <= enough or not math.isfinite(size):
            break
        image = operator(direction)
        length = size / float(direction @ image)
        found += length * direction
        residual -= length * image
        before, size = size, float(residual @ residual)
        direction = residual + (size / before) * direction
    return found
