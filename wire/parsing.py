"""JSON bodies of clients, read strictly: whatever the bytes are, the outcome is a value or a `RequestError`.

Owns the translation of decoder errors into the field at fault, and the rules every protocol shares (ids, budgets,
pixels). Knows no protocol.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.errors import RequestError

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

DEFAULT_MAX_BUDGET_MS = 600_000.0
"""Ten minutes; a longer budget is taken for a unit error."""

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_NAME_AT_FAULT = re.compile(r"field `([^`]*)`")
_PATH = re.compile(r" - at `(?:key in )?\$([^`]*)`$")
_SHOWN_CHARACTERS = 80


def decode_json(body: bytes, decoder: msgspec.json.Decoder[T], known: Sequence[str]) -> T:
    """Decode a body into the decoder's type.

    Args:
        body: The bytes a client sent.
        decoder: What they should be.
        known: The names of the top-level fields, for the remedy.

    Raises:
        RequestError: The body is not JSON, not UTF-8, nested too deeply, or not of that shape.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _shape_error(str(error), known) from error
    except msgspec.DecodeError as error:
        raise RequestError(
            "", f"The body is not valid JSON: {error}.", "Send one JSON object, encoded as UTF-8."
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError("", f"The body is not UTF-8: {error.reason}.", "Encode the JSON as UTF-8.") from error
    except RecursionError as error:
        raise RequestError("", "The body is nested too deeply.", "Flatten the JSON.") from error


def _shape_error(message: str, known: Sequence[str]) -> RequestError:
    found = _PATH.search(message)
    path = found[1].lstrip(".") if found else ""
    problem = message[: found.start()] if found else message
    name = _NAME_AT_FAULT.search(problem)
    if name:
        path = f"{path}.{name[1]}" if path else name[1]
    where = f"{path}: " if path else ""
    return RequestError(path, f"{where}{problem}.", f"Known fields: {', '.join(known)}.")


def checked_id(text: str, field: str = "id") -> str:
    """Return `text` if it can name a request or a session.

    Raises:
        RequestError: It is not 1 to 128 characters of A-Z, a-z, 0-9, '.', '_', ':' and '-'.
    """
    if _ID.fullmatch(text) is None:
        raise RequestError(
            field,
            f"{field}: {shown(text)} cannot be used.",
            "Send 1 to 128 characters of A-Z, a-z, 0-9, '.', '_', ':' and '-', or leave it out.",
        )
    return text


def checked_budget(value: float | None, field: str, max_ms: float) -> float | None:
    """Return a budget in milliseconds if it is above 0 and at most `max_ms`; None stays None.

    Raises:
        RequestError: It is not.
    """
    if value is not None and not (math.isfinite(value) and 0 < value <= max_ms):
        raise RequestError(
            field,
            f"{field}: {value:g} is out of range.",
            f"Send milliseconds above 0 and at most {max_ms:g}, or leave it out for no limit.",
        )
    return value


def checked_choice(value: object, kind: type[E], field: str) -> E:
    """Return the member of `kind` that `value` names.

    Raises:
        RequestError: It names none.
    """
    try:
        return kind(str(value))
    except ValueError as error:
        choices = ", ".join(member.value for member in kind)
        raise RequestError(field, f"{field}: {shown(value)} is unknown.", f"Choose one of: {choices}.") from error


def checked_text(value: object, field: str, max_characters: int = 128) -> str:
    """Return `value` if it is a string of 1 to `max_characters` characters.

    Raises:
        RequestError: It is not.
    """
    if not isinstance(value, str) or not 0 < len(value) <= max_characters:
        raise RequestError(field, f"{field}: {shown(value)} cannot be used.", f"Send 1 to {max_characters} characters.")
    return value


def decode_base64(text: str, field: str) -> bytes:
    """Decode standard base64 strictly.

    Raises:
        RequestError: It is not base64, or holds nothing.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            field, f"{field}: not base64 ({error}).", "Send the bytes of the file in standard base64."
        ) from error
    if not data:
        raise RequestError(field, f"{field}: empty.", "Send the bytes of the file in standard base64.")
    return data


def pixels_from_nested(nested: list[Any], field: str) -> NDArray[Any]:
    """Turn nested lists into pixels: whole numbers of 0 to 255 become uint8, numbers with a fraction float32.

    Returns:
        Shape (height, width) or (height, width, channels).

    Raises:
        RequestError: They are ragged, empty, not numbers, or out of range.
    """
    try:
        array = np.array(nested)
    except (ValueError, OverflowError, TypeError) as error:
        raise RequestError(field, f"{field}: the rows differ in length or depth.", _PIXELS_REMEDY) from error
    if array.ndim not in (2, 3) or array.size == 0:
        raise RequestError(field, f"{field}: the shape {shown(list(array.shape))} is not an image's.", _PIXELS_REMEDY)
    if array.dtype.kind == "f":
        return _finite_float32(array, field)
    if array.dtype.kind not in "iu":
        raise RequestError(field, f"{field}: holds something that is not a number.", _PIXELS_REMEDY)
    if int(array.min()) < 0 or int(array.max()) > 255:
        raise RequestError(field, f"{field}: a whole number is outside 0 to 255.", _PIXELS_REMEDY)
    return array.astype(np.uint8)


_PIXELS_REMEDY = (
    "Send rows of pixels, (height, width) or (height, width, channels): whole numbers of 0 to 255, or floats."
)


def _finite_float32(array: NDArray[Any], field: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise RequestError(field, f"{field}: a number does not fit a 32-bit float.", _PIXELS_REMEDY)
    return narrow


def shown(value: object) -> str:
    """`value` as it may stand in an error: quoted, cut, free of control characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
