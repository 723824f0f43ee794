"""Guesses of a small language model at what a larger one will say next.

Owns the drafting: which tokens are guessed, and the distribution that each was drawn from. Whether a guess stands is
decided elsewhere, by the target; the better the guesses, the fewer its forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewise.dialogue import Prompt
from edgewise.edge.prompts import check

if TYPE_CHECKING:
    from edgewise.edge.generator import EdgeGenerator

LIKELIEST = 16
"""A token is drawn among so many of the likeliest, so that its distribution is exactly what is sent; the rest holds a
few percent at usual temperatures, which is what a guess is accepted less often for."""

_CHUNK = 256
_DIGITS = 6


class Computed(Protocol):
    """Tokens with what a model computed of them."""

    def append(self, ids: NDArray[np.int32]) -> None:
        """Compute further tokens, shape (n,), n at least 1."""
        ...

    def rewind(self, count: int) -> None:
        """Forget all but the first tokens. There are no logits until a token is appended."""
        ...

    def logits(self) -> NDArray[np.float32]:
        """What the model gives after the last token, shape (vocabulary,)."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


@dataclass(frozen=True)
class DraftModel:
    """What drafting needs of a language model.

    Attributes:
        start: Gives an empty sequence with room for so many tokens.
        read: Gives the ids of a prompt: template, tools, and what the answer begins with. Raises an InputError for a
            prompt that cannot be read.
        tokenizer: Its tokenizer, of the tokenizers library.
        ends: Ids that end an answer.
        max_length: Tokens that it reads at most.
    """

    start: Callable[[int], Computed]
    read: Callable[[Prompt], Sequence[int]]
    tokenizer: Any
    ends: frozenset[int]
    max_length: int


def draft_model(generator: EdgeGenerator) -> DraftModel:
    """A generator as a model that drafts; both can be used at once, and share the weights."""

    def read(prompt: Prompt) -> Sequence[int]:
        check(prompt)
        ids: list[int] = generator.prompt_ids(prompt).tolist()
        return ids

    return DraftModel(generator.sequence, read, generator.tokenizer, generator.ends, generator.max_length)


class Drafted(NamedTuple):
    """A guess.

    Attributes:
        token: Its id.
        ids: What it was drawn among; None where it is simply the likeliest.
        probabilities: Of those, in their order; relative to their sum they are exactly what it was drawn with.
    """

    token: int
    ids: tuple[int, ...] | None = None
    probabilities: tuple[float, ...] | None = None


class Drafter:
    """One conversation that a model guesses along with; for one thread at a time.

    Args:
        model: The model.
    """

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        self._tokens: list[int] = []
        self._sequence: Computed | None = None
        self._room = 0
        self._computed: list[int] = []

    @property
    def tokens(self) -> Sequence[int]:
        """What it goes by; guesses are not among them."""
        return tuple(self._tokens)

    def append(self, tokens: Sequence[int]) -> None:
        """What is said next for certain. Computed when it is needed."""
        self._tokens.extend(tokens)

    def rewind(self, count: int) -> None:
        """Take back all but the first tokens."""
        del self._tokens[count:]

    def follow(self, tokens: Sequence[int]) -> None:
        """Make these the tokens it goes by, and compute what is not computed yet, but for the last one.

        Raises:
            BundleError: The runtime cannot.
        """
        self._tokens = list(tokens)
        self._catch_up(len(self._tokens) - 1)

    def draft(self, k: int, *, temperature: float = 0.0, random: Callable[[], float] | None = None) -> list[Drafted]:
        """Guess `k` tokens, fewer where one of them ends the answer or the model reads no more.

        Args:
            k: How many.
            temperature: Of the draws; 0 takes the likeliest each time.
            random: Gives numbers uniform in [0, 1); needed for draws.

        Raises:
            BundleError: The runtime cannot.
        """
        most = min(k, self._model.max_length - len(self._tokens)) if self._tokens else 0
        found: list[Drafted] = []
        while len(found) < most:
            if found:
                self._compute([found[-1].token])
            else:
                self._catch_up(len(self._tokens))
            found.append(_guess(self._logits(), temperature, random))
            if found[-1].token in self._model.ends:
                break
        return found

    def close(self) -> None:
        """Give its memory back."""
        if self._sequence is not None:
            self._sequence.close()
        self._sequence, self._computed, self._room = None, [], 0

    def _catch_up(self, end: int) -> None:
        """Have the tokens before `end` computed, the last of them just now: there are no logits behind a rewind."""
        pairs = zip(self._computed, self._tokens[: max(0, end - 1)], strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if self._sequence is not None and same < len(self._computed):
            self._sequence.rewind(same)
            del self._computed[same:]
        self._compute(self._tokens[same : max(0, end)])

    def _compute(self, tokens: Sequence[int]) -> None:
        """Compute tokens behind those that are; all of them in a longer sequence where they do not fit this one."""
        end = len(self._computed) + len(tokens)
        if self._sequence is None or end > self._room:
            tokens = [*self._computed, *tokens]
            self.close()
            self._room = min(max(2 * end, _CHUNK), self._model.max_length)
            self._sequence = self._model.start(self._room)
        for start in range(0, len(tokens), _CHUNK):
            part = tokens[start : start + _CHUNK]
            self._sequence.append(np.array(part, np.int32))
            self._computed += part

    def _logits(self) -> NDArray[np.float32]:
        return self._sequence.logits() if self._sequence is not None else np.zeros(0, np.float32)


def _guess(logits: NDArray[np.float32], temperature: float, random: Callable[[], float] | None) -> Drafted:
    if temperature == 0 or random is None:
        return Drafted(int(logits.argmax()))
    count = min(LIKELIEST, logits.size)
    ids = np.argpartition(logits, -count)[-count:]
    weights = np.exp((logits[ids].astype(np.float64) - float(logits[ids].max())) / temperature)
    # Rounded before it is drawn from, so that what is sent is exactly what was drawn from, and short.
    rounded = np.round(weights / weights.sum(), _DIGITS)
    ids, rounded = ids[rounded > 0], rounded[rounded > 0]
    sums = np.cumsum(rounded)
    at = min(int(np.searchsorted(sums, random() * sums[-1], side="right")), ids.size - 1)
    return Drafted(int(ids[at]), tuple(ids.tolist()), tuple(rounded.tolist()))
