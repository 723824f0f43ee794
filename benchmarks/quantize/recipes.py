"""MiniLM-L6 on one thread at exactly 16 tokens: edgewise's candidates against the best float32 graph.

    python benchmarks/quantize/recipes.py [--recipes A,B] [--rounds 7] [--fresh]

The float32 graph is measured as exported and as onnxruntime's transformer optimizer fuses it; the fastest is what
speeds are divided by. Each round gives every model one fresh process; a speed is the median over the rounds of the
ratio within a round. Accuracy and flips come from the test part, which nothing else has touched, at the same 16
tokens.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Goal, Quality, Spread, quality, ratios, spread
from graphs import fused_graphs, inline_model
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
from minilm import WORK, prepare_minilm
from tables import CONSOLE, mega, parser, percent, run, say, show_goals, show_machine, show_table, shown, write_json

TOKENS = 16
RECIPES = (
    "int8_dynamic",
    "fuse+int8_dynamic",
    "int8_embed4",
    "int4_matmul",
    "int8_static",
    "mixed",
    "trim+int8_dynamic",
    "trim+int8_embed4",
    "trim+int4_matmul",
)
BASELINE = "fp32"
SPEED_GOAL, FLIPS_GOAL = 3.2, 0.01
SIZE_GOAL, DROP_GOAL = 16e6, 0.01
MIXED_SIZE_GOAL, MIXED_SPEED_GOAL = 19e6, 0.9


@dataclass(frozen=True)
class Row:
    """One model with everything that was found out.

    Attributes:
        name: Its name.
        size_bytes: Graph and external data.
        p50_ms: Over the rounds.
        speed: Times as fast as the best float32 graph.
        quality: On the test part.
        load_ms: Median.
        peak_rss_bytes: Largest.
        bundle_bytes: The whole bundle, tokenizer included, where it is one.
    """

    name: str
    size_bytes: int
    p50_ms: Spread
    p95_ms: Spread
    speed: Spread
    quality: Quality
    load_ms: float
    peak_rss_bytes: int
    bundle_bytes: int | None


def goals(rows: Sequence[Row], timings: Mapping[str, Timing]) -> list[Goal]:
    """The three targets; a trimmed or fused variant counts where the target does not name a plain recipe."""
    quantized = [row for row in rows if row.bundle_bytes is not None and row.name != BASELINE]
    return [_fastest(quantized), _smallest(quantized), _mixed(quantized, timings)]


def _fastest(rows: Sequence[Row]) -> Goal:
    what = f"fastest with flips at most {FLIPS_GOAL:.0%}: at least {SPEED_GOAL} x the best float32 graph"
    allowed = [row for row in rows if row.quality.flips <= FLIPS_GOAL]
    if not allowed:
        return Goal(what, "every candidate flips more", False)
    best = max(allowed, key=lambda row: row.speed.median)
    found = f"{best.name}: {shown(best.speed)} x, flips {best.quality.flips:.2%}"
    return Goal(what, found, best.speed.median >= SPEED_GOAL)


def _smallest(rows: Sequence[Row]) -> Goal:
    what = f"smallest with at most {DROP_GOAL:.0%} lost: at most {SIZE_GOAL / 1e6:.0f} MB"
    allowed = [row for row in rows if row.quality.drop <= DROP_GOAL]
    if not allowed:
        return Goal(what, "every candidate loses more", False)
    best = min(allowed, key=lambda row: row.size_bytes)
    found = f"{best.name}: {mega(best.size_bytes)} MB, {best.quality.drop:+.2%} lost"
    return Goal(what, found, best.size_bytes <= SIZE_GOAL)


def _mixed(rows: Sequence[Row], timings: Mapping[str, Timing]) -> Goal:
    what = f"int8 with 4-bit embedding: at most {MIXED_SIZE_GOAL / 1e6:.0f} MB at {MIXED_SPEED_GOAL} of int8's speed"
    whole = [row for row in rows if "trim" not in row.name]
    int8 = [row for row in whole if "int8_dynamic" in row.name]
    mixed = [row for row in whole if "int8_embed4" in row.name and row.size_bytes <= MIXED_SIZE_GOAL]
    if not int8 or not mixed:
        return Goal(what, "no candidate of the kind", False)
    best, rival = (min(found, key=lambda row: row.p50_ms.median) for found in (mixed, int8))
    share = ratios(timings[rival.name].p50_ms, timings[best.name].p50_ms)
    found = f"{best.name}: {mega(best.size_bytes)} MB, {shown(share)} of {rival.name}'s speed"
    return Goal(what, found, share.median >= MIXED_SPEED_GOAL)


def main() -> int:
    """Run the command line."""
    options = parser(__doc__, WORK / "results" / "recipes.json", rounds=7)
    options.add_argument("--recipes", default=",".join(RECIPES), help="candidates of edgewise (default: %(default)s)")
    options.add_argument("--calls", type=int, default=300, help="timed calls of a process (default: %(default)s)")
    arguments = options.parse_args()
    work = arguments.work or WORK
    where = machine()
    prepared = prepare_minilm(work, (TOKENS,), say)
    checkpoint, folder = prepared.checkpoints[TOKENS], work / "minilm" / "recipes"
    say(f"edgewise quantize: {arguments.recipes}")
    edgewise_quantize(
        [
            *(str(checkpoint), "--data", str(prepared.tuning), "--texts", str(prepared.train)),
            *("--recipes", arguments.recipes, "--cached"),
        ],
        folder / "run",
        folder / "quantize.log",
    )
    report = json.loads((folder / "run" / "report.json").read_text())
    models, bundles = read_models(folder, checkpoint, report)
    labels = [name for _, name in sorted(_labels(checkpoint).items())]
    test = read_texts(prepared.test, labels)
    say(f"asking {len(models)} models about {len(test.texts)} texts of the test part")
    logits = {model.name: answers(model, test.texts, folder / "answers") for model in models}
    texts = timing_texts(models, test.texts, 100, TOKENS)
    timings = measure(
        models,
        texts,
        threads=[1],
        rounds=arguments.rounds,
        calls=arguments.calls,
        kept=folder / "rounds",
        fresh=arguments.fresh,
        say=say,
    )[1]
    best = min((m.name for m in models if m.name not in bundles or m.name == BASELINE), key=lambda n: _p50(timings[n]))
    rows = [
        Row(
            name=model.name,
            size_bytes=model.size_bytes(),
            p50_ms=spread(timings[model.name].p50_ms),
            p95_ms=spread(timings[model.name].p95_ms),
            speed=ratios(timings[best].p50_ms, timings[model.name].p50_ms),
            quality=quality(logits[model.name], logits[BASELINE], test.truth),
            load_ms=spread(timings[model.name].load_ms).median,
            peak_rss_bytes=max(timings[model.name].peak_rss_bytes),
            bundle_bytes=bundles.get(model.name),
        )
        for model in models
    ]
    found = goals(rows, timings)
    left_out = [c for c in report["candidates"] if c["state"] != "measured"]
    show(rows, best, found, left_out, where)
    facts = {"tokens": TOKENS, "threads": 1, "timed_texts": len(texts), "best_float32": best}
    write_json(arguments.out, {"machine": where, **facts, "rows": rows, "goals": found, "left_out": left_out})
    return 0 if all(goal.met for goal in found) else 1


def read_models(folder: Path, checkpoint: Path, report: Mapping[str, Any]) -> tuple[list[Model], dict[str, int]]:
    """Every measured candidate of a run and the fused float32 graphs; and the bytes of each whole bundle."""
    run_folder = folder / "run"
    measured = [c for c in report["candidates"] if c["state"] == "measured"]
    models = [model_of_bundle(c["id"], run_folder / "candidates" / c["id"]) for c in measured]
    if not models or models[0].name != BASELINE:
        raise BenchmarkError("The run has no measured fp32 candidate.", f"See {run_folder}.")
    source = inline_model(run_folder / "candidates" / BASELINE, checkpoint, folder / BASELINE)
    fused = fused_graphs(source, folder / "fused")
    others = [dataclasses.replace(models[0], name=f"fp32 {name}", onnx=path) for name, path in fused.items()]
    return [models[0], *others, *models[1:]], {c["id"]: c["performance"]["size_bytes"] for c in measured}


def _labels(checkpoint: Path) -> dict[int, str]:
    config = json.loads((checkpoint / "config.json").read_text())
    return {int(index): name for index, name in config["id2label"].items()}


def _p50(timing: Timing) -> float:
    return spread(timing.p50_ms).median


def show(
    rows: Sequence[Row],
    best: str,
    found: Sequence[Goal],
    left_out: Sequence[Mapping[str, Any]],
    where: Mapping[str, Any],
) -> None:
    """Print it all."""
    show_machine(where)
    columns = (
        *("model", "MB", "bundle MB", f"x {best}", "p50 ms", "p95 ms", "accuracy %", "95 % interval"),
        *("lost %", "bound %", "flips %", "ECE", "AUROC", "load ms", "RSS MB"),
    )
    show_table(
        f"MiniLM-L6, {TOKENS} tokens, 1 thread; median (smallest-largest) of rounds", columns, [*map(_cells, rows)]
    )
    CONSOLE.print(f"The best float32 graph is '{best}'. Lost, bound (one-sided 95 %) and flips are against fp32.")
    for candidate in left_out:
        CONSOLE.print(f"{candidate['id']} was not measured: {candidate['problem']}")
    show_goals(found)


def _cells(row: Row) -> tuple[str, ...]:
    q = row.quality
    return (
        row.name,
        mega(row.size_bytes),
        "-" if row.bundle_bytes is None else mega(row.bundle_bytes),
        shown(row.speed),
        shown(row.p50_ms),
        f"{row.p95_ms.median:.2f}",
        percent(q.accuracy),
        f"{percent(q.accuracy_low)}-{percent(q.accuracy_high)}",
        percent(q.drop),
        percent(q.drop_bound),
        percent(q.flips),
        f"{q.calibration_error:.3f}",
        "-" if q.auroc is None else f"{q.auroc:.3f}",
        f"{row.load_ms:.0f}",
        mega(row.peak_rss_bytes),
    )


if __name__ == "__main__":
    sys.exit(run(main))
