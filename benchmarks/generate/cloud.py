"""The cloud service writing several answers at once, beside transformers by itself, and with a draft beside the model.

    python benchmarks/generate/cloud.py [--rounds 3] [--threads 2] [--tokens 40] [--prompts 4] [--streams 1,2,4,8]
                                        [--work WORK] [--out JSON]

SmolLM2-135M-Instruct in float32, greedy, the same questions to everybody, as many threads for everybody. Each contender
is a fresh process, every other round backwards; ratios are taken round by round. With N streams N clients ask one
question after the other, `--prompts` in all, or one each where that is more.

    generate             transformers' own `generate`, one question after the other, in its own process, no server
    transformers serve   its own OpenAI server, streamed. As it comes: its continuous batching asks for the memory of an
                         accelerator and ends on a processor, so each request generates in a thread of its own
    edgewise             `edgewise cloud serve`, streamed

Tokens are counted by encoding the texts again, alike for all, over the time from the first request to the last token.
A gap is the time between two pieces of one stream: a token of `generate` and of ours, a word of `transformers serve`.
Texts are compared with those of `generate`: batches add floats in another order, which tips a tie now and then.

Then one stream with a draft beside the target (cuts.py says which): `off`, `on` for every step whether it pays or not
(a control), and `auto`, as served. What counts comes after the trials of the start, in which `auto` measures both ways.
Needs what `python benchmarks/quantize/smollm2.py` leaves behind.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "serve"))
sys.path.append(str(Path(__file__).parents[1] / "quantize"))

import httpx
import numpy as np
import tables
from cuts import prepare_cuts
from figures import Goal, Spread, ratios, spread
from harness import BenchmarkError, machine
from launching import launched
from minilm import WORK
from streams import NAME, WARM_UP, Answered, asked, generated, together
from tokenizers import Tokenizer

HERE = Path(__file__).parent
GENERATE, SERVE, OURS = "generate", "transformers serve", "edgewise"
RIGHT, WRONG = "always right", "always wrong"
OFF, ON, AUTO = "off", "on", "auto"
WARM_TOKENS = {OFF: 4, ON: 4, AUTO: 64}
"""Of `auto` more than its trials: 8 steps of one token, then 8 of up to five."""

ALONE_SHARE, TOGETHER_TIMES, AUTO_SHARE = 0.95, 2.0, 0.95


@dataclass(frozen=True)
class Run:
    """One contender with so many streams.

    Attributes:
        tokens_per_s: Tokens of all answers over the time that all took.
        first_ms: Milliseconds to the first piece, the median of the answers.
        gap_ms: Milliseconds between two pieces of an answer, the 99th percentile.
        texts: Answers by questions.
        drafting: What the service says of its draft; empty without one.
    """

    tokens_per_s: float
    first_ms: float
    gap_ms: float
    texts: Mapping[str, str]
    drafting: Mapping[str, float]


def summed(found: Sequence[Answered], count: Callable[[str], int], drafting: Mapping[str, float] | None = None) -> Run:
    """Answers in figures."""
    gaps = [later - sooner for answer in found for sooner, later in itertools.pairwise(answer.times_s)]
    seconds = max(answer.times_s[-1] for answer in found) - min(answer.started_s for answer in found)
    return Run(
        tokens_per_s=sum(count(answer.text) for answer in found) / seconds,
        first_ms=1e3 * float(np.median([answer.times_s[0] - answer.started_s for answer in found])),
        gap_ms=1e3 * float(np.quantile(gaps, 0.99)) if gaps else 0.0,
        texts={answer.question: answer.text for answer in found},
        drafting=drafting or {},
    )


def drafting_of(exposition: str) -> dict[str, float]:
    """What the service's metrics say of its draft, by their names without the model."""
    shown = re.findall(r'^edgewise_(draft\w*|decode\w+)\{model="[^"]*"(?:,\w+="(\w+)")?\} (\S+)$', exposition, re.M)
    return {" ".join(filter(None, (name, label))): float(value) for name, label, value in shown}


def ours(
    checkpoint: Path, threads: int, draft: Path | None = None, *, always: bool = False
) -> Callable[[int], list[str]]:
    """The command of our service."""
    program = [str(HERE / "peers" / "always_drafting.py")] if always else ["-m", "edgewise.cli"]
    beside = [] if draft is None else ["--draft", str(draft)]
    serve = [sys.executable, *program, "cloud", "serve", str(checkpoint), "--name", NAME, "--threads", str(threads)]
    return lambda port: [*serve, *beside, "--port", str(port)]


def theirs(checkpoint: Path) -> Callable[[int], list[str]]:
    """The command of transformers' server; its threads are told by the environment."""
    flags = ["--force_model", str(checkpoint), "--device", "cpu", "--dtype", "float32", "--log_level", "error"]
    program = str(Path(sys.executable).with_name("transformers"))
    return lambda port: [program, "serve", "--host", "127.0.0.1", "--port", str(port), *flags]


class Bench:
    """What stays the same over the rounds.

    Args:
        checkpoint: The model.
        work: Folder for what is built, and for logs.
        given: The command line's options.
    """

    def __init__(self, checkpoint: Path, work: Path, given: Any) -> None:
        self.checkpoint = checkpoint
        self.cuts = prepare_cuts(checkpoint, work)
        self.work = work
        self.given = given
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.count = lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)

    def ways(self) -> dict[tuple[str, str], Callable[[int], list[str]]]:
        """Commands by draft and whether it is used; the target of the wrong one without it is `OURS` at one stream."""
        threads, cuts = self.given.threads, self.cuts
        pairs = {WRONG: self.checkpoint, RIGHT: cuts.target}
        found = {}
        for draft, target in pairs.items():
            found[draft, ON] = ours(target, threads, cuts.draft, always=True)
            found[draft, AUTO] = ours(target, threads, cuts.draft)
        return {(RIGHT, OFF): ours(cuts.target, threads), **found}

    def one_round(self, turn: int) -> dict[Any, Run]:
        """Everything once."""
        tasks: list[Callable[[], dict[Any, Run]]] = [
            lambda: self._served(OURS, ours(self.checkpoint, self.given.threads), "/readyz"),
            lambda: self._served(SERVE, theirs(self.checkpoint), "/health"),
            *(lambda way=way, command=command: self._drafted(way, command) for way, command in self.ways().items()),
        ]
        tasks.append(self._generated)
        found: dict[Any, Run] = {}
        for task in tasks if turn % 2 == 0 else reversed(tasks):
            found |= task()
        return found

    def _generated(self) -> dict[Any, Run]:
        tables.say(f"  {GENERATE}")
        given = self.given
        answers = generated(self.checkpoint, asked(given.prompts, 1), given.threads, given.tokens)
        return {(GENERATE, 1): summed(answers, self.count)}

    def _served(self, name: str, command: Callable[[int], list[str]], ready: str) -> dict[Any, Run]:
        given, found = self.given, {}
        with self._launched(name, command, ready) as (url, _):
            asyncio.run(together(url, [WARM_UP], 1, WARM_TOKENS[OFF]))
            for streams in given.streams:
                tables.say(f"  {name}, streams: {streams}")
                answers = asyncio.run(together(url, asked(given.prompts, streams), streams, given.tokens))
                found[name, streams] = summed(answers, self.count)
        return found

    def _drafted(self, way: tuple[str, str], command: Callable[[int], list[str]]) -> dict[Any, Run]:
        tables.say(f"  a draft {way[0]}, {way[1]}")
        given = self.given
        with self._launched(" ".join(way), command, "/readyz") as (url, _):
            asyncio.run(together(url, [WARM_UP], 1, WARM_TOKENS[way[1]]))
            answers = asyncio.run(together(url, asked(given.prompts, 1), 1, given.tokens))
            drafting = drafting_of(httpx.get(f"{url}/metrics", timeout=30).text)
        return {way: summed(answers, self.count, drafting)}

    def _launched(self, name: str, command: Callable[[int], list[str]], ready: str) -> Any:
        log = self.work / "logs" / f"cloud-{name.replace(' ', '-')}.log"
        quiet = {"OMP_NUM_THREADS": str(self.given.threads), "HF_HUB_OFFLINE": "1"}
        return launched(name, command, ready, log, environment=quiet)


def known_as(key: Any) -> Any:
    """Without a draft that is wrong, its target is ours alone."""
    return (OURS, 1) if key == (WRONG, OFF) else key


def rates(rounds: Sequence[Mapping[Any, Run]], key: Any) -> list[float]:
    """Tokens a second of one contender, round by round."""
    return [found[known_as(key)].tokens_per_s for found in rounds]


def same(rounds: Sequence[Mapping[Any, Run]], key: Any, other: Any) -> str:
    """How many answers are the other's, of those that both gave."""
    pairs = [
        (text, found[known_as(other)].texts[question])
        for found in rounds
        for question, text in found[known_as(key)].texts.items()
        if question in found[known_as(other)].texts
    ]
    return f"{sum(one == two for one, two in pairs)} of {len(pairs)}"


def compared(rounds: Sequence[Mapping[Any, Run]]) -> dict[str, Spread]:
    """What the goals ask for, round by round."""
    most = max(streams for name, streams in rounds[0] if name == OURS)
    auto = {draft: ratios(rates(rounds, (draft, AUTO)), rates(rounds, (draft, OFF))) for draft in (WRONG, RIGHT)}
    return {
        "alone": ratios(rates(rounds, (OURS, 1)), rates(rounds, (GENERATE, 1))),
        "together": ratios(rates(rounds, (OURS, most)), rates(rounds, (OURS, 1))),
        "served": ratios(rates(rounds, (OURS, most)), rates(rounds, (SERVE, most))),
        "auto, wrong": auto[WRONG],
        "auto, right": auto[RIGHT],
    }


def goals(found: Mapping[str, Spread], most: int) -> list[Goal]:
    """What is promised."""
    wanted = (
        ("alone", f"one stream at least {ALONE_SHARE} of `generate`", ALONE_SHARE),
        ("together", f"{most} streams at least {TOGETHER_TIMES:g} x one", TOGETHER_TIMES),
        ("served", f"{most} streams at least {TOGETHER_TIMES:g} x `transformers serve`", TOGETHER_TIMES),
        ("auto, wrong", f"a draft that never pays costs nothing: at least {AUTO_SHARE} of off", AUTO_SHARE),
        ("auto, right", "a draft that pays is used: more than off", 1.0),
    )
    return [Goal(what, f"{tables.shown(found[key])} x", found[key].median >= least) for key, what, least in wanted]


def losses(rounds: Sequence[Mapping[Any, Run]]) -> list[str]:
    """Where ours is behind, in words, by medians over the rounds."""
    told = []
    for field, what, sign in (
        ("tokens_per_s", "tokens/s", 1),
        ("first_ms", "first token", -1),
        ("gap_ms", "p99 gap", -1),
    ):
        for name, streams in (key for key in rounds[0] if key[0] in (GENERATE, SERVE)):
            mine, other = (median(rounds, (who, streams), field) for who in (OURS, name))
            if sign * mine < sign * other:
                told.append(f"{what}, {streams} at once: {mine:.0f}, {name} {other:.0f}")
    for draft in (WRONG, RIGHT):
        on = ratios(rates(rounds, (draft, ON)), rates(rounds, (draft, OFF)))
        if on.median < 1:
            told.append(f"a draft that is {draft}, used for every step: {on.median:.2f} of off")
    return told


def median(rounds: Sequence[Mapping[Any, Run]], key: Any, field: str) -> float:
    """Of one figure of one contender."""
    return spread([getattr(found[key], field) for found in rounds]).median


def show(rounds: Sequence[Mapping[Any, Run]], threads: int) -> None:
    """Both tables."""

    def cell(key: Any, field: str, digits: int) -> str:
        return tables.shown(spread([getattr(found[known_as(key)], field) for found in rounds]), digits)

    def told(key: Any, name: str) -> str:
        values = [found[known_as(key)].drafting.get(name) for found in rounds]
        return "" if None in values else tables.shown(spread(values))

    fields = (("tokens_per_s", 1), ("first_ms", 0), ("gap_ms", 0))
    plain = [(name, streams) for who in (GENERATE, SERVE, OURS) for name, streams in rounds[0] if name == who]
    rows = [
        (key[0], str(key[1]), *(cell(key, *field) for field in fields), same(rounds, key, (GENERATE, 1)))
        for key in plain
    ]
    columns = ("SmolLM2-135M, float32", "streams", "tokens/s", "first token ms", "p99 gap ms", "text of generate")
    tables.show_table(f"{threads} threads, median (smallest-largest) of rounds", columns, rows)
    rows = [
        (
            *key,
            cell(key, "tokens_per_s", 1),
            tables.shown(ratios(rates(rounds, key), rates(rounds, (key[0], OFF)))),
            told(key, "draft_acceptance"),
            told(key, "draft_tokens_per_round"),
            same(rounds, key, (key[0], OFF)),
        )
        for key in itertools.product((WRONG, RIGHT), (OFF, ON, AUTO))
    ]
    columns = ("draft", "used", "tokens/s", "x off", "accepted", "tokens a pass over guesses", "text of off")
    tables.show_table("One stream with a draft beside the target", columns, rows)


def whole_numbers(text: str) -> list[int]:
    """Numbers with commas between them."""
    return [int(part) for part in text.split(",")]


def main() -> int:
    """Run the command line."""
    options = tables.parser(__doc__, WORK / "results" / "generate-cloud.json", rounds=3)
    options.add_argument("--threads", type=int, default=2, help="threads of all (default: %(default)s)")
    options.add_argument("--tokens", type=int, default=40, help="tokens of an answer (default: %(default)s)")
    options.add_argument("--prompts", type=int, default=4, help="questions at least (default: %(default)s)")
    options.add_argument("--streams", type=whole_numbers, default=[1, 2, 4, 8], help="at once; 1 must be among them")
    given = options.parse_args()
    work, where = given.work or WORK, machine()
    checkpoint = work / "smollm2" / "checkpoint"
    if not (checkpoint / "config.json").is_file():
        raise BenchmarkError(f"{checkpoint} is missing.", "Run benchmarks/quantize/smollm2.py first.")
    if 1 not in given.streams:
        raise BenchmarkError(f"--streams {given.streams} lacks 1.", "Drafts are compared with it.")
    bench = Bench(checkpoint, work / "generate", given)
    rounds = []
    for turn in range(given.rounds):
        tables.say(f"round {turn + 1}/{given.rounds}")
        rounds.append(bench.one_round(turn))
    found, lost = compared(rounds), losses(rounds)
    judged = goals(found, max(given.streams))
    tables.show_machine(where)
    show(rounds, given.threads)
    tables.show_goals(judged)
    for line in lost:
        tables.CONSOLE.print(f"behind: {line}")
    settings = {name: getattr(given, name) for name in ("threads", "tokens", "prompts", "streams", "rounds")}
    runs = [{", ".join(map(str, key)): run for key, run in found.items()} for found in rounds]
    written = {"machine": where, "settings": settings, "rounds": runs, "ratios": found, "losses": lost}
    tables.write_json(given.out, {**written, "goals": judged})
    return 0 if all(goal.met for goal in judged) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
