"""Texts over the WebSocket: told token by token, interrupted, continued, revised."""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgewise.contracts import Served, Source, Status
from edgewise.dialogue import TokenChoice, ToolCall
from edgewise.errors import PromptTooLongError
from edgewise.wire.admission import Gate
from edgewise.wire.catalog import Catalog
from edgewise.wire.events import Updates
from edgewise.wire.faults import Fault
from edgewise.wire.stream import StreamLimits, Streams


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"edgewise_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes, writers = _load("fake_service"), _load("fake_writer")

WHOLE = "Grain exports rose in March."
MESSAGES = [{"role": "user", "content": "hi"}]


class Client:
    """A connection with everything around it in reach; heard messages are taken with `hear`."""

    def __init__(self, **limits: object) -> None:
        self.writer = writers.Writer()
        info = fakes.service_info()
        beside = {"newswire": Served(info=info, service=fakes.FakeService(), ready=lambda: None)}
        self.gate = Gate(4, 1 << 20, None)
        self.faults: list[Fault] = []
        streams = Streams(
            Catalog(writers.served(self.writer, **beside)),
            updates=Updates(None, 1, 1),
            count=lambda served, answer, started_s: None,
            on_fault=self.faults.append,
            new_id=lambda: "new",
            max_budget_ms=60_000,
            limits=StreamLimits(**{"max_message_bytes": 10_000, **limits}),
        )
        self._coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._coming.put_nowait({"type": "websocket.connect"})
        scope = {"type": "websocket", "path": "/v1/stream", "headers": []}
        self.task = asyncio.create_task(streams.serve(scope, self._coming.get, self._take, "acme", self.gate))

    async def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.send":
            self._heard.put_nowait(json.loads(message["text"]))

    def say(self, kind: str, **fields: object) -> None:
        text = json.dumps({"type": kind, **fields})
        self._coming.put_nowait({"type": "websocket.receive", "text": text})

    def generate(self, **fields: object) -> None:
        self.say("generate", **{"id": "7", "messages": MESSAGES, **fields})

    async def hear(self) -> dict[str, Any]:
        return await self._heard.get()

    async def hear_until(self, *kinds: str) -> list[dict[str, Any]]:
        heard = [await self.hear()]
        while heard[-1]["type"] not in kinds:
            heard.append(await self.hear())
        return heard

    async def leave(self) -> None:
        self._coming.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await self.task

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()
        assert self.gate.slots.taken == 0
        assert self.gate.room.taken == 0
        assert self.writer.open == 0


def told(heard: list[dict[str, Any]]) -> str:
    return "".join(message["text"] for message in heard if message["type"] == "token")


async def test_a_text_is_told_token_by_token_then_whole() -> None:
    async with Client() as client:
        client.writer.top = (TokenChoice("Grain", -0.25),)
        client.writer.calls = (ToolCall(id="c1", name="look", arguments="{}"),)
        client.generate(top_logprobs=1, budget_ms=500)
        *tokens, answer, done = await client.hear_until("done")
    assert tokens[0] == {
        "type": "token",
        "id": "7",
        "text": "Grain",
        "source": "edge",
        "logprob": -0.25,
        "top": [{"text": "Grain", "logprob": -0.25}],
    }
    assert told(tokens) == answer["output"] == WHOLE
    assert answer["written"]["tool_calls"] == [{"id": "c1", "name": "look", "arguments": "{}"}]
    assert (answer["type"], answer["written"]["prompt_tokens"]) == ("answer", 7)
    assert done == {"type": "done", "id": "7", "pending": False}
    (request,) = client.writer.requests
    assert (request.revisable, request.task, request.tenant, request.budget_ms) == (
        True,
        "text-generation",
        "acme",
        500,
    )
    assert request.inputs.sampling.top_logprobs == 1


async def test_a_replaced_text_is_a_revise() -> None:
    async with Client() as client:
        client.writer.changes = {"status": Status.PROVISIONAL}
        client.writer.revision = "Wheat fell."
        client.generate()
        *_, revise, _ = await client.hear_until("done")
    assert (revise["type"], revise["output"], revise["source"]) == ("revise", "Wheat fell.", Source.CLOUD)


async def test_an_interrupt_tells_the_text_so_far_and_it_can_be_edited_and_continued() -> None:
    async with Client() as client:
        client.writer.is_endless = True
        client.generate(session="s")
        heard = [await client.hear() for _ in range(3)]
        client.say("interrupt", id="7")
        heard += await client.hear_until("done")
        *_, interrupted, done = heard
        assert interrupted == {"type": "interrupted", "id": "7", "text": told(heard)}
        assert done == {"type": "done", "id": "7", "pending": False}
        assert client.writer.open == 0
        client.writer.is_endless = False
        client.generate(session="s", begun="Grain imports")
        assert (await client.hear_until("done"))[-1]["id"] == "7"
    assert client.writer.requests[1].inputs.begun == "Grain imports"
    assert client.writer.requests[1].session == "s"


async def test_an_interrupt_before_the_first_token_tells_no_text() -> None:
    async with Client() as client:
        client.writer.gate = asyncio.Event()
        client.writer.wait_first = True
        client.generate()
        await client.writer.begun.wait()
        client.say("interrupt", id="7")
        assert await client.hear() == {"type": "interrupted", "id": "7", "text": ""}
        assert (await client.hear())["type"] == "done"


async def test_an_interrupt_of_what_is_over_or_never_was_does_nothing() -> None:
    async with Client() as client:
        client.say("interrupt", id="never")
        client.generate()
        heard = await client.hear_until("done")
        client.say("interrupt", id="7")
        client.generate(id="8")
        heard += await client.hear_until("done")
    assert {message["type"] for message in heard} == {"token", "answer", "done"}
    assert client.faults == []


async def test_a_cancelled_text_is_told_no_more_of() -> None:
    async with Client() as client:
        client.writer.is_endless = True
        client.generate()
        await client.hear()
        client.say("cancel", id="7")
        (*_, error) = await client.hear_until("error")
    assert error["error"]["code"] == "cancelled"


async def test_a_connection_that_ends_ends_every_text_of_it() -> None:
    async with Client() as client:
        client.writer.is_endless = True
        for name in ("a", "b", "c"):
            client.generate(id=name)
        while client.writer.open < 3:
            await client.hear()


async def test_a_slot_is_held_until_the_text_is_whole() -> None:
    async with Client() as client:
        client.writer.is_endless = True
        client.writer.gate = asyncio.Event()
        for at in range(5):
            client.generate(id=str(at))
        (*_, error) = await client.hear_until("error")
        assert (error["id"], error["error"]["code"]) == ("4", "too_many_requests")
        assert client.gate.slots.taken == 4


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": "x"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"seed": -(10**400)}, "seed"),
        ({"top_logprobs": 10**400}, "top_logprobs"),
        ({"top_logprobs": 99}, "top_logprobs"),
        ({"messages": None, "prompt": "x", "tools": [{"function": {"name": "look"}}]}, "tools"),
        ({"tempereture": 1}, "tempereture"),
        ({"model": "newswire"}, "model"),
        ({"model": "gpt"}, "model"),
        ({"session": "a b"}, "session"),
        ({"mode": "fast"}, "mode"),
    ],
)
async def test_what_cannot_be_written_is_refused_by_its_field(fields: dict[str, object], field: str) -> None:
    async with Client() as client:
        client.generate(**fields)
        message = await client.hear()
    assert (message["type"], message["id"], message["error"]["field"]) == ("error", "7", field)
    assert client.writer.requests == []


async def test_the_known_fields_are_those_of_the_message_that_was_meant() -> None:
    async with Client() as client:
        client.generate(tempereture=1)
        assert "temperature" in (await client.hear())["error"]["remedy"]
        client.say("interrupt", id="7", now=True)
        assert (await client.hear())["error"]["remedy"] == "Known fields: type, id."


async def test_a_classifiers_message_names_where_a_writer_is_asked() -> None:
    async with Client() as client:
        client.say("predict", id="7", inputs="x", model="writer")
        assert (await client.hear())["error"]["remedy"] == 'Send a message of the type "generate".'
        client.generate(model="newswire")
        assert (await client.hear())["error"]["remedy"] == 'Send a message of the type "predict".'


async def test_a_model_that_is_not_there_has_the_code_of_texts() -> None:
    async with Client() as client:
        client.generate(model="gpt")
        assert (await client.hear())["error"]["code"] == "model_not_found"
        client.say("predict", id="7", inputs="x", model="gpt")
        assert (await client.hear())["error"]["code"] == "not_found"


@pytest.mark.parametrize("kind", ["chat", 3, None])
async def test_a_type_that_is_none_is_told_those_that_there_are(kind: Any) -> None:
    async with Client() as client:
        client.say(kind, id="7")
        assert (await client.hear())["error"]["remedy"] == "Choose one of: predict, generate, cancel, interrupt."


async def test_a_text_to_continue_with_its_edited_end() -> None:
    async with Client() as client:
        client.generate(messages=None, prompt="Once ", begun="upon", temperature=1, seed=3, stop="x")
        await client.hear_until("done")
    prompt = client.writer.requests[0].inputs
    assert (prompt.text, prompt.messages, prompt.sampling.seed) == ("Once upon", (), 3)


async def test_what_fails_in_the_middle_is_an_error_and_the_connection_stays() -> None:
    async with Client() as client:
        client.writer.error, client.writer.error_after = PromptTooLongError("Too long."), 2
        client.generate()
        *tokens, error = await client.hear_until("error")
        assert (told(tokens), error["error"]["code"]) == ("Grain exports", "context_length_exceeded")
        client.writer.error = None
        client.generate()
        await client.hear_until("done")


async def test_a_text_under_way_is_let_out_when_service_ends() -> None:
    async with Client() as client:
        client.writer.gate = asyncio.Event()
        client.generate()
        await client.hear()
        client.gate.drain.begin()
        client.writer.gate.set()
        assert told(await client.hear_until("done")) == " exports rose in March."
