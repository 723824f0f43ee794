"""The flow with a scripted edge and a scripted cloud: every branch, and what each leaves behind."""

import asyncio
import itertools
import time

import msgspec
import numpy as np
import pytest

from edgewise import contracts
from edgewise.contracts import (
    Action,
    Answered,
    AuditTotals,
    CloudReply,
    DataPolicy,
    Debt,
    Done,
    Mode,
    Prediction,
    Reason,
    Reference,
    Request,
    Revised,
    Source,
    Status,
)
from edgewise.errors import CertificateError, CloudUnreachableError, ConfigError, InputError, RequestError
from edgewise.router import Plugs, Router, RouterSettings
from edgewise.router import certificate as certificates
from edgewise.router.settings import Profile

CERTIFIED = Reference("cloud", "sha256:certified")


class ScriptedEdge:
    """An edge model whose logits are the numbers in the text: "0.9 0.1" is confident in class a."""

    digest = "sha256:edge"
    labels = ("a", "b")
    task = "text-classification"

    def __init__(self):
        self.calls = 0

    def predict(self, inputs):
        self.calls += len(inputs)
        return [self._one(item) for item in inputs]

    def _one(self, item):
        if item == "unreadable":
            raise InputError("The item is unreadable.", "Send another.")
        logits = np.log(np.array([float(part) for part in item.split()], dtype=np.float32))
        return Prediction(output=self.labels[int(np.argmax(logits))], logits=logits)


class ScriptedCloud:
    """A cloud that answers `output`, waits for `release` while it is blocked, and fails while it is down."""

    def __init__(self, output="b", reference=CERTIFIED):
        self.output = output
        self.reference = reference
        self.down = False
        self.calls = 0
        self.cancelled = 0
        self.closed = False
        self.release = asyncio.Event()
        self.release.set()
        self.asked = asyncio.Event()
        self.probed = asyncio.Event()

    async def describe(self, *, timeout_s):
        self.probed.set()
        if self.down:
            raise CloudUnreachableError("down")
        return self.reference

    async def predict(self, request, *, timeout_s):
        self.calls += 1
        self.asked.set()
        if self.down:
            raise CloudUnreachableError("down")
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return CloudReply(self.output, self.reference)

    async def aclose(self):
        self.closed = True


class DictStore:
    """Outbox, answers, audits and spending in dictionaries: the Protocols without durability."""

    def __init__(self):
        self.owed = {}
        self.stored, self.items = {}, {}
        self.audits, self.drawn_in, self.found = [], [], []
        self.folded, self.kept, self.days = {}, {}, {}
        self.changed = asyncio.Event()

    # Outbox
    def put(self, *args, item=None):
        if len(args) == 2:
            self.stored[args[0], args[1].id] = args[1]
            if item is not None:
                self.items[args[0], args[1].id] = item
            self.changed.set()
            return None
        key = (args[0].tenant, args[0].id)
        added = key not in self.owed
        self.owed.setdefault(key, args[0])
        return added

    def __len__(self):
        return len(self.owed)

    def pending(self, limit):
        return list(self.owed.values())[:limit]

    def debts(self):
        return [Debt(request.tenant, request.id, request.session, time.time()) for request in self.owed.values()]

    def request(self, tenant, request_id):
        return self.owed.get((tenant, request_id))

    def done(self, tenant, request_id):
        del self.owed[tenant, request_id]

    # AnswerStore
    def get(self, tenant, request_id):
        return self.stored.get((tenant, request_id))

    def find(self, tenant, request_id):
        key = tenant, request_id
        return contracts.Kept(self.stored[key], self.items.get(key)) if key in self.stored else None

    async def wait_final(self, tenant, request_id, *, timeout_s):
        async with asyncio.timeout(timeout_s):
            while (found := self.get(tenant, request_id)) is None or found.status is not Status.FINAL:
                self.changed.clear()
                await self.changed.wait()
        return found

    # AuditLog
    def drawn(self, request_id, epoch):
        self.audits.append(None)
        self.drawn_in.append(epoch)
        self.found.append(None)
        return len(self.audits) - 1

    def verdict(self, position, verdict):
        assert self.audits[position] is None
        self.audits[position] = (verdict.violation, verdict.missing)
        self.found[position] = verdict
        self.changed.set()

    def advance(self, epoch, fold):
        state, done = self.folded.get(epoch, (None, 0))
        fresh = self._in_order(epoch)[done:]
        self.folded[epoch] = (fold(state, fresh), done + len(fresh))
        return self.folded[epoch][0]

    def verdicts(self, epoch, limit):
        return self._in_order(epoch)[:limit]

    def _in_order(self, epoch):
        """Verdicts of an epoch in draw order, up to the first draw that is still open."""
        mine = [found for found, where in zip(self.found, self.drawn_in, strict=True) if where == epoch]
        return list(itertools.takewhile(lambda verdict: verdict is not None, mine))

    def totals(self, epoch):
        mine = [found for found, where in zip(self.found, self.drawn_in, strict=True) if where == epoch]
        known = [verdict for verdict in mine if verdict is not None]
        return AuditTotals(
            drawn=len(mine),
            violations=sum(verdict.violation for verdict in known),
            missing=sum(verdict.missing for verdict in known),
            open=len(mine) - len(known),
        )

    def remember(self, key, value):
        self.kept[key] = value

    def recall(self, key):
        return self.kept.get(key)

    # Spending
    def spent(self, day):
        return self.days.get(day, 0.0)

    def spend(self, day, amount):
        self.days[day] = self.spent(day) + amount
        return self.days[day]

    async def settled(self):
        while None in self.audits:
            self.changed.clear()
            await self.changed.wait()
        return self.audits


class DictCache(dict):
    def put(self, key, answer):
        self[key] = answer


class Steps:
    """A clock that moves only when told to."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


def certificate(threshold=0.5, model_digest=ScriptedEdge.digest):
    bound = contracts.Bound(threshold=threshold, local_share=0.5, n=300, k=0, alpha=0.01, delta=0.05)
    return certificates.issue(
        bound,
        model_digest=model_digest,
        signal="margin",
        data_digest="data",
        reference=CERTIFIED,
        created="2026-01-01T00:00:00Z",
        runtime="1",
        isa="any",
    )


def router(cloud, *, threshold=0.5, settings=None, edge=None, **plugs):
    return Router(
        edge or ScriptedEdge(),
        cloud,
        certificate(threshold),
        settings=settings or RouterSettings(cool_down_s=0.01),
        plugs=Plugs(**plugs),
    )


CONFIDENT, DOUBTFUL = "0.9 0.1", "0.6 0.4"


async def collect(service, request):
    return [event async for event in service.events(request)]


async def test_a_confident_answer_is_local_final_and_certified():
    cloud = ScriptedCloud()
    flow = router(cloud)
    answer = await flow.answer(Request(inputs=CONFIDENT, id="1"))
    assert (answer.output, answer.status, answer.source) == ("a", Status.FINAL, Source.EDGE)
    assert answer.decision.reason is Reason.CONFIDENT
    assert answer.decision.certificate_id == flow.certificate.id
    assert answer.decision.score == pytest.approx(0.8, abs=1e-6)
    assert cloud.calls == 0


async def test_a_score_equal_to_the_threshold_escalates():
    exact = float(np.float64(1.0))
    answer = await router(ScriptedCloud(), threshold=exact).answer(Request(inputs="1.0 0.0000000000000001"))
    assert answer.source is Source.CLOUD


async def test_a_doubtful_answer_comes_from_the_cloud_and_is_not_certified():
    answer = await router(ScriptedCloud()).answer(Request(inputs=DOUBTFUL))
    assert (answer.output, answer.status, answer.source) == ("b", Status.FINAL, Source.CLOUD)
    assert answer.decision.reason is Reason.BELOW_THRESHOLD
    assert answer.decision.certificate_id is None
    assert answer.model_digest == CERTIFIED.version


async def test_nan_logits_escalate():
    answer = await router(ScriptedCloud()).answer(Request(inputs="nan nan"))
    assert answer.source is Source.CLOUD


class Knowing(ScriptedEdge):
    """An edge whose graph computes the margin and whose encoder knows what it was not made for."""

    def __init__(self, margin=None, foreign=False):
        super().__init__()
        self.facts = {"margin": margin, "out_of_distribution": foreign}

    def _one(self, item):
        return msgspec.structs.replace(super()._one(item), **self.facts)


async def test_the_margin_of_the_graph_itself_is_the_score():
    answer = await router(ScriptedCloud(), edge=Knowing(margin=0.75)).answer(Request(inputs=DOUBTFUL))
    assert (answer.source, answer.decision.score) == (Source.EDGE, 0.75)


@pytest.mark.parametrize("threshold", [0.5, -np.inf])
async def test_out_of_distribution_escalates_whatever_the_threshold(threshold):
    flow = router(ScriptedCloud(), threshold=threshold, edge=Knowing(margin=1.0, foreign=True))
    answer = await flow.answer(Request(inputs=CONFIDENT))
    assert (answer.source, answer.decision.reason) == (Source.CLOUD, Reason.OUT_OF_DISTRIBUTION)
    assert answer.decision.certificate_id is None
    assert np.isnan(answer.decision.score)


async def test_a_void_certificate_is_named_before_the_distribution():
    cloud = ScriptedCloud(reference=Reference("cloud", "sha256:another"))
    flow = router(cloud, edge=Knowing(foreign=True))
    await flow.answer(Request(inputs=DOUBTFUL))
    assert flow.certificate is None
    answer = await flow.answer(Request(inputs=CONFIDENT))
    assert answer.decision.reason is Reason.CERTIFICATE_VOID


async def test_who_asks_for_the_edge_alone_gets_it_out_of_distribution_too():
    answer = await router(ScriptedCloud(), edge=Knowing(foreign=True)).answer(
        Request(inputs=CONFIDENT, mode=Mode.EDGE_ONLY)
    )
    assert (answer.source, answer.decision.certificate_id) == (Source.EDGE, None)


async def test_a_late_cloud_gives_a_provisional_answer_and_then_a_revision_under_the_same_id():
    cloud, store = ScriptedCloud(), DictStore()
    cloud.release.clear()
    flow = router(cloud, outbox=store, answers=store)
    events = flow.events(Request(inputs=DOUBTFUL, id="late", budget_ms=5))
    provisional = (await anext(events)).answer
    assert (provisional.status, provisional.source, provisional.output) == (Status.PROVISIONAL, Source.EDGE, "a")
    assert provisional.decision.reason is Reason.BUDGET_SPENT
    assert provisional.decision.certificate_id is None
    assert [request.id for request in store.pending(9)] == ["late"], "owed before it was sent"
    cloud.release.set()
    assert [type(event) for event in [event async for event in events]] == [Revised, Done]
    final = store.get("public", "late")
    assert (final.status, final.source, final.output, final.id) == (Status.FINAL, Source.CLOUD, "b", "late")
    assert store.pending(9) == []
    assert cloud.calls == 1, "the late call itself brings the answer"


async def test_the_update_comes_even_if_the_stream_is_closed_after_the_provisional_answer():
    cloud, store = ScriptedCloud(), DictStore()
    cloud.release.clear()
    flow = router(cloud, outbox=store, answers=store)
    answer = await flow.answer(Request(inputs=DOUBTFUL, id="x", budget_ms=5))
    assert answer.status is Status.PROVISIONAL
    cloud.release.set()
    assert (await store.wait_final("public", "x", timeout_s=10)).output == "b"


async def test_guarded_waits_for_the_cloud_while_the_budget_allows():
    cloud = ScriptedCloud()
    cloud.release.clear()
    waiting = asyncio.ensure_future(router(cloud).answer(Request(inputs=DOUBTFUL, budget_ms=60_000)))
    await cloud.asked.wait()
    assert not waiting.done()
    cloud.release.set()
    assert (await waiting).source is Source.CLOUD


async def test_speculative_sends_the_edge_answer_at_once_and_the_clouds_later():
    cloud = ScriptedCloud()
    first, second, last = await collect(router(cloud), Request(inputs=DOUBTFUL, mode=Mode.SPECULATIVE))
    assert isinstance(first, Answered)
    assert first.answer.status is Status.PROVISIONAL
    assert first.answer.decision.reason is Reason.SPECULATIVE
    assert isinstance(second, Revised)
    assert second.answer.output == "b"
    assert last == Done(first.answer.id, pending=False)


async def test_a_caller_that_gives_up_before_its_answer_cancels_the_cloud_call():
    cloud = ScriptedCloud()
    cloud.release.clear()
    waiting = asyncio.ensure_future(router(cloud).answer(Request(inputs=DOUBTFUL)))
    await cloud.asked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert cloud.cancelled == 1


async def test_a_dead_cloud_gives_provisional_answers_and_opens_the_breaker():
    cloud, store = ScriptedCloud(), DictStore()
    cloud.down = True
    settings = RouterSettings(failures_to_open=2, cool_down_s=3600)
    flow = router(cloud, settings=settings, outbox=store, answers=store)
    reasons = [(await flow.answer(Request(inputs=DOUBTFUL))).decision.reason for _ in range(4)]
    assert reasons[0] is Reason.CLOUD_FAILED
    assert reasons[-2:] == [Reason.BREAKER_OPEN] * 2
    assert cloud.calls == 2, "behind an open breaker no request asks"
    assert len(store.pending(9)) == 4
    await flow.aclose()


async def test_what_is_owed_is_delivered_when_the_cloud_is_back():
    cloud, store = ScriptedCloud(), DictStore()
    cloud.down = True
    flow = router(cloud, settings=RouterSettings(failures_to_open=1, cool_down_s=0.001), outbox=store, answers=store)
    answers = [await flow.answer(Request(inputs=DOUBTFUL, id=str(i))) for i in range(5)]
    assert all(answer.status is Status.PROVISIONAL for answer in answers)
    cloud.down = False
    for i in range(5):
        assert (await store.wait_final("public", str(i), timeout_s=10)).output == "b"
    assert store.pending(9) == []
    assert (await flow.answer(Request(inputs=DOUBTFUL))).source is Source.CLOUD, "the breaker closed again"


async def test_a_new_process_delivers_what_an_earlier_one_owed():
    store = DictStore()
    store.put(Request(inputs=DOUBTFUL, id="old"))
    flow = router(ScriptedCloud(), outbox=store, answers=store)
    async with flow.running():
        assert (await store.wait_final("public", "old", timeout_s=10)).output == "b"


async def test_edge_only_is_final_and_uncertified_and_never_asks():
    cloud = ScriptedCloud()
    answer = await router(cloud).answer(Request(inputs=DOUBTFUL, mode=Mode.EDGE_ONLY))
    assert (answer.source, answer.status, answer.decision.certificate_id) == (Source.EDGE, Status.FINAL, None)
    assert cloud.calls == 0


async def test_cloud_only_skips_the_edge_model_while_the_cloud_answers():
    edge = ScriptedEdge()
    answer = await router(ScriptedCloud(), edge=edge).answer(Request(inputs=CONFIDENT, mode=Mode.CLOUD_ONLY))
    assert (answer.source, answer.decision.reason, edge.calls) == (Source.CLOUD, Reason.CLOUD_ONLY, 0)


async def test_cloud_only_with_a_dead_cloud_is_provisional():
    cloud = ScriptedCloud()
    cloud.down = True
    flow = router(cloud, settings=RouterSettings(cool_down_s=3600))
    answer = await flow.answer(Request(inputs=CONFIDENT, mode=Mode.CLOUD_ONLY))
    assert (answer.status, answer.decision.reason) == (Status.PROVISIONAL, Reason.CLOUD_FAILED)


async def test_local_only_data_never_leaves_not_even_into_cache_outbox_or_audit():
    cloud, store, cache = ScriptedCloud(), DictStore(), DictCache()
    flow = router(cloud, outbox=store, answers=store, audits=store, cache=cache, uniform=lambda: 0.0)
    answer = await flow.answer(Request(inputs=DOUBTFUL, data_policy=DataPolicy.LOCAL_ONLY))
    assert (answer.status, answer.decision.reason) == (Status.FINAL, Reason.LOCAL_ONLY)
    assert answer.decision.certificate_id is None
    assert (cloud.calls, store.owed, store.audits, cache) == (0, {}, [], {})


async def test_local_only_data_that_asks_for_the_cloud_is_refused():
    with pytest.raises(RequestError, match="no place is left"):
        await router(ScriptedCloud()).answer(
            Request(inputs=CONFIDENT, mode=Mode.CLOUD_ONLY, data_policy=DataPolicy.LOCAL_ONLY)
        )


async def test_an_item_the_model_cannot_read_is_the_requests_fault():
    with pytest.raises(RequestError, match="unreadable") as error:
        await router(ScriptedCloud()).answer(Request(inputs="unreadable"))
    assert error.value.field == "inputs"


@pytest.mark.parametrize(("text", "action"), [(CONFIDENT, Action.LOCAL), (DOUBTFUL, Action.ESCALATE)])
async def test_a_repeat_is_answered_from_the_cache_in_its_own_name(text, action):
    edge, cloud = ScriptedEdge(), ScriptedCloud()
    flow = router(cloud, edge=edge, cache=DictCache())
    first = await flow.answer(Request(inputs=text, id="1"))
    again = await flow.answer(Request(inputs=text, id="2"))
    assert (again.id, again.source, again.decision.reason) == ("2", Source.CACHE, Reason.CACHE_HIT)
    assert (again.output, again.status, again.decision.action) == (first.output, Status.FINAL, action)
    assert (edge.calls, cloud.calls) == (1, int(action is Action.ESCALATE))


async def test_provisional_answers_are_never_cached():
    cloud, cache = ScriptedCloud(), DictCache()
    cloud.down = True
    flow = router(cloud, cache=cache, settings=RouterSettings(cool_down_s=3600))
    await flow.answer(Request(inputs=DOUBTFUL))
    assert cache == {}


async def test_a_late_answer_fills_the_cache():
    cloud, store = ScriptedCloud(), DictStore()
    cloud.release.clear()
    flow = router(cloud, outbox=store, answers=store, cache=DictCache())
    await flow.answer(Request(inputs=DOUBTFUL, id="late", budget_ms=5))
    cloud.release.set()
    await store.wait_final("public", "late", timeout_s=10)
    again = await flow.answer(Request(inputs=DOUBTFUL, budget_ms=5))
    assert (again.source, again.status, again.output) == (Source.CACHE, Status.FINAL, "b")


async def test_tenants_do_not_share_the_cache():
    edge = ScriptedEdge()
    flow = router(ScriptedCloud(), edge=edge, cache=DictCache())
    await flow.answer(Request(inputs=CONFIDENT, tenant="one"))
    await flow.answer(Request(inputs=CONFIDENT, tenant="two"))
    assert edge.calls == 2


@pytest.mark.parametrize(("cloud_says", "violation"), [("a", False), ("b", True)])
async def test_an_audited_local_answer_is_compared_with_the_cloud_past_the_cache(cloud_says, violation):
    cloud, store = ScriptedCloud(cloud_says), DictStore()
    flow = router(cloud, audits=store, cache=DictCache(), uniform=lambda: 0.0)
    for _ in range(2):
        assert (await flow.answer(Request(inputs=CONFIDENT))).source is Source.EDGE
    assert await store.settled() == [(violation, False)] * 2
    assert cloud.calls == 2


async def test_an_audited_escalation_keeps_the_promise_without_another_call():
    cloud, store = ScriptedCloud(), DictStore()
    await router(cloud, audits=store, uniform=lambda: 0.0).answer(Request(inputs=DOUBTFUL))
    assert await store.settled() == [(False, False)]
    assert cloud.calls == 1


async def test_a_verdict_that_does_not_come_counts_as_a_violation():
    cloud, store = ScriptedCloud(), DictStore()
    cloud.down = True
    settings = RouterSettings(cool_down_s=0.001, audit_verdict_deadline_s=0.01)
    flow = router(cloud, audits=store, uniform=lambda: 0.0, settings=settings)
    await flow.answer(Request(inputs=CONFIDENT))
    assert await store.settled() == [(True, True)]
    await flow.aclose()


async def test_a_request_that_nobody_can_read_is_never_answered_here_and_so_lost_nothing():
    store = DictStore()
    with pytest.raises(RequestError):
        await router(ScriptedCloud(), audits=store, uniform=lambda: 0.0).answer(Request(inputs="unreadable"))
    assert store.audits == [(False, False)]
    assert store.found[0].score == -np.inf


async def test_requests_are_drawn_with_the_probability_that_is_set():
    store = DictStore()
    numbers = iter([0.009, 0.011, 0.5, 0.0])
    flow = router(ScriptedCloud("a"), audits=store, uniform=lambda: next(numbers))
    for _ in range(4):
        await flow.answer(Request(inputs=CONFIDENT))
    assert len(await store.settled()) == 2


async def test_another_cloud_version_voids_the_certificate():
    cloud = ScriptedCloud(reference=Reference("cloud", "sha256:newer"))
    flow = router(cloud)
    await flow.answer(Request(inputs=DOUBTFUL))
    answer = await flow.answer(Request(inputs=CONFIDENT))
    assert flow.certificate is None
    assert (answer.source, answer.decision.reason) == (Source.CLOUD, Reason.CERTIFICATE_VOID)
    assert answer.decision.certificate_id is None


async def test_the_reference_is_checked_at_start():
    cloud = ScriptedCloud(reference=Reference("other", "sha256:other"))
    flow = router(cloud, settings=RouterSettings(cool_down_s=0.001))
    async with flow.running():
        await cloud.probed.wait()
        while flow.certificate is not None:  # noqa: ASYNC110 - the flow sets no event; the test's own time-out ends it
            await asyncio.sleep(0)
    assert cloud.closed


def test_a_certificate_of_another_model_is_refused():
    with pytest.raises(CertificateError, match="sha256:another"):
        Router(
            ScriptedEdge(),
            None,
            certificate(model_digest="sha256:another"),
            settings=RouterSettings(mode=Mode.EDGE_ONLY),
        )


def test_routing_without_a_cloud_is_refused():
    with pytest.raises(ConfigError, match="no cloud"):
        Router(ScriptedEdge(), None, certificate())


async def test_without_a_cloud_only_the_edge_can_be_asked():
    flow = Router(ScriptedEdge(), None, None, settings=RouterSettings(mode=Mode.EDGE_ONLY))
    assert (await flow.answer(Request(inputs=CONFIDENT))).source is Source.EDGE
    with pytest.raises(RequestError, match="no cloud"):
        await flow.answer(Request(inputs=CONFIDENT, mode=Mode.GUARDED))


def test_the_blocking_face_gives_the_same_answer():
    class SyncCloud(ScriptedCloud):
        def __init__(self):
            self.calls = 0

        async def predict(self, request, *, timeout_s):
            return CloudReply("b", CERTIFIED)

        async def aclose(self):
            pass

    flow = router(SyncCloud())
    try:
        assert flow.answer_blocking(Request(inputs=CONFIDENT)).output == "a"
        assert flow.answer_blocking(Request(inputs=DOUBTFUL)).output == "b"
    finally:
        flow.close()


async def test_timings_name_the_stages_in_milliseconds():
    clock = Steps()
    answer = await router(ScriptedCloud(), clock=clock).answer(Request(inputs=DOUBTFUL))
    assert set(answer.timings_ms) == {"edge", "cloud", "total"}


@pytest.mark.parametrize(
    ("request_fields", "promise"),
    [
        ({}, (Mode.GUARDED, 100.0)),
        ({"profile": "fast"}, (Mode.SPECULATIVE, 5.0)),
        ({"profile": "fast", "budget_ms": 7.0}, (Mode.SPECULATIVE, 7.0)),
        ({"profile": "fast", "mode": Mode.EDGE_ONLY}, (Mode.EDGE_ONLY, 5.0)),
        ({"budget_ms": 0.0}, (Mode.GUARDED, 0.0)),
    ],
)
def test_a_request_overrides_its_profile_and_its_profile_the_router(request_fields, promise):
    settings = RouterSettings(budget_ms=100.0, profiles={"fast": Profile(5.0, Mode.SPECULATIVE)})
    assert settings.promise(Request(inputs="x", **request_fields)) == promise


def test_an_unknown_profile_is_refused_with_the_known_ones():
    settings = RouterSettings(profiles={"fast": Profile(5.0)})
    with pytest.raises(RequestError, match="fast"):
        settings.promise(Request(inputs="x", profile="fsat"))


async def test_a_task_that_is_not_the_models_is_refused():
    flow = router(ScriptedCloud())
    with pytest.raises(RequestError, match="image-classification"):
        await flow.answer(Request(inputs=CONFIDENT, task="image-classification"))
    assert (await flow.answer(Request(inputs=CONFIDENT, task="text-classification"))).output == "a"
