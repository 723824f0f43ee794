"""Builds a folder once, and again only when what went into it has changed. Shared by the scripts of this example."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from edgewise.files import sha256_bytes, sha256_tree, staged_directory, write_atomically


def rebuild(out: Path, inputs: Mapping[str, str], build: Callable[[Path], None]) -> bool:
    """Make `out` what `build` gives for `inputs`; do nothing where it already is.

    A record beside the folder keeps the digests of the inputs and of the content. An interrupted build leaves nothing.

    Args:
        out: The folder. If it exists and its record fits neither, only a folder built here before is replaced.
        inputs: Everything that shapes the content: digests, versions, options.
        build: Fills the folder that it is given.

    Returns:
        Whether it was built.

    Raises:
        OutputExistsError: `out` exists and was not built here.
    """
    record_path = out.parent / f".{out.name}.json"
    key = sha256_bytes(json.dumps(dict(inputs), sort_keys=True).encode())
    record = _read_record(record_path)
    if out.is_dir() and record.get("inputs") == key and record.get("content") == sha256_tree(out):
        return False
    if record and out.is_dir():
        _remove(out)
    with staged_directory(out) as stage:
        build(stage)
        # Before the folder appears: an interruption between the two must not leave a folder that nobody owns.
        content = {"inputs": key, "content": sha256_tree(stage)}
        write_atomically(record_path, json.dumps(content, indent=1).encode())
    return True


def _read_record(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    return record if isinstance(record, dict) else {}


def _remove(folder: Path) -> None:
    """Rename first, so that an interruption leaves no half of the folder under its name."""
    doomed = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    folder.rename(doomed / folder.name)
    shutil.rmtree(doomed)
