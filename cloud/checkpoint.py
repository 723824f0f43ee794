"""What is in a Hugging Face checkpoint folder: its task, its labels, its files and the digest that names them.

Owns the reading of the folder and every refusal that needs no model: a folder without weights, an unsupported
architecture, labels that do not add up. Loads no model, imports no torch and reaches no network.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgewise.edge.pooling import Pooling, read_pooling
from edgewise.errors import CheckpointError
from edgewise.files import sha256_file

TEXT_TASK = "text-classification"
IMAGE_TASK = "image-classification"
EMBEDDING_TASK = "feature-extraction"
GENERATION_TASK = "text-generation"

_TASK_OF_HEAD = {
    "ForSequenceClassification": TEXT_TASK,
    "ForImageClassification": IMAGE_TASK,
    # Distilled models (DeiT, LeViT): the mean of two heads.
    "ForImageClassificationWithTeacher": IMAGE_TASK,
    "ForCausalLM": GENERATION_TASK,
    # A bare encoder.
    "Model": EMBEDDING_TASK,
}

# They end in "Model" and give something else than one vector a token.
_NO_ENCODERS = ("LMHeadModel", "DoubleHeadsModel", "EncoderDecoderModel", "CLIPModel")

# How a language model is decoded; another rule gives another version.
_DECODING = "float32, chosen from the model's own distribution without penalties, 1"

# Transformers' own order of preference: the first of these that exists is what it loads.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# Files that cannot change an answer. Everything else counts: a needless new version costs a certificate, an unnoticed
# one its truth.
_NOT_CONTENT_PREFIXES = (".", "readme", "license", "notice", "optimizer", "scheduler", "rng_state", "events.out")
_NOT_CONTENT_NAMES = frozenset(
    {"training_args.bin", "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"}
)
_NOT_CONTENT_SUFFIXES = (".md", ".h5", ".msgpack", ".ot", ".onnx", ".png", ".log", ".tmp")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, looked at but not loaded.

    Attributes:
        path: The folder, absolute.
        task: "text-classification", "image-classification", "feature-extraction" or "text-generation".
        labels: In the order of the logits; empty for an encoder and for a language model.
        safetensors: Whether its weights are in safetensors; otherwise they are a torch file of tensors only.
        version: "sha256:" and the digest of every file that can change an answer.
        pooling: Of an encoder, how the vectors of a text's tokens become one.
    """

    path: Path
    task: str
    labels: tuple[str, ...]
    safetensors: bool
    version: str
    pooling: Pooling | None = None

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Look at a checkpoint folder.

        Raises:
            CheckpointError: It is no checkpoint, has no weights, or is neither a single-label classifier nor an
                encoder whose pooling is supported, nor a language model.
        """
        path = folder.resolve()
        config = _read_config(path)
        task = _task(path, config)
        weights = _weights(path)
        digest = _digest(path, weights)
        safetensors = "safetensors" in weights.name
        if task == EMBEDDING_TASK:
            pooling = read_pooling(path)
            # What pooling it is stands in a folder of its own.
            version = hashlib.sha256(f"{digest}\0{pooling.mode}\0{pooling.normalize}".encode()).hexdigest()
            return cls(path, task, (), safetensors, f"sha256:{version}", pooling)
        if task == GENERATION_TASK:
            version = hashlib.sha256(f"{digest}\0{_DECODING}".encode()).hexdigest()
            return cls(path, task, (), safetensors, f"sha256:{version}")
        _refuse_other_problems(path, config)
        return cls(path, task, _labels(path, config), safetensors, f"sha256:{digest}")


def writes_text(folder: Path) -> bool:
    """Whether a folder holds the checkpoint of a language model; False where there is none that can be read."""
    try:
        return _task(folder, _read_config(folder)) == GENERATION_TASK
    except CheckpointError:
        return False


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"{path} is no checkpoint: it has no config.json.",
            "Give a folder written by `save_pretrained`, with its model and its tokenizer or image processor.",
        )
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not a JSON object: {error}.", "Write the checkpoint again.") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.", "Check its permissions.") from error


def _task(path: Path, config: dict[str, Any]) -> str:
    named = [name for name in config.get("architectures") or [] if isinstance(name, str)]
    task = next((task for head, task in _TASK_OF_HEAD.items() for name in named if name.endswith(head)), None)
    if task == EMBEDDING_TASK and (config.get("is_encoder_decoder") or any(n.endswith(_NO_ENCODERS) for n in named)):
        task = None
    # An encoder may have been saved with the head that it was trained with.
    if task is None and (path / "modules.json").is_file():
        task = EMBEDDING_TASK
    if task is None:
        *heads, encoder = (f"*{head}" for head in _TASK_OF_HEAD)
        raise CheckpointError(
            f"{path} has the architecture {', '.join(named) or 'none'}, which is not supported.",
            f"Give one of these: {', '.join(heads)}, or an encoder's {encoder}.",
        )
    return task


def _refuse_other_problems(path: Path, config: dict[str, Any]) -> None:
    problem = config.get("problem_type") or "single_label_classification"
    if problem != "single_label_classification":
        raise CheckpointError(
            f"{path} has the problem type {problem}, which is not supported.",
            "Supported is single_label_classification: one label an item.",
        )


def _weights(path: Path) -> Path:
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path} holds no weights: none of {', '.join(_WEIGHTS)} is there.",
        "Write it again with `save_pretrained`; weights of TensorFlow or Flax must be converted first.",
    )


def _labels(path: Path, config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("id2label")
    if not isinstance(named, dict):
        # Transformers leaves the names out where they are its own two defaults.
        return ("LABEL_0", "LABEL_1")
    try:
        ids = sorted((int(key), str(label)) for key, label in named.items())
    except ValueError as error:
        raise CheckpointError(
            f"{path}/config.json numbers its labels badly in id2label: {error}.", "The keys must be 0, 1, 2, …"
        ) from error
    labels = tuple(label for _, label in ids)
    if [number for number, _ in ids] != list(range(len(ids))) or len(set(labels)) != len(labels):
        raise CheckpointError(
            f"{path}/config.json must number its labels 0, 1, 2, … and name each once; id2label is {named}.",
            "Correct id2label and label2id in config.json.",
        )
    if len(labels) < 2:
        raise CheckpointError(
            f"{path} has {len(labels)} label; a regression model is not supported.",
            "Give a classifier with two labels or more.",
        )
    return labels


def _digest(path: Path, weights: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(item for item in path.iterdir() if item.is_file() and _is_content(item.name, weights)):
        digest.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _is_content(name: str, weights: Path) -> bool:
    lower = name.lower()
    if lower.startswith(_NOT_CONTENT_PREFIXES) or lower in _NOT_CONTENT_NAMES or lower.endswith(_NOT_CONTENT_SUFFIXES):
        return False
    # Weights beside the ones that are loaded are never looked at.
    unused = "pytorch_model" if "safetensors" in weights.name else "model.safetensors"
    return not lower.startswith(unused)
