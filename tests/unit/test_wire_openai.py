"""OpenAI's protocol: the codec, and its routes at a door."""

import base64
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.contracts import DataPolicy, Mode, Reason, Status
from edgewise.errors import RequestError
from edgewise.telemetry import Metrics
from edgewise.wire import openai
from edgewise.wire.door import Limits, front_door


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgewise_fake_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load(Path(__file__).parent / "fake_service.py")

VECTOR = (0.25, -1.0, 3.5)
HELLO = {"model": "newswire", "input": "hello"}


def decode(body: object, headers: dict[bytes, bytes] | None = None, max_items: int = 4) -> openai.EmbeddingsCall:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return openai.decode_embeddings(data, headers or {}, tenant="acme", new_id=lambda: "new", max_items=max_items)


# The codec


def test_one_text_is_one_request() -> None:
    call = decode(HELLO)
    (request,) = call.requests
    assert (request.id, request.inputs, request.tenant, request.task) == ("new", "hello", "acme", "feature-extraction")
    assert (call.model, call.as_base64) == ("newswire", False)


def test_several_texts_are_as_many_requests() -> None:
    call = decode({**HELLO, "input": ["a", "b"], "encoding_format": "base64", "user": "me", "unknown": 1})
    assert [(request.id, request.inputs) for request in call.requests] == [("new-0", "a"), ("new-1", "b")]
    assert call.as_base64


def test_what_is_ours_comes_in_the_body_or_in_headers() -> None:
    ours = {"budget_ms": 50, "mode": "edge_only", "profile": "checkout", "data_policy": "local_only"}
    (request,) = decode({**HELLO, **ours}).requests
    as_headers = {f"x-edgewise-{name.replace('_', '-')}".encode(): str(value).encode() for name, value in ours.items()}
    assert decode(HELLO, as_headers).requests == (request,)
    assert (request.budget_ms, request.mode, request.profile) == (50, Mode.EDGE_ONLY, "checkout")
    assert request.data_policy is DataPolicy.LOCAL_ONLY
    (request,) = decode({**HELLO, "budget_ms": 70}, as_headers).requests
    assert request.budget_ms == 70


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", ""),
        ({"input": "x"}, "model"),
        ({"model": "m"}, "input"),
        ({**HELLO, "input": []}, "input"),
        ({**HELLO, "input": ["a"] * 5}, "input"),
        ({**HELLO, "input": ""}, "input"),
        ({**HELLO, "input": ["a", ""]}, "input"),
        ({**HELLO, "input": [[1, 2]]}, "input[0]"),
        ({**HELLO, "input": [1, 2]}, "input[0]"),
        ({**HELLO, "encoding_format": "hex"}, "encoding_format"),
        ({**HELLO, "budget_ms": -1}, "budget_ms"),
        ({**HELLO, "mode": "wish"}, "mode"),
        ({**HELLO, "data_policy": "wish"}, "data_policy"),
        ({**HELLO, "profile": ""}, "profile"),
    ],
)
def test_what_cannot_be_used_is_named(body: object, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(body)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "value"), [("budget-ms", b"soon"), ("budget-ms", b"nan"), ("mode", b"\xff"), ("data-policy", b"")]
)
def test_a_header_that_cannot_be_used_is_named(name: str, value: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode(HELLO, {f"x-edgewise-{name}".encode(): value})
    assert caught.value.field == f"x-edgewise-{name}"


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8), st.booleans())
def test_a_vector_arrives_as_it_was(vector: list[float], as_base64: bool) -> None:
    call = decode({**HELLO, "encoding_format": "base64" if as_base64 else "float"})
    body = openai.encode_embeddings(fakes.service_info(), call, [fakes.make_answer("new", tuple(vector))])
    sent = json.loads(body)["data"][0]["embedding"]
    found = np.frombuffer(base64.b64decode(sent), "<f4").tolist() if as_base64 else sent
    assert found == vector


def test_an_embedding_says_what_it_is() -> None:
    answers = [
        fakes.make_answer("new-0", VECTOR),
        fakes.make_answer("new-1", VECTOR, status=Status.PROVISIONAL, reason=Reason.BUDGET_SPENT),
    ]
    call = decode({**HELLO, "input": ["a", "b"]})
    reply = json.loads(openai.encode_embeddings(fakes.service_info(), call, answers))
    assert (reply["object"], reply["model"], reply["usage"]) == (
        "list",
        "newswire",
        {"prompt_tokens": 0, "total_tokens": 0},
    )
    assert [item["index"] for item in reply["data"]] == [0, 1]
    assert [item["status"] for item in reply["data"]] == ["final", "provisional"]
    assert reply["data"][1] | {"embedding": None} == {
        "object": "embedding",
        "index": 1,
        "embedding": None,
        "id": "new-1",
        "status": "provisional",
        "source": "edge",
        "reason": "budget_spent",
    }


def test_another_width_than_the_models_is_refused() -> None:
    call = decode({**HELLO, "dimensions": 3})
    assert openai.encode_embeddings(fakes.service_info(), call, [fakes.make_answer("new", VECTOR)])
    call = decode({**HELLO, "dimensions": 2})
    with pytest.raises(RequestError) as caught:
        openai.encode_embeddings(fakes.service_info(), call, [fakes.make_answer("new", VECTOR)])
    assert caught.value.field == "dimensions"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "api_error"),
    ],
)
def test_an_error_has_their_shape(status: int, kind: str) -> None:
    found = json.loads(openai.encode_error(status, "some_code", "It is so.", field="input"))
    assert found == {"error": {"message": "It is so.", "type": kind, "param": "input", "code": "some_code"}}


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("/v1/embeddings", True),
        ("/v1/models", True),
        ("/v1/models/x", True),
        ("/v1/modelsx", False),
        ("/v1/predict", False),
    ],
)
def test_their_shape_is_for_their_paths(path: str, ours: bool) -> None:
    assert openai.is_ours(path) is ours


# At the door


class House:
    """A door before a fake that makes vectors."""

    def __init__(self, *, task: str = "feature-extraction", **options: object) -> None:
        self.service = fakes.FakeService()
        self.service.make = lambda request: fakes.make_answer(request.id, VECTOR)
        models = fakes.served(self.service, task=task)
        app = front_door(models, answers=None, metrics=Metrics(), new_id=lambda: "new", **options)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door")


async def test_embeddings_carry_our_headers() -> None:
    response = await House().client.post("/v1/embeddings", json=HELLO)
    assert response.status_code == 200
    assert response.json()["data"][0]["embedding"] == list(VECTOR)
    assert response.headers["x-edgewise-source"] == "edge"
    assert response.headers["x-edgewise-status"] == "final"


async def test_a_model_that_does_something_else_is_refused() -> None:
    house = House(task="text-classification")
    response = await house.client.post("/v1/embeddings", json=HELLO)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "invalid_request")
    assert "text-classification" in error["message"]
    assert house.service.requests == []


async def test_a_model_that_is_not_served_is_not_found() -> None:
    response = await House().client.post("/v1/embeddings", json={**HELLO, "model": "gpt"})
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["param"] == "model"
    assert "'newswire'" in error["message"]


async def test_errors_before_the_route_have_their_shape_too() -> None:
    house = House(api_keys={"secret": "acme"}, limits=Limits(max_body_bytes=100))
    response = await house.client.post("/v1/embeddings", json=HELLO)
    assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
    assert (await house.client.get("/v1/models/newswire")).json()["error"]["code"] == "unauthenticated"
    keyed = {"authorization": "Bearer secret"}
    response = await house.client.post("/v1/embeddings", json={**HELLO, "user": "x" * 200}, headers=keyed)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")
    response = await house.client.get("/v1/embeddings", headers=keyed)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_models_are_listed_and_looked_up() -> None:
    client = House().client
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert model == (await client.get("/v1/models/newswire")).json()
    assert (model["id"], model["object"], model["owned_by"]) == ("newswire", "model", "edgewise")
    assert (model["version"], model["task"], model["role"]) == ("sha256:1", "feature-extraction", "gateway")
    response = await client.get("/v1/models/gpt")
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"
