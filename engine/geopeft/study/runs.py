"""The runs of a study, each in a process of its own: what one takes of memory, or breaks, concerns no other.

torch is imported in these processes only. They end when this one does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from geopeft.cluster.cluster import environment_of
from geopeft.errors import GeopeftError, is_out_of_memory, out_of_memory
from geopeft.job import EvaluateJob, FitJob
from geopeft.study.grid import Cell
from geopeft.watched import end_with_parent

LOOK_S = 0.2
# Ends the name of a figure that is of the whole model, not of its network alone.
BLEND = "_blend"
DONE, CRASHED, UNKNOWN = "done", "ENGINE_CRASHED", "INTERNAL"


@dataclass(frozen=True)
class Task:
    """A run and the jobs that it is made of.

    Args:
        scored: figure of the table -> job that scores the model for it.
    """

    cell: Cell
    key: str
    fit: FitJob
    scored: dict[str, EvaluateJob]
    searches: bool


@dataclass(frozen=True)
class Ended:
    """A run that has ended: `fields` of its row, with `state` and `message`."""

    task: Task
    fields: dict[str, Any]


@dataclass(frozen=True)
class _Running:
    task: Task
    process: BaseProcess
    answers: connection.Connection
    slot: int


def run_tasks(tasks: Iterable[Task], processes: int, gpus: int, check_canceled: Callable[[], None]) -> Iterator[Ended]:
    """Runs tasks, `processes` at a time, and gives each as soon as it has ended.

    Args:
        gpus: how many there are to share out, each process seeing one; 0: they are not touched.
        check_canceled: raises to stop; all processes end then.
    """
    waiting, running = iter(tasks), list[_Running]()
    try:
        while True:
            free = sorted(set(range(processes)) - {one.slot for one in running})
            for slot, task in zip(free, waiting, strict=False):
                running.append(_start(task, slot, environment_of(slot, processes, gpus)))
            if not running:
                return
            check_canceled()
            ready = connection.wait([one.answers for one in running], LOOK_S)
            for one in [one for one in running if one.answers in ready]:
                running.remove(one)
                yield Ended(one.task, _answer(one))
    finally:
        for one in running:
            one.process.kill()
            one.process.join()
            one.answers.close()


def _start(task: Task, slot: int, environment: dict[str, str]) -> _Running:
    # A fork would copy locks that other threads hold, and its peak memory would begin at this process's own.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, sender, environment), daemon=True)
    process.start()
    # Only the child holds it then, so that its end is seen here.
    sender.close()
    return _Running(task, process, receiver, slot)


def _answer(one: _Running) -> dict[str, Any]:
    fields: dict[str, Any] | None = None
    with contextlib.suppress(EOFError, OSError):
        fields = json.loads(one.answers.recv_bytes())
    one.process.join()
    one.answers.close()
    return fields if fields is not None else did_not_answer(one.process.exitcode)


def did_not_answer(exit_code: int | None) -> dict[str, Any]:
    """The fields of a run whose process has ended without a word."""
    ended = f"The process of this run ended by itself (exit code {exit_code})."
    if exit_code in (-9, 137):
        ended += " Where memory is short the system ends the largest process."
    return {"state": CRASHED, "message": ended}


def _work(task: Task, answers: connection.Connection, environment: dict[str, str]) -> None:
    """In the child process: does the task, and sends its fields."""
    os.environ.update(environment)
    end_with_parent()
    answers.send_bytes(json.dumps(done(task.fit, task.scored, task.searches)).encode())
    answers.close()


def done(fit: FitJob, scored: Mapping[str, EvaluateJob], searches: bool) -> dict[str, Any]:
    """In a process of its own: does a run; the fields of its row, also where it fails."""
    try:
        # Imported here: what this process was told of its GPU must be known before torch is.
        one = importlib.import_module("geopeft.study.one")
        return {"state": DONE, "message": "", **one.run_fit(fit, scored, searches)}
    except GeopeftError as error:
        return {"state": error.code, "message": f"{error.message} {error.hint}".strip()}
    except BaseException as error:
        traceback.print_exc(file=sys.stderr)
        known = out_of_memory("run") if is_out_of_memory(error) else None
        said = f"{known.message} {known.hint}" if known else f"{type(error).__name__}: {error}"
        return {"state": known.code if known else UNKNOWN, "message": said}
    finally:
        with contextlib.suppress(OSError):
            Path(fit.out).unlink(missing_ok=True)
