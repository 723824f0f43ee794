"""Data items on their way to a worker process, and the checks that data must pass first.

Owns the JSON form of an item and what makes data unusable for a model. Reads no file format: `edgewise.dataset` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.bundle import Kind
from edgewise.contracts import Example, Input
from edgewise.edge.entities import Words
from edgewise.errors import DataError

Indices = NDArray[np.int64]

_SHOWN = 8


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input: a text, or the bytes of an image file (base64 in JSON)."""

    text: str | None = None
    image: bytes | None = None


def items_of(inputs: Sequence[Input]) -> tuple[Item, ...]:
    """Inputs as items.

    Raises:
        DataError: Raw pixels, which no data file holds.
    """
    return tuple(_item(value) for value in inputs)


def inputs_of(items: Sequence[Item]) -> list[Input]:
    """Items as inputs."""
    return [item.text if item.text is not None else (item.image or b"") for item in items]


def label_indices(examples: Sequence[Example], labels: Sequence[str], path: Path) -> Indices:
    """Each example's label as its index in the model's labels, shape (n,).

    Raises:
        DataError: A label is missing, or the model does not know it.
    """
    index = {label: position for position, label in enumerate(labels)}
    _require_labels(examples, path)
    unknown = Counter(str(example.label) for example in examples if example.label not in index)
    if unknown:
        raise _unknown_label([[str(example.label)] for example in examples], unknown, labels, path)
    return np.array([index[example.label] for example in examples if example.label is not None], dtype=np.int64)


def truth_of(
    kind: Kind, examples: Sequence[Example], labels: Sequence[str], path: Path
) -> Indices | list[Indices] | None:
    """What a model of this kind should answer, as indices of its labels.

    Returns:
        Of a classifier, shape (n,). Of a tagger one array an item, the labels of its words. None of an embedder or a
        generator, which are measured without labels.

    Raises:
        DataError: A label is missing, or the model does not know it, or a text has more or fewer labels than words.
    """
    if kind == "classifier":
        return label_indices(examples, labels, path)
    return _tag_indices(examples, labels, path) if kind == "tagger" else None


def require_kind(examples: Sequence[Example], task: str, path: Path) -> None:
    """Refuse texts for an image model, and images for a text model.

    Raises:
        DataError: The data is of the other kind.
    """
    text = task != "image-classification"
    if any(isinstance(example.input, str) is not text for example in examples):
        wanted, given = ("texts", "images") if text else ("images", "texts")
        raise DataError(
            f"{path} holds {given}; a model for {task} needs {wanted}.",
            "Give a .jsonl or .csv file." if text else "Give a folder of images with one sub-folder a class.",
        )


def _tag_indices(examples: Sequence[Example], labels: Sequence[str], path: Path) -> list[Indices]:
    _require_labels(examples, path)
    index = {label: position for position, label in enumerate(labels)}
    tags = [_words(str(example.label)) for example in examples]
    for number, (example, own) in enumerate(zip(examples, tags, strict=True), start=1):
        count = len(_words(str(example.input)))
        if len(own) != count:
            raise DataError(
                f"Item {number} of {path} has {count} words and {len(own)} labels.",
                'Give each word one label: {"tokens": ["Alice", "left"], "tags": ["B-PER", "O"]}.',
            )
    unknown = Counter(tag for own in tags for tag in own if tag not in index)
    if unknown:
        raise _unknown_label(tags, unknown, labels, path)
    return [np.array([index[tag] for tag in own], dtype=np.int64) for own in tags]


def _words(text: str) -> list[str]:
    return [text[start:end] for start, end in Words.of(text).spans]


def _require_labels(examples: Sequence[Example], path: Path) -> None:
    unlabelled = sum(1 for example in examples if example.label is None)
    if unlabelled:
        raise DataError(
            f"{unlabelled} of {len(examples)} items of {path} have no label; accuracy needs them.",
            "Add labels, or name the field that holds them with --label-field.",
        )


def _item(value: Input) -> Item:
    if isinstance(value, str):
        return Item(text=value)
    if isinstance(value, bytes):
        return Item(image=value)
    raise DataError("Raw pixels cannot be used here.", "Give encoded image files.")


def _unknown_label(
    given: Sequence[Sequence[str]], unknown: Counter[str], labels: Sequence[str], path: Path
) -> DataError:
    label = next(iter(unknown))
    position = next(number for number, own in enumerate(given, start=1) if label in own)
    known = ", ".join(map(repr, labels[:_SHOWN])) + (", …" if len(labels) > _SHOWN else "")
    others = f" (and {len(unknown) - 1} other labels)" if len(unknown) > 1 else ""
    return DataError(
        f"Item {position} of {path} has the label {label!r}{others}, which the model does not know.",
        f"It knows {len(labels)} labels: {known}.",
    )
