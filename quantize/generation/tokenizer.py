"""The tokenizer's round trip: what the checkpoint's own says of hard texts, the packed file must say too.

A checkpoint's tokenizer is what transformers makes of several files, the edge has `tokenizer.json` alone. Where the two
differ, or where a text does not come back, the model answers nonsense without an error: packing refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edgewise.errors import CheckpointError

HARD_TEXTS: tuple[str, ...] = (
    "Hello world, this is plain.",
    "a\nb",
    "\n\n\n",
    "line one\r\nline two\r\n",
    "\tif x == 10:\n\t\treturn {'a': [1, 2], \"b\": None}  # done\n",
    "  two blanks before, two after  ",
    " ",
    "\n ",
    " \n",
    "foo   bar    baz",
    "0123456789",
    "3.14159, 2024-01-31, 1,000,000 and 0x7fff",
    "don't I'll WE'VE it's",
    "Größe, café, naïve, Œuvre, ſ",
    "Привет, мир",
    "日本語のテキスト、中文和한국어",
    "مرحبا بالعالم 123",
    "हिन्दी में पाठ",
    "ไทย ภาษา",
    "👩‍👩‍👧‍👦 🎉 🏳️‍🌈 𝄞",
    "²³½ ١٢٣ 𝟘𝟙",
    "no\u00a0break, zero\u200bwidth, dash\u2014",
    "https://example.org/a_b?c=d&e=%20#f",
    "<b>&amp;</b> \\n \\u0041 `code` ~!@#$%^&*()_+-=[]{}|;:,./?",
    "CamelCaseAndSNAKE_CASE_and-kebab",
)
"""Texts on which tokenizers differ."""


class Encodes(Protocol):
    """A tokenizer as far as the round trip needs it."""

    def encode(self, text: str) -> Sequence[int]:
        """The ids of a text, with what the tokenizer puts around it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        ...


class Fault(NamedTuple):
    """The first text that goes wrong, and how."""

    text: str
    problem: str


def first_fault(expected: Encodes, found: Encodes, texts: Iterable[str]) -> Fault | None:
    """The first text that two tokenizers encode differently, or that either cannot give back.

    Args:
        expected: The checkpoint's.
        found: The packed one.
        texts: What is encoded.
    """
    for text in texts:
        wanted, ids = list(expected.encode(text)), list(found.encode(text))
        if ids != wanted:
            return Fault(text, f"becomes {_shown(ids)} instead of {_shown(wanted)}")
        for name, back in (("the checkpoint", expected.decode(wanted)), ("the packed file", found.decode(ids))):
            if back != text:
                return Fault(text, f"comes back from {name} as {back!r}")
    return None


def first_special_fault(expected: Encodes, found: Encodes, specials: Iterable[str]) -> Fault | None:
    """The first special token that the packed one does not read as the checkpoint does, alone and inside a text."""
    for special in specials:
        for text in (special, f"a{special}\nb"):
            if list(expected.encode(text)) != list(found.encode(text)):
                return Fault(text, f"becomes {_shown(found.encode(text))} instead of {_shown(expected.encode(text))}")
    return None


def require_round_trip(checkpoint: Path, folder: Path) -> None:
    """Hold the `tokenizer.json` of a built folder to the checkpoint's tokenizer.

    Args:
        checkpoint: The checkpoint's folder.
        folder: What the builder wrote.

    Raises:
        CheckpointError: They differ, or a text does not come back; the first such text is named.
    """
    own = CheckpointTokenizer.load(checkpoint)
    packed = PackedTokenizer(folder / "tokenizer.json")
    fault = first_fault(own, packed, HARD_TEXTS) or first_special_fault(own, packed, own.specials)
    if fault is not None:
        raise CheckpointError(
            f"The tokenizer of {checkpoint} does not survive packing: {_shown_text(fault.text)} {fault.problem}.",
            "Save the tokenizer that the model was trained with as a fast one, and check that it gives texts back.",
        )


class CheckpointTokenizer:
    """A checkpoint's tokenizer through transformers."""

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    @classmethod
    def load(cls, folder: Path) -> CheckpointTokenizer:
        """The tokenizer in a folder.

        Raises:
            CheckpointError: It cannot be loaded, or has no fast version.
        """
        from transformers import AutoTokenizer

        try:
            fast = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
        except Exception as e:  # a slow tokenizer that needs another package raises nearly anything
            problem = f"The tokenizer of {folder} cannot be loaded: {str(e).strip().splitlines()[0]}."
            raise CheckpointError(problem, "Save it as a fast tokenizer.") from e
        if not fast.is_fast:
            raise CheckpointError(
                f"The tokenizer of {folder} ({type(fast).__name__}) has no fast version.",
                "A bundle needs a tokenizer.json; convert it first.",
            )
        return cls(fast)

    @property
    def specials(self) -> tuple[str, ...]:
        """Its special tokens."""
        return tuple(self._fast.all_special_tokens)

    def encode(self, text: str) -> Sequence[int]:
        """The ids of a text."""
        return list(self._fast(text).input_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._fast.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class PackedTokenizer:
    """The packed file through the tokenizers library, as the edge reads it."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer  # type: ignore[import-untyped]  # ships stubs without a py.typed

        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str) -> Sequence[int]:
        """The ids of a text."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _shown_text(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _shown(ids: Sequence[int]) -> str:
    first = ", ".join(str(token) for token in ids[:8])
    return f"[{first}{', …' if len(ids) > 8 else ''}]"
