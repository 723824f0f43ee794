"""What a graph's outputs mean, one small class a kind of model.

Owns the way from arrays to a `Prediction`. Runs no graph and encodes no input: `model.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewise.bundle import Core, Kind, main_output
from edgewise.contracts import FloatArray, Input, Prediction
from edgewise.edge.entities import OUTSIDE, Words, entities_json
from edgewise.errors import BundleError

EMBEDDING = "sentence_embedding"
MARGIN = "margin"

Results: TypeAlias = Mapping[str, NDArray[Any]]


class Encoded(NamedTuple):
    """An input on its way into a graph.

    Attributes:
        feeds: Arrays by input name, batch of one.
        spans: Characters of each token of a text, (start, end); (0, 0) for special tokens.
        out_of_distribution: Whether more of the text is unknown than the bundle allows.
    """

    feeds: Mapping[str, NDArray[np.generic]]
    spans: Sequence[tuple[int, int]] = ()
    out_of_distribution: bool = False


class Reading(Protocol):
    """Reads the outputs of one kind of model, batch of one."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs to compute."""
        ...

    def predict(self, item: Input, encoded: Encoded, results: Results) -> Prediction:
        """What the outputs say of `item`.

        Raises:
            BundleError: The graph's outputs are not of the shape that its bundle promises.
        """
        ...


class ClassifierReading:
    """One label an item; takes along the embedding and the margin that the graph declares."""

    def __init__(self, core: Core) -> None:
        self._labels = core.labels
        self._main = main_output(core).name
        declared = {spec.name for spec in core.outputs} - {self._main}
        self.outputs = (self._main, *(name for name in (EMBEDDING, MARGIN) if name in declared))

    def predict(self, item: Input, encoded: Encoded, results: Results) -> Prediction:
        """The label of the largest logit, and logits of shape (classes,)."""
        logits = _float32(results[self._main][0])
        if logits.shape != (len(self._labels),):
            raise _shape_error(logits, self._labels)
        return Prediction(
            output=self._labels[int(logits.argmax())],
            logits=logits,
            embedding=_float32(results[EMBEDDING][0]) if EMBEDDING in results else None,
            margin=float(results[MARGIN][0]) if MARGIN in results else None,
            out_of_distribution=encoded.out_of_distribution,
        )


class EmbedderReading:
    """A vector an item, pooled and normalised inside the graph."""

    def __init__(self, core: Core) -> None:
        self.outputs = (main_output(core).name,)

    def predict(self, item: Input, encoded: Encoded, results: Results) -> Prediction:
        """The vector, as a tuple and as an array of shape (width,)."""
        vector = _float32(results[self.outputs[0]][0])
        if vector.ndim != 1:
            raise BundleError(f"The graph gave an embedding of shape {vector.shape}.", "Pack it again.")
        return Prediction(
            output=tuple(vector.tolist()), embedding=vector, out_of_distribution=encoded.out_of_distribution
        )


class TaggerReading:
    """A label a word, told as entities; see `entities.py` for what words and entities are."""

    def __init__(self, core: Core) -> None:
        self._labels = core.labels
        self.outputs = (main_output(core).name,)

    def predict(self, item: Input, encoded: Encoded, results: Results) -> Prediction:
        """The entities as JSON, and the logits of the word that the model is least certain of."""
        text = str(item)
        words = Words.of(text)
        logits = self.word_logits(words, encoded, results)
        return Prediction(
            output=entities_json(text, words, [self._labels[index] for index in logits.argmax(axis=1)]),
            logits=_least_certain(logits) if len(logits) else _absent(self._labels),
            out_of_distribution=encoded.out_of_distribution,
        )

    def word_logits(self, words: Words, encoded: Encoded, results: Results) -> FloatArray:
        """Logits of each word, shape (words, labels); see the function of this name."""
        tokens = _float32(results[self.outputs[0]][0])
        if tokens.ndim != 2 or tokens.shape[1] != len(self._labels):
            raise _shape_error(tokens, self._labels)
        return word_logits(words, encoded.spans, tokens, self._labels)


def word_logits(
    words: Words, spans: Sequence[tuple[int, int]], tokens: FloatArray, labels: Sequence[str]
) -> FloatArray:
    """Logits of each word's first token, shape (words, labels), float32.

    A word without a token, such as one cut off by the length limit, was not looked at: its row names the label "O", the
    first label where there is none, by so little that no word is less certain.

    Args:
        words: The words of the text.
        spans: Characters of each token, (start, end); (0, 0) for special tokens.
        tokens: Logits of each token, shape (tokens, labels).
        labels: The labels.
    """
    rows = np.tile(_absent(labels), (len(words), 1))
    for word, token in words.first_tokens(spans):
        rows[word] = tokens[token]
    return rows


def _absent(labels: Sequence[str]) -> FloatArray:
    row = np.zeros(len(labels), dtype=np.float32)
    row[labels.index(OUTSIDE) if OUTSIDE in labels else 0] = _ABSENT
    return row


_ABSENT = 1e-3

READINGS: Mapping[Kind, Callable[[Core], Reading]] = {
    "classifier": ClassifierReading,
    "embedder": EmbedderReading,
    "tagger": TaggerReading,
}
"""How the outputs of each kind are read; a generator is no single graph."""


def _least_certain(logits: FloatArray) -> FloatArray:
    """The row whose two largest probabilities lie closest together; one with a NaN before all others."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    top = np.partition(shares / shares.sum(axis=1, keepdims=True), -2, axis=1)[:, -2:]
    return np.asarray(logits[int((top[:, 1] - top[:, 0]).argmin())])


def _float32(values: NDArray[Any]) -> FloatArray:
    return np.asarray(values, dtype=np.float32)


def _shape_error(logits: FloatArray, labels: tuple[str, ...]) -> BundleError:
    return BundleError(f"The graph gave logits of shape {logits.shape} for {len(labels)} labels.", "Pack it again.")
