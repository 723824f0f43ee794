"""Cuts the vocabulary down to the pieces that the task's data uses.

In a small encoder the table of token embeddings is half of the bytes, and most of its rows belong to words that the
task never sees. What is dropped becomes the unknown token. The share of unknown tokens in a text then tells that the
text is not what the graph was made for, so the threshold of that share travels with the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgewise.errors import DataError
from edgewise.quantize.calibration import read_feeds, write_feeds
from edgewise.quantize.items import Item
from edgewise.quantize.surgery import reads
from edgewise.quantize.technique import Aids, Outcome
from edgewise.quantize.transforms import vocabulary
from edgewise.quantize.transforms.base import Changed, TransformKind

IDS = "input_ids"

FOLDS = 10

QUANTILE = 0.99
"""Of the texts' shares of unknown tokens: so many texts of the task's own kind stay at or below the threshold."""


def apply(source: Path, out: Path, *, aids: Aids) -> Changed:
    """Gather the rows that are kept, and write the new tokenizer beside the graph.

    Raises:
        DataError: No tokenizer or no tuning texts.
    """
    import onnx

    if not aids.tokenizer:
        return Changed(Outcome(inapplicable="there is no tokenizer whose vocabulary could be cut"), aids)
    tokenizer = msgspec.json.decode(Path(aids.tokenizer).read_bytes())
    model = onnx.load(source)
    name, reason = _table(model)
    reason = reason or vocabulary.why_not(tokenizer)
    if reason:
        return Changed(Outcome(inapplicable=reason), aids)
    texts = _texts(aids.items)
    usage = vocabulary.use_of(Path(aids.tokenizer).read_bytes(), texts)
    kept = vocabulary.always_kept(tokenizer) | usage.pieces
    kept |= set(vocabulary.named_by_processor(tokenizer.get("post_processor")))
    numbers = vocabulary.renumber(kept)
    rows = _rows(model, name)
    if max(numbers) >= rows:
        return Changed(Outcome(inapplicable=f"the tokenizer has tokens beyond the {rows} rows of the table"), aids)
    if len(numbers) >= rows:
        return Changed(Outcome(inapplicable=f"the texts use all {rows} rows of the table"), aids)
    _keep_rows(model, name, sorted(numbers))
    onnx.save(model, out)
    cut = out.with_suffix(".tokenizer.json")
    cut.write_bytes(vocabulary.cut(tokenizer, numbers))
    counts = vocabulary.unknown_shares(tokenizer, usage, folds=FOLDS)
    return Changed(_outcome(rows, onnx.load(out), name, counts, cut), _aids(aids, cut, numbers, out))


def _table(model: Any) -> tuple[str, str]:
    """Name of the token table, or why it cannot be cut."""
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    users = [node for node in model.graph.node if IDS in set(reads(node))]
    gathers = [node for node in users if node.op_type == "Gather" and node.input[0] in tables and node.input[1] == IDS]
    if len(gathers) != 1:
        return "", f"the graph does not look token ids up in one table ({len(gathers)} found)"
    other = next((node for node in users if node is not gathers[0] and node.op_type != "Shape"), None)
    if other is not None:
        return "", f"the graph computes with token ids ({other.op_type}), so they cannot be renumbered"
    name = gathers[0].input[0]
    if sum(name in set(reads(node)) for node in model.graph.node) > 1:
        return "", f"the table {name} is used for more than looking tokens up"
    rows = tables[name].dims[0]
    if any(rows in [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.output):
        return "", "the graph gives a value for each piece of the vocabulary"
    return name, ""


def _texts(path: str) -> list[str]:
    items = msgspec.json.decode(Path(path).read_bytes(), type=list[Item]) if path else []
    texts = [item.text for item in items if item.text is not None]
    if not texts:
        raise DataError("There are no tuning texts to take the vocabulary from.", "Give tuning texts.")
    return texts


def _rows(model: Any, name: str) -> int:
    return int(next(tensor.dims[0] for tensor in model.graph.initializer if tensor.name == name))


def _keep_rows(model: Any, name: str, kept: list[int]) -> None:
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name == name:
            values = np.ascontiguousarray(numpy_helper.to_array(tensor)[kept])
            tensor.CopyFrom(numpy_helper.from_array(values, name))


def _outcome(rows: int, written: Any, name: str, counts: list[tuple[int, int]], cut: Path) -> Outcome:
    unknown, total = sum(count for count, _ in counts), sum(size for _, size in counts)
    shares = [count / size for count, size in counts if size]
    # "higher": the threshold is a share that a text really had.
    threshold = float(np.quantile(shares, QUANTILE, method="higher")) if shares else 0.0
    facts = (
        f"{_rows(written, name)} of {rows} pieces of the vocabulary kept",
        f"{unknown / max(total, 1):.2%} of the tokens of held-out tuning texts are unknown ({FOLDS} folds)",
        f"texts with more than {threshold:.1%} unknown tokens are not what it was made for",
    )
    return Outcome(facts, tokenizer=str(cut), max_unknown_share=threshold, unknown_share=unknown / max(total, 1))


def _aids(aids: Aids, cut: Path, numbers: dict[int, int], out: Path) -> Aids:
    """The aids with the new tokenizer, and the calibration data under the new ids."""
    changed = msgspec.structs.replace(aids, tokenizer=str(cut))
    if not aids.calibration:
        return changed
    table = np.zeros(max(numbers) + 1, np.int64)
    table[list(numbers)] = list(numbers.values())
    feeds = read_feeds(aids.calibration)
    for feed in feeds:
        feed[IDS] = table[feed[IDS]].astype(feed[IDS].dtype)
    path = out.with_suffix(".feeds.npz")
    write_feeds(feeds, path)
    return msgspec.structs.replace(changed, calibration=str(path))


KIND = TransformKind(
    "trim",
    "the vocabulary cut down to the pieces that the tuning texts use",
    apply,
    needs=frozenset({"tokenizer", "items"}),
)
"""Listed in the registry."""
