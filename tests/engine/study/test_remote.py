"""The runs of a study on a cluster: each is a row as on one machine, and none outlives the study."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest
from geopeft.cluster.cluster import open_cluster
from geopeft.errors import Canceled
from geopeft.events import Reporter
from geopeft.job import EvaluateJob, FitJob, StudyJob
from geopeft.study import remote, study
from geopeft.study.grid import Cell, Method
from geopeft.study.runs import CRASHED, Ended, Task


@pytest.fixture(scope="module")
def near() -> Iterator[str]:
    """A cluster whose workers are threads of this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0"
    ) as one:
        yield one.scheduler_address


def task(folder: Path, seed: int = 1) -> Task:
    fit = FitJob(rasters=(str(folder / "none.tif"),), labels="l", out=str(folder / f"{seed}.geopeft"))
    score = EvaluateJob(model="m", rasters=("a.tif",), labels="l")
    cell = Cell("run", Method("scratch_unet", "full", "unet"), 1.0, seed, 1.0, 1)
    return Task(cell, str(seed), fit, {"unseen": score}, False)


def test_a_run_on_a_worker_gives_the_fields_of_its_row(near: str, tmp_path: Path) -> None:
    """The real process, with a job that it refuses."""
    with open_cluster(near, "cpu", Reporter()) as cluster:
        (ended,) = remote.run_tasks_on(cluster, [task(tmp_path)], tmp_path, lambda: None)
    assert ended.task.cell.seed == 1
    assert ended.fields["state"] == "RASTER_MISSING" and "none.tif" in ended.fields["message"]


def test_a_process_that_dies_is_a_row_and_so_is_a_folder_that_a_worker_does_not_see(
    near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", _program(tmp_path, "exit 7"))
    with open_cluster(near, "cpu", Reporter()) as cluster:
        tasks = [task(tmp_path, seed) for seed in range(4)]
        ended = list(remote.run_tasks_on(cluster, tasks, tmp_path, lambda: None))
        (unseen,) = remote.run_tasks_on(cluster, tasks[:1], tmp_path / "none", lambda: None)
    assert sorted(one.task.cell.seed for one in ended) == [0, 1, 2, 3]
    assert {one.fields["state"] for one in ended} == {CRASHED} and "exit code 7" in ended[0].fields["message"]
    assert unseen.fields["state"] == "CLUSTER_FILES"


def test_a_cancel_ends_the_processes_of_the_runs(near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", _program(tmp_path, f"echo $$ >> {tmp_path}/pids; exec sleep 60"))

    def cancel() -> None:
        if (tmp_path / "pids").exists():
            raise Canceled

    with open_cluster(near, "cpu", Reporter()) as cluster, pytest.raises(Canceled):
        list(remote.run_tasks_on(cluster, [task(tmp_path)], folder, cancel))
    folder.rmdir()
    pid, until = (tmp_path / "pids").read_text().split()[0], time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def _program(folder: Path, lines: str) -> str:
    if sys.platform != "linux":
        pytest.skip("a shell, and /proc")
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


def test_a_study_on_a_cluster_names_its_files_for_all_machines_and_leaves_none(
    near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tif").touch()
    monkeypatch.chdir(tmp_path)
    job = StudyJob(rasters=("a.tif",), labels="a.tif:x", unseen_rasters=("/vsicurl/b",), unseen_labels="b", out="t.csv",
                   scheduler=near)  # fmt: skip
    whole = study._everywhere(job)
    assert (whole.rasters, whole.labels) == ((f"{tmp_path}/a.tif",), f"{tmp_path}/a.tif:x")
    assert (whole.unseen_rasters, whole.unseen_labels, whole.area) == (("/vsicurl/b",), "b", "")
    given: list[Any] = []

    def run_tasks_on(cluster: Any, tasks: Any, folder: Path, check: Any) -> Iterator[Ended]:
        given.extend([cluster.threads, list(tasks), folder])
        yield from ()

    monkeypatch.setattr(study, "run_tasks_on", run_tasks_on)
    with study._place(job, Path("t.csv"), Reporter()) as (folder, run_all):
        assert folder.is_absolute() and folder.is_dir() and folder.parent == tmp_path
        list(run_all(iter([task(tmp_path)])))
        assert given[0] == 2 and len(given[1]) == 1 and given[2] == folder
    assert not folder.exists()
