"""JSON Schemas of clients: whether one is valid, and refers to nothing but itself, and all of a request are few.

Owns what a request may hold. What one schema may cost, and what reads it, is the business of `edgewise.schemas`; who
satisfies a schema is checked where something is written.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.errors import RequestError
from edgewise.schemas import MAX_BRACKETS, MOST, Extent, brackets, checker_of

MAX_SCHEMA_BYTES = 64 * 1024
"""The largest schema that is taken; reading one takes time beyond its size."""

MAX_SCHEMAS_BYTES = 128 * 1024
"""Of all schemas of a request together."""

_SHOWN_CHARACTERS = 200


class SchemaReader:
    """Reads the schemas of one request, which share its limits."""

    def __init__(self) -> None:
        self._bytes = self._brackets = 0
        self._left = MOST

    def read(self, schema: dict[str, Any], field: str) -> str:
        """Return a schema as text.

        Args:
            schema: What a client sent.
            field: Where it did, for the error.

        Raises:
            RequestError: It is no valid JSON Schema, too large, alone or with those before it or once its references
                are followed, or refers to another document.
            MissingExtraError: What reads schemas is not installed.
        """
        text = msgspec.json.encode(schema)
        self._bytes += len(text)
        if len(text) > MAX_SCHEMA_BYTES:
            raise _refused(field, f"{len(text)} bytes", f"Send a schema of {MAX_SCHEMA_BYTES} at most.")
        if self._bytes > MAX_SCHEMAS_BYTES:
            problem = f"with the schemas before it {self._bytes} bytes"
            raise _refused(field, problem, f"Send {MAX_SCHEMAS_BYTES} at most in all.")
        decoded = text.decode()
        self._brackets += brackets(decoded)
        if self._brackets > MAX_BRACKETS:
            problem = f"with the schemas before it more than {MAX_BRACKETS} objects and lists"
            raise _refused(field, problem, "Send fewer.")
        try:
            read = checker_of(decoded, self._left).extent
        except ValueError as error:
            reason = (str(error) or "nothing is said").splitlines()[0][:_SHOWN_CHARACTERS]
            problem = f"no valid JSON Schema, or with those before it too large: {reason.rstrip('.')}"
            raise _refused(field, problem, "Send a small one that refers to nothing but itself.") from error
        self._left = Extent(self._left.nodes - read.nodes, self._left.patterns - read.patterns)
        return decoded


def _refused(field: str, problem: str, remedy: str) -> RequestError:
    return RequestError(field, f"{field}: {problem}.", remedy, code="invalid_json_schema")
