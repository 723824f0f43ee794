"""What was fitted on the tuning part and decides with the signal: its values, and its file.

Owns the file's format: named arrays in an uncompressed `.npz`, nothing pickled, every shape checked before it is used.
It lies beside the bundle; a certificate binds its digest.
"""

from __future__ import annotations

import io
import math
import re
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgewise.errors import CertificateError
from edgewise.files import sha256_bytes
from edgewise.router.combination import (
    CLASSIFIER_FEATURES,
    GENERATOR_FEATURES,
    ClassifierCombination,
    Combination,
    GeneratorCombination,
)
from edgewise.router.complexity import ATTRIBUTE_BUCKETS, LEXICAL, WORD_BUCKETS, Complexity
from edgewise.router.isotonic import Isotonic
from edgewise.router.neighbours import Around, Neighbours, Outcomes

LARGEST_BYTES = 64 << 20
"""A larger file is refused unread."""

_VERSION = 1

# Of numpy's format 1.0, as `encode` writes it; numpy's own reader evaluates a header and takes foreign ones as well.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>\|i1|<i4|<i8|<f4|<f8|<U\d{1,4})', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[\d, ]{0,40})\), \} *\n",
    re.DOTALL,
)
_REMEDY = "Certify again, which fits it anew."


@dataclass(frozen=True, eq=False)
class Fitted:
    """What the tuning part taught; each may be missing.

    Attributes:
        neighbours: Vetoes inputs far from the tuning part, or tells the combination of those near.
        complexity: Turns texts away before the edge model runs.
        combination: The signal "combined".
    """

    neighbours: Neighbours | None = None
    complexity: Complexity | None = None
    combination: Combination | None = None


def encode(fitted: Fitted) -> bytes:
    """The file's bytes; the same values give the same bytes."""
    arrays: dict[str, NDArray[Any]] = {"version": np.array(_VERSION)}
    if fitted.neighbours is not None:
        arrays |= _neighbours_arrays(fitted.neighbours)
    if fitted.complexity is not None:
        arrays |= _complexity_arrays(fitted.complexity)
    if isinstance(fitted.combination, ClassifierCombination):
        arrays |= _classifier_arrays(fitted.combination)
    elif fitted.combination is not None:
        arrays |= _generator_arrays(fitted.combination)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # A ZipInfo of its own carries no time of writing.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _array_bytes(array))
    return stream.getvalue()


def decode(data: bytes) -> Fitted:
    """Read the file's bytes.

    Raises:
        CertificateError: They are damaged, too many, or of a newer format.
    """
    reader = _Reader(_arrays(data))
    version = reader.scalar("version")
    if version > _VERSION:
        raise CertificateError(f"What was fitted has format {version:g}, this edgewise reads {_VERSION}.", "Update it.")
    if version != _VERSION:
        raise _damaged(f"there is no format {version:g}")
    fitted = Fitted(_neighbours(reader), _complexity(reader), _combination(reader))
    reader.finish()
    return fitted


def digest(data: bytes) -> str:
    """What a certificate binds: "sha256:" and the hex digest of the file's bytes."""
    return f"sha256:{sha256_bytes(data)}"


def _array_bytes(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    npy.write_array(stream, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays by name. Sizes are held to the file's own before any memory is taken."""
    if len(data) > LARGEST_BYTES:
        raise CertificateError(f"What was fitted has {len(data)} bytes, {LARGEST_BYTES} are allowed.", _REMEDY)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise _damaged("it is compressed")
            names = {entry.filename for entry in entries}
            if sum(entry.file_size for entry in entries) > len(data) or len(names) < len(entries):
                raise _damaged("its table of contents is wrong")
            return {entry.filename.removesuffix(".npy"): _array(archive.read(entry)) for entry in entries}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, RuntimeError) as e:
        raise _damaged(str(e)) from e


def _array(data: bytes) -> NDArray[Any]:
    header = _HEADER.match(data)
    if header is None:
        raise _damaged("an array has a header that edgewise does not write")
    dtype, left = np.dtype(header["dtype"].decode()), data[header.end() :]
    shape = tuple(int(length) for length in header["shape"].split(b",") if length.strip())
    if math.prod(shape) * dtype.itemsize != len(left):
        raise _damaged(f"an array of {dtype} and shape {shape} has {len(left)} bytes")
    if dtype.kind == "U" and left and np.frombuffer(left, "<u4").max() > sys.maxunicode:
        raise _damaged("a text holds what is no character")
    return np.frombuffer(left, dtype).reshape(shape)


def _damaged(why: str) -> CertificateError:
    return CertificateError(f"The file of what was fitted is damaged: {why}.", _REMEDY)


class _Reader:
    """Takes arrays by name and holds each to its shape."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = dict(arrays)

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self._arrays)

    def take(self, name: str, shape: Sequence[int | None], dtype: type[Any] = np.float64) -> NDArray[Any]:
        """An array of that type and shape, None for any length; all of it finite."""
        array = self._arrays.pop(name, None)
        if array is None:
            raise _damaged(f"it lacks {name}")
        fits = len(array.shape) == len(shape) and all(
            wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype != dtype or not np.isfinite(array).all():
            raise _damaged(f"{name} is {array.dtype} of shape {array.shape}, or not finite")
        return array

    def scalar(self, name: str) -> float:
        array = self._arrays.pop(name, None)
        if array is None or array.shape != () or array.dtype.kind not in "fi" or np.isnan(array):
            raise _damaged(f"{name} is no number")
        return float(array)

    def texts(self, name: str) -> tuple[str, ...]:
        array = self._arrays.pop(name, None)
        if array is None or array.ndim != 1 or array.dtype.kind != "U":
            raise _damaged(f"{name} is no list of texts")
        return tuple(map(str, array.tolist()))

    def finish(self) -> None:
        """Nothing unknown may be left over."""
        if self._arrays:
            raise _damaged(f"it holds the unknown array {min(self._arrays)}")


def _neighbours_arrays(neighbours: Neighbours) -> dict[str, NDArray[Any]]:
    arrays = {
        "neighbours.embeddings": neighbours.embeddings.astype(np.float32),
        "neighbours.k": np.array(neighbours.k),
        "neighbours.cut": np.array(neighbours.cut),
    }
    if neighbours.outcomes is not None:
        arrays["neighbours.answers"] = neighbours.outcomes.answers.astype(np.int32)
        arrays["neighbours.wrong"] = neighbours.outcomes.wrong.astype(np.int8)
    return arrays


def _neighbours(reader: _Reader) -> Neighbours | None:
    if not reader.has("neighbours."):
        return None
    embeddings = reader.take("neighbours.embeddings", (None, None), np.float32)
    k, cut = reader.scalar("neighbours.k"), reader.scalar("neighbours.cut")
    if not 1 <= k < len(embeddings) or k != int(k):
        raise _damaged(f"neighbour {k:g} of {len(embeddings)} does not exist")
    if not np.allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-3):
        raise _damaged("an embedding is not of length 1")
    return Neighbours(embeddings, int(k), cut, _outcomes(reader, len(embeddings)))


def _outcomes(reader: _Reader, rows: int) -> Outcomes | None:
    if not reader.has("neighbours."):
        return None
    answers = reader.take("neighbours.answers", (rows,), np.int32)
    wrong = reader.take("neighbours.wrong", (rows,), np.int8)
    if not np.isin(wrong, (0, 1)).all():
        raise _damaged("neighbours.wrong holds other values than 0 and 1")
    return Outcomes(answers, wrong.astype(np.bool_))


def _complexity_arrays(complexity: Complexity) -> dict[str, NDArray[Any]]:
    return {
        "complexity.words": complexity.words,
        "complexity.rarity": complexity.rarity,
        "complexity.lexical": complexity.lexical,
        "complexity.intercept": np.array(complexity.intercept),
        "complexity.cut": np.array(complexity.cut),
        "complexity.attributes": np.array(complexity.attributes, dtype=np.str_),
        "complexity.attribute_weights": complexity.attribute_weights,
    }


def _complexity(reader: _Reader) -> Complexity | None:
    if not reader.has("complexity."):
        return None
    return Complexity(
        words=reader.take("complexity.words", (WORD_BUCKETS,)),
        rarity=reader.take("complexity.rarity", (WORD_BUCKETS,)),
        lexical=reader.take("complexity.lexical", (len(LEXICAL),)),
        intercept=reader.scalar("complexity.intercept"),
        cut=reader.scalar("complexity.cut"),
        attributes=reader.texts("complexity.attributes"),
        attribute_weights=reader.take("complexity.attribute_weights", (ATTRIBUTE_BUCKETS,)),
    )


def _classifier_arrays(combination: ClassifierCombination) -> dict[str, NDArray[Any]]:
    return {
        "classifier.weights": combination.weights,
        "classifier.intercept": np.array(combination.intercept),
        "classifier.effects": combination.effects,
    }


def _generator_arrays(combination: GeneratorCombination) -> dict[str, NDArray[Any]]:
    arrays = {
        "generator.length": combination.length,
        "generator.weights": combination.weights,
        "generator.intercept": np.array(combination.intercept),
    }
    for name, curve in zip(GENERATOR_FEATURES, combination.curves, strict=True):
        arrays |= {f"generator.{name}.at": curve.at, f"generator.{name}.log_odds": curve.log_odds}
    return arrays


def _combination(reader: _Reader) -> Combination | None:
    kinds: dict[str, Callable[[_Reader], Combination]] = {"classifier.": _classifier, "generator.": _generator}
    found = [kind for kind in kinds if reader.has(kind)]
    if len(found) > 1:
        raise _damaged("it holds two combinations")
    return kinds[found[0]](reader) if found else None


def _classifier(reader: _Reader) -> ClassifierCombination:
    weights = reader.take("classifier.weights", (None,))
    if len(weights) - len(CLASSIFIER_FEATURES) not in (0, len(Around._fields)):
        raise _damaged(f"{len(weights)} weights go with {len(CLASSIFIER_FEATURES)} features")
    return ClassifierCombination(
        weights, reader.scalar("classifier.intercept"), reader.take("classifier.effects", (None,))
    )


def _generator(reader: _Reader) -> GeneratorCombination:
    return GeneratorCombination(
        length=reader.take("generator.length", (2,)),
        curves=tuple(_curve(reader, f"generator.{name}") for name in GENERATOR_FEATURES),
        weights=reader.take("generator.weights", (2 * len(GENERATOR_FEATURES),)),
        intercept=reader.scalar("generator.intercept"),
    )


def _curve(reader: _Reader, name: str) -> Isotonic:
    at = reader.take(f"{name}.at", (None,))
    log_odds = reader.take(f"{name}.log_odds", (len(at),))
    if not len(at) or not (np.diff(at) > 0).all():
        raise _damaged(f"the knots of {name} do not rise")
    return Isotonic(at, log_odds)
