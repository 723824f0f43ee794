"""Durable files: written beside, flushed, renamed into place. Owns no format and decides nothing."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgewise.errors import OutputExistsError

_CHUNK = 1 << 20


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a reader, or a power cut, sees the old bytes or the new ones, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _fsync_directory(path.parent)


@contextmanager
def staged_directory(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to fill; it becomes `out` when the block ends well, and vanishes when it does not.

    A process that is killed leaves its folder; the next one that makes `out` removes it.

    Raises:
        OutputExistsError: `out` exists already.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    beside = Path(tempfile.mkdtemp(prefix=f"{_staging_prefix(out)}{os.getpid()}-", dir=out.parent))
    try:
        yield beside
        beside.chmod(0o755)
        for folder, _, names in os.walk(beside):
            for name in names:
                _fsync_file(Path(folder) / name)
            _fsync_directory(Path(folder))
        refuse_existing(out)
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _fsync_directory(out.parent)


def copy_tree(source: Path, to: Path) -> None:
    """Copy a folder of files to a place that does not exist.

    Unlike shutil's, it ends at the first file that cannot be written, with the system's own error.
    """
    to.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        target = to / path.relative_to(source)
        if path.is_dir():
            target.mkdir()
        else:
            shutil.copyfile(path, target)


def _staging_prefix(out: Path) -> str:
    """Names this machine as well: of another one, which may share the folder, nobody here knows the processes."""
    return f".{out.name}.staged-{sha256_bytes(socket.gethostname().encode())[:8]}-"


def _sweep(out: Path) -> None:
    """Remove what processes of this machine that live no more left of their way to `out`."""
    name = re.compile(re.escape(_staging_prefix(out)) + r"([0-9]+)-[a-z0-9_]{8}")
    for folder in out.parent.iterdir():
        found = name.fullmatch(folder.name)
        if found and not _lives(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def refuse_existing(out: Path) -> None:
    """Raise OutputExistsError if `out` exists."""
    if out.exists() or out.is_symlink():
        raise OutputExistsError(f"The output path {out} exists already.", "Name a new one, or remove it first.")


def sha256_bytes(data: bytes) -> str:
    """Lower-case hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Lower-case hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(root: Path) -> str:
    """Digest of a folder: the relative name and the content of every file, in sorted order; a file counts as itself."""
    if root.is_file():
        return sha256_file(root)
    digest = hashlib.sha256()
    for path in sorted(item for item in root.rglob("*") if item.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_directory(path: Path) -> None:
    _fsync_file(path)
