"""The tuning items most like an item: by their embeddings where there are some, else by their scores.

Owns where they come from: a file that is given, or what `certify` left beside the certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgewise.contracts import Prediction, Progress
from edgewise.edge import EdgeModel
from edgewise.jobs.beside import KeptItem, kept_item, load_kept_items
from edgewise.jobs.certifying.tuning import read_record
from edgewise.jobs.parts import load_part
from edgewise.router.fitted import Fitted
from edgewise.router.neighbours import Neighbours, embeddings_of
from edgewise.router.signals import score_of

SHOWN = 5
"""Items shown beside the one explained."""


class Near(msgspec.Struct, frozen=True, kw_only=True):
    """One tuning item near the one explained.

    Attributes:
        distance: Cosine distance of the embeddings, or the difference of the scores.
        position: Its number among the items that were kept or given, from 1.
        text: The item; None where it was not kept.
        label: Its label, if known.
        edge: What the edge model answers to it, if known.
    """

    distance: float
    position: int
    text: str | None = None
    label: str | None = None
    edge: str | None = None


@dataclass(frozen=True)
class References:
    """The tuning items to compare with.

    Attributes:
        items: In words; None where only embeddings are known.
        neighbours: Their embeddings, or None.
    """

    items: list[KeptItem] | None
    neighbours: Neighbours | None

    def near(self, prediction: Prediction, score: float) -> tuple[str | None, tuple[Near, ...]]:
        """By what items were compared, "embedding" or "score", and the nearest of them."""
        if self.neighbours is not None and prediction.embedding is not None:
            return "embedding", self._by_embedding(self.neighbours, prediction)
        if self.items is not None and np.isfinite(score):
            return "score", self._by_score(self.items, score)
        return None, ()

    def _by_embedding(self, neighbours: Neighbours, prediction: Prediction) -> tuple[Near, ...]:
        if prediction.embedding is None:
            return ()
        of_row = {item.row: (at, item) for at, item in enumerate(self.items or ()) if item.row is not None}
        found = neighbours.nearest(prediction.embedding, SHOWN)
        return tuple(_near(distance, *of_row.get(row, (row, None))) for row, distance in found)

    def _by_score(self, items: Sequence[KeptItem], score: float) -> tuple[Near, ...]:
        scored = [(abs(item.score - score), at) for at, item in enumerate(items) if item.score is not None]
        return tuple(_near(distance, at, items[at]) for distance, at in sorted(scored)[:SHOWN])


def _near(distance: float, at: int, item: KeptItem | None) -> Near:
    if item is None:
        return Near(distance=distance, position=at + 1)
    return Near(distance=distance, position=at + 1, text=item.text, label=item.label, edge=str(item.edge))


def kept_references(
    bundle: Path,
    issued: Path | None,
    *,
    model_digest: str,
    signal: str,
    fitted: Fitted | None,
    fitted_digest: str | None,
) -> References:
    """What `certify` left beside a certificate; items that it kept for another one are not taken for this one's.

    Args:
        bundle: The bundle.
        issued: Path of the certificate; None takes the one beside the bundle.
        model_digest: Its digest.
        signal: Name of the score.
        fitted: What was fitted, or None.
        fitted_digest: Its digest, or None.

    Raises:
        DataError: The kept items are damaged.
    """
    record = read_record(bundle, issued)
    belongs = record is not None and (
        (record.asked.model_digest, record.signal, record.fitted_digest) == (model_digest, signal, fitted_digest)
    )
    return References(
        load_kept_items(bundle, issued) if belongs else None, None if fitted is None else fitted.neighbours
    )


def asked_references(
    path: Path, model: EdgeModel, signal: str, fitted: Fitted | None, progress: Progress, **fields: str
) -> References:
    """The items of a file, the edge model asked about each now.

    Args:
        path: The tuning items.
        model: The model.
        signal: Name of the score.
        fitted: What was fitted, or None.
        progress: Where to say how far it is.
        fields: `text_field` and `label_field` of the file.

    Raises:
        DataError: The file cannot be used.
    """
    part = load_part(path, text_field=fields["text_field"], label_field=fields["label_field"])
    progress.stage("Asking the edge model", len(part.examples))
    items: list[KeptItem] = []
    predictions: list[Prediction] = []
    for position, example in enumerate(part.examples):
        prediction = model.predict_one(example.input)
        score = score_of(prediction, signal, fitted)
        predictions.append(prediction)
        items.append(kept_item(example, position, prediction, score))
        progress.advance()
    return _with_rows(items, predictions)


def _with_rows(items: list[KeptItem], predictions: Sequence[Prediction]) -> References:
    """The items, each with the row of its embedding where the model gives embeddings."""
    embeddings = embeddings_of(predictions)
    if embeddings is None:
        return References(items, None)
    inside = [position for position, prediction in enumerate(predictions) if not prediction.out_of_distribution]
    for row, position in enumerate(inside):
        items[position] = msgspec.structs.replace(items[position], row=row)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return References(items, Neighbours(embeddings / np.where(lengths > 0, lengths, 1), 1, np.inf))
