"""Where a GeoTIFF holds no data, as its index of blocks tells: a block that the file lacks is read as nodata."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window


class Holes:
    """The blocks that a file lacks; looked up row by row of blocks, where somebody asks.

    Args:
        dataset: rasterio's, of a GeoTIFF.
        block_shape: (rows, cols) of its blocks.
        band: number of a band with a nodata value; 0 where no band tells anything.
    """

    def __init__(self, dataset: Any, block_shape: tuple[int, int], band: int) -> None:
        self._dataset, self._block_shape, self._band = dataset, block_shape, band
        self._rows: dict[int, NDArray[np.bool_]] = {}

    def cover(self, window: Window) -> bool:
        """Whether the file lacks every block that a window inside the raster touches."""
        if not self._band:
            return False
        height, width = self._block_shape
        top, left = int(window.row_off), int(window.col_off)
        rows = range(top // height, -(-(top + int(window.height)) // height))
        columns = slice(left // width, -(-(left + int(window.width)) // width))
        for row in [known for known in self._rows if known < rows.start]:
            del self._rows[row]
        return all(self._row(row)[columns].all() for row in rows)

    def _row(self, row: int) -> NDArray[np.bool_]:
        if row not in self._rows:
            count = -(-self._dataset.width // self._block_shape[1])
            offsets = (
                self._dataset.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=self._band)
                for column in range(count)
            )
            self._rows[row] = np.fromiter((offset is None for offset in offsets), np.bool_, count)
        return self._rows[row]
