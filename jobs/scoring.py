"""Scores of predictions, each as the serving path has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import Example, Prediction
from edgewise.router.fitted import Fitted
from edgewise.router.signals import score_of


def edge_scores(predictions: Sequence[Prediction], signal: str, fitted: Fitted | None = None) -> NDArray[np.float64]:
    """Scores of predictions, each as the router has it, shape (n,); NaN where a prediction has none.

    Raises:
        ConfigError: There is no such signal.
    """
    return np.array([score_of(prediction, signal, fitted) for prediction in predictions], dtype=np.float64)


def served_scores(
    examples: Sequence[Example], predictions: Sequence[Prediction], signal: str, fitted: Fitted | None
) -> NDArray[np.float64]:
    """The same with NaN for an item that serving escalates as too complex: it is never local, and counts in n."""
    scores = edge_scores(predictions, signal, fitted)
    if fitted is not None and fitted.complexity is not None:
        hopeless = np.array([fitted.complexity.is_too_complex(example.input) for example in examples], dtype=bool)
        scores[hopeless] = np.nan
    return scores
