"""Places to label next: in doubt, of one kind, unlike what is labelled, and apart from each other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from geopeft.advice import squares, suggest
from geopeft.errors import JobError, LabelError
from geopeft.events import Reporter
from geopeft.job import parse

SIZE, GSD = 256, 10.0
CRS = "EPSG:32633"
ORIGIN = Affine(GSD, 0, 300_000, 0, -GSD, 5_800_000)
# Kind of ground -> class and mean of its bands. The third kind has a class of its own that looks like none.
KINDS = {0: ("a", (300, 900)), 1: ("b", (900, 300)), 2: ("a", (1500, 1500)), 3: ("b", (500, 700))}
# Rows of 4 x 4 fields.
FIELDS = np.array([[0, 1, 0, 1], [1, 0, 3, 0], [0, 2, 0, 1], [1, 0, 1, 0]])
Run = Callable[..., dict[str, Any]]


def kinds() -> np.ndarray:
    """(h, w) kind of ground."""
    return np.kron(FIELDS, np.ones((SIZE // 4, SIZE // 4), int))


def box(row: int, col: int, rows: int, cols: int) -> shapely.Geometry:
    x, y = 300_000 + GSD * col, 5_800_000 - GSD * row
    return shapely.box(x, y - GSD * rows, x + GSD * cols, y)


def write_raster(path: Path, crs: str = CRS, transform: Affine = ORIGIN) -> None:
    means = np.array([KINDS[kind][1] for kind in range(len(KINDS))], float)
    values = means[kinds()].transpose(2, 0, 1) + np.random.default_rng(0).normal(0, 60, (2, SIZE, SIZE))
    with rasterio.open(path, "w", driver="GTiff", count=2, height=SIZE, width=SIZE, dtype="uint16", crs=crs,
                       transform=transform) as out:  # fmt: skip
        out.write(values.clip(1, 5000).astype(np.uint16))


def write_labels(path: Path, shapes: list[Any], classes: list[str]) -> str:
    pyogrio.raw.write(path, shapely.to_wkb(np.array(shapes, object)), [np.array(classes, object)], ["class"],
                      layer="labels", geometry_type="Unknown", crs=CRS)  # fmt: skip
    return f"{path}:labels"


FEW = [box(10, 10, 20, 20), box(140, 20, 20, 20), box(10, 80, 20, 20), box(80, 10, 20, 20)], ["a", "a", "b", "b"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("suggest")
    write_raster(folder / "r.tif")
    labels = write_labels(folder / "l.gpkg", *FEW)

    def asked(**options: Any) -> dict[str, Any]:
        fields = {"rasters": [str(folder / "r.tif")], "labels": labels, "class_field": "class"}
        job = parse({"job": "suggest", "out": str(folder / "p.gpkg"), **fields, **options})
        return suggest.run(job, Reporter())  # type: ignore[arg-type]

    return asked


@pytest.fixture(scope="module")
def outputs(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(json_file=str(tmp_path_factory.mktemp("json") / "f.json"), count=8)


def rows_cols(outputs: dict[str, Any]) -> np.ndarray:
    """(n, 2) upper left pixels of the places, in the order of their rank."""
    meta, _, shapes, (ranks,) = pyogrio.raw.read(outputs["places"], columns=["rank"])
    assert ranks.tolist() == list(range(1, len(shapes) + 1)) and meta["geometry_type"] == "MultiPolygon"
    bounds = shapely.bounds(shapely.from_wkb(shapes))
    assert np.allclose(bounds[:, 2:] - bounds[:, :2], squares.COARSE_PX * GSD)
    return np.stack([(5_800_000 - bounds[:, 3]) / GSD, (bounds[:, 0] - 300_000) / GSD], 1).round().astype(int)


def test_places_are_squares_of_one_kind_without_a_label_and_apart(outputs: dict[str, Any]) -> None:
    places = rows_cols(outputs)
    assert len(places) == outputs["count"] == len(outputs["table"]) == 8
    assert (outputs["width_px"], outputs["width_m"]) == (8, 80.0)
    side = squares.COARSE_PX
    for row, col in places:
        assert len(np.unique(kinds()[row : row + side, col : col + side])) == 1
        outline = box(row, col, side, side)
        assert not any(outline.intersection(label).area > 0 for label in FEW[0])
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    assert apart[~np.eye(8, dtype=bool)].min() >= 0.5 * suggest.APART * SIZE / np.sqrt(8)
    assert json.loads(Path(outputs["json"]).read_text())["table"] == outputs["table"]


def test_the_first_places_are_on_ground_that_no_label_looks_like(outputs: dict[str, Any]) -> None:
    first = [int(kinds()[row, col]) for row, col in rows_cols(outputs)[:2]]
    assert set(first) == {2, 3}
    unlike = [place for place in outputs["table"] if "nothing like it is labelled yet" in place["reason"]]
    assert outputs["table"][0] in unlike and len(unlike) < 8
    assert outputs["table"][0]["distance"] > outputs["table"][-1]["distance"]


def test_a_reason_names_both_classes_with_their_probabilities(outputs: dict[str, Any]) -> None:
    for place in outputs["table"]:
        both = f"{place['likely']} ({place['p_likely']} %)", f"{place['second']} ({place['p_second']} %)"
        hesitates = place["p_likely"] - place["p_second"] <= 50
        start = "The map " + ("hesitates between {} and {}" if hesitates else "takes this for {} rather than {}")
        assert place["reason"].startswith(start.format(*both) + f"; {place['ground']:g} % of the ground ")
        assert place["p_likely"] >= place["p_second"] and 0 <= place["doubt"] <= 100


def test_the_same_seed_gives_the_same_places(run: Run, outputs: dict[str, Any]) -> None:
    assert run(count=8)["table"] == outputs["table"]


def test_places_stay_inside_the_area(run: Run, tmp_path: Path) -> None:
    area = write_labels(tmp_path / "area.gpkg", [box(140, 76, 40, 40)], ["x"])
    places = rows_cols(run(area=area, count=5))
    inside = (places >= [138, 74]).all(1) & (places <= [174, 110]).all(1)
    assert len(places) == 5 and inside.all()


def test_several_rasters_share_the_places_and_lie_right_in_the_first_ones_system(run: Run, tmp_path: Path) -> None:
    for name, crs, transform in (
        ("one.tif", CRS, ORIGIN),
        ("two.tif", "EPSG:32634", Affine(GSD, 0, 300_000, 0, -GSD, 5_700_000)),
    ):
        write_raster(tmp_path / name, crs, transform)
    result = run(rasters=[str(tmp_path / "one.tif"), str(tmp_path / "two.tif")], count=10)
    by_raster = {name: [p for p in result["table"] if p["raster"].endswith(name)] for name in ("one.tif", "two.tif")}
    assert all(by_raster.values())
    _, _, shapes, (rasters,) = pyogrio.raw.read(result["places"], columns=["raster"])
    x = shapely.bounds(shapely.from_wkb(shapes))[:, 0]
    two = np.array([str(name).endswith("two.tif") for name in rasters])
    # Six degrees to the east, in the system of the first raster.
    assert (x[~two] < 303_000).all() and (x[two] > 650_000).all()


def test_one_pixel_of_a_class_is_enough(run: Run, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "l.gpkg", [box(10, 10, 20, 20), box(20, 90, 1, 1)], ["a", "b"])
    assert run(labels=labels)["count"] == 10


def test_a_background_class_is_no_label_that_keeps_places_away(run: Run, tmp_path: Path) -> None:
    shapes = [box(0, 0, 20, 20), box(236, 236, 20, 20)]
    labels = write_labels(tmp_path / "l.gpkg", shapes, ["a", "a"])
    result = run(labels=labels, background="other")
    assert {place["likely"] for place in result["table"]} <= {"a", "other"} and result["count"] == 10


@pytest.mark.parametrize(
    ("shapes", "classes", "options", "code", "sentence"),
    [
        (FEW[0][:2], ["a", "a"], {}, "LABELS_ONE_CLASS", "labels one class only: 'a'"),
        ([box(0, 0, 256, 128), box(0, 128, 256, 128)], ["a", "b"], {}, "NO_PLACE", "no place of 8 x 8 valid pixels"),
    ],
)
def test_what_cannot_be_advised_on_is_said(
    run: Run, tmp_path: Path, shapes: list[Any], classes: list[str], options: dict[str, Any], code: str, sentence: str
) -> None:
    labels = write_labels(tmp_path / "l.gpkg", shapes, classes)
    with pytest.raises(LabelError, match=sentence) as caught:
        run(labels=labels, out=str(tmp_path / "p.gpkg"), **options)
    assert caught.value.code == code and not (tmp_path / "p.gpkg").exists()


def test_more_than_twenty_places_are_not_asked_for(run: Run) -> None:
    with pytest.raises(JobError, match="count"):
        run(count=21)


def test_squares_of_two_things_are_no_places() -> None:
    """Be they told apart by their bands, or by what their pixels look like."""
    count = 40
    mixture = np.where(np.arange(count) % 3 == 0, 0.1, 1.0)[:, None]
    probabilities = np.tile([0.55, 0.45], (count, 1))
    # Of every other even square the pixels are sure, half of them of one class and half of the other.
    doubt = np.where(np.arange(count) % 6 == 0, 0.2, 0.9)
    found = squares.Squares(np.zeros((count, 3), int), np.zeros((count, 1)), mixture, probabilities, doubt)
    chosen = suggest._candidates(found, mixture[:, 0], 5)
    assert np.flatnonzero(chosen).tolist() == list(range(3, count, 6))
    assert suggest._candidates(found, mixture[:, 0], 8).all()


def test_tiles_of_a_large_raster_are_few_and_everywhere(tmp_path: Path) -> None:
    class Info:
        height, width = 20_000, 30_000

    infos: Any = [Info(), Info()]
    found = np.array(squares.spread_tiles(infos, None, 0), np.int64)
    assert 0.6 * squares.MOST_TILES < len(found) <= squares.MOST_TILES
    for raster in range(2):
        own = found[found[:, 0] == raster]
        quarters = np.bincount((own[:, 1] >= 156) * 2 + (own[:, 2] >= 234), minlength=4)
        assert quarters.min() > 0.15 * len(own)
    assert found[:, 1].max() < 313 and found[:, 2].max() < 469


def test_an_edge_is_more_mixed_than_a_rough_surface() -> None:
    rng = np.random.default_rng(0)
    rough = rng.normal(0, 1, (64, 1)) * 3
    edge = np.where(np.arange(64) % 8 < 4, -1.0, 1.0)[:, None] + rng.normal(0, 0.1, (64, 1))
    features = np.stack([rough, edge])
    found = squares._mixture(features, np.ones((2, 64), bool), features.mean(1), 8)[:, 0]
    assert found[1] > 1.5 * found[0]
