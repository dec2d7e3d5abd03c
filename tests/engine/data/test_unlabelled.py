"""Chips without labels: what is held out stays unseen, and every pixel keeps its place and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import MakeRaster  # type: ignore[import-not-found]
from geopeft.data.raster import band_statistics, describe
from geopeft.data.unlabelled import HELD_OUT_PX, Scene, SceneReader


def scene(path: Path) -> Scene:
    info = describe(str(path))
    return Scene(info, info.bands, band_statistics(info, [band.index for band in info.bands]), info.height * info.width)


def numbered(height: int, width: int) -> np.ndarray:
    """Two bands of int32: every pixel has its own number, twice."""
    return np.stack([np.arange(height * width).reshape(height, width)] * 2).astype(np.int32)


def test_held_out_pixels_are_never_shown_in_training(make_raster: MakeRaster) -> None:
    own = scene(make_raster(numbered(300, 260)))
    reader = SceneReader([own], seed=3)
    held = reader.held_out[0]
    assert held.shape == (5, 5) and held.sum() == 2
    rng, seen = np.random.default_rng(0), np.zeros((300, 260), bool)
    for _ in range(150):
        chips = reader.draw(0, rng, 2, 96, (10.0, 10.0), (0, 1))
        assert chips.values.shape == (2, 2, 96, 96) and chips.gsd_m == 10
        values = chips.values[chips.valid] * own.statistics.std[0] + own.statistics.mean[0]
        seen.flat[np.round(values).astype(int)] = True
        assert (chips.values[~chips.valid] == 0).all()
    inside = held.repeat(HELD_OUT_PX, 0).repeat(HELD_OUT_PX, 1)[:300, :260]
    assert not seen[inside].any()
    assert seen[~inside].mean() > 0.9


def test_held_out_chips_count_their_square_only(make_raster: MakeRaster) -> None:
    own = scene(make_raster(numbered(300, 260)))
    reader = SceneReader([own], seed=3)
    chips = reader.held_out_chips(0, 128, 9, (0,))
    assert chips is not None and chips.valid.all()
    inside = reader.held_out[0].repeat(HELD_OUT_PX, 0).repeat(HELD_OUT_PX, 1)[:300, :260]
    numbers = np.round(chips.values[chips.counted] * own.statistics.std[0] + own.statistics.mean[0]).astype(int)
    assert len(np.unique(numbers)) == len(numbers) == inside.sum()
    assert inside.flat[numbers].all()


def test_resampling_tells_the_pixel_size(make_raster: MakeRaster) -> None:
    reader = SceneReader([scene(make_raster(numbered(300, 260)))], seed=0)
    chips = reader.draw(0, np.random.default_rng(0), 1, 64, (20.0, 20.0), (0,))
    assert chips.values.shape[-1] == 64 and chips.gsd_m == pytest.approx(20)
    fine = reader.draw(0, np.random.default_rng(0), 1, 64, (5.0, 5.0), (0,))
    assert fine.gsd_m == pytest.approx(5)
    # A step of one pixel in the raster is a step of half of it in the finer chip.
    step, coarse = (np.abs(np.diff(c.values[0, 0], axis=1))[c.valid[0, 0, :, 1:]].max() for c in (fine, chips))
    assert coarse == pytest.approx(4 * step, rel=0.1)


def test_a_raster_smaller_than_a_chip_gives_small_chips_and_holds_nothing_out(make_raster: MakeRaster) -> None:
    reader = SceneReader([scene(make_raster(numbered(60, 40)))], seed=0)
    assert not reader.held_out[0].any() and reader.held_out_chips(0, 128, 3, (0,)) is None
    chips = reader.draw(0, np.random.default_rng(0), 2, 128, (10.0, 10.0), (0, 1))
    assert chips.values.shape[-1] == 64
    assert chips.valid[:, 0].mean() == pytest.approx(40 / 60, abs=0.05)


def test_nodata_of_one_band_leaves_the_others(make_raster: MakeRaster) -> None:
    values = numbered(100, 100)
    values[1, :, :50] = -1
    reader = SceneReader([scene(make_raster(values, nodata=-1))], seed=0)
    chips = reader.draw(0, np.random.default_rng(0), 1, 64, (10.0, 10.0), (1, 0))
    assert chips.valid[0, 1].all() and 0 < chips.valid[0, 0].mean() < 1
    assert (chips.values[0, 0][~chips.valid[0, 0]] == 0).all()
