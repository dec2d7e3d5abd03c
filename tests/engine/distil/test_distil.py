"""A small model taught by a tuned one: an ordinary package that agrees with its teacher and claims no more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from geopeft import evaluate, fit, forest, holdout, inspecting, package, predict, report
from geopeft.data.memory import Memory
from geopeft.data.raster import describe
from geopeft.distil import distil, learner, sheets
from geopeft.distil.sheets import TRAINS, Source, read_sheets
from geopeft.errors import Canceled, GeopeftError, JobError
from geopeft.events import Reporter
from geopeft.job import parse
from geopeft.mapping.strips import map_raster
from geopeft.onnx import export
from geopeft.runtime import Runtime
from geopeft.training import trainer

torch.set_num_threads(1)
SIDE, FIELD_PX = 288, 48
NAMES = ("Blue", "Green", "Red", "NIR")
# As little work as will do.
QUICK: dict[Any, dict[str, Any]] = {
    trainer: {"BATCH": 1, "EVALUATE_EVERY": 5},
    holdout: {"MAX_VALIDATION_CHIPS": 3},
    forest: {"TREES": 2, "FOLD_TREES": 1},
    sheets: {"CHIP_PX": 64, "SHEET_PX": 144},
    distil: {"CHIP_PX": 64},
    learner: {"CHIP_PX": 64, "BATCH": 4, "EVALUATIONS": 2},
}
Distil = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, values in QUICK.items():
            for name, value in values.items():
                patch.setattr(module, name, value)
        yield


def write(path: Path, seed: int, *, names: Sequence[str] = NAMES, side: int = SIDE, nodata_cols: int = 0) -> Path:
    """Fields of 48 px, told apart by their bands."""
    rng = np.random.default_rng(seed)
    spectra = np.array([[500, 700, 600, 3000], [900, 1100, 1500, 1800], [300, 500, 400, 200]], np.float32)
    rows, cols = np.arange(side)[:, None] // FIELD_PX, np.arange(side) // FIELD_PX
    values = spectra[(rows + cols) % 3].transpose(2, 0, 1)[: len(names)]
    values = (values + rng.normal(0, 60, values.shape)).clip(1)
    values[..., :nodata_cols] = 0
    profile = {"driver": "GTiff", "count": len(names), "height": side, "width": side, "dtype": "uint16", "nodata": 0}
    affine = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(path, "w", transform=affine, crs="EPSG:32633", **profile) as raster:
        raster.write(values.astype(np.uint16))
        raster.descriptions = tuple(names)
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scene.tif, labels.gpkg and the model teacher.geopeft, whose licence nothing else here has."""
    folder = tmp_path_factory.mktemp("scene")
    write(folder / "scene.tif", 0)
    fields = [(row, col) for row in range(6) for col in range(6)]
    boxes = [shapely.box(x, y - 140, x + 140, y) for row, col in fields
             for x, y in [(500_000 + (FIELD_PX * col + 16) * 10, 5_000_000 - (FIELD_PX * row + 16) * 10)]]  # fmt: skip
    classes = np.array([("forest", "field", "water")[(row + col) % 3] for row, col in fields], object)
    options = {"crs": "EPSG:32633", "layer": "labels", "driver": "GPKG", "geometry_type": "Polygon"}
    pyogrio.raw.write(folder / "labels.gpkg", shapely.to_wkb(np.array(boxes)), [classes], ["class"], **options)
    settings = {
        "backbone": "scratch_unet",
        "adapter": "full",
        "steps": 12,
        "folds": 1,
        "baselines": [],
        "device": "cpu",
    }
    job = {"job": "fit", "rasters": [str(folder / "scene.tif")], "labels": str(folder / "labels.gpkg"), **settings}
    path = folder / "teacher.geopeft"
    fit.run(parse(job | {"out": str(path)}), Reporter())  # type: ignore[arg-type]
    made = package.read(path)
    base = made.manifest.base_weights.model_copy(update={"licence": "CC-BY-NC-4.0"})
    # Half of the map is the classical part's, so that a student of the network alone would differ.
    manifest = made.manifest.model_copy(update={"base_weights": base, "blend": package.Blend(network=0.5)})
    package.write(path, manifest, made.weights, made.forest, made.start)
    return folder


@pytest.fixture
def run(scene: Path, tmp_path: Path) -> Distil:
    def do(*rasters: Path, reporter: Reporter | None = None, out: str = "small.geopeft", **fields: Any) -> Any:
        chosen = [str(path) for path in rasters or (scene / "scene.tif",)]
        job = {"job": "distil", "model": str(scene / "teacher.geopeft"), "rasters": chosen, "device": "cpu"}
        made = parse(job | {"out": str(tmp_path / out), "steps": 2, "max_megapixels": 0.045, **fields})
        return distil.run(made, reporter or Reporter())  # type: ignore[arg-type]

    return do


@pytest.fixture(scope="module")
def taught(scene: Path) -> Path:
    """A student that has learned for a while."""
    out = scene / "student.geopeft"
    job: dict[str, Any] = {"job": "distil", "model": str(scene / "teacher.geopeft")}
    job |= {"rasters": [str(scene / "scene.tif")]}
    job |= {"out": str(out), "steps": 30, "labels": str(scene / "labels.gpkg"), "device": "cpu"}
    distil.run(parse(job), Reporter())  # type: ignore[arg-type]
    return out


class Ends(Reporter):
    """Cancels or asks for a stop when a step is done."""

    def __init__(self, step: int, kind: str) -> None:
        super().__init__()
        self._step, self._kind, self._done = step, kind, 0

    def progress(self, stage: str, current: int, total: int, at_most_s: float = 0) -> None:
        self._done = current if stage == "distil" else 0
        if self._done == self._step and self._kind == "cancel":
            raise Canceled

    def stop_requested(self) -> bool:
        return self._kind == "stop" and self._done >= self._step


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.suffix != ".tif")


def do(job: dict[str, Any]) -> dict[str, Any]:
    runs = {"evaluate": evaluate, "predict": predict, "export": export, "report": report, "inspect": inspecting}
    outputs: dict[str, Any] = runs[job["job"]].run(parse(job), Reporter())  # type: ignore[attr-defined]
    return outputs


def test_the_student_maps_what_its_teacher_maps(scene: Path, taught: Path) -> None:
    info = describe(str(scene / "scene.tif"))
    maps = []
    for path in (scene / "teacher.geopeft", taught):
        runtime = Runtime.open(path, "cpu", "", Reporter())
        maps.append(np.concatenate([s.probabilities.argmax(0) for s in map_raster(runtime, info, (), Reporter())]))
    agreed = (maps[0] == maps[1]).mean()
    said = package.read_manifest(taught).metrics["agreement"]
    assert agreed > 0.93 and abs(agreed - said["share"]) < 0.06
    assert said["miou"] > 0.85 and said["pixels"] > 0
    assert not {type(module) for module in runtime.model.modules()} & {torch.nn.BatchNorm2d}


def test_the_manifest_names_the_teacher_and_takes_over_its_classes_and_licence(scene: Path, taught: Path) -> None:
    teacher, small = (package.read(path) for path in (scene / "teacher.geopeft", taught))
    assert small.manifest.classes == teacher.manifest.classes
    assert (small.manifest.base_weights.licence, small.manifest.base_weights.sha256) == ("CC-BY-NC-4.0", "")
    how = small.manifest.hyperparameters
    assert how["teacher_sha256"] == hashlib.sha256(teacher.path.read_bytes()).hexdigest()
    assert how["teacher"] == "teacher" and how["total"] < 2_000_000
    assert small.forest == b"" and small.manifest.blend == package.Blend()
    assert str(scene) not in small.manifest.model_dump_json()


def test_what_taught_the_teacher_has_taught_the_student(scene: Path, taught: Path) -> None:
    teacher, small = (Memory.from_arrays(package.read(path).start) for path in (scene / "teacher.geopeft", taught))
    assert teacher is not None and small is not None and len(teacher.held)
    assert not len(small.held) and set(small.taught) == {*teacher.taught, *teacher.held}


def test_without_labels_no_accuracy_is_claimed(run: Distil) -> None:
    outputs = run()
    metrics = package.read_manifest(Path(outputs["model"])).metrics
    assert metrics == outputs["figures"]
    assert metrics["miou"]["value"] is None and metrics["labels"] == 0 and "no labels" in metrics["split"]
    assert 0 <= metrics["agreement"]["share"] <= 1


def test_labels_score_both(scene: Path, taught: Path) -> None:
    metrics = package.read_manifest(taught).metrics
    assert metrics["miou"]["value"] > 0.8 and metrics["teacher"]["miou"]["value"] > 0.8
    assert metrics["agreement"]["share"] > 0.9
    job = {"job": "evaluate", "model": str(taught), "rasters": [str(scene / "scene.tif")], "device": "cpu"}
    again = do(job | {"labels": str(scene / "labels.gpkg")})["figures"]
    assert again["confusion_matrix"] == metrics["confusion_matrix"]


def test_the_other_jobs_take_the_student_as_any_model(scene: Path, taught: Path, tmp_path: Path) -> None:
    raster, model = str(scene / "scene.tif"), str(taught)
    assert do({"job": "inspect", "model": model})["spec"]["backbone"] == "student"
    do({"job": "predict", "model": model, "rasters": [raster], "out": str(tmp_path / "map.tif"), "device": "cpu"})
    outputs = do({"job": "export", "model": model, "onnx": str(tmp_path / "small.onnx")})
    assert outputs["max_difference"] < 1e-3
    do({"job": "report", "model": model, "out": str(tmp_path / "page.html")})
    page = (tmp_path / "page.html").read_text()
    assert "CC-BY-NC-4.0" in page and "teacher; both map" in page


def test_a_sheet_is_mapped_as_predict_maps(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "SHEET_PX", SIDE)
    teacher = Runtime.open(scene / "teacher.geopeft", "cpu", "", Reporter())
    source = source_of(teacher, scene / "scene.tif")
    (sheet,) = read_sheets(teacher, [source], 1e6, 0, Reporter())
    wanted = np.concatenate([s.probabilities for s in map_raster(teacher, source.info, (), Reporter())], 1)
    assert np.abs(sheet.probabilities / 255 - wanted).max() < 0.5 / 255 + 1e-5


def source_of(teacher: Runtime, path: Path) -> Source:
    info = describe(str(path))
    bands = teacher.bands_of(info, ())
    return Source(info, bands, *teacher.to_model_units(info, bands, Reporter()))


def test_sheets_come_evenly_from_the_rasters_and_fit_into_memory(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Runtime.open(scene / "teacher.geopeft", "cpu", "", Reporter())
    rasters = [scene / "scene.tif", write(tmp_path / "other.tif", 1)]
    sources = [source_of(teacher, path) for path in rasters]
    asked: list[str] = []
    monkeypatch.setattr(sheets, "_sheet", spied(asked, sheets._sheet))
    monkeypatch.setattr(sheets, "CACHE_BYTES", 4 * 144 * 144 * (2 * 4 + 3 + 2))
    monkeypatch.setattr(sheets, "_mapped", lambda t, s, w, v, valid, r: np.zeros((3, *valid.shape), np.float32))
    found = read_sheets(teacher, sources, 1e9, 0, Reporter())
    assert len(found) == 4 and sorted(asked) == sorted([str(rasters[0])] * 2 + [str(rasters[1])] * 2)
    assert sum(part.nbytes for sheet in found for part in vars(sheet).values()) <= sheets.CACHE_BYTES


def spied(asked: list[str], real: Callable[..., Any]) -> Callable[..., Any]:
    def sheet(teacher: Runtime, source: Source, *rest: Any) -> Any:
        asked.append(source.info.path)
        return real(teacher, source, *rest)

    return sheet


def test_what_is_held_out_or_has_no_data_teaches_nothing(scene: Path, tmp_path: Path) -> None:
    """Another truth there changes no weight."""
    teacher = Runtime.open(scene / "teacher.geopeft", "cpu", "", Reporter())
    source = source_of(teacher, write(tmp_path / "half.tif", 2, side=144, nodata_cols=20))
    states = []
    for poisoned in (False, True):
        (sheet,) = read_sheets(teacher, [source], 1.0, 0, Reporter())
        assert not sheet.valid[:, :20].any() and not sheet.values[:, :, :20].any()
        if poisoned:
            sheet.probabilities[:, (sheet.role != TRAINS) | ~sheet.valid] = np.array([255, 0, 0], np.uint8)[:, None]
        student = distil._student(teacher.manifest, 0)
        made = learner.Learner(student, [sheet], Reporter(), 0, distil.Checkpoint(tmp_path / "c", "distil", ""))
        for _ in range(2):
            made._step(0.5)
        states.append(student.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_canceled_run_goes_on_and_ends_as_one_that_was_not(run: Distil, tmp_path: Path) -> None:
    whole = run(out="whole.geopeft", steps=4)
    for stop in (1, 3):
        with pytest.raises(Canceled):
            run(reporter=Ends(stop, "cancel"), steps=4)
        assert left_in(tmp_path) == ["small.geopeft.resume", "whole.geopeft"]
    reporter = Reporter()
    again = run(reporter=reporter, steps=4)
    assert any("Goes on from step 3" in text for text in reporter.messages)
    assert left_in(tmp_path) == ["small.geopeft", "whole.geopeft"]
    one, other = (package.read(Path(outputs["model"])).weights for outputs in (whole, again))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_stop_keeps_the_best_so_far(run: Distil) -> None:
    outputs = run(reporter=Ends(2, "stop"), steps=50)
    how = package.read_manifest(Path(outputs["model"])).hyperparameters
    assert (how["steps"], how["best_step"]) == (2, 2)


def test_a_run_of_other_settings_is_not_gone_on_with(run: Distil) -> None:
    with pytest.raises(Canceled):
        run(reporter=Ends(1, "cancel"))
    with pytest.raises(JobError) as caught:
        run(seed=1)
    assert caught.value.code == "CHECKPOINT_OTHER_JOB"


def test_bad_input_is_told_in_a_sentence(run: Distil, taught: Path, tmp_path: Path) -> None:
    small = write(tmp_path / "tiny.tif", 0, side=120)
    foreign = write(tmp_path / "rgb.tif", 0, names=("Blue", "Green", "Red"))
    for rasters, fields, code in (
        ((), {"model": str(taught)}, "TEACHER_UNSUITABLE"),
        ((small,), {}, "RASTER_TOO_SMALL"),
        ((foreign,), {}, "BANDS_UNKNOWN"),
    ):
        with pytest.raises(GeopeftError) as caught:
            run(*rasters, **fields)
        assert caught.value.code == code and caught.value.hint
    assert left_in(tmp_path) == []


def test_a_raster_that_does_not_fit_is_left_out(run: Distil, scene: Path, tmp_path: Path) -> None:
    foreign, reporter = write(tmp_path / "rgb.tif", 0, names=("Blue", "Green", "Red")), Reporter()
    run(scene / "scene.tif", foreign, reporter=reporter, json_file=str(tmp_path / "f.json"), max_minutes=5)
    assert [text for text in reporter.warnings if "Left out" in text and "rgb.tif" in text]
    assert json.loads((tmp_path / "f.json").read_text())["agreement"]["pixels"]
