"""The plots of a study as inline SVG in the page's colours; methods carry the numbers that they have in the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from geopeft.report.page import Markup, join, tag

WIDTH, HEIGHT = 620, 400
LEFT, TOP, RIGHT, BOTTOM = 64, 16, 22, 48
RADIUS = 10


@dataclass(frozen=True)
class Mark:
    """A method in a plot, at a mean with its deviations.

    Args:
        number: of the method in the table.
        baseline: drawn in another colour.
    """

    number: int
    title: str
    x: float
    y: float
    x_sd: float = 0.0
    y_sd: float = 0.0
    baseline: bool = False

    @property
    def color(self) -> str:
        return "wrong" if self.baseline else "right"


@dataclass(frozen=True)
class _Axes:
    """Ranges of both axes, and where a value lies; x may be logarithmic."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    def at(self, x: float, y: float) -> tuple[float, float]:
        low, high = self.x
        share = (math.log(x / low) / math.log(high / low)) if self.log else (x - low) / (high - low)
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT), TOP + (1 - up) * (HEIGHT - TOP - BOTTOM)


def scatter(marks: Sequence[Mark], x_title: str, y_title: str, diagonal: bool = False) -> Markup:
    """Methods by two figures, with bars of one deviation.

    Args:
        diagonal: both axes have one range, and a line shows where both figures are alike.
    """
    if not marks:
        return Markup("")
    xs = [value for mark in marks for value in (mark.x - mark.x_sd, mark.x + mark.x_sd)]
    ys = [value for mark in marks for value in (mark.y - mark.y_sd, mark.y + mark.y_sd)]
    axes = _Axes(_range([*xs, *ys]), _range([*xs, *ys])) if diagonal else _Axes(_range(xs), _range(ys))
    parts = _frame(axes, x_title, y_title)
    if diagonal:
        parts.append(_line(*axes.at(axes.x[0], axes.y[0]), *axes.at(axes.x[1], axes.y[1]), "axis", "5 5"))
    for mark in marks:
        x, y = axes.at(mark.x, mark.y)
        if mark.x_sd:
            parts.append(_line(*axes.at(mark.x - mark.x_sd, mark.y), *axes.at(mark.x + mark.x_sd, mark.y),
                               f"line-{mark.color}"))  # fmt: skip
        if mark.y_sd:
            parts.append(_line(*axes.at(mark.x, mark.y - mark.y_sd), *axes.at(mark.x, mark.y + mark.y_sd),
                               f"line-{mark.color}"))  # fmt: skip
        parts.append(_disc(mark, x, y, f"{mark.title}: {x_title} {mark.x:.4g}, {y_title} {mark.y:.4g}"))
    told = " ".join(f"{mark.number}: {mark.x:.4g} and {mark.y:.4g}." for mark in marks)
    return _svg(f"{y_title} by {x_title}. {told}", parts)


def lines(groups: Sequence[Sequence[Mark]], x_title: str, y_title: str) -> Markup:
    """A line a method, of its marks by rising x, which is drawn logarithmically."""
    marks = [mark for group in groups for mark in group]
    if not marks:
        return Markup("")
    xs = [mark.x for mark in marks]
    axes = _Axes((min(xs) / 1.2, max(xs) * 1.2), _range([mark.y for mark in marks]), log=True)
    parts = _frame(axes, x_title, y_title)
    for group in groups:
        ordered = sorted(group, key=lambda mark: mark.x)
        where = [axes.at(mark.x, mark.y) for mark in ordered]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
        if len(where) > 1:
            parts.append(tag("polyline", points=points, class_=f"line-{ordered[0].color}", opacity=0.6))
        for mark, (x, y) in zip(ordered, where, strict=True):
            parts.append(_disc(mark, x, y, f"{mark.title}: {x_title} {mark.x:.4g}, {y_title} {mark.y:.4g}"))
    told = " ".join(f"{mark.number}: {mark.y:.4g} at {mark.x:.4g}." for mark in marks)
    return _svg(f"{y_title} by {x_title}. {told}", parts)


def _disc(mark: Mark, x: float, y: float, told: str) -> Markup:
    disc = tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=RADIUS, class_=mark.color)
    number = tag("text", str(mark.number), x=f"{x:.1f}", y=f"{y + 4:.1f}", text_anchor="middle", class_="on")
    return tag("g", tag("title", told), disc, number)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A little wider than the values, so that no disc is cut."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _frame(axes: _Axes, x_title: str, y_title: str) -> list[Markup]:
    parts = []
    for value in _ticks(*axes.y):
        x, y = axes.at(axes.x[0], value)
        parts.append(_line(x, y, WIDTH - RIGHT, y, "rule"))
        parts.append(_text(x - 6, y + 4, f"{value:.4g}", "end", "soft"))
    ends = (axes.x[0] * 1.2, axes.x[1] / 1.2)
    for value in sorted({*ends, math.sqrt(ends[0] * ends[1])}) if axes.log else _ticks(*axes.x):
        x, y = axes.at(value, axes.y[0])
        parts.append(_line(x, TOP, x, y, "rule"))
        parts.append(_text(x, y + 18, f"{value:.3g}", "middle", "soft"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f"translate(14 {middle:.0f}) rotate(-90)"
    parts += [
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_title, "middle"),
        tag("text", y_title, transform=turned, text_anchor="middle"),
    ]
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """About five round values between the ends."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(at * step, 10) for at in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str, class_: str | None = None) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def _line(x0: float, y0: float, x1: float, y1: float, class_: str, dashes: str | None = None) -> Markup:
    ends = {"x1": f"{x0:.1f}", "y1": f"{y0:.1f}", "x2": f"{x1:.1f}", "y2": f"{y1:.1f}"}
    return tag("line", **ends, class_=class_, stroke_dasharray=dashes)


def _svg(label: str, parts: Sequence[Markup]) -> Markup:
    size = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": WIDTH, "height": HEIGHT}
    return tag("svg", join(parts), **size, role="img", aria_label=label)
