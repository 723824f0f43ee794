"""A language model at the edge: greedy pieces, their probabilities, scores, stop texts, golden items."""

import ctypes
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.bundle import Bundle, GoldenItem, pack_generator
from edgewise.edge import EdgeGenerator, EdgeModel, Piece
from edgewise.edge.genai import Runtime
from edgewise.edge.stops import until
from edgewise.errors import BundleCorruptError, BundleError, CertificateError, InputError, MissingExtraError


@pytest.fixture(scope="module")
def generator(tiny_generator_bundle):
    with EdgeGenerator.load(tiny_generator_bundle) as model:
        yield model


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def test_pieces_are_the_likeliest_tokens_with_their_probabilities(generator, tiny_generator):
    pieces = list(generator.generate("once a", max_tokens=5))
    assert text_of(pieces) == "bcdef"
    ids = tiny_generator.ids_of("abcdef")
    assert [piece.token for piece in pieces] == ids[1:]
    expected = tiny_generator.expected_logprobs(ids)[np.arange(5), ids[1:]]
    np.testing.assert_allclose([piece.logprob for piece in pieces], expected, atol=1e-5)


def test_the_first_piece_carries_its_margin_over_the_second_likeliest(generator, tiny_generator):
    first, *others = generator.generate("once a", max_tokens=3)
    shares = np.sort(np.exp(tiny_generator.expected_logprobs(tiny_generator.ids_of("ab"))[0]))
    assert first.margin == pytest.approx(shares[-1] - shares[-2], abs=1e-5)
    assert [piece.margin for piece in others] == [None, None]
    (cut,) = generator.generate("once a", max_tokens=3, stop=["cd"])
    assert cut.margin == first.margin


def test_an_answer_ends_with_the_model_and_its_end_is_no_piece(generator):
    assert text_of(generator.generate("x", max_tokens=50)) == "yz"
    assert list(generator.generate("z", max_tokens=50)) == []


def test_a_character_of_two_tokens_comes_whole(generator):
    assert [piece.text for piece in generator.generate("0", max_tokens=4)] == ["", "é", " ", "a"]


def test_generation_may_be_dropped_halfway_and_runs_beside_another(generator):
    first = generator.generate("a", max_tokens=20)
    next(first)
    second = list(generator.generate("m", max_tokens=3))
    first.close()
    assert text_of(second) == "nop"


def test_threads_generate_at_once(generator):
    found = {}

    def work(letter):
        found[letter] = [text_of(generator.generate(letter, max_tokens=3)) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "agm"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"a": ["bcd"] * 20, "g": ["hij"] * 20, "m": ["nop"] * 20}


def test_scores_are_those_of_the_table(generator, tiny_generator):
    text = "hello world, é"
    ids = tiny_generator.ids_of(text)
    scores = generator.score(text, sample=4)
    expected = tiny_generator.expected_logprobs(ids)
    np.testing.assert_allclose(scores.nll, -expected[np.arange(len(ids) - 1), ids[1:]], atol=1e-5)
    assert scores.top.tolist() == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(scores.logprobs, expected[:4], atol=1e-5)


def test_a_text_of_several_chunks_scores_as_in_one(generator, tiny_generator):
    text = "the end is near " * 20
    ids = tiny_generator.ids_of(text)
    assert len(ids) > 256 + 50
    scores = generator.score(text, sample=300)
    expected = tiny_generator.expected_logprobs(ids)
    np.testing.assert_allclose(scores.nll, -expected[np.arange(len(ids) - 1), ids[1:]], atol=1e-5)
    np.testing.assert_allclose(scores.logprobs, expected[:300], atol=1e-5)


def test_short_and_long_texts_are_scored_as_far_as_they_can_be(generator):
    for text in ("", "a"):
        scores = generator.score(text, sample=3)
        assert scores.nll.shape == scores.top.shape == (0,)
        assert len(scores.logprobs) == 0
    assert generator.score("ab" * 1000).nll.shape == (generator.max_length - 1,)
    assert len(generator.score("ab" * 1000).logprobs) == 0


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_texts_come_back_from_their_tokens(generator, text):
    assert generator.detokenize(generator.tokenize(text)) == text


def test_special_tokens_have_no_text(generator):
    assert generator.tokenize("a</s>").tolist()[-1] == 1
    assert generator.detokenize([1]) == ""


@pytest.mark.parametrize("prompt", ["", 7, b"bytes", "\ud800", "a" * 512])
def test_a_prompt_that_cannot_be_continued(generator, prompt):
    with pytest.raises(InputError):
        generator.generate(prompt, max_tokens=3)


@pytest.mark.parametrize(("max_tokens", "stop"), [(0, ()), (3, "b"), (3, [""]), (3, [7])])
def test_limits_that_make_no_sense(generator, max_tokens, stop):
    with pytest.raises(InputError):
        generator.generate("a", max_tokens=max_tokens, stop=stop)


def test_prompt_and_answer_stay_within_the_model(generator):
    assert len(list(generator.generate("b" * 500 + "a", max_tokens=100))) == generator.max_length - 501


def test_golden_items_are_checked(generator, tiny_generator_bundle, tiny_generator, tmp_path):
    generator.check_golden()
    items = Bundle.open(tiny_generator_bundle).golden()
    built = tiny_generator.write_folder(tmp_path / "built")
    wrong = {
        "text": msgspec.structs.replace(items[0], output="other"),
        "logprob": msgspec.structs.replace(items[0], logits=tuple(value - 1 for value in items[0].logits)),
    }
    for name, item in wrong.items():
        pack_generator(tiny_generator.source(built, golden=(items[1], item)), tmp_path / name)
        with EdgeGenerator.load(tmp_path / name) as model, pytest.raises(CertificateError, match="item 2 of 2"):
            model.check_golden()
    pack_generator(tiny_generator.source(built), tmp_path / "none")
    with EdgeGenerator.load(tmp_path / "none") as model, pytest.raises(CertificateError, match="no golden items"):
        model.check_golden()


def test_the_end_of_an_answer_is_part_of_a_golden_item(generator, tiny_generator, tiny_generator_bundle, tmp_path):
    nothing, short, long = items = generator.golden_items(["z", "x", "a"])
    assert isinstance(short, GoldenItem)
    assert [(item.output, len(item.logits)) for item in items] == [("", 1), ("yz", 3), ("bcdefghijklmnopq", 16)]
    assert short.score == pytest.approx(np.mean(short.logits))
    built = tiny_generator.write_folder(tmp_path / "built")
    pack_generator(tiny_generator.source(built, golden=items), tmp_path / "bundle")
    with EdgeGenerator.load(tmp_path / "bundle") as model:
        model.check_golden()
    wrong = msgspec.structs.replace(nothing, logits=(nothing.logits[0] - 1,))
    pack_generator(tiny_generator.source(built, golden=(long, wrong)), tmp_path / "wrong")
    with EdgeGenerator.load(tmp_path / "wrong") as model, pytest.raises(CertificateError, match="item 2 of 2"):
        model.check_golden()


def test_golden_items_that_lack_their_end_hold(generator, tiny_generator, tmp_path):
    (item,) = generator.golden_items(["x"])
    earlier = msgspec.structs.replace(item, logits=item.logits[:-1])
    built = tiny_generator.write_folder(tmp_path / "built")
    pack_generator(tiny_generator.source(built, golden=(earlier,)), tmp_path / "bundle")
    with EdgeGenerator.load(tmp_path / "bundle") as model:
        model.check_golden()


def test_a_measured_answer_goes_on_past_its_end(generator):
    assert len(list(generator.generate("z", max_tokens=7, past_end=True))) == 7


def test_loading_writes_nothing_into_the_bundle_and_leaves_nothing_behind(tiny_generator_bundle, tmp_path, monkeypatch):
    place = tmp_path / "some" / "bundle"
    shutil.copytree(tiny_generator_bundle, place)
    before = sorted((path, path.stat().st_mtime_ns) for path in place.rglob("*"))
    for path in [*place.rglob("*"), place]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    link = tmp_path / "current"
    link.symlink_to(place)
    with EdgeGenerator.load(link) as model:
        assert text_of(model.generate("a", max_tokens=2)) == "bc"
        assert list((tmp_path / "temporary").iterdir()) == []
    for path in [*place.rglob("*"), place]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert sorted((path, path.stat().st_mtime_ns) for path in place.rglob("*")) == before


def test_a_damaged_bundle_is_refused_before_anything_is_loaded(tiny_generator_bundle, tmp_path):
    shutil.copytree(tiny_generator_bundle, tmp_path / "bundle")
    weights = Bundle.open(tiny_generator_bundle).core.weights[0].blob.hex
    path = tmp_path / "bundle" / "blobs" / "sha256" / weights
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BundleCorruptError):
        EdgeGenerator.load(tmp_path / "bundle")


def packed_with(tiny_generator, folder, change):
    built = tiny_generator.write_folder(folder / "built")
    config = json.loads((built / "genai_config.json").read_text())
    change(config["model"])
    (built / "genai_config.json").write_text(json.dumps(config))
    pack_generator(tiny_generator.source(built), folder / "bundle")
    return folder / "bundle"


def test_a_model_that_the_runtime_does_not_know(tiny_generator, tmp_path):
    bundle = packed_with(tiny_generator, tmp_path, lambda model: model.update(type="unheard-of"))
    with pytest.raises(BundleError, match="cannot open"):
        EdgeGenerator.load(bundle)


def test_a_graph_that_fails_while_it_runs(tiny_generator, tmp_path):
    bundle = packed_with(tiny_generator, tmp_path, lambda model: model["decoder"]["outputs"].update(logits="nowhere"))
    with EdgeGenerator.load(bundle) as model:
        with pytest.raises(BundleError, match="cannot run"):
            list(model.generate("a", max_tokens=2))
        with pytest.raises(BundleError, match="cannot run"):
            model.score("abc")


def test_a_bundle_for_a_newer_runtime(tiny_generator, tmp_path):
    built = tiny_generator.write_folder(tmp_path / "built")
    target = msgspec.structs.replace(tiny_generator.source(built).target, min_onnxruntime="99.0")
    pack_generator(tiny_generator.source(built, target=target), tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"99\.0"):
        EdgeGenerator.load(tmp_path / "bundle")


def test_each_kind_is_loaded_by_its_own_class(tiny_text_bundle, tiny_generator_bundle):
    with pytest.raises(BundleError, match="no language model"):
        EdgeGenerator.load(tiny_text_bundle)
    with pytest.raises(BundleError, match="language model"):
        EdgeModel.load(tiny_generator_bundle)
    with pytest.raises(InputError, match="thread"):
        EdgeGenerator.load(tiny_generator_bundle, threads=0)


def test_a_closed_model_says_so(tiny_generator_bundle):
    model = EdgeGenerator.load(tiny_generator_bundle)
    model.close()
    with pytest.raises(InputError, match="closed"):
        model.generate("a", max_tokens=1)


def test_without_the_runtime_the_extra_is_named(tiny_generator_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(MissingExtraError, match="generate"):
        EdgeGenerator.load(tiny_generator_bundle)


def test_the_runtime_is_called_without_the_interpreters_lock():
    calls = Runtime().calls
    assert isinstance(calls, ctypes.CDLL)
    assert not isinstance(calls, ctypes.PyDLL)


def test_importing_the_edge_does_not_load_the_runtime():
    code = (
        "import sys, edgewise.edge; "
        "sys.exit(bool({'onnxruntime_genai', 'jinja2', 'llguidance', 'edgewise.edge.generator'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path("/")).returncode == 0


WORDS = st.lists(st.text("ab ", min_size=1, max_size=3), max_size=12)
STOPS = st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=3)


def oracle(texts, stop):
    """The text before the stop text that is complete first, looking after each piece."""
    for count in range(len(texts) + 1):
        text = "".join(texts[:count])
        found = [text.find(word) for word in stop if word in text]
        if found:
            return text[: min(found)]
    return "".join(texts)


@given(WORDS, STOPS)
def test_nothing_of_a_stop_text_gets_out(words, stop):
    pieces = [Piece(text, number, -1.0) for number, text in enumerate(words)]
    kept = list(until(iter(pieces), stop))
    assert text_of(kept) == oracle(words, stop)
    assert [piece.token for piece in kept] == list(range(len(kept)))


@given(WORDS, STOPS)
def test_what_cannot_become_a_stop_text_is_not_held_back(words, stop):
    taken = []

    def source():
        for number, text in enumerate(words):
            taken.append(text)
            yield Piece(text, number, -1.0)

    given_out = 0
    for piece in until(source(), stop):
        given_out += len(piece.text)
        held = "".join(taken)[given_out:]
        # Held is at most the pieces that a begun stop text reaches into.
        assert len(held) < max(len(word) for word in stop) + max(len(word) for word in words)


def test_a_stop_text_ends_the_stream_before_more_is_generated(generator):
    assert text_of(generator.generate("a", max_tokens=50, stop=["zz", "fg"])) == "bcde"
    assert text_of(generator.generate("a", max_tokens=3, stop=["de"])) == "bcd"
