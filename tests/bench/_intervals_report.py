"""What the intervals bench found: tables, and a picture of estimates with their intervals against the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FIGURES = {"miou": "mIoU", "overall_accuracy": "overall accuracy"}
WAYS = {"ours": "blocks of ground (GeoPEFT)", "pixels": "random pixels (usual)"}
PLACEMENTS = {
    "scattered": "labels scattered at random",
    "clustered": "labels in 4 to 8 spots",
    "balanced": "as many labels of each class",
}
# Drawn so many times larger, then reduced: Pillow's lines have hard edges.
SCALE = 3
PANEL_PX, TOP_PX, TEXT_PX = (520, 520), 64, 15
INK, GRID, PAPER = (32, 36, 40), (222, 226, 230), (255, 255, 255)
HELD, MISSED, USUAL, BEST = (0, 114, 178), (213, 40, 0), (230, 159, 0), (80, 80, 80)
# Intervals lie over each other: those that hold the truth are pale.
PALE = (186, 212, 232)
LEAST_TRUE = 0.3


@dataclass(frozen=True)
class Row:
    """What many draws say of one figure.

    Args:
        draws: how many there are, and `given`: for how many of them the figure was given.
        holds: share of the given whose interval holds the true value; `over` and `under`: the true value lies below
            or above it.
        truth, estimate, bias, error, width: means; the error is the root of the mean square.
    """

    draws: int
    given: int
    holds: float
    over: float
    under: float
    truth: float
    estimate: float
    bias: float
    error: float
    width: float


def write(draws: Sequence[Any], stem: Path) -> str:
    """Writes the tables and the picture, STEM.md and STEM.png, and gives the tables."""
    text = table(draws)
    stem.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    plot(draws, stem.with_suffix(".png"))
    return text


def summarise(draws: Sequence[Any], way: str, figure: str, truth: str = "final") -> Row | None:
    """Of the draws in which this way gave the figure; None without any.

    Args:
        way: a key of WAYS.
        truth: which of a draw's true values.
    """
    found = [(getattr(one, way)[figure], getattr(one, truth)[figure]) for one in draws if _has(one, way, figure, truth)]
    if not found:
        return None
    value, low, high = np.array([said for said, _ in found]).T
    true = np.array([true for _, true in found])
    # Figures are rounded to five digits.
    over, under = true < low - 1e-5, true > high + 1e-5
    return Row(
        draws=len(draws),
        given=len(found),
        holds=float(1 - (over | under).mean()),
        over=float(over.mean()),
        under=float(under.mean()),
        truth=float(true.mean()),
        estimate=float(value.mean()),
        bias=float((value - true).mean()),
        error=float(np.sqrt(((value - true) ** 2).mean())),
        width=float((high - low).mean()),
    )


def _has(one: Any, way: str, figure: str, truth: str) -> bool:
    """Whether the figure is given, and there is a true value: none where no class can be judged."""
    return figure in getattr(one, way) and math.isfinite(getattr(one, truth).get(figure, math.nan))


def table(draws: Sequence[Any]) -> str:
    """The tables as Markdown."""
    kinds = [kind for kind in PLACEMENTS if any(one.placement == kind for one in draws)]
    by_kind = {PLACEMENTS[kind]: [one for one in draws if one.placement == kind] for kind in kinds}
    parts = ["# Do the intervals hold the true accuracy?", "", *_preface(draws), ""]
    parts += ["## The final map on all unlabelled ground", ""]
    parts += _rows(by_kind, WAYS, "final")
    parts += [
        "",
        "## Against other truths",
        "",
        "The final map where classes come as often as in the labels, and the maps of the folds (three quarters of the "
        "labels taught each) on all unlabelled ground.",
        "",
    ]
    others = {"alike": "final map, classes as often as in the labels", "of_folds": "maps of the folds"}
    head = ["labels", "figure", "truth", "interval holds it", "true", "estimate", "bias"]
    parts += _head(head)
    for title, own in by_kind.items():
        for figure, name in FIGURES.items():
            for truth, words in others.items():
                row = summarise(own, "ours", figure, truth)
                if row:
                    cells = [_percent(row.holds), _points(row.truth), _points(row.estimate), _signed(row.bias)]
                    parts.append(_line(title, name, words, *cells))
    parts += ["", "## Where it is good and where it is not", ""]
    parts += _head(["draws", "figure", "draws with a figure", "interval holds the truth", "bias", "width"])
    for title, chosen in SLICES.items():
        own = [one for one in draws if one.placement != "balanced" and chosen(one)]
        for figure, name in FIGURES.items():
            row = summarise(own, "ours", figure)
            if row:
                cells = [_percent(row.holds), _signed(row.bias), _points(row.width)]
                parts.append(_line(title, name, f"{row.given} of {row.draws}", *cells))
    return "\n".join(parts)


def _preface(draws: Sequence[Any]) -> list[str]:
    true = np.array([one.final["miou"] for one in draws if math.isfinite(one.final["miou"])])
    middle = f"{np.quantile(true, 0.05):.2f} to {np.quantile(true, 0.95):.2f}"
    return [
        "`python3 build.py bench intervals` makes this table. Each draw is a made scene of 512 x 512 px with",
        "known truth everywhere, 2 to 5 classes and 8 to 60 small labels (3 to 8 px). The engine holds whole",
        "blocks of ground out as a fit does, in four folds where labels are few; the classical part stands for",
        "the model. True is what the final map, which all labels teach, reaches on the unlabelled ground, over",
        f"the classes that the figures rest on: mIoU {middle} in nine of ten draws. Figures in points of 100; the",
        "width is that of the 95 % interval.",
        "",
        "Random pixels: a quarter of the labelled pixels held out at random, with the exact binomial interval.",
        "Held-out pixels then lie beside pixels that taught, and a thousand of them count as a thousand.",
    ]


SLICES: Mapping[str, Callable[[Any], bool]] = {
    "8 to 20 labels": lambda one: one.labels <= 20,
    "21 to 40 labels": lambda one: 20 < one.labels <= 40,
    "41 and more labels (one hold-out)": lambda one: one.labels > 40,
    "2 or 3 blocks": lambda one: one.blocks <= 3,
    "4 to 7 blocks": lambda one: 4 <= one.blocks <= 7,
    "8 to 15 blocks": lambda one: 8 <= one.blocks <= 15,
    "16 and more blocks": lambda one: one.blocks >= 16,
    "ground varies over 8 px": lambda one: one.variation_px == 8,
    "ground varies over 16 px": lambda one: one.variation_px == 16,
    "ground varies over 32 px": lambda one: one.variation_px == 32,
}


def _rows(by_kind: Mapping[str, Sequence[Any]], ways: Mapping[str, str], truth: str) -> list[str]:
    head = ["labels", "validation", "figure", "draws with a figure", "interval holds the truth"]
    head += ["truth below / above it", "true", "estimate", "bias", "typical error", "width"]
    lines = _head(head)
    for title, own in by_kind.items():
        for way, words in ways.items():
            for figure, name in FIGURES.items():
                row = summarise(own, way, figure, truth)
                if row is None:
                    continue
                sides = f"{_percent(row.over)} / {_percent(row.under)}"
                cells = [_points(value) for value in (row.truth, row.estimate)] + [_signed(row.bias)]
                cells += [_points(row.error), _points(row.width)]
                given = f"{row.given} of {row.draws}"
                lines.append(_line(title, words, name, given, f"**{_percent(row.holds)}**", sides, *cells))
    return lines


def _head(titles: Sequence[str]) -> list[str]:
    return [_line(*titles), _line(*["---"] * len(titles))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def plot(draws: Sequence[Any], path: Path) -> None:
    """Writes the PNG: for each placement of the labels the true mIoU against what was said of it, with its interval."""
    kinds = [kind for kind in PLACEMENTS if any(one.placement == kind for one in draws)]
    size = (SCALE * PANEL_PX[0] * len(kinds), SCALE * (TOP_PX + PANEL_PX[1]))
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(TEXT_PX * SCALE)
    _legend(pen, font)
    for number, kind in enumerate(kinds):
        own = [one for one in draws if one.placement == kind]
        _panel(pen, (number * PANEL_PX[0], TOP_PX), PLACEMENTS[kind], own, font)
    canvas.resize((canvas.width // SCALE * 2, canvas.height // SCALE * 2), Image.Resampling.LANCZOS).save(path, "PNG")


def _legend(pen: ImageDraw.ImageDraw, font: Any) -> None:
    left = 52.0
    entries = (
        (HELD, "blocks of ground: the 95 % interval holds the truth"),
        (MISSED, "it does not"),
        (USUAL, "random pixels, with their binomial interval"),
    )
    for color, text in entries:
        pen.line([SCALE * left, SCALE * 32, SCALE * (left + 28), SCALE * 32], color, 4 * SCALE)
        _text(pen, (left + 36, 32), text, font, "lm")
        left += 36 + pen.textlength(text, font) / SCALE + 28


def _panel(pen: ImageDraw.ImageDraw, corner: tuple[float, float], title: str, draws: Sequence[Any], font: Any) -> None:
    left, top = corner[0] + 52, corner[1] + 30
    right, bottom = corner[0] + PANEL_PX[0] - 14, corner[1] + PANEL_PX[1] - 48

    def at(true: float, said: float) -> tuple[float, float]:
        along = max(true - LEAST_TRUE, 0) / (1 - LEAST_TRUE)
        return SCALE * (left + (right - left) * along), SCALE * (bottom - (bottom - top) * said)

    _text(pen, (left, corner[1] + 4), f"mIoU as told, {title} ({len(draws)} draws)", font, "la")
    for tick in np.linspace(0, 1, 11).tolist():
        if tick > LEAST_TRUE - 0.01:
            pen.line([*at(tick, 0), *at(tick, 1)], GRID, SCALE)
            _text(pen, (at(tick, 0)[0] / SCALE, bottom + 5), f"{tick:.1f}", font, "ma")
        pen.line([*at(0, tick), *at(1, tick)], GRID, SCALE)
        _text(pen, (left - 6, at(0, tick)[1] / SCALE), f"{tick:.1f}", font, "rm")
    _text(pen, ((left + right) / 2, bottom + 24), "true mIoU of the final map, all unlabelled ground", font, "ma")
    marks = [mark for one in draws for mark in _marks(one)]
    # What misses lies on top of what holds, and the values on top of all intervals.
    for color, true, (_, low, high) in sorted(marks, key=lambda mark: mark[0] != HELD):
        pen.line([*at(true, low), *at(true, high)], PALE if color == HELD else color, SCALE)
    pen.line([*at(LEAST_TRUE, LEAST_TRUE), *at(1, 1)], BEST, SCALE)
    for color, true, (value, _, _) in marks:
        x, y = at(true, value)
        pen.ellipse((x - 2 * SCALE, y - 2 * SCALE, x + 2 * SCALE, y + 2 * SCALE), color)


def _marks(one: Any) -> list[tuple[tuple[int, int, int], float, tuple[float, float, float]]]:
    """Colour, true value, and what was said with its interval, for random pixels and for blocks."""
    found = []
    for way in ("pixels", "ours"):
        if _has(one, way, "miou", "final"):
            said, true = getattr(one, way)["miou"], one.final["miou"]
            holds = said[1] - 1e-5 <= true <= said[2] + 1e-5
            found.append((USUAL if way == "pixels" else HELD if holds else MISSED, true, said))
    return found


def _text(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, font: Any, anchor: str) -> None:
    pen.text((SCALE * place[0], SCALE * place[1]), text, INK, font, anchor=anchor)
