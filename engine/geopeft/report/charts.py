"""The report's charts as inline SVG, drawn in the page's colours, each with a text for those who do not see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from geopeft.report.page import MINUS, Markup, join, number, percent, signed, tag, thousands
from geopeft.report.scores import Bin, Interval, Moment

# From here on the cells of a confusion matrix are too many for figures in them.
MOST_WRITTEN = 20
LEAST_WEIGHT = 0.01
_LETTER_PX = 7.2


@dataclass(frozen=True)
class Dot:
    """A row of a dot plot; hollow where it is only told beside the others."""

    name: str
    figure: Interval
    color: str = "right"
    hollow: bool = False


def confusion_chart(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Rows are the labels, columns the map; a cell tells and shades its share of the row."""
    count = len(matrix)
    cell = 50 if count <= 8 else 40 if count <= 13 else 36 if count <= MOST_WRITTEN else 14
    longest = _LETTER_PX * min(22, max(map(len, names), default=0))
    left, top = max(16 + longest, 104), 42 + longest * 0.72
    parts = [
        _text(left + count * cell / 2, 13, "mapped as …", "middle", "soft"),
        _text(left - 8, top - 8, "labelled as …", "end", "soft"),
    ]
    for row, counts in enumerate(matrix):
        total, y = sum(counts), top + row * cell
        parts.append(_text(left - 8, y + cell / 2 + 4, _short(names[row]), "end"))
        x = left + row * cell + cell / 2
        turned = f"translate({x + 4:.1f} {top - 8:.1f}) rotate(-45)"
        parts.append(tag("text", _short(names[row]), transform=turned))
        for column, value in enumerate(counts):
            parts.append(_cell(left + column * cell, y, cell, value, total, row == column, names[row], names[column]))
        if cell > 14:
            parts.append(_text(left + count * cell + 8, y + cell / 2 + 4, f"of {thousands(total)}", "start", "soft"))
    for at in range(count):
        x, y = left + at * cell, top + at * cell
        parts.append(tag("rect", x=_at(x), y=_at(y), width=cell, height=cell, fill="none", class_="hit"))
    label = "Confusion matrix: rows are the labels, columns the map. " + " ".join(
        f"{name}: {percent(row[at] / sum(row)) if sum(row) else 'no label'} mapped right."
        for at, (name, row) in enumerate(zip(names, matrix, strict=True))
    )
    return _svg(max(left + count * cell + 90, left + count * cell + left * 0.72), top + count * cell + 6, label, parts)


def _cell(x: float, y: float, side: int, value: int, total: int, hit: bool, truth: str, mapped: str) -> Markup:
    share = value / total if total else 0.0
    told = f"{truth} mapped as {mapped}: {thousands(value)} pixels, {percent(share)}"
    place = {"x": _at(x), "y": _at(y), "width": side, "height": side}
    # A few percent must still be seen, so that the shade grows fast at first.
    shade = tag("rect", **place, class_="right" if hit else "wrong", fill_opacity=f"{share**0.7 * 0.9:.3f}")
    frame = tag("rect", **place, fill="none", class_="cell")
    written: Markup = Markup("")
    if side > 14 and value:
        text = percent(share).replace(" %", "")
        written = _text(x + side / 2, y + side / 2 + 4.5, text, "middle", "on" if share > 0.6 else "")
    return tag("g", tag("title", told), shade, frame, written)


def curve_chart(history: Sequence[Moment], best_step: int | None) -> Markup:
    """Loss of the training, and below it the mIoU on the held-out labels, by step."""
    losses = [(m.step, m.loss) for m in history if m.loss is not None]
    mious = [(m.step, m.miou) for m in history if m.miou is not None]
    shown = [
        (title, points, color)
        for title, points, color in (("loss", losses, "wrong"), ("mIoU on held-out labels", mious, "right"))
        if len(points) > 1
    ]
    if not shown:
        return Markup("")
    last, width, height, left, gap = max(m.step for m in history) or 1, 640, 130, 48, 34
    parts: list[Markup] = []
    for at, (title, points, color) in enumerate(shown):
        top = 24 + at * (height + gap)
        low, high = (0.0, 1.0) if title.startswith("mIoU") else (0.0, max(value for _, value in points) * 1.05 or 1.0)
        parts += _frame(left, top, width - left - 14, height, low, high)
        parts.append(_text(left, top - 8, title, "start"))
        scale_x = (width - left - 14) / last
        where = [(left + step * scale_x, top + height * (1 - (value - low) / (high - low))) for step, value in points]
        parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in where), class_=f"line-{color}"))
        if best_step is not None and 0 < best_step <= last:
            x = left + best_step * scale_x
            parts.append(_line(x, top, x, top + height, "axis", "4 4"))
    bottom = 24 + len(shown) * (height + gap) - gap
    parts += [
        _text(left, bottom + 18, "step 0", "start", "soft"),
        _text(width - 14, bottom + 18, str(last), "end", "soft"),
    ]
    label = f"Curve of the training over {last} steps."
    if mious:
        label += f" mIoU on held-out labels from {number(mious[0][1])} to {number(mious[-1][1])}."
    return _svg(width, bottom + 26, label, parts)


def reliability_chart(bins: Sequence[Bin]) -> Markup:
    """How often the map is right by how sure it is; the area of a dot grows with its share of the pixels."""
    side, left, top = 300, 74, 14
    parts = _frame(left, top, side, side, 0, 1, percents=True)
    parts.append(_line(left, top + side, left + side, top, "axis", "5 5"))
    most = max((found.weight for found in bins), default=1.0)
    where = [(left + found.confidence * side, top + (1 - found.accuracy) * side) for found in bins]
    # A bin of hardly any pixels is a matter of chance, which a line through it would hide.
    line = [place for found, place in zip(bins, where, strict=True) if found.weight >= LEAST_WEIGHT]
    if len(line) > 1:
        parts.append(
            tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in line), class_="line-right", opacity=0.55)
        )
    for found, (x, y) in zip(bins, where, strict=True):
        told = (
            f"{percent(found.confidence)} sure, {percent(found.accuracy)} right, {percent(found.weight)} of the pixels"
        )
        radius = 2.5 + 9 * math.sqrt(found.weight / most)
        dot = tag("circle", cx=_at(x), cy=_at(y), r=_at(radius), class_="right", fill_opacity=0.85)
        parts.append(tag("g", tag("title", told), dot))
    for share in (0.0, 0.5, 1.0):
        parts.append(_text(left + share * side, top + side + 18, f"{share * 100:.0f} %", "middle", "soft"))
    parts.append(_text(left + side / 2, top + side + 38, "how sure the map is", "middle"))
    parts.append(tag("text", "how often it is right", transform=f"translate(12 {top + side / 2}) rotate(-90)",
                     text_anchor="middle"))  # fmt: skip
    label = "Reliability diagram. " + " ".join(
        f"{percent(found.confidence)} sure: {percent(found.accuracy)} right." for found in bins
    )
    return _svg(left + side + 26, top + side + 46, label, parts)


def dot_chart(dots: Sequence[Dot], title: str, low: float, high: float, zero: bool = False) -> Markup:
    """One row for each: a dot at the value, a bar over its interval.

    Args:
        low, high: ends of the axis.
        zero: draws a line at 0, for differences.
    """
    width, row, left, top = 680, 34, 160, 30
    span, scale = width - left - 190, 1 / (high - low)
    height = len(dots) * row
    parts: list[Markup] = [_text(0, 14, title, "start", "soft")]
    for value in _ticks(low, high):
        x = left + (value - low) * scale * span
        parts.append(_line(x, top - 4, x, top + height, "rule"))
        parts.append(_text(x, top + height + 16, _tick(value, zero), "middle", "soft"))
    if zero and low < 0 < high:
        x = left - low * scale * span
        parts.append(_line(x, top - 4, x, top + height, "axis", width=2))
    for at, dot in enumerate(dots):
        y = top + at * row + row / 2
        parts.append(_text(left - 12, y + 4, dot.name, "end"))
        parts += _dot(dot, y, lambda value: left + (min(max(value, low), high) - low) * scale * span)
        parts.append(_text(width - 168, y + 4, _told(dot.figure, with_sign=zero), "start", "soft"))
    label = title + ": " + " ".join(f"{dot.name} {_told(dot.figure, with_sign=zero)}." for dot in dots)
    return _svg(width, top + height + 24, label, parts)


def _dot(dot: Dot, y: float, place: Callable[[float], float]) -> list[Markup]:
    parts = []
    if dot.figure.low is not None and dot.figure.high is not None:
        x0, x1 = place(dot.figure.low), place(dot.figure.high)
        parts.append(_line(x0, y, x1, y, f"line-{dot.color}"))
        parts += [_line(x, y - 5, x, y + 5, f"line-{dot.color}") for x in (x0, x1)]
    if dot.figure.value is not None:
        look = f"hollow line-{dot.color}" if dot.hollow else dot.color
        parts.append(tag("circle", cx=_at(place(dot.figure.value)), cy=_at(y), r=6, class_=look))
    return parts


def _told(figure: Interval, with_sign: bool = False) -> str:
    if figure.value is None:
        return "not known"
    write = signed if with_sign else number
    ends = (
        f" ({write(figure.low)} to {write(figure.high)})" if figure.low is not None and figure.high is not None else ""
    )
    return f"{write(figure.value)}{ends}"


def _tick(value: float, with_sign: bool) -> str:
    return (f"{value:+.2g}" if with_sign and value else f"{value:.2g}").replace("-", MINUS)


def _frame(
    x: float, y: float, width: float, height: float, low: float, high: float, percents: bool = False
) -> list[Markup]:
    """A box with three lines and the values of its vertical axis."""
    parts = []
    for share in (0.0, 0.5, 1.0):
        level = y + height * (1 - share)
        value = low + share * (high - low)
        parts.append(_line(x, level, x + width, level, "rule"))
        text = f"{value * 100:.0f} %" if percents else f"{value:.2g}"
        parts.append(_text(x - 6, level + 4, text, "end", "soft"))
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Round values between the ends."""
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (high - low) / step <= 6 or step == 1.0)
    return [round(at * step, 6) for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _short(name: str) -> str:
    return name if len(name) <= 22 else name[:20] + "…"


def _at(value: float) -> str:
    return f"{value:.1f}"


def _text(x: float, y: float, text: str, anchor: str, class_: str = "") -> Markup:
    return tag("text", text, x=_at(x), y=_at(y), text_anchor=anchor, class_=class_ or None)


def _line(
    x0: float, y0: float, x1: float, y1: float, class_: str, dashes: str | None = None, width: int | None = None
) -> Markup:
    ends = {"x1": _at(x0), "y1": _at(y0), "x2": _at(x1), "y2": _at(y1)}
    return tag("line", **ends, class_=class_, stroke_dasharray=dashes, stroke_width=width)


def _svg(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    box = f"0 0 {width:.0f} {height:.0f}"
    return tag(
        "svg", join(parts), viewBox=box, width=f"{width:.0f}", height=f"{height:.0f}", role="img", aria_label=label
    )
