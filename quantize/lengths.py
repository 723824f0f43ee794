"""Times a graph on texts of chosen lengths.

Owns how a text gets a length that is not its own. Tokenizing is not timed: no text has exactly that many tokens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.bundle import TextPreprocessing
from edgewise.contracts import Input
from edgewise.edge import EdgeModel

WARM_UP = 3
LENGTH_CALLS = 30
"""Timed calls a process at each chosen length."""


class LengthCalls(msgspec.Struct, frozen=True):
    """Timed calls of the graph on texts of exactly this many tokens; tokenizing is not in them.

    Attributes:
        tokens: Tokens of each text, special ones included.
        calls_ms: Each call after warming up.
    """

    tokens: int
    calls_ms: tuple[float, ...]


def time_lengths(
    model: EdgeModel, inputs: Sequence[Input], lengths: tuple[int, ...]
) -> tuple[tuple[LengthCalls, ...], tuple[str, ...]]:
    """Time the graph at each length, and tell in words which of them it could not be timed at.

    Args:
        model: The model.
        inputs: The data's own items, at least one.
        lengths: Tokens, each at least 1.
    """
    if not lengths:
        return (), ()
    how = model.bundle.core.preprocessing
    if not isinstance(how, TextPreprocessing):
        return (), ("latency at chosen lengths was not measured: the model takes no text",)
    read = [model.feeds(item) for item in inputs[:LENGTH_CALLS]]
    fitting = [length for length in lengths if length <= how.max_length]
    facts = tuple(
        f"latency at {length} tokens was not measured: the model reads {how.max_length} at most"
        for length in lengths
        if length > how.max_length
    )
    return tuple(LengthCalls(length, _time_graph(model, of_length(read, length))) for length in fitting), facts


def _time_graph(model: EdgeModel, batches: Sequence[Mapping[str, NDArray[Any]]]) -> tuple[float, ...]:
    calls = []
    for number in range(WARM_UP + LENGTH_CALLS):
        feeds = batches[number % len(batches)]
        started = time.perf_counter()
        model.run(feeds)
        calls.append((time.perf_counter() - started) * 1e3)
    return tuple(calls[WARM_UP:])


def of_length(read: Sequence[Mapping[str, NDArray[Any]]], length: int) -> list[dict[str, NDArray[Any]]]:
    """Texts cut, or repeated, to exactly this many tokens.

    A first and a last token that all texts have in common, such as [CLS] and [SEP], stay at the ends.

    Args:
        read: Tensors of each text, shape (1, tokens), by input name; at least one text.
        length: Tokens wanted, at least 1.
    """
    used = [_used(feeds) for feeds in read]
    rows = [feeds["input_ids"][0] for feeds in read]
    ends = {(int(row[0]), int(row[count - 1])) for row, count in zip(rows, used, strict=True)}
    return [
        {name: tensor[:, _positions(count, length, framed=len(ends) == 1)] for name, tensor in feeds.items()}
        for feeds, count in zip(read, used, strict=True)
    ]


def _used(feeds: Mapping[str, NDArray[Any]]) -> int:
    """Tokens that are not padding, which comes last."""
    mask = feeds.get("attention_mask")
    return int(mask.sum()) if mask is not None else next(iter(feeds.values())).shape[1]


def _positions(used: int, length: int, *, framed: bool) -> NDArray[np.int64]:
    if framed and used > 2 and length > 2:
        return np.concatenate([[0], np.resize(np.arange(1, used - 1), length - 2), [used - 1]])
    return np.resize(np.arange(used), length)
