"""A fit that is stopped, one that goes on where it was ended, and one that starts from an earlier model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from geopeft import checkpoint, fit, forest, holdout, judging, package, starting
from geopeft.checkpoint import Checkpoint, checkpoint_path
from geopeft.errors import Canceled, JobError, OutputError, PackageError
from geopeft.events import Reporter
from geopeft.job import parse
from geopeft.models import SegmentationModel, build
from geopeft.package import Package
from geopeft.training import learning, trainer
from rasterio.windows import Window
from safetensors import safe_open
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
SIZE, FIELD_PX = 320, 40
CLASSES = ("forest", "field", "water")
# As little work as will do.
QUICK: dict[Any, dict[str, Any]] = {
    trainer: {"BATCH": 1, "EVALUATE_EVERY": 5},
    holdout: {"MAX_VALIDATION_CHIPS": 3},
    forest: {"TREES": 2, "FOLD_TREES": 1},
}
Fit = Callable[..., Package]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, values in QUICK.items():
            for name, value in values.items():
                patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scene.tif: fields of 40 px, told apart by their bands, and labels.gpkg: a box in each."""
    folder = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(0)
    rows, cols = np.arange(SIZE)[:, None] // FIELD_PX, np.arange(SIZE) // FIELD_PX
    spectra = np.array([[500, 700, 600, 3000], [900, 1100, 1500, 1800], [300, 500, 400, 200]], np.float32)
    values = spectra[(rows + cols) % 3].transpose(2, 0, 1) + rng.normal(0, 60, (4, SIZE, SIZE))
    profile = {"driver": "GTiff", "count": 4, "height": SIZE, "width": SIZE, "dtype": "uint16", "crs": "EPSG:32633"}
    affine = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(folder / "scene.tif", "w", transform=affine, **profile) as raster:
        raster.write(values.clip(1).astype(np.uint16))
        raster.descriptions = ("Blue", "Green", "Red", "NIR")
    draw(folder / "labels.gpkg", [(row, col) for row in range(8) for col in range(8)])
    return folder


def draw(path: Path, fields: list[tuple[int, int]], names: tuple[str, ...] = CLASSES, side: int = 14) -> Path:
    """A box in the middle of each of these fields."""
    boxes = []
    for row, col in fields:
        left, top = 500_000 + (FIELD_PX * col + 12) * 10, 5_000_000 - (FIELD_PX * row + 12) * 10
        boxes.append(shapely.box(left, top - 10 * side, left + 10 * side, top))
    classes = np.array([names[(row + col) % 3] for row, col in fields], object)
    options = {"crs": "EPSG:32633", "layer": "labels", "driver": "GPKG", "geometry_type": "Polygon"}
    pyogrio.raw.write(path, shapely.to_wkb(np.array(boxes)), [classes], ["class"], **options)
    return path


def job_of(scene: Path, out: Path, **fields: Any) -> dict[str, Any]:
    return {
        "job": "fit",
        "rasters": [str(scene / "scene.tif")],
        "labels": str(scene / "labels.gpkg"),
        "out": str(out),
        "backbone": "scratch_unet",
        "adapter": "full",
        "steps": 6,
        "folds": 1,
        "device": "cpu",
    } | fields


@pytest.fixture
def run(scene: Path, tmp_path: Path) -> Fit:
    def do(name: str = "m", reporter: Reporter | None = None, **fields: Any) -> Package:
        job = parse(job_of(scene, tmp_path / f"{name}.geopeft", **fields))
        fit.run(job, reporter or Reporter())  # type: ignore[arg-type]
        return package.read(tmp_path / f"{name}.geopeft")

    return do


class At(Reporter):
    """Does something when so many steps of a stage are done."""

    def __init__(self, step: int, then: Callable[[], None], folder: Path | None = None, stage: str = "fit") -> None:
        super().__init__(folder=folder)
        self._step, self._then, self._stage = step, then, stage
        self.steps: list[int] = []
        self.fold_steps: list[tuple[int, int]] = []
        self.points: list[int] = []

    def progress(self, stage: str, current: int, total: int, at_most_s: float = 0) -> None:
        if stage in ("fit", "folds"):
            self.steps += [current] if stage == "fit" else []
            self.fold_steps += [(current, total)] if stage == "folds" else []
            if stage == self._stage and current == self._step:
                self._then()
        super().progress(stage, current, total, at_most_s)

    def metric(self, stage: str, step: int, values: Any, total: int | None = None) -> None:
        self.points.append(step)


def cancel() -> None:
    raise Canceled


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(one: Package, other: Package) -> bool:
    """Weights, classical part, blend and figures are the same to the last bit."""
    figures = [
        {k: v for k, v in p.manifest.metrics.items() if k not in ("seconds", "peak_memory_mb")} for p in (one, other)
    ]
    return (
        one.weights.keys() == other.weights.keys()
        and all(one.weights[name].tobytes() == other.weights[name].tobytes() for name in one.weights)
        and (one.forest, one.manifest.blend, figures[0]) == (other.forest, other.manifest.blend, figures[1])
    )


# Stop and keep


def test_a_stop_keeps_the_best_so_far_and_writes_the_package(run: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    reporter = At(7, (folder / "stop").touch, folder)
    stopped = run(reporter=reporter, steps=50)
    assert max(reporter.steps) == 7, "no further step, and none on all labels"
    assert (stopped.manifest.hyperparameters["steps"], stopped.manifest.hyperparameters["best_step"]) == (7, 5)
    assert stopped.manifest.metrics["miou"]["value"] is not None
    assert any("Stopped after 7 steps, as you asked" in text for text in reporter.messages)
    assert left_in(tmp_path) == ["m.geopeft", "run"]


def test_a_stop_while_the_last_steps_run_takes_the_best_weights_from_before_them(
    run: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("whole")
    folder = tmp_path / "run"
    folder.mkdir()
    steps = whole.manifest.hyperparameters["steps"]
    stopped = run(reporter=At(steps + 1, (folder / "stop").touch, folder))
    kept = {name: array.astype(np.float16) for name, array in stopped.weights.items() if array.dtype == np.float32}
    assert kept and all(
        np.array_equal(whole.start[name], array)
        for name, array in kept.items()
        if name != fit.PROJECTION and not name.startswith("applicability.")
    )


def test_a_stop_before_the_first_step_is_a_cancel_that_says_why(run: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "stop").touch()
    reporter = Reporter(folder=folder)
    with pytest.raises(Canceled):
        run(reporter=reporter)
    assert reporter.messages[-1] == "Stopped before there was anything to keep."
    assert left_in(tmp_path) == ["run"]


def test_a_stop_in_the_validation_does_not_wait_for_its_end(
    run: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    seen = []
    logits = trainer.Trainer._logits

    def watched(self: Any, chip: Any) -> Any:
        seen.append(self._at.step)
        if self._at.step == 5:
            (folder / "stop").touch()
        return logits(self, chip)

    monkeypatch.setattr(trainer.Trainer, "_logits", watched)
    run(reporter=Reporter(folder=folder), steps=100)
    chips = seen.count(0)
    assert chips > 1
    assert seen.count(5) == 1 + chips, "one chip, then all of them for the blend"


# Resume


@pytest.mark.parametrize(("adapter", "trusts"), [("full", False), ("lora", True)])
@pytest.mark.fault("T03")
def test_a_fit_that_was_canceled_goes_on_to_the_same_weights(
    run: Fit, tmp_path: Path, adapter: str, trusts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "TRUSTED_PLACES", 0 if trusts else 1000)
    loss = learning.balanced_cross_entropy
    # As dropout would, this asks torch for random numbers.
    monkeypatch.setattr(learning, "balanced_cross_entropy", lambda *parts: loss(*parts) * (1 + torch.rand(())))
    fields: dict[str, Any] = {"adapter": adapter, "backbone": "tf_efficientnet_lite0", "steps": 8}
    whole = run("whole", **fields)
    total, best = (whole.manifest.hyperparameters[name] for name in ("steps", "best_step"))
    assert trusts or best == total
    # Before and after the adapter learns too, after a validation, and in the last steps on all labels.
    last = total + 1 if best else 6
    for step in (2, 6, last):
        with pytest.raises(Canceled):
            run(reporter=At(step, cancel), **fields)
        assert left_in(tmp_path) == ["m.geopeft.resume", "whole.geopeft"]
    reporter = At(-1, cancel)
    again = run(reporter=reporter, **fields)
    assert any(f"Goes on from step {last} " in text for text in reporter.messages)
    assert reporter.points == [0, 5, 8], "the curve is whole again"
    assert same(whole, again)
    assert left_in(tmp_path) == ["m.geopeft", "whole.geopeft"]


@pytest.mark.parametrize(
    "fields",
    [{"backbone": "tf_efficientnet_lite0"}, {"backbone": "geopeft_small", "last_blocks": 1}],
    ids=["adapter that waits", "last block"],
)
def test_a_fit_ends_with_the_same_weights_whether_its_features_were_kept_already_or_not(
    run: Fit, tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    for name in ("encode", "begin"):
        plain = getattr(SegmentationModel, name)

        def watched(self: Any, *parts: Any, plain: Any = plain) -> Any:
            computed.append(len(parts[0]))
            return plain(self, *parts)

        monkeypatch.setattr(SegmentationModel, name, watched)
    (tmp_path / "file").touch()
    fits, counts = [], []
    folders = ("one", "one", "file") if "last_blocks" in fields else ("one", "one")
    for number, folder in enumerate(folders):
        monkeypatch.setenv("GEOPEFT_FEATURES", str(tmp_path / folder))
        computed.clear()
        fits.append(run(f"m{number}", adapter="lora", rank=2, **fields))
        counts.append(len(computed))
    assert all(same(fits[0], other) for other in fits[1:])
    # Behind the first blocks nothing has to be computed; an adapter that waits does so for two of six steps.
    assert counts[1] == 0 if "last_blocks" in fields else counts[1] < counts[0] - 3
    assert counts[0] < counts[-1] or "last_blocks" not in fields


def test_a_cancel_between_chips_of_the_validation_changes_nothing(
    run: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("whole", steps=7)
    logits, seen = trainer.Trainer._logits, []

    def watched(self: Any, chip: Any) -> Any:
        seen.append(self._at.step)
        if seen.count(5) == 2:
            raise Canceled
        return logits(self, chip)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_logits", watched)
        with pytest.raises(Canceled):
            run(steps=7)
    assert same(whole, run(steps=7))


@pytest.mark.fault("T03")
def test_a_fit_that_was_killed_goes_on_from_its_last_checkpoint(run: Fit, scene: Path, tmp_path: Path) -> None:
    """A real process, killed while it trains."""
    fields = {"steps": 40, "seed": 3}
    whole = run("whole", **fields)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.json").write_text(json.dumps(job_of(scene, tmp_path / "m.geopeft", **fields)))
    settings = {**QUICK, checkpoint: {"MOST_TIME": 1e9}, trainer: {**QUICK[trainer], "CHECKPOINT_S": 0.0}}
    code = "import sys, importlib, torch; from geopeft import __main__\n"
    # Sums of another number of threads are rounded otherwise.
    code += f"torch.set_num_threads({torch.get_num_threads()})\n"
    code += "".join(
        f"importlib.import_module('{module.__name__}').{name} = {value}\n"
        for module, values in settings.items()
        for name, value in values.items()
    )
    code += "__main__.main(['run', sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run" / "job.json")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["stage"] == "fit" and event["current"] >= 20:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert [n for n in left_in(tmp_path) if not n.startswith(".")] == ["m.geopeft.resume", "run", "whole.geopeft"]
    reporter = Reporter()
    assert same(whole, run(reporter=reporter, **fields))
    told = next(text for text in reporter.messages if text.startswith("Goes on from step"))
    assert int(told.split()[4]) >= 15


@pytest.mark.parametrize("change", ["seed", "labels", "raster", "no resume", "damage"])
@pytest.mark.fault("T04", "T06", "T07")
def test_a_checkpoint_that_does_not_fit_is_ignored_with_one_sentence(
    run: Fit, scene: Path, tmp_path: Path, change: str
) -> None:
    # What judges is the same, so that only what teaches can tell the difference.
    kept_apart = str(draw(tmp_path / "v.gpkg", HALF))
    with pytest.raises(Canceled):
        run(reporter=At(3, cancel), validation_labels=kept_apart)
    changes: dict[str, dict[str, Any]] = {"seed": {"seed": 1}, "no resume": {"resume": False}}
    fields = changes.get(change, {})
    if change == "labels":
        fields["labels"] = str(draw(tmp_path / "l.gpkg", [(r, c) for r in range(8) for c in range(8)], side=15))
    if change == "raster":
        fields["rasters"] = [str(tmp_path / "scene.tif")]
        (tmp_path / "scene.tif").write_bytes((scene / "scene.tif").read_bytes())
    if change == "damage":
        (tmp_path / "m.geopeft.resume").write_bytes(b"half a file")
    reporter = At(-1, cancel)
    run(reporter=reporter, validation_labels=kept_apart, **fields)
    assert reporter.steps[0] == 1
    told = [text for text in reporter.messages if "starts anew" in text]
    assert len(told) == (0 if change == "no resume" else 1)
    assert not (tmp_path / "m.geopeft.resume").exists()


def test_the_same_labels_in_another_file_and_other_colours_go_on(run: Fit, tmp_path: Path) -> None:
    """QGIS writes its snapshot of the labels into another folder each time."""

    def style(color: str) -> list[dict[str, str]]:
        return [{"value": name, "name": name, "color": color} for name in CLASSES]

    with pytest.raises(Canceled):
        run(reporter=At(3, cancel), labels=str(draw(tmp_path / "one.gpkg", MORE)), classes=style("#102030"))
    reporter = At(-1, cancel)
    run(reporter=reporter, labels=str(draw(tmp_path / "two.gpkg", MORE)), classes=style("#405060"))
    assert reporter.steps[0] == 4


@pytest.mark.fault("W02")
def test_a_training_outlives_a_disk_that_has_no_room_for_checkpoints(
    run: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Checkpoint, *rest: Any) -> None:
        raise OutputError("The disk is full: x.", "Free some space.", "DISK_FULL")

    monkeypatch.setattr(trainer, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(Checkpoint, "save", full)
    reporter = Reporter()
    assert run(reporter=reporter).manifest.metrics["miou"]["value"] is not None
    assert len([text for text in reporter.messages if "could not be resumed" in text]) == 1


def test_the_time_of_all_runs_counts(run: Fit, tmp_path: Path) -> None:
    with pytest.raises(Canceled):
        run(reporter=At(3, cancel), steps=60)
    path = tmp_path / "m.geopeft.resume"
    with safe_open(path, "pt") as stream:
        note = stream.metadata()
    progress = json.loads(note["progress"])
    assert 0 < progress["seconds"] < 1000
    save_file(load_file(path), path, {**note, "progress": json.dumps({**progress, "seconds": 3600.0})})
    reporter = At(-1, cancel)
    again = run(reporter=reporter, steps=60, max_minutes=59)
    assert reporter.steps[0] == 4, "more time is no other training"
    assert len(reporter.steps) <= 3, "the budget had been spent before"
    assert again.manifest.metrics["seconds"] > 3600


@pytest.mark.fault("W10")
def test_a_checkpoint_is_written_whole_and_only_for_its_own_run(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path / "m.geopeft")
    one = Checkpoint(path, "fit", "a" * 64)
    assert one.read() is None
    one.save({"step": 3}, {"x": torch.arange(6.0).reshape(2, 3).T})
    progress, tensors = one.read() or ({}, {})
    assert progress == {"step": 3} and torch.equal(tensors["x"], torch.arange(6.0).reshape(2, 3).T)
    assert left_in(tmp_path) == ["m.geopeft.resume"]
    for other in (Checkpoint(path, "fit", "b" * 64), Checkpoint(path, "pretrain", "a" * 64)):
        with pytest.raises(JobError) as caught:
            other.read()
        assert caught.value.code == "CHECKPOINT_OTHER_JOB"
    one.remove()
    one.remove()
    assert left_in(tmp_path) == []


def test_saving_takes_only_a_small_part_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    kept = Checkpoint(tmp_path / "c", "fit", "")

    def save_slowly(tensors: Any, path: Path, note: Any) -> None:
        now[0] += 2
        path.touch()

    monkeypatch.setattr(checkpoint, "save_file", save_slowly)
    now[0] += 15
    assert kept.due(15)
    kept.save({}, {})
    now[0] += 30
    assert not kept.due(15)
    now[0] += 10
    assert kept.due(15)


# Folds

FEW = [(row, col) for row in range(8) for col in range(8) if row % 2 == col % 2 == 0]


@pytest.fixture
def few(scene: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(holdout, "MAX_VALIDATION_CHIPS", 64)
    path = scene / "few.gpkg"
    return {"labels": str(path if path.exists() else draw(path, FEW)), "folds": 0}


def test_where_labels_are_few_every_place_is_judged_and_the_model_is_the_same(run: Fit, few: dict[str, Any]) -> None:
    reporter = At(-1, cancel)
    judged, once = run("folds", reporter=reporter, **few), run("once", **(few | {"folds": 1}))
    assert judged.weights.keys() == once.weights.keys() and judged.forest == once.forest
    assert all(judged.weights[name].tobytes() == once.weights[name].tobytes() for name in once.weights)
    more, less = judged.manifest.metrics, once.manifest.metrics
    assert (more["folds"], less["folds"]) == (4, 1)
    assert more["labels"] == 14 * 14 * len(FEW) > 2 * less["labels"]
    assert "4 folds" in more["split"]
    assert reporter.points == [0, 5, 6], "the curve is that of the model alone"
    total = 3 * once.manifest.hyperparameters["best_step"]
    assert reporter.fold_steps == [(step, total) for step in range(1, total + 1)]


def test_no_fold_learns_from_a_place_that_it_judges(
    run: Fit, few: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, drawn = judging.forecasts, judging.ChipSampler
    folds: list[tuple[set[int], set[int]]] = []
    taught: list[set[int]] = []

    def sampler(reader: Any, sites: Any, *rest: Any) -> Any:
        taught.append({site.group for site in sites})
        return drawn(reader, sites, *rest)

    def watched(*parts: Any) -> Any:
        found = told(*parts)
        folds.append((taught[-1], {int(p) for chip in found for p in np.unique(chip.places)}))
        return found

    monkeypatch.setattr(judging, "ChipSampler", sampler)
    monkeypatch.setattr(judging, "forecasts", watched)
    run(**few)
    assert len(folds) == 3
    assert all(judged and not judged & learned for learned, judged in folds)
    assert sum(len(judged) for _, judged in folds) == len(set.union(*(judged for _, judged in folds)))


def test_a_stop_in_a_fold_keeps_the_model_and_says_how_many_folds_are_done(
    run: Fit, few: dict[str, Any], tmp_path: Path
) -> None:
    whole = run("whole", **few)
    folder = tmp_path / "run"
    folder.mkdir()
    stopped = run(reporter=At(8, (folder / "stop").touch, folder, stage="folds"), **few)
    assert stopped.manifest.metrics["folds"] == 2, "that of the model, and the one that was done"
    assert "2 of 4 folds" in stopped.manifest.metrics["split"]
    assert all(stopped.weights[name].tobytes() == whole.weights[name].tobytes() for name in whole.weights)
    assert stopped.manifest.metrics["labels"] < whole.manifest.metrics["labels"]


@pytest.mark.parametrize("labels", ["few", "fewer than can be held out"])
def test_a_fit_that_ended_in_a_fold_goes_on_there(
    run: Fit, few: dict[str, Any], scene: Path, tmp_path: Path, labels: str
) -> None:
    if labels != "few":
        few = few | {"labels": str(draw(tmp_path / "l.gpkg", [(0, 0), (7, 2), (0, 7), (6, 6), (3, 4), (7, 7)]))}
    whole = run("whole", **few)
    with pytest.raises(Canceled):
        run(reporter=At(8, cancel, stage="folds"), **few)
    reporter = At(-1, cancel)
    assert same(whole, run(reporter=reporter, **few))
    assert reporter.steps == [], "the training of the model is over"
    assert reporter.fold_steps[0][0] == 7, "and so is the first fold"


def test_no_fold_begins_that_would_end_after_the_time_given(run: Fit, few: dict[str, Any]) -> None:
    model = run(max_minutes=1e-4, **few)
    assert model.manifest.metrics["folds"] == 1
    assert "1 of 4 folds" in model.manifest.metrics["split"]


def test_baselines_are_judged_on_the_same_places(run: Fit, few: dict[str, Any]) -> None:
    reporter = Reporter()
    metrics = run(reporter=reporter, baselines=["random-forest", "unet"], **few).manifest.metrics
    assert set(metrics["baselines"]) == {"random-forest", "unet"}
    forest = metrics["baselines"]["random-forest"]
    assert forest["miou"]["value"] > 0.9, "the bands alone tell these classes apart"
    assert forest["difference"]["value"] == pytest.approx(metrics["miou"]["value"] - forest["miou"]["value"], abs=1e-4)
    assert any("mIoU on the same held-out labels" in text for text in reporter.messages)
    assert run("none", baselines=[], **few).manifest.metrics["baselines"] == {}


def test_the_figures_tell_how_sure_the_map_may_be_and_how_the_training_went(run: Fit, few: dict[str, Any]) -> None:
    metrics = run(**few).manifest.metrics
    bins = metrics["calibration"]["bins"]
    assert sum(part["weight"] for part in bins) == pytest.approx(1, abs=1e-3)
    error = sum(part["weight"] * abs(part["confidence"] - part["accuracy"]) for part in bins)
    assert metrics["calibration"]["ece"] == pytest.approx(error, abs=1e-3)
    assert [point["step"] for point in metrics["history"]] == [0, 5, 6]
    assert metrics["history"][-1].keys() == {"step", "loss", "miou"}


# Start from an earlier model

HALF = [(row, col) for row in range(8) for col in range(8) if (row + col) % 2]
MORE = [(row, col) for row in range(8) for col in range(8)]


@pytest.fixture(scope="module")
def earlier(scene: Path) -> Path:
    path = scene / "earlier.geopeft"
    labels = str(draw(scene / "half.gpkg", HALF))
    fit.run(parse(job_of(scene, path, labels=labels, steps=60)), Reporter())  # type: ignore[arg-type]
    return path


def test_a_start_takes_over_what_was_learned_and_is_quicker(
    run: Fit, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "_default_steps", lambda places: 12)
    reporter = Reporter()
    first: list[float] = []
    reporter.metric = lambda *told: first.append(told[2]["validation_loss"])  # type: ignore[method-assign]
    again = run(reporter=reporter, start=str(earlier), steps=0)
    assert again.manifest.hyperparameters["steps"] == 6
    assert "Starts from the model earlier.geopeft." in reporter.messages
    assert first[0] < 0.5 < np.log(3), "it knows before the first step"
    assert run("afresh", steps=0).manifest.hyperparameters["steps"] == 12
    assert len(again.manifest.hyperparameters["start_sha256"]) == 64


def test_no_place_that_taught_the_earlier_model_judges_the_later_one(
    run: Fit, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[set[tuple[int, int]]] = []
    taught: list[set[tuple[int, int]]] = []
    hold_out = fit.hold_out

    def fields_of(sites: Any) -> set[tuple[int, int]]:
        return {(int(r), int(c)) for site in sites for r, c in [site.points.mean(0) // FIELD_PX]}

    def watched(*arguments: Any) -> fit.HeldOut:
        held, sites = hold_out(*arguments), arguments[3]
        taught.append(fields_of([sites[i] for i in held.taught]))
        judged.append(fields_of(sites) - taught[-1])
        return held

    monkeypatch.setattr(fit, "hold_out", watched)
    run("a", labels=str(draw(earlier.parent / "half.gpkg", HALF)), steps=2)
    run("b", start=str(earlier), steps=2, seed=5)
    run("c", start=str(earlier), steps=2, seed=9)
    assert judged[0] and all(later >= judged[0] for later in judged[1:]), "what was held out stays so"
    assert not taught[0] & (judged[1] | judged[2])


def test_a_chain_of_starts_remembers_all_of_them(run: Fit, earlier: Path, tmp_path: Path) -> None:
    second = run("second", start=str(earlier), steps=2)
    memory, before = starting.Memory.from_arrays(second.start), starting.Memory.from_arrays(package.read(earlier).start)
    assert memory is not None and before is not None
    assert set(before.taught) < set(memory.taught)
    reporter = Reporter()
    run("third", reporter=reporter, start=str(tmp_path / "second.geopeft"), steps=2)
    assert "Starts from the model second.geopeft." in reporter.messages


def test_an_earlier_model_that_knows_every_place_is_not_started_from(run: Fit, scene: Path, tmp_path: Path) -> None:
    """Its accuracy could not be told."""
    run("all", validation_labels=str(draw(tmp_path / "v.gpkg", HALF)), steps=2)
    reporter = Reporter()
    model = run(reporter=reporter, start=str(tmp_path / "all.geopeft"), steps=2)
    assert any("has learned from all places labelled" in text for text in reporter.messages)
    assert model.manifest.metrics["miou"]["value"] is not None
    assert "start_sha256" not in model.manifest.hyperparameters


def test_a_new_class_starts_beside_those_that_are_known(run: Fit, scene: Path, tmp_path: Path) -> None:
    two = [place for place in MORE if sum(place) % 3 < 2]
    fields: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "adapter": "lora", "rank": 2}
    run("two", labels=str(draw(tmp_path / "two.gpkg", two)), steps=15, **fields)
    reporter = Reporter()
    three = run("three", reporter=reporter, start=str(tmp_path / "two.geopeft"), steps=15, **fields)
    assert "Starts from the model two.geopeft. New to it: water." in reporter.messages
    names = [known.name for known in three.manifest.classes]
    assert names == ["field", "forest", "water"]
    assert three.manifest.metrics["miou"]["value"] > 0.8


def test_rows_of_head_and_probe_go_by_the_class_name(run: Fit, earlier: Path, scene: Path, tmp_path: Path) -> None:
    """Class numbers follow the order of the names, which a new class changes."""
    start = starting.Start.open(earlier)
    spec = start.manifest.spec.model_copy(update={"num_classes": 4})
    labels = [fit.LabelClass(name, name, "#000000") for name in ("water", "forest", "town", "field")]
    model = build(spec, pretrained=False)
    start.put_into(model, labels)
    old, new = start.state["head.weight"], model.trainable_state()["head.weight"]
    order = [known.name for known in start.manifest.classes]
    for name, row in (("water", 0), ("forest", 1), ("field", 3)):
        assert torch.equal(new[row], old[order.index(name)])
    assert torch.allclose(new[2], old.mean(0))


def test_a_new_class_is_as_far_from_the_known_ones_as_in_a_fresh_probe(earlier: Path) -> None:
    """What is common to all classes means nothing: a fresh probe may have more or less of it."""
    known = starting.Start.open(earlier)
    spec = known.manifest.spec.model_copy(update={"backbone": "tf_efficientnet_lite0", "adapter": "lora", "rank": 2})
    bands = [
        b.model_copy(update={"backbone_band": n}) for b, n in zip(spec.bands, ("blue", "green", "red", ""), strict=True)
    ]
    model = build(spec.model_copy(update={"bands": tuple(bands), "num_classes": 4, "probe": True}), pretrained=False)
    assert model.probe is not None
    rng = np.random.default_rng(0)
    weights, offsets = (tensor.numpy() for tensor in model.probe.taken())
    own = rng.normal(size=weights.shape).astype(np.float32), rng.normal(size=4).astype(np.float32)
    fresh = rng.normal(size=weights.shape).astype(np.float32), rng.normal(size=4).astype(np.float32)
    model.probe.put(*map(torch.from_numpy, own))
    classes = [fit.LabelClass(name, name, "#000000") for name in ("field", "forest", "town", "water")]
    known.teach_new_classes(model, classes, *fresh)
    old, new = [0, 1, 3], 2
    for before, made, after in zip(own, fresh, model.probe.taken(), strict=True):
        assert np.array_equal(after.numpy()[old], before[old])
        distance = after.numpy()[new] - after.numpy()[old].mean(0)
        assert np.allclose(distance, made[new] - made[old].mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"backbone": "tf_efficientnet_lite0"}, "its backbone: scratch_unet, here: tf_efficientnet_lite0"),
        ({"bands": ["Red", "NIR"]}, "its bands: blue, green, red, nir, here: red, nir"),
        ({"decoder": "linear"}, "its decoder: unet light, here: linear light"),
        ({"classes": "other"}, "none of its classes is among the labels"),
    ],
)
def test_a_model_that_does_not_fit_is_said_and_not_used(
    run: Fit, earlier: Path, tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    if fields.pop("classes", ""):
        fields = {"labels": str(draw(tmp_path / "l.gpkg", MORE, names=("a", "b", "c")))}
    reporter = Reporter()
    model = run(reporter=reporter, start=str(earlier), steps=1, **fields)
    expected = f"earlier.geopeft cannot be started from: {reason}. The training starts afresh."
    assert expected in reporter.messages
    assert "start_sha256" not in model.manifest.hyperparameters


def test_a_start_that_is_no_package_fails_at_once(run: Fit, tmp_path: Path) -> None:
    (tmp_path / "x.geopeft").write_bytes(b"no zip")
    for name in ("x", "gone"):
        with pytest.raises(PackageError):
            run(start=str(tmp_path / f"{name}.geopeft"))


def test_the_raster_is_read_but_never_written(scene: Path) -> None:
    """Everything above has run on these files by now."""
    assert [n for n in left_in(scene) if "scene.tif" in n] == ["scene.tif"]
    with rasterio.open(scene / "scene.tif") as source:
        assert source.read(window=Window(0, 0, 40, 30)).min() > 0
