"""Confidence signals: logits in, one score an item out, larger is more confident. Pure and vectorised.

Owns the one way from a prediction to its score, so that what is certified is what is routed by. Owns no threshold: what
a score is worth is the certificate's to say.
"""

from __future__ import annotations

import math

import numpy as np

from edgewise.contracts import FloatArray, Prediction, Signal
from edgewise.errors import ConfigError


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities of rows of logits, shape (n, classes), in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def margin(logits: FloatArray) -> FloatArray:
    """Largest minus second largest probability, shape (n,), in [0, 1]; 1 where there is only one class."""
    probabilities = softmax(logits)
    if probabilities.shape[1] == 1:
        return np.ones(len(probabilities))
    top_two = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(top_two[:, 1] - top_two[:, 0])


def max_probability(logits: FloatArray) -> FloatArray:
    """Largest probability (Hendrycks & Gimpel 2017), shape (n,), in (0, 1]."""
    return np.asarray(softmax(logits).max(axis=1))


def negative_entropy(logits: FloatArray) -> FloatArray:
    """Minus the entropy of the probabilities in nats, shape (n,), in [-log(classes), 0]."""
    probabilities = softmax(logits)
    logarithms = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    return np.asarray((probabilities * logarithms).sum(axis=1))


SIGNALS: dict[str, Signal] = {"margin": margin, "max_probability": max_probability, "entropy": negative_entropy}
"""Every signal by the name that certificates and bundles carry."""


def signal_named(name: str) -> Signal:
    """The signal called `name`.

    Raises:
        ConfigError: There is none.
    """
    try:
        return SIGNALS[name]
    except KeyError:
        raise ConfigError(f"There is no signal {name!r}.", f"Choose one of: {', '.join(sorted(SIGNALS))}.") from None


def score_of(prediction: Prediction, signal: str) -> float:
    """The confidence in one prediction, by the signal of that name; NaN, which always escalates, where there is none.

    A margin that the graph itself computed is taken as it is. An input out of distribution has no score, and neither
    has an answer without logits.

    Raises:
        ConfigError: There is no such signal.
    """
    score = signal_named(signal)
    if prediction.out_of_distribution or prediction.logits is None:
        return math.nan
    if score is margin and prediction.margin is not None:
        return prediction.margin
    return float(score(prediction.logits[np.newaxis])[0])
