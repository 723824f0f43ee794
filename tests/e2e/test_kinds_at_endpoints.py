"""Each kind of model at each endpoint, over sockets: answered where it belongs, and where not told where it does."""

import json
from contextlib import ExitStack
from typing import NamedTuple

import httpx
import pytest
from websockets.sync.client import connect

from edgewise.config import Config, parse_config
from edgewise.wire.serve import BackgroundServer
from edgewise.wiring.cloud import CloudModel, CloudSettings, build_cloud
from edgewise.wiring.gateway import build_gateway

KINDS = ("generator", "text", "embedder", "tagger")
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["wheat"]}
BINARY = json.dumps({"inputs": [{**TENSOR, "data": None, "parameters": {"binary_data_size": 9}}]})
BINARY = BINARY.replace('"data": null, ', "").encode()
SAID = [{"role": "user", "content": "a"}]
ASK_TEXTS = "Ask it at /v1/chat/completions or /v1/completions."
FOR_LABELS = ("predict", "events", "infer", "infer a version", "infer in binary")
FOR_TEXTS = ("chat", "chat in pieces", "text", "text in pieces")


class Asked(NamedTuple):
    """A served model, and where."""

    url: str
    name: str
    version: str

    def post(self, endpoint: str) -> httpx.Response:
        """What it says at one of the endpoints."""
        model, body = f"/v2/models/{self.name}", {"model": self.name}
        chat, text = {**body, "messages": SAID, "max_tokens": 2}, {**body, "prompt": "a", "max_tokens": 2}
        length = {"inference-header-content-length": str(len(BINARY))}
        verify = {"session": "s", "tokenizer": "sha256:0", "tokens": [5, 6], "position": 0, "draft": [7]}
        path, content = {
            "predict": ("/v1/predict", {"json": {**body, "inputs": "wheat"}}),
            "events": (
                "/v1/predict",
                {"json": {**body, "inputs": "wheat"}, "headers": {"accept": "text/event-stream"}},
            ),
            "infer": (f"{model}/infer", {"json": {"inputs": [TENSOR]}}),
            "infer a version": (f"{model}/versions/{self.version}/infer", {"json": {"inputs": [TENSOR]}}),
            "infer in binary": (f"{model}/infer", {"content": BINARY + b"\5\0\0\0wheat", "headers": length}),
            "embeddings": ("/v1/embeddings", {"json": {**body, "input": "wheat"}}),
            "chat": ("/v1/chat/completions", {"json": chat}),
            "chat in pieces": ("/v1/chat/completions", {"json": {**chat, "stream": True}}),
            "text": ("/v1/completions", {"json": text}),
            "text in pieces": ("/v1/completions", {"json": {**text, "stream": True}}),
            "verify": ("/v1/verify", {"json": {**body, **verify}}),
        }[endpoint]
        return httpx.post(self.url + path, **content)

    def say(self, **message: object) -> dict:
        """The first word to a message over the WebSocket."""
        with connect(f"{self.url.replace('http', 'ws', 1)}/v1/stream") as socket:
            socket.send(json.dumps({"id": "1", "model": self.name, **message}))
            return json.loads(socket.recv(timeout=30))


@pytest.fixture(scope="module")
def gateways(request):
    with ExitStack() as held:
        found = {}
        for kind in KINDS:
            bundle = str(request.getfixturevalue(f"tiny_{kind}_bundle"))
            gateway = build_gateway(parse_config({"edge": {"bundle": bundle, "mode": "edge_only"}}), held)
            server = held.enter_context(BackgroundServer(gateway.app))
            found[kind] = Asked(server.url, gateway.info.name, gateway.info.version)
        yield found


@pytest.fixture(scope="module")
def services(tiny_checkpoints, tmp_path_factory):
    """A cloud service of a language model and a classifier."""
    folder = tmp_path_factory.mktemp("checkpoints")
    models = (
        CloudModel("writer", tiny_checkpoints.causal_checkpoint(folder / "writer")),
        CloudModel("labels", tiny_checkpoints.text_checkpoint(folder / "labels")),
    )
    cloud = build_cloud(CloudSettings(models, threads=1, replicas=0), Config())
    with BackgroundServer(cloud.app) as server:
        infos = {info.name: info for info in cloud.infos()}
        yield {
            kind: Asked(server.url, name, infos[name].version)
            for kind, name in (("generator", "writer"), ("text", "labels"))
        }


def refusal(reply: httpx.Response) -> str:
    """What an endpoint says in the words of its protocol."""
    error = reply.json()["error"]
    if isinstance(error, str):
        return error
    assert error.get("param", error.get("field")) == "model"
    return f"{error['message']} {error['remedy']}" if "remedy" in error else error["message"]


def check_a_generator(model: Asked) -> None:
    for endpoint in (*FOR_LABELS, "embeddings"):
        reply = model.post(endpoint)
        assert reply.status_code == 400, endpoint
        assert refusal(reply) == f"model: {model.name} writes texts, and is not asked here. {ASK_TEXTS}"
    error = model.say(type="predict", inputs="wheat")["error"]
    assert (error["field"], error["remedy"]) == ("model", 'Send a message of the type "generate".')
    for endpoint in FOR_TEXTS:
        assert model.post(endpoint).status_code == 200, endpoint
    assert model.say(type="generate", messages=SAID)["type"] == "token"


def check_what_writes_nothing(model: Asked, place: str) -> None:
    for endpoint in FOR_TEXTS:
        reply = model.post(endpoint)
        assert reply.status_code == 400, endpoint
        assert refusal(reply).endswith(f" and writes no text. Ask it at {place}.")
    error = model.say(type="generate", messages=SAID)["error"]
    assert (error["field"], error["remedy"]) == ("model", 'Send a message of the type "predict".')
    for endpoint in FOR_LABELS:
        assert model.post(endpoint).status_code == 200, endpoint
    assert model.say(type="predict", inputs="wheat")["type"] == "answer"


@pytest.mark.parametrize("kind", KINDS)
def test_a_gateway_of_one_kind_refuses_what_is_meant_for_another(gateways, kind):
    model = gateways[kind]
    if kind == "generator":
        check_a_generator(model)
    else:
        check_what_writes_nothing(model, "/v1/embeddings" if kind == "embedder" else "/v1/predict")
    assert model.post("embeddings").status_code == (200 if kind == "embedder" else 400)
    assert model.post("verify").status_code == 404, "drafts are ruled on by cloud services alone"


@pytest.mark.slow
def test_a_cloud_service_of_both_kinds_does_so_too(services):
    check_a_generator(services["generator"])
    check_what_writes_nothing(services["text"], "/v1/predict")
    reply = services["text"].post("verify")
    assert (reply.status_code, reply.json()["error"]["message"]) == (404, "The model labels takes no drafts.")
