"""A checkpoint as an engine, whichever runtime computes its forward pass.

Owns the way of items through it: read, grouped by length, stacked, computed, told as predictions. The decoding is
fixed, because a certificate names one version *and* one decoding: float32 weights whatever the file holds, texts cut at
the tokenizer's length and padded on the right under an attention mask, the label of the largest logit, or the pooling
that the checkpoint names. What else is in a batch, and which runtime computes it, moves a number by float noise only
(about 1e-6), so an item's label depends on neither, unless two labels tie within that noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewise.cloud.checkpoint import IMAGE_TASK, Checkpoint
from edgewise.cloud.grouping import MAX_GROUP
from edgewise.cloud.readers import Reader
from edgewise.contracts import FloatArray, Input, Prediction, ServiceInfo
from edgewise.edge.pooling import Pooling, pooled


class Forward(Protocol):
    """Computes one stacked batch."""

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> FloatArray:
        """Compute the model's answers.

        Args:
            feeds: Arrays by input name, shape (items, …).

        Returns:
            Logits, shape (items, labels); of an encoder the vectors of the tokens, shape (items, tokens, width).
        """
        ...


class CheckpointEngine:
    """A Hugging Face checkpoint through one runtime.

    Args:
        forward: Computes a batch.
        reader: Reads its items.
        found: The checkpoint.
        name: Model name; None takes the folder's.
        runtime: What computes it: "torch" or "onnx".
        slots: Threads that may call `predict` at the same time.
        max_group: Most items of one forward pass; 1 where the model knows no padding.
    """

    def __init__(
        self,
        forward: Forward,
        reader: Reader,
        found: Checkpoint,
        *,
        name: str | None = None,
        runtime: str = "torch",
        slots: int = 1,
        max_group: int = MAX_GROUP,
    ) -> None:
        self.runtime = runtime
        self._forward = forward
        self._reader = reader
        self._slots = slots
        self._max_group = max_group
        self._pooling = found.pooling
        self._info = ServiceInfo(
            name=name or found.path.name,
            version=found.version,
            task=found.task,
            labels=found.labels,
            input=reader.kind,
            role="cloud",
        )

    @property
    def info(self) -> ServiceInfo:
        """Name, version, task and labels."""
        return self._info

    @property
    def slots(self) -> int:
        """Threads that may call `predict` at the same time."""
        return self._slots

    def predict(self, inputs: Sequence[Input]) -> list[Prediction]:
        """Predict items, those of like length together.

        Returns:
            One prediction an item, in order; logits of shape (labels,), or an embedding of shape (width,), float32.

        Raises:
            InputError: An item of another kind, or a broken one; then nothing is computed.
        """
        read = self._reader.read(inputs)
        predictions: dict[int, Prediction] = {}
        for group in self._reader.groups(read, self._max_group):
            feeds = self._reader.stack([read[position] for position in group])
            predictions.update(zip(group, self._predictions(feeds), strict=True))
        return [predictions[position] for position in range(len(read))]

    def _predictions(self, feeds: Mapping[str, NDArray[Any]]) -> list[Prediction]:
        rows = np.asarray(self._forward(feeds), dtype=np.float32)
        if self._pooling is None:
            return [self._classified(row) for row in rows]
        lengths = feeds["attention_mask"].sum(axis=1)
        return [_embedded(row[:length], self._pooling) for row, length in zip(rows, lengths, strict=True)]

    def _classified(self, logits: FloatArray) -> Prediction:
        return Prediction(output=self._info.labels[int(np.argmax(logits))], logits=logits)


def _embedded(tokens: FloatArray, pooling: Pooling) -> Prediction:
    vector = np.asarray(pooled(tokens, pooling), dtype=np.float32)
    return Prediction(output=tuple(vector.tolist()), embedding=vector)


def sample(found: Checkpoint) -> Input:
    """The least that a model of this task reads."""
    return np.zeros((64, 64), dtype=np.uint8) if found.task == IMAGE_TASK else "warm up"
