"""What a checkpoint must be, beside a causal language model, to be built. Loads no weight."""

from __future__ import annotations

from pathlib import Path

from edgewise.errors import CheckpointError
from edgewise.quantize.checkpoint import Checkpoint, inspect_checkpoint, read_json


def inspect_causal(path: Path, *, max_length: int | None = None) -> Checkpoint:
    """Look at the folder of a causal language model.

    Args:
        path: The folder.
        max_length: Tokens of prompt and answer together; None takes the smaller limit of tokenizer and model.

    Raises:
        CheckpointError: The folder is incomplete, holds another kind of model, or is refused by `require_plain`.
    """
    checkpoint = inspect_checkpoint(path, task="text-generation", max_length=max_length)
    require_plain(path)
    return checkpoint


def require_plain(path: Path) -> None:
    """Refuse what the builder would read otherwise than it is meant.

    Raises:
        CheckpointError: Its weights are quantized already, or it needs code of its own.
    """
    config = read_json(path / "config.json")
    if config.get("quantization_config"):
        raise CheckpointError(f"{path} is quantized already.", "Give the checkpoint that it was quantized from.")
    if config.get("auto_map"):
        raise CheckpointError(f"{path} needs code of its own, which is not run.", "Give one that transformers knows.")
