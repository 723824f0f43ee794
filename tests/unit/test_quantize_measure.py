"""Measuring a bundle in fresh processes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from edgewise.bundle import pack_generator
from edgewise.contracts import Example
from edgewise.dialogue import Message, Prompt, Role
from edgewise.edge import EdgeGenerator, EdgeModel, TokenScores
from edgewise.errors import BundleError, ConfigError, DataError, InputError
from edgewise.quantize import measure_generator
from edgewise.quantize.answers import answers_of, load
from edgewise.quantize.items import inputs_of, items_of, label_indices, require_kind
from edgewise.quantize.lengths import LENGTH_CALLS, LengthCalls, of_length
from edgewise.quantize.measure import (
    MIN_TIMED,
    Measured,
    Round,
    measure_interleaved,
    performance,
)
from edgewise.quantize.measure_generator import PROMPT_TOKENS, pace_of, prompts_of, score_texts
from edgewise.quantize.quality import compare


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
    np.testing.assert_array_equal(whole.answers["logits"], expected)  # in the order of the data, not of the rounds
    np.testing.assert_array_equal(load(tmp_path / "whole.npz")["logits"], expected)
    for measured in whole.rounds:
        assert measured.load_ms > 0
        assert measured.first_ms > 0
        assert len(measured.calls_ms) >= MIN_TIMED
        assert 10 << 20 < measured.peak_rss_bytes < 1 << 30
        assert measured.device.cores >= 1


def test_other_lengths_and_numbers_of_threads_are_measured_in_their_own_processes(
    tmp_path, tiny_text_bundle, tiny_models
):
    peaks = []
    found = measure_interleaved(
        {"whole": tiny_text_bundle},
        tiny_models.TEXTS[:1],
        work=tmp_path,
        log=tmp_path / "log",
        threads=1,
        lengths=(4, 16, 17),
        thread_counts=(1, 2),
        peak=peaks.append,
    )["whole"]
    assert [round_.threads for round_ in (*found.rounds, *found.others)] == [1, 2]
    assert len(peaks) == 2
    assert min(peaks) >= max(round_.peak_rss_bytes for round_ in found.rounds) // 2 > 0
    assert found.facts == ("latency at 17 tokens was not measured: the model reads 16 at most",)
    figures = performance(found, 123)
    assert figures.size_bytes == 123
    assert [(setting.threads, setting.tokens) for setting in figures.settings] == [
        (1, 4),
        (1, 16),
        (2, None),
        (2, 4),
        (2, 16),
    ]
    assert {setting.latency.calls for setting in figures.settings if setting.tokens} == {LENGTH_CALLS}


def test_a_tagger_s_words_come_back_in_the_order_of_the_data(tmp_path, tiny_tagger_bundle):
    texts = ["wheat harvest rose", "port", "tariff deficit fell today", "a cargo of corn", "quota"]
    measured = measure_interleaved(
        {"it": tiny_tagger_bundle}, texts, work=tmp_path, log=tmp_path / "log", threads=1, rounds=2
    )["it"]
    expected = answers_of(EdgeModel.load(tiny_tagger_bundle), texts)
    assert measured.answers["words"].tolist() == [3, 1, 4, 4, 1]
    np.testing.assert_array_equal(measured.answers["logits"], expected["logits"])


def test_a_model_of_images_has_no_lengths(tmp_path, tiny_image_bundle):
    png = EdgeModel.load(tiny_image_bundle).bundle.golden()[0].input.png
    found = measure_interleaved(
        {"it": tiny_image_bundle}, [png], work=tmp_path, log=tmp_path / "log", threads=1, lengths=(8,)
    )["it"]
    assert performance(found, 1).settings == ()
    assert found.facts == ("latency at chosen lengths was not measured: the model takes no text",)


@pytest.mark.parametrize(
    ("asked", "told"), [({"lengths": (8, 0)}, "text length of 0"), ({"thread_counts": (-1,)}, "-1")]
)
def test_lengths_and_threads_below_one_are_refused(tmp_path, tiny_text_bundle, asked, told):
    with pytest.raises(ConfigError, match=told):
        measure_interleaved({"a": tiny_text_bundle}, ["a"], work=tmp_path, log=tmp_path / "log", threads=1, **asked)


def test_texts_are_cut_and_repeated_between_their_special_tokens():
    first, second = (
        {"input_ids": np.array([row]), "attention_mask": np.array([[1] * used + [0] * (len(row) - used)])}
        for row, used in (([101, 7, 8, 102], 4), ([101, 9, 102, 0], 3))
    )
    longer, short = of_length([first, second], 7)
    np.testing.assert_array_equal(longer["input_ids"], [[101, 7, 8, 7, 8, 7, 102]])
    np.testing.assert_array_equal(short["input_ids"], [[101, 9, 9, 9, 9, 9, 102]])
    assert longer["attention_mask"].tolist() == short["attention_mask"].tolist() == [[1] * 7]
    assert [part["input_ids"].tolist() for part in of_length([first, second], 3)] == [[[101, 7, 102]], [[101, 9, 102]]]


def test_texts_without_common_ends_are_repeated_whole():
    read = [{"input_ids": np.array([[7, 8]])}, {"input_ids": np.array([[9, 7]])}]
    assert [part["input_ids"].tolist() for part in of_length(read, 5)] == [[[7, 8, 7, 8, 7]], [[9, 7, 9, 7, 9]]]
    assert [part["input_ids"].tolist() for part in of_length(read, 1)] == [[[7]], [[9]]]


def test_figures_are_medians_of_processes_and_quantiles_of_all_calls(tiny_models):
    device = tiny_models.probe()

    def round_(load_ms, calls, peak, rate, threads=1):
        return Round(
            threads=threads,
            load_ms=load_ms,
            first_ms=load_ms / 10,
            calls_ms=calls,
            peak_rss_bytes=peak,
            device=device,
            lengths=(LengthCalls(8, (load_ms,)),),
            tokens_per_s=rate,
        )

    measured = Measured(
        (round_(10.0, (1.0, 2.0), 5, 70.0), round_(30.0, (3.0,), 9, 90.0), round_(20.0, (4.0, 5.0), 7, 80.0)),
        {},
        (round_(1.0, (6.0,), 3, None, threads=2),),
    )
    found = performance(measured, 42)
    assert (found.load_ms, found.first_ms, found.peak_rss_bytes, found.tokens_per_s) == (20.0, 2.0, 9, 80.0)
    assert (found.latency.calls, found.latency.p50_ms) == (5, 3.0)
    assert [(it.threads, it.tokens, it.latency.p50_ms) for it in found.settings] == [
        (1, 8, 20.0),
        (2, None, 6.0),
        (2, 8, 1.0),
    ]


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


class Parrot:
    """Stands in for a language model of ten ids: a digit is a token, and the likeliest next one is the same again."""

    max_length = 5

    def tokenize(self, text):
        return np.array([int(letter) for letter in text], dtype=np.int32)

    def detokenize(self, ids):
        return "".join(map(str, ids))

    def prompt_ids(self, prompt):
        raise InputError("The model has no chat template.", "Give a text.")

    def generate(self, prompt, *, max_tokens, past_end=False):
        if prompt[-1] == "0" and not past_end:  # ends at once
            return
        for _ in range(min(max_tokens, 3)):
            yield prompt[-1]

    def score(self, text, *, sample=0):
        ids = self.tokenize(text)[: self.max_length]
        rows = np.log(np.full((max(0, len(ids) - 1), 10), 0.05) + 0.5 * np.eye(10)[ids[:-1]]).astype(np.float32)
        nll = -rows[np.arange(len(rows)), ids[1:]]
        return TokenScores(nll, ids[:-1], rows[: max(0, sample)] if len(rows) else np.empty((0, 0), np.float32))


def test_a_language_model_is_scored_on_the_tokens_of_the_texts():
    answers = score_texts(Parrot(), ["7", "112", "99999999"], sample=3)
    np.testing.assert_array_equal(answers["tokens"], [0, 2, 4])  # the last text is cut at five tokens
    np.testing.assert_array_equal(answers["targets"], [1, 2, 9, 9, 9, 9])
    np.testing.assert_array_equal(answers["top"], [1, 1, 9, 9, 9, 9])
    np.testing.assert_allclose(answers["nll"], -np.log([0.55, 0.05, 0.55, 0.55, 0.55, 0.55]), rtol=1e-6)
    assert (answers["logprobs"].shape, answers["logprobs"].dtype) == ((3, 10), np.float16)
    quality = compare("generator", answers, answers, None).quality
    assert (quality.accuracy, quality.kld, quality.flips) == (0.5, 0.0, 0.0)
    with pytest.raises(DataError, match="two tokens"):
        score_texts(Parrot(), ["7", "8"])


def test_a_language_model_is_timed_to_its_first_token_and_after_it():
    pace = pace_of(Parrot(), ["12", "10", "3"])
    assert len(pace.first_ms) == 3
    assert min(pace.first_ms) > 0
    assert pace.tokens_per_s > 0
    assert pace_of(Parrot(), ["12"], tokens=1).tokens_per_s is None
    assert pace_of(Parrot(), ["10"]).tokens_per_s > 0  # though the model ends at once


def test_prompts_are_the_first_texts_cut_short():
    texts = ["1" * 100, *"23456789"]
    roomy = Parrot()
    roomy.max_length = 4 * PROMPT_TOKENS
    assert prompts_of(roomy, texts) == ["1" * PROMPT_TOKENS, *"23456"]
    roomy.max_length = 40
    assert prompts_of(roomy, texts)[0] == "1" * 20  # the other half is for the answer


def test_prompts_are_those_that_are_served(tiny_generator_bundle):
    with EdgeGenerator.load(tiny_generator_bundle) as generator:
        assert prompts_of(generator, ["once", "a"]) == ["u:once", "u:a"]
        long = "b" * 500  # in the template no room is left for an answer
        assert measure_generator._as_served(generator, long) == long


def test_a_prompt_begins_once(tiny_generator, tmp_path):
    """Template and tokenizer both write <s>; the model is to read it once, as where it is served."""
    from tokenizers import Tokenizer, processors

    built = tiny_generator.write_folder(tmp_path / "built")
    tokenizer = Tokenizer.from_file(str(built / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(built / "tokenizer.json"))
    config = json.loads((built / "tokenizer_config.json").read_text())
    config["chat_template"] = "<s>" + config["chat_template"]
    (built / "tokenizer_config.json").write_text(json.dumps(config))
    pack_generator(tiny_generator.source(built), tmp_path / "bundle")
    with EdgeGenerator.load(tmp_path / "bundle") as generator:
        (prompt,) = prompts_of(generator, ["a"])
        served = generator.prompt_ids(Prompt(messages=(Message(role=Role.USER, content="a"),)))
        assert generator.tokenize(prompt).tolist() == served.tolist() == [0, *tiny_generator.ids_of("u:a")]
