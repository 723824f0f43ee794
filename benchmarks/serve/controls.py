"""The servers that gateway.py holds the gateway against, and the gateway with a timer beside it.

    python benchmarks/serve/controls.py echo PORT                   parses the body and sends it back
    python benchmarks/serve/controls.py echo-run PORT BUNDLE        and runs the bundle's graph on inputs at hand
    python benchmarks/serve/controls.py executor PORT BUNDLE        tokenizer and graph in an executor, a thread a core
    python benchmarks/serve/controls.py gateway PORT CONFIG         what `edgewise edge serve --config` serves

All on uvicorn with uvloop and httptools; the first three are bare ASGI callables. `executor` and `gateway` answer
GET /late: how late a timer of 5 ms fired in their event loop since the last time it was asked, in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
import onnxruntime
import uvicorn

sys.path.append(str(Path(__file__).parents[1] / "quantize"))

from harness import model_of_bundle

from edgewise.bundle import Bundle
from edgewise.config import load_config
from edgewise.edge import EdgeModel, probe
from edgewise.wire.serve import serve
from edgewise.wiring.gateway import build_gateway

TIMER_S = 0.005


class Body(msgspec.Struct):
    """What is parsed."""

    inputs: str


_decoder = msgspec.json.Decoder(Body)
_encoder = msgspec.json.Encoder()


class Bare:
    """A bare ASGI callable around `work`, which may be a coroutine function."""

    def __init__(self, work: Any, *, waits: bool = False) -> None:
        self._work = work
        self._waits = waits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        body, more = b"", scope["method"] == "POST"
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        sent = _decoder.decode(body) if body else Body("")
        found = await self._work(sent) if self._waits else self._work(sent)
        data = _encoder.encode(found)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})


async def _live(receive: Any, send: Any) -> None:
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


class Timed:
    """An application with a timer beside it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._late_ms: list[float] = []
        if hasattr(app, "at_once"):
            self.at_once = app.at_once

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass everything on but /late."""
        if scope["type"] == "lifespan":
            timer = asyncio.create_task(self._time())
            try:
                await self._app(scope, receive, send)
            finally:
                timer.cancel()
        elif scope.get("path") == "/late":
            late, self._late_ms = self._late_ms or [0.0], []
            data = json.dumps({"p99_ms": float(np.percentile(late, 99)), "max_ms": max(late)}).encode()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": data})
        else:
            await self._app(scope, receive, send)

    async def _time(self) -> None:
        with suppress(asyncio.CancelledError):
            while True:
                due = time.perf_counter() + TIMER_S
                await asyncio.sleep(TIMER_S)
                self._late_ms.append(max(0.0, time.perf_counter() - due) * 1000)


def echo() -> Any:
    """Parse and send back."""
    return Bare(lambda sent: sent)


def echo_run(bundle: Path) -> Any:
    """Parse, run the graph on inputs at hand, and send back."""
    opened = Bundle.open(bundle)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(opened.graph_path), options, providers=["CPUExecutionProvider"])
    encoded = model_of_bundle("trivial", bundle).encode(str(opened.golden()[0].input))
    feeds = {wanted.name: encoded[wanted.name] for wanted in session.get_inputs()}

    def work(sent: Body) -> Body:
        session.run(None, feeds)
        return sent

    return Bare(work)


def executor(bundle: Path) -> Any:
    """Tokenizer and graph in an executor with a thread a core: what a careful prototype does."""
    model = EdgeModel.load(bundle, threads=1)
    pool = ThreadPoolExecutor(probe().cores)

    async def work(sent: Body) -> dict[str, str]:
        if not sent.inputs:
            return {}
        (found,) = await asyncio.get_running_loop().run_in_executor(pool, model.predict, [sent.inputs])
        return {"output": str(found.output)}

    return Timed(Bare(work, waits=True))


def main() -> None:
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "gateway":
        with ExitStack() as resources:
            serve(Timed(build_gateway(load_config(Path(sys.argv[3])), resources).app), port=port)
        return
    app = echo() if kind == "echo" else {"echo-run": echo_run, "executor": executor}[kind](Path(sys.argv[3]))
    uvicorn.run(app, port=port, http="httptools", loop="uvloop", log_level="critical", access_log=False)


if __name__ == "__main__":
    main()
