"""Certifying items are items that no choice has seen; what the bundle itself says it was chosen on is refused."""

import json
import random
import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from edgewise.bundle import Bundle, TextSource, attach
from edgewise.contracts import CloudReply, Reference
from edgewise.dataset import digest_examples, digest_items, load_examples
from edgewise.edge import EdgeModel
from edgewise.errors import CertificateError, ConfigError, DataError
from edgewise.jobs.certifying import CertifyJob, certify_with_cloud, certify_with_predictions, proving
from edgewise.quantize import NullProgress

REFERENCE = Reference("big", "sha256:cloud")
ROWS = [{"text": f"wheat corn {number}", "label": "grain"} for number in range(320)]


class Cloud:
    """Says "grain", as a version that changes after some answers."""

    def __init__(self, *, changes_after=10**9):
        self.asked, self.changes_after = 0, changes_after

    async def describe(self, *, timeout_s):
        return REFERENCE

    async def predict(self, request, *, timeout_s):
        self.asked += 1
        return CloudReply("grain", REFERENCE if self.asked <= self.changes_after else Reference("big", "sha256:newer"))

    async def aclose(self):
        pass


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def job(tiny_text_bundle, tmp_path):
    shutil.copytree(tiny_text_bundle, tmp_path / "bundle")
    return CertifyJob(tmp_path / "bundle", write(tmp_path / "data.jsonl", ROWS), alpha=0.01, delta=0.05)


def attest(job, kind, rows, *, fields=("data_digest", "items_digest")):
    """As `quantize` attests the part that it used."""
    examples = load_examples(write(job.data.with_name("part.jsonl"), rows))
    payload = {"data_digest": digest_examples(examples), "items_digest": digest_items(examples)}
    attach(job.bundle, kind, {name: payload[name] for name in fields})


def refused(job, part):
    cloud = Cloud()
    with pytest.raises(CertificateError, match=f"are the {part} part, which was used to choose this bundle") as caught:
        certify_with_cloud(job, cloud, NullProgress())
    assert "other items" in caught.value.remedy
    assert cloud.asked == 0
    assert [path.name for path in job.bundle.parent.glob("*.certificate.json")] == []


@pytest.mark.parametrize(("kind", "part"), [("measurement", "tuning"), ("gate", "gate")])
def test_the_part_a_bundle_was_chosen_on_does_not_certify_it(job, kind, part):
    attest(job, kind, ROWS)
    refused(job, part)


def test_nor_does_it_in_another_order_or_without_its_labels(job):
    attest(job, "measurement", ROWS)
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    refused(replace(job, data=write(job.data.with_name("shuffled.jsonl"), shuffled)), "tuning")
    bare = [{"text": row["text"]} for row in ROWS]
    refused(replace(job, data=write(job.data.with_name("bare.jsonl"), bare)), "tuning")


def test_a_bundle_of_an_earlier_edgewise_names_its_part_by_one_digest(job):
    attest(job, "gate", ROWS, fields=("data_digest",))
    refused(job, "gate")


def test_recorded_answers_are_refused_like_a_cloud(job):
    attest(job, "measurement", ROWS)
    rows = [{"output": "grain", "model": "big", "model_version": "1"}] * len(ROWS)
    with pytest.raises(CertificateError, match="was used to choose this bundle"):
        certify_with_predictions(job, write(job.data.with_name("p.jsonl"), rows), NullProgress())


def test_a_kept_certificate_does_not_get_past_it(job):
    first = certify_with_cloud(job, Cloud(), NullProgress())
    assert first.path.is_file()
    attest(job, "gate", ROWS)
    with pytest.raises(CertificateError, match="was used to choose this bundle"):
        certify_with_cloud(replace(job, cached=True), Cloud(), NullProgress())


def test_other_items_certify(job):
    attest(job, "measurement", [{"text": "vessel", "label": "ship"}])
    attest(job, "gate", ROWS[:-1])
    found = certify_with_cloud(job, Cloud(), NullProgress())
    assert found.certificate.bound.n == len(ROWS)
    assert found.certificate.model_digest == Bundle.open(job.bundle).model_digest


CHANGES = {
    "order": lambda job: write(job.data, ROWS[::-1]),
    "text field": lambda job: write(job.data, [{**row, "text": row["text"] + "!"} for row in ROWS]),
}


def test_a_kept_certificate_is_for_exactly_these_items(job):
    again = replace(job, cached=True)
    assert not certify_with_cloud(again, Cloud(), NullProgress()).reused
    assert certify_with_cloud(again, Cloud(), NullProgress()).reused
    for change in CHANGES.values():
        change(job)
        assert not certify_with_cloud(again, Cloud(), NullProgress()).reused
    write(job.data, [{"body": row["text"], "text": "corn", "label": row["label"]} for row in ROWS])
    assert not certify_with_cloud(replace(again, text_field="body"), Cloud(), NullProgress()).reused
    assert not certify_with_cloud(again, Cloud(), NullProgress()).reused
    for option in ({"alpha": 0.02}, {"delta": 0.06}, {"signal": "entropy"}):
        assert not certify_with_cloud(replace(again, **option), Cloud(), NullProgress()).reused


def test_a_cloud_that_changes_is_noticed_at_the_first_answer_of_the_other_version(job):
    cloud = Cloud(changes_after=5)
    with pytest.raises(CertificateError, match="changed from big sha256:cloud to big sha256:newer"):
        certify_with_cloud(job, cloud, NullProgress())
    assert cloud.asked <= 5 + job.concurrency


def test_the_certificate_is_json_that_can_be_read_again(job):
    found = certify_with_cloud(job, Cloud(), NullProgress())
    assert msgspec.json.decode(found.path.read_bytes())["reference"] == {"name": "big", "version": "sha256:cloud"}


def test_a_bundle_whose_answers_have_no_score_is_refused_before_the_cloud_is_asked(job, tiny_embedder_bundle):
    cloud = Cloud()
    with pytest.raises(CertificateError, match="feature-extraction; its answers carry no logits"):
        certify_with_cloud(replace(job, bundle=tiny_embedder_bundle), cloud, NullProgress())
    assert cloud.asked == 0


def test_what_the_router_would_veto_counts_and_is_never_local(job, tiny_models, tmp_path):
    """Every other item is of unknown words: they stay in n, and no threshold answers them here."""
    (tmp_path / "cut").mkdir()
    limited = TextSource(tiny_models.tokenizer_json(), max_length=16, max_unknown_share=0.4)
    bundle = tiny_models.pack_text(tmp_path / "cut", preprocessing=limited)
    rows = [{"text": "wheat corn" if number % 2 else "wheat zebra"} for number in range(320)]
    found = certify_with_cloud(replace(job, bundle=bundle, data=write(job.data, rows)), Cloud(), NullProgress())
    bound = found.certificate.bound
    assert (bound.n, bound.local_share) == (320, 0.5)


def test_a_signal_that_no_item_has_a_score_by_is_refused(job, monkeypatch):
    cloud = Cloud()
    with pytest.raises(ConfigError, match="log-probabilities of tokens") as caught:
        certify_with_cloud(replace(job, signal="mean_logprob"), cloud, NullProgress())
    assert "margin" in caught.value.remedy
    assert cloud.asked == 0
    entropies = proving.served_scores

    def without_margins(examples, edge, signal, fitted):
        return np.full(len(edge), np.nan) if signal == "margin" else entropies(examples, edge, signal, fitted)

    monkeypatch.setattr(proving, "served_scores", without_margins)
    with pytest.raises(CertificateError, match="has a score by the signal 'margin'") as caught:
        certify_with_cloud(job, cloud, NullProgress())
    assert "entropy" in caught.value.remedy
    assert "margin" not in caught.value.remedy
    assert list(job.bundle.parent.glob("*.certificate.json")) == []


def test_where_the_model_knows_none_of_the_items_nothing_is_certified(job, tiny_models, tmp_path):
    (tmp_path / "cut").mkdir()
    limited = TextSource(tiny_models.tokenizer_json(), max_length=16, max_unknown_share=0.1)
    bundle = tiny_models.pack_text(tmp_path / "cut", preprocessing=limited)
    data = write(job.data, [{"text": "zebra zebra"}] * 320)
    with pytest.raises(CertificateError, match="has a score") as caught:
        certify_with_cloud(replace(job, bundle=bundle, data=data), Cloud(), NullProgress())
    assert "out of distribution" in caught.value.remedy


class Notes(NullProgress):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_cloud_that_names_its_labels_otherwise_is_told_of(job):
    for output, told in (("LABEL_3", True), ("grain", False)):
        rows = [{"output": output, "model": "big", "model_version": "1"}] * len(ROWS)
        notes = Notes()
        answers = write(job.data.with_name("p.jsonl"), rows)
        found = certify_with_predictions(replace(job, overwrite=True), answers, notes)
        assert any("share no label" in note and "'LABEL_3'" in note for note in notes.notes) == told
        assert found.goal_met != told


def test_a_label_field_that_is_named_must_be_there(job):
    with pytest.raises(DataError, match="field 'truth' that --label-field names"):
        certify_with_cloud(replace(job, label_field="truth"), Cloud(), NullProgress())
    assert certify_with_cloud(replace(job, label_field="label"), Cloud(), NullProgress()).certificate
    bare = write(job.data, [{"text": row["text"]} for row in ROWS])
    assert certify_with_cloud(replace(job, data=bare, overwrite=True), Cloud(), NullProgress()).certificate


def test_a_tagger_is_certified_by_its_least_certain_word(job, tiny_tagger_bundle, tmp_path):
    shutil.copytree(tiny_tagger_bundle, tmp_path / "tagger")
    model = EdgeModel.load(tmp_path / "tagger")
    texts = [f"wheat corn {number}" for number in range(320)]
    rows = [{"output": model.predict_one(text).output, "model": "big", "model_version": "1"} for text in texts]
    data = write(job.data, [{"text": text} for text in texts])
    tagging = replace(job, bundle=tmp_path / "tagger", data=data)
    answers = write(tmp_path / "answers.jsonl", rows)
    found = certify_with_predictions(tagging, answers, NullProgress())
    assert found.disagreements == 0
    assert found.certificate.bound.local_share == 1.0
