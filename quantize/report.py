"""What a run found out: the values of `report.json`, and its first line. Pure.

Owns the report's shape and words. Measures nothing and chooses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from edgewise.edge import Device
from edgewise.quantize.select import SAME, Gate, Verdict, points
from edgewise.quantize.statistics import Latency, Quality

FORMAT_VERSION = 1

State: TypeAlias = Literal["measured", "failed", "inapplicable", "explored"]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Latency at a number of threads and a length of text.

    Attributes:
        threads: Threads of one prediction.
        tokens: Tokens of each text; None for the data's own lengths.
        latency: What was measured.
    """

    threads: int
    tokens: int | None
    latency: Latency


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate costs on the machine that measured it; medians over fresh processes.

    Attributes:
        size_bytes: Bytes of its bundle, attestations left out.
        load_ms: From the folder to a model ready to answer, verification included.
        first_ms: The first answer.
        latency: Every later answer.
        peak_rss_bytes: Largest resident memory of a process, over all rounds.
        settings: Latency at other lengths and numbers of threads, where they were asked for.
        tokens_per_s: Of a generator: tokens a second after the first; its latency is that of the first token.
    """

    size_bytes: int
    load_ms: float
    first_ms: float
    latency: Latency
    peak_rss_bytes: int
    settings: tuple[Setting, ...] = ()
    tokens_per_s: float | None = None


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe with its options, and what became of it.

    Attributes:
        id: Its name, and its folder under `candidates/`.
        spelling: How `--recipes` names it.
        recipe: The recipe.
        options: Its options, defaults included.
        state: "measured"; "failed" with a problem; "inapplicable" where the recipe found nothing to do; "explored"
            where a search looked at it and left it.
        problem: Why it is not measured.
        facts: What became of the weights.
        skipped: Weights that the recipe promised to quantize and did not.
        model_digest: Its bundle's.
        performance: What it costs.
        quality: How it answers on the tuning part.
        drop_bound: Upper bound on its accuracy drop from the tuning part. A choice has seen that part: not a promise.
        on_front: Whether no other candidate is at least as good in size, p50 and accuracy, and better in one.
        seconds: Time to build it.
    """

    id: str
    spelling: str = ""
    recipe: str
    options: dict[str, str | int | float | bool]
    state: State
    problem: str = ""
    facts: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    model_digest: str = ""
    performance: Performance | None = None
    quality: Quality | None = None
    drop_bound: float | None = None
    on_front: bool = False
    seconds: float | None = None


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """How the graph was made and how well it agrees with the checkpoint.

    Attributes:
        exporter: "optimum", "torch", "genai", or "none" for an ONNX file.
        samples: Items that both answered.
        largest_difference: Of a number: a logit, or a component of an embedding.
        allowed_difference: What would still have been accepted.
        refusals: Why the exporters tried before could not, or what was wrong with their graph.
    """

    exporter: str
    samples: int
    largest_difference: float
    allowed_difference: float
    refusals: tuple[str, ...] = ()


class CheckpointFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint, in the report's words.

    Attributes:
        name: Its folder's name.
        architecture: Its class.
        task: What it does.
        labels: How many labels.
        size_bytes: Bytes of its weight files.
        max_length: Tokens a text is cut to; None for images.
        digest: Digest of its folder.
    """

    name: str
    architecture: str
    task: str
    labels: int
    size_bytes: int
    max_length: int | None
    digest: str


class Stage(msgspec.Struct, frozen=True):
    """Wall time of a stage, in seconds."""

    name: str
    seconds: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a run found out; `report.json` holds it.

    Attributes:
        format_version: 1.
        headline: The first line to read.
        verdict: Whether the goal on the accuracy drop is met; "untested" without gate data.
        winner: Id of the winner.
        why: Why it won.
        prefer: What the choice preferred.
        max_drop: Allowed accuracy drop.
        checkpoint: The checkpoint.
        export: How it was exported.
        data_digest: Digest of the tuning part.
        gate_digest: Digest of the gate part, or None.
        gate_overlap: Items of the gate part that occur in the tuning part as well; the bound is for items drawn apart.
        candidates: Every candidate, the baseline first.
        gate: The winner on the gate part, or None.
        device: The machine that measured latency and memory: this one, or the target of --profile-cmd.
        threads: Threads of one prediction.
        tools: Versions.
        stages: Time of each stage.
        built_on: This machine, where another one measured.
        test: The winner against the baseline on the test part, which is touched once, after the gate; None without.
        test_digest: Digest of the test part.
        test_overlap: Items of the test part that occur in the tuning or the gate part as well.
        peak_rss_bytes: Largest resident memory of the run's processes.
    """

    headline: str
    verdict: Verdict
    winner: str
    why: str
    prefer: str
    max_drop: float
    checkpoint: CheckpointFacts
    export: Export
    data_digest: str
    gate_digest: str | None
    candidates: tuple[Candidate, ...]
    gate: Gate | None
    device: Device
    threads: int
    tools: dict[str, str]
    stages: tuple[Stage, ...]
    gate_overlap: int = 0
    built_on: Device | None = None
    test: Quality | None = None
    test_digest: str | None = None
    test_overlap: int = 0
    peak_rss_bytes: int = 0
    format_version: int = FORMAT_VERSION

    def candidate(self, name: str) -> Candidate:
        """The candidate of that id."""
        return next(candidate for candidate in self.candidates if candidate.id == name)


def pace_ms(cost: Performance) -> float:
    """Milliseconds that a choice goes by: the median prediction; of a generator, one token."""
    return cost.latency.p50_ms if cost.tokens_per_s is None else 1e3 / cost.tokens_per_s


def headline(candidates: Sequence[Candidate], winner: str, *, max_drop: float, gate: Gate | None) -> str:
    """The first line: what is bad comes first.

    Args:
        candidates: All, the baseline first.
        winner: Id of the winner.
        max_drop: Allowed accuracy drop.
        gate: The gate, if there was one.
    """
    baseline = candidates[0]
    best = next(candidate for candidate in candidates if candidate.id == winner)
    if best is baseline:
        return _baseline_headline(baseline, candidates[1:], max_drop)
    return f"{_comparison(best, baseline)}{_gate_clause(gate)}"


def all_lose_too_much(candidates: Sequence[Candidate], max_drop: float) -> bool:
    """Whether there are measured candidates beside the baseline, and each loses more than allowed."""
    drops = [candidate.quality.drop for candidate in candidates[1:] if candidate.quality is not None]
    return bool(drops) and min(drops) > max_drop


def _baseline_headline(baseline: Candidate, others: Sequence[Candidate], max_drop: float) -> str:
    measured = [other for other in others if other.performance is not None]
    if not measured:
        return f"No quantized candidate came about; {baseline.id} is packed as it is."
    if all_lose_too_much((baseline, *others), max_drop):
        return f"Goal missed: every quantized candidate loses more than {points(max_drop)}; {baseline.id} is packed."
    own = baseline.performance
    slower = own and all(other.performance and pace_ms(other.performance) > pace_ms(own) for other in measured)
    larger = own and all(other.performance and other.performance.size_bytes >= own.size_bytes for other in measured)
    reasons = [
        *(["faster than every quantized candidate"] if slower else []),
        *(["no larger than any of them"] if larger else []),
    ]
    return f"{baseline.id} is best here: it is {' and '.join(reasons) or 'the best trade of those allowed'}."


def _comparison(best: Candidate, baseline: Candidate) -> str:
    if best.performance is None or baseline.performance is None or best.quality is None:
        raise ValueError(f"{best.id} won without being measured")
    size = baseline.performance.size_bytes / best.performance.size_bytes
    speed = pace_ms(baseline.performance) / pace_ms(best.performance)
    times = (
        "as fast"
        if 1 / SAME <= speed <= SAME
        else f"{_times(speed)} x faster"
        if speed > 1
        else f"{_times(1 / speed)} x slower"
    )
    worse = [
        *([f"not smaller than {baseline.id}"] if size <= 1 else []),
        *([f"slower than {baseline.id}"] if speed < 1 / SAME else []),
    ]
    warning = f"Beware: {best.id} is {' and '.join(worse)}. " if worse else ""
    return (
        f"{warning}{best.id}: {best.performance.size_bytes / 1e6:.1f} MB ({_times(size)} x smaller), "
        f"{_pace_text(best.performance)} ({times}), {_answers(best.quality)} on the tuning part."
    )


def _times(factor: float) -> str:
    return f"{factor:.2f}" if factor < 1.995 else f"{factor:.2g}"


def _pace_text(cost: Performance) -> str:
    return f"p50 {cost.latency.p50_ms:.2f} ms" if cost.tokens_per_s is None else f"{cost.tokens_per_s:.0f} tokens/s"


def _answers(found: Quality) -> str:
    if found.nll is not None and found.baseline_nll is not None:
        return f"negative log-likelihood {found.nll:.3f} ({found.baseline_nll:.3f} before) a token"
    if found.cosine_mean is not None:
        return f"mean cosine {found.cosine_mean:.4f}"
    return f"accuracy {found.accuracy:.4f} ({found.baseline_accuracy:.4f} before)"


def _gate_clause(gate: Gate | None) -> str:
    return " No gate data was given: the drop is not bounded." if gate is None else f" {gate.sentence}"
