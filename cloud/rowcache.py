"""Keys and values of several sequences of different lengths, computed together: a batch whose rows come and go.

Owns the memory and one forward pass over it. A row is a sequence; its tokens lie from the left, what lies behind its
length counts for nothing, so that a row is taken back by being told a smaller length. It is multiplied by 0 all the
same, which infinite numbers survive: the memory of a row that is gone is cleared. Chooses no token.

The memory is one block, every row as long as the longest: a model reads it without a copy. Who may have a row of it,
so that one long sequence beside short ones does not take many times what they hold, is for others to say.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_PIECE = 256
"""Positions by which rows grow: a block is copied once in as many steps, each of which reads all of it."""


def block_tokens(rows: int, positions: int) -> int:
    """Tokens that a block takes whose longest row has so many positions."""
    return rows * _rounded(positions)


def _rounded(positions: int) -> int:
    return -(-positions // _PIECE) * _PIECE


class _Span:
    """Which part of the memory the next forward pass writes and reads, and the memory's size."""

    first = 0
    rows = 0
    length = 0
    """Positions that are read."""
    where: torch.Tensor
    """Positions that are written, shape (rows, tokens)."""
    block = (0, 0)
    """Rows and positions that there is memory for, from the pass on."""


class _Layer(CacheLayerMixin):  # type: ignore[misc]  # transformers ships no types
    """One layer's keys and values, shape (rows, heads, positions, width)."""

    is_sliding = False
    keys: torch.Tensor | None
    values: torch.Tensor | None

    def __init__(self, span: _Span) -> None:
        super().__init__()
        self._span = span

    def lazy_initialization(self, key_states: torch.Tensor) -> None:
        """Nothing is known before the first forward pass; `update` makes room."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write what was computed, and give back all that the rows' queries may read."""
        span = self._span
        self.keys = _sized(self.keys, key_states, span)
        self.values = _sized(self.values, value_states, span)
        rows = torch.arange(span.first, span.first + span.rows)[:, None]
        self.keys[rows, :, span.where] = key_states.transpose(1, 2)
        self.values[rows, :, span.where] = value_states.transpose(1, 2)
        self.is_initialized = True
        here = slice(span.first, span.first + span.rows)
        return self.keys[here, :, : span.length], self.values[here, :, : span.length]

    def get_mask_sizes(self, cache_position: torch.Tensor) -> tuple[int, int]:
        """Keys that are read, and where they begin."""
        return self._span.length, 0

    def get_seq_length(self) -> int:
        """Tokens that lie here already, of the row that is computed alone."""
        return self._span.length - int(self._span.where.shape[1])

    def get_max_cache_shape(self) -> int:
        """Unbounded."""
        return -1


def _sized(held: torch.Tensor | None, fresh: torch.Tensor, span: _Span) -> torch.Tensor:
    """The memory in the size that the span names, with what was in it."""
    rows, positions = span.block
    if held is not None and held.shape[0] == rows and held.shape[2] == positions:
        return held
    sized = torch.zeros(rows, fresh.shape[1], positions, fresh.shape[3], dtype=fresh.dtype)
    if held is not None:
        kept = held[:rows, :, :positions]
        sized[: kept.shape[0], :, : kept.shape[2]] = kept
    return sized


class RowCache:
    """A model and the memory of its rows; for one thread at a time.

    Args:
        model: A causal language model of transformers.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self.clear()

    def clear(self) -> None:
        """Forget every row and give its memory back."""
        self._span = _Span()
        self._cache = Cache(layer_class_to_replicate=partial(_Layer, self._span))

    def fit(self, rows: int, positions: int) -> None:
        """Have memory for the first `rows` rows, none longer than `positions`, and not more than twice as much."""
        span, wanted = self._span, (rows, _rounded(positions))
        held = span.block
        is_roomy = held[0] >= wanted[0] and held[1] >= wanted[1]
        if not is_roomy or held[0] * held[1] > 2 * wanted[0] * wanted[1]:
            span.block = wanted

    def remove(self, row: int, rows: int) -> None:
        """Take one of the first `rows` rows out; those behind it move up by one."""
        with torch.inference_mode():
            for layer in self._cache.layers:
                for held in (layer.keys, layer.values):
                    last = min(rows, held.shape[0])
                    if row < last:
                        held[row : last - 1] = held[row + 1 : last].clone()
                        held[last - 1] = 0.0

    def forward(
        self, first: int, tokens: Sequence[Sequence[int]], lengths: Sequence[int], *, last_only: bool = False
    ) -> torch.Tensor:
        """Compute tokens of neighbouring rows.

        Args:
            first: The first row.
            tokens: Of each row those to compute, equally many.
            lengths: Of each row how many of its tokens lie in memory already.
            last_only: Whether only the logits behind the last token are of use.

        Returns:
            Logits, shape (rows, tokens, vocabulary), or (rows, 1, vocabulary).
        """
        ids = torch.tensor(tokens, dtype=torch.long)
        where = torch.tensor(lengths, dtype=torch.long)[:, None] + torch.arange(ids.shape[1])
        span = self._span
        span.first, span.rows, span.where = first, len(tokens), where
        span.length = int(where.max()) + 1
        if first + len(tokens) > span.block[0] or span.length > span.block[1]:
            self.fit(max(first + len(tokens), span.block[0]), max(span.length, span.block[1]))
        given: dict[str, Any] = {"position_ids": where, "cache_position": where[0], "logits_to_keep": int(last_only)}
        with torch.inference_mode():
            found = self._model(
                input_ids=ids,
                attention_mask=None if len(tokens) == 1 else _mask(where, span.length),
                past_key_values=self._cache,
                use_cache=True,
                **{name: value for name, value in given.items() if name in self._takes},
            ).logits
        return found[:, -1:] if last_only else found


def _mask(where: torch.Tensor, length: int) -> torch.Tensor:
    """What is added to the attention of each query, shape (rows, 1, queries, keys): it reads no key behind its own."""
    reads = torch.arange(length) <= where[:, :, None]
    return torch.where(reads, 0.0, torch.finfo(torch.float32).min)[:, None]
