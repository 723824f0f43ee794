"""Certificates: a bound tied to the identity of everything it was proved for, and its text form. Pure.

Owns identity, text form and what makes a certificate speak of a bundle. The mathematics is in `bounds.py`, offered here
too, so that certifying and issuing come from one place; how long it lives is in `lifetime.py`. Reads no file and asks
no cloud.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from edgewise.contracts import Bound, Certificate, Groups, Reference
from edgewise.errors import CertificateError, ConfigError
from edgewise.router.binomial import (
    allowed_disagreements,
    check_open_unit,
    group_items_needed,
    items_needed,
    unsurprising_violations,
)
from edgewise.router.bounds import (
    TARGET_ACCURACY,
    TARGET_AGREEMENT,
    TARGET_SELECTIVE,
    TARGETS,
    certify,
    certify_accuracy,
    certify_groups,
    certify_selective,
    threshold_grid,
)
from edgewise.router.lifetime import seconds_of

__all__ = [
    "TARGETS",
    "TARGET_ACCURACY",
    "TARGET_AGREEMENT",
    "TARGET_SELECTIVE",
    "allowed_disagreements",
    "certify",
    "certify_accuracy",
    "certify_groups",
    "certify_selective",
    "check_model",
    "decode",
    "encode",
    "group_items_needed",
    "issue",
    "items_needed",
    "threshold_grid",
    "unsurprising_violations",
]

_DECILES = 9


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
    expires: str | None = None,
    fitted_digest: str | None = None,
    groups: Groups | None = None,
    score_deciles: tuple[float, ...] = (),
    out_of_distribution_share: float = 0.0,
    recertification: int = 0,
    judge: str = "",
) -> Certificate:
    """Tie a bound to the identity of everything it was proved for; the id is the digest of all of it.

    The arguments are the fields of `contracts.Certificate`.
    """
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
        expires=expires,
        fitted_digest=fitted_digest,
        groups=groups,
        score_deciles=score_deciles,
        out_of_distribution_share=out_of_distribution_share,
        recertification=recertification,
        judge=judge,
    )
    return msgspec.structs.replace(unsigned, id=_digest(unsigned))


def encode(certificate: Certificate) -> bytes:
    """The certificate as JSON; infinite numbers, which JSON lacks, as the strings "inf" and "-inf"."""
    return msgspec.json.format(msgspec.json.encode(_plain(certificate)), indent=2) + b"\n"


def decode(data: bytes) -> Certificate:
    """Read a certificate and check that it says what it was issued with.

    Raises:
        CertificateError: It is no certificate, or was changed after it was issued.
    """
    try:
        raw = msgspec.json.decode(data)
        _restore_infinities(raw)
        certificate = msgspec.convert(raw, Certificate)
        _check_plausible(certificate)
    except (
        ConfigError,
        msgspec.MsgspecError,
        AttributeError,
        TypeError,
        KeyError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CertificateError(f"This is not a certificate: {error}.", "Issue one: edgewise certify.") from error
    if certificate.id != _digest(certificate):
        raise CertificateError(
            f"Certificate {certificate.id} was changed after it was issued.", "Issue it again: edgewise certify."
        )
    return certificate


def check_model(certificate: Certificate, model_digest: str, fitted_digest: str | None = None) -> None:
    """Refuse a certificate of another model, of other fits on the tuning part, or of an unknown target.

    Args:
        certificate: The certificate.
        model_digest: The bundle's digest.
        fitted_digest: Digest of what was fitted on the tuning part, as it lies beside the bundle; None where nothing
            does. A certificate that needs no fits does not mind them.

    Raises:
        CertificateError: It does not speak of what this bundle will be used for.
    """
    if certificate.target not in TARGETS:
        raise CertificateError(
            f"Certificate {certificate.id} bounds {certificate.target!r}, which this edgewise does not know.",
            f"Use one that bounds {', '.join(map(repr, TARGETS))}, or update edgewise.",
        )
    if certificate.model_digest != model_digest:
        raise CertificateError(
            f"Certificate {certificate.id} was issued for {certificate.model_digest}, the bundle is {model_digest}.",
            "Certify this bundle: edgewise certify BUNDLE.",
        )
    if certificate.fitted_digest not in (None, fitted_digest):
        found = "there are none" if fitted_digest is None else f"those here are {fitted_digest}"
        raise CertificateError(
            f"Certificate {certificate.id} needs the fits {certificate.fitted_digest}, {found}.",
            "Put the BUNDLE.fitted.npz of its day beside the bundle, or certify anew: edgewise certify BUNDLE.",
        )


def _check_plausible(certificate: Certificate) -> None:
    """Raise where a certificate cannot have come from `issue` after one of the bounds."""
    _check_bound(certificate.bound)
    if certificate.groups is not None:
        for bound in certificate.groups.bounds.values():
            _check_bound(bound)
        if certificate.bound not in certificate.groups.bounds.values():
            raise ValueError("its bound is none of its groups'")
    deciles = certificate.score_deciles
    if deciles and (len(deciles) != _DECILES or any(map(math.isnan, deciles)) or list(deciles) != sorted(deciles)):
        raise ValueError(f"its score_deciles are not {_DECILES} rising numbers")
    if not 0 <= certificate.out_of_distribution_share <= 1:
        raise ValueError("its out_of_distribution_share is impossible")
    if certificate.recertification < 0:
        raise ValueError("its recertification is negative")
    if certificate.expires is not None:
        _check_life(certificate.created, certificate.expires)


def _check_life(created: str, expires: str) -> None:
    if seconds_of(expires) <= seconds_of(created):
        raise ValueError("it expires before it was created")
    for moment in (created, expires):
        if datetime.fromisoformat(moment).tzinfo is None:
            raise ValueError(f"its time {moment!r} names no zone")


def _check_bound(bound: Bound) -> None:
    check_open_unit("alpha", bound.alpha)
    check_open_unit("delta", bound.delta)
    low, high = bound.local_share_interval
    if math.isnan(bound.threshold) or not (0 <= bound.k <= bound.n and 0 <= bound.local_share <= 1):
        raise ValueError("its bound is impossible")
    if not 0 <= low <= high <= 1:
        raise ValueError("its local_share_interval is impossible")


def _restore_infinities(raw: Any) -> None:
    """Turn the strings of `encode` into numbers again, in place, where an infinite number may stand."""
    bounds = [raw["bound"]]
    if raw.get("groups") is not None:
        bounds.extend(raw["groups"]["bounds"].values())
    for bound in bounds:
        bound["threshold"] = float(bound["threshold"])
    if "score_deciles" in raw:
        raw["score_deciles"] = [float(score) for score in raw["score_deciles"]]


def _plain(value: Any) -> Any:
    """A value as JSON has it, infinities as text. Fields with their default are left out: ids outlive new fields."""
    if isinstance(value, msgspec.Struct):
        fields = ((field, getattr(value, field.name)) for field in msgspec.structs.fields(value))
        return {field.name: _plain(found) for field, found in fields if found != field.default}
    if isinstance(value, Mapping):
        return {key: _plain(found) for key, found in value.items()}
    if isinstance(value, tuple):
        return [_plain(found) for found in value]
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value


def _digest(certificate: Certificate) -> str:
    raw = _plain(certificate)
    del raw["id"]
    canonical = msgspec.json.encode(raw, order="sorted")
    return f"sha256:{hashlib.sha256(canonical).hexdigest()}"
