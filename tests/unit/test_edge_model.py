"""A bundle answers, the same from every thread and next to any neighbour; and what it cannot read it names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgewise.bundle import Bundle, GoldenItem, Target, TextSource, pack_bundle
from edgewise.edge import EdgeModel, encode_png, golden, golden_items, probe
from edgewise.edge import model as model_module
from edgewise.edge.session import Session
from edgewise.errors import BundleError, CertificateError, InputError


@pytest.fixture(scope="module")
def text(tiny_text_bundle):
    return EdgeModel.load(tiny_text_bundle)


@pytest.fixture(scope="module")
def image(tiny_image_bundle):
    return EdgeModel.load(tiny_image_bundle)


@pytest.fixture(scope="module")
def tagger(tiny_tagger_bundle):
    return EdgeModel.load(tiny_tagger_bundle)


@pytest.fixture(scope="module")
def embedder(tiny_embedder_bundle):
    return EdgeModel.load(tiny_embedder_bundle)


@pytest.fixture
def packed(tiny_models, tmp_path):
    """Pack a model of one's own, and load it."""

    def build(model, **changes):
        onnx.save_model(model, tmp_path / "model.onnx")
        pack_bundle(tiny_models.text_source(tmp_path / "model.onnx", **changes), tmp_path / "bundle")
        return EdgeModel.load(tmp_path / "bundle")

    return build


def test_answers_what_numpy_computes(text, tiny_models):
    for sentence in (*tiny_models.TEXTS, "Cargo EXPORT quota", "nothing known"):
        (prediction,) = text.predict([sentence])
        expected = tiny_models.expected_logits(sentence)
        np.testing.assert_allclose(prediction.logits, expected, rtol=1e-5, atol=1e-6)
        assert prediction.output == tiny_models.LABELS[int(expected.argmax())]
        assert (prediction.logits.shape, prediction.logits.dtype) == ((3,), np.float32)
        assert prediction.embedding is None


def test_images_answer(image):
    dark, bright = (np.full((8, 8), value, dtype=np.uint8) for value in (20, 220))
    assert [item.output for item in image.predict([dark, encode_png(bright).png])] == ["dark", "bright"]
    np.testing.assert_allclose(image.predict([bright])[0].logits, [4 - 4 * 220 / 255, 4 * 220 / 255], rtol=1e-5)


def test_facts(text, image, tiny_text_bundle, tiny_models):
    assert text.digest == Bundle.open(tiny_text_bundle).model_digest == text.bundle.model_digest
    assert (text.labels, text.task, text.kind) == (tiny_models.LABELS, "text-classification", "text")
    assert (image.task, image.kind) == ("image-classification", "image")


def test_neighbours_do_not_matter(text, tiny_models):
    together = text.predict(tiny_models.TEXTS)
    alone = [text.predict_one(item) for item in tiny_models.TEXTS]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
    assert text.predict([]) == []


def test_several_threads_at_once(text, image, tiny_models):
    items = [word for words in tiny_models.WORDS.values() for word in words] * 20
    expected = [prediction.logits for prediction in text.predict(items)]
    pictures = [np.full((8, 8), i, dtype=np.uint8) for i in range(0, 240, 4)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(text.predict_one, items))
        answers = list(pool.map(image.predict_one, pictures))
    for one, logits in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.logits, logits)
    for one, picture in zip(answers, pictures, strict=True):
        np.testing.assert_array_equal(one.logits, image.predict_one(picture).logits)


@pytest.mark.parametrize("item", [b"\x89PNG", np.zeros((8, 8)), 7, None])
def test_a_text_model_names_what_it_takes(text, item):
    with pytest.raises(InputError, match=r"takes a text"):
        text.predict([item])


def test_an_image_model_names_what_it_takes(image):
    with pytest.raises(InputError, match=r"takes an image .* given str"):
        image.predict(["wheat"])


@pytest.mark.parametrize("item", ["wheat", b"wheat"])
def test_a_bare_item_is_not_a_list(text, item):
    with pytest.raises(InputError, match=r"predict\(\[item\]\)"):
        text.predict(item)


def test_a_declared_embedding_comes_along(packed, tiny_models):
    prediction = packed(tiny_models.text_model(with_embedding=True)).predict_one("wheat")
    np.testing.assert_allclose(prediction.embedding, tiny_models.embedding()[2], rtol=1e-6)
    assert prediction.embedding.dtype == np.float32


def test_a_declared_margin_comes_along_and_is_that_of_the_logits(packed, tiny_models):
    model = packed(tiny_models.text_model(with_margin=True))
    for sentence in tiny_models.TEXTS:
        prediction = model.predict_one(sentence)
        assert prediction.margin == pytest.approx(float(tiny_models.margin(prediction.logits[np.newaxis])[0]), abs=1e-6)


def test_a_margin_of_another_shape_is_refused(packed, tiny_models):
    model = tiny_models.text_model(with_margin=True)
    model.graph.output[-1].type.tensor_type.shape.dim.add().dim_value = 1
    with pytest.raises(InputError, match=r"'margin' has shape \['batch', 1\]"):
        packed(model)


def test_texts_of_unknown_words_are_out_of_distribution(packed, tiny_models):
    cut = TextSource(tiny_models.tokenizer_json(), max_length=16, max_unknown_share=0.5)
    model = packed(tiny_models.text_model(), preprocessing=cut)
    foreign = [prediction.out_of_distribution for prediction in model.predict(["wheat zebra", "wheat zebra quagga"])]
    assert foreign == [False, True]


def test_feeds_are_what_the_graph_runs_on_padded_or_not(text, tiny_models):
    feeds = text.feeds("wheat harvest")
    assert {name: array.shape for name, array in feeds.items()} == {"input_ids": (1, 2), "attention_mask": (1, 2)}
    padded = {name: np.pad(array, ((0, 0), (0, 3))) for name, array in feeds.items()}
    for given in (feeds, padded):
        np.testing.assert_allclose(
            text.run(given)["logits"][0], tiny_models.expected_logits("wheat harvest"), rtol=1e-5
        )


def test_a_graph_with_int32_inputs(packed, tiny_models):
    model = packed(tiny_models.text_model(ids_type=TensorProto.INT32))
    np.testing.assert_allclose(model.predict_one("port").logits, tiny_models.expected_logits("port"), rtol=1e-5)


def test_padding_does_not_change_an_answer_that_is_masked(packed, tiny_models, text):
    preprocessing = TextSource(tiny_models.tokenizer_json(), max_length=16, pad_multiple=8)
    padded = packed(tiny_models.text_model(), preprocessing=preprocessing)
    for sentence in tiny_models.TEXTS:
        np.testing.assert_allclose(padded.predict_one(sentence).logits, text.predict_one(sentence).logits, rtol=1e-6)


def test_threads(tiny_text_bundle, text):
    several = EdgeModel.load(tiny_text_bundle, threads=2)
    np.testing.assert_allclose(several.predict_one("wheat").logits, text.predict_one("wheat").logits, rtol=1e-6)
    with pytest.raises(InputError, match="not 0"):
        EdgeModel.load(tiny_text_bundle, threads=0)


def test_a_damaged_bundle_is_not_loaded(tiny_text_bundle, tmp_path):
    shutil.copytree(tiny_text_bundle, tmp_path / "copy")
    graph = Bundle.open(tmp_path / "copy").graph_path
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="bytes instead of"):
        EdgeModel.load(tmp_path / "copy")


def test_a_language_model_is_refused_with_what_serves_it(tiny_generator_bundle):
    with pytest.raises(BundleError, match="edgewise edge serve") as caught:
        EdgeModel.load(tiny_generator_bundle)
    assert "EdgeGenerator" in caught.value.remedy


def test_a_newer_runtime_than_installed_is_named(packed, tiny_models):
    with pytest.raises(BundleError, match=r"onnxruntime 99\.1.*pip install 'onnxruntime>=99\.1'"):
        packed(tiny_models.text_model(), target=Target((), "99.1", 17))


def test_versions_compare_as_numbers():
    numbers = [model_module._version(text) for text in ("1.9", "1.20", "1.20.1", "1.31.1+cu12", "1.32.dev3")]
    assert numbers == sorted(numbers)
    assert numbers[3] == (1, 31, 1)


def test_a_graph_the_runtime_does_not_know(packed, tiny_models):
    model = tiny_models.text_model()
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Unheard", "com.example"
    model.opset_import.add(domain="com.example", version=1)
    with pytest.raises(BundleError, match=r"onnxruntime .* cannot open the graph.*Unheard"):
        packed(model)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.INT64])
def test_an_image_graph_takes_float32(tiny_models, tmp_path, kind):
    model = tiny_models.image_model()
    model.graph.input[0].type.tensor_type.elem_type = kind
    cast = onnx.helper.make_node("Cast", ["pixel_values"], ["cast"], to=TensorProto.FLOAT)
    model.graph.node[0].input[0] = "cast"
    model.graph.node.insert(0, cast)
    onnx.save_model(model, tmp_path / "model.onnx")
    pack_bundle(tiny_models.image_source(tmp_path / "model.onnx"), tmp_path / "bundle")
    with pytest.raises(BundleError, match="one float32 input, this one has pixel_values"):
        EdgeModel.load(tmp_path / "bundle")


def test_inputs_that_the_graph_refuses_are_named_by_shape(text):
    session = Session(text.bundle.graph_path)
    with pytest.raises(InputError, match=r"input_ids.*\[1, 3\]"):
        session.run({"input_ids": np.zeros((1, 3), dtype=np.int64)}, ["logits"])


def test_more_logits_than_labels_at_run_time(packed, tiny_models):
    """A dynamic class dimension hides the mistake until the graph runs."""
    model = tiny_models.text_model()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    with pytest.raises(BundleError, match=r"shape \(3,\) for 2 labels"):
        packed(model, labels=("a", "b")).predict_one("wheat")


def test_the_edge_room_stays_lean():
    """A device has no torch, no onnx; Pillow waits for an image."""
    heavy = "{'torch', 'transformers', 'optimum', 'onnx', 'PIL', 'pandas', 'pydantic', 'boto3', 'matplotlib'}"
    code = f"import sys; from edgewise.edge import EdgeModel; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


class TestEmbedder:
    def test_answers_what_numpy_computes(self, embedder, tiny_models):
        for sentence in tiny_models.TEXTS:
            prediction = embedder.predict_one(sentence)
            np.testing.assert_allclose(
                prediction.output, tiny_models.expected_embedding(sentence), rtol=1e-5, atol=1e-7
            )
            assert (prediction.logits, prediction.margin) == (None, None)

    def test_another_vector_is_a_mismatch(self, embedder):
        first, *rest = embedder.bundle.golden()
        assert (first.output, first.score) == ("", 0.0)
        for same_isa, problem in ((True, "a number differs by"), (False, "cosine of its embedding is 0.9")):
            turned = msgspec.structs.replace(first, logits=(*first.logits[:-1], first.logits[-1] + 0.3))
            shorter = msgspec.structs.replace(first, logits=first.logits[1:])
            golden.check(embedder, [first, *rest], same_isa=same_isa)
            with pytest.raises(CertificateError, match=problem):
                golden.check(embedder, [*rest, turned], same_isa=same_isa)
            with pytest.raises(CertificateError, match="32 numbers instead of 31"):
                golden.check(embedder, [shorter], same_isa=same_isa)

    def test_labels_no_words(self, embedder):
        with pytest.raises(InputError, match="feature-extraction does not label words"):
            embedder.tag("wheat")


class TestTagger:
    def test_tells_entities(self, tagger):
        found = json.loads(tagger.predict_one("the wheat tariff  fell vessel\tport corn corn").output)
        assert found == [
            {"start": 4, "end": 16, "label": "GRAIN", "text": "wheat tariff"},
            {"start": 23, "end": 34, "label": "SHIP", "text": "vessel\tport"},
            {"start": 35, "end": 39, "label": "GRAIN", "text": "corn"},
            {"start": 40, "end": 44, "label": "GRAIN", "text": "corn"},
        ]

    def test_tags_words_as_numpy_does(self, tagger, tiny_models):
        for text in tiny_models.TAGGED:
            np.testing.assert_allclose(tagger.tag(text), tiny_models.expected_tags(text), rtol=1e-5, atol=1e-6)

    def test_a_word_is_its_first_token(self, tagger, tiny_models):
        """The tiny tokenizer splits at punctuation, data do not."""
        np.testing.assert_allclose(tagger.tag("wheat-vessel the")[0], tiny_models.expected_tags("wheat")[0], rtol=1e-5)
        (entity,) = json.loads(tagger.predict_one("wheat-vessel the").output)
        assert (entity["label"], entity["text"]) == ("GRAIN", "wheat-vessel")

    def test_the_logits_are_those_of_the_least_certain_word(self, tagger, tiny_models):
        rows = tiny_models.expected_tags("wheat vessel today")
        expected = rows[tiny_models.margin(rows).argmin()]
        np.testing.assert_allclose(tagger.predict_one("wheat vessel today").logits, expected, rtol=1e-5, atol=1e-6)

    def test_words_beyond_the_length_limit_are_outside_and_nobody_is_less_certain(self, tagger):
        text = "wheat " * 15 + "corn vessel vessel"
        logits = tagger.tag(text)
        assert logits.shape == (18, 4)
        assert logits[15].argmax() == 1
        np.testing.assert_array_equal(logits[16:], np.array([[1e-3, 0, 0, 0]] * 2, dtype=np.float32))
        np.testing.assert_array_equal(tagger.predict_one(text).logits, logits[17])

    def test_other_entities_are_a_mismatch(self, tagger):
        items = [msgspec.structs.replace(item, output="[]") for item in tagger.bundle.golden()]
        with pytest.raises(CertificateError, match=r"instead of '\[\]'"):
            golden.check(tagger, items, same_isa=False)
        with pytest.raises(CertificateError, match="differs by"):
            golden.check(tagger, [shifted(item, 1.5) for item in tagger.bundle.golden()], same_isa=True)


class TestGolden:
    def test_a_margin_that_is_not_that_of_the_logits_is_a_mismatch(self, packed, tiny_models):
        honest = packed(tiny_models.text_model(with_margin=True))
        items = golden_items(honest, list(tiny_models.TEXTS), tiny_models.margin)

        class Boasting:
            def predict(self, inputs):
                return [msgspec.structs.replace(item, margin=1.0) for item in honest.predict(inputs)]

        for same_isa in (True, False):
            golden.check(honest, items, same_isa=same_isa)
            with pytest.raises(CertificateError, match="margin 1 is not that of its logits"):
                golden.check(Boasting(), items, same_isa=same_isa)

    def test_hold_where_they_were_made(self, text, image):
        text.check_golden()
        image.check_golden()

    def test_carry_the_answers_of_the_model(self, text, tiny_models):
        for item, sentence in zip(text.bundle.golden(), tiny_models.TEXTS, strict=True):
            prediction = text.predict_one(sentence)
            assert (item.input, item.output) == (sentence, prediction.output)
            np.testing.assert_array_equal(np.array(item.logits, dtype=np.float32), prediction.logits)
            assert item.score == pytest.approx(float(tiny_models.margin(prediction.logits[np.newaxis])[0]))

    def test_another_label_is_a_mismatch_everywhere(self, text):
        first, *rest = text.bundle.golden()
        items = [msgspec.structs.replace(first, output="trade"), *rest]
        for same_isa in (True, False):
            with pytest.raises(CertificateError, match=r"item 1 of 3 .* 'grain' instead of 'trade'"):
                golden.check(text, items, same_isa=same_isa)

    def test_logits_beyond_the_tolerance_count_within_one_class_only(self, text):
        items = [shifted(item, 1.5) for item in text.bundle.golden()]
        golden.check(text, items, same_isa=False)
        with pytest.raises(CertificateError, match="differs by"):
            golden.check(text, items, same_isa=True)

    def test_logits_within_the_tolerance_pass(self, text):
        golden.check(text, [shifted(item, 0.5) for item in text.bundle.golden()], same_isa=True)

    def test_nothing_to_check_is_not_a_pass(self, packed, tiny_models):
        with pytest.raises(CertificateError, match="no golden items"):
            packed(tiny_models.text_model()).check_golden()

    def test_the_class_of_this_machine_decides_how_closely(self, text, packed, tiny_models):
        """The same shifted items: a mismatch where this machine's class made them, only labels where another did."""
        items = [shifted(item, 1.5) for item in text.bundle.golden()]
        elsewhere = packed(tiny_models.text_model(), golden=items, target=Target(("vax",), "1.20", 17))
        elsewhere.check_golden()
        here = msgspec.structs.replace(elsewhere.bundle.core, target=Target((probe().isa,), "1.20", 17))
        manifest = msgspec.structs.replace(elsewhere.bundle.manifest, core=here)
        bundle = Bundle(elsewhere.bundle.path, manifest, elsewhere.bundle.size_bytes, ())
        with pytest.raises(CertificateError, match="differs by"):
            EdgeModel.from_bundle(bundle).check_golden()

    def test_not_a_number_is_a_mismatch(self, text):
        class Broken:
            def predict(self, inputs):
                predictions = text.predict(inputs)
                nothing = np.full(3, np.nan, dtype=np.float32)
                return [msgspec.structs.replace(item, logits=nothing) for item in predictions]

        with pytest.raises(CertificateError, match="differs by nan"):
            golden.check(Broken(), text.bundle.golden(), same_isa=True)

    def test_images_are_answered_from_what_is_kept(self, image, tiny_models):
        (item,) = golden_items(image, [np.full((16, 12, 3), 200, dtype=np.uint8)], tiny_models.margin)
        assert item.output == image.predict_one(item.input.png).output == "bright"

    def test_a_model_without_logits_is_refused(self, text):
        class Generator:
            def predict(self, inputs):
                return [msgspec.structs.replace(item, logits=None) for item in text.predict(inputs)]

        with pytest.raises(InputError, match="need logits or an embedding"):
            golden_items(Generator(), ["wheat"], lambda logits: logits[:, 0])


def shifted(item: GoldenItem, share: float) -> GoldenItem:
    """The item with its largest logit raised by `share` of the tolerance."""
    tolerance = max(golden.ABSOLUTE_TOLERANCE, golden.RELATIVE_TOLERANCE * float(np.ptp(item.logits)))
    logits = list(item.logits)
    logits[int(np.argmax(logits))] += share * tolerance
    return msgspec.structs.replace(item, logits=tuple(logits))


def test_nothing_is_written_down_about_what_runs(tiny_text_bundle, tmp_path):
    """onnxruntime keeps a database of what it ran in the home folder, and may send it, unless it is told not to."""
    code = f"from edgewise.edge import EdgeModel; EdgeModel.load({str(tiny_text_bundle)!r}).predict(['wheat'])"
    home = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    home.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=home, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
