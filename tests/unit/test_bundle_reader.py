"""Opening a bundle: whatever was changed, added, removed or forged is refused before it is used."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewise.bundle import Bundle, attach
from edgewise.bundle.manifest import MAX_MANIFEST_BYTES, canonical, digest_of
from edgewise.errors import BundleCorruptError, BundleError, BundleVersionError, InputError


@pytest.fixture
def bundle(tiny_text_bundle, tmp_path):
    """A copy that a test may damage, with one attestation."""
    path = tmp_path / "copy"
    shutil.copytree(tiny_text_bundle, path)
    attach(path, "measurement", {"accuracy": 0.9, "n": 100})
    return path


def files_of(path):
    return sorted(item for item in path.rglob("*") if item.is_file())


def forge(path, change):
    """Change the core as an attacker would, who also corrects the digest."""
    content = json.loads((path / "manifest.json").read_bytes())
    change(content["core"])
    content["model_digest"] = digest_of(canonical(content["core"]))
    (path / "manifest.json").write_bytes(canonical(content))


def put_blob(path, data):
    digest = digest_of(data)
    (path / "blobs" / "sha256" / digest.removeprefix("sha256:")).write_bytes(data)
    return {"digest": digest, "size": len(data)}


def forge_graph(path, tiny_models, location):
    """Replace the graph by one whose embedding lies at `location`."""
    from onnx.external_data_helper import set_external_data

    shutil.rmtree(path / "attestations", ignore_errors=True)
    model = tiny_models.text_model()
    tensor = model.graph.initializer[0]
    set_external_data(tensor, location)
    tensor.ClearField("raw_data")

    def change(core):
        (path / "blobs" / "sha256" / core["graph"]["digest"].removeprefix("sha256:")).unlink()
        core["graph"] = put_blob(path, model.SerializeToString())

    forge(path, change)


def test_opens_and_shows_what_was_packed(bundle, tiny_models):
    opened = Bundle.open(bundle)
    assert opened.core.labels == tiny_models.LABELS
    assert opened.core.target.opset == tiny_models.OPSET
    assert [weight.name for weight in opened.core.weights] == ["embedding.weight"]
    assert opened.read(opened.core.preprocessing.tokenizer) == tiny_models.tokenizer_json()
    assert [item.input for item in opened.golden()] == list(tiny_models.TEXTS)
    assert opened.graph_path.is_file()
    counted = sum(item.stat().st_size for item in files_of(bundle) if item.parent.name != "attestations")
    assert opened.size_bytes == counted


def test_the_bundle_itself_may_be_reached_through_a_link(bundle, tmp_path):
    (tmp_path / "current").symlink_to(bundle)
    assert Bundle.open(tmp_path / "current").model_digest == Bundle.open(bundle).model_digest
    assert Bundle.open(str(bundle)).model_digest == Bundle.open(bundle).model_digest


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found(bundle, data):
    path = data.draw(st.sampled_from(files_of(bundle)))
    content = path.read_bytes()
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(changed))
    try:
        with pytest.raises(BundleError) as caught:
            Bundle.open(bundle)
        assert isinstance(caught.value, BundleCorruptError | BundleVersionError)
    finally:
        path.write_bytes(content)
    Bundle.open(bundle)


def test_each_file_shortened_lengthened_or_emptied_is_found(bundle):
    for path in files_of(bundle):
        content = path.read_bytes()
        for changed in (content[:-1], content + b"\0", b""):
            path.write_bytes(changed)
            with pytest.raises(BundleCorruptError):
                Bundle.open(bundle)
        path.write_bytes(content)
    Bundle.open(bundle)


def test_each_missing_blob_is_found(bundle):
    for path in files_of(bundle / "blobs"):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(BundleCorruptError, match=f"sha256:{path.name} is missing"):
            Bundle.open(bundle)
        path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["extra.txt", ".hidden", "blobs/x", "blobs/sha256/" + "0" * 64, "attestations/x.json", "attestations/.x.json.tmp"],
)
def test_extra_file_is_refused(bundle, name):
    (bundle / name).write_bytes(b"x")
    with pytest.raises(BundleCorruptError, match="does not name"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["extra", "blobs/sha512", "attestations/deeper"])
def test_extra_folder_is_refused(bundle, name):
    (bundle / name).mkdir()
    with pytest.raises(BundleCorruptError, match="belongs there"):
        Bundle.open(bundle)


def test_every_file_replaced_by_a_link_to_the_same_bytes_is_refused(bundle, tmp_path):
    for path in files_of(bundle):
        outside = tmp_path / "outside"
        path.rename(outside)
        path.symlink_to(outside)
        with pytest.raises(BundleCorruptError, match="link"):
            Bundle.open(bundle)
        path.unlink()
        outside.rename(path)


def test_linked_folder_is_refused(bundle, tmp_path):
    (bundle / "blobs").rename(tmp_path / "outside")
    (bundle / "blobs").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleCorruptError, match="link"):
        Bundle.open(bundle)


def test_a_pipe_in_place_of_a_file_does_not_hang(bundle):
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")
    with pytest.raises(BundleCorruptError):
        Bundle.open(bundle)


def test_not_a_bundle(tmp_path, bundle):
    with pytest.raises(BundleError, match="There is no bundle"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(bundle / "manifest.json")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Bundle.open(tmp_path / "folder")


def test_newer_version_is_told_from_damage(bundle):
    text = (bundle / "manifest.json").read_bytes().replace(b'"format_version":1', b'"format_version":2')
    (bundle / "manifest.json").write_bytes(text)
    with pytest.raises(BundleVersionError, match=r"version 2.*version 1"):
        Bundle.open(bundle)


def test_oversized_manifest_is_not_read_whole(bundle):
    (bundle / "manifest.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(BundleCorruptError, match="larger than"):
        Bundle.open(bundle)


def test_unreadable_file_is_an_error_not_a_traceback(bundle, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("edgewise.bundle.reader.sha256_file", refuse)
    with pytest.raises(BundleError, match="Permission denied"):
        Bundle.open(bundle)


@pytest.mark.parametrize("digest", ["sha256:../../x", "sha256:" + "../" * 21 + "x"])
def test_forged_digest_that_leaves_the_bundle(bundle, digest):
    forge(bundle, lambda core: core["weights"][0]["blob"].update(digest=digest))
    with pytest.raises(BundleCorruptError):
        Bundle.open(bundle)


@pytest.mark.parametrize("location", ["/etc/passwd", "../../manifest.json", "other", "*/_ORT_MEM_ADDR_/*"])
def test_forged_graph_that_reads_another_file(bundle, tiny_models, location):
    forge_graph(bundle, tiny_models, location)
    with pytest.raises(BundleError, match=r"reads a file|does not use its weight"):
        Bundle.open(bundle)


def test_forged_graph_whose_location_is_its_own_weight_opens(bundle, tiny_models):
    forge_graph(bundle, tiny_models, Bundle.open(bundle).core.weights[0].blob.hex)
    Bundle.open(bundle)


def test_forged_weight_that_the_graph_does_not_use(bundle):
    shutil.rmtree(bundle / "attestations")
    forge(bundle, lambda core: core["weights"].append({"name": "spare", "blob": put_blob(bundle, b"spare")}))
    with pytest.raises(BundleError, match="does not use its weight"):
        Bundle.open(bundle)


def test_forged_graph_that_is_not_onnx(bundle):
    shutil.rmtree(bundle / "attestations")

    def change(core):
        (bundle / "blobs" / "sha256" / core["graph"]["digest"].removeprefix("sha256:")).unlink()
        core["graph"] = put_blob(bundle, b"\xff\xff\xff not protobuf")

    forge(bundle, change)
    with pytest.raises(BundleError, match="not an ONNX model"):
        Bundle.open(bundle)


@pytest.mark.parametrize("golden", [b"[{}]", b"\xff", b'[{"input":"a","logits":[1.0],"output":"grain","score":0.5}]'])
def test_forged_golden_items_are_refused_when_asked_for(bundle, golden):
    shutil.rmtree(bundle / "attestations")

    def change(core):
        (bundle / "blobs" / "sha256" / core["golden"]["digest"].removeprefix("sha256:")).unlink()
        core["golden"] = put_blob(bundle, golden)

    forge(bundle, change)
    opened = Bundle.open(bundle)
    with pytest.raises(BundleCorruptError, match="olden item"):
        opened.golden()


def test_blob_lost_after_opening_is_an_error(bundle):
    opened = Bundle.open(bundle)
    opened.blob_path(opened.core.golden).unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        opened.golden()


class TestAttestations:
    def test_are_read_back_and_leave_the_core_alone(self, tiny_text_bundle, tmp_path):
        path = tmp_path / "copy"
        shutil.copytree(tiny_text_bundle, path)
        before = Bundle.open(path)
        assert before.attestations() == ()
        payload = {"n": 3, "accuracy": 0.5, "slices": {"b": [1, 2], "a": None}, "note": "größer"}
        written = attach(path, "measurement", payload)
        after = Bundle.open(path)
        assert (after.model_digest, after.size_bytes) == (before.model_digest, before.size_bytes)
        assert [(item.kind, item.payload) for item in after.attestations()] == [("measurement", payload)]
        assert written.name == f"measurement-{after.attestations()[0].digest[7:19]}.json"

    def test_the_same_payload_is_the_same_file(self, bundle):
        first = attach(bundle, "certificate", {"alpha": 0.01})
        assert attach(bundle, "certificate", {"alpha": 0.01}) == first
        assert attach(bundle, "certificate", {"alpha": 0.02}) != first
        assert len(Bundle.open(bundle).attestations()) == 3

    def test_an_unknown_kind_is_kept(self, bundle):
        attach(bundle, "signature", {"key": "k"})
        assert "signature" in {item.kind for item in Bundle.open(bundle).attestations()}

    def test_structs_in_a_payload_become_plain_values(self, bundle):
        from edgewise.contracts import Reference

        attach(bundle, "certificate", {"reference": Reference("cloud", "v1"), "labels": ("a", "b")})
        found = next(item for item in Bundle.open(bundle).attestations() if item.kind == "certificate")
        assert found.payload == {"reference": {"name": "cloud", "version": "v1"}, "labels": ["a", "b"]}

    @pytest.mark.parametrize("kind", ["", "Upper", "../x", "a/b", "a" * 33, "a\n"])
    def test_kinds_are_plain_words(self, bundle, kind):
        before = files_of(bundle)
        with pytest.raises(InputError, match="kind"):
            attach(bundle, kind, {})
        assert files_of(bundle) == before

    @pytest.mark.parametrize(
        "payload", [{"x": float("nan")}, {"x": [float("inf")]}, {"x": object()}, {"x": "\ud800"}, {"x": 1j}]
    )
    def test_what_json_cannot_hold_is_refused(self, bundle, payload):
        before = files_of(bundle)
        with pytest.raises(InputError):
            attach(bundle, "measurement", payload)
        assert files_of(bundle) == before

    def test_one_of_another_model_is_refused(self, bundle, tiny_image_bundle, tmp_path):
        other = tmp_path / "image"
        shutil.copytree(tiny_image_bundle, other)
        foreign = attach(other, "certificate", {"alpha": 0.01})
        shutil.copy(foreign, bundle / "attestations" / foreign.name)
        with pytest.raises(BundleCorruptError, match="another model"):
            Bundle.open(bundle)

    def test_a_renamed_one_is_refused(self, bundle):
        (path,) = (bundle / "attestations").iterdir()
        path.rename(path.with_name("certificate" + path.name.removeprefix("measurement")))
        with pytest.raises(BundleCorruptError, match="digest promises"):
            Bundle.open(bundle)

    def test_every_flipped_bit_is_found(self, bundle):
        from edgewise.bundle.attestation import decode_attestation

        (path,) = (bundle / "attestations").iterdir()
        content, digest = path.read_bytes(), Bundle.open(bundle).model_digest
        for position in range(len(content)):
            for bit in range(8):
                changed = bytearray(content)
                changed[position] ^= 1 << bit
                with pytest.raises(BundleCorruptError):
                    decode_attestation(path.name, bytes(changed), digest)

    def test_what_a_power_cut_left_is_not_read_and_does_no_harm(self, bundle):
        (path,) = (bundle / "attestations").iterdir()
        path.with_name(f".{path.name}.ab_c1234").write_bytes(b'{"half')
        assert len(Bundle.open(bundle).attestations()) == 1

    def test_more_than_the_reader_takes_are_never_written(self, bundle, monkeypatch):
        monkeypatch.setattr("edgewise.bundle.reader.MAX_ATTESTATIONS", 2)
        attach(bundle, "certificate", {"n": 1})
        with pytest.raises(BundleError, match="2 attestations"):
            attach(bundle, "certificate", {"n": 2})
        Bundle.open(bundle)

    def test_more_than_the_reader_takes_are_refused(self, bundle, monkeypatch):
        attach(bundle, "certificate", {"n": 1})
        monkeypatch.setattr("edgewise.bundle.reader.MAX_ATTESTATIONS", 1)
        with pytest.raises(BundleCorruptError, match="2 attestations; at most 1"):
            Bundle.open(bundle)

    def test_an_oversized_one_is_neither_written_nor_read(self, bundle, monkeypatch):
        monkeypatch.setattr("edgewise.bundle.reader.MAX_ATTESTATION_BYTES", 1000)
        before = files_of(bundle)
        with pytest.raises(BundleError, match="at most 1000"):
            attach(bundle, "measurement", {"x": "y" * 1000})
        assert files_of(bundle) == before
        monkeypatch.setattr("edgewise.bundle.reader.MAX_ATTESTATION_BYTES", 10)
        with pytest.raises(BundleCorruptError, match="larger than 10"):
            Bundle.open(bundle)

    def test_a_failing_disk_leaves_the_bundle_as_it_was(self, bundle, monkeypatch):
        def full(_descriptor):
            raise OSError(28, "No space left on device")

        before = files_of(bundle)
        monkeypatch.setattr("edgewise.files.os.fsync", full)
        with pytest.raises(BundleError, match="No space left"):
            attach(bundle, "measurement", {"n": 2})
        assert files_of(bundle) == before
