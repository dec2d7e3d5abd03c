"""A fit without a network: the classical part alone makes the map, in the same package and for the same jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
import torch
from affine import Affine
from geopeft import fit, package, predict
from geopeft.events import Reporter
from geopeft.job import FitJob, PredictJob
from geopeft.models import SegmentationModel

ORIGIN = Affine(10, 0, 300_000, 0, -10, 5_800_000)


class Told(Reporter):
    """Keeps the steps of a curve."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def metric(self, stage: str, step: int, *given: Any, **named: Any) -> None:
        self.steps.append(step)


def test_a_forest_alone_is_a_model_like_any_other_and_asks_no_network(
    tmp_path: Path, make_raster: Callable[..., Path], make_labels: Callable[..., Path], monkeypatch: Any
) -> None:
    torch.set_num_threads(1)
    bright = np.indices((4, 384, 384)).sum(0) // 40 % 2
    noise = np.random.default_rng(0).normal(0, 300, (4, 384, 384))
    raster = make_raster((2000 + 1500 * bright + noise).astype(np.uint16), names=("B02", "B03", "B04", "B08"))
    places = [(row, col) for row in range(8, 384, 48) for col in range(8, 384, 48)]
    boxes = [shapely.box(*(ORIGIN * (col, row + 6)), *(ORIGIN * (col + 6, row))) for row, col in places]
    labels = make_labels(boxes, [("dark", "bright")[bright[0, row, col]] for row, col in places])
    shown: dict[str, Any] = {"rasters": (str(raster),), "labels": str(labels), "device": "cpu"}
    asked = FitJob(**shown, backbone="random-forest", folds=3, baselines=("unet",), out=str(tmp_path / "m"))
    told = Told()
    figures = fit.run(asked, told)["figures"]
    model = tmp_path / "m.geopeft"
    manifest = package.read_manifest(model)
    assert (manifest.spec.backbone, manifest.blend.network, manifest.hyperparameters["trainable"]) == (
        "random-forest", 0.0, 0,
    )  # fmt: skip
    assert not told.steps and not told.warnings and not figures["history"] and not figures["baselines"]
    assert any("forest and the linear model alone" in text for text in told.messages)
    assert figures["parts"]["network"] is None and figures["folds"] > 1 and figures["miou"]["value"] > 0.9
    assert model.stat().st_size < 2e6

    def no_network(*given: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(SegmentationModel, "forward", no_network)
    predict.run(
        PredictJob(model=str(model), rasters=(str(raster),), out=str(tmp_path / "map.tif"), device="cpu"), Reporter()
    )
    with rasterio.open(tmp_path / "map.tif") as mapped:
        names = ["", *[known.name for known in manifest.classes]]
        assert (np.array(names)[mapped.read(1)] == np.array(["dark", "bright"])[bright[0]]).mean() > 0.9
