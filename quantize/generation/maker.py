"""Makes bundles of causal language models: onnxruntime-genai builds each precision from the checkpoint itself.

Owns what goes into such a bundle, and that one candidate's failure is that candidate's alone. Measures nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgewise.bundle import GeneratorSource, GoldenItem, Recipe, Target, pack_generator, read_facts
from edgewise.contracts import Input
from edgewise.edge import probe
from edgewise.errors import CheckpointError
from edgewise.files import write_atomically
from edgewise.quantize.bench import Bench
from edgewise.quantize.candidates import Built, Made
from edgewise.quantize.generation.agreement import Agreement, AgreementJob
from edgewise.quantize.generation.builder import GRAPH, GenaiJob
from edgewise.quantize.generation.checkpoint import require_plain
from edgewise.quantize.graph_maker import GOLDEN_ITEMS, MIN_ONNXRUNTIME
from edgewise.quantize.items import items_of
from edgewise.quantize.measure import GoldenAnswers, GoldenJob
from edgewise.quantize.plan import SAMPLES, Plan
from edgewise.quantize.recipes import Choice, Outcome
from edgewise.quantize.report import Export

PROMPTS = (
    "The weather today is",
    "1, 2, 3, 4,",
    "def add(a, b):\n    return",
    "Question: What is the capital of France?\nAnswer:",
)
"""Golden prompts without data. Any prompt shows whether a device computes what the packing machine did."""

_AGREED = "agreed.json"


class GeneratorMaker:
    """Implements `candidates.Maker` for causal language models.

    Args:
        plan: What is to be built.
        work: Where it is built; what lies there from a run before is taken as it is.
        logs: Where the processes' output goes.
        peak: Told the largest resident memory of each process, in bytes.
    """

    def __init__(self, plan: Plan, work: Path, logs: Path, peak: Callable[[int], None]) -> None:
        self._plan = plan
        self._bench = Bench(work, logs, peak)
        self._target_isa = (probe().isa,)

    def export(self) -> Export:
        """Build the float32 baseline, and compare it with the checkpoint on real texts as the edge reads them.

        Raises:
            CheckpointError: They differ by more than rounding, or the builder cannot build it.
        """
        require_plain(self._plan.checkpoint.path)
        stored = self._bench.work / _AGREED
        if not stored.is_file():
            bundle = self.build(self._plan.choices[0]).bundle
            texts = tuple(str(text) for text in self._plan.tuning.spread(SAMPLES))
            job = AgreementJob(str(self._plan.checkpoint.path.resolve()), str(bundle), texts)
            agreement = self._bench.run("agree", job, Agreement, log="export")
            write_atomically(stored, msgspec.json.encode(agreement))
        found = msgspec.json.decode(stored.read_bytes(), type=Agreement)
        return Export(
            exporter="genai",
            samples=found.texts,
            largest_difference=found.difference,
            allowed_difference=found.allowed,
        )

    def build(self, choice: Choice) -> Built:
        """Build one candidate; whatever goes wrong is kept as its problem, unless it is the baseline.

        Raises:
            EdgewiseError: The baseline cannot be built.
        """
        return self._bench.build(choice, self._make, required=choice is self._plan.choices[0])

    def _make(self, choice: Choice, bundle: Path) -> Made:
        if choice.transforms:
            problem = f"{', '.join(choice.transforms)}: no transform fits a language model, which is built as a whole"
            return Made(state="inapplicable", problem=problem)
        with self._folder(choice.id) as folder:
            outcome = self._apply(choice, folder)
            golden = self._golden(choice, folder)
            digest = pack_generator(self._source(choice, folder, golden), bundle)
        return Made(outcome=outcome, model_digest=digest)

    @contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        """An empty folder that is gone afterwards: it holds the weights a second time."""
        folder = self._bench.work / f"{name}.built"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _apply(self, choice: Choice, folder: Path) -> Outcome:
        job = GenaiJob(
            recipe=choice.recipe.name,
            options=choice.plain_options(),
            source=str(self._plan.checkpoint.path.resolve()),
            out=str(folder),
            seed=self._plan.seed,
        )
        # Two threads at most, as for an export: some roundings search for minutes, and memory grows with threads.
        return self._bench.run("genai", job, Outcome, log=choice.id, threads=min(2, os.cpu_count() or 1))

    def _golden(self, choice: Choice, folder: Path) -> tuple[GoldenItem, ...]:
        """What the edge runtime answers to a few prompts: by a bundle that has no golden items yet."""
        prompts: Sequence[Input] = PROMPTS
        if not self._plan.synthetic_golden:
            prompts = self._plan.tuning.spread(GOLDEN_ITEMS)
        source = self._source(choice, folder, ())
        with self._folder("draft") as draft:
            pack_generator(source, draft / "bundle")
            job = GoldenJob(str(draft / "bundle"), items_of(prompts), "")
            return self._bench.run("golden", job, GoldenAnswers, log=choice.id).items

    def _source(self, choice: Choice, folder: Path, golden: tuple[GoldenItem, ...]) -> GeneratorSource:
        checkpoint = self._plan.checkpoint
        if checkpoint.max_length is None:
            raise CheckpointError(f"{checkpoint.path} names no length limit.", "Give --max-length.")
        return GeneratorSource(
            name=checkpoint.name,
            folder=folder,
            recipe=Recipe(choice.recipe.name, choice.plain_options(), self._plan.seed, self._plan.tools),
            target=Target(self._target_isa, MIN_ONNXRUNTIME, read_facts(folder / GRAPH).opset),
            max_length=checkpoint.max_length,
            golden=golden,
            licences=checkpoint.licences,
        )
