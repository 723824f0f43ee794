"""Worker processes: real ones, killed, stopped and starved; their messages; and how soon another follows."""

import asyncio
import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.cloud import child, messages
from edgewise.cloud.child import Limits
from edgewise.cloud.messages import Computed, EngineSpec, Loaded, NotLoaded
from edgewise.cloud.processes import LONGEST_DELAY_S, ProcessWorkers, restart_delay_s
from edgewise.cloud.workers import Workers
from edgewise.contracts import Prediction, ServiceInfo
from edgewise.errors import (
    BundleError,
    CheckpointError,
    CloudError,
    CloudResponseError,
    CloudUnreachableError,
    ConfigError,
    InputError,
    MissingExtraError,
    RequestError,
)

WAIT_S = 60


async def until(condition):
    """Wait for a condition that other processes bring about."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  other processes set no event
            await asyncio.sleep(0.01)


@pytest.fixture
async def start():
    """Start workers over a folder; all are closed when the test ends."""
    started = []

    async def _start(path, **options):
        workers: Workers = ProcessWorkers(EngineSpec(path=str(path), threads=1), **options)
        started.append(workers)
        await workers.start()
        return workers

    yield _start
    for workers in started:
        await workers.aclose()


async def outputs(workers, texts):
    return [found.output for found in await workers.compute(texts)]


async def test_batches_are_computed_in_processes_of_their_own(start, tiny_text_bundle):
    workers = await start(tiny_text_bundle, replicas=2)
    assert workers.slots == 2
    assert workers.ready() is None
    assert len({*workers.pids, os.getpid()}) == 3
    assert (workers.info.name, workers.info.role) == ("tiny-text", "cloud")
    batches = [["wheat corn", "vessel port"], ["tariff quota"]] * 4
    found = await asyncio.gather(*(outputs(workers, batch) for batch in batches))
    assert found == [["grain", "ship"], ["trade"]] * 4
    (prediction,) = await workers.compute(["wheat corn"])
    assert prediction.logits.shape == (3,)
    assert prediction.logits.dtype == np.float32


async def test_an_item_that_cannot_be_read_or_sent_fails_alone(start, tiny_text_bundle):
    workers = await start(tiny_text_bundle, replicas=1)
    found = await workers.compute(["wheat corn", b"\x89PNG", "lone \ud800", "vessel port"])
    assert [type(outcome) for outcome in found] == [Prediction, RequestError, RequestError, Prediction]
    assert [outcome.field for outcome in found[1:3]] == ["inputs", "inputs"]


async def test_closing_ends_the_processes_and_what_comes_then_is_refused(start, tiny_text_bundle):
    workers = await start(tiny_text_bundle, replicas=2)
    pids = workers.pids
    await workers.aclose()
    assert not any(alive(pid) for pid in pids)
    assert workers.ready() == "The workers are stopped."
    (refused,) = await workers.compute(["wheat"])
    assert isinstance(refused, CloudUnreachableError)
    await workers.start()
    assert await outputs(workers, ["wheat"]) == ["grain"]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_killed_worker_is_noticed_told_and_replaced(start, tiny_text_bundle, caplog):
    deaths = []
    workers = await start(tiny_text_bundle, replicas=1, on_death=lambda: deaths.append(1))
    told = []
    workers.on_change = lambda: told.append(workers.ready() is None)
    (pid,) = workers.pids
    os.kill(pid, signal.SIGKILL)
    await until(lambda: workers.ready() is not None)
    assert "ended by SIGKILL" in workers.ready()
    (refused,) = await workers.compute(["wheat"])
    assert isinstance(refused, CloudUnreachableError)
    assert "ended by SIGKILL" in str(refused)
    await until(lambda: workers.ready() is None)
    assert workers.pids != [pid]
    assert await outputs(workers, ["wheat"]) == ["grain"]
    assert len(deaths) == 1
    assert told == [False, True]
    os.kill(workers.pids[0], signal.SIGKILL)
    await until(lambda: len(deaths) == 2)
    # It had answered: that is no crash loop.
    assert caplog.text.count("death 1 in a row") == 2
    assert {record.levelno for record in caplog.records if "died" in record.message} == {logging.ERROR}


async def test_a_machine_that_has_no_process_to_give_is_asked_again(start, tiny_text_bundle, monkeypatch, caplog):
    workers = await start(tiny_text_bundle, replicas=1)
    refusals = [OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), OSError(errno.EMFILE, os.strerror(errno.EMFILE))]
    popen = subprocess.Popen

    def reluctant(*args, **options):
        if refusals:
            raise refusals.pop()
        return popen(*args, **options)

    monkeypatch.setattr(child.subprocess, "Popen", reluctant)
    os.kill(workers.pids[0], signal.SIGKILL)
    await until(lambda: workers.ready() is not None)
    await until(lambda: workers.ready() is None)
    assert refusals == []
    assert "could not be started: Too many open files" in caplog.text
    assert await outputs(workers, ["wheat"]) == ["grain"]


def test_a_worker_whose_parent_is_dead_already_ends_before_it_loads_anything():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "edgewise.cloud.worker", str(theirs.fileno()), str(os.getppid())]
        assert subprocess.run(command, pass_fds=[theirs.fileno()], timeout=WAIT_S).returncode == 0


async def test_the_batch_of_a_worker_that_dies_is_computed_by_another(start, tiny_text_bundle):
    workers = await start(tiny_text_bundle, replicas=2)
    # Stopped, both hold what they are given; the first batch is then certainly with one that dies.
    first, second = workers.pids
    for pid in (first, second):
        os.kill(pid, signal.SIGSTOP)
    batches = [asyncio.create_task(outputs(workers, [text])) for text in ("wheat", "vessel")]
    await until(lambda: not workers._idle)
    os.kill(first, signal.SIGKILL)
    await until(lambda: first not in workers.pids)
    os.kill(second, signal.SIGCONT)
    assert await asyncio.gather(*batches) == [["grain"], ["ship"]]


async def test_a_batch_that_kills_two_workers_is_given_up(start, tiny_text_bundle):
    workers = await start(tiny_text_bundle, replicas=2)
    pids = workers.pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    batch = asyncio.create_task(workers.compute(["wheat", "vessel"]))
    for pid in (workers._idle[0].pid, workers._idle[1].pid):
        await until(lambda pid=pid: pid not in [child.pid for child in workers._idle])
        os.kill(pid, signal.SIGKILL)
    found = await batch
    assert [type(outcome) for outcome in found] == [CloudError, CloudError]
    assert "2 workers died over this batch" in str(found[0])
    await until(lambda: len(workers.pids) == 2)
    assert await outputs(workers, ["wheat"]) == ["grain"]


async def test_a_silent_worker_is_killed_and_replaced(start, tiny_text_bundle, caplog):
    workers = await start(tiny_text_bundle, replicas=1, limits=Limits(silence_s=1.0))
    (pid,) = workers.pids
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: workers.pids not in ([pid], []))
    assert "no sign of life for 1 s" in caplog.text
    assert await outputs(workers, ["wheat"]) == ["grain"]


async def test_a_worker_that_takes_too_long_for_a_batch_is_killed(start, tiny_text_bundle):
    workers = await start(tiny_text_bundle, replicas=1, limits=Limits(batch_s=0.3))
    os.kill(workers.pids[0], signal.SIGSTOP)
    (refused,) = await workers.compute(["wheat"])
    assert isinstance(refused, CloudUnreachableError)
    assert "over 0.3 s for a batch" in str(refused)
    await until(lambda: workers.ready() is None)
    assert await outputs(workers, ["wheat"]) == ["grain"]


async def test_a_caller_who_leaves_keeps_its_worker_busy_until_it_has_answered(start, tiny_text_bundle):
    workers = await start(tiny_text_bundle, replicas=1)
    os.kill(workers.pids[0], signal.SIGSTOP)
    left = asyncio.create_task(workers.compute(["wheat"]))
    await until(lambda: not workers._idle)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    stays = asyncio.create_task(outputs(workers, ["vessel"]))
    await asyncio.sleep(0)
    assert not workers._idle
    os.kill(workers.pids[0], signal.SIGCONT)
    assert await stays == ["ship"]


async def test_workers_that_keep_dying_are_started_ever_more_slowly_and_say_why(start, tiny_text_bundle, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_text_bundle, folder)
    deaths = []
    workers = await start(folder, replicas=1, on_death=lambda: deaths.append(1))
    shutil.move(folder, tmp_path / "away")
    os.kill(workers.pids[0], signal.SIGKILL)
    await until(lambda: "did not start" in (workers.ready() or ""))
    assert str(folder) in workers.ready()
    shutil.move(tmp_path / "away", folder)
    await until(lambda: workers.ready() is None)
    assert len(deaths) >= 2


async def test_a_worker_whose_files_have_changed_does_not_join_the_others(start, tiny_models, tmp_path):
    folder = tmp_path / "model"
    shutil.move(tiny_models.pack_text(tmp_path), folder)
    workers = await start(folder, replicas=1)
    shutil.move(folder, tmp_path / "old")
    (tmp_path / "new").mkdir()
    shutil.move(tiny_models.pack_text(tmp_path / "new", name="other"), folder)
    os.kill(workers.pids[0], signal.SIGKILL)
    await until(lambda: "files have changed" in (workers.ready() or ""))
    assert workers.pids == []


@pytest.mark.parametrize("replicas", [1, 3])
async def test_a_model_that_cannot_be_loaded_is_refused_with_its_own_error(start, tmp_path, replicas):
    with pytest.raises(CheckpointError, match="is no folder"):
        await start(tmp_path / "nothing", replicas=replicas)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError):
        await start(tmp_path, replicas=replicas)


async def test_a_worker_that_does_not_start_in_time_is_ended(start, tiny_text_bundle):
    with pytest.raises(CloudError, match=r"did not load its model within 0.001 s"):
        await start(tiny_text_bundle, replicas=2, limits=Limits(start_s=0.001))


async def test_nothing_is_known_of_workers_that_have_not_started(tiny_text_bundle):
    workers = ProcessWorkers(EngineSpec(path=str(tiny_text_bundle)), replicas=1)
    assert workers.slots == 1
    assert workers.ready() == "The workers are not running."
    with pytest.raises(RuntimeError):
        _ = workers.info
    with pytest.raises(ConfigError):
        ProcessWorkers(EngineSpec(path="x"), replicas=0)


def test_each_death_in_a_row_doubles_the_wait_up_to_a_limit():
    delays = [restart_delay_s(deaths) for deaths in range(1, 12)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays == sorted(delays)
    assert delays[-1] == restart_delay_s(10**6) == LONGEST_DELAY_S


items = st.one_of(
    st.text(),
    st.binary(),
    st.integers(0, 5).map(lambda size: np.arange(size * 6, dtype=np.float32).reshape(size, 2, 3)),
    st.sampled_from(["uint8", ">i4", "float64", "bool"]).map(lambda kind: np.ones((2, 3), dtype=kind)),
)


@given(st.lists(items))
def test_batches_arrive_as_they_were_sent(batch):
    arrived = messages.decode_batch(messages.encode_batch(batch))
    assert [type(item) for item in arrived] == [type(item) for item in batch]
    for there, here in zip(arrived, batch, strict=True):
        np.testing.assert_array_equal(there, here)
        if isinstance(here, np.ndarray):
            assert there.dtype == here.dtype


def test_outcomes_arrive_as_they_were_sent():
    sent = [
        Prediction(output="a", logits=np.array([1, 2], np.float32), margin=0.5, out_of_distribution=True),
        Prediction(output=(0.25, -1.0), embedding=np.zeros(2, np.float32)),
        RequestError("inputs", "inputs: no text.", "Send one."),
        CloudResponseError("The engine failed: ZeroDivisionError.", "See the service's log."),
    ]
    reply = messages.decode_reply(messages.encode_outcomes(sent))
    assert isinstance(reply, Computed)
    first, second, refused, failed = messages.unpacked(reply)
    np.testing.assert_array_equal(first.logits, [1, 2])
    assert (first.output, first.margin, first.out_of_distribution) == ("a", 0.5, True)
    assert second.output == (0.25, -1.0)
    assert (type(refused), refused.field, str(refused)) == (RequestError, "inputs", "inputs: no text. Send one.")
    assert (type(failed), str(failed)) == (CloudResponseError, str(sent[3]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BundleError", BundleError),
        ("ConfigError", ConfigError),
        ("MissingExtraError", CheckpointError),
        ("os", CheckpointError),
    ],
)
def test_what_a_worker_could_not_load_is_raised_here_as_there(kind, expected):
    told = messages.decode_reply(messages.encode(NotLoaded(kind, "What.", "Help.")))
    error = told.error()
    assert type(error) is expected
    assert str(error) == "What. Help."


def test_a_missing_extra_names_its_command_through_a_worker():
    error = MissingExtraError("Serving a checkpoint", "cloud")
    told = NotLoaded(type(error).__name__, error.problem, error.remedy).error()
    assert "pip install 'edgewise[cloud]'" in str(told)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81\xa4type\xa5other", messages.encode(Loaded(ServiceInfo(
    name="a", version="1", task="t", labels=(), input="text", role="cloud")))[:-1]])  # fmt: skip
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ValueError, match=r".+"):
        messages.decode_reply(data)


def test_objects_are_not_sent():
    with pytest.raises(InputError):
        messages.encode_batch([np.array([object()])])
