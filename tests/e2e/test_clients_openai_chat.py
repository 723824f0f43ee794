"""Texts over real sockets: the openai client, and a WebSocket client that interrupts when it likes."""

import asyncio
import contextlib
import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from websockets.asyncio.client import connect

from edgewise.dialogue import TokenChoice, ToolCall
from edgewise.errors import CloudTimeoutError, PromptTooLongError
from edgewise.telemetry import Metrics
from edgewise.wire.door import Limits, front_door
from edgewise.wire.serve import BackgroundServer


def _load(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"edgewise_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


writers = _load("fake_writer")

WHOLE = "Grain exports rose in March."
MESSAGES = [{"role": "user", "content": "What rose?"}]
LOOK = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}}},
}
ENOUGH_S = 30


@pytest.fixture
def writer():
    return writers.Writer()


@pytest.fixture
def server(writer) -> Iterator[BackgroundServer]:
    app = front_door(
        writers.served(writer),
        answers=None,
        metrics=Metrics(),
        api_keys={"a-key": "acme"},
        limits=Limits(max_body_bytes=100_000),
    )
    with BackgroundServer(app) as running:
        yield running


@pytest.fixture
def client(server: BackgroundServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="a-key", max_retries=0) as found:
        yield found


def chat(client: openai.OpenAI, **options: object):
    return client.chat.completions.create(**{"model": "writer", "messages": MESSAGES, **options})


def test_a_whole_reply(client: openai.OpenAI, writer) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="writer", messages=MESSAGES, temperature=0.5, user="u", extra_body={"session": "s", "top_k": 5}
    )
    found = raw.parse()
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == (WHOLE, "stop")
    assert found.usage.prompt_tokens_details.cached_tokens == 4
    assert found.model_extra["edgewise"]["status"] == raw.headers["x-edgewise-status"] == "final"
    (request,) = writer.requests
    assert (request.tenant, request.session, request.inputs.sampling.top_k) == ("acme", "s", 5)


def test_a_streamed_reply_folds_into_the_whole_one(client: openai.OpenAI, writer) -> None:
    writer.top = (TokenChoice("Grain", -0.25),)
    state = ChatCompletionStreamState()
    options = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 1}
    for chunk in chat(client, **options):
        state.handle_chunk(chunk)
    streamed = state.get_final_completion()
    whole = chat(client, logprobs=True, top_logprobs=1)
    assert streamed.choices[0].message.content == whole.choices[0].message.content == WHOLE
    assert streamed.choices[0].logprobs.content == whole.choices[0].logprobs.content
    assert len(whole.choices[0].logprobs.content) == 6
    assert streamed.usage == whole.usage
    assert streamed.choices[0].finish_reason == "stop"


def test_calls_of_tools_fold_too_and_their_results_go_back(client: openai.OpenAI, writer) -> None:
    writer.tokens, writer.calls = (), (ToolCall(id="c1", name="look", arguments='{"at":1}'),)
    with client.chat.completions.stream(model="writer", messages=MESSAGES, tools=[LOOK]) as stream:
        streamed = stream.get_final_completion().choices[0]
    whole = chat(client, tools=[LOOK]).choices[0]
    for choice in (streamed, whole):
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert (call.id, call.function.name, call.function.arguments) == ("c1", "look", '{"at":1}')
    writer.tokens, writer.calls = ("Sunny.",), ()
    result = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
    said = [*MESSAGES, whole.message, result]  # as their client gives it back, with fields of its own
    assert chat(client, messages=said, tools=[LOOK]).choices[0].message.content == "Sunny."
    assert writer.requests[-1].inputs.messages[1].tool_calls == (ToolCall(id="c1", name="look", arguments='{"at":1}'),)


def test_texts_that_are_continued(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="writer", prompt="Once", logprobs=1)
    assert (whole.choices[0].text, whole.choices[0].logprobs.text_offset) == (WHOLE, [0, 5, 13, 18, 21, 27])
    chunks = list(client.completions.create(model="writer", prompt="Once", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == WHOLE
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_an_answer_of_a_schema(client: openai.OpenAI, writer) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}
    chat(client, response_format=form)
    assert writer.requests[0].inputs.sampling.schema == '{"type":"object"}'


def test_errors_are_exceptions_of_the_client(client: openai.OpenAI, writer) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        chat(client, model="gpt")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as tokens:
        chat(client, max_tokens=-1)
    assert tokens.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as tool:
        chat(client, tools=[LOOK], tool_choice={"type": "function", "function": {"name": "other"}})
    assert (tool.value.code, tool.value.param) == ("invalid_tool", "tool_choice")
    writer.error = PromptTooLongError("The prompt has 9000 tokens.")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as long:
            chat(client, stream=stream)
        assert long.value.code == "context_length_exceeded"
    writer.error, writer.error_after = CloudTimeoutError("Too late."), 3
    told = []
    with pytest.raises(openai.APIError, match="Too late") as broken:
        told.extend(chunk.choices[0].delta.content or "" for chunk in chat(client, stream=True))
    assert broken.value.code == "cloud_timeout"
    with pytest.raises(openai.AuthenticationError):
        chat(client.with_options(api_key="wrong"))
    writer.error = None
    assert chat(client).choices[0].message.content == WHOLE


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_what_is_written(server: BackgroundServer, writer, stream: bool) -> None:
    writer.is_endless = True
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="a-key", max_retries=0) as client:
        work = client.chat.completions.create(model="writer", messages=MESSAGES, stream=stream)
        if stream:
            async with await work as chunks:
                async for chunk in chunks:
                    if chunk.choices[0].delta.content:
                        break
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(work, 0.3)
    assert await asyncio.to_thread(writer.closed.wait, ENOUGH_S)
    assert len(writer.requests) == 1


async def test_twenty_streams_at_once_each_hear_their_own(server: BackgroundServer, writer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="a-key", max_retries=0) as client:

        async def one(at: int) -> str:
            stream = await client.chat.completions.create(
                model="writer", messages=MESSAGES, stream=True, extra_body={"session": f"s{at}"}
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert await asyncio.gather(*(one(at) for at in range(20))) == [WHOLE] * 20
    assert {request.session for request in writer.requests} == {f"s{at}" for at in range(20)}
    assert await asyncio.to_thread(writer.closed.wait, ENOUGH_S)


@pytest.mark.slow
async def test_two_hundred_interrupts_at_random_moments_leave_nothing_behind(server: BackgroundServer, writer) -> None:
    """Each text is ended in front of its first token, in its middle, at its end, or behind it."""
    draws = random.Random(7)
    ends = {"interrupted": 0, "answer": 0}
    url = f"ws://{server.host}:{server.port}/v1/stream"
    async with connect(url, additional_headers={"x-api-key": "a-key"}) as socket:
        for turn in range(200):
            writer.is_endless = draws.random() < 0.5
            patience = draws.randrange(12)
            await socket.send(json.dumps({"type": "generate", "id": str(turn), "messages": MESSAGES}))
            heard = []
            while not heard or heard[-1]["type"] != "done":
                if len(heard) == patience:
                    await socket.send(json.dumps({"type": "interrupt", "id": str(turn)}))
                heard.append(json.loads(await asyncio.wait_for(socket.recv(), ENOUGH_S)))
            *tokens, end, done = heard
            text = "".join(token["text"] for token in tokens)
            assert {message["id"] for message in heard} == {str(turn)}
            assert end["text" if end["type"] == "interrupted" else "output"] == text
            assert not done["pending"]
            ends[end["type"]] += 1
            assert end["type"] == "answer" or writer.open == 0
    assert min(ends.values()) > 20
    assert await asyncio.to_thread(writer.closed.wait, ENOUGH_S)
    assert len(writer.requests) == 200


async def test_many_texts_on_one_connection_are_interrupted_one_by_one(server: BackgroundServer, writer) -> None:
    writer.is_endless = True
    url = f"ws://{server.host}:{server.port}/v1/stream"
    async with connect(url, additional_headers={"x-api-key": "a-key"}) as socket:
        for name in "abcdefgh":
            await socket.send(json.dumps({"type": "generate", "id": name, "messages": MESSAGES}))
        for name in "hgfedcba":
            await socket.send(json.dumps({"type": "interrupt", "id": name}))
        done: list[str] = []
        while len(done) < 8:
            message = json.loads(await asyncio.wait_for(socket.recv(), ENOUGH_S))
            assert message["id"] not in done
            if message["type"] == "done":
                done.append(message["id"])
    assert done == list("hgfedcba")
    assert await asyncio.to_thread(writer.closed.wait, ENOUGH_S)


async def test_a_connection_that_breaks_ends_its_texts(server: BackgroundServer, writer) -> None:
    writer.is_endless = True
    url = f"ws://{server.host}:{server.port}/v1/stream"
    socket = await connect(url, additional_headers={"x-api-key": "a-key"})
    await socket.send(json.dumps({"type": "generate", "id": "a", "messages": MESSAGES}))
    await socket.recv()
    socket.transport.abort()
    with contextlib.suppress(Exception):
        await socket.wait_closed()
    assert await asyncio.to_thread(writer.closed.wait, ENOUGH_S)
