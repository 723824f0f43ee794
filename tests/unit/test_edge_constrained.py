"""Grammars of answers: schemas of tools that refer to themselves, as pydantic and others write nested types."""

import json

import pytest

from edgewise.dialogue import Message, Prompt, Role, Sampling, Tool
from edgewise.edge.constrained import Grammars, grammar_of
from edgewise.errors import InputError

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
