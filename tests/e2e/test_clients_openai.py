"""The openai client against a gateway and a cloud service over real sockets."""

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import numpy as np
import openai
import pytest

from edgewise.config import parse_config
from edgewise.edge import EdgeModel
from edgewise.wire.serve import BackgroundServer
from edgewise.wiring import build_gateway
from edgewise.wiring.cloud import CloudSettings, build_cloud, cloud_models

KEY = "a-key-of-the-test"


@pytest.fixture(scope="module")
def gateway(tiny_embedder_bundle: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as resources:
        patch.setenv("GATEWAY_KEYS", f"acme:{KEY}")
        tables = {
            "edge": {"bundle": str(tiny_embedder_bundle), "mode": "edge_only"},
            "server": {"api_keys_env": "GATEWAY_KEYS", "max_body_bytes": 10_000},
        }
        app = build_gateway(parse_config(tables), resources).app
        with BackgroundServer(app) as server:
            yield server.url


@pytest.fixture(scope="module")
def cloud(tiny_text_bundle: Path, tiny_embedder_bundle: Path) -> Iterator[str]:
    models = cloud_models([f"tiny-embedder={tiny_embedder_bundle}", f"tiny-text={tiny_text_bundle}"])
    settings = CloudSettings(models=models, threads=1)
    with BackgroundServer(build_cloud(settings, parse_config({})).app) as server:
        yield server.url


def opened(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


@pytest.fixture(params=["gateway", "cloud"])
def client(request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with opened(request.getfixturevalue(request.param)) as found:
        yield found


@pytest.fixture(scope="module")
def expected(tiny_embedder_bundle: Path, tiny_models: ModuleType) -> np.ndarray:
    """The vectors of the bundle itself, shape (3, width)."""
    model = EdgeModel.load(tiny_embedder_bundle)
    return np.array([found.output for found in model.predict(tiny_models.TEXTS[:3])], np.float32)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings_are_those_of_the_model(
    client: openai.OpenAI, tiny_models: ModuleType, expected: np.ndarray, encoding: str | None
) -> None:
    wish = {} if encoding is None else {"encoding_format": encoding}
    reply = client.embeddings.create(model="tiny-embedder", input=list(tiny_models.TEXTS[:3]), **wish)
    if encoding == "base64":
        found = np.array([np.frombuffer(_bytes(item.embedding), "<f4") for item in reply.data])
    else:
        found = np.array([item.embedding for item in reply.data], np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert [item.index for item in reply.data] == [0, 1, 2]
    assert reply.model == "tiny-embedder"


def _bytes(embedding: object) -> bytes:
    return base64.b64decode(embedding) if isinstance(embedding, str) else np.array(embedding, "<f4").tobytes()


def test_one_text_and_what_we_say_of_its_answer(client: openai.OpenAI, tiny_models: ModuleType) -> None:
    raw = client.embeddings.with_raw_response.create(model="tiny-embedder", input=tiny_models.TEXTS[0])
    (item,) = raw.parse().data
    assert item.model_extra["status"] == raw.headers["x-edgewise-status"] == "final"
    assert item.model_extra["source"] == raw.headers["x-edgewise-source"]
    assert item.model_extra["id"] == raw.headers["x-edgewise-id"]


def test_what_is_ours_goes_in_the_body_or_in_headers(gateway: str, tiny_models: ModuleType) -> None:
    with opened(gateway) as client:

        def reason(**options: object) -> str:
            text = tiny_models.TEXTS[0]
            raw = client.embeddings.with_raw_response.create(model="tiny-embedder", input=text, **options)
            return raw.headers["x-edgewise-reason"]

        assert reason(extra_body={"data_policy": "local_only"}) == "local_only"
        assert reason(extra_headers={"x-edgewise-data-policy": "local_only", "x-edgewise-budget-ms": "500"}) == (
            "local_only"
        )
        with pytest.raises(openai.BadRequestError) as caught:
            reason(extra_body={"budget_ms": -1})
        assert caught.value.param == "budget_ms"


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert "tiny-embedder" in listed
    model = client.models.retrieve("tiny-embedder")
    assert model == listed["tiny-embedder"]
    assert (model.object, model.owned_by) == ("model", "edgewise")
    assert model.model_extra["task"] == "feature-extraction"


def test_errors_are_exceptions_of_the_client(gateway: str, cloud: str) -> None:
    with opened(gateway) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.embeddings.create(model="gpt", input="x")
        assert (missing.value.param, missing.value.type) == ("model", "invalid_request_error")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt")
        with pytest.raises(openai.BadRequestError) as tokens:
            client.embeddings.create(model="tiny-embedder", input=[1, 2, 3])
        assert tokens.value.param == "input[0]"
        with pytest.raises(openai.BadRequestError) as wide:
            client.embeddings.create(model="tiny-embedder", input="grain", dimensions=7)
        assert wide.value.param == "dimensions"
        with pytest.raises(openai.APIStatusError) as large:
            client.embeddings.create(model="tiny-embedder", input="x" * 20_000)
        assert (large.value.status_code, large.value.code) == (413, "payload_too_large")
        with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
            client.chat.completions.create(model="tiny-embedder", messages=[{"role": "user", "content": "x"}])
    with opened(gateway, "wrong") as client, pytest.raises(openai.AuthenticationError) as key:
        client.models.list()
    assert key.value.code == "unauthenticated"
    with opened(cloud) as client, pytest.raises(openai.BadRequestError) as task:
        client.embeddings.create(model="tiny-text", input="x")
    assert "text-classification" in json.dumps(task.value.body)


async def test_the_asynchronous_client_too(cloud: str, tiny_models: ModuleType, expected: np.ndarray) -> None:
    async with openai.AsyncOpenAI(base_url=f"{cloud}/v1", api_key="none", max_retries=0) as client:
        reply = await client.embeddings.create(model="tiny-embedder", input=tiny_models.TEXTS[0])
    np.testing.assert_allclose(reply.data[0].embedding, expected[0], rtol=1e-4, atol=1e-6)
