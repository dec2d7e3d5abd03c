"""Areas from a sample: drawn from a map, labelled, and estimated, through the files of the two jobs."""

import csv
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from geopeft.data.pixel_area import PixelAreas
from geopeft.data.raster import describe
from geopeft.errors import GeopeftError
from geopeft.events import Reporter
from geopeft.job import AreaJob, SampleJob
from geopeft.sampling import area, sample
from geopeft.sampling.design import read_design

CLASSES = {"CLASSES": json.dumps({"1": "Forest", "2": "water", "3": "built up"})}
SIDE = 300

Change = Callable[[dict[str, np.ndarray], np.ndarray], Any]


def a_map() -> np.ndarray:
    """(1, 300, 300) stripes of three classes, 50, 40 and 10 %, with a margin without data."""
    values = np.ones((1, SIDE, SIDE), np.uint8)
    values[:, 150:270], values[:, 270:] = 2, 3
    values[:, :, :20] = 0
    return values


@pytest.fixture(autouse=True)
def a_quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the statistics that are tested here, and a disk takes its time."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setenv("OGR_SQLITE_SYNCHRONOUS", "OFF")


@pytest.fixture
def drawn(make_raster: Callable[..., Path], tmp_path: Path) -> Path:
    """A sample of 120 points of the map."""
    path = make_raster(a_map(), "map.tif", nodata=0, band_tags=[CLASSES])
    draw(path, tmp_path / "points.gpkg", points=120)
    return tmp_path / "points.gpkg"


def draw(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    return sample.run(SampleJob(map=str(path), out=str(out), **options), Reporter())


def estimated(path: Path, **options: Any) -> dict[str, Any]:
    return area.run(AreaJob(points=str(path), **options), Reporter())


def change(path: Path, how: Change) -> None:
    """Rewrites the points, as an analyst's program does: `how` changes fields and geometries, or gives new ones."""
    meta, _, shapes, columns = pyogrio.raw.read(path, layer="sample")
    data, places = dict(zip(meta["fields"].tolist(), columns, strict=True)), shapely.from_wkb(shapes)
    data["class"], data["note"] = data["class"].astype(object), data["note"].astype(object)
    data, places = how(data, places) or (data, places)
    pyogrio.raw.write(path, shapely.to_wkb(places), list(data.values()), list(data), layer="sample", driver="GPKG",
                      geometry_type="Point", crs=meta["crs"])  # fmt: skip


def label_as_mapped(path: Path, names: tuple[str, ...] = ("Forest", "water", "built up"), until: int = 10**6) -> None:
    """Labels the points up to a number as what the map says."""

    def how(data: dict[str, np.ndarray], _: np.ndarray) -> None:
        for at, (number, value) in enumerate(zip(data["number"], data["stratum"], strict=True)):
            data["class"][at] = names[value - 1] if number <= until else None

    change(path, how)


def test_points_are_pixel_centres_of_their_class_each_once_and_the_same_again(drawn: Path, tmp_path: Path) -> None:
    meta, _, shapes, (numbers, strata, classes, weights, _) = pyogrio.raw.read(drawn, layer="sample")
    assert meta["fields"].tolist() == ["number", "stratum", "class", "weight", "note"]
    x, y = shapely.get_coordinates(shapely.from_wkb(shapes)).T
    col, row = ~Affine(10, 0, 300_000, 0, -10, 5_800_000) * (x, y)
    assert np.all(col % 1 == 0.5) and np.all(row % 1 == 0.5)
    assert (a_map()[0][row.astype(int), col.astype(int)] == strata).all()
    assert len(set(zip(row, col, strict=True))) == 120 and numbers.tolist() == list(range(1, 121))
    assert np.bincount(strata).tolist() == [0, 56, 44, 20] and all(value is None for value in classes)
    # In random order: the first half is not the upper half.
    assert abs(row[:60].mean() - row[60:].mean()) < 40
    assert weights[strata == 3] == pytest.approx(30 * 280 / 20)
    draw(tmp_path / "map.tif", tmp_path / "again.gpkg", points=120)
    draw(tmp_path / "map.tif", tmp_path / "other.gpkg", points=120, seed=1)
    again, other = (pyogrio.raw.read(tmp_path / f"{name}.gpkg", layer="sample")[2] for name in ("again", "other"))
    assert again.tolist() == shapes.tolist() != other.tolist()


def test_small_windows_draw_every_pixel_of_a_stratum_alike(
    make_raster: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pixel is drawn where all are asked for, in however many windows they lie."""
    monkeypatch.setattr(sample, "WINDOW_PX", 16)
    values = np.random.default_rng(0).integers(0, 3, (1, 40, 50), np.uint8)
    path = make_raster(values, nodata=0)
    draw(path, tmp_path / "all.gpkg", points=5000)
    design = read_design(tmp_path / "all.gpkg")
    col, row = ~design.affine * (design.x, design.y)
    there = np.zeros((40, 50), int)
    there[row.astype(int), col.astype(int)] = design.stratum + 1
    assert (there == values[0]).all()


def test_the_number_of_points_is_chosen_and_explained(make_raster: Callable[..., Path], tmp_path: Path) -> None:
    path = make_raster(a_map(), nodata=0)
    found = draw(path, tmp_path / "s.gpkg", json_file=str(tmp_path / "s.json"))
    assert found["points"] == 399 and "399 are needed for a standard error of 0.02" in found["why"]
    assert json.loads((tmp_path / "s.json").read_text())["strata"] == found["strata"]
    assert draw(path, tmp_path / "s.gpkg", standard_error=0.2)["points"] == 60
    assert draw(path, tmp_path / "s.gpkg", standard_error=0.2, fewest=3)["points"] == 50


def test_an_area_of_interest_bounds_the_sample(
    make_raster: Callable[..., Path], make_labels: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_raster(a_map(), nodata=0)
    aoi = make_labels([shapely.box(300_500, 5_797_000, 302_000, 5_799_000)], name="aoi.gpkg")
    draw(path, tmp_path / "s.gpkg", points=60, aoi=str(aoi))
    design = read_design(tmp_path / "s.gpkg")
    assert [(one.value, one.pixels) for one in design.strata] == [(1, 50 * 150), (2, 120 * 150), (3, 30 * 150)]
    assert design.x.min() > 300_500 and design.x.max() < 302_000 and design.y.max() < 5_799_000
    away = make_labels([shapely.box(400_000, 5_797_000, 400_100, 5_797_100)], name="away.gpkg")
    with pytest.raises(GeopeftError) as caught:
        draw(path, tmp_path / "s.gpkg", aoi=str(away))
    assert caught.value.code == "AREA_OUTSIDE"


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        # A degree of longitude at 60 north is half of one at the equator.
        ("EPSG:4326", Affine(0.01, 0, 10, 0, -0.01, 60.005), 111_412 * 55_800 / 1e4),
        # Web Mercator is four times too large there: x and y of 10 E, 60 N.
        ("EPSG:3857", Affine(100, 0, 1_113_195, 0, -100, 8_399_788), 2_501),
        ("EPSG:32633", Affine(10, 0, 500_000, 0, -10, 5_800_000), 100.08),
    ],
)
def test_pixels_have_their_area_on_the_ground(
    make_raster: Callable[..., Path], crs: str, transform: Affine, expected: float
) -> None:
    info = describe(str(make_raster(np.ones((1, 4, 4), np.uint8), crs=crs, transform=transform)), classes=True)
    assert PixelAreas(info).of(np.array([0]), np.array([0]))[0] == pytest.approx(expected, rel=0.003)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (np.ones((1, 20, 20), np.float32), "MAP_NOT_CLASSES"),
        (np.ones((3, 20, 20), np.uint8), "MAP_NOT_CLASSES"),
        (np.arange(400, dtype=np.uint16).reshape(1, 20, 20), "MAP_NOT_CLASSES"),
        (np.zeros((1, 20, 20), np.uint8), "MAP_EMPTY"),
    ],
)
def test_what_is_no_map_of_classes_is_refused(
    make_raster: Callable[..., Path], tmp_path: Path, values: np.ndarray, code: str
) -> None:
    with pytest.raises(GeopeftError) as caught:
        draw(make_raster(values), tmp_path / "s.gpkg")
    assert caught.value.code == code and not (tmp_path / "s.gpkg").exists()


def test_a_sample_beyond_all_labelling_is_refused(make_raster: Callable[..., Path], tmp_path: Path) -> None:
    values = np.arange(1, 13, dtype=np.uint8).repeat(10_000).reshape(1, 300, 400)
    with pytest.raises(GeopeftError) as caught:
        draw(make_raster(values), tmp_path / "s.gpkg", fewest=10_000)
    assert caught.value.code == "SAMPLE_TOO_LARGE"


def test_what_a_map_does_not_know_is_a_stratum_but_no_class(make_raster: Callable[..., Path], tmp_path: Path) -> None:
    values = a_map()
    values[:, 100:150, 20:] = 255
    names = {"CLASSES": json.dumps({"1": "forest", "2": "water", "3": "built up", "255": "unknown"})}
    path, out = make_raster(values, nodata=0, band_tags=[names]), tmp_path / "s.gpkg"
    assert [row["name"] for row in draw(path, out, points=120)["classes"]] == ["forest", "water", "built up"]

    def how(data: dict[str, np.ndarray], _: np.ndarray) -> None:
        for at, value in enumerate(data["stratum"]):
            data["class"][at] = str(min(value, 3)) if value < 255 else "forest"

    change(out, how)
    found = estimated(out)
    assert [row["name"] for row in found["classes"]] == ["forest", "water", "built up"]
    # What is not known is not right; the forest in it counts as forest.
    assert found["overall_accuracy"]["value"] == pytest.approx(5 / 6)
    assert found["classes"][0]["area_ha"]["value"] == pytest.approx(150 * 280 * 0.01, rel=0.002)
    assert found["classes"][0]["mapped_ha"] == pytest.approx(100 * 280 * 0.01, rel=0.002)


def test_figures_are_those_of_the_labels(drawn: Path, tmp_path: Path) -> None:
    def how(data: dict[str, np.ndarray], _: np.ndarray) -> None:
        names = {1: "FOREST ", 2: "2", 3: "built  up"}
        data["class"][:] = [names[value] for value in data["stratum"]]
        # Of the first stratum a quarter is a class that the map does not have.
        data["class"][np.flatnonzero(data["stratum"] == 1)[:14]] = "bog"

    change(drawn, how)
    found = estimated(drawn, out=str(tmp_path / "a.csv"), json_file=str(tmp_path / "a.json"))
    forest, water, _, bog = found["classes"]
    hectares = SIDE * 280 / 100
    assert [forest["name"], bog["name"], bog["value"]] == ["Forest", "bog", None]
    assert forest["area_ha"]["value"] == pytest.approx(0.5 * 0.75 * hectares, rel=0.002)
    assert bog["area_ha"]["value"] == bog["difference_ha"] == pytest.approx(0.5 * 0.25 * hectares, rel=0.002)
    assert forest["difference_ha"] == pytest.approx(-0.125 * hectares, rel=0.002)
    assert forest["users_accuracy"]["value"] == 0.75 and forest["producers_accuracy"]["value"] == 1
    assert bog["users_accuracy"]["value"] is None and bog["producers_accuracy"]["value"] is None
    assert found["overall_accuracy"]["value"] == pytest.approx(0.875) and found["left_out"] == []
    assert found["error_matrix"]["points"] == [[42, 0, 0, 14], [0, 44, 0, 0], [0, 0, 20, 0]]
    assert water["area_ha"]["low"] < 0.4 * hectares < water["area_ha"]["high"]
    assert json.loads((tmp_path / "a.json").read_text())["classes"] == found["classes"]
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["Forest", "water", "built up", "bog"]
    assert float(rows[0]["area_ha"]) == forest["area_ha"]["value"] and rows[3]["users_accuracy"] == ""
    assert found["sentences"][1].startswith("Forest covers 314.9 ha (95 %: ")
    assert found["sentences"][1].endswith("; the map counts 419.9 ha, 105.0 ha more.")


def test_a_misspelt_class_is_told_with_the_one_that_is_meant(drawn: Path) -> None:
    label_as_mapped(drawn, ("Forrest", "water", "built up"))
    with pytest.raises(GeopeftError, match=r"'Forrest' \(56 points; did you mean 'Forest'\?\)") as caught:
        estimated(drawn)
    assert caught.value.code == "SAMPLE_CLASSES"
    assert estimated(drawn, other_classes=("Forrest",))["classes"][3]["name"] == "Forrest"


def test_points_that_nobody_drew_give_no_area(make_labels: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(GeopeftError, match="does not say how its points were drawn") as caught:
        estimated(make_labels([shapely.Point(300_500, 5_799_000)]))
    assert caught.value.code == "SAMPLE_NO_DESIGN"
    with pytest.raises(GeopeftError) as caught:
        estimated(tmp_path / "gone.gpkg")
    assert caught.value.code == "LABELS_MISSING"


def test_a_changed_design_is_refused(drawn: Path) -> None:
    label_as_mapped(drawn)
    meta, _, _, columns = pyogrio.raw.read(drawn, layer="strata", read_geometry=False)
    data = dict(zip(meta["fields"].tolist(), columns, strict=True))
    data["area_m2"][0] *= 2
    pyogrio.raw.write(drawn, None, list(data.values()), list(data), layer="strata", driver="GPKG", geometry_type=None)
    with pytest.raises(GeopeftError) as caught:
        estimated(drawn)
    assert caught.value.code == "SAMPLE_BROKEN"


def test_points_that_were_moved_added_copied_or_deleted_do_not_count(drawn: Path) -> None:
    label_as_mapped(drawn)
    whole = estimated(drawn)
    assert (whole["labelled"], whole["left_out"]) == (120, [])

    def how(data: dict[str, np.ndarray], places: np.ndarray) -> Any:
        places[0] = shapely.Point(places[0].x + 8, places[0].y)
        places[1] = shapely.Point(places[1].x + 3, places[1].y)  # within its pixel
        rows = np.r_[0:119, 4, 5]
        data = {name: column[rows].copy() for name, column in data.items()}
        data["number"][-1] = 777
        data["class"][-2:] = "water"
        return data, places[rows]

    change(drawn, how)
    found = estimated(drawn)
    assert found["labelled"] == 118
    told = " ".join(found["left_out"])
    assert "1 point away from the place that was drawn (numbers 1)" in told
    assert "1 point without a number" in told and "1 point whose number is there twice" in told
    assert "1 point of the sample is gone from the layer" in told
    assert found["overall_accuracy"]["value"] == 1


def test_the_first_points_alone_are_a_sample(drawn: Path) -> None:
    label_as_mapped(drawn, until=60)
    found = estimated(drawn)
    assert (found["labelled"], found["left_out"]) == (60, []) and found["overall_accuracy"]["value"] == 1


def test_points_that_were_skipped_are_told_of(drawn: Path) -> None:
    label_as_mapped(drawn)
    change(drawn, lambda data, _: data["class"].__setitem__([4, 9], ["", " Not sure"]))
    found = estimated(drawn)
    assert found["labelled"] == 118 and "2 points (numbers 5, 10)" in found["left_out"][0]


def test_a_stratum_with_too_few_labels_leaves_figures_out_and_says_which_points_are_next(drawn: Path) -> None:
    label_as_mapped(drawn)
    numbers: list[int] = []

    def how(data: dict[str, np.ndarray], _: np.ndarray) -> None:
        own = np.flatnonzero(data["stratum"] == 3)
        data["class"][own[1:]] = None
        numbers.extend(data["number"][own[1:4]].tolist())

    change(drawn, how)
    found = estimated(drawn)
    assert found["overall_accuracy"]["value"] is None and found["error_matrix"]["area_shares"] is None
    assert all(row["area_ha"]["value"] is None for row in found["classes"])
    assert found["classes"][0]["users_accuracy"]["value"] == 1
    assert "value 3 has 1 point labelled, too few" in found["left_out"][0]
    assert f"Label the points {', '.join(map(str, numbers))}" in found["left_out"][0]


def test_a_class_that_no_point_is_labelled_as_has_no_area(drawn: Path) -> None:
    label_as_mapped(drawn, ("Forest", "water", "water"))
    found = estimated(drawn)["classes"][2]
    assert found["area_ha"]["value"] is None and "No point is labelled built up" in found["reason"]
    assert found["users_accuracy"]["value"] == 0 and found["producers_accuracy"]["value"] is None


def test_an_unlabelled_sample_and_a_wrong_field_are_refused(drawn: Path) -> None:
    for options, code in (({}, "SAMPLE_UNLABELLED"), ({"class_field": "klasse"}, "LABELS_FIELD")):
        with pytest.raises(GeopeftError) as caught:
            estimated(drawn, **options)
        assert caught.value.code == code


def test_intervals_hold_the_truth_through_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a map in degrees, whose pixels differ in area twofold: the short form of `build.py bench area`."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "bench"))
    row = importlib.import_module("area").through_files(8, tmp_path)
    counts = row.counts.values()
    assert sum(count.ours for count in counts) / sum(count.given for count in counts) >= 0.85
    assert sum(count.given for count in counts) == 8 * (3 + 1 + 3 + 3)
    sys.modules.pop("area")


def test_values_of_one_name_are_one_class(make_raster: Callable[..., Path], tmp_path: Path) -> None:
    names = {"CLASSES": json.dumps({"1": "forest", "2": "water", "3": "Forest"})}
    path, out = make_raster(a_map(), nodata=0, band_tags=[names]), tmp_path / "s.gpkg"
    draw(path, out, points=120)
    label_as_mapped(out, ("forest", "water", "forest"))
    found = estimated(out)
    assert [row["points"] for row in found["classes"]] == [76, 44]
    assert found["overall_accuracy"]["value"] == found["classes"][0]["users_accuracy"]["value"] == 1
    assert found["classes"][0]["mapped_ha"] == found["classes"][0]["area_ha"]["value"]


def test_work_is_never_overwritten(drawn: Path, tmp_path: Path) -> None:
    draw(tmp_path / "map.tif", drawn, points=60)
    label_as_mapped(drawn, until=3)
    for run, code in (
        (lambda: draw(tmp_path / "map.tif", drawn, points=60), "SAMPLE_HAS_LABELS"),
        (lambda: draw(tmp_path / "map.tif", tmp_path / "map.tif"), "OUTPUT_IS_INPUT"),
        (lambda: estimated(drawn, out=str(drawn)), "OUTPUT_IS_INPUT"),
    ):
        with pytest.raises(GeopeftError) as caught:
            run()
        assert caught.value.code == code
    assert len(read_design(drawn).stratum) == 60
