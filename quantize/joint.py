"""What a joint plan found out: the values of `plan.json`. Pure.

Owns the plan's shape, and reading it. Which recipe, signal and threshold are taken is decided by whoever asks the
cloud; here stand the figures, so that the page of a run can show them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from edgewise.errors import InputError

PLAN = "plan.json"
FORMAT_VERSION = 1

Infinite: TypeAlias = Literal["inf", "-inf"]
Pay: TypeAlias = Literal["split", "share"]
Outcome: TypeAlias = Literal["planned", "nothing_certifies", "cloud_is_cheaper"]


class Price(msgspec.Struct, frozen=True):
    """What a request costs on average.

    Attributes:
        money: In the currency of the configuration.
        latency_ms: Milliseconds until its answer.
        total: Money, and waiting at the price of a second.
    """

    money: float
    latency_ms: float
    total: float


class CertifiedShare(msgspec.Struct, frozen=True, kw_only=True):
    """What the certifying part proves of a recipe with a signal.

    Attributes:
        threshold: Answer locally iff score > threshold; "inf" answers nothing locally, "-inf" everything with a score.
        local_share: Share of the certifying items above it.
        local_share_interval: Where the share of all such requests lies, with 95 % confidence.
        k: Items that may count against the edge.
        delta: Probability with which this one bound may fail.
    """

    threshold: float | Infinite
    local_share: float
    local_share_interval: tuple[float, float]
    k: int
    delta: float


class CurvePoint(msgspec.Struct, frozen=True):
    """A threshold on the tuning part, which promises nothing.

    Attributes:
        local_share: Share of the items above it.
        risk: What the target bounds, as it was seen.
        price: What a request would cost.
    """

    local_share: float
    risk: float
    price: Price


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe with a signal.

    Attributes:
        recipe: Id of the candidate.
        signal: Name of the score, options included.
        model_digest: The candidate's.
        size_bytes: Bytes of its bundle.
        edge_ms: Median latency of one answer on the edge.
        aurc: Area under the risk-coverage curve on the tuning part; smaller is better.
        auroc: How well the score tells what counts against the edge from what does not; None where all or none do.
        expected_share: Share that the tuning part leads to expect locally.
        certified: What is proved of it; None where it was not put to the test.
        price: What a request costs at the certified share, at the expected one where none is certified.
        curve: Thresholds of the tuning part, the highest first; of the best signal of each recipe only.
        chosen: Whether it is the plan.
    """

    recipe: str
    signal: str
    model_digest: str
    size_bytes: int
    edge_ms: float
    aurc: float
    auroc: float | None
    expected_share: float
    certified: CertifiedShare | None
    price: Price
    curve: tuple[CurvePoint, ...] = ()
    chosen: bool = False


class Practice(msgspec.Struct, frozen=True, kw_only=True):
    """What another way of choosing would have given, on the certifying part.

    Attributes:
        name: The way, in words.
        recipe: Whose answers and scores are used.
        signal: The score.
        threshold: The threshold that it takes.
        local_share: Share of the certifying items above it.
        risk: What the target bounds, as it was seen.
        risk_bound: Upper bound on it, for a threshold fixed beforehand, at the plan's delta; None for accuracy.
        price: What a request would cost.
    """

    name: str
    recipe: str
    signal: str
    threshold: float | Infinite
    local_share: float
    risk: float
    risk_bound: float | None
    price: Price

    def verdict(self, alpha: float) -> Literal["kept", "not proved", "broken", ""]:
        """Whether the promise of at most alpha is proved, not proved, or seen to be broken; "" where nothing tells."""
        if self.risk_bound is None:
            return ""
        if self.risk_bound <= alpha:
            return "kept"
        return "broken" if self.risk > alpha else "not proved"


class Part(msgspec.Struct, frozen=True):
    """Items of one part of the data: how many, and their digest."""

    items: int
    digest: str


class JointPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a plan found out; `plan.json` holds it.

    Attributes:
        format_version: 1.
        headline: The first line to read.
        outcome: Whether a plan answers anything at the edge, and for less than the cloud alone.
        options: Every recipe with every signal, the cheapest first.
        cloud_only: What a request costs where all go to the cloud.
        practices: Other ways of choosing, for comparison.
        target: What is bounded.
        alpha: Bound on the risk.
        delta: Probability with which the promise may fail, the choice included.
        pay: How the choice is paid for: "split" chooses on the tuning part and certifies one option at delta; "share"
            certifies all of them, each at delta over their number.
        m: Options that were certified at most.
        reference: Name and version of the cloud.
        tuning: The tuning part.
        certifying: The certifying part.
        cost: What answers cost, as it was configured; where the cloud is, as it was taken. The cloud's milliseconds are
            None where nothing tells them: latencies then leave it out.
        certificate_id: Of the certificate that was issued for the plan.
        model: The model that was planned for, by its folder's name.
        created: ISO 8601, UTC.
        runtime: Version of the runtime that computed the scores.
        isa: Instruction-set class of the machine that computed them.
    """

    headline: str
    outcome: Outcome
    options: tuple[Option, ...]
    cloud_only: Price
    practices: tuple[Practice, ...]
    target: str
    alpha: float
    delta: float
    pay: Pay
    m: int
    reference: tuple[str, str]
    tuning: Part
    certifying: Part
    cost: dict[str, float | str | None]
    certificate_id: str
    model: str
    created: str
    runtime: str
    isa: str
    format_version: int = FORMAT_VERSION

    @property
    def choice(self) -> Option:
        """The option that is the plan."""
        return next(option for option in self.options if option.chosen)

    @property
    def timed(self) -> bool:
        """Whether it is known how long the cloud takes."""
        return self.cost.get("cloud_ms") is not None

    @property
    def priced(self) -> bool:
        """Whether anything costs something; where nothing does, cloud calls are saved first, then milliseconds."""
        return self.cloud_only.total > 0 or any(option.price.total > 0 for option in self.options)


def encode_plan(plan: JointPlan) -> bytes:
    """The text of `plan.json`."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n"


def read_plan(path: Path) -> JointPlan:
    """Read a plan.

    Raises:
        InputError: It cannot be read, or is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=JointPlan)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise InputError(f"{path} holds no readable plan: {e}.", "Plan again: edgewise plan.") from e
