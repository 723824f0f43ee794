"""Attestations: what was found out about a model, kept beside its core and never part of it.

Owns their file format and names. Knows no kind's payload: "measurement" (what quantizing measured, peak RAM included),
"certificate", and later "signature" are words of whoever writes them. An attestation names the model digest it speaks
of and carries a digest over itself, so that a changed byte in it is found too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from edgewise.bundle.manifest import END, Digest, canonical, corrupt, digest_of
from edgewise.errors import InputError

MAX_ATTESTATION_BYTES = 4 << 20
MAX_ATTESTATIONS = 256

FILE_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}-[0-9a-f]{12}\.json")
# What a power cut leaves of an attestation that was being written beside its place; never opened.
LEFTOVER_NAME = re.compile(rf"\.{FILE_NAME.pattern}\.[a-z0-9_]{{8}}")


class Attestation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A statement about one model.

    Attributes:
        kind: Such as "measurement" or "certificate": lower-case letters, digits and hyphens.
        model_digest: The model it speaks of.
        payload: The statement; plain JSON values.
    """

    kind: Annotated[str, msgspec.Meta(pattern=rf"^[a-z][a-z0-9-]*{END}", max_length=32)]
    model_digest: Digest
    payload: dict[str, Any]

    @property
    def digest(self) -> str:
        """Digest of the canonical JSON of the three fields."""
        return digest_of(canonical(self))

    @property
    def file_name(self) -> str:
        """Its name under `attestations/`."""
        return f"{self.kind}-{self.digest.removeprefix('sha256:')[:12]}.json"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    model_digest: str
    payload: dict[str, Any]
    digest: str


def make_attestation(kind: str, model_digest: str, payload: Mapping[str, Any]) -> Attestation:
    """Build an attestation from values or structs that JSON can hold.

    Raises:
        InputError: The kind is not a lower-case word, or the payload does not survive JSON (NaN, for instance).
    """
    try:
        plain = msgspec.to_builtins(dict(payload), str_keys=True)
        rendered = canonical({"kind": kind, "model_digest": model_digest, "payload": plain})
        json.dumps(plain, allow_nan=False)  # msgspec would silently write NaN as null
        return msgspec.json.decode(rendered, type=Attestation)
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as e:
        raise InputError(f"This attestation of kind {kind!r} cannot be written: {e}.", "Give plain JSON values.") from e


def encode_attestation(attestation: Attestation) -> bytes:
    """The bytes of its file."""
    return canonical(_File(attestation.kind, attestation.model_digest, attestation.payload, attestation.digest))


def decode_attestation(name: str, data: bytes, model_digest: str) -> Attestation:
    """Read and check the bytes of an attestation's file.

    Args:
        name: The file's name.
        data: The file's bytes.
        model_digest: The model of the bundle it lies in.

    Raises:
        BundleCorruptError: It was changed, is misnamed, or speaks of another model.
    """
    where = f"attestations/{name}"
    try:
        found = msgspec.json.decode(data, type=_File)
        attestation = msgspec.convert(
            {"kind": found.kind, "model_digest": found.model_digest, "payload": found.payload}, Attestation
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise corrupt(f"Its {where} is not an attestation: {e}.") from e
    if encode_attestation(attestation) != data or attestation.file_name != name:
        raise corrupt(f"Its {where} is not what its digest promises.")
    if attestation.model_digest != model_digest:
        raise corrupt(f"Its {where} speaks of another model, {attestation.model_digest}.")
    return attestation
