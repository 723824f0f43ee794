"""What the operations of a chat template make, and how long they take, at most.

Owns the bounds and the rules that count. A template comes with a bundle, and one line of it can ask for all memory, or
for ever, in a single call that holds the interpreter's lock. Which operations are counted is `sandbox`'s business.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

LIMIT = 4_000_000
"""Characters of a text, and items of a list, that a template makes at most; of a rendered conversation too."""

WORK = 256_000_000
"""Characters and items that one rendering makes in all, with those of every step between; a step counts as `STEP`."""

STEP = 250

_MAX_WIDTH, _MAX_BITS = 1000, 1 << 16
ITEM, DEPTH = 50, 100
_WIDTHS = frozenset({"center", "indent", "tojson", "batch", "slice", "round", "truncate"})
_TO_TEXT = frozenset(
    {"capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "replace", "safe", "string"}
    | {"striptags", "title", "trim", "truncate", "upper", "urlencode", "wordcount"}
)
_CONVERSION = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+))?")
_NESTED = re.compile(r":[^{}]*\{")
COMPARING = frozenset(
    {"changed", "count", "dict", "fromkeys", "get", "index", "isdisjoint", "Namespace"}
    | {"dictsort", "groupby", "max", "min", "sort", "unique"}
)
"""Functions and methods, and filters, that compare or hash what they are given."""

_SIZED = (str, bytes, list, tuple, dict)


class TooMuchError(Exception):
    """A template makes more than it may."""


class Work:
    """What the rendering of this thread may still do."""

    def __init__(self) -> None:
        self._here = threading.local()

    def begin(self) -> None:
        """Start a rendering."""
        self._here.left = WORK

    def spend(self, made: int = 0, read: int = 0) -> None:
        """Count a step, what it is going to make, and what it reads to compare or hash it.

        Raises:
            TooMuchError: That is too much.
        """
        self._here.left = getattr(self._here, "left", WORK) - STEP - made - read
        if made > LIMIT or self._here.left < 0:
            raise TooMuchError("it makes or does more than it may")

    def made(self, value: Any) -> Any:
        """Return a value that was made, once it is counted."""
        self.spend(len(value) if isinstance(value, _SIZED) else 0)
        return value


def text_size(value: Any) -> int:
    """Characters of a value as a text, roughly; stops beyond the limit.

    Raises:
        TooMuchError: More than the limit, or nothing that has a text of a size that is known.
    """
    return _size(value, 2)


def weight(value: Any) -> int:
    """Characters that comparing a value with another one, or hashing it, reads at most; an item counts as `ITEM`.

    Raises:
        TooMuchError: More than the limit, or nested so deeply that hashing it would not come back.
    """
    return 1 if value is None or isinstance(value, int | float) else _size(value, ITEM, DEPTH)


def _size(value: Any, each: int, depth: float = math.inf) -> int:
    size, level = 0, [value]
    while level:
        depth -= 1
        inner: list[Any] = []
        for one in level:
            size += each
            if isinstance(one, str | bytes):
                size += len(one)
            elif isinstance(one, Mapping):
                inner += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
                inner += one
            elif type(one).__name__ == "Namespace":
                raise TooMuchError("it makes a text of a namespace, or compares it")
            if size > LIMIT or len(inner) * each > LIMIT or depth < 0:
                raise TooMuchError("it makes a text that is too long, or compares what is too large")
        level = inner
    return size


def joined(between: str, items: Iterable[Any]) -> str:
    """Texts as one, with another text between them.

    Raises:
        TooMuchError: That is too long.
    """
    parts, size = [], 0
    for item in items:
        size += text_size(item) + len(between)
        if size > LIMIT:
            raise TooMuchError("it joins a text that is too long")
        parts.append(str(item))
    return between.join(parts)


def made_by_operator(operator: str, left: Any, right: Any) -> int:
    """Characters or items that an operator makes at most."""
    if operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
        return len(left) + len(right)
    if operator == "%" and isinstance(left, str | bytes):
        return _printed(left if isinstance(left, str) else left.decode("latin-1"), right)
    if operator == "*":
        for text, times in ((left, right), (right, left)):
            if isinstance(text, _SIZED) and isinstance(times, int):
                return len(text) * max(0, times)
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _MAX_BITS:
            raise TooMuchError("it multiplies numbers that are too large")
    if operator == "**" and (abs(left) > LIMIT or abs(right) > _MAX_WIDTH):
        raise TooMuchError("it takes a power of numbers that are too large")
    return 0


def _printed(form: str, values: Any) -> int:
    """Characters that a printf-style format makes at most."""
    widths = [width for found in _CONVERSION.findall(form) for width in found if width]
    if "*" in widths or any(len(width) > len(str(LIMIT)) for width in widths):
        raise TooMuchError("it asks for a width that is too large")
    return len(form) + sum(map(int, widths)) + form.count("%") * text_size(values)


def made_by_format(form: str, values: Any) -> int:
    """Characters that `str.format` makes at most."""
    numbers = re.findall(r"\d+", form)
    if _NESTED.search(form) or any(len(number) > len(str(LIMIT)) for number in numbers):
        raise TooMuchError("it asks for a width that is too large")
    return len(form) + sum(map(int, numbers)) + form.count("{") * text_size(values)


def _replaced(text: str, old: str, new: str) -> int:
    return len(text) + text.count(old) * max(0, len(new) - len(old))


def made_by_method(method: Any, args: tuple[Any, ...]) -> int:
    """Characters that a method of a text or a number makes at most."""
    text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if isinstance(text, int) and name == "to_bytes":
        raise TooMuchError("it writes a number as bytes")
    if not isinstance(text, str | bytes):
        return 0
    if name == "join" and args:
        return sum(map(text_size, args[0])) + len(text) * len(args[0])
    if name == "replace" and len(args) > 1:
        return _replaced(str(text), str(args[0]), str(args[1]))
    if name in ("expandtabs", "translate"):
        raise TooMuchError(f"it calls {name}")
    return len(text) + max((abs(one) for one in args if isinstance(one, int)), default=0)


def made_by_filter(name: str, value: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Characters or items that a filter makes at most, where it makes more than it is given."""
    given = [*args, *named.values()]
    if name in _WIDTHS and any(isinstance(one, int) and abs(one) > _MAX_WIDTH for one in given):
        raise TooMuchError(f"{name} is asked for more than {_MAX_WIDTH}")
    if name in _WIDTHS and any(isinstance(one, str) and len(one) > _MAX_WIDTH for one in given):
        raise TooMuchError(f"{name} is given a text of more than {_MAX_WIDTH}")
    size = text_size(value) if name in _TO_TEXT else 0
    if name == "replace":
        old, new = (str(one) for one in (*given, "", "")[:2])
        return _replaced(str(value), old, new)
    if name == "indent":
        wide = max((one if isinstance(one, int) else len(str(one)) for one in given), default=4)
        return size + (len(str(value).splitlines()) + 1) * max(0, wide)
    if name == "format":
        return _printed(str(value), given)
    if name == "sum" and any(isinstance(one, _SIZED) for one in (named.get("start"), *args[1:])):
        raise TooMuchError("it sums what are no numbers")
    return size


def read_by_call(function: Any, args: Sequence[Any]) -> int:
    """Characters and items that a call compares or hashes at most."""
    name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
    if name not in COMPARING:
        return 0
    searched = weight(owner) if name in ("index", "count") else 0
    return searched + weight(args) + sum(map(_pairs, args)) + (len(owner) if isinstance(owner, dict) else 0)


def read_by_filter(name: str, value: Any, args: Sequence[Any]) -> int:
    """Characters and items that a filter, or a test, compares or hashes at most."""
    if name == "_compared":
        return weight(value)
    if name == "_tested":
        return weight(value) + weight(args) if args else 0
    if name not in COMPARING or not isinstance(value, _SIZED):
        return 0
    return weight(value) * len(value).bit_length() + (_pairs(value) if name == "unique" else 0)


def held(value: Any) -> Any:
    """A value, as a list where it can be gone through only once: what is counted first is read afterwards."""
    return list(value) if isinstance(value, Iterator) else value


def _pairs(value: Any) -> int:
    """Comparisons that it takes to make a mapping or a set of items: all of them may have one hash."""
    return len(value) ** 2 if isinstance(value, list | tuple | dict) else 0
