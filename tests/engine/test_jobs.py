"""The real path on small rasters: fit, predict, evaluate, export, and everything that can be wrong with their input."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pyogrio
import pytest
import rasterio
import shapely
import torch
from geopeft import evaluate, fit, holdout, judging, package, predict
from geopeft.blending import place_of
from geopeft.errors import Canceled, GeopeftError
from geopeft.events import Reporter
from geopeft.forest import Pixels, fit_classical
from geopeft.job import parse
from geopeft.mapping.windows import Sizes
from geopeft.onnx import export
from geopeft.runtime import Runtime, fill_values
from rasterio.windows import Window

torch.set_num_threads(2)
SIZE = 300
BANDS = ("Blue", "Green", "Red", "NIR")


def world(seed: int = 0, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """(values (4, n, n) uint16, classes (n, n)): four fields with noise, told apart by their bands."""
    rng = np.random.default_rng(seed)
    classes = (np.arange(size)[:, None] // 75 + np.arange(size) // 75) % 2
    spectra = np.array([[500, 700, 600, 3000], [900, 1100, 1500, 1800]], np.float32)
    values = spectra[classes].transpose(2, 0, 1) + rng.normal(0, 60, (4, size, size))
    return values.astype(np.uint16), classes


def write_raster(path: Path, values: np.ndarray, nodata: float | None = None, **changes: Any) -> Path:
    profile = {
        "driver": "GTiff",
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000),
        "nodata": nodata,
    } | changes
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(values)
        if len(values) == len(BANDS):
            raster.descriptions = BANDS
    return path


def write_labels(path: Path, shapes: list[tuple[str, tuple[int, int, int, int]]], **changes: Any) -> Path:
    """Boxes in pixels (row0, col0, row1, col1) of the raster above."""
    boxes = [
        shapely.box(500_000 + 10 * c0, 5_000_000 - 10 * r1, 500_000 + 10 * c1, 5_000_000 - 10 * r0)
        for _, (r0, c0, r1, c1) in shapes
    ]
    names = np.array([name for name, _ in shapes], object)
    options = {"crs": "EPSG:32633", "layer": "labels", "driver": "GPKG", "geometry_type": "Polygon"} | changes
    pyogrio.raw.write(path, shapely.to_wkb(np.array(boxes)), [names], ["class"], **options)
    return path


def field_boxes(offset: int = 0) -> list[tuple[str, tuple[int, int, int, int]]]:
    """A box well inside each of the sixteen fields."""
    result = []
    for row in range(4):
        for col in range(4):
            name = "forest" if (row + col) % 2 == 0 else "field"
            top, left = 75 * row + 20 + offset, 75 * col + 20 + offset
            result.append((name, (top, left, top + 20, left + 20)))
    return result


def run(job: dict[str, Any], reporter: Reporter | None = None) -> dict[str, Any]:
    parsed = parse(job)
    module = {"fit": fit, "predict": predict, "evaluate": evaluate, "export": export}[job["job"]]
    outputs: dict[str, Any] = module.run(parsed, reporter or Reporter())
    return outputs


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scene.tif (with a nodata corner), labels.gpkg, and model.geopeft fitted on them."""
    folder = tmp_path_factory.mktemp("scene")
    values, _ = world()
    values[:, :30, :40] = 0
    write_raster(folder / "scene.tif", values, nodata=0)
    write_labels(folder / "labels.gpkg", field_boxes())
    run(fit_job(folder, steps=60, folds=2, json_file=str(folder / "fit.json")))
    return folder


def fit_job(folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "job": "fit",
        "rasters": [str(folder / "scene.tif")],
        "labels": str(folder / "labels.gpkg"),
        "out": str(folder / "model.geopeft"),
        "backbone": "scratch_unet",
        "adapter": "full",
        "steps": 5,
        "device": "cpu",
    } | fields


def test_fit_learns_and_reports_held_out_accuracy(scene: Path) -> None:
    figures = json.loads((scene / "fit.json").read_text())
    assert figures["miou"]["value"] > 0.9
    assert figures["miou"]["low"] <= figures["miou"]["value"] <= figures["miou"]["high"]
    assert {c["name"] for c in figures["classes"]} == {"forest", "field"}
    assert figures["seconds"] > 0
    assert figures["peak_memory_mb"] > 0


@pytest.fixture(scope="module")
def mapped(scene: Path) -> dict[str, Any]:
    job = {"job": "predict", "model": str(scene / "model.geopeft"), "rasters": [str(scene / "scene.tif")],
           "out": str(scene / "map.tif"), "confidence": True, "polygons": True, "device": "cpu"}  # fmt: skip
    outputs: dict[str, Any] = run(job)["rasters"][0]
    return outputs


def test_the_map_is_right_and_lies_on_the_rasters_grid(scene: Path, mapped: dict[str, Any]) -> None:
    _, classes = world()
    with rasterio.open(scene / "scene.tif") as source, rasterio.open(mapped["class_raster"]) as result:
        assert (result.crs, result.transform, result.shape) == (source.crs, source.transform, source.shape)
        assert (result.dtypes[0], result.nodata, result.profile["tiled"]) == ("uint8", 0, True)
        assert result.overviews(1)
        assert json.loads(result.tags(1)["CLASSES"]) == {"1": "field", "2": "forest"}
        colors = result.colormap(1)
        pixels = result.read(1)
    assert "#{:02x}{:02x}{:02x}".format(*colors[2][:3]) == mapped["classes"][1]["color"]
    truth = np.where(classes == 0, 2, 1)
    truth[:30, :40] = 0
    assert ((pixels == 0) == (truth == 0)).all()
    assert (pixels == truth)[truth > 0].mean() > 0.97


def test_gdal_finds_the_class_names(mapped: dict[str, Any]) -> None:
    sidecar = Path(mapped["class_raster"] + ".aux.xml").read_text()
    assert sidecar.index("<Category>nodata<") < sidecar.index("<Category>field<") < sidecar.index("<Category>forest<")


def test_confidence_is_percent_with_its_own_nodata(mapped: dict[str, Any]) -> None:
    with rasterio.open(mapped["confidence"]) as result:
        percent = result.read(1)
    assert (percent[:30, :40] == 255).all()
    rest = np.ma.masked_equal(percent, 255)
    assert 50 <= rest.min() <= rest.max() <= 100


def test_polygons_carry_class_area_and_confidence(mapped: dict[str, Any]) -> None:
    meta, _, geometry, fields = pyogrio.raw.read(mapped["polygons"])
    names, areas, sure = (fields[list(meta["fields"]).index(name)] for name in ("class", "area_m2", "confidence"))
    shapes = shapely.from_wkb(geometry)
    with rasterio.open(mapped["class_raster"]) as result:
        pixels = int((result.read(1) == 2).sum())
    assert sum(s.area for s, n in zip(shapes, names, strict=True) if n == "forest") == pytest.approx(pixels * 100)
    # UTM stretches: the area on the ellipsoid differs by up to 0.1 % near the central meridian.
    assert areas.sum() == pytest.approx(sum(s.area for s in shapes), rel=2e-3)
    assert sure.min() >= 50
    assert sure.max() <= 100


def test_evaluate_agrees_with_the_map(scene: Path, mapped: dict[str, Any]) -> None:
    write_labels(scene / "other.gpkg", field_boxes(offset=8))
    outputs = run({"job": "evaluate", "model": str(scene / "model.geopeft"), "rasters": [str(scene / "scene.tif")],
                   "labels": str(scene / "other.gpkg"), "json_file": str(scene / "e.json")})  # fmt: skip
    matrix = np.array(outputs["figures"]["confusion_matrix"])
    with rasterio.open(mapped["class_raster"]) as result:
        pixels = result.read(1)
    expected = np.zeros((2, 2), int)
    for name, (r0, c0, r1, c1) in field_boxes(offset=8):
        values, counts = np.unique(pixels[r0:r1, c0:c1], return_counts=True)
        for value, count in zip(values, counts, strict=True):
            if value:
                expected[1 if name == "forest" else 0, value - 1] += count
    assert matrix.tolist() == expected.tolist()
    blocks = outputs["figures"]["blocks"]
    assert blocks > 1 and outputs["figures"]["split"].startswith(f"the labels given, counted in {blocks} blocks")
    assert json.loads((scene / "e.json").read_text())["miou"]["value"] == outputs["figures"]["miou"]["value"]


def test_each_part_is_scored_by_itself_and_the_blend_is_the_packages(scene: Path) -> None:
    common = {"rasters": [str(scene / "scene.tif")], "labels": str(scene / "labels.gpkg"), "device": "cpu"}
    job = {"job": "evaluate", "model": str(scene / "model.geopeft"), **common}
    scores = {part: run(job | {"part": part})["figures"]["miou"]["value"] for part in ("", "network", "classical")}
    assert min(scores.values()) > 0.9
    metrics = package.read_manifest(scene / "model.geopeft").metrics
    assert set(metrics["parts"]) == {"network", "classical"} and min(metrics["parts"].values()) > 0.9
    # The parts' probabilities differ, and the blend lies between them by the package's share.
    runtimes = {part: Runtime.open(scene / "model.geopeft", "cpu", "", Reporter(), part) for part in scores}
    values, _ = world(seed=5, size=64)
    chip, valid = values[None].astype(np.float32), np.ones((1, 64, 64), bool)
    found = {part: runtime.probabilities(chip, valid) for part, runtime in runtimes.items()}
    blend = runtimes[""].manifest.blend
    assert np.abs(found["network"] - found["classical"]).max() > 0.01
    assert 0 < blend.network < 1
    expected = (blend.network * found["network"] + (1 - blend.network) * found["classical"]) ** blend.sharpness
    assert blend.sharpness != 1
    assert np.abs(found[""] - expected / expected.sum(1, keepdims=True)).max() < 1e-6


def test_held_out_places_do_not_teach_the_parts_that_are_scored_on_them(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[int]] = []
    withheld: list[set[int]] = []

    def noted(pixels: Pixels, *rest: int) -> bytes:
        seen.append(set(pixels.sites))
        assert len(pixels.ground) > 1000, "ground without labels has its say in every training"
        return fit_classical(pixels, *rest)

    monkeypatch.setattr(judging, "fit_classical", noted)
    hold_out = fit.hold_out

    def watched(*arguments: Any) -> fit.HeldOut:
        held = hold_out(*arguments)
        sites = arguments[3]
        withheld.append({i for i, s in enumerate(sites) if (s.raster_index, s.group) in set(held.withheld)})
        return held

    monkeypatch.setattr(fit, "hold_out", watched)
    run(fit_job(scene, out=str(tmp_path / "m"), steps=2, folds=1))
    first, last = seen
    assert withheld[0] and not first & withheld[0], "scored by what it was not taught"
    assert last == first | withheld[0], "the model that is kept has seen all"


@pytest.mark.parametrize(
    ("places", "blocks_of_places", "held", "more"),
    [
        (16, 8, 2, True),
        (60, 8, 3, False),
        (60, 8, 1, True),
        (60, 20, 5, False),
    ],
    ids=["few places", "many places", "many places of which none is judged", "enough is held out"],
)
def test_more_folds_judge_few_places_or_where_one_hold_out_judges_nothing(
    monkeypatch: pytest.MonkeyPatch, places: int, blocks_of_places: int, held: int, more: bool
) -> None:
    """Places of two classes in so many blocks, of which the first few are held out."""
    sites = [SimpleNamespace(raster_index=0, group=at, class_index=at % 2) for at in range(places)]
    blocks = {place_of(0, at): at // 2 % blocks_of_places for at in range(places)}
    taught = np.array([at for at in range(places) if blocks[place_of(0, at)] >= held])
    first = holdout.HeldOut(taught, [], [object()], places - len(taught), "", blocks)  # type: ignore[list-item]
    dealt: list[bool] = []

    def deal(*_: Any) -> list[holdout.HeldOut]:
        dealt.append(True)
        return []

    monkeypatch.setattr(holdout, "_deal", deal)
    job = parse({"job": "fit", "rasters": ["a.tif"], "labels": "l.gpkg", "out": "m"})
    holdout.more_folds(job, None, None, sites, first, Reporter())  # type: ignore[arg-type]
    assert bool(dealt) is more


def test_labels_kept_apart_never_teach(scene: Path, tmp_path: Path) -> None:
    """The same package comes out whatever the labels kept apart say, but for the blend and the figures."""
    wrong = [("forest" if name == "field" else "field", box) for name, box in field_boxes(offset=25)]
    for name, boxes in (("right", field_boxes(offset=25)), ("wrong", wrong)):
        write_labels(tmp_path / f"{name}.gpkg", boxes)
        run(fit_job(scene, out=str(tmp_path / name), validation_labels=str(tmp_path / f"{name}.gpkg"), steps=3))
    one, other = (package.read(tmp_path / f"{name}.geopeft") for name in ("right", "wrong"))
    assert one.forest == other.forest
    assert one.manifest.metrics["miou"] != other.manifest.metrics["miou"]


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that the scene takes four, with the overlap of larger ones."""
    monkeypatch.setattr("geopeft.runtime.sizes_for", lambda *_: Sizes(192, 32, 16))


@pytest.mark.fault("R32")
def test_windows_equal_the_model_on_the_whole_raster(scene: Path, small_windows: None) -> None:
    """The scratch network sees 50 px around a pixel at most; farther from window edges nothing may differ."""
    runtime = Runtime.open(scene / "model.geopeft", "cpu", "", Reporter())
    from geopeft.data.raster import describe
    from geopeft.mapping.strips import map_raster

    with rasterio.open(scene / "scene.tif") as source:
        values = source.read().astype(np.float32)
    valid = (values != 0).all(0)
    whole = runtime.probabilities(values[None], valid[None])[0]
    strips = list(map_raster(runtime, describe(str(scene / "scene.tif")), (), Reporter()))
    tiled = np.concatenate([strip.probabilities for strip in strips], 1)
    assert tiled.shape == whole.shape
    assert len(strips) > 1
    difference = np.abs(tiled - whole).max(0)[valid]
    assert np.quantile(difference, 0.99) < 0.05
    assert (tiled.argmax(0) == whole.argmax(0))[valid].mean() > 0.99


def test_one_window_is_exactly_the_model(scene: Path, tmp_path: Path) -> None:
    from geopeft.data.raster import describe
    from geopeft.mapping.strips import map_raster

    runtime = Runtime.open(scene / "model.geopeft", "cpu", "", Reporter())
    side = runtime.window_px - 3
    values = world(3, side)[0]
    path = write_raster(tmp_path / "small.tif", values)
    (strip,) = map_raster(runtime, describe(str(path)), (), Reporter())
    whole = runtime.probabilities(values[None].astype(np.float32), np.ones((1, side, side), bool))[0]
    assert np.abs(strip.probabilities - whole).max() < 1e-5


def test_onnx_gives_the_same_probabilities_for_any_batch(scene: Path) -> None:
    outputs = run({"job": "export", "model": str(scene / "model.geopeft"), "onnx": str(scene / "model.onnx")})
    session = onnxruntime.InferenceSession(outputs["onnx"], providers=["CPUExecutionProvider"])
    runtime = Runtime.open(scene / "model.geopeft", "cpu", "", Reporter())
    side = outputs["input_px"]
    fill = fill_values(runtime.manifest.spec.bands)
    for batch in (1, 2, 5):
        noise = np.random.default_rng(batch).normal(1, 0.3, (batch, 4, side, side)).astype(np.float32)
        raw = noise * fill[:, None, None]
        expected = runtime.probabilities(raw, np.ones((batch, side, side), bool))
        assert np.abs(session.run(None, {"raster": raw})[0] - expected).max() < 1e-3


@pytest.mark.fault("T01", "T11")
def test_a_repeated_fit_gives_the_same_package(scene: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        run(fit_job(scene, out=str(tmp_path / f"{name}.geopeft"), steps=5))
        from geopeft import package

        weights = package.read(tmp_path / f"{name}.geopeft").weights
        digests.append(hashlib.sha256(b"".join(weights[k].tobytes() for k in sorted(weights))).hexdigest())
    assert digests[0] == digests[1]


@pytest.mark.fault("L34")
def one_of_each(boxes: list[Any]) -> list[Any]:
    return list({name: (name, box) for name, box in boxes}.values())


def test_too_few_labels_give_a_model_but_no_accuracy(scene: Path, tmp_path: Path) -> None:
    write_labels(tmp_path / "few.gpkg", one_of_each(field_boxes()))
    reporter = Reporter()
    job = fit_job(scene, labels=str(tmp_path / "few.gpkg"), out=str(tmp_path / "m.geopeft"), steps=2)
    figures = run(job, reporter)["figures"]
    assert figures["miou"] == {"value": None, "low": None, "high": None}
    assert [text for text in reporter.messages if "too few labels" in text]
    assert (tmp_path / "m.geopeft").exists()


@pytest.mark.parametrize("adapter", ["frozen", "lora", "full"])
def test_every_adapter_of_a_pretrained_network_goes_through_a_package(
    scene: Path, tmp_path: Path, adapter: str
) -> None:
    path = tmp_path / "m.geopeft"
    run(fit_job(scene, backbone="tf_efficientnet_lite0", adapter=adapter, steps=2, out=str(path)))
    runtime = Runtime.open(path, "cpu", "", Reporter())
    values = world()[0][None, :, :64, :64].astype(np.float32)
    probabilities = runtime.probabilities(values, np.ones((1, 64, 64), bool))
    assert probabilities.sum(1) == pytest.approx(1, abs=1e-5)
    assert runtime.manifest.base_weights.licence == "Apache-2.0"
    counts = runtime.manifest.hyperparameters
    trained, total = counts["backbone_trainable"], counts["backbone_total"]
    assert {"frozen": trained == 0, "lora": 0 < trained < total / 2, "full": trained == total}[adapter]


@pytest.mark.fault("R22")
def test_peak_memory_does_not_grow_with_the_height(scene: Path, tmp_path: Path) -> None:
    peaks = []
    for rows in (2_000, 20_000):
        values = np.random.default_rng(0).integers(400, 3000, (4, rows, 120)).astype(np.uint16)
        raster = write_raster(tmp_path / f"{rows}.tif", values, tiled=True, blockxsize=128, blockysize=128)
        figures = tmp_path / f"{rows}.json"
        command = ["predict", str(scene / "model.geopeft"), str(raster), "--out", str(tmp_path / f"{rows}_map.tif")]
        subprocess.run(
            [sys.executable, "-m", "geopeft", *command, "--confidence", "--device", "cpu", "--json", str(figures)],
            check=True,
            capture_output=True,
        )
        peaks.append(json.loads(figures.read_text())["peak_memory_mb"])
    # Ten times the rows are 18 MB more of input and 4 MB more of output; GDAL's cache may hold some of it.
    assert peaks[1] - peaks[0] < 40


def test_only_the_area_of_interest_is_mapped(scene: Path, tmp_path: Path) -> None:
    write_labels(tmp_path / "aoi.gpkg", [("x", (100, 100, 160, 180))])
    outputs = run({"job": "predict", "model": str(scene / "model.geopeft"), "rasters": [str(scene / "scene.tif")],
                   "out": str(tmp_path / "aoi.tif"), "aoi": str(tmp_path / "aoi.gpkg"), "device": "cpu"})  # fmt: skip
    with rasterio.open(outputs["rasters"][0]["class_raster"]) as result:
        inside = result.read(1) > 0
    assert inside[100:160, 100:180].all()
    assert inside.sum() == 60 * 80


def test_a_raster_in_other_band_order_gives_the_same_map(scene: Path, mapped: dict[str, Any], tmp_path: Path) -> None:
    with rasterio.open(scene / "scene.tif") as source:
        values, profile = source.read(), source.profile
    with rasterio.open(tmp_path / "turned.tif", "w", **profile) as raster:
        raster.write(values[::-1])
        raster.descriptions = BANDS[::-1]
    outputs = run({"job": "predict", "model": str(scene / "model.geopeft"), "rasters": [str(tmp_path / "turned.tif")],
                   "out": str(tmp_path / "t.tif"), "device": "cpu"})  # fmt: skip
    with rasterio.open(outputs["rasters"][0]["class_raster"]) as turned, rasterio.open(mapped["class_raster"]) as map_:
        assert (turned.read(1) == map_.read(1)).all()


def test_float_reflectance_of_the_same_scene_gives_the_same_map(
    scene: Path, mapped: dict[str, Any], tmp_path: Path
) -> None:
    with rasterio.open(scene / "scene.tif") as source:
        values = source.read().astype(np.float32) / 10_000
    values[:, (values == 0).all(0)] = np.nan
    write_raster(tmp_path / "float.tif", values)
    outputs = run({"job": "predict", "model": str(scene / "model.geopeft"), "rasters": [str(tmp_path / "float.tif")],
                   "out": str(tmp_path / "f.tif"), "device": "cpu"})  # fmt: skip
    with rasterio.open(outputs["rasters"][0]["class_raster"]) as mine, rasterio.open(mapped["class_raster"]) as map_:
        assert (mine.read(1) == map_.read(1)).mean() > 0.999


def test_a_guessed_scale_does_not_change_values_of_the_same_kind(
    scene: Path, mapped: dict[str, Any], tmp_path: Path
) -> None:
    """A scale tag that puts the very same numbers far from the training rasters is not believed."""
    with rasterio.open(scene / "scene.tif") as source:
        values = source.read()
    path = write_raster(tmp_path / "tagged.tif", values, nodata=0)
    with rasterio.open(path, "r+") as raster:
        raster.scales = (0.00002,) * 4
    outputs = run({"job": "predict", "model": str(scene / "model.geopeft"), "rasters": [str(path)],
                   "out": str(tmp_path / "t.tif"), "device": "cpu"})  # fmt: skip
    with rasterio.open(outputs["rasters"][0]["class_raster"]) as mine, rasterio.open(mapped["class_raster"]) as map_:
        assert (mine.read(1) == map_.read(1)).all()


@pytest.mark.fault("R43")
def test_a_failed_raster_does_not_stop_the_rest_and_names_do_not_collide(scene: Path, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_raster(tmp_path / folder / "same.tif", world()[0][:, :100, :100])
    (tmp_path / "broken.tif").write_bytes(b"no raster")
    rasters = [tmp_path / "x/same.tif", tmp_path / "broken.tif", tmp_path / "y/same.tif"]
    outputs = run({"job": "predict", "model": str(scene / "model.geopeft"), "rasters": [str(p) for p in rasters],
                   "out": str(tmp_path / "maps"), "device": "cpu"})  # fmt: skip
    assert len({r["class_raster"] for r in outputs["rasters"]}) == 2
    assert [f["code"] for f in outputs["failures"]] == ["RASTER_OPEN"]


@pytest.mark.fault("P09")
def test_a_cancel_leaves_no_result(scene: Path, tmp_path: Path, small_windows: None) -> None:
    class Stop(Reporter):
        def progress(self, stage: str, current: int, total: int, at_most_s: float = 0.0) -> None:
            if current > 3:
                raise Canceled

    job = {"job": "predict", "model": str(scene / "model.geopeft"), "rasters": [str(scene / "scene.tif")],
           "out": str(tmp_path / "map.tif"), "confidence": True, "device": "cpu"}  # fmt: skip
    with pytest.raises(Canceled):
        run(job, Stop())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Canceled):
        run(fit_job(scene, out=str(tmp_path / "m.geopeft")), Stop())
    assert [path.name for path in tmp_path.iterdir()] == ["m.geopeft.resume"], "to go on from"


def test_the_background_becomes_a_class_only_on_request(scene: Path, tmp_path: Path) -> None:
    write_labels(tmp_path / "one.gpkg", [box for box in field_boxes() if box[0] == "forest"])
    with pytest.raises(GeopeftError) as caught:
        run(fit_job(scene, labels=str(tmp_path / "one.gpkg"), out=str(tmp_path / "m.geopeft")))
    assert caught.value.code == "LABELS_ONE_CLASS"
    run(fit_job(scene, labels=str(tmp_path / "one.gpkg"), out=str(tmp_path / "m.geopeft"), background="other"))
    from geopeft import package

    assert [c.name for c in package.read_manifest(tmp_path / "m.geopeft").classes] == ["forest", "other"]


def other_bands(folder: Path) -> Path:
    values = world()[0][:2]
    path = write_raster(folder / "two.tif", values)
    with rasterio.open(path, "r+") as raster:
        raster.descriptions = ("Blue", "Green")
    return path


def no_crs(folder: Path) -> Path:
    return write_raster(folder / "nocrs.tif", world()[0], crs=None)


def text_file(folder: Path) -> Path:
    (folder / "text.tif").write_text("<html>")
    return folder / "text.tif"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: folder / "none.tif", "RASTER_MISSING"),
        (text_file, "RASTER_OPEN"),
        (no_crs, "RASTER_NO_CRS"),
        (other_bands, "BANDS_UNKNOWN"),
    ],
)
def test_a_bad_raster_is_refused_by_predict(
    scene: Path, tmp_path: Path, make: Callable[[Path], Path], code: str
) -> None:
    job = {"job": "predict", "model": str(scene / "model.geopeft"), "rasters": [str(make(tmp_path))],
           "out": str(tmp_path / "out" / "map.tif"), "device": "cpu"}  # fmt: skip
    with pytest.raises(GeopeftError) as caught:
        run(job)
    assert caught.value.code == code
    assert caught.value.hint
    assert not list((tmp_path / "out").glob("*") if (tmp_path / "out").exists() else [])


def far_away(folder: Path) -> Path:
    return write_labels(folder / "far.gpkg", [("a", (9000, 9000, 9010, 9010)), ("b", (9020, 9000, 9030, 9010))])


def on_nodata(folder: Path) -> Path:
    return write_labels(folder / "nodata.gpkg", [("a", (2, 2, 8, 8)), ("b", (12, 12, 20, 20))])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"labels": far_away}, "LABELS_OUTSIDE"),
        ({"labels": on_nodata}, "LABELS_EMPTY"),
        ({"class_field": "klass"}, "LABELS_FIELD"),
        ({"bands": ["B99"]}, "BANDS_UNKNOWN"),
        ({"backbone": "galileo_huge"}, "NAME_UNKNOWN"),
        ({"decoder": "unett"}, "NAME_UNKNOWN"),
        ({"rasters": ["/nowhere/scene.tif"]}, "RASTER_MISSING"),
        ({"out": "/proc/model.geopeft"}, None),
    ],
)
def test_bad_input_is_refused_by_fit(scene: Path, tmp_path: Path, changes: dict[str, Any], code: str | None) -> None:
    changes = {k: str(v(tmp_path)) if callable(v) else v for k, v in changes.items()}
    with pytest.raises(GeopeftError) as caught:
        run(fit_job(scene, **{"out": str(tmp_path / "m.geopeft"), **changes}))
    assert code is None or caught.value.code == code
    assert caught.value.hint
    assert not (tmp_path / "m.geopeft").exists()


@pytest.mark.fault("R39")
def test_the_users_files_are_never_changed(scene: Path) -> None:
    """Everything above has run on these files by now."""
    names = sorted(p.name for p in scene.iterdir())
    assert not [n for n in names if n.startswith((".", "scene.tif.", "labels.gpkg-"))]
    with rasterio.open(scene / "scene.tif") as source:
        assert source.read(window=Window(0, 0, 40, 30)).max() == 0
