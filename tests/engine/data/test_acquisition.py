"""When and where a raster was taken, from what files of real products say."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import rasterio
import rasterio.warp
from affine import Affine
from geopeft.data.acquisition import Acquisition, Chronicle, acquisition_of, frames_of
from geopeft.data.bands import Band
from geopeft.data.raster import RasterInfo, describe


@pytest.fixture
def info(make_raster) -> RasterInfo:
    """60 columns and 40 rows of 10 m in UTM zone 33."""
    return describe(str(make_raster(np.ones((1, 40, 60), np.uint16))))


def taken(info: RasterInfo, name: str = "raster.tif", **tags: str) -> Acquisition:
    return acquisition_of(dataclasses.replace(info, path=f"/data/20010101/{name}", tags=tags))


def time(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("S2A_MSIL2A_20240612T101031_N0510_R022_T32UPU_20240612T155555.tif", time(2024, 6, 12, 10, 10, 31)),
        ("T32UPU_20240612T101031_B04_10m.jp2", time(2024, 6, 12, 10, 10, 31)),
        ("LC08_L2SP_193026_20200619_20200824_02_T1_SR_B4.TIF", time(2020, 6, 19, 12)),
        ("HLS.S30.T32UPU.2024164T101031.v2.0.B04.tif", time(2024, 6, 12, 10, 10, 31)),
        ("MOD09A1.A2023365.h18v04.006.tif", time(2023, 12, 31, 12)),
        ("field_20240612.tif", time(2024, 6, 12, 12)),
        ("field 2024-06-12 10m.tif", time(2024, 6, 12, 12)),
        ("field_20240612_9912.tif", time(2024, 6, 12, 12)),
        ("field_20240612_101500.tif", time(2024, 6, 12, 10, 15)),
        ("field_20240230_20240301.tif", time(2024, 3, 1, 12)),
        ("ortho_33412056.tif", None),
        ("tile_2012345.tif", None),
        ("ortho.tif", None),
    ],
)
def test_file_names_say_the_time(info: RasterInfo, name: str, wanted: datetime | None) -> None:
    found = taken(info, name)
    assert found.time == wanted
    assert found.how == ("its file name" if wanted else "")


@pytest.mark.parametrize(
    ("tag", "text", "wanted"),
    [
        ("acquisitiondatetime", "2024-06-12 10:10:31", time(2024, 6, 12, 10, 10, 31)),
        ("datetime", "2024-06-12T12:10:31.024+02:00", time(2024, 6, 12, 10, 10, 31)),
        ("acquisition_time", "2005-04-21T07:53:23Z", time(2005, 4, 21, 7, 53, 23)),
        ("date_acquired", "2020-06-19", time(2020, 6, 19, 12)),
        ("sensing_time", "2024-06-12T10:15:31.1Z; 2024-06-12T10:15:45Z", time(2024, 6, 12, 10, 15, 31)),
    ],
)
def test_tags_say_the_time_before_the_file_name(info: RasterInfo, tag: str, text: str, wanted: datetime) -> None:
    found = taken(info, "x_19990101.tif", **{tag: text})
    assert (found.time, found.how) == (wanted, f"its tag {tag}")


def test_the_imagery_domain_is_read_from_a_file(make_raster) -> None:
    path = make_raster(np.ones((1, 8, 8), np.uint8))
    with rasterio.open(path, "r+") as out:
        out.update_tags(ns="IMAGERY", ACQUISITIONDATETIME="2024-06-12 10:10:31")
    assert acquisition_of(describe(str(path))).time == time(2024, 6, 12, 10, 10, 31)


def test_the_time_a_tiff_carries_comes_last_since_it_is_often_that_of_the_file(info: RasterInfo) -> None:
    tag = {"tifftag_datetime": "2024:06:12 10:11:12"}
    assert taken(info, "x_20200619.tif", **tag).time == time(2020, 6, 19, 12)
    assert taken(info, "x.tif", **tag).time == time(2024, 6, 12, 10, 11, 12)


def test_dates_that_cannot_be_are_passed_over_and_told(info: RasterInfo) -> None:
    ahead = (datetime.now(UTC) + timedelta(days=9)).strftime("%Y%m%d")
    found = taken(info, f"x_{ahead}.tif", datetime="2024-13-45", acquisition_date="last summer")
    assert found.time is None
    assert found.ignored == (
        "2024-13-45 of its tag datetime", "'last summer' of its tag acquisition_date", f"{ahead} of its file name",
    )  # fmt: skip
    assert taken(info, "x_20240612.tif", datetime="2024-13-45").time == time(2024, 6, 12, 12)
    odd = dataclasses.replace(info, path="x_20240612.tif", tags={"datetime": "2024-13-45"})
    said = Chronicle([odd], [("",)]).sentences()
    assert "2024-13-45 of its tag datetime is no date" in said[0]
    assert "taken on 2024-06-12, as its file name says" in said[1]


def test_each_chip_gets_the_time_of_its_raster_and_its_own_place(info: RasterInfo) -> None:
    south = dataclasses.replace(info, path="b.tif", tags={"datetime": "2020-12-31T18:30:00Z"})
    found = Chronicle([info, south], [("",), ("",)]).of([(1, 0, 0), (0, 0, 0), (1, 20, 40)], 20, 20)
    assert found.time.dtype == found.place.dtype == np.float32
    np.testing.assert_array_equal(found.time[:, 0], [[2020, 366, 18.5], [np.nan] * 3, [2020, 366, 18.5]])
    lon, lat = rasterio.warp.transform("EPSG:32633", "EPSG:4326", [300_100], [5_799_900])
    np.testing.assert_allclose(found.place[0], [lat[0], lon[0]], atol=1e-5)
    assert (12 < lon[0] < 12.1) and (52.3 < lat[0] < 52.4)
    # The last chip lies 400 m east and 200 m south of the first.
    step = (found.place[2] - found.place[0]) * [111_320, 111_320 * np.cos(np.radians(52.3))]
    np.testing.assert_allclose(step, [-200, 400], atol=25)
    np.testing.assert_array_equal(found.place[0], found.place[1])


def test_places_follow_a_rotated_grid_and_are_unknown_off_the_globe(make_raster) -> None:
    values = np.ones((1, 40, 60), np.uint16)
    turned = describe(
        str(make_raster(values, "turned.tif", crs="EPSG:4326", transform=Affine(0, 0.01, 10, 0.01, 0, 50)))
    )
    found = Chronicle([turned], [("",)]).of([(0, 10, 30)], 2, 2)
    np.testing.assert_allclose(found.place, [[50.31, 10.11]], atol=1e-5)
    off = describe(str(make_raster(values, "off.tif", crs="EPSG:4326", transform=Affine(0.01, 0, 10, 0, -0.01, 95))))
    assert np.isnan(Chronicle([off], [("",)]).of([(0, 0, 0)], 2, 2).place).all()


def test_the_dates_of_bands_make_the_frames(info: RasterInfo) -> None:
    bands = [
        Band(1, "B04 2024-07-01", date="2024-07-01"), Band(2, "B04 2024-06-12", date="2024-06-12"),
        Band(3, "ndvi 2020-01-01", date="2020-01-01"), Band(4, "dem"),
    ]  # fmt: skip
    dates = frames_of(bands, [True, True, False, False])
    assert dates == ("2024-06-12", "2024-07-01")
    assert frames_of([bands[3]], [True]) == ("",)
    assert len(frames_of(bands, [False] * 4)) == 3
    found = Chronicle([info], [dates]).of([(0, 0, 0)], 8, 8)
    np.testing.assert_array_equal(found.time, [[[2024, 164, 12], [2024, 183, 12]]])
