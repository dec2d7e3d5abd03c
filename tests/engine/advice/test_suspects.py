"""Labels that are likely wrong: found by models that have not seen them."""

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
from geopeft.advice import suspects
from geopeft.advice.sights import ShapePixels
from geopeft.errors import LabelError
from geopeft.events import Reporter
from geopeft.forest import Pixels
from geopeft.job import parse

SAMPLE = Path(__file__).parents[3] / "resources" / "sample"


def labels_of_the_sample() -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    """(what pyogrio knows of the layer, feature numbers, geometries as WKB, classes)."""
    meta, fids, shapes, fields = pyogrio.raw.read(
        SAMPLE / "labels.gpkg", layer="train", columns=["class"], return_fids=True
    )
    return meta, fids, shapes, fields[0]


def write(path: Path, meta: dict, shapes: np.ndarray, classes: np.ndarray) -> None:
    pyogrio.raw.write(path, shapes, [classes], ["class"], geometry_type=meta["geometry_type"], crs=meta["crs"])


def flipped(folder: Path, seed: int) -> tuple[Path, set[int]]:
    """The sample's labels with a tenth of them given another class, and the numbers of these features."""
    meta, _, shapes, classes = labels_of_the_sample()
    rng = np.random.default_rng(seed)
    names = np.unique(classes)
    wrong = rng.choice(len(classes), round(len(classes) / 10), replace=False)
    for number in wrong:
        classes[number] = rng.choice(names[names != classes[number]])
    write(folder / f"{seed}.gpkg", meta, shapes, classes)
    _, fids, _, _ = pyogrio.raw.read(folder / f"{seed}.gpkg", return_fids=True)
    return folder / f"{seed}.gpkg", set(fids[wrong].tolist())


def run(labels: str, out: Path, **options: str) -> dict:
    job = {
        "job": "suspects",
        "rasters": [str(SAMPLE / "itaipu_landsat8.tif")],
        "labels": labels,
        "class_field": "class",
        **options,
    }
    return suspects.run(parse({**job, "out": str(out), "json_file": f"{out}.json"}), Reporter())  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_that_were_made_wrong_come_first(tmp_path: Path, seed: int) -> None:
    labels, wrong = flipped(tmp_path, seed)
    outputs = run(str(labels), tmp_path / "s.gpkg")
    first = [place["fid_label"] for place in outputs["places"][: outputs["judged"] // 5]]
    assert len(wrong & set(first)) >= 0.6 * len(wrong)
    _, _, shapes, (ranks,) = pyogrio.raw.read(tmp_path / "s.gpkg", columns=["rank"])
    assert ranks.tolist() == list(range(1, outputs["count"] + 1)) and all(shapes)
    assert json.loads((tmp_path / "s.gpkg.json").read_text())["places"] == outputs["places"]


def test_right_labels_are_hardly_suspected(tmp_path: Path) -> None:
    outputs = run(f"{SAMPLE / 'labels.gpkg'}:train", tmp_path / "s.gpkg")
    assert outputs["count"] <= 0.1 * outputs["judged"]
    assert all(place["given"] != place["likely"] for place in outputs["places"])


def test_classes_with_one_place_each_cannot_be_judged(tmp_path: Path) -> None:
    meta, _, shapes, classes = labels_of_the_sample()
    _, first = np.unique(classes, return_index=True)
    write(tmp_path / "few.gpkg", meta, shapes[first], classes[first])
    with pytest.raises(LabelError, match="every class has one labelled place") as caught:
        run(str(tmp_path / "few.gpkg"), tmp_path / "s.gpkg")
    assert caught.value.code == "LABELS_FEW" and not (tmp_path / "s.gpkg").exists()


def test_wrong_labels_of_a_background_class_come_first_too(tmp_path: Path) -> None:
    """Of the background hardly anything is drawn: what it looks like is known from the ground around the labels."""
    meta, _, shapes, classes = labels_of_the_sample()
    drawn = classes == "built_up"
    shapes, classes = shapes[drawn], classes[drawn]
    wrong = [3, 11]
    classes[wrong] = "other"
    write(tmp_path / "b.gpkg", meta, shapes, classes)
    outputs = run(str(tmp_path / "b.gpkg"), tmp_path / "s.gpkg", background="other")
    first = [place["fid_label"] for place in outputs["places"][:3]]
    assert {number + 1 for number in wrong} <= set(first)
    assert outputs["judged"] == len(shapes)


@pytest.mark.parametrize("seed", range(6))
def test_few_places_are_dealt_into_folds_without_gaps(seed: int) -> None:
    """Two blocks of two classes: less than there are folds."""
    classes = np.array([0, 1, 0, 1, 2])
    middles = np.array([[0, 5, 5], [0, 5, 6], [0, 90, 90], [0, 90, 91], [0, 50, 50]], float)
    found = ShapePixels(Pixels(*[np.zeros(0)] * 5), np.arange(5), middles)
    fold = suspects.deal_places(found, classes, np.random.default_rng(seed))
    assert fold[4] == -1 and set(fold.tolist()) == set(range(-1, fold.max() + 1))
