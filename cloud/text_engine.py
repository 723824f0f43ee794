"""A language model of a checkpoint that writes several answers at once, a step at a time.

Owns the batch: who is in it, who has memory, who is being read, and one step of all. A step reads a piece of one prompt
that waits, and writes a token of every answer, or more where a draft model guessed them. For one thread at a time, and
without an event loop.

Everybody's memory is as long as the longest answer, so who has some is decided anew before each step: those that came
first, as many as the limit takes together. Where answers outgrow it, the last one gives its memory back, and is read
again when there is room. Whoever came first is never interrupted, so everybody's turn comes.

An answer does not depend on who else is in the batch, except by float noise, which can tip a tie: a model is tested for
it at start, and the context ends where positions would come to hang on the longest answer.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgewise.cloud.batched import check_batched, window_of
from edgewise.cloud.causal import CausalFacts, load_causal
from edgewise.cloud.drafted import GUESSES, Drafter
from edgewise.cloud.prompts import PromptReader, Reading
from edgewise.cloud.rowcache import RowCache, block_tokens
from edgewise.cloud.rows import Row, Told
from edgewise.cloud.text_metrics import Stats
from edgewise.cloud.tokens import Choice, Chooser
from edgewise.cloud.transcript import Transcript
from edgewise.cloud.workers import frames
from edgewise.cloud.worth import Worth
from edgewise.contracts import ServiceInfo, new_id
from edgewise.dialogue import Finish, Prompt, Sampling
from edgewise.errors import CheckpointError, CloudResponseError, EdgewiseError

_log = logging.getLogger(__name__)

CHUNK, SHARED_CHUNK = 512, 64
"""Tokens of a prompt read in a step: alone, and while others wait for their next token."""

WARM_UP_TOKENS = 4

_SELF_TEST = "The quick brown fox jumps over the lazy dog."


class TextEngine:
    """Writes answers.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        facts: What is known of it.
        name: Model name; None takes the folder's.
        slots: Most answers at once.
        max_tokens: Tokens that there is memory for: all answers at once take as many each as the longest. An answer
            that is alone may have as many as the model reads, whatever this says.
        drafter: Guesses tokens; None writes one a step.
        seconds: A clock.

    Attributes:
        info: What is served.
        slots: Most answers at once.
        context: Tokens of prompt and answer together.
        stats: What steps brought so far.
        loaded: Model, tokenizer and facts, for whoever computes with the same weights.

    Raises:
        CheckpointError: It computes something else in a batch than alone.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        facts: CausalFacts,
        *,
        name: str | None = None,
        slots: int = 16,
        max_tokens: int = 32_768,
        drafter: Drafter | None = None,
        seconds: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.slots = slots
        self.info = ServiceInfo(
            name=name or facts.path.name,
            version=facts.version,
            task="text-generation",
            labels=(),
            input="text",
            role="cloud",
        )
        self.context = min(facts.context, window_of(model) or facts.context)
        self.stats = Stats()
        self._worth: dict[int, Worth] = {}  # by the size of the batch, to a power of two
        self.loaded = model, tokenizer, facts
        self._tokenizer = tokenizer.backend_tokenizer
        self._vocabulary = len(tokenizer)
        self._ends = facts.ends
        self._reader = PromptReader(tokenizer, facts, context=self.context, name=self.info.name)
        self._cache = RowCache(model)
        self._drafter = drafter
        self._seconds = seconds
        self._max_tokens = max_tokens
        self._rows: list[Row] = []
        self._waiting: deque[Row] = deque()  # for memory
        check_batched(model, self._cache, self._tokenizer.encode(_SELF_TEST).ids, self.context, facts)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        threads: int | None = None,
        name: str | None = None,
        slots: int = 16,
        max_tokens: int = 32_768,
        draft: Path | None = None,
    ) -> TextEngine:
        """Load a language model, and its draft where there is one, and test both.

        Args:
            path: The checkpoint's folder.
            threads: Threads of torch, in the whole process; None leaves them as they are.
            name: Model name; None takes the folder's.
            slots: Most answers at once.
            max_tokens: Tokens that there is memory for.
            draft: Folder of the draft's checkpoint.

        Raises:
            CheckpointError: One of them cannot be served, or they do not fit together.
            MissingExtraError: torch or transformers is not installed.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        model, tokenizer, facts = load_causal(path)
        drafter = None if draft is None else Drafter.load(draft, tokenizer, facts)
        engine = cls(model, tokenizer, facts, name=name, slots=slots, max_tokens=max_tokens, drafter=drafter)
        engine.warm_up()
        return engine

    @property
    def has_draft(self) -> bool:
        """Whether a draft model guesses, where that pays."""
        return self._drafter is not None

    @property
    def running(self) -> int:
        """Answers that are being written, whose prompt is being read, or that wait for memory."""
        return len(self._rows) + len(self._waiting)

    def warm_up(self) -> None:
        """Write a few tokens for nobody.

        Raises:
            CheckpointError: It cannot write.
        """
        sampling = Sampling(max_tokens=WARM_UP_TOKENS)
        try:
            self.join("", self.read(Prompt(text=_SELF_TEST, sampling=sampling)))
            while self.running:
                self.step()
        except Exception as error:  # whatever torch or the model raises
            raise CheckpointError(
                f"{self.info.name} cannot write: {type(error).__name__}.", "Write the checkpoint again."
            ) from error
        finally:
            self.clear()
        self.stats = Stats()
        self._worth = {}

    def read(self, prompt: Prompt) -> Reading:
        """The tokens of a prompt; beside the steps, for one thread at a time.

        Raises:
            InputError: A field of it is absurd, or the chat template refuses it.
            PromptTooLongError: It leaves no room for an answer.
        """
        return self._reader.read(prompt)

    def join(self, key: str, reading: Reading) -> None:
        """Let an answer into the batch, behind the others."""
        row = Row(
            key,
            reading,
            Chooser(reading.prompt.sampling, self._vocabulary, reading.constraint),
            Transcript(self._tokenizer, reading, lambda: f"call_{new_id()}"),
            list(reading.ids),
            left=reading.left,
        )
        self._waiting.append(row)

    def leave(self, key: str) -> None:
        """Stop an answer; nothing happens where there is none."""
        for at, row in enumerate(self._rows):
            if row.key == key:
                self._remove(at)
                return
        self._waiting = deque(row for row in self._waiting if row.key != key)

    def clear(self) -> list[str]:
        """Forget everything that is being written; returns whose it was."""
        keys = [row.key for row in (*self._rows, *self._waiting)]
        self._rows = []
        self._waiting.clear()
        self._free()
        return keys

    def step(self) -> list[Told]:
        """Go on with every answer.

        Raises:
            RuntimeError: torch failed.
        """
        self._seat()
        writing = [row for row in self._rows if row.is_writing]
        if writing:
            self._write(writing)
        # In order: the first that waits is read, so everybody who writes stands before it.
        waiting = next((at for at, row in enumerate(self._rows) if not row.is_writing), None)
        if waiting is not None:
            self._read_on(waiting, SHARED_CHUNK if writing else CHUNK)
        told = [row.outcome for row in self._rows if row.told or row.is_over]
        self._part()
        return told

    def _seat(self) -> None:
        """Say who has memory in this step: the first that came, as many as there is memory for."""
        while not self._fits(self._rows):
            row = self._rows[-1]
            self._remove(len(self._rows) - 1)
            row.computed = 0
            self._waiting.appendleft(row)
        while self._waiting and self._fits([*self._rows, self._waiting[0]]):
            self._rows.append(self._waiting.popleft())
            if self._drafter is not None:
                self._drafter.join()
        if self._rows:
            positions = self._positions(self._rows)
            self._cache.fit(len(self._rows), positions)
            if self._drafter is not None:
                self._drafter.fit(positions)

    def _fits(self, rows: Sequence[Row]) -> bool:
        return len(rows) <= 1 or block_tokens(len(rows), self._positions(rows)) <= self._max_tokens

    def _positions(self, rows: Sequence[Row]) -> int:
        """Tokens of the longest answer once this step has written."""
        return min(self.context, max(len(row.texts) for row in rows) + (GUESSES + 1 if self.has_draft else 1))

    def _part(self) -> None:
        """Let those go whose answers are over."""
        for row in self._rows:
            row.told = []
        for at in reversed(range(len(self._rows))):
            if self._rows[at].is_over:
                self._remove(at)

    def _remove(self, at: int) -> None:
        self._cache.remove(at, len(self._rows))
        if self._drafter is not None:
            self._drafter.remove(at)
        del self._rows[at]
        if not self._rows:
            self._free()

    def _free(self) -> None:
        self._cache.clear()
        if self._drafter is not None:
            self._drafter.clear()

    def _read_on(self, at: int, chunk: int) -> None:
        row = self._rows[at]
        count = min(chunk, row.unread)
        tokens = row.texts[row.computed : row.computed + count]
        logits = self._cache.forward(at, [tokens], [row.computed], last_only=True)
        row.computed += count
        if row.computed == len(row.texts):
            self.stats.passes += 1
            self._take(row, logits[0, -1].numpy(), first=True)

    def _write(self, rows: Sequence[Row]) -> None:
        worth = self._worth.setdefault(len(rows).bit_length(), Worth()) if self.has_draft else None
        began = self._seconds()
        before = self.stats.tokens
        guesses = self._guesses(rows) if worth is not None and worth.drafts else None
        logits = self._logits(rows, guesses)
        for at, row in enumerate(rows):
            self._follow(row, at, logits[at], guesses[at] if guesses is not None else [])
        if worth is not None:
            worth.observe(self.stats.tokens - before, self._seconds() - began)
            self.stats.drafts = worth.drafts
            self.stats.plain_rate, self.stats.drafted_rate = worth.rate(drafted=False), worth.rate(drafted=True)
            self.stats.break_even_s = worth.break_even_s

    def _guesses(self, rows: Sequence[Row]) -> list[list[int]] | None:
        drafter = self._drafter
        if drafter is None:
            return None
        longest = max(len(row.texts) for row in rows)
        count = min(GUESSES, min(self.context, drafter.context) - longest)
        return drafter.guess([row.texts for row in rows], count) if count > 0 else None

    def _logits(self, rows: Sequence[Row], guesses: list[list[int]] | None) -> NDArray[np.float32]:
        """Logits behind the last token of each row and behind each guess, shape (rows, 1 + guesses, vocabulary)."""
        behind: Sequence[list[int]] = guesses or [[] for _ in rows]
        tokens = [[row.texts[-1], *guessed] for row, guessed in zip(rows, behind, strict=True)]
        found = self._cache.forward(0, tokens, [row.computed for row in rows])
        return np.asarray(found.numpy())

    def _follow(self, row: Row, at: int, logits: NDArray[np.float32], guessed: Sequence[int]) -> None:
        """Take tokens as long as the guesses are what the target chooses itself; then its own choice."""
        length = len(row.texts)
        accepted = 0
        before = self.stats.tokens
        self.stats.passes += 1
        for place in range(len(guessed) + 1):
            row.computed += 1
            token = self._take(row, logits[place])
            if place == len(guessed) or token != guessed[place]:
                break
            accepted += 1
            if row.is_over:
                break
        self.stats.guessed += len(guessed)
        self.stats.accepted += accepted
        if guessed and self._drafter is not None:
            self.stats.drafted_passes += 1
            self.stats.drafted_tokens += self.stats.tokens - before
            self._drafter.stood(at, length, accepted, len(guessed))

    def _take(self, row: Row, logits: NDArray[np.float32], *, first: bool = False) -> int | None:
        """Choose a token, and tell of it; returns it, or None where there is none to go on with."""
        try:
            return self._told(row, row.chooser.choose(logits, first=first))
        except EdgewiseError as error:
            row.error = error
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Whatever it is, it is this answer's alone. Tokenizer and grammar are Rust, whose panics are no Exception.
            _log.error("An answer failed over one of its tokens: %s", frames(error))
            row.error = CloudResponseError("The engine failed over this answer.", "Send it again; the log says why.")
        row.finish = None
        return None

    def _told(self, row: Row, choice: Choice) -> int | None:
        if choice.token in self._ends:
            self._finish(row, Finish.STOP)
            return None
        self.stats.tokens += 1
        row.texts.append(choice.token)
        row.left -= 1
        row.told += row.transcript.push(choice)
        if row.transcript.is_over:
            row.finish = Finish.STOP
        elif row.chooser.is_over:
            self._finish(row, Finish.STOP)
        elif row.left == 0:
            self._finish(row, Finish.LENGTH)
        return choice.token

    def _finish(self, row: Row, why: Finish) -> None:
        row.told += row.transcript.close()
        row.finish = why
