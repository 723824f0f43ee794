"""JSON Schemas of clients: whether one is valid, and refers to nothing but itself.

Owns the check alone; who satisfies a schema is checked where something is written. What reads schemas is imported when
the first one comes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.errors import MissingExtraError, RequestError

MAX_SCHEMA_BYTES = 64 * 1024
"""The largest schema that is taken; reading one takes time beyond its size."""

_DRAFTS = ("https://json-schema.org/draft/", "http://json-schema.org/draft-", "https://json-schema.org/draft-")
_OWN = {"$ref": ("#",), "$dynamicRef": ("#",), "$recursiveRef": ("#",), "$schema": _DRAFTS}
"""How the references begin that need nothing fetched, by keyword."""


def checked_schema(schema: dict[str, Any], field: str, code: str) -> str:
    """Return a schema as text.

    Args:
        schema: What a client sent.
        field: Where it did, for the error.
        code: The error's.

    Raises:
        RequestError: It is no valid JSON Schema, too large, or refers to another document.
        MissingExtraError: What reads schemas is not installed.
    """
    text = msgspec.json.encode(schema)
    if len(text) > MAX_SCHEMA_BYTES:
        raise RequestError(
            field, f"{field}: {len(text)} bytes.", f"Send a schema of {MAX_SCHEMA_BYTES} at most.", code=code
        )
    _check_references(schema, field, code)
    _check_meaning(text.decode(), field, code)
    return text.decode()


def _check_references(schema: dict[str, Any], field: str, code: str) -> None:
    """See that nothing is named that this server would have to fetch from where it points."""
    values: list[Any] = [schema]
    while values:
        value = values.pop()
        if isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            values += value.values()
            foreign = next((name for name, own in _OWN.items() if not _is_own(value.get(name), own)), None)
            if foreign is not None:
                problem = f"{field}: its {foreign} names another document, and none is fetched."
                raise RequestError(field, problem, "Put what it names into $defs.", code=code)


def _is_own(reference: Any, own: tuple[str, ...]) -> bool:
    return not isinstance(reference, str) or reference.startswith(own)


def _check_meaning(text: str, field: str, code: str) -> None:
    try:
        import jsonschema_rs
    except ImportError as error:
        raise MissingExtraError("Reading JSON Schemas", "generate") from error
    try:
        jsonschema_rs.validator_for(text, retriever=_refuse)
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        reason = str(error).splitlines()[0][:_SHOWN_CHARACTERS]
        problem = f"{field}: no valid JSON Schema: {reason.rstrip('.')}."
        raise RequestError(field, problem, "See json-schema.org.", code=code) from error


_SHOWN_CHARACTERS = 200


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched")
