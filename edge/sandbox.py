"""How much a chat template may do: jinja2's sandbox with an end to the texts it makes and the steps it takes.

Owns which operations are counted; what each costs is `costs`' to say, what templates are given `templates`' business.
jinja2 comes with the extra "generate": this module is imported where a template is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from edgewise.edge import costs
from edgewise.edge.costs import TooMuchError, Work

_MAX_KEYS = 1000
_LEFT_OUT = ("pprint", "urlize", "wordwrap", "xmlattr")


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates end; `work.begin()` starts each rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=_output)
        self.work = Work()
        filters: dict[str, Callable[..., Any]] = {**self.filters, "tojson": to_json, "join": self._join}
        filters.update(_joined=self._join, _step=_itself, _compared=_itself)
        self.filters = {name: self._counted(name, found) for name, found in filters.items() if name not in _LEFT_OUT}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: self._counted("_tested", found) for name, found in tests.items()}
        del self.globals["lipsum"]

    def _parse(self, *args: Any) -> nodes.Template:
        return _Counting().visit(super()._parse(*args))  # type: ignore[no-any-return]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator."""
        self.work.spend(costs.made_by_operator(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # names are free
        """Call a function or a method."""
        if getattr(__obj, "__name__", "") in ("join", *costs.COMPARING):
            args = tuple(map(costs.held, args))
        __self.work.spend(costs.made_by_method(__obj, args), costs.read_by_call(__obj, args))
        return __self.work.made(super().call(__context, __obj, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look up an item, or an attribute."""
        if isinstance(obj, dict):
            self.work.spend(read=costs.weight(argument) + len(obj))
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The method that formats a text, where a value is one."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            self.work.spend(costs.made_by_format(value.__self__, [*args, *kwargs.values()]))
            return wrapped(*args, **kwargs)

        return bounded

    def _counted(self, name: str, found: Callable[..., Any]) -> Callable[..., Any]:
        """A filter, or a test, that is counted."""
        passed = getattr(getattr(found, "jinja_pass_arg", None), "name", "")
        compares = name in costs.COMPARING or name in ("_compared", "_tested")

        @pass_context  # which also keeps the compiler from calling it
        def run(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            if compares and (args or name != "_tested"):
                value, args = costs.held(value), tuple(map(costs.held, args))
            self.work.spend(costs.made_by_filter(name, value, args, kwargs), costs.read_by_filter(name, value, args))
            first = {"context": context, "eval_context": context.eval_ctx, "environment": self}.get(passed)
            return self.work.made(found(*(() if first is None else (first,)), value, *args, **kwargs))

        return run

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        items = value if attribute is None else map(make_attrgetter(self, attribute), value)
        return costs.joined(str(d), items)


class _Counting(NodeTransformer):
    """Has filters see what nothing else can watch: turns of loops, joined texts, slices, what is compared or hashed."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  # as jinja2 calls it
        self.generic_visit(node)
        step = _filtered(nodes.Const(True, lineno=node.lineno), "_step")
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(step, node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_step") if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        node.expr = _compared(node.expr)
        for operand in node.ops:
            operand.expr = _compared(operand.expr)
        return node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Dict:  # noqa: N802
        if len(node.items) > _MAX_KEYS:
            raise TooMuchError(f"it writes a mapping of more than {_MAX_KEYS} keys")
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _compared(pair.key)
        return node


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: jinja2's own makes HTML entities of letters, which no model was trained on."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return costs.joined("", encoder.iterencode(value))


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _compared(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(node, "_compared")


def _output(value: Any) -> Any:
    costs.text_size(value)
    return value


def _itself(value: Any) -> Any:
    return value
