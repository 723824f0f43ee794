"""The folder of a run: how it appears, when it still stands, and what lies where.

    RUN/bundle/                the winner
    RUN/candidates/ID/         every candidate, each a bundle of its own
    RUN/predictions/ID.npz     answers to the tuning part, in the order of the data; see `answers.py`
    RUN/report.json            every figure
    RUN/report.html            the same for people, one page that opens offline
    RUN/run.json               digest of everything that went in
    RUN/logs/                  what exporter and recipes printed

Beside it lies, while a search is under way or after it was stopped, `.RUN.search`: its workshop, which the next search
with the same inputs goes on with. Owns no figure in any of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgewise.bundle import Bundle
from edgewise.errors import EdgewiseError, InputError, OutputExistsError
from edgewise.files import copy_tree, staged_directory, write_atomically
from edgewise.quantize.page import PAGE, render_page
from edgewise.quantize.report import Report

REPORT = "report.json"
PREDICTIONS = "predictions"
INPUTS = "run.json"
WINNER = "bundle"
CANDIDATES = "candidates"


class RunInputs(msgspec.Struct, frozen=True):
    """What `run.json` holds.

    Attributes:
        inputs_digest: Digest of checkpoint, data, options and tool versions.
    """

    inputs_digest: str


def read_report(run: Path) -> Report:
    """The report of a finished run.

    Raises:
        InputError: `run` is not a run folder, or its report cannot be read.
    """
    try:
        return msgspec.json.decode((run / REPORT).read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as e:
        raise InputError(f"{run} holds no readable {REPORT}: {e}.", "Give a folder that quantize wrote.") from e


def write_report(run: Path, report: Report, inputs_digest: str) -> None:
    """Write the files that make a folder a finished run."""
    (run / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    (run / PAGE).write_text(render_page(report), encoding="utf-8")
    (run / INPUTS).write_bytes(msgspec.json.encode(RunInputs(inputs_digest)))


def stored_report(out: Path, inputs_digest: str) -> Report | None:
    """The report of the finished run at `out`, if it had exactly these inputs and its winner is whole.

    Raises:
        OutputExistsError: `out` exists and is no run folder.
    """
    if not out.exists():
        return None
    if not (out / INPUTS).is_file():
        raise OutputExistsError(f"{out} exists and is no run folder.", "Name a new one, or remove it first.")
    try:
        inputs = msgspec.json.decode((out / INPUTS).read_bytes(), type=RunInputs)
        if inputs.inputs_digest != inputs_digest:
            return None
        Bundle.open(out / WINNER)
        return read_report(out)
    except (EdgewiseError, OSError, msgspec.MsgspecError):
        # Damaged, hence stale: built anew.
        return None


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out`; an old run there stays whole until then."""
    if not out.exists():
        with staged_directory(out) as folder:
            yield folder
        return
    fresh, old = _next(out), _old(out)
    # A killed run may have left these.
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with staged_directory(fresh) as folder:
        yield folder
    out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def recover(out: Path) -> None:
    """Finish an exchange of an old run for a new one that was cut off: of the whole ones, one gets the name."""
    left = [folder for folder in (_next(out), _old(out)) if (folder / INPUTS).is_file()]
    if left and not out.exists():
        left.pop(0).rename(out)
    if (out / INPUTS).is_file():
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)


def _next(out: Path) -> Path:
    return out.with_name(f".{out.name}.next")


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


@contextmanager
def workshop(out: Path, search_digest: str) -> Iterator[Path]:
    """The folder in which a search works; it stays when the block is left by an error or a kill, and goes when it ends.

    Args:
        out: The run folder that comes of it.
        search_digest: Digest of what candidates depend on; a workshop of another one is begun anew.

    Raises:
        InputError: Another search is under way in it.
    """
    import fcntl

    folder = search_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise InputError(f"Another search for {out} is under way.", "Wait for it, or give another --out.") from e
        _begin(folder, search_digest)
        yield folder
        # The marker first: a kill in between must not leave a half that passes for the whole.
        (folder / INPUTS).unlink()
        shutil.rmtree(folder)


def search_folder(out: Path) -> Path:
    """Where a search for this run folder works."""
    return out.with_name(f".{out.name}.search")


def _begin(folder: Path, search_digest: str) -> None:
    marker = folder / INPUTS
    try:
        if msgspec.json.decode(marker.read_bytes(), type=RunInputs).inputs_digest == search_digest:
            return
    except (OSError, msgspec.MsgspecError):
        pass
    marker.unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "lock":
            entry.unlink()
    write_atomically(marker, msgspec.json.encode(RunInputs(search_digest)))


def link_tree(source: Path, to: Path) -> None:
    """Copy a bundle; its files are never written again, so hard links do where the file system has them."""
    try:
        shutil.copytree(source, to, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(to, ignore_errors=True)
        copy_tree(source, to)
