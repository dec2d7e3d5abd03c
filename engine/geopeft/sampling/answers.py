"""What an analyst wrote into the points of a sample, matched with the points that were drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import shapely
from pyproj.exceptions import CRSError, ProjError

from geopeft.data.raster import apply_affine
from geopeft.errors import LabelError
from geopeft.sampling.design import LAYER, Design

# A point that lies further from where it was drawn, in pixels, has left its pixel.
_WITHIN_PX = 0.5 + 1e-3
# What is no class of the ground counts as not labelled, so that it is told how many there are.
_NO_ANSWER = frozenset(("?", "unknown", "unclear", "not sure"))
# Of many numbers or names, so many are told.
LISTED = 8


@dataclass(frozen=True, eq=False)
class Answers:
    """What was labelled.

    Args:
        texts: (n) the class of each drawn point as it was typed; empty where there is none.
        notes: what is to be said of the layer.
    """

    texts: list[str]
    notes: list[str]


def read_answers(path: Path, class_field: str, design: Design) -> Answers:
    """Matches the features of the layer with the points that were drawn, by number and place."""
    try:
        info = pyogrio.read_info(path, layer=LAYER)
        fields = {str(name).lower(): str(name) for name in info["fields"]}
        field = fields.get(class_field.lower())
        if field is None or "number" not in fields:
            names = ", ".join(map(str, info["fields"]))
            missing = class_field if field is None else "number"
            raise LabelError(f"The sample has no field '{missing}'.", f"Its fields: {names}.", "LABELS_FIELD")
        meta, _, shapes, columns = pyogrio.raw.read(path, layer=LAYER, columns=[fields["number"], field], force_2d=True)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError, ValueError, RuntimeError) as error:
        raise LabelError(
            f"{path} cannot be read: {error}.", "Choose the file that sample wrote.", "LABELS_OPEN"
        ) from error
    data = dict(zip(meta["fields"].tolist(), columns, strict=True))
    numbers = _numbers(data[fields["number"]])
    away = _distance_px(shapes, meta["crs"], numbers, design)
    texts = [""] * len(design.stratum)
    added, moved, twice = 0, [], []
    seen: set[int] = set()
    for number, text, distance in zip(numbers, map(_text, data[field]), away, strict=True):
        if number == 0:
            added += 1
        elif not distance <= _WITHIN_PX:
            moved.append(number)
        elif number in seen:
            twice.append(number)
        else:
            seen.add(number)
            texts[number - 1] = text
    # A copy of a point is no second observation, and which of the two is meant is not known where they differ.
    return Answers(texts, _notes(added, sorted(set(moved) - seen), twice, len(design.stratum) - len(seen), moved))


def _numbers(column: np.ndarray) -> list[int]:
    """Numbers of points; 0 where there is none."""
    found = []
    for value in column.tolist():
        is_number = isinstance(value, int | float) and math.isfinite(value) and value == int(value)
        found.append(int(value) if is_number and value > 0 else 0)
    return found


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = " ".join(str(value).split())
    return "" if text.casefold() in _NO_ANSWER else text


def _distance_px(shapes: np.ndarray, crs: str | None, numbers: list[int], design: Design) -> np.ndarray:
    """(n,) how far features lie from the points of their numbers, in pixels; numbers that were not drawn become 0."""
    points = np.asarray(shapely.centroid(shapely.from_wkb(shapes)), object).reshape(-1)
    x, y = shapely.get_x(points), shapely.get_y(points)
    try:
        if crs and not pyproj.CRS(crs).equals(pyproj.CRS(design.crs), ignore_axis_order=True):
            x, y = pyproj.Transformer.from_crs(crs, design.crs, always_xy=True).transform(x, y)
    except (CRSError, ProjError):
        pass
    for at, number in enumerate(numbers):
        numbers[at] = number if number <= len(design.stratum) else 0
    own = np.maximum(np.array(numbers, np.int64) - 1, 0)
    col, row = apply_affine(~design.affine, x, y)
    own_col, own_row = apply_affine(~design.affine, design.x[own], design.y[own])
    return np.asarray(np.maximum(np.abs(col - own_col), np.abs(row - own_row)))


def _notes(added: int, moved: Sequence[int], twice: Sequence[int], gone: int, all_moved: Sequence[int]) -> list[str]:
    notes = []
    if added:
        notes.append(
            f"Left out: {points_text(added)} without a number of the sample. What is added by hand is not drawn at "
            "random, so it says nothing of the whole map."
        )
    if moved:
        notes.append(
            f"Left out: {points_text(len(moved))} away from the place that was drawn (numbers {listed(moved)}). Put "
            "them back, or draw the sample again with the same seed."
        )
    copies = len(twice) + len(all_moved) - len(moved)
    if copies:
        notes.append(f"Left out: {points_text(copies)} whose number is there twice; the first at its place counts.")
    if gone > len(moved):
        verb = "is" if gone - len(moved) == 1 else "are"
        notes.append(
            f"{points_text(gone - len(moved))} of the sample {verb} gone from the layer; they count as not labelled."
        )
    return notes


def points_text(count: int) -> str:
    return f"{count} point{'' if count == 1 else 's'}"


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:LISTED])) + (", ..." if len(numbers) > LISTED else "")
