"""Data files: what is read, and what each kind of wrong file is told."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewise.contracts import Example
from edgewise.dataset import digest_examples, digest_items, load_examples, require_labels
from edgewise.errors import DataError

words = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip())
"""Any text that is not blank: quotes, commas, line ends, NUL and U+2028 included."""
rows = st.lists(st.tuples(words, words), min_size=1, max_size=8)


def load(folder: Path, name: str, content: str | bytes, **fields: str) -> list[Example]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_examples(path, **fields)


def refusal(folder: Path, name: str, content: str | bytes, **fields: str) -> DataError:
    with pytest.raises(DataError) as caught:
        load(folder, name, content, **fields)
    assert caught.value.remedy
    assert name in caught.value.problem
    return caught.value


def as_jsonl(items: list[tuple[str, str]]) -> str:
    return "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in items)


def as_csv(items: list[tuple[str, str]]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *items])
    return stream.getvalue()


def make_images(root: Path) -> Path:
    for name, content in {"b/2.png": b"two", "b/10.JPG": b"ten", "a/x.webp": b"x", "a/notes.txt": b"no image"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@given(items=rows)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_jsonl_and_csv_give_back_what_was_written(tmp_path: Path, items: list[tuple[str, str]]) -> None:
    expected = [Example(text, label) for text, label in items]
    assert load(tmp_path, "d.jsonl", as_jsonl(items)) == expected
    assert load(tmp_path, "d.csv", as_csv(items)) == expected


@given(content=st.binary(max_size=200), name=st.sampled_from(["d.jsonl", "d.csv"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_by_name(tmp_path: Path, content: bytes, name: str) -> None:
    try:
        said = "".join(str(example.input) for example in load(tmp_path, name, content))
    except DataError as error:
        said = error.problem if name in error.problem else ""
    assert said.strip()


@given(items=rows)
def test_the_digest_follows_every_text_label_and_place(items: list[tuple[str, str]]) -> None:
    examples = [Example(text, label) for text, label in items]
    digest = digest_examples(examples)
    assert digest == digest_examples(list(examples))
    assert digest != digest_examples([*examples, examples[0]])
    assert digest != digest_examples([Example(example.input) for example in examples])
    assert digest != digest_examples([Example(f"{items[0][0]}.", items[0][1]), *examples[1:]])
    if examples != examples[::-1]:
        assert digest != digest_examples(examples[::-1])


@given(first=words, second=words, third=words)
def test_the_digest_frames_each_part(first: str, second: str, third: str) -> None:
    assert digest_examples([Example(first + second, third)]) != digest_examples([Example(first, second + third)])


def test_the_digest_tells_texts_from_image_bytes_and_pixels() -> None:
    pixels = np.arange(6, dtype=np.uint8)
    inputs = ["abc", b"abc", pixels, pixels.reshape(2, 3), pixels.astype(np.float32)]
    assert len({digest_examples([Example(item)]) for item in inputs}) == len(inputs)
    assert digest_examples([Example(pixels.astype(">f4"))]) == digest_examples([Example(pixels.astype("<f4"))])


@pytest.mark.parametrize("name", ["d.jsonl", "D.JSONL", "d.ndjson"])
def test_jsonl_takes_a_byte_order_mark_blank_lines_other_fields_and_crlf(tmp_path: Path, name: str) -> None:
    content = '\ufeff\r\n{"text": "one", "label": 1, "id": null}\r\n  \n{"text": "two\u2028", "label": "b"}'
    assert load(tmp_path, name, content) == [Example("one", "1"), Example("two\u2028", "b")]


def test_csv_takes_a_byte_order_mark_blank_lines_and_quoted_line_ends(tmp_path: Path) -> None:
    content = '\ufeffid,label,text\r\n\r\n1,a,"one, ""two""\r\nthree"\r\n\r\n2,b,four\r\n'
    assert load(tmp_path, "d.csv", content) == [Example('one, "two"\r\nthree', "a"), Example("four", "b")]


def test_a_csv_text_may_be_longer_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    assert load(tmp_path, "d.csv", f"text\n{'x' * (limit + 1)}\n") == [Example("x" * (limit + 1))]
    assert csv.field_size_limit() == limit


def test_the_fields_can_be_named(tmp_path: Path) -> None:
    content = '{"body": "one", "text": "no", "topic": "a"}'
    assert load(tmp_path, "d.jsonl", content, text_field="body", label_field="topic") == [Example("one", "a")]


def test_tagged_words_become_texts_and_labels_joined_by_blanks(tmp_path: Path) -> None:
    content = '{"id": 1, "tokens": ["Alice", "no\u00a0break", "."], "tags": ["B-PER", "O", "O"]}'
    assert load(tmp_path, "d.jsonl", content) == [Example("Alice no\u00a0break .", "B-PER O O")]
    named = '{"words": ["a", "b"], "ner": ["X", "O"]}'
    assert load(tmp_path, "d.jsonl", named, text_field="words", label_field="ner") == [Example("a b", "X O")]
    assert load(tmp_path, "d.jsonl", '{"tokens": ["a", "b"]}') == [Example("a b", None)]
    assert load(tmp_path, "d.jsonl", '{"text": "a b", "tags": ["news"]}') == [Example("a b", None)], "tags of the text"


@pytest.mark.parametrize("content", ['{"text": "a"}', '{"text": "a", "label": null}', '{"text": "a", "label": " "}'])
def test_labels_may_be_absent_everywhere(tmp_path: Path, content: str) -> None:
    examples = load(tmp_path, "d.jsonl", content)
    assert examples == [Example("a", None)]
    with pytest.raises(DataError, match=r"has no labels.*--label-field"):
        require_labels(examples, tmp_path / "d.jsonl")


def test_require_labels_gives_them_in_order(tmp_path: Path) -> None:
    assert require_labels([Example("x", "b"), Example("y", "a")], tmp_path) == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.txt", "one", ["'.txt'"]),
        ("d.jsonl", "", ["holds no item"]),
        ("d.jsonl", "\n \n", ["holds no item"]),
        ("d.csv", "", ["holds no item"]),
        ("d.csv", "text,label\n", ["holds no item"]),
        ("d.jsonl", '{"text": "a"}\n\n{"text": ', ["line 3", "not valid JSON", '{"text":']),
        ("d.jsonl", '{"text": "a"}\n["a"]', ["line 2", "not a JSON object", '["a"]']),
        ("d.jsonl", "[" * 100_000, ["line 1", "not valid JSON"]),
        ("d.jsonl", '{"text": "\\ud800"}', ["line 1", "not valid JSON"]),
        ("d.jsonl", b'{"text": "a"}\n{"text": "\xe9t\xe9"}\n', ["line 2", "byte 24", "0xe9", "not UTF-8"]),
        ("d.csv", "text\na\nb\u20ac\n".encode("utf-16"), ["line 1", "byte 0", "0xff", "not UTF-8"]),
        ("d.jsonl", '{"text": "a"}\n{"body": "b", "id": 1}', ["line 2", "'text'", "'body', 'id'"]),
        ("d.jsonl", "{}", ["line 1", "fields found: none"]),
        ("d.csv", "body;label\na;b\n", ["line 2", "'text'", "'body;label'"]),
        ("d.jsonl", '{"text": 3.5}', ["line 1", "a number", "3.5"]),
        ("d.jsonl", '{"text": null}', ["line 1", "null"]),
        ("d.jsonl", '{"text": " \\n"}', ["line 1", "blank"]),
        ("d.csv", "text,label\n,a\n", ["line 2", "blank"]),
        ("d.jsonl", '{"text": "a", "label": true}', ["line 1", "'label'", "a boolean", "True"]),
        ("d.jsonl", '{"text": "a", "label": 1.0}', ["line 1", "'label'", "a number", "1.0"]),
        ("d.jsonl", '{"text": "a", "label": ["b"]}', ["line 1", "'label'", "a list", "['b']"]),
        ("d.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', ["line 1", "2 words", "'tokens'", "1 labels", "'tags'"]),
        ("d.jsonl", '{"tokens": ["a", "b c"], "tags": ["O", "O"]}', ["line 1", "'tokens'", "'b c'"]),
        ("d.jsonl", '{"tokens": ["a", ""], "tags": ["O", "O"]}', ["line 1", "'tokens'", "''"]),
        ("d.jsonl", '{"tokens": ["a"], "tags": [3]}', ["line 1", "'tags'", "holds 3"]),
        ("d.jsonl", '{"tokens": ["a"], "tags": [null]}', ["line 1", "'tags'", "holds None"]),
        ("d.jsonl", '{"tokens": [], "tags": []}', ["line 1", "'tokens'", "nothing"]),
        ("d.jsonl", '{"tokens": ["a"], "tags": {"a": 1}}', ["line 1", "'tags'", "an object"]),
        ("d.jsonl", '{"tokens": "a", "tags": ["O"]}', ["line 1", "no field 'text'"]),
        ("d.jsonl", '{"text": "a", "label": "b"}\n\n{"text": "c"}', ["line 3 has no label", "line 1 has one"]),
        ("d.csv", "text,label\na,\nb,c\n", ["line 2 has no label", "line 3 has one"]),
        ("d.csv", 'text,label\n"a\nb",c\nd,e,f\n', ["line 4 has 3 columns", "has 2 (text, label)"]),
        ("d.csv", "text,label\na\n", ["line 2 has 1 columns"]),
        ("d.csv", 'text,label\na,b\n"open,c\nd,e\n', ["line 3", "not valid CSV"]),
        ("d.csv", "text,text\na,b\n", ["line 1", "'text' twice"]),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, said: list[str]
) -> None:
    problem = refusal(tmp_path, name, content).problem
    assert [part for part in said if part not in problem] == [], problem


def test_a_missing_text_field_names_the_option(tmp_path: Path) -> None:
    assert "--text-field" in refusal(tmp_path, "d.jsonl", '{"body": "a"}').remedy


def test_a_long_value_is_shown_shortened(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, "d.jsonl", '["' + "x" * 10_000 + '"]').problem) < len(str(tmp_path)) + 200


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read \(No such file"):
        load_examples(tmp_path / "none.jsonl")


def test_a_folder_of_images_is_read_in_sorted_order(tmp_path: Path) -> None:
    root = make_images(tmp_path)
    (root / ".cache").mkdir()
    (root / "b" / ".hidden.png").write_bytes(b"hidden")
    assert load_examples(root) == [Example(b"x", "a"), Example(b"ten", "b"), Example(b"two", "b")]


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    root = make_images(tmp_path)
    (root / "a" / "link.png").symlink_to(root / "b" / "2.png")
    assert Example(b"two", "a") in load_examples(root)


def test_an_image_that_leaves_the_folder_by_a_link_is_refused(tmp_path: Path) -> None:
    root = make_images(tmp_path / "data")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(b"secret")
    link = root / "a" / "link.png"
    link.symlink_to(outside / "secret.png")
    with pytest.raises(DataError, match=r"link\.png leaves the folder.*secret\.png"):
        load_examples(root)
    link.unlink()
    (root / "c").symlink_to(outside, target_is_directory=True)
    with pytest.raises(DataError, match=r"c/secret\.png leaves the folder"):
        load_examples(root)


def test_a_folder_reached_through_a_link_is_not_left(tmp_path: Path) -> None:
    make_images(tmp_path / "data")
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    assert len(load_examples(tmp_path / "alias")) == 3


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    root = make_images(tmp_path)
    (root / "c").mkdir()
    with pytest.raises(DataError, match="c holds no image"):
        load_examples(root)
    with pytest.raises(DataError, match="has no sub-folders"):
        load_examples(root / "c")
    (root / "c" / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png is empty"):
        load_examples(root)
    (root / "c" / "empty.png").write_bytes(b"now it is not")
    (root / "stray.gif").write_bytes(b"stray")
    with pytest.raises(DataError, match=r"stray\.gif lies outside"):
        load_examples(root)


@pytest.mark.parametrize("kind", ["broken", "loop", "pipe"])
def test_an_image_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    root = make_images(tmp_path)
    odd = root / "a" / "odd.png"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to(root / "a" / ("odd.png" if kind == "loop" else "gone.png"))
    with pytest.raises(DataError, match=r"odd\.png is not a file"):
        load_examples(root)


def test_a_class_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    root = make_images(tmp_path)
    odd = root / os.fsdecode(b"\xff")
    odd.mkdir()
    (odd / "1.png").write_bytes(b"one")
    with pytest.raises(DataError, match="not UTF-8"):
        load_examples(root)


def test_the_items_digest_follows_the_inputs_alone():
    examples = [Example("a", "x"), Example("b", "y"), Example(b"b", "y")]
    digest = digest_items(examples)
    assert digest_items([examples[2], examples[0], examples[1]]) == digest
    assert digest_items([Example(example.input) for example in examples]) == digest
    assert digest_items([*examples, examples[0]]) != digest
    assert digest_items(examples[:2]) != digest
    assert len({digest_items([Example(item)]) for item in ("b", b"b", np.zeros((1, 1), np.uint8))}) == 3
