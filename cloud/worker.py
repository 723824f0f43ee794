"""What runs in a worker process: one engine, loaded from a message and asked batch by batch over a socket.

Owns the life of that process: it ends when its parent does, however that ended, and says at every beat that it lives.
Started by `cloud.child` as `python -m edgewise.cloud.worker DESCRIPTOR PARENT`; no command of its own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from edgewise.cloud import messages
from edgewise.cloud.engine import Engine, load_engine
from edgewise.cloud.messages import Beat, EngineSpec, Loaded, NotLoaded
from edgewise.cloud.workers import outcomes
from edgewise.errors import EdgewiseError

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Load, say so, compute until the socket closes."""
    die_with_parent(int(sys.argv[2]))
    # Who stops a service may signal all of its processes; the parent drains first and then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        line = _Line(sock)
        spec = messages.decode_spec(line.read())
        batches: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        # Before the model is loaded, which may take minutes: the socket's end is noticed at any moment.
        threading.Thread(target=_listen, args=(line, batches), name="edgewise-listen", daemon=True).start()
        engine = _load(spec, line)
        if engine is not None:
            threading.Thread(target=_beat, args=(line, spec.beat_s), name="edgewise-beat", daemon=True).start()
            _compute(engine, line, batches)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process with its parent, also where it hangs in foreign code; Linux only.

    Args:
        parent: The parent's process id; where somebody else is the parent by now, it is dead already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _load(spec: EngineSpec, line: _Line) -> Engine | None:
    try:
        engine = load_engine(Path(spec.path), threads=spec.threads, name=spec.name, engine=spec.engine, max_slots=1)
    except EdgewiseError as error:
        line.write(messages.encode(NotLoaded(type(error).__name__, error.problem, error.remedy)))
        return None
    line.write(messages.encode(Loaded(engine.info, getattr(engine, "runtime", spec.engine))))
    return engine


def _compute(engine: Engine, line: _Line, batches: queue.SimpleQueue[bytes]) -> None:
    """Compute batches on this thread, which loaded the engine: some libraries count threads by thread."""
    while True:
        inputs = messages.decode_batch(batches.get())
        line.write(messages.encode_outcomes(outcomes(engine, inputs)))


def _listen(line: _Line, batches: queue.SimpleQueue[bytes]) -> None:
    """Take batches, and end with the socket, even in the middle of one: nobody is left to hear of it."""
    while True:
        batches.put(line.read())


def _beat(line: _Line, every_s: float) -> None:
    """Say that the process lives; a thread of its own can say so unless foreign code stops all of Python."""
    beat = messages.encode(Beat())
    while True:
        time.sleep(every_s)
        line.write(beat)


class _Line:
    """The socket to the parent; whole messages in and out. Its end is the end of the process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def read(self) -> bytes:
        (size,) = messages.HEADER.unpack(self._exactly(messages.HEADER.size))
        return self._exactly(size)

    def write(self, message: bytes) -> None:
        try:
            with self._lock:
                self._sock.sendall(messages.HEADER.pack(len(message)) + message)
        except OSError:
            os._exit(0)

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                count = self._sock.recv_into(view)
            except OSError:
                count = 0
            if count == 0:
                os._exit(0)
            view = view[count:]
        return bytes(data)


if __name__ == "__main__":
    main()
