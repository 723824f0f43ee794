"""Opening what a certifying job needs, and refusing what cannot certify, before a cloud is asked.

Owns no mathematics and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewise.bundle import Bundle, ImagePreprocessing
from edgewise.contracts import Example, Reference
from edgewise.edge import EdgeModel
from edgewise.edge.reading import EMBEDDING
from edgewise.errors import CertificateError, ConfigError, DataError, TooFewItemsError
from edgewise.jobs.certifying.job import CertifyJob
from edgewise.jobs.parts import (
    Part,
    group_names,
    held_apart,
    load_part,
    refuse_chosen_on,
    refuse_strange_labels,
)
from edgewise.jobs.targets import LABELLED
from edgewise.router.certificate import group_items_needed
from edgewise.router.policies.threshold import BY_LABEL
from edgewise.router.signals import GENERATOR_SIGNALS, SIGNALS


@dataclass(frozen=True)
class Work:
    """A job with its files opened and checked.

    Attributes:
        model: The bundle's model.
        certifying: The certifying part.
        tuning: The tuning part, without what the certifying part holds too, or None.
        tuning_places: Positions of its items in the file.
        tuning_given: Items of the file.
        reference: The cloud.
        groups: Names of the groups; empty where there are none.
    """

    model: EdgeModel
    certifying: Part
    tuning: Part | None
    tuning_places: Sequence[int]
    tuning_given: int
    reference: Reference
    groups: tuple[str, ...]

    @property
    def labelled(self) -> bool:
        """Whether the certifying items have labels that the model's answers can be held to."""
        core = self.model.bundle.core
        return core.kind == "classifier" and any(example.label in core.labels for example in self.certifying.examples)

    @property
    def asked(self) -> list[Example]:
        """Every item that edge and cloud are asked about: the tuning part, then the certifying one."""
        return [*(self.tuning.examples if self.tuning else ()), *self.certifying.examples]


def open_work(job: CertifyJob, reference: Reference) -> Work:
    """Read a checked job's files.

    Raises:
        TooFewItemsError: The certifying items cannot certify anything.
        CertificateError: They were used to choose the bundle, are shared by the parts, or the bundle's answers have no
            score.
        BundleError, DataError, ConfigError: The input cannot be used.
    """
    bundle = Bundle.open(job.bundle)
    _refuse_without_score(bundle)
    _refuse_what_it_lacks(job, bundle)
    certifying = _part(job, job.data, job.group_by)
    tuning = None if job.tuning is None else _part(job, job.tuning, None if job.groups else job.group_by)
    names = () if job.group_by is None else _names(job, tuning, bundle.core.labels)
    _refuse_too_few(job, certifying, names)
    refuse_chosen_on(certifying, bundle)
    kept = [] if tuning is None else held_apart(tuning, certifying)
    for part in (certifying, tuning) if job.target in LABELLED else ():
        if part is not None:
            refuse_strange_labels(part, bundle.core.labels)
    return Work(
        EdgeModel.from_bundle(bundle),
        certifying,
        None if tuning is None else tuning.only(kept),
        kept,
        0 if tuning is None else len(tuning.examples),
        reference,
        names,
    )


def _refuse_too_few(job: CertifyJob, certifying: Part, names: tuple[str, ...]) -> None:
    """Refuse what can be seen to certify nothing; how many items a predicted label has is not known yet."""
    needed = group_items_needed(job.alpha, job.delta, max(len(names), 1))
    found, of = len(certifying.examples), "certifying items"
    if names and certifying.groups is not None:
        found = max(certifying.groups.count(name) for name in names)
        of = f"items in the largest of {len(names)} groups"
    if found < needed:
        raise TooFewItemsError(found, needed, job.alpha, job.delta / max(len(names), 1), of=of)


def _part(job: CertifyJob, path: Path, group_by: str | None) -> Part:
    field = job.label_field or "label"
    part = load_part(path, text_field=job.text_field, label_field=field, group_by=group_by)
    if job.label_field is not None and all(example.label is None for example in part.examples):
        raise DataError(
            f"No item of {path} has the field '{field}' that --label-field names.",
            "Name the field of the label, or leave --label-field out: agreement needs no labels.",
        )
    return part


def _names(job: CertifyJob, tuning: Part | None, labels: Sequence[str]) -> tuple[str, ...]:
    if job.group_by == BY_LABEL:
        return group_names(labels, job.groups, closed=True)
    return group_names(sorted(set(tuning.groups or ())) if tuning else (), job.groups, closed=False)


def _refuse_without_score(bundle: Bundle) -> None:
    if bundle.core.kind == "generator":
        raise CertificateError(
            f"The bundle {bundle.core.name} is a language model; its answers cannot be certified.",
            "Certify a bundle that gives labels, or try this one with edgewise predict.",
        )
    if not bundle.core.labels:
        raise CertificateError(
            f"The bundle does {bundle.core.task}; its answers carry no logits, so nothing tells which of them to "
            "trust.",
            "Certify a bundle that gives labels, or serve this one with --mode edge_only or cloud_only.",
        )


def _refuse_what_it_lacks(job: CertifyJob, bundle: Bundle) -> None:
    """Refuse wishes that this kind of model cannot grant."""
    core = bundle.core
    if job.signal in GENERATOR_SIGNALS:
        raise ConfigError(
            f"The signal {job.signal!r} reads log-probabilities of tokens, and the bundle {core.name} gives none.",
            f"Choose one of: {', '.join(SIGNALS)}.",
        )
    if job.veto and EMBEDDING not in {output.name for output in core.outputs}:
        raise ConfigError(
            f"--veto needs embeddings, and the bundle {core.name} gives none.",
            "Quantize it again with --recipes embedding+NAME, which makes them an output of the graph.",
        )
    if job.complexity and isinstance(core.preprocessing, ImagePreprocessing):
        raise ConfigError(f"--complexity looks at texts; the bundle {core.name} takes images.", "Leave it out.")
    if core.kind != "classifier" and job.target in LABELLED:
        raise ConfigError(
            f"The target {job.target!r} needs one label an item; the bundle does {core.task}.",
            "Certify its agreement with the cloud.",
        )
    if core.kind != "classifier" and job.group_by == BY_LABEL:
        raise ConfigError(
            f"The bundle does {core.task}, so an answer is no single label to group by.",
            "Group by a field of the data.",
        )
