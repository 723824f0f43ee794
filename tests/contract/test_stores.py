"""Every store Protocol of contracts.py against every implementation of it."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.contracts import (
    Action,
    Answer,
    AnswerStore,
    AuditLog,
    AuditTotals,
    AuditVerdict,
    DataPolicy,
    Debt,
    Decision,
    Hook,
    HookQueue,
    Mode,
    Outbox,
    Reason,
    Request,
    ResponseCache,
    Source,
    Spending,
    Status,
)
from edgewise.errors import OutboxFullError
from edgewise.store import MemoryCache, SqliteStore
from edgewise.store.sqlite import StoreLimits


class StoppedClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


def answer(
    request_id: str,
    output: str | tuple[float, ...] = "a",
    status: Status = Status.FINAL,
    reason: Reason = Reason.CONFIDENT,
) -> Answer:
    return Answer(
        id=request_id,
        output=output,
        status=status,
        source=Source.EDGE,
        decision=Decision(action=Action.LOCAL, reason=reason, policy="certified", threshold=float("-inf")),
        timings_ms={"total": 1.25},
        model_digest="sha256:1",
    )


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqliteStore]:
    path = tmp_path / "store.db" if request.param == "file" else ":memory:"
    with SqliteStore(path, limits=StoreLimits(max_pending=3, max_answers=4)) as opened:
        yield opened


@pytest.fixture
def outbox(store: SqliteStore) -> Outbox:
    return store.outbox


@pytest.fixture
def hooks(store: SqliteStore) -> HookQueue:
    return store.hooks


@pytest.fixture
def answers(store: SqliteStore) -> AnswerStore:
    return store.answers


@pytest.fixture
def audits(store: SqliteStore) -> AuditLog:
    return store.audits


@pytest.fixture
def spending(store: SqliteStore) -> Spending:
    return store.spending


@pytest.fixture
def cache() -> ResponseCache:
    return MemoryCache(100_000, 60.0, StoppedClock())


class TestOutbox:
    def test_gives_the_oldest_first(self, outbox: Outbox) -> None:
        for name in ("b", "a", "c"):
            outbox.put(Request(id=name, inputs=name))
        assert [request.id for request in outbox.pending(2)] == ["b", "a"]

    def test_gives_back_every_field(self, outbox: Outbox) -> None:
        request = Request(
            id="1",
            inputs="tëxt",
            tenant="t",
            task="text-classification",
            budget_ms=12.5,
            mode=Mode.GUARDED,
            profile="p",
            data_policy=DataPolicy.LOCAL_ONLY,
            session="s",
            attributes={"shop": "x"},
        )
        outbox.put(request)
        assert outbox.pending(1) == [request]

    @pytest.mark.parametrize(
        "item", [b"\x00\xff", np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((2, 2, 3), "f4")]
    )
    def test_gives_back_bytes_and_pixels(self, outbox: Outbox, item) -> None:
        outbox.put(Request(id="1", inputs=item))
        kept = outbox.pending(1)[0].inputs
        assert type(kept) is type(item)
        np.testing.assert_array_equal(kept, item)
        assert getattr(kept, "dtype", None) == getattr(item, "dtype", None)

    def test_a_second_put_changes_nothing(self, outbox: Outbox) -> None:
        assert outbox.put(Request(id="1", inputs="first")) is True
        assert outbox.put(Request(id="1", inputs="second")) is False
        assert len(outbox) == 1
        assert [request.inputs for request in outbox.pending(9)] == ["first"]

    def test_an_id_belongs_to_its_tenant(self, outbox: Outbox) -> None:
        assert outbox.put(Request(id="1", inputs="x", tenant="a"))
        assert outbox.put(Request(id="1", inputs="y", tenant="b"))
        outbox.done("a", "1")
        assert [(request.tenant, request.inputs) for request in outbox.pending(9)] == [("b", "y")]

    def test_done_of_an_unknown_request_is_no_trouble(self, outbox: Outbox) -> None:
        outbox.done("public", "never")
        assert outbox.pending(9) == []

    def test_refuses_one_too_many_and_takes_more_when_one_is_done(self, outbox: Outbox) -> None:
        for name in "abc":
            outbox.put(Request(id=name, inputs="x"))
        with pytest.raises(OutboxFullError, match="3 requests"):
            outbox.put(Request(id="d", inputs="x"))
        assert not outbox.put(Request(id="a", inputs="x"))
        outbox.done("public", "a")
        assert outbox.put(Request(id="d", inputs="x"))
        assert [request.id for request in outbox.pending(9)] == ["b", "c", "d"]

    def test_tells_what_is_owed_without_its_content(self, outbox: Outbox) -> None:
        requests = [Request(id="1", inputs="x"), Request(id="1", inputs="y", tenant="b", session="s")]
        for request in requests:
            outbox.put(request)
        debts = outbox.debts()
        assert [(owed.tenant, owed.id, owed.session) for owed in debts] == [("public", "1", None), ("b", "1", "s")]
        assert debts[0].created_s <= debts[1].created_s
        assert [outbox.request(owed.tenant, owed.id) for owed in debts] == requests
        assert outbox.request("public", "2") is None

    def test_says_what_has_to_go_for_one_more(self, outbox: Outbox) -> None:
        assert outbox.in_the_way(Request(id="d", inputs="x")) == []
        for name in "abc":
            outbox.put(Request(id=name, inputs="x"))
        (first,) = outbox.in_the_way(Request(id="d", inputs="x"))
        assert first == Debt("public", "a", None, first.created_s)


class TestHookQueue:
    def test_gives_back_every_field_oldest_first(self, hooks: HookQueue) -> None:
        hooks.put("shop", "t", answer("1", (0.5, -1.0)))
        hooks.put("ship", "t", answer("1", status=Status.PROVISIONAL, reason=Reason.EXPIRED))
        first, second = hooks.due(1e12, 9)
        assert first == Hook(
            position=first.position,
            target="shop",
            tenant="t",
            answer=answer("1", (0.5, -1.0)),
            created_s=first.created_s,
        )
        assert (second.target, second.answer.decision.reason) == ("ship", Reason.EXPIRED)
        assert hooks.due(1e12, 1) == [first]
        assert len(hooks) == 2

    def test_a_second_put_changes_nothing_while_the_first_is_owed(self, hooks: HookQueue) -> None:
        for output in ("first", "second"):
            hooks.put("shop", "t", answer("1", output))
        hooks.put("shop", "other", answer("1", "other"))
        assert [hook.answer.output for hook in hooks.due(1e12, 9)] == ["first", "other"]
        hooks.done(hooks.due(1e12, 1)[0].position)
        hooks.put("shop", "t", answer("1", "third"))
        assert [hook.answer.output for hook in hooks.due(1e12, 9)] == ["other", "third"]

    def test_a_delivery_that_failed_waits_and_keeps_its_place(self, hooks: HookQueue) -> None:
        for name in "ab":
            hooks.put("shop", "t", answer(name))
        first = hooks.due(1e12, 1)[0]
        hooks.retry(first.position, 5e9)
        assert [hook.answer.id for hook in hooks.due(4.9e9, 9)] == ["b"]
        again = hooks.due(5e9, 9)
        assert [(hook.answer.id, hook.attempts, hook.created_s) for hook in again[:1]] == [("a", 1, first.created_s)]

    def test_nothing_is_due_before_it_was_put(self, hooks: HookQueue) -> None:
        hooks.put("shop", "t", answer("1"))
        assert hooks.due(0.0, 9) == []

    def test_what_is_done_is_forgotten_and_the_unknown_is_no_trouble(self, hooks: HookQueue) -> None:
        hooks.put("shop", "t", answer("1"))
        for _ in range(2):
            hooks.done(1)
            hooks.retry(1, 0.0)
        assert (len(hooks), hooks.due(1e12, 9)) == (0, [])


class TestAnswerStore:
    def test_gives_back_what_was_put(self, answers: AnswerStore) -> None:
        for kept in (answer("1"), answer("2", (0.5, -1.0), Status.PROVISIONAL)):
            answers.put("public", kept)
            assert answers.get("public", kept.id) == kept

    def test_an_answer_belongs_to_its_tenant(self, answers: AnswerStore) -> None:
        answers.put("a", answer("1"))
        assert answers.get("b", "1") is None

    def test_final_replaces_provisional(self, answers: AnswerStore) -> None:
        answers.put("public", answer("1", "guess", Status.PROVISIONAL))
        answers.put("public", answer("1", "truth"))
        assert answers.get("public", "1") == answer("1", "truth")

    @pytest.mark.parametrize("status", Status)
    def test_a_final_answer_is_never_replaced(self, answers: AnswerStore, status: Status) -> None:
        answers.put("public", answer("1", "truth"))
        answers.put("public", answer("1", "other", status))
        assert answers.get("public", "1") == answer("1", "truth")

    async def test_wait_final_gives_a_final_answer_at_once(self, answers: AnswerStore) -> None:
        answers.put("public", answer("1"))
        assert await answers.wait_final("public", "1", timeout_s=60) == answer("1")

    @pytest.mark.parametrize("timeout_s", [0, 0.01])
    async def test_wait_final_gives_what_there_is_when_time_is_up(self, answers: AnswerStore, timeout_s: float) -> None:
        assert await answers.wait_final("public", "1", timeout_s=timeout_s) is None
        answers.put("public", answer("1", status=Status.PROVISIONAL))
        got = await answers.wait_final("public", "1", timeout_s=timeout_s)
        assert got == answer("1", status=Status.PROVISIONAL)

    async def test_every_waiter_is_woken_by_the_final_answer_only(self, answers: AnswerStore) -> None:
        waiting = [asyncio.create_task(answers.wait_final("public", "1", timeout_s=60)) for _ in range(3)]
        other = asyncio.create_task(answers.wait_final("other", "1", timeout_s=60))
        await asyncio.sleep(0)
        answers.put("public", answer("1", "guess", Status.PROVISIONAL))
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        answers.put("public", answer("1", "truth"))
        assert await asyncio.gather(*waiting) == [answer("1", "truth")] * 3
        assert not other.done()
        other.cancel()

    async def test_an_answer_that_the_cloud_refused_is_not_waited_for(self, answers: AnswerStore) -> None:
        waiting = asyncio.create_task(answers.wait_final("public", "1", timeout_s=60))
        await asyncio.sleep(0)
        answers.put("public", answer("1", "guess", Status.PROVISIONAL))
        refused = answer("1", "guess", Status.PROVISIONAL, Reason.CLOUD_REFUSED)
        answers.put("public", refused)
        assert await waiting == refused
        assert await answers.wait_final("public", "1", timeout_s=60) == refused
        answers.put("public", answer("1", "truth"))
        assert answers.get("public", "1") == answer("1", "truth")

    async def test_a_put_from_another_thread_wakes(self, answers: AnswerStore) -> None:
        waiting = asyncio.create_task(answers.wait_final("public", "1", timeout_s=60))
        await asyncio.sleep(0)
        thread = threading.Thread(target=answers.put, args=("public", answer("1")))
        thread.start()
        assert await waiting == answer("1")
        thread.join()

    async def test_a_cancelled_waiter_leaves_nothing_behind(self, answers: AnswerStore) -> None:
        waiting = asyncio.create_task(answers.wait_final("public", "1", timeout_s=60))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        answers.put("public", answer("1"))
        assert answers.get("public", "1") == answer("1")


KEPT = AuditVerdict(violation=False, score=0.5, differs=False)
VIOLATED = AuditVerdict(violation=True, score=-0.25, differs=True)
MISSING = AuditVerdict(violation=True, missing=True)


def settle(audits: AuditLog, epoch: str, *verdicts: AuditVerdict) -> None:
    for verdict in verdicts:
        audits.verdict(audits.drawn("r", epoch), verdict)


def listing(state: bytes | None, verdicts: Sequence[AuditVerdict]) -> bytes:
    """A fold that shows all that it was given: k, v and m, and a bar behind each call."""
    return (state or b"") + b"".join(b"m" if v.missing else b"v" if v.violation else b"k" for v in verdicts) + b"|"


class TestAuditLog:
    def test_counts_by_epoch(self, audits: AuditLog) -> None:
        first, second, third, _ = [audits.drawn(f"r{index}", "c1") for index in range(4)]
        audits.drawn("x", "c2")
        audits.verdict(first, KEPT)
        audits.verdict(second, VIOLATED)
        audits.verdict(third, AuditVerdict(violation=False, missing=True))
        assert audits.totals("c1") == AuditTotals(drawn=4, violations=2, missing=1, open=1)
        assert audits.totals("c2") == AuditTotals(drawn=1, open=1)
        assert audits.totals("c3") == AuditTotals()

    def test_positions_grow_in_draw_order(self, audits: AuditLog) -> None:
        positions = [audits.drawn("r", "c") for _ in range(5)]
        assert positions == sorted(set(positions))

    def test_the_first_verdict_stands(self, audits: AuditLog) -> None:
        position = audits.drawn("r", "c")
        audits.verdict(position, KEPT)
        audits.verdict(position, MISSING)
        assert audits.totals("c") == AuditTotals(drawn=1)
        assert audits.verdicts("c", 9) == [KEPT]

    def test_a_verdict_on_nothing_is_refused(self, audits: AuditLog) -> None:
        with pytest.raises(ValueError, match="position 7"):
            audits.verdict(7, KEPT)

    @pytest.mark.parametrize("score", [None, 0.0, 1e-300, float("inf"), float("-inf")])
    @pytest.mark.parametrize("differs", [None, True, False])
    def test_gives_back_every_field_of_a_verdict(
        self, audits: AuditLog, score: float | None, differs: bool | None
    ) -> None:
        verdict = AuditVerdict(violation=False, score=score, differs=differs)
        settle(audits, "c", verdict)
        assert audits.verdicts("c", 9) == [verdict]

    def test_gives_the_first_verdicts_up_to_an_open_draw(self, audits: AuditLog) -> None:
        settle(audits, "c", KEPT, VIOLATED)
        settle(audits, "other", MISSING)
        waiting = audits.drawn("r", "c")
        settle(audits, "c", MISSING)
        assert audits.verdicts("c", 9) == [KEPT, VIOLATED]
        assert audits.verdicts("c", 1) == [KEPT]
        audits.verdict(waiting, VIOLATED)
        assert audits.verdicts("c", 9) == [KEPT, VIOLATED, VIOLATED, MISSING]

    def test_folds_each_verdict_once_in_draw_order(self, audits: AuditLog) -> None:
        positions = [audits.drawn("r", "c") for _ in range(4)]
        audits.verdict(positions[1], VIOLATED)
        audits.verdict(positions[3], KEPT)
        assert audits.advance("c", listing) == b"|"  # nothing stands in front of the first, which is open
        audits.verdict(positions[0], KEPT)
        assert audits.advance("c", listing) == b"|kv|"
        assert audits.advance("c", listing) == b"|kv|"
        audits.verdict(positions[2], MISSING)
        assert audits.advance("c", listing) == b"|kv|mk|"

    @given(order=st.permutations(range(6)), folds=st.sets(st.integers(0, 5)))
    def test_only_the_draw_order_counts(self, order: list[int], folds: set[int]) -> None:
        with SqliteStore(":memory:") as store:
            positions = [store.audits.drawn("r", "c") for _ in range(6)]
            for turn, index in enumerate(order):
                store.audits.verdict(positions[index], [KEPT, VIOLATED, MISSING][index % 3])
                if turn in folds:
                    store.audits.advance("c", listing)
            assert store.audits.advance("c", listing).replace(b"|", b"") == b"kvmkvm"

    def test_epochs_have_states_of_their_own(self, audits: AuditLog) -> None:
        settle(audits, "c", KEPT)
        settle(audits, "d", VIOLATED)
        assert (audits.advance("c", listing), audits.advance("d", listing)) == (b"k|", b"v|")

    def test_a_fold_that_fails_leaves_everything_as_it_was(self, audits: AuditLog) -> None:
        def failing(state: bytes | None, verdicts: Sequence[AuditVerdict]) -> bytes:
            raise ZeroDivisionError

        settle(audits, "c", KEPT)
        audits.advance("c", listing)
        settle(audits, "c", VIOLATED)
        with pytest.raises(ZeroDivisionError):
            audits.advance("c", failing)
        assert audits.advance("c", listing) == b"k|v|"

    def test_remembers_what_was_kept_last(self, audits: AuditLog) -> None:
        assert audits.recall("k") is None
        for value in (b"\0one", b""):
            audits.remember("k", value)
            assert audits.recall("k") == value
        assert audits.recall("other") is None


class TestSpending:
    def test_adds_up_by_day(self, spending: Spending) -> None:
        assert spending.spent("2026-11-01") == 0
        assert spending.spend("2026-11-01", 1.5) == 1.5
        assert spending.spend("2026-11-01", 2) == 3.5
        assert spending.spend("2026-11-02", 0) == 0
        assert (spending.spent("2026-11-01"), spending.spent("2026-11-02")) == (3.5, 0)

    @pytest.mark.parametrize("amount", [-1, float("nan"), float("inf")])
    def test_what_cannot_be_spent_is_refused(self, spending: Spending, amount: float) -> None:
        with pytest.raises(ValueError, match="cannot be spent"):
            spending.spend("2026-11-01", amount)
        assert spending.spent("2026-11-01") == 0

    def test_threads_do_not_lose_each_others_calls(self, spending: Spending) -> None:
        def spend() -> None:
            for _ in range(20):
                spending.spend("2026-11-01", 1)

        threads = [threading.Thread(target=spend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert spending.spent("2026-11-01") == 80


class TestResponseCache:
    def test_gives_back_what_was_put(self, cache: ResponseCache) -> None:
        cache.put(b"k", answer("1"))
        assert cache.get(b"k") == answer("1")
        assert cache.get(b"other") is None

    def test_the_newest_stands(self, cache: ResponseCache) -> None:
        cache.put(b"k", answer("1"))
        cache.put(b"k", answer("2"))
        assert cache.get(b"k") == answer("2")

    def test_a_provisional_answer_is_refused(self, cache: ResponseCache) -> None:
        with pytest.raises(ValueError, match="only final"):
            cache.put(b"k", answer("1", status=Status.PROVISIONAL))
        assert cache.get(b"k") is None
