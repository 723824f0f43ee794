"""A bundle that answers.

Owns the way from an input to a `Prediction`. Scores nothing and routes nothing: that is the router's.

    from edgewise.edge import EdgeModel

    model = EdgeModel.load("bundle")
    model.predict(["grain exports rose"])[0].output
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
from numpy.typing import NDArray

from edgewise.bundle import Bundle, Core, GenerationPreprocessing, ImagePreprocessing
from edgewise.contracts import FloatArray, Input, Prediction
from edgewise.edge import golden
from edgewise.edge.device import probe
from edgewise.edge.entities import Words
from edgewise.edge.reading import READINGS, Encoded, TaggerReading
from edgewise.edge.session import Session
from edgewise.errors import BundleError, InputError

Feeds: TypeAlias = Mapping[str, NDArray[Any]]


class _Encoder(NamedTuple):
    """How an item becomes a graph's inputs, and which kind of item it is."""

    kind: Literal["text", "image"]
    read: Callable[[Input], Encoded]


class EdgeModel:
    """A classifier, embedder or tagger from a bundle; implements `contracts.LocalModel`.

    Safe to call from several threads at once. Build it with `EdgeModel.load(path)` or `EdgeModel.from_bundle(bundle)`.
    """

    def __init__(self, bundle: Bundle, encoder: _Encoder, session: Session) -> None:
        self._bundle = bundle
        self._encoder = encoder
        self._session = session
        self._reading = READINGS[bundle.core.kind](bundle.core)
        self._outputs = list(self._reading.outputs)

    @classmethod
    def load(cls, path: Path | str, *, threads: int = 1) -> EdgeModel:
        """Verify the bundle at `path` and get it ready to answer.

        Args:
            path: A bundle's folder.
            threads: Threads of one prediction; 1 is best where several run at once.

        Raises:
            BundleError: Not a bundle, damaged, too new, or this onnxruntime cannot run it.
        """
        return cls.from_bundle(Bundle.open(path), threads=threads)

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, threads: int = 1) -> EdgeModel:
        """Get a verified bundle ready to answer.

        Raises:
            BundleError: This onnxruntime cannot run it.
        """
        check_runtime(bundle.core.target.min_onnxruntime)
        return cls(bundle, _encoder(bundle), Session(bundle.graph_path, threads=threads))

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self._bundle

    @property
    def digest(self) -> str:
        """The model digest of the bundle."""
        return self._bundle.model_digest

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in the order of the logits; none of an embedder."""
        return self._bundle.core.labels

    @property
    def task(self) -> str:
        """The task, such as "text-classification"; see `bundle.KINDS`."""
        return self._bundle.core.task

    @property
    def kind(self) -> str:
        """What it takes: "text" or "image"."""
        return self._encoder.kind

    def predict(self, inputs: Sequence[Input]) -> list[Prediction]:
        """Predict each item on its own, in order.

        Never a larger batch: dynamic int8 takes its scales from the whole batch, so an item's logits, and with them the
        calibrated score, would depend on its neighbours.

        Raises:
            InputError: An item the model cannot read, or no list of items.
        """
        if isinstance(inputs, str | bytes):
            raise InputError(
                f"predict takes a list of items, given one {type(inputs).__name__}.", "Write predict([item])."
            )
        return [self.predict_one(item) for item in inputs]

    def predict_one(self, item: Input) -> Prediction:
        """Predict one item.

        Returns:
            Of a classifier the label, and logits of shape (classes,), float32. Of an embedder the vector. Of a tagger
            the entities as JSON, and the logits of the word that it is least certain of.

        Raises:
            InputError: The model cannot read it.
        """
        encoded = self._encoder.read(item)
        return self._reading.predict(item, encoded, self.run(encoded.feeds))

    def feeds(self, item: Input) -> Feeds:
        """The graph's inputs for one item, arrays by name, batch of one.

        Raises:
            InputError: The model cannot read it.
        """
        return self._encoder.read(item).feeds

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """The graph's outputs that a prediction is read from, arrays by name.

        Args:
            feeds: As `feeds` gives them, or padded to a length of one's own.

        Raises:
            InputError: The graph refuses them.
        """
        return dict(zip(self._outputs, self._session.run(feeds, self._outputs), strict=True))

    def tag(self, text: str) -> FloatArray:
        """A tagger's logits for each word of a text: those of the word's first token.

        Returns:
            Shape (words, labels), float32; words are what white space separates. For a word without a token see
            `reading.word_logits`.

        Raises:
            InputError: The model is no tagger, or cannot read the text.
        """
        if not isinstance(self._reading, TaggerReading):
            raise InputError(f"A model for {self.task} does not label words.", "Load one for token-classification.")
        encoded = self._encoder.read(text)
        return self._reading.word_logits(Words.of(text), encoded, self.run(encoded.feeds))

    def check_golden(self) -> None:
        """Predict the golden items of the bundle again and compare; see `golden.check`.

        Raises:
            CertificateError: One comes out differently here, or there is none; certificates do not hold then.
        """
        same_isa = probe().isa in self._bundle.core.target.isa
        golden.check(self, self._bundle.golden(), same_isa=same_isa)


def _encoder(bundle: Bundle) -> _Encoder:
    core, how = bundle.core, bundle.core.preprocessing
    if isinstance(how, ImagePreprocessing):
        from edgewise.edge.image import ImageEncoder

        images = ImageEncoder(how, _only_input(core))
        return _Encoder("image", lambda item: Encoded(images.encode(item)))
    if isinstance(how, GenerationPreprocessing):
        raise BundleError(
            f"The bundle {core.name} is a language model.",
            "Serve it with `edgewise edge serve`, or its checkpoint with `edgewise cloud serve`; in Python, load it "
            "with edgewise.edge.EdgeGenerator.",
        )
    from edgewise.edge.text import TextEncoder

    limit = None if how.max_unknown_share is msgspec.UNSET else how.max_unknown_share
    texts = TextEncoder(
        bundle.read(how.tokenizer),
        core.inputs,
        max_length=how.max_length,
        pad_multiple=how.pad_multiple,
        max_unknown_share=limit,
    )
    return _Encoder("text", texts.read)


def _only_input(core: Core) -> str:
    if len(core.inputs) != 1 or core.inputs[0].dtype != "float32":
        given = ", ".join(f"{spec.name} ({spec.dtype})" for spec in core.inputs)
        raise BundleError(f"An image model has one float32 input, this one has {given}.", "Export it again.")
    return core.inputs[0].name


def check_runtime(needed: str) -> None:
    """Hold the installed onnxruntime to the oldest that a bundle runs on.

    Raises:
        BundleError: It is older.
    """
    import onnxruntime

    found = str(onnxruntime.__version__)
    if _version(found) < _version(needed):
        raise BundleError(
            f"The bundle needs onnxruntime {needed} or newer, {found} is installed.",
            f"Update it: pip install 'onnxruntime>={needed}'",
        )


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "1.31.1+cu12" gives (1, 31, 1)."""
    numbers = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
