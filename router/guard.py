"""What audits make of a certificate: its stages from the certificate on, over alarms, to the next certificate.

    certified ── alarm ──> raised ── alarm ──> cloud_only
        ^                    │                     │
        └── enough fresh audits certify again ─────┘

Owns the order of the stages, the samples that a recertification looks at and the delta that it may spend. Reads and
writes through the audit log alone, so that a process that is killed resumes exactly where it was; time is passed in.
Draws are `audit`'s, the proof is `monitor`'s, and what a stage means for a request is the policies'.

One thread at a time calls a guard: `promise` holds its lock meanwhile.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence

import msgspec

from edgewise.contracts import AuditLog, AuditVerdict, Certificate, Clock
from edgewise.errors import CertificateError, StoreError
from edgewise.router import certificate as certificates
from edgewise.router.monitor import AuditMonitor, MonitorState
from edgewise.router.recertification import delta_of, raised_threshold, recertify
from edgewise.router.stages import GuardReport, GuardSettings, OnAlarm, Stage

_log = logging.getLogger("edgewise.router")
_MOST_ATTEMPTS = 1000
"""Recertifications after which nobody tries again: the delta that is left would need ever more audits for nothing."""


class _Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a certificate beside its verdicts.

    `number` counts epochs, `attempt` recertifications begun; `items` is what the running one looks at, fixed before its
    first draw, 0 where none is running; `certificate` is the newest one earned from audits, as JSON; `alarm` is what
    the latest alarm said.
    """

    stage: Stage = Stage.CERTIFIED
    number: int = 0
    attempt: int = 0
    items: int = 0
    threshold: float | None = None
    certificate: bytes | None = None
    alarm: str = ""


class Guard:
    """Follows the audits of one certificate.

    Its monitor tests agreement alone: a certificate of another target is counted and never doubted here, since audits
    know no labels. A certificate by groups is tested as a whole; after an alarm everything goes to the cloud and it is
    not certified again, since a group would need a sample of its own.

    Args:
        certificate: The certificate that was issued from calibration items.
        log: Draws and verdicts; also keeps the standing.
        settings: The answer to an alarm.
        clock: The time, for the date of a certificate.

    Raises:
        StoreError: The log cannot be read or written, or what it kept is not readable.
    """

    def __init__(self, certificate: Certificate, log: AuditLog, settings: GuardSettings, clock: Clock) -> None:
        self._original = certificate
        self._log = log
        self._settings = settings
        self._clock = clock
        self._warned = False
        self._monitor = MonitorState()
        self._unsaved = False
        self._enter(self._recalled())
        self.settled()  # a process that died may have left verdicts that nobody has weighed yet

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self._standing.stage

    @property
    def certificate(self) -> Certificate | None:
        """The certificate that covers local answers now: the original, or one earned since; None in other stages."""
        return self._newest if self.stage is Stage.CERTIFIED else None

    @property
    def newest(self) -> Certificate:
        """The newest certificate that there is, in force or not: the original, or one earned since."""
        return self._newest

    @property
    def threshold(self) -> float:
        """Local iff score > threshold; of a certificate by groups its own thresholds count while it is in force."""
        if self.stage is Stage.CLOUD_ONLY:
            return math.inf
        raised = self._standing.threshold
        return self._newest.bound.threshold if raised is None else raised

    @property
    def epoch(self) -> str:
        """What new draws belong to: the original certificate's id, and a number from the first alarm on."""
        number = self._standing.number
        return f"{self._original.id}#{number}" if number else self._original.id

    @property
    def share(self) -> float | None:
        """Probability with which a request is audited now; None leaves it at the usual one."""
        if self._standing.items:
            return self._settings.recertify_share
        return 0.0 if self.stage is Stage.CLOUD_ONLY else None

    def settled(self) -> bool:
        """Weigh the verdicts that came in; call it after verdicts. Returns whether the stage or certificate changed.

        Raises:
            StoreError: The log cannot be read or written; stage and certificate may have changed all the same. The next
                call writes what could not be written.
        """
        try:
            return self._weigh()
        finally:
            self._save()

    def _weigh(self) -> bool:
        if self.stage is not Stage.CLOUD_ONLY:
            self._monitor = _decoded_monitor(self._log.advance(self.epoch, self._fold))
        following = self._following()
        if following is None:
            return False
        # In force before it is on disk, so that a full disk keeps no broken promise in force. What is lost with the
        # process is found again from the verdicts.
        self._enter(following)
        self._unsaved = True
        return True

    def _save(self) -> None:
        if self._unsaved:
            self._log.remember(self._key, msgspec.msgpack.encode(self._standing))
            self._unsaved = False

    def describe(self) -> GuardReport:
        """Where it stands, counts read from the log.

        Raises:
            StoreError: The log cannot be read.
        """
        totals = self._log.totals(self.epoch)
        is_tested = self._tests_agreement and self.stage is not Stage.CLOUD_ONLY
        return GuardReport(
            stage=self.stage,
            certificate_id=self.certificate.id if self.certificate else None,
            alarm=self.stage is not Stage.CERTIFIED or self._monitor_alarm,
            e_value=self._e_value if is_tested else None,
            threshold=self.threshold,
            drawn=totals.drawn,
            violations=totals.violations,
            missing=totals.missing,
            open=totals.open,
            attempt=self._standing.attempt,
            items_needed=max(0, self._standing.items - (totals.drawn - totals.open)),
            last_alarm=self._standing.alarm or None,
        )

    # Stages

    def _following(self) -> _Standing | None:
        """The standing that the verdicts lead to, or None where everything stays."""
        following = None
        if self.stage is not Stage.CLOUD_ONLY and self._monitor_alarm:
            following = self._after_alarm()
        if following is None and self._standing.items:
            following = self._after_sample()
        return following

    def _after_alarm(self) -> _Standing | None:
        warns = self._settings.on_alarm is OnAlarm.WARN
        if warns and self._warned:
            return None
        self._warned = True
        threshold = math.inf
        if self._settings.on_alarm is OnAlarm.RAISE and self.stage is Stage.CERTIFIED and self._original.groups is None:
            verdicts = self._log.verdicts(self.epoch, sys.maxsize)
            threshold = raised_threshold(verdicts, alpha=self._alpha, delta=self._delta)
        following = None if warns else self._next_epoch(Stage.CLOUD_ONLY if threshold == math.inf else Stage.RAISED)
        said = self._report_alarm(following, threshold)
        if following is None:
            return None
        raised = threshold if following.stage is Stage.RAISED else None
        return msgspec.structs.replace(following, threshold=raised, alarm=said)

    def _sample(self) -> list[AuditVerdict] | None:
        """The first audits of the epoch, as many as were fixed, or None while one of them has no verdict.

        Fewer where the log does not keep so many: a sample that cannot be had.
        """
        items = self._standing.items
        if self.stage is Stage.RAISED:
            return self._log.verdicts(self.epoch, items) if self._monitor.audits >= items else None
        totals = self._log.totals(self.epoch)
        if totals.drawn - totals.open < items:
            return None
        sample = self._log.verdicts(self.epoch, items)
        return sample if len(sample) == items else None

    def _after_sample(self) -> _Standing | None:
        """Certify from fresh audits, each sample once, whatever comes of it."""
        sample = self._sample()
        if sample is None:
            return None
        items = self._standing.items
        attempt = self._standing.attempt
        earned = recertify(self._original, sample, attempt=attempt, items=items, now_s=self._clock.time())
        if earned is None:
            _log.error(
                "Recertification %d of certificate %s failed: %d fresh audits certify no threshold. Everything is "
                "escalated; the next one takes the next audits.",
                *(attempt, self._original.id, items),
            )
            return self._next_epoch(Stage.CLOUD_ONLY)
        _log.warning(
            "Certificate %s was earned from %d fresh audits, recertification %d of %s: threshold %g, %.1f %% answered "
            "locally, alpha %g, delta %g.",
            *(earned.id, items, attempt, self._original.id),
            *(earned.bound.threshold, 100 * earned.bound.local_share, earned.bound.alpha, earned.bound.delta),
        )
        return _Standing(
            number=self._standing.number + 1,
            attempt=attempt,
            certificate=certificates.encode(earned),
            alarm=self._standing.alarm,
        )

    def _next_epoch(self, stage: Stage) -> _Standing:
        """A stage without a certificate; where it may earn one, the size of its sample is fixed here."""
        attempt = self._standing.attempt
        items = 0
        if self._original.groups is None and self._settings.recertify_share > 0 and attempt < _MOST_ATTEMPTS:
            attempt += 1
            delta = delta_of(attempt, self._original.bound.delta)
            items = max(self._settings.recertify_items, certificates.items_needed(self._alpha, delta))
        return msgspec.structs.replace(
            self._standing, stage=stage, number=self._standing.number + 1, attempt=attempt, items=items, threshold=None
        )

    def _report_alarm(self, following: _Standing | None, threshold: float) -> str:
        outcome = "Nothing is changed, since on_alarm is warn"
        if following is not None and following.stage is Stage.RAISED:
            outcome = f"The threshold is raised from {self.threshold:g} to {threshold:g}, and no answer is certified"
        elif following is not None:
            outcome = "Everything is escalated"
        if following is not None and following.items:
            outcome += f" until {following.items} fresh audits certify again"
        missing = min(self._log.totals(self.epoch).missing, self._monitor.violations)  # some may not be weighed yet
        differing = self._monitor.violations - missing
        first = "see why the cloud gave no verdicts; then " if missing > differing else ""
        said = (
            f"Audit alarm: certificate {self._newest.id} does not keep its promise. Of {self._monitor.audits} audited "
            f"requests {differing} were answered locally and differently from the cloud, {missing} have no verdict, "
            f"which counts the same. {100 * self._alpha:g} % were promised: e-value {self._e_value:.3g}, limit "
            f"{1 / self._delta:.3g}. {outcome}. What to do: {first}edgewise certify, with items of today."
        )
        _log.error("%s", said)
        return said

    # State

    @property
    def _alpha(self) -> float:
        return self._original.bound.alpha

    @property
    def _delta(self) -> float:
        """The level of the present epoch's monitor."""
        return delta_of(self._standing.attempt, self._original.bound.delta)

    @property
    def _e_value(self) -> float:
        return AuditMonitor.resumed(self._alpha, self._delta, self._monitor).e_value

    @property
    def _tests_agreement(self) -> bool:
        return self._original.target == certificates.TARGET_AGREEMENT

    @property
    def _monitor_alarm(self) -> bool:
        return self._tests_agreement and self._monitor.alarm

    @property
    def _key(self) -> str:
        return f"guard:{self._original.id}"

    def _enter(self, standing: _Standing) -> None:
        self._standing = standing
        self._newest = self._original if standing.certificate is None else _decoded_certificate(standing.certificate)
        self._monitor = MonitorState()

    def _recalled(self) -> _Standing:
        kept = self._log.recall(self._key)
        if kept is None:
            return _Standing()
        try:
            return msgspec.msgpack.decode(kept, type=_Standing)
        except msgspec.MsgspecError as error:
            raise _unreadable("standing of a certificate", error) from error

    def _fold(self, state: bytes | None, verdicts: Sequence[AuditVerdict]) -> bytes:
        before = MonitorState() if state is None else _decoded_monitor(state)
        monitor = AuditMonitor.resumed(self._alpha, self._delta, before)
        for verdict in verdicts:
            monitor.update(verdict.violation)
        return msgspec.msgpack.encode(monitor.state)


def _decoded_monitor(state: bytes) -> MonitorState:
    try:
        return msgspec.msgpack.decode(state, type=MonitorState)
    except msgspec.MsgspecError as error:
        raise _unreadable("state of an audit", error) from error


def _decoded_certificate(data: bytes) -> Certificate:
    try:
        return certificates.decode(data)
    except CertificateError as error:
        raise _unreadable("certificate", error) from error


def _unreadable(what: str, error: Exception) -> StoreError:
    return StoreError(f"A stored {what} cannot be read: {error}.", "Restore the store from a backup.")
