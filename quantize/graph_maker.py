"""Makes bundles of classifiers, embedders and taggers: one exported graph, a recipe for each candidate.

Owns what goes into such a bundle, and that one candidate's failure is that candidate's alone. Measures nothing.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
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
from edgewise.errors import CheckpointError, InputError
from edgewise.files import write_atomically
from edgewise.quantize.answering import Answered, AnswerJob
from edgewise.quantize.bench import Bench
from edgewise.quantize.build import BuildJob
from edgewise.quantize.calibration import FeedsDone, FeedsJob
from edgewise.quantize.candidates import Built, Made
from edgewise.quantize.export import Exported, Exporter, ExportJob, largest_difference, require_agreement
from edgewise.quantize.graph import Prepared, PrepareJob
from edgewise.quantize.items import items_of
from edgewise.quantize.measure import GoldenAnswers, GoldenJob
from edgewise.quantize.onnx_source import TakeJob
from edgewise.quantize.plan import SAMPLES, Plan
from edgewise.quantize.recipes import Aids, Choice, Outcome
from edgewise.quantize.report import Export
from edgewise.quantize.sensitivity import SensitivityDone, SensitivityJob

SIGNAL = "margin"
"""The signal of the golden scores."""

GOLDEN_ITEMS = 4
"""Items that travel in a bundle, so that a device can tell whether it computes what was measured."""

MIN_ONNXRUNTIME = "1.23"
"""The oldest onnxruntime that edgewise runs on; every recipe's operators are older."""

CALIBRATION_ITEMS = 64
"""Tuning items that recipes calibrate with."""

_EXPORTED = "exported.json"


class GraphMaker:
    """Implements `candidates.Maker` for models that are one ONNX graph.

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
        self._exported: Exported | None = None

    def export(self) -> Export:
        """Export the checkpoint, or take the ONNX file, and compare the two on real items as the edge answers them.

        Raises:
            CheckpointError: They differ by more than rounding, or nothing can be exported.
        """
        stored = self._bench.work / _EXPORTED
        if stored.is_file():
            self._exported = msgspec.json.decode(stored.read_bytes(), type=Exported)
            return self._checked(self._exported)
        exporter = self._plan.exporter
        self._exported = self._run_export(exporter)
        try:
            export = self._checked(self._exported)
        except CheckpointError as wrong:
            if exporter != "auto" or self._exported.exporter != "optimum":
                raise
            self._exported = self._run_export("torch", refused=wrong.problem)
            export = self._checked(self._exported)
        write_atomically(stored, msgspec.json.encode(self._exported))
        return export

    def build(self, choice: Choice) -> Built:
        """Build one candidate; whatever goes wrong is kept as its problem, unless it is the baseline.

        Raises:
            EdgewiseError: The baseline cannot be built.
        """
        return self._bench.build(choice, self._make, required=choice is self._plan.choices[0])

    def _make(self, choice: Choice, bundle: Path) -> Made:
        graph = self._bench.work / f"{choice.id}.onnx"
        try:
            outcome = self._apply(choice, graph)
            if outcome.inapplicable:
                return Made(state="inapplicable", problem=outcome.inapplicable, outcome=outcome)
            golden = self._golden(choice, graph, outcome)
            digest = pack_bundle(self._source(choice, graph, outcome, golden), bundle)
        finally:
            graph.unlink(missing_ok=True)
        return Made(outcome=outcome, model_digest=digest)

    def _run_export(self, exporter: Exporter, *, refused: str = "") -> Exported:
        checkpoint = self._plan.checkpoint
        out = self._bench.work / "export"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        if checkpoint.is_onnx:
            return self._bench.run("take", TakeJob.of(checkpoint, out), Exported)
        job = ExportJob(
            checkpoint=str(checkpoint.path.resolve()),
            task=checkpoint.task,
            architecture=checkpoint.architecture,
            exporter=exporter,
            max_length=checkpoint.max_length or 0,
            out=str(out),
            samples=items_of(self._plan.tuning.spread(SAMPLES)),
            pooling=checkpoint.pooling,
            labels=checkpoint.labels,
        )
        # Two threads at most: exporting gains little from more, and memory grows with them.
        found = self._bench.run("export", job, Exported, threads=min(2, os.cpu_count() or 1))
        return msgspec.structs.replace(found, refusals=(refused, *found.refusals) if refused else found.refusals)

    def _checked(self, exported: Exported) -> Export:
        """Compare what the checkpoint answered with what the graph does, as the edge runtime runs it."""
        if not exported.answers:
            return Export(exporter=exported.exporter, samples=0, largest_difference=0.0, allowed_difference=0.0)
        baseline = self._plan.choices[0]
        items = items_of(self._plan.tuning.spread(SAMPLES))
        with self._draft(baseline, Path(exported.onnx), Outcome()) as draft:
            rows = self._bench.run("answer", AnswerJob(str(draft), items), Answered, log="export").rows
        architecture = self._plan.checkpoint.architecture
        difference = require_agreement(exported.answers, rows, architecture, exported.exporter)
        return Export(
            exporter=exported.exporter,
            samples=len(rows),
            largest_difference=difference,
            allowed_difference=largest_difference(exported.answers, rows)[1],
            refusals=exported.refusals,
        )

    def _apply(self, choice: Choice, graph: Path) -> Outcome:
        source = self._prepared() if choice.recipe.prepared or choice.transforms else Path(self._exporting().onnx)
        job = BuildJob(
            recipe=choice.recipe.name,
            options=choice.plain_options(),
            source=str(source),
            out=str(graph),
            seed=self._plan.seed,
            aids=self._aids(choice.needs),
            transforms=choice.transforms,
        )
        return self._bench.run("build", job, Outcome, log=choice.id)

    def _exporting(self) -> Exported:
        if self._exported is None:
            self.export()
        if self._exported is None:
            raise RuntimeError("export() leaves what it exported")
        return self._exported

    def _prepared(self) -> Path:
        """The graph that recipes read, made when the first of them needs it."""
        return self._once("prepared.onnx", self._prepare)

    def _prepare(self, out: Path) -> None:
        self._bench.run("prepare", PrepareJob(self._exporting().onnx, str(out)), Prepared)

    def _aids(self, needs: frozenset[str]) -> Aids:
        makers = {"calibration": self._calibration, "sensitivity": self._sensitivity, "items": self._items}
        made = {name: str(make()) for name, make in makers.items() if name in needs}
        return Aids(tokenizer=self._exporting().tokenizer if "tokenizer" in needs else "", **made)

    def _items(self) -> Path:
        items = items_of(self._plan.texts)

        def make(out: Path) -> None:
            out.write_bytes(msgspec.json.encode(items))

        return self._once("texts.json", make)

    def _calibration(self) -> Path:
        bundle = self.build(self._plan.choices[0]).bundle
        items = items_of(self._plan.tuning.spread(CALIBRATION_ITEMS))

        def make(out: Path) -> None:
            self._bench.run("feeds", FeedsJob(str(bundle), items, str(out), CALIBRATION_ITEMS), FeedsDone)

        return self._once("calibration.npz", make)

    def _sensitivity(self) -> Path:
        calibration = self._calibration()

        def make(out: Path) -> None:
            job = SensitivityJob(
                source=str(self._prepared()),
                calibration=str(calibration),
                out=str(out),
                precisions=("int4", "int8"),
            )
            self._bench.run("sensitivity", job, SensitivityDone)

        return self._once("sensitivity.json", make)

    def _once(self, name: str, make: Callable[[Path], None]) -> Path:
        """A file of the work folder, made beside it first so that a kill leaves none that is half-written."""
        path = self._bench.work / name
        if not path.exists():
            beside = path.with_name(f"new-{name}")
            make(beside)
            beside.replace(path)
        return path

    def _golden(self, choice: Choice, graph: Path, outcome: Outcome) -> tuple[GoldenItem, ...]:
        """What the edge runtime answers to a few items: by a bundle that has no golden items yet."""
        inputs: Sequence[Input] = self._plan.tuning.spread(GOLDEN_ITEMS)
        if self._plan.synthetic_golden:
            inputs = synthetic_inputs(self._source(choice, graph, outcome, ()))
        with self._draft(choice, graph, outcome) as draft:
            job = GoldenJob(str(draft), items_of(inputs), SIGNAL)
            return self._bench.run("golden", job, GoldenAnswers, log=choice.id).items

    @contextmanager
    def _draft(self, choice: Choice, graph: Path, outcome: Outcome) -> Iterator[Path]:
        draft = self._bench.work / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            pack_bundle(self._source(choice, graph, outcome, ()), draft)
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _source(self, choice: Choice, graph: Path, outcome: Outcome, golden: tuple[GoldenItem, ...]) -> BundleSource:
        checkpoint = self._plan.checkpoint
        options = {**choice.plain_options(), "exporter": self._exporting().exporter}
        if choice.transforms:
            options["transforms"] = "+".join(choice.transforms)
        return BundleSource(
            name=checkpoint.name,
            task=checkpoint.task,
            onnx_path=graph,
            preprocessing=self._preprocessing(outcome),
            labels=checkpoint.labels,
            recipe=Recipe(choice.recipe.name, options, self._plan.seed, self._plan.tools),
            target=Target(self._target_isa, MIN_ONNXRUNTIME, read_facts(graph).opset),
            signal=SIGNAL,
            golden=golden,
            licences=checkpoint.licences,
        )

    def _preprocessing(self, outcome: Outcome) -> TextSource | ImagePreprocessing:
        checkpoint = self._plan.checkpoint
        if checkpoint.image is not None:
            return checkpoint.image
        if checkpoint.max_length is None:
            raise InputError(f"{checkpoint.path} has neither text nor image preprocessing.")
        tokenizer = Path(outcome.tokenizer or self._exporting().tokenizer)
        return TextSource(tokenizer.read_bytes(), checkpoint.max_length, max_unknown_share=outcome.max_unknown_share)


def synthetic_inputs(source: BundleSource) -> list[Input]:
    """Golden inputs without data, the same on every machine: the labels' names, or patterns of pixels.

    Any input shows whether a device computes what the packing machine did.
    """
    if isinstance(source.preprocessing, ImagePreprocessing):
        return [_pattern(source.preprocessing, number) for number in range(GOLDEN_ITEMS)]
    return list((source.labels or _WORDS)[:GOLDEN_ITEMS])


_WORDS = ("one", "two words", "three words here", "a sentence of five words")


def _pattern(to: ImagePreprocessing, number: int) -> bytes:
    from PIL import Image

    rows, columns = np.mgrid[0 : to.height, 0 : to.width]
    pixels = ((rows * (number + 1) + columns * (2 * number + 1)) % 256).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
