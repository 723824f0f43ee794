"""What a default `edgewise quantize` of the MiniLM-L6 classifier costs: wall time by stage, and memory.

    python benchmarks/quantize/cost.py [--rounds 3]

500 tuning items of at most 64 tokens, default recipes, the command itself in a process of its own. Memory is watched
from outside: every 50 ms the resident memory of the command and all its descendants is added up, so pages that
processes share count more than once; and the largest single process is read from the kernel's own record (VmHWM). The
target is held against the sum.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Goal, Spread, spread
from harness import Finished, edgewise_quantize, machine
from minilm import WORK, prepare_minilm
from tables import CONSOLE, mega, parser, run, say, show_goals, show_machine, show_table, shown, write_json

TOKENS = 64
WALL_GOAL_S, MEMORY_GOAL = 120, 2.5e9


@dataclass(frozen=True)
class Costs:
    """Several runs of the same command.

    Attributes:
        wall_s: Start to end.
        stages: Seconds of each stage, from the reports.
        peak_sum_bytes: Largest sum over the process tree, a run an entry.
        peak_process_bytes: Largest single process, a run an entry.
        candidates: How many were measured, beside float32.
    """

    wall_s: Spread
    stages: dict[str, Spread]
    peak_sum_bytes: tuple[int, ...]
    peak_process_bytes: tuple[int, ...]
    candidates: int


def summarise(runs: Sequence[tuple[Finished, Mapping[str, Any]]]) -> Costs:
    """Medians over runs, each with its report."""
    stages = [{stage["name"]: stage["seconds"] for stage in report["stages"]} for _, report in runs]
    candidates = runs[0][1]["candidates"]
    return Costs(
        wall_s=spread([done.wall_s for done, _ in runs]),
        stages={name: spread([found.get(name, 0.0) for found in stages]) for name in stages[0]},
        peak_sum_bytes=tuple(done.peak_sum_bytes for done, _ in runs),
        peak_process_bytes=tuple(done.peak_process_bytes for done, _ in runs),
        candidates=sum(candidate["state"] == "measured" for candidate in candidates) - 1,
    )


def goals(costs: Costs) -> list[Goal]:
    """Wall time by the median, memory by the worst run."""
    memory = max(costs.peak_sum_bytes)
    return [
        Goal(f"wall time at most {WALL_GOAL_S} s", f"{shown(costs.wall_s, 1)} s", costs.wall_s.median <= WALL_GOAL_S),
        Goal(f"memory at most {MEMORY_GOAL / 1e9} GB", f"{memory / 1e9:.2f} GB", memory <= MEMORY_GOAL),
    ]


def main() -> int:
    """Run the command line."""
    options = parser(__doc__, WORK / "results" / "cost.json", rounds=3)
    options.add_argument("--recipes", help="other candidates than the default ones")
    arguments = options.parse_args()
    work = arguments.work or WORK
    where = machine()
    prepared = prepare_minilm(work, (TOKENS,), say)
    more = ["--recipes", arguments.recipes] if arguments.recipes else []
    command = [str(prepared.checkpoints[TOKENS]), "--data", str(prepared.tuning), *more]
    runs = [_once(command, work / "minilm" / "cost", number) for number in range(arguments.rounds)]
    costs = summarise(runs)
    found = goals(costs)
    show(costs, found, where)
    write_json(arguments.out, {"machine": where, "command": command, "costs": costs, "goals": found})
    return 0 if all(goal.met for goal in found) else 1


def _once(command: Sequence[str], folder: Path, number: int) -> tuple[Finished, dict[str, Any]]:
    """One run from nothing; a cost cannot be kept."""
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    done = edgewise_quantize(command, out, folder / "quantize.log")
    say(f"run {number + 1}: {done.wall_s:.1f} s, {done.peak_sum_bytes / 1e9:.2f} GB")
    return done, json.loads((out / "report.json").read_text())


def show(costs: Costs, found: Sequence[Goal], where: Mapping[str, Any]) -> None:
    """Print it all."""
    show_machine(where)
    rows = [(name, shown(seconds, 1)) for name, seconds in costs.stages.items()]
    stages = f"Stages of {costs.candidates} candidates and float32; median (smallest-largest) of runs"
    show_table(stages, ("stage", "seconds"), [*rows, ("all, from outside", shown(costs.wall_s, 1))])
    CONSOLE.print(
        f"Peak memory: process tree {', '.join(map(mega, costs.peak_sum_bytes))} MB (sum of resident sets), "
        f"largest process {', '.join(map(mega, costs.peak_process_bytes))} MB"
    )
    show_goals(found)


if __name__ == "__main__":
    sys.exit(run(main))
