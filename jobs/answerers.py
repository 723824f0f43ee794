"""The model of a bundle, asked one item after the other as the serving path asks it, whatever its kind.

Owns that a language model's whole answer is a prediction like any other. What an item looks like is `prompts`'.
"""

from __future__ import annotations

from typing import Protocol

from edgewise.bundle import Bundle
from edgewise.contracts import Input, LocalGenerator, Prediction
from edgewise.dialogue import Prompt
from edgewise.edge import EdgeGenerator, EdgeModel, probe
from edgewise.errors import InputError
from edgewise.router.gate import prediction_of


class Answerer(Protocol):
    """A model of any kind that answers one item at a time."""

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        ...

    @property
    def digest(self) -> str:
        """Its digest."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in the order of the logits; none of a language model."""
        ...

    def predict_one(self, item: Input) -> Prediction:
        """Answer one item.

        Raises:
            InputError: An item the model cannot read.
        """
        ...

    def check_golden(self) -> None:
        """Compare with the bundle's golden answers.

        Raises:
            CertificateError: One comes out differently on this machine.
        """
        ...


class Writer:
    """A language model as an `Answerer`: it writes each answer to its end, greedily where the prompt says so.

    Args:
        model: The language model.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, model: EdgeGenerator) -> None:
        self._model = model

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self._model.bundle

    @property
    def digest(self) -> str:
        """Its digest."""
        return self._model.digest

    def predict_one(self, item: Input) -> Prediction:
        """Write the answer to one prompt.

        Raises:
            InputError: It is no prompt, or one that cannot be answered.
        """
        if not isinstance(item, Prompt):
            raise InputError(f"A language model takes prompts, given {type(item).__name__}.", "Give a Prompt.")
        return written_prediction(self._model, item)

    def check_golden(self) -> None:
        """Write the bundle's golden answers again.

        Raises:
            CertificateError: One comes out differently on this machine.
        """
        self._model.check_golden()


def written_prediction(model: LocalGenerator, prompt: Prompt) -> Prediction:
    """A language model's whole answer to a prompt, with the log-probability of every token of it.

    Raises:
        InputError: The prompt cannot be answered.
    """
    writing = model.write(prompt)
    try:
        pieces = list(writing)
    finally:
        writing.close()
    return prediction_of(pieces, writing.written)


def open_answerer(bundle: Bundle) -> Answerer:
    """The model of a bundle.

    Raises:
        BundleError: It cannot be read.
        MissingExtraError: It is a language model, and what runs those is not installed.
    """
    if bundle.core.kind == "generator":
        return Writer(EdgeGenerator.load(bundle.path))
    return EdgeModel.from_bundle(bundle)


def runtime_of(bundle: Bundle) -> str:
    """Name and version of the runtime that computes this bundle's scores."""
    if bundle.core.kind == "generator":
        from importlib.metadata import version

        return f"onnxruntime-genai {version('onnxruntime-genai')}"
    return f"onnxruntime {probe().onnxruntime}"
