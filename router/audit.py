"""Audits: a private random share of the traffic whose local answers are checked against the cloud.

A request is drawn before cache and routing. Not answered locally as final, it has kept the promise without a call;
answered locally, the cloud is asked, past the cache, and a difference is a violation. A verdict that does not come is
one too, so that nothing that goes wrong after the draw can make the promise look better kept than it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from edgewise.contracts import Answer, AuditLog, Certificate, Reference, Request
from edgewise.errors import CloudError
from edgewise.router.escalation import Escalation
from edgewise.router.instruments import Instruments

_log = logging.getLogger("edgewise.router")


class Draw:
    """One audited request; settled once, and missing if it never is."""

    def __init__(self, log: AuditLog, position: int, reference: Reference, instruments: Instruments) -> None:
        self._log = log
        self._position = position
        self._reference = reference
        self._instruments = instruments
        self._settled = False

    def settle(self, *, violation: bool, missing: bool = False) -> None:
        """Record the verdict; the first one stands."""
        if self._settled:
            return
        self._settled = True
        self._log.verdict(self._position, violation=violation, missing=missing)
        self._instruments.audits.inc("missing" if missing else "violated" if violation else "kept")

    async def judge(self, cloud: Escalation, request: Request, final: Answer) -> None:
        """Compare a final local answer with the cloud's; only the certified reference can judge."""
        try:
            reply = await cloud.ask(request)
            if reply.reference == self._reference:
                self.settle(violation=reply.output != final.output)
        except CloudError as error:
            _log.warning("The audit of request %s has no verdict: %s", request.id, error)
        finally:
            self.missed()

    def missed(self) -> None:
        """Record that no verdict came, unless one did."""
        self.settle(violation=True, missing=True)


class Auditor:
    """Draws requests.

    Args:
        log: Where draws and verdicts are kept.
        share: Probability of a draw, in [0, 1].
        uniform: Numbers in [0, 1) that no client can foresee.
        instruments: Where verdicts are counted.
    """

    def __init__(self, log: AuditLog, share: float, uniform: Callable[[], float], instruments: Instruments) -> None:
        self._log = log
        self._share = share
        self._uniform = uniform
        self._instruments = instruments

    def draw(self, request_id: str, certificate: Certificate) -> Draw | None:
        """Draw a request with the share's probability; the draw is on record before the request is answered."""
        if self._uniform() >= self._share:
            return None
        position = self._log.drawn(request_id, certificate.id)
        return Draw(self._log, position, certificate.reference, self._instruments)
