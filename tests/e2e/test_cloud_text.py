"""A language model behind `edgewise cloud serve`, asked over sockets by the client of OpenAI."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time

import httpx
import openai
import pytest

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "What rose?"}]


@pytest.fixture(scope="module")
def url(tiny_checkpoints, tmp_path_factory):
    """A service of a tiny model that is its own draft."""
    folder = tiny_checkpoints.causal_checkpoint(tmp_path_factory.mktemp("causal") / "writer")
    command = [sys.executable, "-m", "edgewise.cli", "cloud", "serve", str(folder), "--draft", str(folder)]
    with subprocess.Popen([*command, "--port", "0", "--threads", "1"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield re.search(r"ready on (http://\S+)", process.stdout.readline())[1]
        finally:
            process.terminate()
            assert process.wait(60) == 0


@pytest.fixture
async def client(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


def get(url, **headers):
    return httpx.get(url, headers=headers)


def metric(url, name):
    found = re.findall(rf"^{re.escape(name)} (\S+)$", get(f"{url}/metrics").text, re.MULTILINE)
    return float(found[0]) if found else 0.0


async def test_it_says_what_it_is(url, client):
    assert get(f"{url}/readyz").status_code == 200
    assert [model.id for model in (await client.models.list()).data] == ["writer"]
    (served,) = get(f"{url}/", accept="application/json").json()["models"]
    assert served["task"] == "text-generation"


async def test_streams_and_whole_answers_say_the_same(url, client):
    asked = {"model": "writer", "messages": MESSAGES, "max_tokens": 24, "logprobs": True, "top_logprobs": 2}
    whole = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    told = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert told == whole.choices[0].message.content
    usage = chunks[-1].usage
    assert usage == whole.usage
    scores = [entry for chunk in chunks for choice in chunk.choices if choice.logprobs
              for entry in choice.logprobs.content]  # fmt: skip
    assert len(scores) == usage.completion_tokens == len(whole.choices[0].logprobs.content)
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in scores)
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert ends == [whole.choices[0].finish_reason]
    assert metric(url, 'edgewise_tokens_total{source="cloud"}') >= 2 * usage.completion_tokens
    assert metric(url, 'edgewise_first_token_seconds_count{source="cloud"}') >= 1


async def test_many_at_once_are_answered_as_one_is(client):
    async def ask(number):
        text = f"number {number % 4} " * (1 + number % 3)
        found = await client.chat.completions.create(
            model="writer", messages=[{"role": "user", "content": text}], max_tokens=20
        )
        return text, found.choices[0].message.content

    async with asyncio.timeout(60):
        together = await asyncio.gather(*[ask(number) for number in range(24)])
        assert dict([await ask(number) for number in range(12)]) == dict(together)


async def test_a_tool_that_must_be_called_is_called(client):
    parameters = {
        "type": "object",
        "properties": {"n": {"enum": [1]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "find", "parameters": parameters}}
    found = await client.chat.completions.create(
        model="writer", messages=MESSAGES, tools=[tool], tool_choice="required", max_tokens=150
    )
    assert found.choices[0].finish_reason == "tool_calls"
    (call,) = found.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("find", {"n": 1})


async def test_a_client_that_leaves_ends_its_answer(url, client):
    before = metric(url, 'edgewise_tokens_total{source="cloud"}')
    for _ in range(3):
        schema = {"type": "object", "properties": {"s": {"type": "array", "minItems": 200}}, "required": ["s"]}
        stream = await client.chat.completions.create(
            model="writer",
            messages=MESSAGES,
            stream=True,
            max_tokens=220,
            response_format={"type": "json_schema", "json_schema": {"name": "long", "schema": schema}},
        )
        async for _ in stream:
            break
        await stream.close()
    async with asyncio.timeout(30):
        while metric(url, "edgewise_requests_in_flight"):  # noqa: ASYNC110  the service sets no event of ours
            await asyncio.sleep(0.01)
    await client.chat.completions.create(model="writer", messages=MESSAGES, max_tokens=1)
    assert metric(url, 'edgewise_tokens_total{source="cloud"}') - before < 3 * 220


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"messages": [{"role": "user", "content": "x" * 300}]}, r"has 304 tokens.* reads 256"),
        ({"messages": [*MESSAGES, {"role": "system", "content": "late"}]}, "a system message comes first"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
async def test_what_cannot_be_asked_is_a_clear_400(url, client, changes, told):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(**{"model": "writer", "messages": MESSAGES, **changes})
    assert re.search(told, str(refused.value))
    assert get(f"{url}/readyz").status_code == 200


def test_a_language_model_classifies_nothing(url):
    reply = httpx.post(f"{url}/v1/predict", json={"inputs": "corn"})
    assert reply.status_code == 400
    assert "writes texts" in reply.text


async def test_a_budget_that_is_spent_is_said(client):
    started = time.monotonic()
    with contextlib.suppress(openai.APIStatusError):
        await client.chat.completions.create(
            model="writer", messages=MESSAGES, max_tokens=200, extra_headers={"x-edgewise-budget-ms": "1"}
        )
    assert time.monotonic() - started < 30
