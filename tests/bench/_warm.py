"""A worker process of the engine that does one job after another, and what each has taken of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _sets  # type: ignore[import-not-found]
from geopeft.events import TERMINAL


@dataclass(frozen=True)
class Taken:
    """What a job has taken.

    Args:
        seconds: from asking for it to its last event.
        processor_s: of all threads of the worker.
        peak_mb, above_mb: the worker's highest resident memory meanwhile, and what of it was not there before, in MiB.
        outputs: of the job.
    """

    seconds: float
    processor_s: float
    peak_mb: float
    above_mb: float
    outputs: Mapping[str, Any]


class Warm:
    """A running worker."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self._job = folder / "job.json"

    def run(self, job: Mapping[str, Any]) -> Taken:
        """Does a job; EngineFailed where it fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._job.write_text(json.dumps(job), encoding="utf-8")
        before = self._memory_mb("VmRSS")
        self._forget_peak()
        used, asked = self._processor_s(), time.monotonic()
        self._process.stdin.write(f"{self._job}\n".encode())
        self._process.stdin.flush()
        while (event := self._event())["event"] not in TERMINAL:
            pass
        seconds, used, peak = time.monotonic() - asked, self._processor_s() - used, self._memory_mb("VmHWM")
        if event["event"] != "completed":
            raise _sets.EngineFailed(str(event))
        return Taken(seconds, used, peak, max(peak - before, 0.0), event["outputs"])

    def _event(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise _sets.EngineFailed("the worker has ended")
        event: dict[str, Any] = json.loads(line)
        return event

    def _processor_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _memory_mb(self, what: str) -> float:
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))

    def _forget_peak(self) -> None:
        with suppress(OSError):
            Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")


@contextmanager
def warm_engine(folder: Path, threads: int) -> Iterator[Warm]:
    """A worker with everything imported; Linux.

    Args:
        folder: for its job files.
        threads: of the processor.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "geopeft", "worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        try:
            yield Warm(process, folder)
        finally:
            process.stdin.close()
