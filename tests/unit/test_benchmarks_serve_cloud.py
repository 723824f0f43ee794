"""The pure parts of the cloud service's benchmark: what is sent to whom, and what counts as reached."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

# By its path: the script's name is also that of a room.
PLACE = Path(__file__).parents[2] / "benchmarks" / "serve" / "cloud.py"
spec = importlib.util.spec_from_file_location("benchmark_cloud", PLACE)
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark
spec.loader.exec_module(benchmark)


def runs(rps, p99_ms):
    return [{"rps": rps * turn, "p99_ms": p99_ms * turn, "p50_ms": 1.0, "max_ms": 1.0} for turn in (1.0, 1.1, 0.9)]


def found(own=(300, 100), torch=(150, 200), single=(200, 150), rivals=((100, 250), (120, 300))):
    named = {"edgewise": runs(*own), "edgewise, torch": runs(*torch), "edgewise, single": runs(*single)}
    return named | {f"litserve {number}": runs(*rival) for number, rival in enumerate(rivals)}


def test_all_targets_are_judged_against_the_best_rival():
    judged = benchmark.goals(found())
    assert all(goal.met for goal in judged)
    assert "litserve 1" in judged[0].what
    assert judged[0].found.startswith("2.50")


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"own": (119, 100), "single": (1, 1)}, {0, 1}),
        ({"own": (150, 100), "single": (1, 1)}, {1}),
        ({"own": (300, 301)}, {2}),
        ({"torch": (110, 1)}, {3}),
        ({"single": (301, 1)}, {4}),
    ],
)
def test_a_missed_target_is_told(changed, missed):
    assert {place for place, goal in enumerate(benchmark.goals(found(**changed))) if not goal.met} == missed


def test_every_server_gets_the_same_text_threads_and_cap(tmp_path):
    candidates = benchmark.servers(tmp_path / "checkpoint", tmp_path / "python", 2)
    assert len({server.name for server in candidates}) == len(candidates)
    for server in candidates:
        assert list(json.loads(server.body("a text")).values()) == ["a text"]
        command = list(server.command(8701))
        assert "8701" in command
        cap = command[command.index("--max-batch") + 1]
        assert cap == ("1" if server.name == "edgewise, single" else str(benchmark.MAX_BATCH))
        threads = int(command[command.index("--threads") + 1])
        workers = int(command[command.index("--workers") + 1]) if "--workers" in command else 1
        assert threads * workers == 2
