"""What lies beside a bundle: its certificate; and beside that what was fitted for it, and what the tuning part showed.

Owns the names of these files and reading them. What belongs to a certificate carries its name: C.json and
C.certificate.json have C.fitted.npz, so that no certificate takes another one's. A bundle itself never changes after it
was packed.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from edgewise.contracts import Certificate, Example, Output, Prediction
from edgewise.errors import CertificateError, DataError
from edgewise.router import certificate as certificates
from edgewise.router import fitted as fits
from edgewise.router.fitted import Fitted
from edgewise.router.saying import asked_by

_ENDINGS = (".certificate.json", ".json")
"""Endings of a certificate's name that what belongs to it does not carry, the longest first."""


class KeptItem(msgspec.Struct, frozen=True, kw_only=True):
    """One tuning item, kept so that `explain` can show it.

    Attributes:
        text: The text, or the position of an image.
        label: Its label; None where the data has none.
        edge: What the edge model answered.
        score: Its score; None where it has none.
        row: Its row among the neighbours; None where it is none.
    """

    text: str
    label: str | None
    edge: Output
    score: float | None
    row: int | None = None


def kept_item(
    example: Example, position: int, prediction: Prediction, score: float, row: int | None = None
) -> KeptItem:
    """A tuning item with what the edge model says of it; of an image only its number is kept."""
    text = asked_by(example.input)
    if text is None:
        text = f"image {position + 1}"
    known = None if math.isnan(score) else float(score)
    return KeptItem(text=text, label=example.label, edge=prediction.output, score=known, row=row)


def certificate_beside(bundle: Path) -> Path:
    """Where the certificate of a bundle lives unless told otherwise."""
    return bundle.parent / f"{bundle.resolve().name}{_ENDINGS[0]}"


def fitted_beside(bundle: Path, issued: Path | None = None) -> Path:
    """Where what was fitted on the tuning part lives.

    Args:
        bundle: The bundle.
        issued: Path of the certificate; None takes the one beside the bundle. The same below.
    """
    return _beside(bundle, issued, "fitted.npz")


def record_beside(bundle: Path, issued: Path | None = None) -> Path:
    """Where it is written what the tuning part showed."""
    return _beside(bundle, issued, "tuning.json")


def items_beside(bundle: Path, issued: Path | None = None) -> Path:
    """Where the tuning items live, if they were kept."""
    return _beside(bundle, issued, "neighbours.jsonl")


def sharing(issued: Path) -> list[Path]:
    """Files that, as certificates, would share what lies beside the certificate `issued`."""
    stem = _stem(issued)
    named = [issued.with_name(f"{stem}{ending}") for ending in (*_ENDINGS, "")]
    return [path for path in named if path.name != issued.name and path.is_file()]


def _beside(bundle: Path, issued: Path | None, kind: str) -> Path:
    issued = issued or certificate_beside(bundle)
    return issued.with_name(f"{_stem(issued)}.{kind}")


def _stem(issued: Path) -> str:
    for ending in _ENDINGS:
        if issued.name.endswith(ending):
            return issued.name.removesuffix(ending)
    return issued.name


def load_certificate(path: Path) -> Certificate:
    """Read a certificate.

    Raises:
        CertificateError: There is none, or it was changed after it was issued.
    """
    try:
        return certificates.decode(path.read_bytes())
    except OSError as error:
        raise CertificateError(
            f"The certificate {path} cannot be read: {error.strerror}.", "Issue one: edgewise certify BUNDLE."
        ) from error


def load_fitted(
    bundle: Path, certificate: Certificate, path: Path | None = None, *, issued: Path | None = None
) -> Fitted | None:
    """What decides with the certificate's signal; None where its signal stands alone.

    Args:
        bundle: The bundle.
        certificate: Names what was fitted by its digest.
        path: Where it lies; None takes the file beside the certificate, or beside the bundle where there is none.
        issued: Path of the certificate; None takes the one beside the bundle.

    Raises:
        CertificateError: The file is missing, damaged, or not the one that the certificate names.
    """
    if certificate.fitted_digest is None:
        return None
    path = path or _fitted_of(bundle, issued)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CertificateError(
            f"Certificate {certificate.id} needs {path}, which cannot be read: {error.strerror}.",
            "Put the file that was written with the certificate beside it, or certify again.",
        ) from error
    found = fits.digest(data)
    if found != certificate.fitted_digest:
        raise CertificateError(
            f"{path} is {found}; certificate {certificate.id} was issued with {certificate.fitted_digest}.",
            "Put the file that was written with the certificate beside it, or certify again.",
        )
    return fits.decode(data)


def _fitted_of(bundle: Path, issued: Path | None) -> Path:
    """A certificate may have been moved away from what was fitted for it; its digest tells whether a file is that."""
    near, beside = fitted_beside(bundle, issued), fitted_beside(bundle)
    return beside if beside.exists() and not near.exists() else near


def load_kept_items(bundle: Path, issued: Path | None = None) -> list[KeptItem] | None:
    """The tuning items that `certify --keep-texts` left; None where it left none.

    Args:
        bundle: The bundle.
        issued: Path of the certificate; None takes the one beside the bundle.

    Raises:
        DataError: The file is damaged.
    """
    path = items_beside(bundle, issued)
    try:
        return msgspec.json.Decoder(KeptItem).decode_lines(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}.", "Write it again: edgewise certify --keep-texts.") from error
