"""The sweeps of `build.py faults` in short: what is left after a kill, a full disk, a failed write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("geopeft", reason="the sweeps run the engine")
ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sweeps fork")


def sweep(name: str, count: int, *more: str) -> dict[str, int]:
    """Runs a sweep of so few cases; what came of them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GEOPEFT_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "engine"), str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "tests" / "sweeps" / f"{name}.py"), str(count), *more]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == 0, done.stderr[-3000:]
    outcomes: dict[str, int] = found["outcomes"]
    if not found["cases"]:
        pytest.skip(next(iter(outcomes)))
    return outcomes


@pytest.mark.fault("W08", "W10", "P01", "P20", "M45", "T03")
def test_a_kill_at_any_moment_leaves_whole_files_and_a_training_that_goes_on() -> None:
    outcomes = sweep("kill", 10)
    assert any("ended by signal 9" in words for words in outcomes)
    for name in ("fit ", "map "):
        assert any(words.startswith(name) and "to the same bytes" in words for words in outcomes)


@pytest.mark.fault("W01", "W02", "W19", "T10")
def test_a_disk_that_gets_full_at_any_moment_is_told_and_leaves_nothing_behind() -> None:
    outcomes = sweep("disk", 6)
    assert any("DISK_FULL" in words for words in outcomes)


@pytest.mark.fault("W03", "W19")
def test_no_failed_write_goes_unnoticed() -> None:
    outcomes = sweep("io", 8)
    assert any("OUTPUT_FAILED" in words or "DISK_FULL" in words for words in outcomes)


@pytest.mark.fault("P02", "P03", "P09", "P10")
def test_engines_that_hang_and_lie_end_in_time_and_leave_nothing() -> None:
    outcomes = sweep("engine", 10)
    assert outcomes["hang: canceled"] == outcomes["orphan: canceled"] == 1


@pytest.mark.fault("E02")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_an_installation_killed_at_any_moment_leaves_a_whole_environment_or_none() -> None:
    outcomes = sweep("install", 6)
    assert outcomes["first installation again: whole"] == outcomes["repair again: whole"] == 2


@pytest.mark.fault("P19")
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does")
def test_too_little_memory_is_told_and_nothing_hangs() -> None:
    outcomes = sweep("memory", 5, "predict")
    assert outcomes["predict: OUT_OF_MEMORY"] >= 1 and not any("hung" in words for words in outcomes)
