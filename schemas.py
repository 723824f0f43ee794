"""JSON Schemas that strangers wrote: what one may cost, and what checks a value by it.

Owns the bounds, which are pure rules: a schema refers to nothing but itself and is small once its references are
followed, its patterns take little to read, and holding a value to it takes a bounded number of steps. jsonschema_rs
(extra "generate") does the checking; it is imported when the first schema comes, and lets nothing else in the process
run meanwhile: a thread of its own would not help. What is made of a refusal is its reader's business.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

STEPS_A_CHARACTER = 200
"""What it counts to hold a character to a pattern: it may move through all that the pattern is compiled to."""

MAX_BRACKETS = 8_000
"""Characters of a text that may begin an object or a list, each of which is looked at."""

MAX_PATTERNS = 24
"""Different ones; reading one takes a millisecond, and memory beyond its size."""

MAX_PATTERN_CHARACTERS = 512
MAX_PATTERN_BYTES = 300_000
"""Of what a pattern is compiled to. A repeat counts as often as it repeats, a class of Unicode about 30 kB."""

MAX_BACKTRACKS, MAX_LOOKING_BYTES, LOOKING_TIMES = 100, 50_000, 10
"""Of a pattern that looks ahead or behind, which no library matches in linear time: steps back, bytes once compiled,
and how many times as much a character counts."""

MAX_PATTERN_SETS = 20
"""`\\d`, `\\s`, `\\w` and their like in a pattern: each has the library read the whole pattern once more."""

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
_LEADING = REFERENCES | _IN_PLACE | _INSIDE
_UNEVALUATED = frozenset({"unevaluatedProperties", "unevaluatedItems"})

_KEPT_CHARACTERS, _KEPT_PATTERNS = 256 * 1024, 64
"""What is kept of schemas that were read: those of a large request, or of some small ones."""
_LEAST_CHARACTERS = 1024

_SET = re.compile(r"\\[dDsSwW]")
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_FLAGS = re.compile(r"\(\?(?![:=!<P])")
_LOOKS = re.compile(r"\(\?<?[=!]")
_WIDE = re.compile(r"[^\x00-\x7f]|\\[pPxuU]")

Schema = Mapping[str, Any]


class Extent(NamedTuple):
    """How much a schema is.

    Attributes:
        nodes: Subschemas, counted as often as references lead to them; one that is inside of itself once.
        patterns: Different regular expressions, wherever they stand.
    """

    nodes: int
    patterns: int


MOST = Extent(MAX_NODES, MAX_PATTERNS)
"""How much a schema may be."""


class _Part(NamedTuple):
    """A subschema: where it stands, and whether it is held to the same value as the schema around it."""

    keyword: str
    name: str | None
    schema: Any
    in_place: bool


def extent(schema: Schema) -> Extent:
    """How much a schema is once its references are followed.

    Raises:
        ValueError: It refers to another document, by a name, to nothing or to itself in a circle; it is larger than
            `MAX_NODES`; or a pattern takes too much to read.
    """
    try:
        patterns = len(_checked(_patterns(schema)))
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


class Checker(NamedTuple):
    """What checks values by one schema: fetches nothing, and matches patterns in linear time.

    Attributes:
        schema: The schema.
        extent: How much it is.
        validator: jsonschema_rs's.
    """

    schema: Schema
    extent: Extent
    validator: Any

    def takes(self, value: Any) -> bool:
        """Whether a value satisfies the schema, and takes few steps to be held to it."""
        return takes_few_steps(self.schema, value) and bool(self.validator.is_valid(value))


class _Kept:
    """Checkers of the schemas that were read last: a client sends its tools again with each turn. Any thread."""

    def __init__(self) -> None:
        self._checkers: OrderedDict[str, Checker] = OrderedDict()
        self._lock = threading.Lock()
        self._characters = self._patterns = 0

    def find(self, text: str) -> Checker | None:
        with self._lock:
            found = self._checkers.get(text)
            if found is not None:
                self._checkers.move_to_end(text)
            return found

    def keep(self, text: str, checker: Checker) -> None:
        with self._lock:
            if text in self._checkers:
                return
            self._checkers[text] = checker
            self._count(text, checker, 1)
            while self._characters > _KEPT_CHARACTERS or self._patterns > _KEPT_PATTERNS:
                self._count(*self._checkers.popitem(last=False), -1)

    def _count(self, text: str, checker: Checker, sign: int) -> None:
        self._characters += sign * max(_LEAST_CHARACTERS, len(text))
        self._patterns += sign * checker.extent.patterns


_kept = _Kept()


def checker_of(text: str, most: Extent = MOST) -> Checker:
    """What checks values by a schema. Those of the latest schemas are kept.

    Args:
        text: The schema.
        most: How much it may be.

    Raises:
        ValueError: It is no JSON Schema, or one that is beyond the bounds.
        MissingExtraError: jsonschema_rs is not installed.
    """
    try:
        import jsonschema_rs  # noqa: F401  # said before anything that is kept hides it
    except ImportError as e:
        raise MissingExtraError("Reading JSON Schemas", "generate") from e
    found = _kept.find(text)
    schema = _decoded(text) if found is None else found.schema
    size = extent(schema) if found is None else found.extent
    if size.nodes > most.nodes:
        raise ValueError(f"with its references followed it has {size.nodes:,} subschemas, more than {most.nodes:,}")
    if size.patterns > most.patterns:
        raise ValueError(f"it has {size.patterns} patterns, more than {most.patterns}")
    if found is None:
        found = Checker(schema, size, _compiled(text))
        _kept.keep(text, found)
    return found


def brackets(text: str) -> int:
    """Characters of a schema's text that may begin an object or a list."""
    return text.count("{") + text.count("[")


def _compiled(text: str, max_pattern_bytes: int = MAX_PATTERN_BYTES) -> Any:
    import jsonschema_rs

    try:
        # Else the library fetches what a schema names from where it points, and patterns may take for ever.
        options: Any = jsonschema_rs.RegexOptions(size_limit=max_pattern_bytes)
        if _LOOKS.search(text):
            options = jsonschema_rs.FancyRegexOptions(backtrack_limit=MAX_BACKTRACKS, size_limit=max_pattern_bytes)
        return jsonschema_rs.validator_for(text, offline=True, pattern_options=options)
    except jsonschema_rs.ReferencingError as e:
        raise ValueError(str(e)) from e


def _decoded(text: str) -> Schema:
    if brackets(text) > MAX_BRACKETS:
        raise ValueError(f"it has more than {MAX_BRACKETS:,} objects and lists")
    try:
        schema = msgspec.json.decode(text)
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e
    if not isinstance(schema, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  # it is the text that is wrong
    return schema


def _parts(root: Schema, schema: Schema) -> Sequence[_Part]:
    """The subschemas that values of a schema are held to, and what it refers to, which are held to the same value."""
    if _LEADING.isdisjoint(schema):
        return ()
    found = [_Part(keyword, None, target, True) for keyword, target in _references(root, schema)]
    for keyword, value in schema.items():
        in_place = keyword in _IN_PLACE
        if not in_place and keyword not in _INSIDE:
            continue
        if keyword in MAPS and isinstance(value, dict):
            found += [_Part(keyword, name, one, in_place) for name, one in value.items()]
        elif isinstance(value, list):
            found += [_Part(keyword, None, one, in_place) for one in value]
        else:
            found.append(_Part(keyword, None, value, in_place))
    return found


def _references(root: Schema, schema: Schema) -> Iterator[tuple[str, Any]]:
    """What a schema refers to, and by which keyword."""
    for keyword in REFERENCES & schema.keys():
        if isinstance(schema[keyword], str):
            yield keyword, _target(root, schema[keyword])


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


def _patterns(value: Any, *, named: bool = False) -> Iterator[str]:
    """Regular expressions, wherever they stand, also where nothing refers to them."""
    if isinstance(value, list):
        for one in value:
            yield from _patterns(one)
    if not isinstance(value, dict):
        return
    if not named:
        if isinstance(value.get("pattern"), str):
            yield value["pattern"]
        keyed = value.get("patternProperties")
        yield from keyed if isinstance(keyed, dict) else ()
    for key, one in value.items():
        if named or key not in DATA:
            yield from _patterns(one, named=not named and key in MAPS)


def _checked(patterns: Iterable[str]) -> set[str]:
    """Different patterns, none of which takes long before `MAX_PATTERN_BYTES` ends it.

    Raises:
        ValueError: One does.
    """
    found = set(patterns)
    for pattern in found:
        if len(pattern) > MAX_PATTERN_CHARACTERS:
            raise ValueError(f"it has a pattern of more than {MAX_PATTERN_CHARACTERS} characters")
        if len(_SET.findall(pattern)) > MAX_PATTERN_SETS:
            raise ValueError(f"it has a pattern with more than {MAX_PATTERN_SETS} of \\d, \\s, \\w and their like")
        if _WIDE.search(pattern) and _FLAGS.search(_ESCAPE.sub("", pattern)):
            raise ValueError("it has a pattern with both flags and Unicode")
        if _LOOKS.search(pattern):  # as those that pydantic writes for decimals, and zod for addresses
            _compiled(msgspec.json.encode({"pattern": pattern}).decode(), MAX_LOOKING_BYTES)
    return found


class _Count:
    """Subschemas of one document, each counted once and remembered."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[int, int] = {}
        self._parts: dict[int, Sequence[_Part]] = {}
        self._settled: set[int] = set()

    def nodes(self, schema: Any) -> int:
        """Subschemas of one."""
        if not isinstance(schema, dict):
            return 0
        if id(schema) in self._known:
            return self._known[id(schema)]
        if schema is not self._root and any(isinstance(schema.get(name), str) for name in ("$id", "id")):
            raise ValueError("it has another document inside, by the name of an $id")
        parts = self._parts_of(schema)
        if parts:
            self._check_circles(schema, set())
        self._known[id(schema)] = 1  # where it is found inside of itself
        within = sum([self.nodes(part.schema) for part in parts])
        # What is unevaluated is found by evaluating once more.
        total = min(MAX_NODES + 1, 1 + within * (1 if _UNEVALUATED.isdisjoint(schema) else 2))
        self._known[id(schema)] = total
        return total

    def _parts_of(self, schema: Schema) -> Sequence[_Part]:
        if id(schema) not in self._parts:
            self._parts[id(schema)] = _parts(self._root, schema)
        return self._parts[id(schema)]

    def _check_circles(self, schema: Any, around: set[int]) -> None:
        """Refuse what would be held to the same value again and again."""
        if not isinstance(schema, dict) or id(schema) in self._settled:
            return
        if id(schema) in around:
            raise ValueError("it refers to itself in a circle")
        around.add(id(schema))
        for part in self._parts_of(schema):
            if part.in_place:
                self._check_circles(part.schema, around)
        around.remove(id(schema))
        self._settled.add(id(schema))


class _TooManyError(Exception):
    """Counting itself takes too long."""


class _Steps:
    """Subschemas that values are held to, each pair counted once and remembered."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[tuple[int, int], int] = {}
        self._parts: dict[int, Sequence[_Part]] = {}

    def of(self, schema: Any, value: Any) -> int:
        if not isinstance(schema, dict):
            return 1
        pair = (id(schema), id(value))
        if pair in self._known:
            return self._known[pair]
        if len(self._known) >= MAX_PAIRS:
            raise _TooManyError
        self._known[pair] = MAX_STEPS + 1  # of one that comes back to itself
        if id(schema) not in self._parts:
            self._parts[id(schema)] = _parts(self._root, schema)
        steps = 1 + _of_patterns(schema, value) + sum([self._of_part(p, value) for p in self._parts[id(schema)]])
        if not _UNEVALUATED.isdisjoint(schema):
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
        inner: Iterable[Any] = value
        if isinstance(value, dict) and part.keyword != "propertyNames":
            inner = value.values()
        return sum([self.of(part.schema, one) for one in inner])


def _of_patterns(schema: Schema, value: Any) -> int:
    """Steps to hold a text to a schema's own pattern, and names to those of its properties."""
    if isinstance(value, str):
        return _steps_a_character(schema["pattern"]) * len(value) if "pattern" in schema else 0
    keyed = schema.get("patternProperties")
    if not (isinstance(value, dict) and isinstance(keyed, dict)):
        return 0
    return sum(map(_steps_a_character, keyed)) * sum(map(len, value))


def _steps_a_character(pattern: Any) -> int:
    looks = isinstance(pattern, str) and _LOOKS.search(pattern)
    return STEPS_A_CHARACTER * (LOOKING_TIMES if looks else 1)
