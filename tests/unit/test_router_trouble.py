"""The flow when things go wrong at the worst moment: what is promised, owed and audited stays so."""

import asyncio
import importlib.util
import logging
import sys
import threading
from pathlib import Path

import pytest

from edgewise.contracts import Answered, CloudReply, Done, Mode, Reason, Reference, Request, Source, Status
from edgewise.errors import (
    CloudRefusedError,
    CloudResponseError,
    CloudThrottledError,
    CloudTimeoutError,
    InputError,
    OutboxFullError,
    RequestError,
    outline,
)
from edgewise.router import RouterSettings

_SPEC = importlib.util.spec_from_file_location("hybrid_fakes", Path(__file__).parent / "test_router_hybrid.py")
fakes = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = fakes
_SPEC.loader.exec_module(fakes)
CONFIDENT, DOUBTFUL, router = fakes.CONFIDENT, fakes.DOUBTFUL, fakes.router
NEWER = Reference("cloud", "sha256:newer")


class MoodyCloud(fakes.ScriptedCloud):
    """A cloud that raises `moods[text]` for some texts."""

    def __init__(self, moods=None, **options):
        super().__init__(**options)
        self.moods = moods or {}

    async def predict(self, request, *, timeout_s):
        if request.inputs in self.moods:
            self.calls += 1
            raise self.moods[request.inputs]
        return await super().predict(request, timeout_s=timeout_s)


class GatedEdge(fakes.ScriptedEdge):
    """An edge model that computes confident items only when the gate opens."""

    def __init__(self):
        super().__init__()
        self.started, self.gate = threading.Event(), threading.Event()

    def _one(self, item):
        if item == CONFIDENT:
            self.started.set()
            assert self.gate.wait(10)
        return super()._one(item)


class SmallOutbox(fakes.DictStore):
    """An outbox with room for one."""

    def put(self, *args, **fields):
        if len(args) == 1 and self.owed:
            raise OutboxFullError("full")
        return super().put(*args, **fields)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the parts under test set no event for this
            await asyncio.sleep(0)


async def test_a_certificate_voided_while_the_edge_computes_covers_nothing_any_more():
    edge, cloud, cache = GatedEdge(), fakes.ScriptedCloud(reference=NEWER), fakes.DictCache()
    flow = router(cloud, edge=edge, cache=cache, settings=RouterSettings(inference_threads=2, cool_down_s=0.01))
    computing = asyncio.ensure_future(flow.answer(Request(inputs=CONFIDENT)))
    await asyncio.to_thread(edge.started.wait, 10)
    await flow.answer(Request(inputs=DOUBTFUL))
    assert flow.certificate is None
    edge.gate.set()
    answer = await computing
    assert (answer.source, answer.decision.reason) == (Source.CLOUD, Reason.CERTIFICATE_VOID)
    again = await flow.answer(Request(inputs=CONFIDENT))
    assert again.output == "b", "no edge answer was left in the cache"


@pytest.mark.parametrize("kind", [CloudRefusedError, CloudResponseError, CloudTimeoutError, CloudThrottledError])
@pytest.mark.parametrize("audited", [False, True])
async def test_what_a_cloud_says_of_an_item_stays_out_of_the_log(caplog, kind, audited):
    """It may quote the item."""
    said = kind("answered with status 400: 'John Doe has the flu' is no answer")
    said.status = 400
    item = CONFIDENT if audited else DOUBTFUL
    cloud, store = MoodyCloud({item: said}), fakes.DictStore()
    more = {"audits": store, "uniform": lambda: 0.0} if audited else {}
    settings = RouterSettings(cool_down_s=0.01, audit_verdict_deadline_s=0.0, attempts=2)
    flow = router(cloud, outbox=store, answers=store, settings=settings, **more)
    with caplog.at_level(logging.DEBUG, "edgewise"):
        await flow.answer(Request(inputs=item, id="r"))
        await until(lambda: outline(said) in caplog.text)
        await flow.aclose()
    assert f"{kind.__name__}, status 400" in caplog.text
    assert "John Doe" not in caplog.text


async def test_a_refused_item_keeps_its_provisional_answer_and_does_not_count_against_the_cloud(caplog):
    cloud, store = MoodyCloud({DOUBTFUL: CloudRefusedError("too large")}), fakes.DictStore()
    flow = router(cloud, outbox=store, answers=store, settings=RouterSettings(failures_to_open=1))
    events = [event async for event in flow.events(Request(inputs=DOUBTFUL, id="r"))]
    assert [type(event) for event in events] == [Answered, Done]
    assert events[0].answer.status is Status.PROVISIONAL
    assert events[0].answer.decision.reason is Reason.CLOUD_REFUSED
    levels = [record.levelno for record in caplog.records if "CloudRefusedError" in record.getMessage()]
    assert levels == [logging.WARNING], "what a client sends is no trouble of the operator's"
    assert events[1] == Done("r", pending=False)
    assert store.get("public", "r") == events[0].answer, "a poll finds it"
    assert await flow.answer(Request(inputs=DOUBTFUL, id="r")) == events[0].answer
    assert len(store) == 0
    assert (await flow.answer(Request(inputs="0.55 0.45"))).source is Source.CLOUD, "the breaker stayed closed"


@pytest.mark.parametrize("trouble", [CloudRefusedError("never"), InputError("not to encode"), RuntimeError("a bug")])
async def test_one_owed_item_that_cannot_be_answered_does_not_keep_the_others_waiting(trouble):
    cloud, store = MoodyCloud(), fakes.DictStore()
    cloud.down = True
    flow = router(cloud, outbox=store, answers=store, settings=RouterSettings(failures_to_open=1, cool_down_s=0.001))
    for i, text in enumerate(["0.51 0.49", "0.6 0.4", "0.55 0.45"]):
        assert (await flow.answer(Request(inputs=text, id=str(i)))).status is Status.PROVISIONAL
    cloud.moods = {"0.51 0.49": trouble}
    cloud.down = False
    for i in (1, 2):
        assert (await store.wait_final("public", str(i), timeout_s=10)).output == "b"
    if not isinstance(trouble, RuntimeError):
        await until(lambda: len(store) == 0)
        assert store.get("public", "0").decision.reason is Reason.CLOUD_REFUSED
    else:
        assert [request.id for request in store.pending(9)] == ["0"]
    await flow.aclose()


async def test_a_full_outbox_does_not_keep_the_breaker_open():
    cloud, store = MoodyCloud(), SmallOutbox()
    cloud.down = True
    flow = router(cloud, outbox=store, answers=store, settings=RouterSettings(failures_to_open=1, cool_down_s=0.001))
    await flow.answer(Request(inputs=DOUBTFUL, id="1"))
    cloud.moods = {DOUBTFUL: RuntimeError("poison")}
    cloud.down = False
    await until(lambda: cloud.probed.is_set())
    answer = None
    while answer is None:
        try:
            answer = await flow.answer(Request(inputs="0.55 0.45"))
        except OutboxFullError:
            await asyncio.sleep(0.001)
    assert answer.source is Source.CLOUD
    await flow.aclose()


async def test_a_breaker_opened_by_audits_alone_closes_again():
    cloud, store = fakes.ScriptedCloud("a"), fakes.DictStore()
    cloud.down = True
    flow = router(
        cloud, audits=store, uniform=lambda: 0.0, settings=RouterSettings(failures_to_open=1, cool_down_s=0.001)
    )
    await flow.answer(Request(inputs=CONFIDENT))
    await until(lambda: cloud.calls == 1)
    cloud.down = False
    await until(lambda: cloud.probed.is_set())
    async with asyncio.timeout(10):
        while len(store.audits) < 3:
            await flow.answer(Request(inputs=CONFIDENT))
    assert await store.settled() == [(False, False)] * 3, "the first waited until the cloud was back"


async def test_a_cloud_that_comes_up_changed_is_found_out_without_being_asked():
    cloud = fakes.ScriptedCloud(reference=NEWER)
    cloud.down = True
    flow = router(cloud, settings=RouterSettings(cool_down_s=0.001))
    async with flow.running():
        assert (await flow.answer(Request(inputs=CONFIDENT))).source is Source.EDGE
        cloud.down = False
        await until(lambda: flow.certificate is None)
        assert (await flow.answer(Request(inputs=CONFIDENT))).source is Source.CLOUD


async def test_a_cloud_that_is_up_is_checked_before_the_first_answer():
    flow = router(fakes.ScriptedCloud(reference=NEWER))
    async with flow.running():
        assert flow.certificate is None


async def test_another_cloud_is_no_judge_of_an_audit():
    cloud, store = fakes.ScriptedCloud("a", reference=NEWER), fakes.DictStore()
    await router(cloud, audits=store, uniform=lambda: 0.0).answer(Request(inputs=CONFIDENT))
    assert await store.settled() == [(True, True)]


async def test_a_verdict_under_way_is_awaited_at_the_end():
    cloud, store = fakes.ScriptedCloud("a"), fakes.DictStore()
    cloud.release.clear()
    flow = router(cloud, audits=store, uniform=lambda: 0.0)
    await flow.answer(Request(inputs=CONFIDENT))
    await cloud.asked.wait()
    closing = asyncio.ensure_future(flow.aclose())
    await asyncio.sleep(0)
    cloud.release.set()
    await closing
    assert store.audits == [(False, False)]


async def test_the_answer_of_the_cloud_before_is_not_found_under_the_cloud_of_now():
    cloud, store, cache = fakes.ScriptedCloud(), fakes.DictStore(), fakes.DictCache()
    cloud.release.clear()
    flow = router(cloud, outbox=store, answers=store, cache=cache)
    await flow.answer(Request(inputs=DOUBTFUL, id="old", budget_ms=1))
    cloud.release.set()
    await store.wait_final("public", "old", timeout_s=10)
    cloud.reference, cloud.output = NEWER, "c"
    await flow.answer(Request(inputs="0.55 0.45"))
    assert (await flow.answer(Request(inputs=DOUBTFUL))).output == "c"


async def test_an_id_whose_answer_is_still_kept_is_not_given_to_another_request():
    cloud, store = fakes.ScriptedCloud(), fakes.DictStore()
    cloud.down = True
    flow = router(cloud, outbox=store, answers=store, settings=RouterSettings(cool_down_s=3600))
    await flow.answer(Request(inputs=DOUBTFUL, id="same"))
    with pytest.raises(RequestError, match="/v1/answers/same") as error:
        await flow.answer(Request(inputs="0.55 0.45", id="same"))
    assert error.value.field == "id"
    assert [request.inputs for request in store.pending(9)] == [DOUBTFUL]
    await flow.answer(Request(inputs="0.55 0.45", id="same", tenant="another"))
    await flow.aclose()


async def test_nothing_runs_on_after_the_end():
    cloud, store = fakes.ScriptedCloud(), fakes.DictStore()
    cloud.release.clear()
    before = asyncio.all_tasks()
    flow = router(cloud, outbox=store, answers=store)
    await flow.answer(Request(inputs=DOUBTFUL, id="late", budget_ms=1))
    store.put(Request(inputs=DOUBTFUL, id="another"))
    await flow.aclose()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert {request.id for request in store.pending(9)} == {"late", "another"}


def test_two_event_loops_are_told_apart():
    flow = router(fakes.ScriptedCloud())
    asyncio.run(flow.answer(Request(inputs=CONFIDENT)))
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(flow.answer(Request(inputs=CONFIDENT)))


class SlowCloud:
    """A cloud that never answers, made without an event loop."""

    def __init__(self):
        self.asked = threading.Event()

    async def describe(self, *, timeout_s):
        return fakes.CERTIFIED

    async def predict(self, request, *, timeout_s):
        self.asked.set()
        await asyncio.Event().wait()
        return CloudReply("b", fakes.CERTIFIED)

    async def aclose(self):
        pass


def test_closing_tells_a_blocked_caller_and_everyone_after():
    cloud = SlowCloud()
    flow = router(cloud)
    outcomes = []

    def ask():
        try:
            flow.answer_blocking(Request(inputs=DOUBTFUL))
        except RuntimeError as error:
            outcomes.append(str(error))

    caller = threading.Thread(target=ask)
    caller.start()
    assert cloud.asked.wait(10)
    flow.close()
    caller.join(10)
    assert outcomes == ["The router was closed."]
    with pytest.raises(RuntimeError, match="closed"):
        flow.answer_blocking(Request(inputs=CONFIDENT, mode=Mode.EDGE_ONLY))
