"""EngineService: batches, deadlines, givers-up, bad items and its end, with an engine that waits to be told."""

import asyncio
import threading
import time

import numpy as np
import pytest

from edgewise import tracing
from edgewise.cloud.service import DOUBT_S, FAILED_BATCHES, EngineService
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
from edgewise.telemetry import Metrics

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


async def test_a_request_outlives_its_budget_for_as_long_as_its_caller_is_patient(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    async with service.lifespan():
        first = await held(engine, service)
        owed = (await queued(service, [request("owed", budget_ms=5, patience_ms=1e6)]))[0]
        with pytest.raises(CloudTimeoutError, match="5 ms"):
            await answer(service, request("dropped", budget_ms=1, patience_ms=5))
        assert not owed.done()
        engine.gate.set()
        assert (await owed).output == "OWED"
        await first
    assert engine.batches == [["first"], ["owed"]]


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


class Slots:
    """Workers of several slots, which compute when they are told to."""

    def __init__(self, slots=2):
        self.info, self.slots = INFO, slots
        self.batches, self.gates, self.running = [], [], 0
        self.closed, self.error = False, None
        self.came = asyncio.Semaphore(0)

    def ready(self):
        return None

    async def start(self):
        if self.error:
            raise self.error

    async def aclose(self):
        assert self.running == 0
        self.closed = True

    async def compute(self, inputs):
        self.batches.append(list(inputs))
        self.gates.append(asyncio.Event())
        self.came.release()
        self.running += 1
        assert self.running <= self.slots
        try:
            await self.gates[-1].wait()
        finally:
            self.running -= 1
        if "die" in inputs:
            return [CloudError("The worker died.") for _ in inputs]
        if "break" in inputs:
            raise ZeroDivisionError(inputs)
        return [Prediction(output=text.upper()) for text in inputs]

    def go(self):
        for gate in self.gates:
            gate.set()


async def settled(workers, batches):
    while len(workers.batches) < batches:
        await asyncio.wait_for(workers.came.acquire(), 20)


async def test_as_many_batches_as_there_are_slots_compute_at_once():
    workers = Slots()
    service = EngineService(workers, clock=time, max_wait_ms=0)
    async with service.lifespan():
        first = await queued(service, [request("a")])
        await settled(workers, 1)
        second = await queued(service, [request("b")])
        await settled(workers, 2)
        rest = await queued(service, [request(text) for text in "cdef"])
        for _ in range(5):
            await asyncio.sleep(0)
        assert workers.batches == [["a"], ["b"]]
        workers.gates[0].set()
        await settled(workers, 3)
        assert workers.batches[2] == ["c", "d", "e", "f"]
        workers.go()
        answers = await asyncio.gather(*first, *second, *rest)
    assert "".join(answer.output for answer in answers) == "ABCDEF"
    assert workers.closed


async def test_a_worker_that_comes_back_takes_what_has_queued():
    workers = Slots(slots=1)
    service = EngineService(workers, clock=time, max_wait_ms=0)
    async with service.lifespan():
        first = asyncio.create_task(answer(service, request("first")))
        await settled(workers, 1)
        (second,) = await queued(service, [request("second")])
        workers.slots = 2
        workers.on_change()
        await settled(workers, 2)
        workers.go()
        assert [(await first).output, (await second).output] == ["FIRST", "SECOND"]


async def test_free_slots_share_what_has_queued():
    workers = Slots()
    service = EngineService(workers, clock=time, max_wait_ms=0)
    async with service.lifespan():
        tasks = await queued(service, [request(text) for text in "abcd"])
        await settled(workers, 2)
        assert [len(batch) for batch in workers.batches] == [2, 2]
        workers.go()
        await asyncio.gather(*tasks)


async def test_like_lengths_are_computed_together():
    workers = Slots(slots=1)
    service = EngineService(workers, clock=time, max_wait_ms=0)
    long, short = "long " * 50, "short"
    async with service.lifespan():
        first = await queued(service, [request("first")])
        await settled(workers, 1)
        texts = [long, short, long + "1", short + "2", long + "3"]
        rest = await queued(service, [request(text) for text in texts])
        for batch in range(3):
            await settled(workers, batch + 1)
            workers.go()
        await asyncio.gather(*first, *rest)
    assert workers.batches[1:] == [[long, long + "1", long + "3"], [short, short + "2"]]


@pytest.mark.parametrize(("text", "problem"), [("die", "worker died"), ("break", "worker ended")])
async def test_workers_that_fail_fail_their_batch_alone(text, problem, caplog):
    workers = Slots(slots=1)
    service = EngineService(workers, clock=time, max_wait_ms=0)
    async with service.lifespan():
        (failing,) = await queued(service, [request(text)])
        await settled(workers, 1)
        (other,) = await queued(service, [request("other")])
        workers.go()
        with pytest.raises(CloudError, match=problem):
            await failing
        await settled(workers, 2)
        workers.go()
        assert (await other).output == "OTHER"
        assert service.ready() is None
    assert "id-break" not in caplog.text


async def test_workers_that_cannot_start_are_told_of():
    workers = Slots()
    workers.error = CloudError("no room")
    service = EngineService(workers, clock=time)
    with pytest.raises(CloudError, match="no room"):
        async with service.lifespan():
            pass
    assert "not running" in service.ready()


async def test_a_budget_runs_from_the_arrival_at_the_process():
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

        time = monotonic

    workers = Slots()
    service = EngineService(workers, clock=Clock(), max_wait_ms=0)
    async with service.lifespan():
        with pytest.raises(CloudTimeoutError, match="50 ms"):
            await answer(service, request("late", budget_ms=50, arrived_s=99.9))
        (task,) = await queued(service, [request("in time", budget_ms=60_000, arrived_s=99.9)])
        await settled(workers, 1)
        workers.go()
        timings = (await task).timings_ms
    assert timings["total"] == pytest.approx(100)
    assert timings["queue"] == pytest.approx(100)
    assert workers.batches == [["in time"]]


async def test_batches_and_queueing_are_counted():
    metrics, workers = Metrics(), Slots(slots=1)
    service = EngineService(workers, clock=time, metrics=metrics, max_wait_ms=0)
    async with service.lifespan():
        tasks = await queued(service, [request(text) for text in "abc"])
        await settled(workers, 1)
        workers.go()
        await asyncio.gather(*tasks)
    text = metrics.render().decode()
    assert 'edgewise_batch_size_bucket{model="toy",le="2"} 0' in text
    assert 'edgewise_batch_size_bucket{model="toy",le="4"} 1' in text
    assert 'edgewise_queue_seconds_count{model="toy"} 3' in text


@pytest.fixture
def spans():
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing.start("cloud", exporter)
    yield exporter
    tracing.stop()


async def test_each_caller_has_its_waiting_and_computing_in_its_own_trace(spans):
    workers = Slots(slots=1)
    service = EngineService(workers, clock=time, max_wait_ms=0)

    async def traced(text):
        with tracing.span("request", attributes={"text": text}):
            return await answer(service, request(text))

    async with service.lifespan():
        tasks = [asyncio.create_task(traced(text)) for text in "ab"]
        late = asyncio.create_task(answer(service, request("late", budget_ms=0.001)))
        leaver = asyncio.create_task(answer(service, request("leaver")))
        await asyncio.sleep(0)
        leaver.cancel()
        await settled(workers, 1)
        workers.go()
        await asyncio.gather(*tasks)
        with pytest.raises(CloudTimeoutError):
            await late
    assert workers.batches == [["a", "b"]]
    ended = spans.get_finished_spans()
    parents = {span.context.span_id: span.attributes["text"] for span in ended if span.name == "request"}
    for name in ("cloud.queue", "engine.predict"):
        found = [span for span in ended if span.name == name and span.parent is not None]
        assert sorted(parents[span.parent.span_id] for span in found) == ["a", "b"]
    (sizes,) = {span.attributes["edgewise.batch_size"] for span in ended if span.name == "engine.predict"}
    assert sizes == 2


async def test_an_engine_is_called_from_as_many_threads_as_it_allows(engine):
    engine.slots = 2
    engine.gate.clear()
    service = EngineService(ThreadWorkers(engine), clock=time, max_wait_ms=0)
    async with service.lifespan():
        tasks = await queued(service, [request("a"), request("b")])
        for _ in tasks:
            assert await asyncio.to_thread(engine.entered.acquire, timeout=20)
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert len(engine.threads) == 2


async def test_workers_compute_only_between_start_and_end(engine):
    workers = ThreadWorkers(engine)
    assert "not running" in workers.ready()
    (outcome,) = await workers.compute(["x"])
    assert isinstance(outcome, CloudUnreachableError)
    await workers.start()
    with pytest.raises(RuntimeError, match="run already"):
        await workers.start()
    assert [one.output for one in await workers.compute(["x"])] == ["X"]
    await workers.aclose()
    await workers.aclose()
    assert "not running" in workers.ready()


@pytest.mark.parametrize("settings", [{"max_batch": 0}, {"max_wait_ms": -1}, {"max_wait_ms": float("nan")}])
def test_settings_out_of_range_are_refused(engine, settings):
    with pytest.raises(ConfigError):
        EngineService(ThreadWorkers(engine), clock=time, **settings)


async def test_a_rule_that_fails_fails_those_who_queued_and_the_service_goes_on(engine, monkeypatch, caplog):
    service = EngineService(ThreadWorkers(engine), clock=time, max_wait_ms=0)

    def broken(queue, *_):
        raise ZeroDivisionError(queue[0].request.inputs)

    async with service.lifespan():
        with monkeypatch.context() as patch:
            patch.setattr("edgewise.cloud.service.take_batch", broken)
            with pytest.raises(CloudError, match="could not form a batch"):
                await asyncio.wait_for(answer(service, request("a secret")), 20)
        assert service.ready() is None
        assert (await asyncio.wait_for(answer(service, request("two")), 20)).output == "TWO"
    assert "ZeroDivisionError" in caplog.text
    assert "in broken" in caplog.text
    assert "a secret" not in caplog.text


async def test_a_rule_that_fails_does_not_keep_a_service_from_stopping(engine, monkeypatch):
    service = EngineService(ThreadWorkers(engine), clock=time, max_wait_ms=0)
    monkeypatch.setattr("edgewise.cloud.service.share", None)
    async with service.lifespan():
        with pytest.raises(CloudError, match="could not form a batch"):
            await asyncio.wait_for(answer(service, request("one")), 20)
    assert "not running" in service.ready()


async def test_an_engine_that_fails_every_batch_is_not_ready_until_one_is_good(engine):
    service = EngineService(ThreadWorkers(engine), clock=time, max_wait_ms=0)

    async def fails(text, error):
        with pytest.raises(error):
            await answer(service, request(text))

    async with service.lifespan():
        await fails("crash", CloudResponseError)
        await fails("crash", CloudResponseError)
        await fails("bad", RequestError)
        assert service.ready() is None
        await fails("crash", CloudResponseError)
        assert "last 3 batches failed" in service.ready()
        await fails("bad", RequestError)
        assert "last 3 batches failed" in service.ready()
        assert (await answer(service, request("good"))).output == "GOOD"
        assert service.ready() is None


async def test_doubt_about_an_engine_ends_so_that_it_is_tried_again(engine):
    class Clock:
        now = 1e6

        def monotonic(self):
            return self.now

    clock = Clock()
    service = EngineService(ThreadWorkers(engine), clock=clock, max_wait_ms=0)
    async with service.lifespan():
        for _ in range(FAILED_BATCHES):
            with pytest.raises(CloudResponseError):
                await answer(service, request("crash"))
        assert service.ready() is not None
        clock.now += DOUBT_S
        assert service.ready() is None
        with pytest.raises(CloudResponseError):
            await answer(service, request("crash"))
        assert service.ready() is not None
