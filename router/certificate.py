"""Certificates: from scores and disagreements on calibration items to a threshold with a promise. Pure.

The promise: with probability at least 1-delta over the draw of the calibration items, the chance that a request is
answered locally, as final, *and* differently from the reference cloud is at most alpha. It is an expected loss for
requests distributed as the calibration items, not a realised fraction, and it is silent under any shift of them.

Owns the mathematics and the certificate's text form. Reads no file and asks no cloud.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgewise.contracts import Bound, Certificate, Reference
from edgewise.errors import CertificateError, ConfigError, TooFewItemsError

TARGET_AGREEMENT = "agreement"
_ROUNDING = 1e-9
"""Relative distance from delta under which a floating-point binomial sum is settled by exact fractions."""

_LARGEST_EXACT = 10_000
_SMALLEST = 1e-9


def certify(scores: ArrayLike, disagree: ArrayLike, *, alpha: float, delta: float) -> Bound:
    """Find the lowest threshold whose risk is certified: answer locally iff score > threshold.

    A disagreeing item is lost at every threshold below its score, so the risk falls as the threshold rises and one
    exact binomial test suffices for all thresholds at once. With k* the largest k for which
    BinomCDF(k; n, alpha) <= delta (Clopper & Pearson 1934), the threshold is the (k*+1)-th largest score among the
    disagreeing items, and minus infinity where at most k* items disagree. Ties fall on the safe side. An item whose
    score is NaN is never answered locally and counts in n.

    Args:
        scores: Confidence of each calibration item, shape (n,), from the path that serves (batch of one, same runtime).
        disagree: Whether edge and reference cloud differ on the item, shape (n,), booleans or 0 and 1.
        alpha: Bound on the risk, in (0, 1).
        delta: Probability with which the bound may fail, in (0, 1).

    Returns:
        The bound, with `.threshold`, `.local_share`, `.n` and `.k`.

    Raises:
        ConfigError: alpha or delta is outside (0, 1).
        CertificateError: The arrays have different lengths or are no vectors, or `disagree` is not boolean.
        TooFewItemsError: n is too small to certify anything; names the n needed.
    """
    score_vector, disagreement = _checked_vectors(scores, disagree)
    alpha, delta = float(alpha), float(delta)
    n = len(score_vector)
    needed = items_needed(alpha, delta)
    if n < needed:
        raise TooFewItemsError(n, needed, alpha, delta)
    k = allowed_disagreements(n, alpha, delta)
    threshold = _threshold(score_vector[disagreement], k)
    with np.errstate(invalid="ignore"):
        local = score_vector > threshold
    return Bound(threshold=threshold, local_share=float(local.mean()), n=n, k=k, alpha=alpha, delta=delta)


def items_needed(alpha: float, delta: float) -> int:
    """Smallest n that can certify anything: (1-alpha)^n <= delta.

    Raises:
        ConfigError: alpha or delta is outside (0, 1).
    """
    _check_open_unit("alpha", alpha)
    _check_open_unit("delta", delta)
    guess = math.ceil(math.log(delta) / math.log1p(-alpha))
    return next(n for n in itertools.count(max(guess - 1, 1)) if _none_lost_is_enough(n, alpha, delta))


def allowed_disagreements(n: int, alpha: float, delta: float) -> int:
    """k*: the largest k with BinomCDF(k; n, alpha) <= delta, or -1 where there is none."""
    cdf = _binomial_cdf(n, alpha)
    k = int(np.searchsorted(cdf, delta, side="right")) - 1
    while k + 1 <= n and _near(cdf[k + 1], delta) and _exact_cdf(k + 1, n, alpha) <= Fraction(delta):
        k += 1
    while k >= 0 and _near(cdf[k], delta) and _exact_cdf(k, n, alpha) > Fraction(delta):
        k -= 1
    return k


def unsurprising_violations(n: int, alpha: float) -> int:
    """Violations among `n` requests that a risk of exactly alpha exceeds with at most 5 % probability.

    A certificate bounds the expected share of violations; what is counted on `n` requests scatters around it.
    """
    return int(np.searchsorted(_binomial_cdf(n, alpha), 0.95))


def _threshold(disagreeing_scores: NDArray[np.float64], k: int) -> float:
    """The (k+1)-th largest of the disagreeing items' scores, NaN left out."""
    comparable = disagreeing_scores[~np.isnan(disagreeing_scores)]
    if len(comparable) <= k:
        return -math.inf
    return float(np.sort(comparable)[-(k + 1)])


def _binomial_cdf(n: int, alpha: float) -> NDArray[np.float64]:
    """BinomCDF(k; n, alpha) for k = 0 … n, summed in log space so that (1-alpha)^n may underflow."""
    k = np.arange(n, dtype=np.float64)
    steps = np.log((n - k) / (k + 1)) + math.log(alpha) - math.log1p(-alpha)
    log_pmf = n * math.log1p(-alpha) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.cumsum(np.exp(log_pmf))


def _none_lost_is_enough(n: int, alpha: float, delta: float) -> bool:
    """(1-alpha)^n <= delta; where rounding could decide and n is too large for fractions, the safe side."""
    needed, reached = -math.log(delta), -n * math.log1p(-alpha)
    if abs(reached - needed) > _ROUNDING * needed:
        return reached > needed
    return n <= _LARGEST_EXACT and _exact_cdf(0, n, alpha) <= Fraction(delta)


def _exact_cdf(k: int, n: int, alpha: float) -> Fraction:
    p = Fraction(alpha)
    return sum((math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)), Fraction(0))


def _near(cdf: float, delta: float) -> bool:
    return abs(cdf - delta) <= _ROUNDING * delta


def _check_open_unit(name: str, value: float) -> None:
    if not _SMALLEST <= value <= 1 - _SMALLEST:
        raise ConfigError(f"{name} is {value!r}.", f"Give {name} between 0 and 1, both excluded, such as 0.01.")


def _checked_vectors(scores: ArrayLike, disagree: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    score_vector = np.asarray(scores, dtype=np.float64)
    flags = np.asarray(disagree)
    if score_vector.ndim != 1 or flags.shape != score_vector.shape:
        raise CertificateError(
            f"scores have shape {score_vector.shape} and disagree has shape {flags.shape}.",
            "Give two vectors of one length, one entry a calibration item.",
        )
    if flags.size and flags.dtype != np.bool_ and not np.isin(flags, (0, 1)).all():
        raise CertificateError("disagree holds values other than 0 and 1.", "Give booleans: True where they differ.")
    return score_vector, flags.astype(np.bool_)


def issue(
    bound: Bound,
    *,
    model_digest: str,
    signal: str,
    data_digest: str,
    reference: Reference,
    created: str,
    runtime: str,
    isa: str,
    target: str = TARGET_AGREEMENT,
) -> Certificate:
    """Tie a bound to the identity of everything it was proved for; the id is the digest of all of it."""
    unsigned = Certificate(
        id="",
        bound=bound,
        target=target,
        model_digest=model_digest,
        signal=signal,
        data_digest=data_digest,
        reference=reference,
        created=created,
        runtime=runtime,
        isa=isa,
    )
    return msgspec.structs.replace(unsigned, id=_digest(unsigned))


def encode(certificate: Certificate) -> bytes:
    """The certificate as JSON; infinite thresholds, which JSON lacks, as the strings "inf" and "-inf"."""
    return msgspec.json.format(msgspec.json.encode(_builtins(certificate)), indent=2) + b"\n"


def decode(data: bytes) -> Certificate:
    """Read a certificate and check that it says what it was issued with.

    Raises:
        CertificateError: It is no certificate, or was changed after it was issued.
    """
    try:
        raw = msgspec.json.decode(data)
        raw["bound"]["threshold"] = float(raw["bound"]["threshold"])
        certificate = msgspec.convert(raw, Certificate)
        _check_plausible(certificate.bound)
    except (ConfigError, msgspec.MsgspecError, TypeError, KeyError, ValueError, OverflowError, RecursionError) as error:
        raise CertificateError(f"This is not a certificate: {error}.", "Issue one: edgewise certify.") from error
    if certificate.id != _digest(certificate):
        raise CertificateError(
            f"Certificate {certificate.id} was changed after it was issued.", "Issue it again: edgewise certify."
        )
    return certificate


def _check_plausible(bound: Bound) -> None:
    """Raise where a bound cannot have come from `certify`."""
    _check_open_unit("alpha", bound.alpha)
    _check_open_unit("delta", bound.delta)
    if math.isnan(bound.threshold) or not (0 <= bound.k <= bound.n and 0 <= bound.local_share <= 1):
        raise ValueError("its bound is impossible")


def check_model(certificate: Certificate, model_digest: str) -> None:
    """Refuse a certificate of another model, or of something else than agreement.

    Raises:
        CertificateError: It does not speak of what this bundle will be used for.
    """
    if certificate.target != TARGET_AGREEMENT:
        raise CertificateError(
            f"Certificate {certificate.id} bounds {certificate.target!r}, which this edgewise does not know.",
            f"Use one that bounds {TARGET_AGREEMENT!r}.",
        )
    if certificate.model_digest != model_digest:
        raise CertificateError(
            f"Certificate {certificate.id} was issued for {certificate.model_digest}, the bundle is {model_digest}.",
            "Certify this bundle: edgewise certify BUNDLE.",
        )


def _builtins(certificate: Certificate) -> dict[str, Any]:
    raw: dict[str, Any] = msgspec.to_builtins(certificate)
    if math.isinf(certificate.bound.threshold):
        raw["bound"]["threshold"] = str(certificate.bound.threshold)
    return raw


def _digest(certificate: Certificate) -> str:
    raw = _builtins(certificate)
    del raw["id"]
    canonical = msgspec.json.encode(raw, order="sorted")
    return f"sha256:{hashlib.sha256(canonical).hexdigest()}"
