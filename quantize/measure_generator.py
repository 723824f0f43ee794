"""Measures a language model in this process: load, first token, tokens a second, and how likely it finds texts.

Owns what is timed and scored of a generator. The processes, rounds and figures are those of `measure.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgewise.contracts import Input
from edgewise.dialogue import Message, Prompt, Role
from edgewise.edge import EdgeGenerator, TokenScores
from edgewise.errors import BundleError, DataError, InputError
from edgewise.quantize.answers import Answers

PROMPTS = 6
"""Prompts that are timed in each process: the first ones of its texts."""

PROMPT_TOKENS = 64
"""Tokens of a text in a prompt at most; a longer one is cut."""

NEW_TOKENS = 32
"""Tokens that are generated for each prompt, past the model's own end: every candidate writes as many."""

SAMPLED_TOKENS = 64
"""Tokens a process whose whole distribution is kept: each costs two bytes a word of the vocabulary."""


class Pace(NamedTuple):
    """How fast a language model answers.

    Attributes:
        first_ms: To the first token of each prompt.
        tokens_per_s: Tokens a second after the first ones; None where there are none.
    """

    first_ms: tuple[float, ...]
    tokens_per_s: float | None


def pace_of(generator: EdgeGenerator, prompts: Sequence[str], *, tokens: int = NEW_TOKENS) -> Pace:
    """Generate this many tokens for each prompt, and take the time."""
    firsts, later, seconds = [], 0, 0.0
    for prompt in prompts:
        started = time.perf_counter()
        pieces = generator.generate(prompt, max_tokens=tokens, past_end=True)
        next(pieces, None)
        first = time.perf_counter()
        later += sum(1 for _ in pieces)
        seconds += time.perf_counter() - first
        firsts.append((first - started) * 1e3)
    return Pace(tuple(firsts), later / seconds if later else None)


def score_texts(generator: EdgeGenerator, texts: Sequence[Input], *, sample: int = SAMPLED_TOKENS) -> Answers:
    """How likely each token of some texts is: the arrays of a generator in `answers.py`.

    Args:
        generator: The model.
        texts: The texts; beyond its `max_length` a text is cut off.
        sample: Tokens, from the first text on, whose whole distribution is kept; at least 1.

    Raises:
        DataError: No text has two tokens, so nothing can be scored.
        InputError: Something is no text that the tokenizer can read.
    """
    scores: list[TokenScores] = []
    targets = []
    left = sample
    for text in texts:
        scores.append(generator.score(str(text), sample=left))
        targets.append(generator.tokenize(str(text))[1 : generator.max_length])
        left -= len(scores[-1].logprobs)
    if not any(len(score.nll) for score in scores):
        raise DataError("No text has two tokens, so a language model cannot be scored.", "Give longer texts.")
    return {
        "nll": np.concatenate([score.nll for score in scores]),
        "top": np.concatenate([score.top for score in scores]),
        "targets": np.concatenate(targets),
        "tokens": np.array([len(score.nll) for score in scores]),
        "logprobs": np.concatenate([score.logprobs for score in scores if len(score.logprobs)]).astype(np.float16),
    }


def prompts_of(generator: EdgeGenerator, texts: Sequence[Input]) -> list[str]:
    """The first texts, each cut to the tokens of a prompt, and to half of what the model reads; as they are served."""
    most = min(PROMPT_TOKENS, generator.max_length // 2)
    cut = [generator.detokenize(generator.tokenize(str(text))[:most]) for text in texts[:PROMPTS]]
    return [_as_served(generator, text) for text in cut]


def _as_served(generator: EdgeGenerator, text: str) -> str:
    """A text as a user's message in the chat template; as it is where no template takes it, or no room is left."""
    try:
        ids = generator.prompt_ids(Prompt(messages=(Message(role=Role.USER, content=text),)))
    except (InputError, BundleError):
        return text
    if ids.size + NEW_TOKENS > generator.max_length:
        return text
    # A template writes itself what the tokenizer puts before a text, which is about to be put there again.
    first = generator.tokenize("")
    written = first.size and np.array_equal(ids[: first.size], first)
    return str(generator.tokenizer.decode(ids[first.size if written else 0 :].tolist(), skip_special_tokens=False))
