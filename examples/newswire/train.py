"""Trains the two checkpoints of the newswire example, in Hugging Face format.

    python examples/newswire/train.py --model MODEL --data DATA --out CHECKPOINTS

CHECKPOINTS/cloud is all-MiniLM-L6-v2 with a classifier, fine-tuned. CHECKPOINTS/edge keeps its first and last layer and
learns the cloud's probabilities instead of the labels (Hinton, Vinyals and Dean, 2015, section 2, temperature 1), since
what the router certifies is agreement with the cloud.
The same machine, versions and number of threads give the same checkpoints, bit by bit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Read when torch starts its threads. Threads that spin while they wait take the cores from those they wait for as
    # soon as something else runs on the machine: training was then seen to take five times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import transformers
from rebuild import rebuild

from edgewise.contracts import Example
from edgewise.dataset import load_examples, require_labels
from edgewise.errors import CheckpointError, EdgewiseError
from edgewise.files import sha256_file, sha256_tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How one checkpoint is trained.

    Attributes:
        layers: Layers of the base model to keep, from 0.
        frozen: How many of the kept layers, and with them the embeddings, stay as they are.
        max_length: Tokens of a text that are read; also written into the checkpoint.
        epochs: Passes over the training part; may be a fraction.
        batch_size: Items a step.
        encoder_rate: Peak learning rate of the layers.
        head_rate: Peak learning rate of pooler and classifier; both start far from where they end.
        warm_up: Share of the steps until the peak.
        seed: Of the order of the items and of new weights.
    """

    layers: tuple[int, ...]
    frozen: int
    max_length: int
    epochs: float
    batch_size: int = 16
    encoder_rate: float = 4e-4
    head_rate: float = 2e-3
    warm_up: float = 0.05
    seed: int = 52


CLOUD = Plan(layers=(0, 1, 2, 3, 4, 5), frozen=3, max_length=48, epochs=1.5)
EDGE = Plan(layers=(0, 5), frozen=1, max_length=16, epochs=1.3, encoder_rate=5e-4, head_rate=1e-3, warm_up=0.1)

_PAD_TO = 16
_SAY_EVERY_S = 5.0


class Texts:
    """Tokenized texts, given as padded batches of similar lengths."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], max_length: int) -> None:
        self._ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]

    def batch(self, places: Sequence[int]) -> dict[str, torch.Tensor]:
        """Token ids and attention mask of some items, each of shape (items, length)."""
        longest = max(len(self._ids[place]) for place in places)
        ids = torch.zeros(len(places), -(-longest // _PAD_TO) * _PAD_TO, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, place in enumerate(places):
            tokens = torch.tensor(self._ids[place])
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def shuffled(self, batch_size: int, rng: np.random.Generator) -> list[list[int]]:
        """One epoch in random order; within a window of 16 batches, items of similar length share a batch."""
        order, batches, window = rng.permutation(len(self._ids)), [], 16 * batch_size
        for start in range(0, len(order), window):
            near = sorted(order[start : start + window].tolist(), key=lambda place: len(self._ids[place]))
            groups = [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
            batches += [groups[i] for i in rng.permutation(len(groups))]
        return batches

    def by_length(self, batch_size: int) -> list[list[int]]:
        """Every item once, the shortest first."""
        order = sorted(range(len(self._ids)), key=lambda place: len(self._ids[place]))
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def fast_precision() -> torch.dtype:
    """bfloat16 where the CPU multiplies in it; emulated, it is much slower than float32."""
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def autocast(precision: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Let matrix products run in `precision`."""
    return torch.autocast("cpu", dtype=precision) if precision != torch.float32 else contextlib.nullcontext()


def train_classifier(
    base: Path,
    examples: Sequence[Example],
    labels: Sequence[str],
    plan: Plan,
    out: Path,
    *,
    teacher: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Fine-tune layers of a BERT checkpoint into `out`: model, labels and tokenizer.

    Args:
        base: The checkpoint to start from.
        examples: The training part.
        labels: The label of each example.
        plan: How.
        out: An existing folder.
        teacher: Classifier whose probabilities are learned instead of the labels.
        say: Takes lines of progress.
    """
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    precision = fast_precision()
    names = sorted(set(labels))
    tokenizer = load_tokenizer(base, plan.max_length)
    model = load_layers(base, names, plan)
    texts = Texts(tokenizer, [str(example.input) for example in examples], plan.max_length)
    if teacher is None:
        target = torch.nn.functional.one_hot(torch.tensor([names.index(label) for label in labels])).float()
    else:
        say(f"asking the teacher about {len(examples)} items")
        target = torch.softmax(logits_of(teacher, texts, precision), dim=1)
    batches = [batch for _ in range(int(np.ceil(plan.epochs))) for batch in texts.shuffled(plan.batch_size, rng)]
    batches = batches[: round(len(batches) * plan.epochs / np.ceil(plan.epochs))]
    fit(model, plan, ((texts.batch(batch), target[batch]) for batch in batches), len(batches), precision, say)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def load_tokenizer(base: Path, max_length: int) -> Any:
    """The base model's tokenizer without its own padding and truncation, which are the caller's choice."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base, model_max_length=max_length, local_files_only=True)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    # Taken from the base model's tokenizer.json on loading, and saved again: a second, wrong length in the settings.
    tokenizer.init_kwargs.pop("max_length", None)
    return tokenizer


def load_layers(base: Path, names: Sequence[str], plan: Plan) -> Any:
    """Some layers of the base model under a classifier, with the lower ones frozen."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        # On CPUs plain matrix products train faster than the fused attention; the weights are the same.
        attn_implementation="eager",
        # One or two passes over the data leave no time to overfit.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    encoder = model.bert.encoder
    encoder.layer = torch.nn.ModuleList(encoder.layer[index] for index in plan.layers)
    model.config.num_hidden_layers = len(plan.layers)
    if plan.frozen:
        model.bert.embeddings.requires_grad_(False)
    encoder.layer[: plan.frozen].requires_grad_(False)
    return model


def fit(
    model: Any,
    plan: Plan,
    batches: Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]],
    steps: int,
    precision: torch.dtype,
    say: Callable[[str], None],
) -> None:
    """Minimize the cross-entropy against the target probabilities, shape (items, labels), of each batch."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    head = [value for name, value in parameters.items() if "pooler" in name or "classifier" in name]
    body = [value for name, value in parameters.items() if "pooler" not in name and "classifier" not in name]
    groups = [{"params": body, "lr": plan.encoder_rate}, {"params": head, "lr": plan.head_rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    rise = max(1, int(plan.warm_up * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (steps - step) / max(1, steps - rise))
    )
    model.train()
    started = said = time.monotonic()
    for step, (inputs, target) in enumerate(batches, start=1):
        with autocast(precision):
            logits = model(**inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(body, 1.0)
        optimizer.step()
        schedule.step()
        if time.monotonic() - said > _SAY_EVERY_S or step == steps:
            said = time.monotonic()
            say(f"  step {step}/{steps}, loss {loss.item():.3f}, {said - started:.0f} s")


@torch.inference_mode()
def logits_of(checkpoint: Path, texts: Texts, precision: torch.dtype) -> torch.Tensor:
    """Logits of a trained checkpoint, shape (items, labels), float32."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager")
    model.eval()
    batches = texts.by_length(64)
    with autocast(precision):
        rows = torch.cat([model(**texts.batch(batch)).logits.float() for batch in batches])
    return rows[torch.argsort(torch.tensor([place for batch in batches for place in batch]))]


def accuracy_of(checkpoint: Path, examples: Sequence[Example], labels: Sequence[str]) -> float:
    """Fraction of the examples whose label has the largest logit."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    texts = Texts(tokenizer, [str(example.input) for example in examples], tokenizer.model_max_length)
    names = transformers.AutoConfig.from_pretrained(checkpoint).id2label
    predicted = logits_of(checkpoint, texts, fast_precision()).argmax(dim=1).tolist()
    return float(np.mean([names[index] == label for index, label in zip(predicted, labels, strict=True)]))


def train_pair(base: Path, data: Path, out: Path, *, cloud: Plan = CLOUD, edge: Plan = EDGE) -> None:
    """Train `out`/cloud on `data`/train.jsonl, and `out`/edge to answer as it does; nothing where they are up to date.

    Raises:
        EdgewiseError: The data or the base model cannot be used, or an output folder was not made here.
    """
    if not (base / "config.json").exists():
        raise CheckpointError(f"There is no base model in {base}.", "Make it with prepare.py, or name it with --model.")
    train = data / "train.jsonl"
    examples = load_examples(train)
    labels = require_labels(examples, train)
    common = {
        "train": sha256_file(train),
        "code": sha256_file(Path(__file__)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "precision": str(fast_precision()),
        "threads": str(torch.get_num_threads()),
    }
    for name, plan, start, teacher in (("cloud", cloud, base, None), ("edge", edge, out / "cloud", out / "cloud")):
        print(f"{name}: {len(plan.layers)} layers, {len(examples)} items", flush=True)
        inputs = {**common, "plan": repr(plan), "start": sha256_tree(start)}
        build = functools.partial(train_classifier, start, examples, labels, plan, teacher=teacher, say=_say)
        if rebuild(out / name, inputs, build):
            tuning = load_examples(data / "tuning.jsonl")
            accuracy = accuracy_of(out / name, tuning, require_labels(tuning, data / "tuning.jsonl"))
            print(f"{name}: {out / name}, accuracy on the tuning part {accuracy:.1%}", flush=True)
        else:
            print(f"{name}: {out / name} is up to date", flush=True)


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("build/minilm"), help="the base model")
    parser.add_argument("--data", type=Path, default=Path("build/newswire/data"), help="folder with train.jsonl")
    parser.add_argument("--out", type=Path, default=Path("build/newswire/checkpoints"), help="gets cloud and edge")
    parser.add_argument("--threads", type=int, default=2, help="more are faster; another number gives other weights")
    arguments = parser.parse_args()
    # As Ctrl-C does, SIGTERM unwinds: a half-built folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    try:
        train_pair(arguments.model, arguments.data, arguments.out)
    except EdgewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
