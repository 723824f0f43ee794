"""A power cut at any moment: what was acknowledged is there, what was not is there whole or not at all.

The store runs over a virtual file system that records each write and each sync, through a second SQLite (apsw's), since
Python's own takes no file system of ours. Statements, settings and their order are the store's. A cut is then played
back from the record: of what was not synced by then, each sector of 512 bytes is written, lost, or garbage, in any
order; a file that was never synced may not be there. The store, on Python's SQLite, has to open what is left.

That is the failure model of SQLite's own crash tests ("How SQLite Is Tested", section 4.2). It takes a sync at its word
and writes outside the written range for harmless ("powersafe overwrite"), as SQLite does.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest

from edgewise.contracts import Action, Answer, Decision, Reason, Request, Source, Status
from edgewise.store import SqliteStore
from edgewise.store import database as databases
from edgewise.store.sqlite import StoreLimits

SECTOR = 512
LIMITS = StoreLimits(max_pending=12, max_answers=25, max_hooks=8, max_bytes=120_000)
_IN_EVERY_RUN = 6
_IN_TORTURE = 80
_CUTS_EACH = 12


class Op(NamedTuple):
    """What was asked of the disk: "write" (offset, data), "truncate" (size), "sync" or "delete"."""

    kind: str
    file: str
    offset: int = 0
    data: bytes = b""


@dataclass
class Tape:
    """Everything that was asked of the disk, and what was acknowledged by when."""

    ops: list[Op] = field(default_factory=list)
    moments: list[tuple[int, int]] = field(default_factory=list)
    """Of each step: how much of the tape there was when it began and when it had been acknowledged."""
    states: list[Any] = field(default_factory=list)
    """What the store holds before the first step, and after each."""


def recording_file_system(name: str, tape: Tape) -> apsw.VFS:
    class File(apsw.VFSFile):
        def __init__(self, path: Any, flags: list[int]) -> None:
            super().__init__("", path, flags)
            self.file = Path(path.filename() if isinstance(path, apsw.URIFilename) else path).name

        def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802  SQLite\'s own name
            tape.ops.append(Op("write", self.file, offset, bytes(data)))
            super().xWrite(data, offset)

        def xTruncate(self, size: int) -> None:  # noqa: N802  SQLite\'s own name
            tape.ops.append(Op("truncate", self.file, size))
            super().xTruncate(size)

        def xSync(self, flags: int) -> None:  # noqa: N802  SQLite\'s own name
            tape.ops.append(Op("sync", self.file))
            super().xSync(flags)

    class FileSystem(apsw.VFS):
        def xOpen(self, path: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802  SQLite\'s own name
            return File(path, flags)

        def xDelete(self, path: str, sync: bool) -> None:  # noqa: N802  SQLite\'s own name
            tape.ops.append(Op("delete", Path(path).name))
            super().xDelete(path, sync)

    return FileSystem(name, base="")


class Rows:
    """What sqlite3 gives for an executed statement."""

    def __init__(self, connection: apsw.Connection, found: list[tuple[Any, ...]]) -> None:
        self.found = found
        self.rowcount = connection.changes()
        self.lastrowid = connection.last_insert_rowid()

    def fetchone(self) -> tuple[Any, ...] | None:
        return self.found[0] if self.found else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self.found

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.found)


class Adapted:
    """apsw's connection with sqlite3's face, as far as the store uses it."""

    def __init__(self, path: str, file_system: str, change: Callable[[str], str]) -> None:
        self.connection = apsw.Connection(path, vfs=file_system)
        self.change = change

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> Rows:
        statement = self.change(statement)
        rows = Rows(self.connection, list(self.connection.execute(statement, values)))
        if "journal_mode = WAL" in statement:
            # Checkpoints all the time: most of what can go wrong goes wrong there.
            self.connection.execute("PRAGMA wal_autocheckpoint = 12")
        return rows

    def executescript(self, statements: str) -> None:
        self.execute(statements)

    @property
    def in_transaction(self) -> bool:
        return self.connection.in_transaction

    def create_function(self, name: str, arguments: int, function: Callable[..., Any]) -> None:
        self.connection.create_scalar_function(name, function, arguments)

    def close(self) -> None:
        self.connection.close()


def provisional(name: str, status: Status = Status.PROVISIONAL, size: int = 10) -> Answer:
    return Answer(
        id=name,
        output="x" * size,
        status=status,
        source=Source.EDGE,
        decision=Decision(action=Action.ESCALATE, reason=Reason.CLOUD_FAILED, policy="p"),
        timings_ms={"total": 1.0},
        model_digest="d",
    )


def holds(store: SqliteStore, names: list[str]) -> Any:
    """All that the store tells of what was put into it."""
    found = [store.answers.get("public", name) for name in names]
    return (
        [(request.id, request.inputs) for request in store.outbox.pending(1000)],
        [owed.session for owed in store.outbox.debts()],
        {answer.id: (answer.status, len(answer.output)) for answer in found if answer is not None},
        [(hook.target, hook.answer.id, hook.attempts) for hook in store.hooks.due(1e12, 1000)],
        (len(store.outbox), len(store.answers), len(store.hooks)),
        store.audits.totals("c").drawn,
    )


NAMES = [str(number) for number in range(60)]


def steps(store: SqliteStore, seed: int) -> Iterator[Callable[[], object]]:
    """What a gateway does with a store: it owes, settles, tells webhooks, forgets, and drops what is too much."""
    moments = random.Random(seed)
    for number, name in enumerate(NAMES):
        size = moments.choice([10, 900, 5000, 20_000])
        request = Request(id=name, inputs="x" * size, session="s" if number % 3 else None)
        for owed in store.outbox.in_the_way(request):
            yield partial(store.outbox.done, "public", owed.id)
        yield partial(store.outbox.put, request)
        yield partial(store.answers.put, "public", provisional(name))
        if number % 4 == 0:
            yield partial(store.audits.drawn, name, "c")
        if number >= 4 and number % 5 != 0:
            old = store.outbox.debts()[moments.choice([0, 1])].id
            yield partial(store.answers.put, "public", provisional(old, Status.FINAL, size // 4))
            yield partial(store.hooks.put, "shop", "public", provisional(old, Status.FINAL, size // 4))
            yield partial(store.outbox.done, "public", old)
        if number % 7 == 6:
            first = store.hooks.due(1e12, 1)[0].position
            yield partial(store.hooks.retry, first, 5.0) if number % 2 else partial(store.hooks.done, first)


def played(folder: Path, seed: int, change: Callable[[str], str] = str) -> Tape:
    """Run a store once over the recording file system."""
    tape, name = Tape(), f"recording-{seed}-{folder.name}"
    file_system = recording_file_system(name, tape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(databases, "connect", lambda path: Adapted(path, name, change))
        patch.setattr(databases, "_PAGES_RECLAIMED_AT_ONCE", 4)
        with SqliteStore(folder / "store.db", limits=LIMITS) as store:
            tape.states.append(holds(store, NAMES))
            for step in steps(store, seed):
                began = len(tape.ops)
                step()
                tape.moments.append((began, len(tape.ops)))
                tape.states.append(holds(store, NAMES))
    file_system.unregister()
    return tape


def after_cut(tape: Tape, length: int, luck: random.Random) -> dict[str, bytes]:
    """Files as a cut after `length` operations may leave them."""
    synced: dict[str, bytes] = {}
    pending: dict[str, list[Op]] = {}
    for op in tape.ops[:length]:
        if op.kind == "delete":
            synced.pop(op.file, None)
            pending.pop(op.file, None)
        elif op.kind == "sync":
            image = bytearray(synced.get(op.file, b""))
            for waiting in pending.pop(op.file, []):
                _apply(image, waiting)
            synced[op.file] = bytes(image)
        else:
            pending.setdefault(op.file, []).append(op)
    for file, waiting in pending.items():
        image = bytearray(synced.get(file, b""))
        kept, garbled = luck.choice([(0.0, 0.0), (1.0, 0.0), (0.5, 0.0), (0.6, 0.3), (0.9, 0.1)])
        for op in waiting:
            for part in _sectors(op):
                if luck.random() < kept:
                    _apply(image, part)
                elif part.kind == "write" and luck.random() < garbled:
                    _apply(image, part._replace(data=luck.randbytes(len(part.data))))
        if file in synced or image or luck.random() < 0.5:
            synced[file] = bytes(image)
    return synced


def _sectors(op: Op) -> Iterator[Op]:
    """A write in parts that are each written whole or not."""
    if op.kind != "write":
        yield op
        return
    start, end = op.offset, op.offset + len(op.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        yield op._replace(offset=start, data=op.data[start - op.offset : stop - op.offset])
        start = stop


def _apply(image: bytearray, op: Op) -> None:
    if op.kind == "truncate":
        del image[op.offset :]
        return
    if len(image) < op.offset + len(op.data):
        image.extend(bytes(op.offset + len(op.data) - len(image)))
    image[op.offset : op.offset + len(op.data)] = op.data


def lost(tape: Tape, length: int, luck: random.Random, folder: Path) -> str:
    """What a cut at a moment broke; empty where nothing."""
    folder.mkdir()
    for name, content in after_cut(tape, length, luck).items():
        (folder / name).write_bytes(content)
    acknowledged = sum(done <= length for _, done in tape.moments)
    begun = sum(began < length for began, _ in tape.moments)
    with SqliteStore(folder / "store.db", limits=LIMITS) as store:
        if store._database.query("PRAGMA integrity_check") != [("ok",)]:
            return "the file is damaged"
        found = holds(store, NAMES)
    allowed = tape.states[acknowledged : max(begun, acknowledged) + 1]
    return "" if found in allowed else f"after {acknowledged} acknowledged steps there is {found}"


SEEDS = [
    *range(_IN_EVERY_RUN),
    *(pytest.param(seed, marks=pytest.mark.torture) for seed in range(_IN_EVERY_RUN, _IN_TORTURE)),
]


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    return played(tmp_path_factory.mktemp("recorded"), seed=0)


def test_the_recording_is_worth_cutting(tape: Tape) -> None:
    kinds = {(op.kind, op.file) for op in tape.ops}
    assert ("sync", "store.db") in kinds, "checkpoints were made"
    assert ("truncate", "store.db") in kinds, "room was given back"
    assert ("sync", "store.db-wal") in kinds
    assert sum(op.kind == "sync" for op in tape.ops) > len(tape.moments)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_acknowledged_is_lost_to_a_power_cut(tape: Tape, tmp_path: Path, seed: int) -> None:
    luck = random.Random(seed)
    if seed >= _IN_EVERY_RUN:
        tape = played(tmp_path, seed)
    for cut in range(_CUTS_EACH):
        # A third of the cuts during the first steps: there the file itself comes to be.
        length = luck.randrange(1, tape.moments[1][1] if cut % 3 == 0 else len(tape.ops))
        trouble = lost(tape, length, luck, tmp_path / str(cut))
        assert not trouble, f"cut {cut} of seed {seed}, after {length} of {len(tape.ops)} operations: {trouble}"


def test_the_check_finds_what_a_lesser_setting_loses(tmp_path: Path) -> None:
    """With synchronous = NORMAL a commit does not wait for the disk."""
    (tmp_path / "recorded").mkdir()
    tape = played(tmp_path / "recorded", 0, lambda text: text.replace("synchronous = FULL", "synchronous = NORMAL"))
    luck = random.Random(1)
    lengths = [luck.randrange(tape.moments[1][1], len(tape.ops)) for _ in range(20)]
    assert any(lost(tape, length, luck, tmp_path / str(cut)) for cut, length in enumerate(lengths))
