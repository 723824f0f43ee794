"""One worker process as its parent holds it: started, spoken to, watched, ended.

Owns a single life: from `Child.open` until `ended()` says why it is over. Whether another one follows is `processes`'
business, what runs inside is `worker`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec

from edgewise.cloud import messages
from edgewise.cloud.messages import Computed, EngineSpec, Loaded, NotLoaded
from edgewise.contracts import Prediction
from edgewise.errors import ConfigError, EdgewiseError

_LOOKS = 4
"""Looks without a sign of life after which a worker counts as hung. Looks are counted, not seconds: a parent that was
itself held up has looked once, not four times."""

_BEATS = 10
"""Signs of life that a worker gives in the time it may be silent."""

_END_S = 2.0
"""What a worker that is told to end gets before it is killed."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a worker may take before it counts as hung.

    Attributes:
        start_s: From its start until its model is warm.
        batch_s: For one batch.
        silence_s: Without a sign of life.
    """

    start_s: float = 300.0
    batch_s: float = 60.0
    silence_s: float = 10.0


class WorkerDiedError(Exception):
    """The worker ended before it answered; its message says how."""


class Child:
    """A worker process that is loaded and warm.

    Args:
        process: The process.
        streams: The socket to it.
        loaded: What it serves.
        limits: How long it may take.
        on_free: Told when it has answered a batch and takes the next one.

    Attributes:
        loaded: What it serves.
        has_answered: Whether it has answered a batch.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        loaded: Loaded,
        limits: Limits,
        on_free: Callable[[Child], None],
    ) -> None:
        self.loaded = loaded
        self._process = process
        self._reader, self._writer = streams
        self._limits = limits
        self._on_free = on_free
        self._answer: asyncio.Future[list[Prediction | EdgewiseError]] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self.has_answered = False
        self._heard = True
        self._over = False
        self._killed_for = ""
        self._life = asyncio.create_task(self._live(), name=f"edgewise-worker-{process.pid}")

    @classmethod
    async def open(cls, spec: EngineSpec, limits: Limits, on_free: Callable[[Child], None]) -> Child:
        """Start a process and wait until its model is warm.

        Raises:
            EdgewiseError: The model cannot be loaded.
            WorkerDiedError: The process ended, or took too long.
        """
        process, sock = _spawn(spec)
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        try:
            beat_s = limits.silence_s / _BEATS
            _write(writer, messages.encode(msgspec.structs.replace(spec, beat_s=beat_s)))
            loaded = await _loaded(reader, process, limits.start_s)
        except BaseException:
            writer.close()
            await _reaped(process, at_once=True)
            raise
        return cls(process, (reader, writer), loaded, limits, on_free)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def compute(self, batch: bytes) -> list[Prediction | EdgewiseError]:
        """Compute one encoded batch; it must not be busy. Cancelling leaves it busy until it has answered.

        Raises:
            WorkerDiedError: It ended before it answered.
        """
        if self._over:
            raise WorkerDiedError("it has ended.")
        loop = asyncio.get_running_loop()
        limit_s = self._limits.batch_s
        self._alarm = loop.call_later(limit_s, self._kill, f"it took over {limit_s:g} s for a batch")
        self._answer = loop.create_future()
        _write(self._writer, batch)
        return await self._answer

    async def ended(self) -> str:
        """Wait for the end of the process; returns why it ended."""
        return await asyncio.shield(self._life)

    async def close(self) -> None:
        """Let the batch that is being computed end, then the process."""
        if self._answer is not None:
            await asyncio.wait({self._answer})
        self._writer.close()
        try:
            async with asyncio.timeout(_END_S):
                await self.ended()
        except TimeoutError:
            self._kill("it did not end when told to")
            await self.ended()

    async def _live(self) -> str:
        watch = asyncio.create_task(self._watch())
        try:
            await self._listen()
        finally:
            watch.cancel()
            self._over = True
            self._writer.close()
            exit_code = await _reaped(self._process, at_once=not self._reader.at_eof())
            why = self._killed_for or _exit_of(exit_code)
            answer = self._answered()
            if answer is not None:
                answer.set_exception(WorkerDiedError(why))
        return why

    async def _listen(self) -> None:
        """Take what the worker says until the socket ends."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            while True:
                reply = messages.decode_reply(await _frame(self._reader))
                self._heard = True
                if isinstance(reply, Computed):
                    self._settle(messages.unpacked(reply))

    def _settle(self, outcomes: list[Prediction | EdgewiseError]) -> None:
        self.has_answered = True
        answer = self._answered()
        if answer is not None:
            answer.set_result(outcomes)
        self._on_free(self)

    def _answered(self) -> asyncio.Future[list[Prediction | EdgewiseError]] | None:
        """No batch is being computed any more; gives who still waits for the last one."""
        answer, self._answer = self._answer, None
        if self._alarm is not None:
            self._alarm.cancel()
        return None if answer is None or answer.done() else answer

    async def _watch(self) -> None:
        """Kill a worker that is silent for too long."""
        silent = 0
        while silent < _LOOKS:
            await asyncio.sleep(self._limits.silence_s / _LOOKS)
            silent = 0 if self._heard else silent + 1
            self._heard = False
        self._kill(f"it gave no sign of life for {self._limits.silence_s:g} s")

    def _kill(self, why: str) -> None:
        if not self._over:
            self._killed_for = f"{why} and was killed"
            self._process.kill()


def _spawn(spec: EngineSpec) -> tuple[subprocess.Popen[bytes], socket.socket]:
    if sys.platform == "win32":
        raise ConfigError("Worker processes need a POSIX system.", "Compute in this process: --replicas 0.")
    try:
        ours, theirs = socket.socketpair()
        with theirs:
            process = _started(spec, ours, theirs)
    except OSError as error:  # no memory, no process or no descriptor is left: another time there may be
        raise WorkerDiedError(f"its process could not be started: {error.strerror}") from error
    ours.setblocking(False)
    return process, ours


def _started(spec: EngineSpec, ours: socket.socket, theirs: socket.socket) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603  our own interpreter and module
            # -P: nothing in the folder it happens to run in is imported.
            [sys.executable, "-P", "-m", "edgewise.cloud.worker", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=_environment(spec),
            # Ctrl-C in a terminal is for the parent, which drains.
            start_new_session=True,
        )
    except OSError:
        ours.close()
        raise


def _environment(spec: EngineSpec) -> dict[str, str]:
    # libgomp waits for its threads by spinning. Where something else wants a core too, 2 threads on 2 cores then answer
    # in seconds instead of milliseconds; fewer turns cost nothing measurable where nothing does.
    quiet = {"GOMP_SPINCOUNT": "10000"} if "OMP_WAIT_POLICY" not in os.environ else {}
    threads = {} if spec.threads is None else {"OMP_NUM_THREADS": str(spec.threads)}
    return {**quiet, **os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"}


async def _loaded(reader: asyncio.StreamReader, process: subprocess.Popen[bytes], start_s: float) -> Loaded:
    try:
        async with asyncio.timeout(start_s):
            reply = messages.decode_reply(await _frame(reader))
    except TimeoutError:
        raise WorkerDiedError(f"it did not load its model within {start_s:g} s and was killed") from None
    except (OSError, asyncio.IncompleteReadError, ValueError):
        raise WorkerDiedError(f"{_exit_of(await _reaped(process))} while it loaded its model") from None
    if isinstance(reply, NotLoaded):
        raise reply.error()
    if not isinstance(reply, Loaded):
        raise WorkerDiedError("it said something else than that it is ready")
    return reply


async def _frame(reader: asyncio.StreamReader) -> bytes:
    (size,) = messages.HEADER.unpack(await reader.readexactly(messages.HEADER.size))
    if size > messages.MAX_MESSAGE_BYTES:
        raise ValueError(f"A message of {size} bytes.")
    return await reader.readexactly(size)


def _write(writer: asyncio.StreamWriter, message: bytes) -> None:
    """Hand a message to the socket; one that is closed shows at the reader's end."""
    writer.write(messages.HEADER.pack(len(message)))
    writer.write(message)


async def _reaped(process: subprocess.Popen[bytes], *, at_once: bool = False) -> int:
    """Wait for the end of a process whose socket has ended; its exit code, negative for a signal."""
    if not at_once:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(process.wait, _END_S)
    process.kill()
    return await asyncio.to_thread(process.wait)


def _exit_of(code: int) -> str:
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"
