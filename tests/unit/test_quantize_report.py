"""The first line of a report: what is bad comes first."""

from edgewise.quantize.report import Candidate, Performance, all_lose_too_much, headline
from edgewise.quantize.select import judge
from edgewise.quantize.statistics import Latency, Quality


def candidate(name: str, size: int, p50: float, drop: float = 0.0) -> Candidate:
    return Candidate(
        id=name,
        recipe=name,
        options={},
        state="measured",
        performance=Performance(
            size_bytes=size,
            load_ms=1.0,
            first_ms=1.0,
            latency=Latency(calls=9, mean_ms=p50, p50_ms=p50, p95_ms=2 * p50, p99_ms=3 * p50),
            peak_rss_bytes=1,
        ),
        quality=quality(drop),
    )


def quality(drop: float) -> Quality:
    lost = round(drop * 1000)
    return Quality(n=1000, accuracy=0.9 - drop, baseline_accuracy=0.9, drop=drop, lost=lost, won=0, flips=drop)


FP32 = candidate("fp32", 90_000_000, 6.4)
GOOD = candidate("int8", 22_500_000, 1.6, 0.001)


def test_a_good_winner_is_compared_with_the_baseline():
    line = headline((FP32, GOOD), "int8", max_drop=0.01, gate=None)
    assert line.startswith("int8: 22.5 MB (4 x smaller), p50 1.60 ms (4 x faster), accuracy 0.8990 (0.9000 before)")
    assert "not bounded" in line


def test_a_winner_that_is_slower_or_not_smaller_is_flagged_in_the_first_words():
    slow = candidate("int4", 15_000_000, 9.6)
    assert headline((FP32, slow), "int4", max_drop=0.01, gate=None).startswith("Beware: int4 is slower than fp32.")
    large = candidate("int8", 91_000_000, 1.6)
    assert headline((FP32, large), "int8", max_drop=0.01, gate=None).startswith(
        "Beware: int8 is not smaller than fp32."
    )


def test_fp32_as_the_fastest_is_said_in_the_first_words():
    slow = candidate("int8", 22_500_000, 9.6)
    assert headline((FP32, slow), "fp32", max_drop=0.01, gate=None).startswith("fp32 is best here: it is faster than")


def test_quantized_files_that_are_not_smaller_are_said_in_the_first_words():
    line = headline((FP32, candidate("int8", 90_000_001, 6.0)), "fp32", max_drop=0.01, gate=None)
    assert line == "fp32 is best here: it is no larger than any of them."


def test_a_missed_tuning_goal_comes_first():
    lossy = candidate("int8", 1, 1.0, 0.05)
    assert headline((FP32, lossy), "fp32", max_drop=0.01, gate=None).startswith(
        "Goal missed: every quantized candidate"
    )
    assert all_lose_too_much((FP32, lossy), 0.01)
    assert not all_lose_too_much((FP32, lossy, GOOD), 0.01)
    assert not all_lose_too_much((FP32,), 0.01)


def test_the_gate_s_sentence_stands_in_the_headline():
    gate = judge(quality(0.02), bound=0.03, needed=None, max_drop=0.01, confidence=0.95)
    assert "Missed: 20 of 1000 gate items lost" in headline((FP32, GOOD), "int8", max_drop=0.01, gate=gate)


def test_without_any_candidate_the_headline_says_so():
    broken = Candidate(id="int8", recipe="int8", options={}, state="failed", problem="x")
    assert headline((FP32, broken), "fp32", max_drop=0.01, gate=None).startswith("No quantized candidate came about")
