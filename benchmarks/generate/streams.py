"""Clients that ask for streamed answers, one after the other or several at once, and when each piece came."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from harness import BenchmarkError

HERE = Path(__file__).parent
NAME, CHAT = "smollm2", "/v1/chat/completions"
TIMEOUT_S = 600.0

WARM_UP = "Tell me all that you know of rivers."
QUESTIONS = (
    "Write a short story about a lighthouse keeper.",
    "Explain why the sky is blue.",
    "How do I bake a loaf of bread?",
    "Describe the water cycle to a child.",
    "Write a letter to a friend about a week in the mountains.",
    "How does a bicycle stay upright?",
    "Summarise the plot of Romeo and Juliet.",
    "Give me advice for learning to swim as an adult.",
)


@dataclass(frozen=True)
class Answered:
    """One answer.

    Attributes:
        question: What was asked.
        text: What was answered.
        started_s: When it was asked, seconds of one clock.
        times_s: When each piece came, by the same clock.
    """

    question: str
    text: str
    started_s: float
    times_s: tuple[float, ...]


def asked(prompts: int, streams: int) -> list[str]:
    """Questions to ask, each another text, so that nobody answers two with one."""
    count = max(prompts, streams)
    return [QUESTIONS[at % len(QUESTIONS)] + " Please." * (at // len(QUESTIONS)) for at in range(count)]


async def one(client: httpx.AsyncClient, question: str, tokens: int) -> Answered:
    """One streamed answer.

    Raises:
        BenchmarkError: It was refused, or empty.
    """
    messages = [{"role": "user", "content": question}]
    body = {"model": NAME, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}
    started, times, text = time.perf_counter(), [], ""
    async with client.stream("POST", CHAT, json=body) as response:
        if response.status_code != 200:
            raise BenchmarkError(f"{CHAT} answered {response.status_code}: {(await response.aread())[:200]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            told = [choice["delta"].get("content") for choice in json.loads(line[6:]).get("choices", ())]
            if any(told):
                times.append(time.perf_counter())
                text += "".join(piece or "" for piece in told)
    if not times:
        raise BenchmarkError(f"{CHAT} answered nothing.")
    return Answered(question, text, started, tuple(times))


async def together(url: str, questions: Sequence[str], streams: int, tokens: int) -> list[Answered]:
    """All questions, by so many clients at once."""
    left, found = list(questions), []

    async def client_asks(client: httpx.AsyncClient) -> None:
        while left:
            found.append(await one(client, left.pop(0), tokens))

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        await asyncio.gather(*(client_asks(client) for _ in range(streams)))
    return found


def generated(checkpoint: Path, questions: Sequence[str], threads: int, tokens: int) -> list[Answered]:
    """`generate`, in a process of its own.

    Raises:
        BenchmarkError: It failed.
    """
    script = HERE / "peers" / "transformers_generate.py"
    command = [sys.executable, str(script), str(checkpoint), str(threads), str(tokens)]
    done = subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"{script.name} failed: {done.stderr.strip()[-400:]}")
    at, found = 0.0, []
    for question, answer in zip(questions, json.loads(done.stdout), strict=True):
        found.append(Answered(question, answer["text"], at, tuple(at + one for one in answer["times_s"])))
        at += answer["seconds"]
    return found
