"""Confidence signals: one score an item, larger is more confident. Pure, and vectorised over the last axis.

Owns the names of the signals with their options ("max_probability:temperature=1.7"), and the one way from a prediction
to its score, so that what is certified is what is routed by. Owns no threshold: what a score is worth is the
certificate's to say. What was fitted to data is in `fitted.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgewise.contracts import FloatArray, Prediction, Signal
from edgewise.errors import ConfigError

if TYPE_CHECKING:
    from edgewise.router.fitted import Fitted

COMBINED = "combined"
"""The signal that is fitted on the tuning part; it takes classifiers and generators."""


def softmax(logits: FloatArray, *, temperature: float = 1.0) -> FloatArray:
    """Probabilities of logits of shape (…, classes), in float64.

    Args:
        logits: The logits.
        temperature: They are divided by it first (Guo et al. 2017, equation 9).
    """
    shares = _shifted(logits, temperature)
    np.exp(shares, out=shares)
    shares /= np.add.reduce(shares, axis=-1, keepdims=True)
    return shares


def margin(logits: FloatArray, *, temperature: float = 1.0) -> FloatArray:
    """Largest minus second largest probability, in [0, 1]; 1 where there is only one class."""
    shares = softmax(logits, temperature=temperature)
    if shares.shape[-1] == 1:
        return np.ones(shares.shape[:-1])
    shares.partition(-2, axis=-1)
    return np.asarray(shares[..., -1] - shares[..., -2])


def max_probability(logits: FloatArray, *, temperature: float = 1.0) -> FloatArray:
    """Largest probability (Hendrycks & Gimpel 2017), in (0, 1]."""
    return np.asarray(np.maximum.reduce(softmax(logits, temperature=temperature), axis=-1))


def negative_entropy(logits: FloatArray, *, temperature: float = 1.0) -> FloatArray:
    """Minus the entropy of the probabilities in nats, in [-log(classes), 0]."""
    shares = softmax(logits, temperature=temperature)
    logarithms = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    # A NaN is not above 0; it comes in again by the product.
    logarithms *= shares
    return np.asarray(np.add.reduce(logarithms, axis=-1))


def energy(logits: FloatArray, *, temperature: float = 1.0) -> FloatArray:
    """Negative free energy, T log sum exp(logits / T) (Liu et al. 2020, equation 4, its sign turned)."""
    shifted = _shifted(logits, temperature)
    highest = np.maximum.reduce(logits, axis=-1).astype(np.float64)
    return np.asarray(highest + temperature * np.log(np.add.reduce(np.exp(shifted, out=shifted), axis=-1)))


def max_logit(logits: FloatArray) -> FloatArray:
    """Largest logit (Hendrycks et al. 2022)."""
    return np.asarray(np.maximum.reduce(logits, axis=-1).astype(np.float64))


def pnorm(logits: FloatArray, *, p: float = 4.0) -> FloatArray:
    """Largest of the centred logits over their p-norm (Cattelan & Silva 2024), in [0, 1]; 0 where all are the same."""
    centred = logits.astype(np.float64, order="C")
    centred -= np.add.reduce(centred, axis=-1, keepdims=True) / centred.shape[-1]
    highest = np.maximum.reduce(centred, axis=-1, keepdims=True)
    sizes = np.abs(centred)
    largest = np.maximum.reduce(sizes, axis=-1, keepdims=True)
    # Over the largest size first: the p-th power of a logit may be beyond what a float holds. NaN is not 0 and stays.
    scale = np.where(largest == 0, 1.0, largest)
    sizes /= scale
    # By the ufunc: the operator takes another routine for a single number than for an array, and differs by a bit.
    norm = np.power(np.add.reduce(np.power(sizes, p, out=sizes), axis=-1), 1.0 / p)
    return np.asarray((highest / scale)[..., 0] / np.where(norm == 0, 1.0, norm))


def _shifted(logits: FloatArray, temperature: float) -> FloatArray:
    """Logits over the temperature, the largest of each row taken to 0; a fresh array in float64.

    In C order: sums go along a row in the same steps whether there is one row or many, so that a score never depends on
    the items beside its own.
    """
    shifted = logits.astype(np.float64, order="C")
    shifted -= np.maximum.reduce(shifted, axis=-1, keepdims=True)
    if temperature != 1.0:
        shifted /= temperature
    return shifted


SIGNALS: dict[str, Signal] = {
    "margin": margin,
    "max_probability": max_probability,
    "entropy": negative_entropy,
    "energy": energy,
    "max_logit": max_logit,
    "pnorm": pnorm,
}
"""Every signal of a classifier's logits by the name that certificates and bundles carry."""


def mean_logprob(prediction: Prediction, *, first: float = math.inf) -> float:
    """Mean log-probability of the generated tokens, in nats.

    Args:
        prediction: The text, or its beginning.
        first: Tokens that are read, from the first on.
    """
    logprobs = _logprobs(prediction, first)
    return math.nan if logprobs is None else float(logprobs.mean())


def low_logprob(prediction: Prediction, *, first: float = math.inf) -> float:
    """The 10 % quantile of the log-probabilities of the generated tokens, in nats (Gupta et al. 2024).

    Args:
        prediction: The text, or its beginning.
        first: Tokens that are read, from the first on.
    """
    logprobs = _logprobs(prediction, first)
    return math.nan if logprobs is None else low_quantile(logprobs)


def low_quantile(values: FloatArray) -> float:
    """The 10 % quantile of at least one value, between two of them linearly; as numpy's, in a tenth of its time."""
    ranked = np.sort(values)
    place = 0.1 * (len(ranked) - 1)
    below = int(place)
    low, high = float(ranked[below]), float(ranked[min(below + 1, len(ranked) - 1)])
    # numpy sorts NaN to the end; a text with one has no quantile.
    return math.nan if math.isnan(ranked[-1]) else low + (place - below) * (high - low)


def first_margin(prediction: Prediction, *, first: float = 1) -> float:
    """Largest minus second largest probability of the first generated token.

    Args:
        prediction: The text, or its beginning.
        first: Tokens after which a gate looks; the score is the same after any number.
    """
    if prediction.token_logprobs is None or prediction.margin is None:
        return math.nan
    return prediction.margin


def _logprobs(prediction: Prediction, first: float) -> FloatArray | None:
    """The log-probabilities of the first tokens in float64; None where there are none."""
    found = prediction.token_logprobs
    if found is None or not len(found):
        return None
    return np.asarray(found if first >= len(found) else found[: int(first)], dtype=np.float64)


GENERATOR_SIGNALS: Mapping[str, Callable[..., float]] = {
    "mean_logprob": mean_logprob,
    "low_logprob": low_logprob,
    "first_margin": first_margin,
}
"""Every signal of a generated text by its name."""


class Range(NamedTuple):
    """What an option of a signal may be, both ends included."""

    low: float
    high: float


_TEMPERATURE = {"temperature": Range(0.01, 100.0)}
_FIRST = {"first": Range(1, 4096)}
_COUNTS = frozenset({"first"})
"""Options that are whole numbers."""

OPTIONS: Mapping[str, Mapping[str, Range]] = {
    "margin": _TEMPERATURE,
    "max_probability": _TEMPERATURE,
    "entropy": _TEMPERATURE,
    "energy": _TEMPERATURE,
    "pnorm": {"p": Range(1.0, 100.0)},
    "mean_logprob": _FIRST,
    "low_logprob": _FIRST,
    "first_margin": _FIRST,
}
"""Options by signal; a signal that is not listed has none."""


def signal_named(text: str) -> Signal:
    """The signal of logits that a text such as "max_probability:temperature=1.7" names.

    Raises:
        ConfigError: There is none of that name, it has no such option, or the value is out of its range.
    """
    name, options = _parsed(text)
    if name not in SIGNALS:
        raise _unknown(name, SIGNALS)
    # A Signal promises logits alone; what options it takes besides stands in OPTIONS.
    signal: Callable[..., FloatArray] = SIGNALS[name]
    return partial(signal, **options) if options else SIGNALS[name]


def check_signal(text: str, fitted: Fitted | None = None) -> None:
    """Hold the name of any signal, also of generated texts and the combined one, to what there is.

    Args:
        text: The signal's name and options.
        fitted: What was fitted on the tuning part, or None.

    Raises:
        ConfigError: There is no such signal or option, or "combined" was not fitted.
    """
    name, _ = _parsed(text)
    if name == COMBINED:
        if fitted is None or fitted.combination is None:
            raise _not_fitted()
    elif name not in SIGNALS and name not in GENERATOR_SIGNALS:
        raise _unknown(name, (*SIGNALS, *GENERATOR_SIGNALS, COMBINED))


def tokens_read(signal: str) -> int | None:
    """Tokens from the first on that a signal of a generated text reads; None where it reads all of them.

    So many of its tokens, or the whole text where it has fewer, give the score of the whole text.

    Raises:
        ConfigError: It has no such option, or the value is out of its range.
    """
    name, options = _parsed(signal)
    first = options.get("first", 1.0 if name == "first_margin" else None)
    return None if first is None else int(first)


def score_of(prediction: Prediction, signal: str, fitted: Fitted | None = None) -> float:
    """The confidence in one prediction; NaN, which always escalates, where there is none.

    A margin that the graph itself computed is taken as it is. An input out of distribution has no score, whether the
    model says so or the distance to the tuning part; neither has an answer without what the signal reads.

    Args:
        prediction: What the edge model says.
        signal: The signal's name and options.
        fitted: What was fitted on the tuning part; its neighbours veto where they have a cut.

    Raises:
        ConfigError: There is no such signal, or "combined" was not fitted.
    """
    check_signal(signal, fitted)
    if prediction.out_of_distribution:
        return math.nan
    if signal == COMBINED and fitted is not None:
        return _combined(prediction, fitted)
    if is_foreign(prediction, fitted):
        return math.nan
    name, options = _parsed(signal)
    if name in GENERATOR_SIGNALS:
        return GENERATOR_SIGNALS[name](prediction, **options)
    if prediction.logits is None:
        return math.nan
    if signal == "margin" and prediction.margin is not None:
        return prediction.margin
    return float(signal_named(signal)(prediction.logits))


def scorer(signal: str, fitted: Fitted | None = None) -> Callable[[Prediction], float]:
    """`score_of` of one signal, its name read once: right after a prediction, with cold caches, that is a third of it.

    Raises:
        ConfigError: There is no such signal, or "combined" was not fitted.
    """
    check_signal(signal, fitted)
    if _parsed(signal)[0] not in SIGNALS or (fitted is not None and fitted.neighbours is not None):
        return partial(score_of, signal=signal, fitted=fitted)
    of_logits, is_margin = signal_named(signal), signal == "margin"

    def score(prediction: Prediction) -> float:
        if prediction.out_of_distribution or prediction.logits is None:
            return math.nan
        if is_margin and prediction.margin is not None:
            return prediction.margin
        return float(of_logits(prediction.logits))

    return score


def _combined(prediction: Prediction, fitted: Fitted) -> float:
    """The score of the combination, the neighbours looked up once for the veto and the features."""
    combination, neighbours, embedding = fitted.combination, fitted.neighbours, prediction.embedding
    if combination is None:
        return math.nan
    if not combination.reads_neighbours:
        return math.nan if is_foreign(prediction, fitted) else combination.score(prediction)
    if neighbours is None or embedding is None or prediction.logits is None:
        return math.nan
    around = neighbours.around(embedding, int(prediction.logits.argmax()))
    return combination.score(prediction, around) if around.distance <= neighbours.cut else math.nan


def is_foreign(prediction: Prediction, fitted: Fitted | None = None) -> bool:
    """Whether the input is out of distribution: by the model's own word, or by its distance to the tuning part."""
    if prediction.out_of_distribution:
        return True
    if fitted is None or fitted.neighbours is None or prediction.embedding is None:
        return False
    return fitted.neighbours.is_foreign(prediction.embedding)


@lru_cache(maxsize=256)
def _parsed(text: str) -> tuple[str, Mapping[str, float]]:
    """Name and options; whether there is a signal of that name is not asked, since more may be added."""
    name, *parts = text.split(":")
    known = OPTIONS.get(name, {})
    options: dict[str, float] = {}
    for part in parts:
        option, _, value = part.partition("=")
        if option not in known:
            choices = f"Choose from: {', '.join(known)}." if known else "It has none."
            raise ConfigError(f"The signal {name!r} has no option {option!r}.", choices)
        if option in options:
            raise ConfigError(f"The option {option!r} of {text!r} is named twice.", "Name it once.")
        options[option] = _number(name, option, value, known[option])
    return name, MappingProxyType(options)


def _number(name: str, option: str, value: str, allowed: Range) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    is_count = option in _COUNTS
    if not allowed.low <= number <= allowed.high or (is_count and not number.is_integer()):
        raise ConfigError(
            f"The option {option!r} of the signal {name!r} is {value!r}.",
            f"Give a {'whole ' if is_count else ''}number from {allowed.low:g} to {allowed.high:g}.",
        )
    return number


def _unknown(name: str, choices: Mapping[str, object] | tuple[str, ...]) -> ConfigError:
    return ConfigError(f"There is no signal {name!r}.", f"Choose one of: {', '.join(sorted(choices))}.")


def _not_fitted() -> ConfigError:
    return ConfigError(
        f"The signal {COMBINED!r} has to be fitted on a tuning part, and was not.",
        "Fit it, or choose another signal.",
    )
