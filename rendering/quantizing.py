"""What quantize, report and profile show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table

from edgewise.rendering.words import facts

if TYPE_CHECKING:
    from edgewise.quantize.pipeline import QuantizeResult
    from edgewise.quantize.profiling import Profile
    from edgewise.quantize.report import Candidate, Report
    from edgewise.quantize.statistics import Latency


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
    cost, table = profile.performance, facts()
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
