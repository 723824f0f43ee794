"""Answering a few items with the edge model alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgewise.bundle import Bundle
from edgewise.contracts import Input, Output, Prediction
from edgewise.edge import EdgeGenerator, EdgeModel
from edgewise.edge.entities import Entity
from edgewise.errors import DataError
from edgewise.router.signals import score_of

NEW_TOKENS = 64
"""Tokens with which a language model continues a prompt."""

_SHOWN = 4


class Predicted(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One item's answer.

    Attributes:
        input: The text, or the path of the image.
        output: The label; a tagger's entities in words; the beginning of an embedder's vector.
        signal: Name of the score.
        score: Confidence; larger is more confident. NaN where there is none.
        entities: A tagger's entities.
        vector: An embedder's whole vector.
        out_of_distribution: Whether the router would not trust the model with this item whatever the score.
    """

    input: str
    output: str
    signal: str
    score: float
    entities: tuple[Entity, ...] | None = None
    vector: tuple[float, ...] | None = None
    out_of_distribution: bool = False


def predict_items(bundle: Path, items: Sequence[str], *, threads: int = 1) -> list[Predicted]:
    """Answers to texts, or to images named by their paths.

    Raises:
        BundleError: The bundle cannot be used.
        DataError: An image cannot be read.
        InputError: The model cannot read an item.
    """
    opened = Bundle.open(bundle)
    if opened.core.kind == "generator":
        return _continued(bundle, items, threads)
    model = EdgeModel.from_bundle(opened, threads=threads)
    inputs = read_items(model, items)
    signal = model.bundle.core.signal
    return [
        _predicted(item, model.predict_one(value), signal, tags=model.bundle.core.kind == "tagger")
        for item, value in zip(items, inputs, strict=True)
    ]


def read_items(model: EdgeModel, items: Sequence[str]) -> list[Input]:
    """Texts as they are; of an image model the bytes of the files that they name.

    Raises:
        DataError: An image cannot be read.
    """
    return [_read(item) for item in items] if model.kind == "image" else list(items)


def verify_bundle(bundle: Path) -> str:
    """Check every byte of a bundle of any kind, and that it answers its golden items on this machine.

    Returns:
        Its model digest.

    Raises:
        BundleError: It is damaged, or cannot be run here.
        CertificateError: It answers otherwise than it was packed with.
    """
    opened = Bundle.open(bundle)
    if opened.core.kind == "generator":
        with EdgeGenerator.load(bundle) as generator:
            generator.check_golden()
    else:
        EdgeModel.from_bundle(opened).check_golden()
    return opened.model_digest


def _continued(bundle: Path, prompts: Sequence[str], threads: int) -> list[Predicted]:
    """What a language model says next, with the mean log-probability of its tokens."""
    with EdgeGenerator.load(bundle, threads=threads) as generator:
        answers = [list(generator.generate(prompt, max_tokens=NEW_TOKENS)) for prompt in prompts]
    return [
        Predicted(
            input=prompt,
            output="".join(piece.text for piece in pieces),
            signal="mean log-probability",
            score=sum(piece.logprob for piece in pieces) / len(pieces) if pieces else float("nan"),
        )
        for prompt, pieces in zip(prompts, answers, strict=True)
    ]


def _predicted(item: str, prediction: Prediction, signal: str, *, tags: bool) -> Predicted:
    output = prediction.output
    entities = msgspec.json.decode(str(output), type=tuple[Entity, ...]) if tags else None
    return Predicted(
        input=item,
        output=_in_words(output) if entities is None else _listed(entities),
        signal=signal,
        score=score_of(prediction, signal),
        entities=entities,
        vector=output if isinstance(output, tuple) else None,
        out_of_distribution=prediction.out_of_distribution,
    )


def _in_words(output: Output) -> str:
    if isinstance(output, str):
        return output
    beginning = ", ".join(f"{value:.4f}" for value in output[:_SHOWN])
    return f"[{beginning}{', …' if len(output) > _SHOWN else ''}] ({len(output)} numbers)"


def _listed(entities: Sequence[Entity]) -> str:
    return ", ".join(f"{entity.text} ({entity.label})" for entity in entities) or "no entity"


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"The image {path} cannot be read: {error.strerror}.", "Give paths of image files.") from error
