"""Tasks that outlive the request that started them, and a loop of our own for callers that have none."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from edgewise.errors import CloudError, frames

_log = logging.getLogger("edgewise.router")
_T = TypeVar("_T")


class Background:
    """Holds tasks until they end, and reports the ones that end in an error nobody expected."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing may be started any more."""
        return self._closed

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run `work` beside the caller.

        Raises:
            RuntimeError: It is closed.
        """
        if self._closed:
            work.close()
            raise RuntimeError("The router is closed.")
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self, *, finish_s: float = 0.0) -> None:
        """Start nothing more, give what runs up to `finish_s` seconds to end, cancel the rest and wait for its end."""
        self._closed = True
        if self._tasks and finish_s:
            await asyncio.wait(self._tasks, timeout=finish_s)
        running = list(self._tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, CloudError):
            _log.error("A background task failed: %s", frames(error))


class LoopThread:
    """An event loop in a daemon thread, started at first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def started(self) -> bool:
        """Whether the thread runs."""
        return self._loop is not None

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` on the loop and wait for its result; its exception is raised here.

        Raises:
            RuntimeError: The thread was stopped, before or meanwhile.
        """
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._running_loop())
        except RuntimeError:
            work.close()
            raise
        try:
            return future.result()
        except CancelledError as error:
            raise RuntimeError("The router was closed.") from error
        except BaseException:
            # By now the work is the loop's, which alone may end it.
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread for good; callers that still wait hear of it."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise RuntimeError("The router is closed.")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="edgewise-router", daemon=True)
                self._thread.start()
            return self._loop


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
