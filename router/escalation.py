"""Asking the cloud: time-out, breaker, a second call beside a slow one, another after one that failed.

Owns every call that leaves the process and nothing of what becomes of its answer. When a second call is worth it is
said in `hedging` and `retry`, when nothing may be asked in `breaker`.

What the breaker hears is one outcome a request, not a call: a failure that a retry mended, or a slow call that a second
one overtook, cost nobody an answer. What takes longer than the bound on slow calls is a failure at that moment,
whatever comes of it later: a caller's budget is spent long before a time-out says that the cloud hangs. A call that its
own caller cut short says nothing, and a reply by fail-over is a success: requests do get answers.

A text is heard as it is written, where the client can: what counts as slow, and as the time that a call takes, is then
its first piece, and the time-out bounds the rest. Such a call gets no second one beside it, and is not made again once
a piece of it was told; one that breaks off later has failed.

Calls that were slow when the cloud went away hang until their time-out, although it may be long back. So they are given
up, to be asked anew, as soon as it is known that predictions are answered again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgewise import tracing
from edgewise.contracts import (
    Clock,
    CloudClient,
    CloudReply,
    Reference,
    Request,
    StreamingCloudClient,
    Token,
)
from edgewise.dialogue import Prompt
from edgewise.errors import (
    CloudError,
    CloudGivenUpError,
    CloudRefusedError,
    CloudResponseError,
    CloudTimeoutError,
    InputError,
    outline,
)
from edgewise.router.breaker import Breaker
from edgewise.router.hedging import Hedging
from edgewise.router.instruments import Instruments
from edgewise.router.latency import LatencyWindow
from edgewise.router.listening import Listener, unheard
from edgewise.router.retry import Retry

_log = logging.getLogger("edgewise.router")
_PROBE_TIMEOUT_S = 5.0
_SLOW_S = 2.0
_SLOW_FACTOR = 3.0


class _Outcome:
    """What the breaker hears of one request, once: the first word counts.

    Args:
        succeeded: Told where it was answered in good time.
        failed: Told where it failed, or is not answered `slow_s` after now.
        slow_s: Seconds.
        on_slow: Told where it is not answered by then, before that counts as failed; not where it gives the call up.
        limit: What bounds the call.
    """

    def __init__(
        self,
        succeeded: Callable[[], None],
        failed: Callable[[], None],
        slow_s: float,
        on_slow: Callable[[_Outcome], None],
        limit: asyncio.Timeout,
    ) -> None:
        self._succeeded = succeeded
        self._failed = failed
        self._on_slow = on_slow
        self._limit = limit
        self._told = False
        self._given_up = False
        self._timer = asyncio.get_running_loop().call_later(slow_s, self._slow)

    @property
    def is_told(self) -> bool:
        return self._told

    @property
    def is_given_up(self) -> bool:
        return self._given_up

    def succeeded(self) -> None:
        self._tell(self._succeeded)

    def failed(self) -> None:
        self._tell(self._failed)

    def give_up(self) -> None:
        """End the call now, unless its time is over anyway."""
        if not self._limit.expired():
            self._given_up = True
            self._limit.reschedule(asyncio.get_running_loop().time())

    def began(self) -> None:
        """It is being answered: not slow, whatever comes of it, and not given up."""
        self._timer.cancel()

    def extend(self, seconds: float) -> None:
        """Let the call go on until so many seconds from now, if it would have ended before."""
        until = asyncio.get_running_loop().time() + seconds
        bound = self._limit.when()
        if bound is not None and bound < until and not self._limit.expired():
            self._limit.reschedule(until)

    def end(self) -> None:
        self._timer.cancel()

    def _slow(self) -> None:
        self._on_slow(self)
        if not self._given_up:
            self.failed()

    def _tell(self, word: Callable[[], None]) -> None:
        if not self._told:
            self._told = True
            word()


class Escalation:
    """The cloud as the flow sees it.

    Args:
        cloud: The backend.
        breaker: Its breaker.
        clock: Time.
        instruments: Where calls are counted.
        timeout_s: Longest a call may take.
        on_reference: Told which model and version answered, at every reply of its own and every probe.
        on_change: Told when the breaker is open after a failure, so that somebody has to probe, and when it closes.
        slow_s: Seconds after which a call counts as failed; None takes three times what half of the calls take, and two
            seconds at least.
        attempts: Calls for one request at most, where they cannot connect or the cloud is asked too much.
        hedge_share: Second calls beside slow ones, by calls, at most; 0 sends none.
        uniform: Numbers in [0, 1), for pauses between attempts.
    """

    def __init__(
        self,
        cloud: CloudClient,
        breaker: Breaker,
        clock: Clock,
        instruments: Instruments,
        *,
        timeout_s: float,
        on_reference: Callable[[Reference], None],
        on_change: Callable[[], None],
        slow_s: float | None = None,
        attempts: int = 3,
        hedge_share: float = 0.02,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._cloud = cloud
        self._breaker = breaker
        self._clock = clock
        self._instruments = instruments
        self._on_reference = on_reference
        self._on_change = on_change
        self._latencies = LatencyWindow()
        self._hedging = Hedging(self._latencies, hedge_share)
        self._retry = Retry(attempts, uniform)
        self._streaming = cloud if isinstance(cloud, StreamingCloudClient) else None
        self._stated_slow_s = slow_s
        self._stands_in = False
        self._slow: dict[_Outcome, None] = {}
        self._was_away = False
        self._returns = 0
        self.timeout_s = timeout_s

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open: nothing may wait for the cloud."""
        return self._breaker.is_open

    @property
    def slow_s(self) -> float:
        """Seconds after which a call counts as failed now."""
        if self._stated_slow_s is not None:
            return min(self._stated_slow_s, self.timeout_s)
        # Half of the calls, not most: a cloud that gets slow must not be taken for one that always was.
        usual_s = self._latencies.quantile(0.5) or 0.0
        return min(max(_SLOW_S, _SLOW_FACTOR * usual_s), self.timeout_s)

    def seconds_to_probe(self) -> float:
        """Seconds until an open breaker wants its next probe."""
        return self._breaker.seconds_to_probe(self._clock.monotonic())

    async def ask(
        self,
        request: Request,
        *,
        deadline: float | None = None,
        on_slow: Callable[[], None] | None = None,
        on_token: Callable[[Token], None] | None = None,
    ) -> CloudReply:
        """The cloud's answer.

        Args:
            request: What to ask.
            deadline: When the answer is of no use any more, in monotonic seconds; None takes the time-out alone.
            on_slow: Told when the call counts as failed for being slow.
            on_token: Told of each piece of a text as it comes, where the client hears them; those of a call that then
                fails were told too.

        Raises:
            CloudGivenUpError: It was slow when the cloud went away, which is back: ask anew.
            CloudRefusedError: It is well and will refuse this very request every time; the breaker does not count that.
            CloudError: It failed or took longer than the time-out.
        """
        left_s = self.timeout_s if deadline is None else min(self.timeout_s, deadline - self._clock.monotonic())
        if left_s <= 0:
            raise CloudTimeoutError("There is no time left to ask the cloud.")
        return await self._asked(request, left_s, self._note_success, self._note_failure, on_slow, on_token)

    async def try_out(self, request: Request) -> CloudReply:
        """The answer to a request that nobody waits for, as the half-open probe of an open breaker.

        Nothing proves as well that predictions are answered again.

        Raises:
            CloudGivenUpError: It was slow, and the cloud answers others again: ask anew.
            CloudRefusedError: It is well and will refuse this very request every time.
            CloudError: It failed, or took longer than a probe may.
        """
        left_s = min(self.timeout_s, max(_PROBE_TIMEOUT_S, self.slow_s))
        return await self._asked(request, left_s, self._note_tried_out, self._note_probe_failure)

    async def probe(self) -> bool:
        """Ask which model answers, off the request path; returns whether it answered."""
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                reference = await self._cloud.describe(timeout_s=_PROBE_TIMEOUT_S)
        except Exception as error:  # whatever a client of somebody else's raises must not end the watch
            # Where another backend stands in, requests are answered although this one is away.
            if self.is_open or not self._stands_in:
                self._note_probe_failure()
            late = isinstance(error, TimeoutError) and not str(error)
            _log.warning(
                "The cloud cannot be reached: %s", f"no answer within {_PROBE_TIMEOUT_S:g} s" if late else error
            )
            return False
        self._note_probe_success()
        self._on_reference(reference)
        return True

    async def watch(self, probed: asyncio.Event, *, every_s: float, retry_s: float) -> None:
        """Ask again and again which model answers; sooner while none does, but no sooner than the breaker allows.

        Args:
            probed: Set after the first probe, whatever came of it.
            every_s: Seconds until the next probe.
            retry_s: The same after one that failed.
        """
        while True:
            answered = await self.probe()
            probed.set()
            await asyncio.sleep(every_s if answered else retry_s)
            # A while: the next probe may have been put off meanwhile.
            while (left_s := self.seconds_to_probe()) > 0:  # noqa: ASYNC110  # a time, and no event, is waited for
                await asyncio.sleep(left_s)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._cloud.aclose()

    async def _asked(
        self,
        request: Request,
        left_s: float,
        succeeded: Callable[[], None],
        failed: Callable[[], None],
        on_slow: Callable[[], None] | None = None,
        on_token: Callable[[Token], None] | None = None,
    ) -> CloudReply:
        returns = self._returns

        def slow(outcome: _Outcome) -> None:
            self._slow[outcome] = None
            if on_slow is not None:
                on_slow()
            if returns != self._returns:  # it says nothing of the cloud that is back
                outcome.give_up()

        until = self._clock.monotonic() + left_s
        limit = asyncio.timeout(left_s)
        outcome = _Outcome(succeeded, failed, self.slow_s, slow, limit)
        listener = None
        if self._streaming is not None and isinstance(request.inputs, Prompt):
            listener = Listener(on_token or unheard, lambda took_s: self._note_begun(outcome, took_s), self._clock)
        with self._judging(outcome, left_s):
            async with limit:
                reply = await self._until_answered(request, until, listener)
        self._retry.answered()
        self._instruments.cloud_calls.inc("slow" if outcome.is_told else "ok")
        outcome.succeeded()
        if reply.written is not None:
            self._instruments.tokens.inc("cloud", by=reply.written.completion_tokens)
        self._stands_in = reply.fail_over
        if not reply.fail_over:
            self._on_reference(reply.reference)
        return reply

    @contextmanager
    def _judging(self, outcome: _Outcome, left_s: float) -> Iterator[None]:
        """Tell the breaker and the counters what went wrong in the block, as an error of the cloud's."""
        try:
            yield
        except (TimeoutError, CloudTimeoutError) as error:
            self._instruments.cloud_calls.inc("late")
            if outcome.is_given_up:
                raise CloudGivenUpError("A call hung since the cloud went away; it is back.") from error
            if left_s >= self.slow_s:
                outcome.failed()
            if isinstance(error, CloudTimeoutError):
                raise
            raise CloudTimeoutError(f"The cloud did not answer within {left_s:g} s.") from error
        except (CloudRefusedError, InputError) as error:
            self._instruments.cloud_calls.inc("refused")
            outcome.succeeded()
            if isinstance(error, CloudRefusedError):
                raise
            raise CloudRefusedError(error.problem, error.remedy) from error
        except CloudError:
            self._instruments.cloud_calls.inc("failed")
            outcome.failed()
            raise
        except Exception as error:  # whatever a client of somebody else's raises must not end what waits for it
            self._instruments.cloud_calls.inc("failed")
            outcome.failed()
            raise CloudResponseError(f"The cloud client failed: {type(error).__name__}.") from error
        finally:
            outcome.end()
            self._slow.pop(outcome, None)

    async def _until_answered(self, request: Request, until: float, listener: Listener | None) -> CloudReply:
        """The answer of the first attempt that has one; behind an open breaker there is only one attempt."""
        made = 0
        while True:
            made += 1
            try:
                if listener is not None:
                    return await self._heard(request, listener, made)
                return await self._hedged(request, until, made)
            except CloudError as error:
                if listener is not None and listener.has_begun:
                    raise
                left_s = until - self._clock.monotonic()
                pause_s = None if self.is_open else self._retry.pause(error, made, left_s)
                if pause_s is None:
                    raise
                _log.info("Request %s is asked again in %.3f s: %s", request.id, pause_s, outline(error))
                await asyncio.sleep(pause_s)
                if self.is_open:
                    raise
                self._instruments.cloud_retries.inc()

    async def _hedged(self, request: Request, until: float, attempt: int) -> CloudReply:
        """The answer of one call, or of a second one where the first takes longer than nearly all others."""
        after_s = None if self.is_open else self._hedging.begin()
        if after_s is None:
            return await self._call(request, until, attempt)
        began = self._clock.monotonic()
        first = asyncio.ensure_future(self._call(request, until, attempt))
        calls = [first]
        try:
            await asyncio.wait(calls, timeout=after_s)
            if not first.done() and not self.is_open:
                if self._hedging.allowed():
                    calls.append(asyncio.ensure_future(self._call(request, until, attempt, hedge=True)))
                    return await self._first_answer(calls, began)
                self._instruments.cloud_hedges.inc("denied")
            return await first
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _first_answer(self, calls: list[asyncio.Task[CloudReply]], began: float) -> CloudReply:
        """The answer that comes first; a call that fails leaves it to the other."""
        first, second = calls
        waiting = set(calls)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if first in done and _answers(first):
                self._instruments.cloud_hedges.inc("lost")
                return first.result()
            if second in done and _answers(second):
                self._instruments.cloud_hedges.inc("won")
                self._latencies.observe(self._clock.monotonic() - began)
                return second.result()
        self._instruments.cloud_hedges.inc("failed")
        return first.result()

    async def _call(self, request: Request, until: float, attempt: int, *, hedge: bool = False) -> CloudReply:
        """One call."""
        began = self._clock.monotonic()
        about = {"edgewise.attempt": attempt, "edgewise.hedge": hedge}
        with tracing.span("cloud.call", kind="client", attributes=about) as span:
            reply = await self._cloud.predict(request, timeout_s=until - began)
            span.set("edgewise.backend", reply.reference.name)
            span.set("edgewise.fail_over", reply.fail_over)
        self._latencies.observe(self._clock.monotonic() - began)
        return reply

    async def _heard(self, request: Request, listener: Listener, attempt: int) -> CloudReply:
        """One call whose answer is heard as it is written."""
        if self._streaming is None:
            raise RuntimeError("This client does not stream.")
        with tracing.span("cloud.call", kind="client", attributes={"edgewise.attempt": attempt}) as span:
            reply = await listener.hear(self._streaming, request, timeout_s=self.timeout_s)
            span.set("edgewise.backend", reply.reference.name)
            span.set("edgewise.fail_over", reply.fail_over)
        return reply

    def _note_begun(self, outcome: _Outcome, took_s: float) -> None:
        self._latencies.observe(took_s)
        self._slow.pop(outcome, None)
        outcome.began()
        outcome.extend(self.timeout_s)

    def _note_success(self) -> None:
        self._breaker.succeeded(self._clock.monotonic())
        self._show_breaker()
        if not self.is_open:
            self._give_up_slow()

    def _note_failure(self) -> None:
        self._fail(self._breaker.failed)
        # The one that was to prove it may hang again, and nobody else ask: the next one shall.
        if not self.is_open:
            self._give_up_one()

    def _note_tried_out(self) -> None:
        self._close()
        self._give_up_slow()

    def _note_probe_success(self) -> None:
        """It said who it is, which proves little of predictions: one that hangs is asked anew, and that proves it."""
        self._close()
        self._give_up_one()

    def _close(self) -> None:
        was_open = self.is_open
        self._breaker.probe_succeeded(self._clock.monotonic())
        self._show_breaker()
        if was_open:
            _log.warning("The cloud answers again: requests wait for it.")
            self._on_change()

    def _give_up_one(self) -> None:
        if self._was_away and self._slow:
            next(iter(self._slow)).give_up()

    def _give_up_slow(self) -> None:
        """Predictions are answered in good time: what hangs since the cloud was away has to be asked anew."""
        if self._was_away:
            self._was_away = False
            self._returns += 1
            for outcome in list(self._slow):
                outcome.give_up()

    def _note_probe_failure(self) -> None:
        self._fail(self._breaker.probe_failed)

    def _fail(self, note: Callable[[float], None]) -> None:
        was_open = self.is_open
        note(self._clock.monotonic())
        self._show_breaker()
        if self.is_open and not was_open:
            self._was_away = True
            self._instruments.breaker_openings.inc()
            _log.warning("The cloud fails or is slow too often: no request waits for it until it answers again.")
        if self.is_open:
            self._on_change()

    def _show_breaker(self) -> None:
        self._instruments.breaker_open.set(float(self.is_open))


def _answers(call: asyncio.Task[CloudReply]) -> bool:
    """Whether a call that is done brought a reply, or a refusal, which is one too."""
    error = call.exception()
    return error is None or isinstance(error, CloudRefusedError | InputError)
