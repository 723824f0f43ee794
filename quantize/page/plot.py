"""Plots as SVG: axes, marks, the line of a front or several curves, labels where they fit.

Owns where things stand in the picture. What the marks mean is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgewise.quantize.page.front import Loss, front_of
from edgewise.quantize.page.nodes import Node, node
from edgewise.quantize.page.scale import Scale, scale_around

Shape: TypeAlias = Literal["circle", "triangle", "diamond", "star"]

WIDTH, HEIGHT = 420, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 404, 14, 284
_LETTER, _LINE, _LONGEST = 6.1, 13.0, 26
_LEVEL_NAME = 130.0

# Where a label may stand beside its mark, the best place first: anchor, pixels to the right, pixels down.
_SPOTS = (
    ("start", 11.0, 4.0),
    ("end", -11.0, 4.0),
    ("middle", 0.0, -11.0),
    ("middle", 0.0, 20.0),
    ("start", -7.0, -11.0),
    ("start", -7.0, 20.0),
    ("end", 7.0, -11.0),
    ("end", 7.0, 20.0),
    ("start", 8.0, -24.0),
    ("start", 8.0, 33.0),
)

_SHAPES: dict[Shape, str] = {
    "circle": "M-5.5,0a5.5,5.5 0 1,0 11,0a5.5,5.5 0 1,0 -11,0z",
    "triangle": "M-6,-5L6,-5L0,6z",
    "diamond": "M0,-7.5L7.5,0L0,7.5L-7.5,0z",
    "star": "M0,-10L2.6,-3.4L9.5,-3.1L4.1,1.3L5.9,8.1L0,4.2L-5.9,8.1L-4.1,1.3L-9.5,-3.1L-2.6,-3.4z",
}

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Attributes:
        name: Its figure.
        unit: Of its ticks; "" where there is none.
        factor: From the figure's value to the ticks' unit.
        better: Which way is better.
        log: Whether equal distances are equal ratios.
        least_span: What it spans at least, in its unit; a ratio where it is logarithmic.
        most: The largest value a tick may have, in its unit.
    """

    name: str
    unit: str
    factor: float
    better: str
    log: bool
    least_span: float
    most: float

    @property
    def title(self) -> str:
        """The name, the unit, and which way is better, where one is."""
        return (
            f"{self.name}{f' ({self.unit})' if self.unit else ''}{f', {self.better} is better' if self.better else ''}"
        )


@dataclass(frozen=True)
class Point:
    """A mark.

    Attributes:
        key: What ties it to the same candidate elsewhere on the page.
        label: Its name.
        told: Its figures in words, for who does not see the picture.
        x: Value on the x axis, in the figure's own unit.
        y: Value on the y axis.
        shape: Its shape.
        loss: Its colour; "plain" is that of no drop.
        filled: Whether it is filled.
        small: Whether it is small, pale and without a label.
        rank: Labels are placed in this order, while there is room.
    """

    key: str
    label: str
    told: str
    x: float
    y: float
    shape: Shape
    loss: Loss | Literal["plain"]
    filled: bool
    small: bool
    rank: int


@dataclass(frozen=True)
class Curve:
    """A line through the plot, drawn in full up to a place and broken beyond it.

    Attributes:
        key: What ties it to the same candidate elsewhere on the page.
        full: Its corners up to there, in the axes' own values.
        broken: Its corners from there on.
        strong: Whether it stands out.
    """

    key: str
    full: Sequence[tuple[float, float]]
    broken: Sequence[tuple[float, float]]
    strong: bool


@dataclass(frozen=True)
class Limit:
    """A level of the y axis that something must not fall below, and its name."""

    y: float
    name: str


def scatter(
    title: str,
    points: Sequence[Point],
    x: Axis,
    y: Axis,
    *,
    line: Collection[Point],
    limit: Limit | None = None,
    floor: float | None = None,
) -> Node:
    """The plot.

    Args:
        title: What it shows, for who does not see it.
        points: At least one.
        x: The horizontal axis.
        y: The vertical axis.
        line: Those of the points that the front's line may run through.
        limit: A level to draw.
        floor: Values of y below this one are drawn at the bottom edge, lest they press all others together.
    """
    shown = [point.y if floor is None else max(point.y, floor) for point in points]
    levels = [*shown, *([limit.y] if limit is not None else [])]
    across = scale_around(
        [p.x * x.factor for p in points], _LEFT, _RIGHT, log=x.log, least_span=x.least_span, margin=0.14
    )
    up = scale_around([v * y.factor for v in levels], _BOTTOM, _TOP, log=y.log, least_span=y.least_span, margin=0.12)
    places = [(across.position(p.x * x.factor), up.position(v * y.factor)) for p, v in zip(points, shown, strict=True)]
    corners = [place for point, place in zip(points, places, strict=True) if point in line]
    level = up.position(limit.y * y.factor) if limit is not None else None
    return node(
        "svg",
        _grid(across, up, x, y),
        _level(limit.name, level) if limit is not None and level is not None else None,
        _line(corners, x, y),
        node("g", *_marks(points, places), class_="marks"),
        node("g", *_labels(points, places, level), class_="labels"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="group",
        aria_label=title,
        class_="plot",
    )


def curves(
    title: str, lines: Sequence[Curve], points: Sequence[Point], x: Axis, y: Axis, *, limit: Limit | None = None
) -> Node:
    """A plot of lines with marks on them.

    Args:
        title: What it shows, for who does not see it.
        lines: The lines.
        points: The marks, at least one.
        x: The horizontal axis.
        y: The vertical axis.
        limit: A level to draw.
    """
    corners = [corner for line in lines for corner in (*line.full, *line.broken)]
    seen = [*corners, *((point.x, point.y) for point in points)]
    across = scale_around(
        [v * x.factor for v, _ in seen], _LEFT, _RIGHT, log=x.log, least_span=x.least_span, margin=0.03
    )
    up = scale_around([v * y.factor for _, v in seen], _BOTTOM, _TOP, log=y.log, least_span=y.least_span, margin=0.12)

    def place(value: tuple[float, float]) -> tuple[float, float]:
        return across.position(value[0] * x.factor), up.position(value[1] * y.factor)

    places = [place((point.x, point.y)) for point in points]
    level = up.position(limit.y * y.factor) if limit is not None else None
    drawn = sorted(lines, key=lambda line: line.strong)
    return node(
        "svg",
        _grid(across, up, x, y),
        _level(limit.name, level) if limit is not None and level is not None else None,
        node("g", *(part for line in drawn for part in _curve(line, place)), class_="curves"),
        node("g", *_marks(points, places), class_="marks"),
        node("g", *_labels(points, places, level), class_="labels"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="group",
        aria_label=title,
        class_="plot",
    )


def _curve(line: Curve, place: Callable[[tuple[float, float]], tuple[float, float]]) -> Iterable[Node]:
    for corners, look in ((line.full, "full"), (line.broken, "broken")):
        if len(corners) > 1:
            path = "L".join(f"{left:.1f},{top:.1f}" for left, top in map(place, corners))
            yield node("path", d=f"M{path}", data_c=line.key, class_=f"{look} strong" if line.strong else look)


def sample(shape: Shape, *classes: str) -> Node:
    """A mark alone, for a legend."""
    mark = node("path", d=_SHAPES[shape], class_=" ".join(["mark", *classes]))
    return node("svg", mark, viewBox="-11 -11 22 22", class_="sample", aria_hidden="true")


def _grid(across: Scale, up: Scale, x: Axis, y: Axis) -> Node:
    grid = node("g", class_="axes", aria_hidden="true")
    for value in across.ticks(x.most):
        at = across.position(value)
        grid.append(node("line", x1=at, x2=at, y1=float(_TOP), y2=float(_BOTTOM)))
        grid.append(node("text", f"{value:g}", x=at, y=_BOTTOM + 17.0, text_anchor="middle"))
    for value in up.ticks(y.most):
        at = up.position(value)
        grid.append(node("line", x1=float(_LEFT), x2=float(_RIGHT), y1=at, y2=at))
        grid.append(node("text", f"{value:g}", x=_LEFT - 7.0, y=at + 4, text_anchor="end"))
    middle = (_LEFT + _RIGHT) / 2
    grid.append(node("text", x.title, x=middle, y=HEIGHT - 9.0, text_anchor="middle", class_="name"))
    turned = f"translate(13 {(_TOP + _BOTTOM) / 2:.0f}) rotate(-90)"
    grid.append(node("text", y.title, transform=turned, text_anchor="middle", class_="name"))
    return grid


def _level(name: str, at: float) -> Node:
    return node(
        "g",
        node("line", x1=float(_LEFT), x2=float(_RIGHT), y1=at, y2=at),
        node("text", name, x=_RIGHT - 3.0, y=at + 12, text_anchor="end"),
        class_="limit",
    )


def _line(places: Sequence[tuple[float, float]], x: Axis, y: Axis) -> Node | None:
    """Steps through the front: at each x the best y to be had at no worse an x."""
    across, upward = (1 if x.better == "lower" else -1), (1 if y.better == "higher" else -1)
    pairs = front_of([(across * left, upward * top) for left, top in places])
    corners = [(across * first, upward * second) for first, second in pairs]
    if len(corners) < 2:
        return None
    start, *rest = corners
    steps = "".join(f"H{left:.1f}V{top:.1f}" for left, top in rest)
    return node("path", d=f"M{start[0]:.1f},{start[1]:.1f}{steps}", class_="front")


def _marks(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> Iterable[Node]:
    # What matters most is drawn last, on top.
    for point, (left, top) in sorted(zip(points, places, strict=True), key=lambda pair: -pair[0].rank):
        classes = f"mark {point.loss} {'filled' if point.filled else 'hollow'}{' small' if point.small else ''}"
        yield node(
            "g",
            node("title", point.told),
            node("circle", r=14.0, class_="target"),
            node("path", d=_SHAPES[point.shape], class_=classes),
            transform=f"translate({left:.1f} {top:.1f})",
            data_c=point.key,
            tabindex="0",
            role="img",
            aria_label=point.told,
            class_="point",
        )


def _labels(points: Sequence[Point], places: Sequence[tuple[float, float]], level: float | None) -> Iterable[Node]:
    taken: list[Box] = [(left - 8, top - 8, left + 8, top + 8) for left, top in places]
    if level is not None:
        taken.append((_RIGHT - _LEVEL_NAME, level, _RIGHT, level + _LINE))
    named = [(point, place) for point, place in zip(points, places, strict=True) if not point.small]
    for point, (left, top) in sorted(named, key=lambda pair: pair[0].rank):
        name = point.label if len(point.label) <= _LONGEST else f"{point.label[: _LONGEST - 1]}…"
        width = _LETTER * len(name)
        for anchor, aside, below in _SPOTS:
            at, base = left + aside, top + below
            start = at - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (start, base - _LINE + 3, start + width, base + 3)
            if _inside(box) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                yield node("text", name, x=at, y=base, text_anchor=anchor, data_c=point.key)
                break


def _inside(box: Box) -> bool:
    return box[0] >= _LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= _BOTTOM


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
