"""Requests for texts in OpenAI's protocol become prompts, or errors that name the field."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.contracts import DataPolicy, Mode
from edgewise.dialogue import MAX_STOPS, MAX_TOP_LOGPROBS, Message, Prompt, Role, Sampling, Tool, ToolCall
from edgewise.errors import MissingExtraError, RequestError
from edgewise.schemas import MAX_BRACKETS, MAX_PATTERNS
from edgewise.wire import prompts
from edgewise.wire.completions import (
    NEUTRAL,
    Call,
    ChatBody,
    CompletionBody,
    call_of,
    decode_chat,
    decode_completion,
)
from edgewise.wire.schemas import MAX_SCHEMA_BYTES, SchemaReader

USER = {"role": "user", "content": "hi"}
CALLS = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look"}}]}
BEYOND_ANY_FLOAT = 10**400
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}


def tool(name: str = "look", **parameters: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def chat(headers: dict[bytes, bytes] | None = None, **body: object) -> Call:
    data = json.dumps({"model": "writer", "messages": [USER], **body}).encode()
    return call_of(decode_chat(data), headers or {}, tenant="acme", new_id=lambda: "new", max_budget_ms=60_000)


def text(**body: object) -> Call:
    data = json.dumps({"model": "writer", "prompt": "Grain", **body}).encode()
    return call_of(decode_completion(data), {}, tenant="acme", new_id=lambda: "new", max_budget_ms=60_000)


def prompt(**body: object) -> Prompt:
    found = chat(**body).request.inputs
    assert isinstance(found, Prompt)
    return found


def refused(make: object, **body: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        make(**body)
    return caught.value


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        ({"messages": [{"role": "bot", "content": "hi"}]}, "assistant, developer, system, tool, user"),
        ({"messages": [{"content": "hi"}]}, "assistant, developer, system, tool, user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text"),
        ({"tools": [{"type": "plugin", "function": {"name": "look"}}]}, "function"),
        ({"tool_choice": "maybe"}, "auto, none, required"),
        ({"response_format": {"type": "yaml"}}, "json_object, json_schema, text"),
    ],
)
def test_a_word_that_is_none_is_told_those_that_are(body: dict[str, Any], remedy: str) -> None:
    assert refused(chat, **body).remedy == f"Choose one of: {remedy}."


def test_a_field_that_is_missing_is_told_beside_its_own_neighbours() -> None:
    error = refused(chat, tools=[{"type": "function"}])
    assert (error.field, error.remedy) == ("tools[0].function", "Known fields: type, function.")


def test_a_bound_is_told_in_digits() -> None:
    assert refused(chat, max_tokens=0).remedy == "Send 1 to 1000000."
    assert refused(chat, temperature=9).remedy == "Send 0 to 2."
    assert refused(chat, seed=2**63).remedy == f"Send {-(2**63)} to {2**63 - 1}."


def test_a_chat_becomes_a_prompt_and_omitted_means_greedy() -> None:
    call = chat()
    assert call.request.inputs == Prompt(messages=(Message(role=Role.USER, content="hi"),))
    assert call.request.inputs.sampling.is_greedy
    assert (call.request.task, call.request.tenant, call.request.id) == ("text-generation", "acme", "new")
    assert not call.request.revisable
    assert (call.is_chat, call.streams, call.tells_usage, call.tells_logprobs) == (True, False, False, False)


def test_roles_parts_calls_and_results() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    developer = {"role": "developer", "content": "Be brief.", "name": "boss"}
    said = {"role": "assistant", "content": "Yes.", "refusal": None, "annotations": []}
    found = prompt(messages=[developer, {"role": "user", "content": parts}, CALLS, RESULT, said, USER]).messages
    assert found == (
        Message(role=Role.SYSTEM, content="Be brief."),
        Message(role=Role.USER, content="ab"),
        Message(role=Role.ASSISTANT, tool_calls=(ToolCall(id="c1", name="look", arguments="{}"),)),
        Message(role=Role.TOOL, content="sunny", tool_call_id="c1"),
        Message(role=Role.ASSISTANT, content="Yes."),
        Message(role=Role.USER, content="hi"),
    )


def test_tools_and_schemas_are_kept_as_text() -> None:
    found = prompt(
        tools=[tool(type="object"), tool("other")], tool_choice={"type": "function", "function": {"name": "look"}}
    )
    assert found.tools == (Tool(name="look", parameters='{"type":"object"}'), Tool(name="other"))
    assert found.tool_choice == "look"
    assert [prompt(tools=[tool()], tool_choice=word).tool_choice for word in ("auto", "none", "required", None)] == [
        "auto",
        "none",
        "required",
        "auto",
    ]


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, "{}"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}, '{"type":"array"}'),
    ],
)
def test_what_an_answer_has_to_be(form: object, schema: str | None) -> None:
    assert prompt(response_format=form).sampling.schema == schema
    assert text(response_format=form).request.inputs.sampling.schema == schema


def test_every_choice_of_sampling_arrives() -> None:
    found = prompt(
        max_completion_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        seed=7,
        stop=["a", "b"],
        logprobs=True,
        top_logprobs=3,
    ).sampling
    assert found == Sampling(
        max_tokens=5, temperature=0.5, top_p=0.9, top_k=40, seed=7, stop=("a", "b"), top_logprobs=3, logprobs=True
    )
    assert prompt(max_tokens=5, max_completion_tokens=5, top_k=-1, stop="x").sampling == Sampling(
        max_tokens=5, stop=("x",)
    )


def test_a_last_message_or_begun_is_the_beginning_of_the_answer() -> None:
    begun = {"role": "assistant", "content": "Once"}
    assert prompt(messages=[USER, begun], continue_final_message=True) == prompt(begun="Once")
    assert prompt(begun="Once").begun == "Once"
    assert prompt(messages=[USER, begun]).messages[-1].role is Role.ASSISTANT


def test_ours_stand_in_the_body_or_in_headers() -> None:
    body = {"budget_ms": 100, "mode": "edge_only", "profile": "p", "data_policy": "local_only", "session": "s"}
    headers = {f"x-edgewise-{name.replace('_', '-')}".encode(): str(value).encode() for name, value in body.items()}
    assert chat(**body).request == chat(headers).request
    request = chat(headers, session="other").request
    assert (request.budget_ms, request.mode, request.session) == (100, Mode.EDGE_ONLY, "other")
    assert request.data_policy is DataPolicy.LOCAL_ONLY


def test_what_changes_no_answer_is_ignored() -> None:
    ignored = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "a_field_of_next_year": [1],
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "n": 1,
        "modalities": ["text"],
        "repetition_penalty": 1.0,
    }
    assert chat(**ignored).request == chat().request


def test_a_text_to_continue() -> None:
    call = text(logprobs=2, stream=True, stream_options={"include_usage": True})
    assert call.request.inputs == Prompt(text="Grain", sampling=Sampling(max_tokens=16, top_logprobs=2, logprobs=True))
    assert (call.is_chat, call.streams, call.tells_usage, call.tells_logprobs) == (False, True, True, True)
    assert text(prompt=["Grain"]).request == text().request
    assert text(logprobs=0).tells_logprobs


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"messages": []}, "messages", "invalid_request"),
        ({"messages": [USER] * 1025}, "messages", "invalid_request"),
        ({"messages": [{"role": "user", "content": "x" * 1_000_001}]}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_request"),
        ({"messages": [{"role": "oracle", "content": "x"}]}, "messages[0].role", "invalid_request"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "invalid_request",
        ),
        ({"messages": [RESULT]}, "messages[0].tool_call_id", "invalid_request"),
        ({"messages": [USER, CALLS, RESULT, RESULT]}, "messages[3].tool_call_id", "invalid_request"),
        ({"messages": [USER, CALLS, USER]}, "messages[2]", "invalid_request"),
        ({"messages": [USER, CALLS]}, "messages[1]", "invalid_request"),
        ({"messages": [USER, CALLS, {"role": "tool", "content": "x"}]}, "messages[2].tool_call_id", "invalid_request"),
        ({"messages": [{**USER, "tool_call_id": "c1"}]}, "messages[0].tool_call_id", "invalid_request"),
        (
            {"messages": [{**USER, "tool_calls": CALLS["tool_calls"]}, RESULT]},
            "messages[0].tool_calls",
            "invalid_request",
        ),
        (
            {"messages": [{**CALLS, "tool_calls": CALLS["tool_calls"] * 2}, RESULT]},
            "messages[0].tool_calls",
            "invalid_request",
        ),
        ({"tools": [tool("no tool")]}, "tools[0].function.name", "invalid_tool"),
        ({"tools": [tool("auto")]}, "tools[0].function.name", "invalid_tool"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name", "invalid_tool"),
        ({"tools": [tool(str(at)) for at in range(129)]}, "tools", "invalid_tool"),
        ({"tools": [tool(type="objekt")]}, "tools[0].function.parameters", "invalid_json_schema"),
        (
            {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "invalid_tool",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_tool"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "invalid_json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 1}}}},
            "response_format.json_schema.schema",
            "invalid_json_schema",
        ),
        ({"max_tokens": -1}, "max_tokens", "invalid_request"),
        ({"max_tokens": 0}, "max_tokens", "invalid_request"),
        ({"max_tokens": 10**30}, "max_tokens", "invalid_request"),
        ({"max_tokens": BEYOND_ANY_FLOAT}, "max_tokens", "invalid_request"),
        ({"max_tokens": -BEYOND_ANY_FLOAT}, "max_tokens", "invalid_request"),
        ({"max_completion_tokens": BEYOND_ANY_FLOAT}, "max_completion_tokens", "invalid_request"),
        ({"seed": BEYOND_ANY_FLOAT}, "seed", "invalid_request"),
        ({"top_k": -BEYOND_ANY_FLOAT}, "top_k", "invalid_request"),
        ({"temperature": BEYOND_ANY_FLOAT}, "temperature", "invalid_request"),
        ({"logprobs": True, "top_logprobs": BEYOND_ANY_FLOAT}, "top_logprobs", "invalid_request"),
        ({"n": BEYOND_ANY_FLOAT}, "n", "unsupported_value"),
        ({"budget_ms": BEYOND_ANY_FLOAT}, "budget_ms", "invalid_request"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_request"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "invalid_request"),
        ({"temperature": -0.1}, "temperature", "invalid_request"),
        ({"temperature": 99}, "temperature", "invalid_request"),
        ({"top_p": 0}, "top_p", "invalid_request"),
        ({"top_p": 1.1}, "top_p", "invalid_request"),
        ({"top_k": -2}, "top_k", "invalid_request"),
        ({"seed": 2**63}, "seed", "invalid_request"),
        ({"stop": ["x"] * 17}, "stop", "invalid_request"),
        ({"stop": ""}, "stop", "invalid_request"),
        ({"stop": ["x" * 257]}, "stop", "invalid_request"),
        ({"n": 2}, "n", "unsupported_value"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_value"),
        ({"frequency_penalty": -0.5}, "frequency_penalty", "unsupported_value"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "unsupported_value"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_value"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_value"),
        ({"function_call": {"name": "f"}}, "function_call", "unsupported_value"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_request"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_request"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_request"),
        ({"continue_final_message": True}, "continue_final_message", "invalid_request"),
        (
            {"messages": [USER, CALLS, RESULT], "continue_final_message": True},
            "continue_final_message",
            "invalid_request",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "x"}], "continue_final_message": True, "begun": "y"},
            "begun",
            "invalid_request",
        ),
        ({"budget_ms": -1}, "budget_ms", "invalid_request"),
        ({"mode": "fast"}, "mode", "invalid_request"),
        ({"session": "a b"}, "session", "invalid_request"),
        ({"stream": "yes"}, "stream", "invalid_request"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_its_field(body: dict[str, object], field: str, code: str) -> None:
    error = refused(chat, **body)
    assert (error.field, error.code) == (field, code)
    assert error.remedy


OF_VLLM = {
    "min_tokens": 5,
    "ignore_eos": True,
    "stop_token_ids": [5],
    "guided_choice": ["yes", "no"],
    "guided_json": {"type": "object"},
    "guided_regex": "a+",
    "structured_outputs": {"choice": ["yes"]},
    "bad_words": ["x"],
    "allowed_token_ids": [1],
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "length_penalty": 2,
    "use_beam_search": True,
    "truncate_prompt_tokens": 4,
}


@pytest.mark.parametrize("make", [chat, text])
@pytest.mark.parametrize("field", OF_VLLM)
def test_fields_of_another_server_that_would_change_the_answer_are_refused(make: object, field: str) -> None:
    error = refused(make, **{field: OF_VLLM[field]})
    assert (error.field, error.code) == (field, "unsupported_value")


def test_fields_that_change_nothing_as_they_are_sent_are_taken() -> None:
    for body, make in ((ChatBody, chat), (CompletionBody, text)):
        known = {name: values for name, values in NEUTRAL.items() if name in body.__struct_fields__}
        assert known
        for name, values in known.items():
            for value in (None, *values):
                assert make(**{name: value}).request == make().request
    assert set(NEUTRAL) <= {*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__}


def test_the_fields_that_are_refused_are_those_that_the_docs_tell() -> None:
    page = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text()
    assert [name for name in NEUTRAL if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"prompt": "x" * 1_000_001}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": BEYOND_ANY_FLOAT}, "logprobs"),
        ({"best_of": BEYOND_ANY_FLOAT}, "best_of"),
    ],
)
def test_texts_that_cannot_be_continued_are_refused(body: dict[str, object], field: str) -> None:
    assert refused(text, **body).field == field


def test_arguments_of_a_call_are_a_json_object() -> None:
    for arguments in ("[1]", "{", "nonsense"):
        call = {"id": "c1", "function": {"name": "look", "arguments": arguments}}
        error = refused(chat, messages=[USER, {"role": "assistant", "tool_calls": [call]}, RESULT])
        assert error.field == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    "body", [b'{"temperature": NaN}', b'{"temperature": Infinity}', b'{"top_p": 1e999}', b"[]", b"\xff"]
)
def test_numbers_that_are_none_and_bodies_that_are_none(body: bytes) -> None:
    with pytest.raises(RequestError):
        decode_chat(body)


@given(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=4))
def test_whatever_a_field_holds_the_outcome_is_a_call_or_a_request_error(body: dict[str, object]) -> None:
    with contextlib.suppress(RequestError):
        assert chat(**{**body, "messages": [USER]}).request.id == "new"


# Schemas

DOUBLED = {
    "$defs": {"n0": {}, **{f"n{i}": {"allOf": [{"$ref": f"#/$defs/n{i - 1}"}] * 2} for i in range(1, 30)}},
    "$ref": "#/$defs/n29",
}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/x"},
        {"properties": {"a": {"items": [{"$ref": "other.json"}]}}},
        {"$dynamicRef": "https://example.com/x#y"},
        {"$schema": "http://127.0.0.1:9/schema"},
        {"$ref": "#/$defs/none"},
        {"description": "x" * MAX_SCHEMA_BYTES},
        {"pattern": r"(a)\1"},
        {"$ref": "#"},
        {"$ref": "#named", "$defs": {"n": {"$anchor": "named"}}},
        {"$defs": {"n": {"$id": "http://127.0.0.1:9/x"}}, "$ref": "#/$defs/n"},
        {"allOf": [{"anyOf": [{"$ref": "#"}]}]},
        {"properties": {f"p{i}": {"pattern": f"{i}"} for i in range(MAX_PATTERNS + 1)}},
        {"patternProperties": {f"p{i}": {} for i in range(MAX_PATTERNS + 1)}},
        {"pattern": r"^(\p{Ll}|\p{Lu}|\p{N}|\p{P}){400}$"},
        {"enum": [[]] * MAX_BRACKETS},
        DOUBLED,
    ],
)
def test_a_schema_names_nothing_that_would_have_to_be_fetched(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        SchemaReader().read(schema, "tools")
    assert (caught.value.field, caught.value.code) == ("tools", "invalid_json_schema")


def test_a_schema_may_name_itself_and_have_a_property_of_that_name() -> None:
    tree = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {"n": {}},
        "items": {"$ref": "#/$defs/n"},
    }
    assert json.loads(SchemaReader().read(tree, "x")) == tree
    named = {"properties": {"$ref": {"type": "string"}}}
    assert json.loads(SchemaReader().read(named, "x")) == named


def test_the_schemas_of_a_request_share_their_limits() -> None:
    large = {"description": "x" * (MAX_SCHEMA_BYTES - 100)}
    patterned = {"properties": {f"p{i}": {"pattern": f"{i}"} for i in range(MAX_PATTERNS)}}
    listed = {"enum": [[]] * (MAX_BRACKETS - 9)}
    doubled = {"$defs": DOUBLED["$defs"], "$ref": "#/$defs/n11"}
    for first, then, said in [
        (large, large, "bytes"),
        (patterned, {"pattern": "x"}, "patterns"),
        (listed, {"enum": [[]] * 9}, "lists"),
        (doubled, {**doubled, "title": "again"}, "subschemas"),
    ]:
        reader = SchemaReader()
        reader.read(first, "tools[0]")
        if first is large:
            reader.read(first, "tools[1]")
            then = {"description": "x" * 1000}
        with pytest.raises(RequestError, match=said) as caught:
            reader.read(then, "tools[9]")
        assert (caught.value.field, caught.value.code) == ("tools[9]", "invalid_json_schema")


def test_without_what_reads_schemas_only_schemas_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    assert chat(tools=[tool()]).request.inputs.tools == (Tool(name="look"),)
    with pytest.raises(MissingExtraError) as caught:
        chat(tools=[tool(type="object")])
    assert caught.value.extra == "generate"


def test_the_limits_are_those_that_the_docs_tell() -> None:
    found = (
        prompts.MAX_MESSAGES,
        prompts.MAX_TOOLS,
        MAX_STOPS,
        MAX_TOP_LOGPROBS,
        prompts.MAX_CHARACTERS,
    )
    assert found == (1024, 128, 16, 20, 1_000_000)
