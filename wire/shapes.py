"""What a type has at a path in it: the values that a field may take, or the names of its fields.

Owns the walk through msgspec's description of a type, for the remedies of errors. Reads no bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import inspect

_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")


def values_at(root: Any, path: str) -> tuple[str, ...]:
    """The values that are allowed at a path.

    Args:
        root: A type that msgspec decodes.
        path: Such as "messages[0].role"; "" is the type itself.

    Returns:
        Those that are listed; empty where none are.
    """
    found: dict[str, None] = {}
    for node in _at(root, path):
        if isinstance(node, inspect.LiteralType):
            found |= dict.fromkeys(map(str, node.values))
    return tuple(found)


def fields_at(root: Any, path: str) -> tuple[str, ...]:
    """The names of the fields of the object at a path; empty where there is none. Arguments as `values_at`."""
    found: dict[str, None] = {}
    for node in _at(root, path):
        if isinstance(node, inspect.StructType):
            found |= dict.fromkeys(field.encode_name for field in node.fields)
    return tuple(found)


def _at(root: Any, path: str) -> list[inspect.Type]:
    nodes = list(_members(inspect.type_info(root)))
    for step in _STEP.findall(path):
        nodes = [member for node in nodes for inner in _inside(node, step) for member in _members(inner)]
    return nodes


def _members(node: inspect.Type) -> Iterable[inspect.Type]:
    """The types that a value may be of."""
    if isinstance(node, inspect.Metadata):
        return _members(node.type)
    return node.types if isinstance(node, inspect.UnionType) else (node,)


def _inside(node: inspect.Type, step: str) -> Iterator[inspect.Type]:
    if isinstance(node, inspect.StructType) and not step.startswith("["):
        yield from (field.type for field in node.fields if field.encode_name == step)
        if step == node.tag_field and isinstance(node.tag, str):
            yield inspect.LiteralType((node.tag,))
    elif isinstance(node, inspect.DictType):
        yield node.value_type
    elif isinstance(node, inspect.ListType | inspect.VarTupleType) and step.startswith("["):
        yield node.item_type
