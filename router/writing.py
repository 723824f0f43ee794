"""Where the edge model writes: in a few threads of their own, each of which hands over its tokens as they come.

A generation computes for seconds and lets the interpreter go meanwhile; what costs is to wake the event loop, and
whoever reads from it, for a token. So tokens that come fast are handed over together, and so are those that come while
the loop is busy; the first one, and one that somebody waits for, is handed over at once. Whoever waits for a text holds
a `Draft` of it; a draft that is stopped ends before its next token, and gives back what it holds in its own thread.

Owns the threads and the handing over. What a text is worth, and who hears of it, is the flow's.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from edgewise.contracts import Clock, LocalGenerator, Prediction, Request, Writing
from edgewise.dialogue import Piece, Prompt, Written, refuse
from edgewise.errors import BeyondModelError, InputError, RequestError
from edgewise.router.gate import prediction_of
from edgewise.router.growing import Growing
from edgewise.router.instruments import Instruments
from edgewise.router.pace import Recent

_TOGETHER_S = 0.016
"""For how long after others tokens are kept back: no screen is drawn more often."""
_LAST_TOKEN_S = 1.0
"""For how long a turn waits for an interrupted one of its session, which computes its last token still."""


class Draft(Growing[Piece]):
    """A text that the edge model writes, seen from the event loop that wants it.

    Args:
        loop: The event loop.
        request: What is asked; its input is a prompt.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, request: Request) -> None:
        super().__init__()
        self._loop = loop
        self._request = request
        self._incoming: deque[Piece] = deque()
        self._count = 0
        self._is_called = False
        self._timer: asyncio.TimerHandle | None = None
        self._writing: Writing | None = None
        self._is_stopped = False
        self._outcome: Written | Exception | None = None
        self._place: Future[None] | None = None

    def prediction(self, first: int | None = None) -> Prediction:
        """What is known of it: by its first tokens alone, or by all once it is over."""
        if first is not None:
            return prediction_of(self.items[:first])
        return prediction_of(self.items, self._outcome if isinstance(self._outcome, Written) else None)

    @property
    def is_whole(self) -> bool:
        """Whether it was written to its end."""
        return self.is_over and isinstance(self._outcome, Written) and not self._is_stopped

    def check(self) -> None:
        """Raise what ended it early.

        Raises:
            RequestError: The prompt cannot be answered.
            InputError: The same, where there is a kind of its own; or the model cannot run.
            RuntimeError: It was stopped, and somebody wants it still: the router is closed. Or a library that the model
                needs broke down.
        """
        if self._is_stopped:
            raise RuntimeError("The router is closed.")
        error = self._outcome if self.is_over else None
        if not isinstance(error, Exception):
            return
        item = self._request.inputs
        if isinstance(error, InputError) and isinstance(item, Prompt):
            refuse(error, item)
        raise error

    @property
    def is_beyond(self) -> bool:
        """Whether the prompt was found to be beyond this very model; another may answer it."""
        return self.is_over and isinstance(self._outcome, BeyondModelError)

    def stop(self) -> None:
        """End it before its next token; one that waits for a thread is never begun. Any thread may call it."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._place is not None and self._place.cancel():
            self._on_loop(self.end)
        writing = self._writing
        if writing is not None:
            writing.stop()

    def leaves(self, request: Request) -> bool:
        """Whether it was stopped, and still holds what a request of its session goes on from."""
        mine = self._request
        is_same = mine.session is not None and (mine.tenant, mine.session) == (request.tenant, request.session)
        return is_same and self._is_stopped and not self.is_over

    # In the thread that writes

    def begin(self, pool: ThreadPoolExecutor, generator: LocalGenerator, after: Sequence[Draft] = ()) -> None:
        """Have it written as soon as a thread is free, and drafts that leave have left.

        Args:
            pool: The threads.
            generator: The model.
            after: Drafts that were begun before, and stopped.

        Raises:
            RuntimeError: The pool is closed.
        """
        places = [draft._place for draft in after if draft._place is not None]
        self._place = pool.submit(self._write, generator, places)

    def _write(self, generator: LocalGenerator, after: Sequence[Future[None]]) -> None:
        try:
            # What they computed would be computed again. They were begun before, so they do not wait for this thread.
            wait(after, timeout=_LAST_TOKEN_S)
            self._outcome = self._written(generator)
        except Exception as error:  # told to whoever waits for the text
            self._outcome = error
        except BaseException as error:  # a library's panic is no Exception: in a thread nobody else would hear of it
            self._outcome = RuntimeError(f"The edge model broke down: {type(error).__name__}.")
            self._outcome.__cause__ = error
        self._call()

    def _written(self, generator: LocalGenerator) -> Written:
        request = self._request
        if not isinstance(request.inputs, Prompt):
            raise RequestError(
                "inputs", "This model writes texts, and was not asked by a prompt.", "Send messages, or a prompt."
            )
        writing = generator.write(request.inputs, tenant=request.tenant, session=request.session)
        self._writing = writing
        try:
            if self._is_stopped:  # before there was anything to stop
                writing.stop()
            for piece in writing:
                self._incoming.append(piece)
                self._count += 1
                self._call()
            return writing.written
        finally:
            writing.close()

    def _call(self) -> None:
        """Have the loop collect what is there, unless it comes soon enough by itself."""
        comes_anyway = self._is_called or (self._timer is not None and self._count < self.soonest)
        if comes_anyway and self._outcome is None and not self._loop.is_closed():
            return
        self._is_called = True
        self._on_loop(self._collect)

    def _on_loop(self, what: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:  # the loop is closed: nobody waits
            self.stop()

    # On the loop

    def sign(self, count: float = math.inf) -> asyncio.Future[None]:
        """As `Growing` has it; what is not handed over yet counts."""
        found = super().sign(count)
        self._collect()  # in this order: the thread hands over at once what comes after it is known who waits
        return found

    def _collect(self) -> None:
        # In this order: what comes from here on calls again.
        self._is_called = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        is_over = self._outcome is not None
        pieces = []
        while self._incoming:
            pieces.append(self._incoming.popleft())
        if pieces:
            self.extend(pieces)
        if is_over:
            if not self.is_over:
                self.end()
        elif pieces and self._timer is None:
            self._timer = self._loop.call_later(_TOGETHER_S, self._collect)


class Writers:
    """The edge model as the flow of texts sees it.

    Args:
        generator: The model; called from several threads at once.
        threads: Texts that are written at the same time.
        clock: Time.
        instruments: Where tokens are counted.
    """

    def __init__(self, generator: LocalGenerator, threads: int, clock: Clock, instruments: Instruments) -> None:
        self._generator = generator
        self._clock = clock
        self._instruments = instruments
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="edgewise-text")
        self._drafts: set[Draft] = set()
        self._first = Recent(math.inf)
        self._whole = Recent(math.inf)

    @property
    def running(self) -> int:
        """Texts that are being written, or wait for a thread."""
        return len(self._drafts)

    def set_aside_s(self, *, whole: bool) -> float:
        """Seconds before a deadline at which a text has to be begun; `inf` where none was seen yet.

        Args:
            whole: So that all of it is there by then, and not only its first token.
        """
        return (self._whole if whole else self._first).seconds

    def begin(self, request: Request) -> Draft:
        """Write an answer; whoever has no use for it any longer must stop it.

        Raises:
            RuntimeError: It is closed.
        """
        draft = Draft(asyncio.get_running_loop(), request)
        began = self._clock.monotonic()
        draft.begin(self._pool, self._generator, [other for other in self._drafts if other.leaves(request)])
        self._drafts.add(draft)
        draft.sign(1).add_done_callback(lambda _: self._first.took(self._clock.monotonic() - began))
        draft.sign().add_done_callback(lambda _: self._ended(draft, began))
        return draft

    def close(self) -> None:
        """Begin nothing more and stop what is being written; each ends by itself, within a token."""
        for draft in list(self._drafts):
            draft.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ended(self, draft: Draft, began: float) -> None:
        self._drafts.discard(draft)
        if draft.items:
            self._instruments.tokens.inc("edge", by=len(draft.items))
        if draft.is_whole:
            self._whole.took(self._clock.monotonic() - began)
