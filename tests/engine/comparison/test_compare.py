"""Two maps side by side: which is better on the same labels, whether that can be told, and where they disagree."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from geopeft import package, predict
from geopeft.comparison import compare
from geopeft.data.chips import Site
from geopeft.data.memory import Memory
from geopeft.data.raster import describe
from geopeft.errors import GeopeftError
from geopeft.events import Reporter
from geopeft.job import parse
from geopeft.models import build
from geopeft.models.spec import InputBand, ModelSpec
from rasterio.warp import Resampling, reproject, transform_bounds

MakeRaster = Callable[..., Path]
MakeLabels = Callable[..., Path]
ORIGIN = Affine(10, 0, 300_000, 0, -10, 5_800_000)
SIDE = 260
NAMES = {1: "forest", 2: "pasture"}


class Heard(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.said.append(str(fields.get("text", "")))


def run(one: Path, other: Path, reporter: Reporter | None = None, **fields: Any) -> dict[str, Any]:
    fields = {key: str(value) if isinstance(value, Path) else value for key, value in fields.items()}
    job = {"job": "compare", "one": str(one), "other": str(other), "device": "cpu"} | fields
    return compare.run(parse(job), reporter or Reporter())  # type: ignore[arg-type]


def truth() -> np.ndarray:
    """Stripes of two classes."""
    return (np.arange(SIDE) // 20 % 2 + 1).astype(np.uint8)[:, None].repeat(SIDE, 1)


def spoiled(share: float, seed: int = 0) -> np.ndarray:
    """The truth with a share of its pixels given the other class."""
    found = truth()
    wrong = np.random.default_rng(seed).random(found.shape) < share
    found[wrong] = 3 - found[wrong]
    return found


@pytest.fixture
def make_map(make_raster: MakeRaster) -> Callable[..., Path]:
    """Writes (h, w) class values with their names."""

    def make(values: np.ndarray, name: str, names: dict[int, str] | None = NAMES, **options: Any) -> Path:
        tags = [{"CLASSES": json.dumps(names)}] if names else ()
        return make_raster(values[None], name, nodata=0, band_tags=tags, **options)

    return make


@pytest.fixture
def labels(make_labels: MakeLabels) -> Path:
    """Squares of 6 pixels all over, labelled with what is there."""
    squares, classes = [], []
    for row in range(6, SIDE - 10, 20):
        for col in range(6, SIDE - 10, 30):
            left, top = ORIGIN.c + 10 * col, ORIGIN.f - 10 * row
            squares.append(shapely.box(left, top - 60, left + 60, top))
            classes.append(NAMES[int(truth()[row, col])])
    return make_labels(squares, classes)


def test_the_better_map_is_named_with_the_interval_of_the_difference(make_map: Any, labels: Path) -> None:
    good, bad = make_map(spoiled(0.05), "good.tif"), make_map(spoiled(0.3), "bad.tif")
    heard = Heard()
    found = run(good, bad, heard, labels=labels)["figures"]
    gap = found["difference"]["miou"]
    assert found["one"]["overall_accuracy"]["value"] == pytest.approx(0.95, abs=0.02)
    assert found["other"]["overall_accuracy"]["value"] == pytest.approx(0.7, abs=0.04)
    assert found["better"] == "one" and 0 < gap["low"] < gap["value"] < gap["high"]
    assert gap["value"] == pytest.approx(found["one"]["miou"]["value"] - found["other"]["miou"]["value"], abs=1e-4)
    assert found["sentence"].startswith("good.tif is better.") and found["sentence"] in heard.said
    assert [row["name"] for row in found["classes"]] == ["forest", "pasture"]
    assert all(row["difference"]["low"] > 0 and row["one"]["value"] > row["other"]["value"] for row in found["classes"])
    back = run(bad, good, labels=labels)["figures"]
    assert back["better"] == "other" and back["difference"]["miou"]["value"] == -gap["value"]


def test_maps_that_are_as_good_are_not_told_apart(make_map: Any, labels: Path) -> None:
    found = run(make_map(spoiled(0.1, 1), "a.tif"), make_map(spoiled(0.1, 2), "b.tif"), labels=labels)["figures"]
    assert found["better"] is None and "cannot tell the maps apart: the interval holds 0" in found["sentence"]
    same = run(make_map(truth(), "a.tif"), make_map(truth(), "b.tif"), labels=labels)["figures"]
    gap = same["difference"]["miou"]
    assert gap["value"] == 0 and gap["low"] < 0 < gap["high"], "no difference in these blocks proves none elsewhere"


def test_nothing_is_known_of_the_labels_of_a_class_raster_and_that_is_said(make_map: Any, labels: Path) -> None:
    result = run(make_map(spoiled(0.1), "a.tif"), make_map(truth(), "b.tif"), labels=labels)
    assert sum("cannot be checked" in text for text in result["sentences"]) == 2


def test_classes_are_matched_by_name_and_where_there_is_none_by_value(make_map: Any, labels: Path) -> None:
    swapped = np.array([0, 7, 4], np.uint8)[truth()]
    named = make_map(swapped, "named.tif", {7: "FOREST", 4: "Pasture", 9: "water"})
    plain = make_map(truth(), "plain.tif", None)
    one = make_map(truth(), "one.tif")
    result = run(one, named, labels=labels, out=one.with_name("d.tif"))
    assert (result["only_in_one"], result["only_in_other"]) == ([], ["water"])
    assert result["figures"]["other"]["overall_accuracy"]["value"] == 1 and result["disagreement"]["share"] == 0
    result = run(plain, one, labels=labels, out=one.with_name("d.tif"))
    assert result["only_in_one"] == result["only_in_other"] == [] and result["disagreement"]["share"] == 0
    assert result["figures"]["one"]["overall_accuracy"]["value"] == 1


def test_a_class_that_one_map_does_not_know_counts_as_wrong_for_it_alone(make_map: Any, labels: Path) -> None:
    one, other = make_map(truth(), "one.tif"), make_map(truth(), "other.tif", {1: "forest", 2: "water"})
    result = run(one, other, labels=labels)
    assert (result["only_in_one"], result["only_in_other"]) == (["pasture"], ["water"])
    found = result["figures"]
    assert found["one"]["overall_accuracy"]["value"] == 1 and found["other"]["overall_accuracy"]["value"] < 0.6
    assert any("other.tif does not know pasture" in text and "wrong" in text for text in found["notes"])


def test_labels_of_classes_that_neither_map_knows_are_left_out(make_map: Any, make_labels: MakeLabels) -> None:
    boxes = [shapely.box(300_100 + 400 * n, 5_799_000, 300_150 + 400 * n, 5_799_040) for n in range(6)]
    labels = make_labels(boxes, ["ice"] * 2 + ["forest", "pasture"] * 2)
    one, other = make_map(truth(), "one.tif"), make_map(truth(), "other.tif")
    found = run(one, other, labels=labels)["figures"]
    assert any("Neither map knows" in text and "ice" in text for text in found["notes"])
    assert found["labels"] == 4 * 20


def test_labels_in_one_place_tell_nothing(make_map: Any, make_labels: MakeLabels) -> None:
    labels = make_labels([shapely.box(300_100, 5_799_900, 300_150, 5_799_950)], ["forest"])
    found = run(make_map(truth(), "a.tif"), make_map(spoiled(0.2), "b.tif"), labels=labels)["figures"]
    assert found["better"] is None and found["difference"]["miou"]["value"] is None
    assert "cannot tell which map is better" in found["sentence"]


def test_the_disagreement_has_a_value_for_each_pair_the_widest_first(make_map: Any, tmp_path: Path) -> None:
    names = {1: "forest", 2: "pasture", 3: "water"}
    one, other = truth(), truth()
    other[:10], other[20:24] = 2, 3  # 10 rows of forest, and 4 of pasture
    one[-1], other[:, -1] = 0, 0
    one_map, other_map = make_map(one, "one.tif", names), make_map(other, "other.tif", names)
    result = run(one_map, other_map, out=tmp_path / "d.tif", json_file=str(tmp_path / "d.json"))
    found = result["disagreement"]
    compared = (SIDE - 1) * (SIDE - 1)
    assert [(p["value"], p["one"], p["other"], p["pixels"]) for p in found["pairs"]] == [
        (2, "forest", "pasture", 10 * (SIDE - 1)),
        (3, "pasture", "water", 4 * (SIDE - 1)),
    ]
    assert found["share"] == pytest.approx(14 * (SIDE - 1) / compared, abs=1e-5)
    assert found["sentence"] == (
        "5.4 % of the area differ, most of it: forest in the first, pasture in the second (3.9 %)."
    )
    with rasterio.open(tmp_path / "d.tif") as raster:
        values = raster.read(1)
        legend = json.loads(raster.tags(1)["CLASSES"])
        colors = raster.colormap(1)
        assert raster.nodata == 0 and raster.transform == ORIGIN and raster.overviews(1)
    assert (values[-1] == 0).all() and (values[:, -1] == 0).all()
    assert (values[:10, :-1] == 2).all() and (values[20:24, :-1] == 3).all() and (values[24:-1, :-1] == 1).all()
    assert legend == {"1": "both agree", "2": "forest → pasture", "3": "pasture → water"}
    assert len({colors[value] for value in (1, 2, 3)}) == 3
    assert "<Category>forest → pasture</Category>" in (tmp_path / "d.tif.aux.xml").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))["disagreement"] == found
    assert "figures" not in result


def test_pairs_beyond_the_twenty_widest_share_one_value(make_map: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(1, 7, (60, 60)).astype(np.uint8) for _ in range(2))
    maps = make_map(one, "one.tif", None), make_map(other, "other.tif", None)
    found = run(*maps, out=tmp_path / "d.tif")["disagreement"]
    assert len(found["pairs"]) == 20 and found["classes"][-1] == {
        "value": 22, "name": "other difference", "color": "#4d4d4d",
    }  # fmt: skip
    with rasterio.open(tmp_path / "d.tif") as raster:
        counts = np.bincount(raster.read(1).ravel(), minlength=23)
    assert counts[2:22].tolist() == [pair["pixels"] for pair in found["pairs"]]
    assert sorted(counts[2:22], reverse=True) == counts[2:22].tolist() and counts[22] > 0
    assert counts[1] == (one == other).sum() and counts.sum() == one.size
    assert found["share"] == pytest.approx(sum(p["share"] for p in found["pairs"]) + found["other_share"], abs=1e-4)


def test_area_in_degrees_is_that_on_the_ground(make_map: Any, tmp_path: Path) -> None:
    one, other = np.ones((80, 40), np.uint8), np.ones((80, 40), np.uint8)
    other[:40] = 2
    place = {"crs": "EPSG:4326", "transform": Affine(1, 0, 0, 0, -1, 80)}
    maps = make_map(one, "one.tif", **place), make_map(other, "other.tif", **place)
    share = run(*maps, out=tmp_path / "d.tif")["disagreement"]["share"]
    north = np.sin(np.radians(80)) - np.sin(np.radians(40))
    assert share == pytest.approx(north / np.sin(np.radians(80)), abs=0.002), "not half, as the pixels are"


def test_the_second_map_is_read_on_the_grid_of_the_first(make_map: Any, labels: Path, tmp_path: Path) -> None:
    one = make_map(truth(), "one.tif")
    left, _, _, top = transform_bounds("EPSG:32633", "EPSG:32632", 300_000, 5_797_400, 302_600, 5_800_000)
    affine, values = Affine(7, 0, left, 0, -7, top), np.zeros((1, 400, 400), np.uint8)
    reproject(truth()[None], values, src_transform=ORIGIN, src_crs="EPSG:32633", dst_transform=affine,
              dst_crs="EPSG:32632", resampling=Resampling.nearest, src_nodata=0, dst_nodata=0)  # fmt: skip
    assert (values > 0).any()
    other = make_map(values[0], "other.tif", crs="EPSG:32632", transform=affine)
    result = run(one, other, labels=labels, out=tmp_path / "d.tif")
    assert result["disagreement"]["share"] < 0.05 and result["disagreement"]["compared"] > 0.5
    assert result["figures"]["other"]["overall_accuracy"]["value"] > 0.97
    with rasterio.open(tmp_path / "d.tif") as raster:
        assert (raster.crs, raster.shape) == ("EPSG:32633", (SIDE, SIDE))


@pytest.fixture(scope="module")
def write_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a package with random weights: what it maps is noise, but it maps."""
    folder = tmp_path_factory.mktemp("models")
    bands = tuple(InputBand(name=name, mean=1500, std=900) for name in ("red", "nir"))
    spec = ModelSpec(backbone="scratch_unet", adapter="full", decoder="unet", bands=bands, num_classes=2, gsd_m=10,
                     chip_size_px=64)  # fmt: skip
    classes = (
        package.ClassInfo(value=1, name="forest", color="#00ff00", label="forest"),
        package.ClassInfo(value=2, name="pasture", color="#ffff00", label="pasture"),
    )
    manifest = package.Manifest(
        engine_version="0.1.0", created="2026-01-01T00:00:00+00:00", name="m", spec=spec, classes=classes,
        base_weights=package.BaseWeights(backbone="scratch_unet", licence="Apache-2.0", revision="r1"),
        radiometry="unknown", dtype="uint16",
    )  # fmt: skip
    weights = {name: tensor.numpy() for name, tensor in build(spec).trainable_state().items()}

    def write(name: str, memory: Memory | None = None) -> Path:
        package.write(folder / name, manifest, weights, start=memory.arrays() if memory is not None else None)
        return folder / name

    return write


@pytest.fixture
def scene(make_raster: MakeRaster) -> Path:
    values = np.random.default_rng(0).integers(1, 3000, (2, SIDE, SIDE)).astype(np.uint16)
    return make_raster(values, "scene.tif", names=("red", "nir"))


def memory_of(scene: Path, rows: slice) -> Memory:
    """Of a model that has learned in these rows of the scene."""
    points = np.stack(np.meshgrid(np.arange(SIDE)[rows], np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2)
    return Memory.of([describe(str(scene))], [Site(0, 0, 0, points, len(points))], [])


def test_a_model_is_compared_by_the_map_that_predict_makes(
    write_model: Any, make_map: Any, scene: Path, labels: Path, tmp_path: Path
) -> None:
    model = write_model("plain.geopeft")
    job = {"job": "predict", "model": str(model), "rasters": [str(scene)], "out": str(tmp_path / "m.tif")}
    predict.run(parse({**job, "device": "cpu"}), Reporter())  # type: ignore[arg-type]
    result = run(tmp_path / "m.tif", model, rasters=[str(scene)], out=tmp_path / "d.tif", labels=labels)
    assert result["disagreement"]["share"] == 0 and result["disagreement"]["compared"] == 1
    assert result["figures"]["difference"]["miou"]["value"] == 0
    assert (result["one"]["kind"], result["other"]["kind"]) == ("class raster", "model")
    against = run(model, make_map(truth(), "truth.tif"), rasters=[str(scene)], labels=labels)
    assert against["figures"]["better"] == "other", "only windows with labels are mapped, and rightly"
    assert any("plain.geopeft does not say where it has learned" in text for text in against["sentences"])


def test_places_that_taught_a_model_are_left_out(write_model: Any, make_map: Any, scene: Path, labels: Path) -> None:
    model = write_model("taught.geopeft", memory_of(scene, slice(0, 64)))
    found = run(model, make_map(truth(), "truth.tif"), rasters=[str(scene)], labels=labels)["figures"]
    whole = run(make_map(truth(), "a.tif"), make_map(truth(), "b.tif"), labels=labels)["figures"]
    assert 0 < found["labels"] < whole["labels"] and found["flattered"] == [] and found["better"] == "other"
    assert found["labels"] == whole["labels"] * 10 // 13, "squares in the first three of thirteen rows are known"
    assert any("These places are left out" in text for text in found["independence"])


def test_no_claim_is_made_on_labels_that_taught_a_model(
    write_model: Any, make_map: Any, scene: Path, labels: Path
) -> None:
    model, heard = write_model("all.geopeft", memory_of(scene, slice(0, SIDE))), Heard()
    found = run(model, make_map(truth(), "truth.tif"), heard, rasters=[str(scene)], labels=labels)["figures"]
    assert found["better"] is None and found["flattered"] == ["all.geopeft"]
    assert "No claim is made" in found["sentence"] and found["difference"]["miou"]["high"] < 0
    assert any("the figures flatter all.geopeft" in text for text in heard.said)


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("COMPARE_NOTHING", {"out": ""}),
        ("COMPARE_NO_RASTER", {"other": "plain.geopeft"}),
        ("COMPARE_ONE_RASTER", {"one": "plain.geopeft", "rasters": ["scene.tif", "scene.tif"]}),
        ("RASTER_NOT_CLASSES", {"other": "float.tif"}),
        ("RASTER_NOT_CLASSES", {"other": "bands.tif"}),
        ("RASTER_NOT_CLASSES", {"other": "many.tif"}),
        ("RASTER_NOT_CLASSES", {"other": "empty.tif"}),
        ("RASTER_NOT_CLASSES", {"one": "half.tif", "other": "rest.tif"}),
        ("MAPS_NO_OVERLAP", {"other": "far.tif"}),
        ("MAPS_NO_OVERLAP", {"one": "upper.tif", "other": "lower.tif"}),
        ("LABELS_OTHER_CLASSES", {"labels": "ice.gpkg"}),
        ("LABELS_OUTSIDE", {"labels": "away.gpkg"}),
        ("LABELS_EMPTY", {"other": "upper.tif", "labels": "low.gpkg", "out": ""}),
        ("OUTPUT_IS_INPUT", {"out": "other.tif"}),
        ("JOB_INVALID", {"out": "d.png"}),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(
    code: str, fields: dict[str, Any], make_raster: MakeRaster, make_map: Any, make_labels: MakeLabels,
    write_model: Any, scene: Path, tmp_path: Path,
) -> None:  # fmt: skip
    upper, lower = truth(), truth()
    upper[130:], lower[:130] = 0, 0
    for name, values in (("one", truth()), ("other", truth()), ("upper", upper), ("lower", lower)):
        make_map(values, f"{name}.tif")
    make_map(truth(), "far.tif", transform=Affine(10, 0, 400_000, 0, -10, 5_800_000))
    for name, first in (("half", 0), ("rest", 200)):
        make_map((np.arange(60 * 60).reshape(60, 60) % 200 + first).astype(np.uint16) + 1, f"{name}.tif", None)
    make_raster(np.ones((1, 60, 60), np.float32), "float.tif")
    make_raster(np.ones((2, 60, 60), np.uint8), "bands.tif")
    make_raster(np.arange(3600, dtype=np.uint16).reshape(1, 60, 60), "many.tif")
    make_raster(np.zeros((1, 60, 60), np.uint8), "empty.tif", nodata=0)
    box = shapely.box(300_100, 5_797_900, 300_150, 5_797_950)
    make_labels([box], ["ice"], "ice.gpkg")
    make_labels([box], ["forest"], "low.gpkg")
    make_labels([shapely.box(900_100, 5_797_900, 900_150, 5_797_950)], ["forest"], "away.gpkg")
    model = write_model("plain.geopeft")
    chosen = {"one": "one.tif", "other": "other.tif", "out": "d.tif"} | fields
    for key, name in chosen.items():
        if isinstance(name, str) and name:
            chosen[key] = model if name == model.name else tmp_path / name
    if "rasters" in chosen:
        chosen["rasters"] = [str(tmp_path / name) for name in chosen["rasters"]]
    with pytest.raises(GeopeftError) as caught:
        run(**chosen)
    assert caught.value.code == code and caught.value.hint
    assert not (tmp_path / "d.tif").exists()


def test_several_rasters_of_a_model_are_one_map(
    write_model: Any, make_map: Any, make_raster: MakeRaster, labels: Path, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(1, 3000, (2, SIDE, SIDE)).astype(np.uint16)
    halves = [make_raster(values[:, :, :130], "left.tif", names=("red", "nir"))]
    right = Affine(10, 0, 301_300, 0, -10, 5_800_000)
    halves.append(make_raster(values[:, :, 130:], "right.tif", names=("red", "nir"), transform=right))
    model, other = write_model("plain.geopeft"), make_map(truth(), "truth.tif")
    rasters = [str(half) for half in halves]
    as_second = run(other, model, rasters=rasters, out=tmp_path / "d.tif", labels=labels)
    assert as_second["disagreement"]["compared"] == 1 and as_second["figures"]["labels_without_map"] == 0
    as_first = run(model, other, rasters=rasters, labels=labels)["figures"]
    assert as_first["labels"] == as_second["figures"]["labels"] and as_first["one"]["miou"]["value"] > 0
    assert as_first["one"]["overall_accuracy"]["value"] == as_second["figures"]["other"]["overall_accuracy"]["value"]
