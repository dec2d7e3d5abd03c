"""What a copy of a layer's pixels is to be: the size of a pixel, the extent in whole pixels, and how much that is."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from qgis.core import Qgis, QgsRasterBlock, QgsRasterDataProvider, QgsRectangle

from .language import tr
from .sources import is_picture

MAX_PIXELS = 16384 * 16384
# What is proposed without a wish: a web map of this size is there within a minute.
PROPOSED_PIXELS = 4096 * 4096


class CopyError(Exception):
    """The pixels cannot be had, or not be written; the text is a sentence with a next step."""


class Grid(NamedTuple):
    """The pixels of the copy, in the layer's CRS. Sizes of a pixel are in the CRS's units."""

    extent: QgsRectangle
    width: int
    height: int
    pixel_width: float
    pixel_height: float

    def piece(self, col: int, row: int, width: int, height: int) -> QgsRectangle:
        """The extent of some of the pixels."""
        left = self.extent.xMinimum() + col * self.pixel_width
        top = self.extent.yMaximum() - row * self.pixel_height
        return QgsRectangle(left, top - height * self.pixel_height, left + width * self.pixel_width, top)


def native_sizes(provider: QgsRasterDataProvider) -> list[float]:
    """Sizes of a pixel that a source has itself, finest first: zoom levels of a tile service, the grid of values."""
    if provider.xSize() > 0 and not is_picture(provider):
        return [provider.extent().width() / provider.xSize()]
    return sorted(size for size in provider.nativeResolutions() if size > 0)


def proposed_size(provider: QgsRasterDataProvider, extent: QgsRectangle, seen: float = 0.0) -> float:
    """A sensible size of a pixel: what is seen on the map, else the finest that keeps the copy small.

    Args:
        provider: the source.
        extent: what is to be copied, in the source's CRS.
        seen: size of a pixel of the map, in the source's CRS; 0: no map.
    """
    sizes = native_sizes(provider)
    if not is_picture(provider) and sizes:
        return sizes[0]
    if seen > 0:
        return min(sizes, key=lambda size: abs(math.log(size / seen))) if sizes else seen
    needed = math.sqrt(max(extent.width() * extent.height(), 1e-300) / PROPOSED_PIXELS)
    return next((size for size in sizes if size >= needed), sizes[-1] if sizes else needed)


def plan(provider: QgsRasterDataProvider, extent: QgsRectangle, size: float = 0.0) -> Grid:
    """The pixels of a copy: whole pixels of the source's own grid around the extent, within what the source has.

    Args:
        provider: the source.
        extent: what is wanted, in the source's CRS.
        size: size of a pixel; 0: `proposed_size`.

    Raises:
        CopyError: nothing to copy, or too much of it.
    """
    whole = provider.extent()
    has_limits = not whole.isEmpty() and whole.isFinite()
    wanted = QgsRectangle(extent)
    if has_limits:
        wanted = wanted.intersect(whole)
    if wanted.isEmpty() or not wanted.isFinite():
        raise CopyError(tr("The chosen extent lies outside of the layer. Choose an extent that the layer covers."))
    across, down = _pixel(provider, wanted, size)
    left, top = (whole.xMinimum(), whole.yMaximum()) if has_limits else (0.0, 0.0)
    # A thousandth of a pixel more or less is rounding, not a wish for one more.
    first_col = math.floor((wanted.xMinimum() - left) / across + 1e-3)
    first_row = math.floor((top - wanted.yMaximum()) / down + 1e-3)
    width = max(1, math.ceil((wanted.xMaximum() - left) / across - 1e-3) - first_col)
    height = max(1, math.ceil((top - wanted.yMinimum()) / down - 1e-3) - first_row)
    _refuse_too_large(provider, width, height)
    x, y = left + first_col * across, top - first_row * down
    return Grid(QgsRectangle(x, y - height * down, x + width * across, y), width, height, across, down)


def megabytes(provider: QgsRasterDataProvider, width: int, height: int) -> float:
    """Size of the copy before compression."""
    per_pixel = 4
    if not is_picture(provider):
        per_pixel = QgsRasterBlock.typeSize(common_type(provider)) * provider.bandCount()
    return width * height * per_pixel / 1e6


def _pixel(provider: QgsRasterDataProvider, extent: QgsRectangle, size: float) -> tuple[float, float]:
    if size > 0:
        return size, size
    if not is_picture(provider) and provider.xSize() > 0 and provider.ySize() > 0:
        return provider.extent().width() / provider.xSize(), provider.extent().height() / provider.ySize()
    size = proposed_size(provider, extent)
    return size, size


def _refuse_too_large(provider: QgsRasterDataProvider, width: int, height: int) -> None:
    if width * height <= MAX_PIXELS:
        return
    text = tr(
        "The copy would have {width} x {height} pixels ({megabytes:,.0f} MB); {most:,.0f} million are the most. "
        "Choose larger pixels or a smaller extent."
    )
    size_mb = megabytes(provider, width, height)
    raise CopyError(text.format(width=width, height=height, megabytes=size_mb, most=MAX_PIXELS / 1e6))


def common_type(provider: QgsRasterDataProvider) -> Any:
    """One type that holds the values of all bands."""
    types = {provider.dataType(band) for band in range(1, provider.bandCount() + 1)}
    if len(types) == 1:
        return types.pop()
    wide = {Qgis.DataType.Float64, Qgis.DataType.Int32, Qgis.DataType.UInt32}
    return Qgis.DataType.Float64 if types & wide else Qgis.DataType.Float32
