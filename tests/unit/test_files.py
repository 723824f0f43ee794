"""Folders that appear whole or not at all, and what a killed process leaves behind."""

import os
import subprocess
import sys

import pytest

from edgewise.errors import OutputExistsError
from edgewise.files import staged_directory

KILLED = """
import os, signal, sys
from pathlib import Path
from edgewise.files import staged_directory
with staged_directory(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_one(out):
    assert subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False).returncode < 0


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_it_is_full(tmp_path):
    with staged_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert names(tmp_path) == ["out"]


def test_a_failure_leaves_nothing(tmp_path):
    def fill():
        with staged_directory(tmp_path / "out") as folder:
            (folder / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert names(tmp_path) == []


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError), staged_directory(tmp_path / "out"):
        pass


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path):
    kill_one(tmp_path / "out")
    assert len(names(tmp_path)) == 1
    with staged_directory(tmp_path / "out"):
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == ["out"]


def test_nothing_else_is_swept(tmp_path):
    kill_one(tmp_path / "out")
    (left,) = names(tmp_path)
    dead = left.split("-")[2]
    others = [
        left.replace("out", "other"),  # of another output
        left.replace(f"-{dead}-", f"-{os.getpid()}-"),  # of a process that lives
        f".out.staged-00000000-{dead}-abcdefgh",  # of another machine
        f"{left}.kept",
        ".out.abcdefgh",
        ".out.old",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    with staged_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted([*others, "out"])


def test_two_at_once_leave_each_other_alone(tmp_path):
    with staged_directory(tmp_path / "out") as first:
        with staged_directory(tmp_path / "other") as other, staged_directory(tmp_path / "third") as third:
            assert first.is_dir()
            assert other.is_dir()
            assert third.is_dir()
        assert first.is_dir()
