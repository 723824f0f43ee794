"""A plan: the cheapest of recipe and signal that certifies, paid for, saved whole or not at all, and ready to serve."""

import hashlib
import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import numpy_helper

from edgewise import cli
from edgewise.bundle import Bundle, Recipe, attach
from edgewise.config import CostSection, RegionSection, parse_config
from edgewise.contracts import CloudReply, Example, Prediction, Reference
from edgewise.dataset import digest_examples, digest_items, load_examples
from edgewise.edge import EdgeModel
from edgewise.errors import (
    CertificateError,
    ConfigError,
    DataError,
    InputError,
    OutputExistsError,
)
from edgewise.jobs.beside import certificate_beside, load_certificate
from edgewise.jobs.certifying import CertifyJob, certify_with_cloud
from edgewise.jobs.parts import Answered, Part
from edgewise.jobs.planning import PlanJob, plan_with_cloud, plan_with_predictions
from edgewise.jobs.planning.choice import Evidence, _expected, choose, compare
from edgewise.jobs.pricing import Costs
from edgewise.quantize import NullProgress
from edgewise.quantize.joint import JointPlan, Price
from edgewise.quantize.run_folder import write_report
from edgewise.router.certificate import certify, items_needed
from edgewise.router.signals import score_of

ALPHA, DELTA = 0.05, 0.1
REFERENCE = Reference("big", "sha256:cloud")
LABELS = ("grain", "ship", "trade")
PRICES = CostSection(price_per_call=0.002, edge_joules=2.0, price_per_kwh=0.3, price_per_second=0.01)


def _load(path: Path):
    spec = importlib.util.spec_from_file_location("edgewise_report_values", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


values = _load(Path(__file__).parent / "report_values.py")


def texts(words, count, seed):
    """Texts of five words of the labels, each of its own; many are undecided."""
    draw = np.random.default_rng(seed)
    known = [word for label in LABELS for word in words[label]]
    found = set()
    while len(found) < count:
        found.add(" ".join(draw.choice(known, 5)))
    return sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())


def verdict(words, text):
    """What the cloud says: the label of most words; of equals one that hangs on the text alone."""
    counts = {label: sum(word in words[label] for word in text.split()) for label in words}
    best = [label for label in words if counts[label] == max(counts.values())]
    return best[hashlib.sha256(text.encode()).digest()[0] % len(best)]


class Cloud:
    """Says what `verdict` says, and counts; can be told to change after some answers."""

    def __init__(self, words, *, changes_after=10**9):
        self.words, self.asked, self.changes_after = words, [], changes_after

    async def describe(self, *, timeout_s):
        return REFERENCE

    async def predict(self, request, *, timeout_s):
        self.asked.append(request.inputs)
        newer = len(self.asked) > self.changes_after
        return CloudReply(verdict(self.words, request.inputs), Reference("big", "newer") if newer else REFERENCE)

    async def aclose(self):
        pass


def write(path, items):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in items))
    return path


def distorted(tiny_models):
    """The tiny text model as a bad quantization leaves it: surer than it may be, and sure of other things."""
    model = tiny_models.text_model()
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if tensor.name == "head.weight":
            tensor.CopyFrom(numpy_helper.from_array(weights * 8, tensor.name))
        if tensor.name == "embedding.weight":
            noise = np.random.default_rng(5).normal(0, 0.25, weights.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(weights + noise, tensor.name))
    return model


@pytest.fixture(scope="module")
def made(tiny_models, tmp_path_factory):
    """A run of two candidates and one that failed, and both parts of the data. Shared: copy it before planning."""
    import onnx

    root = tmp_path_factory.mktemp("plan")
    shutil.copytree(tiny_models.pack_text(root, recipe=Recipe("fp32")), root / "run" / "candidates" / "fp32")
    (root / "int8").mkdir()
    path = root / "int8" / "model.onnx"
    onnx.save_model(distorted(tiny_models), path)
    source = tiny_models.text_source(path, recipe=Recipe("int8_dynamic"))
    bundle = tiny_models._pack_with_golden(source, list(tiny_models.TEXTS), root / "int8")
    shutil.copytree(bundle, root / "run" / "candidates" / "int8_dynamic")
    ids = {name: Bundle.open(root / "run" / "candidates" / name) for name in ("fp32", "int8_dynamic")}
    candidates = [
        msgspec.structs.replace(
            values.measured(name, ids[name].size_bytes, p50, lost, 0, "text-classification"),
            model_digest=ids[name].model_digest,
        )
        for name, p50, lost in (("fp32", 6.0, 0), ("int8_dynamic", 2.0, 9))
    ]
    report = values.full_report(candidates=(*candidates, values.full_report().candidates[-2]), winner="int8_dynamic")
    write_report(root / "run", report, "digest")
    write(root / "tuning.jsonl", texts(tiny_models.WORDS, 220, 1))
    rest = [text for text in texts(tiny_models.WORDS, 900, 2) if text not in (root / "tuning.jsonl").read_text()]
    write(root / "data.jsonl", rest[:600])
    return root


@pytest.fixture
def job(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    return PlanJob(
        tmp_path / "run",
        made / "data.jsonl",
        tuning=made / "tuning.jsonl",
        alpha=ALPHA,
        delta=DELTA,
        signals=("margin", "max_logit"),
    )


@pytest.fixture
def planned(job, tiny_models):
    def plan(costs=PRICES, **changes):
        return plan_with_cloud(replace(job, **changes), costs, Cloud(tiny_models.WORDS), NullProgress())

    return plan


def evidence_of(job, words, name, signal, data):
    """Scores and disagreements, item by item."""
    model = EdgeModel.load(job.model / "candidates" / name)
    items = [example.input for example in load_examples(data)]
    found = [model.predict_one(item) for item in items]
    scores = np.array([score_of(prediction, signal) for prediction in found])
    return scores, np.array([p.output != verdict(words, item) for p, item in zip(found, items, strict=True)])


def test_only_the_choice_is_certified_and_at_full_delta(planned, job, tiny_models):
    found = planned()
    choice = found.plan.choice
    assert [option for option in found.plan.options if option.certified] == [choice]
    scores, disagree = evidence_of(job, tiny_models.WORDS, choice.recipe, choice.signal, job.data)
    bound = certify(scores, disagree, alpha=ALPHA, delta=DELTA)
    assert 0.2 < bound.local_share < 1
    assert found.certificate.bound == bound
    assert choice.certified.threshold == bound.threshold
    assert found.plan.m == 1
    assert found.plan.outcome == "planned"


def test_a_share_of_delta_for_each_keeps_the_promise_of_all(planned, job, tiny_models):
    found = planned(pay="share")
    plan = found.plan
    assert plan.m == len(plan.options) == 4
    for option in plan.options:
        scores, disagree = evidence_of(job, tiny_models.WORDS, option.recipe, option.signal, job.data)
        bound = certify(scores, disagree, alpha=ALPHA, delta=DELTA / 4)
        assert (option.certified.threshold, option.certified.k) == (bound.threshold, bound.k)
        assert option.certified.delta == DELTA / 4
    chosen = found.certificate.bound
    assert (chosen.threshold, chosen.delta) == (plan.choice.certified.threshold, DELTA)
    low, high = chosen.local_share_interval
    assert high - low == pytest.approx(2 * np.sqrt(np.log(2 * 4 / 0.05) / (2 * chosen.n)), abs=1e-9)
    assert plan.choice.price.total == min(option.price.total for option in plan.options)


def cost_by_hand(share, edge_ms, cloud_ms):
    money = 2.0 / 3.6e6 * 0.3 + (1 - share) * 0.002
    return money + 0.01 * (edge_ms + (1 - share) * cloud_ms) / 1000


def test_costs_are_the_formulas_and_rows_go_by_them(planned):
    regions = {"far": RegionSection(rtt_ms=80, cloud_ms=5), "eu": RegionSection(rtt_ms=20, cloud_ms=10)}
    plan = planned(msgspec.structs.replace(PRICES, regions=regions)).plan
    for option in plan.options:
        share = option.expected_share if option.certified is None else option.certified.local_share
        assert option.price.total == pytest.approx(cost_by_hand(share, option.edge_ms, 30))
    assert plan.cloud_only.total == pytest.approx(0.002 + 0.01 * 0.03)
    assert plan.cost["region"] == "eu"
    totals = [option.price.total for option in plan.options]
    assert totals == sorted(totals)
    expected = {(o.recipe, o.signal): cost_by_hand(o.expected_share, o.edge_ms, 30) for o in plan.options}
    assert (plan.choice.recipe, plan.choice.signal) == min(expected, key=expected.get)


def test_without_costs_fewer_cloud_calls_win(planned):
    plan = planned(CostSection()).plan
    assert plan.choice.expected_share == max(option.expected_share for option in plan.options)
    assert plan.cloud_only.latency_ms > 0
    assert all(option.price.total == 0 for option in plan.options)


def test_dear_waiting_takes_the_faster_recipe(planned):
    plan = planned(CostSection(price_per_second=1.0)).plan
    assert plan.choice.recipe == "int8_dynamic"


def test_a_threshold_tuned_on_fp32_breaks_the_promise_of_the_quantized_model(planned, job, tiny_models):
    plan = planned(CostSection(price_per_second=1.0)).plan
    row = next(practice for practice in plan.practices if practice.name.startswith("threshold tuned on fp32"))
    scores, disagree = evidence_of(job, tiny_models.WORDS, "fp32", row.signal, job.data)
    threshold = certify(scores, disagree, alpha=ALPHA, delta=DELTA).threshold
    scores, disagree = evidence_of(job, tiny_models.WORDS, "int8_dynamic", row.signal, job.data)
    assert row.threshold == threshold
    assert row.risk == np.mean((scores > threshold) & disagree)
    assert row.risk_bound > row.risk > ALPHA
    assert row.local_share == np.mean(scores > threshold)


def test_the_folder_serves_right_away_and_says_all(planned, job, tmp_path):
    found = planned()
    assert found.out == tmp_path / "run.plan"
    assert {path.name for path in found.out.iterdir()} == {
        "bundle", "bundle.certificate.json", "plan.json", "report.html",
    }  # fmt: skip
    certificate = load_certificate(certificate_beside(found.bundle))
    assert certificate == found.certificate
    assert EdgeModel.load(found.bundle).digest == certificate.model_digest == found.plan.choice.model_digest
    assert certificate.signal == found.plan.choice.signal
    assert certificate.data_digest == digest_examples(load_examples(job.data)) == found.plan.certifying.digest
    assert len(certificate.score_deciles) == 9
    stored = msgspec.json.decode((found.out / "plan.json").read_bytes(), type=JointPlan)
    assert stored == found.plan
    for page in (found.out / "report.html", job.model / "report.html"):
        assert 'id="plan"' in page.read_text()
    assert msgspec.json.decode((job.model / "plan.json").read_bytes(), type=JointPlan) == stored


def test_the_cloud_is_asked_once_an_item(job, tiny_models):
    cloud = Cloud(tiny_models.WORDS)
    plan_with_cloud(job, PRICES, cloud, NullProgress())
    items = [example.input for part in (job.tuning, job.data) for example in load_examples(part)]
    assert sorted(cloud.asked) == sorted(items)


def test_recorded_answers_give_the_same_plan(job, tiny_models, tmp_path):
    def recorded(part):
        rows = [
            {"output": verdict(tiny_models.WORDS, example.input), "model": "big", "model_version": "sha256:cloud"}
            for example in load_examples(part)
        ]
        path = tmp_path / f"answers-{part.name}"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    given, asked = replace(job, out=tmp_path / "one"), replace(job, out=tmp_path / "other")
    answers, before = recorded(job.data), recorded(job.tuning)
    found = plan_with_predictions(given, CostSection(), answers, NullProgress(), tuning_predictions=before)
    other = plan_with_cloud(asked, CostSection(), Cloud(tiny_models.WORDS), NullProgress())
    assert found.certificate.bound == other.certificate.bound
    with pytest.raises(ConfigError, match="go together"):
        plan_with_predictions(replace(job, out=tmp_path / "no"), CostSection(), answers, NullProgress())
    with pytest.raises(DataError, match="holds 600 answers for 220 items"):
        plan_with_predictions(
            replace(job, out=tmp_path / "no"), CostSection(), answers, NullProgress(), tuning_predictions=answers
        )


def test_without_a_tuning_part_a_third_is_drawn_for_it(planned, job):
    doubled = job.data.parent / "doubled.jsonl"
    doubled.write_bytes(job.data.read_bytes() + job.data.read_bytes().splitlines(keepends=True)[0] * 30)
    plan = planned(tuning=None, data=doubled).plan
    assert plan.certifying.items == 420
    # Of the repeated item none is left to choose on: the certifying part holds it.
    assert plan.tuning.items < 210


def test_a_single_bundle_is_planned_for_alone(planned, job, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(job.model / "candidates" / "int8_dynamic", alone)
    attach(alone, "measurement", {"part": "tuning", "performance": {"latency": {"p50_ms": 3.25}}})
    found = planned(model=alone, signals=())
    assert {option.recipe for option in found.plan.options} == {"int8_dynamic"}
    assert {option.edge_ms for option in found.plan.options} == {3.25}
    assert len({option.signal for option in found.plan.options}) == len(found.plan.options) > 5
    assert found.plan.practices == ()
    assert found.out == tmp_path / "alone.plan"


def test_a_combined_signal_travels_with_what_was_fitted(planned):
    found = planned(signals=("combined",))
    assert found.certificate.signal == "combined"
    data = (found.out / "bundle.fitted.npz").read_bytes()
    assert found.certificate.fitted_digest == f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize(("pay", "alpha"), [("split", 0.005), ("share", 0.008)])
def test_a_cloud_that_never_agrees_leaves_nothing_local_and_everything_saved(job, pay, alpha):
    cloud = Cloud({"another": ()})
    found = plan_with_cloud(replace(job, pay=pay, alpha=alpha), PRICES, cloud, NullProgress())
    assert found.plan.outcome == "nothing_certifies"
    assert not found.goal_met
    assert found.certificate.bound.local_share == 0
    assert "all goes to the cloud" in found.plan.headline
    assert (found.out / "plan.json").is_file()
    assert EdgeModel.load(found.bundle).digest == found.certificate.model_digest


def test_an_edge_that_costs_more_than_it_saves_is_no_plan(planned):
    found = planned(CostSection(price_per_call=1e-6, edge_joules=1000, price_per_kwh=1.0))
    assert found.plan.outcome == "cloud_is_cheaper"
    assert not found.goal_met


def test_accuracy_is_planned_for_where_there_are_labels(planned, job, tiny_models, tmp_path):
    parts = {}
    for part in (job.tuning, job.data):
        rows = [{"text": e.input, "label": verdict(tiny_models.WORDS, e.input)} for e in load_examples(part)]
        parts[part] = tmp_path / part.name
        parts[part].write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = planned(tuning=parts[job.tuning], data=parts[job.data], target="accuracy")
    assert found.certificate.target == "accuracy"
    assert found.plan.choice.certified is not None
    with pytest.raises(DataError, match="has no labels"):
        planned(target="selective", out=tmp_path / "no")


def test_waiting_has_no_price_where_nothing_times_the_cloud():
    with pytest.raises(ConfigError, match="nothing says how long the cloud takes"):
        Costs(CostSection(price_per_second=0.1))
    assert Costs(CostSection(price_per_call=0.1)).told()["cloud_ms"] is None
    assert Costs(CostSection(price_per_second=0.1), cloud_ms=3.0).told()["cloud_ms"] == 3.0


def test_one_wrong_item_at_the_top_does_not_end_what_is_expected_of_selective_risk(job):
    """The grid begins where the test can pass, here as where it certifies."""
    rng = np.random.default_rng(0)
    scores = rng.random(2000)
    lost = (rng.random(2000) < 0.02 * (scores < 0.5)).astype(float)
    lost[scores.argmax()] = 1.0
    expected = _expected((scores, lost), 2000, replace(job, target="selective", alpha=0.02, delta=0.05))
    assert expected > 0.9


@pytest.mark.parametrize(("pay", "refused"), [("share", True), ("split", False)])
def test_what_a_plan_chose_on_certifies_its_bundle_no_more(planned, job, tiny_models, pay, refused):
    found = planned(pay=pay)
    again = CertifyJob(found.bundle, job.data, ALPHA, DELTA, overwrite=True)
    on_tuning = replace(again, data=job.tuning)
    with pytest.raises(CertificateError, match="A plan chose this bundle"):
        certify_with_cloud(on_tuning, Cloud(tiny_models.WORDS), NullProgress())
    if refused:
        with pytest.raises(CertificateError, match="A plan chose this bundle"):
            certify_with_cloud(again, Cloud(tiny_models.WORDS), NullProgress())
    else:
        certify_with_cloud(again, Cloud(tiny_models.WORDS), NullProgress())


def test_a_plan_that_splits_its_data_refuses_the_whole_of_it_later(planned, job, tiny_models):
    found = planned(tuning=None)
    with pytest.raises(CertificateError, match="A plan chose this bundle"):
        certify_with_cloud(
            CertifyJob(found.bundle, job.data, ALPHA, DELTA, overwrite=True), Cloud(tiny_models.WORDS), NullProgress()
        )


BAD = {
    "overlap": (lambda job: {"tuning": job.data}, CertificateError, "are certifying items"),
    "recipe": (lambda job: {"recipes": ("int3",)}, ConfigError, "no measured candidate 'int3'"),
    "signal": (lambda job: {"signals": ("courage",)}, ConfigError, "'courage'"),
    "payment": (lambda job: {"pay": "credit"}, ConfigError, "'credit'"),
    "target": (lambda job: {"target": "joy"}, ConfigError, "'joy'"),
    "alpha": (lambda job: {"alpha": 1.0}, ConfigError, "alpha is 1.0"),
    "few": (lambda job: {"alpha": 0.001}, CertificateError, f"{items_needed(0.001, DELTA)} are needed"),
    "model": (lambda job: {"model": job.model / "logs"}, InputError, "no run, no checkpoint and no bundle"),
    "out": (lambda job: {"out": job.model}, OutputExistsError, "exists already"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_the_cloud_is_asked(job, tiny_models, tmp_path, case):
    changes, error, says = BAD[case]
    before = sorted(tmp_path.rglob("*"))
    cloud = Cloud(tiny_models.WORDS)
    with pytest.raises(error, match=says):
        plan_with_cloud(replace(job, **changes(job)), PRICES, cloud, NullProgress())
    assert cloud.asked == []
    assert sorted(tmp_path.rglob("*")) == before


def test_what_sharing_adds_to_the_items_needed_is_said(job, tiny_models):
    strict = replace(job, alpha=0.004, pay="share")
    assert items_needed(0.004, DELTA) < 600 < items_needed(0.004, DELTA / 4)
    with pytest.raises(CertificateError) as caught:
        plan_with_cloud(strict, PRICES, Cloud(tiny_models.WORDS), NullProgress())
    assert f"shared by 4 recipes with signals: {items_needed(0.004, DELTA / 4)} are needed" in caught.value.problem
    assert f"{items_needed(0.004, DELTA)} are enough for one: --pay split" in caught.value.remedy


def test_a_run_without_a_measured_candidate_has_nothing_to_plan_with(job, tiny_models):
    report = values.full_report()
    failed = tuple(found for found in report.candidates if found.state != "measured")
    write_report(job.model, values.full_report(candidates=failed, gate=None, winner=failed[0].id), "digest")
    with pytest.raises(InputError, match="No candidate"):
        plan_with_cloud(job, PRICES, Cloud(tiny_models.WORDS), NullProgress())


def test_items_that_chose_a_candidate_do_not_certify_it(job, tiny_models):
    examples = load_examples(job.data)
    payload = {"data_digest": digest_examples(examples), "items_digest": digest_items(examples)}
    attach(job.model / "candidates" / "fp32", "measurement", payload)
    with pytest.raises(CertificateError, match="was used to choose this bundle"):
        plan_with_cloud(job, PRICES, Cloud(tiny_models.WORDS), NullProgress())


def test_a_checkpoint_wants_a_tuning_part(job, tiny_models, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="Give --tuning FILE"):
        plan_with_cloud(
            replace(job, model=tmp_path / "checkpoint", tuning=None),
            PRICES, Cloud(tiny_models.WORDS), NullProgress(),
        )  # fmt: skip


def test_a_cloud_that_changes_leaves_nothing_behind(job, tiny_models, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CertificateError, match="changed from big sha256:cloud to big newer"):
        plan_with_cloud(job, PRICES, Cloud(tiny_models.WORDS, changes_after=700), NullProgress())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"price_per_call": -1.0}, "cost.price_per_call is -1.0"),
        ({"price_per_second": float("nan")}, "cost.price_per_second is nan"),
        ({"regions": {"eu": {"price_per_call": 1.0}}}, "rtt_ms"),
        ({"regions": {"eu": {"rtt_ms": -3.0}}}, "cost.regions.eu.rtt_ms is -3.0"),
        ({"price": 1.0}, "Unknown key `price`"),
    ],
)
def test_costs_that_cannot_be_are_refused(section, says):
    with pytest.raises(ConfigError, match=says):
        parse_config({"cost": section})


def test_power_and_energy_are_one_or_the_other():
    with pytest.raises(ConfigError, match="both given"):
        Costs(CostSection(edge_watts=5.0, edge_joules=1.0))
    watts = Costs(CostSection(edge_watts=10.0, price_per_kwh=0.36))
    assert watts.price(200.0, 1.0).money == pytest.approx(10.0 * 0.2 / 3.6e6 * 0.36)
    assert watts.cloud_only().money == 0


def test_the_command_shows_the_plan_and_its_exit_code_says_whether_there_is_one(
    job, tiny_models, tmp_path, monkeypatch, capsys
):
    rows = {answer: [{"output": answer, "model": "big", "model_version": "1"}] * 600 for answer in ("grain", "nothing")}
    for answer, lines in rows.items():
        (tmp_path / answer).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(answer, *options):
        plan = [
            "plan",
            job.model,
            "--data",
            job.data,
            "--predictions",
            tmp_path / answer,
            "--out",
            tmp_path / f"p{answer}",
        ]
        monkeypatch.setattr("sys.argv", ["edgewise", *map(str, (*plan, "--signals", "margin", *options))])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, capsys.readouterr()

    code, shown = run("nothing")
    assert code == 1
    assert "all goes to the cloud" in shown.out
    assert "threshold tuned on fp32" in shown.out
    code, shown = run("grain", "--alpha", 0.7, "--json")
    assert (code, json.loads(shown.out)["outcome"]) == (0, "planned")
    code, shown = run("grain")
    assert code == 2
    assert "exists already" in shown.err
    assert "Traceback" not in shown.err


def synthetic(draw, n, shift):
    """Answers whose score tells a little of whether the cloud agrees; `shift` is how much."""
    margin = draw.uniform(0, 1, n)
    differs = draw.uniform(size=n) < 0.35 * (1 - margin) ** (1 + shift)
    part = Part(Path("made-up"), [Example("x")] * n)
    logits = np.stack([np.zeros(n), margin * 4], axis=1).astype(np.float32)
    edge = [Prediction(output="b", logits=row) for row in logits]
    return Answered(part, edge, ["a" if other else "b" for other in differs])


@pytest.mark.parametrize("pay", ["split", "share"])
def test_the_choice_keeps_the_promise_as_often_as_it_says(pay):
    """Over many drawn data sets, the true risk of what is chosen exceeds alpha at most in a share of delta of them."""
    job = PlanJob(Path("m"), Path("d"), alpha=0.05, delta=0.2, pay=pay, signals=("max_logit",))
    shifts = (0.0, 0.05, 0.1)
    grid = (np.arange(20_000) + 0.5) / 20_000
    broken = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        found = [
            Evidence(str(shift), "", 1, 1.0, "max_logit", None, synthetic(draw, 60, shift), synthetic(draw, 120, shift))
            for shift in shifts
        ]
        choice = choose(compare(found, job), job, lambda edge_ms, share: Price(1 - share, edge_ms, 1 - share))
        shift = float(choice.pair.evidence.name)
        local = grid * 4 > choice.bound.threshold
        broken += np.mean(0.35 * (1 - grid) ** (1 + shift) * local) > job.alpha
    # Three standard deviations of a binomial of 60 at delta: more would speak against the promise.
    assert broken <= 60 * job.delta + 3 * np.sqrt(60 * job.delta * (1 - job.delta))
