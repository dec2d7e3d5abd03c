"""Rasters mapped on a cluster: the same bytes as in one process, whatever dies, and nothing is left behind."""

import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import psutil
import pytest
from geopeft.errors import Canceled, GeopeftError
from geopeft.maps import parts, sharing
from test_predict import NAMES, VALUES, Heard, model, run  # noqa: F401

MakeRaster = Callable[..., Path]
# High enough for several rows of windows, and for several blocks of the written file.
HIGH = np.random.default_rng(1).integers(1, 3000, (2, 1100, 96)).astype(np.uint16)


@pytest.fixture(scope="module")
def near() -> Iterator[Any]:
    """A cluster whose workers are threads of this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0"
    ) as one:
        yield one


def wait_for_workers(near: Any) -> None:
    """Till no task is under way: one of a canceled job goes on to where it looks next."""
    end = time.monotonic() + 60
    while any(worker.active_threads for worker in near.workers.values()):
        assert time.monotonic() < end, "a task of the canceled job has not ended"
        time.sleep(0.01)


@pytest.fixture
def on_cluster(model: Path, near: Any) -> Callable[..., dict[str, Any]]:  # noqa: F811
    """Maps rasters on the cluster."""
    return functools.partial(run, model, scheduler=near.scheduler_address)


@pytest.fixture
def high(make_raster: MakeRaster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A raster of five parts."""
    monkeypatch.setattr(parts, "PART_PX", 96 * parts.BLOCK_PX)
    monkeypatch.setattr(sharing, "FEWEST_ROWS", 2)
    return make_raster(HIGH, "high.tif", names=NAMES)


@dataclass
class Noted:
    """Numbers of the parts that are written in this process, and of those that are read for the map or mapped for it;
    and the tasks whose answers have come, each followed by `on_answer`."""

    written: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    mapped: list[int] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    on_answer: Callable[[], object] = lambda: None

    def clear(self) -> None:
        for numbers in (self.written, self.read, self.mapped, self.answered):
            numbers.clear()


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    """What happens in a test."""
    found, store = Noted(), parts.PartStore
    real_writing, real_rows, real_kept = store.writing, store.rows, sharing.map_one.__globals__["kept"]
    real_took = sharing._Sharing.took

    def writing(self: Any, part: Any) -> Any:
        found.written.append(part.number)
        return real_writing(self, part)

    def rows(self: Any, part: Any) -> Any:
        found.read.append(part.number)
        return real_rows(self, part)

    def kept(store: Any, run: Any, *rest: Any) -> Any:
        found.mapped.extend(part.number for part in run)
        return real_kept(store, run, *rest)

    def took(self: Any, answer: Any) -> None:
        found.answered.append(answer.order["task"])
        real_took(self, answer)
        found.on_answer()

    monkeypatch.setattr(store, "writing", writing)
    monkeypatch.setattr(store, "rows", rows)
    monkeypatch.setattr(sharing._Sharing, "took", took)
    monkeypatch.setitem(sharing.map_one.__globals__, "kept", kept)
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    """What lies there, but for the sidecars, which hold the date."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if not path.name.endswith(".aux.xml")}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_worker_changes_no_byte_of_the_maps(model: Path, make_raster: MakeRaster, tmp_path: Path) -> None:  # noqa: F811
    rasters = [make_raster(np.roll(VALUES, n, 1), f"r{n}.tif", names=NAMES) for n in range(5)]
    (tmp_path / "broken.tif").write_bytes(b"no raster")
    rasters.insert(2, tmp_path / "broken.tif")

    class Killer(Heard):
        victim = 0

        def emit(self, event: str, **fields: Any) -> None:
            super().emit(event, **fields)
            if fields.get("stage") == "raster" and fields["step"] and not self.victim:
                found = psutil.Process().children(recursive=True)
                self.victim = next(p.pid for p in found if "spawn_main" in " ".join(p.cmdline()))
                os.kill(self.victim, signal.SIGKILL)

    alone, heard = run(model, rasters, tmp_path / "alone", confidence=True), Killer()
    shared = run(model, rasters, tmp_path / "shared", heard, confidence=True, scheduler="local:2")
    assert heard.victim and files_of(tmp_path / "shared") == files_of(tmp_path / "alone")
    assert [entry["raster"] for entry in shared["rasters"]] == [entry["raster"] for entry in alone["rasters"]]
    assert [f["code"] for f in shared["failures"]] == [f["code"] for f in alone["failures"]] == ["RASTER_OPEN"]
    for one, other in zip(shared["rasters"], alone["rasters"], strict=True):
        moved = {k: v.replace("/shared/", "/alone/") if isinstance(v, str) else v for k, v in one.items()}
        assert moved | {"seconds": 0} == other | {"seconds": 0}
    steps = [(e["current"], e["total"]) for e in heard.of("progress") if e["stage"] == "predict"]
    assert steps == sorted(steps) and len({total for _, total in steps}) == 1 and steps[-1][0] == steps[-1][1]
    assert [message for message in heard.messages if "shared out to 2 worker processes" in message]


def test_one_large_raster_is_shared_in_runs_of_parts_and_each_part_is_read_once(
    model: Path,  # noqa: F811
    on_cluster: Callable[..., dict[str, Any]],
    high: Path,
    noted: Noted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields: dict[str, Any] = {"confidence": True, "polygons": True, "unknown_below": 55}
    run(model, [high], tmp_path / "alone", **fields)
    noted.clear()
    heard = Heard()
    monkeypatch.chdir(tmp_path)
    outputs = on_cluster([Path(high.name)], Path("shared"), heard, **fields)
    asked = noted.answered
    assert sorted(asked)[0] == "map" and asked[-1] == "map" and len(asked) >= 4
    assert sorted(noted.written) == noted.read == list(range(5)) and noted.mapped == []
    own, other = files_of(tmp_path / "shared"), files_of(tmp_path / "alone")
    # A GeoPackage holds the hour at which it was written.
    names = [name for name in own if not name.endswith(".gpkg")]
    assert own.keys() == other.keys() and len(names) == 2
    assert [own[name] for name in names] == [other[name] for name in names]
    (entry,) = outputs["rasters"]
    assert (entry["raster"], entry["class_raster"]) == (high.name, "shared/high_map.tif")
    assert not [m for m in heard.messages if "mapped before" in m]
    assert len(heard.messages) == len(set(heard.messages))


def test_a_canceled_job_leaves_no_map_and_no_folder_of_tasks_and_goes_on(
    model: Path,  # noqa: F811
    near: Any,
    on_cluster: Callable[..., dict[str, Any]],
    high: Path,
    noted: Noted,
    tmp_path: Path,
) -> None:
    out, job = tmp_path / "maps", tmp_path / "job"
    job.mkdir()
    noted.on_answer = (job / "cancel").touch
    with pytest.raises(Canceled):
        on_cluster([high], out, Heard(job))
    wait_for_workers(near)
    assert not [path for path in out.iterdir() if path.suffix == ".tif" or ".tasks" in path.name]
    kept = list(out.rglob("*.zip"))
    assert kept
    noted.clear()
    on_cluster([high], out)
    assert len(noted.written) <= 5 - len(kept) and noted.read == list(range(5))
    run(model, [high], tmp_path / "alone")
    assert files_of(out) == files_of(tmp_path / "alone")


def test_files_that_a_worker_does_not_see_are_named(
    model: Path,  # noqa: F811
    near: Any,
    make_raster: MakeRaster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker of a machine that lacks a file is played by taking the file away from the task's order."""
    raster = make_raster(VALUES, names=NAMES)
    real = sharing.do

    def at(**other: str) -> Callable[..., Any]:
        def elsewhere(order: Any, reporter: Any) -> Any:
            job = {**order["job"], **{k: v for k, v in other.items() if k in order["job"]}}
            sha = {"GEOPEFT_MODEL_SHA256": other.get("sha", order["origin"]["GEOPEFT_MODEL_SHA256"])}
            found = {"raster": other.get("raster", order["raster"]), "origin": order["origin"] | sha}
            return real({**order, **found, "job": job}, reporter)

        return elsewhere

    for named, there in (
        ({"model": "/nowhere/m.geopeft", "device": "auto"}, "/nowhere/m.geopeft"),
        ({"raster": "/nowhere/r.tif"}, "/nowhere/r.tif"),
        ({"sha": "0" * 64}, str(model)),
    ):
        monkeypatch.setattr(sharing, "do", at(**named))
        with pytest.raises(GeopeftError) as caught:
            run(model, [raster], tmp_path / "maps", scheduler=near.scheduler_address)
        assert caught.value.code == "CLUSTER_FILES" and there in caught.value.message
        assert not [path for path in (tmp_path / "maps").iterdir() if path.suffix == ".tif"]


def test_a_raster_whose_run_fails_is_left_out_and_the_others_are_mapped(
    on_cluster: Callable[..., dict[str, Any]],
    high: Path,
    make_raster: MakeRaster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low = make_raster(VALUES, "low.tif", names=NAMES)
    real = sharing.map_parts

    def fails(runtime: Any, order: Any, *rest: Any) -> None:
        if rest[1][0].number == 0:
            raise GeopeftError("Broken.", "Mend it.", "RASTER_READ")
        real(runtime, order, *rest)

    monkeypatch.setattr(sharing, "map_parts", fails)
    outputs = on_cluster([high, low], tmp_path / "maps")
    assert [entry["raster"] for entry in outputs["rasters"]] == [str(low)]
    (failure,) = outputs["failures"]
    assert (failure["raster"], failure["code"]) == (str(high), "RASTER_READ")
    assert not [path for path in (tmp_path / "maps").iterdir() if path.name.startswith("high")]
