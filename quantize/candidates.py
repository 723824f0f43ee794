"""Turns choices into bundles: graph, golden items, bundle.

Owns what goes into a candidate's bundle, and that one candidate's failure is that candidate's alone. Measures nothing.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgewise.bundle import (
    BundleSource,
    GoldenItem,
    ImagePreprocessing,
    Recipe,
    Target,
    TextSource,
    pack_bundle,
    read_facts,
)
from edgewise.contracts import Input
from edgewise.edge import probe
from edgewise.errors import EdgewiseError, InputError
from edgewise.quantize.build import BuildJob
from edgewise.quantize.export import Exported, largest_difference, require_agreement
from edgewise.quantize.graph import Prepared, PrepareJob
from edgewise.quantize.items import items_of
from edgewise.quantize.measure import GoldenAnswers, GoldenJob
from edgewise.quantize.plan import SAMPLES, Plan
from edgewise.quantize.process import run_fresh
from edgewise.quantize.recipes import Choice, Outcome
from edgewise.quantize.report import Candidate, Export, Performance, State
from edgewise.quantize.statistics import Quality

SIGNAL = "margin"
"""The signal of the golden scores."""

GOLDEN_ITEMS = 4
"""Items that travel in a bundle, so that a device can tell whether it computes what was measured."""

MIN_ONNXRUNTIME = "1.23"
"""The oldest onnxruntime that edgewise runs on; every recipe's operators are older."""


@dataclass(frozen=True)
class Built:
    """A choice that was tried.

    Attributes:
        choice: The choice.
        bundle: Where its bundle lies, if it came about.
        outcome: What the recipe did, if it ran.
        failure: Why there is no bundle, or None.
        state: As in the report.
        model_digest: The bundle's.
    """

    choice: Choice
    bundle: Path
    outcome: Outcome | None = None
    failure: str | None = None
    state: State = "measured"
    model_digest: str = ""

    def describe(
        self,
        *,
        performance: Performance | None = None,
        quality: Quality | None = None,
        drop_bound: float | None = None,
    ) -> Candidate:
        """It, as the report shows it."""
        return Candidate(
            id=self.choice.id,
            recipe=self.choice.recipe.name,
            options=self.choice.plain_options(),
            state=self.state,
            problem=self.failure or "",
            facts=self.outcome.facts if self.outcome else (),
            skipped=self.outcome.skipped if self.outcome else (),
            model_digest=self.model_digest,
            performance=performance,
            quality=quality,
            drop_bound=drop_bound,
        )


def failed(built: Built, problem: str) -> Candidate:
    """A candidate whose bundle came about and did not pass its measurement."""
    return Built(built.choice, built.bundle, built.outcome, problem, "failed", built.model_digest).describe()


class Factory:
    """Builds the candidates of one run.

    Args:
        plan: What is to be built.
        exported: The exported graph.
        folder: The run folder; it has a `work` folder.
        seed: Seed of whatever a recipe draws.
    """

    def __init__(self, plan: Plan, exported: Exported, folder: Path, *, seed: int) -> None:
        self._plan = plan
        self._exported = exported
        self._folder = folder
        self._work = folder / "work"
        self._seed = seed
        self._target_isa = (probe().isa,)
        self._prepared: Path | None = None

    def check_export(self) -> Export:
        """Compare the checkpoint with the exported graph, as the edge runtime answers with it, on real items.

        Raises:
            CheckpointError: They differ by more than rounding.
        """
        baseline = self._plan.choices[0]
        answers = self._draft_answers(baseline, Path(self._exported.onnx), self._plan.tuning.spread(SAMPLES))
        expected = self._exported.answers
        found = [item.logits for item in answers]
        exporter = self._exported.exporter
        difference = require_agreement(expected, found, self._plan.checkpoint.architecture, exporter)
        return Export(
            exporter=exporter,
            samples=len(answers),
            largest_difference=difference,
            allowed_difference=largest_difference(expected, found)[1],
        )

    def build(self, choice: Choice) -> Built:
        """Build one candidate; whatever goes wrong is kept as its failure, unless it is the baseline.

        Raises:
            EdgewiseError: The baseline cannot be built.
        """
        bundle = self._folder / "candidates" / choice.id
        outcome = None
        try:
            graph = self._work / f"{choice.id}.onnx"
            outcome = self._apply(choice, graph)
            if outcome.inapplicable:
                return Built(choice, bundle, outcome, outcome.inapplicable, "inapplicable")
            golden = self._draft_answers(choice, graph, self._golden_inputs(choice, graph))
            digest = pack_bundle(self._source(choice, graph, golden), bundle)
            graph.unlink()
        except EdgewiseError as e:
            if choice is self._plan.choices[0]:
                raise
            return Built(choice, bundle, outcome, str(e), "failed")
        return Built(choice, bundle, outcome, model_digest=digest)

    def _apply(self, choice: Choice, graph: Path) -> Outcome:
        source = self._prepare() if choice.recipe.prepared else Path(self._exported.onnx)
        job = BuildJob(choice.recipe.name, choice.plain_options(), str(source), str(graph), self._seed)
        return run_fresh("build", job, Outcome, log=self._log(choice.id), threads=1)

    def _prepare(self) -> Path:
        """The graph that recipes read, made when the first of them needs it."""
        if self._prepared is None:
            out = self._work / "prepared.onnx"
            job = PrepareJob(self._exported.onnx, str(out))
            run_fresh("prepare", job, Prepared, log=self._log("prepare"), threads=1)
            self._prepared = out
        return self._prepared

    def _golden_inputs(self, choice: Choice, graph: Path) -> Sequence[Input]:
        if self._plan.synthetic_golden:
            return synthetic_inputs(self._source(choice, graph, ()))
        return self._plan.tuning.spread(GOLDEN_ITEMS)

    def _draft_answers(self, choice: Choice, graph: Path, inputs: Sequence[Input]) -> tuple[GoldenItem, ...]:
        """What the edge runtime answers with a graph to some items: by a bundle that has no golden items yet."""
        draft = self._work / "draft"
        try:
            pack_bundle(self._source(choice, graph, ()), draft)
            job = GoldenJob(str(draft), items_of(inputs), SIGNAL)
            return run_fresh("golden", job, GoldenAnswers, log=self._log(choice.id), threads=1).items
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _source(self, choice: Choice, graph: Path, golden: tuple[GoldenItem, ...]) -> BundleSource:
        checkpoint = self._plan.checkpoint
        return BundleSource(
            name=checkpoint.name,
            task=checkpoint.task,
            onnx_path=graph,
            preprocessing=self._preprocessing(),
            labels=checkpoint.labels,
            recipe=Recipe(
                choice.recipe.name,
                {**choice.plain_options(), "exporter": self._exported.exporter},
                self._seed,
                self._plan.tools,
            ),
            target=Target(self._target_isa, MIN_ONNXRUNTIME, read_facts(graph).opset),
            signal=SIGNAL,
            golden=golden,
            licences=checkpoint.licences,
        )

    def _preprocessing(self) -> TextSource | ImagePreprocessing:
        checkpoint = self._plan.checkpoint
        if checkpoint.image is not None:
            return checkpoint.image
        if checkpoint.max_length is None:
            raise InputError(f"{checkpoint.path} has neither text nor image preprocessing.")
        return TextSource(Path(self._exported.tokenizer).read_bytes(), checkpoint.max_length)

    def _log(self, name: str) -> Path:
        return self._folder / "logs" / f"{name}.log"


def synthetic_inputs(source: BundleSource) -> list[Input]:
    """Golden inputs without data, the same on every machine: the labels' names, or patterns of pixels.

    Any input shows whether a device computes what the packing machine did.
    """
    if isinstance(source.preprocessing, TextSource):
        return list(source.labels[:GOLDEN_ITEMS])
    return [_pattern(source.preprocessing, number) for number in range(GOLDEN_ITEMS)]


def _pattern(to: ImagePreprocessing, number: int) -> bytes:
    from PIL import Image

    rows, columns = np.mgrid[0 : to.height, 0 : to.width]
    pixels = ((rows * (number + 1) + columns * (2 * number + 1)) % 256).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
