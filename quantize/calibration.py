"""Calibration data: tuning items, encoded as the edge runtime encodes them.

Owns its file, and what it says of a graph's values. Quantizes nothing. Items keep their own lengths: padding to one
length would put tokens into the ranges that no request holds, and histograms are merged item by item here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError
from edgewise.quantize.items import Item, inputs_of

Feeds = dict[str, NDArray[Any]]
"""Arrays by input name, batch of one."""


class FeedsJob(msgspec.Struct, frozen=True):
    """Encode tuning items.

    Attributes:
        bundle: A bundle whose tokenizer or image preprocessing encodes them.
        items: The items.
        out: The .npz that is written.
        count: At most so many items, evenly spread.
    """

    bundle: str
    items: tuple[Item, ...]
    out: str
    count: int = 64


class FeedsDone(msgspec.Struct, frozen=True):
    """What was encoded.

    Attributes:
        items: Items in the file.
    """

    items: int


def feeds_here(job: FeedsJob) -> FeedsDone:
    """Encode items with the edge runtime's own encoder and write them.

    Raises:
        InputError: An item that the model cannot read.
        DataError: No items.
    """
    from edgewise.edge import EdgeModel

    model = EdgeModel.load(job.bundle)
    inputs = inputs_of(job.items)
    count = min(job.count, len(inputs))
    chosen = [inputs[index * len(inputs) // count] for index in range(count)]
    write_feeds([model.feeds(item) for item in chosen], Path(job.out))
    return FeedsDone(count)


def write_feeds(feeds: Sequence[Mapping[str, NDArray[Any]]], path: Path) -> None:
    """Write feeds as an .npz with an array "NAME/NUMBER" each.

    Raises:
        DataError: There are none.
    """
    if not feeds:
        raise DataError("There is no item to calibrate with.", "Give at least one tuning item.")
    arrays: dict[str, Any] = {f"{name}/{number}": a for number, feed in enumerate(feeds) for name, a in feed.items()}
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def read_feeds(path: str | Path) -> list[Feeds]:
    """Read what `write_feeds` wrote.

    Raises:
        DataError: No path, or no such file.
    """
    if not path or not Path(path).is_file():
        raise DataError("This recipe needs calibration data, and there is none.", "Give tuning items.")
    feeds: dict[int, Feeds] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            name, _, number = key.rpartition("/")
            feeds.setdefault(int(number), {})[name] = arrays[key]
    return [feeds[number] for number in sorted(feeds)]


def observe(
    graph: Path,
    names: Sequence[str],
    feeds: Sequence[Feeds],
    see: Callable[[str, NDArray[Any]], None],
    *,
    scratch: Path,
) -> None:
    """Run a graph on each item and show each named value as it is computed.

    Args:
        graph: An ONNX file.
        names: Values inside it.
        feeds: The items.
        see: Called with a name and its value, item after item.
        scratch: Where a copy of the graph with these values as outputs goes meanwhile.

    Raises:
        DataError: The graph cannot run on an item.
    """
    import onnx
    import onnxruntime

    model = onnx.load(graph)
    # Bare names: onnxruntime infers the types.
    given = {value.name for value in model.graph.input}
    computed = [name for name in names if name not in given]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed if name not in known)
    onnx.save(model, scratch)
    del model
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # A fused node would hide the values inside it.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(scratch), options, providers=["CPUExecutionProvider"])
        for feed in feeds:
            seen = {**feed, **_run(session, computed, {name: a for name, a in feed.items() if name in given})}
            for name in names:
                see(name, seen[name])
    finally:
        scratch.unlink(missing_ok=True)


def _run(session: Any, names: Sequence[str], feed: Feeds) -> Feeds:
    if not names:  # an empty list means "all outputs" to onnxruntime
        return {}
    try:
        return dict(zip(names, session.run(names, feed), strict=True))
    except Exception as e:  # onnxruntime's errors share no base but Exception
        raise DataError(f"The graph cannot run on the calibration data: {e}", "Give items of the model's kind.") from e
