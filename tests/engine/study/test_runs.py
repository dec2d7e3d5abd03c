"""Runs in processes of their own: one that dies stops nothing, and a cancel ends them all."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from geopeft.job import FitJob
from geopeft.study import runs
from geopeft.study.grid import Cell, Method
from geopeft.study.runs import CRASHED, DONE, Task


def test_a_process_learns_of_its_gpu_before_torch_is_imported() -> None:
    code = "import sys, geopeft.study.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_process_that_dies_is_a_row_and_the_next_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """os._exit stands for the system, which ends a process without a word."""
    monkeypatch.setattr(runs, "_work", _dies_or_answers)
    tasks = [_task(seed, tmp_path) for seed in (1, 2)]
    ended = {one.task.cell.seed: one.fields for one in runs.run_tasks(tasks, 2, 0, lambda: None)}
    assert ended[1]["state"] == CRASHED and "exit code 9" in ended[1]["message"]
    assert ended[2] == {"state": DONE, "message": "", "seconds": 2.0}


def test_a_cancel_ends_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_work", _sleeps)
    made: list[Any] = []
    start = runs._start

    def noted(*values: Any) -> Any:
        made.append(start(*values))
        return made[-1]

    monkeypatch.setattr(runs, "_start", noted)

    def cancel() -> None:
        if len(made) == 1 and made[0].process.is_alive():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(runs.run_tasks([_task(1, tmp_path)], 1, 0, cancel))
    assert not made[0].process.is_alive() and made[0].process.exitcode == -9


def _task(seed: int, folder: Path) -> Task:
    fit = FitJob(rasters=("a.tif",), labels="l", out=str(folder / "m.geopeft"))
    return Task(Cell("run", Method("scratch_unet", "full", "unet"), 1.0, seed, 1.0, 1), str(seed), fit, {}, False)


def _dies_or_answers(task: Task, answers: Any, environment: dict[str, str]) -> None:
    if task.cell.seed == 1:
        os._exit(9)
    answers.send_bytes(json.dumps({"state": DONE, "message": "", "seconds": float(task.cell.seed)}).encode())


def _sleeps(task: Task, answers: Any, environment: dict[str, str]) -> None:
    time.sleep(60)
