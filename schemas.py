"""JSON Schemas that strangers wrote: what one may cost, and what checks a value by it.

Owns the bounds, which are pure rules: a schema refers to nothing but itself and is small once its references are
followed, and holding a value to it takes a bounded number of steps. jsonschema_rs (extra "generate") does the checking;
it is imported when the first schema comes. What is made of a refusal is its reader's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from edgewise.errors import MissingExtraError

MAX_NODES = 10_000
"""Subschemas, counted as often as references lead to them."""

MAX_STEPS = 1_000_000
"""Subschemas that a value and what is inside of it are held to, counted likewise."""

MAX_PAIRS = 20_000
"""Different ones of these; counting takes as long."""

REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
MAPS = frozenset({"properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"})
"""Keywords that hold schemas by names, which are not keywords themselves."""

DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords that hold values."""

_IN_PLACE = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"})
_INSIDE = frozenset(
    {"properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames"}
    | {"items", "additionalItems", "prefixItems", "unevaluatedItems", "contains"}
)
_UNEVALUATED = frozenset({"unevaluatedProperties", "unevaluatedItems"})

_KEPT, _KEPT_CHARACTERS = 16, 16 * 1024

Schema = Mapping[str, Any]


class Extent(NamedTuple):
    """How much a schema is.

    Attributes:
        nodes: Subschemas, counted as often as references lead to them; one that is inside of itself once.
        patterns: Regular expressions, wherever they stand.
    """

    nodes: int
    patterns: int


class _Part(NamedTuple):
    """A subschema: where it stands, and whether it is held to the same value as the schema around it."""

    keyword: str
    name: str | None
    schema: Any
    in_place: bool


def extent(schema: Schema) -> Extent:
    """How much a schema is once its references are followed.

    Raises:
        ValueError: It refers to another document, by a name, to nothing or to itself in a circle; or it is larger than
            `MAX_NODES`.
    """
    try:
        patterns = _patterns(schema)
        nodes = _Count(schema).nodes(schema)
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e
    if nodes > MAX_NODES:
        raise ValueError(f"with its references followed it has more than {MAX_NODES:,} subschemas")
    return Extent(nodes, patterns)


def takes_few_steps(schema: Schema, value: Any) -> bool:
    """Whether holding a value to a schema takes no more than `MAX_STEPS`.

    Counted is the worst case: every subschema is held to every value that it may be held to, again on each way to it.
    So a schema inside of itself costs as much as the value is deep.
    """
    try:
        return _Steps(schema).of(schema, value) <= MAX_STEPS
    except (_TooManyError, RecursionError):
        return False


def moved(schema: Schema, place: str) -> dict[str, Any]:
    """A schema with its references to itself as they have to be where it stands in another one.

    Args:
        schema: One that refers to nothing but itself.
        place: The JSON pointer of that place, "#/$defs/one".
    """
    return {key: _moved(key, value, place) for key, value in schema.items() if key != "$id"}


def _moved(keyword: str | None, value: Any, place: str) -> Any:
    """What stands behind a keyword, or behind a name that is none."""
    if keyword in DATA:
        return value
    if keyword in REFERENCES and isinstance(value, str) and value.startswith("#"):
        return place + value[1:]
    if isinstance(value, list):
        return [_moved(None, one, place) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _moved(None if keyword in MAPS else key, one, place) for key, one in value.items()}


def validator_of(text: str) -> Any:
    """What checks values by a schema: fetches nothing, and matches patterns in linear time.

    Small ones without patterns are kept.

    Raises:
        ValueError: It is no JSON Schema, or one of those that `extent` refuses.
        MissingExtraError: jsonschema_rs is not installed.
    """
    try:
        import jsonschema_rs  # noqa: F401  # said before anything that is kept hides it
    except ImportError as e:
        raise MissingExtraError("Reading JSON Schemas", "generate") from e
    schema = _decoded(text)
    patterns = extent(schema).patterns
    return _kept(text) if len(text) <= _KEPT_CHARACTERS and not patterns else _compiled(text)


@lru_cache(maxsize=_KEPT)
def _kept(text: str) -> Any:
    return _compiled(text)


def _compiled(text: str) -> Any:
    import jsonschema_rs

    try:
        # Else the library fetches what a schema names from where it points, and patterns may take for ever.
        return jsonschema_rs.validator_for(text, offline=True, pattern_options=jsonschema_rs.RegexOptions())
    except jsonschema_rs.ReferencingError as e:
        raise ValueError(str(e)) from e


def _decoded(text: str) -> Schema:
    try:
        schema = msgspec.json.decode(text)
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e
    if not isinstance(schema, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  # it is the text that is wrong
    return schema


def _parts(schema: Schema) -> Iterator[_Part]:
    """The subschemas of a schema that values are held to; references are not among them."""
    for keyword, value in schema.items():
        in_place = keyword in _IN_PLACE
        if not in_place and keyword not in _INSIDE:
            continue
        if keyword in MAPS and isinstance(value, dict):
            yield from (_Part(keyword, name, one, in_place) for name, one in value.items())
        elif isinstance(value, list):
            yield from (_Part(keyword, None, one, in_place) for one in value)
        else:
            yield _Part(keyword, None, value, in_place)


def _references(root: Schema, schema: Schema) -> Iterator[Any]:
    """What a schema refers to."""
    for keyword in REFERENCES & schema.keys():
        if isinstance(schema[keyword], str):
            yield _target(root, schema[keyword])


def _target(root: Schema, reference: str) -> Any:
    """What a JSON pointer of this document points to."""
    mark, _, pointer = reference.partition("#")
    if mark or (pointer and not pointer.startswith("/")):
        raise ValueError(f"it refers to {reference[:100]!r}, which is no JSON pointer into itself")
    found: Any = root
    for step in unquote(pointer).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (ValueError, LookupError, TypeError) as e:
            raise ValueError(f"it refers to {reference[:100]!r}, which is not there") from e
        if found is not root and isinstance(found, dict) and isinstance(found.get("$id"), str):
            raise ValueError("it has another document inside, by the name of an $id")
    return found


def _patterns(value: Any, *, named: bool = False) -> int:
    """Regular expressions, wherever they stand, also where nothing refers to them."""
    if isinstance(value, list):
        return sum(_patterns(one) for one in value)
    if not isinstance(value, dict):
        return 0
    own = 0
    if not named:
        own = isinstance(value.get("pattern"), str)
        keyed = value.get("patternProperties")
        own += len(keyed) if isinstance(keyed, dict) else 0
    return own + sum(
        _patterns(one, named=not named and key in MAPS) for key, one in value.items() if named or key not in DATA
    )


class _Count:
    """Subschemas of one document, each counted once and remembered."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[int, int] = {}
        self._settled: set[int] = set()

    def nodes(self, schema: Any) -> int:
        """Subschemas of one."""
        if not isinstance(schema, dict):
            return 0
        if id(schema) in self._known:
            return self._known[id(schema)]
        if schema is not self._root and any(isinstance(schema.get(name), str) for name in ("$id", "id")):
            raise ValueError("it has another document inside, by the name of an $id")
        self._check_circles(schema, set())
        self._known[id(schema)] = 1  # where it is found inside of itself
        within = sum(self.nodes(part.schema) for part in _parts(schema))
        within += sum(self.nodes(target) for target in _references(self._root, schema))
        # What is unevaluated is found by evaluating once more.
        total = min(MAX_NODES + 1, 1 + within * (2 if _UNEVALUATED & schema.keys() else 1))
        self._known[id(schema)] = total
        return total

    def _check_circles(self, schema: Any, around: set[int]) -> None:
        """Refuse what would be held to the same value again and again."""
        if not isinstance(schema, dict) or id(schema) in self._settled:
            return
        if id(schema) in around:
            raise ValueError("it refers to itself in a circle")
        around.add(id(schema))
        for part in _parts(schema):
            if part.in_place:
                self._check_circles(part.schema, around)
        for target in _references(self._root, schema):
            self._check_circles(target, around)
        around.remove(id(schema))
        self._settled.add(id(schema))


class _TooManyError(Exception):
    """Counting itself takes too long."""


class _Steps:
    """Subschemas that values are held to, each pair counted once and remembered."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[tuple[int, int], int] = {}

    def of(self, schema: Any, value: Any) -> int:
        if not isinstance(schema, dict):
            return 1
        pair = (id(schema), id(value))
        if pair in self._known:
            return self._known[pair]
        if len(self._known) >= MAX_PAIRS:
            raise _TooManyError
        self._known[pair] = MAX_STEPS + 1  # of one that comes back to itself
        steps = 1 + sum(self._of_part(part, value) for part in _parts(schema))
        steps += sum(self.of(target, value) for target in _references(self._root, schema))
        if _UNEVALUATED & schema.keys():
            steps *= 2 + (len(value) if isinstance(value, dict | list) else 0)
        self._known[pair] = min(steps, MAX_STEPS + 1)
        return self._known[pair]

    def _of_part(self, part: _Part, value: Any) -> int:
        if part.in_place:
            return self.of(part.schema, value)
        if not isinstance(value, dict | list):
            return 0
        if part.keyword == "properties":
            return self.of(part.schema, value[part.name]) if isinstance(value, dict) and part.name in value else 0
        inner = value.values() if isinstance(value, dict) else value
        return sum(self.of(part.schema, one) for one in inner)
