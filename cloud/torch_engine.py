"""A checkpoint through torch and transformers: loading it, and its forward pass.

Owns what only transformers can do: the model, and the tokenizer or image processor that came with it. What an answer is
stands in `checkpoint_engine`.

Never reaches a network, never prints, never runs code that came with a checkpoint.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.cloud.checkpoint import EMBEDDING_TASK, IMAGE_TASK, TEXT_TASK, Checkpoint
from edgewise.cloud.checkpoint_engine import CheckpointEngine, sample
from edgewise.cloud.grouping import MAX_GROUP
from edgewise.cloud.readers import ImageReader, Reader, TextReader
from edgewise.contracts import FloatArray, Prediction
from edgewise.edge.pooling import max_length_of
from edgewise.errors import CheckpointError, InputError, MissingExtraError

NO_LIMIT = 1_000_000
"""Tokenizers without a length of their own carry a number far above this one."""

_FAMILY = {
    TEXT_TASK: "AutoModelForSequenceClassification",
    IMAGE_TASK: "AutoModelForImageClassification",
    EMBEDDING_TASK: "AutoModel",
}

# A head for pre-training that some encoders carry: no answer depends on it, and many a checkpoint lacks it.
_UNUSED_HEAD = "pooler."


@dataclass(frozen=True)
class TorchModel:
    """A checkpoint, loaded.

    Attributes:
        found: The checkpoint.
        model: The transformers model, float32, in evaluation mode.
        reader: Reads its items.
        max_group: Most items of one forward pass; 1 where the model knows no padding.
    """

    found: Checkpoint
    model: Any
    reader: Reader
    max_group: int

    @classmethod
    def load(cls, found: Checkpoint) -> TorchModel:
        """Load a checkpoint and answer one item with it, so that what cannot serve fails here.

        Raises:
            CheckpointError: It is incomplete, broken, or of an unsupported architecture.
            MissingExtraError: torch or transformers is not installed.
        """
        if found.task not in _FAMILY:
            raise CheckpointError(
                f"{found.path} is for {found.task}, and classifies nothing.",
                "Serve it with `edgewise cloud serve` and the engine `auto` or `torch`.",
            )
        require_torch()
        with quiet_loading():
            model = _load_model(found)
            reader = _image_reader(found, model) if found.task == IMAGE_TASK else _text_reader(found, model)
        loaded = cls(found, model, reader, _max_group(model, reader))
        loaded._warm_up()
        return loaded

    @property
    def output(self) -> str:
        """Name of the output that holds its answers."""
        return "last_hidden_state" if self.found.task == EMBEDDING_TASK else "logits"

    @property
    def inputs(self) -> list[str]:
        """Names of the arrays it is given, in the order of its tokenizer."""
        return list(self.reader.stack(self.reader.read([sample(self.found)])))

    def forward(self, feeds: Mapping[str, NDArray[Any]]) -> FloatArray:
        """Compute a batch; see `Forward`. One call at a time: torch spreads it over its threads."""
        import torch

        with torch.inference_mode():
            answers = self.model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        return np.asarray(getattr(answers, self.output).numpy())

    def engine(self, *, threads: int | None = None, name: str | None = None) -> CheckpointEngine:
        """An engine over it.

        Args:
            threads: Threads of torch, in the whole process; None leaves them as they are.
            name: Model name; None takes the folder's.
        """
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        return CheckpointEngine(self.forward, self.reader, self.found, name=name, max_group=self.max_group)

    def _warm_up(self) -> None:
        with refusing(self.found.path, "does not compute"):
            (prediction,) = self.engine().predict([sample(self.found)])
            _check_answer(prediction, self.found)


def _check_answer(prediction: Prediction, found: Checkpoint) -> None:
    logits = prediction.logits
    if found.labels and (logits is None or logits.shape != (len(found.labels),)):
        raise ValueError(f"its logits are not one for each of {len(found.labels)} labels")
    vector = prediction.embedding
    if not found.labels and (vector is None or vector.ndim != 1 or not vector.size):
        raise ValueError("it gives no vector a token")


def require_torch() -> None:
    """Say what is missing, before anything is loaded.

    Raises:
        MissingExtraError: torch or transformers is not installed.
    """
    if any(find_spec(name) is None for name in ("torch", "transformers")):
        raise MissingExtraError("Serving a checkpoint", "cloud")


def _load_model(found: Checkpoint) -> Any:
    import torch
    import transformers

    with refusing(found.path, "cannot be loaded"):
        model, report = getattr(transformers, _FAMILY[found.task]).from_pretrained(
            found.path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=found.safetensors,
            dtype=torch.float32,
            output_loading_info=True,
        )
    absent = sorted(report["missing_keys"])
    if found.task == EMBEDDING_TASK:
        absent = [name for name in absent if not name.startswith(_UNUSED_HEAD)]
    if absent:
        raise CheckpointError(
            f"The weights in {found.path} lack {', '.join(absent[:3])}{' and more' if len(absent) > 3 else ''}.",
            "Fine-tune its head first; without these weights it would answer at random.",
        )
    return model.eval()


def _text_reader(found: Checkpoint, model: Any) -> TextReader:
    from transformers import AutoTokenizer

    with refusing(found.path, "has no tokenizer that can be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(found.path, local_files_only=True, trust_remote_code=False)
    # Positions count from the left: padding there would move every token of a shorter text.
    tokenizer.padding_side = "right"
    found_limits = [tokenizer.model_max_length, positions_of(model)]
    if found.pooling is not None:
        found_limits.append(max_length_of(found.path))
    limits = [limit for limit in found_limits if isinstance(limit, int) and 0 < limit < NO_LIMIT]
    inputs = frozenset(inspect.signature(model.forward).parameters)
    return TextReader(tokenizer, min(limits, default=None), inputs)


def positions_of(model: Any) -> int | None:
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

    with refusing(found.path, "has no image processor that can be loaded"):
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
def refusing(path: Path, what: str) -> Iterator[None]:
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
def quiet_loading() -> Iterator[None]:
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
