"""What a checkpoint answers itself, in torch, through its own preprocessing: what an exported graph is compared with.

Owns loading and asking it, batch of one. Runs in a worker process; imports torch and transformers when it is asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.bundle import Task
from edgewise.contracts import FloatArray, Input
from edgewise.edge.pooling import Pooling, pooled
from edgewise.errors import CheckpointError
from edgewise.quantize.items import Item, inputs_of

_CLASSES: Mapping[str, str] = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "token-classification": "AutoModelForTokenClassification",
    "feature-extraction": "AutoModel",
}
# A head for pre-training that some encoders carry: no answer depends on it, and many a checkpoint lacks it.
_UNUSED_HEAD = "pooler."


class Reference:
    """A checkpoint that answers. Build it with `Reference.load`.

    Attributes:
        model: The model, float32, in evaluation mode.
        output: Name of the output that holds its answers: "logits" or "last_hidden_state".
        reads_text: Whether its items are texts.
    """

    def __init__(
        self, model: Any, folder: str, task: Task, max_length: int, pooling: Pooling | None, labels: Sequence[str]
    ) -> None:
        self.model = model
        self.output = "last_hidden_state" if task == "feature-extraction" else "logits"
        self.reads_text = task != "image-classification"
        self._folder = folder
        self._task = task
        self._max_length = max_length
        self._pooling = pooling
        self._labels = tuple(labels)
        self._tokenizer: Any = _tokenizer(folder) if self.reads_text else None
        self._processor: Any = None if self.reads_text else _processor(folder)

    @classmethod
    def load(
        cls, folder: str, task: Task, max_length: int, pooling: Pooling | None = None, labels: Sequence[str] = ()
    ) -> Reference:
        """Load a checkpoint with all its weights.

        Args:
            folder: Its folder.
            task: What it does; any but "text-generation".
            max_length: Tokens a text is cut to.
            pooling: Of an encoder, how the vectors of a text's tokens become one.
            labels: Of a tagger, its labels.

        Raises:
            CheckpointError: It cannot be loaded, or weights are missing.
        """
        import torch
        import transformers

        try:
            model, report = getattr(transformers, _CLASSES[task]).from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except Exception as e:  # transformers, safetensors and pickle each raise their own
            raise CheckpointError(f"The checkpoint {folder} cannot be loaded: {_line(e)}.", "Check it.") from e
        missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
        if task == "feature-extraction":
            missing = [name for name in missing if not name.startswith(_UNUSED_HEAD)]
        if missing:
            raise CheckpointError(
                f"The checkpoint {folder} lacks {len(missing)} weights, such as {missing[0]!r}.",
                "Fine-tune it for the task first, or download all of it.",
            )
        return cls(model.eval(), folder, task, max_length, pooling, labels)

    def save_tokenizer(self, path: Path) -> str:
        """Write the tokenizer as transformers sets it up, which may differ from a `tokenizer.json` in the folder."""
        from tokenizers import Tokenizer  # type: ignore[import-untyped]  # ships stubs without a py.typed

        tokenizer = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
        path.write_text(tokenizer.to_str(), encoding="utf-8")
        return str(path)

    def text_inputs(self) -> list[str]:
        """What the tokenizer gives and the model takes: some tokenizers give token types to models without them."""
        accepted = inspect.signature(self.model.forward).parameters
        return [name for name in self._tokenizer.model_input_names if name in accepted]

    def encode(self, item: Item) -> Mapping[str, Any]:
        """The model's inputs for one item, batch of one, through its own tokenizer or image processor."""
        (value,) = inputs_of([item])
        return self._encode_text(value) if self.reads_text else self._encode_image(value)

    def answer(self, item: Item) -> FloatArray:
        """The answer to one item, as a row of numbers.

        Returns:
            Logits, shape (classes,); an embedding, shape (width,); or a tagger's logits of each word's first token, one
            word after the other, shape (words * labels,).
        """
        import torch

        with torch.inference_mode():
            row = getattr(self.model(**self.encode(item)), self.output)[0].numpy()
        if self._pooling is not None:
            return pooled(row, self._pooling)
        return self._by_word(item, row) if self._task == "token-classification" else row

    def _by_word(self, item: Item, tokens: FloatArray) -> FloatArray:
        from edgewise.edge.entities import Words
        from edgewise.edge.reading import word_logits

        (text,) = inputs_of([item])
        spans = self._encode_text(text, offsets=True)["offset_mapping"][0].tolist()
        return word_logits(Words.of(str(text)), spans, tokens, self._labels).ravel()

    def _encode_text(self, text: Input, *, offsets: bool = False) -> Mapping[str, Any]:
        encoded = self._tokenizer(
            text, truncation=True, max_length=self._max_length, return_tensors="pt", return_offsets_mapping=offsets
        )
        return encoded if offsets else {name: encoded[name] for name in self.text_inputs()}

    def _encode_image(self, data: Input) -> Mapping[str, Any]:
        from edgewise.edge import decode

        mode = "L" if getattr(self.model.config, "num_channels", 3) == 1 else "RGB"
        pixels = np.asarray(decode(bytes(data)).convert(mode))  # type: ignore[arg-type]  # image items are bytes
        planes = pixels[:, :, np.newaxis] if mode == "L" else pixels
        encoded = self._processor(planes, return_tensors="pt", input_data_format="channels_last")
        return {"pixel_values": encoded.pixel_values}


def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
    except Exception as e:  # a slow tokenizer that needs another package raises nearly anything
        raise CheckpointError(
            f"The tokenizer of {folder} cannot be loaded: {_line(e)}.", "Save it as a fast tokenizer."
        ) from e
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"The tokenizer of {folder} ({type(tokenizer).__name__}) has no fast version.",
            "A bundle needs a tokenizer.json; convert it first.",
        )
    return tokenizer


def _processor(folder: str) -> Any:
    from transformers import AutoImageProcessor

    # The slow processor resizes with Pillow, as the edge does; the fast one needs torchvision and differs by a little.
    return AutoImageProcessor.from_pretrained(folder, use_fast=False, local_files_only=True)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
