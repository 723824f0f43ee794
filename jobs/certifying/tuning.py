"""What is chosen and fitted on the tuning part before the certifying part is looked at.

Owns the order: fits first, then the signals side by side, then the choice. The fits themselves are the router's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import Reference
from edgewise.errors import CertificateError
from edgewise.files import write_atomically
from edgewise.jobs.answerers import Answerer
from edgewise.jobs.beside import KeptItem, fitted_beside, items_beside, kept_item, record_beside
from edgewise.jobs.certifying.job import AUTO, CertifyJob
from edgewise.jobs.parts import Answered, Part
from edgewise.jobs.scoring import served_scores
from edgewise.jobs.targets import losses
from edgewise.router import fitted as fits
from edgewise.router.combination import fit_combination
from edgewise.router.complexity_fit import fit_complexity
from edgewise.router.fitted import Fitted
from edgewise.router.neighbours import Neighbours, Outcomes, embeddings_of, fit_neighbours, kept_rows
from edgewise.router.saying import asked_by
from edgewise.router.selection import SignalFigures, choose, compare_signals
from edgewise.router.signals import COMBINED, tokens_read

_ENOUGH_TO_COMBINE = 100
"""Tuning items below which a fit of several signals is not worth comparing."""

GATES = (
    *(f"{name}:first={tokens}" for name in ("mean_logprob", "low_logprob") for tokens in (8, 16, 32)),
    "first_margin",
)
"""Signals of generated text that are known before anything is sent: what reads the whole answer would hold it back, so
that has to be asked for by name."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a job asks of its tuning part; the same questions on the same items need no second answer.

    Attributes:
        model_digest: The bundle.
        tuning_digest: The tuning items.
        reference: The cloud.
        target: What is to be certified.
        alpha: At which bound on the risk.
        signal: The signal that is wanted, or "auto".
        veto: Whether the distance to these items decides too.
        complexity: Whether texts that look too hard are escalated at once.
        judge: What says whether two texts agree; empty where outputs agree that are the same.
    """

    model_digest: str
    tuning_digest: str
    reference: Reference
    target: str
    alpha: float
    signal: str
    veto: bool
    complexity: bool
    judge: str = ""


class TuningRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the tuning part showed and what was made of it, as `BUNDLE.tuning.json` holds it.

    Attributes:
        asked: What was asked for.
        signal: The signal taken.
        signals: Every signal on these items, the best first.
        fitted_digest: Digest of `BUNDLE.fitted.npz`, or None where nothing was fitted.
    """

    asked: Asked
    signal: str
    signals: tuple[SignalFigures, ...]
    fitted_digest: str | None


@dataclass(frozen=True)
class Tuned:
    """The outcome of the tuning part.

    Attributes:
        record: What is written down of it.
        fitted: What decides with the signal; None where it stands alone.
        fitted_bytes: The same, as `BUNDLE.fitted.npz` holds it.
        scores: Scores of the tuning items, shape (n,).
        losses: Their losses, shape (n,).
        items: The tuning items as `explain` shows them.
    """

    record: TuningRecord
    fitted: Fitted | None
    fitted_bytes: bytes | None
    scores: NDArray[np.float64]
    losses: NDArray[np.float64]
    items: tuple[KeptItem, ...]


def tune(
    job: CertifyJob, answered: Answered, model: Answerer, reference: Reference, *, default: str, judge: str
) -> Tuned:
    """Fit what was asked for, compare the signals, and take the one asked for, or the best.

    Left to choose, it takes another signal than the default one only where that is clearly better.

    Args:
        job: The job.
        answered: The tuning part.
        model: The bundle's model.
        reference: The cloud.
        default: The signal that needs no reason.
        judge: What says whether two texts agree, as the certificate has it.

    Raises:
        CertificateError: The items cannot be fitted to.
        ConfigError: There is no such signal.
    """
    asked = asked_of(job, answered.part, model.digest, reference, judge)
    lost = losses(job.target, answered)
    text = model.bundle.core.kind == "generator"
    everything = _fit(job, answered, lost > 0, model.labels, text=text)
    figures = _compared(job, answered, lost > 0, everything, default, _gates(job, default) if text else None)
    signal = choose(figures, default).signal if asked.signal == AUTO else asked.signal
    data = _encoded(everything, signal)
    # Read back, so that what is certified with is what the file will give.
    fitted = None if data is None else fits.decode(data)
    scores = served_scores(answered.part.examples, answered.edge, signal, fitted)
    record = TuningRecord(
        asked=asked,
        signal=signal,
        signals=figures,
        fitted_digest=None if data is None else fits.digest(data),
    )
    return Tuned(record, fitted, data, scores, lost, _items(answered, scores, fitted))


def _gates(job: CertifyJob, default: str) -> list[str]:
    """Those of `GATES` that read no more tokens than an answer may have, and the default one."""
    fitting = [name for name in GATES if (tokens_read(name) or 0) <= job.max_tokens]
    return fitting if default in fitting else [*fitting, default]


def _fit(job: CertifyJob, answered: Answered, wrong: NDArray[np.bool_], labels: Sequence[str], *, text: bool) -> Fitted:
    """Everything that was asked for, and the combined signal where there are enough items to compare it.

    Of a text it reads the whole, so there it has to be asked for.
    """
    combined = job.signal == COMBINED or (len(answered.edge) >= _ENOUGH_TO_COMBINE and not text)
    neighbours = _fit_neighbours(job, answered, wrong, labels) if job.veto or combined else None
    complexity = None
    if job.complexity:
        complexity = fit_complexity([asked_by(example.input) or "" for example in answered.part.examples], wrong)
    combination = None
    if combined:
        combination = fit_combination(answered.edge, wrong, neighbours=neighbours)
    return Fitted(neighbours, complexity, combination)


def _compared(
    job: CertifyJob,
    answered: Answered,
    wrong: NDArray[np.bool_],
    everything: Fitted,
    default: str,
    names: Sequence[str] | None,
) -> tuple[SignalFigures, ...]:
    """The named signals, or every one that applies, and the one asked for, the best first."""
    compared = functools.partial(
        compare_signals, answered.edge, wrong, alpha=job.alpha, fitted=everything, default=default
    )
    rows = compared(names=names)
    wanted = job.signal or AUTO
    if wanted != AUTO and wanted not in {row.signal for row in rows}:
        rows += compared(names=[wanted])
        rows.sort(key=lambda row: row.aurc)
    return tuple(rows)


def _fit_neighbours(
    job: CertifyJob, answered: Answered, wrong: NDArray[np.bool_], labels: Sequence[str]
) -> Neighbours | None:
    """The tuning items that have embeddings: to veto where that is asked for, else as features only."""
    embeddings = embeddings_of(answered.edge)
    if embeddings is None:
        if not job.veto:
            return None
        raise CertificateError(
            f"The model gives no embedding for an item of {answered.part.path}.", "Leave out --veto, or the item."
        )
    place = {label: index for index, label in enumerate(labels)}
    answers = np.array([place.get(str(answer), -1) for answer in answered.cloud], dtype=np.int32)
    outcomes = Outcomes(answers, wrong).at(_inside(answered))
    if job.veto:
        return fit_neighbours(embeddings, outcomes)
    try:
        return fit_neighbours(embeddings, outcomes).without_veto()
    except CertificateError:
        # Nobody asked for neighbours: where they cannot be had, the signals are combined without.
        return None


def _inside(answered: Answered) -> NDArray[np.int64]:
    """Positions of the items in distribution, those that `embeddings_of` takes."""
    return np.flatnonzero([not prediction.out_of_distribution for prediction in answered.edge])


def _encoded(everything: Fitted, signal: str) -> bytes | None:
    """What decides, as bytes; None where nothing does but the signal."""
    combination = everything.combination if signal == COMBINED else None
    neighbours = everything.neighbours
    if neighbours is not None and not (neighbours.vetoes or (combination is not None and combination.reads_neighbours)):
        neighbours = None
    if neighbours is None and everything.complexity is None and combination is None:
        return None
    return fits.encode(Fitted(neighbours, everything.complexity, combination))


def _items(answered: Answered, scores: NDArray[np.float64], fitted: Fitted | None) -> tuple[KeptItem, ...]:
    """Every tuning item, with its row among the neighbours where it is one."""
    row_of: dict[int, int] = {}
    if fitted is not None and fitted.neighbours is not None:
        inside = _inside(answered)
        row_of = {int(inside[kept]): row for row, kept in enumerate(kept_rows(len(inside)))}
    items = zip(answered.part.examples, answered.edge, scores, strict=True)
    return tuple(
        kept_item(example, position, prediction, float(score), row_of.get(position))
        for position, (example, prediction, score) in enumerate(items)
    )


def write_tuned(bundle: Path, issued: Path, tuned: Tuned, *, keep_texts: bool) -> None:
    """Write what was fitted and what the tuning part showed, beside the certificate at `issued`."""
    items = items_beside(bundle, issued)
    if tuned.fitted_bytes is not None:
        write_atomically(fitted_beside(bundle, issued), tuned.fitted_bytes)
    if keep_texts:
        write_atomically(items, msgspec.json.Encoder().encode_lines(tuned.items))
    else:
        # Those of an earlier run would be shown beside fits that they do not belong to.
        items.unlink(missing_ok=True)
    told = msgspec.json.format(msgspec.json.encode(tuned.record), indent=2) + b"\n"
    write_atomically(record_beside(bundle, issued), told)


def asked_of(job: CertifyJob, tuning: Part, model_digest: str, reference: Reference, judge: str) -> Asked:
    """What a job asks of its tuning part."""
    return Asked(
        model_digest=model_digest,
        tuning_digest=tuning.digest,
        reference=reference,
        target=job.target,
        alpha=job.alpha,
        signal=job.signal or AUTO,
        veto=job.veto,
        complexity=job.complexity,
        judge=judge,
    )


def read_record(bundle: Path, issued: Path | None) -> TuningRecord | None:
    """The record beside the certificate; None where there is none that can be read, since it proves nothing."""
    try:
        return msgspec.json.decode(record_beside(bundle, issued).read_bytes(), type=TuningRecord)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def kept_record(bundle: Path, issued: Path, asked: Asked) -> TuningRecord | None:
    """The record beside the certificate where it is of this very job, and what was fitted then still lies there."""
    record = read_record(bundle, issued)
    if record is None or record.asked != asked:
        return None
    try:
        fitted = None if record.fitted_digest is None else fits.digest(fitted_beside(bundle, issued).read_bytes())
    except OSError:
        return None
    return record if record.fitted_digest == fitted else None
