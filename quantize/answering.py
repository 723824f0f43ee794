"""Lets a bundle answer a few items in a process of its own, for a comparison with what it was made from.

Owns the form in which answers are compared item by item. Measures nothing: `measure.py` does.
"""

from __future__ import annotations

import msgspec

from edgewise.edge import EdgeModel
from edgewise.quantize.answers import answers_of, counter_of, per_item
from edgewise.quantize.items import Item, inputs_of


class AnswerJob(msgspec.Struct, frozen=True):
    """Answer items.

    Attributes:
        bundle: A bundle's folder.
        items: The items.
    """

    bundle: str
    items: tuple[Item, ...]


class Answered(msgspec.Struct, frozen=True):
    """What a bundle answered.

    Attributes:
        rows: One a item: logits, an embedding, or a tagger's logits of each word one after the other.
    """

    rows: tuple[tuple[float, ...], ...]


def answer_here(job: AnswerJob) -> Answered:
    """Answer in this process."""
    answers = answers_of(EdgeModel.load(job.bundle), inputs_of(job.items))
    values = answers.get("embedding", answers.get("logits"))
    if values is None:
        raise ValueError(f"{job.bundle} gives neither logits nor an embedding")
    counter = counter_of(answers)
    rows = values if counter is None else per_item(values, answers[counter])
    return Answered(tuple(tuple(float(value) for value in row.ravel()) for row in rows))
