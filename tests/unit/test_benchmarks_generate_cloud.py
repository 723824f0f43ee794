"""The pure parts of the benchmark of the cloud service's texts: what is asked, counted and judged."""

import importlib.util
import sys
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[2] / "benchmarks" / "generate"


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# By its path: the script's name is also that of a room.
benchmark = load("benchmark_generate_cloud", PLACE / "cloud.py")
OURS, GENERATE, SERVE = benchmark.OURS, benchmark.GENERATE, benchmark.SERVE
RIGHT, WRONG, OFF, ON, AUTO = benchmark.RIGHT, benchmark.WRONG, benchmark.OFF, benchmark.ON, benchmark.AUTO


def answered(question, started_s, *times_s, text="one two three"):
    return benchmark.Answered(question, text, started_s, times_s)


def run(tokens_per_s, first_ms=100.0, gap_ms=50.0, **texts):
    return benchmark.Run(tokens_per_s, first_ms, gap_ms, texts, {})


def found(**changed):
    rates = {
        (GENERATE, 1): 20.0,
        (SERVE, 1): 18.0,
        (SERVE, 8): 19.0,
        (OURS, 1): 21.0,
        (OURS, 8): 80.0,
        (WRONG, ON): 8.0,
        (WRONG, AUTO): 20.8,
        (RIGHT, OFF): 21.0,
        (RIGHT, ON): 33.0,
        (RIGHT, AUTO): 32.0,
    }
    return {key: run(rate) for key, rate in rates.items()} | changed.get("runs", {})


def test_everybody_who_asks_at_once_asks_something_else():
    assert len(set(benchmark.asked(4, 20))) == 20
    assert benchmark.asked(4, 1) == benchmark.asked(1, 4)
    assert benchmark.WARM_UP not in benchmark.asked(4, 20)


def test_tokens_are_counted_over_the_time_that_all_took():
    answers = [answered("a", 10.0, 10.5, 10.6, 11.0), answered("b", 10.0, 11.5, 13.0)]
    told = benchmark.summed(answers, lambda text: len(text.split()))
    assert told.tokens_per_s == pytest.approx(6 / 3)
    assert told.first_ms == pytest.approx(1000)
    assert 1400 < told.gap_ms <= 1500
    assert told.texts == {"a": "one two three", "b": "one two three"}
    assert benchmark.summed([answered("a", 0.0, 1.0)], len).gap_ms == 0


def test_goals_are_judged_round_by_round():
    def judged(**changed):
        return [
            goal.met for goal in benchmark.goals(benchmark.compared([found(), found(**changed), found(**changed)]), 8)
        ]

    assert judged() == [True] * 5
    slower = {(OURS, 1): run(18.0), (RIGHT, AUTO): run(20.9), (WRONG, AUTO): run(16.0), (OURS, 8): run(35.0)}
    assert judged(runs=slower) == [False] * 5


def test_losses_are_told():
    lines = benchmark.losses([found()])
    assert lines == [f"a draft that is {WRONG}, used for every step: 0.38 of off"]
    lines = benchmark.losses([found(runs={(SERVE, 8): run(90.0, first_ms=80.0, gap_ms=49.0)})])
    assert len(lines) == 4
    assert lines[0] == "tokens/s, 8 at once: 80, transformers serve 90"


def test_texts_are_compared_where_both_were_asked():
    rounds = [{(OURS, 1): run(1, a="x", b="y", c="z"), (GENERATE, 1): run(1, a="x", b="no")}]
    assert benchmark.same(rounds, (OURS, 1), (GENERATE, 1)) == "1 of 2"
    assert benchmark.same(rounds, (WRONG, OFF), (OURS, 1)) == "3 of 3"


def test_what_the_service_says_of_its_draft_is_read():
    exposition = (
        "# HELP edgewise_draft_acceptance Share.\n"
        'edgewise_draft_acceptance{model="m"} 0.75\n'
        'edgewise_draft_tokens_per_round{model="m"} 3.5\n'
        'edgewise_decode_tokens_per_second{model="m",decoding="plain"} 20.5\n'
        'edgewise_drafted_tokens_total{model="m",fate="refused"} 4.0\n'
        'edgewise_tokens_total{source="cloud"} 12.0\n'
    )
    assert benchmark.drafting_of(exposition) == {
        "draft_acceptance": 0.75,
        "draft_tokens_per_round": 3.5,
        "decode_tokens_per_second plain": 20.5,
        "drafted_tokens_total refused": 4.0,
    }
