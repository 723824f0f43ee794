"""Golden items: made where a bundle is packed, checked where it runs.

Owns the comparison and its tolerance. A mismatch voids every certificate of the bundle on this machine: its scores are
not those that were calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgewise.bundle import GoldenItem, Png
from edgewise.contracts import Input, LocalModel, Prediction, Signal
from edgewise.edge.image import encode_png
from edgewise.errors import CertificateError, InputError

# Within one instruction-set class the integer arithmetic is exact and only float32 rounding differs. It may tip a
# dynamic int8 activation over to its neighbour, which moves a logit by well under this share of the logits' spread.
RELATIVE_TOLERANCE = 0.01
ABSOLUTE_TOLERANCE = 1e-3


def golden_items(model: LocalModel, inputs: Sequence[Input], signal: Signal) -> tuple[GoldenItem, ...]:
    """Answers of a model to a few inputs, for packing beside it. Images are kept as PNG and answered from that.

    Args:
        model: The model of the very graph that will be packed.
        inputs: Texts, image files or 8-bit pixels.
        signal: Scores logits of shape (n, classes).

    Raises:
        InputError: An item cannot be read or kept, or the model gives no logits.
    """
    kept = [item if isinstance(item, str) else encode_png(item) for item in inputs]
    predictions = model.predict([_input(item) for item in kept])
    return tuple(_item(item, prediction, signal) for item, prediction in zip(kept, predictions, strict=True))


def check(model: LocalModel, items: Sequence[GoldenItem], *, same_isa: bool) -> None:
    """Predict the golden items again and compare.

    The label must always agree. On the instruction-set class that computed the items, each logit must also lie within
    max(0.001, 1 % of the spread of the item's logits); on another class dynamic int8 rounds differently, and only
    labels are compared.

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
    if prediction.logits is None or not isinstance(prediction.output, str):
        raise InputError("Golden items need a classifier.", "Give a model with logits.")
    score = float(signal(prediction.logits[np.newaxis])[0])
    return GoldenItem(item, prediction.output, score, tuple(float(value) for value in prediction.logits))


def _difference(item: GoldenItem, prediction: Prediction, *, same_isa: bool) -> str | None:
    if prediction.output != item.output:
        return f"it answers {prediction.output!r} instead of {item.output!r}"
    if not same_isa or prediction.logits is None:
        return None
    expected = np.array(item.logits, dtype=np.float64)
    tolerance = max(ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE * float(np.ptp(expected)))
    worst = float(np.max(np.abs(prediction.logits - expected)))
    # Written so that a NaN counts as a difference.
    return None if worst <= tolerance else f"a logit differs by {worst:.4g}, {tolerance:.4g} is allowed"
