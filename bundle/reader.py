"""Opens a bundle: everything in it is verified before any of it is used.

Owns the folder layout and the checks. Runs no model and writes nothing but new attestations.

    BUNDLE/manifest.json              the core and its digest
    BUNDLE/blobs/sha256/<hex>         graph, large weights, tokenizer, golden items
    BUNDLE/attestations/<kind>-<12 hex>.json

The bundle's own path may be a symlink, as updaters like it; inside it nothing may be. A file that the manifest does not
name is refused, and no path is ever formed from anything but a checked digest, so nothing outside can be reached. The
graph's external-data locations must be exactly the weight blobs: see `graph.py`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgewise.bundle.attestation import (
    FILE_NAME,
    LEFTOVER_NAME,
    MAX_ATTESTATION_BYTES,
    MAX_ATTESTATIONS,
    Attestation,
    decode_attestation,
    encode_attestation,
    make_attestation,
)
from edgewise.bundle.graph import external_locations
from edgewise.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    Blob,
    Core,
    GoldenItem,
    Manifest,
    canonical,
    corrupt,
    decode_manifest,
)
from edgewise.errors import BundleError
from edgewise.files import sha256_file, write_atomically

MANIFEST = "manifest.json"
BLOBS = "blobs/sha256"
ATTESTATIONS = "attestations"
_REMEDY = "Give the folder that holds manifest.json, as `edgewise pack` wrote it."
_FOLDERS = frozenset({"blobs", BLOBS, ATTESTATIONS})


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: Its folder.
        manifest: Its manifest.
        size_bytes: Bytes of the manifest and all blobs, attestations left out.
    """

    path: Path
    manifest: Manifest
    size_bytes: int
    _attestations: tuple[Attestation, ...]

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Verify a bundle, then hand it out.

        Raises:
            BundleError: Not a bundle, or it cannot be read.
            BundleCorruptError: Its bytes are not what its manifest promises.
            BundleVersionError: Written by a newer edgewise.
        """
        folder = Path(path)
        try:
            return cls._verify(folder)
        except OSError as e:
            raise BundleError(
                f"The bundle {folder} cannot be read: {e.strerror or e}.", "Check its permissions."
            ) from e

    @classmethod
    def _verify(cls, folder: Path) -> Bundle:
        files = _list_files(folder)
        manifest = decode_manifest(_read_limited(folder / MANIFEST, MAX_MANIFEST_BYTES))
        blobs = manifest.core.blobs()
        _check_blobs(folder, files, blobs)
        _check_graph(folder, manifest.core)
        names = sorted(name for name in files if name.startswith(f"{ATTESTATIONS}/"))
        attestations = _read_attestations(folder, names, manifest.model_digest)
        size_bytes = files[MANIFEST] + sum(blob.size for blob in blobs)
        return cls(folder, manifest, size_bytes, attestations)

    @property
    def core(self) -> Core:
        """The core of the manifest."""
        return self.manifest.core

    @property
    def model_digest(self) -> str:
        """The model's identity: "sha256:" and 64 hex digits."""
        return self.manifest.model_digest

    @property
    def graph_path(self) -> Path:
        """The ONNX graph; the runtime opens it in place, its weights are its siblings."""
        return self.blob_path(self.core.graph)

    def blob_path(self, blob: Blob) -> Path:
        """Where a blob lies."""
        return self.path / BLOBS / blob.hex

    def read(self, blob: Blob) -> bytes:
        """The bytes of a blob.

        Raises:
            BundleError: It cannot be read any more.
        """
        try:
            return self.blob_path(blob).read_bytes()
        except OSError as e:
            raise BundleError(f"The blob {blob.digest} of {self.path} cannot be read: {e}.") from e

    def golden(self) -> tuple[GoldenItem, ...]:
        """The golden items.

        Raises:
            BundleCorruptError: The blob holds something else.
        """
        try:
            items = msgspec.json.decode(self.read(self.core.golden), type=tuple[GoldenItem, ...])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise corrupt(f"Its golden items cannot be read: {e}.") from e
        for item in items:
            # Without labels there are as many numbers as the embedding is wide, or the answer is long.
            if self.core.labels and len(item.logits) != len(self.core.labels):
                raise corrupt(f"A golden item has {len(item.logits)} logits for {len(self.core.labels)} labels.")
        return items

    def attestations(self) -> tuple[Attestation, ...]:
        """Everything attested of this model, in the order of file names."""
        return self._attestations


def attach(bundle_path: Path | str, kind: str, payload: Mapping[str, Any]) -> Path:
    """Write an attestation about a bundle's model beside its core; the core and its digest stay as they are.

    Args:
        bundle_path: The bundle.
        kind: Such as "measurement" or "certificate".
        payload: Plain values or structs.

    Returns:
        The new file. The same payload gives the same file.

    Raises:
        BundleError: The bundle cannot be read or written.
        InputError: The kind is not a lower-case word, or the payload cannot be held by JSON.
    """
    bundle = Bundle.open(bundle_path)
    attestation = make_attestation(kind, bundle.model_digest, payload)
    data = encode_attestation(attestation)
    if len(data) > MAX_ATTESTATION_BYTES:
        raise BundleError(f"This attestation has {len(data)} bytes; at most {MAX_ATTESTATION_BYTES} are allowed.")
    if len(bundle.attestations()) >= MAX_ATTESTATIONS:
        raise BundleError(f"The bundle holds {MAX_ATTESTATIONS} attestations, the most it may.", "Remove old ones.")
    path = bundle.path / ATTESTATIONS / attestation.file_name
    try:
        write_atomically(path, data)
    except OSError as e:
        raise BundleError(f"The attestation {path} cannot be written: {e.strerror or e}.") from e
    return path


def encode_golden(items: tuple[GoldenItem, ...]) -> bytes:
    """The bytes of the golden blob."""
    return canonical(items)


def _list_files(folder: Path) -> dict[str, int]:
    """Size in bytes of each file, by its name inside the bundle; refuses whatever does not belong there."""
    if not folder.exists():
        raise BundleError(f"There is no bundle at {folder}.", _REMEDY)
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file, a bundle is a folder.", _REMEDY)
    if not os.path.lexists(folder / MANIFEST):
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.", _REMEDY)
    files: dict[str, int] = {}
    open_folders = [folder]
    while open_folders:
        for entry in open_folders.pop().iterdir():
            name = entry.relative_to(folder).as_posix()
            info = entry.lstat()
            if stat.S_ISDIR(info.st_mode) and name in _FOLDERS:
                open_folders.append(entry)
            elif stat.S_ISREG(info.st_mode):
                files[name] = info.st_size
            else:
                raise corrupt(f"{name!r} in it is a link or a folder, or not a file at all; none belongs there.")
    return {name: size for name, size in files.items() if not _is_leftover(name)}


def _is_leftover(name: str) -> bool:
    return LEFTOVER_NAME.fullmatch(name.removeprefix(f"{ATTESTATIONS}/")) is not None and "/" in name


def _read_limited(path: Path, limit: int) -> bytes:
    with path.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise corrupt(f"Its {path.name} is larger than {limit} bytes.")
    return data


def kind_of(path: Path | str) -> str:
    """What kind of model the manifest of a bundle says it holds: enough to choose by before the rest is verified.

    Raises:
        BundleError: Not a bundle, or it cannot be read.
        BundleCorruptError: The manifest is not what its digest promises.
        BundleVersionError: Written by a newer edgewise.
    """
    folder = Path(path)
    try:
        _list_files(folder)
        return decode_manifest(_read_limited(folder / MANIFEST, MAX_MANIFEST_BYTES)).core.kind
    except OSError as e:
        raise BundleError(f"The bundle {folder} cannot be read: {e.strerror or e}.", "Check its permissions.") from e


def _check_blobs(folder: Path, files: Mapping[str, int], blobs: tuple[Blob, ...]) -> None:
    named = {f"{BLOBS}/{blob.hex}": blob for blob in blobs}
    for name in files:
        attested = name.startswith(f"{ATTESTATIONS}/") and FILE_NAME.fullmatch(name.split("/", 1)[1])
        if name not in named and name != MANIFEST and not attested:
            raise corrupt(f"It holds {name!r}, which its manifest does not name.")
    for name, blob in named.items():
        if name not in files:
            raise corrupt(f"Its blob {blob.digest} is missing.")
        if files[name] != blob.size:
            raise corrupt(f"Its blob {blob.digest} has {files[name]} bytes instead of {blob.size}.")
    for name, blob in named.items():
        if sha256_file(folder / name) != blob.hex:
            raise corrupt(f"The content of its blob {blob.digest} has changed.")


def _check_graph(folder: Path, core: Core) -> None:
    try:
        found = external_locations((folder / BLOBS / core.graph.hex).read_bytes())
    except ValueError as e:
        raise BundleError(f"The graph of {folder} is not an ONNX model: {e}.", "Pack the bundle again.") from e
    named = {weight.blob.hex for weight in core.weights}
    for location in sorted(found ^ named):
        problem = "reads a file that is not one of its weights" if location in found else "does not use its weight"
        raise BundleError(f"The graph of {folder} {problem}: {location!r}.", "Do not use this bundle.")


def _read_attestations(folder: Path, names: list[str], model_digest: str) -> tuple[Attestation, ...]:
    if len(names) > MAX_ATTESTATIONS:
        raise corrupt(f"It holds {len(names)} attestations; at most {MAX_ATTESTATIONS} are allowed.")
    paths = [folder / name for name in names]
    return tuple(
        decode_attestation(path.name, _read_limited(path, MAX_ATTESTATION_BYTES), model_digest) for path in paths
    )
