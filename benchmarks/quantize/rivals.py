"""edgewise's front against raw onnxruntime, optimum-cli and Olive on one float32 ONNX file of a MiniLM-L6 classifier.

    python benchmarks/quantize/rivals.py [--recipes A,B] [--rounds 5] [--fresh]

Every tool starts from the same file, by hash, and may see the tuning part. One harness measures all: plain
onnxruntime, the same session options, every text at its own length (at most 64 tokens), one and two threads, fresh
processes that take turns. Accuracy comes from the test part, which nothing else has touched. Asked is: for every
rival's point, has our front one at least as good in size, p50 (3 % tolerance) and accuracy (within the rival's 95 %
interval)?
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from figures import Goal, Match, Point, Quality, Spread, front, hypervolume, match, quality, spread
from graphs import inline_model
from harness import (
    BenchmarkError,
    Model,
    Timing,
    answers,
    edgewise_quantize,
    machine,
    measure,
    model_of_bundle,
    read_texts,
    timing_texts,
)
from minilm import WORK, Prepared, prepare_minilm
from tables import CONSOLE, mega, parser, percent, run, say, show_goals, show_machine, show_table, shown, write_json
from toolchains import Build, build, make_olive, rivals, write_calibration

from edgewise.files import sha256_file

TOKENS = 64
THREADS = (1, 2)
CALIBRATION_ITEMS = 128
BASELINE = "fp32"
OURS = "edgewise"
RECIPES = (
    "int8_dynamic",
    "int8_dynamic:per_channel=false",
    "fuse+int8_dynamic",
    "int8_embed4",
    "int4_matmul",
    "int4_matmul:block_size=128:symmetric=true",
    "trim+int8_dynamic",
    "trim+int8_embed4",
    "trim+int4_matmul",
)


@dataclass(frozen=True)
class Row:
    """One model with everything that was found out.

    Attributes:
        tool: Who built it.
        name: Its name.
        size_bytes: Graph and external data.
        p50_ms: By number of threads.
        p95_ms: By number of threads.
        quality: On the test part, beside the float32 graph.
        peak_rss_bytes: Of a process with one thread.
        build_s: Time to build it, where that is known.
        build_rss_bytes: Memory to build it, where that is known.
        digest: Of the file and its external data.
    """

    tool: str
    name: str
    size_bytes: int
    p50_ms: dict[int, Spread]
    p95_ms: dict[int, Spread]
    quality: Quality
    peak_rss_bytes: int
    build_s: float | None
    build_rss_bytes: int | None
    digest: str

    def point(self, threads: int) -> Point:
        """What it is compared by."""
        q = self.quality
        return Point(self.name, self.size_bytes, self.p50_ms[threads].median, q.accuracy, q.accuracy_low)


@dataclass(frozen=True)
class Comparison:
    """Ours against all of theirs at one number of threads.

    Attributes:
        threads: Threads.
        matches: One a rival's point.
        volume: Hypervolume of each tool's points, and of all rivals together.
        front: Names on the front of all points, ours first where equal.
    """

    threads: int
    matches: tuple[Match, ...]
    volume: dict[str, float]
    front: tuple[str, ...]


def compare(rows: Sequence[Row], threads: int) -> Comparison:
    """Look for an answer to every rival's point; our float32 point counts as ours, since edgewise may pick it."""
    ours = [row.point(threads) for row in rows if row.tool == OURS]
    theirs = [row.point(threads) for row in rows if row.tool != OURS]
    baseline = next(row.point(threads) for row in rows if row.name == BASELINE)
    tools = list(dict.fromkeys(row.tool for row in rows))
    volume = {tool: hypervolume([row.point(threads) for row in rows if row.tool == tool], baseline) for tool in tools}
    return Comparison(
        threads,
        tuple(match(ours, rival) for rival in theirs),
        {**volume, "all rivals": hypervolume(theirs, baseline)},
        tuple(point.name for point in front([*ours, *theirs])),
    )


def goals(comparisons: Sequence[Comparison]) -> list[Goal]:
    """For every rival's point one of ours, at each number of threads."""
    return [
        Goal(
            f"every rival's point answered, {comparison.threads} threads",
            f"{sum(bool(m.by) for m in comparison.matches)} of {len(comparison.matches)}, of them "
            f"{sum(bool(m.strictly_by) for m in comparison.matches)} without the interval",
            all(m.by for m in comparison.matches) and bool(comparison.matches),
        )
        for comparison in comparisons
    ]


def main() -> int:
    """Run the command line."""
    options = parser(__doc__, WORK / "results" / "rivals.json", rounds=5)
    options.add_argument("--recipes", default=",".join(RECIPES), help="candidates of edgewise (default: %(default)s)")
    options.add_argument("--calls", type=int, default=100, help="timed calls of a process (default: %(default)s)")
    arguments = options.parse_args()
    work = arguments.work or WORK
    where = machine()
    prepared = prepare_minilm(work, (TOKENS,), say)
    folder = work / "minilm" / "rivals"
    report, ours, source = quantize_ours(prepared, folder, arguments.recipes)
    builds = build_theirs(work, folder, source, ours[0], prepared)
    theirs = [replace(ours[0], name=found.rival.id, onnx=found.onnx) for found in builds if found.onnx]
    models = [*ours, *theirs]
    labels = [label for _, label in sorted(_labels(source.parent).items())]
    test = read_texts(prepared.test, labels)
    logits, broken = ask(models, test.texts, folder / "answers")
    models = [model for model in models if model.name in logits]
    timings = measure(
        models,
        timing_texts(models, test.texts, 100, None),
        threads=THREADS,
        rounds=arguments.rounds,
        calls=arguments.calls,
        kept=folder / "rounds",
        fresh=arguments.fresh,
        say=say,
    )
    costs = _costs(report, builds)
    rows = [
        _row(model, timings, quality(logits[model.name], logits[BASELINE], test.truth), costs[model.name])
        for model in models
    ]
    comparisons = [compare(rows, threads) for threads in THREADS]
    broken |= {found.rival.id: found.problem for found in builds if found.onnx is None}
    broken |= {c["id"]: c["problem"] for c in report["candidates"] if c["state"] != "measured"}
    found = goals(comparisons)
    show(rows, comparisons, broken, where, sha256_file(source))
    show_goals(found)
    facts = {"source_sha256": sha256_file(source), "items": len(test.texts), "rounds": arguments.rounds}
    result = {"machine": where, **facts, "rows": rows, "comparisons": comparisons, "not_built": broken, "goals": found}
    write_json(arguments.out, result)
    return 0 if all(goal.met for goal in found) else 1


def quantize_ours(prepared: Prepared, folder: Path, recipes: str) -> tuple[dict[str, Any], list[Model], Path]:
    """Our candidates, the float32 one first, and the file that all rivals start from."""
    checkpoint = prepared.checkpoints[TOKENS]
    say(f"edgewise quantize: {recipes}")
    given = (str(checkpoint), "--data", str(prepared.tuning), "--texts", str(prepared.train))
    arguments = [*given, "--recipes", recipes, "--cached"]
    edgewise_quantize(arguments, folder / "run", folder / "logs" / "edgewise.log")
    report = json.loads((folder / "run" / "report.json").read_text())
    names = [c["id"] for c in report["candidates"] if c["state"] == "measured"]
    models = [model_of_bundle(name, folder / "run" / "candidates" / name) for name in names]
    if not models or models[0].name != BASELINE:
        raise BenchmarkError("The run has no measured fp32 candidate.", f"See {folder / 'run'}.")
    return report, models, inline_model(folder / "run" / "candidates" / BASELINE, checkpoint, folder / "source")


def build_theirs(work: Path, folder: Path, source: Path, baseline: Model, prepared: Prepared) -> list[Build]:
    """Let every rival quantize the file."""
    olive = make_olive(work, say)
    tuning = read_texts(prepared.tuning, [label for _, label in sorted(_labels(source.parent).items())])
    texts = timing_texts([baseline], tuning.texts, CALIBRATION_ITEMS, None)
    calibration = folder / "calibration"
    write_calibration(baseline, texts, TOKENS, calibration)
    found = []
    for rival in rivals(source, olive, calibration, TOKENS):
        say(f"building {rival.id}")
        found.append(build(rival, source, calibration, folder / "built"))
    return found


def ask(models: Sequence[Model], texts: Sequence[str], kept: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Logits of each model, and why some have none: a rival's file that does not run is its result."""
    logits, broken = {}, {}
    for model in models:
        say(f"asking {model.name} about {len(texts)} texts of the test part")
        try:
            logits[model.name] = answers(model, texts, kept)
        except BenchmarkError as error:
            broken[model.name] = str(error)
    return logits, broken


def _labels(folder: Path) -> dict[int, str]:
    config = json.loads((folder / "config.json").read_text())
    return {int(index): name for index, name in config["id2label"].items()}


def _costs(report: Mapping[str, Any], builds: Sequence[Build]) -> dict[str, tuple[str, float | None, int | None]]:
    """Tool, seconds and memory of each build; ours share one run, whose memory the cost benchmark measures."""
    ours = {c["id"]: (OURS, c.get("seconds"), None) for c in report["candidates"]}
    return {**ours, **{b.rival.id: (b.rival.tool, b.wall_s, b.peak_rss_bytes) for b in builds}}


def _row(
    model: Model,
    timings: Mapping[int, Mapping[str, Timing]],
    judged: Quality,
    cost: tuple[str, float | None, int | None],
) -> Row:
    tool, seconds, memory = cost
    return Row(
        tool=tool,
        name=model.name,
        size_bytes=model.size_bytes(),
        p50_ms={count: spread(timings[count][model.name].p50_ms) for count in THREADS},
        p95_ms={count: spread(timings[count][model.name].p95_ms) for count in THREADS},
        quality=judged,
        peak_rss_bytes=max(timings[THREADS[0]][model.name].peak_rss_bytes),
        build_s=seconds,
        build_rss_bytes=memory,
        digest=model.digest(),
    )


def show(
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    broken: Mapping[str, str],
    where: Mapping[str, Any],
    source: str,
) -> None:
    """Print it all."""
    show_machine(where)
    columns = (
        *("model", "MB", "p50 ms, 1t", "p95", "p50 ms, 2t", "p95", "accuracy %", "95 % interval"),
        *("lost %", "bound %", "flips %", "ECE", "AUROC", "RSS MB", "build s", "build MB"),
    )
    show_table(f"One float32 file, sha256 {source}; at most {TOKENS} tokens", columns, [*map(_cells, rows)])
    for name, problem in broken.items():
        CONSOLE.print(f"{name} is not in the table: {problem}")
    for found in comparisons:
        matches = [(m.rival, ", ".join(m.by) or "-", ", ".join(m.strictly_by) or "-", m.loss) for m in found.matches]
        columns = ("rival", "answered by", "also without the interval", "loss")
        show_table(f"Answers, {found.threads} threads", columns, matches)
        volumes = ", ".join(f"{tool} {volume:.3f}" for tool, volume in found.volume.items())
        CONSOLE.print(f"Hypervolume (share of the float32 box with 5 points lost): {volumes}")
        CONSOLE.print(f"On the front of all: {', '.join(found.front)}")


def _cells(row: Row) -> tuple[str, ...]:
    q = row.quality
    return (
        row.name,
        mega(row.size_bytes),
        shown(row.p50_ms[1]),
        f"{row.p95_ms[1].median:.2f}",
        shown(row.p50_ms[2]),
        f"{row.p95_ms[2].median:.2f}",
        percent(q.accuracy),
        f"{percent(q.accuracy_low)}-{percent(q.accuracy_high)}",
        percent(q.drop),
        percent(q.drop_bound),
        percent(q.flips),
        f"{q.calibration_error:.3f}",
        "-" if q.auroc is None else f"{q.auroc:.3f}",
        mega(row.peak_rss_bytes),
        "-" if row.build_s is None else f"{row.build_s:.1f}",
        "-" if row.build_rss_bytes is None else f"{row.build_rss_bytes / 1e6:.0f}",
    )


if __name__ == "__main__":
    sys.exit(run(main))
