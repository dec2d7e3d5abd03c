"""The runs of a study on a cluster, each in a process of its own that a worker starts.

The process is given its run on its standard input, whose end ends it too: it never outlives its worker.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from geopeft.cluster.cluster import Cluster
from geopeft.cluster.tasks import Order
from geopeft.errors import Canceled
from geopeft.events import Reporter
from geopeft.job import EvaluateJob, FitJob
from geopeft.study.runs import LOOK_S, Ended, Task, did_not_answer, done

ENDED_WITH_WORKER = 3


def run_tasks_on(
    cluster: Cluster, tasks: Iterable[Task], folder: Path, check_canceled: Callable[[], None]
) -> Iterator[Ended]:
    """Runs tasks wherever a worker is free, and gives each as soon as it has ended.

    Args:
        folder: the study's own, which all machines see; it is taken away to end the runs.
        check_canceled: raises to stop.

    Raises:
        JobError: as `Cluster.run`.
    """
    waiting, under_way = iter(tasks), dict[str, Task]()

    def take() -> Order | None:
        task = next(waiting, None)
        if task is None:
            return None
        under_way[task.key] = task
        scored = {name: job.model_dump(mode="json") for name, job in task.scored.items()}
        run = {"fit": task.fit.model_dump(mode="json"), "scored": scored, "searches": task.searches}
        return {"folder": str(folder), "task": task.key, "run": run}

    for answer in cluster.run(do, take, check_canceled):
        fields = answer.value
        if isinstance(answer.error, Canceled):
            raise answer.error
        if answer.error is not None:
            said = f"{answer.error.message} {answer.error.hint}".strip()
            fields = {"state": answer.error.code, "message": said}
        yield Ended(under_way.pop(answer.order["task"]), fields)


def do(order: Order, reporter: Reporter) -> dict[str, Any]:
    """On a worker: one run; the fields of its row."""
    command = [sys.executable, "-m", "geopeft.study.remote"]
    # Its own answer comes last; what libraries print goes to the log.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # The engine may have been found by a path that only this process has.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
    )
    given, answer = process.stdin, process.stdout
    try:
        with contextlib.suppress(OSError):
            if given is not None:
                given.write(json.dumps(order["run"]).encode() + b"\n")
                given.flush()
        while process.poll() is None:
            reporter.check_canceled()
            time.sleep(LOOK_S)
        try:
            fields = json.loads(answer.read() if answer is not None else b"")
        except ValueError:
            return did_not_answer(process.returncode)
        return dict(fields)
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """In the run's own process."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    run = json.loads(sys.stdin.buffer.readline())

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(ENDED_WITH_WORKER)

    _thread.start_new_thread(watch, ())
    scored = {name: EvaluateJob.model_validate(job) for name, job in run["scored"].items()}
    fields = done(FitJob.model_validate(run["fit"]), scored, run["searches"])
    answer.write(json.dumps(fields).encode())
    answer.flush()
    # The thread above waits for ever.
    os._exit(0)


if __name__ == "__main__":
    main()
