import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from math import nan
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.contracts import (
    Action,
    Answer,
    AuditTotals,
    AuditVerdict,
    Debt,
    Decision,
    Kept,
    Reason,
    Request,
    Source,
    Status,
)
from edgewise.errors import InputError, OutboxFullError, StoreError
from edgewise.store import SqliteStore
from edgewise.store.records import decode_answer, decode_request, encode_answer, encode_request
from edgewise.store.sqlite import StoreLimits


class SetClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


def answer(request_id: str, status: Status = Status.FINAL, output: str = "a") -> Answer:
    return Answer(
        id=request_id,
        output=output,
        status=status,
        source=Source.CLOUD,
        decision=Decision(action=Action.ESCALATE, reason=Reason.BELOW_THRESHOLD, policy="certified", score=0.5),
        timings_ms={"total": 1.0},
        model_digest="v1",
    )


KEPT = AuditVerdict(violation=False, score=0.5, differs=False)
VIOLATED = AuditVerdict(violation=True, score=0.5, differs=True)
MISSING = AuditVerdict(violation=True, missing=True)


def counting(state: bytes | None, verdicts: Sequence[AuditVerdict]) -> bytes:
    return b"%d" % (int(state or b"0") + len(verdicts))


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "store.db"
    with SqliteStore(path) as store:
        store.outbox.put(Request(id="1", inputs="x"))
        store.answers.put("public", answer("1", Status.PROVISIONAL))
        store.hooks.put("shop", "public", answer("0"))
        settled = store.audits.drawn("1", "c")
        store.audits.verdict(settled, KEPT)
        store.audits.advance("c", counting)
        store.audits.remember("key", b"value")
        store.spending.spend("2026-11-01", 0.25)
    with SqliteStore(path) as store:
        assert [request.id for request in store.outbox.pending(9)] == ["1"]
        assert len(store.outbox) == 1
        assert store.answers.get("public", "1") == answer("1", Status.PROVISIONAL)
        assert len(store.answers) == 1
        assert [hook.answer for hook in store.hooks.due(1e12, 9)] == [answer("0")]
        assert len(store.hooks) == 1
        assert store.audits.totals("c") == AuditTotals(drawn=1)
        assert store.audits.verdicts("c", 9) == [KEPT]
        assert store.audits.advance("c", counting) == b"1"
        assert store.audits.recall("key") == b"value"
        assert store.audits.drawn("2", "c") > settled
        assert store.spending.spend("2026-11-01", 1) == 1.25


def test_a_draw_left_open_by_a_former_process_is_missing(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "s.db") as store:
        position = store.audits.drawn("1", "c")
        assert store.audits.totals("c") == AuditTotals(drawn=1, open=1)
    with SqliteStore(tmp_path / "s.db") as store:
        assert store.audits.totals("c") == AuditTotals(drawn=1, violations=1, missing=1)
        store.audits.verdict(position, KEPT)
        assert store.audits.totals("c") == AuditTotals(drawn=1, violations=1, missing=1)
        assert store.audits.verdicts("c", 9) == [MISSING]


def positions_kept(store: SqliteStore) -> list[int]:
    """What is forgotten shows nowhere else."""
    return [row[0] for row in store._database.query("SELECT position FROM audits ORDER BY position")]


def test_settled_draws_are_forgotten_and_stay_counted(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "s.db", limits=StoreLimits(max_audits=5)) as store:
        waiting = store.audits.drawn("open", "c")
        positions = [store.audits.drawn(f"{index}", "c") for index in range(3)]
        for index in range(40):
            epoch, verdict = "d" if index % 4 else "c", VIOLATED if index % 2 == 0 else KEPT
            store.audits.verdict(store.audits.drawn(f"{index}", epoch), verdict)
        for position in positions:
            store.audits.verdict(position, MISSING)
        assert store.audits.totals("d") == AuditTotals(drawn=30, violations=10)
        store.audits.drawn("last", "e")
        assert positions_kept(store) == [waiting, *range(41, 46)]
        store.audits.verdict(waiting, KEPT)
        store.audits.verdict(positions[0], KEPT)  # forgotten; its first verdict stands
        assert store.audits.totals("c") == AuditTotals(drawn=14, violations=13, missing=3)
    with SqliteStore(tmp_path / "s.db") as store:
        assert store.audits.totals("c") == AuditTotals(drawn=14, violations=13, missing=3)
        assert store.audits.totals("e") == AuditTotals(drawn=1, violations=1, missing=1)
        with pytest.raises(ValueError, match="position 46"):
            store.audits.verdict(46, KEPT)


def test_a_draw_that_was_not_folded_is_not_forgotten() -> None:
    with SqliteStore(":memory:", limits=StoreLimits(max_audits=2)) as store:
        for _ in range(6):
            store.audits.verdict(store.audits.drawn("r", "c"), KEPT)
        assert positions_kept(store) == [1, 2, 3, 4, 5, 6]
        assert store.audits.advance("c", counting) == b"6"
        store.audits.verdict(store.audits.drawn("r", "c"), KEPT)
        assert positions_kept(store) == [6, 7]
        assert store.audits.advance("c", counting) == b"7"


_SCHEMA_1 = """
CREATE TABLE outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    created REAL NOT NULL,
    request BLOB NOT NULL,
    UNIQUE (tenant, id)
);
CREATE TABLE answers (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    final INTEGER NOT NULL,
    stored REAL NOT NULL,
    answer BLOB NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX answers_by_age ON answers (stored);
CREATE TABLE audits (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL,
    certificate_id TEXT NOT NULL,
    created REAL NOT NULL,
    violation INTEGER,
    missing INTEGER NOT NULL DEFAULT 0
);
PRAGMA application_id = 1701078903;
"""

_ONLY_IN_1 = "CREATE INDEX audits_by_certificate ON audits (certificate_id); PRAGMA user_version = 1;"

_ONLY_IN_2 = """
CREATE TABLE audit_totals (
    certificate_id TEXT PRIMARY KEY,
    drawn INTEGER NOT NULL,
    violations INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    open INTEGER NOT NULL
);
INSERT INTO audit_totals VALUES ('c', 4, 2, 2, 1), ('d', 1, 1, 0, 0);
PRAGMA user_version = 2;
"""

_ROWS = """
INSERT INTO audits (request_id, certificate_id, created, violation, missing) VALUES
    ('r', 'c', 1, 0, 0), ('r', 'c', 1, 1, 1), ('r', 'c', 1, 1, 1), ('r', 'c', 1, NULL, 0), ('r', 'd', 1, 1, 0);
"""

_SINCE_3 = """
ALTER TABLE audits RENAME COLUMN certificate_id TO epoch;
ALTER TABLE audits ADD COLUMN score REAL;
ALTER TABLE audits ADD COLUMN differs INTEGER;
ALTER TABLE audit_totals RENAME COLUMN certificate_id TO epoch;
CREATE TABLE audit_states (epoch TEXT PRIMARY KEY, position INTEGER NOT NULL, state BLOB NOT NULL);
CREATE TABLE kept (key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE spending (day TEXT PRIMARY KEY, amount REAL NOT NULL);
PRAGMA user_version = 3;
"""


@pytest.mark.parametrize(
    "statements",
    [_ONLY_IN_1 + _ROWS, _ONLY_IN_2 + _ROWS, _ONLY_IN_2 + _ROWS + _SINCE_3],
    ids=["version 1", "version 2", "version 3"],
)
def test_an_older_file_keeps_all_that_it_holds(tmp_path: Path, statements: str) -> None:
    path = tmp_path / "s.db"
    connection = sqlite3.connect(path)
    connection.executescript(_SCHEMA_1 + statements)
    owed = [Request(id="1", inputs="x"), Request(id="2", inputs="y", session="s")]
    rows = [("public", "0", b"not a request"), *(("public", one.id, encode_request(one)) for one in owed)]
    connection.executemany("INSERT INTO outbox (tenant, id, created, request) VALUES (?, ?, 1.0, ?)", rows)
    given = ("public", "1", encode_answer(answer("1", Status.PROVISIONAL)))
    connection.execute("INSERT INTO answers (tenant, id, final, stored, answer) VALUES (?, ?, 0, 1e12, ?)", given)
    connection.commit()
    connection.close()
    for _ in range(2):
        with SqliteStore(path) as store:
            assert store.audits.totals("c") == AuditTotals(drawn=4, violations=3, missing=3)
            assert store.audits.totals("d") == AuditTotals(drawn=1, violations=1)
            assert store.audits.verdicts("c", 9) == [AuditVerdict(violation=False), MISSING, MISSING, MISSING]
            assert store.audits.advance("c", counting) == b"4"
            sessions = [("0", None), ("1", None), ("2", "s")]
            assert store.outbox.debts() == [Debt("public", name, session, 1.0) for name, session in sessions]
            assert [store.outbox.request("public", one.id) for one in owed] == owed
            assert store.outbox.size_bytes == sum(len(data) for *_, data in rows)
            assert store.answers.find("public", "1") == Kept(answer("1", Status.PROVISIONAL), None)
            assert len(store.hooks) == 0
            assert store.spending.spent("2026-11-01") == 0
            assert store._database.query("PRAGMA user_version") == [(4,)]


@pytest.mark.parametrize(
    "statements",
    [_ONLY_IN_1, _ONLY_IN_2, _ONLY_IN_2 + _SINCE_3],
    ids=["version 1", "version 2", "version 3"],
)
def test_an_older_file_gets_the_columns_of_a_new_one(tmp_path: Path, statements: str) -> None:
    connection = sqlite3.connect(tmp_path / "old.db")
    connection.executescript(_SCHEMA_1 + statements)
    connection.close()
    columns = "SELECT m.name, c.name, c.type FROM sqlite_master m, pragma_table_info(m.name) c ORDER BY 1, 2"
    with SqliteStore(tmp_path / "old.db") as old, SqliteStore(tmp_path / "new.db") as new:
        assert old._database.query(columns) == new._database.query(columns)


def test_what_an_answer_answers_stays_known(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with SqliteStore(path) as store:
        store.answers.put("public", answer("1", Status.PROVISIONAL), item=b"digest")
        store.answers.put("public", answer("1"))
        store.answers.put("public", answer("1", Status.PROVISIONAL), item=b"another")  # a final one stays
    with SqliteStore(path) as store:
        assert store.answers.find("public", "1") == Kept(answer("1"), b"digest")
        assert store.answers.find("other", "1") is None


def test_positions_are_never_given_twice(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "s.db") as store:
        first = store.audits.drawn("1", "c")
    with SqliteStore(tmp_path / "s.db") as store:
        assert store.audits.drawn("1", "c") > first


def test_the_disk_is_written_before_put_returns(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "s.db") as store:
        query = store._database.query  # the settings are the promise; they cannot be seen from outside
        assert query("PRAGMA journal_mode") == [("wal",)]
        assert query("PRAGMA synchronous") == [(2,)]
        assert query("PRAGMA auto_vacuum") == [(2,)]


def test_answers_are_forgotten_by_count_oldest_first() -> None:
    clock = SetClock()
    with SqliteStore(":memory:", limits=StoreLimits(max_answers=3), clock=clock) as store:
        for index in range(6):
            clock.now += 1
            store.answers.put("public", answer(f"{index}"))
        assert [store.answers.get("public", f"{index}") is not None for index in range(6)] == [False] * 3 + [True] * 3
        assert len(store.answers) == 3


def test_the_answer_just_stored_stays_when_the_clock_is_set_back() -> None:
    clock = SetClock()
    with SqliteStore(":memory:", limits=StoreLimits(max_answers=1), clock=clock) as store:
        store.answers.put("public", answer("old"))
        clock.now = 5.0
        store.answers.put("public", answer("new"))
        assert store.answers.get("public", "new") == answer("new")
        assert store.answers.get("public", "old") is None


def test_answers_are_forgotten_by_age() -> None:
    clock = SetClock()
    with SqliteStore(":memory:", limits=StoreLimits(max_answer_age_s=10), clock=clock) as store:
        store.answers.put("public", answer("old"))
        clock.now += 11
        store.answers.put("public", answer("new"))
        assert store.answers.get("public", "old") is None
        assert len(store.answers) == 1


def test_the_file_does_not_grow_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with SqliteStore(path, limits=StoreLimits(max_answers=2)) as store:
        for index in range(60):
            store.answers.put("public", answer(f"{index}", output="x" * 20_000))
    assert path.stat().st_size < 500_000


def test_room_of_what_is_settled_goes_back_to_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "s.db"

    def used() -> int:
        return sum(file.stat().st_size for file in tmp_path.iterdir())

    with SqliteStore(path) as store:
        for index in range(300):
            store.outbox.put(Request(id=f"{index}", inputs="x" * 100_000))
        assert used() > 30_000_000
        for index in range(300):
            store.outbox.done("public", f"{index}")
        assert used() < 6_000_000, "while it is open: what is left is the log of the last writes"
        assert len(store.outbox) == store.outbox.size_bytes == 0
    assert used() < 500_000


def test_answers_are_forgotten_by_bytes_oldest_first() -> None:
    clock = SetClock()
    with SqliteStore(":memory:", limits=StoreLimits(max_bytes=5000), clock=clock) as store:
        for index in range(8):
            clock.now += 1
            store.answers.put("public", answer(f"{index}", output="x" * 1000))
        kept = [index for index in range(8) if store.answers.get("public", f"{index}")]
        assert kept == [4, 5, 6, 7]
        store.answers.put("public", answer("big", output="x" * 9000))
        assert store.answers.get("public", "big") is not None, "the newest is kept, whatever its size"
        assert len(store.answers) == 1


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from([Status.PROVISIONAL, Status.FINAL]), st.integers(0, 3000)),
        max_size=40,
    )
)
def test_answers_are_counted_right_whatever_is_replaced_and_forgotten(puts) -> None:
    with SqliteStore(":memory:", limits=StoreLimits(max_answers=5, max_bytes=4000)) as store:
        for number, status, size in puts:
            store.answers.put("public", answer(f"{number}", status, "x" * size))
            rows = store._database.query("SELECT count(*), coalesce(sum(length(answer)), 0) FROM answers")
            assert (store.answers._count, store.answers._bytes) == rows[0]
            assert len(store.answers) <= 5
            assert rows[0][1] <= 4000 or len(store.answers) == 1
            assert store.answers.get("public", f"{number}") is not None


STEPS = st.tuples(st.sampled_from(["put", "done", "retry"]), st.integers(0, 9), st.integers(0, 800))


@given(st.lists(STEPS, max_size=40))
def test_webhooks_are_counted_right_and_bounded(steps) -> None:
    with SqliteStore(":memory:", limits=StoreLimits(max_hooks=4, max_bytes=2000)) as store:
        for kind, number, size in steps:
            if kind == "put":
                store.hooks.put("shop", "public", answer(f"{number}", output="x" * size))
                assert f"{number}" in [hook.answer.id for hook in store.hooks.due(1e12, 99)]
            elif kind == "done":
                store.hooks.done(number)
            else:
                store.hooks.retry(number, 0.0)
            rows = store._database.query("SELECT count(*), coalesce(sum(length(answer)), 0) FROM hooks")
            assert (store.hooks._count, store.hooks._bytes) == rows[0]
            assert len(store.hooks) <= 4
            assert rows[0][1] <= 2000 or len(store.hooks) == 1


def test_a_full_queue_of_webhooks_forgets_the_oldest_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with SqliteStore(":memory:", limits=StoreLimits(max_hooks=3)) as store:
        for index in range(6):
            store.hooks.put("shop", "public", answer(f"{index}"))
        assert [hook.answer.id for hook in store.hooks.due(1e12, 9)] == ["3", "4", "5"]
        assert store.hooks.dropped == 3
    assert caplog.text.count("queue of webhooks is full") == 1


def test_replacing_an_answer_is_not_counted_twice() -> None:
    with SqliteStore(":memory:", limits=StoreLimits(max_answers=2)) as store:
        for _ in range(3):
            store.answers.put("public", answer("1", Status.PROVISIONAL))
        store.answers.put("public", answer("1"))
        store.answers.put("public", answer("2"))
        assert len(store.answers) == 2
        assert store.answers.get("public", "1") == answer("1")


async def test_nothing_is_left_of_waiters() -> None:
    with SqliteStore(":memory:") as store:
        await store.answers.wait_final("public", "1", timeout_s=0.001)
        waiting = asyncio.create_task(store.answers.wait_final("public", "1", timeout_s=60))
        await asyncio.sleep(0)
        assert len(store.answers._waiters) == 1
        store.answers.put("public", answer("1"))
        await waiting
        assert len(store.answers._waiters) == 0


def test_the_outbox_counts_its_own_after_a_refusal() -> None:
    with SqliteStore(":memory:", limits=StoreLimits(max_pending=1)) as store:
        store.outbox.put(Request(id="1", inputs="x"))
        with pytest.raises(OutboxFullError):
            store.outbox.put(Request(id="2", inputs="x"))
        store.outbox.done("public", "1")
        store.outbox.done("public", "1")
        assert len(store.outbox) == 0


@pytest.mark.parametrize(
    "limits",
    [{"max_pending": 0}, {"max_answers": -1}, {"max_answer_age_s": 0.0}, {"max_answer_age_s": nan}, {"max_audits": 0}],
)
def test_limits_that_keep_nothing_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        StoreLimits(**limits)


# Files that cannot be used


def test_two_owners_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.store.database._LOCK_WAIT_S", 0.0)
    with SqliteStore(tmp_path / "s.db"), pytest.raises(StoreError, match="in use by another process"):
        SqliteStore(tmp_path / "s.db")
    SqliteStore(tmp_path / "s.db").close()


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    SqliteStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 5")
    connection.close()
    with pytest.raises(StoreError, match=r"schema version 5.*reads up to 4.*Upgrade"):
        SqliteStore(path)


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        SqliteStore(path)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    connection.close()


_THEIRS = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement)
os._exit(0)
"""


@pytest.mark.parametrize(
    "marks",
    [
        [],
        ["PRAGMA journal_mode = WAL"],
        ["PRAGMA application_id = 7"],
        ["PRAGMA user_version = 1"],
        ["PRAGMA application_id = 7", "PRAGMA journal_mode = WAL"],
    ],
)
def test_not_a_byte_of_somebody_elses_database_changes(tmp_path: Path, marks: list[str]) -> None:
    path = tmp_path / "s.db"
    # In a process that dies, so that a write-ahead log is left behind for the next reader.
    theirs = [*marks, "CREATE TABLE theirs (x)", "INSERT INTO theirs VALUES (1)"]
    subprocess.run([sys.executable, "-c", _THEIRS, str(path), *theirs], check=True)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(StoreError, match="another program"):
        SqliteStore(path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


_OURS = """
import os, sys
from edgewise.contracts import Request
from edgewise.store import SqliteStore
SqliteStore(sys.argv[1]).outbox.put(Request(id="1", inputs="x"))
os._exit(0)
"""


def test_a_store_whose_first_process_died_is_still_ours(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    subprocess.run([sys.executable, "-c", _OURS, str(path)], check=True)
    with SqliteStore(path) as store:
        assert [request.id for request in store.outbox.pending(9)] == ["1"]


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_garbage_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged.*backup"):
        SqliteStore(path)
    assert path.read_bytes() == content


def test_damage_in_the_middle_is_found_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with SqliteStore(path) as store:
        for index in range(50):
            store.outbox.put(Request(id=f"{index}", inputs="x" * 1000))
    data = bytearray(path.read_bytes())
    data[8192 : len(data) - 4096] = b"\xa5" * (len(data) - 12288)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        SqliteStore(path)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteStore(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be made"):
        SqliteStore(tmp_path / "file" / "store.db")


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    store.close()
    store.close()
    with pytest.raises(StoreError):
        store.outbox.pending(1)


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "s.db") as store:
        store.outbox.put(Request(id="1", inputs="x"))
        pages = store._database.query("PRAGMA page_count")[0][0]
        store._database.query(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="the disk is full"):
            store.outbox.put(Request(id="2", inputs="x" * 100_000))
        assert [request.id for request in store.outbox.pending(9)] == ["1"]
        assert len(store.outbox) == 1
        store.outbox.done("public", "1")
        assert store.outbox.pending(9) == []
        store._database.query("PRAGMA max_page_count = 1000000")
        assert store.outbox.put(Request(id="2", inputs="x" * 100_000)), "room again, and it works again"


def test_the_outbox_is_full_by_bytes_too_and_says_what_has_to_go() -> None:
    with SqliteStore(":memory:", limits=StoreLimits(max_bytes=3000)) as store:
        for index in range(5):
            store.outbox.put(Request(id=f"{index}", inputs="x" * 400))
        held = store.outbox.size_bytes
        big = Request(id="big", inputs="x" * 1500)
        with pytest.raises(OutboxFullError, match=f"5 requests of {held} bytes"):
            store.outbox.put(big)
        assert [owed.id for owed in store.outbox.in_the_way(big)] == ["0", "1", "2"]
        assert store.outbox.in_the_way(Request(id="small", inputs="x")) == []
        for refused in (store.outbox.put, store.outbox.in_the_way):
            with pytest.raises(OutboxFullError, match="3000 may wait"):
                refused(Request(id="huge", inputs="x" * 4000))
        for owed in store.outbox.in_the_way(big):
            store.outbox.done(owed.tenant, owed.id)
        assert store.outbox.put(big)


# Records


@given(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | hnp.arrays(st.sampled_from(["u1", "<i8", ">f4", "f8", "?"]), hnp.array_shapes(min_dims=0, min_side=0, max_dims=3))
)
def test_any_item_reads_back(item) -> None:
    request = decode_request(encode_request(Request(id="1", inputs=item)))
    assert type(request.inputs) is type(item)
    np.testing.assert_array_equal(request.inputs, item)
    if isinstance(item, np.ndarray):
        assert (request.inputs.dtype, request.inputs.shape) == (item.dtype, item.shape)


@given(st.floats(), st.floats(allow_nan=False) | st.none())
def test_any_number_of_an_answer_reads_back(score: float, threshold: float | None) -> None:
    decision = Decision(
        action=Action.LOCAL, reason=Reason.CONFIDENT, policy="p", score=score, threshold=threshold, certificate_id="c"
    )
    kept = Answer(
        id="1",
        output=(score,),
        status=Status.FINAL,
        source=Source.EDGE,
        decision=decision,
        timings_ms={"total": 0.1},
        model_digest="d",
    )
    assert repr(decode_answer(encode_answer(kept))) == repr(kept)


@given(st.binary())
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    for decode in (decode_request, decode_answer):
        with pytest.raises(StoreError, match="cannot be read"):
            decode(data)


def test_a_record_whose_array_does_not_fit_is_refused() -> None:
    data = encode_request(Request(id="1", inputs=np.zeros((2, 2), np.uint8)))
    with pytest.raises(StoreError, match="array"):
        decode_request(data.replace(b"|u1", b"<f8"))
    with pytest.raises(StoreError, match="array"):
        decode_request(data.replace(b"|u1", b"|O8"))


@pytest.mark.parametrize("item", ["\ud800", np.array([object()]), np.array(["text"])])
def test_an_item_that_cannot_be_kept_is_refused(item) -> None:
    with SqliteStore(":memory:") as store, pytest.raises(InputError):
        store.outbox.put(Request(id="1", inputs=item))
