"""Turns a text into the tensors that a graph declares.

Owns tokenizing, truncation and padding. Reads no file: the tokenizer comes as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer  # type: ignore[import-untyped]  # ships stubs without a py.typed

from edgewise.bundle import TensorSpec
from edgewise.contracts import Input
from edgewise.errors import BundleError, InputError

_FEEDS = ("input_ids", "attention_mask", "token_type_ids")
_PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


class TextEncoder:
    """Encodes one text at a time, batch of one. Safe to share between threads.

    Args:
        tokenizer_json: Content of a `tokenizer.json`.
        inputs: The graph's inputs, each one of input_ids, attention_mask, token_type_ids, shape (batch, tokens).
        max_length: Tokens kept, special tokens included.
        pad_multiple: Pad to a multiple of this, but not beyond `max_length`; 1 pads nothing.

    Raises:
        BundleError: The tokenizer cannot be read, or the graph has an input that a text does not feed.
    """

    kind = "text"

    def __init__(
        self, tokenizer_json: bytes, inputs: Sequence[TensorSpec], *, max_length: int, pad_multiple: int = 1
    ) -> None:
        unknown = [spec.name for spec in inputs if spec.name not in _FEEDS]
        if unknown:
            raise BundleError(f"The graph has an input {unknown[0]!r}, a text feeds only {', '.join(_FEEDS)}.")
        self._tokenizer = _load(tokenizer_json, max_length)
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in inputs}
        self._max_length = max_length
        self._pad_multiple = pad_multiple
        self._pad_id = _pad_id(self._tokenizer)

    def encode(self, item: Input) -> dict[str, NDArray[np.generic]]:
        """Arrays of shape (1, tokens) by input name, in the declared integer types.

        Raises:
            InputError: Not a text, not valid Unicode, or without any token.
        """
        if not isinstance(item, str):
            raise InputError(f"This model takes a text (str), given {describe(item)}.", "Give a str.")
        try:
            encoding = self._tokenizer.encode(item)
        except Exception as e:  # the Rust library raises TypeError for lone surrogates and plain Exception for others
            raise InputError(f"This text cannot be tokenized: {e}.", "Give valid Unicode.") from e
        if not encoding.ids:
            raise InputError(f"This text holds no token that the model knows: {item[:80]!r}.", "Give a longer text.")
        return self._tensors(encoding)

    def _tensors(self, encoding: Encoding) -> dict[str, NDArray[np.generic]]:
        used = len(encoding.ids)
        length = min(-(-used // self._pad_multiple) * self._pad_multiple, max(used, self._max_length))
        rows = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        tensors = {}
        for name, dtype in self._dtypes.items():
            tensor = np.full((1, length), self._pad_id if name == "input_ids" else 0, dtype)
            tensor[0, :used] = rows[name]
            tensors[name] = tensor
        return tensors


def describe(item: object) -> str:
    """What an input is, in the words of an error message."""
    if isinstance(item, np.ndarray):
        return f"an array of shape {item.shape} and type {item.dtype}"
    return f"{type(item).__name__}"


def _load(tokenizer_json: bytes, max_length: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
        # Set once, here: changing it later would race with other threads' encoding.
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
    except Exception as e:  # the Rust library raises plain Exception and ValueError
        raise BundleError(f"The tokenizer of the bundle cannot be read: {e}.", "Update tokenizers.") from e
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if max_length <= special:  # tokenizers would then silently not truncate at all
        raise BundleError(f"max_length {max_length} leaves no room beside {special} special tokens.", "Pack it again.")
    return tokenizer


def _pad_id(tokenizer: Tokenizer) -> int:
    ids = (tokenizer.token_to_id(token) for token in _PAD_TOKENS)
    return next((found for found in ids if found is not None), 0)
