"""The pure parts of the router's benchmarks: usual practices, what a threshold is worth, strong calls needed."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from edgewise.errors import DataError

# The scripts of a benchmark import their neighbours by bare names, as Python runs them; so must who borrows from them.
FOLDER = Path(__file__).parents[2] / "benchmarks" / "router"
sys.path.append(str(FOLDER))

import guarantee  # noqa: E402  (found through the line above)
import pairs  # noqa: E402
import power  # noqa: E402
import routellm  # noqa: E402
from practices import (  # noqa: E402
    TARGETS,
    best_possible,
    binomial_bonferroni,
    conformal,
    curve,
    empirical,
    even_grid,
    hoeffding_bonferroni,
    kept,
    losses_of,
    tolerated,
)

scores_and_losses = st.lists(
    st.tuples(st.one_of(st.integers(0, 4).map(float), st.just(math.nan)), st.integers(0, 1)), min_size=1, max_size=20
).map(lambda items: (np.array([score for score, _ in items]), np.array([loss for _, loss in items])))


@given(scores_and_losses, st.sampled_from(TARGETS), st.floats(-1, 5))
def test_a_curve_counts_what_any_threshold_answers_and_loses(given_items, target, threshold) -> None:
    scores, losses = given_items
    found = curve(scores, losses, target)
    place = found.at(np.array([threshold]))[0]
    local = scores > threshold
    assert found.local[place] == local.sum()
    assert found.lost[place] == losses[local].sum()


def test_a_curve_goes_from_nothing_to_everything_with_a_score() -> None:
    found = curve(np.array([0.2, math.nan, 0.9, 0.2]), np.array([1, 1, 0, 1]), "agreement")
    assert found.thresholds.tolist() == [0.9, 0.2, -math.inf]
    assert found.local.tolist() == [0, 1, 3]
    assert found.risk.tolist() == [0, 0, 0.5]
    assert found.at(np.array([math.inf, -math.inf])).tolist() == [0, 2]


def test_losses_by_target() -> None:
    edge, cloud = np.array([True, True, False, False]), np.array([True, False, True, False])
    disagree = np.array([False, True, True, True])
    assert losses_of("agreement", disagree, edge, cloud).tolist() == [0, 1, 1, 1]
    assert losses_of("accuracy", disagree, edge, cloud).tolist() == [0, -1, 1, 0]
    assert losses_of("selective", disagree, edge, cloud).tolist() == [0, 0, 1, 1]


def test_the_empirical_threshold_takes_the_risk_to_alpha_exactly() -> None:
    scores = np.arange(10, 0, -1) / 10
    losses = np.array([0, 0, 0, 0, 1, 0, 1, 0, 1, 1])
    # 1 of 10 lost is alpha exactly; the item that loses the second stays out.
    assert empirical(curve(scores, losses, "agreement"), 0.1) == 0.4
    # Selective: 2 of 8 answered ones is a quarter, though 2 of 7 is more.
    assert empirical(curve(scores, losses, "selective"), 0.25) == 0.2


def test_conformal_risk_control_is_one_loss_stricter() -> None:
    scores = np.arange(19, 0, -1) / 20
    losses = np.zeros(19, dtype=int)
    losses[[3, 9]] = 1
    # (n R + 1) / (n + 1) <= 0.1 allows one loss of 19 items; the threshold is the score of the second.
    assert conformal(curve(scores, losses, "agreement"), 0.1) == scores[9]
    assert conformal(curve(scores, losses, "agreement"), 0.04) == math.inf


def test_conformal_risk_control_stops_where_a_risk_that_falls_again_was_too_high() -> None:
    scores = np.arange(30, 0, -1) / 30
    losses = np.zeros(30, dtype=int)
    losses[[2, 3, 4, 5]] = 1
    losses[[10, 11, 12, 13]] = -1
    assert conformal(curve(scores, losses, "accuracy"), 0.1) == scores[4]
    assert empirical(curve(scores, losses, "accuracy"), 0.1) == -math.inf


def test_bonferroni_pays_for_its_grid() -> None:
    n, grid = 400, np.array([0.75, 0.5, 0.25])
    scores, losses = np.arange(n, 0, -1) / n, np.zeros(n, dtype=int)
    losses[[150, 250, 260, 270, 280, 290, 295]] = 1
    found = curve(scores, losses, "agreement")
    counts = [losses[scores > threshold].sum() for threshold in grid]
    passing = [t for t, lost in zip(grid, counts, strict=True) if binom.cdf(lost, n, 0.02) <= 0.05 / 3]
    assert binomial_bonferroni(found, grid, 0.02, 0.05) == min(passing) == 0.5
    # Without the price of three thresholds the last would pass at a delta that is a little larger.
    assert binom.cdf(counts[2], n, 0.02) > 0.05 / 3
    assert hoeffding_bonferroni(found, grid, 0.02, 0.05) == math.inf
    assert hoeffding_bonferroni(found, grid, 0.2, 0.05) == 0.25


def test_the_binomial_has_no_answer_for_losses_below_zero() -> None:
    found = curve(np.array([0.1, 0.2]), np.array([-1, 1]), "accuracy")
    assert binomial_bonferroni(found, np.array([0.0]), 0.1, 0.05) is None


def test_nothing_answered_locally_certifies_no_selective_risk() -> None:
    found = curve(np.full(1000, 0.5), np.zeros(1000, dtype=int), "selective")
    assert binomial_bonferroni(found, np.array([0.9]), 0.05, 0.05) == math.inf


def test_an_even_grid_falls_and_holds_no_threshold_twice() -> None:
    grid = even_grid(np.array([0.1, 0.1, 0.1, 0.9, math.nan]), 5)
    assert grid.tolist() == sorted(set(grid.tolist()), reverse=True)
    assert grid[0] == 0.9
    assert grid[-1] == 0.1


def test_a_violation_is_a_risk_above_alpha_on_the_population_not_at_it() -> None:
    scores, losses = np.arange(100, 0, -1) / 100, np.zeros(100, dtype=int)
    losses[[10, 20]] = 1
    population = curve(scores, losses, "agreement")
    at_alpha, above = population.thresholds[20], population.thresholds[21]
    found = kept(population, np.array([at_alpha, at_alpha, above, math.inf]), 0.01)
    assert (found.violations, found.rate) == (1, 0.25)
    assert found.low < 0.25 < found.high
    assert found.local_share == pytest.approx((20 + 20 + 21 + 0) / 400)
    assert best_possible(population, 0.01) == at_alpha


def test_what_is_tolerated_grows_with_the_number_of_cells() -> None:
    assert 50 < tolerated(1000, 0.05, 1) < tolerated(1000, 0.05, 72)
    assert binom.sf(tolerated(1000, 0.05, 72), 1000, 0.05) * 72 <= 0.01


def test_a_promise_is_missed_where_one_cell_breaks_it_too_often() -> None:
    population = curve(np.arange(100, 0, -1) / 100, np.ones(100, dtype=int), "agreement")
    good, bad = (kept(population, np.full(50, t), 0.01) for t in (math.inf, 0.5))
    question = guarantee.Question("pair", "agreement", 0.01, 300)
    cells = [guarantee.Cell(question, guarantee.OURS, good), guarantee.Cell(question, guarantee.OURS, None, "too few")]
    assert guarantee.promise(cells).met
    assert "1 refused" in guarantee.promise(cells).found
    assert not guarantee.promise([*cells, guarantee.Cell(question, guarantee.OURS, bad)]).met
    assert not guarantee.promise([]).met


def test_cells_are_shown_with_a_mark_where_the_promise_is_broken() -> None:
    population = curve(np.arange(100, 0, -1) / 100, np.ones(100, dtype=int), "agreement")
    question = guarantee.Question("pair", "agreement", 0.01, 300)
    broken = kept(population, np.full(50, 0.5), 0.01)
    assert guarantee._shown(guarantee.Cell(question, "empirical", broken)) == "100.0* 0.500"
    assert guarantee._shown(guarantee.Cell(question, guarantee.OURS, None, "too few")) == "refused"
    assert guarantee._shown(guarantee.Cell(question, "MAPIE, default", None, "not for this target")) == "-"


def test_calibration_sets_are_drawn_with_replacement_and_are_the_same_for_every_method() -> None:
    drawn = guarantee.draws(40, 300, 5)
    assert drawn.shape == (5, 300)
    assert set(np.unique(drawn)) == set(range(40))
    assert (drawn == guarantee.draws(40, 300, 5)).all()


def test_brute_force_agrees_with_certify_and_refuses_where_it_does() -> None:
    differing, refused = power.differences(200)
    assert differing == 0
    assert 0 < refused < 200


def small_pair(n=160) -> pairs.Pair:
    """Items that each know their number, in logits, embeddings and text."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (n, 3)).astype(np.float32)
    edge = logits.argmax(axis=1)
    cloud = np.where(rng.random(n) < 0.2, rng.integers(0, 3, n), edge)
    whole = pairs.Part(
        tuple(map(str, range(n))), cloud, edge, cloud, logits, logits, rng.normal(size=(n, 4)).astype(np.float32)
    )
    nowhere, half = Path("nowhere"), np.arange(n) < n // 2
    tuning, pool = (power._some(whole, np.flatnonzero(part)) for part in (half, ~half))
    return pairs.Pair("small", nowhere, nowhere, nowhere, nowhere, ("0", "1", "2"), tuning, pool)


def test_a_new_split_keeps_each_item_whole_and_loses_none() -> None:
    pair = small_pair()
    joined = power._joined(pair.tuning, pair.pool)
    assert joined.texts == tuple(map(str, range(160)))
    some = power._some(joined, np.array([7, 130]))
    assert some.texts == ("7", "130")
    assert (some.edge_logits == joined.edge_logits[[7, 130]]).all()
    assert (some.embeddings == joined.embeddings[[7, 130]]).all()
    assert some.disagree.tolist() == joined.disagree[[7, 130]].tolist()
    bare = dataclasses.replace(pair.tuning, embeddings=None)
    assert power._joined(bare, dataclasses.replace(pair.pool, embeddings=None)).embeddings is None


def test_gains_over_new_splits_are_those_of_the_signal_that_is_chosen(monkeypatch) -> None:
    monkeypatch.setattr(power, "choose", lambda rows, default: next(row for row in rows if row.signal == default))
    found = power.resplit(small_pair(), 3)
    assert found.gains == (0.0, 0.0, 0.0)
    assert found.chosen == {"margin": 3}
    monkeypatch.setattr(power, "choose", lambda rows, default: next(row for row in rows if row.signal == "max_logit"))
    assert any(gain != 0 for gain in power.resplit(small_pair(), 3).gains)


@pytest.mark.parametrize(
    ("gains", "met"),
    [
        ([(0.01, 0.02, 0.015), (0.0, 0.0, 0.0)], True),
        ([(0.01, 0.02, 0.015), (0.001, -0.002, 0.0)], True),
        ([(0.01, 0.02, 0.015), (-0.01, -0.02, -0.015)], False),
        ([(0.001, -0.002, 0.002), (0.0, 0.0, 0.0)], False),
    ],
)
def test_the_goal_is_a_gain_beyond_two_standard_errors_and_no_such_loss(gains, met) -> None:
    found = [power.Resplit("pair", each, {}) for each in gains]
    assert [goal.met for goal in power.goals(0, 10, found)] == [True, met]
    assert not power.goals(1, 10, found)[0].met
    assert found[0].mean == pytest.approx(np.mean(gains[0]))
    assert found[0].error == pytest.approx(np.std(gains[0], ddof=1) / math.sqrt(3))


def test_brute_force_finds_a_wrong_threshold() -> None:
    scores, disagree = np.arange(300, 0, -1) / 300, np.zeros(300, dtype=bool)
    disagree[[50, 100]] = True
    truth = power.by_brute_force(scores, disagree, 0.01, 0.05)
    assert truth == power.by_formula(scores, disagree, 0.01, 0.05)
    assert truth.threshold == scores[50]
    assert power.by_brute_force(scores[:200], disagree[:200], 0.01, 0.05).threshold is None


def test_strong_calls_go_to_the_greatest_need_first() -> None:
    gain = np.array([1, 0, 1, 0, 1, -1, 1, 1])
    perfect, backwards = gain.astype(float), -gain.astype(float)
    assert routellm.calls_needed(perfect, gain, 0.5) == 2 / 8
    assert routellm.calls_needed(backwards, gain, 0.5) == 6 / 8


def test_equal_needs_count_as_their_mean_over_all_orders() -> None:
    gain = np.array([1, 0] * 50)
    assert routellm.calls_needed(np.zeros(100), gain, 0.5) == 0.5
    assert routellm.calls_needed(np.zeros(100), gain, 0.8) == pytest.approx(0.8)


def test_the_parts_that_fit_and_that_are_scored_are_disjoint_and_cover_all() -> None:
    parts = routellm.parts(10, seed=0)
    assert [set(fit) & set(ask) for fit, ask in parts] == [set()] * routellm.FOLDS
    assert [len(fit) for fit, _ in parts] == [8] * routellm.FOLDS
    assert sorted(at for _, ask in parts for at in ask) == list(range(10))


def test_missing_data_are_an_error_that_names_the_option(tmp_path) -> None:
    with pytest.raises(DataError, match=r"There is no .*mmlu") as caught:
        routellm.read_questions("mmlu", tmp_path)
    assert "--data" in caught.value.remedy


@pytest.mark.parametrize("command", [pairs, guarantee, power, routellm], ids=lambda module: module.__name__)
def test_each_command_tells_how_to_use_it(command, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == 0
    assert "--data" in capsys.readouterr().out


def test_a_pair_that_does_not_exist_is_an_error_that_names_those_that_do(tmp_path) -> None:
    with pytest.raises(DataError) as caught:
        pairs.prepare_pair("mnist", tmp_path)
    assert "clinc150, reuters" in caught.value.remedy
