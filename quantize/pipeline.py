"""The way from a checkpoint to a measured bundle: export, search, build, measure, pick, gate, test, report.

Owns the order of the stages and what each hands on. `run_folder.py` owns where it lies, `assess.py` what is measured,
`select.py` what is chosen. Nothing appears under the run folder before all of it is there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from edgewise.contracts import Progress
from edgewise.errors import InputError
from edgewise.files import refuse_existing
from edgewise.quantize.assess import Assessment, Assessor
from edgewise.quantize.bounds import bound_of, needed_for
from edgewise.quantize.candidates import Built, Maker
from edgewise.quantize.exploring import Explorer
from edgewise.quantize.graph_maker import GraphMaker
from edgewise.quantize.plan import Part, Plan, QuantizeJob, make_plan
from edgewise.quantize.progress import NullProgress
from edgewise.quantize.quality import Compared
from edgewise.quantize.recipes import Choice
from edgewise.quantize.report import (
    Candidate,
    CheckpointFacts,
    Export,
    Report,
    Stage,
    all_lose_too_much,
    headline,
    pace_ms,
)
from edgewise.quantize.run_folder import WINNER, fresh_folder, recover, search_folder, stored_report, workshop
from edgewise.quantize.saving import save_run
from edgewise.quantize.search import TRIED, Ledger, Tried
from edgewise.quantize.select import Entry, Gate, Pick, Verdict, front, judge, pick


@dataclass(frozen=True)
class QuantizeResult:
    """A finished run.

    Attributes:
        report: What it found out.
        out: The run folder.
        bundle: The winner's bundle.
        unchanged: The folder held this very run already; nothing was done.
    """

    report: Report
    out: Path
    bundle: Path
    unchanged: bool

    @property
    def verdict(self) -> Verdict:
        """Whether the goal on the accuracy drop is met; "untested" without gate data."""
        return self.report.verdict

    @property
    def goal_met(self) -> bool:
        """Whether nothing was missed; a run without gate data misses only what the tuning part shows."""
        return self.verdict != "missed"


def quantize(job: QuantizeJob, progress: Progress | None = None) -> QuantizeResult:
    """Build the candidates of a checkpoint, measure each, and pack the winner.

    A missed goal is a result like any other: everything is saved, and the verdict says so. A search that is stopped, or
    killed, goes on where it was when the same job is asked for again.

    Args:
        job: What to do.
        progress: Told of stages and steps.

    Raises:
        InputError: The checkpoint, the data or an option cannot be used, or `out` exists already.
    """
    progress = progress or NullProgress()
    recover(job.out)
    if not job.reuse:
        refuse_existing(job.out)
    plan = make_plan(job)
    for sentence in _overlaps(plan):
        progress.note(sentence)
    stored = stored_report(job.out, plan.inputs_digest) if job.reuse else None
    if stored is not None:
        return QuantizeResult(stored, job.out, job.out / WINNER, unchanged=True)
    # The workshop of a search goes only when the run has its name.
    with _told_to_resume(job, progress), _workshop(job, plan) as work, fresh_folder(job.out) as folder:
        report = _Run(job, plan, folder, work or folder / "work", progress).execute()
    return QuantizeResult(report, job.out, job.out / WINNER, unchanged=False)


@contextmanager
def _told_to_resume(job: QuantizeJob, progress: Progress) -> Iterator[None]:
    try:
        yield
    except BaseException as e:
        if job.search and not isinstance(e, InputError) and any((search_folder(job.out) / TRIED).glob("*.json")):
            progress.note("What was tried is kept: the same command, given again, goes on with it.")
        raise


def _workshop(job: QuantizeJob, plan: Plan) -> AbstractContextManager[Path | None]:
    return workshop(job.out, plan.search_digest) if job.search else nullcontext()


@dataclass
class _Run:
    """One run under way: the stages in their order, and what they hand on."""

    job: QuantizeJob
    plan: Plan
    folder: Path
    work: Path
    progress: Progress
    stages: list[Stage] = field(default_factory=list)
    peak_rss_bytes: int = 0

    def __post_init__(self) -> None:
        logs = self.folder / "logs"
        logs.mkdir()
        # Apart from what is made: both pass files on by name.
        measuring = self.work / "measuring"
        measuring.mkdir(parents=True, exist_ok=True)
        self.assessor = Assessor(self.job, self.plan, measuring, logs, self._note_peak)
        self.maker = _maker(self.plan, self.work, logs, self._note_peak)

    def execute(self) -> Report:
        """Do all stages and write the report."""
        with self._stage("export", 1):
            export = self.maker.export()
            self.progress.advance()
        tried, choices = self._search() if self.job.search else ((), self.plan.choices)
        built = self._build(choices)
        with self._stage("measure", self.assessor.steps(built)):
            assessed = self.assessor.on_tuning(built, self.progress.advance)
        entries = [_entry(candidate) for candidate in assessed.candidates if candidate.state == "measured"]
        choice = pick(entries[0], entries[1:], max_drop=self.job.max_drop, prefer=self.plan.prefer)
        bundles = {item.choice.id: item.bundle for item in built}
        gate = self._gate(choice, bundles)
        test = self._on_part("test", self.plan.test, choice, bundles)
        candidates = [
            *(replace(found, on_front=found.id in front(entries)) for found in assessed.candidates),
            *_explored(tried, built),
        ]
        report = self._report(export, candidates, assessed, choice, gate, test)
        save_run(self.folder, report, self.plan, bundles, assessed.answers)
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        return report

    def _search(self) -> tuple[Sequence[Tried], Sequence[Choice]]:
        """What was tried, and what of it is measured in full."""
        explorer = Explorer(self.job, self.plan, self.maker, self.assessor, Ledger(self.work / TRIED), self.progress)
        with self._stage("search", int(60 * self.job.minutes)):
            tried = explorer.run()
        return tried, explorer.chosen(tried)

    def _build(self, choices: Sequence[Choice]) -> list[Built]:
        built = []
        with self._stage("build", len(choices)):
            for choice in choices:
                built.append(self.maker.build(choice))
                if built[-1].made.problem:
                    self.progress.note(f"{choice.id}: {built[-1].made.problem}")
                self.progress.advance()
        return built

    def _gate(self, choice: Pick, bundles: Mapping[str, Path]) -> Gate | None:
        compared = self._on_part("gate", self.plan.gate, choice, bundles)
        if compared is None:
            return None
        delta = 1 - self.job.confidence
        # The baseline loses nothing against itself, whatever a bound says.
        bound = 0.0 if choice.id == self.plan.choices[0].id else bound_of(compared, delta)
        met = bound <= self.job.max_drop
        return judge(
            compared.quality,
            bound=bound,
            needed=None if met else needed_for(compared, self.job.max_drop, delta),
            max_drop=self.job.max_drop,
            confidence=self.job.confidence,
        )

    def _on_part(self, name: str, part: Part | None, choice: Pick, bundles: Mapping[str, Path]) -> Compared | None:
        """The winner beside the baseline on a part that no choice has seen."""
        if part is None:
            return None
        names = list(dict.fromkeys([self.plan.choices[0].id, choice.id]))
        with self._stage(name, len(names)):
            found = self.assessor.on_part({id_: bundles[id_] for id_ in names}, part, name, self.progress.advance)
            return self.assessor.compared(found[-1], found[0], part)

    def _report(
        self,
        export: Export,
        candidates: Sequence[Candidate],
        assessed: Assessment,
        choice: Pick,
        gate: Gate | None,
        test: Compared | None,
    ) -> Report:
        verdict: Verdict = gate.verdict if gate is not None else "untested"
        if all_lose_too_much(candidates, self.job.max_drop):
            verdict = "missed"
        gate_part, test_part = self.plan.gate, self.plan.test
        return Report(
            headline=headline(candidates, choice.id, max_drop=self.job.max_drop, gate=gate),
            verdict=verdict,
            winner=choice.id,
            why=choice.why,
            prefer=self.plan.prefer,
            max_drop=self.job.max_drop,
            checkpoint=_checkpoint_facts(self.plan),
            export=export,
            data_digest=self.plan.tuning.digest,
            gate_digest=gate_part.digest if gate_part is not None else None,
            candidates=tuple(candidates),
            gate=gate,
            device=assessed.device,
            built_on=assessed.built_on,
            threads=self.job.threads[0],
            tools=self.plan.tools,
            stages=tuple(self.stages),
            gate_overlap=self.plan.gate_overlap,
            test=test.quality if test is not None else None,
            test_digest=test_part.digest if test_part is not None else None,
            test_overlap=self.plan.test_overlap,
            peak_rss_bytes=self.peak_rss_bytes,
        )

    def _note_peak(self, size_bytes: int) -> None:
        self.peak_rss_bytes = max(self.peak_rss_bytes, size_bytes)

    @contextmanager
    def _stage(self, name: str, total: int) -> Iterator[None]:
        self.progress.stage(name, total)
        started = time.perf_counter()
        yield
        self.stages.append(Stage(name, round(time.perf_counter() - started, 3)))


def _maker(plan: Plan, work: Path, logs: Path, peak: Callable[[int], None]) -> Maker:
    if plan.kind == "generator":
        from edgewise.quantize.generation.maker import GeneratorMaker

        return GeneratorMaker(plan, work, logs, peak)
    return GraphMaker(plan, work, logs, peak)


def _explored(tried: Sequence[Tried], built: Sequence[Built]) -> Iterator[Candidate]:
    """What a search looked at and did not measure in full."""
    full = {item.choice.id for item in built}
    for found in tried:
        if found.id not in full:
            figures = (
                f"{found.size_bytes / 1e6:.1f} MB, {found.p50_ratio:.2f} x the baseline's p50, drop {found.drop:+.4f}"
            )
            yield Candidate(
                id=found.id,
                spelling=found.spelling,
                recipe=str(found.parameters["recipe"]),
                options={},
                state="failed" if found.problem else "explored",
                model_digest=found.model_digest,
                problem=found.problem or f"not on the front after a first look: {figures}",
                seconds=found.seconds,
            )


def _entry(candidate: Candidate) -> Entry:
    if candidate.performance is None or candidate.quality is None:
        raise ValueError(f"{candidate.id} was not measured")
    return Entry(
        id=candidate.id,
        size_bytes=candidate.performance.size_bytes,
        p50_ms=pace_ms(candidate.performance),
        drop=candidate.quality.drop,
    )


def _checkpoint_facts(plan: Plan) -> CheckpointFacts:
    checkpoint = plan.checkpoint
    return CheckpointFacts(
        name=checkpoint.name,
        architecture=checkpoint.architecture,
        task=checkpoint.task,
        labels=len(checkpoint.labels),
        size_bytes=checkpoint.size_bytes,
        max_length=checkpoint.max_length,
        digest=plan.checkpoint_digest,
    )


def _overlaps(plan: Plan) -> Iterator[str]:
    if plan.gate is not None and plan.gate_overlap:
        yield (
            f"{plan.gate_overlap} of {len(plan.gate.inputs)} gate items occur in the tuning part as well, which a "
            "choice has seen; the gate's bound holds for items drawn apart from it."
        )
    if plan.test is not None and plan.test_overlap:
        yield (
            f"{plan.test_overlap} of {len(plan.test.inputs)} test items occur in the tuning or the gate part as well; "
            "the test's figures hold for items drawn apart from them."
        )
