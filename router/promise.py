"""The promise in force: the certificate for as long as its cloud, its life and its audits allow, as a policy.

    void: another cloud answers → its life is over, or the clock is wrong → what the audits left of it → threshold

Owns which of these holds now, and says every change loudly. What the audits prove is the guard's to find out; the
mathematics is `certificate`'s.
"""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from edgewise.contracts import Action, Certificate, Clock, Decision, Policy, Prediction, Reason, Reference, Request
from edgewise.router.audit import Auditor, Draw
from edgewise.router.guard import Guard
from edgewise.router.instruments import Instruments
from edgewise.router.lifetime import Life, Lifetime
from edgewise.router.policies.threshold import BY_LABEL, NAME, CertifiedThreshold, RaisedThreshold, Uncovered
from edgewise.router.stages import Stage

if TYPE_CHECKING:
    from edgewise.router.complexity import Complexity

_log = logging.getLogger("edgewise.router")
_CERTIFIED = "certified"


class _InForce(NamedTuple):
    """What decides now.

    Attributes:
        rule: Decides.
        state: "certified", or the reason why local answers are not covered.
        scope: What local answers rest on.
        certificate: What covers them, or None.
        attributes: Names of the request attributes that decisions depend on.
    """

    rule: Policy
    state: str
    scope: str
    certificate: Certificate | None = None
    attributes: tuple[str, ...] = ()


class _Standing(NamedTuple):
    """Where a guard stood when it was last followed."""

    epoch: str
    stage: Stage
    newest_id: str


class Promise:
    """Answers locally what is covered now; implements `contracts.Policy`.

    Any thread may call it. `lock` guards what changes with it: hold it around a decision and what is read together with
    it, such as the scope that the decision rests on.

    Args:
        certificate: The certificate; None covers nothing.
        clock: Time, on which its stated life depends.
        instruments: Where its state is shown.
        guard: What the audits leave of it; None where nothing is audited.
        complexity: Texts that it calls too complex are escalated before the edge model runs.
    """

    name = NAME

    def __init__(
        self,
        certificate: Certificate | None,
        *,
        clock: Clock,
        instruments: Instruments,
        guard: Guard | None = None,
        complexity: Complexity | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self._given = certificate
        self._clock = clock
        self._instruments = instruments
        self._guard = guard
        self._complexity = complexity
        self._void = certificate is None
        self._life = Life.OK
        self._followed = self._standing()
        self._lifetime = _lifetime_of(self.newest)
        self._now = self._choose()
        self.look()
        if guard is not None:
            instruments.show_audits(guard.describe())

    @property
    def certificate(self) -> Certificate | None:
        """The certificate that covers local answers now, or None."""
        return self._now.certificate

    @property
    def newest(self) -> Certificate | None:
        """The newest certificate that there is, in force or not: the one given, or one that audits earned since."""
        return self._given if self._guard is None else self._guard.newest

    @property
    def is_learning(self) -> bool:
        """Whether audits collect the items of another certificate, so that each should know what the cloud says."""
        return self._guard is not None and self._guard.stage is not Stage.CERTIFIED

    def before(self, request: Request) -> Decision | None:
        """Escalate what is too complex for the edge model; of the rest nothing is known yet."""
        if self._complexity is None or not self._complexity.is_too_complex(request.inputs, request.attributes):
            return None
        return Decision(action=Action.ESCALATE, reason=Reason.TOO_COMPLEX, policy=NAME)

    def after(self, request: Request, prediction: Prediction, score: float) -> Decision:
        """By the rule of now: the certificate may have been voided while the edge model computed."""
        return self._now.rule.after(request, prediction, score)

    def scope(self, request: Request) -> str:
        """What a local answer to the request rests on: an answer of one scope may not be repeated in another."""
        now = self._now
        if not now.attributes:
            return now.scope
        return f"{now.scope} {[request.attributes.get(name) for name in now.attributes]}"

    def is_reference(self, reference: Reference) -> bool:
        """Whether it is the cloud that the promise speaks of."""
        return self._given is not None and reference == self._given.reference

    def draws(self, auditor: Auditor) -> bool:
        """Toss the coin whether a request is audited; nothing is while there is no promise to test."""
        if self._guard is None or self._void or self._life is not Life.OK:
            return False
        return auditor.draws(self._guard.share)

    def draw(self, auditor: Auditor, request: Request) -> Draw | None:
        """Put the audit of a request on record that the coin fell for; None where the promise has ended since.

        Raises:
            StoreError: It cannot be put on record.
        """
        with self.lock:
            if self._given is None or self._guard is None or self._void:
                return None
            return auditor.draw(request.id, self._guard.epoch, self._given.reference)

    def look(self) -> None:
        """Notice that the certificate's life is over, or that the clock cannot tell, or can again."""
        if self._lifetime is None:
            return
        with self.lock:
            life = self._lifetime.verdict(self._clock.time(), self._clock.monotonic())
            if life is not self._life:
                self._life = life
                self._now = self._choose()
                self._say_life(life)

    def heed(self) -> None:
        """Take over what the audits have led to; called after each verdict.

        Raises:
            StoreError: It cannot be read or written; what the guard made of it is in force all the same.
        """
        if self._guard is None or self._void:
            return
        with self.lock:
            try:
                self._guard.settled()
            finally:
                self._follow()
        self._instruments.show_audits(self._guard.describe())

    def heard(self, reference: Reference) -> None:
        """Void the promise, for good and loudly, when another cloud than the certified one answers."""
        if self._void or self._given is None or self.is_reference(reference):
            return
        with self.lock:
            self._void = True
            self._now = self._choose()
        _log.error(
            "Certificate %s is void: it was issued against %s %s, and %s %s answers now. Everything is escalated until "
            "this edge model is certified again: edgewise certify.",
            self._given.id,
            self._given.reference.name,
            self._given.reference.version,
            reference.name,
            reference.version,
        )

    def report(self) -> dict[str, Any]:
        """What the promise is worth now, in values that JSON has.

        Returns:
            "state", which is "certified" or the reason why local answers are not covered; "certificate_id", "alpha",
            "delta" and "expires" of the certificate that covers them, or None; "audits" as `GuardReport` has them, or
            None where nothing is audited.
        """
        covering = self._now.certificate
        audits = None if self._guard is None or self._void else msgspec.to_builtins(self._guard.describe())
        if audits is not None and math.isinf(audits["threshold"]):
            audits["threshold"] = str(audits["threshold"])  # as everywhere on the wire
        return {
            "state": self._now.state,
            "certificate_id": covering.id if covering else None,
            "alpha": covering.bound.alpha if covering else None,
            "delta": covering.bound.delta if covering else None,
            "expires": covering.expires if covering else None,
            "audits": audits,
        }

    def _follow(self) -> None:
        """Choose anew where the guard is not where it was when that was done last, whatever it said of it."""
        standing = self._standing()
        if standing != self._followed:
            before, self._followed = self._followed, standing
            if standing is None or before is None or standing.newest_id != before.newest_id:
                self._lifetime = _lifetime_of(self.newest)
            self._now = self._choose()

    def _standing(self) -> _Standing | None:
        guard = self._guard
        return None if guard is None else _Standing(guard.epoch, guard.stage, guard.newest.id)

    def _choose(self) -> _InForce:
        """Find what decides from now on, and show it."""
        now = self._in_force()
        self._instruments.certificate_valid.set(float(now.certificate is not None))
        return now

    def _in_force(self) -> _InForce:
        if self._void:
            return _nothing(Reason.CERTIFICATE_VOID)
        if self._life is not Life.OK:
            return _nothing(Reason.CERTIFICATE_EXPIRED)
        if self._guard is not None and self._guard.stage is Stage.CLOUD_ONLY:
            return _nothing(Reason.AUDIT_ALARM)
        if self._guard is not None and self._guard.stage is Stage.RAISED:
            rule = RaisedThreshold(self._guard.threshold)
            return _InForce(rule, Reason.THRESHOLD_RAISED.value, self._guard.epoch)
        certificate = self._given if self._guard is None else self._guard.certificate
        if certificate is None:
            return _nothing(Reason.CERTIFICATE_VOID)
        attributes = () if self._complexity is None else self._complexity.attributes
        if certificate.groups is not None and certificate.groups.by != BY_LABEL:
            attributes = (*attributes, certificate.groups.by)
        return _InForce(CertifiedThreshold(certificate), _CERTIFIED, certificate.id, certificate, attributes)

    def _say_life(self, life: Life) -> None:
        spoken_of = self.newest
        if spoken_of is None:
            return
        if life is Life.OK:
            _log.warning("By the clock of now certificate %s has not expired.", spoken_of.id)
        elif life is Life.EXPIRED:
            _log.error(
                "Certificate %s expired at %s. Everything is escalated until this edge model is certified again: "
                "edgewise certify; or, if the clock runs ahead, until it is put right.",
                spoken_of.id,
                spoken_of.expires,
            )
        else:
            _log.error(
                "The clock is too wrong to tell whether certificate %s, valid from %s to %s, has expired. Everything "
                "is escalated until the clock is right.",
                spoken_of.id,
                spoken_of.created,
                spoken_of.expires,
            )


def _nothing(reason: Reason) -> _InForce:
    return _InForce(Uncovered(reason), reason.value, reason.value)


def _lifetime_of(certificate: Certificate | None) -> Lifetime | None:
    """The stated life; None where none is stated."""
    if certificate is None or certificate.expires is None:
        return None
    return Lifetime(certificate.created, certificate.expires)
