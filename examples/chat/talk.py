"""A scripted conversation with a gateway, over its WebSocket; prints what each answer took.

    python examples/chat/talk.py --gateway URL --questions QUESTIONS.jsonl --out talk.json

1. Questions are asked until the device has answered one and the cloud another: the gateway judges the first tokens.
2. Two turns of one conversation: the second computes only what is new of its prompt.
3. A story is begun and interrupted, and then written on from another beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

QUESTION_TOKENS = 8
"""As many as the certificate was issued with."""

STORY = "Tell me a long story about a lighthouse keeper."
MOST_QUESTIONS = 60
INTERRUPT_AFTER = 24
AT_ONCE_S = 0.005
_PAUSE_S = 0.3


@dataclass
class Turn:
    """One answer.

    Attributes:
        asked: What was asked.
        text: What was answered.
        source: "edge" or "cloud".
        reason: Why it came from there.
        first_ms: Milliseconds until the first text was there.
        tokens: Tokens that were told.
        tokens_per_s: Tokens after those that came with the first, by the seconds that they took; None of none.
        stopped_ms: Milliseconds from the interrupt until the gateway had stopped; None where nobody interrupted.
        finish: "answered" or "interrupted".
    """

    asked: str
    text: str = ""
    source: str = ""
    reason: str = ""
    first_ms: float | None = None
    tokens: int = 0
    tokens_per_s: float | None = None
    stopped_ms: float | None = None
    finish: str = "answered"
    times: list[float] = field(default_factory=list)


class Line:
    """A WebSocket to the gateway; one answer at a time."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0

    async def ask(self, messages: list[dict[str, str]], *, interrupt_after: int | None = None, **fields: Any) -> Turn:
        """One answer, as it was heard."""
        self._number += 1
        name = f"turn-{self._number}"
        turn = Turn(messages[-1]["content"])
        began = time.perf_counter()
        await self._send(type="generate", id=name, messages=messages, **fields)
        interrupted = None
        async for told in self._of(name):
            now = time.perf_counter()
            if told["type"] == "token":
                turn.text += told["text"]
                turn.source = told.get("source", turn.source)
                turn.times.append(now)
                if interrupt_after == len(turn.times):
                    interrupted = now
                    await self._send(type="interrupt", id=name)
            elif told["type"] in ("answer", "revise"):
                turn.source, turn.reason, turn.text = told["source"], told["reason"], told["output"]
                turn.times = turn.times or [now]
            elif told["type"] == "interrupted":
                turn.finish, turn.text = "interrupted", told["text"]
                turn.stopped_ms = None if interrupted is None else 1000 * (now - interrupted)
        return _measured(turn, began)

    async def _send(self, **message: Any) -> None:
        await self._socket.send(json.dumps(message))

    async def _of(self, name: str) -> AsyncIterator[dict[str, Any]]:
        while True:
            told = json.loads(await self._socket.recv())
            if told["type"] == "error":
                raise SystemExit(f"The gateway refused: {told['error']['message']}")
            if told.get("id") == name:
                yield told
                if told["type"] == "done":
                    return


def _measured(turn: Turn, began: float) -> Turn:
    turn.tokens = len(turn.times)
    turn.first_ms = 1000 * (turn.times[0] - began) if turn.times else None
    # What was held back until it was judged comes at once, and says nothing of a pace.
    paced = [at for at in turn.times if at > turn.times[0] + AT_ONCE_S]
    if paced:
        held_until = turn.times[turn.tokens - len(paced) - 1]
        turn.tokens_per_s = len(paced) / (paced[-1] - held_until)
    return turn


def user(text: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": text}


async def both_sources(line: Line, questions: list[str]) -> list[Turn]:
    """One answer of the device and one of the cloud, as the gateway decides; the first questions that get them."""
    found: dict[str, Turn] = {}
    for question in questions[:MOST_QUESTIONS]:
        turn = await line.ask([user(question)], max_tokens=QUESTION_TOKENS)
        found.setdefault(turn.source, turn)
        if {"edge", "cloud"} <= found.keys():
            break
    return list(found.values())


async def two_turns(line: Line) -> list[Turn]:
    """A long first turn and a short second one of the same conversation."""
    rules = "You are the keeper of a small library. " + "Answer briefly and politely, and never invent a book. " * 8
    said = [{"role": "system", "content": rules}, user("Which books do you have about the sea?")]
    first = await line.ask(said, mode="edge_only", session="library", max_tokens=24)
    said += [{"role": "assistant", "content": first.text}, user("And about stars?")]
    return [first, await line.ask(said, mode="edge_only", session="library", max_tokens=24)]


async def interrupted_story(line: Line) -> list[Turn]:
    """A story that its reader ends, and that goes on from the reader's own words."""
    story = [user(STORY)]
    cut = await line.ask(story, interrupt_after=INTERRUPT_AFTER, mode="edge_only", session="story", max_tokens=200)
    begun = "Once upon a time, on a rock in the sea,"
    return [cut, await line.ask(story, begun=begun, mode="edge_only", session="story", max_tokens=24)]


@asynccontextmanager
async def connected(gateway: str, wait_s: float) -> AsyncIterator[Line]:
    """A line to the gateway, as soon as it answers."""
    deadline = time.monotonic() + wait_s
    url = gateway.replace("http", "ws", 1) + "/v1/stream"
    while True:
        try:
            socket = await connect(url, max_size=None)
            break
        except (OSError, WebSocketException) as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"The gateway {gateway} does not answer: {error}") from error
            await asyncio.sleep(_PAUSE_S)
    async with socket:
        yield Line(socket)


def show(title: str, turns: list[Turn]) -> None:
    """What each answer took."""
    print(f"\n{title}")
    for turn in turns:
        pace = "" if turn.tokens_per_s is None else f"{turn.tokens_per_s:.0f} tokens/s, "
        stopped = "" if turn.stopped_ms is None else f", stopped {turn.stopped_ms:.0f} ms after the interrupt"
        first = "nothing" if turn.first_ms is None else f"first after {turn.first_ms:.0f} ms"
        print(f"  > {turn.asked}\n    {' '.join(turn.text.split())}")
        print(f"    {turn.source} {turn.reason or turn.finish}: {turn.tokens} tokens, {pace}{first}{stopped}")


async def talk(gateway: str, questions: list[str], wait_s: float) -> dict[str, list[Turn]]:
    """The whole conversation."""
    async with connected(gateway, wait_s) as line:
        return {
            "Questions: the gateway judges the first tokens": await both_sources(line, questions),
            "Two turns: the second computes only what is new": await two_turns(line),
            "A story, interrupted, and written on from another beginning": await interrupted_story(line),
        }


def main() -> int:
    """Run the command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gateway", required=True, help="URL of the gateway")
    parser.add_argument("--questions", type=Path, required=True, help="questions to ask, one a line")
    parser.add_argument("--out", type=Path, required=True, help="file for the figures")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait for the gateway")
    arguments = parser.parse_args()
    questions = [json.loads(line)["text"] for line in arguments.questions.read_text().splitlines()]
    found = asyncio.run(talk(arguments.gateway, questions, arguments.wait))
    for title, turns in found.items():
        show(title, turns)
    asked, turns, story = found.values()
    figures = {"questions": asked, "turns": turns, "story": story}
    told = {name: [{**asdict(turn), "times": None} for turn in part] for name, part in figures.items()}
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    ratio = (turns[1].first_ms or 0) / (turns[0].first_ms or 1)
    print(f"\nFirst token of the second turn at {ratio:.2f} of the first. Figures: {arguments.out}")
    if {turn.source for turn in asked} < {"edge", "cloud"} or story[0].finish != "interrupted":
        print("The conversation did not go as planned: see above.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
