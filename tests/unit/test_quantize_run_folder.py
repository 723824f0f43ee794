"""An exchange of an old run for a new one, cut off at every point."""

import pytest

from edgewise.quantize.run_folder import INPUTS, fresh_folder, recover


def run(folder, name):
    folder.mkdir()
    (folder / INPUTS).write_text("{}")
    (folder / "name").write_text(name)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ({".run.next": "new", "run": "old"}, "old"),  # before the first renaming
        ({".run.next": "new", ".run.old": "old"}, "new"),  # between the two
        ({".run.old": "old"}, "old"),  # nothing has the name, one run is whole
        ({".run.old": "old", "run": "new"}, "new"),  # after the second
        ({"run": "only"}, "only"),
    ],
)
def test_one_whole_run_has_the_name_afterwards(tmp_path, left, kept):
    for folder, name in left.items():
        run(tmp_path / folder, name)
    recover(tmp_path / "run")
    assert (tmp_path / "run" / "name").read_text() == kept
    assert names(tmp_path) == ["run"]


def test_folders_that_no_run_wrote_are_left_alone(tmp_path):
    for name in ("run", ".run.old", ".run.next"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("keep")
    recover(tmp_path / "run")
    assert names(tmp_path) == [".run.next", ".run.old", "run"]
    assert names(tmp_path / ".run.old") == ["mine"]


def test_nothing_there_is_nothing_to_do(tmp_path):
    recover(tmp_path / "run")
    assert names(tmp_path) == []


def test_a_run_is_exchanged_when_the_new_one_is_whole(tmp_path):
    run(tmp_path / "run", "old")
    with fresh_folder(tmp_path / "run") as folder:
        (folder / "name").write_text("new")
        assert (tmp_path / "run" / "name").read_text() == "old"
    assert (tmp_path / "run" / "name").read_text() == "new"
    assert names(tmp_path) == ["run"]
