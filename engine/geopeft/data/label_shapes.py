"""Labelled shapes of rasters, and what a painter makes of them in a window."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

TILE_PX = 512


@dataclass(frozen=True, eq=False)
class LabelShape:
    """A labelled place on one raster.

    Args:
        class_index: position in `Labels.classes`.
        raster_index: position in the list of rasters.
        geometry: polygon in the raster's CRS (lines and points with their width; of a label raster, the box).
        bounds_px: (row0, col0, row1, col1) inside the raster, row1 and col1 excluded.
        fid: the feature's number in its layer; -1 where there is none.
    """

    class_index: int
    raster_index: int
    geometry: BaseGeometry
    bounds_px: tuple[int, int, int, int]
    fid: int = -1


@dataclass(frozen=True, eq=False)
class Painted:
    """A window without background: class numbers, shape numbers, and what must stay unlabelled. All (h, w)."""

    classes: NDArray[np.uint8]
    shapes: NDArray[np.int32]
    clash: NDArray[np.bool_]
    blank: NDArray[np.bool_]


class Painter(Protocol):
    def paint(self, raster_index: int, window: Window) -> Painted: ...


def grid_windows(bounds: tuple[int, int, int, int], side: int, *, aligned: bool = False) -> list[Window]:
    """Windows of `side` px that cover a rectangle; aligned: cut at multiples of `side` of the whole raster."""
    row0, col0, row1, col1 = bounds
    row_first, col_first = (row0 // side * side, col0 // side * side) if aligned else (row0, col0)
    windows = []
    for row, col in product(range(row_first, row1, side), range(col_first, col1, side)):
        top, left = max(row, row0), max(col, col0)
        windows.append(Window(left, top, min(col + side, col1) - left, min(row + side, row1) - top))
    return windows


def row_col_size(window: Window) -> tuple[int, int, int, int]:
    """(row, col, height, width) of a window."""
    return int(window.row_off), int(window.col_off), int(window.height), int(window.width)
