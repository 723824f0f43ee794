"""What the router counts, registered once. Names and meanings are `telemetry`'s."""

from __future__ import annotations

from edgewise import telemetry
from edgewise.telemetry import Metrics


class Instruments:
    """The router's counters and gauges.

    Args:
        metrics: The registry that is scraped.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.cloud_calls = metrics.counter(*telemetry.CLOUD_CALLS)
        self.audits = metrics.counter(*telemetry.AUDITS)
        self.provisional = metrics.counter(*telemetry.PROVISIONAL)
        self.provisional_open = metrics.gauge(*telemetry.PROVISIONAL_OPEN)
        self.breaker_open = metrics.gauge(*telemetry.BREAKER_OPEN)
        self.certificate_valid = metrics.gauge(*telemetry.CERTIFICATE_VALID)
