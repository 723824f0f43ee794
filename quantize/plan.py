"""Everything that is checked and read before any work starts.

Owns the job's fields, what makes a job impossible, and the digest that tells whether a finished run still stands.
Exports, builds and measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec

from edgewise.contracts import Example, Input
from edgewise.dataset import digest_examples, digest_items, item_key, load_examples
from edgewise.edge import probe
from edgewise.errors import ConfigError, DataError, MissingExtraError
from edgewise.files import sha256_bytes, sha256_file
from edgewise.quantize.checkpoint import Checkpoint, inspect_checkpoint
from edgewise.quantize.export import EXPORTERS, Exporter, check_exporter
from edgewise.quantize.items import Indices, label_indices, require_kind
from edgewise.quantize.recipes import BASELINE, RECIPES, Choice, parse_choices
from edgewise.quantize.select import PREFERENCES, Prefer, check_preference

DEFAULT_RECIPES = tuple(name for name in RECIPES if name != BASELINE)
"""Every recipe with its default options; the baseline is always built."""

SAMPLES = 16
"""Tuning items on which checkpoint and exported graph are compared."""

_TOOLS = (
    *("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "optimum", "optimum-onnx", "pillow", "safetensors"),
    *("tokenizers", "torch", "transformers"),
)
GOLDEN = ("tuning", "synthetic")
"""Where the golden inputs that travel in a bundle come from, the default first."""

_NEEDED = {"onnx", "torch", "transformers"}

_CODE = ("bundle", "edge", "quantize", "router/signals.py", "contracts.py", "dataset.py", "files.py")
"""Sources of edgewise that shape a run: its own version stays the same while they are worked on."""


@dataclass(frozen=True)
class QuantizeJob:
    """What `quantize` is asked to do.

    Attributes:
        checkpoint: A Hugging Face checkpoint folder.
        data: The tuning part: recipes are compared on it.
        out: The run folder; must not exist, unless `reuse` is set.
        gate: The gate part: only the winner sees it, for the bound on its accuracy drop.
        task: "auto", or the task that is expected.
        recipes: Candidates beside the float32 baseline: "NAME" or "NAME:option=value:…".
        max_drop: Allowed accuracy drop, in (0, 1).
        confidence: Confidence of the gate's bound, in (0, 1).
        prefer: "balanced", "size" or "speed".
        threads: Threads of one prediction.
        max_length: Tokens a text is cut to; None takes the checkpoint's own limit.
        text_field: Field of the text in a data file.
        label_field: Field of the label in a data file.
        exporter: "optimum" or "torch".
        seed: Seed of whatever a recipe draws.
        reuse: Keep a finished run whose inputs are exactly the same, and replace one whose inputs are not.
        golden: Inputs that travel in every bundle: "tuning" takes four tuning items as they are, "synthetic" makes up
            its own, for data that must not leave.
    """

    checkpoint: Path
    data: Path
    out: Path
    gate: Path | None = None
    task: str = "auto"
    recipes: tuple[str, ...] = DEFAULT_RECIPES
    max_drop: float = 0.01
    confidence: float = 0.95
    prefer: str = PREFERENCES[0]
    threads: int = 1
    max_length: int | None = None
    text_field: str = "text"
    label_field: str = "label"
    exporter: str = EXPORTERS[0]
    seed: int = 0
    reuse: bool = False
    golden: str = GOLDEN[0]


@dataclass(frozen=True)
class Part:
    """One part of the data, read and checked.

    Attributes:
        inputs: Its inputs.
        truth: Index of each right label, shape (n,).
        digest: Identity of inputs and labels, in their order.
        items_digest: Identity of the inputs alone, in any order.
    """

    inputs: tuple[Input, ...]
    truth: Indices
    digest: str
    items_digest: str

    def spread(self, count: int) -> tuple[Input, ...]:
        """At most `count` inputs, evenly spread over the part."""
        count = min(count, len(self.inputs))
        return tuple(self.inputs[index * len(self.inputs) // count] for index in range(count))


@dataclass(frozen=True)
class Plan:
    """A job that can be done, with everything it reads.

    Attributes:
        checkpoint: The checkpoint.
        checkpoint_digest: Digest of its folder.
        tuning: The tuning part.
        gate: The gate part.
        gate_overlap: Items of the gate part that occur in the tuning part as well.
        choices: The baseline first.
        exporter: The exporter.
        prefer: What the choice prefers.
        synthetic_golden: Whether golden inputs are made up, instead of taken from the tuning part.
        tools: Versions of everything that shapes the result.
        inputs_digest: Digest of everything above and of the job's options.
    """

    checkpoint: Checkpoint
    checkpoint_digest: str
    tuning: Part
    gate: Part | None
    gate_overlap: int
    choices: tuple[Choice, ...]
    exporter: Exporter
    prefer: Prefer
    synthetic_golden: bool
    tools: dict[str, str]
    inputs_digest: str


def make_plan(job: QuantizeJob) -> Plan:
    """Read and check everything a job names.

    Raises:
        InputError: Something that it names cannot be used.
    """
    _check_options(job)
    prefer, exporter = check_preference(job.prefer), check_exporter(job.exporter)
    choices = parse_choices(RECIPES, [BASELINE, *(text for text in job.recipes if text.strip() != BASELINE)])
    tools = tool_versions()
    checkpoint = inspect_checkpoint(job.checkpoint, task=job.task, max_length=job.max_length)
    tuning = _read_part(job, job.data, checkpoint)
    gate = _read_part(job, job.gate, checkpoint) if job.gate is not None else None
    _check_disjoint(job, tuning, gate)
    digest = checkpoint.digest()
    return Plan(
        checkpoint=checkpoint,
        checkpoint_digest=digest,
        tuning=tuning,
        gate=gate,
        gate_overlap=overlap(tuning, gate),
        choices=choices,
        exporter=exporter,
        prefer=prefer,
        synthetic_golden=job.golden == "synthetic",
        tools=tools,
        inputs_digest=_inputs_digest(job, digest, tuning, gate, choices, checkpoint, tools),
    )


def tool_versions() -> dict[str, str]:
    """Versions of edgewise and of the libraries that shape a bundle.

    Raises:
        MissingExtraError: The extra "quantize" is not installed.
    """
    found = {"edgewise": metadata.version("edgewise")}
    for name in _TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError as e:
            if name in _NEEDED:
                raise MissingExtraError("edgewise quantize", "quantize") from e
    return found


def _check_options(job: QuantizeJob) -> None:
    if not 0 < job.max_drop < 1:
        raise ConfigError(f"An accuracy drop of {job.max_drop:g} cannot be allowed.", "Give a share between 0 and 1.")
    if not 0 < job.confidence < 1 or not math.isfinite(job.confidence):
        raise ConfigError(f"{job.confidence:g} is no confidence.", "Give a share between 0 and 1, such as 0.95.")
    if job.threads < 1:
        raise ConfigError(f"{job.threads} threads cannot work.", "Give 1 or more.")
    if job.golden not in GOLDEN:
        raise ConfigError(f"Golden items cannot come from {job.golden!r}.", f"Choose one of: {', '.join(GOLDEN)}.")


def _read_part(job: QuantizeJob, path: Path, checkpoint: Checkpoint) -> Part:
    examples: Sequence[Example] = load_examples(path, text_field=job.text_field, label_field=job.label_field)
    require_kind(examples, checkpoint.task, path)
    truth = label_indices(examples, checkpoint.labels, path)
    inputs = tuple(example.input for example in examples)
    return Part(inputs, truth, digest_examples(examples), digest_items(examples))


def _check_disjoint(job: QuantizeJob, tuning: Part, gate: Part | None) -> None:
    if gate is not None and gate.items_digest == tuning.items_digest:
        raise DataError(
            f"The gate part {job.gate} holds the same items as the tuning part {job.data}.",
            "The bound holds only for items that no choice has seen: split the data at random.",
        )


def overlap(tuning: Part, gate: Part | None) -> int:
    """How many items of the gate part occur in the tuning part as well."""
    seen = {item_key(item) for item in tuning.inputs}
    return sum(item_key(item) in seen for item in gate.inputs) if gate is not None else 0


def code_digest(root: Path = Path(__file__).parents[1]) -> str:
    """Digest of the sources that shape a run, by name and content."""
    files = [
        file for name in _CODE for file in ([root / name] if name.endswith(".py") else (root / name).rglob("*.py"))
    ]
    lines = [f"{file.relative_to(root).as_posix()} {sha256_file(file)}\n" for file in sorted(files)]
    return sha256_bytes("".join(lines).encode())


def _inputs_digest(
    job: QuantizeJob,
    checkpoint_digest: str,
    tuning: Part,
    gate: Part | None,
    choices: Sequence[Choice],
    checkpoint: Checkpoint,
    tools: dict[str, str],
) -> str:
    facts = {
        "checkpoint": checkpoint_digest,
        # The bundle is named after the folder.
        "name": checkpoint.name,
        "tuning": tuning.digest,
        "gate": gate.digest if gate is not None else None,
        "candidates": [[choice.recipe.name, choice.plain_options()] for choice in choices],
        "max_length": checkpoint.max_length,
        "options": [job.max_drop, job.confidence, job.prefer, job.threads, job.exporter, job.seed, job.golden],
        "tools": tools,
        "code": code_digest(),
        # Golden items and every measurement are this kind of machine's.
        "isa": probe().isa,
    }
    return sha256_bytes(msgspec.json.encode(facts, order="sorted"))
