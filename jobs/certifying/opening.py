"""Opening what a certifying job needs, and refusing what cannot certify, before a cloud is asked.

Owns no mathematics and writes nothing.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.bundle import Bundle, ImagePreprocessing
from edgewise.contracts import Example, Reference
from edgewise.dataset import place_of
from edgewise.edge import EdgeModel
from edgewise.edge.reading import EMBEDDING
from edgewise.errors import CertificateError, ConfigError, DataError, TooFewItemsError
from edgewise.jobs.answerers import Answerer, open_answerer
from edgewise.jobs.certifying.job import AUTO, CertifyJob
from edgewise.jobs.parts import (
    Part,
    group_names,
    held_apart,
    load_part,
    refuse_chosen_on,
    refuse_strange_labels,
)
from edgewise.jobs.prompts import load_prompts, texts_of
from edgewise.jobs.targets import LABELLED
from edgewise.router.agreement import JUDGES, certified_name, judge_named
from edgewise.router.certificate import group_items_needed
from edgewise.router.judgement import SIGNAL_OF_TEXTS
from edgewise.router.policies.threshold import BY_LABEL
from edgewise.router.signals import GENERATOR_SIGNALS, SIGNALS, tokens_read


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
        judge: Name of what says whether two texts agree, as the certificate has it; empty where outputs agree that are
            the same.
        agree: The same as a function, of the edge's answer and the cloud's.
        max_tokens: Tokens of a language model's answer at most.
    """

    model: Answerer
    certifying: Part
    tuning: Part | None
    tuning_places: Sequence[int]
    tuning_given: int
    reference: Reference
    groups: tuple[str, ...]
    judge: str = ""
    agree: Callable[[Any, Any], bool] = operator.eq
    max_tokens: int = CertifyJob.max_tokens

    @property
    def default_signal(self) -> str:
        """The signal where none is asked for and none is clearly better.

        Of a language model it reads no more tokens than the answers may have: requests with fewer than a signal reads
        are none that its certificate speaks of.
        """
        core = self.model.bundle.core
        if core.kind != "generator":
            return core.signal
        if (tokens_read(SIGNAL_OF_TEXTS) or 0) <= self.max_tokens:
            return SIGNAL_OF_TEXTS
        return f"{SIGNAL_OF_TEXTS.partition(':')[0]}:first={self.max_tokens}"

    @property
    def labelled(self) -> bool:
        """Whether the certifying items have labels that the model's answers can be held to."""
        core = self.model.bundle.core
        known = [example.label for example in self.certifying.examples if example.label is not None]
        return (core.kind == "generator" and bool(known)) or any(label in core.labels for label in known)

    @property
    def asked(self) -> list[Example]:
        """Every item that edge and cloud are asked about: the tuning part, then the certifying one."""
        return [*(self.tuning.examples if self.tuning else ()), *self.certifying.examples]

    def place(self, part: Part, at: int) -> str:
        """Where an item of a part stands in its file, for messages."""
        return place_of(part.path, self.tuning_places[at] if part is self.tuning else at)

    def place_asked(self, at: int) -> str:
        """The same of one of `asked`."""
        first = len(self.tuning.examples) if self.tuning else 0
        if self.tuning is not None and at < first:
            return self.place(self.tuning, at)
        return self.place(self.certifying, at - first)


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
    judge, agree = _judge(job, bundle)
    certifying = _part(job, bundle, job.data, job.group_by)
    tuning = None if job.tuning is None else _part(job, bundle, job.tuning, None if job.groups else job.group_by)
    names = () if job.group_by is None else _names(job, tuning, bundle.core.labels)
    _refuse_too_few(job, certifying, names)
    refuse_chosen_on(certifying, bundle)
    if bundle.core.kind == "generator":
        refuse_chosen_on(texts_of(certifying), bundle)
    kept = [] if tuning is None else held_apart(tuning, certifying)
    for part in (certifying, tuning) if job.target in LABELLED else ():
        if part is not None:
            _check_labels(part, bundle)
    return Work(
        open_answerer(bundle),
        certifying,
        None if tuning is None else tuning.only(kept),
        kept,
        0 if tuning is None else len(tuning.examples),
        reference,
        names,
        judge,
        agree,
        job.max_tokens,
    )


def _judge(job: CertifyJob, bundle: Bundle) -> tuple[str, Callable[[Any, Any], bool]]:
    """Its name in the certificate, and the function, which is asked once about each pair."""
    if job.judge is None:
        return "", operator.eq
    embedder = None if job.judge_bundle is None else _embedder(job.judge_bundle)
    agree = judge_named(job.judge, embedder=embedder)
    return certified_name(job.judge, embedder=embedder), functools.cache(agree)


def _embedder(path: Path) -> EdgeModel:
    bundle = Bundle.open(path)
    if bundle.core.kind != "embedder":
        raise ConfigError(
            f"The judge's bundle {bundle.core.name} does {bundle.core.task}, it gives no vectors.",
            "Give the bundle of an embedding model with --judge-bundle.",
        )
    return EdgeModel.from_bundle(bundle)


def _check_labels(part: Part, bundle: Bundle) -> None:
    """A text may be right in many wordings, so of a language model the labels have to be there and no more."""
    if bundle.core.kind != "generator":
        refuse_strange_labels(part, bundle.core.labels)
    elif not part.labels:
        raise DataError(f"{part.path} has no labels.", "Add a field 'label' to every line.")


def _refuse_too_few(job: CertifyJob, certifying: Part, names: tuple[str, ...]) -> None:
    """Refuse what can be seen to certify nothing; how many items a predicted label has is not known yet."""
    needed = group_items_needed(job.alpha, job.delta, max(len(names), 1))
    found, of = len(certifying.examples), "certifying items"
    if names and certifying.groups is not None:
        found = max(certifying.groups.count(name) for name in names)
        of = f"items in the largest of {len(names)} groups"
    if found < needed:
        raise TooFewItemsError(found, needed, job.alpha, job.delta / max(len(names), 1), of=of)


def _part(job: CertifyJob, bundle: Bundle, path: Path, group_by: str | None) -> Part:
    field = job.label_field or "label"
    load = load_part
    if bundle.core.kind == "generator":
        load = functools.partial(load_prompts, max_tokens=job.max_tokens)
    part = load(path, text_field=job.text_field, label_field=field, group_by=group_by)
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
    if not bundle.core.labels and bundle.core.kind != "generator":
        raise CertificateError(
            f"The bundle does {bundle.core.task}; its answers carry no logits, so nothing tells which of them to "
            "trust.",
            "Certify a bundle that gives labels, or serve this one with --mode edge_only or cloud_only.",
        )


def _refuse_what_it_lacks(job: CertifyJob, bundle: Bundle) -> None:
    """Refuse wishes that this kind of model cannot grant."""
    core = bundle.core
    signal = (job.signal or AUTO).partition(":")[0]
    if core.kind == "generator":
        _refuse_what_text_lacks(job, core.name, signal)
        return
    if job.judge is not None:
        raise ConfigError(f"--judge compares texts; the bundle {core.name} does {core.task}.", "Leave it out.")
    if signal in GENERATOR_SIGNALS:
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


def _refuse_what_text_lacks(job: CertifyJob, name: str, signal: str) -> None:
    """The same of a language model."""
    if job.judge is None:
        raise ConfigError(
            f"The bundle {name} is a language model, and nothing says when two texts agree.",
            f"Name a judge: --judge {', '.join(JUDGES)}.",
        )
    if signal in SIGNALS:
        raise ConfigError(
            f"The signal {job.signal!r} reads the logits of classes, and the bundle {name} writes text.",
            f"Choose one of: {', '.join(GENERATOR_SIGNALS)}.",
        )
    read = None if signal == AUTO else tokens_read(job.signal or AUTO)
    if read is not None and read > job.max_tokens:
        raise ConfigError(
            f"The signal {job.signal!r} reads {read} tokens, and with --max-tokens {job.max_tokens} no answer has so "
            "many: no request could use the certificate.",
            f"Name a signal that reads at most {job.max_tokens}, leave --signal out, or raise --max-tokens.",
        )
    if job.veto:
        raise ConfigError(f"--veto needs embeddings, and the bundle {name} writes text.", "Leave it out.")
    if job.group_by == BY_LABEL:
        raise ConfigError(f"The bundle {name} writes text, which is no label to group by.", "Group by a field.")
