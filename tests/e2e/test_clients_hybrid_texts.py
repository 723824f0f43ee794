"""Real clients of a real gateway of a tiny language model, before a real cloud service of another: nothing is faked.

What edge and cloud compute is watched and paced where a test asks for it: a token is computed when the test lets it.
"""

import asyncio
import contextlib
import gc
import json
import random
import re
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from websockets.asyncio.client import connect

from edgewise.config import Config, parse_config
from edgewise.edge import slots
from edgewise.wire.serve import BackgroundServer
from edgewise.wiring.cloud import CloudModel, CloudSettings, build_cloud
from edgewise.wiring.gateway import build_gateway

pytestmark = pytest.mark.slow

ALPHABET = [{"role": "user", "content": "a"}]
ENOUGH_S, LONGEST = 30, 60
WORKERS = ("edge", "cloud", "service")
"""Who answers: the gateway here, the gateway by its cloud, and the cloud service asked by itself."""

TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {
            "type": "object",
            "properties": {"n": {"enum": [1]}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
}


class Pace:
    """Counts what is computed, and holds it back until it is let while it is closed."""

    def __init__(self) -> None:
        self.is_open, self.steps, self._held = True, 0, 0
        self._gate = threading.Semaphore(0)

    def around(self, compute, computes=lambda model: True):
        def paced(model, *arguments):
            if computes(model):
                if not self.is_open:
                    self._held += 1
                    assert self._gate.acquire(timeout=ENOUGH_S)
                    self._held -= 1
                self.steps += 1
            return compute(model, *arguments)

        return paced

    def has_stopped_after(self, steps: int) -> bool:
        """Whether so much was computed, and a thread waits to compute more."""
        return self.steps == steps and self._held == 1

    def let(self, steps: int) -> None:
        for _ in range(steps):
            self._gate.release()

    def open(self) -> None:
        self.is_open = True
        self.let(10_000)


class Both:
    """A gateway and the cloud behind it, with what is inside of them in reach."""

    def __init__(self, gateway, cloud, urls, api_keys) -> None:
        self.router, self.urls, self.api_keys = gateway.router, urls, api_keys
        self.writers = gateway.router._flow._writers
        self.slots = self.writers._generator._slots
        ruling = cloud.repository.models()["writer"].service._service
        self.texts = ruling._service

    @property
    def engine(self):
        return self.texts._engine

    def asked_of(self, worker: str) -> tuple[str, dict]:
        """Where a request goes, and what its body says besides."""
        return (self.urls["service"], {}) if worker == "service" else (self.urls["gateway"], {"mode": f"{worker}_only"})

    def model(self, worker: str) -> str:
        return "writer" if worker == "service" else "tiny-generator"

    def busy(self) -> dict[str, int]:
        """What is under way, by where; empty where nothing is."""
        found = {
            "drafts": self.writers.running,
            "slots": sum(slot.busy for slot in self.slots._slots),
            "rows": self.engine.running,
            "waiting": len(self.texts._waiting) + len(self.texts._running),
            **{f"requests at the {name}": in_flight(url) for name, url in self.urls.items()},
        }
        return {name: count for name, count in found.items() if count}

    def asking(self) -> int:
        """Requests that are under way."""
        return sum(map(in_flight, self.urls.values()))


async def until(reached) -> None:
    """Wait for what other threads bring about, none of which sets an event of ours."""

    def wait() -> None:
        deadline = time.monotonic() + ENOUGH_S
        while not reached():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    await asyncio.to_thread(wait)


def in_flight(url: str) -> int:
    """Requests that a service answers now."""
    text = httpx.get(f"{url}/metrics", headers={"x-api-key": "key-a"}).text
    return int(float(re.search(r"^edgewise_requests_in_flight (\S+)$", text, re.MULTILINE)[1]))


@pytest.fixture(scope="module")
def both(tiny_checkpoints, tiny_generator_bundle, tmp_path_factory):
    folder = tiny_checkpoints.causal_checkpoint(tmp_path_factory.mktemp("causal") / "writer")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as held:
        patch.setenv("PROOF_KEYS", "a:key-a,b:key-b")
        cloud = build_cloud(CloudSettings((CloudModel("writer", folder),), threads=1), Config())
        service = held.enter_context(BackgroundServer(cloud.app))
        backend = {"url": service.url, "kind": "openai", "model": "writer"}
        tables = {
            "edge": {"bundle": str(tiny_generator_bundle), "mode": "edge_only"},
            "cloud": {"backends": {"main": backend}},
            "server": {"api_keys_env": "PROOF_KEYS"},
            "cache": {"max_bytes": 0},
            "text": {"slots": 9, "threads": 2},
        }
        gateway = build_gateway(parse_config(tables), held)
        door = held.enter_context(BackgroundServer(gateway.app))
        yield Both(gateway, cloud, {"gateway": door.url, "service": service.url}, {"a": "key-a", "b": "key-b"})


@pytest.fixture
async def ask(both):
    """Ask one of the workers for a chat, as a tenant."""
    async with contextlib.AsyncExitStack() as open_ones:
        clients: dict[tuple[str, str], openai.AsyncOpenAI] = {}

        async def asked(worker: str, *, tenant: str = "a", **fields):
            url, more = both.asked_of(worker)
            if (url, tenant) not in clients:
                client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=both.api_keys[tenant], max_retries=0)
                clients[url, tenant] = await open_ones.enter_async_context(client)
            extra = {**more, **fields.pop("extra_body", {})}
            asked = {"model": both.model(worker), "messages": ALPHABET, "max_tokens": 24, **fields}
            return await clients[url, tenant].chat.completions.create(**asked, extra_body=extra)

        yield asked


@pytest.fixture
def paced(both, monkeypatch):
    """The paces of edge and cloud; open when the test ends."""
    edge, cloud = Pace(), Pace()
    monkeypatch.setattr(slots.Slot, "extend", edge.around(slots.Slot.extend))
    engine = type(both.engine)
    monkeypatch.setattr(engine, "step", cloud.around(engine.step, lambda model: model.running))
    yield {"edge": edge, "cloud": cloud, "service": cloud}
    edge.open()
    cloud.open()


@pytest.mark.parametrize("worker", WORKERS)
async def test_streams_and_whole_answers_say_the_same(ask, worker):
    wanted = {"logprobs": True, "top_logprobs": 2}
    whole = await ask(worker, **wanted)
    state = ChatCompletionStreamState()
    async for chunk in await ask(worker, **wanted, stream=True, stream_options={"include_usage": True}):
        state.handle_chunk(chunk)
    streamed = state.current_completion_snapshot
    assert streamed.choices[0].message.content == whole.choices[0].message.content != ""
    assert streamed.choices[0].finish_reason == whole.choices[0].finish_reason
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens == 24
    for found in (streamed, whole):
        scores = found.choices[0].logprobs.content
        assert len(scores) == 24
        assert all(len(score.top_logprobs) == 2 and score.logprob <= 0 for score in scores)
        assert all(score.top_logprobs[0].logprob == pytest.approx(score.logprob, abs=1e-4) for score in scores)


@pytest.mark.parametrize("worker", WORKERS)
async def test_calls_of_tools_are_streamed_as_openai_does(ask, worker):
    asked = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 100}
    whole = (await ask(worker, **asked)).choices[0]
    state = ChatCompletionStreamState(input_tools=[TOOL])
    async for chunk in await ask(worker, **asked, stream=True):
        state.handle_chunk(chunk)
    streamed = state.get_final_completion().choices[0]
    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("find", {"n": 1})
        assert call.id


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_computed_one_token_more_at_most(ask, both, paced, worker, stream):
    await until(lambda: not both.busy())
    pace, busy = paced[worker], {"edge": both.writers, "cloud": both.engine, "service": both.engine}[worker]
    pace.is_open = False
    pace.let(5)
    if stream:
        chunks = await ask(worker, stream=True)
        async for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        await until(lambda: pace.has_stopped_after(5))
        await chunks.close()
    else:
        asking = asyncio.create_task(ask(worker))
        await until(lambda: pace.has_stopped_after(5))
        asking.cancel()
        await asyncio.wait({asking})
    await until(lambda: not both.asking())
    assert pace.has_stopped_after(5)
    assert busy.running, "it is in the middle of a token"
    pace.open()
    await until(lambda: not both.busy())
    assert pace.steps <= 6


@pytest.mark.parametrize("worker", WORKERS)
async def test_sessions_at_once_hear_their_own(ask, both, worker):
    alone = {letter: (await turn(ask, worker, letter, session=None))[0] for letter in "abcdefgh"}
    assert len(set(alone.values())) > 1

    async def talk(letter: str) -> int:
        session = f"s-{letter}"
        text, _ = await turn(ask, worker, letter, session=session)
        again, known = await turn(ask, worker, letter, session=session)
        assert text == again == alone[letter]
        return known

    known = await asyncio.gather(*map(talk, alone))
    assert worker != "edge" or all(known), "second turns go on from what their own first ones computed"
    await until(lambda: not both.busy())


async def turn(ask, worker, letter, *, session, tenant="a"):
    """The text of one answer, and how many tokens of its prompt were known."""
    said = [{"role": "user", "content": letter * 12}]
    extra = {"session": session} if session else {}
    text, usage = "", None
    asked = {"messages": said, "max_tokens": 20, "extra_body": extra, "tenant": tenant}
    async for chunk in await ask(worker, **asked, stream=True, stream_options={"include_usage": True}):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    details = usage.prompt_tokens_details
    return text, 0 if details is None else details.cached_tokens or 0


async def test_the_session_of_another_tenant_is_another(ask):
    assert (await turn(ask, "edge", "k", session="secret", tenant="a"))[1] == 0
    assert (await turn(ask, "edge", "k", session="secret", tenant="b"))[1] == 0
    assert (await turn(ask, "edge", "k", session="secret", tenant="a"))[1] > 0


async def test_two_hundred_interrupts_at_random_moments_leave_nothing_and_nothing_grows(both, ask):
    """On one connection after another, on edge and cloud, in sessions and without; now and then a client hangs up."""
    draws = random.Random(5)
    await interrupt_often(both, ask, draws, 80)  # what is made once is made
    await until(lambda: not both.busy())
    before, resident = alive(), resident_mb()
    ends = await interrupt_often(both, ask, draws, 200)
    await until(lambda: not both.busy())
    assert ends["interrupted"] > 20
    assert ends["answer"] > 0
    assert len(both.slots._slots) <= 9
    # What ended last may be held by the frame of a loop until the next one comes: one text, with its tokens.
    spare = {"Piece": LONGEST, "Token": LONGEST}
    grown = {name: n - before[name] for name, n in alive().items() if n > before[name] + spare.get(name, 2)}
    assert grown == {}
    assert resident_mb() - resident < 24, "MB; two hundred texts that are kept would be more"


async def interrupt_often(both, ask, draws: random.Random, times: int) -> Counter:
    url, ends, at = both.urls["gateway"].replace("http", "ws", 1) + "/v1/stream", Counter(), 0
    while at < times:
        async with connect(url, additional_headers={"x-api-key": "key-a"}) as socket:
            for _ in range(20):
                ends[await one_interrupt(socket, draws, str(at))] += 1
                at += 1
            if draws.random() < 0.5:  # and whatever is under way when a client is gone
                await socket.send(generate(draws, "last"))
                socket.transport.abort()
        stream = await ask(draws.choice(WORKERS), stream=True)
        async for _ in stream:
            if draws.random() < 0.3:
                break
        await stream.close()
    return ends


def generate(draws: random.Random, name: str) -> str:
    session = draws.choice([None, *(f"s{number}" for number in range(14))])
    asked = {"type": "generate", "id": name, "messages": ALPHABET, "mode": draws.choice(["edge_only", "cloud_only"])}
    return json.dumps({**asked, "max_tokens": LONGEST, **({"session": session} if session else {})})


async def one_interrupt(socket, draws: random.Random, name: str) -> str:
    """How a text ended that was interrupted at a random moment: in front of its first token, later, or too late."""
    patience, heard = draws.randrange(30), []
    await socket.send(generate(draws, name))
    while not heard or heard[-1]["type"] != "done":
        if len(heard) == patience:
            await socket.send(json.dumps({"type": "interrupt", "id": name}))
        heard.append(json.loads(await asyncio.wait_for(socket.recv(), ENOUGH_S)))
    *tokens, end, _ = heard
    told = "".join(token["text"] for token in tokens)
    assert {message["id"] for message in heard} == {name}
    assert told == end["text" if end["type"] == "interrupted" else "output"]
    return end["type"]


def alive() -> Counter:
    """How many objects of ours there are, by kind."""
    gc.collect()
    return Counter(
        kind.__name__ for found in gc.get_objects() if str((kind := type(found)).__module__).startswith("edgewise.")
    )


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "context_length_exceeded"),
        ({"max_tokens": -1}, "max_tokens", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"max_tokens": 10**30}, "max_tokens", None),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice", None),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
            "response_format.json_schema.schema",
            "invalid_json_schema",
        ),
        ({"messages": [*ALPHABET, {"role": "system", "content": "late"}]}, "messages", None),
        ({"extra_body": {"session": "a b"}}, "session", None),
    ],
)
async def test_bad_input_is_refused_in_openais_words_and_the_next_request_is_answered(
    ask, worker, changes, field, code
):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(worker, **changes, stream=stream)
        error = refused.value.body
        assert (error["type"], error["param"]) == ("invalid_request_error", field)
        assert code is None or error["code"] == code
        assert error["message"]
    assert (await ask(worker)).choices[0].message.content
