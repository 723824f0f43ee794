"""Which two texts say the same: the judges of a certificate for generated text, by name. Pure, but for a user's own.

Owns the names with their options ("similarity:threshold=0.9") and what a certificate writes of them. How a text is read
is in `saying.py`. A judge holds two texts, the edge's and the cloud's; a doubt is no agreement.

A certificate is a file that anybody may have written: `judge_of` imports nothing because of it, unless the operator has
named the same function.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from edgewise.contracts import FloatArray, LocalModel
from edgewise.errors import CertificateError, ConfigError, InputError
from edgewise.router.agreeing import Judge
from edgewise.router.saying import chosen_letter, last_number, normalised

EXACT, CHOICE, NUMBER, SIMILARITY, PYTHON = "exact", "choice", "number", "similarity", "python"

_DEFAULT_THRESHOLD = 0.9
_DIGEST = re.compile(r"(?P<name>.*)@(?P<digest>sha256:[0-9a-f]{64})")


def same_wording(edge: str, cloud: str) -> bool:
    """Whether two texts are the same after normalisation."""
    return normalised(edge) == normalised(cloud)


def same_choice(edge: str, cloud: str) -> bool:
    """Whether two texts settle on the same letter; one that settles on none agrees with nothing, not with itself."""
    letter = chosen_letter(edge)
    return letter is not None and letter == chosen_letter(cloud)


def same_number(edge: str, cloud: str) -> bool:
    """Whether two texts end with the same number; one without a number agrees with nothing, not with itself."""
    number = last_number(edge)
    return number is not None and number == last_number(cloud)


JUDGES: Mapping[str, str] = {
    EXACT: "the same text, but for case, blanks and outer punctuation",
    CHOICE: "the same letter of a multiple-choice question",
    NUMBER: "the same last number",
    SIMILARITY: "vectors of an embedding model that point the same way (threshold=0.9)",
    PYTHON: "what your own python:MODULE:FUNCTION says",
}
"""Every judge by its name, and when two texts agree by it."""

_BUILT_IN: Mapping[str, Judge] = {EXACT: same_wording, CHOICE: same_choice, NUMBER: same_number}


def check_judge(name: str) -> None:
    """Hold the name of a judge to what there is, and import nothing.

    Raises:
        ConfigError: There is no such judge, or an option is not one.
    """
    kind, rest = _parsed(_bare(name))
    if kind == SIMILARITY:
        _threshold(rest)
    elif kind == PYTHON:
        _place(rest)
    elif rest:
        raise ConfigError(f"The judge {kind!r} has no option {rest!r}.", "It has none.")


def judge_named(name: str, *, embedder: LocalModel | None = None) -> Judge:
    """The judge of a name, for whoever asked for it by that name.

    "python:MODULE:FUNCTION" is imported, so never pass a name that came with a file: `judge_of` is for those.

    Args:
        name: "exact", "choice", "number", "similarity:threshold=0.9" or "python:package.module:function"; as a
            certificate has it, with a digest behind, it must also be the very same judge.
        embedder: The embedding model of "similarity".

    Raises:
        ConfigError: There is no such judge, its option makes no sense, or what it needs is missing.
        CertificateError: The embedding model or the function is another than the one that was certified with.
    """
    check_judge(name)
    bare = _bare(name)
    kind, rest = _parsed(bare)
    if kind in _BUILT_IN:
        return _BUILT_IN[kind]
    if bare != name and certified_name(bare, embedder=embedder) != name:
        raise CertificateError(
            f"The judge {bare!r} is another here than the one that was certified with.",
            "Bring back what it was, or certify anew: edgewise certify BUNDLE.",
        )
    if kind == SIMILARITY:
        return partial(_similar, model=_needed(embedder), threshold=_threshold(rest))
    return partial(_asked, function=_imported(rest), name=bare)


def judge_of(certified: str, *, asked: str = "", embedder: LocalModel | None = None) -> Judge:
    """The judge that a certificate names.

    Args:
        certified: `Certificate.judge`.
        asked: What the operator's own configuration says; a function of Python is imported only where it stands here.
        embedder: The embedding model of "similarity".

    Raises:
        ConfigError: There is no such judge, it is not the one asked for, or what it needs is missing.
        CertificateError: The embedding model or the function is another than the one that was certified with.
    """
    check_judge(certified)
    bare = _bare(certified)
    if asked and canonical(asked) != bare:
        raise ConfigError(
            f"The certificate was issued with the judge {bare!r}, not {asked!r}.", f"Say judge = {bare!r}."
        )
    if _parsed(bare)[0] == PYTHON and not asked:
        raise ConfigError(
            f"The certificate names the judge {bare!r}, and no file but yours makes this process import code.",
            f"Say judge = {bare!r} in your configuration if it is yours.",
        )
    return judge_named(certified, embedder=embedder)


def canonical(name: str) -> str:
    """A judge's name with every option said and without a digest.

    Raises:
        ConfigError: There is no such judge, or an option is not one.
    """
    check_judge(name)
    bare = _bare(name)
    kind, rest = _parsed(bare)
    return f"{SIMILARITY}:threshold={_threshold(rest):g}" if kind == SIMILARITY else bare


def certified_name(name: str, *, embedder: LocalModel | None = None) -> str:
    """What a certificate writes of a judge: its canonical name, with a digest of what judges where that is not ours.

    Of "similarity" that is the embedding bundle's digest, of a function of Python that of its module's source, where
    there is a source.

    Raises:
        ConfigError: There is no such judge, or what it needs is missing.
    """
    told = canonical(name)
    kind, rest = _parsed(told)
    if kind == SIMILARITY:
        return f"{told}@{_needed(embedder).digest}"
    digest = _source_digest(_imported(rest)) if kind == PYTHON else None
    return f"{told}@{digest}" if digest else told


def _bare(name: str) -> str:
    match = _DIGEST.fullmatch(name)
    return match["name"] if match else name


def _parsed(name: str) -> tuple[str, str]:
    """Kind and what follows it."""
    kind, _, rest = name.partition(":")
    if kind in JUDGES:
        return kind, rest
    near = difflib.get_close_matches(kind, JUDGES, n=1)
    choices = f"Did you mean {near[0]!r}?" if near else f"Choose one of: {', '.join(JUDGES)}."
    raise ConfigError(f"There is no judge {kind!r}.", choices)


def _threshold(rest: str) -> float:
    if not rest:
        return _DEFAULT_THRESHOLD
    option, _, value = rest.partition("=")
    if option != "threshold":
        raise ConfigError(f"The judge {SIMILARITY!r} has no option {option!r}.", "Choose from: threshold.")
    try:
        threshold = float(value)
    except ValueError:
        threshold = float("nan")
    if not 0 < threshold <= 1:
        raise ConfigError(f"The threshold of {SIMILARITY!r} is {value!r}.", "Give a number above 0 and at most 1.")
    return threshold


def _needed(embedder: LocalModel | None) -> LocalModel:
    if embedder is None:
        raise ConfigError(f"The judge {SIMILARITY!r} needs an embedding model.", "Name its bundle: --judge-bundle.")
    return embedder


def _similar(edge: str, cloud: str, *, model: LocalModel, threshold: float) -> bool:
    """Whether the cosine of two vectors reaches the threshold; the same text always agrees with itself."""
    if edge == cloud:
        return True
    try:
        vectors = [np.asarray(found.output, dtype=np.float64) for found in model.predict([edge, cloud])]
    except InputError:
        # A text that the model cannot read, an empty one for example.
        return False
    return bool(_cosine(vectors[0], vectors[1]) >= threshold)


def _cosine(one: FloatArray, other: FloatArray) -> float:
    sizes = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one.dot(other)) / sizes if sizes > 0 else float("nan")


def _place(rest: str) -> tuple[str, str]:
    """Module and function."""
    module, _, function = rest.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"The judge 'python:{rest}' names no function.", "Give python:package.module:function.")
    return module, function


def _imported(rest: str) -> Callable[..., Any]:
    module, name = _place(rest)
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as e:  # a user's module may fail in any way
        raise ConfigError(
            f"The judge's module {module!r} cannot be imported: {type(e).__name__}: {e}.",
            "Make it importable, for example by PYTHONPATH.",
        ) from e
    if not callable(function):
        raise ConfigError(f"The module {module!r} has no function {name!r}.", "Give python:package.module:function.")
    return function  # type: ignore[no-any-return]


def _asked(edge: str, cloud: str, *, function: Callable[..., Any], name: str) -> bool:
    """What the user's function says; texts stay out of the message, since logs carry none."""
    try:
        said = function(edge, cloud)
    except Exception as e:  # a user's function may fail in any way
        raise CertificateError(f"The judge {name!r} failed: {type(e).__name__}.", "Correct the function.") from e
    if not isinstance(said, bool | np.bool_):
        raise CertificateError(
            f"The judge {name!r} returned {type(said).__name__}, not a bool.", "Correct the function."
        )
    return bool(said)


def _source_digest(function: Callable[..., Any]) -> str | None:
    """Digest of the source of the function's module: helpers beside it judge too."""
    try:
        module = inspect.getmodule(function)
        source = None if module is None else inspect.getsource(module)
    except (OSError, TypeError):
        return None
    return None if source is None else f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"
