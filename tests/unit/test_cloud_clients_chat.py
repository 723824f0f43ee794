"""Prompts as bodies of OpenAI's protocol and of Converse, and what is read of their answers: pure, without a server."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.cloud.clients import chat, completions, converse
from edgewise.cloud.clients.toolcalls import MAX_CALLS, ToolCalls
from edgewise.dialogue import Finish, Message, Prompt, Role, Sampling, TokenChoice, Tool, ToolCall
from edgewise.errors import CloudRefusedError, CloudResponseError, CloudThrottledError

WEATHER = Tool(name="get_weather", parameters='{"type": "object"}')


def asked(*messages: Message, **more) -> Prompt:
    return Prompt(messages=messages or (Message(role=Role.USER, content="corn"),), **more)


def body(prompt: Prompt, dialect: str = "vllm", *, stream: bool = False):
    return json.loads(
        completions.encode_prompt(prompt, "m", dialect=dialect, max_tokens=None, longest_text=256, stream=stream)
    )


def chunk(*choices, **more) -> bytes:
    return json.dumps({"model": "m", "choices": list(choices), **more}).encode()


def delta(content=None, *, ending=None, logprobs=None, **more):
    return {"index": 0, "delta": {"content": content, **more}, "finish_reason": ending, "logprobs": logprobs}


def entry(token: str, logprob: float, **top: float):
    others = [{"token": text, "logprob": other} for text, other in top.items()]
    return {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": others}


# Tool calls.


@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(min_size=1, max_size=12)),
        min_size=1,
        max_size=5,
    ),
    st.data(),
)
def test_calls_are_the_same_however_their_pieces_are_mixed(made, data):
    calls = ToolCalls()
    pieces = {
        index: [(f"id{index}", name, ""), *((None, None, sign) for sign in text)]
        for index, (name, text) in enumerate(made)
    }
    order = [index for index, waiting in pieces.items() for _ in waiting[1:]]
    for index in [*pieces, *data.draw(st.permutations(order))]:
        calls.add(index, *pieces[index].pop(0))
    assert calls.whole() == tuple(
        ToolCall(id=f"id{index}", name=name, arguments=text) for index, (name, text) in enumerate(made)
    )


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        # The id comes again, with the name or without.
        ([(0, "a", "f", None), (0, "a", None, "{"), (0, "a", "f", "}")], [("a", "f", "{}")]),
        # Another id without a name is a server's whim (Kimi K2).
        ([(0, "a", "f", "{"), (0, "b", None, "}")], [("a", "f", "{}")]),
        # Another id with a name is another call, whatever its index.
        ([(0, "a", "f", "{}"), (0, "b", "g", "{}"), (0, None, None, " ")], [("a", "f", "{}"), ("b", "g", "{} ")]),
        # No index: what names a tool opens a call.
        ([(None, None, "f", "{}"), (None, None, "f", "[]")], [("call_0", "f", "{}"), ("call_1", "f", "[]")]),
        ([(None, "a", "f", "{"), (None, None, None, "}")], [("a", "f", "{}")]),
        # The id comes late, or never; and arguments may be none.
        ([(0, None, "f", "{"), (0, "a", None, "}")], [("a", "f", "{}")]),
        ([(3, "", "f", None)], [("call_0", "f", "{}")]),
    ],
)
def test_calls_of_servers_that_are_less_careful(pieces, found):
    calls = ToolCalls()
    for piece in pieces:
        calls.add(*piece)
    assert [(call.id, call.name, call.arguments) for call in calls.whole()] == found


def test_a_call_without_a_name_and_calls_without_end_are_no_answer():
    calls = ToolCalls()
    calls.add(0, "a", None, "{}")
    with pytest.raises(CloudResponseError, match="not name"):
        calls.whole()
    for index in range(1, MAX_CALLS):
        calls.add(index, None, "f", "{}")
    with pytest.raises(CloudResponseError, match=str(MAX_CALLS)):
        calls.add(MAX_CALLS, None, "f", "{}")


# Streams.


def test_a_chunk_of_several_tokens_is_told_token_by_token():
    stream = chat.ChatStream(top=1)
    logprobs = {"content": [entry("co", -0.1, co=-0.1, ba=-2.0), entry("rn", -0.2)]}
    assert stream.add(chunk(delta("corn", logprobs=logprobs))) == [
        chat.Told("co", -0.1, (TokenChoice("co", -0.1),)),
        chat.Told("rn", -0.2),
    ]


def test_a_chunk_whose_tokens_are_not_its_text_tells_no_log_probability():
    logprobs = {"content": [entry("\ufffd", -0.1), entry("\ufffd", -0.2)]}
    assert chat.ChatStream().add(chunk(delta("ü", logprobs=logprobs))) == [chat.Told("ü")]


def test_a_token_in_mid_character_is_told_without_a_text():
    stream = chat.ChatStream()
    assert stream.add(chunk(delta("", logprobs={"content": [entry("\ufffd", -0.1)]}))) == [chat.Told("", -0.1)]
    assert stream.add(chunk(delta("ü", logprobs={"content": [entry("\ufffd", -0.2)]}))) == [chat.Told("ü", -0.2)]


def test_the_token_that_ends_an_answer_is_none_of_it():
    end = {"content": [entry("<|im_end|>", -0.3)]}
    assert chat.ChatStream().add(chunk(delta("", ending="stop", logprobs=end))) == []
    # vLLM held "rn" back, in case a text that ends the answer began with it.
    assert chat.ChatStream().add(chunk(delta("rn", ending="stop", logprobs=end))) == [chat.Told("rn")]
    last = {"content": [entry("rn", -0.3)]}
    assert chat.ChatStream().add(chunk(delta("rn", ending="length", logprobs=last))) == [chat.Told("rn", -0.3)]


def test_the_likeliest_come_in_order_and_no_more_than_were_asked_for():
    taken_first = entry("c", -3.0, c=-3.0, a=-0.5, b=-1.0)
    (told,) = chat.ChatStream(top=2).add(chunk(delta("c", logprobs={"content": [taken_first]})))
    assert told.top == (TokenChoice("a", -0.5), TokenChoice("b", -1.0))


def test_log_probabilities_of_texts_stand_in_lists():
    logprobs = {"tokens": ["co", "rn"], "token_logprobs": [None, -0.2], "top_logprobs": [None, {"rn": -0.2}]}
    choice = {"index": 0, "text": "corn", "logprobs": logprobs, "finish_reason": None}
    assert chat.ChatStream(top=1).add(chunk(choice)) == [
        chat.Told("co"),
        chat.Told("rn", -0.2, (TokenChoice("rn", -0.2),)),
    ]
    logprobs["token_logprobs"].append(-1.0)
    with pytest.raises(CloudResponseError, match="number of tokens"):
        chat.ChatStream().add(chunk(choice))


@pytest.mark.parametrize(
    ("ending", "finish"),
    [("tool_calls", Finish.TOOL_CALLS), ("stop", Finish.TOOL_CALLS), ("length", Finish.LENGTH)],
)
def test_an_answer_that_calls_tools_ends_as_one(ending, finish):
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    stream = chat.ChatStream(tools=True)
    stream.add(chunk(delta(tool_calls=[call])))
    stream.add(chunk(delta(ending=ending)))
    written = stream.whole().written
    assert (written.finish, [call.name for call in written.tool_calls]) == (finish, ["f"])
    whole = chunk({"message": {"content": None, "tool_calls": [call]}, "finish_reason": ending})
    assert chat.decode_chat(whole, tools=True).written == written


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("ending", ["tool_calls", "abort", "error", None])
def test_an_answer_that_does_not_end_as_one_is_none(tools, ending):
    with pytest.raises(CloudResponseError, match="ended with"):
        chat.decode_chat(chunk({"message": {"content": "corn"}, "finish_reason": ending}), tools=tools)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, CloudRefusedError),
        ("400", CloudRefusedError),
        (422, CloudRefusedError),
        (429, CloudThrottledError),
        (500, CloudResponseError),
        (None, CloudResponseError),
        ("invalid", CloudResponseError),
    ],
)
def test_an_error_in_mid_stream_says_whose_fault_it_is(code, kind):
    nested = {"error": {"message": "no", "type": "T", "param": None, "code": code}}
    flat = {"object": "error", "message": "no", "type": "T", "param": None, "code": code}
    for told in (nested, flat):
        with pytest.raises(kind, match="no") as caught:
            chat.ChatStream().add(json.dumps(told).encode())
        assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("code", "type_", "kind"),
    [
        ("context_length_exceeded", "invalid_request_error", CloudRefusedError),
        (None, "BadRequestError", CloudRefusedError),
        ("rate_limit_exceeded", "requests", CloudThrottledError),
        ("cloud_failed", "api_error", CloudResponseError),
    ],
)
def test_errors_in_mid_stream_have_words_too(code, type_, kind):
    with pytest.raises(kind) as caught:
        chat.ChatStream().add(json.dumps({"error": {"message": "no", "type": type_, "code": code}}).encode())
    assert type(caught.value) is kind


def test_an_error_that_is_only_a_text_is_one():
    with pytest.raises(CloudResponseError, match="too many"):
        chat.ChatStream().add(b'{"error": "too many"}')


NAMES = [
    "choices",
    "delta",
    "content",
    "tool_calls",
    "function",
    "logprobs",
    "usage",
    "model",
    "text",
    "top_logprobs",
    "tokens",
    "token_logprobs",
    "edgewise",
    "error",
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)


def nested(some):
    return st.lists(some, max_size=3) | st.dictionaries(st.sampled_from(NAMES), some, max_size=4)


@given(st.recursive(LEAVES, nested, max_leaves=12))
def test_whatever_a_server_sends_is_an_answer_or_an_error_of_ours(value):
    data = json.dumps(value).encode()
    for read in (lambda: chat.ChatStream(tools=True, top=2).add(data), lambda: chat.decode_chat(data, tools=True)):
        try:
            read()
        except CloudResponseError:
            continue


# What is sent.


def test_nothing_is_offered_where_there_is_nothing():
    assert not {"tools", "tool_choice", "seed", "stop", "response_format", "max_tokens", "logprobs"} & set(
        body(asked())
    )


def test_tools_that_must_not_be_called_are_sent_and_their_calls_are_not_read():
    prompt = asked(tools=(WEATHER,), tool_choice="none")
    assert body(prompt)["tool_choice"] == "none"
    assert not completions.offers_tools(prompt)


def test_log_probabilities_are_asked_for_where_they_are_read():
    assert body(asked(), stream=True)["top_logprobs"] == 0
    assert "logprobs" not in body(asked(), stream=False)
    assert "logprobs" not in body(asked(), "openai", stream=True)
    assert body(asked(sampling=Sampling(top_logprobs=2)), "openai", stream=True)["top_logprobs"] == 2
    told = body(asked(sampling=Sampling(logprobs=True)), "openai", stream=True)
    assert (told["logprobs"], told["top_logprobs"]) == (True, 0)
    text = body(Prompt(text="a", sampling=Sampling(logprobs=True)), "openai", stream=True)
    assert text["logprobs"] == 0
    assert body(Prompt(text="a", sampling=Sampling(top_logprobs=2)), stream=True)["logprobs"] == 2


def test_a_draw_among_one_is_none():
    assert body(asked(sampling=Sampling(temperature=2.0, top_k=1)), "openai")["temperature"] == 0.0


def test_a_texts_limit_is_named_though_none_is_set():
    assert body(Prompt(text="a"))["max_tokens"] == 256
    assert body(Prompt(text="a"), "openai")["max_tokens"] == 256
    assert body(asked(sampling=Sampling(max_tokens=3)), "openai")["max_completion_tokens"] == 3


# Converse.


def test_converse_gets_turns_and_what_it_has_a_place_for():
    calls = (ToolCall(id="c1", name="f", arguments='{"a": 1}'), ToolCall(id="c2", name="f", arguments="{}"))
    prompt = asked(
        Message(role=Role.SYSTEM, content="Be brief."),
        Message(role=Role.USER, content="Call."),
        Message(role=Role.ASSISTANT, content="I do.", tool_calls=calls),
        Message(role=Role.TOOL, content="one", tool_call_id="c1"),
        Message(role=Role.TOOL, content="two", tool_call_id="c2"),
        Message(role=Role.USER, content="And?"),
        tools=(Tool(name="f", description="It is f.", parameters="{}"),),
        tool_choice="f",
        sampling=Sampling(max_tokens=9, temperature=0.5, top_p=0.8, seed=7, stop=("\n",), schema="{}", top_logprobs=3),
    )
    spec = {"name": "f", "description": "It is f.", "inputSchema": {"json": {"type": "object"}}}
    used = [
        {"toolUse": {"toolUseId": "c1", "name": "f", "input": {"a": 1}}},
        {"toolUse": {"toolUseId": "c2", "name": "f", "input": {}}},
    ]
    results = [
        {"toolResult": {"toolUseId": name, "content": [{"text": text}]}}
        for name, text in (("c1", "one"), ("c2", "two"))
    ]
    schema = {"type": "json_schema", "structure": {"jsonSchema": {"name": "answer", "schema": '{"type":"object"}'}}}
    assert converse.prompt_parameters(prompt, None) == {
        "system": [{"text": "Be brief."}],
        "messages": [
            {"role": "user", "content": [{"text": "Call."}]},
            {"role": "assistant", "content": [{"text": "I do."}, *used]},
            {"role": "user", "content": [*results, {"text": "And?"}]},
        ],
        "inferenceConfig": {"maxTokens": 9, "temperature": 0.5, "topP": 0.8, "stopSequences": ["\n"]},
        "toolConfig": {"tools": [{"toolSpec": spec}], "toolChoice": {"tool": {"name": "f"}}},
        "outputConfig": {"textFormat": schema},
    }
    begun = converse.prompt_parameters(asked(begun="So"), None)
    assert begun["messages"][-1] == {"role": "assistant", "content": [{"text": "So"}]}


def test_what_is_sent_to_converse_is_what_botocore_takes():
    pytest.importorskip("botocore")
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.Session().get_service_model("bedrock-runtime").operation_model("Converse")
    call = ToolCall(id="c1", name="f", arguments='{"a": [1, 2.5, null]}')
    told = Message(role=Role.TOOL, content="one", tool_call_id="c1")
    begun, held = {"begun": "So"}, {"sampling": Sampling(schema='{"type": "object"}', stop=("x",))}
    for choice, more in (("auto", begun), ("required", held), ("f", held)):
        prompt = asked(
            Message(role=Role.USER, content="Call."),
            Message(role=Role.ASSISTANT, tool_calls=(call,)),
            told,
            tools=(Tool(name="f"),),
            tool_choice=choice,
            **more,
        )
        parameters = {"modelId": "m", **converse.prompt_parameters(prompt, 9)}
        assert not ParamValidator().validate(parameters, model.input_shape).has_errors()


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(text="corn"),
        asked(sampling=Sampling(temperature=1.0, top_k=5)),
        asked(begun="{", sampling=Sampling(schema="{}")),
        asked(Message(role=Role.USER, content="a"), Message(role=Role.SYSTEM, content="b")),
        asked(Message(role=Role.ASSISTANT, tool_calls=(ToolCall(id="c", name="f", arguments="{"),))),
        asked(Message(role=Role.TOOL, content="a", tool_call_id="c"), tools=(WEATHER,), tool_choice="none"),
    ],
)
def test_what_converse_has_no_place_for_is_refused(prompt):
    with pytest.raises(CloudRefusedError) as caught:
        converse.prompt_parameters(prompt, None)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_tools_that_must_not_be_called_are_not_sent_to_converse():
    assert "toolConfig" not in converse.prompt_parameters(asked(tools=(WEATHER,), tool_choice="none"), None)


@pytest.mark.parametrize("ending", ["malformed_tool_use", "malformed_model_output", "tool_use", None])
def test_an_answer_of_converse_that_does_not_end_as_one_is_none(ending):
    with pytest.raises(CloudResponseError, match="ended with"):
        converse.said_in({"stopReason": ending}, tools=True)
