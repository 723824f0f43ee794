"""Measuring a bundle in fresh processes."""

import subprocess
import sys

import numpy as np
import pytest

from edgewise.contracts import Example
from edgewise.edge import EdgeModel
from edgewise.errors import BundleError, DataError
from edgewise.quantize.items import inputs_of, items_of, label_indices, require_kind
from edgewise.quantize.measure import MIN_TIMED, Measured, measure_interleaved


def test_candidates_take_turns_and_a_broken_one_is_left_out(tmp_path, tiny_text_bundle, tiny_models):
    steps = []
    found = measure_interleaved(
        {"whole": tiny_text_bundle, "broken": tmp_path / "nowhere"},
        tiny_models.TEXTS,
        work=tmp_path,
        log=tmp_path / "log",
        threads=1,
        rounds=2,
        check_golden=True,
        advance=lambda: steps.append(1),
    )
    assert isinstance(found["broken"], BundleError)
    assert len(steps) == 4
    whole = found["whole"]
    assert isinstance(whole, Measured)
    expected = np.stack([answer.logits for answer in EdgeModel.load(tiny_text_bundle).predict(tiny_models.TEXTS)])
    np.testing.assert_array_equal(whole.logits, expected)  # in the order of the data, not of the rounds
    np.testing.assert_array_equal(np.load(tmp_path / "whole.npy"), expected)
    for measured in whole.rounds:
        assert measured.load_ms > 0
        assert measured.first_ms > 0
        assert len(measured.calls_ms) >= MIN_TIMED
        assert 10 << 20 < measured.peak_rss_bytes < 1 << 30
        assert measured.device.cores >= 1


def test_peak_memory_grows_with_what_is_held():
    """In a process of its own: the peak of this one may lie far above what it holds now."""
    code = (
        "import numpy as np; from edgewise.quantize.measure import peak_rss_bytes; before = peak_rss_bytes();"
        "block = np.ones(8 << 20); print(peak_rss_bytes() - before >= block.nbytes >> 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_items_keep_texts_and_images():
    inputs = ["größe", "", b"\x89PNG\x00\xff"]
    assert inputs_of(items_of(inputs)) == inputs


def test_raw_pixels_are_no_items():
    with pytest.raises(DataError, match="Raw pixels"):
        items_of([np.zeros((2, 2))])


def test_labels_become_indices(tmp_path):
    examples = [Example("a", "pos"), Example("b", "neg")]
    np.testing.assert_array_equal(label_indices(examples, ("neg", "pos"), tmp_path), [1, 0])


def test_an_unknown_label_is_named_with_its_place_and_the_known_ones(tmp_path):
    examples = [Example("a", "pos"), Example("b", "odd"), Example("c", "other")]
    with pytest.raises(DataError, match=r"Item 2 of .* has the label 'odd' \(and 1 other labels\)") as caught:
        label_indices(examples, ("neg", "pos"), tmp_path)
    assert "'neg', 'pos'" in caught.value.remedy


def test_missing_labels_are_counted(tmp_path):
    with pytest.raises(DataError, match="2 of 3 items"):
        label_indices([Example("a"), Example("b", "pos"), Example("c")], ("pos", "neg"), tmp_path)


@pytest.mark.parametrize(("task", "given"), [("text-classification", b"x"), ("image-classification", "x")])
def test_data_of_the_other_kind_is_refused(tmp_path, task, given):
    with pytest.raises(DataError, match="needs"):
        require_kind([Example(given, "a")], task, tmp_path)
