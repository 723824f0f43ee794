"""What a chat shows beside its text: where an answer came from, and what may be typed."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from rich.text import Text

from edgewise.rendering.words import apart

if TYPE_CHECKING:
    from edgewise.jobs.chat import Heard

COMMANDS = {
    "/edit TEXT": "the last answer becomes TEXT, and is written on from there",
    "/new": "begin a new conversation",
    "/help": "show this",
    "/exit": "leave; so does the end of the input, and Ctrl-C twice",
}
"""What may be typed in place of a message."""

INSTEAD = "\N{RIGHTWARDS ARROW WITH HOOK} instead:"
"""Stands before a text that takes the place of the one above."""


def chat_help() -> Text:
    """What may be typed."""
    width = max(map(len, COMMANDS))
    return Text("\n".join(f"{name:<{width}}  {meaning}" for name, meaning in COMMANDS.items()), style="dim")


def chat_greeting(name: str, cloud: bool) -> Text:
    """The first line of a chat."""
    where = "here, and in the cloud where it has to" if cloud else "on this device alone"
    return Text(f"{name} answers {where}. /help shows what may be typed, Ctrl-C interrupts an answer.", style="dim")


def chat_note(words: str) -> Text:
    """A word of the chat itself."""
    return Text(words, style="dim")


def heard_line(heard: Heard) -> Text:
    """Where an answer came from and what it took, in one line."""
    parts = [heard.source or "nobody", *([heard.reason] if heard.reason else [])]
    if heard.score is not None and heard.threshold is not None:
        score, threshold = apart(heard.score, heard.threshold)
        parts.append(f"score {score}, threshold {threshold}")
    if heard.status == "provisional":
        parts.append("provisional")
    parts.append(f"{heard.tokens} tokens")
    if heard.tokens_per_s is not None:
        parts.append(f"{heard.tokens_per_s:.1f} tokens/s")
    if heard.first_token_ms is not None:
        parts.append(f"first after {heard.first_token_ms:.0f} ms")
    if heard.cached_tokens:
        parts.append(f"{heard.cached_tokens} of {heard.prompt_tokens} prompt tokens known")
    if heard.finish in ("interrupted", "length"):
        parts.append("interrupted" if heard.finish == "interrupted" else "cut at its longest")
    return Text(" · ".join(parts), style="dim")


def printable(text: str) -> str:
    """A text without the control characters by which it could write elsewhere on the terminal."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")
