"""Confidence signals: logits in, one score an item out, larger is more confident. Pure and vectorised.

Owns no threshold: what a score is worth is the certificate's to say.
"""

from __future__ import annotations

import numpy as np

from edgewise.contracts import FloatArray, Signal
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
