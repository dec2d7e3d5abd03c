"""Time and place of each chip reach the backbone in every job, where they are asked for and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.warp
import shapely
import torch
from geopeft import evaluate, fit, forest, holdout, package, predict
from geopeft.baselines import build_unet
from geopeft.data.raster import describe
from geopeft.errors import BandError, JobError
from geopeft.events import Reporter
from geopeft.job import parse
from geopeft.mapping.strips import map_raster
from geopeft.models import build
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.galileo import GalileoBackbone
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.onnx import export
from geopeft.package import Package
from geopeft.prepare import prepare
from geopeft.runtime import Runtime
from geopeft.training import trainer

torch.set_num_threads(1)
SIZE, FIELD_PX = 96, 24
NAMES = ("B02", "B03", "B04", "B08")
SPECTRA = np.array([[500, 700, 600, 3000], [900, 1100, 1500, 1800]], np.float32)
Fit = Callable[..., Package]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little work as will do."""
    for module, values in {
        trainer: {"BATCH": 2}, holdout: {"MAX_VALIDATION_CHIPS": 3}, forest: {"TREES": 2, "FOLD_TREES": 1},
    }.items():  # fmt: skip
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)


def classes_px() -> np.ndarray:
    """(SIZE, SIZE) fields of two classes like a chessboard."""
    at = np.arange(SIZE) // FIELD_PX
    return (at[:, None] + at) % 2


def write(path: Path, values: np.ndarray, names: tuple[str, ...], east: float = 500_000) -> Path:
    profile = {"driver": "GTiff", "count": len(values), "height": SIZE, "width": SIZE, "dtype": "uint16"}
    affine = rasterio.Affine(10, 0, east, 0, -10, 5_000_000)
    with rasterio.open(path, "w", transform=affine, crs="EPSG:32633", **profile) as raster:
        raster.write(values.clip(1, 9999).astype(np.uint16))
        raster.descriptions = names
    return path


def scene(path: Path, brighter: int = 0, east: float = 500_000) -> Path:
    values = SPECTRA[classes_px()].transpose(2, 0, 1) + np.random.default_rng(0).normal(0, 40, (4, SIZE, SIZE))
    values[0] += brighter
    return write(path, values, NAMES, east)


def draw(path: Path, easts: tuple[float, ...] = (500_000,)) -> Path:
    """A box in the middle of every field."""
    boxes, names = [], []
    for east in easts:
        for row in range(SIZE // FIELD_PX):
            for col in range(SIZE // FIELD_PX):
                left, top = east + (FIELD_PX * col + 6) * 10, 5_000_000 - (FIELD_PX * row + 6) * 10
                boxes.append(shapely.box(left, top - 120, left + 120, top))
                names.append(("crop", "soil")[(row + col) % 2])
    options = {"crs": "EPSG:32633", "layer": "labels", "driver": "GPKG", "geometry_type": "Polygon"}
    pyogrio.raw.write(path, shapely.to_wkb(np.array(boxes)), [np.array(names, object)], ["class"], **options)
    return path


def job(rasters: list[Path], labels: Path, out: Path, **fields: Any) -> Any:
    return parse(
        {"job": "fit", "rasters": [str(r) for r in rasters], "labels": str(labels), "out": str(out), "steps": 2,
         "backbone": "galileo_nano", "adapter": "full", "from_scratch": True, "folds": 1, "device": "cpu",
         "baselines": []} | fields
    )  # fmt: skip


def run_fit(rasters: list[Path], labels: Path, out: Path, reporter: Reporter | None = None, **fields: Any) -> Package:
    fit.run(job(rasters, labels, out, **fields), reporter or Reporter())
    return package.read(out)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, Any]]:
    """What the backbone is given, call by call: its input, and the scene."""
    calls: list[tuple[torch.Tensor, Any]] = []
    embed = GalileoBackbone.embed

    def heard(self: GalileoBackbone, x: torch.Tensor, gsd_m: float, scene: Any) -> torch.Tensor:
        calls.append((x.detach().clone(), scene))
        return embed(self, x, gsd_m, scene)

    monkeypatch.setattr(GalileoBackbone, "embed", heard)
    return calls


@pytest.fixture
def two(tmp_path: Path) -> tuple[list[Path], Path]:
    """A dim scene of January and a brighter one of July, side by side, and labels on both."""
    rasters = [
        scene(tmp_path / "a_20240115.tif"),
        scene(tmp_path / "b_20240715.tif", brighter=2000, east=510_000),
    ]
    return rasters, draw(tmp_path / "labels.gpkg", (500_000, 510_000))


def months(scene: Any) -> list[int]:
    return [int(day > 180) for day in scene.time[:, 0, 1]]


def test_every_chip_of_a_training_comes_with_the_time_of_its_raster(two: Any, seen: Any, tmp_path: Path) -> None:
    reporter = Reporter()
    made = run_fit(two[0], two[1], tmp_path / "m.geopeft", reporter, metadata=True)
    assert seen and all(scene is not None for _, scene in seen)
    for x, told in seen:
        is_bright = x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))
        assert months(told) == is_bright.int().tolist()
        assert told.place is None, "Galileo takes the time alone"
    assert {month for _, told in seen for month in months(told)} == {0, 1}
    assert {len(x) for x, _ in seen} == {1, 2}, "training in twos, pixels and validation one by one"
    assert made.manifest.spec.metadata
    assert any("a_20240115.tif was taken on 2024-01-15, as its file name says." in t for t in made.manifest.assumptions)


def test_the_probe_learns_from_features_that_were_told_the_time(
    two: Any, seen: Any, shared: Path, tmp_path: Path
) -> None:
    fields: Any = {"adapter": "lora", "from_scratch": False, "weights_dir": str(shared / "weights")}
    made = run_fit(two[0], two[1], tmp_path / "m.geopeft", metadata=True, **fields)
    assert made.manifest.spec.probe
    for x, told in seen:
        is_bright = x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))
        assert told is not None and months(told) == is_bright.int().tolist()


def test_an_onnx_file_of_a_model_with_metadata_works_without_it_and_says_so(two: Any, tmp_path: Path) -> None:
    run_fit(two[0], two[1], tmp_path / "m.geopeft", metadata=True)
    reporter, out = Reporter(), tmp_path / "m.onnx"
    asked = {"job": "export", "model": str(tmp_path / "m.geopeft"), "onnx": str(out)}
    export.run(parse(asked), reporter)  # type: ignore[arg-type]
    assert out.is_file()
    assert any("told when and where chips were taken; an ONNX file is not" in text for text in reporter.warnings)


def test_without_metadata_nothing_is_told(two: Any, seen: Any, tmp_path: Path) -> None:
    made = run_fit(two[0], two[1], tmp_path / "m.geopeft")
    predict_to(tmp_path, two[0][0])
    assert seen and all(told is None for _, told in seen)
    assert not made.manifest.spec.metadata
    assert not any("was taken on" in text for text in made.manifest.assumptions)


def predict_to(folder: Path, raster: Path, model: str = "m.geopeft", reporter: Reporter | None = None) -> np.ndarray:
    out = folder / "map.tif"
    out.unlink(missing_ok=True)
    asked = {"job": "predict", "model": str(folder / model), "rasters": [str(raster)], "out": str(out), "device": "cpu"}
    predict.run(parse(asked), reporter or Reporter())  # type: ignore[arg-type]
    with rasterio.open(out) as found:
        values: np.ndarray = found.read(1)
    return values


def test_validation_labels_of_their_own_come_with_the_time_too(two: Any, seen: Any, tmp_path: Path) -> None:
    run_fit(two[0], two[1], tmp_path / "m.geopeft", metadata=True, validation_labels=str(two[1]))
    assert seen and all(told is not None and told.time.isfinite().all() for _, told in seen)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Galileo as if it took the place as well."""
    card = dataclasses.replace(BACKBONES["galileo_nano"], metadata=("time", "place"))
    monkeypatch.setitem(BACKBONES._rows, card.name, card)
    yield


def test_every_window_of_a_map_has_its_own_place(placed: None, seen: Any, tmp_path: Path) -> None:
    raster, labels = scene(tmp_path / "a_20240115.tif"), draw(tmp_path / "labels.gpkg")
    run_fit([raster], labels, tmp_path / "m.geopeft", metadata=True)
    for job_of in ("predict", "evaluate"):
        seen.clear()
        if job_of == "predict":
            predict_to(tmp_path, raster)
        else:
            asked = {"job": "evaluate", "model": str(tmp_path / "m.geopeft"), "rasters": [str(raster)],
                     "labels": str(labels), "device": "cpu"}  # fmt: skip
            evaluate.run(parse(asked), Reporter())  # type: ignore[arg-type]
        places = np.concatenate([told.place.numpy() for _, told in seen])
        # Windows of 40 px that overlap by 8 begin at 0, 32 and 56.
        starts = [(row, col) for row in (0, 32, 56) for col in (0, 32, 56)]
        x = [500_000 + (col + 20) * 10 for _, col in starts]
        y = [5_000_000 - (row + 20) * 10 for row, _ in starts]
        lon, lat = rasterio.warp.transform("EPSG:32633", "EPSG:4326", x, y)
        np.testing.assert_allclose(places, np.stack([lat, lon], 1), atol=1e-5)


def features_of(model: Path, raster: Path, reporter: Reporter) -> np.ndarray:
    """The network's probabilities of a whole raster."""
    runtime = Runtime.open(model, "cpu", "", reporter, part="network")
    return np.concatenate(
        [strip.probabilities for strip in map_raster(runtime, describe(str(raster)), (), reporter)], 1
    )


@pytest.mark.parametrize("metadata", [True, False])
def test_the_date_changes_the_map_only_with_metadata(metadata: bool, tmp_path: Path) -> None:
    winter = scene(tmp_path / "a_20240115.tif")
    summer = scene(tmp_path / "a_20240715.tif")
    run_fit([winter], draw(tmp_path / "labels.gpkg"), tmp_path / "m.geopeft", metadata=metadata)
    one, other = (features_of(tmp_path / "m.geopeft", raster, Reporter()) for raster in (winter, summer))
    assert bool(np.abs(one - other).max() > 1e-5) is metadata


def test_a_raster_without_a_date_is_told_and_mapped_without_it(tmp_path: Path, seen: Any) -> None:
    raster, reporter = scene(tmp_path / "scene.tif"), Reporter()
    run_fit([raster], draw(tmp_path / "labels.gpkg"), tmp_path / "m.geopeft", reporter, metadata=True)
    assert sum("Nothing says when scene.tif was taken" in text for text in reporter.warnings) == 1
    assert all(told.time.isnan().all() for _, told in seen)
    heard = Reporter()
    assert set(np.unique(predict_to(tmp_path, raster, reporter=heard))) <= {1, 2}
    assert any("Nothing says when scene.tif was taken" in text for text in heard.warnings)


def test_a_backbone_that_takes_none_is_refused_with_those_that_do(tmp_path: Path) -> None:
    raster, labels = scene(tmp_path / "a_20240115.tif"), draw(tmp_path / "labels.gpkg")
    asked = job([raster], labels, tmp_path / "m.geopeft", metadata=True, backbone="scratch_unet")
    with pytest.raises(JobError, match="takes no metadata") as caught:
        prepare(asked, Reporter())
    assert caught.value.code == "METADATA_UNSUITABLE" and "galileo_nano" in caught.value.hint


def spec(**fields: Any) -> ModelSpec:
    bands = tuple(InputBand(name=n, backbone_band=n, mean=0.2, std=0.1) for n in NAMES)
    made = {"backbone": "galileo_nano", "adapter": "full", "decoder": "linear", "bands": bands, "num_classes": 2,
            "gsd_m": 10, "chip_size_px": 32, "metadata": True} | fields  # fmt: skip
    return ModelSpec.model_validate(made)


def test_the_unet_beside_a_model_with_metadata_goes_without() -> None:
    assert build_unet(spec(), 0)(torch.rand(1, 4, 32, 32)).shape == (1, 2, 32, 32)


def test_a_package_that_claims_metadata_for_another_backbone_is_refused() -> None:
    with pytest.raises(JobError) as caught:
        build(spec(backbone="scratch_unet"), pretrained=False)
    assert caught.value.code == "METADATA_UNSUITABLE"


def test_packages_without_the_field_open_without_metadata() -> None:
    old = spec().model_dump(exclude={"metadata"}) | {"bands": [{"name": "B02"}]}
    assert ModelSpec.model_validate(old).metadata is False
    assert ModelSpec.model_validate(old).bands[0].date == ""


# Several dates in one raster.

DATES = ("2024-03-10", "2024-07-02")


def stack(path: Path, dates: tuple[str, str] = DATES, backwards: bool = False) -> Path:
    """Two dates that a class apart from the other only by their order: crop then soil, or soil then crop."""
    rng, which = np.random.default_rng(1), classes_px()
    frames = [SPECTRA[which].transpose(2, 0, 1), SPECTRA[1 - which].transpose(2, 0, 1)]
    values = np.concatenate(frames) + rng.normal(0, 40, (8, SIZE, SIZE))
    names = tuple(f"{name} {date}" for date in dates for name in NAMES)
    order = [7, 2, 5, 0, 1, 3, 6, 4] if backwards else range(8)
    return write(path, values[list(order)], tuple(names[i] for i in order))


def test_several_dates_are_learned_and_mapped_on_a_stack_of_other_dates(seen: Any, tmp_path: Path) -> None:
    reporter = Reporter()
    raster, labels = stack(tmp_path / "a.tif"), draw(tmp_path / "labels.gpkg")
    made = run_fit([raster], labels, tmp_path / "m.geopeft", reporter, metadata=True, steps=10)
    assert [band.date for band in made.manifest.spec.bands] == [DATES[0]] * 4 + [DATES[1]] * 4
    assert seen[0][0].shape[1] == 8
    for _, told in seen:
        np.testing.assert_array_equal(told.time[0, :, :2], [[2024, 70], [2024, 184]])
    seen.clear()
    other = stack(tmp_path / "b.tif", ("2025-04-01", "2025-07-20"), backwards=True)
    found = predict_to(tmp_path, other)
    assert (found == classes_px() + 1).mean() > 0.95
    np.testing.assert_array_equal(seen[0][1].time[0, :, :2], [[2025, 91], [2025, 201]])
    # The inputs are date after date in the order of the card, however the bands lie in the file.
    runtime = Runtime.open(tmp_path / "m.geopeft", "cpu", "", Reporter())
    names = [band.name for band in runtime.bands_of(describe(str(other)), ())]
    assert names == [f"{name} {date}" for date in ("2025-04-01", "2025-07-20") for name in NAMES]


def test_the_backbone_sees_each_date_as_a_frame(tmp_path: Path) -> None:
    raster, labels = stack(tmp_path / "a.tif", backwards=True), draw(tmp_path / "labels.gpkg")
    prepared = prepare(job([raster], labels, tmp_path / "m.geopeft"), Reporter())
    model = build(prepared.spec, pretrained=False)
    backbone = model.backbone
    assert isinstance(backbone, GalileoBackbone) and backbone.frames == 2
    assert backbone.groups == ("S2_RGB", "S2_NIR_10m")
    by_name = {band.name: i for i, band in enumerate(prepared.spec.bands)}
    order = [by_name[f"{name} {date}"] for date in DATES for name in NAMES]
    assert model.backbone_order.tolist() == order
    x = torch.rand(1, 8, 16, 16) * 3000
    swapped = x.clone()
    swapped[:, order] = x[:, order[4:] + order[:4]]
    assert (model.encode(x)[0][-1] - model.encode(swapped)[0][-1]).abs().max() > 1e-4


def test_another_number_of_dates_is_refused(tmp_path: Path) -> None:
    raster, labels = stack(tmp_path / "a.tif"), draw(tmp_path / "labels.gpkg")
    run_fit([raster], labels, tmp_path / "m.geopeft")
    single = scene(tmp_path / "single.tif")
    with pytest.raises(BandError, match="bands of no dates, and 2 are needed") as caught:
        predict_to(tmp_path, single)
    assert caught.value.code == "BANDS_DATES"
    run_fit([single], labels, tmp_path / "one.geopeft")
    with pytest.raises(BandError, match=r"bands of 2 dates \(2024-03-10, 2024-07-02\), and 1 is needed"):
        predict_to(tmp_path, raster, "one.geopeft")


@pytest.mark.parametrize(
    ("backbone", "message", "hint"),
    [
        ("tf_efficientnet_lite0", "takes one date; the raster's bands are of 2", "galileo_nano"),
        ("galileo_nano", "B08 is there on 2024-03-10, but not on 2024-07-02", "every date has"),
    ],
)
def test_dates_that_do_not_suit_the_backbone_are_refused(
    backbone: str, message: str, hint: str, tmp_path: Path
) -> None:
    raster, labels = stack(tmp_path / "a.tif"), draw(tmp_path / "labels.gpkg")
    with rasterio.open(raster, "r+") as out:
        if backbone == "galileo_nano":
            out.set_band_description(8, "ndvi 2024-07-02")
    asked = job([raster], labels, tmp_path / "m.geopeft", backbone=backbone)
    with pytest.raises(BandError, match=message) as caught:
        prepare(asked, Reporter())
    assert caught.value.code == "BANDS_DATES" and hint in caught.value.hint


def test_auto_leaves_backbones_of_one_date_out(tmp_path: Path) -> None:
    raster, labels = stack(tmp_path / "a.tif"), draw(tmp_path / "labels.gpkg")
    asked = job([raster], labels, tmp_path / "m.geopeft", backbone="auto", from_scratch=False, adapter="lora")
    prepared = prepare(asked, Reporter())
    assert prepared.card.frames > 1 or not prepared.card.bands


def test_dates_in_a_spec_that_no_backbone_takes_like_this_are_refused() -> None:
    bands = [InputBand(name=f"{n} {d}", date=d, backbone_band=n) for d in DATES for n in NAMES]
    with pytest.raises(BandError) as caught:
        build(spec(bands=tuple(bands[:-1])), pretrained=False)
    assert caught.value.code == "BANDS_DATES"
