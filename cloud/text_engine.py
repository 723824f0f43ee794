"""A language model of a checkpoint that writes several answers at once, a step at a time.

Owns the batch: who is in it, who is being read, and one step of all. A step reads a piece of one prompt that waits, and
writes a token of every answer, or more where a draft model guessed them. For one thread at a time; knows no event loop.
An answer does not depend on who else is in the batch, except by float noise, which can tip a tie: a model is tested for
it at start, and the context ends where positions would come to hang on the longest answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgewise.cloud.causal import CausalFacts, load_causal
from edgewise.cloud.drafted import GUESSES, Drafter
from edgewise.cloud.prompts import PromptReader, Reading
from edgewise.cloud.rowcache import RowCache, difference
from edgewise.cloud.text_metrics import Stats
from edgewise.cloud.tokens import Choice, Chooser
from edgewise.cloud.transcript import Transcript
from edgewise.cloud.workers import frames
from edgewise.cloud.worth import Worth
from edgewise.contracts import ServiceInfo, new_id
from edgewise.dialogue import Finish, Piece, Prompt, Sampling, Written
from edgewise.errors import CheckpointError, CloudResponseError, EdgewiseError

_log = logging.getLogger(__name__)

CHUNK, SHARED_CHUNK = 512, 64
"""Tokens of a prompt read in a step: alone, and while others wait for their next token."""

TOLERANCE = 1e-3
"""Largest difference of a logit between batched and plain computing, relative to the largest where that exceeds 1."""

WARM_UP_TOKENS = 4

_TESTED, _TESTED_LONG = 7, 256
"""Tokens of the longest text of the test at start: at least, and at most; more would take seconds of large models."""

_SELF_TEST = "The quick brown fox jumps over the lazy dog."


class Told(NamedTuple):
    """What a step brought to one answer.

    Attributes:
        key: Whose it is.
        pieces: What was written.
        written: How the answer came about, where it is over.
        error: Why it cannot go on.
    """

    key: str
    pieces: list[Piece]
    written: Written | None = None
    error: EdgewiseError | None = None


@dataclass(eq=False)
class _Row:
    """An answer in the batch."""

    key: str
    reading: Reading
    chooser: Chooser
    transcript: Transcript
    texts: list[int]
    computed: int = 0
    left: int = 0
    told: list[Piece] = field(default_factory=list)
    finish: Finish | None = None
    error: EdgewiseError | None = None

    @property
    def is_over(self) -> bool:
        return self.finish is not None or self.error is not None

    @property
    def outcome(self) -> Told:
        written = None if self.finish is None else self.transcript.written(self.finish)
        return Told(self.key, self.told, written, self.error)

    @property
    def is_writing(self) -> bool:
        return self.computed >= len(self.reading.ids)


class TextEngine:
    """Writes answers.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        facts: What is known of it.
        name: Model name; None takes the folder's.
        slots: Most answers at once.
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
        self.context = min(facts.context, _window(model) or facts.context)
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
        self._rows: list[_Row] = []
        _check_batched(model, self._cache, self._tokenizer.encode(_SELF_TEST).ids, self.context, facts)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        threads: int | None = None,
        name: str | None = None,
        slots: int = 16,
        draft: Path | None = None,
    ) -> TextEngine:
        """Load a language model, and its draft where there is one, and test both.

        Args:
            path: The checkpoint's folder.
            threads: Threads of torch, in the whole process; None leaves them as they are.
            name: Model name; None takes the folder's.
            slots: Most answers at once.
            draft: Folder of the draft's checkpoint.

        Raises:
            CheckpointError: One of them cannot be served, or they do not fit together.
            MissingExtraError: torch or transformers is not installed.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        model, tokenizer, facts = load_causal(path)
        drafter = None if draft is None else Drafter.load(draft, tokenizer, facts)
        engine = cls(model, tokenizer, facts, name=name, slots=slots, drafter=drafter)
        engine.warm_up()
        return engine

    @property
    def has_draft(self) -> bool:
        """Whether a draft model guesses, where that pays."""
        return self._drafter is not None

    @property
    def running(self) -> int:
        """Answers that are being written or whose prompt is being read."""
        return len(self._rows)

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
        row = _Row(
            key,
            reading,
            Chooser(reading.prompt.sampling, self._vocabulary, reading.constraint),
            Transcript(self._tokenizer, reading, lambda: f"call_{new_id()}"),
            list(reading.ids),
            left=reading.left,
        )
        self._rows.append(row)
        if self._drafter is not None:
            self._drafter.join()

    def leave(self, key: str) -> None:
        """Stop an answer; nothing happens where there is none."""
        for at, row in enumerate(self._rows):
            if row.key == key:
                self._remove(at)
                return

    def clear(self) -> list[str]:
        """Forget everything that is being written; returns whose it was."""
        keys = [row.key for row in self._rows]
        self._rows = []
        self._cache.clear()
        if self._drafter is not None:
            self._drafter.clear()
        return keys

    def step(self) -> list[Told]:
        """Go on with every answer.

        Raises:
            RuntimeError: torch failed.
        """
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
            self.clear()

    def _read_on(self, at: int, chunk: int) -> None:
        row = self._rows[at]
        tokens = row.reading.ids[row.computed : row.computed + chunk]
        logits = self._cache.forward(at, [tokens], [row.computed], last_only=True)
        row.computed += len(tokens)
        if row.is_writing:
            self.stats.passes += 1
            self._take(row, logits[0, -1].numpy(), first=True)

    def _write(self, rows: Sequence[_Row]) -> None:
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

    def _guesses(self, rows: Sequence[_Row]) -> list[list[int]] | None:
        drafter = self._drafter
        if drafter is None:
            return None
        longest = max(len(row.texts) for row in rows)
        count = min(GUESSES, min(self.context, drafter.context) - longest)
        return drafter.guess([row.texts for row in rows], count) if count > 0 else None

    def _logits(self, rows: Sequence[_Row], guesses: list[list[int]] | None) -> NDArray[np.float32]:
        """Logits behind the last token of each row and behind each guess, shape (rows, 1 + guesses, vocabulary)."""
        behind: Sequence[list[int]] = guesses or [[] for _ in rows]
        tokens = [[row.texts[-1], *guessed] for row, guessed in zip(rows, behind, strict=True)]
        found = self._cache.forward(0, tokens, [row.computed for row in rows])
        return np.asarray(found.numpy())

    def _follow(self, row: _Row, at: int, logits: NDArray[np.float32], guessed: Sequence[int]) -> None:
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

    def _take(self, row: _Row, logits: NDArray[np.float32], *, first: bool = False) -> int | None:
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

    def _told(self, row: _Row, choice: Choice) -> int | None:
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

    def _finish(self, row: _Row, why: Finish) -> None:
        row.told += row.transcript.close()
        row.finish = why


def _window(model: Any) -> int | None:
    """Tokens that a layer looks back, where some look back less than all: batches know no window."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    return window if isinstance(window, int) and window > 0 and used else None


def _check_batched(model: Any, cache: RowCache, ids: Sequence[int], context: int, facts: CausalFacts) -> None:
    """Compute a long and a short text alone and together.

    The long one has as many tokens as the context, up to a bound: what a model makes of a short text may hang on the
    longest one beside it.

    Raises:
        CheckpointError: The logits differ, or it cannot be done.
    """
    size = max(_TESTED, min(context, _TESTED_LONG))
    texts = [(list(ids) * size)[:size], list(ids[:4])]
    try:
        worst = difference(model, cache, texts)
    except Exception as error:  # whatever a model of another kind of memory raises
        raise _not_batched(facts, f"{type(error).__name__}") from error
    if not worst <= TOLERANCE:
        raise _not_batched(facts, f"its logits differ by {worst:.3g}")


def _not_batched(facts: CausalFacts, why: str) -> CheckpointError:
    return CheckpointError(
        f"{facts.path} cannot write several answers at once: {why}.",
        "Serve it with vLLM; this service keeps keys and values of every layer, and nothing else.",
    )
