"""EngineService: batches, deadlines, givers-up, bad items and its end, with an engine that waits to be told."""

import asyncio
import threading
import time

import numpy as np
import pytest

from edgewise.cloud.service import EngineService
from edgewise.cloud.workers import ThreadWorkers, predict_each
from edgewise.contracts import (
    Action,
    Answered,
    AnswerService,
    Done,
    Prediction,
    Reason,
    Request,
    ServiceInfo,
    Source,
    Status,
    answer,
)
from edgewise.errors import (
    CloudError,
    CloudResponseError,
    CloudTimeoutError,
    CloudUnreachableError,
    ConfigError,
    InputError,
    RequestError,
)

INFO = ServiceInfo(
    name="toy", version="sha256:1", task="text-classification", labels=("a", "b"), input="text", role="cloud"
)


class ToyEngine:
    """Echoes texts in capitals, records its batches, and holds them while its gate is closed."""

    def __init__(self):
        self.info, self.slots = INFO, 1
        self.batches, self.threads = [], set()
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()

    def predict(self, inputs):
        self.entered.release()
        assert self.gate.wait(20)
        self.threads.add(threading.current_thread())
        self.batches.append(list(inputs))
        if any("bad" in text for text in inputs):
            raise InputError("bad text", "send a good one")
        if any("crash" in text for text in inputs):
            raise ZeroDivisionError(inputs)
        if "lose" in inputs:
            return []
        return [Prediction(output=text.upper(), logits=np.zeros(2, np.float32)) for text in inputs]


@pytest.fixture
def engine():
    made = ToyEngine()
    yield made
    made.gate.set()


def request(text, **more):
    return Request(id=f"id-{text}", inputs=text, **more)


async def held(engine, service, text="first"):
    """Start a request and return once the engine holds it; what comes now queues."""
    engine.gate.clear()
    task = asyncio.create_task(answer(service, request(text)))
    await asyncio.to_thread(engine.entered.acquire)
    return task


async def queued(service, requests):
    tasks = [asyncio.create_task(answer(service, one)) for one in requests]
    await asyncio.sleep(0)
    return tasks


async def test_an_answer_says_what_computed_it(engine):
    service: AnswerService = EngineService(ThreadWorkers(engine), clock=time, max_batch=4)
    async with service.lifespan():
        events = [event async for event in service.events(request("hello"))]
    assert [type(event) for event in events] == [Answered, Done]
    got = events[0].answer
    assert (got.id, got.output, got.status, got.source) == ("id-hello", "HELLO", Status.FINAL, Source.CLOUD)
    assert (got.decision.action, got.decision.reason, got.decision.policy) == (
        Action.LOCAL,
        Reason.NO_ROUTER,
        "engine",
    )
    assert got.model_digest == "sha256:1"
    assert set(got.timings_ms) == {"queue", "engine", "total"}
    assert 0 <= got.timings_ms["queue"] + got.timings_ms["engine"] <= got.timings_ms["total"]
    assert events[1] == Done("id-hello", pending=False)


async def test_what_queued_while_the_engine_was_busy_is_one_batch_up_to_the_cap(engine):
    service = EngineService(ThreadWorkers(engine), clock=time, max_batch=4)
    async with service.lifespan():
        first = await held(engine, service)
        rest = await queued(service, [request(str(index)) for index in range(6)])
        engine.gate.set()
        answers = await asyncio.gather(first, *rest)
    assert engine.batches == [["first"], ["0", "1", "2", "3"], ["4", "5"]]
    assert [a.output for a in answers] == ["FIRST", *"012345"]
    assert len(engine.threads) == 1
    assert engine.threads != {threading.current_thread()}


async def test_the_event_loop_runs_while_the_engine_computes(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    async with service.lifespan():
        task = await held(engine, service)
        await asyncio.sleep(0)
        assert not task.done()
        engine.gate.set()
        assert (await task).output == "FIRST"


async def test_a_lone_caller_waits_for_no_neighbour(engine):
    service = EngineService(ThreadWorkers(engine), clock=time, max_wait_ms=1e6)
    async with service.lifespan():
        for text in ("one", "two", "three"):
            assert (await asyncio.wait_for(answer(service, request(text)), 20)).output == text.upper()


async def test_callers_that_came_together_are_waited_for(engine):
    service = EngineService(ThreadWorkers(engine), clock=time, max_wait_ms=1e6)
    async with service.lifespan():
        first = await held(engine, service)
        pair = await queued(service, [request("a"), request("b")])
        engine.gate.set()
        await asyncio.gather(first, *pair)
        lone = asyncio.create_task(answer(service, request("c")))
        # Time enough for a worker that does not linger to take it alone.
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(lone, answer(service, request("d"))), 20)
    assert engine.batches[-1] == ["c", "d"]


async def test_a_neighbour_that_does_not_come_is_not_waited_for_longer_than_allowed(engine):
    service = EngineService(ThreadWorkers(engine), clock=time, max_wait_ms=1)
    async with service.lifespan():
        first = await held(engine, service)
        pair = await queued(service, [request("a"), request("b")])
        engine.gate.set()
        await asyncio.gather(first, *pair)
        assert (await asyncio.wait_for(answer(service, request("c")), 20)).output == "C"


async def test_a_spent_budget_is_told_at_once_and_never_computed(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    async with service.lifespan():
        first = await held(engine, service)
        late = (await queued(service, [request("late", budget_ms=5)]))[0]
        patient = (await queued(service, [request("patient", budget_ms=1e6)]))[0]
        with pytest.raises(CloudTimeoutError, match="5 ms"):
            await asyncio.wait_for(late, 20)
        assert not first.done()
        engine.gate.set()
        assert (await patient).output == "PATIENT"
        await first
    assert engine.batches == [["first"], ["patient"]]


async def test_a_budget_spent_while_computing_is_told_at_the_deadline(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    async with service.lifespan():
        engine.gate.clear()
        task = asyncio.create_task(answer(service, request("slow", budget_ms=5)))
        with pytest.raises(CloudTimeoutError, match="5 ms"):
            await asyncio.wait_for(task, 20)
        engine.gate.set()
        assert (await answer(service, request("next"))).output == "NEXT"


async def test_the_queue_is_judged_by_the_clock_it_was_given(engine):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        time = monotonic

    clock = Clock()
    service = EngineService(ThreadWorkers(engine), clock=clock)
    async with service.lifespan():
        first = await held(engine, service)
        late = (await queued(service, [request("late", budget_ms=60_000)]))[0]
        clock.now = 61.0
        engine.gate.set()
        with pytest.raises(CloudTimeoutError):
            await asyncio.wait_for(late, 20)
        await first
    assert engine.batches == [["first"]]


async def test_nothing_is_computed_for_a_caller_that_left(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    async with service.lifespan():
        first = await held(engine, service)
        leaver, stayer = await queued(service, [request("leaver"), request("stayer")])
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        engine.gate.set()
        await asyncio.gather(first, stayer)
    assert leaver.cancelled()
    assert engine.batches == [["first"], ["stayer"]]


async def test_a_bad_item_fails_alone(engine):
    service = EngineService(ThreadWorkers(engine), clock=time, max_batch=8)
    texts = ["a", "b", "bad", "c", "d", "e", "bad too"]
    async with service.lifespan():
        first = await held(engine, service)
        tasks = await queued(service, [request(text) for text in texts])
        engine.gate.set()
        await first
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [o.output for o in outcomes if not isinstance(o, Exception)] == ["A", "B", "C", "D", "E"]
    for index in (2, 6):
        assert isinstance(outcomes[index], RequestError)
        assert (outcomes[index].field, outcomes[index].remedy) == ("inputs", "send a good one")


async def test_another_kind_of_item_is_refused_before_it_queues(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    async with service.lifespan():
        for item in (b"png", np.zeros((8, 8), np.uint8)):
            with pytest.raises(RequestError, match="reads no image") as caught:
                await answer(service, Request(id="1", inputs=item))
            assert caught.value.field == "inputs"
    assert engine.batches == []


async def test_another_task_is_refused(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    async with service.lifespan():
        assert (await answer(service, request("ok", task="text-classification"))).output == "OK"
        with pytest.raises(RequestError) as caught:
            await answer(service, request("x", task="image-classification"))
    assert caught.value.field == "task"


@pytest.mark.parametrize("text", ["crash 4711", "lose"])
async def test_a_failing_engine_fails_its_batch_and_goes_on(engine, text, caplog):
    service = EngineService(ThreadWorkers(engine), clock=time)
    async with service.lifespan():
        with pytest.raises(CloudResponseError, match="engine failed"):
            await answer(service, request(text))
        assert service.ready() is None
        assert (await answer(service, request("next"))).output == "NEXT"
    assert "The engine failed on a batch of 1" in caplog.text
    assert "predict" in caplog.text
    assert "4711" not in caplog.text


async def test_stopping_answers_what_is_queued_and_refuses_what_comes(engine):
    service = EngineService(ThreadWorkers(engine), clock=time, max_batch=2)
    stop = asyncio.Event()

    async def run():
        async with service.lifespan():
            await stop.wait()

    running = asyncio.create_task(run())
    await asyncio.sleep(0)
    first = await held(engine, service)
    rest = await queued(service, [request(str(index)) for index in range(3)])
    stop.set()
    await asyncio.sleep(0)  # run() goes on
    await asyncio.sleep(0)
    assert "stopping" in service.ready()
    with pytest.raises(CloudUnreachableError, match="stopping"):
        await answer(service, request("too late"))
    engine.gate.set()
    assert [a.output for a in await asyncio.gather(first, *rest)] == ["FIRST", "0", "1", "2"]
    await running
    assert "not running" in service.ready()


async def test_a_stopped_service_starts_again(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    for _ in range(2):
        async with service.lifespan():
            assert (await answer(service, request("x"))).output == "X"
            with pytest.raises(RuntimeError, match="runs already"):
                async with service.lifespan():
                    pass
        with pytest.raises(CloudUnreachableError, match="not running"):
            await answer(service, request("x"))


async def test_nobody_waits_for_a_worker_that_is_gone(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    async with service.lifespan():
        first = await held(engine, service)
        rest = await queued(service, [request("a"), request("b")])
        service._dispatcher.cancel()
        for task in (first, *rest):
            with pytest.raises(CloudError, match="worker ended"):
                await asyncio.wait_for(task, 20)
        assert "ended unexpectedly" in service.ready()
        with pytest.raises(CloudUnreachableError, match="ended unexpectedly"):
            await answer(service, request("c"))
        engine.gate.set()


def test_a_bad_item_costs_few_calls(engine):
    texts = [f"t{index}" for index in range(16)]
    texts[11] = "bad"
    outcomes = predict_each(engine, texts)
    assert [isinstance(outcome, RequestError) for outcome in outcomes] == [text == "bad" for text in texts]
    assert len(engine.batches) == 9


@pytest.mark.parametrize("settings", [{"max_batch": 0}, {"max_wait_ms": -1}, {"max_wait_ms": float("nan")}])
def test_settings_out_of_range_are_refused(engine, settings):
    with pytest.raises(ConfigError):
        EngineService(ThreadWorkers(engine), clock=time, **settings)
