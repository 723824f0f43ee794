"""TextService: who is in the batch and who waits, deadlines, leaving callers, a failing and a dying engine."""

import asyncio
import contextlib
import re
import threading
import time

import pytest

from edgewise import telemetry, tracing
from edgewise.cloud.causal import load_causal
from edgewise.cloud.service import FAILED_BATCHES, EngineService
from edgewise.cloud.text_engine import TextEngine
from edgewise.cloud.text_service import TextService
from edgewise.contracts import Answered, AnswerService, Done, Request, Source, Status, Token
from edgewise.dialogue import Finish, Message, Prompt, Role, Sampling
from edgewise.errors import (
    CloudResponseError,
    CloudThrottledError,
    CloudTimeoutError,
    CloudUnreachableError,
    InputError,
    PromptTooLongError,
    RequestError,
)
from edgewise.telemetry import Metrics


@pytest.fixture(scope="module")
def loaded(tiny_checkpoints, tmp_path_factory):
    return load_causal(tiny_checkpoints.causal_checkpoint(tmp_path_factory.mktemp("causal") / "writer"))


class Held(TextEngine):
    """Steps only while its gate is open, or as often as it is told to; can be made to fail."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.gate, self.steps, self.failure = threading.Semaphore(0), 0, None
        self.open = True

    def step(self):
        if self.running and not self.open:
            assert self.gate.acquire(timeout=20)
        self.steps += 1
        if self.failure is not None:
            raise self.failure
        return super().step()

    def let(self, steps):
        for _ in range(steps):
            self.gate.release()


@pytest.fixture
def engine(loaded):
    return Held(*loaded, slots=2)


def ask(content="corn", *, max_tokens=12, **more):
    sampling = Sampling(max_tokens=max_tokens)
    return Request(inputs=Prompt(messages=(Message(role=Role.USER, content=content),), sampling=sampling), **more)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # the thread that brings it about knows no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("sampling", "begun", "field", "code"),
    [
        ({"schema": '{"type": "integer", "minimum": -1e300}'}, "", "response_format", "invalid_json_schema"),
        ({"schema": "{}"}, "x", "begun", "invalid_request"),
        ({"schema": "{}", "stop": ("a",)}, "", "stop", "invalid_request"),
    ],
)
async def test_what_the_model_cannot_be_asked_is_refused_by_the_clients_name_of_it(
    engine, sampling, begun, field, code
):
    asked = Prompt(messages=(Message(role=Role.USER, content="a"),), sampling=Sampling(**sampling), begun=begun)
    service = TextService(engine, clock=time)
    async with service.lifespan():
        with pytest.raises(RequestError) as refused:
            await service.respond(Request(inputs=asked))
    assert (refused.value.field, refused.value.code) == (field, code)


@pytest.mark.parametrize(("error", "kind"), [(InputError, RequestError), (PromptTooLongError, PromptTooLongError)])
async def test_an_answer_that_cannot_go_on_names_the_clients_field(engine, monkeypatch, error, kind):
    def fail(*args, **more):
        raise error("schema: answers cannot be held to it.", "Give a simpler one.")

    monkeypatch.setattr("edgewise.cloud.tokens.Chooser.choose", fail)
    service = TextService(engine, clock=time)
    async with service.lifespan():
        with pytest.raises(kind) as refused:
            await service.respond(ask())
    assert getattr(refused.value, "field", "response_format") == "response_format"


async def test_an_answer_is_told_token_by_token_and_then_whole(engine):
    metrics = Metrics()
    service = TextService(engine, clock=time, metrics=metrics)
    assert isinstance(service, AnswerService)
    assert "not running" in service.ready()
    async with service.lifespan():
        assert service.ready() is None
        events = [event async for event in service.events(ask(id="r1"))]
        whole = await service.respond(ask(id="r2"))
    *told, answered, done = events
    assert all(isinstance(event, Token) and event.source is Source.CLOUD for event in told)
    assert isinstance(answered, Answered)
    assert done == Done("r1")
    answer = answered.answer
    assert answer.output == "".join(event.text for event in told) == whole.output
    assert (answer.id, answer.status, answer.source) == ("r1", Status.FINAL, Source.CLOUD)
    assert answer.written.completion_tokens == len(told)
    assert answer.model_digest == service.info.version
    assert list(answer.timings_ms) == ["queue", "first_token", "engine", "total"]
    assert (service.info.task, service.info.role) == ("text-generation", "cloud")
    text = "\n".join(line for line in metrics.render().decode().splitlines() if not line.startswith("#"))
    assert f'edgewise_tokens_total{{source="cloud"}} {2 * len(told)}' in text
    assert 'edgewise_first_token_seconds_count{source="cloud"} 2' in text


async def test_many_are_written_together_and_the_rest_wait_their_turn(engine):
    service = TextService(engine, clock=time, max_waiting=3)
    engine.open = False
    async with service.lifespan():
        tasks = [asyncio.create_task(service.respond(ask(id=str(number)))) for number in range(5)]
        await until(lambda: len(service._waiting) == 3)
        with pytest.raises(CloudThrottledError, match="3 prompts wait"):
            await service.respond(ask())
        engine.open = True
        engine.let(1)
        answers = await asyncio.gather(*tasks)
    assert [answer.id for answer in answers] == ["0", "1", "2", "3", "4"]
    assert len({answer.output for answer in answers}) == 1


async def test_who_stops_listening_is_out_before_the_next_token(engine):
    service = TextService(engine, clock=time)
    engine.open = False
    async with service.lifespan():
        events = service.events(ask(max_tokens=200))
        engine.let(2)
        assert isinstance(await anext(events), Token)
        assert engine.running == 1
        await events.aclose()
        engine.let(1)
        await until(lambda: engine.running == 0)
        assert engine.steps <= 5
        task = asyncio.create_task(service.respond(ask(max_tokens=200)))
        await until(lambda: engine.running == 1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        engine.let(1)
        await until(lambda: engine.running == 0)
        engine.open = True
        assert (await service.respond(ask())).written.completion_tokens > 0


async def test_who_gives_up_waiting_is_never_computed(engine):
    service = TextService(engine, clock=time)
    engine.open = False
    joined = []
    join = engine.join
    engine.join = lambda key, reading: joined.append(key) or join(key, reading)
    async with service.lifespan():
        tasks = [asyncio.create_task(service.respond(ask())) for _ in range(2)]
        await until(lambda: len(service._running) == 2)
        with pytest.raises(CloudTimeoutError, match="The budget was spent before request late"):
            await service.respond(ask(id="late", budget_ms=20.0))
        assert not service._waiting
        engine.open = True
        engine.let(1)
        await asyncio.gather(*tasks)
    assert len(joined) == 2


async def test_a_budget_ends_with_the_first_token_of_a_stream_and_with_the_whole_answer_else(engine):
    service = TextService(engine, clock=time)
    engine.open = False
    async with service.lifespan():
        stream = service.events(ask(budget_ms=10_000.0))
        engine.let(1)
        await anext(stream)
        service._left_s = lambda asked: 0.0
        engine.open = True
        engine.let(1)
        assert isinstance([event async for event in stream][-1], Done)
        with pytest.raises(CloudTimeoutError):
            await service.respond(ask(budget_ms=10_000.0))
        with pytest.raises(CloudTimeoutError):
            await anext(service.events(ask(budget_ms=10_000.0)))
    assert engine.running == 0


async def test_the_budget_of_a_stream_that_is_wanted_whole_goes_on_behind_the_first_token(engine):
    service = TextService(engine, clock=time)
    engine.open = False
    async with service.lifespan():
        stream = service.events(ask(budget_ms=10_000.0, whole=True))
        engine.let(1)
        await anext(stream)
        service._left_s = lambda asked: 0.0
        with pytest.raises(CloudTimeoutError):
            await anext(stream)
        engine.open = True
        engine.let(1)
    assert engine.running == 0


async def test_patience_prolongs_a_budget(engine):
    service = TextService(engine, clock=time)
    async with service.lifespan():
        assert (await service.respond(ask(budget_ms=0.001, patience_ms=20_000.0))).output


async def test_a_step_that_fails_is_heard_by_its_callers_and_the_next_ones_are_answered(engine, caplog):
    service = TextService(engine, clock=time)
    async with service.lifespan():
        engine.failure = ZeroDivisionError("the secret")
        for _ in range(FAILED_BATCHES):
            assert service.ready() is None
            with pytest.raises(CloudResponseError, match="The engine failed"):
                await service.respond(ask("my secret"))
        assert "steps failed" in service.ready()
        engine.failure = None
        await service.respond(ask())
        assert service.ready() is None
    assert "ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text


class Panic(BaseException):
    """As a library of Rust raises it."""


async def test_a_panic_fails_a_step_and_not_the_service(engine, caplog, monkeypatch):
    service = TextService(engine, clock=time)
    async with service.lifespan():
        engine.failure = panic = Panic("the secret")
        with pytest.raises(CloudResponseError, match="The engine failed"):
            await service.respond(ask())
        engine.failure = None

        def fail(*args):
            raise panic

        for part in ("join", "read"):
            with monkeypatch.context() as patch:
                patch.setattr(engine, part, fail)
                with pytest.raises(CloudResponseError, match="The engine failed"):
                    await service.respond(ask())
        assert service.ready() is None
        assert (await service.respond(ask())).output
    assert caplog.text.count("Panic") >= 3
    assert "secret" not in caplog.text


class Slow:
    """Reads a prompt only when it is told to."""

    def __init__(self, engine):
        self.read, self.gate, self.reads = engine.read, threading.Semaphore(0), 0
        engine.read = self

    def __call__(self, prompt):
        self.reads += 1
        assert self.gate.acquire(timeout=20)
        return self.read(prompt)


async def test_prompts_that_are_being_read_count_as_waiting(engine):
    slow = Slow(engine)
    service = TextService(engine, clock=time, max_waiting=1)
    async with service.lifespan():
        tasks = [asyncio.create_task(service.respond(ask(id=str(number)))) for number in range(9)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 6
        assert {type(task.exception()) for task in done} == {CloudThrottledError}
        for _ in range(4):
            slow.gate.release()
        answers = [await task for task in tasks if task not in done]
        assert [answer.id for answer in answers] == ["0", "1", "2"]
        assert slow.reads == 3
        assert (await service.respond(ask())).output


async def test_a_prompt_whose_budget_is_spent_is_not_read(engine):
    slow = Slow(engine)
    service = TextService(engine, clock=time)
    async with service.lifespan():
        first = asyncio.create_task(service.respond(ask()))
        await until(lambda: slow.reads == 1)
        with pytest.raises(CloudTimeoutError, match="The budget was spent before request late"):
            await service.respond(ask(id="late", budget_ms=20.0))
        with pytest.raises(CloudTimeoutError):
            await service.respond(ask(budget_ms=20.0, arrived_s=time.monotonic() - 1))
        slow.gate.release()
        assert (await first).output
        slow.gate.release()
        assert (await service.respond(ask())).output
    assert slow.reads == 2


async def test_a_dead_engine_is_not_ready_and_nobody_waits_for_it(engine):
    service = TextService(engine, clock=time)
    async with service.lifespan():
        engine.failure = SystemExit()
        with pytest.raises(CloudResponseError):
            await service.respond(ask())
        await until(lambda: not service._loop.is_alive)
        assert "ended unexpectedly" in service.ready()
        with pytest.raises(CloudUnreachableError):
            await service.respond(ask())


async def test_what_cannot_be_asked_is_refused_and_harms_nobody(engine):
    service = TextService(engine, clock=time)
    with pytest.raises(CloudUnreachableError, match="not running"):
        await service.respond(ask())
    async with service.lifespan():
        with pytest.raises(RequestError, match="language model") as refused:
            await service.respond(Request(inputs="corn"))
        assert refused.value.field == "inputs"
        with pytest.raises(RequestError, match="task"):
            await service.respond(ask(task="text-classification"))
        with pytest.raises(PromptTooLongError, match="256"):
            await service.respond(ask("x" * 999))
        with pytest.raises(InputError, match="max_tokens"):
            await service.respond(ask(max_tokens=0))
        assert (await service.respond(ask())).written.finish in (Finish.LENGTH, Finish.STOP)


async def test_at_its_end_it_answers_who_is_here_and_takes_nobody_else(engine):
    service = TextService(engine, clock=time)
    engine.open = False

    async def answered():
        async with service.lifespan():
            task = asyncio.create_task(service.respond(ask()))
            await until(lambda: engine.running)
        return await task

    task = asyncio.create_task(answered())
    await until(lambda: service._stopping)
    assert "stopping" in service.ready()
    with pytest.raises(CloudUnreachableError, match="stopping"):
        await service.respond(ask())
    engine.open = True
    engine.let(1)
    assert (await task).output
    assert not [thread for thread in threading.enumerate() if thread.name == "edgewise-text"]


async def test_waiting_and_writing_are_spans_of_the_callers_trace(engine):
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing.start("cloud", exporter)
    try:
        async with TextService(engine, clock=time).lifespan():
            pass
        service = TextService(engine, clock=time)
        async with service.lifespan():
            with tracing.span("asked"):
                await service.respond(ask())
                stream = service.events(ask())
                await anext(stream)
                await stream.aclose()
    finally:
        tracing.stop()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [*["cloud.queue", "engine.predict"] * 2, "asked"]
    assert len({span.context.trace_id for span in spans}) == 1


async def test_a_classifier_refuses_prompts():
    class Engine:
        slots = 1

    from edgewise.cloud.workers import ThreadWorkers
    from edgewise.contracts import ServiceInfo

    Engine.info = ServiceInfo(
        name="toy", version="1", task="text-classification", labels=("a", "b"), input="text", role="cloud"
    )
    service = EngineService(ThreadWorkers(Engine()), clock=time)
    async with service.lifespan():
        with pytest.raises(RequestError, match="toy writes no text"):
            await service.respond(ask())


async def test_drafting_is_counted(loaded, tmp_path, tiny_checkpoints):
    draft = tiny_checkpoints.causal_checkpoint(tmp_path / "draft")
    engine = await asyncio.to_thread(TextEngine.load, loaded[2].path, draft=draft)
    metrics = Metrics()
    service = TextService(engine, clock=time, metrics=metrics)
    async with service.lifespan():
        await service.respond(ask(max_tokens=60))
    stats, name = engine.stats, engine.info.name
    fates = metrics.counter(*telemetry.DRAFTED_TOKENS)
    assert stats.guessed > 0
    assert fates.value(name, "accepted") == stats.accepted
    assert fates.value(name, "refused") == stats.guessed - stats.accepted
    assert metrics.counter(*telemetry.TARGET_PASSES).value(name) == stats.passes
    assert metrics.gauge(*telemetry.DECODE_RATE).value(name, "plain") > 0
    assert 0 < stats.drafted_passes < stats.passes
    assert stats.drafted_passes <= stats.drafted_tokens <= stats.accepted + stats.drafted_passes
    for metric, value in (
        (telemetry.DRAFT_ACCEPTANCE, stats.accepted / stats.guessed),
        (telemetry.DRAFT_TOKENS_PER_ROUND, stats.drafted_tokens / stats.drafted_passes),
        (telemetry.DRAFT_BREAK_EVEN, stats.break_even_s),
    ):
        assert metrics.gauge(*metric).value(name) == pytest.approx(value)


async def test_without_a_draft_there_are_no_metrics_of_one(engine):
    metrics = Metrics()
    service = TextService(engine, clock=time, metrics=metrics)
    async with service.lifespan():
        await service.respond(ask())
    assert not re.search(r"draft|decode|target_passes", metrics.render().decode())
