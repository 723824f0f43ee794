"""Reads what a Hugging Face checkpoint folder says of itself, without torch.

Owns the question whether a folder can be quantized: weights, task, labels, length limit, image preprocessing, licence.
Loads no weight and no tokenizer; `export.py` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.bundle import KINDS, ImagePreprocessing, Task
from edgewise.edge.pooling import Pooling, max_length_of, read_pooling
from edgewise.errors import CheckpointError
from edgewise.files import sha256_bytes, sha256_file, sha256_tree
from edgewise.quantize.images import read_preprocessing
from edgewise.quantize.licence import read_licence

TASKS: Mapping[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
    # Distilled models (DeiT, LeViT): the mean of two heads.
    "ForImageClassificationWithTeacher": "image-classification",
    "ForTokenClassification": "token-classification",
    "ForCausalLM": "text-generation",
    # A bare encoder.
    "Model": "feature-extraction",
}
"""Supported tasks by the ending of the architecture's name; a folder of sentence-transformers is an encoder."""

# They end in "Model" and give something else than one vector a token.
_NO_ENCODERS = ("LMHeadModel", "DoubleHeadsModel", "EncoderDecoderModel", "CLIPModel")

DEFAULT_MAX_LENGTH = 512
"""Tokens, where neither tokenizer nor model names a limit."""

# These count positions from pad_token_id + 1, so their table is that much longer than the longest text.
_OFFSET_POSITIONS = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "roberta-prelayernorm",
        "camembert",
        "mpnet",
        "longformer",
        "ibert",
        "luke",
    }
)
_POSITION_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length")
# transformers writes 1e30 for "no limit".
_NO_LIMIT = 1_000_000
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_FOREIGN_WEIGHTS = ("tf_model.h5", "flax_model.msgpack", "model.onnx")
_NAME_LENGTH = 100
_ORIGIN = "Give a folder that transformers' save_pretrained wrote."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be quantized.

    Attributes:
        path: Its folder, or the ONNX file.
        architecture: Name of its class in transformers.
        model_type: Its family, such as "bert".
        task: What it does.
        labels: Labels in the order of the logits; none of an encoder or a language model.
        weights: Its weight files; an ONNX file is its own first one.
        size_bytes: Bytes of the weight files.
        max_length: Tokens a text is cut to; None for an image model.
        image: Image preprocessing; None for a text model.
        licences: SPDX identifier or text of its licence, where it names one.
        pooling: Of an encoder, how the vectors of a text's tokens become one; None for other tasks.
        tokenizer: The `tokenizer.json` that goes with an ONNX file; that of a folder comes with its export.
    """

    path: Path
    architecture: str
    model_type: str
    task: Task
    labels: tuple[str, ...]
    weights: tuple[Path, ...]
    size_bytes: int
    max_length: int | None
    image: ImagePreprocessing | None
    licences: tuple[str, ...]
    pooling: Pooling | None = None
    tokenizer: Path | None = None

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX file, which needs no export."""
        return self.model_type == "onnx"

    @property
    def name(self) -> str:
        """A name for URLs: that of its folder, other characters than letters, digits, dot and hyphen replaced."""
        path = self.path.resolve()
        return safe_name(path.stem if self.is_onnx else path.name)

    def digest(self) -> str:
        """Hex SHA-256 over the names and contents of all its files, and over what was given beside an ONNX file."""
        if not self.is_onnx:
            return sha256_tree(self.path)
        files = (*self.weights, *([self.tokenizer] if self.tokenizer is not None else []))
        given = (*(sha256_file(file) for file in files), repr(self.labels), repr(self.image), repr(self.pooling))
        return sha256_bytes("\n".join(given).encode())


def inspect_checkpoint(path: Path, *, task: str = "auto", max_length: int | None = None) -> Checkpoint:
    """Look at a checkpoint folder.

    Args:
        path: The folder.
        task: "auto", or the task that the caller expects.
        max_length: Tokens a text is cut to; None takes the smallest limit of tokenizer, model and sentence encoder.

    Raises:
        CheckpointError: The folder is incomplete, or its model is none that can be quantized.
    """
    config = _read_config(path)
    architecture = _architecture(path, config)
    found = _task(path, architecture, task, config)
    kind = KINDS[found]
    if kind == "classifier":
        _check_head(path, config)
    weights = _weights(path)
    text = found != "image-classification"
    if text:
        _check_tokenizer(path)
    elif max_length is not None:
        raise CheckpointError("A length limit was given for an image model.", "Leave out --max-length.")
    return Checkpoint(
        path=path,
        architecture=architecture,
        model_type=str(config.get("model_type", "")),
        task=found,
        labels=_labels(path, config) if kind in ("classifier", "tagger") else (),
        weights=weights,
        size_bytes=sum(file.stat().st_size for file in weights),
        max_length=_max_length(path, config, max_length) if text else None,
        image=None if text else read_preprocessing(path, config),
        licences=read_licence(path),
        pooling=read_pooling(path) if kind == "embedder" else None,
    )


def safe_name(text: str) -> str:
    """`text` as a bundle may be called."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:_NAME_LENGTH]
    return name if name[:1].isalnum() else f"model{name}"


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint at {path}.", "Give the path of a local folder.")
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is a file, a checkpoint is a folder.", f"{_ORIGIN} An ONNX file's name ends in .onnx."
        )
    return read_json(path / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint that holds an object.

    Raises:
        CheckpointError: It is missing, or not a JSON object.
    """
    if not path.is_file():
        raise CheckpointError(f"The checkpoint {path.parent} has no {path.name}.", _ORIGIN)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} cannot be read: {e}.", _ORIGIN) from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object.", _ORIGIN)
    return value


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(f"{path / 'config.json'} names no architecture.", f"{_ORIGIN} {_supported()}")
    return names[0]


def _task(path: Path, architecture: str, expected: str, config: Mapping[str, Any]) -> Task:
    if expected != "auto" and expected not in TASKS.values():
        raise CheckpointError(f"The task {expected!r} is not supported.", _supported())
    found = next((task for ending, task in TASKS.items() if architecture.endswith(ending)), None)
    if architecture.endswith(_NO_ENCODERS) or (found == "feature-extraction" and config.get("is_encoder_decoder")):
        found = None
    # An encoder may have been saved with the head that it was trained with.
    if (path / "modules.json").is_file() and (found is None or KINDS[found] not in ("classifier", "tagger")):
        found = "feature-extraction"
    if found is None:
        raise CheckpointError(f"The architecture {architecture} of {path} is not supported.", _supported())
    if expected not in ("auto", found):
        raise CheckpointError(f"{architecture} does {found}, not {expected}.", "Leave out --task, or name its own.")
    return found


def _supported() -> str:
    return "Supported: " + ", ".join(f"{task} (*{ending})" for ending, task in TASKS.items()) + "."


def _check_head(path: Path, config: Mapping[str, Any]) -> None:
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise CheckpointError(
            f"{path} is trained for {str(problem).replace('_', ' ')}; an answer is exactly one label here.",
            "Give a checkpoint for single-label classification.",
        )


def _labels(path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    # save_pretrained leaves out id2label where it is the default of two labels.
    names = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(names, dict) or not all(str(index) in {str(key) for key in names} for index in range(len(names))):
        raise CheckpointError(
            f"The field id2label of {path / 'config.json'} is not a list of labels by index.", _ORIGIN
        )
    by_index = {int(key): str(value) for key, value in names.items()}
    labels = tuple(by_index[index] for index in range(len(by_index)))
    if len(labels) < 2:
        raise CheckpointError(
            f"{path} has {len(labels)} label: that is a regression.", "Give a classifier with two labels or more."
        )
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise CheckpointError(f"The label {twice!r} occurs twice in {path / 'config.json'}.", "Give each its own name.")
    return labels


def _weights(path: Path) -> tuple[Path, ...]:
    for name in _WEIGHT_FILES:
        if (path / name).is_file():
            return (_checked(path / name),)
        if (path / f"{name}.index.json").is_file():
            return _shards(path, f"{name}.index.json")
    foreign = [name for name in _FOREIGN_WEIGHTS if (path / name).is_file()]
    raise CheckpointError(
        f"The checkpoint {path} has no weights ({' or '.join(_WEIGHT_FILES)})"
        + (f"; {foreign[0]} cannot be used." if foreign else "."),
        "Download all of it, or save it with save_pretrained.",
    )


def _shards(path: Path, index: str) -> tuple[Path, ...]:
    names = read_json(path / index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{path / index} names no weight file.", _ORIGIN)
    files = tuple(path / str(name) for name in sorted(set(map(str, names.values()))))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"The checkpoint {path} lacks {missing[0]} of {len(files)} weight files.", "Download it.")
    return tuple(_checked(file) for file in files)


def _checked(file: Path) -> Path:
    """The file, once a safetensors header and its length agree: an interrupted download is found here."""
    if file.suffix != ".safetensors":
        return file
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        header = stream.read(header_size) if header_size <= size else b""
    try:
        entries = json.loads(header)
        end = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        raise CheckpointError(f"{file} is not a safetensors file, or is cut short.", "Download it again.") from e
    if 8 + header_size + end != size:
        raise CheckpointError(f"{file} has {size} bytes instead of {8 + header_size + end}.", "Download it again.")
    return file


def _check_tokenizer(path: Path) -> None:
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(
            f"The checkpoint {path} has no tokenizer ({', '.join(_TOKENIZER_FILES)}).",
            "Save the tokenizer into the same folder: tokenizer.save_pretrained(folder).",
        )


def _max_length(path: Path, config: Mapping[str, Any], asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise CheckpointError(f"A length limit of {asked} tokens leaves nothing of a text.", "Give 1 or more.")
    found = (_tokenizer_limit(path), _position_limit(config), _limit(max_length_of(path)))
    limits = [limit for limit in found if limit is not None]
    own = min(limits, default=DEFAULT_MAX_LENGTH)
    return own if asked is None else min(own, asked)


def _tokenizer_limit(path: Path) -> int | None:
    if not (path / "tokenizer_config.json").is_file():
        return None
    return _limit(read_json(path / "tokenizer_config.json").get("model_max_length"))


def _position_limit(config: Mapping[str, Any]) -> int | None:
    limit = next((_limit(config[name]) for name in _POSITION_FIELDS if name in config), None)
    if limit is None or config.get("model_type") not in _OFFSET_POSITIONS:
        return limit
    padding = config.get("pad_token_id")
    return limit - (padding if isinstance(padding, int) else 1) - 1


def _limit(value: object) -> int | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _NO_LIMIT:
        return int(value)
    return None
