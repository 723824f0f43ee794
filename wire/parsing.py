"""JSON bodies of clients, read strictly: whatever the bytes are, the outcome is a value or a `RequestError`.

Owns the translation of decoder errors into the field at fault, and the rules every protocol shares (ids, budgets,
pixels). Knows no protocol.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import reprlib
from collections.abc import Sequence
from enum import StrEnum
from itertools import chain
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.errors import RequestError
from edgewise.wire.shapes import fields_at, values_at

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

DEFAULT_MAX_BUDGET_MS = 600_000.0
"""Ten minutes; a longer budget is taken for a unit error."""

ID_PATTERN = "[A-Za-z0-9._:-]{1,128}"
"""What can name a request or a session."""

MAX_TEXT_CHARACTERS = 128
"""Length of the longest name of a task or a profile."""

MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_CHARACTERS = 256

_ID = re.compile(ID_PATTERN, re.ASCII)
_EXPECTED = re.compile(r"Expected `([^`]+)`(?:, got .*|( .+))", re.DOTALL)
_KINDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
"""The types of JSON in words, by msgspec's names."""

_NAME_AT_FAULT = re.compile(r"field `([^`]*)`")
_PATH = re.compile(r" - at `(?:key in )?\$([^`]*)`$")
_SHOWN_CHARACTERS = 80
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")

_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxstring = _short.maxother = _SHOWN_CHARACTERS


def decode_json(body: bytes | memoryview, decoder: msgspec.json.Decoder[T], known: Sequence[str]) -> T:
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
        raise _shape_error(str(error), decoder.type, known) from error
    except msgspec.DecodeError as error:
        if _HALF_PAIR.search(body):  # the decoder calls it truncated
            raise RequestError(
                "", "The body holds half of a surrogate pair, which is no character.", "Send both halves, or neither."
            ) from error
        raise RequestError(
            "", f"The body is not valid JSON: {error}.", "Send one JSON object, encoded as UTF-8."
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError("", f"The body is not UTF-8: {error.reason}.", "Encode the JSON as UTF-8.") from error
    except RecursionError as error:
        raise RequestError("", "The body is nested too deeply.", "Flatten the JSON.") from error


def _shape_error(message: str, shape: Any, known: Sequence[str]) -> RequestError:
    found = _PATH.search(message)
    parent = found[1].lstrip(".") if found else ""
    problem = message[: found.start()] if found else message
    name = _NAME_AT_FAULT.search(problem)
    path = ".".join(filter(None, (parent, name[1] if name else "")))
    remedy = _wanted(problem) or _allowed(shape, path)
    fields = (parent and fields_at(shape, parent)) or known
    where = f"{path}: " if path else ""
    return RequestError(path, f"{where}{problem}.", remedy or f"Known fields: {', '.join(fields)}.")


def _wanted(problem: str) -> str | None:
    """What to send in the place of a value of another type, or one out of bounds."""
    found = _EXPECTED.fullmatch(problem)
    kinds = found[1].split(" | ") if found else []
    words = [_KINDS[kind] for kind in kinds if kind in _KINDS]
    if found is None or not words:
        return None
    return f"Send {' or '.join(words)}{found[2] or ''}{', or leave it out' if 'null' in kinds else ''}."


def _allowed(shape: Any, path: str) -> str | None:
    """The values that a field may take, where they are listed."""
    values = values_at(shape, path)
    return f"Choose one of: {', '.join(values)}." if values else None


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
    if value is not None and not (0 < value <= max_ms and math.isfinite(value)):
        raise RequestError(
            field,
            f"{field}: {value:.10g} is out of range.",
            f"Send milliseconds above 0 and at most {max_ms:.10g}, or leave it out for no limit.",
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


def checked_attributes(attributes: dict[str, str], field: str = "attributes") -> dict[str, str]:
    """Return `attributes` if they are few and short enough.

    Raises:
        RequestError: They are not.
    """
    if not attributes:
        return attributes
    if len(attributes) > MAX_ATTRIBUTES:
        raise RequestError(field, f"{field}: {len(attributes)} entries.", f"Send at most {MAX_ATTRIBUTES} attributes.")
    if any(max(len(name), len(value)) > MAX_ATTRIBUTE_CHARACTERS for name, value in attributes.items()):
        raise RequestError(
            field,
            f"{field}: a name or a value is too long.",
            f"Send at most {MAX_ATTRIBUTE_CHARACTERS} characters in each.",
        )
    return attributes


def checked_text(value: object, field: str, max_characters: int = MAX_TEXT_CHARACTERS) -> str:
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
    numbers, shape = flat_numbers(nested, field, max_dimensions=3, remedy=_PIXELS_REMEDY)
    if len(shape) < 2 or not numbers:
        raise RequestError(field, f"{field}: the shape {shown(shape)} is not an image's.", _PIXELS_REMEDY)
    if any(type(number) is float for number in numbers):
        return _finite_float32(numbers, field).reshape(shape)
    if min(numbers) < 0 or max(numbers) > 255:
        raise RequestError(field, f"{field}: a whole number is outside 0 to 255.", _PIXELS_REMEDY)
    return np.array(numbers, np.uint8).reshape(shape)


def flat_numbers(
    nested: list[Any], field: str, *, max_dimensions: int, remedy: str
) -> tuple[list[int | float], list[int]]:
    """Unfold nested lists of numbers, and give their shape; the work and the memory are linear in their elements.

    Nothing is handed to numpy before every element is known to be a number: an array over lists with one long text in
    them has that text's width in every element.

    Returns:
        The numbers in C order, and as many sizes as the lists are deep, at most `max_dimensions`.

    Raises:
        RequestError: They differ in length or depth, are nested too deeply, or hold something that is not a number.
    """
    rows: list[Any] = [nested]
    shape: list[int] = []
    while True:
        sizes = set(map(len, rows))
        items = list(chain.from_iterable(rows))
        kinds = set(map(type, items))
        if len(sizes) > 1 or (list in kinds and len(kinds) > 1):
            raise RequestError(field, f"{field}: the rows differ in length or depth.", remedy)
        shape += sizes
        if kinds != {list}:
            break
        if len(shape) == max_dimensions:
            raise RequestError(field, f"{field}: the shape has more than {max_dimensions} dimensions.", remedy)
        rows = items
    if not kinds <= {int, float}:  # exactly these: True and False are no numbers here
        raise RequestError(field, f"{field}: holds something that is not a number.", remedy)
    return items, shape


_PIXELS_REMEDY = (
    "Send rows of pixels, (height, width) or (height, width, channels): whole numbers of 0 to 255, or floats."
)


def _finite_float32(numbers: list[int | float], field: str) -> NDArray[np.float32]:
    narrow = float32_of(numbers)
    if narrow is None:
        raise RequestError(field, f"{field}: a number does not fit a 32-bit float.", _PIXELS_REMEDY)
    return narrow


def float32_of(numbers: list[int | float]) -> NDArray[np.float32] | None:
    """Numbers as 32-bit floats, shape (n,), or None where one of them does not fit."""
    try:
        with np.errstate(over="ignore"):
            narrow = np.array(numbers, np.float64).astype(np.float32)
    except OverflowError:  # a whole number beyond any float
        return None
    return narrow if np.isfinite(narrow).all() else None


def shown(value: object) -> str:
    """`value` as it may stand in an error: quoted, cut, free of control characters; however large or deep it is."""
    text = _short.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
