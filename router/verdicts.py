"""Audits in the flow: who is drawn, and how each draw is settled once its request is answered.

Owns the tasks that bring verdicts. What a draw and a verdict are is `audit`'s, what they prove `monitor`'s.
"""

from __future__ import annotations

import asyncio
import logging

from edgewise.contracts import Answer, CloudReply, Decision, Prediction, Request
from edgewise.errors import CloudError
from edgewise.router.audit import Auditor, Draw
from edgewise.router.background import Background
from edgewise.router.escalation import Escalation
from edgewise.router.promise import Promise
from edgewise.router.turn import Turn

_log = logging.getLogger("edgewise.router")
_LAST_VERDICTS_S = 5.0


class Verdicts:
    """Settles the audits of one router.

    Args:
        auditor: Draws; None audits nothing.
        promise: What is tested.
        cloud: Who judges; None audits nothing.
    """

    def __init__(self, auditor: Auditor | None, promise: Promise, cloud: Escalation | None) -> None:
        self._auditor = auditor
        self._promise = promise
        self._cloud = cloud
        self._tasks = Background()

    def draw(self, request: Request) -> Draw | None:
        """Draw a request that the promise covers, or not; what is skipped depends only on what is known by now."""
        if self._auditor is None or self._cloud is None or self._cloud.is_open:
            return None
        return self._promise.draw(self._auditor, request)

    def answered_here(self, turn: Turn, final: Answer) -> None:
        """A final edge answer is compared with the cloud's, beside the flow."""
        if turn.draw is not None and self._cloud is not None:
            self._tasks.start(turn.draw.judge(self._cloud, turn.request, final, final.decision.score))

    def answered_by_cloud(
        self, turn: Turn, prediction: Prediction | None, decision: Decision, reply: CloudReply
    ) -> None:
        """Nothing local is nothing lost; whether the edge would have differed is kept where both answered."""
        turn.not_answered_here(decision, self._differs(prediction, reply))

    def answered_provisionally(
        self, turn: Turn, prediction: Prediction | None, decision: Decision, call: asyncio.Task[CloudReply] | None
    ) -> None:
        """Nothing final is nothing lost; while another certificate is to be earned, what the cloud says is awaited.

        Args:
            turn: The request.
            prediction: The edge model's, where it was asked by now.
            decision: What was decided.
            call: The cloud call that goes on, or None.
        """
        if turn.draw is None or prediction is None or self._cloud is None or not self._promise.is_learning:
            turn.not_answered_here(decision)
            return
        asked = call or self._tasks.start(self._cloud.ask(turn.request))
        self._tasks.start(self._compare_late(turn, prediction, decision, asked))

    async def aclose(self) -> None:
        """Give verdicts that are under way a few seconds: one of a local answer that does not come is a violation."""
        await self._tasks.close(finish_s=_LAST_VERDICTS_S)

    async def _compare_late(
        self, turn: Turn, prediction: Prediction, decision: Decision, call: asyncio.Task[CloudReply]
    ) -> None:
        differs = None
        try:
            differs = self._differs(prediction, await asyncio.shield(call))
        except CloudError as error:
            _log.warning("The audit of request %s learns nothing: %s", turn.request.id, error)
        finally:
            turn.not_answered_here(decision, differs)

    def _differs(self, prediction: Prediction | None, reply: CloudReply) -> bool | None:
        """Whether edge and certified cloud differ; None where one of them was not asked."""
        if prediction is None or not self._promise.is_reference(reply.reference):
            return None
        return prediction.output != reply.output
