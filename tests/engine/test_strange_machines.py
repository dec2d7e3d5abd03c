"""Jobs on machines that are set up in odd ways, and label files that other programs have their hands on."""

# ruff: noqa: F811, fixtures of another test file
from __future__ import annotations

import _thread
import io
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from geopeft import __main__, probe
from geopeft.data.labels import read_labels
from geopeft.data.raster import describe
from geopeft.errors import LabelError
from geopeft.events import TERMINAL, Reporter
from geopeft.job import parse
from test_predict import NAMES, VALUES, model  # noqa: F401

MakeRaster = Callable[..., Path]
MakeLabels = Callable[..., Path]
BOXES = [shapely.box(300_100, 5_799_500, 300_300, 5_799_800), shapely.box(300_500, 5_799_500, 300_700, 5_799_800)]


def map_in(folder: Path, model: Path, raster: Path, environment: dict[str, str], **options: Any) -> dict[str, Any]:
    """The last event of a predict job in a process of its own."""
    job = {"job": "predict", "model": str(model), "rasters": [str(raster)], "out": str(folder / "map.tif"),
           "device": "cpu"}  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    python_path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", "geopeft", "run", str(folder / "job.json")],
        env={"PYTHONPATH": python_path, "GEOPEFT_OFFLINE": "1", **environment}, capture_output=True, **options,
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (last,) = [event for event in events if event["event"] in TERMINAL]
    return dict(last, exit=done.returncode)


@pytest.mark.fault("P22")
def test_a_machine_without_a_home_in_another_language_maps_as_any(
    tmp_path: Path,
    model: Path,
    make_raster: MakeRaster,
) -> None:
    raster = make_raster(VALUES[:, :70, :70], "ä.tif", names=NAMES)
    for environment in ({}, {"LC_ALL": "tr_TR.UTF-8", "LANG": "de_DE.UTF-8", "HOME": "/nowhere", "TZ": "Asia/Kolkata"}):
        last = map_in(tmp_path, model, raster, environment)
        assert last["event"] == "completed", last


@pytest.mark.fault("P23")
def test_few_open_files_are_enough(tmp_path: Path, model: Path, make_raster: MakeRaster) -> None:
    raster = make_raster(VALUES[:, :70, :70], "a.tif", names=NAMES)
    few: Callable[[], None] = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))  # noqa: E731
    assert map_in(tmp_path, model, raster, {}, preexec_fn=few)["event"] == "completed"


@pytest.mark.fault("P15")
def test_a_machine_that_sleeps_goes_on_afterwards(tmp_path: Path, model: Path, make_raster: MakeRaster) -> None:
    raster = make_raster(VALUES, "a.tif", names=NAMES)
    job = {"job": "predict", "model": str(model), "rasters": [str(raster)], "out": str(tmp_path / "map.tif")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "geopeft", "run", str(tmp_path / "job.json")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    assert b'"completed"' in process.stdout.read()
    process.stdout.close()
    assert process.wait() == 0


@pytest.mark.fault("L29")
def test_labels_that_another_program_is_writing_are_read_or_refused_and_never_touched(
    tmp_path: Path, make_raster: MakeRaster, make_labels: MakeLabels
) -> None:
    info = describe(str(make_raster(VALUES, "a.tif")))
    path = make_labels(BOXES, ["a", "b"])
    before = path.read_bytes()
    with sqlite3.connect(path) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        try:
            read_labels(str(path), "class", [info], reporter=Reporter())
        except LabelError as error:
            assert error.code == "LABELS_OPEN" and error.hint
        holder.rollback()
    holder.close()
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "labels.gpkg"]


@pytest.mark.fault("L30")
@pytest.mark.parametrize(("lost", "code"), [(".prj", "LABELS_NO_CRS"), (".dbf", "LABELS_FIELD"), (".shx", "")])
def test_a_shapefile_that_lost_a_part_is_told_or_still_read(
    tmp_path: Path, make_raster: MakeRaster, make_labels: MakeLabels, lost: str, code: str
) -> None:
    info = describe(str(make_raster(VALUES, "a.tif")))
    make_labels(BOXES, ["a", "b"], name="labels.shp", geometry_type="Polygon")
    (tmp_path / "labels").with_suffix(lost).unlink()
    there = {p.name for p in tmp_path.iterdir()}
    try:
        read_labels(str(tmp_path / "labels.shp"), "class", [info], reporter=Reporter())
    except LabelError as error:
        assert error.code in (code, "LABELS_OPEN", "LABELS_EMPTY") and error.hint, error.code
    else:
        assert not code
    assert {p.name for p in tmp_path.iterdir()} == there


@pytest.mark.fault("L33")
def test_labels_over_nothing_but_nodata_do_not_teach(
    tmp_path: Path, make_raster: MakeRaster, make_labels: MakeLabels
) -> None:
    from geopeft import fit
    from geopeft.job import parse

    values = VALUES.copy()
    values[:, :, :80] = 0
    raster = make_raster(values, "a.tif", names=NAMES, nodata=0)
    job = {"job": "fit", "rasters": [str(raster)], "labels": str(make_labels(BOXES, ["a", "b"])), "device": "cpu",
           "backbone": "scratch_unet", "adapter": "full", "steps": 1, "out": str(tmp_path / "m.geopeft")}  # fmt: skip
    with pytest.raises(LabelError) as caught:
        fit.run(parse(job), Reporter())  # type: ignore[arg-type]
    assert caught.value.code == "LABELS_EMPTY" and "valid pixel" in caught.value.message, caught.value.message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "labels.gpkg"]


@pytest.mark.fault("L18")
def test_any_text_is_a_class_and_the_order_is_always_the_same(
    tmp_path: Path, make_raster: MakeRaster, make_labels: MakeLabels
) -> None:
    info = describe(str(make_raster(VALUES, "a.tif")))
    names = ["Wald", "wald", "Wald ", "日本", "x" * 10_000, "7", "'; DROP TABLE", "<b>", "é", "e\u0301"]
    boxes = [shapely.box(300_000 + 100 * i, 5_799_500, 300_050 + 100 * i, 5_799_800) for i in range(len(names))]
    found = []
    for turn in (1, -1):
        path = make_labels(boxes[::turn], names[::turn], name=f"{turn}.gpkg")
        found.append([c.value for c in read_labels(str(path), "class", [info], reporter=Reporter()).classes])
    assert found[0] == found[1] and set(found[0]) == {name.strip() for name in names}


@pytest.mark.fault("R23")
def test_vrts_in_each_other_come_to_an_end(tmp_path: Path, make_raster: MakeRaster) -> None:
    import rasterio.shutil
    from geopeft.errors import GeopeftError

    last = make_raster(VALUES[:1, :20, :20], "a.tif")
    rasterio.shutil.copy(last, tmp_path / "0.vrt", driver="VRT")
    text = (tmp_path / "0.vrt").read_text()
    for number in range(1, 300):
        (tmp_path / f"{number}.vrt").write_text(text.replace("a.tif", f"{number - 1}.vrt"))
    with pytest.raises(GeopeftError) as caught:
        describe(str(tmp_path / "299.vrt"))
    assert caught.value.code in ("RASTER_READ", "RASTER_OPEN", "RASTER_SOURCE")


@pytest.mark.fault("R09")
def test_a_raster_of_many_bands_is_read_by_the_bands_that_are_asked_for(make_raster: MakeRaster) -> None:
    from geopeft.data.raster import open_raster
    from rasterio.windows import Window

    info = describe(str(make_raster(np.ones((400, 16, 16), np.float32), "many.tif")))
    with open_raster(info, [7, 399]) as reader:
        values, _ = reader.read(Window(0, 0, 16, 16))
    assert values.shape == (2, 16, 16) and len(info.bands) == 400


class Panic(BaseException):
    """What a library written in Rust raises when it gives up: no Exception."""


@pytest.mark.parametrize(
    ("error", "code"), [(Panic("index out of range"), "INTERNAL"), (MemoryError(), "OUT_OF_MEMORY")]
)
def test_whatever_a_library_raises_ends_the_job_with_one_event(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: str
) -> None:
    def fail(*_: Any) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(probe, "run", fail)
    said = io.StringIO()
    assert __main__.execute(parse({"job": "probe"}), Reporter(said)) == __main__.EXIT_FAILED
    (last,) = [json.loads(line) for line in said.getvalue().splitlines()]
    assert (last["event"], last["code"]) == ("failed", code)


@pytest.mark.fault("P19")
def test_a_machine_without_memory_for_a_thread_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    said = io.StringIO()
    assert __main__._run_file(tmp_path / "job.json", said) == __main__.EXIT_FAILED
    (last,) = [json.loads(line) for line in said.getvalue().splitlines()]
    assert (last["event"], last["code"]) == ("failed", "OUT_OF_MEMORY")
