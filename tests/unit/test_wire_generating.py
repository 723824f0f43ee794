"""Texts over the front door in OpenAI's protocol: whole, in pieces, and ended."""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import msgspec
import pytest

from edgewise.contracts import Reason, Served, Status
from edgewise.dialogue import Finish, TokenChoice, ToolCall
from edgewise.errors import CloudTimeoutError, PromptTooLongError, RequestError
from edgewise.telemetry import Metrics
from edgewise.wire.door import Limits, front_door


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"edgewise_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes, writers = _load("fake_service"), _load("fake_writer")

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODY = {"model": "writer", "messages": [{"role": "user", "content": "hi"}]}
PROMPT = {"model": "writer", "prompt": "Grain", "max_tokens": 6}
WHOLE = "Grain exports rose in March."


class House:
    """A door with a writer and a classifier behind it."""

    def __init__(self, **limits: object) -> None:
        self.writer = writers.Writer()
        self.metrics = Metrics()
        info = fakes.service_info()
        beside = {"newswire": Served(info=info, service=fakes.FakeService(), ready=lambda: None)}
        self.app = front_door(
            writers.served(self.writer, **beside),
            answers=None,
            metrics=self.metrics,
            new_id=lambda: "new",
            limits=Limits(**limits),
        )
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://door")

    async def ask(self, path: str = CHAT, body: dict | None = None, **fields: object) -> httpx.Response:
        return await self.client.post(path, json={**(body or (BODY if path == CHAT else PROMPT)), **fields})

    async def chunks(self, path: str = CHAT, **fields: object) -> list[Any]:
        response = await self.ask(path, stream=True, **fields)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return read(response.text)

    def counted(self, name: str) -> bytes:
        lines = [line for line in self.metrics.render().splitlines() if line.startswith(name.encode())]
        return b"\n".join(lines)


def read(text: str) -> list[Any]:
    """The data of each event."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


def said(chunks: list[Any]) -> str:
    choices = [choice for chunk in chunks if isinstance(chunk, dict) for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)


# Whole


async def test_a_whole_reply_says_the_text_the_tokens_and_where_it_came_from() -> None:
    house = House()
    response = await house.ask()
    body = response.json()
    assert (body["id"], body["object"], body["model"]) == ("chatcmpl-new", "chat.completion", "writer")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": WHOLE, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 6,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert body["system_fingerprint"] == body["edgewise"]["model_digest"] == "sha256:1"
    assert body["edgewise"]["decision"]["policy"] == "certified"
    assert response.headers["x-edgewise-id"] == body["edgewise"]["id"] == "new"
    assert response.headers["x-edgewise-source"] == body["edgewise"]["source"] == "edge"
    assert b'model="writer"' in house.counted("edgewise_requests_total")


async def test_a_whole_continuation() -> None:
    body = (await House().ask(TEXT)).json()
    assert (body["id"], body["object"]) == ("cmpl-new", "text_completion")
    assert body["choices"] == [{"index": 0, "text": WHOLE, "logprobs": None, "finish_reason": "stop"}]


async def test_a_provisional_answer_is_200_and_says_so() -> None:
    house = House()
    house.writer.changes = {"status": Status.PROVISIONAL}
    response = await house.ask()
    assert response.status_code == 200
    assert response.headers["x-edgewise-status"] == response.json()["edgewise"]["status"] == "provisional"


async def test_calls_of_tools() -> None:
    house = House()
    house.writer.tokens = ()
    house.writer.calls = (ToolCall(id="c1", name="look", arguments='{"at":1}'),)
    choice = (await house.ask()).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"arguments": '{"at":1}', "name": "look"}}
    ]


@pytest.mark.parametrize(("finish", "word"), [(Finish.LENGTH, "length"), (Finish.FILTER, "content_filter")])
async def test_a_call_that_was_cut_off_says_so(finish: Finish, word: str) -> None:
    """Its arguments may end anywhere: whoever is told `tool_calls` makes the call."""
    house = House()
    house.writer.tokens = ()
    cut = (ToolCall(id="c1", name="pay", arguments='{"amount": 10'),)
    house.writer.changes = {"written": msgspec.structs.replace(writers.written(finish=finish), tool_calls=cut)}
    assert (await house.ask()).json()["choices"][0]["finish_reason"] == word
    assert (await house.chunks())[-2]["choices"][0]["finish_reason"] == word


async def test_a_call_that_could_not_be_read_is_text() -> None:
    house = House()
    house.writer.calls = (ToolCall(id="c1", name="", arguments="<tool_call>{oops"),)
    choice = (await house.ask()).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (f"{WHOLE}<tool_call>{{oops", "stop")
    assert said(await house.chunks()) == f"{WHOLE}<tool_call>{{oops"


@pytest.mark.parametrize(
    ("finish", "word"),
    [(Finish.LENGTH, "length"), (Finish.FILTER, "content_filter"), (Finish.INTERRUPTED, "length"), (None, "stop")],
)
async def test_why_it_ended(finish: Finish | None, word: str) -> None:
    house = House()
    house.writer.changes = {"written": None if finish is None else writers.written(finish=finish)}
    body = (await house.ask()).json()
    assert body["choices"][0]["finish_reason"] == word
    assert (body["usage"] is None) == (finish is None)


async def test_log_probabilities_of_a_whole_reply() -> None:
    house = House()
    house.writer.top = (TokenChoice("é", -0.25), TokenChoice("b", -2.0), TokenChoice("é", -3.0))
    chat = (await house.ask(logprobs=True, top_logprobs=2)).json()["choices"][0]
    assert "".join(entry["token"] for entry in chat["logprobs"]["content"]) == WHOLE
    assert chat["logprobs"]["content"][0]["top_logprobs"][0] == {"token": "é", "logprob": -0.25, "bytes": [195, 169]}
    assert house.writer.requests[0].inputs.sampling.top_logprobs == 2
    text = (await house.ask(TEXT, logprobs=2)).json()["choices"][0]["logprobs"]
    assert text["tokens"] == list(writers.TEXT)
    assert text["text_offset"] == [0, 5, 13, 18, 21, 27]
    assert text["token_logprobs"] == [-0.25] * 6
    assert text["top_logprobs"][0] == {"é": -0.25, "b": -2.0}
    house.writer.logprob = None
    assert (await house.ask(logprobs=True)).json()["choices"][0]["logprobs"]["content"] == []
    assert house.writer.open == 0
    assert all(request.whole for request in house.writer.requests)
    await house.chunks(logprobs=True)
    assert not house.writer.requests[-1].whole


# In pieces


async def test_a_chat_in_pieces() -> None:
    house = House()
    *chunks, usage, done = await house.chunks(stream_options={"include_usage": True}, logprobs=True)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:]] == [*writers.TEXT, None]
    assert chunks[1]["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.25
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-new"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 7 + ["stop"]
    assert chunks[-1]["edgewise"]["status"] == "final"
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 13)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert house.writer.open == 0
    assert b"edgewise_requests_total" in house.counted("edgewise_requests_total")


async def test_a_text_in_pieces() -> None:
    *chunks, done = await House().chunks(TEXT, logprobs=0)
    assert done == "[DONE]"
    assert said(chunks) == WHOLE
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks[:-1]] == [
        [0],
        [5],
        [13],
        [18],
        [21],
        [27],
    ]
    assert "usage" not in chunks[0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_calls_come_in_pieces_too() -> None:
    house = House()
    house.writer.calls = (
        ToolCall(id="c1", name="look", arguments='{"at":1}'),
        ToolCall(id="c2", name="go", arguments="{}"),
    )
    *chunks, _ = await house.chunks()
    deltas = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert deltas == [
        {"index": 0, "id": "c1", "type": "function", "function": {"arguments": "", "name": "look"}},
        {"index": 0, "function": {"arguments": '{"at":1}'}},
        {"index": 1, "id": "c2", "type": "function", "function": {"arguments": "", "name": "go"}},
        {"index": 1, "function": {"arguments": "{}"}},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("told", [(), ("Grain",), ("Grain", "", " exports"), writers.TEXT])
async def test_what_the_tokens_did_not_tell_follows_before_the_end(told: tuple[str, ...]) -> None:
    house = House()
    house.writer.tokens, house.writer.output = told, WHOLE
    for path in (CHAT, TEXT):
        assert said(await house.chunks(path)) == WHOLE


async def test_a_cache_hit_is_a_stream_like_any_other() -> None:
    house = House()
    house.writer.tokens, house.writer.output = (), WHOLE
    response = await house.ask(stream=True)
    assert response.headers["x-edgewise-source"] == "edge"
    *chunks, done = read(response.text)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": WHOLE},
        {},
    ]
    assert done == "[DONE]"


async def test_an_update_is_not_told_and_the_stream_ends_with_the_first_answer() -> None:
    house = House()
    house.writer.changes = {"status": Status.PROVISIONAL}
    house.writer.revision = "Wheat."
    *chunks, done = await house.chunks()
    assert (said(chunks), done) == (WHOLE, "[DONE]")
    assert chunks[-1]["edgewise"]["status"] == "provisional"
    assert house.writer.open == 0


async def test_an_answer_that_is_another_than_was_told_is_an_error() -> None:
    house = House()
    house.writer.output = "Wheat fell."
    *_, error = await house.chunks()
    assert error["error"]["code"] == "internal"


# Errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (PromptTooLongError("The prompt has 9000 tokens."), 400, "context_length_exceeded", "messages"),
        (RequestError("messages", "messages: two users in a row."), 400, "invalid_request", "messages"),
        (CloudTimeoutError("Too late."), 504, "cloud_timeout", None),
        (ValueError("secret"), 500, "internal", None),
    ],
)
async def test_what_fails_before_the_first_event_is_an_error_of_http(
    error: Exception, status: int, code: str, param: str | None, stream: bool
) -> None:
    house = House()
    house.writer.error = error
    response = await house.ask(stream=stream)
    assert response.status_code == status
    found = response.json()["error"]
    assert (found["code"], found["param"]) == (code, param)
    assert "secret" not in response.text
    assert house.writer.open == 0


async def test_what_fails_later_ends_the_stream_without_its_done() -> None:
    house = House()
    house.writer.error, house.writer.error_after = CloudTimeoutError("Too late."), 3
    *chunks, error = await house.chunks()
    assert said(chunks) == "Grain exports rose"
    assert error == {"error": {"message": "Too late.", "type": "api_error", "param": None, "code": "cloud_timeout"}}
    assert b'cloud_timeout"} 1' in house.counted("edgewise_request_errors_total")
    assert house.writer.open == 0


async def test_models_are_asked_where_they_answer() -> None:
    house = House()
    missing = await house.ask(model="gpt")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert missing.json()["error"]["param"] == "model"
    for path in (CHAT, TEXT):
        classifier = await house.ask(path, model="newswire")
        assert classifier.status_code == 400
        assert "/v1/predict" in classifier.json()["error"]["message"]
        assert classifier.json()["error"]["param"] == "model"
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}
    elsewhere = {
        "/v1/predict": {"inputs": "x", "model": "writer"},
        "/v1/embeddings": {"input": "x", "model": "writer"},
        "/v2/models/writer/infer": {"inputs": [tensor]},
    }
    for path, body in elsewhere.items():
        response = await house.client.post(path, json=body)
        assert response.status_code == 400
        assert CHAT in response.text
    assert house.writer.requests == []


async def test_a_schema_is_not_read_for_a_model_that_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    tools = [{"type": "function", "function": {"name": "x", "parameters": {"type": "object"}}}]
    refused = await House().ask(model="newswire", tools=tools)
    assert "/v1/predict" in refused.json()["error"]["message"]
    missing = await House().ask(tools=tools)
    assert (missing.status_code, "edgewise[generate]" in missing.text) == (400, True)


async def test_one_stream_too_many_is_told_to_come_back() -> None:
    house = House(max_streams=1)
    house.writer.gate = asyncio.Event()
    first = asyncio.create_task(house.ask(stream=True))
    await house.writer.begun.wait()
    second = await house.ask(stream=True)
    assert (second.status_code, second.json()["error"]["code"]) == (429, "too_many_requests")
    house.writer.gate.set()
    assert said(read((await first).text)[:-1]) == WHOLE
    assert said((await house.chunks())[:-1]) == WHOLE


async def test_a_stream_takes_a_slot_until_it_is_answered() -> None:
    house = House(max_concurrency=1)
    house.writer.gate = asyncio.Event()
    first = asyncio.create_task(house.ask(stream=True))
    await house.writer.begun.wait()
    assert (await house.ask()).status_code == 429
    house.writer.gate.set()
    assert (await first).status_code == 200
    assert (await house.ask()).status_code == 200


async def test_the_method_is_post() -> None:
    assert (await House().client.get(CHAT)).status_code == 405


# Those who leave, and those who do not read


class Reader:
    """A client as an ASGI server shows it: it reads so many pieces, then leaves or reads no more."""

    def __init__(self, house: House, *, pieces: int, leaves: bool) -> None:
        self.house = house
        self.pieces = pieces
        self.leaves = leaves
        self.heard: list[bytes] = []
        self._news = asyncio.Event()
        self.gone = asyncio.Event()
        self.scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b""}
        self._body: bytes | None = json.dumps({**BODY, "stream": True}).encode()

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if self.gone.is_set():
            return
        if message["type"] == "http.response.body":
            self.heard.append(message["body"])
            self._news.set()
            if not message.get("more_body"):
                self.gone.set()  # a server's word for a response that is over, too
        if len(self.heard) >= self.pieces:
            if self.leaves:
                self.gone.set()
            else:
                await asyncio.Event().wait()

    async def hears(self, words: bytes) -> None:
        while not any(words in piece for piece in self.heard):
            await self._news.wait()
            self._news.clear()

    async def run(self) -> None:
        await self.house.app(self.scope, self.receive, self.send)


async def test_whoever_leaves_ends_what_is_written() -> None:
    house = House()
    house.writer.is_endless = True
    await Reader(house, pieces=5, leaves=True).run()
    assert house.writer.open == 0
    assert house.counted("edgewise_request_errors_total{") == b'edgewise_request_errors_total{code="client_gone"} 1.0'
    assert len(house.writer.requests) == 1
    # Ahead of the five that were read are the loop's turns in which the hang-up was heard, and no others.
    assert house.writer.told["new"] <= 5 + 10


async def test_whoever_hears_all_has_not_left() -> None:
    house = House()
    reader = Reader(house, pieces=10_000, leaves=True)
    await reader.run()
    assert reader.heard[-1] == b""
    assert house.writer.open == 0
    assert house.counted("edgewise_request_errors_total{") == b""


async def test_whoever_does_not_read_is_dropped_and_writing_ends() -> None:
    house = House()
    house.writer.is_endless = True
    house.writer.gate = asyncio.Event()
    house.app._generating._send_timeout_s = 0.01
    await Reader(house, pieces=1, leaves=False).run()
    assert house.writer.open == 0


async def test_silence_is_bridged_by_comments() -> None:
    house = House()
    house.writer.gate = asyncio.Event()
    house.app._generating._keep_alive_s = 0.001
    reader = Reader(house, pieces=10_000, leaves=True)
    task = asyncio.create_task(reader.run())
    await reader.hears(b": keep-alive\n\n")
    house.writer.gate.set()
    await task
    assert reader.heard[-2].endswith(b"data: [DONE]\n\n")


async def test_the_servers_last_word_is_an_error_and_the_text_ends() -> None:
    house = House()
    house.writer.is_endless = True
    reader = Reader(house, pieces=10_000_000, leaves=True)
    task = asyncio.create_task(reader.run())
    await reader.hears(b"exports")
    task.cancel()
    await asyncio.wait({task})
    assert b'"code":"shutting_down"' in reader.heard[-1]
    assert house.writer.open == 0


async def test_an_answer_under_way_is_let_out_when_service_ends() -> None:
    house = House()
    house.writer.gate = asyncio.Event()
    task = asyncio.create_task(house.ask(stream=True))
    await house.writer.begun.wait()
    house.app.drain()
    house.writer.gate.set()
    assert said(read((await task).text)[:-1]) == WHOLE


# What is told of all this


async def test_the_document_and_the_front_page_tell_of_both_routes() -> None:
    house = House()
    document = (await house.client.get("/openapi.json")).json()
    page = (await house.client.get("/")).json()
    for path in (CHAT, TEXT):
        operation = document["paths"][path]["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        assert (await house.client.post(path, json=example)).status_code == 200
        assert path in page["endpoints"]
    assert document["components"]["schemas"]["ChatBody"]["properties"]["model"]["enum"] == ["writer"]
    assert (await house.client.get("/v1/models/writer")).json()["task"] == "text-generation"


async def test_a_door_with_models_that_write_only_tells_of_no_other() -> None:
    app = front_door(writers.served(writers.Writer()), answers=None, metrics=Metrics())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door")
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert CHAT in paths
    assert not [path for path in paths if path == "/v1/predict" or path.endswith("/infer")]


def test_a_door_without_such_a_model_reads_none_of_this() -> None:
    import subprocess

    code = (
        "import sys, edgewise.wire.door, edgewise.wiring\n"
        "heavy = {'edgewise.wire.' + name for name in ('completions', 'completion_replies', 'generating', 'prompts',"
        " 'schemas', 'text_operations')}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


async def test_the_reason_is_the_routers() -> None:
    house = House()
    decision = fakes.make_answer(reason=Reason.CONFIDENCE_COLLAPSED).decision
    house.writer.changes = {"decision": decision}
    assert (await house.ask()).headers["x-edgewise-reason"] == "confidence_collapsed"
