"""Thresholds from audits: the one that an alarm raises to, and the certificate that fresh audits earn. Pure.

Owns what a verdict counts for in either, and the account of delta. When they are asked for is `guard`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import AuditVerdict, Certificate
from edgewise.files import sha256_bytes
from edgewise.router import certificate as certificates
from edgewise.router.lifetime import seconds_of

_DECILES = np.arange(1, 10) / 10


def delta_of(attempt: int, delta: float) -> float:
    """What the j-th recertification may spend: 6 delta / (pi^2 j^2), which sums to delta; the original has all of it.

    Args:
        attempt: j, 0 for the original certificate.
        delta: The original's.
    """
    return delta if attempt == 0 else 6 * delta / (math.pi**2 * attempt**2)


def raised_threshold(verdicts: Sequence[AuditVerdict], *, alpha: float, delta: float) -> float:
    """The threshold that the latest audits would certify on their own; infinity where none would be.

    Looks at the fewest that can certify anything: a promise that breaks late would drown in a longer past. What it
    returns is no certificate, since the alarm chose the moment. Every violation was above the threshold in force, so
    the result is too.

    Args:
        verdicts: Settled verdicts in draw order.
        alpha: Bound on the risk.
        delta: Probability with which the bound may fail.
    """
    needed = certificates.items_needed(alpha, delta)
    latest = verdicts[-needed:]
    violated = np.array([verdict.violation for verdict in latest], dtype=np.bool_)
    if len(latest) < needed or not violated.any():
        return math.inf
    scores = np.array([math.inf if verdict.score is None else verdict.score for verdict in latest])
    return certificates.certify(scores, violated, alpha=alpha, delta=delta).threshold


def recertify(
    original: Certificate, sample: Sequence[AuditVerdict], *, attempt: int, items: int, now_s: float
) -> Certificate | None:
    """The certificate that fresh audits earn for the same models, or None where they certify nothing.

    What is not known counts against it: a request without a verdict differs, and one whose score is not known either
    is lost at every threshold.

    Args:
        original: The certificate whose promise is to be made again.
        sample: The first `items` settled verdicts of an epoch, in draw order; fewer certify nothing.
        attempt: Which recertification it is, from 1.
        items: Size of the sample, fixed before its first draw.
        now_s: Seconds since the epoch, for its date.
    """
    if len(sample) < items:
        return None
    scores, differs = _columns(sample)
    delta = delta_of(attempt, original.bound.delta)
    bound = certificates.certify(scores, differs, alpha=original.bound.alpha, delta=delta)
    known = scores[np.isfinite(scores)]
    if not (known > bound.threshold).any():
        return None
    return certificates.issue(
        bound,
        model_digest=original.model_digest,
        signal=original.signal,
        data_digest="sha256:" + sha256_bytes(msgspec.msgpack.encode(list(sample))),
        reference=original.reference,
        created=_iso(now_s),
        runtime=original.runtime,
        isa=original.isa,
        target=original.target,
        expires=_expires(original, now_s),
        fitted_digest=original.fitted_digest,
        score_deciles=tuple(float(score) for score in np.quantile(known, _DECILES)),
        out_of_distribution_share=1 - len(known) / len(scores),
        recertification=attempt,
        judge=original.judge,
    )


def _columns(sample: Sequence[AuditVerdict]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Score and difference by verdict."""
    differs = np.array([verdict.missing or verdict.differs is not False for verdict in sample], dtype=np.bool_)
    unknown = np.where(differs, math.inf, math.nan)
    scores = np.array([math.nan if verdict.score is None else verdict.score for verdict in sample], dtype=np.float64)
    is_unknown = np.array([verdict.score is None for verdict in sample], dtype=np.bool_)
    return np.where(is_unknown, unknown, scores), differs


def _expires(original: Certificate, now_s: float) -> str | None:
    """The end of a life as long as the original's."""
    if original.expires is None:
        return None
    return _iso(now_s + seconds_of(original.expires) - seconds_of(original.created))


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
