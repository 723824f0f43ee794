"""Distance to the nearest embeddings of the tuning part: an input far from all of them is out of distribution. Pure.

Owns vectors only. Their texts are not kept: what the device holds tells nothing about them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import FloatArray, Prediction
from edgewise.errors import CertificateError

MOST = 2000
"""Embeddings kept, at most; more are thinned evenly."""

QUANTILE = 0.99
"""Share of the tuning part that is in distribution, by its distances with itself left out."""

K = 10
_SELF = 1e-5
"""A cosine distance below it is the very same vector, rounded."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k-th nearest neighbour as a veto.

    Source: Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors".

    Attributes:
        embeddings: Shape (m, width), float32, rows of length 1.
        k: Which neighbour counts, in [1, m).
        cut: Cosine distance above which an input is out of distribution.
    """

    embeddings: FloatArray
    k: int
    cut: float

    def distance(self, embedding: FloatArray) -> float:
        """Cosine distance to the k-th nearest, in [0, 2]; NaN for a vector of no direction or another width.

        Args:
            embedding: Shape (width,).
        """
        return self._kth(embedding, self.k)

    def distance_left_out(self, embedding: FloatArray) -> float:
        """The distance as if this very vector were not among those kept; for items of the tuning part."""
        own = self._kth(embedding, 1) < _SELF
        return self._kth(embedding, self.k + own)

    def is_foreign(self, embedding: FloatArray) -> bool:
        """Whether it lies beyond the cut; so does a vector that has no distance."""
        return not self.distance(embedding) <= self.cut

    def nearest(self, embedding: FloatArray, count: int) -> list[tuple[int, float]]:
        """The `count` nearest rows with their cosine distances, the nearest first; of equals the first row."""
        likeness = self._likeness(embedding)
        if likeness is None:
            return []
        order = np.argsort(-likeness, kind="stable")[:count]
        return [(int(row), 1.0 - float(likeness[row])) for row in order]

    def _kth(self, embedding: FloatArray, k: int) -> float:
        likeness = self._likeness(embedding)
        if likeness is None:
            return math.nan
        place = len(likeness) - k
        likeness.partition(place)
        return 1.0 - float(likeness[place])

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


def fit_neighbours(embeddings: FloatArray, *, k: int = K, quantile: float = QUANTILE, most: int = MOST) -> Neighbours:
    """Keep the tuning part's embeddings, and cut where `quantile` of them, each with itself left out, lie below.

    Args:
        embeddings: Shape (n, width), finite and no row zero, n at least 2.
        k: Which neighbour counts; fewer where there are too few.
        quantile: Share of the tuning part that stays in distribution, in (0, 1).
        most: Rows to keep, at most.

    Raises:
        CertificateError: Fewer than two embeddings, or one has no direction.
    """
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or len(rows) < 2:
        raise CertificateError(f"Neighbours need two embeddings or more, given shape {rows.shape}.", "Give more items.")
    rows = rows[kept_rows(len(rows), most)]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise CertificateError("An embedding is zero or not finite.", "Leave it out.")
    rows = np.ascontiguousarray(rows / lengths)
    k = min(k, len(rows) - 1)
    likeness = rows @ rows.T
    np.fill_diagonal(likeness, -np.inf)
    distances = 1.0 - np.partition(likeness, -k, axis=1)[:, -k]
    return Neighbours(rows, k, float(np.quantile(distances, quantile, method="higher")))


def embeddings_of(predictions: Sequence[Prediction]) -> FloatArray | None:
    """The embeddings in distribution, shape (n, width), float32; None where one of the items has none."""
    inside = [prediction.embedding for prediction in predictions if not prediction.out_of_distribution]
    if not inside or any(embedding is None for embedding in inside):
        return None
    return np.stack([np.asarray(embedding, dtype=np.float32) for embedding in inside])
