"""Lookup of a label raster at the centre of each pixel of other rasters (nearest)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyproj
from numpy.typing import NDArray
from rasterio.windows import Window

from geopeft.data.label_classes import IGNORE
from geopeft.data.raster import RasterInfo, apply_affine, open_raster
from geopeft.errors import LabelError

LOOKUP_PX = 1 << 24  # most pixels of a label raster read at once


class LabelLookup:
    """Values of a label raster at the pixel centres of other rasters (nearest)."""

    def __init__(self, info: RasterInfo, rasters: Sequence[RasterInfo]) -> None:
        self._info = replace(info, nodatas=(None,) * len(info.bands))
        self._affines = [raster.geobox.affine for raster in rasters]
        self._wkts = [raster.crs.to_wkt() for raster in rasters]
        own = pyproj.CRS.from_wkt(info.crs.to_wkt())
        self._same = [bool(own.equals(pyproj.CRS.from_wkt(wkt), ignore_axis_order=True)) for wkt in self._wkts]
        self._values: NDArray[np.int64] = np.zeros(0, np.int64)
        self._numbers: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def set_classes(self, numbers: Mapping[int, int]) -> None:
        """Which class each value is; other values are unlabelled."""
        known = sorted(value for value, number in numbers.items() if number >= 0)
        self._values = np.array(known, np.int64)
        self._numbers = np.array([numbers[value] for value in known], np.uint8)

    def classes(self, raster_index: int, top: int, left: int, bottom: int, right: int) -> NDArray[np.uint8]:
        values, valid = self.values(raster_index, top, left, bottom, right)
        at = np.minimum(np.searchsorted(self._values, values), len(self._values) - 1)
        known = valid & (self._values[at] == values)
        return np.where(known, self._numbers[at], IGNORE).astype(np.uint8)

    def values(
        self, raster_index: int, top: int, left: int, bottom: int, right: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Values and whether there are any, (h, w), of a rectangle of a raster's grid."""
        rows, cols = self._positions(raster_index, top, left, bottom, right)
        inside = (rows >= 0) & (rows < self._info.height) & (cols >= 0) & (cols < self._info.width)
        if not inside.any():
            return np.zeros(inside.shape, np.int64), inside
        row0, row1 = int(rows[inside].min()), int(rows[inside].max()) + 1
        col0, col1 = int(cols[inside].min()), int(cols[inside].max()) + 1
        if (row1 - row0) * (col1 - col0) > LOOKUP_PX and max(bottom - top, right - left) > 1:
            return self._in_halves(raster_index, top, left, bottom, right)
        with open_raster(self._info, [self._info.bands[0].index]) as reader:
            native, good = reader.read_native(Window(col0, row0, col1 - col0, row1 - row0))
        whole = _whole_numbers(native[0], good[0], self._info.path)
        rows, cols = np.clip(rows - row0, 0, row1 - row0 - 1), np.clip(cols - col0, 0, col1 - col0 - 1)
        return whole[rows, cols], inside & good[0][rows, cols]

    def _in_halves(
        self, raster_index: int, top: int, left: int, bottom: int, right: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if bottom - top >= right - left:
            middle, axis = (top + bottom) // 2, 0
            halves = ((top, left, middle, right), (middle, left, bottom, right))
        else:
            middle, axis = (left + right) // 2, 1
            halves = ((top, left, bottom, middle), (top, middle, bottom, right))
        parts = [self.values(raster_index, *half) for half in halves]
        return np.concatenate([p[0] for p in parts], axis=axis), np.concatenate([p[1] for p in parts], axis=axis)

    def _positions(
        self, raster_index: int, top: int, left: int, bottom: int, right: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(rows, cols) in the label raster of the pixel centres of a rectangle, each (h, w)."""
        col, row = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
        x, y = apply_affine(self._affines[raster_index], col, row)
        if not self._same[raster_index]:
            to_own = pyproj.Transformer.from_crs(self._wkts[raster_index], self._info.crs.to_wkt(), always_xy=True)
            x, y = to_own.transform(x, y)
        col, row = apply_affine(~self._info.geobox.affine, x, y)
        # A centre may fall on the edge of two finer pixels: the nudge makes the choice the same everywhere.
        rows, cols = np.floor(row + 1e-6), np.floor(col + 1e-6)
        far = ~(np.isfinite(rows) & np.isfinite(cols))
        rows[far], cols[far] = -1, -1
        return rows.astype(np.int64), cols.astype(np.int64)


def _whole_numbers(values: NDArray[Any], good: NDArray[np.bool_], path: str) -> NDArray[np.int64]:
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    if (values[good] != np.floor(values[good])).any():
        odd = float(values[good][values[good] != np.floor(values[good])][0])
        raise LabelError(
            f"{path} holds fractions such as {odd:g}: it is no label raster.",
            "Choose a raster of class numbers.",
            "LABELS_NOT_CLASSES",
        )
    return np.where(good, values, 0).astype(np.int64)
