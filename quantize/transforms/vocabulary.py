"""Cuts a tokenizer's vocabulary down to some of its pieces and numbers them anew.

Owns the `tokenizer.json`. The graph's table is `trim.py`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

KINDS = ("WordPiece", "WordLevel")
"""Models of tokenizers that find a piece by its text, so that two may have one id."""


@dataclass(frozen=True)
class Usage:
    """What some texts use of a vocabulary.

    Attributes:
        ids: Ids of each text's tokens, special tokens left out.
    """

    ids: tuple[tuple[int, ...], ...]

    @property
    def pieces(self) -> set[int]:
        """All ids that occur."""
        return {piece for text in self.ids for piece in text}


def why_not(tokenizer: Mapping[str, Any]) -> str:
    """Why this tokenizer's vocabulary cannot be cut; empty if it can."""
    model = tokenizer["model"]
    if model.get("type") not in KINDS:
        return f"a vocabulary is cut for {' and '.join(KINDS)}, this tokenizer is {model.get('type')!r}"
    if model.get("unk_token") not in model["vocab"]:
        return "the tokenizer has no token for unknown words, which is what dropped pieces become"
    return ""


def always_kept(tokenizer: Mapping[str, Any]) -> set[int]:
    """Ids of the unknown token and of every special and added token."""
    vocabulary = tokenizer["model"]["vocab"]
    added = {int(token["id"]) for token in tokenizer.get("added_tokens") or ()}
    return added | {int(vocabulary[tokenizer["model"]["unk_token"]])}


def use_of(tokenizer_json: bytes, texts: Sequence[str]) -> Usage:
    """What texts use, at their full length."""
    from tokenizers import Tokenizer  # type: ignore[import-untyped]  # ships stubs without a py.typed

    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Usage(tuple(tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts))


def renumber(kept: Iterable[int]) -> dict[int, int]:
    """Old id to new id; the order stays."""
    return {old: new for new, old in enumerate(sorted(kept))}


def cut(tokenizer: Mapping[str, Any], numbers: Mapping[int, int]) -> bytes:
    """The `tokenizer.json` that gives new ids, and the unknown token's for every piece that is not kept.

    A dropped piece stays in the list under that id: without it a word would be spelled from smaller pieces, of which
    nobody could tell that they stand for something unknown. That is also why it takes a model which finds pieces by
    their text: BPE merges by id.
    """
    model = tokenizer["model"]
    unknown = numbers[int(model["vocab"][model["unk_token"]])]
    vocabulary = {piece: numbers.get(int(old), unknown) for piece, old in model["vocab"].items()}
    added = [{**token, "id": numbers[int(token["id"])]} for token in tokenizer.get("added_tokens") or ()]
    padding = tokenizer.get("padding")
    if padding is not None:
        padding = {**padding, "pad_id": numbers.get(int(padding["pad_id"]), 0)}
    changed = {
        **tokenizer,
        "model": {**model, "vocab": vocabulary},
        "added_tokens": added,
        "padding": padding,
        "post_processor": _processor(tokenizer.get("post_processor"), numbers),
    }
    return msgspec.json.encode(changed)


def unknown_shares(tokenizer: Mapping[str, Any], usage: Usage, *, folds: int) -> list[tuple[int, int]]:
    """Unknown and all tokens of each text under a vocabulary made of the other texts only.

    A text that helped to make the vocabulary has no unknown token by construction; so each fold of the texts is read
    with what the other folds use (cross-fitting). The vocabulary in use comes from all of them, and is no worse.

    Args:
        tokenizer: The whole tokenizer.
        usage: What each text uses of it.
        folds: Parts of the texts.
    """
    unknown = int(tokenizer["model"]["vocab"][tokenizer["model"]["unk_token"]])
    keep = always_kept(tokenizer) - {unknown}
    found: dict[int, tuple[int, int]] = {}
    for fold in range(min(folds, len(usage.ids))):
        inside = set(range(fold, len(usage.ids), folds))
        known = keep | Usage(tuple(ids for at, ids in enumerate(usage.ids) if at not in inside)).pieces - {unknown}
        for at in inside:
            ids = usage.ids[at]
            found[at] = (sum(piece not in known for piece in ids), len(ids))
    return [found[at] for at in range(len(usage.ids))]


def _processor(processor: Any, numbers: Mapping[int, int]) -> Any:
    """A post-processor with new ids, whichever of the library's forms it has."""
    if processor is None:
        return None
    changed = dict(processor)
    if processor["type"] == "Sequence":
        changed["processors"] = [_processor(inner, numbers) for inner in processor["processors"]]
    if processor["type"] == "TemplateProcessing":
        changed["special_tokens"] = {
            name: {**token, "ids": [numbers[int(old)] for old in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
    for field in ("sep", "cls"):
        if isinstance(processor.get(field), list):
            text, old = processor[field]
            changed[field] = [text, numbers[int(old)]]
    return changed


def named_by_processor(processor: Any) -> Collection[int]:
    """Ids that a post-processor inserts."""
    if processor is None:
        return set()
    found: set[int] = set()
    for inner in processor.get("processors") or ():
        found |= set(named_by_processor(inner))
    for token in (processor.get("special_tokens") or {}).values() if isinstance(processor, dict) else ():
        found |= {int(old) for old in token["ids"]}
    return found | {int(processor[field][1]) for field in ("sep", "cls") if isinstance(processor.get(field), list)}
