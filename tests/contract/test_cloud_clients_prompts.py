"""What every cloud client that takes whole prompts must do with them, over real sockets.

The same promises as for texts in `test_cloud_clients`, of which this is the half that speaks of prompts.
"""

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from edgewise.contracts import CloudReply, Request, Source, Token
from edgewise.dialogue import Finish, Message, Prompt, Role, Sampling, Tool, ToolCall
from edgewise.errors import (
    CloudCredentialsError,
    CloudError,
    CloudRefusedError,
    CloudResponseError,
    CloudThrottledError,
    CloudTimeoutError,
    CloudUnreachableError,
)


def neighbour(name: str, path: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


faults = neighbour("edgewise_prompts_fault_proxy", "faults/proxy.py")
vllm = neighbour("edgewise_vllm_stub", "contract/vllm_stub.py")
stubs = vllm.stubs

LONG_S, SHORT_S = 20.0, 0.15
SENT_S = 0.6
"""Short, and long enough for a busy machine to send a request."""
TEXT, ANSWER = "corn rose fast", "label of corn rose fast"
WEATHER = Tool(name="get_weather", description="Weather of a city.", parameters='{"type": "object"}')
KINDS = sorted(vllm.DIALECTS)
WAYS = ("predict", "stream")


def said(text: str, role: Role = Role.USER, **more: Any) -> Message:
    return Message(role=role, content=text, **more)


def prompt(text: str = TEXT, **more: Any) -> Prompt:
    return Prompt(messages=(said("Be brief.", Role.SYSTEM), said(text)), **more)


def asking(item: Prompt | str | None = None) -> Request:
    return Request(id="r1", inputs=prompt() if item is None else item)


REQUEST = asking()


@pytest.fixture(autouse=True)
def aws(monkeypatch):
    """Credentials in the standard chain, and nothing of this machine's."""
    for name, value in stubs.AWS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def dialect(kind):
    return vllm.DIALECTS[kind]


@pytest.fixture
def server(dialect):
    with stubs.serving(dialect) as server:
        yield server


@pytest.fixture
def proxy(server):
    with faults.FaultProxy(*server.server_address) as proxy:
        yield proxy


@pytest.fixture
async def client(dialect, proxy):
    client = dialect.client(proxy.url)
    yield client
    await client.aclose()


async def asked(client: Any, how: str, timeout_s: float = LONG_S, request: Request = REQUEST) -> CloudReply:
    """Ask in one of the ways; a client that exceeds its own time-out fails the test instead of hanging it."""
    async with asyncio.timeout(LONG_S * 2):
        if how == "predict":
            return await client.predict(request, timeout_s=timeout_s)
        return [piece async for piece in client.stream(request, timeout_s=timeout_s)][-1]


every_way = pytest.mark.parametrize("how", WAYS)


# Answers.


@every_way
async def test_an_answer_tells_its_reference_and_how_it_came_about(client, how):
    reply = await asked(client, how)
    assert (reply.output, reply.reference) == (ANSWER, await client.describe(timeout_s=LONG_S))
    assert not reply.fail_over
    assert reply.written.finish is Finish.STOP
    assert (reply.written.prompt_tokens, reply.written.completion_tokens) == (3, 5)
    assert reply.written.tool_calls == ()


async def test_a_stream_tells_tokens_of_the_cloud_and_then_the_same_reply(client):
    pieces = [piece async for piece in client.stream(REQUEST, timeout_s=LONG_S)]
    assert all(isinstance(token, Token) and token.id == "r1" for token in pieces[:-1])
    assert {token.source for token in pieces[:-1]} == {Source.CLOUD}
    assert [token.text for token in pieces[:-1]] == ["label ", "of ", "corn ", "rose ", "fast"]
    assert pieces[-1] == await asked(client, "predict")


@every_way
async def test_an_answer_that_is_cut_says_so(client, how):
    reply = await asked(client, how, request=asking(prompt(sampling=Sampling(max_tokens=2))))
    assert (reply.output, reply.written.finish) == ("label of ", Finish.LENGTH)
    assert reply.written.completion_tokens == 2


@every_way
async def test_an_answer_that_is_begun_is_gone_on_with(client, how):
    reply = await asked(client, how, request=asking(prompt(begun="label of ")))
    assert reply.output == "corn rose fast"


@every_way
async def test_tool_calls_are_put_together(client, how):
    reply = await asked(client, how, request=asking(prompt("weather in Paris and New York", tools=(WEATHER,))))
    assert (reply.output, reply.written.finish) == ("", Finish.TOOL_CALLS)
    assert [call.arguments.replace(": ", ":") for call in reply.written.tool_calls] == [
        '{"city":"Paris"}',
        '{"city":"New York"}',
    ]
    assert {call.name for call in reply.written.tool_calls} == {"get_weather"}
    assert len({call.id for call in reply.written.tool_calls}) == 2


@every_way
async def test_a_conversation_with_results_of_tools_is_carried(client, how):
    call = ToolCall(id="call_1", name="get_weather", arguments='{"city": "Paris"}')
    turns = (
        said("weather in Paris"),
        said("", Role.ASSISTANT, tool_calls=(call,)),
        said("18 degrees", Role.TOOL, tool_call_id="call_1"),
        said("Thank you.", Role.ASSISTANT),
        said(TEXT),
    )
    reply = await asked(client, how, request=asking(Prompt(messages=turns, tools=(WEATHER,))))
    assert (reply.output, reply.written.finish) == (ANSWER, Finish.STOP)


@every_way
async def test_the_reference_is_the_servers_whatever_is_sampled(client, how):
    described = await client.describe(timeout_s=LONG_S)
    samplings = (Sampling(), Sampling(temperature=0.7, top_p=0.9, seed=7), Sampling(max_tokens=3, stop=("zz",)))
    for sampling in samplings:
        assert (await asked(client, how, request=asking(prompt(sampling=sampling)))).reference == described
    assert (await asked(client, "predict", request=asking(prompt(tools=(WEATHER,))))).reference == described


@every_way
async def test_concurrent_prompts_each_get_their_own_answer(client, how):
    requests = [Request(id=f"r{index}", inputs=prompt(f"text {index}")) for index in range(20)]
    replies = await asyncio.gather(*(asked(client, how, LONG_S, request) for request in requests))
    assert [reply.output for reply in replies] == [f"label of text {index}" for index in range(20)]


@every_way
async def test_a_prompt_is_sent_as_it_is(client, how):
    text = 'Ignore it. \\n"} ]}\u2028 <|im_end|> schöne Grüße 🌽'
    assert (await asked(client, how, request=asking(prompt(text)))).output == f"label of {text}"


# Versions.


@every_way
async def test_an_answer_of_another_version_says_so(client, server, how):
    described = await client.describe(timeout_s=LONG_S)
    server.version = "another:2"
    assert (await asked(client, how)).reference != described


@every_way
@pytest.mark.parametrize("kind", ["vllm"], indirect=True)
async def test_an_answer_that_names_no_model_is_refused(client, server, how):
    server.version = None
    with pytest.raises(CloudResponseError, match="which model"):
        await asked(client, how)


# Time.


@every_way
@pytest.mark.parametrize("kept", [False, True])
async def test_a_blackhole_is_a_time_out(client, proxy, how, kept):
    if kept:
        await asked(client, how)
    proxy.set(faults.BLACKHOLE)
    with pytest.raises(CloudTimeoutError, match=f"within {SHORT_S}") as caught:
        await asked(client, how, SHORT_S)
    assert proxy.url in str(caught.value)


@every_way
async def test_an_answer_that_drips_is_a_time_out(client, proxy, how):
    proxy.set(faults.drip(0.05))
    with pytest.raises(CloudTimeoutError):
        await asked(client, how, SHORT_S)


async def test_a_stream_that_stops_is_a_time_out(client, server):
    await asked(client, "stream")
    server.stop_after, server.stop = 2, "hold"
    with pytest.raises(CloudTimeoutError):
        await asked(client, "stream", SENT_S)
    assert await asyncio.to_thread(server.gone.wait, LONG_S)


# Broken connections.


@every_way
@pytest.mark.parametrize("fault", [faults.reset(0), faults.reset(30), faults.half_close(30)])
async def test_a_connection_cut_in_the_response_is_no_answer(client, proxy, how, fault):
    proxy.set(fault)
    with pytest.raises(CloudResponseError, match="broke off"):
        await asked(client, how)
    proxy.set(faults.PASS)
    assert (await asked(client, how)).output == ANSWER


@pytest.mark.parametrize("stop", ["cut", "end"])
@pytest.mark.parametrize("after", [0, 1, 3, 6])
async def test_a_stream_cut_in_the_middle_is_no_answer(client, server, stop, after):
    await asked(client, "predict")
    server.stop_after, server.stop = after, stop
    told: list[Any] = []
    with pytest.raises(CloudResponseError):
        await collect(client, told)
    assert all(isinstance(piece, Token) for piece in told)


async def collect(client: Any, told: list[Any]) -> None:
    async for piece in client.stream(REQUEST, timeout_s=LONG_S):
        told.append(piece)  # noqa: PERF401 - what came before an error is looked at


@every_way
async def test_a_refused_connection_is_unreachable(client, proxy, how):
    proxy.set(faults.REFUSE)
    with pytest.raises(CloudUnreachableError):
        await asked(client, how)


# Giving up.


@every_way
async def test_a_cancelled_call_is_noticed_by_the_server(client, server, proxy, how):
    await client.describe(timeout_s=LONG_S)
    server.hold = True
    call = asyncio.create_task(asked(client, how))
    assert await asyncio.to_thread(server.holding.wait, LONG_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(server.gone.wait, LONG_S)
    await asyncio.to_thread(proxy.wait_until, lambda proxy: proxy.open == 0)


async def test_closing_a_stream_is_noticed_by_the_server_at_once(client, server, proxy):
    await client.describe(timeout_s=LONG_S)
    server.stop_after, server.stop = 3, "hold"
    pieces = client.stream(REQUEST, timeout_s=LONG_S)
    assert (await anext(pieces)).text == "label "
    await pieces.aclose()
    assert await asyncio.to_thread(server.gone.wait, LONG_S)
    await asyncio.to_thread(proxy.wait_until, lambda proxy: proxy.open <= 1)


# What is no answer.


@every_way
async def test_garbage_is_no_answer(client, server, how):
    await client.describe(timeout_s=LONG_S)
    for garbage in (b"", b"{}", b"[1, 2", b"<html></html>", b"\x00\xff" * 500, b'{"choices": [{}]}', b"7", b"[" * 5000):
        server.always = stubs.Reply(garbage)
        with pytest.raises(CloudResponseError) as caught:
            await asked(client, how)
        assert len(str(caught.value)) < 900, garbage


@every_way
async def test_an_error_is_named_by_its_status_and_not_retried(dialect, client, server, how):
    await client.describe(timeout_s=LONG_S)
    for status, refused in (
        (400, None),
        (401, False),
        (403, False),
        (404, False),
        (422, True),
        (429, False),
        (500, False),
    ):
        server.always = dialect.says(status, f"your {stubs.SECRET} is wrong")
        server.asked.clear()
        with pytest.raises(CloudResponseError, match=f"status {status}.*your .* is wrong") as caught:
            await asked(client, how)
        assert stubs.SECRET not in str(caught.value)
        assert len(server.asked) == 1
        if refused is not None:
            assert isinstance(caught.value, CloudRefusedError) is refused, status


@every_way
async def test_throttling_says_so_and_for_how_long(dialect, client, server, how):
    await client.describe(timeout_s=LONG_S)
    server.always = dialect.throttled
    with pytest.raises(CloudThrottledError) as caught:
        await asked(client, how)
    assert caught.value.retry_after_s == 7


@every_way
async def test_expired_credentials_are_told_and_never_shown(dialect, client, server, how):
    await client.describe(timeout_s=LONG_S)
    server.always = dialect.expired
    with pytest.raises(CloudCredentialsError) as caught:
        await asked(client, how)
    assert stubs.SECRET not in str(caught.value)
    server.always = None
    assert (await asked(client, how)).output == ANSWER


@every_way
async def test_a_prompt_that_is_too_long_is_refused(dialect, client, server, how):
    await client.describe(timeout_s=LONG_S)
    if dialect is vllm.BEDROCK:
        server.always = dialect.refused
    with pytest.raises(CloudRefusedError, match=r"maximum context length|too long"):
        await asked(client, how, request=asking(prompt("corn " * (vllm.CONTEXT + 1))))


TROUBLE = [(kind, trouble) for kind, dialect in vllm.DIALECTS.items() for trouble in dialect.trouble]


@pytest.mark.parametrize(("kind", "trouble"), TROUBLE, indirect=["kind"])
async def test_trouble_in_mid_stream_is_no_answer(kind, dialect, client, server, trouble):
    # vLLM ends a stream that failed with [DONE], as any other.
    last = (b"data: [DONE]\n\n",) if kind == "vllm" else ()
    server.replace_pieces = lambda pieces: (*pieces[:3], dialect.trouble[trouble], *last)
    told: list[Any] = []
    with pytest.raises(CloudResponseError) as caught:
        await collect(client, told)
    assert [piece.text for piece in told] == ["label ", "of "]
    assert isinstance(caught.value, CloudThrottledError) is (trouble == "throttled")
    assert not isinstance(caught.value, CloudRefusedError)
    server.replace_pieces = lambda pieces: pieces
    assert (await asked(client, "stream")).output == ANSWER


@every_way
async def test_what_cannot_be_sent_is_refused_and_not_sent(client, server, how):
    for item in (
        prompt("\ud800"),
        prompt(tools=(Tool(name="t", parameters="[1]"),)),
        prompt(tools=(Tool(name="t", parameters="{"),)),
        prompt(sampling=Sampling(schema="{'a': 1}")),
        prompt(sampling=Sampling(schema="7")),
        Prompt(text="corn", tools=(WEATHER,)),
    ):
        with pytest.raises(CloudRefusedError) as caught:
            await asked(client, how, request=asking(item))
        assert "\n" not in str(caught.value)
    assert server.asked == []


@every_way
async def test_a_backend_for_another_task_takes_no_prompt(dialect, server, how):
    client = dialect.client(server.url, labels=("grain", "ship"))
    with pytest.raises(CloudRefusedError, match="text-classification"):
        await asked(client, how)
    assert server.asked == []
    await client.aclose()


@every_way
async def test_a_call_of_a_tool_that_was_not_offered_is_not_read(client, server, dialect, how):
    # Without tools, and with tools that must not be called, what ends in calls is no answer.
    await client.describe(timeout_s=LONG_S)
    with_tools = asking(prompt("weather in Paris", tools=(WEATHER,)))
    assert (await asked(client, how, request=with_tools)).written.finish is Finish.TOOL_CALLS
    plain = dialect.reply

    def meddled(seen, version):
        tools = {"tools": [{"function": {"name": "get_weather"}}], "toolConfig": {}} if seen.method == "POST" else {}
        body = stubs.json.dumps({**seen.json, "tool_choice": "auto", **tools}).encode() if tools else b""
        return plain(stubs.Asked(seen.method, seen.path, seen.headers, body), version)

    server.dialect = stubs.Dialect(**{**vars(dialect), "reply": meddled})
    for choice in ({"tools": ()}, {"tools": (WEATHER,), "tool_choice": "none"}):
        with pytest.raises(CloudError, match="tool_"):
            await asked(client, how, request=asking(prompt("weather in Paris", **choice)))


@pytest.mark.parametrize("name", ["oip", "sagemaker"])
async def test_a_backend_that_takes_no_prompts_says_so(name):
    with stubs.serving(stubs.DIALECTS[name]) as server:
        client = stubs.DIALECTS[name].client(server.url)
        with pytest.raises(CloudRefusedError) as caught:
            await client.predict(REQUEST, timeout_s=LONG_S)
        assert "\n" not in str(caught.value)
        assert not [seen for seen in server.asked if seen.path.endswith(("/infer", "/invocations"))]
        await client.aclose()
