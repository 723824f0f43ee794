"""What the client of OpenAI's protocol does with prompts beyond the common contract, against vLLM's recorded shapes."""

import importlib.util
import sys
from pathlib import Path

import pytest

from edgewise import wiring
from edgewise.cloud.clients import CLIENTS
from edgewise.config import backends_in_use, parse_config
from edgewise.contracts import CloudReply, Request
from edgewise.dialogue import Finish, Message, Prompt, Role, Sampling, TokenChoice, Tool, ToolCall
from edgewise.errors import CloudRefusedError, CloudResponseError, ConfigError

SPEC = importlib.util.spec_from_file_location("edgewise_vllm_shapes", Path(__file__).parent / "vllm_stub.py")
vllm = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = vllm
SPEC.loader.exec_module(vllm)
stubs = vllm.stubs

LONG_S = 20.0
WEATHER = Tool(name="get_weather", description="Weather of a city.", parameters='{"type": "object"}')
HERE, THERE = '{"city": "Paris"}', '{"city": "New York"}'
BOTH = "weather in Paris and New York"


@pytest.fixture
def server():
    with stubs.serving(vllm.VLLM) as server:
        yield server


@pytest.fixture
async def client(server):
    client = vllm.VLLM.client(server.url)
    yield client
    await client.aclose()


def asking(text: str = "corn rose fast", **more) -> Request:
    messages = (Message(role=Role.USER, content=text),)
    return Request(id="r1", inputs=Prompt(messages=messages, **more))


def continuing(text: str, **more) -> Request:
    return Request(id="r1", inputs=Prompt(text=text, **more))


async def streamed(client, request: Request) -> list:
    return [piece async for piece in client.stream(request, timeout_s=LONG_S)]


async def both(client, request: Request) -> CloudReply:
    """The reply, which is the same streamed and not."""
    reply = await client.predict(request, timeout_s=LONG_S)
    assert (await streamed(client, request))[-1] == reply
    return reply


def posted(server):
    """The last question; the list of models may be asked for beside it."""
    return [seen for seen in server.asked if seen.method == "POST"][-1]


# What is sent.


async def test_a_conversation_is_sent_with_all_that_belongs_to_it(client, server):
    call = ToolCall(id="call_1", name="get_weather", arguments=HERE)
    turns = (
        Message(role=Role.SYSTEM, content="Be brief."),
        Message(role=Role.USER, content="weather in Paris"),
        Message(role=Role.ASSISTANT, tool_calls=(call,)),
        Message(role=Role.TOOL, content="18 degrees", tool_call_id="call_1"),
        Message(role=Role.USER, content="corn"),
    )
    sampling = Sampling(max_tokens=50, temperature=0.7, top_p=0.9, top_k=40, seed=7, stop=("\n",), top_logprobs=2)
    await streamed(client, Request(inputs=Prompt(messages=turns, tools=(WEATHER,), sampling=sampling)))
    function = {"name": "get_weather", "description": "Weather of a city.", "parameters": {"type": "object"}}
    assert posted(server).json == {
        "model": "news",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "weather in Paris"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": HERE}}
                ],
            },
            {"role": "tool", "content": "18 degrees", "tool_call_id": "call_1"},
            {"role": "user", "content": "corn"},
        ],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "auto",
        "max_tokens": 50,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 7,
        "stop": ["\n"],
        "n": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_greedy_prompt_says_no_more_than_that(client, server):
    await client.predict(asking(), timeout_s=LONG_S)
    sent = posted(server).json
    assert sent == {
        "model": "news",
        "messages": [{"role": "user", "content": "corn rose fast"}],
        "temperature": 0.0,
        "n": 1,
        "stream": False,
    }
    await client.predict(asking(sampling=Sampling(temperature=0.7)), timeout_s=LONG_S)
    # vLLM takes what is missing from the checkpoint's own generation_config.json.
    assert {name: posted(server).json[name] for name in ("top_p", "top_k")} == {"top_p": 1.0, "top_k": 0}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("required", "required"),
        ("none", "none"),
        ("get_weather", {"type": "function", "function": {"name": "get_weather"}}),
    ],
)
async def test_the_choice_of_a_tool_is_sent_in_openais_words(client, server, choice, sent):
    await client.predict(asking(tools=(WEATHER,), tool_choice=choice), timeout_s=LONG_S)
    assert posted(server).json["tool_choice"] == sent


async def test_a_schema_constrains_the_answer(client, server):
    schema = '{"type": "object", "properties": {"label": {"type": "string"}}}'
    reply = await both(client, asking(sampling=Sampling(schema=schema)))
    assert reply.output == '{"label": "corn rose fast"}'
    told = posted(server).json["response_format"]
    assert (told["type"], told["json_schema"]["schema"]["properties"]) == ("json_schema", {"label": {"type": "string"}})
    await client.predict(asking(sampling=Sampling(schema="{}")), timeout_s=LONG_S)
    assert posted(server).json["response_format"] == {"type": "json_object"}


async def test_a_begun_answer_is_the_last_message_and_not_sent_back(client, server):
    reply = await both(client, asking(begun="label of corn "))
    assert reply.output == "rose fast"
    sent = posted(server).json
    assert sent["messages"][-1] == {"role": "assistant", "content": "label of corn "}
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)


async def test_json_that_is_begun_would_be_begun_again(client, server):
    await client.describe(timeout_s=LONG_S)
    server.asked.clear()
    sampling = Sampling(schema='{"type": "object"}')
    for item in (asking(begun='{"label"', sampling=sampling), continuing("corn", begun="{", sampling=sampling)):
        with pytest.raises(CloudRefusedError, match="JSON that is begun"):
            await client.predict(item, timeout_s=LONG_S)
        with pytest.raises(CloudRefusedError, match="JSON that is begun"):
            await streamed(client, item)
    assert server.asked == []


async def test_a_text_is_continued_as_it_is(client, server):
    reply = await both(client, continuing("corn rose", begun=" fast"))
    assert reply.output == "and corn rose fast"
    assert reply.written.completion_tokens == 4
    sent = posted(server)
    assert (sent.path, sent.json["prompt"], sent.json["max_tokens"]) == ("/v1/completions", "corn rose fast", 256)
    assert sent.json["logprobs"] == 0


@pytest.mark.parametrize(
    ("limit", "asked", "sent"), [(None, None, None), (None, 9, 9), (300, None, 300), (300, 9, 9), (5, 900, 900)]
)
async def test_the_prompts_limit_goes_before_the_configured_one(server, limit, asked, sent):
    client = vllm.VLLM.client(server.url, **({} if limit is None else {"max_tokens": limit}))
    await client.predict(asking(sampling=Sampling(max_tokens=asked)), timeout_s=LONG_S)
    assert posted(server).json.get("max_tokens") == sent
    await client.aclose()


# What comes back.


async def test_tokens_tell_their_log_probabilities_and_the_likeliest_beside_them(client):
    *tokens, _ = await streamed(client, asking("corn", sampling=Sampling(top_logprobs=2)))
    assert [(token.text, token.logprob) for token in tokens] == [("label ", -0.5), ("of ", -0.5), ("corn", -0.5)]
    assert tokens[0].top == (TokenChoice("label ", -0.5), TokenChoice("label ~1", -1.0))
    *tokens, _ = await streamed(client, asking("corn"))
    assert [(token.logprob, token.top) for token in tokens] == [(-0.5, ())] * 3


async def test_tokens_of_a_continued_text_do_so_too(client):
    *tokens, _ = await streamed(client, continuing("corn", sampling=Sampling(top_logprobs=1)))
    assert [(token.text, token.logprob) for token in tokens if token.text] == [("and ", -0.5), ("corn", -0.5)]
    assert tokens[0].top == (TokenChoice("and ", -0.5),)


async def test_counts_are_the_servers(client):
    written = (await both(client, asking())).written
    assert (written.prompt_tokens, written.completion_tokens, written.cached_tokens) == (3, 5, 1)


async def test_a_server_that_counts_nothing_is_told_as_nothing(client, server):
    server.replace_pieces = lambda pieces: (*pieces[:-2], pieces[-1])
    written = (await streamed(client, asking()))[-1].written
    assert (written.finish, written.prompt_tokens, written.completion_tokens) == (Finish.STOP, 0, 0)


@pytest.mark.parametrize("how", ["deltas", "repeating_deltas", "whole_deltas", "nameless_deltas"])
async def test_calls_are_put_together_however_they_are_cut(client, monkeypatch, how):
    monkeypatch.setattr(vllm, "cut", getattr(vllm, how))
    reply = (await streamed(client, asking(BOTH, tools=(WEATHER,))))[-1]
    assert (reply.output, reply.written.finish) == ("", Finish.TOOL_CALLS)
    assert [(call.name, call.arguments) for call in reply.written.tool_calls] == [
        ("get_weather", HERE),
        ("get_weather", THERE),
    ]
    assert len({call.id for call in reply.written.tool_calls}) == 2


async def test_calls_come_whole_where_nothing_is_streamed(client):
    reply = await both(client, asking(BOTH, tools=(WEATHER,)))
    assert reply.written.tool_calls == (
        ToolCall(id=vllm.TOOL_ID.format(0), name="get_weather", arguments=HERE),
        ToolCall(id=vllm.TOOL_ID.format(1), name="get_weather", arguments=THERE),
    )


async def test_a_tool_that_was_named_is_a_call_though_the_answer_ends_with_stop(client):
    reply = await both(client, asking("weather in Paris", tools=(WEATHER,), tool_choice="get_weather"))
    assert reply.written.finish is Finish.TOOL_CALLS


async def test_a_tool_that_does_not_exist_is_refused(client):
    with pytest.raises(CloudRefusedError, match="does not match any"):
        await client.predict(asking(tools=(WEATHER,), tool_choice="get_time"), timeout_s=LONG_S)


async def test_a_stream_without_an_ending_is_no_answer(client, server):
    without = [event for event in range(20) if event not in (6,)]
    server.replace_pieces = lambda pieces: tuple(piece for at, piece in enumerate(pieces) if at in without)
    with pytest.raises(CloudResponseError, match="ended with None"):
        await streamed(client, asking())


@pytest.mark.parametrize("status", [400, 422])
async def test_what_is_refused_is_no_fault_of_the_address(client, server, status):
    await client.describe(timeout_s=LONG_S)
    server.always = vllm.VLLM.says(status, "too rude")
    with pytest.raises(CloudRefusedError, match=f"status {status}: .*too rude") as refused:
        await client.predict(asking(), timeout_s=LONG_S)
    assert refused.value.remedy == "Change what is sent: as it is, it would be refused again."


@pytest.mark.parametrize("shape", ["error", "flat_error"])
async def test_a_prompt_that_is_too_long_is_refused_in_either_shape(client, server, shape):
    await client.describe(timeout_s=LONG_S)
    body = getattr(vllm, shape)(400, "This model's maximum context length is 4096 tokens.", "BadRequestError")
    server.always = stubs.as_json(body, 400)
    with pytest.raises(CloudRefusedError, match="maximum context length"):
        await client.predict(asking(), timeout_s=LONG_S)
    server.always = stubs.Reply(headers={"content-type": "text/event-stream"}, pieces=(stubs.sse(body),))
    with pytest.raises(CloudRefusedError, match="maximum context length"):
        await streamed(client, asking())


@pytest.mark.parametrize("meddling", ["refusal", "content_filter"])
async def test_what_the_server_keeps_back_is_a_refusal(client, server, meddling):
    delta = {"delta": {"refusal": "I will not."}} if meddling == "refusal" else {"finish_reason": "content_filter"}
    told = stubs.sse({"model": stubs.MODEL, "choices": [delta]})
    server.replace_pieces = lambda pieces: (*pieces[:-3], told, pieces[-1])
    with pytest.raises(CloudRefusedError):
        await streamed(client, asking())


# Servers that know less, and ours, which says more.


async def test_openais_own_dialect_has_no_extensions(server):
    client = vllm.VLLM.client(server.url, dialect="openai")
    await streamed(client, asking(sampling=Sampling(max_tokens=9, temperature=0.5)))
    sent = posted(server).json
    assert not {"top_k", "logprobs", "max_tokens", "continue_final_message"} & set(sent)
    assert sent["max_completion_tokens"] == 9
    server.asked.clear()
    for item in (asking(begun="label"), asking(sampling=Sampling(temperature=1.0, top_k=5))):
        with pytest.raises(CloudRefusedError, match=r"begun|top_k"):
            await client.predict(item, timeout_s=LONG_S)
    assert server.asked == []
    await client.aclose()


def test_a_dialect_that_is_none_is_an_error():
    with pytest.raises(ConfigError, match="'klingon'") as caught:
        CLIENTS["openai"]("http://127.0.0.1:9", model="news", dialect="klingon")
    assert "vllm, openai" in caught.value.remedy


async def test_the_dialect_is_a_line_of_the_configuration(server):
    table = {"kind": "openai", "url": server.url, "model": "news", "dialect": "openai"}
    (backend,) = backends_in_use(parse_config({"cloud": {"backends": {"theirs": table}}}).cloud).values()
    client = wiring.connect(backend)
    with pytest.raises(CloudRefusedError, match="begun"):
        await client.predict(asking(begun="label"), timeout_s=LONG_S)
    await client.aclose()
    (backend,) = backends_in_use(
        parse_config({"cloud": {"backends": {"bedrock": {"kind": "bedrock", "dialect": "openai"}}}}).cloud
    ).values()
    with pytest.raises(ConfigError, match="`dialect`"):
        wiring.connect(backend)


def ours(pieces: tuple[bytes, ...], **facts) -> tuple[bytes, ...]:
    """A stream as our own service ends it: `edgewise` beside the finish reason."""
    told = {
        "id": "r1",
        "status": "final",
        "source": "cloud",
        "reason": "no_router",
        "model_digest": "sha256:11",
        **facts,
    }
    last = {"model": stubs.MODEL, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "edgewise": told}
    return (*pieces[:-3], stubs.sse(last), *pieces[-2:])


async def test_our_own_service_names_the_digest_of_its_model(client, server):
    server.replace_pieces = ours
    reply = (await streamed(client, asking()))[-1]
    assert reply.reference.version.startswith("sha256:11, asked ")
    server.replace_pieces = lambda pieces: ours(pieces, model_digest="sha256:22")
    assert (await streamed(client, asking()))[-1].reference.version.startswith("sha256:22, asked ")


@pytest.mark.parametrize(
    ("reason", "kind"), [("breaker_open", CloudResponseError), ("cloud_refused", CloudRefusedError)]
)
async def test_a_gateway_that_answers_provisionally_is_no_reference(client, server, reason, kind):
    server.replace_pieces = lambda pieces: ours(pieces, status="provisional", reason=reason)
    with pytest.raises(CloudResponseError, match=f"provisionally: {reason}") as caught:
        await streamed(client, asking())
    assert type(caught.value) is kind


# A server that is asked for its model.


@pytest.fixture
def lonely_server():
    """Serves one model and no other."""

    def reply(asked, version):
        if asked.path == "/v1/models":
            return stubs.as_json({"object": "list", "data": [stubs.card()]})
        return vllm.reply(asked, version)

    with stubs.serving(stubs.Dialect(**{**vars(vllm.VLLM), "reply": reply})) as server:
        yield server


async def test_a_server_of_one_model_is_asked_once_for_its_name(lonely_server):
    nameless = CLIENTS["openai"](lonely_server.url)
    reply = await both(nameless, asking())
    assert posted(lonely_server).json["model"] == stubs.MODEL
    assert [seen.path for seen in lonely_server.asked].count("/v1/models") == 1
    named = CLIENTS["openai"](lonely_server.url, model=stubs.MODEL)
    assert reply == await both(named, asking())
    assert await nameless.describe(timeout_s=LONG_S) == await named.describe(timeout_s=LONG_S) == reply.reference
    for client in (nameless, named):
        await client.aclose()


async def test_a_server_of_several_models_has_to_be_told_which(server):
    nameless = CLIENTS["openai"](server.url)
    with pytest.raises(CloudResponseError, match="lists 2 models, and none is named") as refused:
        await nameless.describe(timeout_s=LONG_S)
    assert refused.value.remedy == f"Name one of its models: another, {stubs.MODEL}."
    with pytest.raises(CloudResponseError, match="none is named"):
        await streamed(nameless, asking())
    assert all(seen.method == "GET" for seen in server.asked)
    await nameless.aclose()
