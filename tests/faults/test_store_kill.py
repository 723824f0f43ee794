"""A process that is killed loses nothing it has acknowledged."""

import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from edgewise.contracts import AuditTotals, AuditVerdict
from edgewise.router.monitor import AuditMonitor, MonitorState
from edgewise.store import SqliteStore

_WRITER = """
import sys
from edgewise.contracts import Action, Answer, Decision, Reason, Request, Source, Status
from edgewise.store import SqliteStore

decision = Decision(action=Action.ESCALATE, reason=Reason.CLOUD_FAILED, policy="p")
store = SqliteStore(sys.argv[1])
start = sum(request.tenant == "public" for request in store.outbox.pending(100_000))
for index in range(start, start + 100_000):
    name = str(index)
    answer = Answer(id=name, output="x" * (index % 3000), status=Status.PROVISIONAL, source=Source.EDGE,
                    decision=decision, timings_ms={"total": 1.0}, model_digest="d")
    store.outbox.put(Request(id=name, inputs="x" * (index % 5000)))
    print("owed", name, flush=True)
    store.answers.put("public", answer)
    print("answered", name, flush=True)
    store.hooks.put("shop", "public", answer)
    print("hooked", name, flush=True)
    store.outbox.put(Request(id=name, inputs="x" * (index % 5000), tenant="settled"))
    store.outbox.done("settled", name)
    print("settled", name, flush=True)
    store.audits.drawn(name, "c")
    print("drawn", name, flush=True)
"""


def _run_until_killed(path: Path, acks: int, writer: str) -> list[tuple[str, str]]:
    """Lines that the writer managed to say before it was killed right after its `acks`-th."""
    with subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acks)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return [(kind, name) for kind, name in (line.split() for line in lines if line.endswith("\n"))]


_IN_EVERY_RUN = 4
_IN_TORTURE = 100


@pytest.mark.parametrize(
    "seed",
    [
        *range(_IN_EVERY_RUN),
        *(pytest.param(seed, marks=pytest.mark.torture) for seed in range(_IN_EVERY_RUN, _IN_TORTURE)),
    ],
)
def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "store.db"
    moments = random.Random(seed)
    said: list[tuple[str, str]] = []
    for _ in range(2):
        said += _run_until_killed(path, moments.randint(1, 60), _WRITER)
    with SqliteStore(path) as store:
        pending = store.outbox.pending(100_000)
        owed = [request.id for request in pending if request.tenant == "public"]
        back = {request.id for request in pending if request.tenant == "settled"}
        assert not back & {name for kind, name in said if kind == "settled"}
        hooked = [hook.answer.id for hook in store.hooks.due(1e12, 100_000)]
        assert set(hooked) >= {name for kind, name in said if kind == "hooked"}
        assert len(hooked) == len(set(hooked)) == len(store.hooks)
        assert set(owed) >= {name for kind, name in said if kind == "owed"}
        assert owed == [str(index) for index in range(len(owed))]
        for kind, name in said:
            if kind == "answered":
                kept = store.answers.get("public", name)
                assert kept is not None
                assert len(kept.output) == int(name) % 3000
        drawn = sum(kind == "drawn" for kind, _ in said)
        totals = store.audits.totals("c")
        assert totals.drawn >= drawn
        assert totals == AuditTotals(drawn=totals.drawn, violations=totals.drawn, missing=totals.drawn)
        # An acknowledgement follows its write, so at most one write of each life is unsaid.
        assert len(owed) + totals.drawn <= sum(kind in ("owed", "drawn") for kind, _ in said) + 2 * 2


_AUDITOR = """
import sys
from edgewise.contracts import AuditVerdict
from edgewise.router.monitor import AuditMonitor, MonitorState
from edgewise.store import SqliteStore
import msgspec

def fold(state, verdicts):
    before = MonitorState() if state is None else msgspec.msgpack.decode(state, type=MonitorState)
    monitor = AuditMonitor.resumed(0.01, 0.05, before)
    for verdict in verdicts:
        monitor.update(verdict.violation)
    return msgspec.msgpack.encode(monitor.state)

audits = SqliteStore(sys.argv[1]).audits
waiting = []
for index in range(100_000):
    waiting.append(audits.drawn(str(index), "c"))
    print("drawn", waiting[-1], flush=True)
    if index % 3 == 0:
        late = waiting.pop(index % len(waiting))
        audits.verdict(late, AuditVerdict(violation=late % 7 == 0, score=late / 8, differs=late % 7 == 0))
        print("settled", late, flush=True)
        audits.advance("c", fold)
        print("folded", index, flush=True)
    if len(waiting) > 4:
        audits.verdict(waiting.pop(0), AuditVerdict(violation=False))
        print("settled", index, flush=True)
"""


@pytest.mark.parametrize(
    "seed",
    [
        *range(_IN_EVERY_RUN // 2),
        *(pytest.param(seed, marks=pytest.mark.torture) for seed in range(_IN_EVERY_RUN // 2, _IN_TORTURE)),
    ],
)
def test_no_verdict_is_folded_twice_or_never_after_kill_9(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "store.db"
    moments = random.Random(seed)
    drawn: list[str] = []
    for _ in range(2):
        said = _run_until_killed(path, moments.randint(1, 90), _AUDITOR)
        drawn += [name for kind, name in said if kind == "drawn"]
    with SqliteStore(path) as store:
        state = msgspec.msgpack.decode(store.audits.advance("c", _fold), type=MonitorState)
        every = AuditMonitor(0.01, 0.05)
        for verdict in store.audits.verdicts("c", 100_000):
            every.update(verdict.violation)
        totals = store.audits.totals("c")
        assert state == every.state  # to the last bit: the same verdicts, each once, in draw order
        assert (state.audits, state.violations) == (totals.drawn, totals.violations)
        assert len(drawn) <= state.audits <= len(drawn) + 2


def _fold(state: bytes | None, verdicts: Sequence[AuditVerdict]) -> bytes:
    before = MonitorState() if state is None else msgspec.msgpack.decode(state, type=MonitorState)
    monitor = AuditMonitor.resumed(0.01, 0.05, before)
    for verdict in verdicts:
        monitor.update(verdict.violation)
    return msgspec.msgpack.encode(monitor.state)
