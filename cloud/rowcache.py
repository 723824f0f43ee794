"""Keys and values of several sequences of different lengths, computed together: a batch whose rows come and go.

Owns the memory and one forward pass over it. A row is a sequence; its tokens lie from the left, what lies behind its
length counts for nothing, so that a row is taken back by being told a smaller length. It is multiplied by 0 all the
same, which infinite numbers survive: the memory of a row that is gone is cleared. Chooses no token.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_FIRST_CAPACITY = 256


class _Span:
    """Which part of the memory the next forward pass writes and reads."""

    first = 0
    rows = 0
    length = 0
    """Positions that are read."""
    where: torch.Tensor
    """Positions that are written, shape (rows, tokens)."""


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
        self.keys = _roomy(self.keys, key_states, span)
        self.values = _roomy(self.values, value_states, span)
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


def _roomy(held: torch.Tensor | None, fresh: torch.Tensor, span: _Span) -> torch.Tensor:
    """The memory, grown by doubling where the span does not fit."""
    rows, positions = span.first + span.rows, span.length
    if held is not None and held.shape[0] >= rows and held.shape[2] >= positions:
        return held
    had_rows, had_positions = (0, _FIRST_CAPACITY) if held is None else (held.shape[0], held.shape[2])
    while had_positions < positions:
        had_positions *= 2
    grown = torch.zeros(max(rows, had_rows), fresh.shape[1], had_positions, fresh.shape[3], dtype=fresh.dtype)
    if held is not None:
        grown[: held.shape[0], :, : held.shape[2]] = held
    return grown


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


def difference(model: Any, cache: RowCache, texts: Sequence[Sequence[int]]) -> float:
    """Compute texts whole, and again in pieces and together; forgets what the memory held.

    Args:
        model: The model of the memory.
        cache: The memory.
        texts: Tokens of each, five or more of the first, two or more of the others.

    Returns:
        Largest difference of a logit behind the last token, relative to the largest logit where that exceeds 1.
    """
    cache.clear()
    try:
        with torch.inference_mode():
            alone = [model(input_ids=torch.tensor([list(text)])).logits[0, -1] for text in texts]
        cache.forward(0, [texts[0][:3]], [0], last_only=True)
        cache.forward(0, [texts[0][3:-1]], [3], last_only=True)
        for row, text in enumerate(texts[1:], start=1):
            cache.forward(row, [text[:-1]], [0], last_only=True)
        together = cache.forward(0, [text[-1:] for text in texts], [len(text) - 1 for text in texts])[:, -1]
    finally:
        cache.clear()
    pairs = zip(alone, together, strict=True)
    # Over all at once, so that one NaN is what comes out.
    return float(torch.stack([(a - b).abs().max() / a.abs().max().clamp(min=1) for a, b in pairs]).max())


def _mask(where: torch.Tensor, length: int) -> torch.Tensor:
    """What is added to the attention of each query, shape (rows, 1, queries, keys): it reads no key behind its own."""
    reads = torch.arange(length) <= where[:, :, None]
    return torch.where(reads, 0.0, torch.finfo(torch.float32).min)[:, None]
