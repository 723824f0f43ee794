"""What drafting is measured to cost, and what follows from it."""

import pytest

from edgewise.cloud.clients.pacing import FIRST_K, MOST_K, REVIEW, TRIALS, Line, Pace, Round


def after(pace, rounds, **fields):
    for _ in range(rounds):
        pace = pace.after_round(
            Round(**{"drafted": 4, "accepted": 3, "draft_ms": 40, "compute_ms": 68, "wall_ms": 88, **fields})
        )
    return pace


def test_nothing_is_known_at_first():
    pace = Pace()
    assert (pace.k(), pace.k(2), pace.drafts) == (FIRST_K, 2, True)
    assert (pace.costs, pace.acceptance, pace.plain_token_ms, pace.drafted_token_ms) == (None,) * 4


def test_a_line_is_found_again():
    line = Line()
    assert line.fit() == (0, 0)
    for x in (4, 2, 8, 6, 4):
        line = line.through(x, 60 + 2 * x)
    assert line.fit() == pytest.approx((60, 2))


def test_a_line_through_one_place_is_flat():
    assert Line().through(4, 68).through(4, 68).fit() == (68, 0)


def test_a_line_never_falls_below_nothing():
    steep = Line().through(1, 0).through(3, 90)
    base, slope = steep.fit()
    assert base >= 0
    assert slope >= 0
    assert Line().through(1, 90).through(3, 10).fit()[1] == 0


def test_costs_are_those_of_the_rounds():
    pace = after(after(Pace(), 30), 30, drafted=8, accepted=5, draft_ms=80, compute_ms=76, wall_ms=96)
    costs = pace.costs
    assert costs.draft_ms == pytest.approx(10)
    assert costs.verify_ms == pytest.approx(60, rel=0.01)
    assert costs.verify_token_ms == pytest.approx(2, rel=0.05)
    assert costs.rtt_ms == pytest.approx(20)


def test_tokens_behind_a_wrong_one_are_no_trials():
    assert after(Pace(), 1, accepted=0).acceptance == 0
    assert after(Pace(), 1, accepted=1).acceptance == 0.5
    assert after(Pace(), 1, accepted=4).acceptance == 1
    assert after(Pace(), 1, drafted=0, accepted=0).acceptance is None


def test_a_draft_that_stands_becomes_longer_and_one_that_falls_shorter():
    assert after(Pace(), 40, accepted=4).k() == MOST_K
    assert after(Pace(), 40, accepted=0).k() == 1


def test_it_drafts_where_that_is_faster():
    near, far = after(Pace(answers=TRIALS), 40), after(Pace(answers=TRIALS), 40, wall_ms=668)
    assert near.drafted_token_ms == pytest.approx(32)
    assert near.plain_token_ms == pytest.approx(68)  # what the target takes, as long as nothing better is known
    assert near.drafts
    assert not far.drafts
    assert not near.after_plain(50, 50 * 20).drafts
    assert far.after_plain(50, 50 * 200).drafts
    assert near.after_plain(0, 0).plain_token_ms == pytest.approx(68)


def test_a_server_that_does_not_rule_is_asked_again_less_and_less_often():
    pace, waited = after(Pace(answers=TRIALS), 40), []
    for _ in range(9):
        pace, count = pace.after_refusal(), 0
        while pace.waits:
            assert not pace.drafts
            pace, count = pace.after_answer(), count + 1
        waited.append(count)
    assert waited == [16, 32, 64, 128, 256, 512, 1024, 1024, 1024]
    assert pace.after_ruling().after_refusal().waits == REVIEW


@pytest.mark.parametrize("wall_ms", [88, 668])
def test_the_slower_way_is_measured_again_now_and_then(wall_ms):
    pace, ways = after(Pace(), 40, wall_ms=wall_ms), []
    for _ in range(TRIALS + 2 * REVIEW):
        ways.append(pace.drafts)
        pace = pace.after_answer()
    assert ways[:TRIALS] == [True, False] * (TRIALS // 2)
    assert sorted((ways[TRIALS:].count(True), ways[TRIALS:].count(False))) == [2, 2 * REVIEW - 2]
