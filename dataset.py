"""Data files as examples: JSON Lines, CSV, or a folder of images with one sub-folder a class.

Owns the formats and what is wrong with a file. Does not decode images, split data, or know a model's labels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgewise.contracts import Example, Input
from edgewise.dialogue import Prompt
from edgewise.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
"""File names that count as images, in lower case."""

TOKENS = "tokens"
"""Field of a text's words, where the field of the text itself is missing."""

TAGS = "tags"
"""Field of these words' labels, where the field of the label is missing."""

# Only ASCII white space parts words: others, such as a no-break space, may stand inside one.
_WORD = re.compile(r"[^ \t\n\r\f\v]+")
_BOM = "\ufeff"
_SHOWN = 80
_JSONL_REMEDY = 'Each line must be one JSON object, such as {"text": "…", "label": "…"}.'
_CSV_REMEDY = "Put a text that contains commas, quotes or line ends in double quotes, and double the quotes in it."


class Row(NamedTuple):
    """One record of a data file.

    Attributes:
        line: Where it begins, counted from 1.
        fields: What it holds; of CSV all are texts.
    """

    line: int
    fields: Mapping[str, Any]


def load_examples(path: Path, *, text_field: str = "text", label_field: str = "label") -> list[Example]:
    """Read a data file, or a folder of images.

    A file's kind follows from its name: `.jsonl` or `.ndjson` (one object a line) and `.csv` (RFC 4180, with a header).
    Both are UTF-8, with or without a byte-order mark; blank lines are skipped. In a folder each sub-folder is a class
    and the items are the bytes of its image files, sorted by name; hidden entries and other kinds of files are skipped.

    A text may also be a list of words, in the field of the text or in "tokens", and its label a list of as many labels,
    in the field of the label or in "tags": {"tokens": ["Alice", "left"], "tags": ["B-PER", "O"]}. Each list becomes one
    string, joined by blanks.

    Args:
        path: The file or folder.
        text_field: Name of the field, or column, that holds the text.
        label_field: Name of the field that holds the label, a string or an integer. It may be absent (or null, or
            blank) in every row; then the examples have no labels.

    Returns:
        At least one example, in the order of the file.

    Raises:
        DataError: It cannot be read, or not as said above; names the file, and the line where there is one.
    """
    if _is_folder(path):
        return _load_images(path)

    def read(row: Row) -> Example:
        return Example(text_of(path, row, text_field), _label_of(path, row, label_field, _words_of(row, text_field)))

    return _examples(path, read, label_field, f"Give a file with at least one '{text_field}'.")


def read_examples(path: Path, input_of: Callable[[Row], Input], *, label_field: str) -> list[Example]:
    """Read a data file whose items are more than a text.

    Args:
        path: A `.jsonl`, `.ndjson` or `.csv` file, as `load_examples` reads them.
        input_of: The item of a record; raises DataError where it has none.
        label_field: Name of the field that holds the label.

    Raises:
        DataError: It cannot be read, or not as `load_examples` says.
    """
    if _is_folder(path):
        raise DataError(f"{path} is a folder.", f"Give a file that ends in {', '.join(_READERS)}.")

    def read(row: Row) -> Example:
        return Example(input_of(row), _label_of(path, row, label_field, None))

    return _examples(path, read, label_field, "Give a file with at least one.")


def _examples(path: Path, read: Callable[[Row], Example], label_field: str, remedy: str) -> list[Example]:
    rows = _READERS.get(path.suffix.lower())
    if rows is None:
        raise DataError(
            f"{path} is of no known kind ('{path.suffix}').",
            f"Give a file that ends in {', '.join(_READERS)}, or a folder of images with one sub-folder a class.",
        )
    examples = list(_read_rows(path, rows(path, _read_text(path)), read, label_field))
    if not examples:
        raise DataError(f"{path} holds no item.", remedy)
    return examples


def place_of(path: Path, position: int) -> str:
    """Where an item of a data file stands, for messages: its line, or its number in a folder of images.

    Args:
        path: The file or folder.
        position: The item's position among all of them, from 0.

    Raises:
        DataError: It cannot be read any more.
    """
    if _is_folder(path):
        return f"{path}, item {position + 1}"
    rows = _READERS[path.suffix.lower()](path, _read_text(path))
    line = next((row.line for row in islice(rows, position, None)), None)
    return f"{path}, item {position + 1}" if line is None else f"{path}, line {line}"


def require_labels(examples: Sequence[Example], path: Path) -> list[str]:
    """The label of each example.

    Raises:
        DataError: The file has no labels.
    """
    labels = [example.label for example in examples if example.label is not None]
    if len(labels) != len(examples):
        raise DataError(
            f"{path} has no labels, and they are needed here.",
            "Add a field 'label' to every item, or name the field that holds it with --label-field.",
        )
    return labels


def digest_examples(examples: Sequence[Example]) -> str:
    """Identity of a list of examples: hex SHA-256 over inputs and labels in their order, each framed by its length.

    The file's format, its name and its other fields do not count.
    """
    digest = hashlib.sha256(b"edgewise-examples-1\n")
    for example in examples:
        for kind, payload in (_framed_input(example.input), _framed_label(example.label)):
            digest.update(f"{kind} {len(payload)}\n".encode())
            digest.update(payload)
    return digest.hexdigest()


def digest_items(examples: Sequence[Example]) -> str:
    """Identity of the inputs alone: hex SHA-256 that neither their order nor their labels change."""
    items = sorted(item_key(example.input) for example in examples)
    return hashlib.sha256(b"edgewise-items-1\n" + b"".join(items)).hexdigest()


def item_key(item: Input) -> bytes:
    """Identity of one input: 32 bytes that equal inputs share."""
    kind, payload = _framed_input(item)
    return hashlib.sha256(f"{kind} {len(payload)}\n".encode() + payload).digest()


def _framed_input(item: Input) -> tuple[str, bytes]:
    if isinstance(item, str):
        return "text", item.encode()
    if isinstance(item, bytes):
        return "image", item
    if isinstance(item, Prompt):
        return "prompt", msgspec.msgpack.encode(item)
    pixels = np.ascontiguousarray(item, dtype=item.dtype.newbyteorder("<"))
    return f"pixels {pixels.dtype.str} {'x'.join(map(str, pixels.shape))}", pixels.tobytes()


def _framed_label(label: str | None) -> tuple[str, bytes]:
    return ("unlabelled", b"") if label is None else ("label", label.encode())


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise DataError(f"The data file {path} cannot be read ({error.strerror}).", "Check the path.") from error


def _read_text(path: Path) -> str:
    data = _read_bytes(path)
    try:
        return data.decode().removeprefix(_BOM)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte {error.start} of the file (0x{data[error.start]:02x}) is not UTF-8.",
            "Save the file as UTF-8.",
        ) from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).", "Check the file and its permissions.") from error


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines(): U+2028 and its like are legal inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number} is not valid JSON ({error}): {_shown(line)}.",
                _JSONL_REMEDY,
            ) from error
        if not isinstance(fields, dict):
            raise DataError(
                f"{path}, line {number} is not a JSON object: {_shown(line)}.",
                _JSONL_REMEDY,
            )
        yield Row(number, fields)


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    header: list[str] | None = None
    for line, cells in _csv_records(path, text):
        if header is None:
            header = cells
            _refuse_repeated_columns(path, line, header)
        elif len(cells) != len(header):
            raise DataError(
                f"{path}, line {line} has {len(cells)} columns, the header has {len(header)} ({', '.join(header)}).",
                _CSV_REMEDY,
            )
        else:
            yield Row(line, dict(zip(header, cells, strict=True)))


def _csv_records(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Each record that is not a blank line, with the line on which it starts."""
    # The module's own limit of 128 KiB a field is a process-wide setting; no field is longer than the text.
    limit = csv.field_size_limit(len(text) + 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records = []
    start = 1
    try:
        for cells in reader:
            if len(cells) > 1 or any(cell.strip() for cell in cells):
                records.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {start} is not valid CSV ({error}).", _CSV_REMEDY) from error
    finally:
        csv.field_size_limit(limit)
    return records


def _refuse_repeated_columns(path: Path, line: int, header: list[str]) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(
            f"{path}, line {line} names the column {repeated[0]!r} twice.", "Give each column its own name."
        )


_READERS: Mapping[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".csv": _csv_rows,
}


def _read_rows(path: Path, rows: Iterator[Row], read: Callable[[Row], Example], label_field: str) -> Iterator[Example]:
    first: Row | None = None
    labelled = False
    for row in rows:
        example = read(row)
        if first is None:
            first, labelled = row, example.label is not None
        elif labelled != (example.label is not None):
            without, having = (row, first) if labelled else (first, row)
            raise DataError(
                f"{path}, line {without.line} has no label in the field '{label_field}'; line {having.line} has one.",
                "Give every item a label, or none.",
            )
        yield example


def text_of(path: Path, row: Row, field: str) -> str:
    """The text in a field of a record; a list of words is one, joined by blanks.

    Raises:
        DataError: There is none, or a blank one.
    """
    words = _words_of(row, field)
    if words is not None:
        return _joined(path, row, words)
    if field not in row.fields:
        found = ", ".join(f"'{name}'" for name in row.fields) or "none"
        raise DataError(
            f"{path}, line {row.line} has no field '{field}' (fields found: {found}).",
            "Name the field that holds the text with --text-field.",
        )
    text = row.fields[field]
    if not isinstance(text, str):
        raise DataError(
            f"{path}, line {row.line}: the field '{field}' is {_kind(text)}, not a text: {_shown(text)}.",
            "Give a string, or name another field with --text-field.",
        )
    if not text.strip():
        raise DataError(
            f"{path}, line {row.line}: the field '{field}' is blank.", "Give it a text, or remove the line."
        )
    return text


def _words_of(row: Row, field: str) -> str | None:
    """The field that holds the text as a list of words, or None."""
    name = field if field in row.fields else TOKENS
    return name if isinstance(row.fields.get(name), list) else None


def _label_of(path: Path, row: Row, field: str, words: str | None) -> str | None:
    if words is not None:
        field = field if field in row.fields else TAGS
    label = row.fields.get(field)
    if isinstance(label, list) and words is not None:
        return _tags_of(path, row, words, field)
    if isinstance(label, int) and not isinstance(label, bool):
        return str(label)
    if label is not None and not isinstance(label, str):
        raise DataError(
            f"{path}, line {row.line}: the label in the field '{field}' is {_kind(label)}: {_shown(label)}.",
            "Give a string or an integer, or name another field with --label-field.",
        )
    return label if label and label.strip() else None


def _tags_of(path: Path, row: Row, words: str, field: str) -> str:
    if len(row.fields[field]) != len(row.fields[words]):
        raise DataError(
            f"{path}, line {row.line} has {len(row.fields[words])} words in the field '{words}' and "
            f"{len(row.fields[field])} labels in the field '{field}'.",
            "Give each word exactly one label.",
        )
    return _joined(path, row, field)


def _joined(path: Path, row: Row, field: str) -> str:
    """A list of words, or of their labels, as one string."""
    words = row.fields[field]
    odd = [word for word in words if not isinstance(word, str) or not _WORD.fullmatch(word)]
    if odd or not words:
        raise DataError(
            f"{path}, line {row.line}: the list in the field '{field}' holds {_shown(odd[0]) if odd else 'nothing'}; "
            "a word is a string that is not empty and contains no white space.",
            "Correct the list, or remove the line.",
        )
    return " ".join(words)


def _load_images(root: Path) -> list[Example]:
    try:
        return list(_read_images(root))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}).", "Check its permissions.") from error


def _read_images(root: Path) -> Iterator[Example]:
    classes = [entry for entry in _entries(root) if entry.is_dir()]
    stray = [entry for entry in _entries(root) if _is_image_name(entry)]
    if stray and classes:
        raise DataError(f"The image {stray[0]} lies outside the class folders.", "Move it into one of them.")
    if not classes:
        raise DataError(
            f"The folder {root} has no sub-folders.",
            "Make one sub-folder a class and put its images into it, or give a .jsonl or .csv file.",
        )
    for folder in classes:
        files = [entry for entry in _entries(folder) if _is_image_name(entry)]
        if not files:
            raise DataError(
                f"The class folder {folder} holds no image.",
                f"Put files into it that end in {', '.join(IMAGE_SUFFIXES)}, or remove it.",
            )
        for file in files:
            yield Example(_read_image(root, file), _class_name(folder))


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def _class_name(folder: Path) -> str:
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"The name of the folder {str(folder)!r} is not UTF-8.", "Rename it.") from error
    return folder.name


def _read_image(root: Path, file: Path) -> bytes:
    # os.path, since Path.resolve() raises on a loop of links in Python 3.11.
    real = Path(os.path.realpath(file))
    if not real.is_relative_to(os.path.realpath(root)):
        raise DataError(f"The image {file} leaves the folder {root} by a link to {real}.", "Copy the image instead.")
    if not real.is_file():
        raise DataError(f"The image {file} is not a file.", "Remove it, or mend the link.")
    data = _read_bytes(real)
    if not data:
        raise DataError(f"The image {file} is empty.", "Remove it, or copy it again.")
    return data


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
