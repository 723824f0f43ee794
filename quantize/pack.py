"""An ONNX file of the user's own becomes a bundle; torch is not needed.

Owns the checks that tell a usable classifier from another graph, and where labels and length limit come from.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from edgewise.bundle import (
    BundleSource,
    GoldenItem,
    GraphFacts,
    ImagePreprocessing,
    Recipe,
    Target,
    Task,
    TensorSpec,
    TextSource,
    pack_bundle,
    read_facts,
)
from edgewise.edge import EdgeModel, golden_items, probe
from edgewise.errors import InputError
from edgewise.files import refuse_existing
from edgewise.quantize.candidates import MIN_ONNXRUNTIME, SIGNAL, synthetic_inputs
from edgewise.quantize.checkpoint import DEFAULT_MAX_LENGTH, safe_name
from edgewise.quantize.images import NAME as PREPROCESSOR
from edgewise.quantize.images import translate
from edgewise.router.signals import signal_named

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
IMAGE_INPUT = "pixel_values"


def pack_onnx(
    onnx_path: Path,
    out: Path,
    *,
    labels: Path | Sequence[str],
    tokenizer: Path | None = None,
    preprocessor: Path | None = None,
    name: str | None = None,
    max_length: int | None = None,
    licences: Sequence[str] = (),
) -> str:
    """Pack a classifier's ONNX file as a bundle.

    Args:
        onnx_path: The graph; external data beside it is taken along.
        out: The bundle; must not exist.
        labels: Labels in the order of the logits: a list, or a file with one a line, a JSON list, or a config.json.
        tokenizer: For texts: a `tokenizer.json`, or the folder that holds one.
        preprocessor: For images: a `preprocessor_config.json`, or the folder that holds one.
        name: The model's name in URLs; None takes the file's.
        max_length: Tokens a text is cut to; None takes the tokenizer's own limit, else 512.
        licences: SPDX identifiers or texts.

    Returns:
        The model digest.

    Raises:
        InputError: The graph is no classifier of texts or images, or does not go with labels and preprocessing.
        OutputExistsError: `out` exists.
        MissingExtraError: `onnx` is not installed.
    """
    refuse_existing(out)
    facts = read_facts(onnx_path)
    names = tuple(read_labels(labels) if isinstance(labels, Path) else labels)
    _check_logits(facts, names)
    task = _task(facts)
    source = BundleSource(
        name=safe_name(name or onnx_path.stem),
        task=task,
        onnx_path=onnx_path,
        preprocessing=_text(tokenizer, max_length) if task == "text-classification" else _image(preprocessor, facts),
        labels=names,
        recipe=Recipe("none", tools=_tools()),
        target=Target((probe().isa,), MIN_ONNXRUNTIME, facts.opset),
        signal=SIGNAL,
        licences=tuple(licences),
    )
    return _pack_with_golden(source, out)


def read_labels(path: Path) -> list[str]:
    """Labels from a file: one a line, a JSON list, a JSON object of labels by index, or a config.json with id2label.

    Raises:
        InputError: The file cannot be read, or holds no labels.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise InputError(f"The labels {path} cannot be read: {e}.", "Give a UTF-8 file with one label a line.") from e
    found = _json_labels(text) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
    labels = [label.strip() for label in found if label.strip()]
    if not labels:
        raise InputError(f"{path} holds no labels.", "Give one label a line, in the order of the logits.")
    return labels


def _json_labels(text: str) -> list[str]:
    try:
        value = json.loads(text)
        value = value.get("id2label", value) if isinstance(value, dict) else value
        return [str(value[key]) for key in sorted(value, key=int)] if isinstance(value, dict) else list(map(str, value))
    except (ValueError, TypeError, RecursionError) as e:
        raise InputError(
            f"The labels are no JSON list and no object by index: {e}.", 'Give ["first", "second"].'
        ) from e


def _check_logits(facts: GraphFacts, labels: Sequence[str]) -> None:
    logits: TensorSpec = next((spec for spec in facts.outputs if spec.name == "logits"), facts.outputs[0])
    last = logits.shape[-1] if logits.shape else 0
    if len(logits.shape) != 2 or (isinstance(last, int) and last != len(labels)):
        raise InputError(
            f"The graph's output {logits.name!r} has shape {list(logits.shape)}; {len(labels)} labels need "
            f"[batch, {len(labels)}].",
            "Give the labels in the order of the logits, or export the classifier's logits.",
        )


def _task(facts: GraphFacts) -> Task:
    names = [spec.name for spec in facts.inputs]
    if names == [IMAGE_INPUT]:
        return "image-classification"
    if TEXT_INPUTS[0] in names and set(names) <= set(TEXT_INPUTS):
        return "text-classification"
    raise InputError(
        f"The graph takes {', '.join(names)}, which cannot be fed.",
        f"Known inputs: {', '.join(TEXT_INPUTS)} for texts, {IMAGE_INPUT} for images. Export it with these names.",
    )


def _text(tokenizer: Path | None, max_length: int | None) -> TextSource:
    if tokenizer is None:
        raise InputError("The graph takes tokens, and no tokenizer is given.", "Name its tokenizer.json: --tokenizer.")
    path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    try:
        data = path.read_bytes()
    except OSError as e:
        raise InputError(f"The tokenizer {path} cannot be read: {e.strerror}.", "Give a tokenizer.json.") from e
    return TextSource(data, _own_limit(path) if max_length is None else max_length)


def _own_limit(tokenizer: Path) -> int:
    beside = tokenizer.with_name("tokenizer_config.json")
    limit = _json_object(beside).get("model_max_length") if beside.is_file() else None
    return int(limit) if isinstance(limit, int) and 0 < limit < 1_000_000 else DEFAULT_MAX_LENGTH


def _image(preprocessor: Path | None, facts: GraphFacts) -> ImagePreprocessing:
    if preprocessor is None:
        raise InputError(
            "The graph takes pixels, and no preprocessing is given.", f"Name its {PREPROCESSOR}: --preprocessor."
        )
    path = preprocessor / PREPROCESSOR if preprocessor.is_dir() else preprocessor
    settings = _json_object(path)
    config = path.with_name("config.json")
    model = _json_object(config) if config.is_file() else {}
    mean = settings.get("image_mean")
    declared = facts.inputs[0].shape[1] if len(facts.inputs[0].shape) == 4 else None
    channels = declared if isinstance(declared, int) else (len(mean) if isinstance(mean, list) else 3)
    if channels not in (1, 3):
        raise InputError(f"The graph takes {channels} channels.", "Supported: 1 (grey) or 3 (RGB).")
    family = model.get("model_type")
    return translate(
        settings,
        channels=1 if channels == 1 else 3,
        image_size=model.get("image_size", _declared_size(facts)),
        where=str(path),
        # Only its family tells what a processor without a class does by default.
        **({"model_type": family} if isinstance(family, str) else {}),
    )


def _declared_size(facts: GraphFacts) -> list[int] | None:
    """Height and width where the graph takes no other."""
    sides = [side for side in facts.inputs[0].shape[2:] if isinstance(side, int)]
    return sides if len(sides) == 2 else None


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{path} cannot be read: {e}.", "Give a JSON file.") from e
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object.", "Give the file that transformers wrote.")
    return value


def _tools() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("edgewise", "onnx", "onnxruntime")}


def _pack_with_golden(source: BundleSource, out: Path) -> str:
    """Pack twice: the first bundle answers the inputs that the second one carries."""
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        draft = Path(folder) / "draft"
        pack_bundle(source, draft)
        golden: Sequence[GoldenItem] = golden_items(
            EdgeModel.load(draft), synthetic_inputs(source), signal_named(source.signal)
        )
    return pack_bundle(_with_golden(source, golden), out)


def _with_golden(source: BundleSource, golden: Sequence[GoldenItem]) -> BundleSource:
    from msgspec.structs import replace

    return replace(source, golden=golden)
