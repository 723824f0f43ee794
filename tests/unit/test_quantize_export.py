"""What counts as the same answers, and which exporter is asked; the exporters themselves are in tests/e2e."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.errors import CheckpointError, ConfigError
from edgewise.quantize.export import EXPORTERS, check_exporter, largest_difference, require_agreement

ROWS = [(1.0, -20.0), (0.5, 0.25, 0.125, 0.0), ()]


def moved(item, by):
    rows = [np.array(row) for row in ROWS]
    rows[item] = rows[item] + by
    return rows


def test_the_difference_is_the_largest_over_rows_of_any_length():
    assert largest_difference(ROWS, moved(1, 0.01)) == (pytest.approx(0.01), pytest.approx(0.02))
    assert largest_difference([(0.1,)], [(0.1,)]) == (0.0, 1e-3)


def test_agreement_gives_the_difference():
    assert require_agreement(ROWS, moved(0, 0.015), "BertModel", "torch") == pytest.approx(0.015)


@pytest.mark.parametrize(
    ("found", "match"),
    [
        (moved(1, 0.03), r"torch exported of BertModel .* item 2 of 3 by 0\.03, 0\.02 is allowed"),
        (moved(1, np.nan), "item 2 of 3 by nan"),
        ([ROWS[0], ROWS[1][:3], ()], "item 2 of 3 by inf"),
    ],
)
def test_a_wrong_export_is_refused_with_the_item_and_the_difference(found, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        require_agreement(ROWS, found, "BertModel", "torch")
    assert "--exporter optimum" in caught.value.remedy


def test_a_checkpoint_that_answers_nan_is_refused():
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        require_agreement([(1.0, float("inf"))], [(1.0, 1.0)], "BertModel", "torch")


def test_exporters_are_known_by_name():
    assert [check_exporter(name) for name in EXPORTERS] == ["auto", "optimum", "torch"]
    with pytest.raises(ConfigError, match="'keras'"):
        check_exporter("keras")
