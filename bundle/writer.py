"""Packs an ONNX file into a bundle.

Owns the order of work: prepare, write beside, read back, rename into place. The same source gives the same bytes; a
failed pack leaves nothing. Chooses nothing: recipe, golden items and licences come with the source.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgewise.bundle.manifest import (
    KINDS,
    Blob,
    Core,
    GoldenItem,
    ImagePreprocessing,
    Recipe,
    Target,
    Task,
    TextPreprocessing,
    Weight,
    encode_manifest,
)
from edgewise.bundle.model_file import GraphFacts, graph_facts, large_weights, move_out, read_model
from edgewise.bundle.reader import BLOBS, MANIFEST, Bundle, encode_golden
from edgewise.errors import BundleError, DiskFullError, InputError
from edgewise.files import refuse_existing, staged_directory


class TextSource(msgspec.Struct, frozen=True):
    """Text preprocessing before it is packed.

    Attributes:
        tokenizer_json: Content of a `tokenizer.json`.
        max_length: Tokens kept, special tokens included.
        pad_multiple: Pad to a multiple of this; 1 pads nothing.
        max_unknown_share: As in `TextPreprocessing`; None where the vocabulary was not cut.
    """

    tokenizer_json: bytes
    max_length: int
    pad_multiple: int = 1
    max_unknown_share: float | None = None


class BundleSource(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a bundle is made of; see `Core` for the meanings.

    Attributes:
        name: Name of the model, as it stands in URLs.
        task: What it does.
        onnx_path: The graph; external data beside it is taken along.
        preprocessing: How an input becomes tensors.
        labels: Labels in the order of the logits.
        recipe: How the graph was made.
        target: What it was made for; its opset must be the graph's (`read_facts(path).opset`).
        signal: Name of the confidence signal that gave the golden scores.
        golden: Golden items; none leaves a bundle that cannot be checked on the device.
        licences: SPDX identifiers or texts.
    """

    name: str
    task: Task
    onnx_path: Path
    preprocessing: TextSource | ImagePreprocessing
    labels: tuple[str, ...]
    recipe: Recipe
    target: Target
    signal: str = "margin"
    golden: Sequence[GoldenItem] = ()
    licences: tuple[str, ...] = ()


def pack_bundle(source: BundleSource, out: Path | str) -> str:
    """Write a bundle.

    Args:
        source: What to pack.
        out: A folder that does not exist yet.

    Returns:
        The model digest.

    Raises:
        OutputExistsError: `out` exists.
        InputError: The ONNX file, the tokenizer or another part of the source cannot be used.
        BundleError: The folder cannot be written.
        MissingExtraError: `onnx` is not installed.
    """
    out = Path(out)
    refuse_existing(out)
    _check_source(source)
    model = read_model(source.onnx_path)
    facts = graph_facts(model)
    _check_facts(source, facts)
    return publish(out, lambda blobs: _write_blobs(source, model, facts, blobs))


def publish(out: Path, write_blobs: Callable[[Path], Core]) -> str:
    """Make a bundle of the blobs that the caller writes and of the core that names them.

    Args:
        out: A folder that does not exist yet; it appears whole or not at all.
        write_blobs: Fills the folder of blobs.

    Returns:
        The model digest.

    Raises:
        OutputExistsError: `out` exists.
        BundleError: The folder cannot be written, or what was written cannot be read back.
    """
    try:
        with staged_directory(out) as staged:
            blobs = staged / BLOBS
            blobs.mkdir(parents=True)
            (staged / MANIFEST).write_bytes(encode_manifest(write_blobs(blobs)))
            # What cannot be read back must not be published.
            return Bundle.open(staged).model_digest
    except OSError as e:
        full = DiskFullError.caused_by(e)
        if full is not None:
            raise full from e
        raise BundleError(
            f"The bundle {out} cannot be written: {e.strerror or e}.", "Check space and permissions."
        ) from e


def _write_blobs(source: BundleSource, model: Any, facts: GraphFacts, folder: Path) -> Core:
    weights = []
    for tensor, data in large_weights(model):
        blob = write_blob(folder, data)
        weights.append(Weight(tensor.name, blob))
        move_out(tensor, blob.hex, blob.size)
    return Core(
        name=source.name,
        kind=KINDS[source.task],
        task=source.task,
        graph=write_blob(folder, model.SerializeToString(deterministic=True)),
        weights=tuple(weights),
        preprocessing=_write_preprocessing(source.preprocessing, folder),
        labels=tuple(source.labels),
        inputs=facts.inputs,
        outputs=facts.outputs,
        recipe=source.recipe,
        signal=source.signal,
        target=source.target,
        golden=write_blob(folder, encode_golden(tuple(source.golden))),
        licences=tuple(source.licences),
    )


def _write_preprocessing(
    source: TextSource | ImagePreprocessing, folder: Path
) -> TextPreprocessing | ImagePreprocessing:
    if isinstance(source, ImagePreprocessing):
        return source
    return TextPreprocessing(
        write_blob(folder, source.tokenizer_json),
        source.max_length,
        source.pad_multiple,
        msgspec.UNSET if source.max_unknown_share is None else source.max_unknown_share,
    )


def write_blob(folder: Path, data: bytes) -> Blob:
    """Keep bytes as a blob in the folder of blobs."""
    name = hashlib.sha256(data).hexdigest()
    (folder / name).write_bytes(data)
    return Blob(f"sha256:{name}", len(data))


def _check_source(source: BundleSource) -> None:
    """What can be refused before anything large is read."""
    if source.task not in KINDS:
        raise InputError(f"There is no task {source.task!r}.", f"Give one of: {', '.join(KINDS)}.")
    for item in source.golden:
        _check_golden(source, item)
    if isinstance(source.preprocessing, TextSource):
        _check_tokenizer(source.preprocessing)


def _check_golden(source: BundleSource, item: GoldenItem) -> None:
    if not all(math.isfinite(value) for value in (item.score, *item.logits)):
        raise InputError(f"A golden item answered {item.output!r} with NaN or infinity.", "Check the model.")
    kind = KINDS[source.task]
    known = item.output in source.labels or kind != "classifier"
    fits = len(item.logits) == len(source.labels) if kind in ("classifier", "tagger") else bool(item.logits)
    if not (known and fits):
        raise InputError(
            f"A golden item answered {item.output!r} with {len(item.logits)} logits; the bundle has "
            f"{len(source.labels)} labels.",
            "Compute the golden items with this graph and these labels.",
        )


def _check_tokenizer(source: TextSource) -> None:
    from tokenizers import Tokenizer  # type: ignore[import-untyped]  # ships stubs without a py.typed

    try:
        tokenizer = Tokenizer.from_buffer(source.tokenizer_json)
    except Exception as e:  # the Rust library raises plain Exception and ValueError
        raise InputError(f"The tokenizer cannot be read: {e}.", "Give the tokenizer.json of a fast tokenizer.") from e
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if source.max_length <= special:
        problem = f"max_length {source.max_length} leaves no room for a word beside {special} special tokens."
        raise InputError(problem, "Give a larger max_length.")


def _check_facts(source: BundleSource, facts: GraphFacts) -> None:
    if source.target.opset != facts.opset:
        raise InputError(
            f"The target names opset {source.target.opset}, the graph has {facts.opset}.",
            "Take the opset from edgewise.bundle.read_facts(path).",
        )
