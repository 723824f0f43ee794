"""What recipes and transforms share: what they may read beside the graph, and what they say of the graph they wrote."""

from __future__ import annotations

import msgspec


class Outcome(msgspec.Struct, frozen=True):
    """What a recipe did.

    Attributes:
        facts: Sentences on what became of the weights, read off the written graph.
        skipped: Names of weights that the recipe promised to quantize and did not.
        inapplicable: Why there is nothing in this graph for the recipe to do; empty where it wrote a graph.
        tokenizer: A `tokenizer.json` that goes with the written graph in place of the checkpoint's; empty if none.
        max_unknown_share: With it, the share of unknown tokens above which a text is not what the graph was made for.
        unknown_share: With it, the share of tokens that texts of the same kind will have unknown.
    """

    facts: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    inapplicable: str = ""
    tokenizer: str = ""
    max_unknown_share: float | None = None
    unknown_share: float | None = None


class Aids(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe may read beside the graph; each is there if the recipe needs it.

    Attributes:
        calibration: An .npz of encoded tuning items, "NAME/NUMBER" to an array of batch one.
        sensitivity: A JSON file: how much each weight's quantization moves the answers.
        tokenizer: The `tokenizer.json` of a text model.
        items: A JSON file of tuning items.
    """

    calibration: str = ""
    sensitivity: str = ""
    tokenizer: str = ""
    items: str = ""
