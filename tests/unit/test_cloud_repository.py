"""Several models, swapped under load: nobody's request fails, and each answer names the version that computed it."""

import asyncio
import contextlib

import httpx
import msgspec
import pytest

from edgewise.cloud.repository import ModelRepository
from edgewise.contracts import (
    Action,
    Answer,
    Answered,
    AnswerService,
    Decision,
    Done,
    Reason,
    Request,
    ServiceInfo,
    Source,
    Status,
    answer,
)
from edgewise.errors import CheckpointError, CloudUnreachableError, ConfigError, InputError
from edgewise.telemetry import Metrics
from edgewise.wire.door import front_door
from edgewise.wire.repository import repository_routes

DECISION = Decision(action=Action.LOCAL, reason=Reason.NO_ROUTER, policy="engine")


class ToyService:
    """Answers with its version once its gate is open, and only while it lives; a double of `EngineService`."""

    def __init__(self, name, version):
        self.info = ServiceInfo(name=name, version=version, task="t", labels=("a",), input="text", role="cloud")
        self.gate = asyncio.Event()
        self.gate.set()
        self.alive = self.closed = False
        self.trouble = None
        self.answering = 0

    def ready(self):
        return self.trouble

    @contextlib.asynccontextmanager
    async def lifespan(self):
        self.alive = True
        yield
        assert self.answering == 0, "closed over somebody's head"
        self.alive, self.closed = False, True

    async def respond(self, request):
        assert self.alive
        self.answering += 1
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            assert self.alive
        finally:
            self.answering -= 1
        return Answer(
            id=request.id,
            output=self.info.name,
            status=Status.FINAL,
            source=Source.CLOUD,
            decision=DECISION,
            timings_ms={"total": 1.0},
            model_digest=self.info.version,
        )

    async def events(self, request):
        yield Answered(await self.respond(request))
        yield Done(request.id)


class Shelf:
    """Where services are opened from; every one of them is kept."""

    def __init__(self, *names):
        self.opened = {name: [] for name in names}
        self.error = None
        self.repository = ModelRepository({name: lambda name=name: self.open(name) for name in names})

    async def open(self, name):
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        made = ToyService(name, f"{len(self.opened[name]) + 1}")
        self.opened[name].append(made)
        return made


def served(repository, name="one"):
    return repository.models()[name]


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_models_are_served_in_the_order_they_were_given():
    shelf = Shelf("one", "two")
    assert shelf.repository.models() == {}
    assert [line.state for line in shelf.repository.index()] == ["UNAVAILABLE"] * 2
    async with shelf.repository.lifespan():
        assert list(shelf.repository.models()) == ["one", "two"]
        service: AnswerService = served(shelf.repository, "two").service
        found = await answer(service, Request(inputs="x"))
        assert (found.output, found.model_digest) == ("two", "1")
        assert [(line.name, line.version, line.state) for line in shelf.repository.index()] == [
            ("one", "1", "READY"),
            ("two", "1", "READY"),
        ]
    assert all(services[0].closed for services in shelf.opened.values())


async def test_a_swap_under_load_fails_nobody_and_changes_the_version_once():
    shelf = Shelf("one")
    stop = asyncio.Event()

    async def caller(found):
        while not stop.is_set():
            found.append((await served(shelf.repository).service.respond(Request(inputs="x"))).model_digest)

    async with shelf.repository.lifespan():
        versions = [[] for _ in range(16)]
        callers = [asyncio.create_task(caller(found)) for found in versions]
        await settle()
        await shelf.repository.load("one")
        await settle()
        stop.set()
        await asyncio.gather(*callers)
        for found in versions:
            assert found == sorted(found)
            assert set(found) == {"1", "2"}
        assert shelf.opened["one"][0].closed
        assert not shelf.opened["one"][1].closed


async def test_whoever_the_old_version_has_is_answered_by_it():
    shelf = Shelf("one")
    async with shelf.repository.lifespan():
        (old,) = shelf.opened["one"]
        old.gate.clear()
        early = asyncio.create_task(answer(served(shelf.repository).service, Request(inputs="x")))
        await settle()
        await shelf.repository.load("one")
        late = await answer(served(shelf.repository).service, Request(inputs="x"))
        assert late.model_digest == "2"
        assert old.alive
        old.gate.set()
        assert (await early).model_digest == "1"
        await settle()
        assert old.closed


async def test_who_looked_the_model_up_before_the_swap_is_answered_after_it():
    shelf = Shelf("one")
    async with shelf.repository.lifespan():
        looked_up = served(shelf.repository).service
        await shelf.repository.load("one")
        await shelf.repository.load("one")
        await settle()
        assert [service.closed for service in shelf.opened["one"]] == [True, True, False]
        assert (await looked_up.respond(Request(inputs="x"))).model_digest == "3"
        assert (await answer(looked_up, Request(inputs="x"))).model_digest == "3"


async def test_a_caller_who_leaves_is_no_longer_waited_for():
    shelf = Shelf("one")
    async with shelf.repository.lifespan():
        (old,) = shelf.opened["one"]
        old.gate.clear()
        leaves = asyncio.create_task(answer(served(shelf.repository).service, Request(inputs="x")))
        await settle()
        await shelf.repository.load("one")
        leaves.cancel()
        await settle()
        assert old.closed


async def test_whoever_stops_listening_ends_the_work_at_once():
    shelf = Shelf("one")
    async with shelf.repository.lifespan():
        (service,) = shelf.opened["one"]
        closed = []

        async def events(request):
            try:
                yield Done(request.id)
                yield Done(request.id)
            finally:
                closed.append(service)

        service.events = events
        begun = served(shelf.repository).service.events(Request(inputs="x"))
        await anext(begun)
        await begun.aclose()
        assert closed == [service]


async def test_a_load_that_fails_leaves_the_old_version_serving():
    shelf = Shelf("one")
    async with shelf.repository.lifespan():
        shelf.error = CheckpointError("It is broken.", "Write it again.")
        with pytest.raises(CheckpointError):
            await shelf.repository.load("one")
        (line,) = shelf.repository.index()
        assert (line.version, line.state, line.reason) == ("1", "READY", "It is broken. Write it again.")
        assert (await answer(served(shelf.repository).service, Request(inputs="x"))).model_digest == "1"
        shelf.error = None
        await shelf.repository.load("one")
        assert shelf.repository.index()[0].reason == ""


async def test_a_model_that_cannot_be_loaded_at_the_start_closes_those_that_were():
    shelf = Shelf("one", "two")
    opened = shelf.open

    async def second_fails(name):
        if name == "two":
            raise CheckpointError("It is broken.")
        return await opened(name)

    shelf.open = second_fails
    with pytest.raises(CheckpointError):
        async with shelf.repository.lifespan():
            pass
    assert shelf.opened["one"][0].closed


async def test_a_model_is_unloaded_and_loaded_again_and_the_default_stays():
    shelf = Shelf("one", "two")
    async with shelf.repository.lifespan():
        looked_up = served(shelf.repository, "two").service
        await shelf.repository.unload("two")
        assert list(shelf.repository.models()) == ["one"]
        await settle()
        with pytest.raises(CloudUnreachableError, match="two was unloaded"):
            await looked_up.respond(Request(inputs="x"))
        with pytest.raises(InputError, match="default"):
            await shelf.repository.unload("one")
        await shelf.repository.load("two")
        assert list(shelf.repository.models()) == ["one", "two"]
        for work in (shelf.repository.load, shelf.repository.unload):
            with pytest.raises(InputError, match="no model 'three'"):
                await work("three")


async def test_loads_of_one_model_wait_for_each_other():
    shelf = Shelf("one")
    async with shelf.repository.lifespan():
        await asyncio.gather(*(shelf.repository.load("one") for _ in range(3)))
        await settle()
        assert [service.closed for service in shelf.opened["one"]] == [True, True, True, False]
        assert served(shelf.repository).info.version == "4"


async def test_a_reload_goes_on_after_a_model_that_fails(caplog):
    shelf = Shelf("one", "two")
    async with shelf.repository.lifespan():
        opened = shelf.open

        async def first_fails(name):
            if name == "one":
                raise CheckpointError("It is broken.")
            return await opened(name)

        shelf.open = first_fails
        await shelf.repository.reload()
        assert [found.info.version for found in shelf.repository.models().values()] == ["1", "2"]
    assert "It is broken." in caplog.text


async def test_a_service_has_a_model():
    with pytest.raises(ConfigError):
        ModelRepository({})


# Over HTTP.


@contextlib.asynccontextmanager
async def door(shelf, *, admins=("ops",), keys=True):
    app = front_door(
        shelf.repository.models,
        answers=None,
        metrics=Metrics(),
        api_keys={"k-ops": "ops", "k-shop": "shop"} if keys else None,
        posts=repository_routes(shelf.repository, frozenset(admins)),
    )
    async with (
        shelf.repository.lifespan(),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://cloud.test") as client,
    ):
        yield client


OPS = {"x-api-key": "k-ops"}
SHOP = {"x-api-key": "k-shop"}


async def test_an_admin_loads_and_unloads_over_http():
    shelf = Shelf("one", "two")
    async with door(shelf) as client:
        index = (await client.post("/v2/repository/index", headers=SHOP)).json()
        assert index[0] == {"name": "one", "version": "1", "state": "READY", "reason": ""}
        loaded = await client.post("/v2/repository/models/one/load", headers=OPS, json={})
        assert loaded.status_code == 200
        reply = await client.post("/v1/predict", headers=SHOP, json={"inputs": "x"})
        assert reply.json()["model_digest"] == "2"
        body = {"parameters": {"unload_dependents": False}}
        assert (await client.post("/v2/repository/models/two/unload", headers=OPS, json=body)).status_code == 200
        ready = await client.post("/v2/repository/index", headers=SHOP, json={"ready": True})
        assert [line["name"] for line in ready.json()] == ["one"]
        gone = await client.post("/v2/models/two/infer", headers=SHOP, content=b"{}")
        assert gone.status_code == 404


@pytest.mark.parametrize("action", ["load", "unload"])
async def test_nobody_else_may(action):
    shelf = Shelf("one", "two")
    async with door(shelf) as client:
        refused = await client.post(f"/v2/repository/models/two/{action}", headers=SHOP)
        assert refused.status_code == 403
        assert "--admins" in refused.json()["error"]
        assert (await client.post(f"/v2/repository/models/two/{action}")).status_code == 401
    async with door(Shelf("one", "two"), admins=(), keys=False) as client:
        refused = await client.post(f"/v2/repository/models/two/{action}")
        assert refused.status_code == 403
        assert "--allow-load" in refused.json()["error"]
    assert {name: len(services) for name, services in shelf.opened.items()} == {"one": 1, "two": 1}


@pytest.mark.parametrize(
    "body",
    [
        {"parameters": {"config": "{}"}},
        {"parameters": {"file:1/model.onnx": "AAAA"}},
        {"parameters": {"path": "/etc"}},
        {"path": "/etc"},
        {"parameters": []},
        [],
    ],
)
async def test_nothing_but_the_name_is_taken_from_a_request(body):
    shelf = Shelf("one")
    async with door(shelf) as client:
        refused = await client.post("/v2/repository/models/one/load", headers=OPS, json=body)
        assert refused.status_code == 400
        assert "error" in refused.json()
    assert len(shelf.opened["one"]) == 1


async def test_what_cannot_be_changed_is_said_in_the_protocols_shape():
    shelf = Shelf("one")
    async with door(shelf) as client:
        assert (await client.post("/v2/repository/models/none/load", headers=OPS)).status_code == 404
        kept = await client.post("/v2/repository/models/one/unload", headers=OPS)
        assert (kept.status_code, "default" in kept.json()["error"]) == (400, True)
        shelf.error = CheckpointError("It is broken.", "Write it again.")
        failed = await client.post("/v2/repository/models/one/load", headers=OPS)
        assert (failed.status_code, failed.json()["error"]) == (400, "It is broken. Write it again.")
        assert (await client.get("/v2/repository/index", headers=OPS)).status_code == 405
        index = (await client.post("/v2/repository/index", headers=OPS)).json()
        assert index == [msgspec.to_builtins(shelf.repository.index()[0])]


async def test_an_answer_that_overtook_a_swap_names_the_version_that_computed_it():
    shelf = Shelf("one")
    async with shelf.repository.lifespan():
        looked_up = shelf.repository.models()
        await shelf.repository.load("one")
        await settle()
        app = front_door(lambda: looked_up, answers=None, metrics=Metrics())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://cloud.test") as client:
            body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["x", "y"]}]}
            reply = (await client.post("/v2/models/one/infer", json=body)).json()
    assert looked_up["one"].info.version == "1"
    assert (reply["model_version"], reply["parameters"]["model_digest"]) == ("2", "2")


async def test_only_admins_are_told_why_a_model_is_not_ready():
    shelf = Shelf("one")
    async with door(shelf) as client:
        shelf.error = CheckpointError("/srv/models/one is no folder.", "Give one.")
        with pytest.raises(CheckpointError):
            await shelf.repository.load("one")
        (told,) = (await client.post("/v2/repository/index", headers=OPS)).json()
        (untold,) = (await client.post("/v2/repository/index", headers=SHOP)).json()
    assert "/srv/models/one" in told["reason"]
    assert untold == {**told, "reason": ""}
