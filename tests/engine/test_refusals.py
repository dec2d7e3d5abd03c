"""What does not go together is refused with a code, and nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from geopeft import evaluate
from geopeft.errors import GeopeftError
from geopeft.events import Reporter
from geopeft.job import parse
from geopeft.onnx import export
from geopeft.writing import check_target
from shapely import box
from test_predict import NAMES, VALUES, model, run  # noqa: F401

MakeRaster = Callable[..., Path]
MakeLabels = Callable[..., Path]


def refused(call: Callable[[], Any], folder: Path) -> str:
    """The code of the error that it ends with; the folder must be as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(GeopeftError) as caught:
        call()
    assert caught.value.hint and sorted(folder.rglob("*")) == before
    return caught.value.code


def test_what_cannot_be_mapped_as_asked_is_refused(model: Path, make_raster: MakeRaster, tmp_path: Path) -> None:  # noqa: F811
    first, last = (make_raster(VALUES, name, names=NAMES) for name in ("a.tif", "b.tif"))
    fine = make_raster((VALUES / 3000).astype(np.float32), "fine.tif", names=NAMES)
    out = tmp_path / "map.tif"
    assert refused(lambda: run(model, [first, last], out), tmp_path) == "OUTPUT_NEEDS_FOLDER"
    assert refused(lambda: run(model, [fine], out), tmp_path) == "RADIOMETRY_DIFFERS"
    (tmp_path / "folder").mkdir()
    assert refused(lambda: check_target(tmp_path / "folder"), tmp_path) == "OUTPUT_IS_FOLDER"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_refused(model: Path, make_raster: MakeRaster, tmp_path: Path) -> None:  # noqa: F811
    raster = make_raster(VALUES, "a.tif", names=NAMES)
    assert refused(lambda: run(model, [raster], tmp_path / "m.tif", device="mps"), tmp_path) == "DEVICE_UNAVAILABLE"


def test_what_a_model_cannot_be_scored_on_is_refused(
    model: Path,  # noqa: F811
    make_raster: MakeRaster,
    make_labels: MakeLabels,
    tmp_path: Path,
) -> None:
    raster = make_raster(VALUES, "a.tif", names=NAMES)
    places = [box(300_100 + step, 5_799_000, 300_400 + step, 5_799_300) for step in (0, 600)]
    labels = make_labels(places, ["glacier", "dune"])
    job = {"job": "evaluate", "model": str(model), "rasters": [str(raster)], "labels": str(labels), "device": "cpu"}

    def score(reporter: Reporter | None = None, **fields: str) -> Any:
        return evaluate.run(parse({**job, **fields}), reporter or Reporter())  # type: ignore[arg-type]

    assert refused(score, tmp_path) == "LABELS_OTHER_CLASSES"
    some = make_labels(places, ["glacier", "land"], "some.gpkg")
    heard = Reporter()
    score(heard, labels=str(some))
    assert [text for text in heard.messages if "does not know these classes" in text and "glacier" in text]
    assert refused(lambda: score(part="classical"), tmp_path) == "PACKAGE_NO_CLASSICAL"


def test_an_onnx_file_that_differs_from_the_model_is_not_kept(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    job = parse({"job": "export", "model": str(model), "onnx": str(tmp_path / "m.onnx")})
    assert refused(lambda: export.run(job, Reporter()), tmp_path) == "ONNX_DIFFERS"  # type: ignore[arg-type]
