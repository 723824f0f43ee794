"""Complexity of a text before the edge model runs: the predicted probability that the edge would be wrong. Pure.

Owns the features (length, lexical ones, hashed words and pairs of words, hashed attributes) and a linear predictor over
them. What it turns away is escalated, so it costs local answers and never the promise. Anything but a text is never too
complex.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import FloatArray, Input
from edgewise.router.saying import asked_by

WORD_BUCKETS = 4096
ATTRIBUTE_BUCKETS = 1024
MOST_WORDS = 256
"""Words of a text that are read."""

_MOST_CHARACTERS = 16 * MOST_WORDS
_WORDS = re.compile(r"\w+")
_DIGITS = re.compile(r"\d")
_MARKS = re.compile(r"[^\w\s]")

LEXICAL = ("log_characters", "log_words", "word_length", "distinct", "digits", "marks", "question", "lines")
"""Logarithmic numbers of characters and of words, the words' mean length, the share of distinct ones; shares of digits
and of marks among the characters, whether it asks, the logarithmic number of lines; all of the part that is read."""


@dataclass(frozen=True)
class Features:
    """A text as numbers.

    Attributes:
        buckets: Bucket of each word and each pair of neighbouring words, in the text's order, with repetitions.
        lexical: `LEXICAL`, shape (8,).
    """

    buckets: Sequence[int]
    lexical: Sequence[float]


@dataclass(frozen=True, eq=False)
class Complexity:
    """Log-odds that the edge is wrong: a line over lexical features, hashed words and hashed attributes.

    Attributes:
        words: What the root of a bucket's count adds, over the length of all of a text's, shape (4096,); the inverse
            document frequency is folded in.
        rarity: Square of each bucket's inverse document frequency, shape (4096,), from which that length comes.
        lexical: Weights of `LEXICAL`, shape (8,).
        intercept: The intercept.
        cut: Probability above which a text is too complex; inf where no cut keeps the stated precision.
        attributes: Names of the request attributes that count, such as "subject".
        attribute_weights: Weights of the hashed "name=value", shape (1024,).
    """

    words: FloatArray
    rarity: FloatArray
    lexical: FloatArray
    intercept: float
    cut: float
    attributes: tuple[str, ...]
    attribute_weights: FloatArray

    def score(self, text: str, attributes: Mapping[str, str] | None = None) -> float:
        """Predicted probability that the edge is wrong, in [0, 1]."""
        features = features_of(text)
        log_odds = self.intercept
        for weight, feature in zip(self.lexical.tolist(), features.lexical, strict=True):
            log_odds += weight * feature
        if features.buckets:
            counts = np.bincount(features.buckets, minlength=WORD_BUCKETS).astype(np.float64)
            length = float(counts @ self.rarity)
            if length > 0:
                log_odds += float(np.sqrt(counts) @ self.words) / math.sqrt(length)
        for name in self.attributes:
            value = (attributes or {}).get(name)
            if value is not None:
                log_odds += float(self.attribute_weights[attribute_bucket(name, value)])
        return 0.5 * (1.0 + math.tanh(0.5 * log_odds))

    def is_too_complex(self, inputs: Input, attributes: Mapping[str, str] | None = None) -> bool:
        """Whether the edge model need not be asked."""
        text = asked_by(inputs)
        return text is not None and self.cut < math.inf and self.score(text, attributes) > self.cut


def features_of(text: str) -> Features:
    """Features of a text's first 256 words; the work is bounded however long it is."""
    head = text[:_MOST_CHARACTERS]
    words = _WORDS.findall(head.lower())[:MOST_WORDS]
    hashes = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words]
    mask = WORD_BUCKETS - 1
    # A pair's bucket: two hashes mixed by a multiplication, which costs less than to hash the text of the pair.
    pairs = [(first * 0x9E3779B1 + second) >> 7 & mask for first, second in pairwise(hashes)]
    letters = sum(map(len, words))
    count, characters = max(len(words), 1), max(len(head), 1)
    lexical = (
        math.log1p(len(head)),
        math.log1p(len(words)),
        letters / count,
        len(set(hashes)) / count,
        len(_DIGITS.findall(head)) / characters,
        len(_MARKS.findall(head)) / characters,
        1.0 if "?" in head else 0.0,
        math.log1p(head.count("\n")),
    )
    return Features([number & mask for number in hashes] + pairs, lexical)


def attribute_bucket(name: str, value: str) -> int:
    """Bucket of one attribute."""
    return zlib.crc32(f"{name}={value}".encode("utf-8", "surrogatepass")) & (ATTRIBUTE_BUCKETS - 1)


def attribute_buckets(attributes: Sequence[Mapping[str, str]], names: Sequence[str]) -> list[list[int]]:
    """Buckets of each item's attributes of the given names."""
    return [[attribute_bucket(name, item[name]) for name in names if name in item] for item in attributes]


def cut_for_precision(scores: FloatArray, wrong: NDArray[np.bool_], precision: float, *, least: int = 20) -> float:
    """The lowest score above which at least a share `precision` of the items is wrong; inf where there is none.

    Args:
        scores: Shape (n,), of predictors that did not see the item.
        wrong: Shape (n,).
        precision: In (0, 1].
        least: Items that have to lie above a cut: a few say little.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    above = np.arange(1, len(ranked) + 1)
    # A cut lies between two different scores: just below the last item that it turns away.
    ends = np.append(ranked[1:] < ranked[:-1], True)
    good = ends & (above >= least) & (np.cumsum(wrong[order]) >= precision * above)
    if not good.any():
        return math.inf
    last = int(np.flatnonzero(good)[-1])
    below = ranked[last + 1] if last + 1 < len(ranked) else -math.inf
    return float(below)
