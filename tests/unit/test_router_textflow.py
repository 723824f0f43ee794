"""Texts through the flow: what is told when, by whom, and what becomes of a cloud, a budget and a caller that leave."""

import asyncio
import importlib.util
import itertools
import sys
import threading
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.contracts import (
    Answer,
    Answered,
    CloudReply,
    DataPolicy,
    Done,
    Mode,
    Prediction,
    Reason,
    Reference,
    Request,
    Revised,
    Source,
    Status,
    Token,
)
from edgewise.dialogue import Finish, Prompt, Sampling, Tool, ToolCall, Written
from edgewise.errors import (
    BeyondModelError,
    CloudError,
    CloudUnreachableError,
    InputError,
    PromptTooLongError,
    RequestError,
)
from edgewise.router import RouterSettings
from edgewise.router.settings import TextSettings
from edgewise.telemetry import Metrics


def _load(name):
    spec = importlib.util.spec_from_file_location(f"text_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes, hybrid = _load("text_fakes"), _load("test_router_hybrid")
ask, router, sure, doubtful, told = fakes.ask, fakes.router, fakes.sure, fakes.doubtful, fakes.told
FakeCloud, FakeGenerator = fakes.FakeCloud, fakes.FakeGenerator
CLOUD = "from the cloud"
PATIENT = RouterSettings(cool_down_s=3600)


async def collect(service, request):
    return [event async for event in service.events(request)]


def answer_of(events) -> Answer:
    (answered,) = (event for event in events if isinstance(event, Answered))
    return answered.answer


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.001)


async def idle(flow, edge, cloud=None):
    """Nothing is left behind: no task, no draft, no writing that holds a slot, no call."""
    await until(lambda: not flow._flow._writers.running and edge.closed == len(edge.writings))
    if cloud is not None:
        await until(lambda: cloud.ended == len(cloud.asked))
    await until(lambda: len(asyncio.all_tasks()) == 1)


# Who answers


async def test_a_confident_text_is_told_as_it_is_written_and_certified():
    cloud, edge = FakeCloud(), FakeGenerator()
    flow = router(edge, cloud)
    events = await collect(flow, ask(sure(6), tenant="us", session="s"))
    assert [type(event) for event in events] == [Token] * 6 + [Answered, Done]
    assert fakes.sources(events) == {Source.EDGE}
    answer = answer_of(events)
    assert (answer.output, answer.status, answer.source) == (told(events), Status.FINAL, Source.EDGE)
    assert (answer.decision.reason, answer.decision.certificate_id) == (Reason.CONFIDENT, flow.certificate.id)
    assert answer.decision.score == pytest.approx(-0.1)
    assert (answer.written.completion_tokens, answer.written.finish) == (6, "stop")
    assert events[0].logprob == -0.1
    assert not cloud.asked
    assert edge.begun == [("us", "s")]
    assert {"edge", "first_token", "total"} == set(answer.timings_ms)
    await idle(flow, edge)


async def test_a_doubtful_text_comes_from_the_cloud_and_the_edge_stops():
    cloud, edge = FakeCloud(), FakeGenerator()
    edge.hold_at = 5
    flow = router(edge, cloud)
    events = await collect(flow, ask(doubtful(9)))
    answer = answer_of(events)
    assert told(events) == answer.output == CLOUD
    assert fakes.sources(events) == {Source.CLOUD}
    assert {event.id for event in events if isinstance(event, Token)} == {"1"}
    assert (answer.decision.reason, answer.decision.certificate_id) == (Reason.BELOW_THRESHOLD, None)
    assert answer.written.completion_tokens == 3
    await idle(flow, edge, cloud)
    assert edge.writings[0].place == 5, "stopped while it was held"


@pytest.mark.parametrize("script", [sure(6), doubtful(6)])
async def test_every_face_folds_the_same_flow(script):
    cloud = FakeCloud()
    flow = router(cloud=cloud)
    streamed = answer_of(await collect(flow, ask(script)))
    whole = await flow.answer(ask(script))
    asked = await flow.respond(ask(script))
    blocking = router(cloud=FakeCloud())
    blocked = await asyncio.to_thread(blocking.answer_blocking, ask(script))
    await asyncio.to_thread(blocking.close)
    for other in (whole, asked, blocked):
        assert (other.output, other.source, other.decision) == (streamed.output, streamed.source, streamed.decision)


async def test_without_a_certificate_everything_is_escalated():
    answer = answer_of(await collect(router(cloud=FakeCloud(), certified=None), ask(sure(20))))
    assert (answer.source, answer.decision.reason) == (Source.CLOUD, Reason.CERTIFICATE_VOID)


@pytest.mark.parametrize(("policy", "mode"), [(DataPolicy.ANY, Mode.EDGE_ONLY), (DataPolicy.LOCAL_ONLY, None)])
async def test_what_must_stay_here_never_asks_the_cloud(policy, mode):
    cloud, store = FakeCloud(), hybrid.DictStore()
    flow = router(cloud=cloud, outbox=store, answers=store, settings=RouterSettings(text=TextSettings(watch_floor=-1)))
    events = await collect(flow, ask(doubtful(30), data_policy=policy, mode=mode))
    answer = answer_of(events)
    assert (answer.status, answer.source) == (Status.FINAL, Source.EDGE)
    assert answer.decision.reason in (Reason.EDGE_ONLY, Reason.LOCAL_ONLY)
    assert not cloud.asked
    assert not store.owed
    assert told(events) == answer.output


async def test_what_goes_to_the_cloud_only_starts_no_writing():
    edge, cloud = FakeGenerator(), FakeCloud()
    events = await collect(router(edge, cloud), ask(sure(6), mode=Mode.CLOUD_ONLY))
    assert told(events) == CLOUD
    assert not edge.begun


async def test_a_router_without_a_cloud_streams_the_edge():
    flow = router(certified=None, settings=RouterSettings(mode=Mode.EDGE_ONLY))
    assert told(await collect(flow, ask(doubtful(3)))) == fakes.text_of(doubtful(3))


async def test_a_client_that_does_not_stream_is_told_as_one_token():
    cloud = fakes.WholeCloud()
    events = await collect(router(cloud=cloud), ask(doubtful(6)))
    assert [event.text for event in events if isinstance(event, Token)] == [CLOUD]
    assert answer_of(events).output == CLOUD


# The gate


async def test_nothing_is_told_before_the_gate_has_judged():
    edge = FakeGenerator()
    edge.hold_at = 3
    flow = router(edge, FakeCloud())
    events = flow.events(ask(sure(6)))
    first = asyncio.ensure_future(anext(events))
    await asyncio.to_thread(edge.held.wait, 10)
    await asyncio.sleep(0.02)
    assert not first.done(), "three tokens are there, and the gate needs four"
    edge.release.set()
    assert (await first).text == "<0>"
    assert [event async for event in events][-1] == Done("1")


async def test_a_signal_of_the_whole_text_holds_it_back():
    edge = FakeGenerator()
    edge.hold_at = 20
    flow = router(edge, FakeCloud(), certified=fakes.certificate(signal="mean_logprob"))
    events = flow.events(ask(sure(21)))
    first = asyncio.ensure_future(anext(events))
    await asyncio.to_thread(edge.held.wait, 10)
    await asyncio.sleep(0.02)
    assert not first.done()
    edge.release.set()
    await first
    await events.aclose()


async def test_a_text_shorter_than_the_gate_is_judged_when_it_is_over():
    events = await collect(router(cloud=FakeCloud()), ask(sure(2)))
    assert answer_of(events).decision.reason is Reason.CONFIDENT


async def test_an_empty_text_has_no_score_and_escalates():
    assert answer_of(await collect(router(cloud=FakeCloud()), ask(""))).source is Source.CLOUD


async def test_tokens_that_do_not_come_in_time_escalate_without_a_score():
    edge = FakeGenerator()
    edge.hold_at = 3
    timed = RouterSettings(text=TextSettings(gate_ms=20))
    flow = router(edge, FakeCloud(), settings=timed)
    answer = answer_of(await collect(flow, ask(sure(6))))
    assert (answer.source, answer.decision.reason, answer.decision.score) == (Source.CLOUD, Reason.GATE_LATE, None)
    await idle(flow, edge)


async def test_drawn_tokens_are_routed_by_the_same_score_and_uncertified():
    cache, store = hybrid.DictCache(), hybrid.DictStore()
    flow = router(cloud=FakeCloud(), cache=cache, audits=store, uniform=lambda: 0.0)
    drawn = Sampling(temperature=0.8)
    answer = await flow.answer(ask(sure(6), sampling=drawn))
    assert (answer.status, answer.decision.reason) == (Status.FINAL, Reason.SAMPLED)
    assert answer.decision.certificate_id is None
    assert (await flow.answer(ask(doubtful(6), sampling=drawn))).decision.reason is Reason.BELOW_THRESHOLD
    assert not cache
    assert not store.audits
    await flow.answer(ask(sure(6), sampling=Sampling(temperature=0.8, top_k=1)))
    assert len(store.audits) == 1, "the likeliest of one token is greedy"
    await flow.aclose()


@pytest.mark.parametrize(
    "asked",
    [{"begun": "The answer is"}, {"sampling": Sampling(schema="{}")}, {"sampling": Sampling(max_tokens=3)}],
    ids=["begun", "schema", "short"],
)
async def test_what_is_asked_in_a_way_that_was_not_certified_is_answered_without_the_certificate(asked):
    cache, store = hybrid.DictCache(), hybrid.DictStore()
    flow = router(cloud=FakeCloud(), cache=cache, audits=store, uniform=lambda: 0.0)
    answer = await flow.answer(ask("", prompt=fakes.prompt_of(sure(6), **asked)))
    assert (answer.status, answer.source, answer.decision.reason, answer.decision.certificate_id) == (
        Status.FINAL,
        Source.EDGE,
        Reason.UNLIKE_CERTIFIED,
        None,
    )
    escalated = await flow.answer(ask("", prompt=fakes.prompt_of(doubtful(6), **asked)))
    assert escalated.decision.reason is Reason.BELOW_THRESHOLD
    assert not store.audits
    assert len(cache) == 2, "the same prompt gets the same answer"
    await flow.aclose()


scripts = st.lists(st.sampled_from(["-0.1", "-0.4", "-2", "-6"]), max_size=12).map(
    lambda chances: " ".join(f"<{number}>:{chance}" for number, chance in enumerate(chances))
)


@settings(max_examples=60)
@given(
    script=scripts,
    mode=st.sampled_from([Mode.GUARDED, Mode.CLOUD_ONLY, Mode.EDGE_ONLY, Mode.SPECULATIVE]),
    signal=st.sampled_from(["mean_logprob:first=4", "low_logprob:first=2", "first_margin", "mean_logprob"]),
    cut=st.sampled_from([None, 0, 1, 2]),
    floor=st.sampled_from([None, -1.0]),
    revisable=st.booleans(),
    whole=st.booleans(),
)
def test_what_is_told_is_what_is_answered_and_nothing_is_told_unjudged(
    script, mode, signal, cut, floor, revisable, whole
):
    async def run():
        edge, cloud = FakeGenerator(), FakeCloud()
        cloud.cut_at = [cut]
        text = TextSettings(watch_window=2, watch_floor=floor)
        flow = router(
            edge,
            cloud,
            certified=fakes.certificate(signal=signal),
            settings=RouterSettings(cool_down_s=3600, text=text),
        )
        judged, order = flow._judgement.decide, []
        flow._flow._deciding._judgement = type(
            "Noted", (), {"decide": lambda _, *given: (order.append("judged"), judged(*given))[1]}
        )()
        request = ask(script, mode=mode, revisable=revisable)
        if whole:
            assert isinstance((await flow.answer(request)).output, str)
            await flow.aclose()
            return
        events = []
        async for event in flow.events(request):
            if isinstance(event, Token) and not events and mode is Mode.GUARDED:
                assert order == ["judged"]
            events.append(event)
        answer = answer_of(events)
        assert told(events) == answer.output
        kinds = [kind for kind, _ in itertools.groupby(type(event) for event in events)]
        assert kinds in [[*first, Answered, *revised, Done] for first in ([], [Token]) for revised in ([], [Revised])]
        if answer.decision.certificate_id is not None:
            assert fakes.sources(events) <= {Source.EDGE}
            assert answer.decision.score > -1.0
        await flow.aclose()
        await idle(flow, edge, cloud)

    asyncio.run(run())


# The cloud misbehaves


async def test_within_the_budget_no_token_gives_the_edge_provisionally_and_the_cloud_later():
    cloud, store = FakeCloud(), hybrid.DictStore()
    cloud.release.clear()
    flow = router(cloud=cloud, outbox=store, answers=store, settings=PATIENT)
    stream = flow.events(ask(doubtful(6), budget_ms=40))
    events = []
    async for event in stream:
        events.append(event)
        if isinstance(event, Answered):
            assert next(iter(store.owed.values())).inputs == fakes.prompt_of(doubtful(6)), "owed before it is told"
            cloud.release.set()
    answer = answer_of(events)
    assert (answer.status, answer.decision.reason) == (Status.PROVISIONAL, Reason.BUDGET_SPENT)
    assert told(events) == answer.output == fakes.text_of(doubtful(6))
    (revised,) = (event.answer for event in events if isinstance(event, Revised))
    assert (revised.output, revised.status, revised.source) == (CLOUD, Status.FINAL, Source.CLOUD)
    assert revised.written.completion_tokens == 3
    assert events[-1] == Done("1", pending=False)
    assert len(cloud.asked) == 1
    assert not store.owed
    await flow.aclose()


async def test_the_budget_of_a_stream_ends_with_its_first_token():
    cloud, metrics, clock = FakeCloud(), Metrics(), hybrid.Steps()
    cloud.rest.clear()
    flow = router(cloud=cloud, metrics=metrics, clock=clock, settings=PATIENT)
    stream = flow.events(ask(doubtful(6), budget_ms=9000))
    assert (await anext(stream)).text == "from "
    clock.now = 60.0
    cloud.rest.set()
    events = [event async for event in stream]
    answer = answer_of([Token(id="1", text="from "), *events])
    assert (answer.output, answer.status) == (CLOUD, Status.FINAL)
    assert b"edgewise_budget_missed_total{" not in metrics.render()


async def test_the_budget_of_a_whole_answer_is_for_all_of_it():
    cloud, store = FakeCloud(), hybrid.DictStore()
    cloud.rest.clear()
    flow = router(cloud=cloud, outbox=store, answers=store, settings=PATIENT)
    answer = await flow.answer(ask(doubtful(6), budget_ms=40))
    assert (answer.status, answer.output) == (Status.PROVISIONAL, fakes.text_of(doubtful(6)))
    cloud.rest.set()
    final = await store.wait_final("public", "1", timeout_s=10)
    assert final.output == CLOUD
    await flow.aclose()


async def test_tokens_that_are_wanted_with_the_whole_answer_come_within_its_budget_and_are_the_answers():
    cloud, store, metrics = FakeCloud(), hybrid.DictStore(), Metrics()
    cloud.rest.clear()
    flow = router(cloud=cloud, outbox=store, answers=store, metrics=metrics, settings=PATIENT)
    async with aclosing(flow.events(ask(doubtful(6), budget_ms=40, whole=True))) as stream:
        events = []
        async for event in stream:
            events.append(event)
            if isinstance(event, Answered):
                break
    answer = answer_of(events)
    assert (answer.status, answer.decision.reason) == (Status.PROVISIONAL, Reason.BUDGET_SPENT)
    assert told(events) == answer.output == fakes.text_of(doubtful(6))
    assert {event.source for event in events if isinstance(event, Token)} == {Source.EDGE}
    assert "first_token" not in answer.timings_ms
    cloud.rest.set()
    events = await collect(flow, ask(doubtful(6), request_id="2", whole=True))
    assert told(events) == answer_of(events).output == CLOUD
    events = await collect(flow, ask(sure(6), request_id="3", whole=True))
    assert told(events) == answer_of(events).output == fakes.text_of(sure(6))
    assert len([event for event in events if isinstance(event, Token)]) == 6
    await flow.aclose()


async def test_after_the_budget_the_first_whole_answer_counts():
    edge, cloud = FakeGenerator(), FakeCloud()
    edge.hold_at = 5
    cloud.rest.clear()
    flow = router(edge, cloud, settings=PATIENT)
    answering = asyncio.ensure_future(flow.answer(ask(doubtful(9), budget_ms=30)))
    await cloud.called.wait()
    await asyncio.sleep(0.05)
    cloud.rest.set()
    answer = await answering
    assert (answer.output, answer.status) == (CLOUD, Status.FINAL)
    await idle(flow, edge, cloud)


async def test_a_cloud_that_fails_before_its_first_token_gives_the_edge_and_is_asked_later():
    cloud, store = FakeCloud(), hybrid.DictStore()
    cloud.down = True
    flow = router(cloud=cloud, outbox=store, answers=store, settings=RouterSettings(cool_down_s=0.01, attempts=1))
    events = await collect(flow, ask(doubtful(6)))
    assert answer_of(events).decision.reason is Reason.CLOUD_FAILED
    assert told(events) == fakes.text_of(doubtful(6))
    assert events[-1] == Done("1", pending=True)
    cloud.down = False
    assert (await store.wait_final("public", "1", timeout_s=10)).output == CLOUD
    await flow.aclose()


async def test_a_refused_prompt_keeps_the_edges_text():
    cloud, store = FakeCloud(), hybrid.DictStore()
    cloud.refuses = True
    flow = router(cloud=cloud, outbox=store, answers=store)
    events = await collect(flow, ask(doubtful(6)))
    assert answer_of(events).decision.reason is Reason.CLOUD_REFUSED
    assert events[-1] == Done("1", pending=False)
    assert not store.owed


async def test_behind_an_open_breaker_nobody_waits():
    cloud = FakeCloud()
    cloud.down = True
    flow = router(cloud=cloud, settings=RouterSettings(failures_to_open=1, cool_down_s=3600, attempts=1))
    await collect(flow, ask(doubtful(6)))
    asked = len(cloud.asked)
    answer = answer_of(await collect(flow, ask(doubtful(6), request_id="2")))
    assert (answer.decision.reason, len(cloud.asked)) == (Reason.BREAKER_OPEN, asked)
    await flow.aclose()


async def test_a_stream_that_breaks_off_is_continued_from_what_was_told():
    cloud, cache = FakeCloud(), hybrid.DictCache()
    cloud.cut_at = [2]
    flow = router(cloud=cloud, cache=cache)
    events = await collect(flow, ask(doubtful(6), sampling=Sampling(max_tokens=20)))
    answer = answer_of(events)
    assert told(events) == answer.output == CLOUD
    again = cloud.asked[1].inputs
    assert (again.begun, again.sampling.max_tokens) == ("from the ", 18)
    assert answer.written.completion_tokens == 3
    assert not cache, "put together of two, it is kept for nobody else"
    await flow.aclose()


async def test_one_that_breaks_off_twice_ends_in_an_error():
    cloud = FakeCloud()
    cloud.cut_at = [2, 0]
    flow = router(cloud=cloud, settings=RouterSettings(attempts=1, cool_down_s=3600))
    stream = flow.events(ask(doubtful(6)))
    assert [(await anext(stream)).text for _ in range(2)] == ["from ", "the "]
    with pytest.raises(CloudError):
        await anext(stream)
    await flow.aclose()


async def test_a_whole_answer_of_a_stream_that_breaks_off_is_the_edges():
    cloud = FakeCloud()
    cloud.cut_at = [2]
    answer = await router(cloud=cloud, settings=PATIENT).answer(ask(doubtful(6)))
    assert (answer.decision.reason, answer.output) == (Reason.CLOUD_FAILED, fakes.text_of(doubtful(6)))


async def test_pieces_that_are_not_the_answer_are_no_answer():
    cloud = FakeCloud()
    cloud.lies = True
    answer = await router(cloud=cloud, settings=PATIENT).answer(ask(doubtful(6)))
    assert (answer.decision.reason, answer.source) == (Reason.CLOUD_FAILED, Source.EDGE)


async def test_the_breaker_hears_of_a_first_token_and_of_a_break_after_it():
    cloud = FakeCloud()
    cloud.rest.clear()
    quick = RouterSettings(slow_s=0.5, failures_to_open=1, cool_down_s=3600)
    flow = router(cloud=cloud, settings=quick)
    stream = flow.events(ask(doubtful(6)))
    await anext(stream)
    await asyncio.sleep(0.6)
    assert not flow._cloud.is_open, "it is slow to end, and was quick to begin"
    cloud.rest.set()
    assert answer_of([event async for event in stream]).output == CLOUD
    cloud.cut_at = [1, 0]
    with pytest.raises(CloudError):
        await collect(flow, ask(doubtful(6), request_id="2"))
    assert flow._cloud.is_open
    await flow.aclose()


async def test_a_cloud_that_is_slow_to_begin_opens_the_breaker():
    cloud = FakeCloud()
    cloud.release.clear()
    quick = RouterSettings(slow_s=0.02, failures_to_open=1, cool_down_s=3600)
    flow = router(cloud=cloud, settings=quick)
    stream = asyncio.ensure_future(collect(flow, ask(doubtful(6))))
    await until(lambda: flow._cloud.is_open)
    cloud.release.set()
    assert answer_of(await stream).output == CLOUD
    await flow.aclose()


async def test_another_cloud_voids_the_promise():
    cloud = FakeCloud(reference=Reference("cloud", "another"))
    flow = router(cloud=cloud)
    await collect(flow, ask(doubtful(6)))
    answer = answer_of(await collect(flow, ask(sure(6), request_id="2")))
    assert answer.decision.reason is Reason.CERTIFICATE_VOID


# Callers that leave


@pytest.mark.parametrize("hold_at", [1, 6])
async def test_closing_the_stream_stops_the_edge_within_a_token(hold_at):
    edge = FakeGenerator()
    edge.hold_at = hold_at
    flow = router(edge, FakeCloud())
    stream = flow.events(ask(sure(50)))
    first = asyncio.ensure_future(anext(stream))
    await asyncio.to_thread(edge.held.wait, 10)
    if hold_at == 6:
        await first
    else:
        first.cancel()
        await asyncio.wait({first})
    await stream.aclose()
    await idle(flow, edge)
    assert edge.writings[0].place == hold_at


async def test_closing_the_stream_ends_the_clouds():
    edge, cloud = FakeGenerator(), FakeCloud()
    cloud.rest.clear()
    flow = router(edge, cloud)
    stream = flow.events(ask(doubtful(6)))
    await anext(stream)
    await stream.aclose()
    await idle(flow, edge, cloud)
    assert cloud.cancelled == 1


async def test_a_cancelled_caller_of_a_whole_answer_stops_both():
    edge, cloud = FakeGenerator(), FakeCloud()
    edge.hold_at = 5
    cloud.rest.clear()
    flow = router(edge, cloud)
    answering = asyncio.ensure_future(flow.answer(ask(doubtful(9))))
    await cloud.called.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    await idle(flow, edge, cloud)
    assert cloud.cancelled == 1


async def test_one_that_waits_for_a_thread_is_never_begun():
    edge = FakeGenerator()
    edge.hold_at = 1
    flow = router(edge, FakeCloud(), settings=RouterSettings(text=TextSettings(threads=1)))
    first = flow.events(ask(sure(5)))
    running = asyncio.ensure_future(anext(first))
    await asyncio.to_thread(edge.held.wait, 10)
    second = asyncio.ensure_future(flow.answer(ask(sure(5), request_id="2")))
    await until(lambda: flow._flow._writers.running == 2)
    second.cancel()
    await asyncio.wait({second})
    edge.release.set()
    await running
    await first.aclose()
    await idle(flow, edge)
    assert len(edge.begun) == 1


async def test_a_router_that_closes_tells_nobody_half_a_text_as_whole():
    edge = FakeGenerator()
    edge.hold_at = 6
    flow = router(edge, FakeCloud())
    stream = flow.events(ask(sure(9)))
    await anext(stream)
    await asyncio.to_thread(edge.held.wait, 10)
    await flow.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        [event async for event in stream]
    await idle(flow, edge)


async def test_leaving_after_a_provisional_answer_leaves_its_update_owed():
    cloud, store = FakeCloud(), hybrid.DictStore()
    cloud.release.clear()
    flow = router(cloud=cloud, outbox=store, answers=store, settings=PATIENT)
    stream = flow.events(ask(doubtful(6), budget_ms=20))
    async for event in stream:
        if isinstance(event, Answered):
            break
    await stream.aclose()
    cloud.release.set()
    assert (await store.wait_final("public", "1", timeout_s=10)).output == CLOUD
    assert not cloud.cancelled
    await flow.aclose()


async def test_a_request_that_comes_again_is_told_what_is_kept():
    cloud, store = FakeCloud(), hybrid.DictStore()
    cloud.down = True
    flow = router(cloud=cloud, outbox=store, answers=store, settings=PATIENT)
    await collect(flow, ask(doubtful(6)))
    again = await collect(flow, ask(doubtful(6)))
    assert told(again) == answer_of(again).output
    with pytest.raises(RequestError, match="belongs to an earlier request"):
        await collect(flow, ask(doubtful(7)))
    await flow.aclose()


# Watching


WATCHED = RouterSettings(cool_down_s=3600, text=TextSettings(watch_window=2, watch_floor=-1.0))
COLLAPSING = f"{sure(5)} {doubtful(5, start=5)}"


async def test_where_text_was_told_for_good_the_cloud_goes_on_from_it():
    edge, cloud = FakeGenerator(), FakeCloud("and ", "so on")
    flow = router(edge, cloud, settings=WATCHED)
    events = await collect(flow, ask(COLLAPSING))
    answer = answer_of(events)
    begun = "<0><1><2><3><4><5>"
    assert cloud.asked[0].inputs.begun == begun
    assert told(events) == answer.output == begun + "and so on"
    assert (answer.source, answer.status) == (Source.CLOUD, Status.FINAL)
    assert (answer.decision.reason, answer.decision.certificate_id) == (Reason.CONFIDENCE_COLLAPSED, None)
    assert fakes.sources(events) == {Source.EDGE, Source.CLOUD}
    await flow.aclose()
    await idle(flow, edge, cloud)


@pytest.mark.parametrize(("limit", "finish"), [(None, Finish.STOP), (6, Finish.LENGTH)])
async def test_a_text_that_collapses_with_its_last_token_is_over(limit, finish):
    cloud = FakeCloud("more")
    flow = router(cloud=cloud, settings=WATCHED)
    script = f"{sure(5)} <5>:-9 {'' if limit is None else '<6>:-0.1'}"
    events = await collect(flow, ask(script, sampling=Sampling(max_tokens=limit)))
    answer = answer_of(events)
    assert answer.output == told(events) == "<0><1><2><3><4><5>"
    assert (answer.source, answer.written.finish, answer.written.completion_tokens) == (Source.EDGE, finish, 6)
    assert not cloud.asked, "nothing is left to go on with"
    await flow.aclose()


async def test_what_was_told_is_counted_once_where_the_cloud_goes_on():
    cloud = FakeCloud("".join(f"<{number}>" for number in range(9)))

    async def counted(request, *, timeout_s):
        yield Token(id="", text="<6><7><8>", logprob=-0.5)
        written = Written(finish=Finish.STOP, prompt_tokens=30, completion_tokens=3, cached_tokens=29)
        yield CloudReply("<6><7><8>", fakes.CERTIFIED, written=written)

    cloud.stream = counted
    flow = router(cloud=cloud, settings=WATCHED)
    events = await collect(flow, ask(COLLAPSING))
    count = sum(event.source is Source.EDGE for event in events if isinstance(event, Token))
    written = answer_of(events).written
    assert (written.prompt_tokens, written.completion_tokens) == (30 - count, count + 3)
    assert written.cached_tokens <= written.prompt_tokens
    await flow.aclose()


@pytest.mark.parametrize(("limit", "left"), [(30, 20), (11, 1), (10, None), (5, None)])
async def test_a_piece_of_several_tokens_is_not_counted_as_one(limit, left):
    """Of a cloud that tells no log-probabilities: one token for four bytes."""
    asked = []

    async def in_pieces(request, *, timeout_s):
        asked.append(request.inputs.sampling.max_tokens)
        if request.inputs.begun:
            yield CloudReply("ten", fakes.CERTIFIED)
            return
        yield Token(id="", text="one two three four five six seven eight ")
        for _ in range(20):  # what was written is told by then
            await asyncio.sleep(0)
        raise CloudUnreachableError("The stream broke off.")

    cloud = FakeCloud()
    cloud.stream = in_pieces
    flow = router(cloud=cloud)
    flow._recall.reference = fakes.CERTIFIED
    answer = answer_of(await collect(flow, ask(doubtful(6), sampling=Sampling(max_tokens=limit))))
    assert asked == ([limit] if left is None else [limit, left])
    assert answer.output.endswith("eight " if left is None else "ten")
    assert left is not None or answer.written.finish is Finish.LENGTH
    await flow.aclose()


async def test_where_it_can_be_taken_back_the_clouds_own_answer_replaces_it():
    cloud = FakeCloud()
    flow = router(cloud=cloud, settings=WATCHED)
    events = await collect(flow, ask(COLLAPSING, revisable=True))
    answer = answer_of(events)
    assert (answer.status, answer.decision.reason) == (Status.PROVISIONAL, Reason.CONFIDENCE_COLLAPSED)
    assert answer.decision.certificate_id is None
    assert told(events) == answer.output
    (revised,) = (event.answer for event in events if isinstance(event, Revised))
    assert revised.output == CLOUD
    assert not cloud.asked[0].inputs.begun
    await flow.aclose()


async def test_a_whole_answer_that_collapses_is_the_clouds():
    answer = await router(cloud=FakeCloud(), settings=WATCHED).answer(ask(COLLAPSING))
    assert (answer.output, answer.decision.reason) == (CLOUD, Reason.CONFIDENCE_COLLAPSED)


async def test_where_nobody_goes_on_the_edge_does_provisionally():
    cloud, store = FakeCloud(), hybrid.DictStore()
    cloud.down = True
    flow = router(cloud=cloud, outbox=store, answers=store, settings=WATCHED)
    events = await collect(flow, ask(COLLAPSING))
    answer = answer_of(events)
    assert told(events) == answer.output == fakes.text_of(COLLAPSING)
    assert (answer.status, answer.decision.certificate_id) == (Status.PROVISIONAL, None)
    assert store.owed["public", "1"].inputs.begun == ""
    await flow.aclose()


@pytest.mark.parametrize("hold_at", [None, 8], ids=["a draft that is over", "one that is stopped"])
async def test_the_edge_does_not_go_on_with_what_the_cloud_began(hold_at):
    """Its text was held back, so that all that was told is the cloud's, and then the breaker opens."""
    edge, cloud = FakeGenerator(), FakeCloud()
    edge.hold_at, cloud.cut_at = hold_at, [2]
    flow = router(edge, cloud, settings=WATCHED)
    stream = flow.events(ask(COLLAPSING, prompt=fakes.prompt_of(COLLAPSING, tools=(TOOL,))))
    assert (await anext(stream)).text == "from "
    for _ in range(10):
        flow._cloud._note_failure()
    assert (await anext(stream)).text == "the "
    with pytest.raises(CloudError):
        await anext(stream)
    await flow.aclose()
    await idle(flow, edge, cloud)


@pytest.mark.parametrize("script", [COLLAPSING, doubtful(9)], ids=["after a collapse", "after the gate"])
async def test_an_audited_text_that_ends_in_an_error_was_not_answered_here(script):
    cloud, store = FakeCloud(), hybrid.DictStore()
    cloud.stream = _one_word_and_gone
    flow = router(cloud=cloud, audits=store, uniform=lambda: 0.0, settings=WATCHED)
    with pytest.raises(CloudError):
        await collect(flow, ask(script))
    assert await store.settled() == [(False, False)]
    await flow.aclose()


async def _one_word_and_gone(request, *, timeout_s):
    yield Token(id="theirs", text="so", logprob=-0.5)
    for _ in range(20):  # what was written is told by then
        await asyncio.sleep(0)
    raise CloudUnreachableError("The stream broke off.")


async def test_nothing_is_watched_unless_asked_for():
    answer = answer_of(await collect(router(cloud=FakeCloud()), ask(COLLAPSING)))
    assert answer.decision.reason is Reason.CONFIDENT


# Tools


TOOL = Tool(
    name="weather",
    parameters='{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}',
)


def call(name="weather", arguments='{"city": "Oslo"}') -> ToolCall:
    return ToolCall(id="c1", name=name, arguments=arguments)


def tooled(script, **fields) -> Prompt:
    return fakes.prompt_of(script, tools=(TOOL,), **fields)


async def test_a_valid_call_is_answered_here():
    edge = FakeGenerator()
    edge.tool_calls = (call(),)
    events = await collect(router(edge, FakeCloud()), ask("", prompt=tooled(sure(5))))
    answer = answer_of(events)
    assert (answer.source, answer.written.tool_calls) == (Source.EDGE, (call(),))
    assert told(events) == answer.output


@pytest.mark.parametrize(
    "wrong",
    [
        call("unknown"),
        call(""),
        call(arguments="{"),
        call(arguments="[]"),
        call(arguments='{"city": 3}'),
        call(arguments="{}"),
    ],
)
async def test_an_invalid_call_escalates_before_anything_is_told(wrong):
    edge, cloud = FakeGenerator(), FakeCloud()
    edge.tool_calls = (call(), wrong)
    events = await collect(router(edge, cloud), ask("", prompt=tooled(sure(5))))
    answer = answer_of(events)
    assert told(events) == answer.output == CLOUD
    assert (answer.decision.reason, answer.decision.certificate_id) == (Reason.INVALID_TOOL_CALL, None)
    assert answer.decision.score == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "invalid_tool_call"), ("weather", "invalid_tool_call"), ("auto", "confident"), ("none", "confident")],
)
async def test_a_call_that_must_come_and_does_not_escalates(choice, reason):
    answer = await router(cloud=FakeCloud()).answer(ask("", prompt=tooled(sure(5), tool_choice=choice)))
    assert answer.decision.reason == reason


async def test_an_invalid_call_is_handed_to_nobody_where_only_the_edge_answers():
    edge = FakeGenerator()
    edge.tool_calls = (call("unknown"),)
    answer = await router(edge, FakeCloud()).answer(ask("", prompt=tooled(sure(5)), mode=Mode.EDGE_ONLY))
    assert (answer.decision.reason, answer.status) == (Reason.INVALID_TOOL_CALL, Status.FINAL)
    assert (answer.written.tool_calls, answer.written.finish) == ((), "stop")


@pytest.mark.parametrize("script", [sure(6), ""], ids=["behind a text", "alone"])
@pytest.mark.parametrize("fields", [{"mode": Mode.EDGE_ONLY}, {"data_policy": DataPolicy.LOCAL_ONLY}, {}])
async def test_what_was_no_call_is_told_as_the_text_that_it_is(script, fields):
    edge, cloud = FakeGenerator(), FakeCloud()
    edge.tool_calls, cloud.down = (call("", '{"na'),), True
    flow = router(edge, cloud)
    events = await collect(flow, ask(script, prompt=fakes.prompt_of(script, tools=(TOOL,)), **fields))
    assert told(events) == answer_of(events).output == fakes.text_of(script) + '{"na'
    assert fakes.sources(events) == {Source.EDGE}
    await flow.aclose()
    await idle(flow, edge)


@pytest.mark.parametrize("schema", ["nonsense", '{"type": 3}', '{"$ref": "http://127.0.0.1:9/x"}'])
async def test_a_schema_that_is_none_is_refused_before_anything_is_computed(schema):
    edge = FakeGenerator()
    tool = Tool(name="t", parameters=schema)
    with pytest.raises(RequestError) as refused:
        await router(edge, FakeCloud()).answer(ask("", prompt=fakes.prompt_of(sure(3), tools=(tool,))))
    assert refused.value.field == "tools"
    assert not edge.begun


# Speculation


async def speculated(judge=None, words=()):
    cloud, store = FakeCloud(*words), hybrid.DictStore()
    flow = router(cloud=cloud, outbox=store, answers=store, judge=judge)
    events = await collect(flow, ask(doubtful(6), mode=Mode.SPECULATIVE))
    await flow.aclose()
    answer = answer_of(events)
    assert (answer.status, answer.decision.reason) == (Status.PROVISIONAL, Reason.SPECULATIVE)
    assert told(events) == answer.output == fakes.text_of(doubtful(6))
    (revised,) = (event.answer for event in events if isinstance(event, Revised))
    assert revised.status is Status.FINAL
    assert store.stored["public", "1"] == revised
    return answer, revised


async def test_speculation_is_revised_where_the_cloud_says_something_else():
    _, revised = await speculated()
    assert (revised.output, revised.source) == (CLOUD, Source.CLOUD)


async def test_speculation_is_confirmed_where_the_judge_agrees():
    heard = []
    answer, revised = await speculated(lambda edge, cloud: heard.append((edge, cloud)) or True)
    assert heard == [(answer.output, CLOUD)]
    assert (revised.output, revised.source, revised.written) == (answer.output, Source.EDGE, answer.written)


async def test_a_judge_that_fails_confirms_nothing():
    def broken(edge, cloud):
        raise ZeroDivisionError

    _, revised = await speculated(broken)
    assert revised.output == CLOUD


async def test_speculation_tells_at_once_and_asks_nobody_where_it_is_confident():
    edge, cloud = FakeGenerator(), FakeCloud()
    edge.hold_at = 2
    flow = router(edge, cloud)
    stream = flow.events(ask(sure(6), mode=Mode.SPECULATIVE))
    assert (await anext(stream)).text == "<0>", "the gate needs four"
    edge.release.set()
    answer = answer_of([event async for event in stream])
    assert (answer.status, answer.decision.reason) == (Status.FINAL, Reason.CONFIDENT)
    assert not cloud.asked


# Cache, audits, errors


async def test_a_hit_is_told_as_one_token():
    cache = hybrid.DictCache()
    edge = FakeGenerator()
    flow = router(edge, FakeCloud(), cache=cache)
    first = answer_of(await collect(flow, ask(sure(5))))
    events = await collect(flow, ask(sure(5), request_id="2"))
    assert [event.text for event in events if isinstance(event, Token)] == [first.output]
    hit = answer_of(events)
    assert (hit.id, hit.source, hit.decision.reason, hit.written) == (
        "2",
        Source.CACHE,
        Reason.CACHE_HIT,
        first.written,
    )
    assert isinstance(flow.respond(ask(sure(5), request_id="3")), Answer), "known at once"
    assert len(edge.begun) == 1
    await collect(flow, ask(sure(5), request_id="4", tenant="others"))
    assert len(edge.begun) == 2


@pytest.mark.parametrize(("judge", "kept"), [(None, (True, False)), (lambda edge, cloud: True, (False, False))])
async def test_audits_hold_the_whole_texts_against_each_other(judge, kept):
    store = hybrid.DictStore()
    flow = router(cloud=FakeCloud(), audits=store, uniform=lambda: 0.0, judge=judge)
    await collect(flow, ask(sure(6)))
    assert await store.settled() == [kept]
    await flow.aclose()


async def test_a_judge_holds_up_nobody():
    """It may be a model, or a user's own: each is asked in a thread, wherever texts are compared."""
    asked = []

    def judge(edge: str, cloud: str) -> bool:
        asked.append(threading.current_thread())
        return True

    store = hybrid.DictStore()
    flow = router(cloud=FakeCloud(), audits=store, answers=store, outbox=store, uniform=lambda: 0.0, judge=judge)
    await collect(flow, ask(sure(6)))
    await collect(flow, ask(doubtful(3), request_id="2"))
    await collect(flow, ask(doubtful(3), request_id="3", mode=Mode.SPECULATIVE))
    assert await store.settled() == [(False, False)] * 3
    assert len(asked) == 3
    assert threading.current_thread() not in asked
    await flow.aclose()


async def leave(asking, edge, hold_at):
    """Ask, and leave once the edge model has come so far; it goes on afterwards."""
    edge.hold_at = hold_at
    answering = asyncio.ensure_future(asking)
    await asyncio.to_thread(edge.held.wait, 10)
    for _ in range(20):  # what was written is told by then
        await asyncio.sleep(0)
    answering.cancel()
    await asyncio.wait({answering})
    edge.release.set()


@pytest.mark.parametrize("hold_at", [0, 3, 4, 8])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("says", ["the same", "something else"])
async def test_who_leaves_an_audited_text_chooses_no_verdict(hold_at, whole, says):
    """Who sees a bad text leaves it: it is written on and judged as if they had stayed."""
    store, edge = hybrid.DictStore(), FakeGenerator()
    cloud = FakeCloud(*([fakes.text_of(sure(9))] if says == "the same" else []))
    flow = router(edge, cloud, audits=store, uniform=lambda: 0.0)
    await leave(flow.answer(ask(sure(9))) if whole else collect(flow, ask(sure(9))), edge, hold_at)
    assert await store.settled() == [(says == "something else", False)]
    assert store.found[0].score == pytest.approx(-0.1)
    assert edge.writings[0].place == 9, "written to its end"
    await idle(flow, edge)


@pytest.mark.parametrize(
    ("script", "hold_at", "score"),
    [(doubtful(9), 2, -5), (COLLAPSING, 5, -0.1), (f"{sure(4)} {doubtful(9, start=4)}", 4, -0.1)],
    ids=["judged after it", "collapses after it", "both"],
)
async def test_an_audited_text_that_would_not_have_been_answered_here_is_kept_whoever_leaves(script, hold_at, score):
    store, edge, cloud = hybrid.DictStore(), FakeGenerator(), FakeCloud()
    flow = router(edge, cloud, audits=store, uniform=lambda: 0.0, settings=WATCHED)
    await leave(collect(flow, ask(script)), edge, hold_at)
    assert await store.settled() == [(False, False)]
    assert store.found[0].score == pytest.approx(score)
    assert not cloud.asked, "nobody waits for it"
    await idle(flow, edge)


async def test_who_leaves_an_audited_escalation_ends_its_call():
    store, edge, cloud = hybrid.DictStore(), FakeGenerator(), FakeCloud()
    cloud.rest.clear()
    flow = router(edge, cloud, audits=store, uniform=lambda: 0.0)
    stream = flow.events(ask(doubtful(9)))
    await anext(stream)
    await stream.aclose()
    assert await store.settled() == [(False, False)]
    await until(lambda: cloud.cancelled == 1)
    await idle(flow, edge, cloud)


async def test_an_audited_text_that_cannot_be_written_on_has_no_verdict(monkeypatch):
    """The router closes: a bad text may have been left for it."""
    monkeypatch.setattr("edgewise.router.verdicts._LAST_S", 0.01)
    store, edge = hybrid.DictStore(), FakeGenerator()
    flow = router(edge, FakeCloud(), audits=store, uniform=lambda: 0.0)
    edge.hold_at = 5
    stream = flow.events(ask(sure(9)))
    await anext(stream)
    await stream.aclose()
    await flow.aclose()
    assert await store.settled() == [(True, True)]


async def test_an_audited_escalation_is_settled_by_its_score():
    store = hybrid.DictStore()
    flow = router(cloud=FakeCloud(), audits=store, uniform=lambda: 0.0)
    await collect(flow, ask(doubtful(6)))
    assert await store.settled() == [(False, False)]
    assert store.found[0].score == pytest.approx(-5)
    await flow.aclose()


async def test_where_audits_earn_another_certificate_both_texts_are_waited_for(monkeypatch):
    store, edge, cache = hybrid.DictStore(), FakeGenerator(), hybrid.DictCache()
    edge.hold_at = 5
    flow = router(edge, FakeCloud(), audits=store, cache=cache, uniform=lambda: 0.0)
    monkeypatch.setattr(flow._verdicts, "wants_both", lambda turn: turn.draw is not None)
    assert answer_of(await collect(flow, ask(doubtful(9)))).source is Source.CLOUD
    assert len(cache) == 1
    assert store.audits == [None]
    edge.release.set()
    assert await store.settled() == [(False, False)]
    assert (store.found[0].score, store.found[0].differs) == (pytest.approx(-5), True)
    await flow.aclose()
    await idle(flow, edge)


async def test_the_judge_of_a_certificate_is_found_by_its_name():
    store = hybrid.DictStore()
    cloud = FakeCloud("<0><1><2><3><4><5>", " ")
    flow = router(cloud=cloud, certified=fakes.certificate(judge="exact"), audits=store, uniform=lambda: 0.0)
    await collect(flow, ask(sure(6)))
    assert await store.settled() == [(False, False)], "the same but for a blank"
    await flow.aclose()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (InputError("The template refuses these roles.", "Send others."), RequestError),
        (ZeroDivisionError("broken"), ZeroDivisionError),
    ],
)
@pytest.mark.parametrize("where", ["refusal", "error"])
async def test_what_the_model_cannot_answer_is_said(error, raised, where):
    edge, store = FakeGenerator(), hybrid.DictStore()
    edge.fail_at = 0
    setattr(edge, where, error)
    flow = router(edge, FakeCloud(), audits=store, uniform=lambda: 0.0)
    with pytest.raises(raised):
        await collect(flow, ask(sure(6)))
    assert await store.settled() == [(raised is ZeroDivisionError,) * 2]
    with pytest.raises(raised):
        await flow.answer(ask(sure(6), request_id="2"))
    await flow.aclose()
    await idle(flow, edge)


BEYOND = [PromptTooLongError("The prompt has 9 tokens.", "Shorten it."), BeyondModelError("tools: no place.", "None.")]


@pytest.mark.parametrize("error", BEYOND)
@pytest.mark.parametrize("where", ["refusal", "error"])
@pytest.mark.parametrize("mode", [Mode.GUARDED, Mode.SPECULATIVE])
async def test_what_is_beyond_the_edge_is_written_by_the_cloud(error, where, mode):
    edge, cloud, store = FakeGenerator(), FakeCloud(), hybrid.DictStore()
    edge.fail_at = 0
    setattr(edge, where, error)
    flow = router(edge, cloud, audits=store, uniform=lambda: 0.0)
    events = await collect(flow, ask(sure(6), mode=mode))
    answer = next(event.answer for event in events if isinstance(event, Answered))
    assert (answer.source, answer.status, answer.decision.reason) == (Source.CLOUD, Status.FINAL, Reason.BEYOND_EDGE)
    assert told(events) == answer.output
    assert (await flow.answer(ask(sure(6), request_id="2", mode=mode))).source is Source.CLOUD
    await flow.aclose()
    await idle(flow, edge)


LATE = BeyondModelError("schema: it grew too large.", "Give a simpler one.")


@pytest.mark.parametrize(
    ("script", "fields", "told_here"),
    [
        (sure(9), {}, 6),
        (sure(9), {"revisable": True}, 6),
        (sure(9), {"mode": Mode.SPECULATIVE}, 6),
        (doubtful(9), {"mode": Mode.SPECULATIVE}, 6),
        (COLLAPSING, {"revisable": True}, 6),
        (doubtful(9), {}, 0),
        (sure(9), {"prompt": fakes.prompt_of(sure(9), tools=(TOOL,))}, 0),
        (doubtful(9), {"prompt": fakes.prompt_of(doubtful(9), tools=(TOOL,)), "mode": Mode.SPECULATIVE}, 0),
    ],
    ids=["told", "could be taken back", "at once", "doubtful", "collapsed", "doubted", "held", "held and doubtful"],
)
async def test_what_is_beyond_the_edge_in_the_middle_of_its_text_is_gone_on_with_by_the_cloud(
    script, fields, told_here
):
    edge, cloud = FakeGenerator(), FakeCloud("and ", "so on")
    edge.fail_at, edge.error = 6, LATE
    flow = router(edge, cloud, settings=WATCHED)
    events = await _released(flow.events(ask(script, **fields)), edge, told_here)
    answer = answer_of(events)
    begun = "".join(f"<{number}>" for number in range(told_here))
    assert cloud.asked[-1].inputs.begun == begun
    assert told(events) == answer.output == begun + "and so on"
    assert (answer.source, answer.status, answer.decision.certificate_id) == (Source.CLOUD, Status.FINAL, None)
    assert (await flow.answer(ask(script, request_id="2", **fields))).output == "and so on"
    await flow.aclose()
    await idle(flow, edge)


async def test_what_is_beyond_the_edge_in_the_middle_and_goes_on_nowhere_ends_in_an_error():
    edge, cloud, store = FakeGenerator(), FakeCloud(), hybrid.DictStore()
    edge.fail_at, edge.error, cloud.down = 6, LATE, True
    flow = router(edge, cloud, audits=store, uniform=lambda: 0.0)
    with pytest.raises(CloudError):
        await _released(flow.events(ask(sure(9))), edge, 6)
    assert await store.settled() == [(False, False)]
    with pytest.raises(RequestError) as refused:
        await _released(flow.events(ask(sure(9), mode=Mode.EDGE_ONLY)), edge, 6)
    assert refused.value.field == "response_format"
    await flow.aclose()
    await idle(flow, edge)


async def _released(stream, edge, count):
    """All events, where the edge model goes on once so many tokens were told."""
    edge.release.clear()
    edge.hold_at = count or None
    events = []
    async for event in stream:
        events.append(event)
        if len(events) == count:
            edge.hold_at = None
            edge.release.set()
    return events


@pytest.mark.parametrize(("error", "raised"), [*zip(BEYOND, (PromptTooLongError, RequestError), strict=True)])
@pytest.mark.parametrize("fields", [{"mode": Mode.EDGE_ONLY}, {"data_policy": DataPolicy.LOCAL_ONLY}, {}])
async def test_what_is_beyond_the_edge_is_refused_where_nobody_else_may_answer(error, raised, fields):
    edge, cloud = FakeGenerator(), FakeCloud()
    edge.refusal = error
    cloud.down = True
    flow = router(edge, cloud)
    with pytest.raises(raised):
        await collect(flow, ask(sure(6), **fields))
    await flow.aclose()
    await idle(flow, edge)


@pytest.mark.parametrize(
    ("problem", "field", "code"),
    [
        ("schema: answers cannot be held to it.", "response_format", "invalid_json_schema"),
        ("tool_choice: there is no such tool.", "tool_choice", "invalid_request"),
        ("temperature: it is cold.", "temperature", "invalid_request"),
        ("The template refuses: roles.", "messages", "invalid_request"),
    ],
)
async def test_an_error_of_a_prompt_names_its_field(problem, field, code):
    edge = FakeGenerator()
    edge.refusal = InputError(problem, "Change it.")
    flow = router(edge, FakeCloud())
    with pytest.raises(RequestError) as refused:
        await flow.answer(ask(sure(6)))
    assert (refused.value.field, refused.value.code, refused.value.problem) == (field, code, problem)
    await flow.aclose()


@pytest.mark.parametrize("wanted", [{"logprobs": True}, {"top_logprobs": 2}])
async def test_who_wants_log_probabilities_gets_no_answer_that_was_kept(wanted):
    edge = FakeGenerator()
    flow = router(edge, FakeCloud(), cache=hybrid.DictCache())
    for name in "123":
        answer = await flow.answer(ask(sure(6), request_id=name, sampling=Sampling(**wanted)))
        assert answer.source is Source.EDGE
    await flow.aclose()


async def test_a_model_that_fails_in_the_middle_ends_in_its_error():
    edge = FakeGenerator()
    edge.hold_at, edge.fail_at, edge.error = 5, 5, OSError("gone")
    stream = router(edge, FakeCloud()).events(ask(sure(9)))
    assert [(await anext(stream)).text for _ in range(5)] == ["<0>", "<1>", "<2>", "<3>", "<4>"]
    edge.release.set()
    with pytest.raises(OSError, match="gone"):
        await anext(stream)


async def test_a_model_of_texts_takes_prompts_only():
    with pytest.raises(RequestError):
        await router(cloud=FakeCloud()).answer(Request(inputs="a text"))


async def test_tokens_and_first_tokens_are_counted():
    metrics, edge = Metrics(), FakeGenerator()
    flow = router(edge, FakeCloud(), metrics=metrics)
    await collect(flow, ask(sure(6)))
    await collect(flow, ask(doubtful(4), request_id="2"))
    await idle(flow, edge)
    page = metrics.render().decode()
    assert 'edgewise_tokens_total{source="edge"} 10' in page
    assert 'edgewise_tokens_total{source="cloud"} 3' in page
    assert 'edgewise_first_token_seconds_count{source="edge"} 1' in page
    assert 'edgewise_first_token_seconds_count{source="cloud"} 1' in page


def test_the_values_of_the_test_are_the_contracts():
    from edgewise.contracts import LocalGenerator, StreamingCloudClient

    assert isinstance(FakeGenerator(), LocalGenerator)
    assert isinstance(FakeCloud(), StreamingCloudClient)
    assert not isinstance(fakes.WholeCloud(), StreamingCloudClient)
    assert msgspec.structs.asdict(CloudReply("a", fakes.CERTIFIED))["written"] is None
    assert Prediction(output="a").written is None
