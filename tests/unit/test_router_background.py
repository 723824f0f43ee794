"""The loop of the blocking face: who waits for it may be interrupted, and may come too late."""

import asyncio
import threading
from concurrent.futures import Future

import pytest

from edgewise.router.background import LoopThread


def test_work_that_nobody_waits_for_any_longer_is_ended_by_its_own_loop(monkeypatch):
    began, ended, thread = threading.Event(), threading.Event(), LoopThread()
    ended_in = []

    async def work():
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended_in.append(threading.current_thread().name)
            raise
        finally:
            ended.set()

    def interrupted(self, timeout=None):
        assert began.wait(60)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            thread.run(work())
    assert ended.wait(60)
    assert ended_in == ["edgewise-router"]
    thread.stop()


def test_work_that_comes_too_late_never_begins(recwarn):
    thread = LoopThread()
    thread.stop()
    with pytest.raises(RuntimeError, match="closed"):
        thread.run(asyncio.sleep(0))
    assert not recwarn.list


def test_an_error_of_the_work_is_raised_to_who_waits():
    async def work():
        raise ValueError("its own")

    thread = LoopThread()
    with pytest.raises(ValueError, match="its own"):
        thread.run(work())
    thread.stop()
