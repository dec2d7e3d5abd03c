"""Texture features of rasters, made in tiles where they are asked for, and kept in memory up to a fixed budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor

from geopeft.data.decimated import decimate
from geopeft.data.raster import RasterInfo, RasterReader
from geopeft.models.spec import InputBand
from geopeft.models.texture import Texture, describe_texture, principal_components
from geopeft.runtime import fill_invalid, fill_values

TILE_PX = 64
BUDGET_BYTES = 512 << 20
# Tiles that are made in one go: more would take more memory, and a cancel would have to wait for them.
RUN_TILES = 16
LARGEST_HALF = 6e4
# Windows along each axis whose pixels tell the principal components of many bands.
COMPONENT_WINDOWS = 4


@dataclass(frozen=True, eq=False)
class View:
    """A raster as a classical classifier sees it.

    Args:
        key: differs where features would differ.
        info: the raster.
        factor: it is seen with pixels that are so many times as wide.
        grid: the raster at that width.
        indexes: numbers of the bands in use.
        texture: what makes features of their values; F of them.
        fill: (C,) values for pixels that are not valid.
    """

    key: str
    info: RasterInfo
    factor: int
    grid: RasterInfo
    indexes: tuple[int, ...]
    texture: Texture
    fill: np.ndarray

    @property
    def bytes_per_pixel(self) -> int:
        """Memory that the features of a pixel take."""
        return 2 * self.texture.count + 1


@dataclass(frozen=True, eq=False)
class Tile:
    """A square of 64 px, less at the raster's edges.

    Args:
        features: (h, w, F) float16.
        valid: (h, w) bool.
    """

    features: Tensor
    valid: np.ndarray

    @property
    def size_bytes(self) -> int:
        """Memory it takes."""
        return self.features.numel() * 2 + self.valid.size


def make_view(
    key: str, info: RasterInfo, factor: int, bands: Sequence[InputBand], indexes: Sequence[int], reader: RasterReader
) -> View:
    """The features for these bands. Labels play no part in them, so that a new label leaves them as they are.

    Args:
        bands: the bands in use with their constants, and their numbers `indexes`.
        reader: of these bands at this factor, for the principal components of many bands.
    """
    grid, fill = decimate(info, factor), fill_values(bands)
    spec = describe_texture(bands, grid.gsd_m)
    texture = Texture(spec, bands, torch.eye(spec.components, len(bands)))
    if spec.components != len(bands):
        seen = []
        for row in np.linspace(0, max(grid.height - TILE_PX, 0), COMPONENT_WINDOWS).astype(int).tolist():
            for col in np.linspace(0, max(grid.width - TILE_PX, 0), COMPONENT_WINDOWS).astype(int).tolist():
                values, valid = reader.read(Window(col, row, TILE_PX, TILE_PX))
                seen.append(texture.standardise(torch.from_numpy(values)[None])[0][:, torch.from_numpy(valid)].T)
        pixels = torch.cat(seen)
        if len(pixels) > len(bands):
            texture = Texture(spec, bands, principal_components(pixels, spec.components))
    return View(f"{key} {factor}", info, factor, grid, tuple(indexes), texture, fill)


class TextureTiles:
    """Tiles of any views; those not used for longest are dropped."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self._tiles: OrderedDict[tuple[str, int, int], Tile] = OrderedDict()
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        """Memory that all tiles take."""
        return self._bytes

    def row(
        self,
        view: View,
        reader: RasterReader,
        row: int,
        first: int,
        count: int,
        before_run: Callable[[], None],
        keep: bool = True,
    ) -> list[Tile]:
        """`count` tiles of a row of tiles from column `first` on; those that are not there are made.

        Args:
            reader: of the view's bands at its factor.
            before_run: called before each piece of work of some tens of milliseconds; may raise.
            keep: those that are made are kept for the next time.
        """
        found = {col: self._tiles.get((view.key, row, col)) for col in range(first, first + count)}
        missing = [col for col, tile in found.items() if tile is None]
        while missing:
            start = missing[0]
            length = next((n for n, col in enumerate(missing) if col != start + n), len(missing))
            length = min(length, RUN_TILES)
            before_run()
            found.update(zip(missing[:length], _make(view, reader, row, start, length), strict=True))
            missing = missing[length:]
        tiles = []
        for col, tile in found.items():
            if tile is not None:
                if keep:
                    self._keep((view.key, row, col), tile)
                tiles.append(tile)
        return tiles

    def _keep(self, key: tuple[str, int, int], tile: Tile) -> None:
        if key not in self._tiles:
            self._tiles[key] = tile
            self._bytes += tile.size_bytes
        self._tiles.move_to_end(key)
        while self._bytes > self.budget_bytes and len(self._tiles) > 1:
            self._bytes -= self._tiles.popitem(last=False)[1].size_bytes


def _make(view: View, reader: RasterReader, row: int, first: int, count: int) -> list[Tile]:
    """Neighbouring tiles of a row, with as much around them as a texture reaches, so that no seam shows."""
    height, width, reach = view.grid.height, view.grid.width, view.texture.radius_px
    top, left = row * TILE_PX, first * TILE_PX
    bottom, right = min(top + TILE_PX, height), min((first + count) * TILE_PX, width)
    row0, col0 = max(top - reach, 0), max(left - reach, 0)
    rows, cols = min(bottom + reach, height) - row0, min(right + reach, width) - col0
    values, valid = reader.read(Window(col0, row0, cols, rows))
    inside = (slice(top - row0, bottom - row0), slice(left - col0, right - col0))
    with torch.inference_mode():
        raw = torch.from_numpy(fill_invalid(values[None], valid[None], view.fill))
        features = view.texture(raw)[0][:, *inside].clamp(-LARGEST_HALF, LARGEST_HALF).half().permute(1, 2, 0)
        starts = range(0, right - left, TILE_PX)
        return [
            Tile(features[:, at : at + TILE_PX].contiguous(), valid[inside][:, at : at + TILE_PX].copy())
            for at in starts
        ]
