"""The report page: whole, offline, safe against any text in a report, and true to report.json."""

import base64
import hashlib
import importlib.util
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.quantize.joint import JointPlan, Price
from edgewise.quantize.page import render_page, render_plan
from edgewise.quantize.page.front import front_of
from edgewise.quantize.page.nodes import document, node, number, script_data
from edgewise.quantize.page.scale import scale_around
from edgewise.quantize.page.sections import concerns
from edgewise.quantize.report import Report


def _load(path: Path):
    spec = importlib.util.spec_from_file_location("edgewise_report_values", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


values = _load(Path(__file__).parent / "report_values.py")
KINDS = ("text-classification", "image-classification", "token-classification", "feature-extraction", "text-generation")
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Parsed(HTMLParser):
    """Elements in their order, each with its attributes, the text inside it, and its ancestors' attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[dict] = []
        self._open: list[dict] = []
        self.feed(page)
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "inside": list(self._open)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag, **attrs):
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attrs.items()}
        return [
            element
            for element in self.elements
            if element["tag"] == tag and all(element["attrs"].get(name) == value for name, value in wanted.items())
        ]

    def classed(self, name):
        return [element for element in self.elements if name in (element["attrs"].get("class") or "").split()]


def numbers_in(value) -> set[float]:
    if isinstance(value, dict):
        return set().union(*map(numbers_in, value.values()))
    if isinstance(value, list):
        return set().union(*map(numbers_in, value))
    return {float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def embedded(parsed: Parsed) -> bytes:
    (script,) = parsed.all("script", id="report")
    return script["text"].encode()


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_of_a_candidate_stands_in_the_report(kind):
    report = values.full_report(kind)
    parsed = Parsed(render_page(report))
    raw = json.loads(msgspec.json.encode(report))
    for index, candidate in enumerate(raw["candidates"]):
        shown = [
            float(element["attrs"]["value"])
            for element in parsed.all("data")
            if any(around["attrs"].get("data-c") == f"c{index}" for around in element["inside"])
        ]
        assert set(shown) <= numbers_in(candidate)
        assert candidate["state"] != "measured" or len(set(shown)) > 15
    everything = numbers_in(raw)
    assert {float(element["attrs"]["value"]) for element in parsed.all("data")} <= everything


@pytest.mark.parametrize("kind", KINDS)
def test_no_figure_stands_outside_its_mark(kind):
    """Cells and lists of figures hold nothing but marked ones, so that the test above sees all."""
    parsed = Parsed(render_page(values.full_report(kind)))
    cells = [
        e
        for e in parsed.elements
        if e["tag"] == "td" or (e["tag"] == "dd" and e["inside"][-2]["attrs"].get("class") == "figures")
    ]
    assert len(cells) > 100
    for cell in cells:
        marked = [d["text"] for d in parsed.all("data") if any(around is cell for around in d["inside"])]
        assert cell["text"] == "".join(marked)


def test_the_page_carries_the_report_itself():
    report = values.full_report()
    assert msgspec.json.decode(embedded(Parsed(render_page(report))), type=Report) == report


def test_the_same_report_gives_the_same_bytes():
    assert render_page(values.full_report()) == render_page(values.full_report())


@pytest.mark.parametrize("kind", KINDS)
def test_it_refers_to_nothing_outside_itself(kind):
    page = render_page(values.full_report(kind))
    parsed = Parsed(page)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"(?m)^\s*//.*$", "", page))
    assert not re.search(r"@import|url\(|import\(|fetch\(|XMLHttp", page)
    for element in parsed.elements:
        assert element["tag"] not in {"link", "img", "iframe", "object", "base", "form"}
        assert not {"src", "srcset", "action"} & set(element["attrs"])
        assert (element["attrs"].get("href") or "#").startswith("#")
    assert len(page) < 300_000


def test_links_lead_to_places_on_the_page():
    parsed = Parsed(render_page(values.full_report()))
    places = [element["attrs"]["id"] for element in parsed.elements if "id" in element["attrs"]]
    assert len(places) == len(set(places))
    assert {element["attrs"]["href"][1:] for element in parsed.all("a")} <= set(places)


def test_only_its_own_script_may_run():
    parsed = Parsed(render_page(values.full_report()))
    (policy,) = parsed.all("meta", http_equiv="Content-Security-Policy")
    scripts = [element for element in parsed.all("script") if "type" not in element["attrs"]]
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0]["text"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy["attrs"]["content"]
    assert policy["attrs"]["content"].startswith("default-src 'none'")


ATTACK = """</script><script>alert(1)</script><img src=x onerror="alert(2)">'"&amp;<!--"""


def test_no_text_of_a_report_becomes_markup():
    report = values.full_report()
    candidates = tuple(
        msgspec.structs.replace(
            candidate,
            id=f"{ATTACK}{index}",
            recipe=ATTACK,
            options={ATTACK: ATTACK},
            problem=ATTACK,
            facts=(ATTACK,),
            skipped=(ATTACK,),
            model_digest=ATTACK,
        )
        for index, candidate in enumerate(report.candidates)
    )
    words = {name: getattr(report, name) for name in ("checkpoint", "export", "device", "gate")}
    report = msgspec.structs.replace(
        report,
        headline=ATTACK,
        why=ATTACK,
        winner=candidates[4].id,
        candidates=candidates,
        data_digest=ATTACK,
        tools={ATTACK: ATTACK},
        stages=(msgspec.structs.replace(report.stages[0], name=ATTACK),),
        checkpoint=msgspec.structs.replace(words["checkpoint"], name=ATTACK, architecture=ATTACK, digest=ATTACK),
        export=msgspec.structs.replace(words["export"], exporter=ATTACK),
        device=msgspec.structs.replace(words["device"], isa=ATTACK, machine=ATTACK),
        gate=msgspec.structs.replace(words["gate"], sentence=ATTACK),
    )
    parsed = Parsed(render_page(report))
    assert len(parsed.all("script")) == 2
    assert not parsed.all("img")
    assert not [e for e in parsed.elements for name in e["attrs"] if name.startswith("on")]
    assert parsed.all("h1")[0]["text"] == ATTACK
    assert msgspec.json.decode(embedded(parsed), type=Report) == report


@given(st.text())
def test_any_text_survives_as_text(text):
    page = document(node("p", text, title=text))
    page.encode()
    (found,) = Parsed(page).all("p")
    # Parsers turn line ends into \n, and what HTML forbids is shown as a replacement.
    plain = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)
    assert found["text"] == plain
    assert found["attrs"]["title"] == plain


@given(st.recursive(st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=5))
def test_embedded_json_cannot_end_its_element(value):
    text = script_data(msgspec.json.encode(value))
    assert "<" not in text
    assert ">" not in text
    assert json.loads(text) == value


def test_the_headline_and_the_verdict_come_first():
    report = values.full_report(verdict="missed")
    page = render_page(report)
    parsed = Parsed(page)
    assert parsed.all("h1")[0]["text"] == report.headline
    assert parsed.classed("verdict")[0]["text"] == "✗ Goal missed"
    assert parsed.all("title")[0]["text"].startswith("Goal missed")
    assert page.index("</h1>") < page.index("<h2>")


def test_each_plot_shows_every_measured_candidate_with_its_figures_in_words():
    report = values.full_report()
    parsed = Parsed(render_page(report))
    plots = parsed.classed("plot")
    assert [plot["attrs"]["aria-label"] for plot in plots] == ["size × p50", "size × accuracy", "p50 × accuracy"]
    for plot in plots:
        points = [e for e in parsed.classed("point") if any(around is plot for around in e["inside"])]
        assert {point["attrs"]["data-c"] for point in points} == {"c0", "c1", "c2", "c3", "c4"}
        told = {point["attrs"]["data-c"]: point["attrs"]["aria-label"] for point in points}
        assert told["c1"].startswith("int8_dynamic: size 22.9 MB, p50 1.77 ms, p95 2.50 ms")
        assert "drop 0.20 points" in told["c1"]
        assert all(point["attrs"]["tabindex"] == "0" for point in points)


def test_marks_tell_winner_baseline_front_and_loss_apart_without_colour_too():
    parsed = Parsed(render_page(values.full_report()))
    first = parsed.classed("plot")[0]
    look = {}
    for point in parsed.classed("point"):
        if any(around is first for around in point["inside"]):
            (mark,) = [m for m in parsed.classed("mark") if any(around is point for around in m["inside"])]
            look[point["attrs"]["data-c"]] = (mark["attrs"]["d"], mark["attrs"]["class"])
    shapes = {key: shape for key, (shape, _) in look.items()}
    assert shapes["c2"] == shapes["c3"]  # both lose more than allowed
    assert len({shapes[key] for key in ("c0", "c1", "c3", "c4")}) == 4
    assert look["c0"][1] == "mark none filled"
    assert look["c2"][1] == "mark over hollow"
    assert look["c4"][1] == "mark little filled"


def test_candidates_without_figures_are_listed_with_their_reason():
    parsed = Parsed(render_page(values.full_report()))
    (listed,) = parsed.classed("left-out")
    assert "gptqfailedcalibration never reached 2 weights" in listed["text"]
    assert "mixedinapplicableno layer stands out" in listed["text"]
    assert not [point for point in parsed.classed("point") if point["attrs"]["data-c"] in {"c5", "c6"}]


def test_a_candidate_s_card_tells_options_facts_and_skipped_weights():
    parsed = Parsed(render_page(values.full_report()))
    cards = {card["attrs"]["id"]: card for card in parsed.all("details")}
    assert len(cards) == 7
    assert "the exported graph, unchanged" in cards["c0"]["text"]
    assert "/classifier/Gemm" in cards["c4"]["text"]
    assert "block_size64" in cards["c4"]["text"]
    assert "per_channelyes" in cards["c1"]["text"]
    assert [name for name, card in cards.items() if "open" in card["attrs"]] == ["c4"]


def test_a_generator_is_told_by_its_tokens_and_its_likelihood():
    parsed = Parsed(render_page(values.full_report("text-generation")))
    names = [plot["attrs"]["aria-label"] for plot in parsed.classed("plot")]
    assert names == ["size × tokens/s", "size × next-token accuracy", "tokens/s × next-token accuracy", "size × NLL"]
    heads = {head["text"] for head in parsed.all("th")}
    assert {"tokens/s", "first token p50", "NLL", "KLD"} <= heads
    assert "AUROC" not in heads


def test_an_embedder_is_told_by_its_cosine():
    heads = {head["text"] for head in Parsed(render_page(values.full_report("feature-extraction"))).all("th")}
    assert {"cosine", "least cosine"} <= heads
    assert not {"accuracy", "NLL", "tokens/s", "calibration error"} & heads


def test_what_a_report_does_not_hold_is_left_out():
    page = render_page(values.bare_report())
    parsed = Parsed(page)
    heads = {head["text"] for head in parsed.all("th")}
    assert not {"AUROC", "calibration error", "drop, at most", "build"} & heads
    assert parsed.classed("verdict")[0]["text"] == "? Not tested"
    assert not parsed.classed("left-out")
    assert "gate part" not in parsed.all("main")[0]["text"]
    shown = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(None|null|nan)\b", re.sub(r'class="[^"]*"|default-src \'none\'', "", shown))


def test_figures_that_are_not_finite_are_left_out():
    report = values.full_report()
    bad = msgspec.structs.replace(report.candidates[1].quality, auroc=float("nan"), calibration_error=float("inf"))
    candidates = list(report.candidates)
    candidates[1] = msgspec.structs.replace(candidates[1], quality=bad)
    parsed = Parsed(render_page(msgspec.structs.replace(report, candidates=tuple(candidates))))
    assert not [data for data in parsed.all("data") if data["attrs"]["value"] in {"nan", "inf"}]


def test_a_run_that_was_measured_elsewhere_names_both_machines():
    other = msgspec.structs.replace(values.DEVICE, isa="aarch64-dotprod", machine="aarch64")
    report = values.full_report(device=other, built_on=values.DEVICE)
    text = Parsed(render_page(report)).all("section", id="run")[0]["text"]
    assert "Measured on" in text
    assert "aarch64-dotprod" in text
    assert "x86-64-avx512-vnni" in text
    assert any("Built on x86-64-avx512-vnni" in concern for concern in concerns(report))


def test_concerns_name_what_a_headline_leaves_out():
    report = values.full_report(gate_overlap=12, test=values.quality(30, 1, n=700))
    told = list(concerns(report))
    assert told[0].startswith("On the test part")
    assert any("12 items of the gate part" in concern for concern in told)
    assert any("promised to quantize" in concern for concern in told)
    assert told[-1] == "Not measured: gptq, mixed."
    assert list(concerns(values.bare_report())) == []


def test_candidates_that_are_slower_or_larger_than_the_baseline_are_named():
    large = values.measured("big", 99_000_000, 7.7, 0, 0, "text-classification")
    full = values.full_report()
    report = msgspec.structs.replace(full, candidates=(*full.candidates[:5], large))
    assert "No smaller than fp32: big." in list(concerns(report))
    assert "Slower than fp32: big." in list(concerns(report))


def test_many_candidates_still_make_a_page():
    full = values.full_report()
    many = tuple(
        values.measured(f"c{i}", 10_000_000 + i, 1 + i / 100, i % 7, 0, "text-classification", on_front=i == 3)
        for i in range(80)
    )
    parsed = Parsed(render_page(msgspec.structs.replace(full, candidates=(*full.candidates, *many))))
    assert len(parsed.all("details")) == 87
    assert len([row for row in parsed.classed("row") if "tuning" in row["text"]]) <= 20


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1))
def test_the_front_is_what_nothing_dominates(pairs):
    def dominated(pair):
        return any(a <= pair[0] and b <= pair[1] and (a, b) != pair for a, b in pairs)

    assert list(front_of(pairs)) == sorted({pair for pair in pairs if not dominated(pair)})


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=8), st.booleans())
def test_an_axis_holds_its_values_and_few_round_ticks(numbers, log):
    scale = scale_around(numbers, 50, 400, log=log, least_span=1.5)
    places = [scale.position(value) for value in sorted(numbers)]
    assert all(50 < place < 400 for place in places)
    assert places == sorted(places)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 22
    assert all(scale.low <= tick <= scale.high for tick in ticks[1:-1])


def test_a_figure_keeps_its_exact_value():
    assert document(node("p", number(0.1 + 0.2, "0.30"))).count('value="0.30000000000000004"') == 1


def test_what_a_search_explored_is_small_without_a_label_and_off_the_line():
    full = values.full_report()
    explored = msgspec.structs.replace(full.candidates[1], id="tried", state="explored", on_front=False)
    idle = msgspec.structs.replace(explored, id="idle", performance=None, quality=None, problem="dominated early")
    parsed = Parsed(render_page(msgspec.structs.replace(full, candidates=(*full.candidates, explored, idle))))
    marks = [m for m in parsed.classed("mark") if any(a["attrs"].get("data-c") == "c7" for a in m["inside"])]
    assert len(marks) == 3
    assert all("small" in mark["attrs"]["class"].split() for mark in marks)
    assert "tried" not in {label["text"] for label in parsed.all("text")}
    assert "idleexploreddominated early" in parsed.classed("left-out")[0]["text"]
    assert list(concerns(full))[-1] == "Not measured: gptq, mixed."


def within(element, other) -> bool:
    return any(around is other for around in element["inside"])


PLANNED = {
    "with its run": lambda plan: render_page(values.full_report(), plan),
    "alone": render_plan,
}


@pytest.mark.parametrize("render", PLANNED.values(), ids=PLANNED)
def test_every_figure_of_a_plan_stands_in_it(render):
    plan = values.full_plan()
    parsed = Parsed(render(plan))
    (section,) = parsed.all("section", id="plan")
    shown = [e for e in parsed.all("data") if within(e, section)]
    assert len(shown) > 40
    assert {float(e["attrs"]["value"]) for e in shown} <= numbers_in(json.loads(msgspec.json.encode(plan)))
    (script,) = parsed.all("script", id="plan-data")
    assert msgspec.json.decode(script["text"].encode(), type=JointPlan) == plan
    for cell in (e for e in parsed.all("td") if within(e, section)):
        assert cell["text"] == "".join(d["text"] for d in shown if within(d, cell))


@pytest.mark.parametrize("render", PLANNED.values(), ids=PLANNED)
def test_the_picture_of_a_plan_tells_the_promised_from_what_is_not(render):
    parsed = Parsed(render(values.full_plan()))
    marks = {
        e["inside"][-1]["attrs"]["aria-label"]: e["attrs"]["class"]
        for e in parsed.classed("mark")
        if "point" in e["inside"][-1]["attrs"].get("class", "")
        and any(around["attrs"].get("id") == "plan" for around in e["inside"])
    }
    assert {("certified" in told, "filled" in look) for told, look in marks.items() if "alone" not in told} == {
        (True, True), (False, False),
    }  # fmt: skip
    full, broken = (
        [e for e in parsed.classed(look) if e["inside"][-1]["attrs"].get("class") == "curves"]
        for look in ("full", "broken")
    )
    # Two pictures with a line for each recipe; the last corner in full is the first of the broken rest.
    assert len(full) == len(broken) == 6
    for kept, rest in zip(full, broken, strict=True):
        assert kept["attrs"]["d"].split("L")[-1].lstrip("M") == rest["attrs"]["d"].split("L")[0].lstrip("M")
    assert len(parsed.classed("strong")) == 4


@pytest.mark.parametrize("render", PLANNED.values(), ids=PLANNED)
def test_a_page_with_a_plan_is_safe_and_whole(render):
    hostile = '<script>alert(1)</script>"&\u202e'
    plan = values.full_plan(headline=hostile, model=hostile, reference=(hostile, hostile))
    page = render(plan)
    assert hostile not in page
    parsed = Parsed(page)
    assert hostile in parsed.classed("sentence")[0]["text"]
    places = {element["attrs"]["id"] for element in parsed.elements if "id" in element["attrs"]}
    assert {element["attrs"]["href"][1:] for element in parsed.all("a")} <= places
    assert len(page) < 300_000


def test_what_a_plan_is_not_is_said():
    for outcome, words in (("nothing_certifies", "Nothing certifies"), ("cloud_is_cheaper", "The cloud alone")):
        parsed = Parsed(render_plan(values.full_plan(outcome=outcome)))
        assert words in parsed.classed(outcome)[0]["text"]
    parsed = Parsed(render_plan(values.full_plan()))
    assert [e["text"] for e in parsed.classed("broken") if "chip" in e["attrs"]["class"]] == [
        "nothing local", "broken",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("risk", "limit", "verdict"),
    [(0.004, 0.009, "kept"), (0.008, 0.013, "not proved"), (0.012, 0.02, "broken"), (0.5, None, "")],
)
def test_a_promise_is_kept_or_not_proved_or_broken(risk, limit, verdict):
    practice = msgspec.structs.replace(values.full_plan().practices[0], risk=risk, risk_bound=limit)
    assert practice.verdict(0.01) == verdict


def test_a_plan_does_not_invent_the_time_of_a_cloud_that_was_not_timed():
    plan = values.full_plan(cost={"price_per_call": 0.0031, "region": "as measured", "rtt_ms": None, "cloud_ms": None})
    assert any(e["text"] == "unknown" for e in Parsed(render_plan(plan)).all("td"))
    assert "an answer takes" not in render_plan(plan)
    assert "an answer takes" in render_plan(values.full_plan())


def test_a_plan_in_which_nothing_costs_anything_shows_the_time():
    free = Price(0.0, 12.0, 0.0)
    plan = values.full_plan(cloud_only=free)
    plan = msgspec.structs.replace(
        plan,
        options=tuple(
            msgspec.structs.replace(
                option, price=free, curve=tuple(msgspec.structs.replace(point, price=free) for point in option.curve)
            )
            for option in plan.options
        ),
    )
    titles = [e["text"] for e in Parsed(render_plan(plan)).all("figcaption")]
    assert titles == ["answered at the edge × expected latency", "answered at the edge × risk"]
