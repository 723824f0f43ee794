"""The order in which owed answers are asked for: each session's own, and nobody kept waiting by somebody else's."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgewise.contracts import Debt
from edgewise.router.backlog import Backlog, Ramp, key_of


def debt(name, session=None, created=0.0, tenant="public"):
    return Debt(tenant, name, session, created)


def filled(*debts):
    backlog = Backlog(retry_s=1.0)
    for owed in debts:
        backlog.add(owed)
    return backlog


def taken(backlog, now=0.0):
    found = []
    while (owed := backlog.take(now)) is not None:
        found.append(owed.id)
    return found


def test_the_oldest_come_first_and_one_of_each_session():
    backlog = filled(debt("1", "s"), debt("2", "s"), debt("3"), debt("4", "t"), debt("5"))
    assert taken(backlog) == ["1", "3", "4", "5"]
    assert backlog.waiting == 1
    backlog.settled(("public", "1"))
    assert taken(backlog) == ["2"]


def test_sessions_of_two_tenants_are_two():
    assert taken(filled(debt("1", "s"), debt("2", "s", tenant="other"))) == ["1", "2"]


def test_what_failed_comes_behind_what_did_not_and_pauses_longer_and_longer():
    backlog = filled(debt("bad"), debt("good"))
    pauses, now = [], 0.0
    for _ in range(12):
        assert backlog.take(now).id == "bad"
        backlog.failed(("public", "bad"), now)
        pauses.append(backlog.seconds_to_next(now))
        if len(pauses) == 1:
            assert backlog.take(now + pauses[0]).id == "good"
            backlog.settled(("public", "good"))
        now += pauses[-1]
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 600.0, 600.0, 600.0]


def test_what_was_put_back_lets_the_others_pass_and_pauses_no_longer_each_time():
    backlog = filled(debt("1"), debt("2"))
    for now in range(0, 10, 2):
        assert backlog.take(now).id == "12"[now // 2 % 2]
        backlog.put_back(("public", "12"[now // 2 % 2]), now)


def test_nobody_is_asked_for_while_the_cloud_wants_none_and_that_ends():
    backlog = filled(debt("1"), debt("2"))
    assert backlog.take(0.0).id == "1"
    backlog.hold(30.0, 0.0)
    backlog.hold(5.0, 0.0)
    backlog.failed(("public", "1"), 0.0)
    assert (backlog.take(29.0), backlog.seconds_to_next(29.0)) == (None, 1.0)
    assert taken(backlog, 30.0) == ["2", "1"]
    backlog.hold(1e9, 30.0)
    assert backlog.seconds_to_next(30.0) == 600.0


def test_a_session_waits_for_its_first_also_while_that_pauses():
    backlog = filled(debt("1", "s"), debt("2", "s"))
    assert backlog.take(0.0).id == "1"
    backlog.failed(("public", "1"), 0.0)
    assert backlog.take(0.0) is None
    assert backlog.seconds_to_next(0.5) == 1.5
    assert backlog.take(2.0).id == "1"


def test_what_somebody_asks_for_already_is_not_asked_for_twice():
    backlog = Backlog(retry_s=1.0)
    backlog.add(debt("1"), busy=True)
    assert (backlog.take(0.0), backlog.waiting) == (None, 0)
    backlog.idle(("public", "1"))
    assert backlog.take(0.0).id == "1"


def test_the_end_of_one_in_the_middle_disturbs_nobody():
    backlog = filled(*(debt(str(number), "s") for number in range(4)))
    backlog.settled(("public", "2"))
    backlog.settled(("public", "unknown"))
    order = []
    while (owed := backlog.take(0.0)) is not None:
        order.append(owed.id)
        backlog.settled(key_of(owed))
    assert order == ["0", "1", "3"]
    assert len(backlog) == 0


def test_what_is_too_old_is_found_oldest_first():
    backlog = filled(*(debt(str(number), created=float(number)) for number in range(5)))
    assert [owed.id for owed in backlog.owed_before(3.0)] == ["0", "1", "2"]
    assert backlog.owed_before(0.0) == []
    assert backlog.take(0.0).id == "0"
    assert [owed.id for owed in backlog.owed_before(3.0)] == ["1", "2"], "the answer to the first may be about to come"


def test_owing_twice_is_a_mistake():
    with pytest.raises(ValueError, match="already"):
        filled(debt("1"), debt("1"))


def test_the_ramp_grows_by_every_answer_and_starts_anew_with_a_failure():
    ramp, limits = Ramp(4), []
    for succeeded in (True, True, True, True, False, True):
        limits.append(ramp.limit)
        (ramp.succeeded if succeeded else ramp.failed)()
    assert limits == [1, 2, 3, 4, 4, 1]
    assert ramp.limit == 2


class Draining(RuleBasedStateMachine):
    """Requests of a few sessions are owed, asked for, fail and are settled in any order."""

    def __init__(self):
        super().__init__()
        self.backlog = Backlog(retry_s=1.0)
        self.now, self.owed, self.busy, self.given = 0.0, [], {}, 0

    @rule(session=st.sampled_from([None, None, "s", "t"]), busy=st.booleans())
    def owe(self, session, busy):
        owed = debt(str(self.given), session, self.now)
        self.given += 1
        self.backlog.add(owed, busy=busy)
        self.owed.append(owed)
        if busy:
            self.busy[owed] = "somebody"

    @rule(seconds=st.floats(0, 700))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def take(self):
        found = self.backlog.take(self.now)
        if found is None:
            return
        assert found in self.owed
        assert found not in self.busy, "nothing is asked for twice at a time"
        if found.session is not None:
            mine = [owed for owed in self.owed if owed.session == found.session]
            assert found == mine[0], "a session keeps its order"
        self.busy[found] = "us"

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), end=st.sampled_from(["settled", "failed", "put_back", "idle"]))
    def asking_ends(self, data, end):
        owed = data.draw(st.sampled_from(sorted(self.busy, key=lambda one: int(one.id))))
        del self.busy[owed]
        if end == "settled":
            self.owed.remove(owed)
            self.backlog.settled(key_of(owed))
        elif end == "idle":
            self.backlog.idle(key_of(owed))
        else:
            getattr(self.backlog, end)(key_of(owed), self.now)

    @precondition(lambda self: self.owed)
    @rule(data=st.data())
    def one_is_owed_no_more(self, data):
        owed = data.draw(st.sampled_from(self.owed))
        self.owed.remove(owed)
        self.busy.pop(owed, None)
        self.backlog.settled(key_of(owed))

    @invariant()
    def it_counts_right(self):
        assert len(self.backlog) == len(self.owed)
        assert self.backlog.waiting == len(self.owed) - len(self.busy)

    def teardown(self):
        """Nothing is ever forgotten: left alone, everything is asked for in the end."""
        for owed in self.busy:
            self.backlog.idle(key_of(owed))
        self.now += 10_000
        while (found := self.backlog.take(self.now)) is not None:
            self.owed.remove(found)
            self.backlog.settled(key_of(found))
        assert self.owed == []


TestDraining = Draining.TestCase
