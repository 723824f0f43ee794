"""A cloud whose text is drafted here: a small model guesses, the large one looks at several guesses a round trip.

Owns the sessions, and which answers are drafted. Rounds are `rounds`', what pays is `pacing`'s. The text is the
target's own: see `cloud.acceptance`.

Plain streaming pays the round trip once an answer, drafting once a round. Where drafting is measured to be slower,
answers stream through the plain client. So do those that no draft fits: tools, a schema, alternatives to each token, a
seed, a prompt longer than the small model reads. A server that does not rule on drafts is asked plainly for a while,
and for longer each time that it still does not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing

import httpx

from edgewise.cloud.clients.connections import Network, paced
from edgewise.cloud.clients.http import ConflictError, HttpBackend, NotServedError, authorization
from edgewise.cloud.clients.metering import DraftFigures, DraftMetrics, Meter
from edgewise.cloud.clients.rounds import DraftedAnswer, Session, Target
from edgewise.contracts import CloudReply, Reference, Request, StreamingCloudClient, Token
from edgewise.dialogue import NO_TOOL, Prompt
from edgewise.edge.drafting import Drafter, DraftModel
from edgewise.errors import CloudResponseError, ConfigError, InputError
from edgewise.telemetry import Metrics
from edgewise.wire import verify
from edgewise.wire.verify import VerifyReference

_log = logging.getLogger(__name__)


class DraftedCloud:
    """A `StreamingCloudClient` whose text one model drafts and another one, in the cloud, has the last word on.

    Args:
        url: The base URL of our own cloud service.
        plain: Streams from the same model without drafts.
        drafts: The model that drafts; its tokenizer must be the target's.
        model: The model's name there.
        api_key: Sent as a bearer token.
        k: Tokens to draft a round; None adapts it to what is measured, and drafts only where that is faster.
        sessions: Conversations whose drafts are kept at most.
        network: How to connect.
        transport: Replaces the network, for tests.
        seconds: A clock.
        metrics: Where its figures are shown.

    Raises:
        ConfigError: The URL, the key, or `k` cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        plain: StreamingCloudClient,
        drafts: DraftModel,
        model: str | None = None,
        api_key: str | None = None,
        k: int | None = None,
        sessions: int = 4,
        network: Network | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        seconds: Callable[[], float] = time.perf_counter,
        metrics: Metrics | None = None,
    ) -> None:
        if k is not None and not 0 <= k <= verify.MAX_DRAFT:
            raise ConfigError(f"A round drafts {k} tokens.", f"Give 0 to {verify.MAX_DRAFT}.")
        self._http = HttpBackend(
            url, headers=authorization(api_key), secret=api_key, network=network, transport=transport
        )
        self._plain = plain
        self._drafts = drafts
        self._k = k
        self._kept = sessions
        self._seconds = seconds
        self._meter = Meter()
        self._metrics = None if metrics is None else DraftMetrics(metrics)
        self._name = model
        tokenizer = verify.tokenizer_digest(drafts.tokenizer.to_str())
        self._target = Target(self._http, tokenizer=tokenizer, model=model, meter=self._meter)
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._references: dict[VerifyReference, Reference] = {}
        self._refusal: str | None = None

    @property
    def figures(self) -> DraftFigures:
        """What drafting brought so far, and what comes next."""
        return self._meter.figures(self._next_k(), drafts=self._drafts_next())

    async def describe(self, *, timeout_s: float) -> Reference:
        """Ask which model answers there: the same one, whichever way it is asked.

        Raises:
            CloudError: As the plain client's.
        """
        return await self._plain.describe(timeout_s=timeout_s)

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        """Ask for the final answer to one prompt.

        Raises:
            CloudError: As `stream`.
        """
        async with aclosing(self._told(request, timeout_s)) as pieces:
            async for piece in pieces:
                if isinstance(piece, CloudReply):
                    return piece
        raise CloudResponseError(f"{self._http.base} ended its answer without a reply.", "See the service's log.")

    async def stream(self, request: Request, *, timeout_s: float) -> AsyncIterator[Token | CloudReply]:
        """Ask for the final answer in pieces; the whole reply comes last. Closing the iterator ends the rounds.

        Raises:
            CloudRefusedError: It will refuse this very request every time.
            CloudError: The answer was not whole within `timeout_s`, or something came that is none.
        """
        async with aclosing(self._told(request, timeout_s)) as pieces:
            async for piece in pieces:
                yield piece

    async def aclose(self) -> None:
        """Close the connections, and free the memory of the drafts."""
        await self._http.aclose()
        await self._plain.aclose()
        for session in self._sessions.values():
            session.drafter.close()
        self._sessions.clear()

    def _told(self, request: Request, timeout_s: float) -> AsyncGenerator[Token | CloudReply]:
        return paced(self._answer(request, timeout_s), timeout_s, self._http.base)

    async def _answer(self, request: Request, timeout_s: float) -> AsyncGenerator[Token | CloudReply]:
        ids, prompt = await self._fitting(request), request.inputs
        if ids is not None and isinstance(prompt, Prompt):
            session = self._lend(request)
            answer = DraftedAnswer(
                request.id,
                prompt,
                ids,
                session=session,
                drafts=self._drafts,
                target=self._target,
                k=self._next_k,
                meter=self._meter,
                seconds=self._seconds,
            )
            async with aclosing(self._drafted(request, answer, session, timeout_s)) as pieces:
                async for piece in pieces:
                    yield piece
            if answer.is_over:
                return
        async with aclosing(self._streamed(request, timeout_s)) as pieces:
            async for piece in pieces:
                yield piece

    async def _drafted(
        self, request: Request, answer: DraftedAnswer, session: Session, timeout_s: float
    ) -> AsyncGenerator[Token | CloudReply]:
        """A drafted answer; nothing, where the server turns out to rule on no drafts of ours now."""
        began = self._seconds()
        try:
            async with aclosing(answer.tokens()) as tokens:
                async for token in tokens:
                    yield token
        except (NotServedError, ConflictError) as error:
            if answer.has_spoken or not _rules_on_none(error):
                raise
            self._refused(error)
            return
        finally:
            self._give_back(request, session)
            if answer.count:  # also of one that was interrupted: its rounds are counted
                self._meter.after_drafted(answer.count, self._seconds() - began)
                self._show(answer.reference.name)
        self._refusal = None
        self._meter.after_ruling()
        yield CloudReply(answer.text, await self._reference(answer.reference, timeout_s), written=answer.written)

    async def _streamed(self, request: Request, timeout_s: float) -> AsyncGenerator[Token | CloudReply]:
        """The plain way, measured."""
        first = last = name = None
        count = 0
        stream = self._plain.stream(request, timeout_s=timeout_s)
        try:
            async for piece in stream:
                if isinstance(piece, Token):
                    last = self._seconds()
                    first = last if first is None else first
                    count += 1
                else:
                    name = piece.reference.name
                yield piece
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()
            if name is not None or count:
                self._meter.after_plain(count - 1, 0.0 if first is None or last is None else last - first)
                self._show(name)

    async def _fitting(self, request: Request) -> Sequence[int] | None:
        """The ids of a prompt whose answer is to be drafted, else None."""
        prompt = request.inputs
        if self._meter.pace.waits or not isinstance(prompt, Prompt):
            return None
        how = prompt.sampling
        if (prompt.tools and prompt.tool_choice != NO_TOOL) or how.schema is not None or how.top_logprobs:
            return None
        if self._k is None and ((how.seed is not None and not how.is_greedy) or not self._meter.pace.drafts):
            return None  # how many tokens a round drafts depends on the network, and what a seed draws on that
        try:
            ids = await asyncio.to_thread(self._drafts.read, prompt)
        except InputError:
            return None  # the target may know better
        return ids if 0 < len(ids) < self._drafts.max_length else None

    def _refused(self, error: NotServedError | ConflictError) -> None:
        """Stream for a while; said once, and again where the reason is another."""
        self._meter.after_refusal()
        if self._refusal != str(error):
            self._refusal = str(error)
            _log.warning("Nothing is drafted for %s for now: %s", self._http.base, error)

    def _drafts_next(self) -> bool:
        pace = self._meter.pace
        return pace.drafts if self._k is None else not pace.waits

    def _show(self, name: str | None) -> None:
        """Show the figures under the target's name; the next time, where nobody has said it yet."""
        self._name = self._name or name
        if self._metrics is not None and self._name is not None:
            self._metrics.observe(self._name, self.figures)

    def _next_k(self) -> int:
        return self._meter.pace.k() if self._k is None else self._k

    def _lend(self, request: Request) -> Session:
        session = None if request.session is None else self._sessions.pop((request.tenant, request.session), None)
        return session or Session(Drafter(self._drafts))

    def _give_back(self, request: Request, session: Session) -> None:
        if session.in_thread:
            return  # abandoned while it computes: its memory goes with the thread's last look at it
        if request.session is None or not self._kept:
            session.drafter.close()
            return
        other = self._sessions.pop((request.tenant, request.session), None)
        if other is not None:
            other.drafter.close()
        self._sessions[request.tenant, request.session] = session
        while len(self._sessions) > self._kept:
            self._sessions.popitem(last=False)[1].drafter.close()

    async def _reference(self, found: VerifyReference, timeout_s: float) -> Reference:
        """What the plain client calls the target: one model is one reference, whichever way it is asked."""
        if found not in self._references:
            self._references = {found: await self._plain.describe(timeout_s=timeout_s)}
        return self._references[found]


def _rules_on_none(error: NotServedError | ConflictError) -> bool:
    """Whether a server says that it rules on no drafts of ours, as it is served now."""
    return isinstance(error, NotServedError) or verify.error_code(error.body) == verify.OTHER_TOKENIZER
