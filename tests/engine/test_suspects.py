"""Labels that are likely wrong: found by models that have not seen them."""

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
from geopeft import suspects
from geopeft.errors import LabelError
from geopeft.events import Reporter
from geopeft.job import parse

SAMPLE = Path(__file__).parents[2] / "resources" / "sample"


def flipped(folder: Path, seed: int) -> tuple[Path, set[int]]:
    """The sample's labels with a tenth of them given another class, and the numbers of these."""
    table = pyogrio.read_dataframe(SAMPLE / "labels.gpkg", layer="train", fid_as_index=True)
    rng = np.random.default_rng(seed)
    names = sorted(table["class"].unique())
    wrong = rng.choice(table.index, round(len(table) / 10), replace=False)
    for number in wrong:
        table.loc[number, "class"] = rng.choice([name for name in names if name != table.loc[number, "class"]])
    pyogrio.write_dataframe(table, folder / f"{seed}.gpkg", layer="train")
    back = pyogrio.read_dataframe(folder / f"{seed}.gpkg", fid_as_index=True)
    offset = int(back.index[0] - table.index[0])
    return folder / f"{seed}.gpkg", {int(number) + offset for number in wrong}


def run(labels: str, out: Path) -> dict:
    job = {"job": "suspects", "rasters": [str(SAMPLE / "itaipu_landsat8.tif")], "labels": labels, "class_field": "class"}
    return suspects.run(parse({**job, "out": str(out), "json_file": f"{out}.json"}), Reporter())  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_that_were_made_wrong_come_first(tmp_path: Path, seed: int) -> None:
    labels, wrong = flipped(tmp_path, seed)
    outputs = run(str(labels), tmp_path / "s.gpkg")
    first = [place["fid_label"] for place in outputs["places"][: outputs["judged"] // 5]]
    assert len(wrong & set(first)) >= 0.6 * len(wrong)
    layer = pyogrio.read_dataframe(tmp_path / "s.gpkg")
    assert layer["rank"].tolist() == list(range(1, outputs["count"] + 1)) and layer.geometry.is_valid.all()
    assert json.loads((tmp_path / "s.gpkg.json").read_text())["places"] == outputs["places"]


def test_right_labels_are_hardly_suspected(tmp_path: Path) -> None:
    outputs = run(f"{SAMPLE / 'labels.gpkg'}:train", tmp_path / "s.gpkg")
    assert outputs["count"] <= 0.1 * outputs["judged"]
    assert all(place["given"] != place["likely"] for place in outputs["places"])


def test_classes_with_one_place_each_cannot_be_judged(tmp_path: Path) -> None:
    table = pyogrio.read_dataframe(SAMPLE / "labels.gpkg", layer="train").groupby("class").head(1)
    pyogrio.write_dataframe(table, tmp_path / "few.gpkg")
    with pytest.raises(LabelError, match="every class has one labelled place") as caught:
        run(str(tmp_path / "few.gpkg"), tmp_path / "s.gpkg")
    assert caught.value.code == "LABELS_FEW" and not (tmp_path / "s.gpkg").exists()
