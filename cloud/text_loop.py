"""The thread in which a language model writes: step after step, while anybody is in the batch.

Owns the thread, and the way of words into it and of tokens out of it. Whatever a step raises, the thread lives on and
its callers hear of it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from edgewise.cloud.prompts import Reading
from edgewise.cloud.rows import Told
from edgewise.cloud.text_engine import TextEngine
from edgewise.cloud.text_metrics import Stats
from edgewise.cloud.workers import frames

_log = logging.getLogger(__name__)


class Step(NamedTuple):
    """What a step brought.

    Attributes:
        told: To whom it brought what.
        failed: Whose answers failed; nothing of them is left.
        stats: What the engine did so far.
    """

    told: list[Told]
    failed: list[str]
    stats: Stats


class TextLoop:
    """Runs an engine; made and used in an event loop.

    Args:
        engine: The engine; from `start` to `stop` only the thread touches its batch.
        hear: Called in the event loop with what a step brought.
        ended: Called in the event loop when the thread ends without having been told to.
    """

    def __init__(self, engine: TextEngine, hear: Callable[[Step], None], ended: Callable[[], None]) -> None:
        self._engine = engine
        self._hear = hear
        self._ended = ended
        self._events = asyncio.get_running_loop()
        self._orders: deque[tuple[str, Reading | None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="edgewise-text", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step that is running; blocks until then."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def join(self, key: str, reading: Reading) -> None:
        """Let an answer into the batch."""
        self._order(key, reading)

    def leave(self, key: str) -> None:
        """Take an answer out before the next step."""
        self._order(key, None)

    def _order(self, key: str, reading: Reading | None) -> None:
        with self._wake:
            self._orders.append((key, reading))
            self._wake.notify()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._go_on()
            self._engine.clear()
        except BaseException as error:  # the thread ends here, and nobody else would hear of it
            _log.error("The thread that writes ended: %s", frames(error))
            self._events.call_soon_threadsafe(self._ended)

    def _go_on(self) -> None:
        """Do what was ordered, then a step; wait for an order where there is nothing to do."""
        with self._wake:
            while not (self._orders or self._engine.running or self._stopping):
                self._wake.wait()
            orders = list(self._orders)
            self._orders.clear()
        failed = [key for key, reading in orders if not self._obeyed(key, reading)]
        told: list[Told] = []
        try:
            told = self._engine.step()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Whatever torch or the model raises, a panic of a Rust library included, which is no Exception: the thread
            # lives, the callers hear of it, the log says where.
            failed += self._engine.clear()
            _log.error("A step failed, and %d answers with it: %s", len(failed), frames(error))
        if told or failed:
            self._events.call_soon_threadsafe(self._hear, Step(told, failed, replace(self._engine.stats)))

    def _obeyed(self, key: str, reading: Reading | None) -> bool:
        """Whether an order could be followed."""
        try:
            if reading is None:
                self._engine.leave(key)
            else:
                self._engine.join(key, reading)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            _log.error("An answer could not begin or end: %s", frames(error))
            return False
        return True
