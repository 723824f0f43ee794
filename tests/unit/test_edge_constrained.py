"""Grammars of answers: schemas of tools that refer to themselves, as pydantic and others write nested types."""

import json

import numpy as np
import pytest

from edgewise.dialogue import Message, Prompt, Role, Sampling, Tool
from edgewise.edge.constrained import Grammars, grammar_of
from edgewise.errors import BeyondModelError, InputError

PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PLACED = {"type": "object", "properties": {"place": {"$ref": "#/$defs/Place"}}, "required": ["place"]}
TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"$ref": "#"}},
    "required": ["value"],
    "additionalProperties": False,
}
NESTED = {
    "pydantic": {"$defs": {"Place": PLACE}, **PLACED},
    "zod": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://example.com/weather",
        "definitions": {"Place": PLACE},
        **PLACED,
        "properties": {"place": {"$ref": "#/definitions/Place"}},
    },
    "deeper": {
        **PLACED,
        "$defs": {"a/b": {"properties": {"$ref": PLACE}}},
        "properties": {"place": {"$ref": "#/$defs/a~1b/properties/$ref"}},
    },
}


@pytest.fixture(scope="module")
def grammars(tiny_generator):
    tokenizer = tiny_generator.tokenizer()
    return Grammars(tokenizer.to_str().encode(), tokenizer.get_vocab_size(), [1])


def calling(*schemas, choice="required", **sampling):
    tools = tuple(Tool(name=f"t{index}", parameters=json.dumps(schema)) for index, schema in enumerate(schemas))
    messages = (Message(role=Role.USER, content="x"),)
    return Prompt(messages=messages, tools=tools, tool_choice=choice, sampling=Sampling(**sampling))


def begins(grammars, prompt, begun):
    """Whether an answer to a prompt may begin so."""
    try:
        grammars.constraint(grammar_of(prompt), begun)
    except InputError as error:
        if not error.problem.startswith("begun"):
            raise
        return False
    return True


def written(tool, arguments):
    return f'<tool_call>\n{{"name": "{tool}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize("schema", NESTED.values(), ids=NESTED)
def test_the_arguments_keep_to_what_a_schema_refers_to(grammars, schema):
    good, bad = written("t0", '{"place": {"city": "Bern"}}'), written("t0", '{"place": {"city": 7}}')
    for choice in ("required", "t0"):
        assert begins(grammars, calling(schema, choice=choice), good)
        assert not begins(grammars, calling(schema, choice=choice), bad)
    beside = calling(schema, choice="auto", schema=json.dumps(schema))
    assert begins(grammars, beside, good)
    assert begins(grammars, beside, '{"place": {"city": "Bern"}}')
    assert not begins(grammars, beside, bad)


def test_tools_keep_their_own_definitions_apart(grammars):
    number = {"$defs": {"Place": {"type": "integer"}}, **PLACED}
    both = calling(NESTED["pydantic"], number)
    assert begins(grammars, both, written("t0", '{"place": {"city": "Bern"}}'))
    assert begins(grammars, both, written("t1", '{"place": 7}'))
    assert not begins(grammars, both, written("t0", '{"place": 7}'))
    assert not begins(grammars, both, written("t1", '{"place": {"city": "Bern"}}'))


def test_a_schema_inside_of_itself_means_the_tools_and_not_the_calls(grammars):
    assert begins(grammars, calling(TREE), written("t0", '{"value": 1, "next": {"value": 2, "next": {"value": 3}}}'))
    assert not begins(grammars, calling(TREE), written("t0", '{"value": 1, "next": {"name": "t0"'))


def test_what_only_looks_like_a_reference_stays(grammars):
    schema = {"type": "object", "properties": {"a": {"const": {"$ref": "#/x"}}}, "required": ["a"]}
    assert begins(grammars, calling(schema), written("t0", '{"a": {"$ref": "#/x"}}'))


def test_a_reference_to_nothing_is_bad_input(grammars):
    with pytest.raises(InputError, match="held to it"):
        grammars.constraint(grammar_of(calling({"properties": {"a": {"$ref": "#/$defs/none"}}})), "")


def of_multiples(**schema):
    return Prompt(text="x", sampling=Sampling(schema=json.dumps(schema)))


def each_of(*numbers):
    return [{"type": "integer", "multipleOf": number} for number in numbers]


TOO_MANY = {
    "one": {"multipleOf": 9_999_991},
    "a fraction": {"multipleOf": 99.99991},
    "far apart": {"anyOf": each_of(1e300, 1e-300)},
    "all": {"allOf": each_of(97, 89, 83)},
    "any": {"anyOf": each_of(97, 89, 83)},
    "of one property": {"allOf": [{"properties": {"a": one}} for one in each_of(97, 89, 83)]},
    "by reference": {"$defs": {"a": {"multipleOf": 9973}}, "$ref": "#/$defs/a", "multipleOf": 97},
    "beside each other": {"properties": {f"p{number}": {"multipleOf": number} for number in range(900, 912)}},
}


@pytest.mark.parametrize("schema", TOO_MANY.values(), ids=TOO_MANY)
def test_multiples_that_would_take_long_are_beyond_the_model(schema):
    with pytest.raises(BeyondModelError, match="multipleOf"):
        grammar_of(of_multiples(**schema))
    with pytest.raises(BeyondModelError, match="multipleOf"):
        grammar_of(calling(schema))


def test_tools_share_what_multiples_may_take():
    tools = [{"properties": {"a": {"multipleOf": 5_003 + index}}} for index in range(2)]
    assert grammar_of(calling(tools[0], tools[1], choice="t1"))
    with pytest.raises(BeyondModelError, match="multipleOf"):
        grammar_of(calling(*tools))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"price": {"multipleOf": 0.01}, "rest": {"multipleOf": 0.25}, "size": {"multipleOf": 1024}}},
        {"anyOf": [*each_of(5, 60, 100), {"type": "null"}]},
        {"const": {"multipleOf": 9_999_991}},
        {"type": "object", "properties": {"multipleOf": {"type": "integer"}, "enum": {"multipleOf": 7}}},
    ],
    ids=["plain", "joined", "data", "names"],
)
def test_multiples_that_people_ask_for_are_kept_to(grammars, schema):
    assert grammars.constraint(grammar_of(of_multiples(**schema)), "")


@pytest.mark.parametrize(
    "schema",
    [
        {
            "properties": {
                f"p{i}": {"items": {"maxLength": i}, "minItems": 10**8, "maxItems": 10**9} for i in range(900)
            }
        },
        {"anyOf": [{"type": "integer", "minimum": -(10**17) + i, "maximum": 10**17 - 7 * i} for i in range(300)]},
    ],
    ids=["items", "ranges"],
)
def test_a_grammar_that_would_take_much_memory_or_time_is_beyond_the_model(grammars, schema):
    with pytest.raises(BeyondModelError, match="held to it"):
        grammars.constraint(grammar_of(of_multiples(**schema)), "")


def test_a_schema_that_grows_too_complex_on_the_way_is_beyond_this_model(grammars, tiny_generator):
    prompt = Prompt(text="x", sampling=Sampling(schema='{"type": "string", "pattern": "^((.*[ab].{100}).*)+$"}'))
    constraint = grammars.constraint(grammar_of(prompt), "")
    with pytest.raises(BeyondModelError, match="held to it: lexer error"):
        write_on(constraint, tiny_generator)


def write_on(constraint, tiny_generator):
    """Write a text at random that does not end."""
    random = np.random.default_rng(0)
    often, never = [tiny_generator.ids_of(character)[0] for character in "ab"], tiny_generator.ids_of('"')[0]
    for _ in range(400):
        logits = random.normal(size=tiny_generator.tokenizer().get_vocab_size()).astype(np.float32)
        logits[often] += 3
        logits[never] -= 50
        constraint.take(int(constraint.masked(logits).argmax()))
