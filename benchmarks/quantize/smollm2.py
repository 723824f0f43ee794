"""SmolLM2-135M: edgewise's int4 bundle against bare onnxruntime-genai on the folder that its own builder wrote.

    python benchmarks/quantize/smollm2.py [--checkpoint FOLDER] [--rounds 5] [--fresh]

Both continue the same prompts greedily on the same number of threads, in fresh processes that take turns; the ratio
of tokens a second is taken within each round. The memory of the whole quantization is watched from outside, as
cost.py does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from figures import Goal, Spread, ratios, spread
from harness import BenchmarkError, edgewise_quantize, last_line, machine, run_command
from minilm import WORK, prepare_texts, rebuild
from tables import CONSOLE, mega, parser, run, say, show_goals, show_machine, show_table, shown, write_json
from tokenizers import Tokenizer

from edgewise.bundle import Bundle
from edgewise.dataset import load_examples
from edgewise.files import sha256_bytes, sha256_file, sha256_tree, write_atomically

RECIPES = "int4,int8,mixed"
OURS, BARE = "edgewise int4", "bare genai int4"
ITEMS, PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 60, 8, 64, 64
SIZE_GOAL, SPEED_GOAL, MEMORY_GOAL = 90e6, 0.97, 4e9
MEASURE = Path(__file__).parent / "measure_genai.py"


@dataclass(frozen=True)
class Row:
    """One way to run a model.

    Attributes:
        name: Its name.
        size_bytes: Of the bundle, or of the builder's folder.
        tokens_per_s: After the first token, over the rounds.
        first_ms: Median first token of a process, over the rounds.
        load_ms: Over the rounds.
        peak_rss_bytes: Largest.
    """

    name: str
    size_bytes: int
    tokens_per_s: Spread
    first_ms: Spread
    load_ms: Spread
    peak_rss_bytes: int


def goals(size_bytes: int, speed: Spread, memory_bytes: int) -> list[Goal]:
    """Size, speed and memory."""
    return [
        Goal(f"int4 bundle at most {SIZE_GOAL / 1e6:.0f} MB", f"{mega(size_bytes)} MB", size_bytes <= SIZE_GOAL),
        Goal(
            f"tokens/s at least {SPEED_GOAL} of bare onnxruntime-genai",
            f"{shown(speed, 3)} of it",
            speed.median >= SPEED_GOAL,
        ),
        Goal(
            f"memory of the whole quantization at most {MEMORY_GOAL / 1e9:.0f} GB",
            f"{memory_bytes / 1e9:.2f} GB",
            memory_bytes <= MEMORY_GOAL,
        ),
    ]


def main() -> int:
    """Run the command line."""
    options = parser(__doc__, WORK / "results" / "smollm2.json", rounds=5)
    options.add_argument("--checkpoint", type=Path, help="another checkpoint than SmolLM2-135M of the registry")
    options.add_argument("--threads", type=int, default=2, help="threads of both (default: %(default)s)")
    arguments = options.parse_args()
    work = arguments.work or WORK
    where = machine()
    folder = work / "smollm2"
    checkpoint = arguments.checkpoint or _prepare(work)
    data = prepare_texts(work) / "tuning.jsonl"
    report, spent = quantize_ours(checkpoint, data, folder, fresh=arguments.fresh)
    bundle = folder / "run" / "candidates" / "int4"
    bare = build_bare(checkpoint, folder / "bare")
    runs = {OURS: ("edgewise", bundle), BARE: ("bare", bare)}
    prompts = _prompts(checkpoint, data)
    rounds = measure(runs, prompts, arguments.threads, arguments.rounds, folder / "rounds", fresh=arguments.fresh)
    sizes = {OURS: Bundle.open(bundle).size_bytes, BARE: sum(f.stat().st_size for f in bare.iterdir())}
    rows = [_row(name, sizes[name], [round_[name] for round_ in rounds]) for name in runs]
    speed = ratios(*([round_[name]["tokens_per_s"] for round_ in rounds] for name in runs))
    found = goals(sizes[OURS], speed, spent["peak_sum_bytes"])
    same = sum(a == b for a, b in zip(*(rounds[0][name]["answers"] for name in runs), strict=True))
    show(rows, found, spent, report, f"{same} of {len(prompts)} prompts are continued by the same tokens.", where)
    result = {"machine": where, "threads": arguments.threads, "rows": rows, "speed": speed, "same_answers": same}
    write_json(arguments.out, {**result, "quantization": spent, "goals": found, "candidates": report["candidates"]})
    return 0 if all(goal.met for goal in found) else 1


def _prepare(work: Path) -> Path:
    from models import prepare_smollm2

    return prepare_smollm2(work / "smollm2" / "checkpoint", work / "downloads")


def quantize_ours(checkpoint: Path, data: Path, folder: Path, *, fresh: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's report, and what it cost: measured once, and kept with the run."""
    texts = [{"text": str(example.input)} for example in load_examples(data)[:ITEMS]]
    few = folder / "tuning.jsonl"
    write_atomically(few, "".join(json.dumps(text) + "\n" for text in texts).encode())
    out, record = folder / "run", folder / "cost.json"
    if fresh or not record.exists():
        # Only a run from nothing shows what a run costs.
        shutil.rmtree(out, ignore_errors=True)
    say(f"edgewise quantize: {RECIPES}")
    command = [str(checkpoint), "--data", str(few), "--recipes", RECIPES, "--cached"]
    before = _stamp(out)
    done = edgewise_quantize(command, out, folder / "quantize.log")
    if _stamp(out) != before:
        write_atomically(record, json.dumps(asdict(done)).encode())
    return json.loads((out / "report.json").read_text()), json.loads(record.read_text())


def _stamp(out: Path) -> int | None:
    """Tells whether a run was made anew."""
    report = out / "report.json"
    return report.stat().st_mtime_ns if report.exists() else None


def build_bare(checkpoint: Path, out: Path) -> Path:
    """The folder that onnxruntime-genai's builder writes by its own defaults for int4 on a CPU."""
    command = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    inputs = {
        "checkpoint": sha256_tree(checkpoint),
        "command": repr(command[1:]),
        "genai": metadata.version("onnxruntime-genai"),
    }

    def build(stage: Path) -> None:
        say("building the bare folder")
        with tempfile.TemporaryDirectory(prefix="edgewise-bench-") as cache:
            log = out.parent / "bare.log"
            done = run_command([*command, "-i", str(checkpoint), "-o", str(stage), "-c", cache], log)
        if done.code != 0:
            raise BenchmarkError(f"onnxruntime-genai's builder failed: {done.tail}", f"See {log}.")

    rebuild(out, inputs, build)
    return out


def _prompts(checkpoint: Path, data: Path) -> list[dict[str, Any]]:
    """The first words of a few texts, as text and as ids; what edgewise reads is what the bare loop is fed."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_truncation()
    texts = [str(example.input) for example in load_examples(data)]
    cut = [tokenizer.decode(tokenizer.encode(text).ids[:PROMPT_TOKENS]) for text in texts[:PROMPTS]]
    return [{"text": text, "ids": tokenizer.encode(text).ids} for text in cut]


def measure(
    runs: Mapping[str, tuple[str, Path]],
    prompts: Sequence[Mapping[str, Any]],
    threads: int,
    rounds: int,
    kept: Path,
    *,
    fresh: bool,
) -> list[dict[str, Any]]:
    """By round and name, what each fresh process measured; a finished round is kept."""
    facts = {name: [kind, sha256_tree(path)] for name, (kind, path) in runs.items()}
    key = json.dumps([facts, [*prompts], threads, NEW_TOKENS, sha256_file(MEASURE), machine()["processor"]])
    folder = kept / sha256_bytes(key.encode())[:16]
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(rounds):
        path = folder / f"round-{number}.json"
        if fresh or not path.exists():
            started = time.monotonic()
            turn = [*runs.items()][:: 1 if number % 2 else -1]
            round_ = {name: _process(kind, where, prompts, threads) for name, (kind, where) in turn}
            write_atomically(path, json.dumps(round_).encode())
            say(f"round {number + 1}/{rounds}: {time.monotonic() - started:.0f} s")
        found.append(json.loads(path.read_text()))
    return found


def _process(kind: str, path: Path, prompts: Sequence[Mapping[str, Any]], threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgewise-bench-") as name:
        asked, answered = Path(name) / "job.json", Path(name) / "result.json"
        job = {"kind": kind, "path": str(path), "threads": threads, "tokens": NEW_TOKENS, "prompts": [*prompts]}
        asked.write_text(json.dumps(job))
        command = [sys.executable, str(MEASURE), str(asked), str(answered)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchmarkError(f"{path} does not generate: {last_line(done.stderr)}")
        return dict(json.loads(answered.read_text()))


def _row(name: str, size_bytes: int, found: Sequence[Mapping[str, Any]]) -> Row:
    return Row(
        name=name,
        size_bytes=size_bytes,
        tokens_per_s=spread([one["tokens_per_s"] for one in found]),
        first_ms=spread([spread(one["first_ms"]).median for one in found]),
        load_ms=spread([one["load_ms"] for one in found]),
        peak_rss_bytes=max(one["peak_rss_bytes"] for one in found),
    )


def show(
    rows: Sequence[Row],
    found: Sequence[Goal],
    spent: Mapping[str, Any],
    report: Mapping[str, Any],
    sameness: str,
    where: Mapping[str, Any],
) -> None:
    """Print it all."""
    show_machine(where)
    columns = ("model", "MB", "tokens/s", "first token ms", "load ms", "RSS MB")
    cells = [
        (
            r.name,
            mega(r.size_bytes),
            shown(r.tokens_per_s, 1),
            shown(r.first_ms, 0),
            shown(r.load_ms, 0),
            mega(r.peak_rss_bytes),
        )
        for r in rows
    ]
    show_table("SmolLM2-135M; median (smallest-largest) of rounds", columns, cells)
    CONSOLE.print(sameness)
    candidates = [
        (c["id"], *_figures(c)) if c["state"] == "measured" else (c["id"], c["problem"], "-", "-", "-", "-")
        for c in report["candidates"]
    ]
    show_table(
        "All candidates, from edgewise's report", ("candidate", "MB", "tokens/s", "NLL", "KLD", "flips %"), candidates
    )
    CONSOLE.print(
        f"The whole quantization: {spent['wall_s']:.0f} s, largest process {mega(spent['peak_process_bytes'])} MB"
    )
    show_goals(found)


def _figures(candidate: Mapping[str, Any]) -> tuple[str, ...]:
    performance, quality = candidate["performance"], candidate["quality"]

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return (
        mega(performance["size_bytes"]),
        number(performance.get("tokens_per_s"), 1),
        number(quality.get("nll"), 3),
        number(quality.get("kld"), 4),
        number(100 * quality["flips"], 1),
    )


if __name__ == "__main__":
    sys.exit(run(main))
