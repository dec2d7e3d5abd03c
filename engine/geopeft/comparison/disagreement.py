"""Where two maps disagree: how much of the area, in which pairs of classes, and the raster that shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyproj import Transformer

from geopeft.class_raster import NODATA, class_raster
from geopeft.comparison.class_maps import MapReader, UnitedClass, strips
from geopeft.data.label_classes import IGNORE, choose_color
from geopeft.data.raster import RasterInfo, apply_affine
from geopeft.errors import RasterError
from geopeft.events import Reporter

AGREE, MOST_PAIRS = 1, 20
OTHER = AGREE + MOST_PAIRS + 1
_AGREE_COLOR, _OTHER_COLOR = "#ececec", "#4d4d4d"


@dataclass(frozen=True)
class Pairs:
    """What is counted where both maps have a class.

    Args:
        pixels: (K, K) int64, class in the one by class in the other.
        area: (K, K) the same weighted by the pixels' area on the ground, up to a factor.
    """

    pixels: np.ndarray
    area: np.ndarray


def count_pairs(one: MapReader, other: MapReader, grid: RasterInfo, num_classes: int, reporter: Reporter) -> Pairs:
    """Counts the pairs of classes on a grid.

    Raises:
        RasterError: MAPS_NO_OVERLAP where there is no pixel at which both have a class.
    """
    pixels, area = np.zeros(num_classes**2, np.int64), np.zeros(num_classes**2)
    windows = strips((0, 0, grid.height, grid.width))
    for number, window in enumerate(windows):
        first, second = one.read(0, window), other.read(0, window)
        both = (first != IGNORE) & (second != IGNORE)
        pairs = first[both].astype(np.int64) * num_classes + second[both]
        rows = np.nonzero(both)[0]
        weights = _row_weights(grid, int(window.row_off), first.shape[0])
        pixels += np.bincount(pairs, minlength=num_classes**2)
        area += np.bincount(pairs, weights[rows], num_classes**2)
        reporter.progress("compare", number + 1, 2 * len(windows))
    if not pixels.any():
        raise no_overlap()
    shape = (num_classes, num_classes)
    return Pairs(pixels.reshape(shape), area.reshape(shape))


def no_overlap() -> RasterError:
    """For two maps that have no pixel in common."""
    message = "The two maps do not overlap: there is no place where both have a class."
    return RasterError(message, "Choose two maps of one area.", "MAPS_NO_OVERLAP")


def write_disagreement(
    target: Path,
    one: MapReader,
    other: MapReader,
    grid: RasterInfo,
    classes: Sequence[UnitedClass],
    pairs: Pairs,
    origin: Mapping[str, str],
    reporter: Reporter,
) -> dict[str, Any]:
    """Writes the map of disagreement; returns what is in it.

    Its values: 1 where the maps agree, from 2 on the pairs that they differ in, the widest first, the rest 22; 0 where
    either has no class.

    Returns:
        `raster`, `share` of the compared area that differs, `compared` (share of the grid's pixels), `pairs` (value,
        `one`, `other`, `share`, `pixels`, `color`), `other_share`, `classes` (the legend) and `sentence`.
    """
    ranked = _ranked(pairs, classes)
    table = np.full((len(classes), len(classes)), OTHER, np.uint8)
    np.fill_diagonal(table, AGREE)
    for pair in ranked:
        table[pair.pop("at")] = pair["value"]
    shares = pairs.area / pairs.area.sum()
    share = float(shares.sum() - np.trace(shares))
    rest = max(share - sum(pair["share"] for pair in ranked), 0.0) if (table == OTHER)[pairs.pixels > 0].any() else 0.0
    legend = _legend(ranked, rest > 0)
    windows = strips((0, 0, grid.height, grid.width))
    with class_raster(target, {}, grid, legend, origin) as rows:
        for number, window in enumerate(windows):
            first, second = one.read(0, window), other.read(0, window)
            both = (first != IGNORE) & (second != IGNORE)
            values = np.full(first.shape, NODATA, np.uint8)
            values[both] = table[first[both], second[both]]
            rows.add_values(values)
            reporter.progress("compare", len(windows) + number + 1, 2 * len(windows))
    return {
        "raster": str(target),
        "share": round(share, 6),
        "compared": round(float(pairs.pixels.sum() / (grid.height * grid.width)), 6),
        "pixels": int(pairs.pixels.sum()),
        "pairs": [{**pair, "share": round(pair["share"], 6)} for pair in ranked],
        "other_share": round(rest, 6),
        "classes": legend,
        "sentence": _sentence(share, ranked),
    }


def _ranked(pairs: Pairs, classes: Sequence[UnitedClass]) -> list[dict[str, Any]]:
    """The pairs that differ, the widest first, as many as get a value of their own."""
    area = pairs.area / pairs.area.sum()
    np.fill_diagonal(area, 0)
    found: list[dict[str, Any]] = []
    colors = [_AGREE_COLOR, _OTHER_COLOR]
    for flat in np.argsort(-area, axis=None, kind="stable")[:MOST_PAIRS].tolist():
        at = divmod(flat, len(classes))
        if not area[at] > 0:
            break
        colors.append(choose_color("", colors))
        found.append(
            {
                "at": at,
                "value": AGREE + 1 + len(found),
                "one": classes[at[0]].name,
                "other": classes[at[1]].name,
                "share": float(area[at]),
                "pixels": int(pairs.pixels[at]),
                "color": colors[-1],
            }
        )
    return found


def _legend(ranked: Sequence[Mapping[str, Any]], has_rest: bool) -> list[dict[str, Any]]:
    rows = [{"value": AGREE, "name": "both agree", "color": _AGREE_COLOR}]
    rows += [{"value": p["value"], "name": f"{p['one']} → {p['other']}", "color": p["color"]} for p in ranked]
    return [*rows, {"value": OTHER, "name": "other difference", "color": _OTHER_COLOR}] if has_rest else rows


def _sentence(share: float, ranked: Sequence[Mapping[str, Any]]) -> str:
    if not ranked:
        return "The maps agree on the whole area that both have."
    most = ranked[0]
    what = f"{most['one']} in the first, {most['other']} in the second ({percent(most['share'])})"
    how_much = "most of it" if most["share"] > share / 2 else "the largest part of it"
    return f"{percent(share)} of the area differ, {how_much}: {what}."


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.1f} %" if share >= 0.0005 or share == 0 else "less than 0.05 %"


def _row_weights(grid: RasterInfo, row: int, height: int) -> np.ndarray:
    """(height,) area of a pixel of each row, up to a factor: on degrees they become narrower towards the poles."""
    if not grid.crs.is_geographic:
        return np.ones(height)
    x, y = apply_affine(grid.geobox.affine, np.full(height, grid.width / 2), np.arange(row, row + height) + 0.5)
    _, latitude = Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True).transform(x, y)
    weights: np.ndarray = np.cos(np.radians(np.clip(latitude, -89.9, 89.9)))
    return weights
