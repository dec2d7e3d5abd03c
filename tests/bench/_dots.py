"""Panels of dots with their spread, a line for each method, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from _curves import GRID, INK, PAPER, SCALE, Color, _text  # type: ignore[import-not-found]
from PIL import Image, ImageDraw

PANEL_PX, ROW_PX, NAMES_PX, TOP_PX = 560, 30, 230, 60
# Mean and spread, in percent.
Dot = tuple[float, float]


def draw(panels: Mapping[str, Mapping[str, Sequence[Dot]]], kinds: Sequence[tuple[str, Color]], path: Path) -> None:
    """Writes a panel for each set.

    Args:
        panels: title -> method -> a dot for each of `kinds`.
        kinds: what the dots are, and their colours.
    """
    rows = max(len(methods) for methods in panels.values())
    size = PANEL_PX * len(panels), TOP_PX + ROW_PX * (rows + 2)
    canvas = Image.new("RGB", (SCALE * size[0], SCALE * size[1]), PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, (title, methods) in enumerate(panels.items()):
        _panel(pen, number * PANEL_PX, title, methods, [color for _, color in kinds])
    at = 30
    for name, color in kinds:
        _dot(pen, at, size[1] - 16, color)
        _text(pen, (at + 12, size[1] - 16), name, "lm")
        at += 40 + 8 * len(name)
    canvas.resize(size, Image.Resampling.LANCZOS).save(path, "PNG")


def _panel(
    pen: ImageDraw.ImageDraw, left: int, title: str, methods: Mapping[str, Sequence[Dot]], colors: Sequence[Color]
) -> None:
    ends = [mean + side * spread for dots in methods.values() for mean, spread in dots for side in (-1, 1)]
    low, high = 5 * (min(ends) // 5), 5 * (max(ends) // 5 + 1)
    begin, width = left + NAMES_PX, PANEL_PX - NAMES_PX - 30
    bottom = TOP_PX + ROW_PX * len(methods)

    def place(value: float) -> float:
        return begin + (value - low) / (high - low) * width

    _text(pen, (left + 20, 20), title, "lm")
    for tick in range(int(low), int(high) + 1, 5):
        pen.line(_scaled(place(tick), TOP_PX - 12, place(tick), bottom), GRID, SCALE)
        _text(pen, (place(tick), TOP_PX - 22), str(tick), "mm")
    for row, (name, dots) in enumerate(methods.items()):
        y = TOP_PX + ROW_PX * (row + 0.5)
        _text(pen, (begin - 12, y), name, "rm")
        for (mean, spread), color, shift in zip(dots, colors, (-5, 5), strict=True):
            pen.line(_scaled(place(mean - spread), y + shift, place(mean + spread), y + shift), color, 2 * SCALE)
            _dot(pen, place(mean), y + shift, color)


def _dot(pen: ImageDraw.ImageDraw, x: float, y: float, color: Color) -> None:
    pen.ellipse(_scaled(x - 4, y - 4, x + 4, y + 4), color, INK, 1)


def _scaled(*values: float) -> tuple[float, ...]:
    return tuple(SCALE * value for value in values)
