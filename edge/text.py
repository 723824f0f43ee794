"""Turns a text into the tensors that a graph declares.

Owns tokenizing, truncation and padding. Reads no file: the tokenizer comes as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer  # type: ignore[import-untyped]  # ships stubs without a py.typed

from edgewise.bundle import TensorSpec
from edgewise.contracts import Input
from edgewise.edge.reading import Encoded
from edgewise.errors import BundleError, InputError

_FEEDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""What the tokenizer's encoding calls each input that a text feeds."""

_LONG_TEXT = 4096
"""Characters that are read in about a millisecond."""

_CHARACTERS_A_TOKEN = 64
"""Far more than nearly all tokens have."""

_CHARACTERS_OF_PROMPT = 8
"""More than tokens have on average; a prompt that fits is seldom longer, and one that does not is soon refused."""

_GROWTH = 4
_SPACES = (" ", "\n", "\t")

_PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


class TextEncoder:
    """Encodes one text at a time, batch of one. Safe to share between threads.

    Args:
        tokenizer_json: Content of a `tokenizer.json`.
        inputs: The graph's inputs, each one of input_ids, attention_mask, token_type_ids, shape (batch, tokens).
        max_length: Tokens kept, special tokens included.
        pad_multiple: Pad to a multiple of this, but not beyond `max_length`; 1 pads nothing.
        max_unknown_share: Texts with a larger share of unknown tokens are out of distribution; None for none.

    Raises:
        BundleError: The tokenizer cannot be read, the graph has an input that a text does not feed, or unknown tokens
            shall be counted and the tokenizer has none.
    """

    kind = "text"

    def __init__(
        self,
        tokenizer_json: bytes,
        inputs: Sequence[TensorSpec],
        *,
        max_length: int,
        pad_multiple: int = 1,
        max_unknown_share: float | None = None,
    ) -> None:
        unknown = [spec.name for spec in inputs if spec.name not in _FEEDS]
        if unknown:
            raise BundleError(f"The graph has an input {unknown[0]!r}, a text feeds only {', '.join(_FEEDS)}.")
        self._tokenizer = _load(tokenizer_json, max_length)
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in inputs}
        self._max_length = max_length
        self._pad_multiple = pad_multiple
        self._pad_id = _pad_id(self._tokenizer)
        self._max_unknown_share = max_unknown_share
        self._unknown_id = None if max_unknown_share is None else _required_unknown_id(tokenizer_json)

    def encode(self, item: Input) -> dict[str, NDArray[np.generic]]:
        """Arrays of shape (1, tokens) by input name, in the declared integer types.

        Raises:
            InputError: Not a text, not valid Unicode, or without any token.
        """
        return self._tensors(self._tokenize(item))

    def read(self, item: Input) -> Encoded:
        """`encode`, with what the tokens say of the text: where they lie, and whether too many are unknown.

        Raises:
            InputError: As for `encode`.
        """
        encoding = self._tokenize(item)
        return Encoded(self._tensors(encoding), encoding.offsets, self._is_foreign(encoding))

    def _is_foreign(self, encoding: Encoding) -> bool:
        if self._max_unknown_share is None or self._unknown_id is None:
            return False
        return unknown_share(encoding, self._unknown_id) > self._max_unknown_share

    def _tokenize(self, item: Input) -> Encoding:
        if not isinstance(item, str):
            raise InputError(f"This model takes a text (str), given {describe(item)}.", "Give a str.")
        try:
            encoding = self._encoded(item)
        except Exception as e:  # the Rust library raises TypeError for lone surrogates and plain Exception for others
            raise InputError(f"This text cannot be tokenized: {e}.", "Give valid Unicode.") from e
        if not len(encoding):
            raise InputError(f"This text holds no token that the model knows: {item[:80]!r}.", "Give a longer text.")
        return encoding

    def _encoded(self, text: str) -> Encoding:
        """The encoding of a text, of which no more is read than the tokens need that are kept."""
        for beginning in beginnings(text, self._max_length):
            # `encode` keeps the interpreter to itself until it has read all; `encode_batch` does not, and costs more.
            encode = self._tokenizer.encode if len(beginning) <= _LONG_TEXT else self._encode_long
            encoding: Encoding = encode(beginning)
            if encoding.overflowing:
                break
        return encoding

    def _encode_long(self, text: str) -> Encoding:
        return self._tokenizer.encode_batch([text])[0]

    def _tensors(self, encoding: Encoding) -> dict[str, NDArray[np.generic]]:
        used = len(encoding)
        length = min(-(-used // self._pad_multiple) * self._pad_multiple, max(used, self._max_length))
        tensors = {}
        for name, dtype in self._dtypes.items():
            row = getattr(encoding, _FEEDS[name])
            if length > used:
                row = row + [self._pad_id if name == "input_ids" else 0] * (length - used)
            tensors[name] = np.array((row,), dtype)
        return tensors


def first_ids(tokenizer: Tokenizer, text: str, most: int, *, special: bool) -> list[int]:
    """The ids of a text; of one that has more than `most`, some more than that, and not all.

    Args:
        tokenizer: A tokenizer that cuts nothing off.
        text: The text.
        most: Ids that are of use.
        special: Whether the tokenizer puts around it what it puts around a whole text.
    """
    ids: list[int] = []
    for beginning in beginnings(text, most, _CHARACTERS_OF_PROMPT):
        ids = ids_of(tokenizer, beginning, special=special)
        if len(ids) > most:
            break
    return ids


def ids_of(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    """The ids of a text; nobody else in this process waits for those of a long one."""
    if len(text) <= _LONG_TEXT:
        return list(tokenizer.encode(text, add_special_tokens=special).ids)
    return list(tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids)


def beginnings(text: str, max_length: int, characters: int = _CHARACTERS_A_TOKEN) -> Iterator[str]:
    """Longer and longer beginnings of a text, the whole of it last; a short one is given whole at once.

    Args:
        text: The text.
        max_length: Tokens that are kept of it.
        characters: Of a token, in the first beginning.

    Once one of them has more than `max_length` tokens, the whole text has the same first ones: each ends between two
    words. So nobody has a megabyte tokenized, at 200 times its size in memory, of which some hundred tokens are kept.
    """
    size = characters * max_length
    while size < len(text):
        end = max(text.rfind(space, 0, size) for space in _SPACES)
        yield text[: end if end > 0 else size]
        size *= _GROWTH
    yield text


def unknown_share(encoding: Encoding, unknown_id: int) -> float:
    """Share of unknown tokens among those that are not special, in [0, 1]; 0 where all are special.

    Counted are the tokens that are kept: what the length limit cuts off, the model does not see either.
    """
    own = [token for token, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not special]
    return own.count(unknown_id) / len(own) if own else 0.0


def unknown_id(tokenizer_json: bytes) -> int | None:
    """The id of the token that stands for whatever the vocabulary lacks, or None where nothing can be unknown.

    Raises:
        BundleError: Not a `tokenizer.json`.
    """
    try:
        model = msgspec.json.decode(tokenizer_json, type=_TokenizerPart).model
        if model.unk_token is None:
            return model.unk_id
        found = Tokenizer.from_buffer(tokenizer_json).token_to_id(model.unk_token)
    except Exception as e:  # the Rust library raises plain Exception and ValueError
        raise BundleError(f"The tokenizer of the bundle cannot be read: {e}.", "Update tokenizers.") from e
    return None if found is None else int(found)


class _ModelPart(msgspec.Struct):
    unk_token: str | None = None
    unk_id: int | None = None


class _TokenizerPart(msgspec.Struct):
    """The two fields of a `tokenizer.json` that name the unknown token: of Unigram its id, of the others itself."""

    model: _ModelPart


def _required_unknown_id(tokenizer_json: bytes) -> int:
    found = unknown_id(tokenizer_json)
    if found is None:
        raise BundleError(
            "The bundle limits the share of unknown tokens, and its tokenizer has none.", "Pack it again."
        )
    return found


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
