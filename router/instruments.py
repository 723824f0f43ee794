"""What the router counts, registered once. Names and meanings are `telemetry`'s."""

from __future__ import annotations

import math

from edgewise import telemetry
from edgewise.contracts import Spending
from edgewise.router.stages import GuardReport, Stage
from edgewise.telemetry import Gauge, Metrics


class Instruments:
    """The router's counters and gauges.

    Args:
        metrics: The registry that is scraped.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.cloud_calls = metrics.counter(*telemetry.CLOUD_CALLS)
        self.cloud_hedges = metrics.counter(*telemetry.CLOUD_HEDGES)
        self.cloud_retries = metrics.counter(*telemetry.CLOUD_RETRIES)
        self.audits = metrics.counter(*telemetry.AUDITS)
        self.audit_stage = metrics.gauge(*telemetry.AUDIT_STAGE)
        self.audit_evidence = metrics.gauge(*telemetry.AUDIT_EVIDENCE)
        self.provisional = metrics.counter(*telemetry.PROVISIONAL)
        self.provisional_open = metrics.gauge(*telemetry.PROVISIONAL_OPEN)
        self.breaker_open = metrics.gauge(*telemetry.BREAKER_OPEN)
        self.breaker_openings = metrics.counter(*telemetry.BREAKER_OPENINGS)
        self.certificate_valid = metrics.gauge(*telemetry.CERTIFICATE_VALID)
        self.scores = metrics.counter(*telemetry.SCORES)
        self.score_drift = metrics.gauge(*telemetry.SCORE_DRIFT)
        self.spent_today = metrics.gauge(*telemetry.SPENT_TODAY)
        self.first_token = metrics.histogram(*telemetry.FIRST_TOKEN_SECONDS)
        self.tokens = metrics.counter(*telemetry.TOKENS)
        self.budget_missed = metrics.counter(*telemetry.BUDGET_MISSED)

    def show_audits(self, found: GuardReport) -> None:
        """Show what the audits found so far."""
        for stage in Stage:
            self.audit_stage.set(float(stage is found.stage), stage.value)
        self.audit_evidence.set(math.log10(found.e_value) if found.e_value else 0.0)


class ShownSpending:
    """A `contracts.Spending` that a gauge follows.

    Args:
        spending: Where spending is kept.
        gauge: Shows what was spent on the day last asked for.
    """

    def __init__(self, spending: Spending, gauge: Gauge) -> None:
        self._spending = spending
        self._gauge = gauge

    def spent(self, day: str) -> float:
        """Calls or money spent on a day, ISO 8601 date, UTC."""
        return self._shown(self._spending.spent(day))

    def spend(self, day: str, amount: float) -> float:
        """Add to a day's spending; returns the day's total."""
        return self._shown(self._spending.spend(day, amount))

    def _shown(self, total: float) -> float:
        self._gauge.set(total)
        return total
