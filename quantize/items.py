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

from edgewise.contracts import Example, Input
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
    unlabelled = sum(1 for example in examples if example.label is None)
    if unlabelled:
        raise DataError(
            f"{unlabelled} of {len(examples)} items of {path} have no label; accuracy needs them.",
            "Add labels, or name the field that holds them with --label-field.",
        )
    unknown = Counter(example.label for example in examples if example.label not in index)
    if unknown:
        raise _unknown_label(examples, unknown, labels, path)
    return np.array([index[example.label] for example in examples if example.label is not None], dtype=np.int64)


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


def _item(value: Input) -> Item:
    if isinstance(value, str):
        return Item(text=value)
    if isinstance(value, bytes):
        return Item(image=value)
    raise DataError("Raw pixels cannot be used here.", "Give encoded image files.")


def _unknown_label(
    examples: Sequence[Example], unknown: Counter[str | None], labels: Sequence[str], path: Path
) -> DataError:
    label = next(iter(unknown))
    position = next(number for number, example in enumerate(examples, start=1) if example.label == label)
    known = ", ".join(map(repr, labels[:_SHOWN])) + (", …" if len(labels) > _SHOWN else "")
    others = f" (and {len(unknown) - 1} other labels)" if len(unknown) > 1 else ""
    return DataError(
        f"Item {position} of {path} has the label {label!r}{others}, which the model does not know.",
        f"It knows {len(labels)} labels: {known}.",
    )
