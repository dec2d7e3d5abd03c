"""Models of two offices, fitted from a common start on places of their own, made one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from geopeft import fit, forest, holdout, package
from geopeft.__main__ import main
from geopeft.averaging import average
from geopeft.data.memory import Memory
from geopeft.errors import JobError, PackageError
from geopeft.events import Reporter
from geopeft.evidence import Evidence, joint
from geopeft.job import AverageJob, parse
from geopeft.models.backbones import BACKBONES
from geopeft.objective import likeliest_blend
from geopeft.package import Manifest, Package
from geopeft.report import compose
from geopeft.runtime import Runtime
from geopeft.training import trainer

torch.set_num_threads(1)
SIZE, FIELD_PX = 320, 40
CLASSES = ("forest", "field", "water")
SPECTRA = np.array([[500, 700, 600, 3000], [900, 1100, 1500, 1800], [300, 500, 400, 200]], np.float32)
# As little work as will do.
QUICK: dict[Any, dict[str, Any]] = {
    trainer: {"BATCH": 2},
    holdout: {"MAX_VALIDATION_CHIPS": 3},
    forest: {"TREES": 4, "FOLD_TREES": 1},
}
WEST, EAST = range(4), range(4, 8)
# What each counts, by labelled places.
SHARES = (20 / 52, 32 / 52)
Change = Callable[..., Path]


def class_at(row: int, col: int) -> int:
    return (row + col) % 3


def draw(path: Path, columns: range, rows: range = range(8)) -> Path:
    """A box in the middle of each field of these columns."""
    boxes, names = [], []
    for row in rows:
        for col in columns:
            left, top = 500_000 + (FIELD_PX * col + 12) * 10, 5_000_000 - (FIELD_PX * row + 12) * 10
            boxes.append(shapely.box(left, top - 140, left + 140, top))
            names.append(CLASSES[class_at(row, col)])
    options = {"crs": "EPSG:32633", "layer": "labels", "driver": "GPKG", "geometry_type": "Polygon"}
    pyogrio.raw.write(path, shapely.to_wkb(np.array(boxes)), [np.array(names, object)], ["class"], **options)
    return path


@pytest.fixture(scope="module")
def offices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the packages common, west and east, and the raster.

    The common model has learned in the north of both. The east has more labels and names the classes in another order.
    """
    folder = tmp_path_factory.mktemp("offices")
    rng = np.random.default_rng(0)
    rows, cols = np.arange(SIZE)[:, None] // FIELD_PX, np.arange(SIZE) // FIELD_PX
    values = SPECTRA[class_at(rows, cols)].transpose(2, 0, 1) + rng.normal(0, 60, (4, SIZE, SIZE))  # type: ignore[arg-type]
    profile = {"driver": "GTiff", "count": 4, "height": SIZE, "width": SIZE, "dtype": "uint16", "crs": "EPSG:32633"}
    affine = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(folder / "scene.tif", "w", transform=affine, **profile) as raster:
        raster.write(values.clip(1).astype(np.uint16))
        raster.descriptions = ("Blue", "Green", "Red", "NIR")
    first = draw(folder / "first.gpkg", range(8), range(2))
    few = draw(folder / "few.gpkg", WEST, range(3, 8))
    whole = draw(folder / "whole.gpkg", EAST, range(8))
    with pytest.MonkeyPatch.context() as patch:
        for module, numbers in QUICK.items():
            for name, value in numbers.items():
                patch.setattr(module, name, value)
        card = dataclasses.replace(BACKBONES["scratch_unet"], chip_size_px=128)
        patch.setitem(BACKBONES._rows, "scratch_unet", card)
        fitted(folder, "common", first, steps=14)
        fitted(folder, "west", few, start="common")
        fitted(folder, "east", whole, start="common", classes=CLASSES[::-1])
        yield folder


def fitted(folder: Path, name: str, labels: Path, *, start: str = "", steps: int = 4, classes: Any = CLASSES) -> Path:
    out = folder / f"{name}.geopeft"
    styles = [{"value": known, "name": known} for known in classes]
    fields = {"job": "fit", "rasters": [str(folder / "scene.tif")], "labels": str(labels), "out": str(out),
              "backbone": "scratch_unet", "adapter": "full", "steps": steps, "folds": 1, "device": "cpu",
              "classes": styles, "start": str(folder / f"{start}.geopeft") if start else ""}  # fmt: skip
    fit.run(parse(fields), Reporter())  # type: ignore[arg-type]
    return out


def averaged(out: Path, *models: Path, reporter: Reporter | None = None, **fields: Any) -> Package:
    job = parse({"job": "average", "models": [str(path) for path in models], "out": str(out), **fields})
    assert isinstance(job, AverageJob)
    average.run(job, reporter or Reporter())
    return package.read(out)


@pytest.fixture
def west(offices: Path) -> Path:
    return offices / "west.geopeft"


@pytest.fixture
def east(offices: Path) -> Path:
    return offices / "east.geopeft"


@pytest.fixture
def changed(tmp_path: Path) -> Change:
    """Writes a package anew, with another manifest."""

    def do(path: Path, name: str, **updates: Any) -> Path:
        opened = package.read(path)
        data = opened.manifest.model_dump()
        for key, value in updates.items():
            part: Any = data
            *parents, last = key.split("__")
            for parent in parents:
                part = part[int(parent)] if parent.isdigit() else part[parent]
            part[last] = value
        package.write(tmp_path / name, Manifest.model_validate(data), opened.weights, opened.forest, opened.start)
        return tmp_path / name

    return do


def test_the_average_is_the_mean_by_labelled_places_with_classes_by_name(
    west: Path, east: Path, tmp_path: Path
) -> None:
    reporter = Reporter()
    mean = averaged(tmp_path / "c.geopeft", west, east, reporter=reporter)
    one, other = package.read(west), package.read(east)
    assert [known.name for known in mean.manifest.classes] == list(CLASSES)
    assert [known.name for known in other.manifest.classes] == list(CLASSES[::-1])
    share = 20 / (20 + 32)
    assert mean.manifest.hyperparameters["places"] == 52
    for name in ("decoder.stem.0.0.weight", "head.weight", "head.bias"):
        others = other.weights[name][::-1] if name.startswith("head") else other.weights[name]
        assert np.allclose(mean.weights[name], share * one.weights[name] + (1 - share) * others, atol=1e-6)
    assert reporter.messages[0] == ("The average of 2 models: west.geopeft counts 38%, east.geopeft counts 62%.")


def test_weights_that_are_given_count(west: Path, east: Path, tmp_path: Path) -> None:
    mean = averaged(tmp_path / "c.geopeft", west, east, weights=[3, 1])
    one, other = package.read(west).weights["head.bias"], package.read(east).weights["head.bias"][::-1]
    assert np.allclose(mean.weights["head.bias"], 0.75 * one + 0.25 * other, atol=1e-6)


def test_the_average_maps_with_all_its_parts(offices: Path, west: Path, east: Path, tmp_path: Path) -> None:
    """Classes in another order, in one of the parts only, would spoil the map."""
    averaged(tmp_path / "c.geopeft", west, east)
    with rasterio.open(offices / "scene.tif") as raster:
        values = raster.read()[None, :, :160, :160].astype(np.float32)
    truth = class_at(np.arange(160)[:, None] // FIELD_PX, np.arange(160) // FIELD_PX)  # type: ignore[arg-type]
    for part in ("", "network", "classical"):
        runtime = Runtime.open(tmp_path / "c.geopeft", "cpu", "", Reporter(), part)
        found, _ = runtime.look(values, np.ones((1, 160, 160), bool), [])
        right = (found[0].argmax(0) == truth)[8:-8, 8:-8].mean()
        apart = min(score(path, values, truth, part) for path in (west, east))
        assert right > apart - 0.1 and right > 0.6, part or "blend"


def test_the_blend_is_that_of_all_held_out_labels_and_those_of_a_strange_region_are_handed_on(
    offices: Path, west: Path, east: Path, tmp_path: Path
) -> None:
    """The common model has learned in the north of both halves, but knows no place of the west's labels."""
    reporter = Reporter()
    mean = averaged(tmp_path / "c.geopeft", west, east, reporter=reporter)
    of_common, of_west, of_east, of_mean = (
        Evidence.from_arrays(package.read(path).start)
        for path in (offices / "common.geopeft", west, east, tmp_path / "c.geopeft")
    )
    assert of_common is not None and of_west is not None and of_east is not None and of_mean is not None
    assert not of_common.elsewhere and len(of_west.elsewhere) == 1, "nobody had taught the common model there"
    assert not of_east.elsewhere, "the east's labels are partly those of the common model"
    assert of_mean.elsewhere.keys() == of_west.elsewhere.keys()
    assert (of_west.here < 0).any() and np.allclose(of_mean.whole, joint([of_west, of_east], SHARES).whole, atol=1e-3)
    expected = likeliest_blend(of_mean.whole, of_mean.prior)
    assert (mean.manifest.blend.network, mean.manifest.blend.temperature) == pytest.approx(expected, abs=1e-4)
    assert "The blend is the one that the held-out labels of all models find likeliest together." in reporter.messages


def test_a_strange_region_says_the_same_whatever_the_order_of_its_classes(offices: Path, west: Path) -> None:
    turned = fitted(offices, "turned", offices / "few.gpkg", start="common", steps=1, classes=CLASSES[::-1])
    one, other = (Evidence.from_arrays(package.read(path).start) for path in (west, turned))
    assert one is not None and other is not None
    assert np.allclose([*one.elsewhere.values()], [*other.elsewhere.values()], atol=1e-3)


def test_without_evidence_of_all_the_blend_is_the_mean(west: Path, east: Path, tmp_path: Path) -> None:
    opened = package.read(east)
    start = {name: array for name, array in opened.start.items() if not name.startswith("evidence.")}
    package.write(tmp_path / "older.geopeft", opened.manifest, opened.weights, opened.forest, start)
    mean = averaged(tmp_path / "c.geopeft", west, tmp_path / "older.geopeft")
    shares = [package.read(path).manifest.blend.network for path in (west, east)]
    assert mean.manifest.blend.network == pytest.approx(np.average(shares, weights=SHARES), abs=1e-4)
    assert Evidence.from_arrays(mean.start) is None and mean.start


def score(path: Path, values: np.ndarray, truth: Any, part: str) -> float:
    runtime = Runtime.open(path, "cpu", "", Reporter(), part)
    found = runtime.look(values, np.ones((1, *truth.shape), bool), [])[0][0].argmax(0)
    names = [known.name for known in runtime.manifest.classes]
    mapped = np.array([CLASSES.index(name) for name in names])[found]
    return float((mapped == truth)[8:-8, 8:-8].mean())


def test_a_training_goes_on_from_the_average_and_keeps_its_held_out_places(
    offices: Path, west: Path, east: Path, tmp_path: Path
) -> None:
    averaged(offices / "round.geopeft", west, east)
    memory, own = (Memory.from_arrays(package.read(path).start) for path in (offices / "round.geopeft", east))
    assert memory is not None and own is not None
    assert set(own.taught) < set(memory.taught) and set(own.held) <= set(memory.held)
    again = package.read(fitted(offices, "again", offices / "whole.gpkg", start="round", steps=1))
    assert len(again.manifest.hyperparameters["start_sha256"]) == 64
    later = Memory.from_arrays(again.start)
    assert later is not None and not set(later.taught) & set(own.held), "what was held out has taught nobody yet"


def test_the_average_claims_no_accuracy_that_nobody_measured(west: Path, east: Path, tmp_path: Path) -> None:
    reporter = Reporter()
    mean = averaged(tmp_path / "c.geopeft", west, east, reporter=reporter, json_file=str(tmp_path / "f.json"))
    metrics = mean.manifest.metrics
    assert not {"miou", "overall_accuracy", "confusion_matrix", "classes", "baselines"} & metrics.keys()
    own = package.read(east).manifest.metrics["miou"]
    assert [row["model"] for row in metrics["models"]] == ["west.geopeft", "east.geopeft"]
    assert metrics["models"][1]["miou"] == own
    assert json.loads((tmp_path / "f.json").read_text()) == metrics
    assert average.NOT_MEASURED in reporter.warnings and average.NOT_MEASURED in mean.manifest.warnings
    assert "mIoU" not in compose(mean.manifest, "c.geopeft").split("Model card")[0].replace("mIoU</dt>", "")


def test_the_command_line_averages(west: Path, east: Path, tmp_path: Path) -> None:
    assert main(["average", str(west), str(east), "--out", str(tmp_path / "c"), "--weights", "1,1"]) == 0
    assert package.read(tmp_path / "c.geopeft").manifest.job["models"] == ["west.geopeft", "east.geopeft"]


def test_the_model_that_all_started_from_may_take_part(offices: Path, west: Path, tmp_path: Path) -> None:
    assert averaged(tmp_path / "c.geopeft", offices / "common.geopeft", west).manifest.hyperparameters["models"] == 2


@pytest.mark.parametrize(
    ("updates", "why"),
    [
        ({"spec__rank": 8}, "its adapter: full of rank 8, there: full of rank 16"),
        ({"classes__0__name": "bog"}, "its classes: bog, field, forest, there: field, forest, water"),
        ({"base_weights__sha256": "ab" * 32}, "its weights of the backbone: abababababab, there: none"),
        ({"spec__bands__0__mean": 0.5}, "the mean and deviation of its bands are not the ones there"),
        ({"spec__gsd_m": 12.0}, "its pixel size: 12 m, there: 10 m"),
        ({"radiometry": "display"}, "its values: display, there: reflectance"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_what_differs(
    west: Path, east: Path, changed: Change, tmp_path: Path, updates: dict[str, Any], why: str
) -> None:
    other = changed(east, "other.geopeft", **updates)
    with pytest.raises(JobError) as failed:
        averaged(tmp_path / "c.geopeft", west, other)
    assert failed.value.code == "AVERAGE_MISFIT"
    assert failed.value.message == f"The model other.geopeft has no average with west.geopeft: {why}."
    assert not (tmp_path / "c.geopeft").exists()


def test_models_of_different_starts_are_refused(west: Path, east: Path, changed: Change, tmp_path: Path) -> None:
    other = changed(east, "other.geopeft", hyperparameters__start_sha256="ab" * 32)
    with pytest.raises(JobError, match="not started from the same model") as failed:
        averaged(tmp_path / "c.geopeft", west, other)
    assert failed.value.code == "AVERAGE_START"


def test_what_else_is_wrong_is_said(west: Path, east: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="given twice"):
        averaged(tmp_path / "c.geopeft", west, west)
    with pytest.raises(JobError, match="There are 3 weights for 2 models"):
        averaged(tmp_path / "c.geopeft", west, east, weights=[1, 1, 1])
    with pytest.raises(PackageError):
        averaged(tmp_path / "c.geopeft", west, tmp_path / "gone.geopeft")
    before = west.read_bytes()
    with pytest.raises(JobError):
        averaged(west, west, east)
    assert west.read_bytes() == before


def test_without_labelled_places_all_count_the_same(west: Path, east: Path, changed: Change, tmp_path: Path) -> None:
    silent = changed(east, "silent.geopeft", hyperparameters__places=None)
    reporter = Reporter()
    mean = averaged(tmp_path / "c.geopeft", west, silent, reporter=reporter)
    assert (
        "How many labelled places taught silent.geopeft is not known: all models count the same." in reporter.warnings
    )
    assert [row["weight"] for row in mean.manifest.metrics["models"]] == [0.5, 0.5]
    assert "places" not in mean.manifest.hyperparameters


def test_models_that_do_not_say_where_they_learned_are_averaged_for_good(
    west: Path, east: Path, tmp_path: Path
) -> None:
    opened = package.read(east)
    package.write(tmp_path / "mute.geopeft", opened.manifest, opened.weights, opened.forest)
    reporter = Reporter()
    mean = averaged(tmp_path / "c.geopeft", west, tmp_path / "mute.geopeft", reporter=reporter)
    assert not mean.start
    assert "Not all models say where they have learned: no training can start from the average." in reporter.warnings
