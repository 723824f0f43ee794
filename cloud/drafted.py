"""Assisted decoding: a small model beside the target guesses tokens, and the target checks them in one forward pass.

Owns the draft model's rows and its guesses. What the target makes of them is the engine's business: it chooses each
token by itself and takes a guess only where it is the same, so that no answer depends on the draft. When guessing pays
is `worth`'s rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgewise.cloud.causal import CausalFacts, load_causal
from edgewise.cloud.rowcache import RowCache
from edgewise.errors import CheckpointError

GUESSES = 4
"""Tokens guessed a step."""

_CHUNK = 256


class Drafter:
    """Guesses what a target says next; its rows are those of the target, in the same order.

    Args:
        model: The draft, a causal language model of transformers.
        context: Tokens that it reads.
        vocabulary: Ids that the target knows.
    """

    def __init__(self, model: Any, *, context: int, vocabulary: int) -> None:
        self.context = context
        self._vocabulary = vocabulary
        self._cache = RowCache(model)
        self._held: list[int] = []

    @classmethod
    def load(cls, path: Path, tokenizer: Any, target: CausalFacts) -> Drafter:
        """Load a draft for a target.

        Raises:
            CheckpointError: It is no language model, or has another tokenizer than its target.
            MissingExtraError: torch or transformers is not installed.
        """
        model, own, facts = load_causal(path)
        if own.get_vocab() != tokenizer.get_vocab():
            raise CheckpointError(
                f"The draft {path} has another tokenizer than {target.path}.",
                "Give a smaller model of the same family, or leave the draft out.",
            )
        return cls(model, context=facts.context, vocabulary=len(own))

    def join(self) -> None:
        """A row more; its tokens are computed when they are needed."""
        self._held.append(0)

    def remove(self, row: int) -> None:
        """A row less; those behind it move up."""
        self._cache.remove(row, len(self._held))
        del self._held[row]

    def fit(self, positions: int) -> None:
        """Have memory for rows of so many tokens, and not much more."""
        self._cache.fit(len(self._held), min(positions, self.context))

    def clear(self) -> None:
        """Forget every row."""
        self._held = []
        self._cache.clear()

    def guess(self, texts: Sequence[Sequence[int]], count: int) -> list[list[int]] | None:
        """What comes next in each row.

        Args:
            texts: Of each row, the first ones of those that joined, all tokens so far; at least two.
            count: How many to guess, 1 or more.

        Returns:
            Guesses a row; None where the draft has yet to read much that it missed.
        """
        if not self._caught_up(texts):
            return None
        # Two tokens: where every guess stood, the last of them has not been read.
        logits = self._cache.forward(0, [text[-2:] for text in texts], [len(text) - 2 for text in texts])
        guesses = [[token] for token in self._likeliest(logits)]
        for step in range(count - 1):
            lengths = [len(text) + step for text in texts]
            logits = self._cache.forward(0, [guess[-1:] for guess in guesses], lengths)
            for guess, token in zip(guesses, self._likeliest(logits), strict=True):
                guess.append(token)
        for row, text in enumerate(texts):
            self._held[row] = len(text)
        return guesses

    def stood(self, row: int, length: int, accepted: int, count: int) -> None:
        """Tell how many of a row's guesses stood, behind `length` tokens: so many need not be read again."""
        self._held[row] = length + min(accepted, count - 1)

    def _caught_up(self, texts: Sequence[Sequence[int]]) -> bool:
        """Read what was missed, a piece of each row at most."""
        for row, text in enumerate(texts):
            held = self._held[row]
            until = min(held + _CHUNK, len(text) - 2)
            if held < until:
                self._cache.forward(row, [text[held:until]], [held], last_only=True)
                self._held[row] = until
        return all(held >= len(text) - 2 for held, text in zip(self._held, texts, strict=False))

    def _likeliest(self, logits: Any) -> list[int]:
        found: list[int] = logits[:, -1, : self._vocabulary].argmax(-1).tolist()
        return found
