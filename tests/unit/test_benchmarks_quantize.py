"""The pure parts of the quantization benchmarks: intervals, matches, hypervolume. Nothing is measured here."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

# The scripts of a benchmark import their neighbours by bare names, as Python runs them; so must who borrows from them.
FOLDER = Path(__file__).parents[2] / "benchmarks" / "quantize"
sys.path.append(str(FOLDER))

import figures  # noqa: E402  (found through the line above)
from figures import (  # noqa: E402
    Point,
    answers,
    front,
    hypervolume,
    match,
    quality,
    ratios,
    spread,
)

COMMANDS = ("minilm.py", "recipes.py", "rivals.py", "cost.py", "smollm2.py")

GRID = 6
coordinate = st.integers(0, GRID).map(lambda steps: steps / GRID)
triples = st.lists(st.tuples(coordinate, coordinate, coordinate), max_size=7)
points = st.lists(
    st.builds(
        lambda size, p50, accuracy: Point("p", size, p50, accuracy, accuracy - 0.05),
        st.integers(1, 4),
        st.integers(1, 4).map(float),
        st.integers(1, 4).map(lambda tenths: tenths / 10),
    ),
    min_size=1,
    max_size=8,
)


@given(triples)
def test_the_dominated_volume_is_the_share_of_cells_that_some_point_reaches(found: list[tuple[float, ...]]) -> None:
    cells = itertools.product(range(GRID), repeat=3)
    reached = sum(any(all(c * GRID <= at for c, at in zip(p, cell, strict=True)) for p in found) for cell in cells)
    assert figures.dominated_volume(found) == pytest.approx(reached / GRID**3)


def test_a_point_beyond_the_baseline_adds_no_volume_and_a_better_one_adds_some() -> None:
    baseline = Point("fp32", 100, 10.0, 0.90, 0.88)
    assert hypervolume([baseline], baseline) == 0
    assert hypervolume([Point("wrong", 10, 1.0, 0.80, 0.78)], baseline) == 0
    half = Point("half", 50, 5.0, 0.92, 0.90)
    assert hypervolume([half], baseline) == pytest.approx(0.25)
    assert hypervolume([half, baseline], baseline) == pytest.approx(0.25)


@given(points)
def test_every_point_is_answered_by_one_on_the_front(found: list[Point]) -> None:
    kept = front(found)
    assert kept
    for point in found:
        assert any(answers(best, point, within_interval=False) for best in kept)


@given(points)
def test_no_point_of_the_front_answers_another_without_being_its_equal_in_something(found: list[Point]) -> None:
    def figures_of(point: Point) -> tuple[float, ...]:
        return point.size_bytes, point.p50_ms, point.accuracy

    kept = [figures_of(point) for point in front(found)]
    assert len(kept) == len(set(kept))


def test_an_answer_may_be_three_percent_slower_and_inside_the_interval_and_not_larger() -> None:
    rival = Point("rival", 100, 10.0, 0.90, 0.88)
    assert answers(Point("a", 100, 10.29, 0.885, 0.86), rival)
    assert not answers(Point("a", 100, 10.29, 0.885, 0.86), rival, within_interval=False)
    assert not answers(Point("slow", 100, 10.31, 0.90, 0.88), rival)
    assert not answers(Point("large", 101, 1.0, 0.99, 0.98), rival)
    assert not answers(Point("wrong", 1, 1.0, 0.87, 0.85), rival)


def test_a_loss_says_what_the_nearest_lacks() -> None:
    rival = Point("rival", 100, 10.0, 0.90, 0.88)
    found = match([Point("far", 400, 40.0, 0.90, 0.88), Point("near", 110, 10.0, 0.90, 0.88)], rival)
    assert not found.by
    assert found.loss == "nearest is near, short by 10.0% in size"


def test_quality_counts_flips_losses_and_gives_exact_bounds() -> None:
    truth = np.array([0, 1, 0, 1])
    baseline = np.array([[2.0, 0], [0, 2], [2, 0], [2, 0]])
    logits = np.array([[2.0, 0], [2, 0], [2, 0], [0, 2]])
    found = quality(logits, baseline, truth)
    assert (found.accuracy, found.drop, found.flips) == (0.75, 0.0, 0.5)
    # Clopper & Pearson for 3 of 4, as in their tables.
    assert (found.accuracy_low, found.accuracy_high) == pytest.approx((0.1941, 0.9937), abs=1e-4)
    assert found.drop_bound > 0.5
    assert found.auroc == 0.5


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    confidence, right = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5]), np.array([1, 1, 1, 0, 1, 0]).astype(bool)
    assert figures.calibration_error(confidence, right) == pytest.approx((4 * 0.15 + 0) / 6)
    assert figures.calibration_error(np.ones(3), np.ones(3, bool)) == 0


def test_a_ratio_is_taken_within_each_round() -> None:
    found = ratios([10.0, 20.0, 40.0], [5.0, 10.0, 10.0])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 4.0)
    assert spread([3.0]) == figures.Spread(3.0, 3.0, 3.0)


def test_everything_a_benchmark_writes_can_be_json() -> None:
    found = figures.plain({"goal": figures.Goal("a", "b", True), "by": (np.float64(1.5), {1: spread([2.0])})})
    assert json.loads(json.dumps(found))["by"][1]["1"]["median"] == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_how_it_is_used(name: str) -> None:
    done = subprocess.run([sys.executable, str(FOLDER / name), "--help"], capture_output=True, text=True, check=True)
    assert f"benchmarks/quantize/{name}" in done.stdout
