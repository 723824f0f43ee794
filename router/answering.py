"""What a request is given: final answers, and provisional ones whose update is owed before they are told.

Owns what has to happen with each kind of answer: keeping it, settling its audit, owing what follows, counting. Which
kind is given is the flows' to say; what is owed is `delivery`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import NamedTuple

import msgspec

from edgewise.contracts import FINAL_PROVISIONALS, Answer, CloudReply, Decision, Prediction, Reason, Status
from edgewise.router.delivery import Deliveries, Owed
from edgewise.router.instruments import Instruments
from edgewise.router.recall import Recall
from edgewise.router.turn import Turn
from edgewise.router.verdicts import Verdicts


class Given(NamedTuple):
    """A first answer, and what may follow it.

    Attributes:
        answer: The answer.
        update: The task that may still bring its revision, where the request's own cloud call goes on.
        owed: Whether a revision will be stored for pick-up, whatever becomes of that.
    """

    answer: Answer
    update: asyncio.Task[Answer | None] | None = None
    owed: bool = False


class Answering:
    """Makes answers of what edge and cloud say.

    Args:
        deliveries: What is owed; None where there is no cloud.
        verdicts: Settles audits.
        recall: Earlier answers.
        instruments: Where answers are counted.
        model_digest: The edge bundle.
    """

    def __init__(
        self,
        *,
        deliveries: Deliveries | None,
        verdicts: Verdicts,
        recall: Recall,
        instruments: Instruments,
        model_digest: str,
    ) -> None:
        self._deliveries = deliveries
        self._verdicts = verdicts
        self._recall = recall
        self._instruments = instruments
        self._model_digest = model_digest

    def final(self, turn: Turn, prediction: Prediction, decision: Decision, *, share: bool) -> Answer:
        """The edge's answer, final.

        Args:
            turn: The request.
            prediction: What the edge model says.
            decision: Why that is answered.
            share: Whether other processes shall know of it too.
        """
        final = turn.by_edge(prediction, decision, Status.FINAL, self._model_digest)
        # Whoever waited for an audited decision may come back to another promise than it was made under.
        if turn.draw is None:
            self._recall.keep_local(turn, final, share=share)
        return final

    def saved(self, turn: Turn, prediction: Prediction, decision: Decision) -> Answer:
        """An answer that is provisional to save a call, and the last word.

        Raises:
            RequestError: Another request's answer is kept under its id.
        """
        self._verdicts.answered_provisionally(turn, prediction, decision, None)
        saved = turn.by_edge(prediction, decision, Status.PROVISIONAL, self._model_digest)
        if self._deliveries is not None:
            saved = self._deliveries.keep(turn.request, saved)
        self._instruments.provisional.inc("saved")
        return saved

    def by_cloud(
        self,
        turn: Turn,
        prediction: Prediction | None,
        decision: Decision,
        reply: CloudReply,
        *,
        writing: Awaitable[Prediction | None] | None = None,
    ) -> Answer:
        """The cloud's answer.

        Args:
            turn: The request.
            prediction: What the edge model says, where that is known.
            decision: Why the cloud was asked.
            reply: What it says.
            writing: What the edge model will have said, where an audit waits for that.
        """
        if writing is not None:
            self._verdicts.answered_by_cloud_first(turn, writing, decision, reply)
        else:
            self._verdicts.answered_by_cloud(turn, prediction, decision, reply)
        final = turn.by_cloud(reply, decision)
        self._recall.keep_cloud(turn.request, turn.mode, final, reply.reference)
        return final

    def provisionally(
        self,
        turn: Turn,
        prediction: Prediction,
        decision: Decision,
        reason: Reason,
        call: asyncio.Future[CloudReply] | None,
    ) -> Given:
        """The edge's answer for now; its update is owed before it is told.

        Raises:
            RequestError: Another request's answer is owed or kept under its id.
            OutboxFullError: No more can be owed.
            StoreError: The store cannot be written; nothing is owed then.
        """
        stopgap = msgspec.structs.replace(decision, reason=reason, certificate_id=None)
        provisional = turn.by_edge(prediction, stopgap, Status.PROVISIONAL, self._model_digest)
        owing = self._deliveries
        if owing is None:
            return Given(self.told(turn, provisional))
        if reason in FINAL_PROVISIONALS:
            owed = Owed(owing.keep(turn.request, provisional))
        else:
            owed = owing.owe(turn.request, provisional, call)
        return Given(self.told(turn, owed.answer), owed.update, owing.durable and owed.is_open)

    def told(self, turn: Turn, answer: Answer) -> Answer:
        """The answer on its way out; one that comes after its budget is counted."""
        if turn.is_late:
            self._instruments.budget_missed.inc(turn.request.profile or "none")
        return answer
