"""How much a chat template may do: jinja2's sandbox with an end to the texts it makes and the steps it takes.

Owns the bounds. A template comes with a bundle, and one line of it can ask for all memory, or for ever. What templates
are given is `templates`' business. jinja2 (extra "generate") is imported when a sandbox is made.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

LIMIT = 4_000_000
"""Characters of a text, and items of a list, that a template makes at most; of a rendered conversation too."""

WORK = 256_000_000
"""Characters and items that one rendering makes in all, with those of every step between; a step counts as `STEP`."""

STEP = 250

_MAX_WIDTH, _MAX_BITS = 1000, 1 << 16
_WIDTHS = frozenset({"center", "indent", "tojson", "batch", "slice", "round", "truncate"})
_LEFT_OUT = ("pprint", "urlize", "wordwrap", "xmlattr")
_TO_TEXT = frozenset(
    {"capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "replace", "safe", "string"}
    | {"striptags", "title", "trim", "truncate", "upper", "urlencode", "wordcount"}
)
_CONVERSION = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+))?")
_NESTED = re.compile(r":[^{}]*\{")
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

    def spend(self, made: int = 0) -> None:
        """Count a step, and what it is going to make.

        Raises:
            TooMuchError: That is too much.
        """
        self._here.left = getattr(self._here, "left", WORK) - STEP - made
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
    size, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str | bytes):
            size += len(one)
        elif isinstance(one, Mapping):
            waiting.extend([*one.keys(), *one.values()])
        elif isinstance(one, list | tuple | set | frozenset):
            waiting.extend(one)
        elif type(one).__name__ == "Namespace":
            raise TooMuchError("it makes a text of a namespace")
        size += 2
        if size > LIMIT or len(waiting) > LIMIT:
            raise TooMuchError("it makes a text that is too long")
    return size


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: jinja2's own makes HTML entities of letters, which no model was trained on."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _joined("", encoder.iterencode(value))


def sandbox(**options: Any) -> Any:
    """An environment of jinja2 whose templates end; `work.begin()` starts each rendering.

    Raises:
        ImportError: jinja2 is not installed.
    """
    from jinja2 import nodes, pass_context
    from jinja2.filters import make_attrgetter
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    class Stepped(NodeTransformer):
        """Counts the turns of loops, and lets a text be joined by a filter, since nothing else can be watched."""

        def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  # as jinja2 calls it
            self.generic_visit(node)
            step = nodes.Filter(nodes.Const(True), "_step", [], [], None, None, lineno=node.lineno)
            node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
            if node.test is not None:
                node.test = nodes.And(step, node.test, lineno=node.lineno)
            return node

        def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
            self.generic_visit(node)
            parts = nodes.List(node.nodes, lineno=node.lineno)
            return nodes.Filter(parts, "_joined", [], [], None, None, lineno=node.lineno)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})
        work = Work()

        def _parse(self, *args: Any) -> nodes.Template:
            return Stepped().visit(super()._parse(*args))  # type: ignore[no-any-return]

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            self.work.spend(_made_by(operator, left, right))
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # names are free
            if getattr(__obj, "__name__", "") == "join" and args:
                args = (list(args[0]), *args[1:])  # what can be gone through only once is measured first
            __self.work.spend(_made_by_method(__obj, args))
            return __self.work.made(super().call(__context, __obj, *args, **kwargs))

        def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
            wrapped = super().wrap_str_format(value)
            if wrapped is None:
                return None

            def bounded(*args: Any, **kwargs: Any) -> str:
                self.work.spend(_formatted(value.__self__, [*args, *kwargs.values()]))
                return wrapped(*args, **kwargs)

            return bounded

    environment = Environment(**options, finalize=_output)

    def bounded(name: str, found: Callable[..., Any]) -> Callable[..., Any]:
        passed = getattr(getattr(found, "jinja_pass_arg", None), "name", "")

        @pass_context  # which also keeps the compiler from calling it
        def run(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            environment.work.spend(_made_by_filter(name, value, args, kwargs))
            first = {"context": context, "eval_context": context.eval_ctx, "environment": environment}.get(passed)
            return environment.work.made(found(*(() if first is None else (first,)), value, *args, **kwargs))

        return run

    def join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
        return _joined(str(d), items)

    filters = {**environment.filters, "tojson": to_json, "join": join, "_joined": join, "_step": lambda value: value}
    environment.filters = {name: bounded(name, found) for name, found in filters.items() if name not in _LEFT_OUT}
    del environment.globals["lipsum"]
    return environment


def _output(value: Any) -> Any:
    text_size(value)
    return value


def _joined(between: str, items: Iterable[Any]) -> str:
    parts, size = [], 0
    for item in items:
        size += text_size(item) + len(between)
        if size > LIMIT:
            raise TooMuchError("it joins a text that is too long")
        parts.append(str(item))
    return between.join(parts)


def _made_by(operator: str, left: Any, right: Any) -> int:
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


def _formatted(form: str, values: Any) -> int:
    """Characters that `str.format` makes at most."""
    numbers = re.findall(r"\d+", form)
    if _NESTED.search(form) or any(len(number) > len(str(LIMIT)) for number in numbers):
        raise TooMuchError("it asks for a width that is too large")
    return len(form) + sum(map(int, numbers)) + form.count("{") * text_size(values)


def _replaced(text: str, old: str, new: str) -> int:
    return len(text) + text.count(old) * max(0, len(new) - len(old))


def _made_by_method(method: Any, args: tuple[Any, ...]) -> int:
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


def _made_by_filter(name: str, value: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> int:
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
