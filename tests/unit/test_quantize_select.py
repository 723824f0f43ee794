"""Which candidate wins, whether the gate is met, and in which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import ConfigError
from edgewise.quantize.select import PREFERENCES, Entry, check_preference, front, judge, pick
from edgewise.quantize.statistics import Quality

FP32 = Entry(id="fp32", size_bytes=90_000_000, p50_ms=6.4, drop=0.0)
INT8 = Entry(id="int8", size_bytes=23_000_000, p50_ms=1.77, drop=0.002)
INT4 = Entry(id="int4", size_bytes=15_000_000, p50_ms=7.0, drop=0.004)
MIXED = Entry(id="mixed", size_bytes=18_900_000, p50_ms=1.97, drop=0.003)
ALL = (INT8, INT4, MIXED)


@pytest.mark.parametrize(("prefer", "winner"), [("balanced", "mixed"), ("size", "int4"), ("speed", "int8")])
def test_each_preference_has_its_winner(prefer, winner):
    assert pick(FP32, ALL, max_drop=0.01, prefer=prefer).id == winner


@pytest.mark.parametrize(("slower", "winner"), [(1.09, "int4"), (1.11, "fp32")])
def test_balanced_gives_up_a_tenth_of_the_speed_at_most(slower, winner):
    small = Entry(id="int4", size_bytes=INT4.size_bytes, p50_ms=FP32.p50_ms * slower, drop=0.0)
    found = pick(FP32, (small,), max_drop=0.01, prefer="balanced")
    assert found.id == winner
    assert "neither larger nor over a tenth slower" in found.why


def test_a_candidate_that_loses_too_much_is_out_and_the_sentence_says_by_how_much():
    lossy = Entry(id="lossy", size_bytes=1, p50_ms=0.1, drop=0.0234)
    found = pick(FP32, (lossy,), max_drop=0.01, prefer="size")
    assert found.id == "fp32"
    assert "lossy, loses 2.34 points" in found.why


def test_within_three_percent_the_other_figure_decides():
    nearly = Entry(id="nearly", size_bytes=15_300_000, p50_ms=2.0, drop=0.0)
    assert pick(FP32, (INT4, nearly), max_drop=0.01, prefer="size").id == "nearly"


def test_without_candidates_the_baseline_is_all_there_is():
    assert "no other candidate came about" in pick(FP32, (), max_drop=0.01, prefer="balanced").why


entries = st.builds(
    Entry,
    id=st.uuids().map(str),
    size_bytes=st.integers(1, 10**9),
    p50_ms=st.floats(0.01, 1e3),
    drop=st.floats(-0.1, 0.1),
)


@given(st.lists(entries, max_size=6), st.sampled_from(PREFERENCES))
def test_the_winner_keeps_the_rules(candidates, prefer):
    found = pick(FP32, candidates, max_drop=0.01, prefer=prefer)
    winner = next(entry for entry in (FP32, *candidates) if entry.id == found.id)
    assert winner.drop <= 0.01
    assert winner.id in found.why
    if prefer == "balanced":
        assert winner.size_bytes <= FP32.size_bytes
        assert winner.p50_ms <= FP32.p50_ms * 1.03


def of(lost: int, won: int, n: int) -> Quality:
    return Quality(
        n=n,
        accuracy=0.9 - (lost - won) / n,
        baseline_accuracy=0.9,
        drop=(lost - won) / n,
        lost=lost,
        won=won,
        flips=(lost + won) / n,
    )


def test_the_gate_is_met_when_the_bound_is_small_enough():
    found = judge(of(2, 1, 1000), bound=0.0072, needed=None, max_drop=0.01, confidence=0.95)
    assert found.verdict == "met"
    assert found.bound <= 0.01
    assert found.items_needed is None
    assert found.sentence.startswith("Met: 2 of 1000 gate items lost and 1 won")


@pytest.mark.parametrize("baseline", [0.0, 0.01])
def test_a_gate_on_which_nothing_can_be_lost_says_that_it_measures_nothing(baseline):
    quality = Quality(n=400, accuracy=0.0, baseline_accuracy=baseline, drop=baseline, lost=4, won=0, flips=0.4, nll=7.3)
    found = judge(quality, bound=0.01, needed=None, max_drop=0.01, confidence=0.95)
    assert found.verdict == "met"
    assert found.sentence.startswith("Met in name only, for nothing is measured: 0.0000 of the tokens of 400")


def test_a_gate_with_too_few_items_says_how_many_are_needed():
    found = judge(of(0, 0, 100), bound=0.0317, needed=321, max_drop=0.01, confidence=0.95)
    assert found.verdict == "missed"
    assert found.items_needed == 321
    assert "321 items would be needed" in found.sentence


def test_a_gate_that_no_number_of_items_can_pass_says_so():
    found = judge(of(30, 2, 1000), bound=0.041, needed=None, max_drop=0.01, confidence=0.95)
    assert (found.verdict, found.items_needed) == ("missed", None)
    assert "no number of such items" in found.sentence


def test_a_bound_equal_to_the_allowed_drop_meets_it():
    assert judge(of(0, 0, 10), bound=0.01, needed=None, max_drop=0.01, confidence=0.95).verdict == "met"


@given(st.lists(entries, min_size=1, max_size=8))
def test_the_front_is_what_nothing_dominates(found):
    best = front(found)

    def figures(entry):
        return entry.size_bytes, entry.p50_ms, entry.drop

    for entry in found:
        dominated = any(
            figures(other) != figures(entry)
            and all(a <= b for a, b in zip(figures(other), figures(entry), strict=True))
            for other in found
        )
        assert (entry.id in best) == (not dominated)
    assert best


def test_candidates_alike_are_all_on_the_front():
    twin = Entry(id="twin", size_bytes=INT8.size_bytes, p50_ms=INT8.p50_ms, drop=INT8.drop)
    assert front([FP32, INT8, twin]) == {"fp32", "int8", "twin"}


def test_an_unknown_preference_names_the_known_ones():
    with pytest.raises(ConfigError, match="balanced, size, speed"):
        check_preference("small")
