"""The plot of the few-labels bench: labels per class against mIoU, one line a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Drawn so many times larger, then reduced: Pillow's lines have hard edges.
SCALE = 3
MAIN_PX, SMALL_PX = (640, 560), (300, 285)
COLUMNS = 3
INK, GRID, PAPER = (32, 36, 40), (222, 226, 230), (255, 255, 255)
# Rivals in greys and muted hues, ours in strong ones; no pair differs by red against green alone.
COLORS = {
    "forest": (150, 150, 150),
    "forest_texture": (80, 80, 80),
    "unet": (204, 121, 167),
    "frozen": (86, 180, 233),
    "full": (0, 114, 178),
    "tier1": (240, 200, 40),
    "tier2": (230, 159, 0),
    "tier3": (0, 158, 115),
    "default": (213, 40, 0),
    "box": (120, 80, 200),
    "box_random": (190, 170, 230),
}
Line = list[tuple[int, float]]


def draw(scores: Any, sizes: Sequence[str], titles: Mapping[str, str], path: Path) -> None:
    """Writes the PNG: the mean over sets on the left with the legend, a panel for each set on the right.

    Args:
        scores: a `Scores` of _few_labels_report.
        sizes: labels per class, in the order of the axis.
        titles: of the methods.
    """
    rows = max(1, math.ceil(len(scores.sets) / COLUMNS))
    columns = min(COLUMNS, len(scores.sets))
    legend_px = 26 * len(scores.methods) + 20
    height = max(MAIN_PX[1] + legend_px, rows * SMALL_PX[1])
    canvas = Image.new("RGB", (SCALE * (MAIN_PX[0] + columns * SMALL_PX[0]), SCALE * height), PAPER)
    pen = ImageDraw.Draw(canvas)
    everywhere = {m: _line(sizes, [scores.over_sets(size, m)[0] for size in sizes]) for m in scores.methods}
    _panel(pen, (0, 0), MAIN_PX, "mIoU in %, mean over the sets", sizes, everywhere, 15)
    for number, name in enumerate(scores.sets):
        corner = (MAIN_PX[0] + number % COLUMNS * SMALL_PX[0], number // COLUMNS * SMALL_PX[1])
        cells = {m: [scores.cell(name, size, m) for size in sizes] for m in scores.methods}
        lines = {m: _line(sizes, [float(np.mean(c)) if c else math.nan for c in own]) for m, own in cells.items()}
        _panel(pen, corner, SMALL_PX, name, sizes, lines, 12)
    _legend(pen, (60, MAIN_PX[1] + 10), [(m, titles[m]) for m in scores.methods])
    canvas.resize((canvas.width // SCALE * 2, canvas.height // SCALE * 2), Image.Resampling.LANCZOS).save(path, "PNG")


def _line(sizes: Sequence[str], values: Sequence[float]) -> Line:
    return [(at, value) for at, value in zip(range(len(sizes)), values, strict=True) if math.isfinite(value)]


def _panel(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    size_px: tuple[int, int],
    title: str,
    sizes: Sequence[str],
    lines: Mapping[str, Line],
    text_px: int,
) -> None:
    """Axes, and a line with its points for each method; the default lies on top."""
    left, top = corner[0] + 3 * text_px, corner[1] + 2 * text_px + 6
    right, bottom = corner[0] + size_px[0] - 12, corner[1] + size_px[1] - 3 * text_px
    font = ImageFont.load_default(text_px * SCALE)
    _text(pen, (left, corner[1] + 8), title, font, "la")
    values = [value for line in lines.values() for _, value in line]
    if not values:
        return
    ticks = _ticks(min(values), max(values))

    def at(position: float, value: float) -> tuple[float, float]:
        x = left + (right - left) * (position + 0.25) / (len(sizes) - 0.5)
        return SCALE * x, SCALE * (bottom - (bottom - top) * (value - ticks[0]) / (ticks[-1] - ticks[0]))

    for tick in ticks:
        level = at(0, tick)[1]
        pen.line((SCALE * left, level, SCALE * right, level), GRID, SCALE)
        _text(pen, (left - 6, level / SCALE), f"{tick:g}", font, "rm")
    for position, size in enumerate(sizes):
        _text(pen, (at(position, ticks[0])[0] / SCALE, bottom + 5), size, font, "ma")
    _text(pen, ((left + right) / 2, bottom + text_px + 9), "labels per class", font, "ma")
    for method in sorted(lines, key="default".__eq__):
        points = [at(*point) for point in lines[method]]
        width = SCALE * (3 if method == "default" else 2) * text_px // 15
        if len(points) > 1:
            pen.line(points, COLORS[method], width, joint="curve")
        for x, y in points:
            pen.ellipse((x - 1.6 * width, y - 1.6 * width, x + 1.6 * width, y + 1.6 * width), COLORS[method])


def _ticks(low: float, high: float) -> list[float]:
    """Round values that hold the range, four to eight of them."""
    step = next((s for s in (1, 2, 5, 10) if (high - low) / s <= 6), 20)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [float(step * number) for number in range(first, last + 1)]


def _legend(pen: ImageDraw.ImageDraw, corner: tuple[int, int], entries: Sequence[tuple[str, str]]) -> None:
    font = ImageFont.load_default(15 * SCALE)
    for number, (method, title) in enumerate(entries):
        y = corner[1] + 26 * number + 10
        pen.line((SCALE * corner[0], SCALE * y, SCALE * (corner[0] + 36), SCALE * y), COLORS[method], 4 * SCALE)
        _text(pen, (corner[0] + 48, y), title, font, "lm")


def _text(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, font: Any, anchor: str) -> None:
    pen.text((SCALE * place[0], SCALE * place[1]), text, INK, font, anchor=anchor)
