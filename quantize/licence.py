"""Finds the licence that a checkpoint names. Owns no judgement of it."""

from __future__ import annotations

from pathlib import Path

_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
# First lines of the licence texts that weights usually carry, with the identifiers that model cards use.
_TEXTS = {
    "apache license": "apache-2.0",
    "mit license": "mit",
    "bsd 3-clause": "bsd-3-clause",
    "creative commons attribution 4.0": "cc-by-4.0",
}
_HEAD = 2048


def read_licence(folder: Path) -> tuple[str, ...]:
    """Licence identifiers from the front matter of the model card, else from a licence file, else nothing."""
    card = folder / "README.md"
    named = _front_matter(card) if card.is_file() else ()
    return named or next((_from_text(folder / name) for name in _FILES if (folder / name).is_file()), ())


def _front_matter(card: Path) -> tuple[str, ...]:
    """The entry "license" of the YAML block between two lines of three dashes: a scalar or a list."""
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        return ()
    block = lines[1 : 1 + [line.strip() for line in lines[1:]].index("---")]
    for number, line in enumerate(block):
        key, colon, value = line.partition(":")
        if colon and key.strip() == "license":
            return _words(value) or _list_entries(block[number + 1 :])
    return ()


def _list_entries(lines: list[str]) -> tuple[str, ...]:
    entries: list[str] = []
    for line in lines:
        if not line.strip().startswith("- "):
            break
        entries.extend(_words(line.strip()[2:]))
    return tuple(entries)


def _words(value: str) -> tuple[str, ...]:
    return tuple(word for part in value.strip(" []").split(",") if (word := part.strip(" '\"")))


def _from_text(file: Path) -> tuple[str, ...]:
    head = file.read_text(encoding="utf-8", errors="replace")[:_HEAD].lower()
    return (next((name for text, name in _TEXTS.items() if text in head), f"see {file.name}"),)
