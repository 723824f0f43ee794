"""How a candidate's answers compare with the baseline's and with the truth. Pure.

Owns what an answer of each kind of model is worth, and the formulas of a `Quality`. Bounds nothing (`bounds.py`) and
has no opinion on what a good value is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.bundle import Kind
from edgewise.contracts import FloatArray
from edgewise.errors import DataError
from edgewise.quantize.answers import Answers, per_item
from edgewise.quantize.items import Indices
from edgewise.quantize.statistics import Quality
from edgewise.router.ranking import auroc
from edgewise.router.signals import margin, softmax

Truth: TypeAlias = Indices | Sequence[Indices] | None
"""What is right. Of a classifier the label's index of each item, shape (n,); of a tagger one array an item, a tag's
index for each word; of an embedder None, since the baseline is; of a generator None, since its answers name the texts'
own tokens."""

Bools: TypeAlias = NDArray[np.bool_]

BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""

# Two cosines that differ by less are equal: float32 sums round differently in one graph and another.
_SAME_COSINE = 1e-6
_CHUNK = 256


class Compared(NamedTuple):
    """A candidate beside the baseline.

    Attributes:
        kind: The kind of model.
        quality: The figures.
        worth: What each item's answer is worth, shape (n,): in [0, 1], of an embedder in [-1, 1].
        baseline_worth: The baseline's; of an embedder 1.
    """

    kind: Kind
    quality: Quality
    worth: FloatArray
    baseline_worth: FloatArray


def compare(kind: Kind, found: Answers, baseline: Answers, truth: Truth) -> Compared:
    """Compare a candidate's answers with the baseline's on the same items, at least one.

    Args:
        kind: The kind of model; it says what the answers hold, see `answers.py`.
        found: The candidate's answers, all finite.
        baseline: The baseline's.
        truth: What is right.

    Raises:
        DataError: Answers and truth are not of the same items.
    """
    return _COMPARISONS[kind](found, baseline, truth)


def calibration_error(confidence: FloatArray, right: Bools) -> float:
    """Expected calibration error (Naeini, Cooper & Hauskrecht 2015; Guo et al. 2017, equation 3).

    Over 15 bins of equal width, the mean of |share right - mean confidence| weighted by the bin's items.

    Args:
        confidence: Probability that the model gives its own answer, shape (n,), in [0, 1], n at least 1.
        right: Whether that answer is right, shape (n,).
    """
    # A bin is open below and closed above, as in Guo et al.; a confidence of 0 joins the first.
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _classifier(found: Answers, baseline: Answers, truth: Truth) -> Compared:
    logits, labels = found["logits"], np.asarray(truth)
    answers, expected = logits.argmax(axis=1), baseline["logits"].argmax(axis=1)
    _require_same({"the candidate": len(answers), "the baseline": len(expected), "the truth": len(labels)}, "items")
    right = answers == labels
    worth, baseline_worth = right.astype(np.float64), (expected == labels).astype(np.float64)
    quality = msgspec.structs.replace(
        _counted(worth, baseline_worth, answers != expected),
        calibration_error=calibration_error(softmax(logits).max(axis=1), right),
        auroc=auroc(margin(logits), ~right),
    )
    return Compared("classifier", quality, worth, baseline_worth)


def _tagger(found: Answers, baseline: Answers, truth: Truth) -> Compared:
    rows = per_item(found["logits"], found["words"])
    tags = [row.argmax(axis=1) for row in rows]
    expected = [row.argmax(axis=1) for row in per_item(baseline["logits"], baseline["words"])]
    right = _right_words(tags, truth)
    worth, baseline_worth = _shares(right, truth), _shares(_right_words(expected, truth), truth)
    every_word_right = worth == 1.0
    least_sure = np.array([margin(row).min() if len(row) else 0.0 for row in rows])
    differs = [not np.array_equal(one, other) for one, other in zip(tags, expected, strict=True)]
    quality = msgspec.structs.replace(
        _counted(worth, baseline_worth, np.array(differs)),
        calibration_error=calibration_error(softmax(found["logits"]).max(axis=1), np.concatenate(right)),
        auroc=auroc(least_sure, ~every_word_right),
    )
    return Compared("tagger", quality, worth, baseline_worth)


def _embedder(found: Answers, baseline: Answers, truth: Truth) -> Compared:
    ours, theirs = _unit_rows(found["embedding"]), _unit_rows(baseline["embedding"])
    _require_same({"the candidate": len(ours), "the baseline": len(theirs)}, "items")
    cosines = np.clip((ours * theirs).sum(axis=1), -1.0, 1.0)
    worth = np.where(cosines > 1.0 - _SAME_COSINE, 1.0, cosines)
    quality = msgspec.structs.replace(
        _counted(worth, np.ones(len(worth)), _other_neighbours(ours, theirs)),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
    )
    return Compared("embedder", quality, worth, np.ones(len(worth)))


def _generator(found: Answers, baseline: Answers, truth: Truth) -> Compared:
    _require_same({"the candidate": len(found["top"]), "the baseline": len(baseline["top"])}, "tokens")
    if not np.array_equal(found["targets"], baseline["targets"]):
        raise DataError(
            "The candidate's tokens are not the baseline's, so their likelihoods cannot be compared.",
            "Build both with the same tokenizer.",
        )
    worth, baseline_worth = (_said_next(answers) for answers in (found, baseline))
    quality = msgspec.structs.replace(
        _counted(worth, baseline_worth, found["top"] != baseline["top"]),
        nll=float(found["nll"].mean()),
        baseline_nll=float(baseline["nll"].mean()),
        kld=_divergence(found["logprobs"], baseline["logprobs"]) if "logprobs" in found else None,
    )
    return Compared("generator", quality, worth, baseline_worth)


_COMPARISONS: Mapping[Kind, Callable[[Answers, Answers, Truth], Compared]] = {
    "classifier": _classifier,
    "tagger": _tagger,
    "embedder": _embedder,
    "generator": _generator,
}


def _counted(worth: FloatArray, baseline_worth: FloatArray, flipped: Bools) -> Quality:
    """What every kind has; `flipped` is a mean over items, or over tokens."""
    return Quality(
        n=len(worth),
        accuracy=float(worth.mean()),
        baseline_accuracy=float(baseline_worth.mean()),
        drop=float((baseline_worth - worth).sum() / len(worth)),
        lost=int((worth < baseline_worth).sum()),
        won=int((worth > baseline_worth).sum()),
        flips=float(flipped.mean()),
    )


def _right_words(answers: Sequence[NDArray[Any]], truth: Truth) -> list[Bools]:
    """Of each item, which of its words are right; an answer may end early where the text was cut."""
    rows = _rows_of(truth)
    _require_same({"the answers": len(answers), "the truth": len(rows)}, "items")
    for number, (answer, row) in enumerate(zip(answers, rows, strict=True), start=1):
        if len(answer) > len(row):
            raise DataError(
                f"Item {number} has {len(row)} words by its truth, and {len(answer)} were answered.",
                "Give one tag for each word of a text.",
            )
    return [answer == row[: len(answer)] for answer, row in zip(answers, rows, strict=True)]


def _shares(right: Sequence[Bools], truth: Truth) -> FloatArray:
    """The share of each item's words that is right; one that was not answered is not."""
    return np.array([part.sum() / max(1, len(row)) for part, row in zip(right, _rows_of(truth), strict=True)])


def _said_next(answers: Answers) -> FloatArray:
    """Of each text, the share of its tokens that is the likeliest one in its place; 0 of a text without tokens."""
    right = per_item(answers["top"] == answers["targets"], answers["tokens"])
    return np.array([part.sum() / max(1, len(part)) for part in right])


def _rows_of(truth: Truth) -> Sequence[Indices]:
    if truth is None:
        raise DataError("Accuracy needs the right answers, and there are none.", "Give data with labels.")
    return list(truth)


def _unit_rows(vectors: FloatArray) -> FloatArray:
    """Rows of length 1, in float64; a row of zeros stays one."""
    rows = vectors.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0))


def _other_neighbours(ours: FloatArray, theirs: FloatArray) -> Bools:
    """Whether the item nearest to each one, of all others, is not (one of) the nearest by the baseline; shape (n,)."""
    count = len(ours)
    other = np.zeros(count, dtype=np.bool_)
    for start in range(0, count if count > 1 else 0, _CHUNK):
        own = np.arange(start, min(start + _CHUNK, count))
        near, reference = ours[own] @ ours.T, theirs[own] @ theirs.T
        for similarities in (near, reference):
            similarities[np.arange(len(own)), own] = -np.inf
        chosen = reference[np.arange(len(own)), near.argmax(axis=1)]
        other[own] = chosen < reference.max(axis=1) - _SAME_COSINE
    return other


def _divergence(found: FloatArray, baseline: FloatArray) -> float:
    """Mean over tokens of KL(baseline || found) in nats; rows of log-probabilities, shape (k, vocabulary)."""
    _require_same({"the candidate": len(found), "the baseline": len(baseline)}, "sampled tokens")
    total = 0.0
    # Row by row: a vocabulary is large, and float16 is too coarse to add up in.
    for ours, theirs in zip(found, baseline, strict=True):
        possible = np.isfinite(theirs)
        expected = theirs[possible].astype(np.float64)
        total += float((np.exp(expected) * (expected - ours[possible].astype(np.float64))).sum())
    return max(0.0, total / max(1, len(found)))


def _require_same(lengths: Mapping[str, int], unit: str) -> None:
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{who} has {count}" for who, count in lengths.items())
        raise DataError(f"Answers cannot be compared: {told} {unit}.", "Measure all of them on the same data.")
