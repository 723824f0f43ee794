"""Packs a language model, as onnxruntime-genai's builder wrote it, into a bundle.

Owns which of the builder's files travel and in what form. The graph's weights become blobs one at a time, so packing
holds no more than the largest of them in memory. Writing, reading back and renaming into place are `writer.py`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgewise.bundle.genai_config import GRAPH_NAME, normal_config, read_config
from edgewise.bundle.manifest import (
    KINDS,
    Core,
    GenerationPreprocessing,
    GoldenItem,
    NamedFile,
    Recipe,
    Target,
    Weight,
    canonical,
)
from edgewise.bundle.model_file import GraphFacts, graph_facts, move_out, open_model, stored_weights
from edgewise.bundle.reader import encode_golden
from edgewise.bundle.writer import publish, write_blob
from edgewise.errors import InputError
from edgewise.files import refuse_existing

SIGNAL = "mean_logprob"
"""The score of a generated answer: the mean log-probability of its tokens."""

CONFIG = "genai_config.json"
REQUIRED_FILES = (CONFIG, "tokenizer.json", "tokenizer_config.json")
OPTIONAL_FILES = ("added_tokens.json", "chat_template.jinja", "special_tokens_map.json")
"""Beside these nothing travels: `vocab.json` and `merges.txt` only repeat what `tokenizer.json` says."""

# Where the tokenizer was saved; it says nothing about it.
_PATHS = ("name_or_path", "tokenizer_file")
_REMEDY = "Give the folder that onnxruntime-genai's builder wrote."


class GeneratorSource(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a bundle of a language model is made of; see `Core` for the meanings.

    Attributes:
        name: Name of the model, as it stands in URLs.
        folder: What the builder wrote: `model.onnx` with its weights, `genai_config.json`, and the tokenizer's files.
        recipe: How the graph was made.
        target: What it was made for; its opset must be the graph's.
        max_length: Tokens of prompt and answer together, at most the model's context.
        golden: Golden items; none leaves a bundle that cannot be checked on the device.
        licences: SPDX identifiers or texts.
    """

    name: str
    folder: Path
    recipe: Recipe
    target: Target
    max_length: int
    golden: Sequence[GoldenItem] = ()
    licences: tuple[str, ...] = ()


def pack_generator(source: GeneratorSource, out: Path | str) -> str:
    """Write a bundle of kind "generator".

    Args:
        source: What to pack.
        out: A folder that does not exist yet.

    Returns:
        The model digest.

    Raises:
        OutputExistsError: `out` exists.
        InputError: A file is missing or cannot be used, a weight is not a number, or the limits contradict each other.
        BundleError: The folder cannot be written.
        MissingExtraError: `onnx` is not installed.
    """
    out = Path(out)
    refuse_existing(out)
    files = _read_files(source.folder)
    _check(source, files[CONFIG])
    model = open_model(source.folder / GRAPH_NAME)
    facts = graph_facts(model)
    if source.target.opset != facts.opset:
        raise InputError(
            f"The target names opset {source.target.opset}, the graph has {facts.opset}.",
            "Take the opset from edgewise.bundle.read_facts(path).",
        )
    return publish(out, lambda blobs: _write_core(source, files, model, facts, blobs))


def _write_core(source: GeneratorSource, files: dict[str, bytes], model: Any, facts: GraphFacts, folder: Path) -> Core:
    weights = []
    for tensor, data in stored_weights(model, source.folder):
        blob = write_blob(folder, data)
        weights.append(Weight(tensor.name, blob))
        move_out(tensor, blob.hex, blob.size)
    named = tuple(NamedFile(name, write_blob(folder, data)) for name, data in sorted(files.items()))
    return Core(
        name=source.name,
        kind=KINDS["text-generation"],
        task="text-generation",
        graph=write_blob(folder, model.SerializeToString(deterministic=True)),
        weights=tuple(weights),
        preprocessing=GenerationPreprocessing(named, source.max_length),
        labels=(),
        inputs=facts.inputs,
        outputs=facts.outputs,
        recipe=source.recipe,
        signal=SIGNAL,
        target=source.target,
        golden=write_blob(folder, encode_golden(tuple(source.golden))),
        licences=tuple(source.licences),
    )


def _read_files(folder: Path) -> dict[str, bytes]:
    """The small files that travel, by name, in the form in which they do."""
    missing = next((name for name in REQUIRED_FILES if not (folder / name).is_file()), None)
    if missing:
        raise InputError(f"{folder} has no {missing}.", _REMEDY)
    found = {name: (folder / name).read_bytes() for name in REQUIRED_FILES}
    found.update((name, (folder / name).read_bytes()) for name in OPTIONAL_FILES if (folder / name).is_file())
    return {name: _normal(folder / name, data) for name, data in found.items()}


def _normal(path: Path, data: bytes) -> bytes:
    if path.name == CONFIG:
        return normal_config(data)
    if path.suffix != ".json":
        return data
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is not JSON: {e}.", _REMEDY) from e
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object.", _REMEDY)
    return canonical({name: field for name, field in value.items() if name not in _PATHS})


def _check(source: GeneratorSource, config: bytes) -> None:
    context = read_config(config).model.context_length
    if not 1 < source.max_length <= context:
        raise InputError(
            f"max_length {source.max_length} does not fit the model, which reads {context} tokens.",
            f"Give one from 2 to {context}.",
        )
    for item in source.golden:
        if not item.logits or not all(math.isfinite(value) for value in (item.score, *item.logits)):
            raise InputError(f"A golden item answered {item.output!r} without finite log-probabilities.", "Check it.")
