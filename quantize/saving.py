"""Fills a run folder with what a run found: bundles with their attestations, answers, report.

Owns what is attested of which bundle. Where the files lie is `run_folder.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgewise.bundle import attach
from edgewise.files import copy_tree
from edgewise.quantize.answers import Answers, save
from edgewise.quantize.plan import Plan
from edgewise.quantize.report import Candidate, Report
from edgewise.quantize.run_folder import CANDIDATES, PREDICTIONS, WINNER, link_tree, write_report


def save_run(
    folder: Path, report: Report, plan: Plan, bundles: Mapping[str, Path], answers: Mapping[str, Answers]
) -> None:
    """Write everything of a finished run.

    Args:
        folder: The run folder under way.
        report: What was found.
        plan: What was read.
        bundles: Where each candidate's bundle was made, if it came about.
        answers: Each measured candidate's on the tuning part.
    """
    (folder / CANDIDATES).mkdir()
    (folder / PREDICTIONS).mkdir()
    for name, bundle in bundles.items():
        if bundle.is_dir():
            link_tree(bundle, folder / CANDIDATES / name)
    for candidate in report.candidates:
        if candidate.state == "measured":
            attach(folder / CANDIDATES / candidate.id, "measurement", _measurement(report, candidate, plan))
            save(folder / PREDICTIONS / f"{candidate.id}.npz", _kept(answers[candidate.id]))
    # A copy: tools refuse weights that have a second name.
    copy_tree(folder / CANDIDATES / report.winner, folder / WINNER)
    if report.gate is not None and plan.gate is not None:
        attach(folder / WINNER, "gate", _gate(report, plan.gate.items_digest))
    write_report(folder, report, plan.inputs_digest)


def _kept(answers: Answers) -> Answers:
    """Without whole next-token distributions, which only the comparison with the baseline needs."""
    return {name: values for name, values in answers.items() if name != "logprobs"}


def _measurement(report: Report, candidate: Candidate, plan: Plan) -> dict[str, object]:
    """The payload of a "measurement" attestation: `drop_bound` comes from a part that a choice has seen."""
    return {
        "part": "tuning",
        "data_digest": report.data_digest,
        "items_digest": plan.tuning.items_digest,
        "baseline_digest": report.candidates[0].model_digest,
        "checkpoint_bytes": report.checkpoint.size_bytes,
        "quality": candidate.quality,
        "drop_bound": candidate.drop_bound,
        "performance": candidate.performance,
        "threads": report.threads,
        "device": report.device,
    }


def _gate(report: Report, items_digest: str) -> dict[str, object]:
    """The payload of a "gate" attestation, which the winner carries."""
    return {
        "data_digest": report.gate_digest,
        "items_digest": items_digest,
        "baseline_digest": report.candidates[0].model_digest,
        "gate": report.gate,
    }
