"""A raster seen from further away: each pixel the mean of a square of the file's pixels, read from overviews if any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.windows import Window

from geopeft.data.raster import HUGE, RasterInfo, RasterReader, open_dataset, open_raster


def decimate(info: RasterInfo, factor: int) -> RasterInfo:
    """The raster as it is with pixels `factor` times as wide; rows and columns that fill no pixel are left out."""
    if factor == 1:
        return info
    shape = (max(info.height // factor, 1), max(info.width // factor, 1))
    geobox = GeoBox(shape, info.geobox.affine * Affine.scale(factor), info.geobox.crs)
    return replace(info, geobox=geobox, gsd_m=info.gsd_m * factor)


@contextmanager
def open_decimated(info: RasterInfo, factor: int, indexes: Sequence[int]) -> Iterator[RasterReader]:
    """A reader of some bands of `decimate(info, factor)`; its windows count the wide pixels.

    Raises:
        RasterError: as `open_raster`.
    """
    if factor == 1:
        with open_raster(info, indexes) as reader:
            yield reader
        return
    with open_dataset(info.path) as dataset:
        yield RasterReader(decimate(info, factor), indexes, _FarDataset(dataset, info, factor))


class _FarDataset:
    """rasterio's dataset, as far as a reader needs it, in wide pixels."""

    def __init__(self, dataset: Any, info: RasterInfo, factor: int) -> None:
        self._dataset = dataset
        self._info = info
        self._factor = factor

    def read(self, indexes: Sequence[int] | int, window: Window) -> NDArray[Any]:
        shape = (int(window.height), int(window.width))
        out_shape = shape if isinstance(indexes, int) else (len(indexes), *shape)
        values: NDArray[Any] = self._dataset.read(
            indexes, window=self._whole(window), out_shape=out_shape, resampling=Resampling.average
        )
        if values.dtype.kind == "f":
            # A huge number that stands for nodata without being declared would pass as a mean.
            with np.errstate(invalid="ignore"):
                values[~(np.abs(values) < HUGE / self._factor**2)] = np.nan
        return values

    def read_masks(self, index: int, window: Window) -> NDArray[np.uint8]:
        shape = (int(window.height), int(window.width))
        mask: NDArray[np.uint8] = self._dataset.read_masks(index, window=self._whole(window), out_shape=shape)
        return mask

    def _whole(self, window: Window) -> Window:
        """The window in the file's pixels."""
        row, col = int(window.row_off) * self._factor, int(window.col_off) * self._factor
        height = min(int(window.height) * self._factor, self._info.height - row)
        width = min(int(window.width) * self._factor, self._info.width - col)
        return Window(col, row, width, height)
