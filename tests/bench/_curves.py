"""Panels of lines with their spread, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

# Drawn so many times larger, then reduced: Pillow's lines have hard edges.
SCALE = 3
PANEL_PX, COLUMNS = (330, 280), 3
INK, GRID, PAPER = (32, 36, 40), (222, 226, 230), (255, 255, 255)
TEXT_PX = 13
Color = tuple[int, int, int]
# x, y and the spread of y.
Points = Sequence[tuple[float, float, float]]


def draw(
    panels: Mapping[str, Mapping[str, Points]], lines: Mapping[str, tuple[str, Color]], x: str, y: str, path: Path
) -> None:
    """Writes a panel for each set of lines, and below them what the lines are.

    Args:
        panels: title -> line -> its points.
        lines: line -> what it is, and its colour.
        x, y: what the axes show.
    """
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = columns * PANEL_PX[0], rows * PANEL_PX[1] + 40
    canvas = Image.new("RGB", (SCALE * size[0], SCALE * size[1]), PAPER)
    pen = ImageDraw.Draw(canvas, "RGBA")
    for number, (title, own) in enumerate(panels.items()):
        corner = number % columns * PANEL_PX[0], number // columns * PANEL_PX[1]
        _panel(pen, corner, title, own, {name: color for name, (_, color) in lines.items()}, (x, y))
    at = 50
    for title, color in lines.values():
        pen.line((SCALE * at, SCALE * (size[1] - 20), SCALE * (at + 30), SCALE * (size[1] - 20)), color, 3 * SCALE)
        _text(pen, (at + 38, size[1] - 20), title, "lm")
        at += 60 + 8 * len(title)
    canvas.resize((size[0] * 2, size[1] * 2), Image.Resampling.LANCZOS).save(path, "PNG")


def _panel(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    title: str,
    lines: Mapping[str, Points],
    colors: Mapping[str, Color],
    axes: tuple[str, str],
) -> None:
    left, top = corner[0] + 44, corner[1] + 50
    right, bottom = corner[0] + PANEL_PX[0] - 16, corner[1] + PANEL_PX[1] - 46
    points = [point for line in lines.values() for point in line]
    ys = _ticks(min(y - s for _, y, s in points), max(y + s for _, y, s in points))
    xs = _ticks(min(x for x, _, _ in points), max(x for x, _, _ in points))

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - xs[0]) / (xs[-1] - xs[0]), (y - ys[0]) / (ys[-1] - ys[0])
        return SCALE * (left + (right - left) * across), SCALE * (bottom - (bottom - top) * up)

    _text(pen, (corner[0] + 12, corner[1] + 10), title, "la", 14)
    _text(pen, (corner[0] + 12, corner[1] + 29), axes[1], "la")
    for tick in ys:
        pen.line((*at(xs[0], tick), *at(xs[-1], tick)), GRID, SCALE)
        _text(pen, (left - 6, at(0, tick)[1] / SCALE), f"{tick:g}", "rm")
    for tick in xs:
        _text(pen, (at(tick, 0)[0] / SCALE, bottom + 5), f"{tick:g}", "ma")
    _text(pen, ((left + right) / 2, bottom + 22), axes[0], "ma")
    for name, line in lines.items():
        edge = [at(x, y + s) for x, y, s in line] + [at(x, y - s) for x, y, s in reversed(line)]
        if len(line) > 1:
            pen.polygon(edge, (*colors[name], 45))
    for name, line in lines.items():
        pen.line([at(x, y) for x, y, _ in line], colors[name], 2 * SCALE, joint="curve")
        for x, y in (at(x, y) for x, y, _ in line):
            pen.ellipse((x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE), colors[name])


def _ticks(low: float, high: float) -> list[float]:
    """Round values that hold the range, three to eight of them."""
    step = next((s for s in (1, 2, 5, 10, 20, 50) if (high - low) / s <= 6), 100)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [float(step * number) for number in range(first, last + 1)]


def _text(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, text_px: int = TEXT_PX) -> None:
    font: Any = ImageFont.load_default(text_px * SCALE)
    pen.text((SCALE * place[0], SCALE * place[1]), text, INK, font, anchor=anchor)
