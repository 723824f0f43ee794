"""The way from a checkpoint to a measured bundle: export, build, measure, pick, gate, report.

Owns the order of the stages and what each hands on; `run_folder.py` owns where it lies. Nothing appears under the run
folder before all of it is there. Decides nothing: `select.py` does.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.bundle import KINDS, Bundle, attach
from edgewise.contracts import Progress
from edgewise.errors import EdgewiseError
from edgewise.files import refuse_existing
from edgewise.quantize.answers import Answers, finite
from edgewise.quantize.candidates import Built, Factory, failed
from edgewise.quantize.export import Exported, ExportJob
from edgewise.quantize.items import items_of
from edgewise.quantize.measure import ROUNDS, Measured, measure_interleaved, performance
from edgewise.quantize.plan import SAMPLES, Part, Plan, QuantizeJob, make_plan
from edgewise.quantize.process import run_fresh
from edgewise.quantize.progress import NullProgress
from edgewise.quantize.quality import compare
from edgewise.quantize.report import (
    Candidate,
    CheckpointFacts,
    Export,
    Report,
    Stage,
    all_lose_too_much,
    headline,
)
from edgewise.quantize.run_folder import (
    CANDIDATES,
    WINNER,
    fresh_folder,
    keep_predictions,
    link_tree,
    recover,
    stored_report,
    write_report,
)
from edgewise.quantize.select import Entry, Gate, Pick, Verdict, judge, pick
from edgewise.quantize.statistics import Quality, drop_bound


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

    A missed goal is a result like any other: everything is saved, and the verdict says so.

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
    if plan.gate is not None and plan.gate_overlap:
        progress.note(_overlap_sentence(plan.gate_overlap, len(plan.gate.inputs)))
    stored = stored_report(job.out, plan.inputs_digest) if job.reuse else None
    if stored is not None:
        return QuantizeResult(stored, job.out, job.out / WINNER, unchanged=True)
    with fresh_folder(job.out) as folder:
        report = _Run(job, plan, folder, progress).execute()
    return QuantizeResult(report, job.out, job.out / WINNER, unchanged=False)


@dataclass
class _Run:
    """One run under way: the stages in their order, and what they hand on."""

    job: QuantizeJob
    plan: Plan
    folder: Path
    progress: Progress
    stages: list[Stage] = field(default_factory=list)

    def execute(self) -> Report:
        """Do all stages and write the report."""
        with self._stage("export", 1):
            exported = self._export()
        with self._stage("build", len(self.plan.choices)):
            built, export = self._build(exported)
        with self._stage("measure", ROUNDS * sum(1 for item in built if item.failure is None)):
            measured = self._measure(built)
        candidates = [self._candidate(item, measured) for item in built]
        choice = self._pick(candidates)
        gate = self._gate(choice) if self.plan.gate is not None else None
        report = self._report(candidates, choice, gate, export, measured)
        self._save(report, candidates)
        return report

    def _export(self) -> Exported:
        (self.folder / "work").mkdir()
        checkpoint = self.plan.checkpoint
        job = ExportJob(
            checkpoint=str(checkpoint.path.resolve()),
            task=checkpoint.task,
            architecture=checkpoint.architecture,
            exporter=self.plan.exporter,
            max_length=checkpoint.max_length or 0,
            out=str(self.folder / "work"),
            samples=items_of(self.plan.tuning.spread(SAMPLES)),
        )
        # Two threads at most: exporting gains little from more, and memory grows with them.
        exported = run_fresh("export", job, Exported, log=self._log("export"), threads=min(2, os.cpu_count() or 1))
        self.progress.advance()
        return exported

    def _build(self, exported: Exported) -> tuple[list[Built], Export]:
        factory = Factory(self.plan, exported, self.folder, seed=self.job.seed)
        export = factory.check_export()
        built = []
        for choice in self.plan.choices:
            item = factory.build(choice)
            if item.failure is not None:
                self.progress.note(f"{choice.id}: {item.failure}")
            built.append(item)
            self.progress.advance()
        return built, export

    def _measure(self, built: list[Built]) -> dict[str, Measured | EdgewiseError]:
        return measure_interleaved(
            {item.choice.id: item.bundle for item in built if item.failure is None},
            self.plan.tuning.inputs,
            work=self.folder / "work",
            log=self._log("measure"),
            threads=self.job.threads,
            advance=self.progress.advance,
        )

    def _candidate(self, built: Built, measured: dict[str, Measured | EdgewiseError]) -> Candidate:
        if built.failure is not None:
            return built.describe()
        found, baseline = measured[built.choice.id], measured[self.plan.choices[0].id]
        if isinstance(baseline, EdgewiseError):
            raise baseline
        if isinstance(found, EdgewiseError):
            return failed(built, str(found))
        if not finite(found.answers):
            return failed(built, "it answers items of the tuning part with NaN or infinity")
        answers = self._compare(found.answers, baseline.answers, self.plan.tuning)
        return built.describe(
            performance=performance(found, Bundle.open(built.bundle).size_bytes),
            quality=answers,
            drop_bound=0.0 if found is baseline else self._bound(answers),
        )

    def _pick(self, candidates: list[Candidate]) -> Pick:
        entries = [_entry(candidate) for candidate in candidates if candidate.state == "measured"]
        return pick(entries[0], entries[1:], max_drop=self.job.max_drop, prefer=self.plan.prefer)

    def _gate(self, choice: Pick) -> Gate | None:
        part = self.plan.gate
        if part is None:
            return None
        baseline = self.plan.choices[0].id
        names = list(dict.fromkeys([baseline, choice.id]))
        with self._stage("gate", len(names)):
            given = self._answers(names, part)
            answers = self._compare(given[choice.id], given[baseline], part)
        return judge(
            answers,
            max_drop=self.job.max_drop,
            confidence=self.job.confidence,
            is_baseline=choice.id == baseline,
        )

    def _compare(self, found: Answers, baseline: Answers, part: Part) -> Quality:
        return compare(KINDS[self.plan.checkpoint.task], found, baseline, part.truth).quality

    def _answers(self, names: list[str], part: Part) -> dict[str, Answers]:
        """Answers of some candidates on a part, each in one fresh process that also checks the golden items."""
        work = self.folder / "work" / "gate"
        work.mkdir()
        found = measure_interleaved(
            {name: self.folder / CANDIDATES / name for name in names},
            part.inputs,
            work=work,
            log=self._log("gate"),
            threads=self.job.threads,
            rounds=1,
            check_golden=True,
            advance=self.progress.advance,
        )
        given = {}
        for name, measured in found.items():
            if isinstance(measured, EdgewiseError):
                raise measured
            given[name] = measured.answers
        return given

    def _report(
        self,
        candidates: list[Candidate],
        choice: Pick,
        gate: Gate | None,
        export: Export,
        measured: dict[str, Measured | EdgewiseError],
    ) -> Report:
        verdict: Verdict = gate.verdict if gate is not None else "untested"
        if all_lose_too_much(candidates, self.job.max_drop):
            verdict = "missed"
        devices = [
            round_.device for found in measured.values() if isinstance(found, Measured) for round_ in found.rounds
        ]
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
            gate_digest=self.plan.gate.digest if self.plan.gate is not None else None,
            candidates=tuple(candidates),
            gate=gate,
            device=devices[0],
            threads=self.job.threads,
            tools=self.plan.tools,
            stages=tuple(self.stages),
            gate_overlap=self.plan.gate_overlap,
        )

    def _save(self, report: Report, candidates: list[Candidate]) -> None:
        for candidate in candidates:
            if candidate.state == "measured":
                payload = _measurement(report, candidate, self.plan.tuning)
                attach(self.folder / CANDIDATES / candidate.id, "measurement", payload)
        link_tree(self.folder / CANDIDATES / report.winner, self.folder / WINNER)
        if report.gate is not None:
            gate_payload = {
                "data_digest": report.gate_digest,
                "items_digest": self.plan.gate.items_digest if self.plan.gate is not None else None,
                "baseline_digest": _baseline_digest(report),
                "gate": report.gate,
            }
            attach(self.folder / WINNER, "gate", gate_payload)
        keep_predictions(self.folder, [candidate.id for candidate in candidates if candidate.state == "measured"])
        shutil.rmtree(self.folder / "work")
        write_report(self.folder, report, self.plan.inputs_digest)

    def _bound(self, answers: Quality) -> float:
        return drop_bound(answers.lost, answers.won, answers.n, 1 - self.job.confidence)

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    @contextmanager
    def _stage(self, name: str, total: int) -> Iterator[None]:
        self.progress.stage(name, total)
        started = time.perf_counter()
        yield
        self.stages.append(Stage(name, round(time.perf_counter() - started, 3)))


def _entry(candidate: Candidate) -> Entry:
    if candidate.performance is None or candidate.quality is None:
        raise ValueError(f"{candidate.id} was not measured")
    return Entry(
        id=candidate.id,
        size_bytes=candidate.performance.size_bytes,
        p50_ms=candidate.performance.latency.p50_ms,
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


def _measurement(report: Report, candidate: Candidate, tuning: Part) -> dict[str, object]:
    """The payload of a "measurement" attestation: `drop_bound` comes from a part that a choice has seen."""
    return {
        "part": "tuning",
        "data_digest": report.data_digest,
        "items_digest": tuning.items_digest,
        "baseline_digest": _baseline_digest(report),
        "checkpoint_bytes": report.checkpoint.size_bytes,
        "quality": candidate.quality,
        "drop_bound": candidate.drop_bound,
        "performance": candidate.performance,
        "threads": report.threads,
        "device": report.device,
    }


def _overlap_sentence(count: int, of: int) -> str:
    return (
        f"{count} of {of} gate items occur in the tuning part as well, which a choice has seen; the gate's bound holds "
        "for items drawn apart from it."
    )


def _baseline_digest(report: Report) -> str:
    return report.candidates[0].model_digest
