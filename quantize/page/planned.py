"""The section on a joint plan: what it costs to answer more or less at the edge, every option, and other practices.

Owns the words and the picture of a plan. Every figure is read off `plan.json`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from edgewise.quantize.joint import CurvePoint, JointPlan, Option, Outcome, Practice, Price
from edgewise.quantize.page import figures
from edgewise.quantize.page.nodes import Child, Node, node, number
from edgewise.quantize.page.plot import Axis, Curve, Limit, Point, curves, sample
from edgewise.quantize.page.tables import scrolling, sortable

OUTCOMES: dict[Outcome, tuple[str, str]] = {
    "planned": ("✓", "Certified"),
    "nothing_certifies": ("✗", "Nothing certifies"),
    "cloud_is_cheaper": ("✗", "The cloud alone is cheaper"),
}
"""A sign and words for each outcome."""

_CLOUD = "cloud"
_DIGITS = 19
_FARTHEST = 3.0
"""Risks beyond this many times the promised one are not drawn."""


def plan_section(plan: JointPlan, keys: Mapping[str, str]) -> Node:
    """The section of a plan.

    Args:
        plan: The plan.
        keys: What ties each candidate, by its id, to the same one elsewhere on the page.
    """
    return node(
        "section",
        node("h2", "The plan: recipe, signal and threshold together"),
        verdict(plan),
        node("p", plan.headline, class_="sentence"),
        node("p", *_explained(plan), class_="hint"),
        _legend(),
        node("div", *_pictures(plan, keys), class_="plots even"),
        _options(plan, keys),
        _practices(plan, keys),
        id="plan",
    )


def verdict(plan: JointPlan) -> Node:
    """The outcome, as the top of a page shows it."""
    sign, words = OUTCOMES[plan.outcome]
    return node("p", node("span", sign, aria_hidden="true"), f" {words}", class_=f"verdict {plan.outcome}")


def _explained(plan: JointPlan) -> list[Child]:
    cloud, version = plan.reference
    paid = (
        "Chosen on the tuning part; only the choice was put to the test, at δ = "
        if plan.pay == "split"
        else "All were put to the test, each at its share of δ = "
    )
    return [
        "A line shows what a request costs, and what is risked, as a recipe with its best signal answers more at the "
        "edge, seen on the tuning part (",
        number(plan.tuning.items, str(plan.tuning.items)),
        f" items): in full while the risk seen there is at most α = {100 * plan.alpha:g} %, broken beyond. A filled "
        "mark is certified on ",
        number(plan.certifying.items, str(plan.certifying.items)),
        f" other items against {cloud} {version[:_DIGITS]}. {paid}{100 * plan.delta:g} %.",
    ]


def _legend() -> Node:
    return node(
        "ul",
        node("li", sample("star", "none"), "the plan"),
        node("li", sample("circle", "none", "filled"), "certified share"),
        node("li", sample("circle", "plain", "hollow"), "expected share, not put to the test"),
        node("li", sample("diamond", "plain"), "the cloud alone"),
        class_="legend",
    )


def _pictures(plan: JointPlan, keys: Mapping[str, str]) -> Iterator[Node]:
    drawn = [option for option in plan.options if option.curve or option.chosen]
    across = Axis("answered at the edge", "%", 100.0, "", log=False, least_span=10.0, most=100.0)
    what, unit, factor = _measure(plan)
    up = Axis(what, unit, factor, "lower", log=False, least_span=1e-3, most=math.inf)
    lines = [
        _curve(option, plan, keys, lambda point: _height(point.price, point.local_share, plan))
        for option in drawn
        if option.curve
    ]
    points = [
        _cloud(plan),
        *(_point(option, plan, keys, _height(option.price, _share(option), plan)) for option in drawn),
    ]
    yield _figure(f"{across.name} × {what}", curves(what, lines, points, across, up))
    risk = Axis("risk seen", "%", 100.0, "lower", log=False, least_span=0.1, most=100.0)
    lines = [_low(_curve(option, plan, keys, lambda point: point.risk), plan) for option in drawn if option.curve]
    points = [_point(option, plan, keys, plan.alpha) for option in drawn]
    limit = Limit(plan.alpha, f"promised: {figures.percent(plan.alpha)}")
    yield _figure(f"{across.name} × risk", curves("risk", lines, points, across, risk, limit=limit))


def _figure(title: str, picture: Node) -> Node:
    return node("figure", node("figcaption", node("b", title)), picture)


def _curve(option: Option, plan: JointPlan, keys: Mapping[str, str], height: Callable[[CurvePoint], float]) -> Curve:
    kept = _kept(option.curve, plan.alpha)
    corners = [(point.local_share, height(point)) for point in option.curve]
    strong = option.recipe == plan.choice.recipe
    return Curve(keys[option.recipe], corners[:kept], corners[max(kept - 1, 0) :], strong)


def _low(curve: Curve, plan: JointPlan) -> Curve:
    """The curve as far as its risk does not press all that matters together."""
    return replace(curve, broken=[corner for corner in curve.broken if corner[1] <= _FARTHEST * plan.alpha])


def _kept(points: Sequence[CurvePoint], alpha: float) -> int:
    """How many points there are before the first whose risk is above alpha."""
    return next((index for index, point in enumerate(points) if point.risk > alpha), len(points))


def _measure(plan: JointPlan) -> tuple[str, str, float]:
    """What is drawn over the share: its name, its unit, and the factor that takes it there."""
    if plan.priced:
        return "cost of 1,000 requests", "", 1e3
    return ("expected latency", "ms", 1.0) if plan.timed else ("cloud calls of 1,000 requests", "", 1e3)


def _height(price: Price, share: float, plan: JointPlan) -> float:
    if plan.priced:
        return price.total
    return price.latency_ms if plan.timed else 1.0 - share


def _share(option: Option) -> float:
    return option.expected_share if option.certified is None else option.certified.local_share


def _cloud(plan: JointPlan) -> Point:
    height = _height(plan.cloud_only, 0.0, plan)
    told = f"the cloud alone: {_told(plan.cloud_only, plan)}"
    return Point(_CLOUD, "the cloud alone", told, 0.0, height, "diamond", "plain", filled=True, small=False, rank=1)


def _point(option: Option, plan: JointPlan, keys: Mapping[str, str], height: float) -> Point:
    certified = option.certified
    share = _share(option)
    state = "expected" if certified is None else "certified"
    return Point(
        key=keys[option.recipe],
        label=option.recipe,
        told=f"{option.recipe} with {option.signal}: {figures.percent(share)} at the edge, {state}; "
        f"{_told(option.price, plan)}",
        x=share,
        y=height,
        shape="star" if option.chosen else "circle",
        loss="plain" if certified is None else "none",
        filled=certified is not None,
        small=False,
        rank=0 if option.chosen else 2,
    )


def _told(price: Price, plan: JointPlan) -> str:
    cost = f"1,000 requests cost {1e3 * price.total:.4g}"
    return f"{cost}, an answer takes {figures.milliseconds(price.latency_ms)}" if plan.timed else cost


def _options(plan: JointPlan, keys: Mapping[str, str]) -> Node:
    heads = (
        ("size", "Bytes of its bundle"),
        ("p50", "Median latency of a single prediction on the edge"),
        ("AURC", "Area under the risk-coverage curve on the tuning part; smaller is better"),
        ("expected", "Share at the edge that the tuning part leads to expect"),
        ("certified", "Share of the certifying items above the certified threshold"),
        ("at least", "Lower end of the 95 % interval of that share"),
        ("at most", "Upper end of it"),
        ("money, 1,000", "Money that 1,000 requests cost"),
        ("latency", "Expected milliseconds until an answer"),
        ("total, 1,000", "Money and waiting that 1,000 requests cost"),
    )
    ranked = sorted(plan.options, key=lambda option: not option.chosen)
    rows = [_option_row(option, plan, keys) for option in ranked]
    rows.append(
        node("tr", node("th", "the cloud alone", scope="row"), *([node("td")] * 7), *_price(plan.cloud_only, plan))
    )
    return sortable(
        "Every recipe with every signal: the plan, then the cheapest", heads, rows, first="recipe and signal"
    )


def _option_row(option: Option, plan: JointPlan, keys: Mapping[str, str]) -> Node:
    found = option.certified
    ends = [None] * 3 if found is None else [found.local_share, *found.local_share_interval]
    cells = [
        _cell(option.size_bytes, figures.megabytes(option.size_bytes)),
        _cell(option.edge_ms, figures.milliseconds(option.edge_ms)),
        _cell(option.aurc, figures.ratio(option.aurc)),
        *(_cell(v, figures.percent(v)) if v is not None else node("td") for v in (option.expected_share, *ends)),
        *_price(option.price, plan),
    ]
    look = "winner" if option.chosen else None
    return node("tr", _name(option, keys), *cells, data_c=keys[option.recipe], class_=look)


def _name(option: Option, keys: Mapping[str, str]) -> Node:
    link = node("a", option.recipe, href=f"#{keys[option.recipe]}") if keys[option.recipe].startswith("c") else None
    marks = [node("span", option.signal, class_="chip")]
    if option.chosen:
        marks.append(node("span", "the plan", class_="chip winner"))
    if option.certified is not None and option.certified.local_share == 0:
        marks.append(node("span", "nothing local", class_="chip broken"))
    return node(
        "th", node("span", link if link is not None else node("b", option.recipe), *marks, class_="who"), scope="row"
    )


def _price(price: Price, plan: JointPlan) -> Iterator[Node]:
    yield _cell(price.money, f"{1e3 * price.money:.4g}")
    yield _cell(price.latency_ms, figures.milliseconds(price.latency_ms)) if plan.timed else node("td", "unknown")
    yield _cell(price.total, f"{1e3 * price.total:.4g}")


def _cell(value: float, text: str) -> Node:
    return node("td", number(value, text))


def _practices(plan: JointPlan, keys: Mapping[str, str]) -> Node | None:
    if not plan.practices:
        return None
    names = ("another practice", "at the edge", "risk seen", "risk, at most", "promised", "total, 1,000")
    head = node("tr", *(node("th", name, scope="col") for name in names))
    rows = [_practice_row(practice, plan, keys) for practice in plan.practices]
    return node(
        "div",
        node("h3", "Other ways of choosing, on the certifying part"),
        node(
            "p",
            "What each would do with the same items. “Risk, at most” is an upper bound on what the target bounds, with "
            f"{100 * (1 - plan.delta):g} % confidence, for a threshold fixed beforehand; above what is promised, the "
            "promise is not proved; where the risk seen is above it as well, it is broken.",
            class_="hint",
        ),
        scrolling(node("table", node("thead", head), node("tbody", *rows))),
    )


def _practice_row(practice: Practice, plan: JointPlan, keys: Mapping[str, str]) -> Node:
    verdict = practice.verdict(plan.alpha)
    mark = node("span", verdict, class_="chip broken") if verdict in ("broken", "not proved") else None
    limit = practice.risk_bound
    return node(
        "tr",
        node("th", node("span", practice.name, node("span", practice.signal, class_="chip"), mark), scope="row"),
        _cell(practice.local_share, figures.percent(practice.local_share)),
        _cell(practice.risk, figures.percent(practice.risk)),
        node("td") if limit is None else _cell(limit, figures.percent(limit)),
        _cell(plan.alpha, figures.percent(plan.alpha)),
        _cell(practice.price.total, f"{1e3 * practice.price.total:.4g}"),
        data_c=keys[practice.recipe],
    )
