"""Rounds of drafting: a small model guesses, a large one elsewhere says what stands, until the answer is over.

Owns one answer's rounds, and what client and server agree on. Guessing is `edge.drafting`'s, the bytes are
`wire.verify`'s; which answers are drafted is `drafting`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edgewise.cloud.clients.growing import GrowingText
from edgewise.cloud.clients.http import ConflictError, HttpBackend
from edgewise.cloud.clients.metering import Meter
from edgewise.cloud.clients.pacing import Round
from edgewise.contracts import Source, Token, new_id
from edgewise.dialogue import Finish, Piece, Prompt, Sampling, Written
from edgewise.edge.drafting import Drafted, Drafter, DraftModel
from edgewise.errors import BundleError, CloudResponseError
from edgewise.wire import verify
from edgewise.wire.verify import DraftProbabilities, VerifyPrompt, VerifyReference, VerifyReply, VerifyRequest

_LOST_AT_MOST = 3
_SEEDS = (1 << 63) - 1


@dataclass
class Session:
    """A conversation.

    Attributes:
        drafter: The small model, following.
        name: Its name at the server.
        held: Tokens that the server holds of it.
        in_thread: Whether the drafter computes, or did when it was abandoned.
    """

    drafter: Drafter
    name: str = field(default_factory=new_id)
    held: list[int] = field(default_factory=list)
    in_thread: bool = False


class Target:
    """The large model, elsewhere.

    Args:
        http: Where it listens.
        tokenizer: Digest of the tokenizer that ids are meant by.
        model: Its name there; None takes the default.
        meter: Counts the rounds.
    """

    def __init__(self, http: HttpBackend, *, tokenizer: str, model: str | None, meter: Meter) -> None:
        self._http = http
        self._path = verify.VERIFY.removeprefix("/v1") if http.base.endswith("/v1") else verify.VERIFY
        self._tokenizer = tokenizer
        self._model = model
        self._meter = meter

    async def begun(self, session: Session, prompt: Prompt) -> VerifyReply:
        """The tokens of a prompt, as the large model reads it, and what that says first.

        Raises:
            CloudError: There is no such reply.
        """
        read = VerifyPrompt(messages=prompt.messages, text=prompt.text, begun=prompt.begun)
        reply = await self._ruled(msgspec.structs.replace(self._asking(session, prompt.sampling), prompt=read))
        if not reply.prompt:
            raise CloudResponseError(f"{self._http.base} did not say how it reads the prompt.", "Update the service.")
        self._went_on(session, reply.prompt, (), reply)
        return reply

    async def verified(
        self, session: Session, tokens: Sequence[int], draft: Sequence[Drafted], how: Sampling
    ) -> VerifyReply:
        """What becomes of a draft behind `tokens`; a session that the server lost is told again.

        Raises:
            CloudError: There is no such reply.
        """
        for _ in range(_LOST_AT_MOST):
            try:
                return await self._asked(session, tokens, draft, how)
            except ConflictError as error:
                if verify.error_code(error.body) != verify.SESSION_LOST:
                    raise
                session.held = []
        raise CloudResponseError(f"{self._http.base} lost the session {_LOST_AT_MOST} times in a row.", _ONE_INSTANCE)

    async def _asked(
        self, session: Session, tokens: Sequence[int], draft: Sequence[Drafted], how: Sampling
    ) -> VerifyReply:
        position = verify.common(session.held, tokens)
        asked = msgspec.structs.replace(
            self._asking(session, how),
            position=position,
            tokens=tuple(tokens[position:]),
            draft=tuple(guess.token for guess in draft),
            draft_probs=_drawn(draft),
        )
        reply = await self._ruled(asked)
        self._went_on(session, tokens, draft, reply)
        return reply

    def _asking(self, session: Session, how: Sampling) -> VerifyRequest:
        return VerifyRequest(
            session=session.name,
            tokenizer=self._tokenizer,
            model=self._model,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            seed=None if how.seed is None else how.seed & _SEEDS,
        )

    async def _ruled(self, asked: VerifyRequest) -> VerifyReply:
        response = await self._http.exchange("POST", self._path, verify.encode_request(asked))
        return self._http.decoded(response, lambda body: verify.decode_reply(body, drafted=len(asked.draft)))

    def _went_on(self, session: Session, tokens: Sequence[int], draft: Sequence[Drafted], reply: VerifyReply) -> None:
        if reply.position != len(tokens) + reply.accepted + 1:
            raise CloudResponseError(f"{self._http.base} went on with another session.", _ONE_INSTANCE)
        session.held = [*tokens, *(guess.token for guess in draft[: reply.accepted]), reply.token]
        self._meter.rounds += 1
        self._meter.drafted += len(draft)
        self._meter.accepted += reply.accepted


_ONE_INSTANCE = "Check that one instance answers all requests of a client."


class DraftedAnswer:
    """One answer.

    Args:
        request_id: Stands in its tokens.
        prompt: What is answered.
        guess: Its tokens as the small model reads it; as the large one does, they are known after the first round.
        session: Where it is spoken.
        drafts: The small model.
        target: The large one.
        k: Gives how many tokens to draft next.
        meter: What rounds took goes there.
        seconds: A clock.

    Attributes:
        count: Tokens that were written so far.
        has_spoken: Whether anything was told.
    """

    def __init__(
        self,
        request_id: str,
        prompt: Prompt,
        guess: Sequence[int],
        *,
        session: Session,
        drafts: DraftModel,
        target: Target,
        k: Callable[[], int],
        meter: Meter,
        seconds: Callable[[], float],
    ) -> None:
        self._id = request_id
        self._prompt = prompt
        self._how = prompt.sampling
        self._guess = guess
        self._ids: Sequence[int] = ()
        self._session = session
        self._target = target
        self._k = k
        self._meter = meter
        self._seconds = seconds
        self._tokenizer = drafts.tokenizer
        self._text = GrowingText(drafts.tokenizer, prompt, ())
        # Another stream of the seed than the target's: a draw that knew the target's would not be independent of it.
        self._random = np.random.default_rng(None if self._how.seed is None else [0, self._how.seed & _SEEDS])
        self._tokens: list[int] = []
        self._cached = 0
        self._finish: Finish | None = None
        self._reference: VerifyReference | None = None
        self.has_spoken = False

    @property
    def count(self) -> int:
        """Tokens that were written so far."""
        return len(self._tokens) - len(self._ids)

    @property
    def is_over(self) -> bool:
        """Whether it came to its end."""
        return self._finish is not None

    @property
    def text(self) -> str:
        """What was told so far."""
        return self._text.told

    @property
    def written(self) -> Written:
        """How it came about."""
        return Written(
            finish=self._finish or Finish.INTERRUPTED,
            prompt_tokens=len(self._ids),
            completion_tokens=self.count,
            cached_tokens=self._cached,
        )

    @property
    def reference(self) -> VerifyReference:
        """Who wrote it; known after the first round.

        Raises:
            CloudResponseError: There was none.
        """
        if self._reference is None:
            raise CloudResponseError("Nobody has answered yet.", "Read the answer first.")
        return self._reference

    async def tokens(self) -> AsyncGenerator[Token]:
        """The answer, as rounds bring it.

        Raises:
            CloudError: It cannot be brought to its end.
        """
        while self._finish is None:
            for piece in await (self._next_round() if self.count else self._first_round()):
                self.has_spoken = True
                yield Token(id=self._id, text=piece.text, logprob=piece.logprob, source=Source.CLOUD)

    async def _first_round(self) -> list[Piece]:
        """Nothing to guess but the prompt: while the large model reads it, the small one does, in its own way."""
        session = self._session
        held = session.held
        reading = self._in_thread(lambda: session.drafter.follow(self._guess))
        reply, _ = await asyncio.gather(self._target.begun(session, self._prompt), reading)
        self._reference = reply.reference
        self._ids = reply.prompt or ()
        self._tokens = list(self._ids)
        self._cached = verify.common(held, self._ids)
        self._text = GrowingText(self._tokenizer, self._prompt, self._ids)
        session.drafter.rewind(0)
        session.drafter.append(self._ids)
        return self._taken([], reply)

    async def _next_round(self) -> list[Piece]:
        started = self._seconds()
        draft = await self._in_thread(self._draft)
        drafted = self._seconds()
        try:
            reply = await self._verified(draft)
        except ConflictError as error:
            if verify.error_code(error.body) != verify.CONTEXT_FULL:
                raise
            return await self._last_rounds(draft)
        self._meter.after_round(
            Round(
                drafted=len(draft),
                accepted=reply.accepted,
                draft_ms=1000 * (drafted - started),
                compute_ms=reply.compute_ms,
                wall_ms=1000 * (self._seconds() - drafted),
            )
        )
        return self._taken(draft, reply)

    async def _last_rounds(self, draft: Sequence[Drafted]) -> list[Piece]:
        """The draft reaches beyond what the large model reads: one token without, as long as it reads that."""
        if not draft:
            self._finish = Finish.LENGTH
            return self._text.close()
        try:
            return self._taken([], await self._verified([]))
        except ConflictError as error:
            if verify.error_code(error.body) != verify.CONTEXT_FULL:
                raise
            return await self._last_rounds([])

    async def _verified(self, draft: Sequence[Drafted]) -> VerifyReply:
        reply = await self._target.verified(self._session, self._tokens, draft, self._how)
        if self._reference not in (None, reply.reference):
            raise CloudResponseError(f"Another model went on: {reply.reference.version}.", "Ask again.")
        self._reference = reply.reference
        return reply

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        self._session.in_thread = True
        try:
            found = await asyncio.to_thread(work)
        except BundleError as error:
            raise CloudResponseError(f"The model that drafts failed: {error.problem}", error.remedy) from error
        self._session.in_thread = False
        return found

    def _draft(self) -> list[Drafted]:
        most = self._how.max_tokens
        k = self._k() if most is None else min(self._k(), most - self.count - 1)
        if k < 1:
            return []
        drafter, prompt = self._session.drafter, len(self._ids)
        drafter.rewind(prompt)
        drafter.append(self._tokens[prompt:])
        temperature = 0.0 if self._how.is_greedy else self._how.temperature
        return drafter.draft(k, temperature=temperature, random=self._random.random)

    def _taken(self, draft: Sequence[Drafted], reply: VerifyReply) -> list[Piece]:
        """Take in what stands; returns what may be told."""
        tokens = [*(guess.token for guess in draft[: reply.accepted]), reply.token]
        told: list[Piece] = []
        for at, (token, logprob) in enumerate(zip(tokens, reply.logprobs, strict=True), start=1):
            if reply.ended and at == len(tokens):
                self._finish = Finish.STOP
                return [*told, *self._text.close()]
            self._tokens.append(token)
            told += self._text.push(token, logprob)
            if self._text.is_over:
                self._finish = Finish.STOP
                return told
            if self.count == self._how.max_tokens:
                self._finish = Finish.LENGTH
                return [*told, *self._text.close()]
        return told


def _drawn(draft: Sequence[Drafted]) -> tuple[DraftProbabilities, ...] | None:
    drawn = [
        DraftProbabilities(guess.ids, guess.probabilities)
        for guess in draft
        if guess.ids is not None and guess.probabilities is not None
    ]
    return tuple(drawn) if drawn else None
