"""The pure parts of the benchmark of drafting over networks, and its delay line."""

import asyncio
import importlib.util
import sys
import time
from pathlib import Path
from typing import NamedTuple

PLACE = Path(__file__).parents[2] / "benchmarks" / "generate"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", PLACE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


benchmark, link = load("speculative"), load("link")


class Goal(NamedTuple):
    what: str
    found: str
    met: bool


def run(name, rtt_ms, tokens_per_s, same=None, edge="int4"):
    return benchmark.Run(name, edge, rtt_ms, tokens_per_s, 100.0, same, 4)


def sweep(near, far, same=4):
    return [
        run(benchmark.PLAIN, 0.0, 20.0, edge=""),
        run(benchmark.ADAPTED, 0.0, near, same),
        run(benchmark.PLAIN, 200.0, 18.0, edge=""),
        run(benchmark.ADAPTED, 200.0, far, same),
    ]


def test_it_says_where_it_loses():
    assert benchmark.losses([sweep(30.0, 9.0)]) == [
        "drafted, adapted, int4: wins at 0 ms (1.50 x); loses at 200 ms (0.50 x)"
    ]
    assert benchmark.losses([sweep(30.0, 19.0)])[0].endswith("loses at none")


def test_goals_are_judged_by_medians_and_every_answer():
    assert [goal.met for goal in benchmark.goals([sweep(30.0, 17.0)], Goal)] == [True, True]
    assert [goal.met for goal in benchmark.goals([sweep(30.0, 9.0, same=3)], Goal)] == [False, False]
    assert [goal.met for goal in benchmark.goals([sweep(30.0, far) for far in (9.0, 17.0, 18.0)], Goal)][1]


def test_figures_of_a_run_count_waiting_too():
    answers = [benchmark.Answered("a", 10, 100.0, 1.0), benchmark.Answered("b", 30, 300.0, 3.0)]
    found = benchmark.summed("x", "int4", 5.0, answers, [answers[0], answers[0]])
    assert (found.tokens_per_s, found.first_ms, found.same, found.answers) == (10.0, 200.0, 1, 2)


async def test_a_link_delays_and_does_not_throttle():
    async def echo(reader, writer):
        while chunk := await reader.read(1000):
            writer.write(chunk)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with link.Link("127.0.0.1", port, 60.0) as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        started = time.monotonic()
        for number in range(20):
            writer.write(bytes([number]))
            await writer.drain()
            await asyncio.sleep(0)
        assert await reader.readexactly(20) == bytes(range(20))
        assert time.monotonic() - started >= 0.05  # never sooner than the way there and back
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    server.close()
