"""How the vectors of a text's tokens become one vector: what a checkpoint says of it, and the arithmetic.

Owns the poolings that are supported, after sentence-transformers (Reimers & Gurevych 2019). It stands here, in the room
that both may import, because the quantizer bakes a pooling into a graph and the cloud service computes the very same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from edgewise.contracts import FloatArray
from edgewise.errors import CheckpointError

Mode: TypeAlias = Literal["mean", "cls", "max", "mean_sqrt_len"]

_MODES: Mapping[str, Mode] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "mean_sqrt_len": "mean_sqrt_len",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}
# Flags of the file's first form; one may be set.
_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SUPPORTED = "Supported: one transformer, then mean, cls, max or mean_sqrt_len pooling, then Normalize or nothing more."
_SHORTEST = 1e-12


class Pooling(msgspec.Struct, frozen=True):
    """How token vectors become one.

    Attributes:
        mode: The mean, the first token's ("cls"), the largest value of each column, or the sum over the square root of
            the number of tokens.
        normalize: Whether the vector is brought to length 1.
        assumed: Whether the checkpoint says nothing of it.
    """

    mode: Mode
    normalize: bool
    assumed: bool = False

    def __str__(self) -> str:
        """A few words for reports."""
        text = f"{self.mode} pooling{', length 1' if self.normalize else ''}"
        return f"{text}; assumed, since the checkpoint names none" if self.assumed else text


DEFAULT = Pooling("mean", normalize=True, assumed=True)
"""Of a plain encoder, which names no pooling."""


def read_pooling(folder: Path) -> Pooling:
    """Pooling of a checkpoint, as sentence-transformers wrote it down; the default where it did not.

    Raises:
        CheckpointError: It asks for more than is supported; the module is named.
    """
    if not (folder / "modules.json").is_file():
        return DEFAULT
    modules = _read(folder / "modules.json", list)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules if isinstance(module, dict)]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        odd = next((kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")), " → ".join(kinds))
        raise CheckpointError(
            f"The sentence encoder {folder} has the module {odd}, which is not supported.", _SUPPORTED
        )
    _refuse_changed_texts(folder)
    return Pooling(_mode(folder / str(modules[1].get("path", "")) / "config.json"), normalize=len(kinds) > 2)


def max_length_of(folder: Path) -> object:
    """The length limit that sentence-transformers goes by, or None; it may be below that of the tokenizer."""
    path = folder / "sentence_bert_config.json"
    return _read(path, dict).get("max_seq_length") if path.is_file() else None


def pooled(tokens: FloatArray, pooling: Pooling) -> FloatArray:
    """One vector, shape (width,), of the vectors of a text's tokens, shape (tokens, width), none of them padding."""
    vector: FloatArray = np.asarray(_POOLED[pooling.mode](tokens))
    return vector / max(float(np.linalg.norm(vector)), _SHORTEST) if pooling.normalize else vector


_POOLED = {
    "mean": lambda tokens: tokens.mean(axis=0),
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.max(axis=0),
    "mean_sqrt_len": lambda tokens: tokens.sum(axis=0) / np.sqrt(len(tokens)),
}


def _mode(path: Path) -> Mode:
    config = _read(path, dict)
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else named
    if not isinstance(modes, list):
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise CheckpointError(f"{path} asks for the pooling {' + '.join(map(str, modes)) or 'none'}.", _SUPPORTED)
    return _MODES[modes[0]]


def _refuse_changed_texts(folder: Path) -> None:
    """Refuse what sentence-transformers would do to a text before the tokenizer, and a bundle does not."""
    lower = folder / "sentence_bert_config.json"
    if lower.is_file() and _read(lower, dict).get("do_lower_case"):
        raise CheckpointError(f"{lower} asks for do_lower_case.", "Let the tokenizer do it, and set this to false.")
    prompts = folder / "config_sentence_transformers.json"
    prompt = _read(prompts, dict).get("default_prompt_name") if prompts.is_file() else None
    if prompt:
        raise CheckpointError(
            f"{prompts} puts the prompt {prompt!r} before every text.",
            "A bundle takes texts as they come: put it there yourself, and set default_prompt_name to null.",
        )


def _read(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} cannot be read: {e}.", "Download the checkpoint again.") from e
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} holds no JSON {kind.__name__}.", "Download the checkpoint again.")
    return value
