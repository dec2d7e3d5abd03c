from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from geopeft.data.labels import IGNORE, Labels, read_labels
from geopeft.data.raster import RasterInfo, describe
from geopeft.errors import LabelError
from geopeft.events import Reporter
from geopeft.job import ClassStyle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

pytestmark = pytest.mark.usefixtures("folder_unchanged")

MakeRaster = Callable[..., Path]
SIDE = 150


@pytest.fixture
def info(make_raster: MakeRaster) -> RasterInfo:
    return describe(str(make_raster(np.ones((1, SIDE, SIDE), np.uint8), "scene.tif")))


def labels_of(path: Path | str, *infos: RasterInfo, **options: Any) -> tuple[Labels, list[str]]:
    reporter = Reporter()
    return read_labels(str(path), "", infos, reporter=reporter, **options), reporter.messages


def burned(labels: Labels) -> np.ndarray:
    return labels.burn(0, Window(0, 0, SIDE, SIDE))[0]


def zones(*values: int, dtype: str = "uint8") -> np.ndarray:
    """Horizontal strips of the values."""
    return np.repeat(np.array(values, dtype), SIDE // len(values))[None, :, None] * np.ones((1, 1, SIDE), dtype)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_label_raster_on_the_same_grid_is_taken_as_it_is(
    info: RasterInfo, make_raster: MakeRaster, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    values = np.kron(rng.integers(0, 4, (1, 15, 15)), np.ones((1, 10, 10), int)).astype("uint8")
    labels, _ = labels_of(make_raster(values, nodata=0), info)
    truth = np.full(256, IGNORE, np.uint8)
    present = sorted(set(np.unique(values)) - {0})
    truth[present] = range(len(present))
    row, col = data.draw(st.integers(0, 140)), data.draw(st.integers(0, 140))
    classes, shapes = labels.burn(0, Window(col, row, 80, 80))
    inside = truth[values[0, row : row + 80, col : col + 80]]
    assert (classes[: inside.shape[0], : inside.shape[1]] == inside).all()
    assert ((shapes >= 0) == (classes != IGNORE)).all()
    for number in np.unique(shapes[shapes >= 0]):
        shape = labels.shapes[number]
        rows, cols = np.nonzero(shapes == number)
        assert (classes[shapes == number] == shape.class_index).all()
        row0, col0, row1, col1 = shape.bounds_px
        assert row0 <= rows.min() + row and rows.max() + row < row1
        assert col0 <= cols.min() + col and cols.max() + col < col1
    assert labels.pixel_counts() == [int((values == value).sum()) for value in present]


@pytest.mark.parametrize(
    ("dtype", "nodata", "tags", "expected"),
    [
        ("uint8", None, {}, ["1", "2"]),
        ("uint8", 0, {}, ["1", "2"]),
        ("uint8", 255, {}, ["0", "1", "2"]),
        ("int16", -1, {}, ["0", "1", "2"]),
        ("uint8", None, {"CLASSES": '{"0": "land", "1": "water", "2": "ice"}'}, ["ice", "land", "water"]),
        ("uint8", None, {"classes": "0 land,1 water,2 ice,255 not labelled"}, ["ice", "land", "water"]),
        ("uint8", 255, {"classes": "1: water; 2: ice"}, ["ice", "water"]),
        ("uint8", 2, {}, ["0", "1"]),
        ("uint8", None, {"classes": "0 none, 1 water, 2 ice"}, ["ice", "water"]),
        ("float32", None, {}, ["1", "2"]),
        ("uint8", None, {"CLASSES": "{broken"}, ["1", "2"]),
    ],
)
def test_which_values_are_classes(
    info: RasterInfo,
    make_raster: MakeRaster,
    dtype: str,
    nodata: float | None,
    tags: dict[str, str],
    expected: list[str],
) -> None:
    values = zones(0, 1, 2, dtype=dtype)
    values[0, :, :5] = 255
    if dtype == "float32":
        values[0, :, :5] = np.nan
    labels, _ = labels_of(make_raster(values, nodata=nodata, tags=tags), info)
    assert [c.name for c in labels.classes] == expected


def test_band_tags_and_colour_tables_are_read(info: RasterInfo, make_raster: MakeRaster) -> None:
    path = make_raster(zones(0, 1, 2), band_tags=[{"CLASSES": '{"1": "water", "2": "ice"}'}], photometric="palette")
    with rasterio.open(path, "r+") as out:
        out.write_colormap(1, {0: (0, 0, 0, 255), 1: (10, 20, 30, 255), 2: (200, 100, 50, 255)})
    labels, _ = labels_of(path, info)
    assert [(c.value, c.name, c.color) for c in labels.classes] == [
        ("2", "ice", "#c86432"), ("1", "water", "#0a141e"),
    ]  # fmt: skip


def test_category_names_of_gdal_are_read(info: RasterInfo, make_raster: MakeRaster, tmp_path: Path) -> None:
    make_raster(zones(0, 1, 2), "values.tif")
    (tmp_path / "labels.vrt").write_text(
        f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><SRS>EPSG:32633</SRS>'
        "<GeoTransform>300000, 10, 0, 5800000, 0, -10</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><CategoryNames><Category></Category><Category>water &amp; ice'
        "</Category><Category>land</Category></CategoryNames><SimpleSource>"
        f"<SourceFilename>{tmp_path / 'values.tif'}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    labels, _ = labels_of(tmp_path / "labels.vrt", info)
    assert [c.name for c in labels.classes] == ["land", "water & ice"]


def test_classes_given_match_by_value_or_name(info: RasterInfo, make_raster: MakeRaster) -> None:
    path = make_raster(zones(0, 1, 2, 3), tags={"classes": "1 water,2 ice,3 rock"})
    given = [ClassStyle(value="ice", name="ice"), ClassStyle(value="1", name="lake", color="#0000ff"),
             ClassStyle(value="0", name="land")]  # fmt: skip
    labels, messages = labels_of(path, info, classes=given)
    assert [c.name for c in labels.classes] == ["ice", "lake", "land"]
    strip = SIDE // 4 * SIDE
    assert labels.pixel_counts()[:2] == [strip, strip]
    assert labels.pixel_counts()[2] == strip
    assert any("3 (" in text for text in messages)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_finer_or_coarser_grid_is_looked_up_at_the_centres(
    info: RasterInfo, make_raster: MakeRaster, factor: float
) -> None:
    size = int(SIDE / factor)
    rng = np.random.default_rng(0)
    values = rng.integers(1, 4, (1, size, size)).astype("uint8")
    path = make_raster(values, transform=Affine(10 * factor, 0, 300_000, 0, -10 * factor, 5_800_000))
    at = np.floor((np.arange(SIDE) + 0.5) / factor + 1e-6).astype(int)
    assert (burned(labels_of(path, info)[0]) == values[0][np.ix_(at, at)] - 1).all()


def test_another_crs_is_looked_up_at_the_centres(info: RasterInfo, make_raster: MakeRaster) -> None:
    to_degrees = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(300_000, 5_800_000)
    values = np.ones((1, 400, 400), np.uint8)
    values[:, :, 200:] = 2
    path = make_raster(values, crs="EPSG:4326", transform=Affine(1e-4, 0, lon - 0.005, 0, -1e-4, lat + 0.005))
    labels, _ = labels_of(path, info)
    cols, rows = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
    x, _ = to_degrees.transform(300_000 + cols * 10, 5_800_000 - rows * 10)
    assert (burned(labels) == (x > lon + 0.015)).all()


def test_large_rasters_are_looked_up_again_and_give_the_same(
    info: RasterInfo, make_raster: MakeRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 4, (1, SIDE, SIDE)).astype("uint8")
    path = make_raster(values)
    kept, _ = labels_of(path, info)
    monkeypatch.setattr("geopeft.data.raster_labels.STORED_PX", 0)
    monkeypatch.setattr("geopeft.data.label_lookup.LOOKUP_PX", 50)
    again, _ = labels_of(path, info)
    for window in (Window(0, 0, SIDE, SIDE), Window(-7, 100, 90, 90)):
        (classes, shapes), (classes_again, shapes_again) = kept.burn(0, window), again.burn(0, window)
        assert (classes == classes_again).all() and (shapes == shapes_again).all()
    there = pickle.loads(pickle.dumps(again))
    assert (burned(there) == burned(kept)).all()


def test_the_number_of_shapes_is_bounded(
    info: RasterInfo, make_raster: MakeRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geopeft.data.raster_labels.MAX_CELLS", 4)
    values = np.random.default_rng(0).integers(1, 4, (1, SIDE, SIDE)).astype("uint8")
    labels, _ = labels_of(make_raster(values), info)
    assert len(labels.shapes) <= 4 * 3
    assert (labels.burn(0, Window(0, 0, SIDE, SIDE))[1] >= 0).all()


def test_a_smaller_label_raster_labels_what_it_covers_and_background_stays_inside(
    info: RasterInfo, make_raster: MakeRaster
) -> None:
    values = np.zeros((1, 30, 30), np.uint8)
    values[:, 5:15, 5:15] = 1
    values[:, 20:25, 5:15] = 1
    path = make_raster(values, transform=Affine(10, 0, 300_500, 0, -10, 5_799_500))
    labels, _ = labels_of(path, info, background="rest")
    assert labels.extent_px(0) == (55, 55, 75, 65)
    assert labels.pixel_counts() == [150, 50]


@pytest.mark.parametrize(
    ("values", "options", "code"),
    [
        (zones(0, 0), {}, "LABELS_EMPTY"),
        (zones(1, 1), {}, "LABELS_ONE_CLASS"),
        (zones(1, 2), {"crs": None}, "LABELS_NO_CRS"),
        (zones(1, 2), {"transform": Affine(10, 0, 900_000, 0, -10, 5_800_000)}, "LABELS_OUTSIDE"),
        (np.random.default_rng(0).random((1, SIDE, SIDE)).astype("float32"), {}, "LABELS_NOT_CLASSES"),
        (np.arange(SIDE * SIDE).reshape(1, SIDE, SIDE).astype("uint16"), {}, "LABELS_NOT_CLASSES"),
        (np.arange(SIDE * SIDE).reshape(1, SIDE, SIDE).astype("uint16") % 300, {}, "LABELS_MANY_CLASSES"),
    ],
)
def test_a_raster_that_cannot_teach_is_refused(
    info: RasterInfo, make_raster: MakeRaster, values: np.ndarray, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(LabelError) as caught:
        labels_of(make_raster(values, **options), info)
    assert caught.value.code == code and caught.value.hint
