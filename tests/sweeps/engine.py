"""Engines that hang, lie, crash and shout, and the real one, canceled at random moments: they end, nothing is left."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from geopeft_qgis.engine_process import EngineCanceled, EngineError, run
from tests.tally import Count
from tests.trials import FIT, Bench

ROOT = Path(__file__).resolve().parents[2]
COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 100
MODES = ("ok", "fail", "crash", "crash_after", "missing", "noise", "protocol", "polite", "hang", "orphan")
# From the cancel on: the engine's own three seconds, two for a signal, and what a busy machine takes.
LIMIT_S = 9.0
# What is promised: so long after a run, nothing of it is left.
LEFT_S = 5.0


def one(command: list[str], job: dict[str, object], folder: Path, cancel_s: float, found: Count, name: str) -> None:
    """A run that is canceled after so many seconds, if it still runs then."""
    began = time.monotonic()
    ended = "done"
    environment = {"PATH": os.environ["PATH"], "GEOPEFT_FAKE_PAUSE_S": "0.02", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": str(ROOT / "engine"), "GEOPEFT_OFFLINE": "1"}  # fmt: skip
    wrong = []
    try:
        run(command, job, folder, lambda event: None, lambda: time.monotonic() - began > cancel_s, environment)
    except EngineCanceled:
        ended = "canceled"
    except EngineError as error:
        ended = error.code
        if not error.message or not error.hint or "Traceback" in error.message:
            wrong.append(f"no sentence for a user: {error}")
    took = time.monotonic() - began
    if took - cancel_s > LIMIT_S:
        wrong.append(f"it ended {took - cancel_s:.0f} s after the cancel")
    out = Path(str(job["out"]))
    if out.exists() and ended not in ("done", "ENGINE_CRASHED"):
        wrong.append(f"{out.name} is there")
    deadline = time.monotonic() + LEFT_S
    while any(map(_runs, _ids(folder))) and time.monotonic() < deadline:
        time.sleep(0.05)
    wrong += [f"process {pid} is left" for pid in _ids(folder) if _runs(pid)]
    found.add(f"{name}: {ended}", wrong)


def _ids(folder: Path) -> list[str]:
    return [path.read_text() for path in (folder / "pid", folder / "child") if path.exists()]


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
    found = Count()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(COUNT):
            mode = MODES[number % len(MODES)]
            folder = Path(scratch) / str(number)
            folder.mkdir()
            command = [sys.executable, "-I", "-u", str(ROOT / "tests" / "fake_engine.py"), mode]
            job: dict[str, object] = {
                "job": "fit",
                "rasters": ["a.tif"],
                "labels": "l",
                "out": str(folder / "m.geopeft"),
            }
            one(command, job, folder / "run", float(rng.uniform(0, 2)), found, mode)
        (Path(scratch) / "real").mkdir()
        bench = Bench(Path(scratch) / "real")
        for number in range(max(COUNT // 5, 1)):
            folder = Path(scratch) / f"real {number}"
            folder.mkdir()
            job = {**bench.jobs["fit"], **FIT, "steps": 400, "out": str(folder / "m.geopeft"), "json_file": ""}
            one([sys.executable, "-m", "geopeft"], job, folder / "run", float(rng.uniform(0, 9)), found, "the real one")
    found.tell()


if __name__ == "__main__":
    main()
