"""tritonclient against a gateway and a cloud service over real sockets, in JSON and with binary tensors."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from edgewise.config import parse_config
from edgewise.wire.serve import BackgroundServer
from edgewise.wiring import build_gateway
from edgewise.wiring.cloud import CloudSettings, build_cloud, cloud_models


@pytest.fixture(scope="module")
def gateway(tiny_text_bundle: Path) -> Iterator[str]:
    tables = {"edge": {"bundle": str(tiny_text_bundle), "mode": "edge_only"}}
    with (
        ExitStack() as resources,
        BackgroundServer(build_gateway(parse_config(tables), resources).app) as server,
    ):
        yield f"{server.host}:{server.port}"


@pytest.fixture(scope="module")
def cloud(tiny_text_bundle: Path, tiny_embedder_bundle: Path) -> Iterator[str]:
    models = cloud_models([f"tiny-text={tiny_text_bundle}", f"tiny-embedder={tiny_embedder_bundle}"])
    settings = CloudSettings(models=models, threads=1)
    with BackgroundServer(build_cloud(settings, parse_config({})).app) as server:
        yield f"{server.host}:{server.port}"


@pytest.fixture(scope="module", params=["gateway", "cloud"])
def client(request: pytest.FixtureRequest) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(request.getfixturevalue(request.param), concurrency=4) as opened:
        yield opened


def texts(items: list[str], *, binary: bool, name: str = "text") -> triton.InferInput:
    tensor = triton.InferInput(name, [len(items)], "BYTES")
    tensor.set_data_from_numpy(np.array(items, dtype=object), binary_data=binary)
    return tensor


def words(result: triton.InferResult, name: str) -> list[str]:
    return [item.decode() if isinstance(item, bytes) else item for item in result.as_numpy(name).tolist()]


@pytest.mark.parametrize("binary_in", [False, True], ids=["json in", "binary in"])
@pytest.mark.parametrize("binary_out", [False, True], ids=["json out", "binary out"])
def test_texts_are_answered(
    client: triton.InferenceServerClient, tiny_models: ModuleType, binary_in: bool, binary_out: bool
) -> None:
    items = list(tiny_models.TEXTS[:3])
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "status", "score")]
    result = client.infer("tiny-text", [texts(items, binary=binary_in)], outputs=outputs, request_id="call")
    assert words(result, "label") == [tiny_models.LABELS[tiny_models.expected_logits(item).argmax()] for item in items]
    assert words(result, "status") == ["final"] * 3
    assert result.as_numpy("source") is None
    response = result.get_response()
    assert (response["id"], response["model_name"]) == ("call", "tiny-text")
    assert {output["name"] for output in response["outputs"]} == {"label", "status", "score"}


def test_without_a_wish_for_outputs_all_come(client: triton.InferenceServerClient, tiny_models: ModuleType) -> None:
    result = client.infer("tiny-text", [texts([tiny_models.TEXTS[0]], binary=True)])
    assert {"label", "status", "source", "reason", "score"} == {
        output["name"] for output in result.get_response()["outputs"]
    }


def test_texts_of_any_letters_arrive_whole(client: triton.InferenceServerClient) -> None:
    item = 'grain "é" \u2028 日本 \\ \U0001f33e wheat'
    for binary in (False, True):
        result = client.infer("tiny-text", [texts([item], binary=binary)])
        assert words(result, "label") == ["grain"]


def test_parameters_travel(client: triton.InferenceServerClient, tiny_models: ModuleType) -> None:
    tensor = texts([tiny_models.TEXTS[0]], binary=True)
    assert client.infer("tiny-text", [tensor], parameters={"budget_ms": 5000, "data_policy": "any"})
    with pytest.raises(InferenceServerException, match="budget_ms"):
        client.infer("tiny-text", [tensor], parameters={"budget_ms": -1})


def test_requests_at_once(client: triton.InferenceServerClient, tiny_models: ModuleType) -> None:
    asked = [client.async_infer("tiny-text", [texts([text], binary=True)]) for text in tiny_models.TEXTS * 3]
    labels = [words(one.get_result(), "label")[0] for one in asked]
    assert labels[: len(tiny_models.TEXTS)] * 3 == labels


def test_server_and_model_tell_of_themselves(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny-text")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "edgewise"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("tiny-text")
    (version,) = model["versions"]
    assert [tensor["name"] for tensor in model["inputs"]] == ["text"]
    assert client.is_model_ready("tiny-text", version)
    assert client.get_model_metadata("tiny-text", version) == model


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.get_inference_statistics("tiny-text"),
        lambda client: client.get_model_config("tiny-text"),
        lambda client: client.get_trace_settings(),
        lambda client: client.get_system_shared_memory_status(),
    ],
)
def test_what_is_not_spoken_is_said_so(client: triton.InferenceServerClient, ask) -> None:
    with pytest.raises(InferenceServerException, match="nothing at this path"):
        ask(client)


@pytest.mark.parametrize(
    ("model", "tensor", "said"),
    [
        ("nobody", lambda: texts(["x"], binary=True), "model is unknown"),
        ("tiny-text", lambda: texts(["x"], binary=True, name="tokens"), "'tokens'"),
        ("tiny-text", lambda: texts(["x"] * 65, binary=True), "65 items"),
        ("tiny-text", lambda: numbers(binary=True), "FP32"),
        ("tiny-text", lambda: numbers(binary=False), "FP32"),
    ],
)
def test_what_cannot_be_used_is_an_exception_of_the_client(
    client: triton.InferenceServerClient, model: str, tensor, said: str
) -> None:
    with pytest.raises(InferenceServerException, match=said) as caught:
        client.infer(model, [tensor()])
    assert caught.value.status() in ("400", "404")


def numbers(*, binary: bool) -> triton.InferInput:
    tensor = triton.InferInput("text", [2], "FP32")
    tensor.set_data_from_numpy(np.zeros(2, np.float32), binary_data=binary)
    return tensor


def test_embeddings_come_as_an_array(cloud: str, tiny_models: ModuleType) -> None:
    with triton.InferenceServerClient(cloud) as client:
        vectors = []
        for binary in (False, True):
            outputs = [triton.InferRequestedOutput("embedding", binary_data=binary)]
            tensor = texts(list(tiny_models.TEXTS[:2]), binary=binary)
            vectors.append(client.infer("tiny-embedder", [tensor], outputs=outputs).as_numpy("embedding"))
    assert vectors[0].shape == vectors[1].shape
    assert vectors[0].dtype == vectors[1].dtype == np.float32
    np.testing.assert_array_equal(vectors[0], vectors[1])
