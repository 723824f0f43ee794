"""The nearest of the tuning part: an input far from all is out of distribution, and the near ones tell of it. Pure.

Owns vectors and how each turned out. Their texts are not kept: what the device holds tells nothing about them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import FloatArray, Prediction
from edgewise.errors import CertificateError

MOST = 4000
"""Embeddings kept, at most; more are thinned evenly."""

QUANTILE = 0.99
"""Share of the tuning part that is in distribution, by its distances with itself left out."""

K = 10
_SELF = 1e-5
"""A cosine distance below it is the very same vector, rounded."""

_SHARPNESS = 4
"""A neighbour weighs as this power of its cosine."""


class Around(NamedTuple):
    """What lies around an input.

    Attributes:
        distance: Cosine distance to the k-th nearest, in [0, 2]; NaN for a vector of no direction or another width.
        vote: Share of the k nearest, each weighed by its likeness, to which the reference gives the label that the edge
            predicts here; NaN as the distance, and where no outcomes are kept.
        error_rate: Share of them, weighed alike, that count against the edge; NaN as the vote.
    """

    distance: float
    vote: float
    error_rate: float


NOWHERE = Around(math.nan, math.nan, math.nan)
"""Around an input that has no direction."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """How items turned out.

    Attributes:
        answers: The reference's answer to each as an index into the model's labels, shape (n,), int32; -1 where it is
            none of them.
        wrong: Whether each counts against the edge, shape (n,).
    """

    answers: NDArray[np.int32]
    wrong: NDArray[np.bool_]

    def at(self, rows: NDArray[np.int64]) -> Outcomes:
        """Those of some rows."""
        return Outcomes(self.answers[rows], self.wrong[rows])


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest neighbours: the distance to the k-th as a veto, and how they turned out as features.

    Source of the veto: Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors".

    Attributes:
        embeddings: Shape (m, width), float32, rows of length 1.
        k: How many neighbours count, in [1, m).
        cut: Cosine distance above which an input is out of distribution; infinite vetoes nothing.
        outcomes: Of the m rows; None where only distances are asked for.
    """

    embeddings: FloatArray
    k: int
    cut: float
    outcomes: Outcomes | None = None

    @property
    def vetoes(self) -> bool:
        """Whether any distance is too large."""
        return self.cut < math.inf

    def without_veto(self) -> Neighbours:
        """The same neighbours, as features only."""
        return replace(self, cut=math.inf)

    def distance(self, embedding: FloatArray) -> float:
        """Cosine distance to the k-th nearest, in [0, 2]; NaN for a vector of no direction or another width.

        Args:
            embedding: Shape (width,).
        """
        likeness = self._likeness(embedding)
        return math.nan if likeness is None else self._distance(likeness)

    def distance_left_out(self, embedding: FloatArray) -> float:
        """The distance as if this very vector were not among those kept; for items of the tuning part."""
        likeness = self._likeness_left_out(embedding)
        return math.nan if likeness is None else self._distance(likeness)

    def around(self, embedding: FloatArray, predicted: int) -> Around:
        """What lies around an input, by one product with all rows.

        Args:
            embedding: Shape (width,).
            predicted: Index of the label that the edge predicts.
        """
        likeness = self._likeness(embedding)
        return NOWHERE if likeness is None else self._around(likeness, predicted)

    def around_left_out(self, embedding: FloatArray, predicted: int) -> Around:
        """The same as if this very vector were not among those kept; for items of the tuning part."""
        likeness = self._likeness_left_out(embedding)
        return NOWHERE if likeness is None else self._around(likeness, predicted)

    def is_foreign(self, embedding: FloatArray) -> bool:
        """Whether it lies beyond the cut; where there is one, so does a vector that has no distance."""
        return self.vetoes and not self.distance(embedding) <= self.cut

    def nearest(self, embedding: FloatArray, count: int) -> list[tuple[int, float]]:
        """The `count` nearest rows with their cosine distances, the nearest first; of equals the first row."""
        likeness = self._likeness(embedding)
        if likeness is None:
            return []
        order = np.argsort(-likeness, kind="stable")[:count]
        return [(int(row), 1.0 - float(likeness[row])) for row in order]

    def _distance(self, likeness: FloatArray) -> float:
        place = len(likeness) - self.k
        likeness.partition(place)
        return 1.0 - float(likeness[place])

    def _around(self, likeness: FloatArray, predicted: int) -> Around:
        nearest = likeness.argpartition(-self.k)[-self.k :]
        near = likeness[nearest].astype(np.float64)
        distance = 1.0 - float(near.min())
        if self.outcomes is None:
            return Around(distance, math.nan, math.nan)
        weights = np.maximum(near, 0.0) ** _SHARPNESS
        # Where all stand at right angles or beyond, nobody votes.
        total = float(weights.sum()) or 1.0
        vote = float(weights.dot(self.outcomes.answers[nearest] == predicted))
        return Around(distance, vote / total, float(weights.dot(self.outcomes.wrong[nearest])) / total)

    def _likeness_left_out(self, embedding: FloatArray) -> FloatArray | None:
        likeness = self._likeness(embedding)
        if likeness is not None:
            own = int(likeness.argmax())
            if 1.0 - float(likeness[own]) < _SELF:
                likeness[own] = -math.inf
        return likeness

    def _likeness(self, embedding: FloatArray) -> FloatArray | None:
        """Cosines with every row, shape (m,)."""
        vector = np.asarray(embedding, dtype=np.float32)
        if vector.shape != self.embeddings.shape[1:]:
            return None
        length = math.sqrt(float(vector @ vector))
        if not 0.0 < length < math.inf:
            return None
        return np.asarray(self.embeddings @ (vector / np.float32(length)))


def kept_rows(n: int, most: int = MOST) -> NDArray[np.int64]:
    """Which of n tuning items `fit_neighbours` keeps: all, or `most` of them evenly spread; shape (m,), int64."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.int64)


def fit_neighbours(
    embeddings: FloatArray,
    outcomes: Outcomes | None = None,
    *,
    k: int = K,
    quantile: float = QUANTILE,
    most: int = MOST,
) -> Neighbours:
    """Keep the tuning part's embeddings, and cut where `quantile` of them, each with itself left out, lie below.

    Args:
        embeddings: Shape (n, width), finite and no row zero, n at least 2.
        outcomes: How the n items turned out; None where only distances are asked for.
        k: How many neighbours count; fewer where there are too few.
        quantile: Share of the tuning part that stays in distribution, in (0, 1).
        most: Rows to keep, at most.

    Raises:
        CertificateError: Fewer than two embeddings, or one has no direction.
    """
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or len(rows) < 2:
        raise CertificateError(f"Neighbours need two embeddings or more, given shape {rows.shape}.", "Give more items.")
    kept = kept_rows(len(rows), most)
    rows = rows[kept]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise CertificateError("An embedding is zero or not finite.", "Leave it out.")
    rows = np.ascontiguousarray(rows / lengths)
    k = min(k, len(rows) - 1)
    likeness = rows @ rows.T
    np.fill_diagonal(likeness, -np.inf)
    distances = 1.0 - np.partition(likeness, -k, axis=1)[:, -k]
    cut = float(np.quantile(distances, quantile, method="higher"))
    return Neighbours(rows, k, cut, None if outcomes is None else outcomes.at(kept))


def embeddings_of(predictions: Sequence[Prediction]) -> FloatArray | None:
    """The embeddings in distribution, shape (n, width), float32; None where one of the items has none."""
    inside = [prediction.embedding for prediction in predictions if not prediction.out_of_distribution]
    if not inside or any(embedding is None for embedding in inside):
        return None
    return np.stack([np.asarray(embedding, dtype=np.float32) for embedding in inside])
