"""Elements of a page, and how they become text.

Owns escaping: everything goes through the standard library's serializer, so no text of a report can turn into markup.
Owns no content.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias
from xml.etree import ElementTree

Node: TypeAlias = ElementTree.Element
Child: TypeAlias = Node | str | None

# What HTML forbids even when escaped: control characters, and halves of surrogate pairs, which UTF-8 cannot carry.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def node(tag: str, *children: Child, **attributes: str | float | None) -> Node:
    """An element. Of an attribute's name, a trailing underscore goes and the others become hyphens.

    Args:
        tag: Its name.
        children: Elements and text in their order; None is left out.
        attributes: Numbers are rounded to a tenth, which is enough for a picture; None is left out.
    """
    made = ElementTree.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_").replace("_", "-"), _clean(value) if isinstance(value, str) else f"{value:.1f}")
    return extend(made, children)


def extend(parent: Node, children: Iterable[Child]) -> Node:
    """Append elements and text to an element, and give it back."""
    for child in children:
        if child is None:
            continue
        if not isinstance(child, str):
            parent.append(child)
        elif len(parent):
            parent[-1].tail = (parent[-1].tail or "") + _clean(child)
        else:
            parent.text = (parent.text or "") + _clean(child)
    return parent


def number(value: float, text: str) -> Node:
    """A figure: what people read, and the exact value for machines and for sorting."""
    return node("data", text, value=repr(value))


def script_data(json: bytes) -> str:
    """JSON that may stand inside a script element: no character in it can end the element."""
    text = json.decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def document(root: Node) -> str:
    """The text of an HTML page."""
    return f"<!doctype html>\n{ElementTree.tostring(root, encoding='unicode', method='html')}\n"


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
