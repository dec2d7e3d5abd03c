"""Rasters mapped on a cluster: the same bytes as in one process, whatever dies, and nothing is left behind."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_PX", 96 * parts.BLOCK_PX)
    monkeypatch.setattr(sharing, "FEWEST_ROWS", 2)


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


@pytest.mark.usefixtures("small_parts")
def test_one_large_raster_is_shared_in_runs_of_parts_and_each_part_is_read_once(
    model: Path,  # noqa: F811
    near: Any,
    make_raster: MakeRaster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raster, asked = make_raster(HIGH, names=NAMES), list[str]()
    fields: dict[str, Any] = {"confidence": True, "polygons": True, "unknown_below": 55}
    run(model, [raster], tmp_path / "alone", **fields)
    written, read, mapped = list[int](), list[int](), list[int]()
    _note(monkeypatch, written, read, mapped)
    heard = Heard()
    monkeypatch.chdir(tmp_path)
    real = sharing._Sharing.took

    def took(self: Any, answer: Any) -> None:
        asked.append(answer.order["task"])
        real(self, answer)

    monkeypatch.setattr(sharing._Sharing, "took", took)
    outputs = run(model, [Path(raster.name)], Path("shared"), heard, scheduler=near.scheduler_address, **fields)
    assert sorted(asked)[0] == "map" and asked[-1] == "map" and len(asked) >= 4
    assert sorted(written) == read == list(range(5)) and mapped == []
    own, other = files_of(tmp_path / "shared"), files_of(tmp_path / "alone")
    # A GeoPackage holds the hour at which it was written.
    names = [name for name in own if not name.endswith(".gpkg")]
    assert own.keys() == other.keys() and len(names) == 2
    assert [own[name] for name in names] == [other[name] for name in names]
    (entry,) = outputs["rasters"]
    assert (entry["raster"], entry["class_raster"]) == (raster.name, "shared/raster_map.tif")
    assert not [m for m in heard.messages if "mapped before" in m]
    assert len(heard.messages) == len(set(heard.messages))


def _note(monkeypatch: pytest.MonkeyPatch, written: list[int], read: list[int], mapped: list[int]) -> None:
    """Notes the numbers of parts that are written, and of those that are read for the map or mapped for it."""
    store = parts.PartStore
    real_writing, real_rows, real_kept = store.writing, store.rows, sharing.map_one.__globals__["kept"]

    def writing(self: Any, part: Any) -> Any:
        written.append(part.number)
        return real_writing(self, part)

    def rows(self: Any, part: Any) -> Any:
        read.append(part.number)
        return real_rows(self, part)

    def kept(store: Any, run: Any, *rest: Any) -> Any:
        mapped.extend(part.number for part in run)
        return real_kept(store, run, *rest)

    monkeypatch.setattr(store, "writing", writing)
    monkeypatch.setattr(store, "rows", rows)
    monkeypatch.setitem(sharing.map_one.__globals__, "kept", kept)


@pytest.mark.usefixtures("small_parts")
def test_a_canceled_job_leaves_no_map_and_no_folder_of_tasks_and_goes_on(
    model: Path,  # noqa: F811
    near: Any,
    make_raster: MakeRaster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raster, out = make_raster(HIGH, names=NAMES), tmp_path / "maps"
    job = tmp_path / "job"
    job.mkdir()
    real = sharing._Sharing.took

    def took(self: Any, answer: Any) -> None:
        real(self, answer)
        (job / "cancel").touch()

    monkeypatch.setattr(sharing._Sharing, "took", took)
    with pytest.raises(Canceled):
        run(model, [raster], out, Heard(job), scheduler=near.scheduler_address)
    assert not [path for path in out.iterdir() if path.suffix == ".tif" or ".tasks" in path.name]
    kept = list(out.rglob("*.zip"))
    assert kept
    monkeypatch.setattr(sharing._Sharing, "took", real)
    written, read, mapped = list[int](), list[int](), list[int]()
    _note(monkeypatch, written, read, mapped)
    run(model, [raster], out, scheduler=near.scheduler_address)
    assert len(written) <= 5 - len(kept) and read == list(range(5))
    run(model, [raster], tmp_path / "alone")
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


@pytest.mark.usefixtures("small_parts")
def test_a_raster_whose_run_fails_is_left_out_and_the_others_are_mapped(
    model: Path,  # noqa: F811
    near: Any,
    make_raster: MakeRaster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rasters = [make_raster(HIGH, "a.tif", names=NAMES), make_raster(VALUES, "b.tif", names=NAMES)]
    real = sharing.map_parts

    def fails(runtime: Any, order: Any, *rest: Any) -> None:
        if rest[1][0].number == 0:
            raise GeopeftError("Broken.", "Mend it.", "RASTER_READ")
        real(runtime, order, *rest)

    monkeypatch.setattr(sharing, "map_parts", fails)
    outputs = run(model, rasters, tmp_path / "maps", scheduler=near.scheduler_address)
    assert [entry["raster"] for entry in outputs["rasters"]] == [str(rasters[1])]
    (failure,) = outputs["failures"]
    assert (failure["raster"], failure["code"]) == (str(rasters[0]), "RASTER_READ")
    assert not [path for path in (tmp_path / "maps").iterdir() if path.name.startswith("a")]
