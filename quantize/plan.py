"""Everything that is checked and read before any work starts.

Owns the job's fields, what makes a job impossible, and the digest that tells whether a finished run still stands.
Exports, builds and measures nothing.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np

from edgewise.bundle import KINDS, Kind, Task
from edgewise.contracts import Example, Input
from edgewise.dataset import digest_examples, digest_items, item_key, load_examples
from edgewise.edge import probe
from edgewise.errors import ConfigError, DataError, MissingExtraError
from edgewise.files import sha256_bytes, sha256_file, sha256_tree
from edgewise.quantize.checkpoint import Checkpoint, inspect_checkpoint
from edgewise.quantize.export import EXPORTERS, Exporter, check_exporter
from edgewise.quantize.items import require_kind, truth_of
from edgewise.quantize.onnx_source import inspect_onnx
from edgewise.quantize.profiling import command_of
from edgewise.quantize.quality import Truth
from edgewise.quantize.recipes import (
    BASELINE,
    DEFAULT_IMAGE_RECIPES,
    DEFAULT_RECIPES,
    RECIPES,
    Choice,
    Recipe,
    parse_choices,
)
from edgewise.quantize.select import PREFERENCES, Prefer, check_preference

SAMPLES = 16
"""Tuning items on which checkpoint and exported graph are compared."""

_TOOLS = (
    *("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "onnxscript", "optimum", "optimum-onnx"),
    *("pillow", "safetensors", "tokenizers", "torch", "transformers"),
)
GOLDEN = ("tuning", "synthetic")
"""Where the golden inputs that travel in a bundle come from, the default first."""

_NEEDED = frozenset({"onnx", "torch", "transformers"})
_EXPORTING = frozenset({"torch", "transformers"})

_ROUTER = ("router/betting.py", "router/ranking.py", "router/signals.py")
_CODE = ("bundle", "edge", "quantize", *_ROUTER, "contracts.py", "dataset.py", "files.py")
"""Sources of edgewise that shape a run: its own version stays the same while they are worked on."""


@dataclass(frozen=True)
class QuantizeJob:
    """What `quantize` is asked to do.

    Attributes:
        checkpoint: A Hugging Face checkpoint folder, or an ONNX file.
        data: The tuning part: recipes are compared on it.
        out: The run folder; must not exist, unless `reuse` is set.
        gate: The gate part: only the winner sees it, for the bound on its accuracy drop.
        test: The test part: touched once, after the gate, for the report.
        texts: Other texts of the task, such as those it was trained on, with or without labels: "trim" takes the
            vocabulary from them. None takes the tuning part's.
        task: "auto", or the task that is expected.
        recipes: Candidates beside the float32 baseline, "[TRANSFORM+…]NAME[:option=value…]"; none takes the defaults of
            the model's kind.
        max_drop: Allowed accuracy drop, in (0, 1).
        confidence: Confidence of the gate's bound, in (0, 1).
        prefer: "balanced", "size" or "speed".
        threads: Threads of one prediction; of several numbers the first decides, and the others are measured too.
        lengths: Lengths in tokens at which latency is measured beside the data's own.
        profile_cmd: A command that measures a bundle on the target and prints its profile as JSON; "{bundle}" stands
            for the bundle. None measures here.
        search: Explore candidates beside those of `recipes`.
        minutes: Time of the search, its final measurement included.
        labels: For an ONNX file: its labels, see `pack_onnx`.
        tokenizer: For an ONNX file of a text model: its tokenizer.
        preprocessor: For an ONNX file of an image model: its preprocessing.
        max_length: Tokens a text is cut to; None takes the checkpoint's own limit.
        text_field: Field of the text in a data file.
        label_field: Field of the label in a data file.
        exporter: "auto" (optimum, then torch), "optimum" or "torch".
        seed: Seed of whatever a recipe or a search draws.
        reuse: Keep a finished run whose inputs are exactly the same, and replace one whose inputs are not.
        golden: Inputs that travel in every bundle: "tuning" takes four tuning items as they are, "synthetic" makes up
            its own, for data that must not leave.
    """

    checkpoint: Path
    data: Path
    out: Path
    gate: Path | None = None
    test: Path | None = None
    texts: Path | None = None
    task: str = "auto"
    recipes: tuple[str, ...] = ()
    max_drop: float = 0.01
    confidence: float = 0.95
    prefer: str = PREFERENCES[0]
    threads: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = ()
    profile_cmd: str | None = None
    search: bool = False
    minutes: float = 10.0
    labels: Path | None = None
    tokenizer: Path | None = None
    preprocessor: Path | None = None
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
        truth: What is right, see `quality.Truth`.
        digest: Identity of inputs and labels, in their order.
        items_digest: Identity of the inputs alone, in any order.
    """

    inputs: tuple[Input, ...]
    truth: Truth
    digest: str
    items_digest: str

    def some(self, count: int) -> Part:
        """At most `count` of its items, evenly spread, as a part of their own."""
        n = len(self.inputs)
        chosen = [index * n // min(count, n) for index in range(min(count, n))]
        truth = self.truth
        if truth is not None:
            truth = truth[chosen] if isinstance(truth, np.ndarray) else [truth[index] for index in chosen]
        return Part(tuple(self.inputs[index] for index in chosen), truth, f"{self.digest}/{count}", self.items_digest)

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
        test: The test part.
        texts: Texts that "trim" takes the vocabulary from.
        gate_overlap: Items of the gate part that occur in the tuning part as well.
        test_overlap: Items of the test part that occur in the tuning or the gate part as well.
        recipes: Recipes for this kind of model, by name.
        choices: The baseline first.
        exporter: The exporter.
        prefer: What the choice prefers.
        seed: Seed of whatever a recipe or a search draws.
        synthetic_golden: Whether golden inputs are made up, instead of taken from the tuning part.
        tools: Versions of everything that shapes the result.
        inputs_digest: Digest of everything above and of the job's options.
        search_digest: Digest of what a candidate's figures depend on: a search resumes while it is the same.
    """

    checkpoint: Checkpoint
    checkpoint_digest: str
    tuning: Part
    gate: Part | None
    test: Part | None
    texts: tuple[Input, ...]
    gate_overlap: int
    test_overlap: int
    recipes: Mapping[str, Recipe]
    choices: tuple[Choice, ...]
    exporter: Exporter
    prefer: Prefer
    seed: int
    synthetic_golden: bool
    tools: dict[str, str]
    inputs_digest: str
    search_digest: str

    @property
    def kind(self) -> Kind:
        """The kind of model."""
        return KINDS[self.checkpoint.task]

    @property
    def transforms(self) -> tuple[str, ...]:
        """Transforms that a search may apply: those that change what a candidate costs."""
        if self.kind == "generator":
            return ()
        # A vocabulary cut down to the tuning part looks better on that part than it is.
        return ("fuse", "trim") if self.texts is not self.tuning.inputs else ("fuse",)


def make_plan(job: QuantizeJob) -> Plan:
    """Read and check everything a job names.

    Raises:
        InputError: Something that it names cannot be used.
    """
    _check_options(job)
    prefer, exporter = check_preference(job.prefer), check_exporter(job.exporter)
    tools = tool_versions(needed=_NEEDED - _EXPORTING if _is_onnx(job) else _NEEDED)
    checkpoint = _inspect(job)
    recipes, defaults = recipes_for(checkpoint.task)
    choices = parse_choices(
        recipes, [BASELINE, *(text for text in job.recipes or defaults if text.strip() != BASELINE)]
    )
    parts = {name: _read_part(job, path, checkpoint) for name, path in _paths(job).items()}
    _check_disjoint(_paths(job), parts)
    tuning, gate, test = parts["tuning"], parts.get("gate"), parts.get("test")
    digest = checkpoint.digest()
    facts = _facts(job, digest, parts, checkpoint, tools)
    spelled = {"candidates": [[choice.id, choice.plain_options()] for choice in choices]}
    return Plan(
        checkpoint=checkpoint,
        checkpoint_digest=digest,
        tuning=tuning,
        gate=gate,
        test=test,
        texts=_texts(job, checkpoint, tuning),
        gate_overlap=overlap(gate, tuning),
        test_overlap=overlap(test, tuning, gate),
        recipes=recipes,
        choices=choices,
        exporter=exporter,
        prefer=prefer,
        seed=job.seed,
        synthetic_golden=job.golden == "synthetic",
        tools=tools,
        inputs_digest=_digest({**facts, **spelled, **_goals(job, parts)}),
        search_digest=_digest(facts),
    )


def recipes_for(task: Task) -> tuple[Mapping[str, Recipe], tuple[str, ...]]:
    """The recipes for a task by name, and those that are built unless a user names others."""
    if task == "text-generation":
        from edgewise.quantize.generation import GENERATION_RECIPES

        return GENERATION_RECIPES, tuple(name for name in GENERATION_RECIPES if name != BASELINE)
    return RECIPES, DEFAULT_IMAGE_RECIPES if task == "image-classification" else DEFAULT_RECIPES


def _inspect(job: QuantizeJob) -> Checkpoint:
    if _is_onnx(job):
        return inspect_onnx(
            job.checkpoint,
            labels=job.labels,
            tokenizer=job.tokenizer,
            preprocessor=job.preprocessor,
            max_length=job.max_length,
            task=job.task,
        )
    given = {"--labels": job.labels, "--tokenizer": job.tokenizer, "--preprocessor": job.preprocessor}
    useless = next((name for name, value in given.items() if value is not None), None)
    if useless:
        raise ConfigError(f"{useless} is for an ONNX file; a checkpoint has its own.", f"Leave out {useless}.")
    return inspect_checkpoint(job.checkpoint, task=job.task, max_length=job.max_length)


def _is_onnx(job: QuantizeJob) -> bool:
    return job.checkpoint.suffix == ".onnx"


def _paths(job: QuantizeJob) -> dict[str, Path]:
    """The parts that are given, by name."""
    parts = {"tuning": job.data, "gate": job.gate, "test": job.test}
    return {name: path for name, path in parts.items() if path is not None}


def tool_versions(needed: Set[str] = _NEEDED) -> dict[str, str]:
    """Versions of edgewise and of the libraries that shape a bundle.

    Args:
        needed: Libraries that must be there.

    Raises:
        MissingExtraError: The extra "quantize" is not installed.
    """
    found = {"edgewise": metadata.version("edgewise")}
    for name in _TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError as e:
            if name in needed:
                raise MissingExtraError("edgewise quantize", "quantize") from e
    return found


def _check_options(job: QuantizeJob) -> None:
    if not 0 < job.max_drop < 1:
        raise ConfigError(
            f"An accuracy drop of {job.max_drop:g} cannot be allowed.", "Give a share above 0 and below 1."
        )
    if not 0 < job.confidence < 1 or not math.isfinite(job.confidence):
        raise ConfigError(f"{job.confidence:g} is no confidence.", "Give a share between 0 and 1, such as 0.95.")
    if not job.threads or min(job.threads) < 1:
        raise ConfigError(f"{_spoken(job.threads)} threads cannot work.", "Give 1 or more, such as 1,2.")
    if job.lengths and min(job.lengths) < 1:
        raise ConfigError(f"A text of {min(job.lengths)} tokens cannot be measured.", "Give 1 or more, such as 16,128.")
    if job.seed < 0:
        raise ConfigError(f"{job.seed} is no seed.", "Give 0 or more.")
    if job.profile_cmd is not None:
        program = command_of(job.profile_cmd, Path())[0]
        if shutil.which(program) is None:
            raise ConfigError(
                f"The profile command's program {program!r} is not there.", "Install it, or give its path."
            )
    if not 0 < job.minutes < math.inf:
        raise ConfigError(f"A search cannot take {job.minutes:g} minutes.", "Give a number above 0.")
    if job.golden not in GOLDEN:
        raise ConfigError(f"Golden items cannot come from {job.golden!r}.", f"Choose one of: {', '.join(GOLDEN)}.")


def _spoken(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers)) or "No"


def _read_part(job: QuantizeJob, path: Path, checkpoint: Checkpoint) -> Part:
    examples: Sequence[Example] = load_examples(path, text_field=job.text_field, label_field=job.label_field)
    require_kind(examples, checkpoint.task, path)
    truth = truth_of(KINDS[checkpoint.task], examples, checkpoint.labels, path)
    inputs = tuple(example.input for example in examples)
    return Part(inputs, truth, digest_examples(examples), digest_items(examples))


def _texts(job: QuantizeJob, checkpoint: Checkpoint, tuning: Part) -> tuple[Input, ...]:
    if job.texts is None:
        return tuning.inputs
    examples = load_examples(job.texts, text_field=job.text_field, label_field=job.label_field)
    if checkpoint.image is not None:
        raise ConfigError("Texts were given for an image model.", "Leave out --texts.")
    require_kind(examples, checkpoint.task, job.texts)
    return tuple(example.input for example in examples)


def _check_disjoint(paths: Mapping[str, Path], parts: Mapping[str, Part]) -> None:
    names = list(parts)
    for later, part in enumerate(parts.values()):
        for earlier in names[:later]:
            if part.items_digest == parts[earlier].items_digest:
                raise DataError(
                    f"The {names[later]} part {paths[names[later]]} holds the same items as the {earlier} part "
                    f"{paths[earlier]}.",
                    "What it shows holds only for items that no choice has seen: split the data at random.",
                )


def overlap(part: Part | None, *others: Part | None) -> int:
    """How many items of a part occur in others as well."""
    seen = {item_key(item) for other in others if other is not None for item in other.inputs}
    return sum(item_key(item) in seen for item in part.inputs) if part is not None else 0


def code_digest(root: Path = Path(__file__).parents[1]) -> str:
    """Digest of the sources that shape a run, by name and content."""
    files = [
        file for name in _CODE for file in ([root / name] if name.endswith(".py") else (root / name).rglob("*.py"))
    ]
    lines = [f"{file.relative_to(root).as_posix()} {sha256_file(file)}\n" for file in sorted(files)]
    return sha256_bytes("".join(lines).encode())


def _facts(
    job: QuantizeJob,
    checkpoint_digest: str,
    parts: Mapping[str, Part],
    checkpoint: Checkpoint,
    tools: dict[str, str],
) -> dict[str, object]:
    """What the figures of a candidate depend on."""
    return {
        "checkpoint": checkpoint_digest,
        # The bundle is named after the folder.
        "name": checkpoint.name,
        "tuning": parts["tuning"].digest,
        "texts": sha256_tree(job.texts) if job.texts is not None else None,
        "max_length": checkpoint.max_length,
        "options": [job.threads[0], job.exporter, job.seed, job.golden],
        "tools": tools,
        "code": code_digest(),
        # Golden items and every measurement are this kind of machine's.
        "isa": probe().isa,
    }


def _goals(job: QuantizeJob, parts: Mapping[str, Part]) -> dict[str, object]:
    """What decides among candidates, and what else is asked of them."""
    return {
        "goal": [job.max_drop, job.confidence, job.prefer],
        "measured": [job.threads, job.lengths, job.profile_cmd],
        "search": [job.search, job.minutes],
        "parts": {name: part.digest for name, part in parts.items()},
    }


def _digest(facts: Mapping[str, object]) -> str:
    return sha256_bytes(msgspec.json.encode(facts, order="sorted"))
