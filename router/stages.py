"""The stages of a promise under audit, what an alarm leads to, and where a guard stands. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from edgewise.errors import ConfigError


class Stage(StrEnum):
    """How far the promise is trusted."""

    CERTIFIED = "certified"
    RAISED = "raised"
    """Answered locally above a raised threshold, uncertified."""
    CLOUD_ONLY = "cloud_only"
    """Nothing is answered locally."""


class OnAlarm(StrEnum):
    """What an alarm leads to."""

    RAISE = "raise"
    """Raise the threshold, and go to the cloud only where that is not possible or not enough."""
    CLOUD_ONLY = "cloud_only"
    WARN = "warn"
    """Say so, and change nothing."""


@dataclass(frozen=True)
class GuardSettings:
    """What becomes of a certificate after an alarm.

    Attributes:
        on_alarm: The answer to an alarm.
        recertify_share: Probability with which a request is audited after an alarm, in [0, 1]; 0 never certifies again.
        recertify_items: Fresh audits that a recertification looks at; more where these could not certify anything.

    Raises:
        ConfigError: A setting is out of its range.
    """

    on_alarm: OnAlarm = OnAlarm.RAISE
    recertify_share: float = 1.0
    recertify_items: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.recertify_share <= 1:
            raise ConfigError(f"recertify_share is {self.recertify_share!r}.", "Give a probability between 0 and 1.")
        if self.recertify_items < 1:
            raise ConfigError(f"recertify_items is {self.recertify_items!r}.", "Give a number above 0, such as 1000.")


class GuardReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where a guard stands.

    Attributes:
        stage: The stage.
        certificate_id: The certificate that covers local answers now, or None.
        alarm: Whether the promise was shown to be broken and nothing has been certified since.
        e_value: Evidence against the promise; the alarm is at 1/delta. None where nothing is tested.
        threshold: Local iff score > threshold.
        drawn: Draws of the present epoch.
        violations: Violations among them, missing verdicts included.
        missing: Draws among them whose verdict never came.
        open: Draws among them that wait for their verdict.
        attempt: Recertifications begun under the original certificate.
        items_needed: Audits that the next recertification still waits for; 0 where none is to come.
        last_alarm: What the latest alarm that changed something said, with its evidence; None where there was none.
    """

    stage: Stage
    certificate_id: str | None
    alarm: bool
    e_value: float | None
    threshold: float
    drawn: int
    violations: int
    missing: int
    open: int
    attempt: int
    items_needed: int
    last_alarm: str | None = None
