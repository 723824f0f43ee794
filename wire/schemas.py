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


def checked_schema(schema: dict[str, Any], field: str) -> str:
    """Return a schema as text.

    Args:
        schema: What a client sent.
        field: Where it did, for the error.

    Raises:
        RequestError: It is no valid JSON Schema, too large, or refers to another document.
        MissingExtraError: What reads schemas is not installed.
    """
    text = msgspec.json.encode(schema)
    if len(text) > MAX_SCHEMA_BYTES:
        raise RequestError(
            field,
            f"{field}: {len(text)} bytes.",
            f"Send a schema of {MAX_SCHEMA_BYTES} at most.",
            code="invalid_json_schema",
        )
    _check_meaning(text.decode(), field)
    return text.decode()


def _check_meaning(text: str, field: str) -> None:
    try:
        import jsonschema_rs
    except ImportError as error:
        raise MissingExtraError("Reading JSON Schemas", "generate") from error
    try:
        # Else this server fetches what a schema names from where it points, and patterns may take for ever.
        jsonschema_rs.validator_for(text, offline=True, pattern_options=jsonschema_rs.RegexOptions())
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        reason = str(error).splitlines()[0][:_SHOWN_CHARACTERS]
        problem = f"{field}: no valid JSON Schema: {reason.rstrip('.')}."
        raise RequestError(
            field, problem, "Send one that refers to nothing but itself.", code="invalid_json_schema"
        ) from error


_SHOWN_CHARACTERS = 200
