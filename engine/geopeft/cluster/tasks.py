"""Tasks that a cluster gives to its workers, seen from the worker: what one is given, tells, and where it ends.

Nothing here needs Dask. An order's folder, which all machines see, is how a task tells its progress and is ended.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from geopeft import __version__
from geopeft.errors import Canceled, GeopeftError, JobError, unknown_error
from geopeft.events import Level, Reporter

LOOK_S, TELL_S = 0.2, 1.0
# What a worker has of a job, in an error's sentence.
PART = "part of the work"
INSTALL = 'Run the job in an environment of your own, made with: pip install "./engine[cluster]".'

Order = Mapping[str, Any]
Work = Callable[[Order, Reporter], Any]


def do(work: Work, order: Order, version: str) -> dict[str, Any]:
    """On a worker: one order. Errors are told as plain data: not every library's survive being pickled.

    A worker that came while the job ran has not been asked for its version yet.
    """
    told: dict[str, Any] = {"value": None, "said": (), "canceled": False, "error": None, "trace": ""}
    folder = Path(order["folder"])
    reporter = TaskReporter(folder, order["task"])
    try:
        if version != __version__:
            raise other_version(platform.node(), f"has GeoPEFT {__version__}", version)
        seen_from_here(folder, "the output's folder")
        told["value"] = work(order, reporter)
    except Canceled:
        told["canceled"] = True
    except Exception as error:
        known = error if isinstance(error, GeopeftError) else unknown_error(error, PART)
        told["error"] = (known.message, known.hint, known.code)
        told["trace"] = traceback.format_exc() if known is not error else ""
    return {**told, "said": tuple(reporter.said)}


def other_version(worker: str, what: str, own: str) -> JobError:
    """An error for a worker that would compute with something else; `what` it has, `own` this process."""
    return JobError(
        f"The worker at {worker} {what}, this process has {own}.",
        f"Install the same engine there, then start the worker again. {INSTALL}",
        "CLUSTER_VERSION",
    )


class TaskReporter(Reporter):
    """On a worker: keeps what is said, and tells the progress, and is told of the end, by way of the order's folder."""

    def __init__(self, folder: Path, task: str) -> None:
        super().__init__()
        self.said: list[tuple[str, Level]] = []
        self._folder, self._progress = folder, folder / task
        self._looked = self._told = 0.0

    def check_canceled(self) -> None:
        now = time.monotonic()
        if now - self._looked > LOOK_S:
            self._looked = now
            if not self._folder.is_dir():
                raise Canceled

    def message(self, text: str, level: Level = "info") -> None:
        self.said.append((text, level))

    def progress(self, stage: str, current: int, total: int, at_most_s: float = math.inf) -> None:
        self.check_canceled()
        now = time.monotonic()
        if now - self._told > TELL_S:
            self._told = now
            # Nobody counts on it.
            with contextlib.suppress(OSError):
                self._progress.write_text(f"{stage} {current}", encoding="ascii", errors="replace")


def progress_of(order: Order, stage: str) -> int:
    """How far a task has come in a stage; 0 where that is not known."""
    try:
        told, _, current = (Path(order["folder"]) / order["task"]).read_text(encoding="ascii").rpartition(" ")
        return int(current) if told == stage else 0
    except (OSError, ValueError):
        return 0


def whole_path(spec: str) -> str:
    """FILE, or FILE:layer, by a path that means the same in every folder; what is no file stays as it is."""
    name, colon, layer = spec.rpartition(":")
    if os.path.exists(spec):
        return os.path.abspath(spec)
    return f"{os.path.abspath(name)}{colon}{layer}" if name and os.path.exists(name) else spec


def take_away(folder: Path) -> None:
    """Ends the tasks of the orders with this folder. It is renamed first: a task may be writing into it."""
    gone = folder.with_name(f"{folder.name}.gone")
    with contextlib.suppress(OSError):
        os.replace(folder, gone)
    for path in (gone, folder):
        shutil.rmtree(path, ignore_errors=True)


def seen_from_here(path: Path, what: str) -> None:
    """On a worker: JobError CLUSTER_FILES where a file or folder that the job names is not there."""
    if not path.exists():
        raise JobError(
            f"The worker on {platform.node()} does not see {what} {path}.",
            "All machines must see the same files under the same names: put model, rasters and output on a file "
            "system that they share.",
            "CLUSTER_FILES",
        )


_opened: dict[tuple[str, ...], Any] = {}
_opening = threading.Lock()


def once(key: tuple[str, ...], make: Callable[[], Any]) -> Any:
    """On a worker: what `make` gives, kept for the next task with the same key; only the last one is kept."""
    with _opening:
        if key not in _opened:
            _opened.clear()
            _opened[key] = make()
        return _opened[key]
