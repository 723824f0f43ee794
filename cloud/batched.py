"""Whether a language model computes in a batch what it computes alone: found out before it serves anybody.

Owns the test and its tolerance. Chooses no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgewise.cloud.causal import CausalFacts
from edgewise.cloud.rowcache import RowCache
from edgewise.errors import CheckpointError

TOLERANCE = 1e-3
"""Largest difference of a logit between batched and plain computing, relative to the largest where that exceeds 1."""

_TESTED, _TESTED_LONG = 7, 256
"""Tokens of the longest text of the test at start: at least, and at most; more would take seconds of large models."""


def window_of(model: Any) -> int | None:
    """Tokens that a layer looks back, where some look back less than all: batches know no window."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    return window if isinstance(window, int) and window > 0 and used else None


def check_batched(model: Any, cache: RowCache, ids: Sequence[int], context: int, facts: CausalFacts) -> None:
    """Compute a long and a short text alone and together.

    The long one has as many tokens as the context, up to a bound: what a model makes of a short text may hang on the
    longest one beside it.

    Raises:
        CheckpointError: The logits differ, or it cannot be done.
    """
    size = max(_TESTED, min(context, _TESTED_LONG))
    texts = [(list(ids) * size)[:size], list(ids[:4])]
    try:
        worst = _difference(model, cache, texts)
    except Exception as error:  # whatever a model of another kind of memory raises
        raise _not_batched(facts, f"{type(error).__name__}") from error
    if not worst <= TOLERANCE:
        raise _not_batched(facts, f"its logits differ by {worst:.3g}")


def _difference(model: Any, cache: RowCache, texts: Sequence[Sequence[int]]) -> float:
    """Compute texts whole, and again in pieces and together; forgets what the memory held.

    Args:
        model: The model of the memory.
        cache: The memory.
        texts: Tokens of each, five or more of the first, two or more of the others.

    Returns:
        Largest difference of a logit behind the last token, relative to the largest logit where that exceeds 1.
    """
    cache.clear()
    try:
        with torch.inference_mode():
            alone = [model(input_ids=torch.tensor([list(text)])).logits[0, -1] for text in texts]
        cache.forward(0, [texts[0][:3]], [0], last_only=True)
        cache.forward(0, [texts[0][3:-1]], [3], last_only=True)
        for row, text in enumerate(texts[1:], start=1):
            cache.forward(row, [text[:-1]], [0], last_only=True)
        together = cache.forward(0, [text[-1:] for text in texts], [len(text) - 1 for text in texts])[:, -1]
    finally:
        cache.clear()
    pairs = zip(alone, together, strict=True)
    # Over all at once, so that one NaN is what comes out.
    return float(torch.stack([(a - b).abs().max() / a.abs().max().clamp(min=1) for a, b in pairs]).max())


def _not_batched(facts: CausalFacts, why: str) -> CheckpointError:
    return CheckpointError(
        f"{facts.path} cannot write several answers at once: {why}.",
        "Serve it with vLLM; this service keeps keys and values of every layer, and nothing else.",
    )
