"""Does it pay to draft at the edge what the cloud verifies? Over networks of 0 to 200 ms, and where it loses.

    python benchmarks/generate/speculative.py [--rtts 0,10,20,50,100,200] [--edges int4,int8,fp32] [--ks 2,4,8]
                                              [--prompts 8] [--tokens 64] [--temperature 0] [--rounds 3] [--out JSON]

The target is SmolLM2-135M-Instruct in float32 behind `edgewise cloud serve`, on one thread; the edge is a quantization
of the same model on another thread. Both stand on this machine, with a delay line in between (link.py). The same
prompts, one answer at a time, in each round:

    plain stream       the target's own stream, through our client of OpenAI's protocol
    drafted, k=N       the edge drafts N tokens a round trip, /v1/verify rules on them
    drafted, adapted   as it comes: k is adapted, and answers stream plainly where that is measured to be faster
    edge alone         the small model by itself, without a network: what the text of the target costs

The pair is the only one at hand: a draft of the same model is right more often than a smaller sibling would be, and no
cheaper than the quantization makes it. Needs what `python benchmarks/quantize/smollm2.py` leaves behind.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "serve"), str(HERE.parent / "quantize")]

THREADS = 1
TIMEOUT_S = 600.0
NAME = "target"
PLAIN, ADAPTED, ALONE = "plain stream", "drafted, adapted", "edge alone"
WARM_UP = 6
"""Answers of the adapted client before those that count: it measures by the first four."""

PROMPTS = (
    "Explain in three sentences why the sky is blue.",
    "Write a short story about a lighthouse keeper.",
    "List five fruits and their colours.",
    "What is the capital of France, and what is it known for?",
    "Write a Python function that adds two numbers, and explain it.",
    "Give me advice for learning to swim as an adult.",
    "Summarise the plot of Romeo and Juliet.",
    "How does a bicycle stay upright?",
    "Describe the water cycle to a child.",
    "What should I pack for a week in the mountains?",
)


@dataclass(frozen=True)
class Answered:
    """One answer, measured.

    Attributes:
        text: Its text.
        tokens: Its tokens.
        first_ms: Milliseconds to the first piece.
        seconds: To its end.
    """

    text: str
    tokens: int
    first_ms: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """One contender over one network.

    Attributes:
        name: The contender.
        edge: The quantization that drafts, or answers alone; empty for the plain stream.
        rtt_ms: The round trip.
        tokens_per_s: Tokens over the time of the answers, waiting for the first included.
        first_ms: Milliseconds to the first piece, on average.
        same: Answers that are the plain stream's, of as many as there were; None where nothing is drafted greedily.
        answers: Answers.
        acceptance: Share of the drafted tokens that stood.
        tokens_per_round: Tokens that a round trip brought.
        drafted_answers: Answers that were drafted.
        break_even_rtt_ms: The round trip at which plain streaming is as fast, by what the client measured of both.
    """

    name: str
    edge: str
    rtt_ms: float
    tokens_per_s: float
    first_ms: float
    same: int | None
    answers: int
    acceptance: float | None = None
    tokens_per_round: float | None = None
    drafted_answers: int | None = None
    break_even_rtt_ms: float | None = None


def prompt_of(text: str, given: Any) -> Any:
    """A prompt of one message."""
    from edgewise.dialogue import Message, Prompt, Role, Sampling

    sampling = Sampling(max_tokens=given.tokens, temperature=given.temperature)
    return Prompt(messages=(Message(role=Role.USER, content=text),), sampling=sampling)


async def streamed(client: Any, prompt: Any) -> Answered:
    """One answer of a cloud client."""
    from edgewise.contracts import Request, Token

    started, first = time.perf_counter(), None
    async for piece in client.stream(Request(inputs=prompt), timeout_s=TIMEOUT_S):
        if isinstance(piece, Token):
            first = first or time.perf_counter()
        else:
            ended = time.perf_counter()
            first_ms = 1000 * ((first or ended) - started)
            return Answered(piece.output, piece.written.completion_tokens, first_ms, ended - started)
    raise RuntimeError("The stream ended without a reply.")


def alone(generator: Any, prompt: Any) -> Answered:
    """One answer of the edge."""
    started, first, text = time.perf_counter(), None, []
    writing = generator.write(prompt)
    for piece in writing:
        first = first or time.perf_counter()
        text.append(piece.text)
    ended = time.perf_counter()
    tokens = writing.written.completion_tokens
    return Answered("".join(text), tokens, 1000 * ((first or ended) - started), ended - started)


def summed(name: str, edge: str, rtt_ms: float, found: Sequence[Answered], plain: Sequence[Answered] | None) -> Run:
    """One run in figures, beside the plain stream's answers where texts can be compared."""
    same = None
    if plain is not None:
        same = sum(one.text == other.text for one, other in zip(found, plain, strict=True))
    return Run(
        name=name,
        edge=edge,
        rtt_ms=rtt_ms,
        tokens_per_s=sum(one.tokens for one in found) / sum(one.seconds for one in found),
        first_ms=sum(one.first_ms for one in found) / len(found),
        same=same,
        answers=len(found),
    )


async def over(url: str, rtt_ms: float, edges: dict[str, Any], given: Any, say: Any) -> list[Run]:
    """Every contender over one network."""
    from edgewise.cloud.clients.drafting import DraftedCloud
    from edgewise.cloud.clients.openai import OpenAIClient
    from edgewise.edge.drafting import draft_model

    prompts = [prompt_of(PROMPTS[number % len(PROMPTS)], given) for number in range(given.prompts)]
    client = OpenAIClient(url, model=NAME)
    say(f"  {PLAIN}")
    await streamed(client, prompts[0])
    plain = [await streamed(client, prompt) for prompt in prompts]
    await client.aclose()
    runs = [summed(PLAIN, "", rtt_ms, plain, None)]
    comparable = plain if given.temperature == 0 else None
    for edge, generator in edges.items():
        for k in (*given.ks, None):
            name = ADAPTED if k is None else f"drafted, k={k}"
            say(f"  {name}, {edge}")
            way = OpenAIClient(url, model=NAME)
            drafted = DraftedCloud(url, plain=way, drafts=draft_model(generator), model=NAME, k=k)
            for number in range(1 if k is not None else WARM_UP):
                await streamed(drafted, prompts[number % len(prompts)])
            before = drafted.figures
            found = [await streamed(drafted, prompt) for prompt in prompts]
            runs.append(described(summed(name, edge, rtt_ms, found, comparable), before, drafted.figures))
            await drafted.aclose()
    return runs


def described(run: Run, before: Any, after: Any) -> Run:
    """With what the client says of the answers since `before`."""
    drafted, rounds = after.drafted - before.drafted, after.rounds - before.rounds
    return replace(
        run,
        acceptance=(after.accepted - before.accepted) / drafted if drafted else None,
        tokens_per_round=(after.tokens - before.tokens) / rounds if rounds else None,
        drafted_answers=after.answers - before.answers,
        break_even_rtt_ms=after.break_even_rtt_ms,
    )


def one_round(checkpoint: Path, bundles: dict[str, Path], folder: Path, given: Any, say: Any) -> list[Run]:
    """Everything once, with a service of its own."""
    from launching import launched
    from link import Link

    from edgewise.edge import EdgeGenerator

    serve = [sys.executable, "-m", "edgewise.cli", "cloud", "serve", str(checkpoint), "--name", NAME]
    threads = ["--threads", str(THREADS)]
    edges = {name: EdgeGenerator.load(path, threads=THREADS, slots=0) for name, path in bundles.items()}
    runs = []
    for name, generator in edges.items():
        say(f"{ALONE}, {name}")
        prompts = [prompt_of(PROMPTS[number % len(PROMPTS)], given) for number in range(given.prompts)]
        alone(generator, prompts[0])
        runs.append(summed(ALONE, name, 0.0, [alone(generator, prompt) for prompt in prompts], None))
    command = lambda port: [*serve, *threads, "--port", str(port)]  # noqa: E731
    with launched("edgewise", command, "/readyz", folder / "speculative-cloud.log") as (url, _):
        host, _, port = url.removeprefix("http://").rpartition(":")
        for rtt_ms in given.rtts:
            say(f"round trip of {rtt_ms:g} ms")
            with Link(host, int(port), rtt_ms) as link:
                runs += asyncio.run(over(link.url, rtt_ms, edges, given, say))
    return runs


def losses(rounds: Sequence[Sequence[Run]]) -> list[str]:
    """Where drafting is slower than the plain stream, in words, by medians over the rounds."""
    medians = medians_of(rounds)
    told = []
    for name, edge in dict.fromkeys((key[0], key[1]) for key in medians if key[0].startswith("drafted")):
        ratios = {
            rtt: found / medians[PLAIN, "", rtt]
            for (other, of, rtt), found in medians.items()
            if (other, of) == (name, edge)
        }
        lost = [f"{rtt:g} ms ({ratio:.2f} x)" for rtt, ratio in ratios.items() if ratio < 1]
        won = [f"{rtt:g} ms ({ratio:.2f} x)" for rtt, ratio in ratios.items() if ratio >= 1]
        told.append(
            f"{name}, {edge}: wins at {', '.join(won) or 'no round trip'}; loses at {', '.join(lost) or 'none'}"
        )
    return told


def medians_of(rounds: Sequence[Sequence[Run]]) -> dict[tuple[str, str, float], float]:
    """Median tokens a second by contender, edge and round trip."""
    from statistics import median

    keys = dict.fromkeys((run.name, run.edge, run.rtt_ms) for runs in rounds for run in runs)
    return {
        key: median(run.tokens_per_s for runs in rounds for run in runs if (run.name, run.edge, run.rtt_ms) == key)
        for key in keys
    }


def goals(rounds: Sequence[Sequence[Run]], goal: Any) -> list[Any]:
    """What is promised: the text is the target's, and drafting as it comes costs next to nothing where it loses."""
    drafted = [run for runs in rounds for run in runs if run.same is not None]
    judged = []
    if drafted:
        same, of = sum(run.same or 0 for run in drafted), sum(run.answers for run in drafted)
        judged.append(goal("greedy text is the plain stream's", f"{same} of {of} answers", same == of))
    medians = medians_of(rounds)
    ratios = [found / medians[PLAIN, "", rtt] for (name, _, rtt), found in medians.items() if name == ADAPTED]
    judged.append(
        goal("adapted: at least 0.9 of the plain stream", f"{min(ratios):.2f} x at worst", min(ratios) >= 0.9)
    )
    return judged


def show(rounds: Sequence[Sequence[Run]]) -> None:
    """The table."""
    import tables
    from figures import spread

    def cell(runs: Sequence[Run], field: str, digits: int) -> str:
        values = [getattr(run, field) for run in runs if getattr(run, field) is not None]
        return tables.shown(spread(values), digits) if values else ""

    rows = []
    for key in medians_of(rounds):
        runs = [run for found in rounds for run in found if (run.name, run.edge, run.rtt_ms) == key]
        network = "none" if key[0] == ALONE else f"{key[2]:g}"
        counts = [f"{sum(run.drafted_answers or 0 for run in runs)} of {sum(run.answers for run in runs)}"]
        rows.append(
            [
                f"{key[0]}{', ' if key[1] else ''}{key[1]}",
                network,
                cell(runs, "tokens_per_s", 1),
                cell(runs, "first_ms", 0),
                cell(runs, "acceptance", 2),
                cell(runs, "tokens_per_round", 2),
                cell(runs, "break_even_rtt_ms", 0),
                *(counts if runs[0].drafted_answers is not None else [""]),
            ]
        )
    columns = ("contender", "RTT ms", "tokens/s", "first ms", "accepted", "tokens a round", "break-even ms", "drafted")
    tables.show_table("Drafted at the edge, verified in the cloud", columns, rows)


def numbers(text: str) -> list[float]:
    """Numbers with commas between them."""
    return [float(part) for part in text.split(",")]


def main() -> int:
    import tables
    from figures import Goal
    from harness import BenchmarkError, machine
    from minilm import WORK

    parser = tables.parser(__doc__, WORK / "results" / "generate-speculative.json", rounds=3)
    parser.add_argument(
        "--rtts", type=numbers, default=[0, 10, 20, 50, 100, 200], help="round trips in ms, with commas"
    )
    parser.add_argument("--edges", default="int4,int8,fp32", help="candidates that draft, with commas")
    parser.add_argument("--ks", type=numbers, default=[2, 4, 8], help="fixed lengths of drafts, with commas")
    parser.add_argument("--prompts", type=int, default=8, help="answers of each contender (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the target (default: %(default)s)")
    given = parser.parse_args()
    given.ks = [int(k) for k in given.ks]
    work = (given.work or WORK) / "smollm2"
    bundles = {name: work / "run" / "candidates" / name for name in given.edges.split(",")}
    bundles = {name: path / "bundle" if (path / "bundle").is_dir() else path for name, path in bundles.items()}
    for path in (work / "checkpoint" / "config.json", *(path / "manifest.json" for path in bundles.values())):
        if not path.is_file():
            raise BenchmarkError(f"{path} is missing.", "Run benchmarks/quantize/smollm2.py first.")
    where = machine()
    tables.show_machine(where)
    rounds = []
    for turn in range(given.rounds):
        say = lambda line, turn=turn: tables.say(f"round {turn + 1}/{given.rounds}: {line}")  # noqa: E731
        rounds.append(one_round(work / "checkpoint", bundles, work, given, say))
    show(rounds)
    lost = losses(rounds)
    for line in lost:
        tables.CONSOLE.print(line)
    judged = goals(rounds, Goal)
    tables.show_goals(judged)
    settings = {name: getattr(given, name) for name in ("rtts", "ks", "prompts", "tokens", "temperature", "rounds")}
    runs = [[asdict(run) for run in found] for found in rounds]
    tables.write_json(
        given.out, {"machine": where, "settings": settings, "rounds": runs, "losses": lost, "goals": judged}
    )
    return 0


if __name__ == "__main__":
    import tables

    sys.exit(tables.run(main))
