"""What a model has seen: ground like that of its labels lies inside, another spectrum or sensor outside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from geopeft import package, predict
from geopeft.applicability import MOST_POINTS, balanced, find_applicability, nearest
from geopeft.errors import PackageError
from geopeft.events import Reporter
from geopeft.forest import Pixels, fit_applicability, fit_classical
from geopeft.job import parse
from geopeft.mapping.strips import map_raster
from geopeft.maps import one_map, parts
from geopeft.models import build
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.models.texture import Texture, describe_texture
from geopeft.runtime import PROJECTION, SEEN_POINTS, SEEN_SCALE, Runtime

MakeRaster = Callable[..., Path]
SIZE = 96
# Where sand begins in scenes that have some, in px; all that is near it looks like nothing else.
SAND_FROM, NEAR = 64, 5
# Mean values of three kinds of ground in red, near infrared and shortwave infrared.
GROUND = {"water": (400.0, 200.0, 100.0), "forest": (300.0, 3000.0, 1200.0), "sand": (3500.0, 4000.0, 4500.0)}
BANDS = tuple(
    InputBand(name=name, common=common, mean=1500, std=1500)
    for name, common in (("red", "red"), ("nir", "nir"), ("swir", "swir16"))
)


def scene(seed: int, gain: float = 1.0, sand: bool = False) -> np.ndarray:
    """(3, SIZE, SIZE) uint16: squares of 16 px of water or forest, some brighter than others; sand in the east."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 2, (SIZE // 16,) * 2)
    if sand:
        squares[:, SAND_FROM // 16 :] = 2
    brightness = rng.normal(1, 0.05, squares.shape)
    means = np.array(list(GROUND.values()))[squares] * brightness[..., None]
    values = np.repeat(np.repeat(means, 16, 0), 16, 1) * rng.normal(1, 0.03, (SIZE, SIZE, 3))
    return np.moveaxis(values * gain, -1, 0).clip(0, 60_000).astype(np.uint16)


def texture() -> Texture:
    spec = describe_texture(BANDS, 10)
    return Texture(spec, BANDS, torch.eye(spec.components, len(BANDS)))


@pytest.mark.parametrize("step", [1, 3, 8])
@pytest.mark.parametrize("gsd_m", [1, 10])
def test_features_of_some_pixels_are_those_of_all(step: int, gsd_m: float) -> None:
    made = Texture(spec := describe_texture(BANDS, gsd_m), BANDS, torch.eye(spec.components, len(BANDS)))
    raw = torch.from_numpy(scene(4).astype(np.float32))[None]
    for rows, cols in ((slice(0, SIZE, step), slice(5, SIZE - 1, step)), (slice(90, 91, step), slice(7, 60, step))):
        # A deviation near 0 is the root of a difference of two sums, which are added up in another order.
        assert torch.allclose(made.sparse(raw, rows, cols), made(raw)[:, :, rows, cols], atol=2e-3)


def pixels(values: np.ndarray, places_per_class: int = 8) -> tuple[Pixels, np.ndarray]:
    """Labelled pixels of water and forest, each square a place, and the places' blocks."""
    features = texture()(torch.from_numpy(values.astype(np.float32))[None])[0].numpy()
    rows, cols = np.mgrid[: SIZE // 16, : SIZE // 16].reshape(2, -1) * 16
    kind = (values[1, rows + 8, cols + 8] > 1000).astype(np.int64)
    found: list[np.ndarray] = []
    classes: list[int] = []
    sites: list[int] = []
    blocks: list[int] = []
    for index in range(2):
        for at in np.flatnonzero(kind == index)[:places_per_class]:
            window = features[:, rows[at] : rows[at] + 16 : 2, cols[at] : cols[at] + 16 : 2]
            found.append(window.reshape(len(features), -1).T)
            classes += [index] * 64
            sites += [len(blocks)] * 64
            blocks.append(int(rows[at]) // 32 * 100 + int(cols[at]) // 32)
    count = len(classes)
    labelled = Pixels(np.concatenate(found), np.zeros((count, 0), np.float32), np.array(classes), np.ones(count),
                      np.array(sites))  # fmt: skip
    return labelled, np.array(blocks)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose map is its classical part, taught water and forest."""
    labelled, blocks = pixels(scene(0), 99)
    seen = fit_applicability(labelled, blocks, 0)
    assert seen is not None
    made = texture()
    spec = ModelSpec(backbone="scratch_unet", adapter="full", decoder="unet", bands=BANDS, num_classes=2, gsd_m=10,
                     chip_size_px=32)  # fmt: skip
    classes = tuple(
        package.ClassInfo(value=value, name=name, color=color, label=name)
        for value, name, color in ((1, "water", "#0000ff"), (2, "forest", "#00ff00"))
    )
    manifest = package.Manifest(
        engine_version="0.1.0", created="2026-01-01T00:00:00+00:00", name="m", spec=spec, classes=classes,
        base_weights=package.BaseWeights(backbone="scratch_unet", licence="Apache-2.0"), radiometry="unknown",
        dtype="uint16", classical=made.spec, blend=package.Blend(network=0.0, sharpness=1.5),
        outside_beyond=seen.threshold,
    )  # fmt: skip
    weights = {name: tensor.numpy() for name, tensor in build(spec).trainable_state().items()}
    weights |= {PROJECTION: made.projection.flatten(1).numpy(), SEEN_SCALE: seen.scale, SEEN_POINTS: seen.points}
    path: Path = tmp_path_factory.mktemp("seen") / "m.geopeft"
    package.write(path, manifest, weights, fit_classical(labelled, 2, len(BANDS), 0))
    return path


def run(model: Path, raster: Path, out: Path, reporter: Reporter | None = None, **fields: Any) -> dict[str, Any]:
    job = {"job": "predict", "model": str(model), "rasters": [str(raster)], "out": str(out), "device": "cpu"} | fields
    (entry,) = predict.run(parse(job), reporter or Reporter())["rasters"]  # type: ignore[arg-type]
    return entry


def read(path: str | Path) -> np.ndarray:
    with rasterio.open(path) as source:
        values: np.ndarray = source.read(1)
    return values


NAMES = ("red", "nir", "swir")


def test_the_world_of_the_labels_is_inside_and_a_new_kind_of_ground_outside(
    model: Path, make_raster: MakeRaster, tmp_path: Path
) -> None:
    told, silent = Reporter(), Reporter()
    for seed, most in ((0, 0.1), (1, 0.2)):
        known = make_raster(scene(seed), f"known_{seed}.tif", names=NAMES)
        entry = run(model, known, tmp_path / f"map_{seed}.tif", silent)
        assert entry["outside_share"] < most and entry["outside"] is None
    assert not [text for text in silent.warnings if "has seen" in text]
    new = make_raster(scene(2, sand=True), "new.tif", names=NAMES)
    entry = run(model, new, tmp_path / "new_map.tif", told, outside=True)
    percent = read(entry["outside"])
    assert (percent[:, SAND_FROM:] > 100).mean() > 0.98
    assert (percent[:, : SAND_FROM - NEAR] > 100).mean() < 0.1
    assert entry["outside_share"] == pytest.approx((percent > 100).mean(), abs=0.001)
    (warning,) = [text for text in told.warnings if "has seen" in text]
    assert f"{entry['outside_share']:.0%} of new.tif lies outside" in warning


def test_the_share_of_a_few_pixels_is_nearly_that_of_all(
    model: Path, make_raster: MakeRaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ENOUGH_PIXELS", 200)
    raster = make_raster(scene(3, sand=True), names=NAMES)
    few = run(model, raster, tmp_path / "a.tif")["outside_share"]
    assert few == pytest.approx(run(model, raster, tmp_path / "b.tif", outside=True)["outside_share"], abs=0.08)


def test_the_layer_is_what_every_window_alone_would_say(model: Path, make_raster: MakeRaster) -> None:
    """No seam, whatever grid of pixels is asked for: each is that of the whole raster seen at once."""
    from geopeft.data.raster import describe

    values = scene(4, sand=True)
    info = describe(str(make_raster(values, names=NAMES)))
    runtime = Runtime.open(model, "cpu", "", Reporter())
    assert runtime.seen is not None
    features = texture()(torch.from_numpy(values.astype(np.float32))[None])[0].numpy()
    whole = runtime.seen.dissimilarity(features.reshape(len(features), -1).T).reshape(SIZE, SIZE)
    for every in (1, 5):
        strips = list(map_raster(runtime, info, (), Reporter(), every_px=every))
        found = np.concatenate([strip.dissimilarity for strip in strips if strip.dissimilarity is not None])
        assert (
            np.isfinite(found[::every, ::every]).all() and np.isfinite(found).sum() == len(range(0, SIZE, every)) ** 2
        )
        assert np.abs(found - whole)[::every, ::every].max() < 0.05
    assert all(strip.dissimilarity is None for strip in map_raster(runtime, info, (), Reporter()))


def test_another_gain_as_of_another_sensor_is_warned_of(model: Path, make_raster: MakeRaster, tmp_path: Path) -> None:
    reporter = Reporter()
    raster = make_raster(scene(5, gain=1.8), names=NAMES)
    assert run(model, raster, tmp_path / "map.tif", reporter)["outside_share"] > one_map.MUCH_OUTSIDE
    assert any("label some of it and train again" in text for text in reporter.warnings)


def real(path: Path, indexes: tuple[int, ...]) -> np.ndarray:
    """(C, h, w) float32 bands of a raster."""
    with rasterio.open(path) as source:
        values: np.ndarray = source.read(indexes).astype(np.float32)
    return values


def test_the_scene_of_the_labels_is_inside_its_neighbour_nearly_and_another_sensor_outside(shared: Path) -> None:
    """Landsat 7 of North Carolina in leaf, the ground next to it, and Landsat 5 of the Amazon; 8-bit values in all."""
    folder, roles = shared / "data" / "nc_landsat7", ("blue", "green", "red", "nir", "swir16")
    train, beside = (real(folder / name / "lsat7_2000.tif", (1, 2, 3, 4, 5)) for name in ("train_west", "unseen_mid"))
    amazon = real(shared / "data" / "rstoolbox_lsat5_amazon" / "train_west" / "lsat5.tif", (1, 2, 3, 4, 5))
    with rasterio.open(folder / "train_west" / "labelled_pixels.tif") as source:
        truth = source.read(1)
    valid = (train > -1).all(0)
    bands = tuple(
        InputBand(name=role, common=role, mean=float(band[valid].mean()), std=float(band[valid].std()))
        for role, band in zip(roles, train, strict=True)
    )
    spec = describe_texture(bands, 28.5)
    features = Texture(spec, bands, torch.eye(spec.components, len(bands)))

    def seen_of(values: np.ndarray) -> np.ndarray:
        there = (values > -1).all(0)
        filled = np.where(there, values, np.array([band.mean for band in bands], np.float32)[:, None, None])
        found: np.ndarray = features(torch.from_numpy(filled)[None])[0].numpy()
        return found[:, there].T[::7]

    whole = features(torch.from_numpy(np.where(valid, train, 0))[None])[0].numpy()
    rows, cols = np.nonzero(valid & (truth > 0))
    classes = truth[rows, cols].astype(np.int64) - 1
    places = np.unique(np.stack([classes, rows // 16, cols // 16], 1), axis=0, return_inverse=True)[1].ravel()
    count = len(rows)
    labelled = Pixels(whole[:, rows, cols].T, np.zeros((count, 0), np.float32), classes, np.ones(count), places)
    _, first = np.unique(places, return_index=True)
    applicability = fit_applicability(labelled, rows[first] // 64 * 1000 + cols[first] // 64, 0)
    assert applicability is not None
    own, near, far = ((applicability.dissimilarity(seen_of(v)) > 1).mean() for v in (train, beside, amazon))
    assert own < 0.1 and near < one_map.MUCH_OUTSIDE and far > 0.9, (own, near, far)


def test_entropy_and_unknown_follow_the_probabilities(model: Path, make_raster: MakeRaster, tmp_path: Path) -> None:
    raster = make_raster(scene(6, sand=True), names=NAMES)
    sure = run(model, raster, tmp_path / "sure.tif", confidence=True, entropy=True, polygons=True)
    reporter = Reporter()
    unsure = run(model, raster, tmp_path / "unsure.tif", reporter, unknown_below=90, polygons=True)
    confidence, entropy = read(sure["confidence"]) / 100, read(sure["entropy"]) / 100
    expected = -(confidence * np.log2(confidence) + (1 - confidence) * np.log2(np.maximum(1 - confidence, 1e-12)))
    assert np.abs(entropy - expected).max() < 0.06, "of two classes, up to the rounding of both"
    before, after = read(sure["class_raster"]), read(unsure["class_raster"])
    clear = np.abs(confidence - 0.9) > 0.006
    assert np.array_equal(after[clear], np.where(confidence < 0.9, 255, before)[clear])
    assert 0 < unsure["unknown_share"] < 1 and unsure["unknown_share"] == pytest.approx((after == 255).mean(), abs=1e-4)
    assert any("of the map of raster.tif is unknown" in text for text in reporter.messages)
    assert unsure["classes"][-1] == {"value": 255, "name": "unknown", "color": "#9e9e9e"}
    assert sure["unknown_share"] == 0 and len(sure["classes"]) == 2
    with rasterio.open(unsure["class_raster"]) as source:
        assert source.colormap(1)[255][:3] == (0x9E, 0x9E, 0x9E) and '"255": "unknown"' in source.tags(1)["CLASSES"]
        assert source.nodata == 0
    import pyogrio

    names = set(pyogrio.raw.read(unsure["polygons"], columns=["class"])[3][0])
    assert "unknown" in names and names <= {"water", "forest", "unknown"}
    assert not list(tmp_path.glob("*.part*")) and not (tmp_path / "unsure_confidence.tif").exists()


def test_a_class_that_is_called_unknown_is_told_from_what_is_unknown() -> None:
    from geopeft.class_raster import legend_of

    known = package.ClassInfo(value=1, name="Unknown", color="#000000", label="u")
    names = [row["name"] for row in legend_of([known], True)]
    assert len({name.casefold() for name in names}) == 2 and names[0] == "Unknown"


def test_nothing_is_told_where_every_class_lies_in_one_block() -> None:
    labelled, blocks = pixels(scene(7), 1)
    assert fit_applicability(labelled, np.array([0, 1]), 0) is None
    assert fit_applicability(labelled.where(labelled.classes == 0), blocks, 0) is None


def test_the_threshold_comes_from_other_blocks_not_from_neighbours() -> None:
    """Two blocks a class, each of pixels that are all but the same: the distance that counts is that between blocks."""
    features = np.repeat(np.array([[0.0], [1.0], [10.0], [11.0]], np.float32), 50, 0)
    features += np.random.default_rng(0).normal(0, 1e-3, features.shape).astype(np.float32)
    classes, places = np.repeat([0, 0, 1, 1], 50), np.repeat([0, 1, 2, 3], 50)
    seen = find_applicability(features, np.ones(1), classes, places, places, 0)
    assert seen is not None
    found = seen.dissimilarity(np.array([[0.5], [1.9], [2.2], [-1.5]], np.float32))
    assert (found > 1).tolist() == [False, False, True, True]
    alone = find_applicability(features, np.ones(1), classes, places, classes, 0)
    assert alone is None


def test_points_are_drawn_evenly_from_classes_and_places() -> None:
    classes = np.repeat([0, 1], [900, 100])
    places = np.concatenate([np.repeat([0, 1, 2], [800, 50, 50]), np.repeat([3], 100)])
    chosen = balanced(classes, places, 60, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 60
    assert np.bincount(places[chosen]).tolist() == [10, 10, 10, 30]
    assert len(balanced(classes, places, MOST_POINTS * 10, np.random.default_rng(0))) == 1000


def test_distances_are_those_to_the_nearest_point() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(9000, 5)).astype(np.float32), rng.normal(size=(30, 5)).astype(np.float32)
    expected = np.sqrt(((one[::100, None] - other) ** 2).sum(2)).min(1)
    assert np.abs(nearest(one, other)[::100] - expected).max() < 1e-3


def altered(model: Path, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], **fields: Any) -> Path:
    opened = package.read(model)
    weights = dict(opened.weights)
    change(weights)
    path = tmp_path / "altered.geopeft"
    package.write(path, opened.manifest.model_copy(update=fields), weights, opened.forest)
    return path


def without(weights: dict[str, np.ndarray]) -> None:
    del weights[SEEN_SCALE], weights[SEEN_POINTS]


def test_a_package_that_does_not_tell_still_maps_and_refuses_only_the_layer(
    model: Path, make_raster: MakeRaster, tmp_path: Path
) -> None:
    path = altered(model, tmp_path, without, outside_beyond=None)
    raster = make_raster(scene(8), names=NAMES)
    assert run(path, raster, tmp_path / "map.tif")["outside_share"] is None
    with pytest.raises(PackageError) as caught:
        run(path, raster, tmp_path / "map.tif", outside=True)
    assert caught.value.code == "PACKAGE_NO_OUTSIDE"


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (lambda weights: weights.pop(SEEN_POINTS), {}),
        (lambda weights: None, {"outside_beyond": None}),
        (without, {}),
        (lambda weights: weights.update({SEEN_SCALE: weights[SEEN_SCALE][1:]}), {}),
        (lambda weights: weights.update({SEEN_POINTS: np.zeros((0, len(weights[SEEN_SCALE])), np.float32)}), {}),
        (lambda weights: weights.update({SEEN_POINTS: np.tile(weights[SEEN_POINTS], (1000, 1))}), {}),
        (lambda weights: weights.update({SEEN_POINTS: weights[SEEN_POINTS].astype(np.float64)}), {}),
        (lambda weights: weights.update({SEEN_POINTS: weights[SEEN_POINTS][None]}), {}),
    ],
)
def test_parts_that_do_not_fit_are_refused(model: Path, tmp_path: Path, change: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(PackageError) as caught:
        Runtime.open(altered(model, tmp_path, change, **fields), "cpu", "", Reporter())
    assert caught.value.code == "PACKAGE_BROKEN"


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1e30])
def test_an_absurd_threshold_is_refused(model: Path, tmp_path: Path, threshold: float) -> None:
    with pytest.raises(PackageError) as caught:
        package.read(altered(model, tmp_path, lambda weights: None, outside_beyond=threshold))
    assert caught.value.code == "PACKAGE_MANIFEST"
