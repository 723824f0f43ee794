"""What a model answered to a list of items, as named arrays.

    classifier   logits (n, classes)
    embedder     embedding (n, width)
    tagger       logits (words, labels): a row for the first token of each word; words (n,): rows of each item
    generator    nll (tokens,); top (tokens,): the likeliest token's id; targets (tokens,): the text's own token;
                 tokens (n,): scored tokens of each item; logprobs (k, vocabulary), float16: of k of the scored tokens

Owns their file and their order. Compares nothing: `quality.py` does.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import Input, Prediction
from edgewise.edge import EdgeModel
from edgewise.errors import BundleError, DataError

Answers: TypeAlias = Mapping[str, NDArray[Any]]

COUNTS = ("words", "tokens")
"""Arrays that say how many rows of the others belong to each item; without one, each item has one row."""

SAMPLE = "logprobs"
"""Rows of some tokens only: a sample, whose order no item owns."""


def answers_of(model: EdgeModel, inputs: Sequence[Input]) -> Answers:
    """Let a model answer each item, batch of one.

    Raises:
        BundleError: Its graph gives no such answer.
        InputError: It cannot read an item.
    """
    return stacked([answer_of(model, item, model.predict_one(item)) for item in inputs])


def answer_of(model: EdgeModel, item: Input, prediction: Prediction) -> Answers:
    """One item's answers, from its prediction where that holds them.

    Raises:
        BundleError: The graph gives no such answer.
        InputError: The model cannot read the item.
    """
    kind = model.bundle.core.kind
    if kind == "tagger":
        rows = model.tag(str(item))
        return {"logits": rows, "words": np.array([len(rows)])}
    name, row = ("embedding", prediction.embedding) if kind == "embedder" else ("logits", prediction.logits)
    if row is None:
        raise BundleError(f"The {kind} {model.bundle.core.name} gives no {name}.", "Export it again.")
    return {name: row[np.newaxis]}


def stacked(parts: Sequence[Answers]) -> Answers:
    """Answers to several lists of items, one list after the other; at least one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def join(parts: Sequence[Answers], count: int) -> Answers:
    """Undo the striding over rounds: round r of m answered items r, r + m, r + 2 m and so on.

    Args:
        parts: The answers of each round.
        count: Items of all rounds.
    """
    order = np.concatenate([np.arange(number, count, len(parts)) for number in range(len(parts))])
    back = np.argsort(order)
    whole = stacked(parts)
    counter = counter_of(whole)
    rows = back if counter is None else _rows(whole[counter], back)
    return {
        name: values if name == SAMPLE else values[back if name == counter else rows] for name, values in whole.items()
    }


def counter_of(answers: Answers) -> str | None:
    """The array that counts the rows of each item, or None where each has one."""
    return next((name for name in COUNTS if name in answers), None)


def per_item(values: NDArray[Any], counts: NDArray[Any]) -> list[NDArray[Any]]:
    """The rows of each item; `counts` has shape (n,) and sums to the number of rows."""
    return np.split(values, np.cumsum(counts)[:-1])


def finite(answers: Answers) -> bool:
    """Whether no answer is NaN or infinite; the log-probability of what cannot come next may be minus infinity."""
    return all(
        bool(np.isfinite(values).all()) if name != SAMPLE else not (np.isnan(values) | np.isposinf(values)).any()
        for name, values in answers.items()
    )


def save(path: Path, answers: Answers) -> None:
    """Write them as .npz; `path` ends in it."""
    with path.open("wb") as stream:
        np.savez(stream, **dict(answers))  # type: ignore[arg-type]  # its stub mistakes names for allow_pickle


def load(path: Path) -> Answers:
    """Read what `save` wrote.

    Raises:
        DataError: The file cannot be read, or holds anything but arrays of numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise DataError(f"The answers in {path} cannot be read: {e}.", "Measure again.") from e


def _rows(counts: NDArray[Any], order: NDArray[Any]) -> NDArray[Any]:
    """Positions of the rows of the items in this order."""
    starts = np.cumsum(counts) - counts
    return np.concatenate([np.arange(starts[item], starts[item] + counts[item]) for item in order])
