"""Who rules on drafts while models are loaded, swapped and unloaded: nobody's draft fails, and nothing is kept."""

import asyncio
import contextlib
import gc
import threading
import time
import weakref

import numpy as np
import pytest

from edgewise.cloud.repository import ModelRepository
from edgewise.cloud.verifier import Verifier
from edgewise.contracts import ServiceInfo
from edgewise.errors import CloudUnreachableError
from edgewise.wire.faults import Fault
from edgewise.wire.verify import VERIFY, VerifyPrompt, VerifyReference, VerifyRequest
from edgewise.wiring import verifying
from edgewise.wiring.verifying import RulingService, ruling_routes


class Target:
    """Says 3, once its gate is open."""

    context, vocabulary, ends = 64, 8, frozenset()

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()

    def begin(self):
        return []

    def forward(self, cache, ids, last):
        self.started.set()
        self.gate.wait()
        return np.tile(np.eye(8, dtype=np.float32)[3], (last, 1))

    def crop(self, cache, length):
        pass


class Service:
    """A language model that says nothing, or another kind."""

    def __init__(self, name):
        self.info = ServiceInfo(name=name, version="1", task="t", labels=(), input="text", role="cloud")
        self.lives = False

    def ready(self):
        return None

    @contextlib.asynccontextmanager
    async def lifespan(self):
        self.lives = True
        yield
        self.lives = False

    async def events(self, request):
        yield request

    async def respond(self, request):
        return request


@pytest.fixture
def targets():
    return []


@pytest.fixture
async def repository(targets):
    async def writer(name):
        targets.append(Target())
        reference = VerifyReference(name, "1")
        made = Verifier(targets[-1], reference=reference, tokenizer="t", read=lambda prompt: [1, 2], clock=time)
        return RulingService(Service(name), made)

    async def classifier():
        return Service("labels")

    openers = {"one": lambda: writer("one"), "two": lambda: writer("two"), "labels": classifier}
    repository = ModelRepository(openers)
    async with repository.lifespan():
        yield repository
        for target in targets:
            target.gate.set()


@pytest.fixture
def rule(repository, monkeypatch):
    """Looks a model up, and gives what rules on a draft for it later."""
    monkeypatch.setattr(verifying.verify, "verify_routes", lambda find: {VERIFY: find})
    find = ruling_routes(repository.models)[VERIFY]

    def looked_up(session="s", name=None, **fields):
        asked = VerifyRequest(session=session, tokenizer="t", **(fields or {"prompt": VerifyPrompt(text="a")}))
        return find(name).verify("tenant", asked)

    return looked_up


async def started(target):
    await asyncio.to_thread(target.started.wait)


async def test_a_model_rules_and_answers_while_it_is_loaded(repository, rule):
    assert (await rule()).reference.name == "one"
    assert (await rule(name="two")).reference.name == "two"
    service = repository.models()["two"].service
    assert await service.respond("x") == "x"
    assert [event async for event in service.events("x")] == ["x"]
    assert repository.models()["two"].ready() is None
    with pytest.raises(Fault, match="unknown"):
        rule(name="three")
    with pytest.raises(Fault, match="takes no drafts"):
        await rule(name="labels")


async def test_loading_the_same_version_again_fails_no_draft(repository, rule, targets):
    old = targets[0]
    old.gate.clear()
    computing, queued = asyncio.create_task(rule("a")), asyncio.create_task(rule("b"))
    await started(old)
    looked_up = rule("c")
    await repository.load("one")
    old.gate.set()
    replies = [await computing, await queued, await looked_up, await rule("d")]
    assert [reply.token for reply in replies] == [3] * 4
    with pytest.raises(Fault, match="session_lost"):  # told again, it is ruled on
        await rule("a", position=3)


async def test_an_unloaded_model_is_let_go_of(repository, rule, targets):
    await rule(name="two")
    two = weakref.ref(targets.pop(1))
    looked_up = rule(name="two")
    await repository.unload("two")
    for _ in range(20):
        await asyncio.sleep(0)
    with pytest.raises(CloudUnreachableError):
        await looked_up
    del looked_up
    async with asyncio.timeout(20):
        while two() is not None:  # the thread that computed ends in its own time
            await asyncio.sleep(0.001)
            gc.collect()
    with pytest.raises(Fault, match="unknown"):
        rule(name="two")
