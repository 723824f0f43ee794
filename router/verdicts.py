"""Audits in the flow: who is drawn, and how each draw is settled once its request is answered.

Owns the order of these steps. What a draw and a verdict are is `audit`'s, waiting for the cloud's `judging`'s, what
verdicts prove `monitor`'s.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable
from typing import Any

from edgewise.contracts import Action, Answer, CloudReply, Decision, Prediction, Request
from edgewise.errors import CloudError, RequestError, StoreError, frames, outline
from edgewise.router.agreeing import Agreement
from edgewise.router.audit import Auditor, Draw
from edgewise.router.background import Background
from edgewise.router.escalation import Escalation
from edgewise.router.instruments import Instruments
from edgewise.router.judging import Judging
from edgewise.router.promise import Promise
from edgewise.router.settings import Plugs, RouterSettings
from edgewise.router.turn import Turn

_log = logging.getLogger("edgewise.router")
_LAST_S = 5.0
_MOST_OPEN = 1000
"""Draws without a verdict beyond which nothing is drawn: they and their requests are held in memory."""


class Verdicts:
    """Settles the audits of one router.

    Args:
        auditor: Draws; None audits nothing.
        promise: What is tested.
        cloud: Who judges; None audits nothing.
        deadline_s: Seconds for which a local answer may wait for its verdict.
        retry_s: Seconds until a cloud that was away is asked again.
        agree: Whether two answers say the same; None: whether they are the same.
    """

    def __init__(
        self,
        auditor: Auditor | None,
        promise: Promise,
        cloud: Escalation | None,
        *,
        deadline_s: float,
        retry_s: float,
        agree: Agreement | None = None,
    ) -> None:
        self._auditor = auditor
        self._agree = agree or Agreement()
        self._promise = promise
        self._cloud = cloud
        self._judging = None if cloud is None else Judging(cloud, deadline_s=deadline_s, retry_s=retry_s)
        self._tasks = Background()

    def draws(self) -> bool:
        """Whether the coin falls for a request that the promise covers.

        What is skipped depends only on what is known before the request.
        """
        if self._auditor is None:
            return False
        self._auditor.catch_up()
        if self._cloud is None or self._cloud.is_open or self._auditor.open >= _MOST_OPEN:
            return False
        return self._promise.draws(self._auditor)

    def draw(self, request: Request) -> Draw | None:
        """Put the audit of a request on record that the coin fell for, when its work begins.

        A caller that gives up before that knows nothing of its answer. A draw that cannot be put on record is none: a
        full disk knows nothing of the request.
        """
        if self._auditor is None:
            return None
        try:
            return self._promise.draw(self._auditor, request)
        except StoreError as error:
            _log.error("Nothing is audited while draws cannot be put on record: %s", error)
            return None

    def answered_here(self, turn: Turn, final: Answer) -> None:
        """A final edge answer is compared with the cloud's, beside the flow."""
        if turn.draw is not None and self._judging is not None:
            self._judging.start(turn.draw, turn.request, final.output, final.decision.score, final.written)

    def answered_by_cloud(
        self, turn: Turn, prediction: Prediction | None, decision: Decision, reply: CloudReply
    ) -> None:
        """Nothing local is nothing lost; whether the edge would have differed is kept where both answered."""
        if turn.draw is None:
            return
        if prediction is None or not self._agree.has_judge or self._tasks.closed:
            turn.not_answered_here(decision, self._differs(prediction, reply))
        else:
            self._tasks.start(self._compare(turn, prediction, decision, reply))

    def wants_both(self, turn: Turn) -> bool:
        """Whether the edge's answer is wanted beside the cloud's: another certificate is earned by both."""
        return turn.draw is not None and self._promise.is_learning and not self._tasks.closed

    def answered_by_cloud_first(
        self, turn: Turn, writing: Awaitable[Prediction | None], decision: Decision, reply: CloudReply
    ) -> None:
        """The same where the edge model is still at it.

        Args:
            turn: The request.
            writing: What the edge model will have said, or None where it fails; awaited to its end.
            decision: What was decided.
            reply: What the cloud said.
        """
        self._tasks.start(self._compare_written(turn, writing, decision, reply))

    def answered_provisionally(
        self, turn: Turn, prediction: Prediction | None, decision: Decision, call: asyncio.Future[CloudReply] | None
    ) -> None:
        """Nothing final is nothing lost; while another certificate is to be earned, what the cloud says is awaited.

        Not where there is no score: no threshold would ever answer that here, whatever the cloud says.

        Args:
            turn: The request.
            prediction: The edge model's, where it was asked by now.
            decision: What was decided.
            call: The cloud call that goes on, or None.
        """
        unscored = decision.score is None or math.isnan(decision.score)
        if turn.draw is None or prediction is None or unscored or self._cloud is None or not self._promise.is_learning:
            turn.not_answered_here(decision)
            return
        asked = call or self._tasks.start(self._cloud.ask(turn.request))
        self._tasks.start(self._compare_late(turn, prediction, decision, asked))

    def given_up(self, turn: Turn, deciding: asyncio.Task[tuple[Decision, Prediction | None]]) -> None:
        """Nobody waits for a drawn request any more: settle it as what it would have been answered.

        Clients may hang up when they like, for instance sooner where the edge model takes long; so that this chooses no
        verdicts, the decision is waited for and judged like any other.
        """
        if self._tasks.closed:
            deciding.cancel()
            turn.failed()
            return
        self._tasks.start(self._settle_late(turn, deciding))

    def waits_for(self, answering: asyncio.Future[Any]) -> bool:
        """Wait for a drawn text whose caller has left, and which settles itself; not once it is closed.

        As where nobody waits for an answer that comes in one piece: who leaves when chooses no verdict.
        """
        if self._tasks.closed:
            return False
        self._tasks.start(_until_over(answering))
        return True

    async def aclose(self) -> None:
        """Give verdicts that are under way a few seconds: one of a local answer that does not come is a violation."""
        await self._tasks.close(finish_s=_LAST_S)
        if self._judging is not None:
            await self._judging.aclose()
        if self._auditor is not None:
            self._auditor.catch_up()

    async def _settle_late(self, turn: Turn, deciding: asyncio.Task[tuple[Decision, Prediction | None]]) -> None:
        try:
            decision, prediction = await deciding
        except RequestError:
            turn.unreadable()
        except BaseException:
            turn.failed()
            raise
        else:
            if turn.draw is None or prediction is None or decision.action is not Action.LOCAL or self._judging is None:
                turn.not_answered_here(decision)
            else:
                self._judging.start(turn.draw, turn.request, prediction.output, decision.score)

    async def _compare_written(
        self, turn: Turn, writing: Awaitable[Prediction | None], decision: Decision, reply: CloudReply
    ) -> None:
        differs = None
        try:
            differs = await self._judged(await writing, reply)
        finally:
            turn.not_answered_here(decision, differs)

    async def _compare(self, turn: Turn, prediction: Prediction, decision: Decision, reply: CloudReply) -> None:
        differs = None
        try:
            differs = await self._judged(prediction, reply)
        finally:
            turn.not_answered_here(decision, differs)

    async def _compare_late(
        self, turn: Turn, prediction: Prediction, decision: Decision, call: asyncio.Future[CloudReply]
    ) -> None:
        differs = None
        try:
            differs = await self._judged(prediction, await asyncio.shield(call))
        except CloudError as error:
            _log.warning("The audit of request %s learns nothing: %s", turn.request.id, outline(error))
        finally:
            turn.not_answered_here(decision, differs)

    async def _judged(self, prediction: Prediction | None, reply: CloudReply) -> bool | None:
        """What `_differs` says, in a thread where it asks a judge: that may take its time."""
        if not self._agree.has_judge:
            return self._differs(prediction, reply)
        return await asyncio.to_thread(self._differs, prediction, reply)

    def _differs(self, prediction: Prediction | None, reply: CloudReply) -> bool | None:
        """Whether edge and certified cloud differ; None where one of them was not asked."""
        if prediction is None or reply.fail_over or not self._promise.is_reference(reply.reference):
            return None
        try:
            return not self._agree(prediction.output, prediction.written, reply)
        except Exception as error:  # a judge may be a user's own function
            _log.error("The judge of a certificate failed; what it was asked stays unknown: %s", frames(error))
            return None


async def _until_over(answering: asyncio.Future[Any]) -> None:
    """Wait for what nobody else waits for; cancelling it cancels that."""
    try:
        await asyncio.wait({answering})
    except asyncio.CancelledError:
        answering.cancel()
        await asyncio.wait({answering})
        raise


def audits_of(
    settings: RouterSettings,
    plugs: Plugs,
    instruments: Instruments,
    promise: Promise,
    cloud: Escalation | None,
    agree: Agreement | None = None,
) -> Verdicts:
    """The audits of a router that is set and plugged so."""
    auditor = None
    if plugs.audits is not None:
        auditor = Auditor(
            plugs.audits,
            settings.audit_share,
            plugs.uniform,
            instruments,
            on_verdict=promise.heed,
            agree=agree,
            lock=promise.lock,
        )
    return Verdicts(
        auditor,
        promise,
        cloud,
        deadline_s=settings.audit_verdict_deadline_s,
        retry_s=settings.cool_down_s,
        agree=agree,
    )
