"""An answer while it is written.

Owns the loop over tokens: what is computed, chosen, told and when it ends. What came before it is `slots.py`'s, which
token comes next `choice.py`'s, and what may come next `constrained.py`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from tokenizers import Tokenizer  # type: ignore[import-untyped]  # ships stubs without a py.typed

from edgewise.dialogue import Finish, Piece, Sampling, TokenChoice, Written
from edgewise.edge.choice import Odds, draw
from edgewise.edge.constrained import Constraint
from edgewise.edge.decoding import TextStream
from edgewise.edge.slots import Ids, Slot
from edgewise.edge.stops import until
from edgewise.edge.toolcalls import ToolCalls


@dataclass(frozen=True)
class Task:
    """What is to be written.

    Attributes:
        ids: The tokens of the prompt, shape (n,), n at least 1.
        limit: Tokens of prompt and answer together at most, more than n.
        ends: Tokens that end an answer, and are none of its pieces.
        sampling: How tokens are chosen; its `max_tokens` is in `limit` already.
        constraint: What the answer has to keep to.
        calls_tools: Whether calls of tools are taken out of the text.
        continues: Whether the answer goes on from the text of the prompt, and does not begin one.
    """

    ids: Ids
    limit: int
    ends: Collection[int]
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Constraint | None = None
    calls_tools: bool = False
    continues: bool = True


class EdgeWriting:
    """An answer that is being written; see `contracts.Writing`.

    Nothing is computed before the first piece is asked for. A writing that nobody holds any more gives back what it
    holds, as `close()` does.

    Args:
        task: What is to be written.
        slot: Lends the slot to compute in, and takes it back.
        tokenizer: Makes text of tokens.
    """

    def __init__(self, task: Task, slot: Callable[[], AbstractContextManager[Slot]], tokenizer: Tokenizer) -> None:
        # The pieces hold the work and not this object: no cycle keeps a slot that nobody writes in any more.
        self._work = _Work(task, tokenizer)
        self._pieces = self._work.told(slot)

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def stop(self) -> None:
        """End before the next token; any thread may call it, any number of times."""
        self._work.stopped = True

    def close(self) -> None:
        """End now and give back what it holds; for the thread that iterates.

        What was computed is kept for the session.
        """
        self._work.stopped = True
        self._pieces.close()

    @property
    def written(self) -> Written:
        """How it came about, once it has ended; until then what is known, as interrupted."""
        work = self._work
        finish = work.finish or Finish.INTERRUPTED
        if finish is Finish.STOP and work.calls.found:
            finish = Finish.TOOL_CALLS
        return Written(
            finish=finish,
            prompt_tokens=int(work.task.ids.size),
            completion_tokens=work.count,
            cached_tokens=work.cached,
            tool_calls=tuple(work.calls.found),
        )


class _Work:
    """The loop, and what is known of it."""

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        self.task = task
        self.stopped = False
        self.finish: Finish | None = None
        self.cached = self.count = 0
        self.calls = ToolCalls(partial(_call_id, task.ids))
        self._tokenizer = tokenizer

    def told(self, slot: Callable[[], AbstractContextManager[Slot]]) -> Generator[Piece, None, None]:
        """The pieces as they are handed out."""
        with closing(self._written(slot)) as written:
            pieces: Iterator[Piece] = written
            if self.task.sampling.stop:
                pieces = until(pieces, self.task.sampling.stop)
            if self.task.calls_tools:
                pieces = self.calls.taken_out(pieces)
            yield from pieces
        # Only a stop text ends an answer before the model, the limit or a caller does.
        self.finish = self.finish or Finish.STOP
        if self.finish is not Finish.INTERRUPTED:
            self.calls.finish()

    def _written(self, lend: Callable[[], AbstractContextManager[Slot]]) -> Generator[Piece, None, None]:
        """The pieces as the model writes them."""
        task = self.task
        with lend() as slot:
            self.cached = slot.begin(task.ids, task.limit)
            if self._computed(slot, task.ids[self.cached :]):
                yield from self._continued(slot)

    def _computed(self, slot: Slot, ids: Ids) -> bool:
        """Compute further tokens; False: the answer was stopped meanwhile."""
        for part in slot.ahead(ids):
            if self.stopped:
                self.finish = Finish.INTERRUPTED
                return False
            slot.extend(part)
        return True

    def _continued(self, slot: Slot) -> Iterator[Piece]:
        task, constraint = self.task, self.task.constraint
        stream = TextStream(self._tokenizer, task.ids if task.continues else ())
        random = None if task.sampling.is_greedy else np.random.default_rng(_seed(task.sampling.seed))
        room, last = None, np.array(task.ids[-1:])
        for number in range(task.limit - int(task.ids.size)):
            if self.stopped:
                self.finish = Finish.INTERRUPTED
                return
            if number and not self._computed(slot, last):  # not below: a token that nobody asks for is not computed
                return
            logits = slot.logits()
            token = likeliest = int(logits.argmax())
            if constraint or random:
                allowed = constraint.masked(logits) if constraint else logits
                token = draw(allowed, task.sampling, random.random()) if random else int(allowed.argmax())
            if token in task.ends:
                self.finish = Finish.STOP
                return
            if constraint:
                constraint.take(token)
            room = np.empty_like(logits) if room is None else room
            odds = Odds(logits, likeliest=likeliest, room=room)
            piece = self._piece(stream, odds, token, first=not number)
            last[0] = token
            self.count += 1
            yield piece
            if constraint and constraint.is_over:
                self.finish = Finish.STOP
                return
        self.finish = Finish.LENGTH

    def _piece(self, stream: TextStream, odds: Odds, token: int, *, first: bool) -> Piece:
        likeliest = odds.likeliest(self.task.sampling.top_logprobs) if self.task.sampling.top_logprobs else []
        text, texts = stream.choose(token, likeliest)
        top = tuple(map(TokenChoice, texts, map(odds.logprob, likeliest)))
        return Piece(text, token, odds.logprob(token), odds.margin(token) if first else None, top)


def _seed(seed: int | None) -> int | None:
    return None if seed is None else seed % (1 << 64)


def _call_id(ids: Ids, number: int, raw: str) -> str:
    """The same call after the same prompt has the same id each time, and hardly any other has it."""
    digest = hashlib.blake2b(f"{number} {raw}".encode(errors="surrogatepass"), digest_size=12)
    digest.update(ids.tobytes())
    return f"call_{digest.hexdigest()}"
