"""The steps of one request, from what is known of it to its first answer.

    exact cache → policy → edge model → score → decision
        ├ local: final
        ├ saved: provisional, and nobody is asked
        └ escalated: the cloud within the remaining budget, else provisional now and the cloud's answer later

Owns the order of these steps for answers that come in one piece; `textflow` has it for texts. What is promised is
`promise`'s, what an answer is worth is `judgement`'s, where it is answered is the policies', where the edge model runs
is `inference`'s, how the cloud is asked is `escalation`'s, what an answer leaves behind is `answering`'s. How callers
come in is `hybrid`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from edgewise import tracing
from edgewise.contracts import Action, Answer, CloudReply, Decision, Input, Prediction, Reason
from edgewise.errors import InputError, RequestError
from edgewise.router.answering import Answering, Given
from edgewise.router.background import Background
from edgewise.router.deciding import Decided, Deciding
from edgewise.router.delivery import was_given_up
from edgewise.router.escalation import Escalation
from edgewise.router.inference import Inference
from edgewise.router.pace import Recent
from edgewise.router.recall import Recall
from edgewise.router.singleflight import Share, SingleFlight
from edgewise.router.turn import Turn
from edgewise.router.verdicts import Verdicts

_TICK_S = 0.002
"""How late the timer of an event loop may be that has other things to do as well."""


class _Asking:
    """A request's share in a cloud call, and in the next one where that is given up because the cloud came back.

    Args:
        start: Starts or joins a call; None behind an open breaker.

    Attributes:
        share: The share; None without a call, or where others have it by now.
    """

    def __init__(self, start: Callable[[], Share[CloudReply] | None]) -> None:
        self._start = start
        self.share = start()

    @property
    def call(self) -> asyncio.Future[CloudReply] | None:
        """The call."""
        return None if self.share is None else self.share.future

    async def reply(self, turn: Turn, set_aside_s: float) -> CloudReply | Reason:
        """What `turn.wait_for` gives of the call that is not given up."""
        while True:
            reply = await turn.wait_for(self.call, set_aside_s)
            if self.call is None or not was_given_up(self.call):
                return reply
            self.share = self._start()

    def leave_it(self) -> None:
        """Others wait for the call from now on."""
        self.share = None


class Flow:
    """Answers requests; one event loop, and any number of threads for what needs no waiting.

    Args:
        deciding: Asks policies.
        answering: Makes answers.
        inference: The edge model.
        cloud: Where requests are escalated to; None where nothing ever is.
        verdicts: Settles audits.
        recall: Earlier answers.
        background: Where cloud calls run.
    """

    def __init__(
        self,
        *,
        deciding: Deciding,
        answering: Answering,
        inference: Inference,
        cloud: Escalation | None,
        verdicts: Verdicts,
        recall: Recall,
        background: Background,
    ) -> None:
        self._deciding = deciding
        self._answering = answering
        self._inference = inference
        self._cloud = cloud
        self._verdicts = verdicts
        self._recall = recall
        self._background = background
        self._predictions = SingleFlight[Prediction]()
        self._calls = SingleFlight[CloudReply]()
        self._finishing = Recent(0.0)

    def is_coverable(self, item: Input) -> bool:
        """Always: a certificate may speak of any item."""
        return True

    def measuring(self) -> Coroutine[Any, Any, None] | None:
        """The work that measures what that depends on, for the first who asks; None for all others."""
        return self._inference.measuring()

    def close(self) -> None:
        """Start no prediction any more."""
        self._inference.close()

    def at_once(self, turn: Turn, *, blocking: bool) -> Answer | Decided | None:
        """The answer where it is known without waiting; else what was decided by now, if anything was.

        Args:
            turn: The request; an audited one is never answered at once.
            blocking: Whether this is the thread of a caller who waits; else it is the event loop's, where the edge
                model runs only if it takes less than a hop to another thread.

        Raises:
            RequestError: The model cannot read the item.
        """
        if turn.audited:
            return None
        found = self._recall.find(turn)
        if found is not None:
            return self._answering.told(turn, found)
        request = turn.request
        if self._recall.asks_shared(request) if blocking else not self._inference.is_quick_for(request.inputs):
            return None
        before = self._deciding.before(turn)
        if before is not None and before.action is Action.ESCALATE:
            return Decided(before, None)
        prediction = self._predict_here(turn)
        decided = self._deciding.after(turn, before, prediction)
        if decided.decision.action is not Action.LOCAL:
            return decided
        # What is computed faster than it is fetched is not worth another process's memory.
        return self._answering.told(turn, self._answering.final(turn, prediction, decided.decision, share=False))

    async def work(self, turn: Turn, decided: Decided | None) -> Given:
        """The first answer, whatever has to be waited for.

        Cancelling it takes its prediction out of the queue and ends its cloud call, unless an identical request shares
        them.

        Args:
            turn: The request.
            decided: What was decided at once; None where nothing was.

        Raises:
            RequestError: The model cannot read the item, or another one's answer is kept under the id.
            OutboxFullError: A provisional answer's update could not be owed.
        """
        if turn.audited:
            turn.draw = self._verdicts.draw(turn.request)
        elif self._recall.asks_shared(turn.request):
            found = await self._recall.find_shared(turn)
            if found is not None:
                return Given(self._answering.told(turn, found))
        if decided is None:
            decided = await (self._decide(turn) if turn.draw is None else self._decide_drawn(turn))
        decision, prediction = decided
        if prediction is None or decision.action is Action.ESCALATE:
            return await self._escalate(turn, decision, prediction)
        if decision.action is Action.PROVISIONAL:
            return Given(self._answering.told(turn, self._answering.saved(turn, prediction, decision)))
        final = self._answering.final(turn, prediction, decision, share=True)
        self._verdicts.answered_here(turn, final)
        return Given(self._answering.told(turn, final))

    # Deciding

    async def _decide(self, turn: Turn) -> Decided:
        """The policy's decision, and the edge model's prediction unless it is not needed."""
        before = self._deciding.before(turn)
        if before is not None and before.action is Action.ESCALATE:
            return Decided(before, None)
        return self._deciding.after(turn, before, await self._predict(turn))

    async def _decide_drawn(self, turn: Turn) -> Decided:
        """The same for an audited request, which is settled whatever becomes of it and of who asked."""
        deciding = asyncio.ensure_future(self._decide(turn))
        try:
            await asyncio.wait({deciding})
        except BaseException:
            self._verdicts.given_up(turn, deciding)
            raise
        try:
            return deciding.result()
        except RequestError:
            turn.unreadable()
            raise
        except BaseException:
            turn.failed()
            raise

    # The edge model

    def _predict_here(self, turn: Turn) -> Prediction:
        """The edge model's prediction, in this thread."""
        began = turn.clock.monotonic()
        try:
            prediction = self._inference.here(turn.request.inputs)
        except InputError as error:
            raise _unreadable(error) from error
        turn.edge_ms = 1000 * (turn.clock.monotonic() - began)
        return prediction

    async def _predict(self, turn: Turn) -> Prediction:
        """The edge model's prediction, off the event loop unless a hop would take longer."""
        if not self._background.closed and (measuring := self._inference.measuring()) is not None:
            self._background.start(measuring)
        if self._inference.is_quick_for(turn.request.inputs):
            return self._predict_here(turn)
        return await self._predicted(turn, self._start_prediction(turn))

    async def _predicted(self, turn: Turn, share: Share[Prediction]) -> Prediction:
        began = turn.clock.monotonic()
        try:
            with tracing.span("edge.predict"):
                prediction = await share.result()
        except InputError as error:
            raise _unreadable(error) from error
        finally:
            share.leave()
        turn.edge_ms = 1000 * (turn.clock.monotonic() - began)
        return prediction

    def _start_prediction(self, turn: Turn) -> Share[Prediction]:
        return self._predictions.join(self._flight_key(turn), lambda: self._inference.start(turn.request.inputs))

    # The cloud

    async def _escalate(self, turn: Turn, decision: Decision, prediction: Prediction | None) -> Given:
        """The cloud's answer within the budget, else the edge's, provisional, while the cloud's is owed."""
        asking = _Asking(lambda: self._start_call(turn))
        spare_s = min(_TICK_S + self._finishing.seconds, turn.budget_s / 2)
        standby: Share[Prediction] | None = None
        try:
            # A prediction that was not needed so far is started so early that it is there when time is up.
            early_s = self._inference.set_aside_s(turn.request.inputs) if prediction is None else 0.0
            reply = await asking.reply(turn, spare_s + early_s)
            if reply is Reason.BUDGET_SPENT and early_s:
                standby = self._start_prediction(turn)
                reply = await asking.reply(turn, spare_s)
            if isinstance(reply, CloudReply):
                return Given(self._answering.told(turn, self._answering.by_cloud(turn, prediction, decision, reply)))
            self._verdicts.answered_provisionally(turn, prediction, decision, asking.call)
            in_time = standby is None or standby.future.done()
            if prediction is None:
                prediction = await (self._predict(turn) if standby is None else self._predicted(turn, standby))
            given = self._answering.provisionally(turn, prediction, decision, reply, asking.call)
            if reply is Reason.BUDGET_SPENT and in_time:
                self._finishing.took(max(0.0, spare_s - turn.left_s))
            if given.update is not None or turn.draw is not None:
                asking.leave_it()  # whoever is owed its answer, or learns from it, goes on waiting for it
            return given
        finally:
            if standby is not None:
                standby.leave()
            if asking.share is not None:
                # Whoever gives up waiting was not answered here either.
                turn.not_answered_here(decision)
                asking.share.leave()

    def _start_call(self, turn: Turn) -> Share[CloudReply] | None:
        """The cloud call of an escalated request, or None behind an open breaker.

        It is told the budget and outlives it: at its end a provisional answer owes an update, which this very call
        brings. Where nobody is owed one, since nobody waits any longer, the call is cancelled.
        """
        cloud = self._cloud
        if cloud is None or cloud.is_open:
            return None
        key = self._flight_key(turn)

        # What is asked from then on shall tell whether the cloud still hangs.
        def start() -> asyncio.Future[CloudReply]:
            return self._background.start(cloud.ask(turn.as_asked(), on_slow=lambda: self._calls.retire(key)))

        return self._calls.join(key, start)

    def _flight_key(self, turn: Turn) -> bytes | None:
        """What identical requests share their work by; an audited one shares with nobody."""
        return None if turn.audited else self._recall.key_of(turn)


def _unreadable(error: InputError) -> RequestError:
    return RequestError("inputs", error.problem, error.remedy)
