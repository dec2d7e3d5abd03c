"""The pretrain job on small rasters: what it makes, that a stopped run goes on as if it had not been, and bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affine import Affine
from conftest import MakeRaster  # type: ignore[import-not-found]
from geopeft import checkpoint, pretext, pretrain, pretraining
from geopeft.errors import Canceled, GeopeftError
from geopeft.events import Reporter
from geopeft.job import PretrainJob, parse
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.adapted import read_header
from geopeft.models.choose import named_card
from geopeft.models.segmentation import build_backbone, load_pretrained
from geopeft.models.weights import RESOURCES
from safetensors import safe_open
from safetensors.torch import load_file

SIX = ("blue", "green", "red", "nir", "swir16", "swir22")
RGB = ("red", "green", "blue")
COARSE = Affine(10, 0, 300_000, 0, -10, 5_800_000)
FINE = Affine(0.5, 0, 300_000, 0, -0.5, 5_800_000)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOPEFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pretext, "CHIPS_A_SCENE", 2)
    monkeypatch.setattr(pretext, "TEACHER_BATCHES", 2)
    monkeypatch.setattr(pretraining, "SCENES_A_STEP", 1)
    monkeypatch.setattr(pretraining, "MOST_VALIDATION_SCENES", 2)
    monkeypatch.setattr(pretraining, "EVALUATIONS", 2)


def scene(names: tuple[str, ...], side: int = 200, seed: int = 0) -> np.ndarray:
    """Fields of 25 px with two spectra and some noise, (C, side, side) uint16."""
    rng = np.random.default_rng(seed)
    fields = (np.arange(side)[:, None] // 25 + np.arange(side) // 25) % 2
    spectra = np.array([[400, 700, 500, 3200, 1700, 800], [1000, 1200, 1500, 2000, 2600, 2200]])[:, : len(names)]
    return (spectra[fields].transpose(2, 0, 1) + rng.normal(0, 60, (len(names), side, side))).astype(np.uint16)


@pytest.fixture
def six(make_raster: MakeRaster) -> Path:
    return make_raster(scene(SIX), "six.tif", names=SIX, transform=COARSE)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def do(*rasters: Path, reporter: Reporter | None = None, out: str = "b.safetensors", **fields: Any) -> Any:
        fields = {"start": "nothing", "steps": 2, "device": "cpu", **fields}
        job = parse({"job": "pretrain", "rasters": [str(r) for r in rasters], "out": str(tmp_path / out), **fields})
        return pretrain.run(job, reporter or Reporter())  # type: ignore[arg-type]

    return do


class StopsAt(Reporter):
    """Cancels when a step is done."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def progress(self, stage: str, current: int, total: int, at_most_s: float = 0) -> None:
        if stage == "pretrain" and current == self._step:
            raise Canceled


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".tif")


def test_rasters_of_several_sensors_give_a_backbone_that_can_be_used(
    run: Callable[..., Any], make_raster: MakeRaster, six: Path, tmp_path: Path
) -> None:
    drone = make_raster(scene(RGB), "drone.tif", names=RGB, transform=FINE)
    outputs = run(six, drone, start="tf_efficientnet_lite0", steps=4, json_file=str(tmp_path / "f.json"))
    path = Path(outputs["backbone"])
    header = read_header(path)
    assert (header.backbone, header.licence) == ("geopeft_small", "Apache-2.0")
    assert header.recipe["rasters"] == ["six.tif", "drone.tif"]
    assert header.recipe["start"]["backbone"] == "tf_efficientnet_lite0" and len(header.recipe["start"]["sha256"]) == 64
    assert str(tmp_path) not in json.dumps(header.recipe)
    curve = outputs["figures"]["curve"]
    assert [point["step"] for point in curve] == [2, 4]
    assert {"rebuild", "validation_rebuild", "validation_tf_efficientnet_lite0"} <= set(curve[0])
    assert json.loads((tmp_path / "f.json").read_text())["training"]["curve"] == curve
    card = named_card(str(path))
    load_pretrained(build_backbone(card, ("a",), (0.5,)), card, "", None)
    assert left_in(tmp_path) == ["b.safetensors", "f.json"]


def test_it_learns(run: Callable[..., Any], six: Path) -> None:
    curve = run(six, start="tf_efficientnet_lite0", steps=30)["figures"]["curve"]
    assert curve[-1]["validation_rebuild"] < 0.9 * 0.8
    assert curve[-1]["validation"] < curve[0]["validation"]


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(run: Callable[..., Any], six: Path, tmp_path: Path) -> None:
    settings = {"start": "tf_efficientnet_lite0", "steps": 5}
    whole = run(six, out="whole.safetensors", **settings)
    for stop in (2, 4):
        with pytest.raises(Canceled):
            run(six, reporter=StopsAt(stop), **settings)
        assert left_in(tmp_path) == ["b.safetensors.resume", "whole.safetensors"]
    reporter = Reporter()
    again = run(six, reporter=reporter, **settings)
    assert any("Goes on from step 4" in text for text in reporter.messages)
    assert left_in(tmp_path) == ["b.safetensors", "whole.safetensors"]
    assert again["figures"]["curve"] == whole["figures"]["curve"]
    one, other = load_file(whole["backbone"]), load_file(again["backbone"])
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.fault("T03")
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(
    run: Callable[..., Any], six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(checkpoint, "MOST_TIME", math.inf)

    class Dies(StopsAt):
        def progress(self, stage: str, current: int, total: int, at_most_s: float = 0) -> None:
            if current == 3:
                raise MemoryError

    with pytest.raises(MemoryError):
        run(six, reporter=Dies(3), steps=4)
    assert left_in(tmp_path) == ["b.safetensors.resume"]
    reporter = Reporter()
    run(six, reporter=reporter, steps=4)
    assert any("Goes on from step 2" in text for text in reporter.messages)


def test_a_stop_while_the_averaged_weights_are_judged_keeps_the_trained_ones(
    run: Callable[..., Any], six: Path, tmp_path: Path
) -> None:
    class StopsInEvaluation(Reporter):
        """Two questions in each step, then one in the evaluation after the second."""

        def __init__(self, when: int) -> None:
            super().__init__()
            self.left = when

        def check_canceled(self) -> None:
            self.left -= 1
            if self.left == 0:
                raise Canceled

    whole = run(six, out="whole.safetensors", steps=4)
    with pytest.raises(Canceled):
        run(six, reporter=StopsInEvaluation(5), steps=4)
    again = run(six, steps=4)
    one, other = load_file(whole["backbone"]), load_file(again["backbone"])
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 9}, {"bands": ["red", "green", "blue"]}, {"rank": 3}])
def test_the_checkpoint_of_another_job_is_refused(
    run: Callable[..., Any], six: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(Canceled):
        run(six, reporter=StopsAt(1), backbone="resnet18", steps=3)
    before = (tmp_path / "b.safetensors.resume").read_bytes()
    with pytest.raises(GeopeftError) as caught:
        run(six, **{"backbone": "resnet18", "steps": 3, **change})
    assert caught.value.code == "CHECKPOINT_OTHER_JOB" and "delete" in caught.value.hint
    assert (tmp_path / "b.safetensors.resume").read_bytes() == before


def test_a_checkpoint_that_is_damaged_is_said(run: Callable[..., Any], six: Path, tmp_path: Path) -> None:
    (tmp_path / "b.safetensors.resume").write_bytes(b"half a file")
    with pytest.raises(GeopeftError) as caught:
        run(six)
    assert caught.value.code == "CHECKPOINT_BROKEN"


def test_lora_is_merged_into_the_file(run: Callable[..., Any], six: Path) -> None:
    outputs = run(six, backbone="resnet18", adapter="lora", steps=3, rank=4)
    state = load_file(outputs["backbone"])
    plain = build_backbone(BACKBONES["resnet18"], RGB, ())
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in plain.state_dict().items()}
    torch.manual_seed(0)
    start = build_backbone(BACKBONES["resnet18"], RGB, ()).state_dict()
    moved = {k for k in state if not torch.allclose(state[k].float(), start[k].float(), atol=1e-6, rtol=1e-3)}
    assert moved and all("downsample.0" in key for key in moved)


@pytest.mark.parametrize("backbone", ["galileo_nano", "scratch_unet", "tf_efficientnet_lite0"])
def test_other_backbones_are_adapted_too(run: Callable[..., Any], six: Path, backbone: str) -> None:
    outputs = run(six, backbone=backbone)
    card = named_card(outputs["backbone"])
    names = tuple(band.name for band in card.bands) or SIX
    if backbone == "galileo_nano":
        names = ("B02", "B03", "B04", "B08", "B11", "B12")
    load_pretrained(build_backbone(card, names, ()), card, "", None)


def test_a_teacher_is_followed_where_it_fits(
    run: Callable[..., Any], make_raster: MakeRaster, six: Path, shared: Path
) -> None:
    drone = make_raster(scene(RGB), "drone.tif", names=RGB, transform=FINE)
    reporter = Reporter()
    outputs = run(six, drone, teacher=["galileo_nano"], weights_dir=str(shared / "weights"), reporter=reporter)
    assert any("galileo_nano fits 1 of 2 rasters" in text for text in reporter.messages)
    assert "validation_galileo_nano" in outputs["figures"]["curve"][-1]


def test_a_teacher_that_fits_no_raster_is_refused(run: Callable[..., Any], make_raster: MakeRaster) -> None:
    drone = make_raster(scene(RGB), "drone.tif", names=RGB, transform=FINE)
    with pytest.raises(GeopeftError, match="galileo_nano fits none of the rasters.*5 to 40 m") as caught:
        run(drone, teacher=["galileo_nano"])
    assert caught.value.code == "TEACHER_UNSUITABLE"


def test_a_raster_of_nothing_but_nodata_is_refused_or_left_out(
    run: Callable[..., Any], make_raster: MakeRaster, six: Path, tmp_path: Path
) -> None:
    empty = make_raster(np.zeros((3, 80, 80), np.uint16), "empty.tif", names=RGB, nodata=0)
    with pytest.raises(GeopeftError, match="holds nodata only") as caught:
        run(empty)
    assert caught.value.code == "RASTER_EMPTY" and not left_in(tmp_path)
    reporter = Reporter()
    run(empty, six, reporter=reporter)
    assert any("Left out" in text and "empty.tif" in text for text in reporter.messages)


def test_one_small_raster_is_learned_from_without_validation(run: Callable[..., Any], make_raster: MakeRaster) -> None:
    small = make_raster(scene(RGB, 70), "small.tif", names=RGB)
    reporter = Reporter()
    outputs = run(small, reporter=reporter)
    assert any("too small to hold anything out" in text for text in reporter.messages)
    assert outputs["figures"]["best"] is None and Path(outputs["backbone"]).is_file()


def test_a_tiny_raster_is_refused(run: Callable[..., Any], make_raster: MakeRaster) -> None:
    with pytest.raises(GeopeftError, match="too few to learn from") as caught:
        run(make_raster(scene(RGB, 20), "tiny.tif", names=RGB))
    assert caught.value.code == "RASTER_TOO_SMALL"


def test_what_has_no_network_is_refused(run: Callable[..., Any], six: Path) -> None:
    with pytest.raises(GeopeftError, match="random-forest has no network that could learn") as caught:
        run(six, backbone="random-forest")
    assert caught.value.code == "BACKBONE_UNSUITABLE"


def test_bands_that_nobody_knows_are_refused(run: Callable[..., Any], make_raster: MakeRaster) -> None:
    with pytest.raises(GeopeftError, match="optical band whose wavelength is known") as caught:
        run(make_raster(scene(RGB), "x.tif"))
    assert "scratch_unet" in caught.value.hint


def test_rasters_without_bands_in_common_are_refused(
    run: Callable[..., Any], make_raster: MakeRaster, six: Path
) -> None:
    other = make_raster(scene(RGB), "red_edge.tif", names=("rededge1", "rededge2", "rededge3"))
    with pytest.raises(GeopeftError, match="0 bands in common"):
        run(six, other, backbone="galileo_nano")


def test_the_budget_of_time_ends_it(run: Callable[..., Any], six: Path) -> None:
    figures = run(six, steps=100_000, max_minutes=0.05)["figures"]
    assert 1 <= figures["step"] < 100 and figures["curve"][-1]["step"] == figures["step"]


def test_what_is_written_is_finite(run: Callable[..., Any], six: Path) -> None:
    with safe_open(run(six)["backbone"], "pt") as stream:
        names: list[str] = stream.keys()
        assert all(torch.isfinite(stream.get_tensor(name)).all() for name in names)


def test_the_recipe_of_the_box_is_a_job_and_shows_no_region_that_judges() -> None:
    recipe = json.loads((RESOURCES / "backbones" / "recipe.json").read_text(encoding="utf-8"))
    job = parse(recipe)
    assert isinstance(job, PretrainJob) and job.backbone == "geopeft_small"
    folders = {Path(raster).parts[1] for raster in job.rasters if len(Path(raster).parts) == 3}
    assert len(job.rasters) > 50 and all(name.startswith(("train_", "unlabelled_")) for name in folders)
    assert not any(word in raster for raster in job.rasters for word in ("unseen", "leipzig", "sample"))
