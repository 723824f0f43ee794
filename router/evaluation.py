"""What routing gave on labelled items: shares, accuracies, the operating curve. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import Action, Answer, Source, Status

PERCENTILES = (50, 95, 99)


class CurvePoint(msgspec.Struct, frozen=True):
    """Accuracy if the `local_share` most confident items are answered at the edge and the rest in the cloud."""

    local_share: float
    accuracy: float


class Routed(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway's answers to labelled items amount to.

    Attributes:
        cloud_accuracy: Of the cloud alone.
        edge_accuracy: Of the edge model alone.
        routed_accuracy: Of the answers the gateway gave.
        local_share: Items answered locally as final.
        local_disagreement: Items answered locally as final and differently from the cloud, over *all* items; what a
            certificate of agreement bounds.
        disagreement_given_local: The same over the items answered locally.
        local_accuracy_loss: Items answered locally and wrong, less those that the cloud has wrong of these, over *all*
            items; what a certificate of accuracy bounds.
        wrong_given_local: Items answered locally and wrong, over the items answered locally; what a certificate of
            selective risk bounds.
        provisional_share: Items whose answer was provisional.
        cloud_calls_saved: Items answered finally without a call to the cloud; calls of audits are not counted.
        latency_ms: Percentiles of the client's waiting time, for "local" and "escalated" answers.
    """

    cloud_accuracy: float
    edge_accuracy: float
    routed_accuracy: float
    local_share: float
    local_disagreement: float
    disagreement_given_local: float
    local_accuracy_loss: float
    wrong_given_local: float
    provisional_share: float
    cloud_calls_saved: int
    latency_ms: Mapping[str, Mapping[str, float | None]]


def evaluate(
    answers: Sequence[Answer],
    waited_ms: Sequence[float],
    *,
    labels: Sequence[str],
    edge_outputs: Sequence[object],
    cloud_outputs: Sequence[object],
) -> Routed:
    """Summarise a gateway's answers; all sequences are aligned with the items, at least one item.

    Args:
        answers: The gateway's first answers.
        waited_ms: How long the client waited for each.
        labels: The truth.
        edge_outputs: What the edge model says alone.
        cloud_outputs: What the reference cloud says alone.
    """
    local = np.array([is_local(answer) for answer in answers])
    differs = np.array([given.output != cloud for given, cloud in zip(answers, cloud_outputs, strict=True)])
    wrong = np.array([given.output != label for given, label in zip(answers, labels, strict=True)])
    cloud_wrong = np.array([cloud != label for cloud, label in zip(cloud_outputs, labels, strict=True)])
    computed = np.array([answer.source is not Source.CACHE for answer in answers])
    waited = np.asarray(waited_ms, dtype=np.float64)
    return Routed(
        cloud_accuracy=_accuracy(cloud_outputs, labels),
        edge_accuracy=_accuracy(edge_outputs, labels),
        routed_accuracy=_accuracy([answer.output for answer in answers], labels),
        local_share=float(local.mean()),
        local_disagreement=float((local & differs).mean()),
        disagreement_given_local=float(differs[local].mean()) if local.any() else 0.0,
        local_accuracy_loss=float((local & wrong).mean() - (local & cloud_wrong).mean()),
        wrong_given_local=float(wrong[local].mean()) if local.any() else 0.0,
        provisional_share=float(np.mean([answer.status is Status.PROVISIONAL for answer in answers])),
        cloud_calls_saved=sum(_saved_a_call(answer) for answer in answers),
        latency_ms={
            "local": percentiles(waited[local & computed]),
            "escalated": percentiles(waited[~local & computed]),
        },
    )


def is_local(answer: Answer) -> bool:
    """Whether an answer was decided at the edge as final; a cached one counts as what it was when it was computed."""
    return answer.status is Status.FINAL and answer.decision.action is Action.LOCAL


def _saved_a_call(answer: Answer) -> bool:
    return answer.status is Status.FINAL and answer.source is not Source.CLOUD


def operating_curve(
    scores: NDArray[np.float64], edge_correct: NDArray[np.bool_], cloud_correct: NDArray[np.bool_]
) -> list[CurvePoint]:
    """Accuracy at every share answered locally, most confident items first, from none to all; NaN scores go last.

    Args:
        scores: Confidence of the edge model, shape (n,).
        edge_correct: Whether the edge model is right, shape (n,).
        cloud_correct: Whether the cloud is right, shape (n,).
    """
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    gained = np.concatenate([[0], np.cumsum(edge_correct[order].astype(int) - cloud_correct[order])])
    n = len(scores)
    return [CurvePoint(count / n, float(cloud_correct.sum() + gained[count]) / n) for count in range(n + 1)]


def percentiles(values: NDArray[np.float64]) -> dict[str, float | None]:
    """The 50th, 95th and 99th percentile as "p50", "p95" and "p99"; None where there are no values."""
    return {f"p{percent}": float(np.percentile(values, percent)) if len(values) else None for percent in PERCENTILES}


def _accuracy(outputs: Sequence[object], labels: Sequence[str]) -> float:
    return float(np.mean([output == label for output, label in zip(outputs, labels, strict=True)]))
