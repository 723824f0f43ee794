"""What explain says is what the router does."""

import asyncio
import io
import json
import random
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import onnx
import pytest
from rich.console import Console

from edgewise import rendering
from edgewise.contracts import CloudReply, Reason, Reference, Request, answer
from edgewise.edge import EdgeModel
from edgewise.errors import CertificateError, DataError
from edgewise.jobs.beside import certificate_beside, fitted_beside, items_beside, load_certificate, load_fitted
from edgewise.jobs.certifying import CertifyJob, certify_with_cloud
from edgewise.jobs.explain import ExplainJob, explain_items
from edgewise.quantize import NullProgress
from edgewise.rendering.words import threshold
from edgewise.router import Router
from edgewise.router import certificate as certificates

REFERENCE = Reference("big", "1")
TEXTS = (
    "wheat corn crop wheat harvest crop corn today",
    "wheat vessel tariff today",
    "the a of",
    "wheat wheat vessel rose fell",
)


class Cloud:
    """Gives the label of most words; "none" where these are fewer than six, and always where it is contrary."""

    def __init__(self, words, *, contrary=False):
        self.words, self.contrary = words, contrary

    async def describe(self, *, timeout_s):
        return REFERENCE

    async def predict(self, request, *, timeout_s):
        counts = [sum(word in known for word in request.inputs.split()) for known in self.words.values()]
        unsure = self.contrary or max(counts) < 6
        return CloudReply("none" if unsure else list(self.words)[counts.index(max(counts))], REFERENCE)

    async def aclose(self):
        pass


def rows(words, count, seed, end):
    """Texts of seven words, most of one label."""
    rng = random.Random(seed)
    everything = [word for known in words.values() for word in known]
    texts = {}
    while len(texts) < count:
        own = rng.choice(list(words.values()))
        text = " ".join([*(rng.choice(own) if rng.random() < 0.7 else rng.choice(everything) for _ in range(7)), end])
        texts[text] = {"text": text, "label": "grain", "region": rng.choice(["north", "south"])}
    return list(texts.values())


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture(scope="module")
def made(tiny_models, tmp_path_factory):
    """A bundle with embeddings, and the two parts of its data."""
    folder = tmp_path_factory.mktemp("explain")
    onnx.save_model(tiny_models.text_model(with_embedding=True), folder / "model.onnx")
    tiny_models._pack_with_golden(tiny_models.text_source(folder / "model.onnx"), list(tiny_models.TEXTS), folder)
    write(folder / "tuning.jsonl", rows(tiny_models.WORDS, 150, 0, "rose"))
    write(folder / "certify.jsonl", rows(tiny_models.WORDS, 400, 1, "today"))
    return folder


@pytest.fixture
def home(made, tmp_path):
    shutil.copytree(made / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def certified(made, home, tiny_models):
    """Certify with any wishes; returns a job that explains."""

    def certify(contrary=False, **wishes):
        job = CertifyJob(home, made / "certify.jsonl", alpha=0.05, delta=0.05, tuning=made / "tuning.jsonl")
        certify_with_cloud(replace(job, **wishes), Cloud(tiny_models.WORDS, contrary=contrary), NullProgress())
        return ExplainJob(home, TEXTS)

    return certify


async def served(job, tiny_models):
    """What a router says of the same texts."""
    certificate = load_certificate(certificate_beside(job.bundle))
    fitted = load_fitted(job.bundle, certificate)
    router = Router(EdgeModel.load(job.bundle), Cloud(tiny_models.WORDS), certificate, fitted=fitted)
    try:
        requests = [Request(inputs=text, attributes=job.attributes) for text in job.items]
        return [(await answer(router, request)).decision for request in requests]
    finally:
        await router.aclose()


WISHES = {
    "margin": {"tuning": None},
    "combined": {"signal": "combined"},
    "vetoes": {"veto": True, "complexity": True},
    "labels": {"group_by": "label", "alpha": 0.1},
    "region": {"group_by": "region", "alpha": 0.1},
    "nothing certifies": {"tuning": None, "contrary": True},
}


@pytest.mark.parametrize("wish", WISHES)
def test_it_decides_as_the_router_does(certified, tiny_models, wish):
    job = replace(certified(**WISHES[wish]), attributes={"region": "north"})
    found = explain_items(job, NullProgress())
    decisions = asyncio.run(served(job, tiny_models))
    for row, decision in zip(found, decisions, strict=True):
        assert (row.action, row.reason) == (decision.action, decision.reason)
        assert str(row.threshold) == str(decision.threshold)
        if row.reason is not Reason.TOO_COMPLEX:
            assert str(row.score or "nan") == str(decision.score)
    assert {row.action for row in found} == ({"escalate"} if wish == "nothing certifies" else {"local", "escalate"})


def test_a_request_of_no_listed_group_is_escalated(certified):
    job = certified(group_by="region", alpha=0.1)
    (row, *_) = explain_items(job, NullProgress())
    assert (row.group, row.action, row.threshold) == (None, "escalate", None)
    assert "it is of no listed group; name one with --attribute region=north" in shown(row)
    assert "group by region none; listed are north, south" in shown(row)
    (row, *_) = explain_items(replace(job, attributes={"region": "west"}), NullProgress())
    assert "escalated: it is of no listed group score" in shown(row)
    assert "group by region west; listed are north, south" in shown(row)
    (row, *_) = explain_items(replace(job, attributes={"region": "north"}), NullProgress())
    assert "no listed group" not in shown(row)
    assert "group by region north other" in shown(row)


def shown(row):
    console = Console(width=200, file=io.StringIO())
    console.print(rendering.explained_view([row]))
    return " ".join(console.file.getvalue().split())


def test_a_score_beside_its_threshold_is_not_rounded_to_the_other_side(certified):
    row = explain_items(certified(tuning=None), NullProgress())[0]
    close = msgspec.structs.replace(row, score=0.83123412, threshold=0.83123411)
    assert "0.83123412, threshold 0.83123411" in shown(close)
    near_one = msgspec.structs.replace(row, score=1.0, threshold=0.9999997)
    assert "1, threshold 0.9999997" in shown(near_one)
    assert "none, threshold -inf" in shown(msgspec.structs.replace(row, score=None, threshold="-inf"))


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.5, "0.5"), (2 / 3, "0.666667"), (1.0, "1"), (0.9999997019767, "0.999999702"), (1 - 1e-15, "0.999999999999999"),
     (-0.001234567, "-0.00123457"), (12.3456789, "12.3457"), (float("inf"), "inf"), (float("-inf"), "-inf")],
)  # fmt: skip
def test_thresholds_are_told_apart_from_one(value, told):
    assert threshold(value) == told


def test_the_veto_and_the_complexity_are_told_with_their_cuts(certified):
    found = explain_items(certified(veto=True, complexity=True), NullProgress())
    foreign = found[2]
    assert foreign.distance > foreign.distance_cut
    assert foreign.score is None
    assert foreign.reason in (Reason.OUT_OF_DISTRIBUTION, Reason.TOO_COMPLEX)
    assert all(0 <= row.complexity <= 1 for row in found)
    assert set(found[0].signals) >= {"margin", "entropy", "energy"}


def test_without_a_veto_the_neighbours_of_the_combined_signal_have_no_cut(certified):
    found = explain_items(certified(signal="combined"), NullProgress())
    assert all(row.distance is not None and row.distance_cut is None for row in found)
    assert all(row.score is not None and row.nearest_by == "embedding" for row in found)


def test_kept_texts_are_shown_nearest_first(certified):
    job = certified(veto=True, keep_texts=True)
    row = explain_items(replace(job, items=("corn crop corn wheat grain",)), NullProgress())[0]
    assert row.nearest_by == "embedding"
    assert len(row.nearest) == 5
    assert [near.distance for near in row.nearest] == sorted(near.distance for near in row.nearest)
    assert {near.edge for near in row.nearest} == {"grain"}
    assert all(near.text.endswith("rose") for near in row.nearest)
    assert "nearest by embedding" in shown(row)


def test_a_certificate_elsewhere_comes_with_what_was_fitted_and_kept_for_it(certified, tmp_path):
    out = tmp_path / "second.json"
    certified(veto=True)
    job = certified(signal="combined", veto=True, keep_texts=True, out=out)
    row = explain_items(replace(job, certificate=out), NullProgress())[0]
    assert row.signal == "combined"
    assert row.nearest[0].text is not None
    assert explain_items(job, NullProgress())[0].nearest[0].text is None


def test_without_texts_only_places_are_shown(certified):
    row = explain_items(certified(veto=True), NullProgress())[0]
    assert row.nearest[0].text is None
    assert row.nearest[0].position >= 1
    assert "nearest by" not in shown(row)
    assert any("--keep-texts" in note for note in row.notes)


def test_where_embeddings_are_not_used_it_tells_how(certified):
    row = explain_items(certified(signal="margin", keep_texts=True), NullProgress())[0]
    assert row.nearest_by == "score"
    assert any("by them" in note for note in row.notes)


def test_items_kept_for_another_signal_are_not_compared_with(certified):
    certified(signal="margin", keep_texts=True)
    row = explain_items(certified(tuning=None, signal="entropy", overwrite=True), NullProgress())[0]
    assert (row.nearest_by, row.nearest) == (None, ())


def test_a_file_gives_the_same_neighbours_as_those_that_were_kept(certified, made):
    job = certified(veto=True, keep_texts=True)
    kept = explain_items(job, NullProgress())
    given = explain_items(replace(job, tuning=made / "tuning.jsonl"), NullProgress())
    for one, other in zip(kept, given, strict=True):
        assert [near.text for near in one.nearest] == [near.text for near in other.nearest]
        assert [near.distance for near in one.nearest] == pytest.approx([near.distance for near in other.nearest])


def test_without_embeddings_the_nearest_are_those_of_like_score(made, tiny_text_bundle, tmp_path):
    shutil.copytree(tiny_text_bundle, tmp_path / "plain")
    row = explain_items(ExplainJob(tmp_path / "plain", TEXTS[:1], tuning=made / "tuning.jsonl"), NullProgress())[0]
    assert row.nearest_by == "score"
    distances = [near.distance for near in row.nearest]
    assert distances == sorted(distances)
    assert row.nearest[0].label == "grain"


def test_without_a_certificate_everything_is_escalated(home):
    row = explain_items(ExplainJob(home, TEXTS[:1]), NullProgress())[0]
    assert (row.action, row.reason, row.certificate_id) == ("escalate", Reason.CERTIFICATE_VOID, None)
    assert row.score > 0
    assert any("edgewise certify" in note for note in row.notes)


def reissued(path, **changes):
    """The same certificate, issued with other fields."""
    fields = msgspec.structs.asdict(load_certificate(path)) | changes
    del fields["id"]
    path.write_bytes(certificates.encode(certificates.issue(**fields)))


def test_an_expired_certificate_escalates_and_says_so(certified):
    job = certified(valid_days=1)
    assert explain_items(job, NullProgress())[0].action == "local"
    past = datetime.now(UTC) - timedelta(days=3)
    ended = (past + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    reissued(certificate_beside(job.bundle), created=past.strftime("%Y-%m-%dT%H:%M:%SZ"), expires=ended)
    row = explain_items(job, NullProgress())[0]
    assert (row.action, row.reason) == ("escalate", Reason.CERTIFICATE_EXPIRED)
    assert any(ended in note for note in row.notes)


def test_another_machine_is_noted(certified):
    job = certified(tuning=None)
    reissued(certificate_beside(job.bundle), isa="aarch64-dotprod")
    row = explain_items(job, NullProgress())[0]
    assert row.action == "local"
    assert any("aarch64-dotprod" in note for note in row.notes)


def test_a_certificate_of_another_model_is_refused(certified, tiny_text_bundle):
    job = certified(tuning=None)
    other = replace(job, bundle=tiny_text_bundle, certificate=certificate_beside(job.bundle))
    with pytest.raises(CertificateError, match="was issued for"):
        explain_items(other, NullProgress())


def test_what_was_fitted_must_be_what_the_certificate_names(certified):
    job = certified(signal="combined")
    path = fitted_beside(job.bundle)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CertificateError, match="was issued with"):
        explain_items(job, NullProgress())
    path.unlink()
    with pytest.raises(CertificateError, match="cannot be read"):
        explain_items(job, NullProgress())


def test_damaged_kept_items_are_told_of(certified):
    job = certified(veto=True, keep_texts=True)
    items_beside(job.bundle).write_bytes(b'{"text": 3}\n')
    with pytest.raises(DataError, match="is damaged"):
        explain_items(job, NullProgress())


def test_a_bundle_without_scores_is_refused(tiny_embedder_bundle):
    with pytest.raises(CertificateError, match="no score to explain"):
        explain_items(ExplainJob(tiny_embedder_bundle, TEXTS), NullProgress())


def test_an_image_is_explained_by_its_path(tiny_image_bundle, tmp_path):
    from PIL import Image

    Image.new("L", (8, 8), 240).save(tmp_path / "white.png")
    row = explain_items(ExplainJob(tiny_image_bundle, [str(tmp_path / "white.png")]), NullProgress())[0]
    assert row.output == "bright"
    with pytest.raises(DataError, match=r"black\.png"):
        explain_items(ExplainJob(tiny_image_bundle, [str(tmp_path / "black.png")]), NullProgress())
