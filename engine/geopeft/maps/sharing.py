"""Many rasters on a cluster: whole rasters are tasks, and where these are fewer than workers, runs of their parts.

Every path must mean the same file on all machines. A part is written whole by the worker that has mapped it, and the
raster's map by one worker when its parts are there; it reads each of them once. So a task that is begun twice, since
its worker has died, changes no byte of the result.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from geopeft.cluster.cluster import Answer, Cluster, open_cluster
from geopeft.cluster.tasks import Order, once, progress_of, seen_from_here, take_away, whole_path
from geopeft.data.raster import describe
from geopeft.errors import Canceled, JobError
from geopeft.events import Reporter
from geopeft.holding import clear, folder_beside, hold, part_of
from geopeft.job import PredictJob
from geopeft.mapper import Mapper
from geopeft.mapping.strips import axes_of
from geopeft.maps.drawing import map_parts, most_runs, windows_in
from geopeft.maps.one_map import map_one, written
from geopeft.maps.parts import SUFFIX, PartStore, identity_of, order_of, parts_of, runs_of
from geopeft.onnx.model import open_mapper
from geopeft.writing import check_target, sha256_of

STAGE = "predict"
# With so many rasters left for each worker they are not cut.
ENOUGH_RASTERS = 2
# Rows of windows that a run has at least: one of them is looked at twice.
FEWEST_ROWS = 8

Outcome: TypeAlias = tuple[int, "dict[str, Any] | Exception", float]


@dataclass
class _Raster:
    """A raster whose tasks are under way.

    Args:
        order: what all its tasks share.
        files: what is written.
        holding: keeps them for this job.
        left: tasks that have not ended.
        done: windows of the tasks that have.
        error: the first one.
    """

    index: int
    order: Order
    files: Sequence[Path]
    holding: ExitStack
    begun: float
    left: int = 0
    done: int = 0
    error: Exception | None = None
    running: list[Order] = field(default_factory=list)

    def stop(self) -> None:
        """Its tasks end as soon as they look."""
        take_away(Path(self.order["folder"]))

    def release(self) -> None:
        """Nothing of it is under way: what workers that were killed have left is taken away."""
        self.stop()
        clear(*self.files)
        self.holding.close()


def outcomes(
    job: PredictJob,
    runtime: Mapper,
    targets: Sequence[Path],
    origin: Mapping[str, str],
    ends: Sequence[int],
    reporter: Reporter,
) -> Iterator[Outcome]:
    """Maps the rasters of a job on the cluster that it names, in any order.

    Args:
        targets: of each raster, its map.
        origin: as `map_one` takes it.
        ends: windows of the rasters up to each.

    Raises:
        JobError: as `open_cluster`, and CLUSTER_UNREACHABLE where the scheduler is lost.
    """
    under_way: dict[int, _Raster] = {}
    try:
        with open_cluster(job.scheduler, job.device, reporter) as cluster:
            work = _Sharing(job, runtime, targets, origin, ends, reporter, cluster, under_way)
            try:
                for answer in cluster.run(do, work.take, work.look):
                    work.took(answer)
                    yield from work.ended()
                yield from work.ended()
            finally:
                for raster in under_way.values():
                    raster.stop()
    finally:
        # Processes of our own have ended by then.
        for raster in under_way.values():
            raster.release()


class _Sharing:
    """The tasks of a job: which come next, and what has become of them."""

    def __init__(
        self,
        job: PredictJob,
        runtime: Mapper,
        targets: Sequence[Path],
        origin: Mapping[str, str],
        ends: Sequence[int],
        reporter: Reporter,
        cluster: Cluster,
        under_way: dict[int, _Raster],
    ) -> None:
        self._given, self._job = job, _everywhere(job)
        self._runtime, self._targets, self._origin, self._ends = runtime, targets, origin, ends
        self._reporter, self._cluster = reporter, cluster
        self._next = self._finished = self._told = 0
        self._ready: deque[Order] = deque()
        self._open = under_way
        self._ended: deque[Outcome] = deque()
        self._looked = 0.0

    def take(self) -> Order | None:
        """The next order; None where all are given away."""
        while not self._ready and self._next < len(self._targets):
            self._next += 1
            self._begin(self._next - 1)
        return self._ready.popleft() if self._ready else None

    def look(self) -> None:
        """Raises Canceled when the user cancels, and tells the progress."""
        self._reporter.check_canceled()
        if time.monotonic() - self._looked > 1:
            self._looked = time.monotonic()
            under_way = sum(self._windows_done(raster) for raster in self._open.values())
            self._tell(min(self._finished + under_way, self._ends[-1] - 1))

    def _tell(self, windows: int) -> None:
        """A task that is begun again takes nothing back of what was told."""
        self._told = max(self._told, windows)
        self._reporter.progress(STAGE, self._told, self._ends[-1])

    def _windows(self, index: int) -> int:
        return self._ends[index] - (self._ends[index - 1] if index else 0)

    def _windows_done(self, raster: _Raster) -> int:
        told = sum(progress_of(order, STAGE) for order in raster.running)
        return min(raster.done + told, self._windows(raster.index))

    def ended(self) -> Iterator[Outcome]:
        """The rasters that have ended since this was called before."""
        while self._ended:
            yield self._ended.popleft()

    def _begin(self, index: int) -> None:
        """Takes a raster's output, and makes its first orders."""
        begun, target = time.monotonic(), Path(os.path.abspath(self._targets[index]))
        files = written(self._job, target)
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(target, *files))
                check_target(target)
                folder = part_of(target, ".tasks")
                folder.mkdir()
                path = self._job.rasters[index]
                order = {
                    "job": self._job.model_dump(mode="json"),
                    "raster": path,
                    "is_file": os.path.isfile(path),
                    "target": str(target),
                    "origin": dict(self._origin),
                    "folder": str(folder),
                    "index": index,
                    "task": "map",
                }
                cut = self._cut(order)
            except Exception as error:
                self._ended.append((index, error, time.monotonic() - begun))
                return
            raster = self._open[index] = _Raster(index, order, files, stack.pop_all(), begun)
        self._add(raster, cut or [order])

    def _add(self, raster: _Raster, orders: Sequence[Order]) -> None:
        raster.left += len(orders)
        raster.running.extend(orders)
        self._ready.extend(orders)

    def _cut(self, order: Mapping[str, Any]) -> list[Order]:
        """Orders for runs of a raster's parts, those that are not there yet; none where it is mapped in one task."""
        rasters, threads = len(self._targets) - order["index"], self._cluster.threads
        if rasters >= ENOUGH_RASTERS * threads:
            return []
        info = describe(order["raster"])
        parts, asked = parts_of(info), order_of(self._job, info)
        rows = len(axes_of(self._runtime, (info.height, info.width))[0])
        most = max(most_runs(self._runtime, info), rows // FEWEST_ROWS)
        count = min(math.ceil(ENOUGH_RASTERS * threads / rasters), most)
        if len(parts) < 2 or count < 2:
            return []
        identity = identity_of(self._origin["GEOPEFT_MODEL_SHA256"], asked)
        store = PartStore.beside(Path(order["target"]), identity, asked)
        missing = [part for part in parts if not store.has(part)]
        return [
            {
                **order,
                "task": f"run-{number}",
                "identity": identity,
                "parts": [part.number for part in run],
                "windows": windows_in(self._runtime, info, run),
            }
            for number, run in enumerate(runs_of(missing, count))
        ]

    def took(self, answer: Answer) -> None:
        """An answer has come: the raster is finished, or failed, or its map can be put together."""
        raster = self._open[answer.order["index"]]
        raster.left -= 1
        raster.running.remove(answer.order)
        raster.done += answer.order.get("windows", 0)
        for text, level in answer.said:
            # Each worker says which weights it uses.
            if text not in self._reporter.messages:
                self._reporter.message(text, level)
        if answer.error is not None and raster.error is None:
            self._give_up(raster, answer.error)
        if raster.left:
            return
        if raster.error is None and answer.order["task"] != "map":
            self._add(raster, [raster.order])
            return
        raster.release()
        del self._open[raster.index]
        self._finished += self._windows(raster.index)
        outcome = raster.error or self._entry(raster, answer.value)
        self._ended.append((raster.index, outcome, time.monotonic() - raster.begun))
        self._tell(self._finished)

    def _give_up(self, raster: _Raster, error: Exception) -> None:
        """Nothing more is done for a raster that has failed."""
        if isinstance(error, Canceled):
            message = f"The folder {raster.order['folder']} was taken away while a worker was writing beside it."
            error = JobError(message, "Run again when nothing else writes there.", "CLUSTER_FILES")
        raster.error = error
        given_up = [order for order in self._ready if order["index"] == raster.index]
        for order in given_up:
            self._ready.remove(order)
            raster.running.remove(order)
        raster.left -= len(given_up)
        raster.stop()

    def _entry(self, raster: _Raster, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What is told of a raster, with the names that the job has given."""
        target = self._targets[raster.index]
        files = {name for name, value in entry.items() if isinstance(value, str) and name != "raster"}
        named = {name: str(target.with_name(Path(entry[name]).name)) for name in files}
        seconds = round(time.monotonic() - raster.begun, 2)
        return {**entry, **named, "raster": self._given.rasters[raster.index], "seconds": seconds}


def _everywhere(job: PredictJob) -> PredictJob:
    """The job with paths that do not depend on the folder that a process happens to be in."""
    return job.model_copy(
        update={
            "rasters": tuple(map(whole_path, job.rasters)),
            **{name: whole_path(getattr(job, name)) for name in ("model", "aoi", "weights_dir")},
        }
    )


def do(order: Order, reporter: Reporter) -> dict[str, Any] | None:
    """On a worker: maps a raster, or writes some of its parts.

    Raises:
        JobError: CLUSTER_FILES where this machine does not see the files of the job.
        GeopeftError: as `map_one`.
    """
    job, target = PredictJob.model_validate(order["job"]), Path(order["target"])
    sha256 = order["origin"]["GEOPEFT_MODEL_SHA256"]
    runtime = once((sha256, job.device, job.weights_dir), lambda: _open_model(job, sha256, reporter))
    if order["is_file"]:
        seen_from_here(Path(order["raster"]), "the raster")
    if "parts" not in order:
        return map_one(job, runtime, order["raster"], target, order["origin"], reporter)
    info = describe(order["raster"])
    asked, numbers = order_of(job, info), set(order["parts"])
    if identity_of(sha256, asked) != order["identity"]:
        raise _other_file(order["raster"])
    store = PartStore(folder_beside(target, SUFFIX), order["identity"], len(asked.layers), info.width)
    run = [part for part in parts_of(info) if part.number in numbers]
    # A worker that has died may have finished some.
    left = [part for part in run if not store.has(part)]
    for some in runs_of(left, 1):
        map_parts(runtime, asked, store, some, reporter)
    return None


def _open_model(job: PredictJob, sha256: str, reporter: Reporter) -> Mapper:
    path = Path(job.model)
    seen_from_here(path, "the model")
    if sha256_of(path) != sha256:
        raise _other_file(job.model)
    return open_mapper(path, job.device, job.weights_dir, reporter)


def _other_file(path: str) -> JobError:
    message = f"A worker sees another file than this process under the name {path}, or it was changed."
    return JobError(message, "Put it on a file system that all machines share, and leave it alone.", "CLUSTER_FILES")
