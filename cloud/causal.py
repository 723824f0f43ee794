"""A causal language model through torch and transformers: loaded, checked, and what has to be known of it.

Owns the model, its tokenizer, and the facts that decide what it can be asked: how many tokens it reads, which of them
end an answer. Computes no answer. Never reaches a network, never prints, never runs code that came with a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.cloud.checkpoint import GENERATION_TASK, Checkpoint
from edgewise.cloud.torch_engine import NO_LIMIT, positions_of, quiet_loading, refusing, require_torch
from edgewise.errors import CheckpointError


@dataclass(frozen=True)
class CausalFacts:
    """What has to be known of a language model before it is asked.

    Attributes:
        path: The checkpoint's folder, absolute.
        version: "sha256:" and the digest of its weights, its tokenizer with its chat template, and its decoding.
        context: Tokens of prompt and answer together; as many as leave the frequencies of its positions as they are.
        vocabulary: Logits at each position.
        ends: Tokens that end an answer.
        chats: Whether it has a chat template.
    """

    path: Path
    version: str
    context: int
    vocabulary: int
    ends: frozenset[int]
    chats: bool


def load_causal(path: Path) -> tuple[Any, Any, CausalFacts]:
    """Load a language model in float32, and compute one token with it, so that what cannot serve fails here.

    Returns:
        The transformers model in evaluation mode, its tokenizer (of the tokenizers library), and the facts.

    Raises:
        CheckpointError: It is no language model, incomplete or broken.
        MissingExtraError: torch or transformers is not installed.
    """
    found = Checkpoint.open(path)
    if found.task != GENERATION_TASK:
        raise CheckpointError(f"{path} does {found.task}, it writes no text.", "Give a checkpoint of a language model.")
    require_torch()
    with quiet_loading():
        model = _model(found)
        tokenizer = _tokenizer(found)
    with refusing(found.path, "does not compute"):
        vocabulary = _vocabulary(model)
    _check_vocabulary(found, tokenizer, vocabulary)
    facts = CausalFacts(
        path=found.path,
        version=found.version,
        context=_context(found, model, tokenizer),
        vocabulary=vocabulary,
        ends=_ends(model, tokenizer),
        chats=bool(tokenizer.chat_template),
    )
    return model, tokenizer, facts


def _model(found: Checkpoint) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with refusing(found.path, "cannot be loaded"):
        model, report = AutoModelForCausalLM.from_pretrained(
            found.path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=found.safetensors,
            dtype=torch.float32,
            output_loading_info=True,
        )
    absent = sorted(report["missing_keys"])
    if absent:
        raise CheckpointError(
            f"The weights in {found.path} lack {', '.join(absent[:3])}{' and more' if len(absent) > 3 else ''}.",
            "Write it again with `save_pretrained`; without these weights it would answer at random.",
        )
    return model.eval()


def _tokenizer(found: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    with refusing(found.path, "has no tokenizer that can be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(found.path, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{found.path} has a tokenizer without a tokenizer.json.", "Save it again with a fast tokenizer."
        )
    # Set once, here: transformers would change it at every call, which races between threads.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def _vocabulary(model: Any) -> int:
    """Logits of one position; they are computed, so that a model that computes none fails while it is loaded."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.zeros((1, 1), dtype=torch.long)).logits
    if logits.ndim != 3 or not bool(torch.isfinite(logits).all()):
        raise ValueError("its logits are not finite numbers")
    return int(logits.shape[-1])


def _check_vocabulary(found: Checkpoint, tokenizer: Any, vocabulary: int) -> None:
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"The tokenizer in {found.path} knows {len(tokenizer)} tokens, the model {vocabulary}.",
            "Give the tokenizer that the model was trained with.",
        )


def _context(found: Checkpoint, model: Any, tokenizer: Any) -> int:
    limits = [positions_of(model), tokenizer.model_max_length, _steady(model)]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < NO_LIMIT]
    if not known:
        raise CheckpointError(
            f"{found.path} does not say how many tokens it reads.", "Give max_position_embeddings in its config.json."
        )
    return min(known)


def _steady(model: Any) -> int | None:
    """Tokens up to which rotary positions keep their frequencies, or None where they always do.

    Those of `longrope` and `dynamic` change with the longest text of a forward pass: beyond, an answer would depend on
    who is computed beside it, and its own first tokens would have been read otherwise than its last.
    """
    limits = []
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if not isinstance(kind, str) or not (kind == "longrope" or "dynamic" in kind):
            continue
        limits.append(getattr(module, "original_max_seq_len", None))
        if kind == "longrope":
            limits.append(getattr(module.config, "original_max_position_embeddings", None))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, as `generate` of transformers would take them."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = {named} if isinstance(named, int) else set(named or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return frozenset(ends)
