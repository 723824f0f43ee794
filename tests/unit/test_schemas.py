"""What schemas may cost: references followed, circles, and steps counted against what is really done."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise import schemas
from edgewise.schemas import (
    MAX_BRACKETS,
    MAX_NODES,
    MAX_PATTERN_CHARACTERS,
    MAX_PATTERN_SETS,
    MAX_PATTERNS,
    STEPS_A_CHARACTER,
    Extent,
    checker_of,
    extent,
    takes_few_steps,
)

NAMES = st.sampled_from(["a", "b", "c"])
REFERENCE = st.builds(lambda name: {"$ref": f"#/$defs/{name}"}, NAMES)
SCHEMA = st.recursive(
    REFERENCE | st.sampled_from([{}, {"type": "integer"}, {"pattern": "x"}, True]),
    lambda inner: st.one_of(
        st.builds(lambda key, all_: {key: all_}, st.sampled_from(["allOf", "anyOf"]), st.lists(inner, min_size=1)),
        st.builds(lambda name, one: {"properties": {name: one}}, NAMES, inner),
        st.builds(lambda one: {"items": one, "additionalProperties": one}, inner),
    ),
    max_leaves=6,
)
DOCUMENT = st.builds(
    lambda defs, one: {"$defs": defs, "not": one}, st.fixed_dictionaries(dict.fromkeys("abc", SCHEMA)), SCHEMA
)
VALUE = st.recursive(
    st.integers(0, 3) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def doubled(levels, last):
    steps = {f"n{i}": {"allOf": [{"$ref": f"#/$defs/n{i - 1}"}] * 2} for i in range(1, levels + 1)}
    return {"$defs": {"n0": last, **steps}, "$ref": f"#/$defs/n{levels}"}


def test_references_are_counted_as_often_as_they_lead_somewhere():
    assert extent({}).nodes == 1
    assert extent(doubled(1, {})).nodes == 1 + 1 + 2 + 2
    assert extent(doubled(11, {})).nodes == 2**13 - 2
    with pytest.raises(ValueError, match="10,000"):
        extent(doubled(12, {}))
    with pytest.raises(ValueError, match="10,000"):
        extent(doubled(2000, {}) | {"$ref": "#/$defs/n100"})


def test_a_schema_inside_of_itself_counts_once():
    tree = {"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
    assert extent(tree).nodes == 5
    assert takes_few_steps(tree, {"left": {"right": {}}})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"not": {"anyOf": [{"$ref": "#"}]}},
        {"properties": {"a": {"$ref": "#/$defs/c"}}, "allOf": [{"$ref": "#/$defs/c"}], "$defs": {"c": {"$ref": "#"}}},
        {"items": {"$ref": "#/items"}},
    ],
)
def test_circles_are_refused(schema):
    with pytest.raises(ValueError, match="circle"):
        extent(schema)


def test_patterns_are_counted_wherever_they_stand_and_only_where_they_are_some():
    assert extent({"properties": {"pattern": {"type": "string"}}, "const": {"pattern": "x"}}).patterns == 0
    assert extent({"$defs": {"a": {"pattern": "x"}}, "unknown": [{"patternProperties": {"b": {}}}]}).patterns == 2
    assert extent({"allOf": [{"pattern": "x"}] * 100}).patterns == 1


def test_pointers_are_read_as_they_are_written():
    odd = {"$defs": {"a/b": {"~c d": [{"type": "integer"}]}}, "$ref": "#/$defs/a~1b/~0c%20d/0"}
    assert extent(odd).nodes == 2
    assert checker_of(json.dumps(odd)).takes(1)


@given(DOCUMENT, VALUE)
def test_steps_are_counted_as_a_plain_evaluation_takes_them(document, value):
    """Against a walk that remembers nothing."""
    try:
        extent(document)
    except ValueError:
        return
    steps = 0

    def walk(schema, held):
        nonlocal steps
        steps += 1
        if isinstance(schema, dict) and "pattern" in schema and isinstance(held, str):
            steps += STEPS_A_CHARACTER * len(held)
        if steps > 3000:
            raise OverflowError
        for keyword, inner in schema.items() if isinstance(schema, dict) else ():
            if keyword == "$ref":
                walk(document["$defs"][inner[-1]], held)
            elif keyword in ("allOf", "anyOf", "not"):
                for one in inner if isinstance(inner, list) else [inner]:
                    walk(one, held)
            elif keyword == "properties":
                for name in inner.keys() & (held.keys() if isinstance(held, dict) else set()):
                    walk(inner[name], held[name])
            elif keyword in ("items", "additionalProperties") and isinstance(held, dict | list):
                for one in held.values() if isinstance(held, dict) else held:
                    walk(inner, one)

    try:
        walk(document, value)
    except OverflowError:
        return
    assert schemas._Steps(document).of(document, value) == steps


def patterned(*patterns):
    return json.dumps({"allOf": [{"pattern": pattern} for pattern in patterns]})


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(\p{Ll}|\p{Lu}|\p{N}|\p{P}){400}$",
        r"((((\pL{9}){9}){9}){9}){9}",
        r"(a|b)" * 100 + "x" * 13,
        r"\s" * (MAX_PATTERN_SETS + 1),
        "(?i)[a-\U0010ffff]",
        r"(x)(?i:[\x{0}-\x{10ffff}])",
        "(",
    ],
)
def test_a_pattern_that_takes_long_to_read_is_refused(pattern):
    for schema in ({"pattern": pattern}, {"items": {"patternProperties": {pattern: {}}}}):
        with pytest.raises(ValueError, match=r"pattern|regex"):
            checker_of(json.dumps(schema))


def test_patterns_that_people_write_are_taken():
    day = r"(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|(?:02)-(?:0[1-9]|1\d|2[0-8])"
    written = [
        rf"^(?:\d\d[2468][048]-02-29|\d{{4}}-(?:{day}))T(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?Z$",
        r"^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$",
        r"^[^@\s]+@[\w.-]+\.[a-z]{2,}$",
        r"^[\p{L}\p{N} ]+$",
        r"^\(?\p{L}+$",
        r"(?i)^[a-z]\w*$",
        r"^.{1,200}$",
        r"^\S{1,64}$",
        r"^[\w\s-]{1,255}$",
    ]
    assert checker_of(patterned(*written)).extent.patterns == len(written)
    assert checker_of(patterned(written[0])).takes("2024-02-29T10:00Z")
    assert not checker_of(patterned(written[0])).takes("2023-02-29T10:00Z")


DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"
"""As pydantic writes it."""
ADDRESS = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
"""As zod does."""


def test_patterns_that_look_ahead_are_taken_in_part():
    checker = checker_of(patterned(DECIMAL))
    assert [checker.takes(text) for text in ("12.50", "-3", "-.", "abc")] == [True, True, False, False]
    checker = checker_of(patterned(ADDRESS))
    assert [checker.takes(text) for text in ("a.b@c.org", "a..b@c.org", "@c.org")] == [True, False, False]
    assert checker_of(patterned(r"(?=(a+)+b)x")).takes("a" * 40) is False
    assert not checker_of(patterned(DECIMAL)).takes("1" * 501), "nothing bounds it but its length"
    with pytest.raises(ValueError, match="regex"):
        checker_of(patterned("((?=(.*a){60}).)*b"))


def test_a_schema_has_few_patterns_and_brackets():
    assert checker_of(patterned(*map(str, range(MAX_PATTERNS))))
    with pytest.raises(ValueError, match=f"{MAX_PATTERNS + 1} patterns"):
        checker_of(patterned(*map(str, range(MAX_PATTERNS + 1))))
    with pytest.raises(ValueError, match="1 patterns"):
        checker_of(patterned("x"), Extent(nodes=9, patterns=0))
    with pytest.raises(ValueError, match="2 subschemas"):
        checker_of('{"not": {}}', Extent(nodes=1, patterns=0))
    with pytest.raises(ValueError, match="8,000"):
        checker_of(json.dumps({"unknown": [[]] * MAX_BRACKETS}))
    assert MAX_PATTERN_CHARACTERS == 512


def test_characters_held_to_a_pattern_are_steps():
    texts = {"pattern": "^([ab]*a[ab]{9})*$"}
    assert takes_few_steps(texts, "a" * 4000)
    assert not takes_few_steps(texts, "a" * 6000)
    assert not takes_few_steps({"allOf": [texts, dict(texts)]}, "a" * 3000)
    assert not takes_few_steps({"patternProperties": {"a": {}, "b": {}}}, {"a" * 3000: 1})
    assert not takes_few_steps({"propertyNames": texts}, {"a" * 6000: 1})
    assert takes_few_steps({"propertyNames": texts}, {"b": "a" * 6000})


def test_what_was_read_last_is_kept_within_bounds(monkeypatch):
    monkeypatch.setattr(schemas, "_kept", schemas._Kept())
    assert checker_of("{}") is checker_of("{}")
    assert checker_of(patterned("x")) is checker_of(patterned("x"))
    for number in range(1000):
        checker_of(json.dumps({"maximum": number}))
    assert len(schemas._kept._checkers) == 256
    large = json.dumps({"description": "x" * 300_000})
    assert checker_of(large) is not checker_of(large)
    assert not schemas._kept._checkers
    for number in range(10):
        checker_of(patterned(*(f"{number}x{i}" for i in range(MAX_PATTERNS))))
    assert len(schemas._kept._checkers) == 2


@pytest.mark.parametrize("text", ["", "3", "[" * 100_000, '{"not": ' * 900 + "{}" + "}" * 900, '{"type": "nothing"}'])
def test_what_is_no_schema(text):
    with pytest.raises(ValueError, match=r"."):
        checker_of(text)


def test_the_bound_is_far_from_schemas_that_people_write():
    fields = {f"f{i}": {"type": "string", "anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]} for i in range(200)}
    assert extent({"$defs": {"a": {"properties": {"x": {}, "y": {}}}}, "properties": fields}).nodes < MAX_NODES / 5
