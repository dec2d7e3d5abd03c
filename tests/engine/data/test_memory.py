"""Where a model has learned is known again: in the same raster, in a part of it, in a coarser one of the same place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from conftest import MakeRaster  # type: ignore[import-not-found]
from geopeft.data import memory
from geopeft.data.chips import Site
from geopeft.data.memory import Memory
from geopeft.data.raster import RasterInfo, describe
from geopeft.data.split import HELD, TAUGHT, split_by_blocks


def place(row: int, col: int, class_index: int = 0, side: int = 10, group: int = -1, raster: int = 0) -> Site:
    """A square of labelled pixels."""
    rows, cols = np.mgrid[row : row + side, col : col + side]
    points = np.stack([rows.ravel(), cols.ravel()], 1)
    return Site(raster, group if group >= 0 else row * 10_000 + col, class_index, points, len(points))


@pytest.fixture
def raster(make_raster: MakeRaster) -> RasterInfo:
    return describe(str(make_raster(np.ones((1, 400, 400), np.uint8))))


TEACHES = [place(20, 20), place(200, 300)]
JUDGES = [place(100, 40), place(300, 100)]


def test_places_are_known_again(raster: RasterInfo) -> None:
    found = Memory.of([raster], TEACHES, JUDGES)
    places = [place(20, 20), place(26, 26), place(300, 100), place(380, 380), place(60, 20)]
    assert found.roles([raster], places) == [TAUGHT, TAUGHT, HELD, "", ""]


def test_a_place_that_taught_in_any_part_judges_nothing(raster: RasterInfo) -> None:
    found = Memory.of([raster], [place(100, 100)], [place(100, 110)])
    assert found.roles([raster], [place(100, 100, side=40)]) == [TAUGHT]


def test_a_part_of_the_raster_and_a_coarser_one_are_the_same_ground(
    raster: RasterInfo, make_raster: MakeRaster
) -> None:
    found = Memory.of([raster], TEACHES, JUDGES)
    affine = raster.geobox.affine
    part = describe(
        str(make_raster(np.ones((1, 200, 200), np.uint8), "part.tif", transform=affine * Affine.translation(10, 10)))
    )
    assert found.roles([part], [place(10, 10), place(90, 30), place(150, 10)]) == [TAUGHT, HELD, ""]
    coarse = describe(
        str(make_raster(np.ones((1, 80, 80), np.uint8), "coarse.tif", transform=affine * Affine.scale(5)))
    )
    assert found.roles([coarse], [place(4, 4, side=2), place(20, 8, side=2), place(70, 70, side=2)]) == [
        TAUGHT,
        HELD,
        "",
    ]


def test_the_same_numbers_in_another_crs_are_another_place(raster: RasterInfo, make_raster: MakeRaster) -> None:
    other = describe(str(make_raster(np.ones((1, 400, 400), np.uint8), "zone.tif", crs="EPSG:32634")))
    assert Memory.of([raster], TEACHES, JUDGES).roles([other], TEACHES) == ["", ""]


def test_what_was_known_before_stays_known(raster: RasterInfo, make_raster: MakeRaster) -> None:
    """Also when it was learned on pixels of another size."""
    transform = raster.geobox.affine * Affine.scale(0.5)
    fine = describe(str(make_raster(np.ones((1, 800, 800), np.uint8), "fine.tif", transform=transform)))
    first = Memory.of([raster], TEACHES, JUDGES)
    both = Memory.of([fine], [place(600, 700)], [], first)
    assert both.roles([raster], [*TEACHES, *JUDGES]) == [TAUGHT, TAUGHT, HELD, HELD]
    assert both.roles([fine], [place(600, 700), place(700, 600)]) == [TAUGHT, ""]


def test_it_goes_through_arrays_and_is_not_taken_from_others(raster: RasterInfo) -> None:
    found = Memory.of([raster], TEACHES, JUDGES)
    again = Memory.from_arrays({**found.arrays(), "head.weight": np.zeros((2, 2))})
    assert again is not None and again.roles([raster], TEACHES) == [TAUGHT, TAUGHT]
    assert Memory.from_arrays({}) is None
    assert Memory.from_arrays({**found.arrays(), "memory.held": np.zeros((2, 2))}) is None


def test_it_tells_nobody_where_that_was(raster: RasterInfo) -> None:
    """Neither pixels nor coordinates of the places are among its numbers."""
    numbers = np.abs(Memory.of([raster], TEACHES, JUDGES).taught)
    assert numbers.min() > 10**12


def test_many_labels_are_remembered_in_coarser_cells(raster: RasterInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_CELLS", 60)
    sites = [place(row, col) for row in range(0, 400, 20) for col in range(0, 200, 20)]
    found = Memory.of([raster], sites, [])
    assert len(found.taught) <= 60
    assert found.roles([raster], [*sites[:3], place(200, 330)]) == [TAUGHT, TAUGHT, TAUGHT, ""]


# How it decides what is held out


def many(count: int = 8) -> list[Site]:
    return [place(row * 100, col * 100, (row + col) % 2) for row in range(count) for col in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_what_was_held_out_stays_so_and_what_taught_teaches(seed: int) -> None:
    sites = many()
    before = split_by_blocks(sites, 64, 11)
    judged = {site.group for site in before.validation}
    roles = [HELD if site.group in judged else TAUGHT for site in sites]
    after = split_by_blocks(sites, 64, seed, earlier=roles)
    assert {site.group for site in after.validation} == judged


@pytest.mark.parametrize("seed", range(3))
def test_new_labels_are_held_out_until_there_is_a_quarter_again(seed: int) -> None:
    sites = many()
    roles = [TAUGHT if site.group < 400 * 10_000 else "" for site in sites]
    validation = split_by_blocks(sites, 64, seed, earlier=roles).validation
    assert all(site.group >= 400 * 10_000 for site in validation)
    share = len(validation) / len(sites)
    assert 0.2 < share <= 0.4 and {site.class_index for site in validation} == {0, 1}


def test_no_block_is_held_out_in_which_another_label_has_taught() -> None:
    sites = many() + [place(20, 20, 0), place(30, 700, 1)]
    roles = ["" if index else TAUGHT for index in range(len(sites))]
    for seed in range(5):
        validation = split_by_blocks(sites, 64, seed, earlier=roles).validation
        assert not any(site.group == 20 * 10_000 + 20 for site in validation)


def test_a_class_with_too_few_places_may_still_hold_what_it_held() -> None:
    sites = [*many(), place(900, 900, 2)]
    roles = [*[""] * 64, HELD]
    validation = split_by_blocks(sites, 64, 0, earlier=roles).validation
    assert 2 in {site.class_index for site in validation} and len(validation) > 10


def test_without_an_earlier_model_nothing_changes() -> None:
    sites = many()
    assert split_by_blocks(sites, 64, 3) == split_by_blocks(sites, 64, 3, earlier=[""] * len(sites))


def test_the_path_of_a_raster_does_not_matter(raster: RasterInfo, tmp_path: Path) -> None:
    copy = tmp_path / "copy.tif"
    copy.write_bytes(Path(raster.path).read_bytes())
    assert Memory.of([raster], TEACHES, JUDGES).roles([describe(str(copy))], TEACHES) == [TAUGHT, TAUGHT]
