"""What people see: tables and sentences as rich renderables, and the progress display. Prints nothing itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from edgewise.bundle import Bundle, TensorSpec
    from edgewise.contracts import Certificate
    from edgewise.jobs.certify import Certified
    from edgewise.jobs.doctor import Diagnosis
    from edgewise.jobs.evaluate import Summary
    from edgewise.jobs.predict import Predicted
    from edgewise.quantize.pipeline import QuantizeResult
    from edgewise.quantize.profiling import Profile
    from edgewise.quantize.report import Candidate, Report
    from edgewise.quantize.statistics import Latency


_SHOWN_TENSORS = 6


class ConsoleProgress:
    """Implements `contracts.Progress` as bars, each stage under the one before."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._current: TaskID | None = None

    def stage(self, name: str, total: int | None = None) -> None:
        """End the stage before and begin a new bar."""
        self._end_stage()
        self._current = self._bars.add_task(name, total=total)

    def advance(self, steps: int = 1) -> None:
        """Move the current bar."""
        if self._current is not None:
            self._bars.advance(self._current, steps)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(text, highlight=False)

    def finish(self) -> None:
        """End the last stage."""
        self._end_stage()

    def _end_stage(self) -> None:
        if self._current is None:
            return
        task = next(task for task in self._bars.tasks if task.id == self._current)
        total = task.total if task.total is not None else max(task.completed, 1)
        self._bars.update(self._current, total=total, completed=total)


@contextmanager
def progress_on(console: Console) -> Iterator[ConsoleProgress]:
    """Show progress on `console` while the block runs; plain silence where it is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        progress = ConsoleProgress(bars)
        yield progress
        progress.finish()


def quantized_view(result: QuantizeResult) -> RenderableType:
    """A quantization run: its report, and where the winner lies."""
    where = f"{result.bundle}{' (unchanged)' if result.unchanged else ''}"
    return Group(report_view(result.report), f"Winner: {where}", f"Report: {result.out / 'report.html'}")


def report_view(report: Report) -> RenderableType:
    """A report: its headline, every candidate, and why one won."""
    generator = report.checkpoint.task == "text-generation"
    table = Table(box=None, pad_edge=False)
    table.add_column("candidate", style="bold", no_wrap=True)
    for name in ("MB", "accuracy", "drop", "flips", *_SPEED[generator], "load ms", "RSS MB"):
        table.add_column(name, justify="right")
    for candidate in report.candidates:
        table.add_row(_marked(candidate, report.winner), *_measured(candidate, generator))
    notes = [f"{found.id}: {found.problem}" for found in report.candidates if found.problem]
    notes += [f"{found.id}: not quantized: {', '.join(found.skipped)}" for found in report.candidates if found.skipped]
    spent = ", ".join(f"{stage.name} {stage.seconds:.1f} s" for stage in report.stages)
    test = [_test_sentence(report)] if report.test is not None else []
    legend = "← the winner, * on the Pareto front of size, speed and accuracy"
    return Group(report.headline, table, legend, report.why, *test, *notes, f"Time: {spent}")


_SPEED = {False: ("p50 ms", "p95 ms"), True: ("token/s", "first ms")}


def _marked(candidate: Candidate, winner: str) -> str:
    name = candidate.spelling or candidate.id
    return f"{name}{' *' if candidate.on_front else ''}{' ←' if candidate.id == winner else ''}"


def _test_sentence(report: Report) -> str:
    found = report.test
    if found is None:
        return ""
    return (
        f"On the test part ({found.n} items): accuracy {found.accuracy:.4f}, {found.baseline_accuracy:.4f} before; "
        f"{found.lost} lost, {found.won} won, {100 * found.flips:.1f} % answered differently."
    )


def profile_view(profile: Profile) -> RenderableType:
    """What a bundle costs on this machine."""
    cost, table = profile.performance, _facts()
    table.add_row("bundle", f"{profile.name} ({profile.kind}), {cost.size_bytes / 1e6:.1f} MB")
    table.add_row("machine", f"{profile.device.isa}, {profile.device.cores} cores")
    table.add_row("load, first answer", f"{cost.load_ms:.0f} ms, {cost.first_ms:.2f} ms")
    table.add_row("peak memory", f"{cost.peak_rss_bytes / 1e6:.0f} MB")
    table.add_row("latency", _quantiles(cost.latency))
    if cost.tokens_per_s is not None:
        table.add_row("tokens a second", f"{cost.tokens_per_s:.1f}")
    for setting in cost.settings:
        what = f"{setting.tokens} tokens" if setting.tokens is not None else "the items' own lengths"
        threads = f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"
        table.add_row(f"{threads}, {what}", _quantiles(setting.latency))
    table.add_row("golden items", profile.golden)
    for fact in profile.facts:
        table.add_row("not measured", fact)
    return table


def _quantiles(found: Latency) -> str:
    return f"p50 {found.p50_ms:.2f}, p95 {found.p95_ms:.2f}, p99 {found.p99_ms:.2f} ms ({found.calls} calls)"


def _measured(candidate: Candidate, generator: bool) -> list[str]:
    cost, answers = candidate.performance, candidate.quality
    if cost is None or answers is None:
        return [candidate.state]
    speed = (
        [f"{cost.tokens_per_s or 0:.1f}", f"{cost.latency.p50_ms:.0f}"]
        if generator
        else [f"{cost.latency.p50_ms:.2f}", f"{cost.latency.p95_ms:.2f}"]
    )
    return [
        f"{cost.size_bytes / 1e6:.1f}",
        f"{answers.accuracy:.4f}",
        f"{answers.drop:+.4f}",
        f"{100 * answers.flips:.1f} %",
        *speed,
        f"{cost.load_ms:.0f}",
        f"{cost.peak_rss_bytes / 1e6:.0f}",
    ]


def certificate_sentence(certificate: Certificate) -> str:
    """The promise in words a manager understands."""
    bound = certificate.bound
    if bound.local_share == 0:
        return (
            f"No threshold keeps the promise of at most {_percent(bound.alpha)} with {_percent(1 - bound.delta)} "
            "confidence: every request goes to the cloud."
        )
    return (
        f"With {_percent(1 - bound.delta)} confidence, at most {_percent(bound.alpha)} of all requests like the "
        f"{bound.n} certifying ones are answered locally, as final, and differently from {certificate.reference.name}. "
        f"About {_percent(bound.local_share)} of requests are answered locally."
    )


def certified_view(found: Certified) -> RenderableType:
    """A certificate and where it lies."""
    certificate, bound = found.certificate, found.certificate.bound
    table = _facts()
    table.add_row("certificate", str(found.path) + (" (unchanged)" if found.reused else ""))
    table.add_row("answer locally iff", f"{certificate.signal} > {bound.threshold:.6g}")
    table.add_row("answered locally", f"{_percent(bound.local_share)} of the certifying items")
    if found.disagreements is not None:
        table.add_row("differ from the cloud", f"{found.disagreements} of {bound.n} items, locally answered or not")
    table.add_row("allowed among the local ones", f"{bound.k} of {bound.n} items")
    table.add_row("reference", f"{certificate.reference.name} {certificate.reference.version}")
    return Group(certificate_sentence(certificate), table)


def summary_view(summary: Summary) -> RenderableType:
    """An evaluation as a table."""
    table = _facts()
    lost, n = summary.local_disagreements, summary.n_test
    rows = [
        ("accuracy, cloud alone", _percent(summary.cloud_accuracy)),
        ("accuracy, edge alone", _percent(summary.edge_accuracy)),
        ("accuracy, routed", _percent(summary.routed_accuracy)),
        ("answered locally", _percent(summary.local_share)),
        (
            "local and different from the cloud",
            f"{_percent(summary.local_disagreement)} of all requests: {lost} of {n}",
        ),
        (
            "promised",
            f"at most {_percent(summary.alpha)} expected, with {_percent(1 - summary.delta)} confidence; "
            f"up to {summary.unsurprising_up_to} of {n} would be no surprise",
        ),
        ("different, given local", _percent(summary.disagreement_given_local)),
        ("answered provisionally", _percent(summary.provisional_share)),
        ("cloud calls saved", f"{summary.cloud_calls_saved} of {n}"),
        ("latency local, ms", _latency(summary.latency_ms["local"])),
        ("latency escalated, ms", _latency(summary.latency_ms["escalated"])),
        ("bundle", _megabytes(summary.bundle_bytes)),
        ("fp32 checkpoint", _megabytes(summary.checkpoint_bytes)),
        ("certified on, tested on", f"{summary.n_certify}, {n} items"),
        ("wall time", f"{summary.wall_s:.1f} s"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def bundle_view(bundle: Bundle) -> RenderableType:
    """What a bundle holds, and what was attested of it."""
    core = bundle.core
    table = _facts()
    rows = [
        ("name", core.name),
        ("task", core.task),
        ("digest", bundle.model_digest),
        ("size", _megabytes(bundle.size_bytes)),
        ("recipe", f"{core.recipe.name} {_options(core.recipe.options)}".strip()),
        ("made with", _options(core.recipe.tools)),
        ("needs", f"onnxruntime {core.target.min_onnxruntime} or newer, opset {core.target.opset}"),
        ("inputs", _tensors(core.inputs)),
        ("outputs", _tensors(core.outputs)),
        *([("labels", _labels(core.labels))] if core.labels else []),
        ("licences", ", ".join(core.licences) or "none stated"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    for attestation in bundle.attestations():
        table.add_row(f"attested: {attestation.kind}", _figures(attestation.payload) or "see --json")
    return table


def diagnosis_view(diagnosis: Diagnosis) -> RenderableType:
    """What this machine can and cannot do."""
    device = diagnosis.device
    table = _facts()
    table.add_row("edgewise", diagnosis.edgewise)
    table.add_row("python", device.python)
    table.add_row("processor", f"{device.isa}, {device.cores} cores, {device.memory_bytes / 2**30:.1f} GiB of memory")
    table.add_row("base", ", ".join(f"{package.name} {package.version or 'MISSING'}" for package in diagnosis.base))
    for extra in diagnosis.extras:
        missing = [package.name for package in extra.packages if package.version is None]
        table.add_row(f"extra {extra.name}", "complete" if not missing else f"missing {', '.join(missing)}")
    problems = [f"• {problem}" for problem in diagnosis.problems] or ["Nothing is missing."]
    return Group(table, *problems)


def predictions_view(rows: Sequence[Predicted]) -> RenderableType:
    """Answers with their scores."""
    table = Table(box=None, pad_edge=False)
    table.add_column("answer", style="bold", no_wrap=True)
    table.add_column(rows[0].signal, justify="right")
    table.add_column("item", overflow="fold")
    for row in rows:
        table.add_row(row.output, _score(row), row.input)
    return table


def _score(row: Predicted) -> str:
    if row.out_of_distribution:
        return "unknown words: to the cloud"
    return "" if math.isnan(row.score) else f"{row.score:.4f}"


def _figures(payload: Mapping[str, Any], prefix: str = "") -> str:
    """Every number of an attestation with the path that leads to it, device and digests left out."""
    found = []
    for key, value in payload.items():
        if isinstance(value, Mapping) and key != "device":
            found.append(_figures(value, f"{prefix}{key}."))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(f"{prefix}{key} {value:.6g}" if isinstance(value, float) else f"{prefix}{key} {value}")
    return ", ".join(part for part in found if part)


def _facts() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _megabytes(size: int | None) -> str:
    return "not stated" if size is None else f"{size / 1e6:.1f} MB"


def _latency(percentiles: Any) -> str:
    known = [f"{name} {value:.2f}" for name, value in percentiles.items() if value is not None]
    return ", ".join(known) or "none"


def _options(values: Any) -> str:
    return ", ".join(
        f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def _tensors(specs: Sequence[TensorSpec]) -> str:
    shown = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs[:_SHOWN_TENSORS])
    return f"{shown}, and {len(specs) - _SHOWN_TENSORS} more" if len(specs) > _SHOWN_TENSORS else shown


def _labels(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:12])
    return f"{len(labels)}: {shown}{', …' if len(labels) > 12 else ''}"
