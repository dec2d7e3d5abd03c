"""The few-labels bench: how labels are drawn, how its work is shared out, and what its tables say."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))

import _drawing  # type: ignore[import-not-found]
import _few_labels_report as report  # type: ignore[import-not-found]
import _forest  # type: ignore[import-not-found]
import _sets  # type: ignore[import-not-found]
import few_labels  # type: ignore[import-not-found]
import trust  # type: ignore[import-not-found]

GSD = 10.0
SIZE_PX = 200
UTM = "EPSG:32633"
MakeRegion = Callable[..., Any]


def square(row: float, col: float, side: float) -> shapely.Geometry:
    """A square given in pixels."""
    x, y = 300_000 + GSD * col, 5_800_000 - GSD * row
    return shapely.box(x, y - GSD * side, x + GSD * side, y)


@pytest.fixture
def make_region(tmp_path: Path) -> MakeRegion:
    """A region of one raster of 200 x 200 px with these shapes and classes as labels."""

    def make(shapes: list[Any], classes: list[str], blank_rows: int = 0, name: str = "a", crs: str = UTM) -> Any:
        path = tmp_path / f"{name}.tif"
        values = np.ones((2, SIZE_PX, SIZE_PX), np.uint8)
        values[:, :blank_rows] = 0
        transform = Affine(GSD, 0, 300_000, 0, -GSD, 5_800_000)
        with rasterio.open(path, "w", driver="GTiff", count=2, height=SIZE_PX, width=SIZE_PX, dtype="uint8", crs=crs,
                           transform=transform, nodata=0) as out:  # fmt: skip
            out.write(values)
        labels = _sets.write_labels(tmp_path / f"{name}.gpkg", [(crs, shapes, classes)])
        return _sets.Region((str(path),), labels, (_sets.Part((str(path),), labels),))

    return make


def draw(region: Any, number: int, seed: int, tmp_path: Path, **options: Any) -> tuple[Any, Any]:
    """Shapes and classes drawn for a set with these options."""
    labelled = _sets.LabelledSet("test", (), (), "", "", **options)
    spec = _drawing.draw(labelled, region, number, seed, tmp_path / f"drawn_{number}_{seed}.gpkg")
    _, shapes, classes = _sets.read_labels(spec)
    return shapes, classes


def fields() -> list[Any]:
    """25 fields of 20 px, 40 px apart."""
    return [square(40 * (i // 5), 40 * (i % 5), 20) for i in range(25)]


def test_discs_lie_inside_the_class_and_have_the_radius_of_a_brush(make_region: MakeRegion, tmp_path: Path) -> None:
    crops, lake = fields(), square(30, 30, 6)
    region = make_region([*crops, lake], ["crop"] * 25 + ["lake"])
    shapes, classes = draw(region, 10, 0, tmp_path)
    disc = np.pi * (_drawing.RADIUS_PX * GSD) ** 2
    for shape, name in zip(shapes, classes, strict=True):
        area = shapely.union_all(crops) if name == "crop" else lake
        assert shapely.area(shapely.difference(shape, area)) < 1e-3
        assert 0 < shapely.area(shape) <= disc
    assert (classes == "crop").sum() == 10
    assert max(shapely.area(shapes[classes == "crop"])) > 0.9 * disc


def test_places_are_different_polygons_far_from_each_other(make_region: MakeRegion, tmp_path: Path) -> None:
    region = make_region([*fields(), square(30, 30, 6)], ["crop"] * 25 + ["lake"])
    nearest = []
    for seed in range(10):
        shapes, classes = draw(region, 5, seed, tmp_path)
        crops = shapes[classes == "crop"]
        hit = [int(np.argmax(shapely.intersects(np.array(fields()), shape))) for shape in crops]
        assert len(set(hit)) == 5
        xy = shapely.get_coordinates(shapely.centroid(crops)) / GSD
        apart = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
        nearest.append(apart[np.triu_indices(5, 1)].min())
    # The nearest two of five fields drawn blindly are 42 px apart in the mean.
    assert np.mean(nearest) > 55


def test_small_polygons_are_drawn_too(make_region: MakeRegion, tmp_path: Path) -> None:
    small = [square(150 + 10 * i, 5 + 40 * j, 4) for i in range(2) for j in range(4)]
    large = [square(0, 0, 100), square(0, 110, 80)]
    region = make_region([*large, *small, square(140, 190, 9)], ["a"] * 10 + ["b"])
    in_small = 0
    for seed in range(40):
        shapes, classes = draw(region, 1, seed, tmp_path)
        in_small += int(shapely.intersects(shapes[classes == "a"], shapely.union_all(small)).sum())
    # By the root of their area 6 of 40 are expected, by the area 1 and by number 32.
    assert 3 <= in_small <= 16
    shapes, classes = draw(region, 10, 0, tmp_path)
    hit = shapely.intersects(shapes[classes == "a"][:, None], np.array([*large, *small]))
    assert hit.any(0).all(), "no polygon comes twice before all have come"


def test_a_class_that_is_all_labelled_gets_no_more_labels(make_region: MakeRegion, tmp_path: Path) -> None:
    region = make_region([*fields(), square(30, 30, 6)], ["crop"] * 25 + ["lake"])
    shapes, classes = draw(region, 30, 0, tmp_path)
    assert (classes == "crop").sum() == 30
    lakes = shapes[classes == "lake"]
    assert 1 <= len(lakes) <= 6
    xy = shapely.get_coordinates(shapely.centroid(lakes))
    assert len(np.unique(xy.round(1), axis=0)) == len(lakes)


def test_a_larger_size_goes_on_from_a_smaller_and_another_seed_elsewhere(
    make_region: MakeRegion, tmp_path: Path
) -> None:
    region = make_region([*fields(), square(30, 30, 6)], ["crop"] * 25 + ["lake"])

    def wkt(number: int, seed: int) -> list[str]:
        shapes, classes = draw(region, number, seed, tmp_path)
        return [shape.wkt for shape in shapes[classes == "crop"]]

    assert wkt(3, 1) == wkt(10, 1)[:3] == wkt(3, 1)
    assert wkt(3, 1) != wkt(3, 2)


def test_background_is_drawn_on_ground_off_the_shapes(make_region: MakeRegion, tmp_path: Path) -> None:
    houses = [square(40 + 30 * (i // 4), 40 + 30 * (i % 4), 16) for i in range(16)]
    region = make_region(houses, ["house"] * 16)
    shapes, classes = draw(region, 10, 0, tmp_path, background="other")
    others = shapes[classes == "other"]
    assert len(others) == 10 and (classes == "house").sum() == 10
    assert shapely.distance(others, shapely.union_all(houses)).min() > 0.9 * _drawing.MARGIN_PX * GSD
    extent = shapely.box(*shapely.total_bounds(np.array(houses)))
    assert shapely.covers(shapely.buffer(extent, 1e-6), others).all()


def test_nothing_is_drawn_where_the_raster_has_no_data(make_region: MakeRegion, tmp_path: Path) -> None:
    region = make_region([square(0, 0, 200), square(150, 150, 5)], ["a", "b"], blank_rows=120)
    shapes, classes = draw(region, 10, 0, tmp_path)
    rows = (5_800_000 - shapely.get_coordinates(shapely.centroid(shapes[classes == "a"]))[:, 1]) / GSD
    assert rows.min() > 120 - _drawing.RADIUS_PX


def test_ground_that_two_classes_claim_is_not_drawn_on(make_region: MakeRegion, tmp_path: Path) -> None:
    region = make_region([square(0, 0, 100), square(0, 50, 100)], ["a", "b"])
    shapes, classes = draw(region, 10, 0, tmp_path)
    cols = (shapely.get_coordinates(shapely.centroid(shapes[classes == "a"]))[:, 0] - 300_000) / GSD
    assert cols.max() < 50 + _drawing.RADIUS_PX


def test_labels_that_are_points_already_are_taken_as_they_are(make_region: MakeRegion, tmp_path: Path) -> None:
    points = [shapely.Point(300_000 + 100 * (i % 10), 5_800_000 - 50 - 100 * (i // 10)) for i in range(40)]
    off = shapely.Point(100_000, 5_000_000)
    region = make_region([*points, off], ["a", "b"] * 20 + ["a"])
    shapes, classes = draw(region, 100, 0, tmp_path, as_they_are=True)
    assert sorted(shape.wkt for shape in shapes) == sorted(point.wkt for point in points)
    few, names = draw(region, 3, 0, tmp_path, as_they_are=True)
    taken = {point.wkt: name for point, name in zip(points, ["a", "b"] * 20, strict=True)}
    assert [taken[shape.wkt] for shape in few] == list(names) == ["a"] * 3 + ["b"] * 3


def test_regions_of_two_zones_share_the_labels_of_a_class_in_longitude_and_latitude(
    make_region: MakeRegion, tmp_path: Path
) -> None:
    shapes, classes = [square(0, 0, 50), square(0, 149, 50), square(149, 0, 50), square(149, 149, 50)], ["a", "b"] * 2
    one, two = (make_region(shapes, classes, name=crs[-2:], crs=crs) for crs in (UTM, "EPSG:32634"))
    both = _sets.Region(one.rasters + two.rasters, "", one.parts + two.parts)
    for seed in range(6):
        shapes, classes = draw(both, 2, seed, tmp_path)
        longitudes = shapely.get_coordinates(shapely.centroid(shapes))[:, 0]
        for name in ("a", "b"):
            west, east = sorted(longitudes[classes == name])
            assert east - west == pytest.approx(6, abs=0.1)
    meta = pyogrio.read_info(tmp_path / "drawn_2_0.gpkg")
    assert meta["crs"] == "EPSG:4326" and list(meta["fields"]) == ["class"]
    shapes, classes = draw(both, 4, 0, tmp_path)
    assert len({shape.wkt for shape in shapes[classes == "a"]}) == 4


def test_points_of_one_scene_train_on_one_diagonal_and_are_scored_on_the_other(tmp_path: Path) -> None:
    points = [shapely.Point(x, y) for x in range(10) for y in range(10)]
    folder = tmp_path / "test" / "all"
    folder.mkdir(parents=True)
    (folder / "r.tif").touch()
    _sets.write_labels(folder / "labels.gpkg", [(UTM, points, ["a", "b"] * 50)])
    labelled = _sets.LabelledSet("test", ("all",), ("all",), "r.tif", "labels.gpkg:labels", as_they_are=True)
    training, unseen = _sets.regions_of(labelled, tmp_path, tmp_path)
    sides = []
    for region in (training, unseen):
        assert region.parts[0].labels == region.labels
        sides.append({point.wkt for point in _sets.read_labels(region.labels)[1]})
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 100
    assert shapely.Point(0, 0).wkt in sides[0] and shapely.Point(9, 9).wkt in sides[0]


@pytest.mark.parametrize("name", [labelled.name for labelled in _sets.SETS])
def test_every_set_gives_three_labels_of_each_class(name: str, shared: Path, tmp_path: Path) -> None:
    labelled = next(one for one in _sets.SETS if one.name == name)
    training, _ = _sets.regions_of(labelled, shared / "data", tmp_path)
    _, _, all_classes = _sets.read_labels(training.labels)
    _, shapes, classes = _sets.read_labels(_drawing.draw(labelled, training, 3, 0, tmp_path / "drawn.gpkg"))
    counts = {known: int((classes == known).sum()) for known in set(classes)}
    assert set(counts) == set(all_classes) | ({labelled.background} - {""})
    # One class of one set covers two small places only.
    wanted = {known: 2 if (name, known) == ("nc_landsat7", "sediment") else 3 for known in counts}
    assert counts == wanted
    assert not shapely.is_empty(shapes).any()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the shared data; skips where it is not there."""
    folder = _sets.shared_folder()
    if folder is None:
        pytest.skip("no shared data: set GEOPEFT_SHARED")
    return Path(folder)


def options(*arguments: str) -> argparse.Namespace:
    return few_labels._options(arguments)


def test_shards_do_all_runs_once_and_share_the_long_ones() -> None:
    whole = [key for run in few_labels.planned(options()) for key in run.keys()]
    shards = [few_labels.planned(options("--shard", f"{number}/2")) for number in range(2)]
    parts = [[key for run in shard for key in run.keys()] for shard in shards]
    assert sorted(parts[0] + parts[1]) == sorted(whole) and len(set(whole)) == len(whole)
    full = [sum("full" in run.methods for run in shard) for shard in shards]
    assert abs(full[0] - full[1]) <= 1
    largest = [sum("full" in run.methods and run.size == "all" for run in shard) for shard in shards]
    assert abs(largest[0] - largest[1]) <= 1


def test_the_first_seed_of_everything_comes_first_and_the_box_has_few_labels_only() -> None:
    runs = few_labels.planned(options("--seeds", "2"))
    seeds = [run.seed for run in runs]
    assert seeds == sorted(seeds) and set(seeds) == {0, 1}
    assert runs[0].labelled.name == "rstoolbox_lsat5_amazon" and runs[-1].labelled.name == "kampala_oam_buildings"
    assert {run.size for run in runs if "box" in run.methods} == {"1", "3"}
    assert {method for run in runs for method in run.methods} == set(report.METHODS)


@pytest.mark.parametrize("arguments", [["--shard", "2/2"], ["--methods", "forests"], ["--sizes", "2"], ["--sets", ""]])
def test_unknown_choices_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(*arguments)
    assert "is not" in capsys.readouterr().err


def row(name: str, size: str, seed: int, method: str, miou: float, **more: Any) -> dict[str, Any]:
    values = {"set": name, "size": size, "seed": str(seed), "method": method, "miou": miou, "backbone": "x"}
    values |= {"overall_accuracy": 1.0, "seconds": 1.0, "peak_memory_mb": 100.0, "evaluate_seconds": 1.0}
    return {**values, "parameters_m": 5, **more}


def test_only_missing_methods_of_a_fit_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def measured(run: Any, *arguments: Any) -> list[dict[str, Any]]:
        asked.append(run.methods)
        if run.methods == ("full",):
            raise _sets.EngineFailed("no")
        return [row(name, size, int(seed), method, 0.5) for name, size, seed, method in run.keys()]

    monkeypatch.setattr(few_labels, "_measure", measured)
    monkeypatch.setattr(_sets, "shared_folder", lambda: tmp_path)
    done = [row("leipzig_s2_points", "3", 0, "tier1", 0.4)]
    _sets.write_rows(tmp_path / "few_labels.1.csv", done, few_labels.FIELDS)
    arguments = ["--sets", "leipzig_s2_points", "--sizes", "3", "--seeds", "1", "--methods", "default,tier1,tier3,full"]
    assert few_labels.main([*arguments, "--out", str(tmp_path)]) == 1
    assert asked == [("default", "tier3"), ("full",)]
    # What failed is tried again, what is there is not.
    assert few_labels.main([*arguments, "--out", str(tmp_path)]) == 1
    assert asked[2:] == [("full",)]
    assert few_labels.main(["--merge", "--out", str(tmp_path)]) == 0
    merged = [report.key(one)[3] for one in _sets.read_rows(tmp_path / "few_labels.csv")]
    assert sorted(merged) == ["default", "tier1", "tier3"]
    assert (tmp_path / "few_labels.png").stat().st_size > 1000


def test_a_fit_is_told_what_was_drawn_and_scored_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_region: MakeRegion
) -> None:
    region = make_region([square(40, 40, 30), square(100, 100, 30)], ["house"] * 2)
    monkeypatch.setattr(_sets, "regions_of", lambda *arguments: (region, region))
    calls: list[tuple[str, ...]] = []
    refused: list[str] = []
    manifest = {"spec": {"backbone": "x"}, "hyperparameters": {"total": 2e6}, "base_weights": {"sha256": "1"}}

    def engine(*arguments: str) -> str:
        calls.append(arguments)
        if arguments[-1] in refused:
            raise _sets.EngineFailed("no such part")
        if "--json" in arguments:
            figures = {"confusion_matrix": [[3, 1], [1, 3]], "seconds": 3, "peak_memory_mb": 4}
            Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(figures))
        return json.dumps(manifest)

    monkeypatch.setattr(_sets, "engine", engine)
    labelled = _sets.LabelledSet("test", (), (), "", "", "other")

    def measured(size: str, fit: Any) -> list[dict[str, Any]]:
        calls.clear()
        return list(
            few_labels._measure(few_labels.Run(labelled, size, 7, tuple(fit.methods), fit), *[tmp_path] * 2, ())
        )

    found = measured("1", few_labels.FITS[0])
    assert [(row["method"], row["backbone"], row["parameters_m"]) for row in found] == [
        (method, "x", 2.0) for method in ("default", "tier1", "tier3")
    ]
    fit, _, *scored = calls
    assert "--background" not in fit and "drawn.gpkg:labels" in " ".join(fit) and fit[fit.index("--seed") + 1] == "7"
    assert [each[-1] if "--part" in each else "" for each in scored] == ["", "classical", "network"]
    assert all("--background" in each and region.labels in each for each in scored)
    measured("all", few_labels.FITS[1])
    assert "--background" in calls[0] and region.labels in calls[0] and "frozen" in calls[0]
    # A package without a classical part still has its other scores.
    refused.append("classical")
    run = few_labels.Run(labelled, "1", 7, ("tier1", "tier3"), few_labels.FITS[0])
    rows = few_labels._measure(run, tmp_path, tmp_path, ())
    assert next(rows)["method"] == "tier3"
    with pytest.raises(_sets.EngineFailed, match="no such part"):
        next(rows)
    # Pretrained weights must not pass for random ones.
    with pytest.raises(_sets.EngineFailed, match="random weights"):
        measured("1", few_labels.FITS[-1])


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_give_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    rows = [row("a", "1", seed, "forest", value) for seed, value in enumerate((0.2, 0.4))]
    rows += [row("b", "1", seed, "forest", value) for seed, value in enumerate((0.6, 0.8))]
    rows += [row("a", "1", 0, "default", 0.5)]
    text = report.write(rows, tmp_path / "few_labels")
    # Both sets rise by 20 from seed to seed, so their mean does: sd = 20 / sqrt(2).
    assert cells(text, "1 |")[1:] == ["50.0 ± 14.1", "50.0 (1 of 2 sets)"]
    assert cells(text, "a | 1")[2:] == ["30.0 ± 14.1", "50.0"]
    assert cells(text, "b | 1")[2:] == ["70.0 ± 14.1", "-"]


def reached(rows: list[dict[str, Any]], start: str) -> str:
    scores = report.Scores(rows)
    return str(next(found(scores) for claim, _, found in report.claims() if claim.startswith(start)))


def test_claims_compare_what_both_have_and_say_what_is_missing() -> None:
    rows = [row("a", size, 0, "forest", 0.4) for size in report.SIZES]
    rows += [row("a", size, 0, "default", 0.52) for size in report.SIZES]
    assert reached(rows, "default against random forest on bands, mean") == "+12.0 points: met"
    rows += [row("b", "1", 0, "forest", 0.1), row("a", "1", 1, "forest", 0.9)]
    found = reached(rows, "default against random forest on bands, mean")
    assert found == "+12.0 points: met (4 of 8 sets x sizes)"
    assert reached(rows, "default against UNet") == "not measured"
    assert reached(rows, "tier 1 after features").startswith("not measured")


def test_a_set_that_is_worse_by_more_than_its_deviation_is_named() -> None:
    rows = [row("a", "3", seed, "default", value) for seed, value in enumerate((0.50, 0.60))]
    rows += [row("a", "3", seed, "forest_texture", 0.58) for seed in range(2)]
    assert reached(rows, "... on no set").startswith("0 of 1: met")
    assert reached(rows[::2], "... on no set") == "not measured: it takes two seeds"
    rows += [row("b", "10", seed, "default", 0.50) for seed in range(2)]
    rows += [row("b", "10", seed, "forest_texture", 0.51) for seed in range(2)]
    rows += [row("c", "1", 0, "default", 0.1), row("c", "1", 0, "forest_texture", 0.9)]
    assert reached(rows, "... on no set").startswith("1 of 2: b 10 (-1.0, sd 0.0): not met")


def test_full_tuning_is_compared_on_the_same_backbone_only() -> None:
    rows = [row("a", "1", 0, "tier3", 0.6), row("a", "1", 0, "full", 0.5)]
    rows += [row("b", "1", 0, "tier3", 0.1, backbone="y"), row("b", "1", 0, "full", 0.9)]
    assert reached(rows, "LoRA network").startswith("+10.0 points: met (1 of 8")
    large = {"parameters_m": 300.0}
    rows += [row("c", "1", 0, "default", 0.6, peak_memory_mb=60.0, **large), row("c", "1", 0, "full", 0.6, **large)]
    assert reached(rows, "... its peak memory") == "0.60x: met (1 runs)"


def test_texture_is_that_of_the_valid_pixels_in_the_window() -> None:
    values = np.random.default_rng(0).normal(1000, 1, (2, 20, 20)).astype(np.float32)
    valid = np.ones((20, 20), bool)
    valid[10, 11], values[:, 10, 11] = False, 0
    found = _forest.local_moments(values, valid)
    assert found.shape == (12, 20, 20)
    window = values[1, 9:12, 9:12][valid[9:12, 9:12]]
    assert found[1, 10, 10] == pytest.approx(window.mean(), abs=1e-3)
    assert found[3, 10, 10] == pytest.approx(window.std(), abs=1e-3)
    corner = values[0, :5, :5]
    assert found[8, 0, 0] == pytest.approx(corner.mean(), abs=1e-3)
    assert found[10, 0, 0] == pytest.approx(corner.std(), abs=1e-3)


def test_trust_maps_every_raster_and_tells_of_those_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Confidence is scored twice on the unseen labels, once with the package as it was before its sharpness."""
    calls: list[tuple[str, ...]] = []

    def engine(*arguments: str) -> str:
        calls.append(arguments)
        if any("sen2" in part for part in arguments):
            raise _sets.EngineFailed("predict\nerror [RADIOMETRY_DIFFERS]: other values")
        bins = [{"confidence": 0.6, "accuracy": 0.5, "weight": 1.0}]
        figures = {"blocks": 7, "calibration": {"ece": 0.25, "bins": bins}, "rasters": [{"outside_share": 0.5}]}
        Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(figures))
        return ""

    class Manifest:
        class blend:  # noqa: N801
            sharpness = 2.0

    monkeypatch.setattr(_sets, "engine", engine)
    monkeypatch.setattr(trust.package, "read_manifest", lambda path: Manifest)
    monkeypatch.setattr(trust, "plain", lambda path: path.with_name("plain.geopeft"))
    others = (("another season", "x/sen2.tif"), ("next to it", "x/b.tif"))
    case = trust.Case("lake", "x/a.tif", "x/l.gpkg:l", ("x/b.tif", "x/b.gpkg:l"), others)
    row, rows = trust.measure(case, tmp_path, 1, tmp_path)
    assert [Path(call[1]).name for call in calls if call[0] == "evaluate"] == ["m.geopeft", "plain.geopeft"]
    text = trust.report([row], rows)
    assert cells(text, "lake | 7")[2:] == ["2.00", "0.250", "0.250", "0.250"]
    assert cells(text, "lake | another")[2:] == ["x/sen2.tif", "refused: other values or bands"]
    assert [cells(text, f"lake | {kind}")[3] for kind in ("its own", "next")] == ["50.0%", "50.0%"]
    trust.plot([row, {"case": "never scored"}], tmp_path / "trust.png")
    with Image.open(tmp_path / "trust.png") as picture:
        assert picture.width == 2 * trust._curves.PANEL_PX[0], "a panel for what was scored"
