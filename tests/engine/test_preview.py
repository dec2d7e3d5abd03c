"""The preview job: right, like a map of `predict`, quick to change, and soon stopped."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from geopeft import preview, scenes
from geopeft.data.raster import RasterReader
from geopeft.errors import Canceled, GeopeftError
from geopeft.events import Reporter
from geopeft.job import parse
from geopeft.preview import Warm
from geopeft.texture_tiles import TextureTiles

MakeFile = Callable[..., Path]
Place = tuple[str, int, int, int]
SIDE = 300
NAMES = ("blue", "green", "red", "nir")
LEFT, TOP, PIXEL = 300_000, 5_800_000, 10
FIELDS: list[Place] = [
    (("forest", "field")[(row + col) % 2], 75 * row + 20, 75 * col + 20, 12) for row in range(4) for col in range(4)
]


def world(size: int = SIDE, bands: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(values (C, n, n) uint16, classes (n, n)): fields of 75 px, told apart by their bands; a corner has no data."""
    classes = (np.arange(size)[:, None] // 75 + np.arange(size) // 75) % 2
    spectra = np.array([[500, 700, 600, 3000], [900, 1100, 1500, 1800]], np.float64)[:, :bands]
    if bands > 4:
        spectra = np.linspace([400, 900], [3000, 1500], bands).T
    values = spectra[classes].transpose(2, 0, 1) + np.random.default_rng(0).normal(0, 60, (bands, size, size))
    values[:, :30, :40] = 0
    return values.astype(np.uint16), classes


def box(row: int, col: int, side: int) -> shapely.Polygon:
    left, top = LEFT + PIXEL * col, TOP - PIXEL * row
    return shapely.box(left, top - PIXEL * side, left + PIXEL * side, top)


@pytest.fixture
def ask(make_raster: MakeFile, make_labels: MakeFile, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a preview of the world with some labels; other fields by name."""
    values, _ = world()
    raster = make_raster(values, nodata=0, names=NAMES)

    def run(
        places: Sequence[Place] = FIELDS, warm: Warm | None = None, reporter: Reporter | None = None, **fields: Any
    ) -> dict[str, Any]:
        labels = make_labels([box(*place) for _, *place in places], [name for name, *_ in places])
        job = {"job": "preview", "raster": str(raster), "labels": str(labels), "out": str(tmp_path / "map.tif")}
        return preview.run(parse({**job, **fields}), reporter or Reporter(), warm or Warm())  # type: ignore[arg-type]

    return run


def read(outputs: dict[str, Any]) -> np.ndarray:
    with rasterio.open(outputs["class_raster"]) as raster:
        values: np.ndarray = raster.read(1)
    return values


def test_the_map_is_right_and_looks_like_one_of_predict(ask: Callable[..., dict[str, Any]]) -> None:
    outputs = ask(confidence=True)
    found, (_, classes) = read(outputs), world()
    assert [c["name"] for c in outputs["classes"]] == ["field", "forest"]
    expected = np.where(classes == 0, 2, 1)
    assert not found[:30, :40].any()
    valid = found > 0
    assert valid.sum() == SIDE * SIDE - 1200
    assert (found == expected)[valid].mean() > 0.97
    with rasterio.open(outputs["class_raster"]) as raster:
        assert json.loads(raster.tags(1)["CLASSES"]) == {"1": "field", "2": "forest"}
        assert raster.nodata == 0 and raster.colormap(1)[1][3] == 255
        assert raster.transform[:6] == (10, 0, LEFT, 0, -10, TOP) and raster.crs.to_epsg() == 32633
    with rasterio.open(outputs["confidence"]) as raster:
        percent = raster.read(1)
    assert raster.nodata == 255 and percent[0, 0] == 255 and percent[100, 100] > 80
    assert "field" in Path(outputs["class_raster"] + ".aux.xml").read_text()


def test_a_part_is_the_same_as_in_the_whole(ask: Callable[..., dict[str, Any]]) -> None:
    whole = read(ask())
    left, top = LEFT + 10 * 70, TOP - 10 * 20
    outputs = ask(extent=[left + 3, top - 1400 + 3, left + 1000 - 3, top - 3])
    assert (read(outputs) == whole[20:160, 70:170]).all()
    with rasterio.open(outputs["class_raster"]) as raster:
        assert raster.bounds == (left, top - 1400, left + 1000, top)


def test_an_extent_beyond_the_raster_is_cut(ask: Callable[..., dict[str, Any]]) -> None:
    assert read(ask(extent=[LEFT - 5000, TOP - 500, LEFT + 500, TOP + 9000])).shape == (50, 50)


def test_an_extent_outside_is_refused(ask: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(GeopeftError) as refused:
        ask(extent=[LEFT - 500, TOP - 500, LEFT - 100, TOP])
    assert refused.value.code == "EXTENT_OUTSIDE"


@pytest.mark.parametrize("extent", [[0, 0, 1], [5, 0, 1, 1], [0, 5, 1, 1]])
def test_an_extent_has_four_sides(extent: list[float]) -> None:
    with pytest.raises(GeopeftError, match="extent"):
        parse({"job": "preview", "raster": "r", "labels": "l", "out": "o", "extent": extent})


def test_two_labels_of_two_classes_are_enough(ask: Callable[..., dict[str, Any]]) -> None:
    found, (_, classes) = read(ask([FIELDS[5], FIELDS[6]])), world()
    valid = found > 0
    assert (found == np.where(classes == 0, 2, 1))[valid].mean() > 0.9


def test_two_single_pixels_are_enough(ask: Callable[..., dict[str, Any]]) -> None:
    assert set(np.unique(read(ask([("a", 100, 100, 1), ("b", 100, 180, 1)])))) == {0, 1, 2}


def test_one_class_is_refused_but_prepares_the_next_preview(
    ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = Warm()
    with pytest.raises(GeopeftError) as refused:
        ask([FIELDS[5]], warm)
    assert refused.value.code == "LABELS_ONE_CLASS"
    monkeypatch.setattr(RasterReader, "read_bands", None)
    assert read(ask([FIELDS[5], FIELDS[6]], warm)).any()


def test_classes_on_no_data_do_not_count(ask: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(GeopeftError, match="labelled as nothing") as refused:
        ask([("nothing", 5, 5, 10), ("forest", 100, 100, 10)])
    assert refused.value.code == "LABELS_EMPTY"


def test_a_background_makes_a_class_of_the_rest(ask: Callable[..., dict[str, Any]]) -> None:
    outputs = ask([place for place in FIELDS if place[0] == "field"], background="other")
    assert [c["name"] for c in outputs["classes"]] == ["field", "other"]


def test_names_order_and_colours_may_be_given(ask: Callable[..., dict[str, Any]]) -> None:
    styles = [{"value": v, "name": v.title(), "color": c} for v, c in (("forest", "#00ff00"), ("field", "#ffcc00"))]
    outputs = ask(classes=styles)
    assert outputs["classes"] == [
        {"value": 1, "name": "Forest", "color": "#00ff00"},
        {"value": 2, "name": "Field", "color": "#ffcc00"},
    ]
    assert read(outputs)[110, 35] == 2


def test_a_large_extent_is_seen_from_further_away(ask: Callable[..., dict[str, Any]]) -> None:
    outputs = ask(max_pixels=SIDE * SIDE // 9 + 1)
    found, (_, classes) = read(outputs), world()
    assert outputs["factor"] == 3 and found.shape == (100, 100)
    assert (found == np.where(classes[1::3, 1::3] == 0, 2, 1))[found > 0].mean() > 0.95
    with rasterio.open(outputs["class_raster"]) as raster:
        assert raster.bounds == (LEFT, TOP - 3000, LEFT + 3000, TOP)


def test_labels_that_run_together_from_afar_are_told(ask: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(GeopeftError) as refused:
        ask([("a", 112, 112, 1), ("b", 112, 113, 1)], max_pixels=1000)
    assert refused.value.code == "LABELS_TOO_SMALL"
    with pytest.raises(GeopeftError) as refused:
        ask([("a", 112, 112, 1)], max_pixels=1000)
    assert refused.value.code == "LABELS_ONE_CLASS"


def test_a_new_label_needs_nothing_of_the_raster(
    ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = Warm()
    before = read(ask(FIELDS[:8], warm))
    monkeypatch.setattr(RasterReader, "read_bands", None)
    monkeypatch.setattr(scenes, "describe", None)
    monkeypatch.setattr(scenes, "band_statistics", None)
    after = read(ask([*FIELDS[:8], ("water", 290, 10, 5)], warm))
    assert (before != after).any() and 3 in after


def test_a_move_of_the_extent_keeps_the_classifier(
    ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, make_labels: MakeFile
) -> None:
    warm, made, real = Warm(), [], preview.fit_classical

    def counted(*given: Any) -> bytes:
        made.append(1)
        assert len(given[0].ground) > 1000, "ground without labels has its say, as in fit"
        return real(*given)

    monkeypatch.setattr(preview, "fit_classical", counted)
    labels = make_labels([box(*place) for _, *place in FIELDS], [name for name, *_ in FIELDS], "kept.gpkg")
    for offset in (0, 300):
        ask(warm=warm, labels=str(labels), extent=[LEFT + offset, TOP - 900, LEFT + offset + 900, TOP])
    assert len(made) == 1
    os.utime(labels)
    ask(warm=warm, labels=str(labels))
    assert len(made) == 2


def test_a_raster_that_has_changed_is_read_again(
    ask: Callable[..., dict[str, Any]], make_raster: MakeFile, tmp_path: Path
) -> None:
    warm = Warm()
    before = read(ask(warm=warm))
    values, _ = world()
    make_raster(values[:, ::-1].copy(), nodata=0, names=NAMES)
    after = read(ask(warm=warm))
    assert not after[-30:, :40].any() and before[-1, 0]


def test_memory_is_bounded_and_changes_little(ask: Callable[..., dict[str, Any]]) -> None:
    tight = Warm(TextureTiles(3_000_000))
    outputs = ask(warm=tight)
    assert tight.tiles.size_bytes <= 3_000_000
    assert outputs["factor"] == 2
    assert (read(outputs) == read(ask(max_pixels=SIDE * SIDE // 4))).mean() > 0.97


def test_as_many_pixels_as_are_asked_for_are_mapped_without_more_memory(ask: Callable[..., dict[str, Any]]) -> None:
    tight = Warm(TextureTiles(3_000_000))
    outputs = ask(warm=tight, max_pixels=SIDE * SIDE)
    assert outputs["factor"] == 1
    # What the labels were seen in is kept, and not what is only mapped.
    assert 0 < tight.tiles.size_bytes < 1_500_000
    assert (read(outputs) == read(ask(max_pixels=SIDE * SIDE))).all()


def test_bands_that_lack_data_are_left_out(make_raster: MakeFile, make_labels: MakeFile, tmp_path: Path) -> None:
    values, _ = world()
    values[1, 100:200] = 0
    raster = make_raster(values, nodata=0, names=NAMES)
    labels = make_labels([box(*place) for _, *place in FIELDS], [name for name, *_ in FIELDS])
    job = {"job": "preview", "raster": str(raster), "labels": str(labels), "out": str(tmp_path / "map.tif")}
    found = read(preview.run(parse(job), Reporter(), Warm()))  # type: ignore[arg-type]
    assert found[100:200].all()
    found = read(preview.run(parse({**job, "bands": ["green", "nir"]}), Reporter(), Warm()))  # type: ignore[arg-type]
    assert not found[100:200].any()


@pytest.mark.parametrize("bands", [1, 20])
def test_any_number_of_bands_will_do(make_raster: MakeFile, make_labels: MakeFile, tmp_path: Path, bands: int) -> None:
    values, classes = world(bands=bands)
    raster = make_raster(values, nodata=0)
    labels = make_labels([box(*place) for _, *place in FIELDS], [name for name, *_ in FIELDS])
    job = {"job": "preview", "raster": str(raster), "labels": str(labels), "out": str(tmp_path / "map.tif")}
    found = read(preview.run(parse(job), Reporter(), Warm()))  # type: ignore[arg-type]
    assert (found == np.where(classes == 0, 2, 1))[found > 0].mean() > 0.95


class Watch(Reporter):
    """Measures how long the job goes between two looks at its cancel file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(None, folder)
        self.gaps: list[float] = []
        self._last = time.process_time()

    def check_canceled(self) -> None:
        now = time.process_time()
        self.gaps.append(now - self._last)
        self._last = now
        super().check_canceled()


def test_a_cancel_stops_it(ask: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "cancel").touch()
    with pytest.raises(Canceled):
        ask(reporter=Reporter(None, tmp_path))
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.slow
def test_a_cancel_never_waits_long(make_raster: MakeFile, make_labels: MakeFile, tmp_path: Path) -> None:
    """In processor time, since other programs may be at work."""
    values, _ = world(1000, 10)
    raster = make_raster(values, nodata=0, tiled=True)
    warm, watch = Warm(), Watch(tmp_path)
    job = {"job": "preview", "raster": str(raster), "out": str(tmp_path / "map.tif"), "labels": ""}
    for count in (15, 16):
        places = FIELDS[:count]
        labels = make_labels([box(*place) for _, *place in places], [name for name, *_ in places])
        preview.run(parse({**job, "labels": str(labels)}), watch, warm)  # type: ignore[arg-type]
    assert max(watch.gaps) < 0.3
