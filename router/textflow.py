"""The steps of one request for a text, from what is known of it to its first whole answer.

    exact cache → policy → edge writes → gate: the first tokens there → score → decision
        ├ local: told as it is written, watched → tool calls checked → final
        ├ saved: told as it is written, provisional, and nobody is asked
        └ escalated: the cloud's, told as it comes, from its first token within the remaining budget on;
                     else the edge's, provisional, and the cloud's answer later

Nothing is told before the gate has judged, but where the caller asked for that (`speculative`), or where nothing is
judged. What was told stays told: a text that others have to go on with is continued from there, and one that nobody
goes on with ends in an error, never as if it were whole.

Owns the order of these steps. It shares all parts with `flow`, which has it for answers that come in one piece. What is
judged is `gate`'s and `watch`'s, who writes where `writing`'s and `dictation`'s, and how it is told that of `reciting`
and `relaying`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

import msgspec

from edgewise import tracing
from edgewise.contracts import (
    Action,
    Answer,
    Answered,
    Decision,
    Done,
    Event,
    Input,
    Mode,
    Reason,
    Revised,
    Status,
    Token,
)
from edgewise.dialogue import Prompt
from edgewise.errors import CloudError, InputError, PromptTooLongError, RequestError
from edgewise.router import reciting
from edgewise.router.answering import Answering, Given
from edgewise.router.background import Background
from edgewise.router.deciding import Decided, Deciding
from edgewise.router.delivery import Deliveries
from edgewise.router.dictation import Asking, Dictation
from edgewise.router.escalation import Escalation
from edgewise.router.gate import Gate, as_asked, uncovered, withdrawn
from edgewise.router.growing import Growing
from edgewise.router.instruments import Instruments
from edgewise.router.policies import EDGE_ONLY, LOCAL_ONLY
from edgewise.router.recall import Recall
from edgewise.router.relaying import Relaying
from edgewise.router.settings import TextSettings
from edgewise.router.telling import Telling
from edgewise.router.toolcheck import ToolCheck, without_calls
from edgewise.router.turn import Turn
from edgewise.router.verdicts import Verdicts
from edgewise.router.watch import Watch
from edgewise.router.writing import Draft, Writers

_TICK_S = 0.002
"""How late the timer of an event loop may be that has other things to do as well."""


class TextFlow:
    """Answers requests for texts, on one event loop.

    Args:
        gate: What has to be there before a text is judged.
        settings: How texts are watched.
        deciding: Asks policies.
        answering: Makes answers.
        writers: The edge model.
        cloud: Where requests are escalated to; None where nothing ever is.
        deliveries: What is owed; None where there is no cloud.
        verdicts: Settles audits.
        recall: Earlier answers.
        background: Where cloud calls run.
        instruments: Where first tokens are timed.
    """

    def __init__(
        self,
        *,
        gate: Gate,
        settings: TextSettings,
        deciding: Deciding,
        answering: Answering,
        writers: Writers,
        cloud: Escalation | None,
        deliveries: Deliveries | None,
        verdicts: Verdicts,
        recall: Recall,
        background: Background,
        instruments: Instruments,
    ) -> None:
        self._gate = gate
        self._settings = settings
        self._deciding = deciding
        self._answering = answering
        self._writers = writers
        self._cloud = cloud
        self._deliveries = deliveries
        self._verdicts = verdicts
        self._recall = recall
        self._relaying = Relaying(cloud, background, answering, recall)
        self._instruments = instruments

    def is_coverable(self, item: Input) -> bool:
        """Whether a certificate may speak of such a request, by how it is asked alone."""
        return isinstance(item, Prompt) and uncovered(item, self._gate) is None

    def measuring(self) -> None:
        """Nothing is to be measured."""

    def at_once(self, turn: Turn, *, blocking: bool) -> Answer | None:
        """The answer of an earlier, equal request.

        Args:
            turn: The request; an audited one is never answered at once.
            blocking: Of no interest: a text is never written in the thread that asks.
        """
        found = None if turn.audited else self._recall.find(turn)
        return None if found is None else self._answering.told(turn, found)

    async def work(self, turn: Turn, decided: Decided | None) -> Given:
        """The first whole answer. Cancelling it stops the edge model within a token, and ends the cloud call.

        Args:
            turn: The request.
            decided: What was decided at once: for a text, nothing.

        Raises:
            RequestError: The prompt cannot be answered, or another request's answer is kept under the id.
            InputError: The same, where there is a kind of its own, such as a prompt that is too long.
            OutboxFullError: A provisional answer's update could not be owed.
        """
        return await self._answer(turn, None)

    async def events(self, turn: Turn) -> AsyncGenerator[Event]:
        """The answer as it is written, or all at once where it is wanted whole.

        Closing it stops the edge model within a token, and ends the cloud call.

        Raises:
            RequestError, InputError, OutboxFullError: As `work`.
            CloudError: The cloud broke off in the middle of a text, and again when it was asked to go on.
        """
        told: Growing[Token] = Growing()
        answering = asyncio.ensure_future(self._answer(turn, told.extend))
        answering.add_done_callback(lambda _: told.end())
        try:
            passed = 0
            while passed < len(told.items) or not told.is_over:
                await told.reach(passed + 1)
                while passed < len(told.items):
                    yield told.items[passed]
                    passed += 1
            given = answering.result()
        finally:
            if not answering.done():
                answering.cancel()
                await asyncio.wait({answering})
            if not answering.cancelled():
                answering.exception()
        async for event in _ending(turn, given, is_told=bool(told.items)):
            yield event

    def close(self) -> None:
        """Stop whatever is being written."""
        self._writers.close()

    async def _answer(self, turn: Turn, say: Callable[[Sequence[Token]], None] | None) -> Given:
        """The first whole answer; pieces of it are told before, where anybody listens."""
        prompt = turn.request.inputs
        if not isinstance(prompt, Prompt):
            raise RequestError("inputs", "This model writes texts.", "Ask it by messages or a prompt.")
        if not turn.audited:
            found = self._recall.find(turn) or await self._found_shared(turn)
            if found is not None:
                return Given(self._answering.told(turn, found))
        tools = _tools_of(prompt)
        if turn.audited:
            turn.draw = self._verdicts.draw(turn.request)
        telling = Telling(turn, prompt, say, is_held=tools.is_needed, instruments=self._instruments)
        if turn.draw is None:
            return await self._answered(telling, tools)
        return await self._answered_drawn(telling, tools)

    async def _answered_drawn(self, telling: Telling, tools: ToolCheck) -> Given:
        """The same for an audited request, which is settled whatever becomes of it and of who asked.

        Who sees a bad text leaves it. So that leaving chooses no verdict, a text that may still become a final answer
        of the edge's is written to its end, told to nobody, and judged as if its caller had stayed.
        """
        answering = asyncio.ensure_future(self._answered(telling, tools))
        answering.add_done_callback(lambda _: answering.cancelled() or answering.exception())
        try:
            await asyncio.wait({answering})
        except BaseException:
            telling.leave()
            if telling.may_be_final and self._verdicts.waits_for(answering):
                raise
            answering.cancel()
            await asyncio.wait({answering})
            raise
        return answering.result()

    async def _answered(self, telling: Telling, tools: ToolCheck) -> Given:
        """What its text comes to; its audit is settled by then, or will be."""
        turn = telling.turn
        try:
            return await self._routed(telling, tools)
        except (RequestError, PromptTooLongError):
            turn.unreadable()
            raise
        except asyncio.CancelledError:
            if telling.may_be_final:
                turn.failed()
            turn.left()
            raise
        except BaseException:
            turn.failed()
            raise
        finally:
            telling.end()

    def _gone(self, telling: Telling, decision: Decision) -> None:
        """The edge's text will not be a final answer; where its caller left, nothing more is to be learned of it.

        Raises:
            CancelledError: The caller left.
        """
        telling.may_be_final = False
        if telling.has_left:
            telling.turn.not_answered_here(decision)
            raise asyncio.CancelledError

    async def _found_shared(self, turn: Turn) -> Answer | None:
        return await self._recall.find_shared(turn) if self._recall.asks_shared(turn.request) else None

    async def _routed(self, telling: Telling, tools: ToolCheck) -> Given:
        turn = telling.turn
        before = self._deciding.before(turn)
        if before is not None and before.action is Action.ESCALATE:
            return await self._escalate(telling, tools, before)
        telling.draft = self._writers.begin(turn.request)
        at_once = before is None and turn.mode is Mode.SPECULATIVE and not tools.is_needed
        try:
            if at_once:
                await reciting.tell(telling, telling.draft, until=self._gate.tokens)
            decision = before or await self._judged(telling, telling.draft, in_time=not at_once)
        except InputError as error:
            return await self._beyond(telling, telling.draft, tools, error)
        if decision.action is Action.LOCAL:
            return await self._local(telling, telling.draft, tools, decision)
        if decision.action is Action.PROVISIONAL:
            self._gone(telling, decision)
            prediction = await reciting.whole(telling, telling.draft, tools)
            telling.release(prediction)
            return Given(self._answering.told(turn, self._answering.saved(turn, prediction, decision)))
        return await self._escalate(telling, tools, decision)

    def _may_escalate(self, turn: Turn) -> bool:
        return self._cloud is not None and turn.policy not in (EDGE_ONLY, LOCAL_ONLY)

    # The edge model

    async def _judged(self, telling: Telling, draft: Draft, *, in_time: bool) -> Decision:
        """The policy's decision once the first tokens are there."""
        turn = telling.turn
        try:
            with tracing.span("edge.predict"):
                async with asyncio.timeout(self._gate_s(turn) if in_time else None):
                    await draft.reach(math.inf if self._gate.tokens is None else self._gate.tokens)
        except TimeoutError:
            return self._gate.late(turn.policy.name)
        draft.check()
        turn.edge_ms = 1000 * (turn.clock.monotonic() - turn.started)
        decision, _ = self._deciding.after(turn, None, draft.prediction(self._gate.tokens))
        return as_asked(decision, telling.prompt, self._gate)

    def _gate_s(self, turn: Turn) -> float | None:
        within_ms = self._gate.within_ms
        return None if within_ms is None else max(0.0, turn.started + within_ms / 1000 - turn.clock.monotonic())

    async def _local(self, telling: Telling, draft: Draft, tools: ToolCheck, decision: Decision) -> Given:
        """The edge's text, final, unless it collapses on the way or calls what was not offered."""
        turn = telling.turn
        may_escalate = self._may_escalate(turn)
        floor = self._settings.watch_floor
        watch = Watch(self._settings.watch_window, floor) if may_escalate and floor is not None else None
        try:
            collapsed = await reciting.tell(telling, draft, watch=watch)
        except InputError as error:
            return await self._beyond(telling, draft, tools, error)
        if collapsed and not await reciting.is_told(telling, draft):
            return await self._taken_over(telling, draft, tools, withdrawn(decision, Reason.CONFIDENCE_COLLAPSED))
        prediction = draft.prediction()
        if not tools.is_valid(prediction.written):
            if may_escalate:
                return await self._escalate(telling, tools, withdrawn(decision, Reason.INVALID_TOOL_CALL))
            decision = msgspec.structs.replace(decision, reason=Reason.INVALID_TOOL_CALL)
            prediction = without_calls(prediction)
        telling.release(prediction)
        turn.edge_ms = 1000 * (turn.clock.monotonic() - turn.started)
        final = self._answering.final(turn, prediction, decision, share=True)
        self._verdicts.answered_here(turn, final)
        return Given(self._answering.told(turn, final))

    async def _beyond(self, telling: Telling, draft: Draft, tools: ToolCheck, error: InputError) -> Given:
        """The prompt was found to be beyond the edge model, maybe in the middle of the text."""
        turn = telling.turn
        if not (draft.is_beyond and self._may_escalate(turn)):
            raise error
        decision = Decision(action=Action.ESCALATE, reason=Reason.BEYOND_EDGE, policy=turn.policy.name)
        return await self._taken_over(telling, draft, tools, decision)

    async def _taken_over(self, telling: Telling, draft: Draft, tools: ToolCheck, decision: Decision) -> Given:
        """The edge's text is trusted no more, or cannot go on: the cloud answers, or goes on from what was told."""
        self._gone(telling, decision)
        if not telling.has_spoken:
            return await self._escalate(telling, tools, decision)
        try:
            if draft.is_beyond or not telling.turn.request.revisable:
                rest = None if draft.is_beyond else draft
                return await self._continue(telling, tools, decision, rest, tries=2)
            return await self._revised(telling, tools, decision)
        except BaseException:
            # As where a request was escalated at once: no final answer was given here.
            telling.turn.not_answered_here(decision)
            raise

    async def _revised(self, telling: Telling, tools: ToolCheck, decision: Decision) -> Given:
        """The edge's text goes on for now, and the cloud's own answer replaces it."""
        asking = self._relaying.asking(telling, telling.prompt)
        try:
            reason = Reason.BREAKER_OPEN if asking.call is None else Reason.CONFIDENCE_COLLAPSED
            return await self._stand_in(telling, tools, decision, reason, asking)
        finally:
            asking.leave()

    # The cloud

    async def _escalate(self, telling: Telling, tools: ToolCheck, decision: Decision) -> Given:
        """The cloud's text from within the budget on, else the edge's, provisional, while the cloud's is owed."""
        self._gone(telling, decision)
        turn, whole = telling.turn, telling.is_whole
        asking = self._relaying.asking(telling, telling.prompt)
        spare_s = min(_TICK_S, turn.budget_s / 2)
        try:
            is_able = decision.reason is not Reason.BEYOND_EDGE
            if turn.mode is Mode.SPECULATIVE and asking.call is not None and is_able:
                return await self._stand_in(telling, tools, decision, Reason.SPECULATIVE, asking)
            # A text that was not needed so far is begun so early that it is there when time is up.
            early_s = self._writers.set_aside_s(whole=whole) if telling.draft is None else 0.0
            reason = await asking.heard(turn, whole=whole, set_aside_s=spare_s + early_s)
            if reason is Reason.BUDGET_SPENT and early_s:
                telling.draft = self._writers.begin(turn.request)
                reason = await asking.heard(turn, whole=whole, set_aside_s=spare_s)
            if reason is Reason.BUDGET_SPENT and whole and await self._cloud_is_first(telling, asking):
                reason = None
            if reason is None and asking.dictation is not None:
                return await self._by_cloud(telling, tools, decision, asking.dictation)
            return await self._stand_in(telling, tools, decision, reason or Reason.BREAKER_OPEN, asking)
        except BaseException:
            # Whoever gives up waiting, or is given an error, was not answered here either.
            turn.not_answered_here(decision)
            raise
        finally:
            asking.leave()

    async def _cloud_is_first(self, telling: Telling, asking: Asking) -> bool:
        """After the budget the first whole answer counts; whether that is the cloud's."""
        if asking.dictation is None:
            return False
        if telling.draft is None:
            telling.draft = self._writers.begin(telling.turn.request)
        signs = {telling.draft.sign(), asking.dictation.sign()}
        await asyncio.wait(signs, return_when=asyncio.FIRST_COMPLETED)
        call = asking.dictation.call
        return call.done() and not call.cancelled() and call.exception() is None

    async def _by_cloud(self, telling: Telling, tools: ToolCheck, decision: Decision, dictation: Dictation) -> Given:
        turn, draft = telling.turn, telling.draft
        late = draft is not None and not draft.is_whole and self._verdicts.wants_both(turn)
        if draft is not None and not late and not draft.is_over:
            draft.stop()
        try:
            reply = await self._relaying.relay(telling, dictation)
        except CloudError:
            if not telling.has_spoken:
                raise
            return await self._continue(telling, tools, decision, None, tries=1)
        prediction = draft.prediction() if draft is not None and draft.is_whole else None
        writing = reciting.written_out(draft) if late and draft is not None else None
        telling.lent = writing is not None
        final = self._answering.by_cloud(turn, prediction, decision, reply, writing=writing)
        return Given(self._answering.told(turn, final))

    async def _continue(
        self, telling: Telling, tools: ToolCheck, decision: Decision, draft: Draft | None, *, tries: int
    ) -> Given:
        """The cloud goes on from what was told; where it does not, the edge does, provisionally, if it still can."""
        given = await self._relaying.go_on(telling, decision, draft, tries=tries)
        if given is not None:
            return given
        return await self._stand_in(telling, tools, decision, Reason.CLOUD_FAILED, Asking(lambda: None))

    async def _stand_in(
        self, telling: Telling, tools: ToolCheck, decision: Decision, reason: Reason, asking: Asking
    ) -> Given:
        """The edge's text for now, told as it is written; its update is owed before it is called an answer."""
        turn = telling.turn
        kept = None if telling.has_spoken or self._deliveries is None else self._deliveries.earlier(turn.request)
        if kept is not None:
            turn.not_answered_here(decision)
            return Given(self._answering.told(turn, kept), None, not kept.is_settled)
        if telling.draft is None:
            telling.draft = self._writers.begin(turn.request)
        try:
            prediction = await reciting.whole(telling, telling.draft, tools)
        except InputError as error:
            if reason not in (Reason.SPECULATIVE, Reason.CONFIDENCE_COLLAPSED):
                raise  # the cloud was waited for already
            asking.leave()
            return await self._beyond(telling, telling.draft, tools, error)
        telling.release(prediction)
        self._verdicts.answered_provisionally(turn, prediction, decision, asking.call)
        given = self._answering.provisionally(turn, prediction, decision, reason, asking.call)
        if given.update is not None or turn.draw is not None:
            asking.lend()  # whoever is owed its answer, or learns from it, goes on waiting for it
        return given


async def _ending(turn: Turn, given: Given, *, is_told: bool) -> AsyncIterator[Event]:
    """What follows the tokens: the answer, told as one token where none was, and its revision."""
    answer = given.answer
    if not is_told and isinstance(answer.output, str) and answer.output:
        yield Token(id=turn.request.id, text=answer.output, source=answer.source)
    yield Answered(answer)
    settled = None if given.update is None else await asyncio.shield(given.update)
    if settled is not None and settled.status is Status.FINAL:
        yield Revised(settled)
    yield Done(turn.request.id, pending=given.owed and settled is None)


def _tools_of(prompt: Prompt) -> ToolCheck:
    try:
        return ToolCheck(prompt)
    except InputError as error:
        if type(error) is not InputError:
            raise
        raise RequestError("tools", error.problem, error.remedy) from error
