"""The client of OpenAI's protocol against our own front door over a language model, nothing in between."""

import asyncio
import threading

import msgspec
import pytest

from edgewise.cloud.clients import CLIENTS
from edgewise.contracts import (
    Action,
    Answer,
    Answered,
    Decision,
    Done,
    Reason,
    Request,
    Served,
    ServiceInfo,
    Source,
    Status,
    Token,
)
from edgewise.dialogue import Finish, Message, Prompt, Role, Sampling, TokenChoice, Tool, ToolCall, Written
from edgewise.errors import CloudRefusedError, CloudResponseError
from edgewise.telemetry import Metrics
from edgewise.wire.door import front_door
from edgewise.wire.serve import BackgroundServer

LONG_S = 20.0
DIGEST = "sha256:7e47"
WEATHER = Tool(name="get_weather", parameters='{"type":"object"}')
CALL = ToolCall(id="call_1", name="get_weather", arguments='{"city": "Paris"}')


class Writer:
    """Answers every prompt with the same words, and holds the third one back while its gate is closed."""

    info = ServiceInfo(name="smol", version=DIGEST, task="text-generation", labels=(), input="text", role="cloud")

    def __init__(self) -> None:
        self.asked: list[Prompt] = []
        self.gate, self.left = asyncio.Event(), threading.Event()
        self.gate.set()
        self.calls: tuple[ToolCall, ...] = ()
        self.status = Status.FINAL

    async def events(self, request: Request):
        self.asked.append(request.inputs)
        words = () if self.calls else ("one ", "two ", "three")
        try:
            for number, word in enumerate(words):
                if number == 2:
                    await self.gate.wait()
                top = (TokenChoice(word, -0.5),) * request.inputs.sampling.top_logprobs
                yield Token(id=request.id, text=word, logprob=-0.5, source=Source.CLOUD, top=top)
            yield Answered(self.answer(request.id, "".join(words)))
            yield Done(request.id)
        finally:
            self.left.set()

    def answer(self, request_id: str, text: str) -> Answer:
        finish = Finish.TOOL_CALLS if self.calls else Finish.STOP
        return Answer(
            id=request_id,
            output=text,
            status=self.status,
            source=Source.CLOUD,
            decision=Decision(action=Action.LOCAL, reason=Reason.NO_ROUTER, policy="none"),
            timings_ms={"total": 1.0},
            model_digest=DIGEST,
            written=Written(finish=finish, prompt_tokens=7, completion_tokens=3, tool_calls=self.calls),
        )


@pytest.fixture
def writer():
    return Writer()


@pytest.fixture
async def client(writer):
    models = {"smol": Served(info=writer.info, service=writer, ready=lambda: None)}
    app = front_door(lambda: models, answers=None, metrics=Metrics(), api_keys={"key-5eb1": "tenant"})
    with BackgroundServer(app) as running:
        client = CLIENTS["openai"](running.url, model="smol", api_key="key-5eb1")
        yield client
        await client.aclose()


def asking(text: str = "Count.", **more) -> Request:
    return Request(id="r1", inputs=Prompt(messages=(Message(role=Role.USER, content=text),), **more))


async def streamed(client, request: Request) -> list:
    return [piece async for piece in client.stream(request, timeout_s=LONG_S)]


async def test_our_own_service_names_the_model_that_wrote(client):
    described = await client.describe(timeout_s=LONG_S)
    assert described.name == "smol"
    assert described.version.startswith(f"{DIGEST}, asked ")
    *tokens, reply = await streamed(client, asking(sampling=Sampling(top_logprobs=1)))
    assert [(token.text, token.logprob) for token in tokens] == [("one ", -0.5), ("two ", -0.5), ("three", -0.5)]
    assert tokens[0].top == (TokenChoice("one ", -0.5),)
    assert reply == await client.predict(asking(), timeout_s=LONG_S)
    assert (reply.output, reply.reference) == ("one two three", described)
    assert reply.written == Written(finish=Finish.STOP, prompt_tokens=7, completion_tokens=3)


async def test_our_own_service_hears_the_prompt_as_it_is(client, writer):
    turns = (
        Message(role=Role.SYSTEM, content="Be brief."),
        Message(role=Role.USER, content="weather in Paris"),
        Message(role=Role.ASSISTANT, tool_calls=(CALL,)),
        Message(role=Role.TOOL, content="18 degrees", tool_call_id="call_1"),
    )
    sampling = Sampling(max_tokens=50, temperature=0.7, top_p=0.9, top_k=40, seed=7, stop=("\n",), top_logprobs=2)
    prompt = Prompt(messages=turns, tools=(WEATHER,), tool_choice="get_weather", begun="It is ", sampling=sampling)
    await streamed(client, Request(inputs=prompt))
    text = Prompt(text="Once upon", sampling=Sampling(max_tokens=50, stop=("\n",)))
    await streamed(client, Request(inputs=text))
    # A stream's tokens are asked for with their log-probabilities, whoever wants them.
    assert writer.asked == [
        msgspec.structs.replace(asked, sampling=msgspec.structs.replace(asked.sampling, logprobs=True))
        for asked in (prompt, text)
    ]


async def test_our_own_service_goes_on_with_json_that_is_begun(client, writer):
    prompt = Prompt(messages=(Message(role=Role.USER, content="a"),), begun='{"a"', sampling=Sampling(schema="{}"))
    await streamed(client, Request(inputs=prompt))
    await client.predict(Request(inputs=prompt), timeout_s=LONG_S)
    assert [(asked.begun, asked.sampling.schema) for asked in writer.asked] == [('{"a"', "{}")] * 2
    text = Prompt(text="a", begun="{", sampling=Sampling(schema="{}"))
    with pytest.raises(CloudRefusedError, match="JSON that is begun"):
        await client.predict(Request(inputs=text), timeout_s=LONG_S)


async def test_tools_that_our_own_service_calls(client, writer):
    writer.calls = (CALL,)
    request = asking("weather in Paris", tools=(WEATHER,))
    for reply in ((await streamed(client, request))[-1], await client.predict(request, timeout_s=LONG_S)):
        assert (reply.output, reply.written.finish) == ("", Finish.TOOL_CALLS)
        assert reply.written.tool_calls == (CALL,)


async def test_our_own_service_writes_no_further_for_a_client_that_left(client, writer):
    await client.describe(timeout_s=LONG_S)
    writer.gate.clear()
    writer.left.clear()
    pieces = client.stream(asking(), timeout_s=LONG_S)
    assert (await anext(pieces)).text == "one "
    await pieces.aclose()
    assert await asyncio.to_thread(writer.left.wait, LONG_S)


async def test_what_our_own_service_refuses_is_a_refusal(client):
    for item in (asking(tools=(WEATHER,), tool_choice="get_time"), asking(sampling=Sampling(max_tokens=-3))):
        with pytest.raises(CloudRefusedError, match="status 400"):
            await client.predict(item, timeout_s=LONG_S)


@pytest.mark.parametrize("how", ["predict", "stream"])
async def test_a_gateway_that_answers_provisionally_is_no_reference(client, writer, how):
    await client.describe(timeout_s=LONG_S)
    writer.status = Status.PROVISIONAL
    with pytest.raises(CloudResponseError, match="provisional"):
        await (streamed(client, asking()) if how == "stream" else client.predict(asking(), timeout_s=LONG_S))
