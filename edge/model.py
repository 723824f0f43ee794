"""A bundle that answers.

Owns the way from an input to a `Prediction`. Scores nothing and routes nothing: that is the router's.

    from edgewise.edge import EdgeModel

    model = EdgeModel.load("bundle")
    model.predict(["grain exports rose"])[0].output
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewise.bundle import Bundle, Core, GenerationPreprocessing, ImagePreprocessing, main_output
from edgewise.contracts import Input, Prediction
from edgewise.edge import golden
from edgewise.edge.device import probe
from edgewise.edge.session import Session
from edgewise.errors import BundleError, InputError

EMBEDDING = "sentence_embedding"


class Encoder(Protocol):
    """Turns one input into the graph's tensors."""

    @property
    def kind(self) -> str:
        """What it takes: "text" or "image"."""
        ...

    def encode(self, item: Input) -> Mapping[str, NDArray[Any]]:
        """Arrays by input name, batch of one."""
        ...


class EdgeModel:
    """A classifier from a bundle; implements `contracts.LocalModel`. Safe to call from several threads at once.

    Build it with `EdgeModel.load(path)` or `EdgeModel.from_bundle(bundle)`.
    """

    def __init__(self, bundle: Bundle, encoder: Encoder, session: Session) -> None:
        self._bundle = bundle
        self._encoder = encoder
        self._session = session
        self._outputs = [main_output(bundle.core).name]
        if any(spec.name == EMBEDDING for spec in bundle.core.outputs):
            self._outputs.append(EMBEDDING)

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
        _check_runtime(bundle.core.target.min_onnxruntime)
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
        """Labels in the order of the logits."""
        return self._bundle.core.labels

    @property
    def task(self) -> str:
        """The task: "text-classification" or "image-classification"."""
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
            The label, and logits of shape (classes,), float32.

        Raises:
            InputError: The model cannot read it.
        """
        results = self._session.run(self._encoder.encode(item), self._outputs)
        logits = np.asarray(results[0][0], dtype=np.float32)
        embedding = np.asarray(results[1][0], dtype=np.float32) if len(results) > 1 else None
        if logits.shape != (len(self.labels),):
            raise BundleError(
                f"The graph gave logits of shape {logits.shape} for {len(self.labels)} labels.", "Pack it again."
            )
        return Prediction(output=self.labels[int(logits.argmax())], logits=logits, embedding=embedding)

    def check_golden(self) -> None:
        """Predict the golden items of the bundle again and compare; see `golden.check`.

        Raises:
            CertificateError: One comes out differently here, or there is none; certificates do not hold then.
        """
        same_isa = probe().isa in self._bundle.core.target.isa
        golden.check(self, self._bundle.golden(), same_isa=same_isa)


def _encoder(bundle: Bundle) -> Encoder:
    core = bundle.core
    if isinstance(core.preprocessing, ImagePreprocessing):
        from edgewise.edge.image import ImageEncoder

        return ImageEncoder(core.preprocessing, _only_input(core))
    if isinstance(core.preprocessing, GenerationPreprocessing):
        raise BundleError(f"The bundle {core.name} is a language model.", "Load it with edgewise.edge.EdgeGenerator.")
    from edgewise.edge.text import TextEncoder

    how = core.preprocessing
    return TextEncoder(
        bundle.read(how.tokenizer), core.inputs, max_length=how.max_length, pad_multiple=how.pad_multiple
    )


def _only_input(core: Core) -> str:
    if len(core.inputs) != 1 or core.inputs[0].dtype != "float32":
        given = ", ".join(f"{spec.name} ({spec.dtype})" for spec in core.inputs)
        raise BundleError(f"An image model has one float32 input, this one has {given}.", "Export it again.")
    return core.inputs[0].name


def _check_runtime(needed: str) -> None:
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
