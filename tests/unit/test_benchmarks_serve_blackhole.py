"""The pure parts of the blackhole's benchmark: what counts as having waited, and what counts as reached."""

import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PLACE = Path(__file__).parents[2] / "benchmarks" / "serve" / "blackhole.py"
spec = importlib.util.spec_from_file_location("benchmark_blackhole", PLACE)
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark
spec.loader.exec_module(benchmark)


class Goal(NamedTuple):
    what: str
    found: str
    met: bool


def told(reason, ms, own_ms=None, status="provisional"):
    return benchmark.Told("id", ms, ms if own_ms is None else own_ms, reason, status)


GOOD = [told("budget_spent", 101.0)] * 3 + [told("breaker_open", 2.0)] * 7


def judged(default=GOOD, closed=GOOD, delivered=10):
    drain = benchmark.Drain(10, delivered, 1.0)
    names = benchmark.CONTENDERS
    runs = {names[0]: default, names[1]: closed}
    rounds = [{name: (benchmark.figures(answers, 100.0), drain) for name, answers in runs.items()}]
    return [goal.met for goal in benchmark.goals(rounds, 100.0, Goal)]


def test_what_is_promised_is_met():
    assert judged() == [True] * 8


@pytest.mark.parametrize(
    ("run", "missed"),
    [
        ({"default": [*GOOD, told("budget_spent", 111.0)]}, {0}),
        ({"default": [*GOOD, told("budget_spent", 151.0)]}, {0, 1}),
        ({"closed": [*GOOD, told("budget_spent", 151.0)]}, {3, 4}),
        ({"delivered": 9}, {2, 5}),
        ({"default": [*GOOD, told("budget_spent", 3.0)]}, {6}),
        ({"default": [told("budget_spent", 101.0)]}, {7}),
        ({"default": [*GOOD, told("breaker_open", 95.0)]}, {7}),
        ({"default": [told("breaker_open", 2.0)]}, {6}),
    ],
)
def test_what_is_missed_is_told(run, missed):
    assert {place for place, met in enumerate(judged(**run)) if not met} == missed


def test_final_answers_asked_nobody_in_vain():
    found = benchmark.figures([told("cloud", 3.0, status="final"), *GOOD], 100.0)
    assert (found.asked_while_closed, found.waited_while_closed) == (3, 3)
    assert found.reasons == {"cloud": 1, "budget_spent": 3, "breaker_open": 7}
