"""The manifest's own rules, without any file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgewise.bundle
from edgewise.bundle import FixedSize, Manifest, ShortestEdge, manifest_schema
from edgewise.bundle.manifest import (
    FORMAT_VERSION,
    MAX_MANIFEST_BYTES,
    canonical,
    decode_manifest,
    digest_of,
    encode_manifest,
    render_schema,
)
from edgewise.errors import BundleCorruptError, BundleError, BundleVersionError, InputError

SCHEMA_FILE = Path(edgewise.bundle.__file__).parent / "manifest.schema.json"


@pytest.fixture(scope="module")
def text_manifest(tiny_text_bundle):
    return (tiny_text_bundle / "manifest.json").read_bytes()


@pytest.fixture(scope="module")
def image_manifest(tiny_image_bundle):
    return (tiny_image_bundle / "manifest.json").read_bytes()


def forged(data: bytes, change) -> bytes:
    """A manifest whose core was changed by someone who also corrected the digest."""
    content = json.loads(data)
    change(content["core"])
    content["model_digest"] = digest_of(canonical(content["core"]))
    return canonical(content)


def test_committed_schema_is_what_the_structs_generate():
    assert SCHEMA_FILE.read_text() == render_schema()


@pytest.mark.parametrize("name", ["text_manifest", "image_manifest"])
def test_real_manifests_validate_against_the_schema(name, request):
    jsonschema.Draft202012Validator.check_schema(manifest_schema())
    jsonschema.validate(json.loads(request.getfixturevalue(name)), manifest_schema())


def test_schema_refuses_what_the_decoder_refuses(text_manifest):
    content = json.loads(text_manifest)
    content["core"]["graph"]["digest"] = "sha256:../../x"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, manifest_schema())


@pytest.mark.parametrize("name", ["text_manifest", "image_manifest"])
def test_canonical_form_agrees_with_the_standard_library(name, request):
    data = request.getfixturevalue(name)
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("name", ["text_manifest", "image_manifest"])
def test_decoding_and_encoding_gives_the_same_bytes(name, request):
    data = request.getfixturevalue(name)
    manifest = decode_manifest(data)
    assert encode_manifest(manifest.core) == data
    assert manifest.format_version == FORMAT_VERSION


def test_every_flipped_bit_is_found(text_manifest):
    version_digit = text_manifest.index(b'"format_version":') + len(b'"format_version":')
    for position in range(len(text_manifest)):
        for bit in range(8):
            changed = bytearray(text_manifest)
            changed[position] ^= 1 << bit
            # A version digit that became larger looks like a newer format, and must.
            expected = BundleVersionError if chr(changed[version_digit]) in "3579" else BundleCorruptError
            with pytest.raises(expected):
                decode_manifest(bytes(changed))


@given(data=st.data())
def test_any_prefix_is_refused(data, text_manifest):
    cut = data.draw(st.integers(0, len(text_manifest) - 1))
    with pytest.raises(BundleCorruptError):
        decode_manifest(text_manifest[:cut])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"format":"edgewise-bundle"}',
        b'{"format":"tarball","format_version":1}',
        b'{"format":"edgewise-bundle","format_version":0}',
        b'{"format":"edgewise-bundle","format_version":"2"}',
        b'{"format":"edgewise-bundle","format_version":1,"x":' + b"[" * 100_000,
    ],
)
def test_not_a_manifest(data):
    with pytest.raises(BundleCorruptError):
        decode_manifest(data)


def test_white_space_is_refused(text_manifest):
    with pytest.raises(BundleCorruptError, match="canonically"):
        decode_manifest(text_manifest + b"\n")


def test_duplicate_key_is_refused(text_manifest):
    with pytest.raises(BundleCorruptError, match="canonically"):
        decode_manifest(text_manifest.replace(b'"format":', b'"format":"edgewise-bundle","format":', 1))


def test_newer_version_names_both_versions_and_the_remedy():
    data = canonical({"format": "edgewise-bundle", "format_version": 7, "core": {"whatever": True}, "signed": "x"})
    with pytest.raises(BundleVersionError, match=r"version 7.*version 1.*Update edgewise"):
        decode_manifest(data)


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../x",
        "sha256:" + "/" * 64,
        "sha256:" + "A" * 64,
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 64 + "\n",
        "sha512:" + "0" * 64,
        "0" * 64,
        "",
    ],
)
def test_no_path_can_be_formed_from_a_digest(text_manifest, digest):
    with pytest.raises(BundleCorruptError, match="not a manifest"):
        decode_manifest(forged(text_manifest, lambda core: core["graph"].update(digest=digest)))


def test_unknown_field_is_refused(text_manifest):
    with pytest.raises(BundleCorruptError, match="peak_ram"):
        decode_manifest(forged(text_manifest, lambda core: core["target"].update(peak_ram=1)))


CONTRADICTIONS = {
    "one label": (lambda core: core.update(labels=["grain"]), "two labels"),
    "label twice": (lambda core: core.update(labels=["grain", "ship", "grain"]), "'grain' occurs twice"),
    "labels and logits": (lambda core: core.update(labels=["a", "b", "c", "d"]), "3 logits for 4 labels"),
    "no inputs": (lambda core: core.update(inputs=[]), "no input"),
    "no outputs": (lambda core: core.update(outputs=[]), "no output"),
    "rank of logits": (lambda core: core["outputs"][0].update(shape=["batch"]), "shape"),
    "task": (lambda core: core.update(task="image-classification"), "does not go with"),
    "two sizes": (lambda core: core.update(golden={**core["graph"], "size": 1}), "two sizes"),
    "weight twice": (lambda core: core.update(weights=core["weights"] * 2), "weight is named twice"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_core_that_contradicts_itself_is_refused(text_manifest, name):
    change, message = CONTRADICTIONS[name]
    with pytest.raises(BundleError, match=message):
        decode_manifest(forged(text_manifest, change))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mean", [0.0, 0.0], "channels"),
        ("std", [0.0], "zero"),
        ("rescale", 0.0, "zero"),
        ("channels", 2, "not a manifest"),
        ("height", 0, "not a manifest"),
        ("width", 10**9, "not a manifest"),
        ("resample", "lanczos", "not a manifest"),
        ("bgr", True, "a grey image has no order"),
        ("bgr", None, "not a manifest"),
        ("crop_from", {"type": "shortest_edge", "edge": 0}, "not a manifest"),
        ("crop_from", {"type": "shortest_edge", "height": 8, "width": 8}, "not a manifest"),
        ("crop_from", {"type": "fixed", "height": 8}, "not a manifest"),
        ("crop_from", {"height": 8, "width": 8}, "not a manifest"),
        ("crop_from", {"type": "longest_edge", "edge": 8}, "not a manifest"),
        ("crop_from", 8, "not a manifest"),
    ],
)
def test_senseless_image_preprocessing_is_refused(image_manifest, field, value, message):
    with pytest.raises(BundleError, match=message):
        decode_manifest(forged(image_manifest, lambda core: core["preprocessing"].update({field: value})))


@pytest.mark.parametrize(
    ("crop_from", "written"),
    [
        (None, b'"crop_from":null'),
        (ShortestEdge(256), b'"crop_from":{"edge":256,"type":"shortest_edge"}'),
        (FixedSize(256, 320), b'"crop_from":{"height":256,"type":"fixed","width":320}'),
    ],
)
def test_a_crop_survives_writing_and_reading(image_manifest, crop_from, written):
    core = decode_manifest(image_manifest).core
    cropped = msgspec.structs.replace(core.preprocessing, crop_from=crop_from)
    data = encode_manifest(msgspec.structs.replace(core, preprocessing=cropped))
    assert written in data
    assert decode_manifest(data).core.preprocessing == cropped
    jsonschema.validate(json.loads(data), manifest_schema())


def test_number_beyond_floats_is_refused(image_manifest):
    data = image_manifest.replace(b'"rescale":0.00392156862745098', b'"rescale":1e999')
    with pytest.raises(BundleCorruptError):
        decode_manifest(data)


def test_writing_refuses_what_reading_would(text_manifest):
    core = decode_manifest(text_manifest).core
    with pytest.raises(InputError, match="name"):
        encode_manifest(msgspec.structs.replace(core, name="has/slash"))
    with pytest.raises(InputError, match="two labels"):
        encode_manifest(msgspec.structs.replace(core, labels=("one",)))


def test_writing_refuses_what_json_cannot_hold(image_manifest):
    core = decode_manifest(image_manifest).core
    for broken in ({"mean": (math.nan,)}, {"std": (math.inf,)}, {"rescale": math.nan}):
        preprocessing = msgspec.structs.replace(core.preprocessing, **broken)
        with pytest.raises(InputError, match="preprocessing"):
            encode_manifest(msgspec.structs.replace(core, preprocessing=preprocessing))


def test_blobs_are_listed_once(text_manifest):
    core = decode_manifest(text_manifest).core
    shared = msgspec.structs.replace(core, golden=core.graph)
    assert len(shared.blobs()) == len(core.blobs()) - 1


def test_manifest_limit_leaves_room_for_many_labels(text_manifest):
    core = decode_manifest(text_manifest).core
    outputs = (msgspec.structs.replace(core.outputs[0], shape=("batch", 10_000)),)
    many = msgspec.structs.replace(core, outputs=outputs, labels=tuple(f"label number {i}" for i in range(10_000)))
    assert len(encode_manifest(many)) < MAX_MANIFEST_BYTES


def test_manifest_is_a_frozen_value(text_manifest):
    manifest = decode_manifest(text_manifest)
    assert isinstance(manifest, Manifest)
    with pytest.raises(AttributeError):
        manifest.core.name = "other"
