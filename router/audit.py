"""Audits: a private random share of the traffic whose local answers are checked against the cloud.

A request is drawn before cache and routing. Not answered locally as final, it has kept the promise without a call;
answered locally, the cloud is asked, past the cache, and a difference is a violation. A verdict that does not come is
one too, so that nothing that goes wrong after the draw can make the promise look better kept than it is.

Owns draws and verdicts. What they prove is `monitor`'s, what becomes of the certificate `guard`'s.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from edgewise.contracts import Answer, AuditLog, AuditVerdict, Reference, Request
from edgewise.errors import CloudError
from edgewise.router.escalation import Escalation
from edgewise.router.instruments import Instruments
from edgewise.router.monitor import AuditMonitor, MonitorState

__all__ = ["AuditMonitor", "Auditor", "Draw", "MonitorState"]

_log = logging.getLogger("edgewise.router")


class Draw:
    """One audited request; settled once, and missing if it never is.

    Scores: a number is the edge prediction's; NaN says that no threshold would have let it be answered here, such as a
    request that a rule escalates before the edge is asked; None says that it is not known.
    """

    def __init__(self, settle: Callable[[AuditVerdict], None], reference: Reference) -> None:
        self._settle = settle
        self._reference = reference
        self._settled = False

    def escalated(self, score: float | None = None, differs: bool | None = None) -> None:
        """Record that it was not answered here as final: nothing was lost, and no call is needed.

        Args:
            score: The edge prediction's score.
            differs: Whether edge and certified reference differ, where both were asked anyway.
        """
        self._record(AuditVerdict(violation=False, score=_comparable(score), differs=differs))

    async def judge(self, cloud: Escalation, request: Request, final: Answer, score: float | None) -> None:
        """Compare a final local answer with the cloud's; only the certified reference can judge."""
        try:
            reply = await cloud.ask(request)
            if reply.reference == self._reference:
                differs = reply.output != final.output
                self._record(AuditVerdict(violation=differs, score=_comparable(score), differs=differs))
        except CloudError as error:
            _log.warning("The audit of request %s has no verdict: %s", request.id, error)
        finally:
            self.missed(score)

    def missed(self, score: float | None = None) -> None:
        """Record that no verdict came, unless one did."""
        self._record(AuditVerdict(violation=True, missing=True, score=_comparable(score)))

    def _record(self, verdict: AuditVerdict) -> None:
        if self._settled:
            return
        self._settled = True
        self._settle(verdict)


def _comparable(score: float | None) -> float | None:
    """Minus infinity for NaN: neither is above any threshold, and a database has no NaN."""
    return -math.inf if score is not None and math.isnan(score) else score


class Auditor:
    """Draws requests.

    Args:
        log: Where draws and verdicts are kept.
        share: Probability of a draw, in [0, 1].
        uniform: Numbers in [0, 1) that no client can foresee.
        instruments: Where verdicts are counted.
        on_verdict: Called after each verdict is on record.
    """

    def __init__(
        self,
        log: AuditLog,
        share: float,
        uniform: Callable[[], float],
        instruments: Instruments,
        *,
        on_verdict: Callable[[], object] | None = None,
    ) -> None:
        self._log = log
        self._share = share
        self._uniform = uniform
        self._instruments = instruments
        self._on_verdict = on_verdict

    def draw(self, request_id: str, epoch: str, reference: Reference, share: float | None = None) -> Draw | None:
        """Draw a request, on record before it is answered, or None.

        Args:
            request_id: The request.
            epoch: What the verdict will speak of: the guard's epoch.
            reference: The only cloud that can judge.
            share: Probability of this draw; None takes the usual one.
        """
        if self._uniform() >= (self._share if share is None else share):
            return None
        position = self._log.drawn(request_id, epoch)
        return Draw(lambda verdict: self._settle(position, verdict), reference)

    def _settle(self, position: int, verdict: AuditVerdict) -> None:
        self._log.verdict(position, verdict)
        self._instruments.audits.inc("missing" if verdict.missing else "violated" if verdict.violation else "kept")
        if self._on_verdict is not None:
            self._on_verdict()
