"""Answering a few items with the edge model alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgewise.contracts import Input
from edgewise.edge import EdgeModel
from edgewise.errors import DataError
from edgewise.jobs.certify import edge_scores


class Predicted(msgspec.Struct, frozen=True):
    """One item's answer.

    Attributes:
        input: The text, or the path of the image.
        output: The label.
        signal: Name of the score.
        score: Confidence; larger is more confident.
    """

    input: str
    output: str
    signal: str
    score: float


def predict_items(bundle: Path, items: Sequence[str], *, threads: int = 1) -> list[Predicted]:
    """Answers to texts, or to images named by their paths.

    Raises:
        BundleError: The bundle cannot be used.
        DataError: An image cannot be read.
        InputError: The model cannot read an item.
    """
    model = EdgeModel.load(bundle, threads=threads)
    inputs: list[Input] = [_read(item) for item in items] if model.kind == "image" else list(items)
    predictions = model.predict(inputs)
    signal = model.bundle.core.signal
    scores = edge_scores(predictions, signal)
    return [
        Predicted(item, str(prediction.output), signal, float(score))
        for item, prediction, score in zip(items, predictions, scores, strict=True)
    ]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"The image {path} cannot be read: {error.strerror}.", "Give paths of image files.") from error
