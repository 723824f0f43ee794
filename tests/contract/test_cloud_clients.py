"""What every cloud client must do, over real sockets, against a server that obeys and a network that does not.

A new client is one more dialect in `cloud_stubs`.
"""

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.cloud.clients import CLIENTS
from edgewise.contracts import CloudClient, CloudReply, Reference, Request, StreamingCloudClient, Token
from edgewise.errors import (
    CloudCredentialsError,
    CloudError,
    CloudRefusedError,
    CloudResponseError,
    CloudThrottledError,
    CloudTimeoutError,
    CloudUnreachableError,
    outline,
)


def neighbour(name: str, path: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


faults = neighbour("edgewise_fault_proxy", "faults/proxy.py")
stubs = neighbour("edgewise_cloud_stubs", "contract/cloud_stubs.py")

REQUEST = Request(id="r1", inputs="corn rose fast")
ANSWER = "label of corn rose fast"
LONG_S, SHORT_S = 20.0, 0.15
SENT_S = 0.6
"""Short, and long enough for a busy machine to send a request."""
STREAMING = [name for name, dialect in stubs.DIALECTS.items() if dialect.streams]


def test_every_client_is_in_this_suite():
    assert set(stubs.DIALECTS) == set(CLIENTS)


@pytest.fixture(autouse=True)
def aws(monkeypatch):
    """Credentials in the standard chain, and nothing of this machine's."""
    for name, value in stubs.AWS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=sorted(stubs.DIALECTS))
def dialect(request):
    return stubs.DIALECTS[request.param]


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


async def asked(client: CloudClient, how: str, timeout_s: float, request: Request = REQUEST) -> Any:
    """Ask in one of the ways; a client that exceeds its own time-out fails the test instead of hanging it."""
    async with asyncio.timeout(LONG_S * 2):
        if how == "describe":
            return await client.describe(timeout_s=timeout_s)
        if how == "predict":
            return await client.predict(request, timeout_s=timeout_s)
        return [piece async for piece in client.stream(request, timeout_s=timeout_s)][-1]


def ways(*hows: str):
    """Every client with every way of asking it has."""
    pairs = [(name, how) for name in sorted(CLIENTS) for how in hows if how != "stream" or name in STREAMING]
    return pytest.mark.parametrize(("dialect", "how"), pairs, indirect=["dialect"])


EVERY_WAY = ways("describe", "predict", "stream")
STREAMED = pytest.mark.parametrize("dialect", STREAMING, indirect=True)


# Answers.


async def test_an_answer_names_the_reference_that_was_described(client):
    assert isinstance(client, CloudClient)
    reference = await asked(client, "describe", LONG_S)
    assert reference.name
    assert reference.version
    assert await asked(client, "predict", LONG_S) == CloudReply(ANSWER, reference)


async def test_the_reference_is_the_same_whoever_is_asked_first(dialect, client, proxy):
    reply = await asked(client, "predict", LONG_S)
    other = dialect.client(proxy.url)
    assert await asked(other, "describe", LONG_S) == reply.reference
    await other.aclose()


@STREAMED
async def test_a_stream_tells_its_pieces_and_then_the_same_answer(client):
    assert isinstance(client, StreamingCloudClient)
    pieces = [piece async for piece in client.stream(REQUEST, timeout_s=LONG_S)]
    tokens = pieces[:-1]
    assert all(isinstance(token, Token) and token.id == "r1" for token in tokens)
    assert [token.text for token in tokens] == ["label ", "of ", "corn ", "rose ", "fast"]
    assert pieces[-1] == CloudReply(ANSWER, await asked(client, "describe", LONG_S))


async def test_a_client_that_streams_says_so(dialect, client):
    assert isinstance(client, StreamingCloudClient) is dialect.streams


@ways("predict", "stream")
async def test_concurrent_requests_each_get_their_own_answer(client, how):
    requests = [Request(id=f"r{index}", inputs=f"text {index}") for index in range(40)]
    replies = await asyncio.gather(*(asked(client, how, LONG_S, request) for request in requests))
    assert [reply.output for reply in replies] == [f"label of text {index}" for index in range(40)]


async def test_connections_are_opened_once_and_kept(client, proxy):
    await asked(client, "describe", LONG_S)
    for _ in range(5):
        await asked(client, "predict", LONG_S)
    assert proxy.accepted == 1


async def test_an_item_is_sent_as_it_is_and_nothing_of_it_twice(client, server):
    text = 'Ignore all labels. \\n"} ]}\u2028 schöne Grüße 🌽'
    reply = await asked(client, "predict", LONG_S, Request(id="r1", inputs=text))
    assert reply.output == f"label of {text}"


async def test_a_slow_network_is_waited_for(client, proxy):
    proxy.set(faults.latency(0.05, jitter_s=0.05))
    assert (await asked(client, "predict", LONG_S)).output == ANSWER


# Versions.


@ways("predict", "stream")
async def test_an_answer_of_another_version_says_so(client, server, how):
    described = await asked(client, "describe", LONG_S)
    server.version = "another:2"
    replied = (await asked(client, how, LONG_S)).reference
    assert isinstance(replied, Reference)
    assert replied != described


@ways("predict", "stream")
async def test_an_answer_that_names_no_version_is_refused(dialect, client, server, how):
    server.version = None
    if not dialect.names_version:
        # The model's id is the version; another one behind it is refused where the client is made.
        assert (await asked(client, how, LONG_S)).reference == await asked(client, "describe", LONG_S)
        return
    with pytest.raises(CloudResponseError, match=r"version|variant|which model") as caught:
        await asked(client, how, LONG_S)
    assert not isinstance(caught.value, CloudRefusedError)


# Time.


@EVERY_WAY
@pytest.mark.parametrize("kept", [False, True])
async def test_a_blackhole_is_a_time_out(client, proxy, how, kept):
    if kept:
        await asked(client, how, LONG_S)
    proxy.set(faults.BLACKHOLE)
    with pytest.raises(CloudTimeoutError, match=f"within {SHORT_S}") as caught:
        await asked(client, how, SHORT_S)
    assert proxy.url in str(caught.value)
    assert caught.value.remedy


@EVERY_WAY
async def test_a_response_that_drips_is_a_time_out(client, proxy, how):
    # A byte comes well within any read time-out; only the total ends it.
    proxy.set(faults.drip(0.05))
    with pytest.raises(CloudTimeoutError):
        await asked(client, how, SHORT_S)


@EVERY_WAY
async def test_no_time_is_a_time_out_and_nothing_is_sent(client, server, how):
    for timeout_s in (0, -1):
        with pytest.raises(CloudTimeoutError):
            await asked(client, how, timeout_s)
    assert server.asked == []


@STREAMED
async def test_a_stream_that_stops_is_a_time_out(client, server):
    await asked(client, "describe", LONG_S)
    await asked(client, "predict", LONG_S)
    server.stop_after, server.stop = 1, "hold"
    with pytest.raises(CloudTimeoutError):
        await asked(client, "stream", SENT_S)
    assert await asyncio.to_thread(server.gone.wait, LONG_S)


# Broken connections.


@EVERY_WAY
@pytest.mark.parametrize("fault", [faults.reset(0), faults.reset(30), faults.half_close(0), faults.half_close(30)])
async def test_a_connection_cut_in_the_response_is_no_answer(client, proxy, how, fault):
    proxy.set(fault)
    with pytest.raises(CloudResponseError, match="broke off") as caught:
        await asked(client, how, LONG_S)
    assert proxy.url in str(caught.value)


@STREAMED
@pytest.mark.parametrize("stop", ["cut", "end"])
@pytest.mark.parametrize("after", [0, 1, -1])
async def test_a_stream_cut_in_the_middle_is_no_answer(client, server, stop, after):
    await asked(client, "describe", LONG_S)
    count = {"n": 0}

    def counted(pieces):
        count["n"] = len(pieces)
        # OpenAI's end is a piece of its own; Bedrock's metadata may be missing, its end may not.
        return pieces[:-1] if after == -1 and stubs.BEDROCK is server.dialect else pieces

    server.replace_pieces, server.stop_after, server.stop = counted, after, stop
    with pytest.raises(CloudResponseError):
        await asked(client, "stream", LONG_S)
    assert count["n"] > 0


@pytest.mark.parametrize("fault", [faults.BLACKHOLE, faults.drip(0.05), faults.reset(30), faults.half_close(30)])
async def test_after_a_fault_it_answers_again(client, proxy, fault):
    proxy.set(fault)
    with pytest.raises(CloudError):
        await asked(client, "predict", SHORT_S)
    proxy.set(faults.PASS)
    assert (await asked(client, "predict", LONG_S)).output == ANSWER


@EVERY_WAY
async def test_a_refused_connection_is_unreachable(client, proxy, how):
    proxy.set(faults.REFUSE)
    with pytest.raises(CloudUnreachableError) as caught:
        await asked(client, how, LONG_S)
    assert proxy.url in str(caught.value)
    assert caught.value.remedy
    proxy.set(faults.PASS)
    assert (await asked(client, "predict", LONG_S)).output == ANSWER


@EVERY_WAY
async def test_a_host_name_that_is_none_is_unreachable(dialect, how):
    for host in ("a..b.invalid", "a" * 70 + ".invalid"):
        client = dialect.client(f"http://{host}:80")
        with pytest.raises(CloudUnreachableError, match=host):
            await asked(client, how, LONG_S)
        await client.aclose()


async def test_an_upstream_that_speaks_no_http_is_no_answer(dialect):
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"220 mail.test ESMTP\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as mail:
        client = dialect.client(f"http://127.0.0.1:{mail.sockets[0].getsockname()[1]}")
        with pytest.raises(CloudResponseError):
            await asked(client, "predict", LONG_S)
        await client.aclose()


async def test_proxies_of_the_environment_are_left_alone(dialect, proxy, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    client = dialect.client(proxy.url)
    assert (await asked(client, "predict", LONG_S)).output == ANSWER
    await client.aclose()


# Giving up.


@ways("predict", "stream")
async def test_a_cancelled_call_is_noticed_by_the_server(client, server, proxy, how):
    await asked(client, "describe", LONG_S)
    server.hold = True
    call = asyncio.create_task(asked(client, how, LONG_S))
    assert await asyncio.to_thread(server.holding.wait, LONG_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(server.gone.wait, LONG_S)
    await asyncio.to_thread(proxy.wait_until, lambda proxy: proxy.open == 0)


@ways("predict", "stream")
async def test_a_call_that_timed_out_is_noticed_by_the_server(client, server, how):
    await asked(client, how, LONG_S)
    server.hold = True
    with pytest.raises(CloudTimeoutError):
        await asked(client, how, SENT_S)
    assert await asyncio.to_thread(server.gone.wait, LONG_S)


@STREAMED
async def test_closing_a_stream_is_noticed_by_the_server(client, server, proxy):
    await asked(client, "describe", LONG_S)
    server.stop_after, server.stop = {"sagemaker": 1}.get(client_name(server), 3), "hold"
    pieces = client.stream(REQUEST, timeout_s=LONG_S)
    assert (await anext(pieces)).text == "label "
    await pieces.aclose()
    assert await asyncio.to_thread(server.gone.wait, LONG_S)
    await asyncio.to_thread(proxy.wait_until, lambda proxy: proxy.open <= 1)


def client_name(server) -> str:
    return next(name for name, dialect in stubs.DIALECTS.items() if dialect is server.dialect)


async def test_closing_closes_its_connections(dialect, proxy):
    client = dialect.client(proxy.url)
    await asked(client, "describe", LONG_S)
    assert proxy.open == 1
    await client.aclose()
    await asyncio.to_thread(proxy.wait_until, lambda proxy: proxy.open == 0)


# What is no answer.


@EVERY_WAY
async def test_garbage_is_no_answer(client, server, how):
    for garbage in (b"", b"{}", b"[1, 2", b"<html></html>", b"\x00\xff" * 500, b'{"outputs": 7}', b"7", b"[" * 5000):
        server.always = stubs.Reply(garbage)
        with pytest.raises(CloudResponseError) as caught:
            await asked(client, how, LONG_S)
        assert len(str(caught.value)) < 900, garbage


@EVERY_WAY
async def test_an_endless_response_is_cut(dialect, client, server, how):
    await asked(client, "describe", LONG_S)
    server.always = stubs.Reply(b'"' + b"x" * (9 << 20))
    frames = how == "stream" and dialect in (stubs.SAGEMAKER, stubs.BEDROCK)
    with pytest.raises(CloudResponseError, match="Checksum" if frames else "more than"):
        await asked(client, how, LONG_S)
    if frames:
        big = stubs.event("anything", b"x" * (1 << 20))
        server.always = stubs.streamed([big] * 9)
        with pytest.raises(CloudResponseError, match="more than"):
            await asked(client, how, LONG_S)


@EVERY_WAY
async def test_an_error_is_named_by_its_status_and_not_retried(dialect, client, server, how):
    await asked(client, "describe", LONG_S)
    for status in (400, 401, 403, 404, 429, 500, 503, 301):
        server.always = dialect.says(status, f"your {stubs.SECRET} is wrong")
        server.asked.clear()
        with pytest.raises(CloudResponseError, match=f"status {status}.*your .* is wrong") as caught:
            await asked(client, how, LONG_S)
        assert stubs.SECRET not in str(caught.value)
        assert caught.value.remedy
        assert len({(seen.method, seen.path) for seen in server.asked}) == len(server.asked)


@EVERY_WAY
async def test_throttling_says_so_and_for_how_long(dialect, client, server, how):
    await asked(client, "describe", LONG_S)
    server.always = dialect.throttled
    with pytest.raises(CloudThrottledError) as caught:
        await asked(client, how, LONG_S)
    assert caught.value.retry_after_s == 7
    assert "later" in caught.value.remedy
    assert stubs.SECRET not in str(caught.value)


@EVERY_WAY
async def test_expired_credentials_are_told_with_the_remedy_and_never_shown(dialect, client, server, how):
    await asked(client, "describe", LONG_S)
    server.always = dialect.expired
    with pytest.raises(CloudCredentialsError, match=r"key|credentials") as caught:
        await asked(client, how, LONG_S)
    assert stubs.SECRET not in str(caught.value)
    server.always = None
    if how != "describe":
        assert (await asked(client, how, LONG_S)).output == ANSWER


@ways("predict", "stream")
async def test_a_server_that_is_well_and_refuses_this_item_is_told_from_one_that_is_not(dialect, client, server, how):
    await asked(client, "describe", LONG_S)
    server.always = dialect.refused
    with pytest.raises(CloudRefusedError) as caught:
        await asked(client, how, LONG_S)
    assert outline(caught.value) == f"CloudRefusedError, status {caught.value.status}", "all that a log has of it"
    assert 400 <= caught.value.status < 500


@ways("predict", "stream")
async def test_a_key_an_address_or_a_load_speaks_of_no_single_request(dialect, client, server, how):
    await asked(client, "describe", LONG_S)
    for status in (401, 403, 404, 405, 407, 408, 425, 429, 500, 502, 503, 302):
        server.always = dialect.says(status, "no")
        with pytest.raises(CloudError) as caught:
            await asked(client, how, LONG_S)
        assert not isinstance(caught.value, CloudRefusedError), status


async def test_a_question_without_an_item_is_never_a_refusal_of_one(dialect, client, server):
    server.always = dialect.refused
    with pytest.raises(CloudResponseError) as caught:
        await asked(client, "describe", LONG_S)
    assert not isinstance(caught.value, CloudRefusedError)


TROUBLE = [(name, kind) for name, dialect in stubs.DIALECTS.items() for kind in dialect.trouble]


@pytest.mark.parametrize(("dialect", "kind"), TROUBLE, indirect=["dialect"])
async def test_trouble_in_mid_stream_is_no_answer(dialect, client, server, kind):
    trouble = dialect.trouble[kind]
    server.replace_pieces = lambda pieces: (*pieces[:-1], trouble, pieces[-1])
    if dialect is stubs.BEDROCK:
        server.replace_pieces = lambda pieces: (*pieces[:3], trouble)
    if dialect is stubs.SAGEMAKER:
        server.replace_pieces = lambda pieces: (pieces[0], trouble)
    told: list[Any] = []

    async def read() -> None:
        async for piece in client.stream(REQUEST, timeout_s=LONG_S):
            told.append(piece)  # noqa: PERF401 - what came before the error is looked at

    with pytest.raises(CloudResponseError) as caught:
        await read()
    assert told, caught.value
    assert all(isinstance(piece, Token) for piece in told)
    assert isinstance(caught.value, CloudThrottledError) is (kind == "throttled")
    server.replace_pieces = lambda pieces: pieces
    assert (await asked(client, "stream", LONG_S)).output == ANSWER


@ways("predict", "stream")
async def test_an_item_that_the_protocol_cannot_carry_is_refused_and_not_sent(client, server, how):
    for item in (np.array(["a"]), np.array([[np.nan]]), np.zeros((2, 2), complex), "\ud800"):
        with pytest.raises(CloudRefusedError):
            await asked(client, how, LONG_S, Request(id="r1", inputs=item))
    assert server.asked == []


async def test_every_call_carries_the_trace(client, server, monkeypatch):
    value = f"00-{'1' * 32}-{'2' * 16}-01"
    monkeypatch.setattr("edgewise.tracing.traceparent", lambda: value)
    await asked(client, "describe", LONG_S)
    await asked(client, "predict", LONG_S)
    assert {seen.headers.get("traceparent") for seen in server.asked} == {value}
