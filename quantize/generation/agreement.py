"""Proves that a built float32 graph computes what the checkpoint does, on real texts.

Owns the comparison; its limit is that of every other export. `agreement_here` runs in a worker process: it loads torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.edge import EdgeGenerator
from edgewise.errors import CheckpointError
from edgewise.quantize.export import TOLERANCE

TOKENS = 64
"""Tokens of a text that are compared."""


class AgreementJob(msgspec.Struct, frozen=True):
    """Compare a checkpoint with a bundle of its float32 graph.

    Attributes:
        checkpoint: Its folder.
        bundle: The bundle's folder.
        texts: Real texts, one or more of them with two tokens at least.
    """

    checkpoint: str
    bundle: str
    texts: tuple[str, ...]


class Agreement(msgspec.Struct, frozen=True):
    """How well they agree.

    Attributes:
        difference: The largest difference of a logit.
        allowed: The largest that is allowed.
        texts: Texts that were compared.
    """

    difference: float
    allowed: float
    texts: int


def agreement_here(job: AgreementJob) -> Agreement:
    """Compare in this process, every position of every text, teacher-forced.

    Raises:
        CheckpointError: The checkpoint cannot be loaded, answers with NaN, or the graph differs from it.
    """
    with EdgeGenerator.load(job.bundle) as generator:
        ids = [generator.tokenize(text)[:TOKENS] for text in job.texts]
        found = [generator.logits(tokens) for tokens in ids if tokens.size]
    expected = _checkpoint_logits(Path(job.checkpoint), [tokens for tokens in ids if tokens.size])
    return require_agreement(expected, found, job.checkpoint)


def require_agreement(
    expected: list[NDArray[np.float32]], found: list[NDArray[np.float32]], checkpoint: str
) -> Agreement:
    """The largest difference between two lists of logits, each of shape (tokens, vocabulary).

    Raises:
        CheckpointError: It is larger than allowed, a logit is no number, or there is nothing to compare.
    """
    if not expected:
        raise CheckpointError("No text holds a token on which checkpoint and graph could agree.", "Give real texts.")
    worst = Agreement(0.0, np.inf, len(expected))
    for number, (wanted, rows) in enumerate(zip(expected, found, strict=True), start=1):
        if not np.isfinite(wanted).all():
            raise CheckpointError("The checkpoint answers real texts with NaN or infinity.", "Check its weights.")
        difference, allowed = float(np.abs(wanted - rows).max()), TOLERANCE * max(1.0, float(np.abs(wanted).max()))
        # Written so that a NaN counts as a difference.
        if not difference <= allowed:
            raise CheckpointError(
                f"The graph that onnxruntime-genai built of {checkpoint} differs from the checkpoint: on text {number} "
                f"of {len(expected)} by {difference:.4g} in a logit, {allowed:.4g} is allowed.",
                "The builder's version may not know this model; check the checkpoint's configuration.",
            )
        if difference / allowed >= worst.difference / worst.allowed:
            worst = Agreement(difference, allowed, len(expected))
    return worst


def _checkpoint_logits(checkpoint: Path, texts: list[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
    """The checkpoint's own logits, batch of one."""
    import torch

    model = _load(checkpoint)
    with torch.inference_mode():
        rows = [model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0] for ids in texts]
    return [row.float().numpy() for row in rows]


def _load(checkpoint: Path) -> Any:
    """The checkpoint as a float32 model in evaluation mode, all its weights found."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except Exception as e:  # transformers, safetensors and pickle each raise their own
        problem = f"The checkpoint {checkpoint} cannot be loaded: {str(e).strip().splitlines()[0]}."
        raise CheckpointError(problem, "Check it.") from e
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise CheckpointError(
            f"The checkpoint {checkpoint} lacks {len(missing)} weights, such as {missing[0]!r}.", "Download all of it."
        )
    return model.eval()
