"""Audits: a private random share of the traffic whose local answers are checked against the cloud.

A request is drawn before cache and routing. Not answered locally as final, it has kept the promise without a call;
answered locally, the cloud is asked, past the cache, and a difference is a violation. A verdict that does not come is
one too, so that nothing that goes wrong after the draw can make the promise look better kept than it is. Nor can who
leaves: a caller that hangs up on a bad text would otherwise take its verdict along, so what would have been answered is
judged, whoever heard how much of it.

Owns draws and verdicts, and sees to it that a verdict which the store did not take is written as soon as it does. Who
asks the cloud is `judging`, what verdicts prove `monitor`'s, what becomes of the certificate `guard`'s.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

from edgewise.contracts import AuditLog, AuditVerdict, CloudReply, Output, Reference
from edgewise.dialogue import Written
from edgewise.errors import StoreError
from edgewise.router.agreeing import Agreement
from edgewise.router.instruments import Instruments
from edgewise.router.monitor import AuditMonitor, MonitorState

__all__ = ["AuditMonitor", "Auditor", "Draw", "MonitorState"]

_log = logging.getLogger("edgewise.router")


class Draw:
    """One audited request; settled once, and missing if it never is.

    Scores: a number is the edge prediction's; NaN says that no threshold would have let it be answered here, such as a
    request that a rule escalates before the edge is asked; None says that it is not known.
    """

    def __init__(
        self, settle: Callable[[AuditVerdict], None], reference: Reference, agree: Agreement | None = None
    ) -> None:
        self._settle = settle
        self._reference = reference
        self._agree = agree or Agreement()
        self._settled = False

    def escalated(self, score: float | None = None, differs: bool | None = None) -> None:
        """Record that it was not answered here as final: nothing was lost, and no call is needed.

        Args:
            score: The edge prediction's score.
            differs: Whether edge and certified reference differ, where both were asked anyway.
        """
        self._record(AuditVerdict(violation=False, score=_comparable(score), differs=differs))

    async def compared(
        self, output: Output, score: float | None, reply: CloudReply, *, written: Written | None = None
    ) -> None:
        """Compare a final local answer with the cloud's; only the certified reference can judge."""
        if reply.fail_over or reply.reference != self._reference:
            self.missed(score)
            return
        differs = not await self._agree.beside(output, written, reply)
        self._record(AuditVerdict(violation=differs, score=_comparable(score), differs=differs))

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
    """Draws requests and puts verdicts on record.

    A verdict that the store does not take fails no request: it is kept here and written first at the next opportunity,
    since one open draw holds up the proof of all behind it. What a process takes with it is missing at the next start.

    Args:
        log: Where draws and verdicts are kept.
        share: Probability of a draw, in [0, 1].
        uniform: Numbers in [0, 1) that no client can foresee.
        instruments: Where verdicts are counted.
        on_verdict: Called after verdicts were put on record; again later where it could not write.
        agree: Whether two answers say the same; None: whether they are the same.
        lock: Held, and entered again, wherever draws and verdicts are counted and told; None takes one of its own.
    """

    def __init__(
        self,
        log: AuditLog,
        share: float,
        uniform: Callable[[], float],
        instruments: Instruments,
        *,
        on_verdict: Callable[[], object] | None = None,
        agree: Agreement | None = None,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self._log = log
        self._share = share
        self._uniform = uniform
        self._instruments = instruments
        self._on_verdict = on_verdict
        self._agree = agree or Agreement()
        self._lock = threading.RLock() if lock is None else lock
        self._unwritten: deque[tuple[int, AuditVerdict]] = deque()
        self._unweighed = False
        self._told = False
        self._open = 0

    @property
    def open(self) -> int:
        """Draws that wait for their verdict, or for it to be written."""
        return self._open

    def draws(self, share: float | None = None) -> bool:
        """Toss the coin whether a request is drawn; once a request, before anything is known of its answer.

        Args:
            share: Probability of this draw; None takes the usual one.
        """
        return self._uniform() < (self._share if share is None else share)

    def draw(self, request_id: str, epoch: str, reference: Reference) -> Draw:
        """Put a request that the coin fell for on record, before it is answered.

        Args:
            request_id: The request.
            epoch: What the verdict will speak of: the guard's epoch.
            reference: The only cloud that can judge.

        Raises:
            StoreError: The draw cannot be put on record.
        """
        with self._lock:
            position = self._log.drawn(request_id, epoch)
            self._open += 1
        return Draw(lambda verdict: self._settle(position, verdict), reference, self._agree)

    def catch_up(self) -> None:
        """Write and weigh what the store did not take so far; cheap where there is nothing."""
        if not (self._unwritten or self._unweighed):
            return
        with self._lock:
            try:
                self._write()
                if self._on_verdict is not None:
                    self._on_verdict()
            except StoreError as error:
                if not self._told:
                    _log.error("Audit verdicts cannot be kept; they are written when the store can again: %s", error)
                self._told = True
            else:
                self._unweighed = self._told = False

    def _settle(self, position: int, verdict: AuditVerdict) -> None:
        with self._lock:
            self._unwritten.append((position, verdict))
            self.catch_up()

    def _write(self) -> None:
        while self._unwritten:
            position, verdict = self._unwritten[0]
            self._log.verdict(position, verdict)
            self._unwritten.popleft()
            self._unweighed = True
            self._open -= 1
            self._instruments.audits.inc("missing" if verdict.missing else "violated" if verdict.violation else "kept")
