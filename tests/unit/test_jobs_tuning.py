"""Targets, signals, vetoes and groups on the way to a certificate: fitted on one part, certified on another."""

import io
import json
import random
import shutil
from dataclasses import replace

import msgspec
import numpy as np
import onnx
import pytest
from rich.console import Console

from edgewise import rendering
from edgewise.config import CostSection
from edgewise.contracts import CloudReply, Reference
from edgewise.edge import EdgeModel
from edgewise.errors import CertificateError, ConfigError, DataError, OutputExistsError, TooFewItemsError
from edgewise.jobs.beside import fitted_beside, load_fitted, load_kept_items, record_beside
from edgewise.jobs.certifying import CertifyJob, certify_with_cloud
from edgewise.jobs.certifying.tuning import TuningRecord
from edgewise.jobs.parts import load_part
from edgewise.jobs.scoring import served_scores
from edgewise.quantize import NullProgress
from edgewise.router.certificate import items_needed
from edgewise.router.complexity_fit import fit_complexity
from edgewise.router.fitted import Fitted
from edgewise.router.signals import score_of

REFERENCE = Reference("big", "1")


class Cloud:
    """Knows each text's truth, and counts what it is asked."""

    def __init__(self, truth):
        self.truth, self.asked = truth, []

    async def describe(self, *, timeout_s):
        return REFERENCE

    async def predict(self, request, *, timeout_s):
        self.asked.append(request.inputs)
        return CloudReply(self.truth[request.inputs], REFERENCE)

    async def aclose(self):
        pass


class Notes(NullProgress):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def embedding_bundle(tiny_models, tmp_path_factory):
    """The tiny text model with its embedding declared."""
    folder = tmp_path_factory.mktemp("embedding")
    onnx.save_model(tiny_models.text_model(with_embedding=True), folder / "model.onnx")
    return tiny_models._pack_with_golden(
        tiny_models.text_source(folder / "model.onnx"), list(tiny_models.TEXTS), folder
    )


def made(tiny_models, count, seed):
    """Texts of five words, most of one label; the label of most words is the truth, of a tie a random one."""
    rng = random.Random(seed)
    rows = {}
    while len(rows) < count:
        label = rng.choice(tiny_models.LABELS)
        others = [word for name in tiny_models.LABELS for word in tiny_models.WORDS[name]]
        words = [rng.choice(tiny_models.WORDS[label]) if rng.random() < 0.75 else rng.choice(others) for _ in range(7)]
        text = " ".join(words) + (" today" if seed else " rose")
        rows[text] = {"text": text, "label": label, "region": rng.choice(["north", "south"])}
    return list(rows.values())


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def world(tiny_models, embedding_bundle, tmp_path):
    """A job with a tuning part, and the cloud that it is certified against."""
    shutil.copytree(embedding_bundle, tmp_path / "bundle")
    tuning, certifying = made(tiny_models, 200, 0), made(tiny_models, 400, 1)
    cloud = Cloud({row["text"]: row["label"] for row in [*tuning, *certifying]})
    job = CertifyJob(
        tmp_path / "bundle",
        write(tmp_path / "certify.jsonl", certifying),
        alpha=0.05,
        delta=0.05,
        tuning=write(tmp_path / "tuning.jsonl", tuning),
    )
    return job, cloud


def record_of(job):
    return msgspec.json.decode(job.bundle.with_name("bundle.tuning.json").read_bytes(), type=TuningRecord)


def test_without_a_clear_lead_on_the_tuning_part_the_bundle_s_own_signal_stays(world):
    """The cloud says something else about a tenth of the items, by chance: some signal looks best, by luck."""
    job, cloud = world
    rng = random.Random(2)
    cloud.truth |= {text: "grain" for text in cloud.truth if rng.random() < 0.1}
    found = certify_with_cloud(replace(job, alpha=0.2), cloud, NullProgress())
    assert len(cloud.asked) == 600
    areas = {row.signal: row.aurc for row in found.tuning.signals}
    assert list(areas.values()) == sorted(areas.values())
    assert {"margin", "entropy", "combined"} <= set(areas)
    assert min(areas.values()) < areas["margin"]
    assert all(row.better_by <= 2 for row in found.tuning.signals)
    assert found.certificate.signal == found.tuning.signal == "margin"
    assert found.certificate.fitted_digest is None
    assert not fitted_beside(job.bundle).exists()
    assert record_of(job) == found.tuning


def test_a_signal_that_is_clearly_better_is_taken_with_what_it_reads(world):
    """The cloud contradicts the edge in one of its labels, however sure the edge is."""
    job, cloud = world
    model = EdgeModel.load(job.bundle)
    for text in cloud.truth:
        answer = str(model.predict_one(text).output)
        cloud.truth[text] = "grain" if answer == "ship" else answer
    found = certify_with_cloud(replace(job, alpha=0.3), cloud, NullProgress())
    best = found.tuning.signals[0]
    assert best.better_by > 2
    assert found.certificate.signal == best.signal == "combined"
    fitted = load_fitted(job.bundle, found.certificate)
    assert fitted.combination.reads_neighbours
    assert not fitted.neighbours.vetoes
    outcomes = fitted.neighbours.outcomes
    rows = [json.loads(line)["text"] for line in job.tuning.read_text().splitlines()]
    assert outcomes.answers.tolist() == [model.labels.index(cloud.truth[text]) for text in rows]
    assert outcomes.wrong.tolist() == [cloud.truth[text] != model.predict_one(text).output for text in rows]


@pytest.mark.parametrize("veto", [True, False])
def test_only_a_veto_that_was_asked_for_turns_items_away(world, veto):
    job, cloud = world
    found = certify_with_cloud(replace(job, signal="combined", veto=veto), cloud, NullProgress())
    fitted = load_fitted(job.bundle, found.certificate)
    assert fitted.neighbours.vetoes == veto
    assert fitted.combination.reads_neighbours
    assert (found.certificate.out_of_distribution_share > 0) == veto


def test_a_bundle_without_embeddings_combines_what_it_has(world, tiny_text_bundle, tmp_path):
    job, cloud = world
    plain = tmp_path / "plain"
    shutil.copytree(tiny_text_bundle, plain)
    found = certify_with_cloud(replace(job, bundle=plain, signal="combined"), cloud, NullProgress())
    fitted = load_fitted(plain, found.certificate)
    assert fitted.neighbours is None
    assert not fitted.combination.reads_neighbours


def test_a_signal_that_is_named_is_taken_and_compared_too(world):
    job, cloud = world
    found = certify_with_cloud(replace(job, signal="margin:temperature=9"), cloud, NullProgress())
    assert found.certificate.signal == "margin:temperature=9"
    assert "margin:temperature=9" in {row.signal for row in found.tuning.signals}


def test_what_serving_finds_too_complex_has_no_score(world):
    job, _ = world
    examples = load_part(job.data, text_field="text", label_field="label").examples
    model = EdgeModel.load(job.bundle)
    predictions = [model.predict_one(example.input) for example in examples]
    fit = fit_complexity([str(example.input) for example in examples], np.arange(len(examples)) % 3 == 0)
    cut = float(np.median([fit.score(str(example.input)) for example in examples]))
    fitted = Fitted(complexity=replace(fit, cut=cut))
    hopeless = np.array([fit.score(str(example.input)) > cut for example in examples])
    assert 0 < hopeless.sum() < len(examples)
    assert np.array_equal(np.isnan(served_scores(examples, predictions, "margin", fitted)), hopeless)


def test_certifying_scores_are_those_that_serving_would_have(world):
    """With every fit at once: each item's score by the fitted file that the certificate names."""
    job, cloud = world
    found = certify_with_cloud(replace(job, signal="combined", veto=True, complexity=True), cloud, NullProgress())
    certificate = found.certificate
    fitted = load_fitted(job.bundle, certificate)
    assert None not in (fitted.neighbours, fitted.complexity, fitted.combination)
    model = EdgeModel.load(job.bundle)
    examples = load_part(job.data, text_field="text", label_field="label").examples
    predictions = [model.predict_one(example.input) for example in examples]
    scores = served_scores(examples, predictions, certificate.signal, fitted)
    assert certificate.bound.local_share == np.mean(scores > certificate.bound.threshold)
    assert certificate.out_of_distribution_share == np.isnan(scores).mean()
    for example, prediction, score in zip(examples, predictions, scores, strict=True):
        hopeless = fitted.complexity.is_too_complex(example.input) or fitted.neighbours.is_foreign(prediction.embedding)
        assert hopeless == np.isnan(score)
        if not hopeless:
            assert score == score_of(prediction, "combined", fitted)
    known = scores[~np.isnan(scores)]
    assert len(certificate.score_deciles) == 9
    assert np.mean(known <= certificate.score_deciles[4]) == pytest.approx(0.5, abs=0.02)


def test_foreign_items_count_and_are_never_local(world, tiny_models):
    """A text of neutral words lies far from everything in the tuning part."""
    job, cloud = world
    rows = made(tiny_models, 380, 1) + [{"text": f"fell of {'the ' * n}", "label": "ship"} for n in range(1, 21)]
    cloud.truth |= {row["text"]: row["label"] for row in rows}
    found = certify_with_cloud(
        replace(job, data=write(job.data, [{"text": row["text"], "label": row["label"]} for row in rows]), veto=True),
        cloud,
        NullProgress(),
    )
    assert found.certificate.bound.n == 400
    assert found.certificate.out_of_distribution_share >= 0.05


@pytest.mark.parametrize("target", ["accuracy", "selective"])
def test_targets_with_labels(world, target):
    job, cloud = world
    found = certify_with_cloud(replace(job, target=target, alpha=0.15), cloud, NullProgress())
    bound = found.certificate.bound
    assert found.certificate.target == target
    assert 0 < bound.local_share <= 1
    assert [row.alpha for row in found.curve] == pytest.approx([0.0375, 0.075, 0.15, 0.3])
    shares = [row.bound.local_share for row in found.curve if row.bound is not None]
    assert shares == sorted(shares)
    assert all(0 <= row.accuracy <= 1 for row in found.curve if row.accuracy is not None)


def test_a_bound_for_each_label_and_what_it_costs(world):
    job, cloud = world
    found = certify_with_cloud(replace(job, group_by="label", alpha=0.1), cloud, NullProgress())
    groups = found.certificate.groups
    assert groups.by == "label"
    assert set(groups.bounds) == {"grain", "ship", "trade"}
    assert sum(bound.n for bound in groups.bounds.values()) == 400
    assert all(bound.delta == pytest.approx(0.05 / 3) for bound in groups.bounds.values())
    assert items_needed(0.1, 0.05 / 3) > items_needed(0.1, 0.05)


def test_groups_by_a_field_are_those_of_the_tuning_part_or_those_named(world):
    job, cloud = world
    job = replace(job, group_by="region", alpha=0.1, overwrite=True)
    assert set(certify_with_cloud(job, cloud, NullProgress()).certificate.groups.bounds) == {"north", "south"}
    only = certify_with_cloud(replace(job, groups=("north",)), cloud, NullProgress()).certificate.groups
    assert set(only.bounds) == {"north"}
    assert only.bounds["north"].n < 400
    with pytest.raises(DataError, match="no field 'place' to group by"):
        certify_with_cloud(replace(job, group_by="place"), cloud, NullProgress())
    with pytest.raises(ConfigError, match="no label 'wheat'"):
        certify_with_cloud(replace(job, group_by="label", groups=("wheat",)), cloud, NullProgress())


def test_parts_that_share_items_are_refused_before_the_cloud_is_asked(world):
    job, cloud = world
    shared = job.tuning.read_text().splitlines()[:30]
    job.data.write_text(job.data.read_text() + "\n".join(shared) + "\n")
    with pytest.raises(CertificateError, match=f"30 of the {len(job.tuning.read_text().splitlines())} tuning items"):
        certify_with_cloud(job, cloud, NullProgress())
    assert cloud.asked == []


def test_a_few_shared_items_certify_and_choose_nothing(world):
    job, cloud = world
    lines = job.tuning.read_text().splitlines()
    job.data.write_text(job.data.read_text() + lines[3] + "\n")
    progress = Notes()
    certify_with_cloud(job, cloud, progress)
    apart = replace(job, tuning=job.tuning.with_name("apart.jsonl"), out=job.tuning.with_name("apart.json"))
    apart.tuning.write_text("".join(f"{line}\n" for at, line in enumerate(lines) if at != 3))
    assert any("1 items of" in note and "left out" in note for note in progress.notes)
    kept = record_beside(job.bundle).read_bytes()
    certify_with_cloud(replace(apart, overwrite=True), cloud, NullProgress())
    assert record_beside(job.bundle).read_bytes() == kept


WISHES = {
    "target": {"target": "accuracy"},
    "auto": {"signal": "auto"},
    "combined": {"signal": "combined"},
    "veto": {"veto": True},
    "complexity": {"complexity": True},
    "texts": {"keep_texts": True},
    "fields": {"group_by": "region"},
}


@pytest.mark.parametrize("wish", WISHES)
def test_what_is_fixed_on_the_tuning_part_needs_one(world, wish):
    job, cloud = world
    with pytest.raises(ConfigError) as caught:
        certify_with_cloud(replace(job, tuning=None, **WISHES[wish]), cloud, NullProgress())
    assert "--tuning FILE" in caught.value.remedy
    assert cloud.asked == []


NONSENSE = {
    "target": ({"target": "truth"}, "no target 'truth'"),
    "signal": ({"signal": "vibes"}, "no signal 'vibes'"),
    "option": ({"signal": "margin:heat=3"}, "no option 'heat'"),
    "life": ({"valid_days": 0.0}, "cannot live 0 days"),
    "endless": ({"valid_days": float("nan")}, "cannot live nan days"),
    "plot": ({"plot": "curve.gif"}, "of no known kind"),
    "groups": ({"groups": ("a",)}, "groups of nothing"),
    "grouped accuracy": ({"group_by": "label", "target": "accuracy"}, "certified for agreement"),
    "twice": ({"group_by": "label", "groups": ("ship", "ship")}, "named twice"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_settings_that_make_no_sense(world, case, tmp_path):
    job, cloud = world
    wish, says = NONSENSE[case]
    if "plot" in wish:
        wish = {"plot": tmp_path / wish["plot"]}
    with pytest.raises(ConfigError, match=says):
        certify_with_cloud(replace(job, **wish), cloud, NullProgress())
    assert cloud.asked == []
    assert [path.name for path in job.bundle.parent.glob("bundle.*")] == []


def test_a_veto_needs_a_bundle_with_embeddings(world, tiny_text_bundle):
    job, cloud = world
    with pytest.raises(ConfigError, match="--veto needs embeddings") as caught:
        certify_with_cloud(replace(job, bundle=tiny_text_bundle, veto=True), cloud, NullProgress())
    assert "--recipes embedding+" in caught.value.remedy


def test_labels_of_another_kind_are_refused(world):
    job, cloud = world
    rows = [json.loads(line) for line in job.data.read_text().splitlines()]
    strange = write(job.data, [{**row, "label": "L" + row["label"]} for row in rows])
    with pytest.raises(DataError, match="is one of the model's"):
        certify_with_cloud(replace(job, data=strange, target="selective"), cloud, NullProgress())
    bare = write(job.data, [{"text": row["text"]} for row in rows])
    with pytest.raises(DataError, match="has no labels"):
        certify_with_cloud(replace(job, data=bare, target="selective"), cloud, NullProgress())


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"group_by": "label"}, "400 certifying items .* 408 are needed"),
        ({"group_by": "region"}, "items in the largest of 2 groups .* 368 are needed"),
    ],
)
def test_too_few_items_for_groups(world, wish, says):
    job, cloud = world
    with pytest.raises(TooFewItemsError, match=says):
        certify_with_cloud(replace(job, alpha=0.01, **wish), cloud, NullProgress())
    assert cloud.asked == []


def test_a_request_is_priced(world):
    job, cloud = world
    priced = replace(job, cost=CostSection(price_per_call=2.0), overwrite=True)
    price = certify_with_cloud(priced, cloud, NullProgress()).price
    assert price.cloud_only.total == 2.0
    assert price.cheapest.cost.total < 2.0
    dear = CostSection(edge_joules=3.6e6, price_per_kwh=5.0, price_per_call=2.0)
    price = certify_with_cloud(replace(priced, cost=dear), cloud, NullProgress()).price
    assert price.cheapest.threshold == np.inf
    assert price.cheapest.cost == price.cloud_only


def test_texts_stay_away_unless_asked_for(world):
    job, cloud = world
    kept = replace(job, veto=True, keep_texts=True, overwrite=True)
    certify_with_cloud(kept, cloud, NullProgress())
    items = load_kept_items(job.bundle)
    assert [item.row for item in items] == list(range(200))
    assert items[0].text == json.loads(job.tuning.read_text().splitlines()[0])["text"]
    certify_with_cloud(replace(kept, keep_texts=False), cloud, NullProgress())
    assert load_kept_items(job.bundle) is None
    fitted = job.bundle.with_name("bundle.fitted.npz").read_bytes()
    assert items[0].text.encode() not in fitted


def test_a_kept_certificate_is_of_the_same_tuning_and_fits(world):
    job, cloud = world
    job = replace(job, cached=True, signal="combined", valid_days=30)
    assert not certify_with_cloud(job, cloud, NullProgress()).reused
    again = certify_with_cloud(job, cloud, NullProgress())
    assert again.reused
    assert again.tuning.signal == "combined"
    fitted = job.bundle.with_name("bundle.fitted.npz")
    fitted.write_bytes(fitted.read_bytes()[:-1])
    assert not certify_with_cloud(job, cloud, NullProgress()).reused
    for change in ({"valid_days": 31.0}, {"veto": True}):
        changed = replace(job, **change)
        assert not certify_with_cloud(changed, cloud, NullProgress()).reused
        assert certify_with_cloud(changed, cloud, NullProgress()).reused


def test_a_kept_certificate_is_of_the_same_target_and_groups(world):
    job, cloud = world
    for wish in ({"target": "selective", "alpha": 0.2}, {"group_by": "label", "alpha": 0.1}, {"signal": "entropy"}):
        changed = replace(job, cached=True, **wish)
        assert not certify_with_cloud(changed, cloud, NullProgress()).reused
        assert certify_with_cloud(changed, cloud, NullProgress()).reused


def contents(folder, pattern):
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def test_what_belongs_to_a_certificate_lies_beside_it_and_stays(world, tmp_path):
    job, cloud = world
    certify_with_cloud(replace(job, signal="combined", keep_texts=True), cloud, NullProgress())
    first = contents(tmp_path, "bundle.*")
    assert set(first) == {
        f"bundle.{kind}" for kind in ("certificate.json", "fitted.npz", "tuning.json", "neighbours.jsonl")
    }
    out = tmp_path / "elsewhere" / "other.json"
    out.parent.mkdir()
    second = replace(job, signal="combined", veto=True, out=out)
    found = certify_with_cloud(second, cloud, NullProgress())
    assert set(contents(out.parent, "*")) == {"other.json", "other.fitted.npz", "other.tuning.json"}
    certify_with_cloud(replace(job, signal="margin", out=tmp_path / "plain.json"), cloud, NullProgress())
    assert contents(tmp_path, "bundle.*") == first
    assert load_fitted(job.bundle, found.certificate, issued=out).neighbours.vetoes
    assert certify_with_cloud(replace(second, cached=True), cloud, NullProgress()).reused


def test_a_certificate_that_was_moved_is_found_what_lies_beside_the_bundle(world, tmp_path):
    job, cloud = world
    found = certify_with_cloud(replace(job, signal="combined"), cloud, NullProgress())
    assert load_fitted(job.bundle, found.certificate, issued=tmp_path / "moved.json") is not None


def test_what_was_fitted_for_another_certificate_is_not_replaced_unasked(world, tmp_path):
    job, cloud = world
    first = replace(job, signal="combined", out=tmp_path / "other.json")
    found = certify_with_cloud(first, cloud, NullProgress())
    cloud.asked.clear()
    with pytest.raises(OutputExistsError, match=r"would lie where that of .*other\.json does"):
        certify_with_cloud(replace(first, out=tmp_path / "other.certificate.json"), cloud, NullProgress())
    found.path.unlink()
    with pytest.raises(OutputExistsError, match=r"other\.fitted\.npz"):
        certify_with_cloud(first, cloud, NullProgress())
    assert cloud.asked == []
    assert not found.path.exists()


def test_what_a_choice_fits_is_not_put_in_place_of_another_fit_either(world):
    """Left to choose, it is known only afterwards whether anything is fitted."""
    job, cloud = world
    model = EdgeModel.load(job.bundle)
    for text in cloud.truth:
        answer = str(model.predict_one(text).output)
        cloud.truth[text] = "grain" if answer == "ship" else answer
    fitted_beside(job.bundle).write_bytes(b"another's")
    with pytest.raises(OutputExistsError, match=r"bundle\.fitted\.npz"):
        certify_with_cloud(replace(job, alpha=0.3), cloud, NullProgress())
    assert contents(job.bundle.parent, "bundle.*") == {"bundle.fitted.npz": b"another's"}


def test_accuracy_tells_what_local_answers_lose_and_win(world):
    job, cloud = world
    rng = random.Random(3)
    cloud.truth |= {text: "none" for text in cloud.truth if rng.random() < 0.1}
    found = certify_with_cloud(replace(job, target="accuracy", alpha=0.2), cloud, NullProgress())
    model, bound = EdgeModel.load(job.bundle), found.certificate.bound
    wins, losses = 0, 0
    for row in map(json.loads, job.data.read_text().splitlines()):
        prediction = model.predict_one(row["text"])
        if score_of(prediction, found.certificate.signal) > bound.threshold:
            edge, right = prediction.output == row["label"], cloud.truth[row["text"]] == row["label"]
            wins, losses = wins + (edge and not right), losses + (right and not edge)
    assert (found.local.lost, found.local.won) == (losses, wins)
    assert wins > 0
    assert losses > 0
    assert f"{losses} lost, {wins} won: net {wins - losses} won of 400 items" in shown(found)
    dearer = replace(found, local=replace(found.local, lost=49, won=30))
    assert "49 lost, 30 won: net 19 lost of 400 items, 4.75 %" in shown(dearer)
    kept = certify_with_cloud(replace(job, target="accuracy", alpha=0.2, cached=True), cloud, NullProgress())
    assert f"{losses} of 400 items, those won not taken off" in shown(kept)


def shown(found):
    console = Console(width=200, file=io.StringIO())
    console.print(rendering.certified_view(found))
    return " ".join(console.file.getvalue().split())


def test_differences_are_counted_among_the_items_of_listed_groups(world):
    job, cloud = world
    rng = random.Random(3)
    cloud.truth |= {text: "none" for text in cloud.truth if rng.random() < 0.1}
    job = replace(job, alpha=0.2, tuning=None)
    everything = certify_with_cloud(replace(job, out=job.data.with_name("all.json")), cloud, NullProgress())
    assert everything.disagreements > 0
    split = [
        certify_with_cloud(
            replace(job, group_by="region", groups=(name,), out=job.data.with_name(f"{name}.json")),
            cloud,
            NullProgress(),
        )
        for name in ("north", "south")
    ]
    assert sum(found.disagreements for found in split) == everything.disagreements
    assert 0 < split[0].disagreements < everything.disagreements
    assert f"{split[0].disagreements} of {split[0].certificate.bound.n} items" in shown(split[0])


def test_a_life_is_stated(world):
    job, cloud = world
    certificate = certify_with_cloud(replace(job, valid_days=1.5), cloud, NullProgress()).certificate
    assert certificate.created < certificate.expires
    assert certificate.expires.endswith("Z")


def test_items_that_stand_there_twice_are_told_of(world):
    job, cloud = world
    lines = job.data.read_text().splitlines(keepends=True)
    job.data.write_text("".join([*lines, *lines[:3]]))
    notes = Notes()
    certify_with_cloud(job, cloud, notes)
    assert any("3 of the 403 certifying items repeat" in note for note in notes.notes)


def test_the_operating_curve_is_drawn(world, tmp_path):
    pytest.importorskip("matplotlib")
    job, cloud = world
    found = certify_with_cloud(replace(job, plot=tmp_path / "curve.svg"), cloud, NullProgress())
    assert b"<svg" in found.plot.read_bytes()
