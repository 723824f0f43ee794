"""The OpenAPI document is that of the routes, the types and the replies that there are."""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import jsonschema
import pytest

from edgewise.store import SqliteStore
from edgewise.telemetry import Metrics
from edgewise.wire import openapi
from edgewise.wire.door import FrontDoor, front_door
from edgewise.wire.operations import OPERATIONS


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgewise_fake_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load(Path(__file__).parent / "fake_service.py")
WIRE = Path(__file__).parents[2] / "wire"


async def done(body, tenant, headers, receive, send) -> None:
    """A further hot route."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})


POSTS = {f"/v2/repository/{path}": done for path in ("index", "models/newswire/load", "models/newswire/unload")}
POSTS["/v1/verify"] = done


class House:
    """A door with its document."""

    def __init__(self, *, task: str = "feature-extraction", **options: object) -> None:
        self.service = fakes.FakeService()
        self.service.make = lambda request: fakes.make_answer(request.id, (0.5, 1.0))
        self.store = SqliteStore(":memory:")
        options = {"answers": self.store.answers, "metrics": Metrics(), "posts": POSTS, **options}
        self.app: FrontDoor = front_door(fakes.served(self.service, task=task), **options)
        transport = httpx.ASGITransport(self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://door")

    async def document(self) -> dict:
        response = await self.client.get("/openapi.json")
        assert response.status_code == 200
        return response.json()


def operations(document: dict) -> Iterator[tuple[str, str, dict]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def filled(path: str) -> str:
    """The path with what the fake serves in place of its parameters."""
    return path.format(model="newswire", version="sha256:1", id="7")


async def test_every_operation_of_the_document_is_a_route() -> None:
    house = House()
    for path, method, _ in operations(await house.document()):
        response = await house.client.request(method, filled(path), content=b"{}")
        assert response.status_code != 405, path
        assert response.status_code != 404 or "nothing at this path" not in response.text, path


async def test_every_route_is_an_operation_of_the_document() -> None:
    house = House()
    told = {(path, method) for path, method, _ in operations(await house.document())}
    pages = {
        (route.path.replace("/v1/models/{id}", "/v1/models/{model}"), method.lower())
        for route in house.app._pages.routes
        for method in route.methods - {"HEAD"}
    }
    hot = {
        (path, "post")
        for path in (
            "/v1/predict",
            "/v1/embeddings",
            *(f"/v2/models/{{model}}{v}/infer" for v in ("", "/versions/{version}")),
        )
        if house.app._inference.at(filled(path)) is not None
    }
    further = {(path.replace("newswire", "{model}"), "post") for path in POSTS}
    assert len(hot) == 4
    assert told == pages | hot | further | {("/healthz", "get")}


async def test_the_front_page_lists_what_there_is() -> None:
    house = House()
    paths = (await house.document())["paths"]
    page = (await house.client.get("/")).json()
    assert set(page["endpoints"]) - {"/v1/stream"} <= set(paths)


async def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for _, _, operation in operations(await House().document())]
    assert len(set(names)) == len(names) == len(OPERATIONS)


async def test_what_is_not_there_is_not_told() -> None:
    house = House(task="text-classification", posts=(), answers=None)
    paths = (await house.document())["paths"]
    assert "/v1/predict" in paths
    assert not [path for path in paths if "embeddings" in path or "repository" in path or "answers" in path]


async def test_every_status_that_is_raised_is_told_of() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in WIRE.glob("*.py"))
    raised = {int(status) for status in re.findall(r"(?:Fault|__init__)\(\s*(\d{3}),", source)}
    raised |= {int(status) for status in re.findall(r"\(\w+Error, (\d{3}), ", source)}
    # 405 belongs to no operation, and nobody is left to see 499.
    assert raised - {405, 499} <= set(openapi._FAULTS)


async def test_schemas_are_schemas_and_lead_somewhere() -> None:
    document = await House(api_keys=None).document()
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    names = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert names == set(schemas)


def validator(document: dict, name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **document})


async def test_replies_are_what_is_told() -> None:
    house = House()
    house.store.answers.put("public", fakes.make_answer("7"))
    document = await house.document()
    bodies = {
        "/v1/predict": {"inputs": "x"},
        "/v1/embeddings": {"model": "newswire", "input": "x"},
        "infer": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}]},
    }
    for path, method, operation in operations(document):
        body = bodies["infer"] if path.endswith("/infer") else bodies.get(path, {})
        response = await house.client.request(method, filled(path), json=body if method == "post" else None)
        assert response.status_code == 200, (path, response.text)
        told = operation["responses"]["200"]
        kind = response.headers["content-type"].split(";")[0]
        assert kind in told["content"], path
        if kind == "application/json" and path not in POSTS:
            schema = {**told["content"][kind]["schema"], "components": document["components"]}
            if "repository" not in path:
                jsonschema.Draft202012Validator(schema).validate(response.json())
        ours = {name for name in response.headers if name.startswith("x-edgewise")}
        assert ours <= set(told.get("headers", {})), path


async def test_errors_are_what_is_told() -> None:
    house = House()
    document = await house.document()
    for path, body in (
        ("/v1/predict", {"inputs": 3}),
        ("/v1/embeddings", {"model": "newswire"}),
        ("/v2/models/{model}/infer", {}),
    ):
        response = await house.client.post(filled(path), json=body)
        assert response.status_code == 400
        schema = document["paths"][path]["post"]["responses"]["400"]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(response.json())


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"inputs": "x"}, True),
        ({"inputs": "x", "id": "a:b", "budget_ms": 5, "mode": "guarded", "attributes": {"a": "b"}}, True),
        ({"inputs": "x", "mode": None, "model": "newswire", "task": "feature-extraction"}, True),
        ({}, False),
        ({"inputs": {"image": "aGk="}}, False),  # the model reads texts
        ({"inputs": "x", "id": "a b"}, False),
        ({"inputs": "x", "budget_ms": 0}, False),
        ({"inputs": "x", "budget_ms": 600_001}, False),
        ({"inputs": "x", "mode": "wish"}, False),
        ({"inputs": "x", "model": "other"}, False),
        ({"inputs": "x", "session": ""}, False),
        ({"inputs": "x", "more": 1}, False),
        ({"inputs": "x", "attributes": {f"{index}": "" for index in range(33)}}, False),
    ],
)
async def test_a_body_fits_the_document_where_the_door_takes_it(body: dict, fits: bool) -> None:
    house = House()
    document = await house.document()
    assert validator(document, "PredictRequest").is_valid(body) is fits
    response = await house.client.post("/v1/predict", json=body)
    if "image" not in str(body):  # of the fake, which reads anything
        assert (response.status_code == 200) is fits


async def test_the_examples_of_bodies_are_answered() -> None:
    house = House()
    document = await house.document()
    tried = 0
    for path, method, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" in content:
            schema = {**content["schema"], "components": document["components"]}
            jsonschema.Draft202012Validator(schema).validate(content["example"])
            response = await house.client.request(method, filled(path), json=content["example"])
            assert response.status_code == 200, (path, response.text)
            tried += 1
    assert tried == 4


async def test_keys_are_told_where_there_are_any() -> None:
    house = House(api_keys={"secret": "acme"})
    house.client.headers["x-api-key"] = "secret"
    document = await house.document()
    assert document["security"] == [{"bearer": []}, {"key": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert "401" in document["paths"]["/v1/predict"]["post"]["responses"]
    assert "401" not in document["paths"]["/healthz"]["get"]["responses"]
    assert "security" not in await House().document()
