"""A whole study on a made scene: every run is a row, a stopped study goes on, and the page says what the table says."""

import csv
import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from geopeft.errors import GeopeftError
from geopeft.events import Reporter
from geopeft.job import StudyJob, parse
from geopeft.study import study, table
from geopeft.study.grid import Cell, Method
from geopeft.study.runs import CRASHED, DONE, Ended, Task

ORIGIN = Affine(10, 0, 300_000, 0, -10, 5_800_000)
MakeRaster = Callable[..., Path]
MakeLabels = Callable[..., Path]
SIDE = 240


@pytest.fixture
def scene(make_raster: MakeRaster, make_labels: MakeLabels) -> dict[str, Any]:
    """Two classes in fields that are told apart by one band, and 50 labelled squares; and the same again elsewhere."""
    rng = np.random.default_rng(0)
    fields: dict[str, Any] = {"job": "study"}
    for name, prefix in (("region", ""), ("elsewhere", "unseen_")):
        truth = (np.arange(SIDE)[:, None] // 40 + np.arange(SIDE) // 40) % 2
        values = np.stack([500 + 700 * truth, 900 - 100 * truth]) + rng.normal(0, 80, (2, SIDE, SIDE))
        raster = make_raster(values.astype(np.uint16), f"{name}.tif", names=("red", "nir"))
        squares, classes = [], []
        for row, col in rng.integers(0, SIDE // 40, (50, 2)).tolist():
            left, top = ORIGIN.c + 10 * (40 * col + 16), ORIGIN.f - 10 * (40 * row + 16)
            squares.append(shapely.box(left, top - 80, left + 80, top))
            classes.append(("field", "wood")[(row + col) % 2])
        labels = make_labels(squares, classes, f"{name}.gpkg")
        fields |= {f"{prefix}rasters": [str(raster)], f"{prefix}labels": f"{labels}:labels"}
    return fields


def job(scene: dict[str, Any], out: Path, **fields: Any) -> StudyJob:
    small = {
        "backbones": ["scratch_unet"], "adapters": ["full"], "baselines": ["random-forest"], "seeds": 1, "rates": [],
        "steps": 2, "device": "cpu", "out": str(out),
    }  # fmt: skip
    made = parse(scene | small | fields)
    assert isinstance(made, StudyJob)
    return made


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Runs that take no time; collects them. `lora` crashes, and the third factor of the rates is the best one."""
    started: list[Task] = []

    def pretend(tasks: Any, processes: int, gpus: int, check: Callable[[], None]) -> Iterator[Ended]:
        for task in tasks:
            check()
            started.append(task)
            cell = task.cell
            score = 0.5 + 0.1 * cell.rate + 0.01 * cell.seed + 0.05 * cell.fraction
            fields = {"state": DONE, "message": "", "in_region": score, "unseen": score - 0.1, "validation": score,
                      "training_mb": 100.0 * cell.rate, "seconds": 1.0, "total": 10}  # fmt: skip
            yield Ended(task, {"state": CRASHED, "message": "gone"} if cell.method.adapter == "lora" else fields)

    monkeypatch.setattr(study, "run_tasks", pretend)
    return started


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_study_trains_in_processes_of_their_own_and_scores_both_regions(
    scene: dict[str, Any], tmp_path: Path
) -> None:
    """The real thing: a network that refuses its bands is a row with its code and does not stop the others."""
    made = job(scene, tmp_path / "s.csv", backbones=["scratch_unet", "tf_efficientnet_lite0"], processes=2)
    result = study.run(made, Reporter())
    rows = {row["backbone"]: row for row in rows_of(tmp_path / "s.csv")}
    assert (result["runs"], result["failed"]) == (2, 1)
    network, forest, refused = rows["scratch_unet"], rows["random-forest"], rows["tf_efficientnet_lite0"]
    assert network["state"] == forest["state"] == DONE, (network, forest)
    assert refused["state"] == "BANDS_UNKNOWN" and refused["message"] and not refused["unseen"]
    # The fields differ in one band by far more than the noise.
    assert float(forest["in_region"]) > 0.95 and float(forest["unseen"]) > 0.95
    assert 0 <= float(network["unseen"]) <= 1 and network["steps_done"] == "2"
    assert int(network["trainable"]) == int(network["total"]) > 100_000
    assert float(network["step_s"]) > 0 and float(network["epoch_s"]) >= float(network["step_s"])
    assert float(network["memory_mb"]) > float(network["start_mb"]) > 50 and float(network["training_mb"]) > 1
    assert not list(Path(made.out).parent.glob("*.geopeft"))


def test_the_table_is_the_same_whichever_run_ends_first(
    scene: dict[str, Any], pretended: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"backbones": ["galileo_nano"], "adapters": ["full"], "seeds": 3, "rates": [1, 3]}
    study.run(job(scene, tmp_path / "one.csv", **fields), Reporter())
    pretend = study.run_tasks

    def backwards(tasks: Any, *rest: Any) -> Iterator[Ended]:
        yield from reversed(list(pretend(tasks, *rest)))

    monkeypatch.setattr(study, "run_tasks", backwards)
    study.run(job(scene, tmp_path / "two.csv", processes=4, **fields), Reporter())
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert len(rows_of(tmp_path / "one.csv")) == 8


def test_what_is_done_is_not_run_again_and_what_failed_is(
    scene: dict[str, Any], pretended: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(scene, tmp_path / "s.csv", backbones=["galileo_nano"], adapters=["lora", "full"], seeds=2)
    pretend = study.run_tasks

    def killed(tasks: Any, *rest: Any) -> Iterator[Ended]:
        for number, ended in enumerate(pretend(tasks, *rest)):
            if number == 3:
                raise KeyboardInterrupt
            yield ended

    monkeypatch.setattr(study, "run_tasks", killed)
    with pytest.raises(KeyboardInterrupt):
        study.run(made, Reporter())
    kept = {row["key"]: row for row in rows_of(tmp_path / "s.csv")}
    assert [row["state"] for row in kept.values()] == [CRASHED, DONE, DONE]
    monkeypatch.setattr(study, "run_tasks", pretend)
    pretended.clear()
    result = study.run(made, Reporter())
    done = {key for key, row in kept.items() if row["state"] == DONE}
    assert not done & {task.key for task in pretended} and len(pretended) == 4
    assert (result["runs"], result["failed"]) == (4, 2)
    pretended.clear()
    study.run(job(scene, tmp_path / "s.csv", backbones=["galileo_nano"], adapters=["full"], seeds=2), Reporter())
    assert not pretended
    # A copy of the labels with other bytes, as QGIS makes one for every run.
    path = Path(scene["unseen_labels"].removesuffix(":labels"))
    meta, _, shapes, (classes,) = pyogrio.raw.read(path)
    pyogrio.raw.write(tmp_path / "copy.gpkg", shapes, [classes], ["class"], layer="labels", crs=meta["crs"],
                      geometry_type="Unknown", driver="GPKG", layer_options={"DESCRIPTION": "another"})  # fmt: skip
    copied = scene | {"unseen_labels": f"{tmp_path / 'copy.gpkg'}:labels"}
    study.run(job(copied, tmp_path / "s.csv", backbones=["galileo_nano"], adapters=["full"], seeds=2), Reporter())
    assert not pretended
    # Other steps are other runs, and the old ones stay in the table.
    study.run(job(scene, tmp_path / "s.csv", adapters=["full"], backbones=["galileo_nano"], steps=3), Reporter())
    assert [task.cell.steps for task in pretended] == [3]
    assert len(rows_of(tmp_path / "s.csv")) == 7


def test_the_rate_of_a_method_is_the_best_of_short_runs_on_places_that_do_not_judge(
    scene: dict[str, Any], pretended: list[Task], tmp_path: Path
) -> None:
    made = job(scene, tmp_path / "s.csv", rates=[0.3, 3, 1], seeds=2, search_steps=1, fractions=[0.5, 1])
    study.run(made, Reporter())
    searches = [task for task in pretended if task.searches]
    assert [(t.cell.rate, t.cell.seed, t.cell.steps, t.cell.fraction) for t in searches] == [
        (0.3, 0, 1, 1.0), (1.0, 0, 1, 1.0), (3.0, 0, 1, 1.0),
    ]  # fmt: skip
    assert all(not task.scored for task in searches)
    networks = [task for task in pretended if not task.searches and task.fit.backbone != "random-forest"]
    assert {task.fit.rate for task in networks} == {3.0} and len(networks) == 4
    assert {task.fit.rate for task in pretended if task.fit.backbone == "random-forest"} == {1.0}
    for task in networks:
        layers = {task.fit.labels, task.fit.validation_labels, task.scored["in_region"].labels}
        assert len(layers) == 3 and task.scored["in_region"].part == ""
        assert task.scored["unseen"].labels == made.unseen_labels


def test_an_adapter_that_does_not_fit_is_a_row_that_names_those_that_do(
    scene: dict[str, Any], pretended: list[Task], tmp_path: Path
) -> None:
    result = study.run(job(scene, tmp_path / "s.csv", adapters=["frozen", "full"], baselines=[]), Reporter())
    row = next(row for row in rows_of(tmp_path / "s.csv") if row["adapter"] == "frozen")
    assert row["state"] == "ADAPTER_UNSUITABLE" and "full" in row["message"]
    assert (result["runs"], result["failed"], len(pretended)) == (1, 1, 1)


def test_the_page_says_what_the_table_says_and_loads_nothing(
    scene: dict[str, Any], pretended: list[Task], tmp_path: Path
) -> None:
    made = job(scene, tmp_path / "s.csv", backbones=["galileo_nano"], adapters=["lora", "full", "frozen"], seeds=3,
               fractions=[0.25, 1])  # fmt: skip
    study.run(made, Reporter())
    page = html.unescape((tmp_path / "s.html").read_text(encoding="utf-8"))
    found = [
        float(row["unseen"])
        for row in rows_of(tmp_path / "s.csv")
        if row["adapter"] == "full" and row["fraction"] == "1" and row["state"] == DONE
    ]
    assert f"{100 * np.mean(found):.1f} ± {100 * np.std(found, ddof=1):.1f}" in page
    for value in found:
        assert f"<small>{100 * value:.1f}</small>" in page
    assert "galileo_nano · lora · unet" in page and page.count(CRASHED) >= 6
    assert page.count("<svg") == 3 and "prefers-color-scheme:dark" in page
    assert not re.search(r"(src|href)=\"(?!https://arxiv.org/)", page) and "<script" not in page
    assert str(tmp_path) not in page


def test_a_table_that_is_none_of_a_study_is_left_alone(scene: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "s.csv"
    other.write_text("name,value\na,1\n")
    with pytest.raises(GeopeftError) as caught:
        study.run(job(scene, other), Reporter())
    assert caught.value.code == "STUDY_TABLE" and other.read_text() == "name,value\na,1\n"


def test_a_study_of_nothing_or_of_names_that_are_not_known_is_refused(scene: dict[str, Any], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"backbones": [], "baselines": []}, "STUDY_EMPTY"),
        ({"backbones": ["galileo_nanno"]}, "NAME_UNKNOWN"),
        ({"adapters": ["loora"]}, "NAME_UNKNOWN"),
        ({"decoders": ["u"]}, "NAME_UNKNOWN"),
        ({"backbones": ["random-forest"]}, "JOB_INVALID"),
    ]
    for fields, code in cases:
        with pytest.raises(GeopeftError) as caught:
            study.run(job(scene, tmp_path / "s.csv", **fields), Reporter())
        assert caught.value.code == code, fields


def test_labels_in_one_spot_cannot_be_held_out(scene: dict[str, Any], make_labels: MakeLabels, tmp_path: Path) -> None:
    corner = [shapely.box(ORIGIN.c + x, ORIGIN.f - 100, ORIGIN.c + x + 50, ORIGIN.f - 50) for x in (50, 150, 250, 350)]
    spot = make_labels(corner, ["field", "wood"] * 2, "spot.gpkg")
    with pytest.raises(GeopeftError) as caught:
        study.run(job(scene | {"labels": f"{spot}:labels"}, tmp_path / "s.csv"), Reporter())
    assert caught.value.code == "STUDY_FEW_PLACES"


def test_a_table_keeps_every_figure(tmp_path: Path) -> None:
    cell = Cell("run", Method("galileo_nano", "lora", "unet", metadata=True), 0.1, 3, 0.3, 40)
    fields = {"state": DONE, "message": 'a "quoted", sentence\nof two lines', "unseen": 0.12345, "step_s": 0.5,
              "batch": 8, "gpu_mb": None}  # fmt: skip
    row = table.row_of(cell, "abc", fields, 20)
    table.write(tmp_path / "t.csv", [row])
    assert table.read(tmp_path / "t.csv") == {"abc": row}
    assert row["epoch_s"] == 0.5 * 20 / 8 and row["metadata"] == "on"
