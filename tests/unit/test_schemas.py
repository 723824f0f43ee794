"""What schemas may cost: references followed, circles, and steps counted against what is really done."""

import json
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise import schemas
from edgewise.schemas import MAX_NODES, extent, takes_few_steps, validator_of

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


def test_pointers_are_read_as_they_are_written():
    odd = {"$defs": {"a/b": {"~c d": [{"type": "integer"}]}}, "$ref": "#/$defs/a~1b/~0c%20d/0"}
    assert extent(odd).nodes == 2
    assert validator_of(json.dumps(odd)).is_valid(1)


@given(DOCUMENT, VALUE)
def test_steps_are_counted_as_a_plain_evaluation_takes_them(document, value):
    """Against a walk that remembers nothing."""
    try:
        extent(document)
    except ValueError:
        return
    steps = count()

    def walk(schema, held):
        if next(steps) > 3000:
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
    assert schemas._Steps(document).of(document, value) == next(steps)


def test_only_small_ones_without_patterns_are_kept():
    schemas._kept.cache_clear()
    for schema in ({"pattern": "x"}, {"description": "x" * 20_000}):
        assert validator_of(json.dumps(schema)) is not validator_of(json.dumps(schema))
    assert schemas._kept.cache_info().currsize == 0
    assert validator_of("{}") is validator_of("{}")
    for number in range(100):
        validator_of(json.dumps({"maximum": number}))
    assert schemas._kept.cache_info().currsize == 16


@pytest.mark.parametrize("text", ["", "3", "[" * 100_000, '{"not": ' * 900 + "{}" + "}" * 900, '{"type": "nothing"}'])
def test_what_is_no_schema(text):
    with pytest.raises(ValueError, match=r"."):
        validator_of(text)


def test_the_bound_is_far_from_schemas_that_people_write():
    fields = {f"f{i}": {"type": "string", "anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]} for i in range(200)}
    assert extent({"$defs": {"a": {"properties": {"x": {}, "y": {}}}}, "properties": fields}).nodes < MAX_NODES / 5
