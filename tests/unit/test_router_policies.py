"""Policies: what each decides, and how a day's allowance is spread."""

import importlib.util
import math
import random
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.contracts import (
    Action,
    Bound,
    Certificate,
    DataPolicy,
    Groups,
    Mode,
    Prediction,
    Reason,
    Reference,
    Request,
)
from edgewise.errors import ConfigError, RequestError
from edgewise.router.policies import (
    CLOUD_ONLY,
    EDGE_ONLY,
    LOCAL_ONLY,
    POLICIES,
    Budgeted,
    CertifiedThreshold,
    PolicyPlugs,
    PolicySettings,
    RaisedThreshold,
    RandomShare,
    Ration,
    Uncovered,
    policy_for,
    policy_named,
)

DAY_S = 86_400
REQUEST = Request(inputs="x", id="1")
PREDICTION = Prediction(output="grain")


def bound(threshold):
    return Bound(threshold=threshold, local_share=0.5, n=300, k=0, alpha=0.01, delta=0.05)


def certificate(threshold=0.5, groups=None):
    return Certificate(
        id="sha256:one", bound=bound(threshold), target="agreement", model_digest="m", signal="margin",
        data_digest="d", reference=Reference("cloud", "1"), created="2026-01-01T00:00:00Z", runtime="r", isa="i",
        groups=groups,
    )  # fmt: skip


class Time:
    """A clock that is set; `set_back` moves the wall clock alone."""

    def __init__(self, time_s=100 * DAY_S):
        self.wall, self.steady = float(time_s), 0.0

    def time(self):
        return self.wall

    def monotonic(self):
        return self.steady

    def go(self, seconds):
        self.wall += seconds
        self.steady += seconds


class Kept:
    """Spending in a dictionary, as durable as its holder."""

    def __init__(self):
        self.days = {}

    def spent(self, day):
        return self.days.get(day, 0.0)

    def spend(self, day, amount):
        self.days[day] = self.spent(day) + amount
        return self.days[day]


@given(st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_local_iff_the_score_is_above_the_threshold(score, threshold):
    decision = CertifiedThreshold(certificate(threshold)).after(REQUEST, PREDICTION, score)
    assert (decision.action is Action.LOCAL) == (score > threshold)
    assert decision.reason is (Reason.CONFIDENT if score > threshold else Reason.BELOW_THRESHOLD)
    assert (decision.certificate_id, decision.policy) == ("sha256:one", "certified_threshold")
    assert decision.threshold == threshold or math.isnan(threshold)


@pytest.mark.parametrize(
    ("by", "group", "local"),
    [
        ("label", "grain", True),
        ("label", "ship", False),
        ("label", "unlisted", False),
        ("desk", "grain", True),
        ("desk", "ship", False),
        ("desk", "unlisted", False),
    ],
)
def test_each_group_has_its_own_threshold_and_an_unlisted_one_none(by, group, local):
    groups = Groups(by=by, bounds={"grain": bound(0.2), "ship": bound(0.8)})
    policy = CertifiedThreshold(certificate(0.0, groups))
    request = Request(inputs="x", attributes={"desk": group})
    prediction = Prediction(output=group if by == "label" else "anything")
    decision = policy.after(request, prediction, 0.5)
    assert decision.action is (Action.LOCAL if local else Action.ESCALATE)
    assert decision.threshold == {"grain": 0.2, "ship": 0.8}.get(group)
    assert (decision.reason is Reason.UNLISTED_GROUP) is (decision.threshold is None)


def test_a_request_without_the_attribute_and_an_answer_that_is_no_label_have_no_group():
    groups = {
        by: CertifiedThreshold(certificate(0.0, Groups(by=by, bounds={"a": bound(0.1)}))) for by in ("x", "label")
    }
    assert groups["x"].after(REQUEST, PREDICTION, 1.0).action is Action.ESCALATE
    assert groups["label"].after(REQUEST, Prediction(output=(0.1, 0.2)), 1.0).action is Action.ESCALATE


def test_a_raised_threshold_answers_without_a_certificate():
    local, escalated = (RaisedThreshold(0.7).after(REQUEST, PREDICTION, score) for score in (0.8, 0.7))
    assert (local.action, local.reason, local.certificate_id) == (Action.LOCAL, Reason.THRESHOLD_RAISED, None)
    assert (escalated.action, escalated.reason) == (Action.ESCALATE, Reason.BELOW_THRESHOLD)


def test_uncovered_escalates_whatever_the_score_and_says_why():
    decision = Uncovered(Reason.CERTIFICATE_EXPIRED).after(REQUEST, PREDICTION, math.inf)
    assert (decision.action, decision.reason, decision.score) == (
        Action.ESCALATE, Reason.CERTIFICATE_EXPIRED, math.inf,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "data_policy", "expected"),
    [
        (Mode.GUARDED, DataPolicy.ANY, None),
        (Mode.SPECULATIVE, DataPolicy.ANY, None),
        (Mode.EDGE_ONLY, DataPolicy.ANY, EDGE_ONLY),
        (Mode.CLOUD_ONLY, DataPolicy.ANY, CLOUD_ONLY),
        (Mode.GUARDED, DataPolicy.LOCAL_ONLY, LOCAL_ONLY),
        (Mode.SPECULATIVE, DataPolicy.LOCAL_ONLY, LOCAL_ONLY),
        (Mode.EDGE_ONLY, DataPolicy.LOCAL_ONLY, LOCAL_ONLY),
    ],
)
def test_the_data_policy_goes_before_the_mode_and_the_mode_before_the_gateways_policy(mode, data_policy, expected):
    routed = Uncovered(Reason.CERTIFICATE_VOID)
    found = policy_for(Request(inputs="x", data_policy=data_policy), mode, routed)
    assert found is (expected or routed)
    if expected is not None:
        assert found.before(REQUEST) == found.after(REQUEST, PREDICTION, 1.0)


def test_data_that_may_not_leave_cannot_ask_for_the_cloud():
    with pytest.raises(RequestError, match="no place is left"):
        policy_for(Request(inputs="x", data_policy=DataPolicy.LOCAL_ONLY), Mode.CLOUD_ONLY, EDGE_ONLY)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_random_share_is_local_uncertified_and_escalates_the_rest_unseen(share):
    policy = RandomShare(share, random.Random(7).random)
    decisions = [policy.before(REQUEST) for _ in range(2000)]
    assert np.mean([d.action is Action.LOCAL for d in decisions]) == pytest.approx(share, abs=0.03)
    assert {(d.reason, d.certificate_id, d.policy) for d in decisions} == {(Reason.RANDOM, None, "random")}


# The budgeted policy.


def budgeted(allowance=10.0, price=1.0, clock=None, kept=None, threshold=0.5):
    clock, kept = clock or Time(), kept or Kept()
    return Budgeted(CertifiedThreshold(certificate(threshold)), Ration(allowance, price, kept, clock)), clock, kept


def test_what_the_certificate_covers_is_local_and_costs_nothing():
    policy, _, kept = budgeted()
    decision = policy.after(REQUEST, PREDICTION, 0.9)
    assert (decision.action, decision.reason, decision.certificate_id) == (
        Action.LOCAL, Reason.CONFIDENT, "sha256:one",
    )  # fmt: skip
    assert kept.days == {}


def test_what_is_saved_is_provisional_and_uncertified():
    policy, clock, _ = budgeted(allowance=1.0)
    clock.go(DAY_S / 2)
    decisions = [policy.after(REQUEST, PREDICTION, 0.1) for _ in range(50)]
    saved = decisions[-1]
    assert (saved.action, saved.reason, saved.certificate_id) == (Action.PROVISIONAL, Reason.SAVED, None)
    assert (saved.score, saved.threshold, saved.policy) == (0.1, 0.5, "budgeted")
    assert sum(d.action is Action.ESCALATE for d in decisions) <= 1


def a_day(policy, clock, scores):
    """Decisions on scores that come evenly over a day."""
    decided = []
    for score in scores:
        clock.go(DAY_S / len(scores) * 0.999)
        decided.append(policy.after(REQUEST, PREDICTION, score))
    return decided


def escalated(decisions, scores):
    return np.array([s for d, s in zip(decisions, scores, strict=True) if d.action is Action.ESCALATE])


def test_the_allowance_goes_to_the_least_confident_all_day_long():
    policy, clock, kept = budgeted(allowance=200)
    draw = np.random.default_rng(0)
    decisions, scores = [], draw.uniform(0, 0.5, 2000)
    for score in scores:
        clock.go(DAY_S / 2000 * 0.9999)
        decisions.append(policy.after(REQUEST, PREDICTION, score))
    chosen = escalated(decisions, scores)
    assert 180 <= len(chosen) <= 200, "nearly all of it is spent, and never more"
    assert kept.days == {"1970-04-11": len(chosen)}
    lowest = np.sort(scores)[:200]
    assert np.mean(np.isin(chosen, lowest)) > 0.75, "mostly on the requests that hindsight would choose"
    halves = [sum(d.action is Action.ESCALATE for d in part) for part in (decisions[:1000], decisions[1000:])]
    assert min(halves) > 70, "neither half of the day pays for the other"


def test_a_fresh_start_does_not_spend_the_day_at_once():
    policy, clock, _ = budgeted(allowance=100)
    burst = [policy.after(REQUEST, PREDICTION, 0.1) for _ in range(90) if clock.go(0.1) is None]
    assert sum(d.action is Action.ESCALATE for d in burst) <= 5


def test_a_quiet_day_escalates_everything():
    policy, clock, _ = budgeted(allowance=100)
    scores = np.linspace(0.1, 0.4, 20)
    clock.go(3600)
    assert len(escalated(a_day(policy, clock, scores[:18]), scores[:18])) == 18


def test_equal_scores_share_the_allowance_evenly():
    policy, clock, _ = budgeted(allowance=100)
    scores = np.full(1000, 0.25)
    chosen = [d.action is Action.ESCALATE for d in a_day(policy, clock, scores)]
    assert 85 <= sum(chosen) <= 100
    assert 30 <= sum(chosen[500:]) <= 70


def test_what_has_no_score_comes_first():
    policy, clock, _ = budgeted(allowance=100)
    draw = np.random.default_rng(1)
    scores = np.where(draw.random(1000) < 0.08, math.nan, draw.uniform(0, 0.5, 1000))
    chosen = escalated(a_day(policy, clock, scores), scores)
    unscored = np.isnan(scores).sum()
    assert np.isnan(chosen).sum() > 0.85 * unscored
    assert np.nanmax(chosen) < 0.2


def test_what_is_escalated_unseen_is_rationed_too():
    class TooComplex(Uncovered):
        def before(self, request):
            return self.after(request, PREDICTION, math.nan)

    clock = Time()
    clock.go(DAY_S / 2)
    policy = Budgeted(TooComplex(Reason.TOO_COMPLEX), Ration(1.0, 1.0, Kept(), clock))
    clock.go(3600)
    first, second = policy.before(REQUEST), policy.before(REQUEST)
    assert [first.action, second.action].count(Action.ESCALATE) <= 1
    assert second.reason is Reason.SAVED


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(0, 2 * DAY_S),
            st.floats(-3 * DAY_S, 3 * DAY_S),
        ),
        max_size=60,
    ),
    st.floats(0.5, 20),
    st.floats(0.1, 3),
)
def test_no_day_ever_costs_more_than_its_allowance_whatever_the_clock_does(steps, allowance, price):
    clock, kept = Time(), Kept()
    policy, _, _ = budgeted(allowance, price, clock, kept)
    for score, seconds, jump in steps:
        clock.go(seconds)
        clock.wall += jump
        policy.after(REQUEST, PREDICTION, score)
    assert all(spent <= allowance * (1 + 1e-6) for spent in kept.days.values())


def evening():
    """A clock an hour and a quarter before midnight."""
    return Time(101 * DAY_S - 4500)


def spend_all(policy, clock):
    """Ask once a minute for 70 minutes; returns how often an escalation was granted."""
    granted = 0
    for _ in range(70):
        clock.go(60)
        granted += policy.after(REQUEST, PREDICTION, math.nan).action is Action.ESCALATE
    return granted


@pytest.mark.parametrize("days", [1, 10])
def test_a_clock_that_is_set_back_brings_no_new_allowance(days):
    policy, clock, kept = budgeted(allowance=5, clock=evening())
    assert spend_all(policy, clock) == 5
    clock.wall -= days * DAY_S
    assert spend_all(policy, clock) == 0
    assert len(kept.days) == 1
    clock.go(DAY_S)
    clock.wall += DAY_S - clock.wall % DAY_S - 4500
    assert spend_all(policy, clock) == 5, "but a clock that is wrong stops nothing for ever"


def test_the_next_day_and_a_restart():
    policy, clock, kept = budgeted(allowance=5, clock=evening())
    assert spend_all(policy, clock) == 5
    again, _, _ = budgeted(allowance=5, clock=clock, kept=kept)
    assert again.after(REQUEST, PREDICTION, math.nan).reason is Reason.SAVED
    clock.go(DAY_S - 4200)
    assert spend_all(again, clock) == 5


def test_money_counts_by_the_price_of_a_call():
    policy, clock, kept = budgeted(allowance=0.5, price=0.1, clock=evening())
    assert spend_all(policy, clock) == 5
    assert sum(kept.days.values()) == pytest.approx(0.5)


# Settings.


def plugs(spending=None):
    return PolicyPlugs(Uncovered(Reason.CERTIFICATE_VOID), Time(), lambda: 0.5, spending)


def test_every_policy_is_built_by_its_name():
    settings = PolicySettings(local_share=0.6, calls_per_day=3)
    built = {name: kind.build(settings, plugs(Kept())) for name, kind in POLICIES.items()}
    assert {name: policy.name for name, policy in built.items()} == {
        "threshold": "certified_threshold", "random": "random", "budgeted": "budgeted",
    }  # fmt: skip
    assert {name for name, kind in POLICIES.items() if kind.certified} == {"threshold", "budgeted"}


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="budgeted, random, threshold"):
        policy_named("budgetted")


@pytest.mark.parametrize(
    ("use", "options", "says"),
    [
        ("random", {"local_share": 1.5}, "policy.local_share is 1.5"),
        ("random", {"local_share": math.nan}, "policy.local_share is nan"),
        ("budgeted", {}, "one of the two"),
        ("budgeted", {"calls_per_day": 3, "money_per_day": 1.0}, "one of the two"),
        ("budgeted", {"calls_per_day": 0}, "policy.calls_per_day is 0"),
        ("budgeted", {"calls_per_day": math.nan}, "policy.calls_per_day is nan"),
        ("budgeted", {"money_per_day": 2.0}, "policy.price_per_call is None"),
        ("budgeted", {"money_per_day": 2.0, "price_per_call": -1.0}, "policy.price_per_call is -1.0"),
    ],
)
def test_bad_settings_are_refused_with_the_value(use, options, says):
    with pytest.raises(ConfigError, match=says) as error:
        POLICIES[use].build(PolicySettings(use=use, **options), plugs(Kept()))
    assert error.value.remedy


def test_without_a_place_for_its_spending_nothing_is_budgeted():
    with pytest.raises(ConfigError, match="nowhere to keep"):
        POLICIES["budgeted"].build(PolicySettings(use="budgeted", calls_per_day=3), plugs())


def test_a_decision_is_a_value():
    decision = CertifiedThreshold(certificate()).after(REQUEST, PREDICTION, 0.9)
    with pytest.raises(AttributeError):
        decision.score = 1.0
    assert msgspec.json.decode(msgspec.json.encode(decision))["reason"] == "confident"


def test_the_example_of_a_policy_routes(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "watched.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("edgewise_example_watched", tmp_path / "watched.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    certified = CertifiedThreshold(certificate())
    policy = example.KIND.build(PolicySettings(), plugs()._replace(certified=certified))
    assert policy.before(Request(inputs="x", session="trial")).action is Action.ESCALATE
    assert policy.before(REQUEST) is None
    assert policy.after(REQUEST, PREDICTION, 0.9) == certified.after(REQUEST, PREDICTION, 0.9)
