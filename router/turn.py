"""One request on its way through the flow: how long it waits for the cloud, and the answers made of it.

Owns no decision and no call.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field

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
from edgewise.errors import CloudError, CloudRefusedError
from edgewise.router.audit import Draw

_log = logging.getLogger("edgewise.router")


@dataclass(frozen=True)
class Turn:
    """One request, answered once.

    Attributes:
        request: The request.
        mode: Its mode, the router's default filled in.
        policy: The policy it falls under.
        started: When it came, in monotonic seconds.
        deadline: When its answer is due, in monotonic seconds; infinite where nothing says.
        draw: Its audit, where it was drawn.
        clock: Time.
        timings_ms: Milliseconds by stage so far.
    """

    request: Request
    mode: Mode
    policy: Policy
    started: float
    deadline: float
    draw: Draw | None
    clock: Clock
    timings_ms: dict[str, float] = field(default_factory=dict)

    def by_edge(self, prediction: Prediction, decision: Decision, status: Status, model_digest: str) -> Answer:
        """The edge model's answer."""
        return Answer(
            id=self.request.id,
            output=prediction.output,
            status=status,
            source=Source.EDGE,
            decision=decision,
            timings_ms=self.timings(),
            model_digest=model_digest,
        )

    def by_cloud(self, reply: CloudReply, decision: Decision) -> Answer:
        """The cloud's answer; no certificate speaks of it."""
        return Answer(
            id=self.request.id,
            output=reply.output,
            status=Status.FINAL,
            source=Source.CLOUD,
            decision=msgspec.structs.replace(decision, certificate_id=None),
            timings_ms=self.timings(),
            model_digest=reply.reference.version,
        )

    def timings(self) -> dict[str, float]:
        """Milliseconds by stage, and in total until now."""
        return {**self.timings_ms, "total": 1000 * (self.clock.monotonic() - self.started)}

    async def wait_for(self, call: asyncio.Task[CloudReply] | None) -> CloudReply | Reason:
        """The cloud's reply, or the reason why this request does not wait for it any longer.

        Args:
            call: The call; None where the breaker is open.
        """
        if call is None:
            return Reason.BREAKER_OPEN
        if self.mode is Mode.SPECULATIVE:
            return Reason.SPECULATIVE
        asked = self.clock.monotonic()
        remaining = self.deadline - asked
        await asyncio.wait({call}, timeout=max(0.0, remaining) if math.isfinite(remaining) else None)
        self.timings_ms["cloud"] = 1000 * (self.clock.monotonic() - asked)
        if not call.done():
            return Reason.BUDGET_SPENT
        try:
            return call.result()
        except CloudRefusedError as error:
            _log.error("Request %s: %s", self.request.id, error)
            return Reason.CLOUD_REFUSED
        except CloudError as error:
            _log.warning("Request %s: %s", self.request.id, error)
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
        unseen = decision.reason is Reason.TOO_COMPLEX
        self.draw.escalated(math.nan if unseen else decision.score, differs)

    def unreadable(self) -> None:
        """Settle a drawn request that the edge model cannot read: it never gets an edge answer, at any threshold."""
        if self.draw is not None:
            self.draw.escalated(math.nan)

    def failed(self) -> None:
        """What else ends a drawn request before its answer counts against the promise, unless it was settled."""
        if self.draw is not None:
            self.draw.missed()
