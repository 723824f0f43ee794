"""The life of a certificate under clocks that are wrong, jump, or are set back on purpose."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.router.lifetime import Life, Lifetime, seconds_of

CREATED, EXPIRES = "2026-01-01T00:00:00Z", "2026-01-31T00:00:00+00:00"
BORN, END = seconds_of(CREATED), seconds_of(EXPIRES)
DAY = 86_400


def life():
    return Lifetime(CREATED, EXPIRES)


def test_it_holds_until_its_end_and_no_longer():
    clock = life()
    assert clock.verdict(BORN, 0) is Life.OK
    assert clock.verdict(END - 1, END - BORN - 1) is Life.OK
    assert clock.verdict(END, END - BORN) is Life.EXPIRED


def test_without_an_end_it_always_holds_whatever_the_date_says():
    clock = Lifetime("no date at all", None)
    assert {clock.verdict(wall, 1e9) for wall in (-1e9, 0.0, 1e12, math.nan)} == {Life.OK}


def test_a_clock_set_back_lengthens_no_life():
    clock = life()
    assert clock.verdict(END - 5 * DAY, 0) is Life.OK
    assert clock.verdict(BORN + DAY, 4.9 * DAY) is Life.OK
    assert clock.verdict(BORN + DAY, 5 * DAY) is Life.EXPIRED
    assert clock.verdict(BORN + DAY, 6 * DAY) is Life.EXPIRED


def test_a_clock_that_jumps_ahead_ends_it_until_it_is_put_right():
    clock = life()
    assert clock.verdict(BORN, 0) is Life.OK
    assert clock.verdict(END + 400 * DAY, 10) is Life.EXPIRED
    assert clock.verdict(BORN + 20, 20) is Life.OK


def test_a_clock_before_its_birth_tells_nothing_until_it_is_put_right():
    clock = life()
    assert clock.verdict(0.0, 0) is Life.CLOCK_WRONG
    assert clock.verdict(BORN + DAY, 60) is Life.OK
    assert clock.verdict(math.nan, 70) is Life.CLOCK_WRONG


def test_a_day_of_difference_between_two_machines_is_no_matter():
    assert life().verdict(BORN - DAY, 0) is Life.OK
    assert life().verdict(BORN - DAY - 1, 0) is Life.CLOCK_WRONG


def test_a_clock_that_was_wrong_at_first_counts_from_when_it_was_right():
    clock = life()
    assert clock.verdict(0.0, 0) is Life.CLOCK_WRONG
    assert clock.verdict(END - 2 * DAY, 100) is Life.OK
    assert clock.verdict(BORN, 100 + 2 * DAY) is Life.EXPIRED


def test_a_clock_that_is_always_wrong_gives_no_second_life():
    clock = life()
    assert clock.verdict(0.0, 0) is Life.CLOCK_WRONG
    assert clock.verdict(0.0, END - BORN) is Life.EXPIRED


steps = st.lists(st.tuples(st.integers(0, 10 * DAY), st.integers(-60 * DAY, 60 * DAY)), min_size=1, max_size=20)


@given(loaded_after=st.integers(0, 30 * DAY - 1), steps=steps)
def test_whatever_the_wall_clock_does_it_never_holds_for_longer_than_was_left(loaded_after, steps):
    """Each step lets true time pass and sets the wall clock off by so much."""
    clock, passed = life(), 0
    clock.verdict(BORN + loaded_after, passed)
    for elapsed, off in steps:
        passed += elapsed
        wall = BORN + loaded_after + passed + off
        verdict = clock.verdict(wall, passed)
        if loaded_after + passed >= END - BORN or wall >= END:
            assert verdict is Life.EXPIRED
        elif wall < BORN - DAY:
            assert verdict is Life.CLOCK_WRONG
        else:
            assert verdict is Life.OK


@pytest.mark.parametrize("moment", ["", "yesterday", "2026-13-01"])
def test_what_is_no_time_is_refused(moment):
    with pytest.raises(ValueError, match=r"(?i)iso|month"):
        Lifetime(CREATED, moment)


def test_a_time_without_a_zone_is_utc():
    assert seconds_of("2026-01-01T00:00:00") == BORN == seconds_of("2026-01-01T02:00:00+02:00")


def test_a_clock_that_ran_ahead_at_first_ends_it_only_until_it_is_put_right():
    clock = life()
    assert clock.verdict(END + 400 * DAY, 0) is Life.EXPIRED
    assert clock.verdict(BORN + DAY, 60) is Life.OK
    assert clock.verdict(BORN + DAY, 60 + END - BORN - DAY) is Life.EXPIRED, "counted from when it was right"
