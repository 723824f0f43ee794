"""What the router counts, registered once. Owns names and meanings of these series, not their storage."""

from __future__ import annotations

from edgewise.telemetry import Metrics


class Instruments:
    """The router's counters and gauges.

    Args:
        metrics: The registry that is scraped.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.cloud_calls = metrics.counter(
            "edgewise_cloud_calls_total", "Calls to the cloud by outcome: ok, failed or late.", ("outcome",)
        )
        self.audits = metrics.counter(
            "edgewise_audits_total", "Audited requests by outcome: kept, violated or missing.", ("outcome",)
        )
        self.provisional = metrics.counter(
            "edgewise_provisional_total", "Provisional answers by what became of them: sent or corrected.", ("event",)
        )
        self.breaker_open = metrics.gauge("edgewise_breaker_open", "1 while no request waits for the cloud.")
        self.certificate_valid = metrics.gauge(
            "edgewise_certificate_valid", "1 while a certificate is in force, 0 where none is or it was voided."
        )
