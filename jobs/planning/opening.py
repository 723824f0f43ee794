"""Opening what a plan needs, and refusing what cannot be planned with, before a cloud is asked.

Owns the parts of the data, and drawing a tuning part where none is given. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgewise.contracts import Example, Progress
from edgewise.dataset import item_key
from edgewise.edge import EdgeModel
from edgewise.errors import CertificateError, ConfigError, DataError
from edgewise.jobs.parts import Part, held_apart, load_part, refuse_chosen_on, refuse_strange_labels, shared_note
from edgewise.jobs.planning.job import PlanJob, check_items
from edgewise.jobs.planning.options import (
    Candidates,
    Kind,
    candidates_of_bundle,
    candidates_of_run,
    kind_of,
    refuse_without_labels,
)
from edgewise.jobs.targets import LABELLED
from edgewise.quantize.items import require_kind

_TUNING_SHARE = 3
"""One of so many items is drawn for tuning where no tuning part is given."""

_SEED = 0


@dataclass(frozen=True)
class Drawn:
    """A part, and where its items stand among those that are asked about."""

    part: Part
    places: Sequence[int]


@dataclass(frozen=True)
class Work:
    """A job with its files opened and checked.

    Attributes:
        candidates: What to choose from; None where a checkpoint is to be quantized first.
        asked: Every item that edge and cloud are asked about.
        tuning: What recipes and signals are compared on.
        certifying: What proves the choice.
        chosen_on: Identities of the parts that the choice looks at, and of the files they come from.
    """

    candidates: Candidates | None
    asked: list[Example]
    tuning: Drawn
    certifying: Drawn
    chosen_on: tuple[str, ...]


def open_work(job: PlanJob, progress: Progress) -> Work:
    """Read a checked job's files.

    Raises:
        CertificateError: There are too few certifying items, or they were used to choose or are shared by the parts.
        BundleError, ConfigError, DataError, InputError: The input cannot be used.
    """
    kind = kind_of(job.model)
    if kind == "checkpoint" and job.tuning is None:
        raise ConfigError(
            f"{job.model} is a checkpoint, which is quantized first, and recipes are compared on a tuning part.",
            "Give --tuning FILE with labelled items apart from --data.",
        )
    if kind == "bundle" and job.recipes:
        raise ConfigError(f"{job.model} is one bundle, made by one recipe.", "Leave out --recipes.")
    data = _part(job, job.data)
    given = None if job.tuning is None else _part(job, job.tuning)
    asked, tuning, certifying = _split(data) if given is None else _apart(given, data, progress)
    if kind == "checkpoint" and given is not None and len(tuning.places) < len(given.examples):
        raise CertificateError(
            f"{job.model} would be quantized on {job.tuning}, which shares items with {job.data}.",
            "Remove these items from the tuning part, or quantize first and plan with the run.",
        )
    check_items(len(certifying.places), job, 1)
    chosen_on = [
        tuning.part,
        *([data] if given is None else [given]),
        *([certifying.part] if job.pay == "share" else []),
    ]
    work = Work(_candidates(kind, job, progress), asked, tuning, certifying, _identities(chosen_on))
    if work.candidates is not None:
        check_candidates(job, work.candidates, data, work)
    return work


def _identities(parts: Sequence[Part]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(identity for part in parts for identity in part.identities))


def _part(job: PlanJob, path: Path) -> Part:
    return load_part(path, text_field=job.text_field, label_field=job.label_field)


def _candidates(kind: Kind, job: PlanJob, progress: Progress) -> Candidates | None:
    if kind == "run":
        return candidates_of_run(job.model, job.recipes)
    return candidates_of_bundle(job.model, job.data, job.text_field, progress) if kind == "bundle" else None


def check_candidates(job: PlanJob, candidates: Candidates, data: Part, work: Work) -> None:
    """Refuse what cannot be planned with, before the cloud is asked.

    Args:
        job: What is asked for.
        candidates: What there is to choose from.
        data: The items that were given to certify on, whole.
        work: The parts.

    Raises:
        CertificateError: The items were used to choose a candidate, are too few for all of them, or have no score; or a
            candidate answers differently on this machine.
        DataError: They are of the other kind, or their labels are none of the model's.
    """
    refuse_without_labels(candidates)
    if job.pay == "share":
        check_items(len(work.certifying.places), job, len(candidates.bundles) * max(len(job.signals), 1))
    for bundle in candidates.bundles.values():
        refuse_chosen_on(data, bundle)
        for drawn in (work.tuning, work.certifying):
            require_kind(drawn.part.examples, bundle.core.task, drawn.part.path)
            if job.target in LABELLED:
                refuse_strange_labels(drawn.part, bundle.core.labels)
        EdgeModel.from_bundle(bundle).check_golden()


def _apart(tuning: Part, data: Part, progress: Progress) -> tuple[list[Example], Drawn, Drawn]:
    """Two parts, of which the tuning part is asked about first, without the few items that both hold."""
    kept = held_apart(tuning, data)
    if len(kept) < len(tuning.examples):
        progress.note(shared_note(tuning.path, data.path, len(tuning.examples) - len(kept)))
    asked = [*tuning.examples, *data.examples]
    return asked, _drawn(tuning, kept), Drawn(data, range(len(tuning.examples), len(asked)))


def _split(data: Part) -> tuple[list[Example], Drawn, Drawn]:
    """A random third for tuning, without what the rest, which certifies, holds as well."""
    order = np.random.default_rng(_SEED).permutation(len(data.examples)).tolist()
    first = len(order) // _TUNING_SHARE
    certifying = sorted(order[first:])
    held = {item_key(data.examples[at].input) for at in certifying}
    tuning = [at for at in sorted(order[:first]) if item_key(data.examples[at].input) not in held]
    if not tuning:
        raise DataError(f"{data.path} leaves no item to compare recipes on.", "Give more items, or --tuning FILE.")
    return data.examples, _drawn(data, tuning), _drawn(data, certifying)


def _drawn(data: Part, places: Sequence[int]) -> Drawn:
    return Drawn(data.only(places), places)
