"""An ONNX file of the user's own becomes a bundle; torch is not needed.

Owns the order of work. What makes a file usable, and where labels and length limit come from, is in `onnx_source.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from edgewise.bundle import (
    BundleSource,
    GoldenItem,
    ImagePreprocessing,
    Recipe,
    Target,
    TextSource,
    pack_bundle,
    read_facts,
)
from edgewise.edge import EdgeModel, golden_items, probe
from edgewise.errors import InputError
from edgewise.files import refuse_existing
from edgewise.quantize.checkpoint import Checkpoint, safe_name
from edgewise.quantize.graph_maker import MIN_ONNXRUNTIME, SIGNAL, synthetic_inputs
from edgewise.quantize.onnx_source import TakeJob, inspect_onnx, take_here
from edgewise.router.signals import signal_named


def pack_onnx(
    onnx_path: Path,
    out: Path,
    *,
    labels: Path | Sequence[str] | None = None,
    tokenizer: Path | None = None,
    preprocessor: Path | None = None,
    name: str | None = None,
    max_length: int | None = None,
    licences: Sequence[str] = (),
) -> str:
    """Pack the ONNX file of a classifier, a tagger or an encoder as a bundle.

    Args:
        onnx_path: The graph; external data beside it is taken along.
        out: The bundle; must not exist.
        labels: Labels in the order of the logits: a list, or a file with one a line, a JSON list, or a config.json;
            None for an encoder.
        tokenizer: For texts: a `tokenizer.json`, or the folder that holds one.
        preprocessor: For images: a `preprocessor_config.json`, or the folder that holds one.
        name: The model's name in URLs; None takes the file's.
        max_length: Tokens a text is cut to; None takes the tokenizer's own limit, else 512.
        licences: SPDX identifiers or texts.

    Returns:
        The model digest.

    Raises:
        InputError: The graph cannot be used, or does not go with labels and preprocessing; see `inspect_onnx`.
        OutputExistsError: `out` exists.
        MissingExtraError: `onnx` is not installed.
    """
    refuse_existing(out)
    checkpoint = inspect_onnx(
        onnx_path,
        labels=labels,
        tokenizer=tokenizer,
        preprocessor=preprocessor,
        max_length=max_length,
        licences=licences,
    )
    with tempfile.TemporaryDirectory(prefix="edgewise-") as work:
        taken = take_here(TakeJob.of(checkpoint, Path(work)))
        source = _source(checkpoint, Path(taken.onnx), safe_name(name) if name else checkpoint.name)
        return _pack_with_golden(source, Path(work) / "draft", out)


def _source(checkpoint: Checkpoint, graph: Path, name: str) -> BundleSource:
    return BundleSource(
        name=name,
        task=checkpoint.task,
        onnx_path=graph,
        preprocessing=_preprocessing(checkpoint),
        labels=checkpoint.labels,
        recipe=Recipe("none", tools=_tools()),
        target=Target((probe().isa,), MIN_ONNXRUNTIME, read_facts(graph).opset),
        signal=SIGNAL,
        licences=checkpoint.licences,
    )


def _preprocessing(checkpoint: Checkpoint) -> TextSource | ImagePreprocessing:
    if checkpoint.image is not None:
        return checkpoint.image
    if checkpoint.tokenizer is None or checkpoint.max_length is None:
        raise InputError(f"{checkpoint.path} has neither text nor image preprocessing.")
    try:
        return TextSource(checkpoint.tokenizer.read_bytes(), checkpoint.max_length)
    except OSError as e:
        raise InputError(
            f"The tokenizer {checkpoint.tokenizer} cannot be read: {e.strerror}.", "Give a tokenizer.json."
        ) from e


def _tools() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("edgewise", "onnx", "onnxruntime")}


def _pack_with_golden(source: BundleSource, draft: Path, out: Path) -> str:
    """Pack twice: the first bundle answers the inputs that the second one carries."""
    pack_bundle(source, draft)
    golden: Sequence[GoldenItem] = golden_items(
        EdgeModel.load(draft), synthetic_inputs(source), signal_named(source.signal)
    )
    return pack_bundle(_with_golden(source, golden), out)


def _with_golden(source: BundleSource, golden: Sequence[GoldenItem]) -> BundleSource:
    from msgspec.structs import replace

    return replace(source, golden=golden)
