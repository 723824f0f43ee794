"""MAPIE's risk control (mapie 1.6), asked the router's question. Owns how it is asked; decides and measures nothing.

`BinaryClassificationController` calibrates a threshold on one score: predicted 1 is answered locally. Agreement is a
`BinaryRisk` over all items, selective risk is its "precision", and of what it certifies it picks what answers most. Its
thresholds are its own default, 0 to 0.99 by 0.01, so scores must lie in [0, 1]. None of its risks takes a loss of -1,
so the accuracy target has no answer.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from mapie.risk_control import BinaryClassificationController, BinaryRisk
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0, 0.99, 100)


def _everywhere(truth: NDArray[Any], local: NDArray[Any]) -> NDArray[np.bool_]:
    return np.ones(len(truth), dtype=bool)


def _local(truth: NDArray[Any], local: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(local == 1)


def _lost(truth: NDArray[Any], local: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray((truth == 1) & (local == 1))


_RISKS = {"agreement": BinaryRisk(_lost, _everywhere, False), "selective": BinaryRisk(_lost, _local, False)}
_LOCAL_SHARE = BinaryRisk(_local, _everywhere, True)


def mapie(
    scores: NDArray[Any], losses: NDArray[Any], *, target: str, alpha: float, delta: float, correction: str
) -> float | None:
    """The threshold that MAPIE picks; None where it has no such risk.

    Args:
        scores: In [0, 1], shape (n,).
        losses: 0 and 1, shape (n,).
        target: "agreement" or "selective"; "accuracy" has no answer.
        alpha: Bound on the risk.
        delta: Probability with which it may fail.
        correction: Its `fwer_method`: "bonferroni_holm", its default, or "fixed_sequence", here from the top down.
    """
    if target not in _RISKS:
        return None
    controller = BinaryClassificationController(
        lambda given: np.column_stack([1 - given, given]),
        _RISKS[target],
        alpha,
        1 - delta,
        _LOCAL_SHARE,
        THRESHOLDS[::-1] if correction == "fixed_sequence" else THRESHOLDS,
        correction,
    )
    with warnings.catch_warnings():
        # It warns where nothing certifies; that is an answer.
        warnings.simplefilter("ignore")
        controller.calibrate(scores, losses)
    best = controller.best_predict_param
    # It answers locally from its threshold on, we above ours.
    return math.inf if best is None else math.nextafter(float(best), -math.inf)
