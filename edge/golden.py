"""Golden items: made where a bundle is packed, checked where it runs.

Owns the comparison and its tolerance. A mismatch voids every certificate of the bundle on this machine: its scores are
not those that were calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgewise.bundle import GoldenItem, Png
from edgewise.contracts import FloatArray, Input, LocalModel, Prediction, Signal
from edgewise.edge.image import encode_png
from edgewise.errors import CertificateError, InputError

# Within one instruction-set class the integer arithmetic is exact and only float32 rounding differs. It may tip a
# dynamic int8 activation over to its neighbour, which moves a logit by well under this share of the logits' spread.
RELATIVE_TOLERANCE = 0.01
ABSOLUTE_TOLERANCE = 1e-3

# Embeddings of float32 and of dynamic int8 graphs of one model have cosines of 0.989 and more; two instruction-set
# classes of one graph lie closer together.
OTHER_ISA_COSINE = 0.98

# A graph may compute its margin in float16, whose rounding of two probabilities moves it by up to 0.001.
MARGIN_TOLERANCE = 0.01

_SMALLEST = float(np.finfo(np.float64).tiny)


def golden_items(model: LocalModel, inputs: Sequence[Input], signal: Signal) -> tuple[GoldenItem, ...]:
    """Answers of a model to a few inputs, for packing beside it. Images are kept as PNG and answered from that.

    Args:
        model: The model of the very graph that will be packed.
        inputs: Texts, image files or 8-bit pixels.
        signal: Scores logits of shape (n, classes).

    Raises:
        InputError: An item cannot be read or kept, or the model gives neither logits nor an embedding.
    """
    kept = [item if isinstance(item, str) else encode_png(item) for item in inputs]
    predictions = model.predict([_input(item) for item in kept])
    return tuple(_item(item, prediction, signal) for item, prediction in zip(kept, predictions, strict=True))


def check(model: LocalModel, items: Sequence[GoldenItem], *, same_isa: bool) -> None:
    """Predict the golden items again and compare.

    The label, or a tagger's entities, must always agree. On the instruction-set class that computed the items, each
    logit must also lie within max(0.001, 1 % of the spread of the item's logits), and so must each number of an
    embedding. On another class dynamic int8 rounds differently: there only labels are compared, and an embedding's
    cosine with the golden one must be 0.98 or more. A margin that the graph gives must be that of its own logits.

    Raises:
        CertificateError: An item disagrees, or there is none to check.
    """
    if not items:
        raise CertificateError("The bundle has no golden items, so it cannot be checked here.", "Pack it with some.")
    predictions = model.predict([_input(item.input) for item in items])
    for number, (item, prediction) in enumerate(zip(items, predictions, strict=True), start=1):
        problem = _difference(item, prediction, same_isa=same_isa)
        if problem:
            raise CertificateError(
                f"Golden item {number} of {len(items)} comes out differently on this machine: {problem}.",
                "Certificates of this bundle do not hold here; certify it on this machine.",
            )


def _input(item: str | Png) -> Input:
    return item.png if isinstance(item, Png) else item


def _item(item: str | Png, prediction: Prediction, signal: Signal) -> GoldenItem:
    if prediction.logits is not None and isinstance(prediction.output, str):
        score = float(signal(prediction.logits[np.newaxis])[0])
        return GoldenItem(item, prediction.output, score, _numbers(prediction.logits))
    if prediction.embedding is not None:
        return GoldenItem(item, "", 0.0, _numbers(prediction.embedding))
    raise InputError("Golden items need logits or an embedding.", "Give a classifier, a tagger or an embedder.")


def _numbers(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _difference(item: GoldenItem, prediction: Prediction, *, same_isa: bool) -> str | None:
    expected = np.array(item.logits, dtype=np.float64)
    if prediction.logits is None and prediction.embedding is not None:
        embedding = prediction.embedding
        return _beyond(expected, embedding, "number") if same_isa else _turned(expected, embedding)
    if prediction.output != item.output:
        return f"it answers {prediction.output!r} instead of {item.output!r}"
    if prediction.logits is None:
        return None
    found = _beyond(expected, prediction.logits, "logit") if same_isa else None
    return found or _wrong_margin(prediction)


def _beyond(expected: FloatArray, found: FloatArray, what: str) -> str | None:
    if found.shape != expected.shape:
        return f"it gives {found.size} numbers instead of {expected.size}"
    tolerance = max(ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE * float(np.ptp(expected)))
    worst = float(np.max(np.abs(found - expected)))
    # Written so that a NaN counts as a difference.
    return None if worst <= tolerance else f"a {what} differs by {worst:.4g}, {tolerance:.4g} is allowed"


def _turned(expected: FloatArray, found: FloatArray) -> str | None:
    if found.shape != expected.shape:
        return f"it gives {found.size} numbers instead of {expected.size}"
    lengths = float(np.linalg.norm(found)) * float(np.linalg.norm(expected))
    cosine = float(found @ expected) / max(lengths, _SMALLEST)
    return None if cosine >= OTHER_ISA_COSINE else f"the cosine of its embedding is {cosine:.4g}"


def _wrong_margin(prediction: Prediction) -> str | None:
    """A graph with a margin of its own is routed by it, so the margin counts as much as the logits."""
    if prediction.margin is None or prediction.logits is None:
        return None
    shares = np.exp(prediction.logits - prediction.logits.max(), dtype=np.float64)
    second, first = np.sort(shares / shares.sum())[-2:]
    wrong = abs(prediction.margin - (first - second))
    return None if wrong <= MARGIN_TOLERANCE else f"its margin {prediction.margin:.4g} is not that of its logits"
