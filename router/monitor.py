"""The audit's proof: a bet against the promise that grows for as long as the promise is broken. Pure.

Null: the chance that an audited request is a violation is at most alpha, at every time and given everything before it.
The bettor stakes on a larger risk q. A verdict multiplies the stake by q/alpha if it is a violation and by
(1-q)/(1-alpha) if not: under the null with risk p <= alpha the mean factor is

    p q/alpha + (1-p) (1-q)/(1-alpha)  =  1 - (alpha-p) (q-alpha) / (alpha (1-alpha))  <=  1,

since q > alpha, so wealth is a nonnegative supermartingale whatever q is chosen before the verdict: for the composite
null, not for p = alpha alone. By Ville's inequality (Ville 1939) it ever reaches 1/delta with probability <= delta.

A promise may break late, when a bet made at the start has long been lost. So the wealth of 1 is staked in parts: w(s)
enters before audit s, the weights sum to 1, and what has not entered yet waits as it is,

    M(t) = (M(t-1) + w(t)) factor(t),        E(t) = M(t) + sum of w(s) over s > t.

This is the mixture over starting times of Shiryaev and Roberts with weights that sum to 1 (Ramdas, Grünwald, Vovk &
Shafer 2023, section 5), so that the alarm stays false with probability <= delta for ever, not for one run length. q is
a plug-in estimate (Wald 1947; Waudby-Smith & Ramdas 2024): the share of violations among past audits, older ones
forgotten exponentially, after a prior. State and cost of an update are constant.

Owns no draw, no store and no answer to an alarm.
"""

from __future__ import annotations

import math
import sys

import msgspec
import numpy as np

from edgewise.errors import CertificateError
from edgewise.router.binomial import check_open_unit

_FIRST_STAKE = 0.6
"""Part of the wealth staked before the first audit: a promise is broken from the start more often than at any other
moment, and the logarithm of the rest is all that a late start costs."""

_TAIL = 3.0
"""Of the rest, log(3) / log(2 + t) still waits after t audits: parts fall as 1 / (t log^2 t), the slowest that sums."""

_PRIOR_RISK = 3.0
"""Multiple of alpha that is bet on before anything is known."""

_PRIOR_VIOLATIONS = 1.0
_MEMORY_VIOLATIONS = 3.0
"""Audits that the prior is worth, and audits that are remembered, both in units of 1/alpha: the time in which a risk of
alpha gives one violation."""

_LEAST_RISK = 1.5
"""Multiple of alpha that is bet on at least: with q = alpha nothing would be bet."""


class MonitorState(msgspec.Struct, frozen=True, kw_only=True):
    """All that a monitor has to remember.

    Attributes:
        audits: Verdicts seen.
        violations: Violations among them.
        log_staked: Natural logarithm of M, the wealth that was staked; None before the first verdict.
        recent_audits: Number of verdicts, older ones forgotten exponentially.
        recent_violations: Violations among those.
        alarm: Whether E ever reached 1/delta.
    """

    audits: int = 0
    violations: int = 0
    log_staked: float | None = None
    recent_audits: float = 0.0
    recent_violations: float = 0.0
    alarm: bool = False


class AuditMonitor:
    """Tells from a stream of verdicts, at any time, that the risk is above alpha.

    With probability at least 1-delta there is never an alarm while the risk is at most alpha, however long one looks
    and however often.

    Args:
        alpha: The promised bound on the risk, in (0, 1).
        delta: Probability with which a false alarm may ever be raised, in (0, 1).

    Raises:
        ConfigError: alpha or delta is outside (0, 1).
    """

    def __init__(self, alpha: float, delta: float) -> None:
        check_open_unit("alpha", alpha)
        check_open_unit("delta", delta)
        self._alpha = float(alpha)
        self._log_limit = -math.log(delta)
        self._largest_bet = (1 + self._alpha) / 2
        self._smallest_bet = min(_LEAST_RISK * self._alpha, self._largest_bet)
        self._memory = 1 - min(1.0, self._alpha / _MEMORY_VIOLATIONS)
        self._audits = 0
        self._violations = 0
        self._log_staked = -math.inf
        self._recent_audits = 0.0
        self._recent_violations = 0.0
        self._alarm = False

    @classmethod
    def resumed(cls, alpha: float, delta: float, state: MonitorState) -> AuditMonitor:
        """A monitor that goes on where another one of the same alpha and delta was.

        Raises:
            ConfigError: alpha or delta is outside (0, 1).
        """
        monitor = cls(alpha, delta)
        monitor._audits = state.audits
        monitor._violations = state.violations
        monitor._log_staked = -math.inf if state.log_staked is None else state.log_staked
        monitor._recent_audits = state.recent_audits
        monitor._recent_violations = state.recent_violations
        monitor._alarm = state.alarm
        return monitor

    @property
    def state(self) -> MonitorState:
        """All that `resumed` needs."""
        return MonitorState(
            audits=self._audits,
            violations=self._violations,
            log_staked=self._log_staked if self._audits else None,
            recent_audits=self._recent_audits,
            recent_violations=self._recent_violations,
            alarm=self._alarm,
        )

    @property
    def e_value(self) -> float:
        """E now: evidence against the promise, 1 at the start; the largest float where it would be larger."""
        return math.exp(min(self._log_e_value(), _LARGEST_LOG))

    @property
    def alarm(self) -> bool:
        """Whether E ever reached 1/delta."""
        return self._alarm

    def update(self, violation: bool) -> None:
        """Take the next verdict, in draw order.

        Raises:
            CertificateError: It is neither True nor False, nor 1 nor 0.
        """
        if not isinstance(violation, int | np.bool_ | np.integer) or violation not in (0, 1):
            raise CertificateError(f"The verdict of an audit is {violation!r}.", "Give True or False.")
        bet = self._bet()  # chosen before the verdict is looked at: this is what makes the bet fair
        factor = bet / self._alpha if violation else (1 - bet) / (1 - self._alpha)
        entering = _waiting(self._audits) - _waiting(self._audits + 1)
        self._log_staked = _log_sum(self._log_staked, math.log(entering)) + math.log(factor)
        self._audits += 1
        self._violations += int(violation)
        self._recent_audits = self._memory * self._recent_audits + 1
        self._recent_violations = self._memory * self._recent_violations + int(violation)
        self._alarm = self._alarm or self._log_e_value() >= self._log_limit

    def _bet(self) -> float:
        """The risk that is bet on next: the recent share of violations after the prior, above alpha and below 1."""
        prior_risk = min(_PRIOR_RISK * self._alpha, self._largest_bet)
        prior_audits = _PRIOR_VIOLATIONS / self._alpha
        estimate = (prior_audits * prior_risk + self._recent_violations) / (prior_audits + self._recent_audits)
        return min(max(estimate, self._smallest_bet), self._largest_bet)

    def _log_e_value(self) -> float:
        return _log_sum(self._log_staked, math.log(_waiting(self._audits)))


_LARGEST_LOG = math.log(sys.float_info.max)


def _waiting(audits: int) -> float:
    """The part of the wealth that is not staked before the given number of audits is over."""
    return (1 - _FIRST_STAKE) * math.log(_TAIL) / math.log(_TAIL + audits - 1) if audits else 1.0


def _log_sum(one: float, other: float) -> float:
    """Logarithm of the sum of two numbers given by their logarithms; the second is finite."""
    larger, smaller = max(one, other), min(one, other)
    return larger + math.log1p(math.exp(smaller - larger))
