"""Short questions, made of the words in words.txt: what the demo certifies on, and what its conversation asks.

Each names a place, an animal or a word and asks for one fact in a few words.
"""

from __future__ import annotations

import random
from pathlib import Path

KINDS = (
    ("places", "What is the capital of {}? Answer in one word."),
    ("places", "On which continent is {}? Answer in one word."),
    ("places", "Which language do most people speak in {}? Answer in one word."),
    ("animals", "How many legs does a {} have? Answer with a number."),
    ("animals", "Is a {} a mammal? Answer yes or no."),
    ("animals", "Can a {} fly? Answer yes or no."),
    ("words", "What is the opposite of {}? Answer in one word."),
)


def questions(seed: int) -> list[str]:
    """All questions, each once, in an order drawn by the seed."""
    words = _words(Path(__file__).with_name("words.txt").read_text(encoding="utf-8"))
    made = [form.format(word) for kind, form in KINDS for word in words[kind]]
    random.Random(seed).shuffle(made)
    return made


def _words(text: str) -> dict[str, list[str]]:
    """Words by the heading above them."""
    parts = (part.split() for part in text.split("# ")[1:])
    return {name: words for name, *words in parts}
