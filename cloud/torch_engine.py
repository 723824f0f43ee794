"""A checkpoint through torch: the reference that certificates speak of.

Owns loading a checkpoint and computing its logits. The decoding is fixed, because a certificate names one version *and*
one decoding: float32 weights whatever the file holds, evaluation mode, texts cut at the tokenizer's length and padded
on the right under an attention mask, the label of the largest logit. What else is in a batch moves a logit by float
noise only (about 1e-6), so an item's label does not depend on its neighbours unless two labels tie within that noise.

Never reaches a network, never prints, never runs code that came with a checkpoint.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.cloud.checkpoint import TEXT_TASK, Checkpoint
from edgewise.cloud.grouping import MAX_GROUP
from edgewise.cloud.readers import ImageReader, Reader, TextReader
from edgewise.contracts import FloatArray, Input, Prediction, ServiceInfo
from edgewise.errors import CheckpointError, InputError, MissingExtraError

_NO_LIMIT = 1_000_000
"""Tokenizers without a length of their own carry a number far above this one."""


class TorchEngine:
    """A Hugging Face classifier, in this process. One call at a time: torch spreads it over its threads.

    Args:
        model: A transformers model in evaluation mode.
        reader: Reads its items.
        info: What it answers to.
        max_group: Most items of one forward pass; 1 where the model knows no padding.
    """

    def __init__(self, model: Any, reader: Reader, info: ServiceInfo, *, max_group: int = MAX_GROUP) -> None:
        self._model = model
        self._reader = reader
        self._info = info
        self._max_group = max_group

    @classmethod
    def load(cls, checkpoint: Path, *, threads: int | None = None, name: str | None = None) -> TorchEngine:
        """Load a checkpoint folder and answer one item with it, so that what cannot serve fails here.

        Args:
            checkpoint: A folder written by `save_pretrained`.
            threads: Threads of torch, in the whole process; None leaves them as they are.
            name: Model name; None takes the folder's.

        Raises:
            CheckpointError: The folder is incomplete, broken, or of an unsupported architecture.
            MissingExtraError: torch or transformers is not installed.
        """
        found = Checkpoint.open(checkpoint)
        _require_torch()
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        with _quiet_loading():
            model = _load_model(found)
            reader = _text_reader(found, model) if found.task == TEXT_TASK else _image_reader(found, model)
        info = ServiceInfo(
            name=name or found.path.name,
            version=found.version,
            task=found.task,
            labels=found.labels,
            input=reader.kind,
            role="cloud",
        )
        engine = cls(model, reader, info, max_group=_max_group(model, reader))
        engine._warm_up(found)
        return engine

    @property
    def info(self) -> ServiceInfo:
        """Name, version, task and labels."""
        return self._info

    @property
    def slots(self) -> int:
        """One call at a time, which torch spreads over its threads."""
        return 1

    def predict(self, inputs: Sequence[Input]) -> list[Prediction]:
        """Predict items, those of like length together.

        Returns:
            One prediction an item, in order; logits of shape (labels,), float32.

        Raises:
            InputError: An item of another kind, or a broken one; then nothing is computed.
        """
        read = [self._reader.read(item) for item in inputs]
        predictions: dict[int, Prediction] = {}
        for group in self._reader.groups(read, self._max_group):
            logits = self._logits([read[position] for position in group])
            predictions.update(zip(group, map(self._prediction, logits), strict=True))
        return [predictions[position] for position in range(len(read))]

    def _logits(self, read: list[Any]) -> FloatArray:
        import torch

        with torch.inference_mode():
            logits = self._model(**self._reader.stack(read)).logits
        return np.asarray(logits.numpy(), dtype=np.float32)

    def _prediction(self, logits: FloatArray) -> Prediction:
        return Prediction(output=self._info.labels[int(np.argmax(logits))], logits=logits)

    def _warm_up(self, found: Checkpoint) -> None:
        item: Input = "warm up" if found.task == TEXT_TASK else np.zeros((64, 64), dtype=np.uint8)
        with _refusing(found.path, "does not compute"):
            logits = self.predict([item])[0].logits
            if logits is None or logits.shape != (len(found.labels),):
                raise ValueError(f"its logits are not one for each of {len(found.labels)} labels")


def _require_torch() -> None:
    if any(find_spec(name) is None for name in ("torch", "transformers")):
        raise MissingExtraError("Serving a checkpoint", "cloud")


def _load_model(found: Checkpoint) -> Any:
    import torch
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    family = AutoModelForSequenceClassification if found.task == TEXT_TASK else AutoModelForImageClassification
    with _refusing(found.path, "cannot be loaded"):
        model, report = family.from_pretrained(
            found.path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=found.safetensors,
            dtype=torch.float32,
            output_loading_info=True,
        )
    if report["missing_keys"]:
        absent = sorted(report["missing_keys"])
        raise CheckpointError(
            f"The weights in {found.path} lack {', '.join(absent[:3])}{' and more' if len(absent) > 3 else ''}.",
            "Fine-tune its head first; without these weights it would answer at random.",
        )
    return model.eval()


def _text_reader(found: Checkpoint, model: Any) -> TextReader:
    from transformers import AutoTokenizer

    with _refusing(found.path, "has no tokenizer that can be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(found.path, local_files_only=True, trust_remote_code=False)
    # Positions count from the left: padding there would move every token of a shorter text.
    tokenizer.padding_side = "right"
    limits = [limit for limit in (tokenizer.model_max_length, _positions(model)) if limit and limit < _NO_LIMIT]
    inputs = frozenset(inspect.signature(model.forward).parameters)
    return TextReader(tokenizer, int(min(limits)) if limits else None, inputs)


def _positions(model: Any) -> int | None:
    """Tokens the position embeddings reach, or None for a model without a limit."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "num_embeddings"):
            # RoBERTa and its kin count positions from behind the padding index.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - unused
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _image_reader(found: Checkpoint, model: Any) -> ImageReader:
    from transformers import AutoImageProcessor

    with _refusing(found.path, "has no image processor that can be loaded"):
        processor = AutoImageProcessor.from_pretrained(
            found.path, local_files_only=True, trust_remote_code=False, use_fast=False
        )
    channels = int(getattr(model.config, "num_channels", 3))
    return ImageReader(processor, channels, _image_size(getattr(model.config, "image_size", None)))


def _image_size(named: Any) -> tuple[int, int] | None:
    """Height and width, of a config that names a square's side or both."""
    sides = [named, named] if isinstance(named, int) else named
    if isinstance(sides, list | tuple) and len(sides) == 2 and all(isinstance(side, int) for side in sides):
        return sides[0], sides[1]
    return None


def _max_group(model: Any, reader: Reader) -> int:
    knows_padding = not isinstance(reader, TextReader) or (
        reader.tokenizer.pad_token_id is not None and model.config.pad_token_id is not None
    )
    return MAX_GROUP if knows_padding else 1


@contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    """Turn whatever transformers raises over a bad folder into a CheckpointError; it promises no set of exceptions."""
    try:
        yield
    except InputError as error:
        raise CheckpointError(f"{path} {what}: {error.problem}", "Check its image processor or tokenizer.") from error
    except Exception as error:  # transformers, safetensors and tokenizers each raise their own
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} {what}: {first}", "Write it again with `save_pretrained`, model and tokenizer or image processor."
        ) from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep transformers off the terminal: its progress bars while loading, its warnings from here on.

    The warnings stay off because the process that serves owns its terminal, and switching them for every call would
    race between threads.
    """
    from transformers.utils import logging

    restore: Callable[[], None] = (
        logging.enable_progress_bar if logging.is_progress_bar_enabled() else logging.disable_progress_bar
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        restore()
