"""What lies beside a bundle: its certificate, what was fitted for it, and what the tuning part showed.

Owns the names of these files and reading them. A bundle itself never changes after it was packed.
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
    text = example.input if isinstance(example.input, str) else f"image {position + 1}"
    known = None if math.isnan(score) else float(score)
    return KeptItem(text=text, label=example.label, edge=prediction.output, score=known, row=row)


def certificate_beside(bundle: Path) -> Path:
    """Where the certificate of a bundle lives unless told otherwise."""
    return _beside(bundle, "certificate.json")


def fitted_beside(bundle: Path) -> Path:
    """Where what was fitted on the tuning part lives."""
    return _beside(bundle, "fitted.npz")


def record_beside(bundle: Path) -> Path:
    """Where it is written what the tuning part showed."""
    return _beside(bundle, "tuning.json")


def items_beside(bundle: Path) -> Path:
    """Where the tuning items live, if they were kept."""
    return _beside(bundle, "neighbours.jsonl")


def _beside(bundle: Path, kind: str) -> Path:
    return bundle.parent / f"{bundle.resolve().name}.{kind}"


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


def load_fitted(bundle: Path, certificate: Certificate, path: Path | None = None) -> Fitted | None:
    """What decides with the certificate's signal; None where its signal stands alone.

    Args:
        bundle: The bundle.
        certificate: Names what was fitted by its digest.
        path: Where it lies; None takes the file beside the bundle.

    Raises:
        CertificateError: The file is missing, damaged, or not the one that the certificate names.
    """
    if certificate.fitted_digest is None:
        return None
    path = path or fitted_beside(bundle)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CertificateError(
            f"Certificate {certificate.id} needs {path}, which cannot be read: {error.strerror}.",
            "Put the file that was written with the certificate beside the bundle, or certify again.",
        ) from error
    found = fits.digest(data)
    if found != certificate.fitted_digest:
        raise CertificateError(
            f"{path} is {found}; certificate {certificate.id} was issued with {certificate.fitted_digest}.",
            "Put the file that was written with the certificate beside the bundle, or certify again.",
        )
    return fits.decode(data)


def load_kept_items(bundle: Path) -> list[KeptItem] | None:
    """The tuning items that `certify --keep-texts` left; None where it left none.

    Raises:
        DataError: The file is damaged.
    """
    path = items_beside(bundle)
    try:
        return msgspec.json.Decoder(KeptItem).decode_lines(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}.", "Write it again: edgewise certify --keep-texts.") from error
