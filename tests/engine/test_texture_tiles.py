"""Texture tiles: without seams, made once, and never more than the budget."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from geopeft.data.decimated import open_decimated
from geopeft.data.raster import RasterReader, describe
from geopeft.models.spec import InputBand
from geopeft.texture_tiles import TILE_PX, TextureTiles, View, make_view
from rasterio.windows import Window

MakeRaster = Callable[..., Path]


def nothing() -> None:
    """No cancel."""


def bands(count: int) -> tuple[InputBand, ...]:
    common = ("red", "nir", *[""] * count)[:count]
    return tuple(InputBand(name=f"b{i}", common=role, mean=1000, std=300) for i, role in enumerate(common))


def values(count: int = 2, height: int = 150, width: int = 200) -> np.ndarray:
    noise = np.random.default_rng(0).normal(1000, 300, (count, height, width))
    return noise.clip(1).astype(np.uint16)


class Counting:
    """A reader that counts."""

    def __init__(self, reader: RasterReader) -> None:
        self._reader = reader
        self.windows: list[Window] = []

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        self.windows.append(window)
        return self._reader.read(window)


@pytest.fixture
def looked_at(make_raster: MakeRaster) -> Any:
    """A view of two bands and a counting reader."""
    path = make_raster(values(), nodata=0)
    info = describe(str(path))
    with open_decimated(info, 1, [1, 2]) as reader:
        yield make_view("v", info, 1, bands(2), [1, 2], reader), Counting(reader)


def whole(view: View, reader: Any, tiles: TextureTiles) -> torch.Tensor:
    rows = [tiles.row(view, reader, row, 0, 4, nothing) for row in range(3)]
    return torch.cat([torch.cat([tile.features for tile in row], 1) for row in rows], 0)


def test_tiles_are_the_texture_of_the_whole_raster(looked_at: Any) -> None:
    view, reader = looked_at
    expected = view.texture(torch.from_numpy(values().astype(np.float32))[None])[0].permute(1, 2, 0)
    tiles = TextureTiles()
    tiles.row(view, reader, 1, 2, 1, nothing)
    found = whole(view, reader, tiles)
    assert found.shape == (150, 200, view.texture.count)
    assert float((found.float() - expected).abs().max()) < 5e-3


def test_a_tile_is_made_once_and_neighbours_together(looked_at: Any) -> None:
    view, reader = looked_at
    tiles = TextureTiles()
    tiles.row(view, reader, 0, 1, 1, nothing)
    assert len(reader.windows) == 1
    whole(view, reader, tiles)
    reach = view.texture.radius_px
    # One before and two after the tile that is there, then a run for each of the other rows.
    assert [int(w.width) for w in reader.windows[1:]] == [TILE_PX + reach, 200 - 2 * TILE_PX + reach, 200, 200]
    whole(view, reader, tiles)
    assert len(reader.windows) == 5


def test_memory_stays_within_the_budget(looked_at: Any) -> None:
    view, reader = looked_at
    roomy, tight = TextureTiles(), TextureTiles(200_000)
    expected = whole(view, reader, roomy)
    assert torch.equal(whole(view, reader, tight), expected)
    assert tight.size_bytes <= 200_000 < roomy.size_bytes
    kept = sum(tile.size_bytes for tile in tight._tiles.values())
    assert kept == tight.size_bytes


def test_a_cancel_comes_between_pieces_of_work(looked_at: Any) -> None:
    view, reader = looked_at

    def cancel() -> None:
        if reader.windows:
            raise KeyError

    tiles = TextureTiles()
    tiles.row(view, reader, 0, 0, 4, cancel)
    with pytest.raises(KeyError):
        tiles.row(view, reader, 1, 0, 4, cancel)
    assert len(reader.windows) == 1


def test_pixels_without_data_are_known(make_raster: MakeRaster) -> None:
    some = values()
    some[:, 10:20, 30:40] = 0
    info = describe(str(make_raster(some, nodata=0)))
    with open_decimated(info, 1, [1, 2]) as reader:
        view = make_view("v", info, 1, bands(2), [1, 2], reader)
        tile = TextureTiles().row(view, reader, 0, 0, 1, nothing)[0]
    assert not tile.valid[10:20, 30:40].any() and tile.valid.sum() == TILE_PX**2 - 100


def test_many_bands_are_brought_to_components_without_any_label(make_raster: MakeRaster) -> None:
    info = describe(str(make_raster(values(14))))
    with open_decimated(info, 2, list(range(1, 15))) as reader:
        view = make_view("v", info, 2, bands(14), list(range(1, 15)), reader)
        tile = TextureTiles().row(view, reader, 0, 0, 1, nothing)[0]
    assert view.texture.spec.components == 4
    assert torch.isfinite(tile.features).all()
    assert float(view.texture.projection.abs().max()) > 0.1
