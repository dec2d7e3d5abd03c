"""A raster seen from further away: means of what is valid, on a grid of wider pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from geopeft.data.decimated import decimate, open_decimated
from geopeft.data.raster import describe
from rasterio.windows import Window

MakeRaster = Callable[..., Path]


def far(path: Path, factor: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
    with open_decimated(describe(str(path)), factor, [1]) as reader:
        return reader.read(window)


def test_a_wide_pixel_is_the_mean_of_the_square_that_it_covers(make_raster: MakeRaster) -> None:
    values = np.arange(22 * 31, dtype=np.float32).reshape(1, 22, 31)
    path = make_raster(values)
    grid = decimate(describe(str(path)), 3)
    assert grid.geobox.shape == (7, 10) and grid.gsd_m == pytest.approx(30)
    assert grid.geobox.affine[:6] == (30, 0, 300_000, 0, -30, 5_800_000)
    seen, valid = far(path, 3, Window(2, 1, 5, 4))
    expected = values[0, :21, :30].reshape(7, 3, 10, 3).mean((1, 3))[1:5, 2:7]
    assert seen[0] == pytest.approx(expected) and valid.all()


def test_nearby_the_raster_is_as_it_is(make_raster: MakeRaster) -> None:
    path = make_raster(np.arange(12, dtype=np.int16).reshape(1, 3, 4))
    assert decimate(describe(str(path)), 1).geobox.shape == (3, 4)
    assert far(path, 1, Window(1, 1, 2, 2))[0].tolist() == [[[5, 6], [9, 10]]]


@pytest.mark.parametrize("kind", ["nodata", "nan", "mask", "huge"])
def test_what_is_not_valid_does_not_spoil_the_mean(make_raster: MakeRaster, kind: str) -> None:
    values = np.full((1, 8, 8), 5, np.float32)
    wrong = {"nodata": -9999.0, "nan": np.nan, "mask": 77.0, "huge": -3.4e38}[kind]
    values[0, :4, :4] = wrong
    values[0, 4, 4] = wrong
    mask = np.where(values[0] == 77, 0, 255).astype(np.uint8) if kind == "mask" else None
    path = make_raster(values, nodata={"nodata": -9999.0, "nan": np.nan}.get(kind), mask=mask)
    seen, valid = far(path, 4, Window(0, 0, 2, 2))
    assert not valid[0, 0] and valid[0, 1] and valid[1, 0]
    assert seen[0][valid] == pytest.approx(5)


def test_a_window_may_reach_beyond_the_raster(make_raster: MakeRaster) -> None:
    path = make_raster(np.ones((1, 9, 9), np.uint8))
    seen, valid = far(path, 2, Window(2, 3, 4, 4))
    assert valid.tolist() == [[True, True, False, False], *[[False] * 4] * 3]
    assert seen[0][valid].tolist() == [1, 1]


def test_overviews_are_read_where_the_file_has_them(make_raster: MakeRaster) -> None:
    import rasterio
    from rasterio.enums import Resampling

    path = make_raster(np.zeros((1, 512, 512), np.uint8), tiled=True)
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([4], Resampling.average)
        raster.write(np.full((1, 512, 512), 9, np.uint8))
    assert set(far(path, 4, Window(0, 0, 128, 128))[0].ravel()) == {0}
