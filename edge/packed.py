"""A bundle of a language model, as the runtime and the tokenizer want it.

Owns what is read from the bundle, with the strictness with which it was packed. Loads no model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from tokenizers import Tokenizer  # type: ignore[import-untyped]  # ships stubs without a py.typed

from edgewise.bundle import Bundle, GenaiConfig, GenerationPreprocessing, read_config
from edgewise.bundle.generator import CONFIG, OPTIONAL_FILES, REQUIRED_FILES
from edgewise.errors import BundleError, InputError


def preprocessing_of(bundle: Bundle) -> GenerationPreprocessing:
    """What a bundle of a language model says of its texts.

    Raises:
        BundleError: It is none.
    """
    how = bundle.core.preprocessing
    if not isinstance(how, GenerationPreprocessing):
        raise BundleError(
            f"The bundle {bundle.core.name} is no language model, it does {bundle.core.task}.",
            "Load it with edgewise.edge.EdgeModel.",
        )
    return how


def files_of(bundle: Bundle) -> dict[str, bytes]:
    """The small files by name.

    Raises:
        BundleError: It is no bundle of a language model, or holds other files.
    """
    files = {file.name: bundle.read(file.blob) for file in preprocessing_of(bundle).files}
    wrong = set(REQUIRED_FILES) - set(files) or set(files) - {*REQUIRED_FILES, *OPTIONAL_FILES}
    if wrong:
        problem = f"The bundle {bundle.core.name} lacks, or should not hold, the file {min(wrong)}."
        raise BundleError(problem, "Do not use this bundle.")
    return files


def config_of(files: Mapping[str, bytes]) -> GenaiConfig:
    """The configuration, read with the same strictness as when it was packed: it could name libraries to load.

    Raises:
        BundleError: It holds what no bundle carries.
    """
    try:
        return read_config(files[CONFIG])
    except InputError as e:
        raise BundleError(e.problem, "Do not use this bundle.") from e


def ends_of(config: GenaiConfig) -> frozenset[int]:
    """The tokens that end an answer."""
    found = config.model.eos_token_id
    return frozenset(() if found is None else (found,) if isinstance(found, int) else found)


def tokenizer_of(files: Mapping[str, bytes]) -> Tokenizer:
    """The checkpoint's tokenizer, which any thread may use.

    Raises:
        BundleError: It cannot be read.
    """
    try:
        tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as e:  # the Rust library raises plain Exception and ValueError
        raise BundleError(f"The tokenizer of the bundle cannot be read: {e}.", "Update tokenizers.") from e
    # Set once, here: changing it later would race with other threads' encoding.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def overlay_of(bundle: Bundle, folder: Path, threads: int) -> str:
    """What this machine adds to the configuration: threads, and the graph in its place among the blobs."""
    # The runtime takes the name as one below the folder. Both are resolved, since ".." does not undo a link.
    graph = os.path.relpath(bundle.graph_path.resolve(), folder.resolve())
    session = {
        "intra_op_num_threads": threads,
        "inter_op_num_threads": 1,
        "log_severity_level": 3,
        # Spinning buys latency only where there is a pool, and burns a core while waiting.
        "session.intra_op.allow_spinning": "1" if threads > 1 else "0",
    }
    return msgspec.json.encode({"model": {"decoder": {"filename": graph, "session_options": session}}}).decode()
