"""One request on its way through the flow: how long it waits for the cloud, and the answers made of it.

Owns no decision and no call.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import msgspec

from edgewise.contracts import (
    Answer,
    Clock,
    CloudReply,
    Decision,
    Mode,
    Policy,
    Prediction,
    Reason,
    Request,
    Source,
    Status,
)
from edgewise.errors import CloudError, CloudRefusedError, outline
from edgewise.router.audit import Draw

_log = logging.getLogger("edgewise.router")


class Turn(msgspec.Struct):
    """One request, answered once.

    Attributes:
        request: The request.
        mode: Its mode, the router's default filled in.
        policy: The policy it falls under.
        started: When it came, in monotonic seconds.
        deadline: When its answer is due, in monotonic seconds; infinite where nothing says.
        audited: Whether the coin chose it for an audit.
        clock: Time.
        draw: Its audit, once that is on record.
        key: Under which its answer is looked up and its work shared, once that was wanted.
        edge_ms: Milliseconds for the edge prediction, its wait for a thread included.
        cloud_ms: Milliseconds spent waiting for the cloud.
        spoke: When the first token of a text was told, in monotonic seconds.
    """

    request: Request
    mode: Mode
    policy: Policy
    started: float
    deadline: float
    audited: bool
    clock: Clock
    draw: Draw | None = None
    key: bytes | None = None
    edge_ms: float | None = None
    cloud_ms: float | None = None
    spoke: float | None = None

    @property
    def budget_s(self) -> float:
        """Seconds from its arrival to its deadline."""
        return self.deadline - self.started

    @property
    def left_s(self) -> float:
        """Seconds until its deadline; negative after it."""
        return self.deadline - self.clock.monotonic()

    @property
    def wanted(self) -> float:
        """When its answer is wanted: its deadline, or before that, where its caller has patience beyond its budget."""
        own_ms = self.request.budget_ms
        return self.deadline if own_ms is None else min(self.deadline, self.started + own_ms / 1000)

    @property
    def is_late(self) -> bool:
        """Whether its answer was wanted before now; a text that is told as it is written came with its first token."""
        if self.deadline == math.inf:
            return False
        return (self.clock.monotonic() if self.spoke is None else self.spoke) > self.wanted

    def as_asked(self) -> Request:
        """The request with the budget that it came under, its own or another's."""
        if self.deadline == math.inf:
            return self.request
        budget_ms = 1000 * (self.wanted - self.started)
        return msgspec.structs.replace(self.request, budget_ms=budget_ms, arrived_s=self.started)

    def by_cache(self, found: Answer) -> Answer:
        """An earlier answer in this request's name."""
        return msgspec.structs.replace(found, id=self.request.id, timings_ms=self._timings())

    def by_edge(self, prediction: Prediction, decision: Decision, status: Status, model_digest: str) -> Answer:
        """The edge model's answer."""
        return Answer(
            id=self.request.id,
            output=prediction.output,
            status=status,
            source=Source.EDGE,
            decision=decision,
            timings_ms=self._timings(),
            model_digest=model_digest,
            written=prediction.written,
        )

    def by_cloud(self, reply: CloudReply, decision: Decision) -> Answer:
        """The cloud's answer; no certificate speaks of it."""
        reason = Reason.FAIL_OVER if reply.fail_over else decision.reason
        return Answer(
            id=self.request.id,
            output=reply.output,
            status=Status.FINAL,
            source=Source.CLOUD,
            decision=msgspec.structs.replace(decision, reason=reason, certificate_id=None),
            timings_ms=self._timings(),
            model_digest=reply.reference.version,
            written=reply.written,
        )

    async def wait_for(self, call: asyncio.Future[CloudReply] | None, set_aside_s: float = 0.0) -> CloudReply | Reason:
        """The cloud's reply, or the reason why this request does not wait for it any longer.

        Args:
            call: The call; None where the breaker is open.
            set_aside_s: Seconds of the budget that are needed after this wait.
        """
        if call is None:
            return Reason.BREAKER_OPEN
        if self.mode is Mode.SPECULATIVE:
            return Reason.SPECULATIVE
        return self.reply_of(call) if await self.waited(call, set_aside_s) else Reason.BUDGET_SPENT

    async def waited(self, sign: asyncio.Future[Any], set_aside_s: float = 0.0) -> bool:
        """Wait for a sign of the cloud; whether it came in time.

        Args:
            sign: The sign.
            set_aside_s: Seconds of the budget that are needed after this wait.
        """
        asked = self.clock.monotonic()
        left = self.deadline - asked - set_aside_s
        await asyncio.wait({sign}, timeout=None if self.deadline == math.inf else max(0.0, left))
        self.cloud_ms = (self.cloud_ms or 0.0) + 1000 * (self.clock.monotonic() - asked)
        return sign.done()

    def reply_of(self, call: asyncio.Future[CloudReply]) -> CloudReply | Reason:
        """What a call that is done has brought, or the reason why that is no reply."""
        try:
            return call.result()
        except CloudRefusedError as error:
            # What a client sent is no trouble of the operator's.
            _log.warning("Request %s: %s", self.request.id, outline(error))
            return Reason.CLOUD_REFUSED
        except CloudError as error:
            _log.warning("Request %s: %s", self.request.id, outline(error))
            return Reason.CLOUD_FAILED

    def not_answered_here(self, decision: Decision, differs: bool | None = None) -> None:
        """Settle a drawn request that got no final edge answer: nothing local is nothing lost.

        Args:
            decision: What was decided.
            differs: Whether edge and certified reference differ, where both answered.
        """
        if self.draw is None:
            return
        # No threshold would ever have answered here what was not even shown to the edge model.
        unseen = decision.reason in (Reason.TOO_COMPLEX, Reason.BEYOND_EDGE)
        self.draw.escalated(math.nan if unseen else decision.score, differs)

    def left(self) -> None:
        """Settle a drawn request whose caller left a text that would have been no final answer of the edge's."""
        if self.draw is not None:
            self.draw.escalated()

    def unreadable(self) -> None:
        """Settle a drawn request that the edge model cannot read: it never gets an edge answer, at any threshold."""
        if self.draw is not None:
            self.draw.escalated(math.nan)

    def failed(self) -> None:
        """What else ends a drawn request before its answer counts against the promise, unless it was settled."""
        if self.draw is not None:
            self.draw.missed()

    def _timings(self) -> dict[str, float]:
        """Milliseconds by stage, and in total until now."""
        timings = {}
        if self.edge_ms is not None:
            timings["edge"] = self.edge_ms
        if self.cloud_ms is not None:
            timings["cloud"] = self.cloud_ms
        if self.spoke is not None:
            timings["first_token"] = 1000 * (self.spoke - self.started)
        timings["total"] = 1000 * (self.clock.monotonic() - self.started)
        return timings
