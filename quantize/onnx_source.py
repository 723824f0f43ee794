"""Reads what an ONNX file of the user's own says of itself, and takes it into a run as it is; torch is not needed.

Owns the checks that tell a usable classifier, tagger or encoder from another graph, and where labels, length limit and
image preprocessing come from. Exports and packs nothing.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgewise.bundle import GraphFacts, ImagePreprocessing, Task, TensorSpec, read_facts
from edgewise.bundle.model_file import read_model, weight_files
from edgewise.edge.pooling import Pooling, read_pooling
from edgewise.errors import InputError
from edgewise.quantize.checkpoint import DEFAULT_MAX_LENGTH, TASKS, Checkpoint
from edgewise.quantize.export import Exported
from edgewise.quantize.images import NAME as PREPROCESSOR
from edgewise.quantize.images import translate
from edgewise.quantize.pooling import OUTPUT, append_pooling, keep_output

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
IMAGE_INPUT = "pixel_values"
_POOLED_OUTPUTS = (OUTPUT, "sentence_embedding")


def inspect_onnx(
    path: Path,
    *,
    labels: Path | Sequence[str] | None = None,
    tokenizer: Path | None = None,
    preprocessor: Path | None = None,
    max_length: int | None = None,
    task: str = "auto",
    licences: Sequence[str] = (),
) -> Checkpoint:
    """Look at an ONNX file.

    Texts with labels are classified where the graph gives logits of shape (batch, labels), and tagged where it gives
    (batch, tokens, labels). Texts without labels are encoded: an output of shape (batch, width) is the embedding, and
    one of shape (batch, tokens, width) is pooled as a `modules.json` beside the file says, else by the default.

    Args:
        path: The graph; external data lies beside it.
        labels: Labels in the order of the logits: a list, or a file with one a line, a JSON list, or a config.json.
        tokenizer: For texts: a `tokenizer.json`, or the folder that holds one.
        preprocessor: For images: a `preprocessor_config.json`, or the folder that holds one.
        max_length: Tokens a text is cut to; None takes the tokenizer's own limit, else 512.
        task: "auto", or the task that the caller expects.
        licences: SPDX identifiers or texts.

    Raises:
        InputError: The graph cannot be read or used, or does not go with labels and preprocessing.
        MissingExtraError: `onnx` is not installed.
    """
    facts = read_facts(path)
    names = tuple(read_labels(labels) if isinstance(labels, Path) else labels or ())
    found = _task(facts, names, task)
    output = _main_output(facts, found)
    if found != "feature-extraction":
        _check_logits(output, found, names)
    image = _image(preprocessor, facts) if found == "image-classification" else None
    text = _tokenizer(tokenizer) if image is None else None
    weights = (path, *weight_files(path))
    return Checkpoint(
        path=path,
        architecture="ONNX graph",
        model_type="onnx",
        task=found,
        labels=names,
        weights=weights,
        size_bytes=sum(file.stat().st_size for file in weights),
        max_length=None if text is None else _length(text, max_length),
        image=image,
        licences=tuple(licences),
        pooling=read_pooling(path.parent) if found == "feature-extraction" and len(output.shape) == 3 else None,
        tokenizer=text,
    )


class TakeJob(msgspec.Struct, frozen=True, kw_only=True):
    """Take an ONNX file into a run.

    Attributes:
        onnx: The file.
        weights: Files beside it that hold its weights.
        task: What it does.
        tokenizer: Its `tokenizer.json`, empty for an image model.
        pooling: Of an encoder that gives one vector a token.
        out: Folder for `model.onnx` and `tokenizer.json`; exists.
    """

    onnx: str
    weights: tuple[str, ...]
    task: Task
    tokenizer: str
    pooling: Pooling | None
    out: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, out: Path) -> TakeJob:
        """The job for what `inspect_onnx` gave."""
        return cls(
            onnx=str(checkpoint.path.resolve()),
            weights=tuple(str(file.resolve()) for file in checkpoint.weights[1:]),
            task=checkpoint.task,
            tokenizer=str(checkpoint.tokenizer.resolve()) if checkpoint.tokenizer is not None else "",
            pooling=checkpoint.pooling,
            out=str(out),
        )


def take_here(job: TakeJob) -> Exported:
    """Check all of an ONNX file and copy it; an encoder's graph is made to give one vector a text, and nothing else.

    Raises:
        InputError: It is damaged, lacks weights, or holds NaN.
        MissingExtraError: `onnx` is not installed.
    """
    started = time.perf_counter()
    source, out = Path(job.onnx), Path(job.out)
    read_model(source)
    graph = Path(shutil.copyfile(source, out / "model.onnx"))
    for file in map(Path, job.weights):
        copy = out / file.relative_to(source.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    if job.task == "feature-extraction":
        keep_output(graph, _main_output(read_facts(graph), job.task).name)
    if job.pooling is not None:
        append_pooling(graph, job.pooling)
    tokenizer = str(shutil.copyfile(job.tokenizer, out / "tokenizer.json")) if job.tokenizer else ""
    return Exported(
        onnx=str(graph), tokenizer=tokenizer, answers=(), seconds=time.perf_counter() - started, exporter="none"
    )


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


def _task(facts: GraphFacts, labels: Sequence[str], expected: str) -> Task:
    if expected != "auto" and expected not in TASKS.values():
        raise InputError(
            f"The task {expected!r} is not supported.", f"Known: {', '.join(sorted(set(TASKS.values())))}."
        )
    found = _found_task(facts, labels)
    if expected not in ("auto", found):
        what = f"with {len(labels)} labels" if labels else "without labels"
        raise InputError(f"This graph {what} does {found}, not {expected}.", "Check --labels, or leave out --task.")
    return found


def _found_task(facts: GraphFacts, labels: Sequence[str]) -> Task:
    names = [spec.name for spec in facts.inputs]
    if names == [IMAGE_INPUT]:
        return "image-classification"
    if TEXT_INPUTS[0] not in names or not set(names) <= set(TEXT_INPUTS):
        raise InputError(
            f"The graph takes {', '.join(names)}, which cannot be fed.",
            f"Known inputs: {', '.join(TEXT_INPUTS)} for texts, {IMAGE_INPUT} for images. Export it with these names.",
        )
    if not labels and any(spec.name == "logits" for spec in facts.outputs):
        raise InputError("The graph gives logits, and their labels are not named.", "Name them: --labels.")
    if not labels:
        return "feature-extraction"
    return "token-classification" if len(_output(facts, "logits").shape) == 3 else "text-classification"


def _main_output(facts: GraphFacts, task: Task) -> TensorSpec:
    if task != "feature-extraction":
        return _output(facts, "logits")
    pooled = [spec for spec in facts.outputs if spec.name in _POOLED_OUTPUTS and len(spec.shape) == 2]
    found = pooled[0] if pooled else facts.outputs[0]
    if len(found.shape) not in (2, 3):
        raise InputError(
            f"The graph's output {found.name!r} has shape {list(found.shape)}; an encoder gives [batch, width] or "
            "[batch, tokens, width].",
            "For a classifier name its labels: --labels.",
        )
    return found


def _output(facts: GraphFacts, name: str) -> TensorSpec:
    return next((spec for spec in facts.outputs if spec.name == name), facts.outputs[0])


def _check_logits(logits: TensorSpec, task: Task, labels: Sequence[str]) -> None:
    wanted = ["batch", "tokens", len(labels)] if task == "token-classification" else ["batch", len(labels)]
    last = logits.shape[-1] if logits.shape else 0
    if len(logits.shape) != len(wanted) or (isinstance(last, int) and last != len(labels)):
        raise InputError(
            f"The graph's output {logits.name!r} has shape {list(logits.shape)}; {len(labels)} labels need "
            f"[{', '.join(map(str, wanted))}].",
            "Give the labels in the order of the logits, or export the classifier's logits.",
        )


def _tokenizer(given: Path | None) -> Path:
    if given is None:
        raise InputError("The graph takes tokens, and no tokenizer is given.", "Name its tokenizer.json: --tokenizer.")
    path = given / "tokenizer.json" if given.is_dir() else given
    if not path.is_file():
        raise InputError(f"There is no tokenizer {path}.", "Give a tokenizer.json, or the folder that holds one.")
    return path


def _length(tokenizer: Path, asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise InputError(f"A length limit of {asked} tokens leaves nothing of a text.", "Give 1 or more.")
    if asked is not None:
        return asked
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
