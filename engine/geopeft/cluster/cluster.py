"""Tasks on many processes and machines, with dask.distributed: for jobs that are given a scheduler, and only for them.

Dask is an optional extra, imported where it is asked for. Its processes send each other pickled Python: whoever may
speak to them may run programs there. Those of `local` listen on the loopback address alone and speak TLS with a key
that is made for the job; an existing cluster is only as safe as its network.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import logging
import os
import pkgutil
import platform
import queue
import re
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geopeft import __version__, devices
from geopeft.cluster.tasks import INSTALL, LOOK_S, PART, Order, Work, do, other_version
from geopeft.devices import cores
from geopeft.errors import Canceled, DeviceError, GeopeftError, JobError, unknown_error
from geopeft.events import Level, Reporter
from geopeft.watched import watched

LOCAL = "local"
# How long an existing scheduler may take to answer, how long its first worker, and how long a process of our own.
ANSWER_S, WORKER_S, START_S = 5.0, 30.0, 120.0
# Tasks that wait at each worker, so that it never waits for us; more would only be harder to cancel.
AHEAD = 2
_ADDRESS = re.compile(r"(tcp|tls)://(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_LOCAL = re.compile(r"local(?::([0-9]{1,3}))?")


@dataclass(frozen=True)
class Answer:
    """What became of an order.

    Args:
        order: the one that was given.
        value: what the work has given, where it has not failed.
        error: why it has failed; Canceled where its folder was gone.
        said: messages and their levels.
    """

    order: Order
    value: Any = None
    error: GeopeftError | Canceled | None = None
    said: tuple[tuple[str, Level], ...] = ()


@contextlib.contextmanager
def open_cluster(scheduler: str, device: str, reporter: Reporter) -> Iterator[Cluster]:
    """A cluster to work on; processes that were started for it end with it.

    Args:
        scheduler: `local` or `local:N` for processes on this machine (as many as it has cores, or N), the address
            tcp://HOST:PORT or tls://HOST:PORT of a scheduler, or the file that a scheduler has written.
        device: as in a job: several GPUs are shared out among the processes of `local`.

    Raises:
        JobError: CLUSTER_MISSING, CLUSTER_ADDRESS, CLUSTER_UNREACHABLE, CLUSTER_WORKERS or CLUSTER_VERSION.
    """
    own = _LOCAL.fullmatch(scheduler)
    count = (int(own[1] or 0) or cores()) if own else 1
    address = "" if own else address_of(scheduler)
    distributed = _import_distributed()
    with contextlib.ExitStack() as stack:
        if own:
            cluster = stack.enter_context(_local_cluster(distributed, count, count_gpus(device)))
            client = stack.enter_context(_client(lambda: distributed.Client(cluster, set_as_default=False)))
        else:
            client = stack.enter_context(_client(lambda: _connect(distributed, address, reporter)))
        _wait_for_workers(client, count, address, reporter)
        workers = watched(lambda: _check_versions(client), reporter)
        where = "on this machine" if own else f"of {address}"
        several = "es" if workers > 1 else ""
        reporter.message(f"The work is shared out to {workers} worker process{several} {where}.")
        yield Cluster(client, address or LOCAL)


def address_of(scheduler: str) -> str:
    """The address that a job names, or that is in the file that it names; JobError CLUSTER_ADDRESS for all else."""
    found = scheduler
    if "://" not in scheduler:
        try:
            found = str(json.loads(Path(scheduler).read_text(encoding="utf-8"))["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _no_address(scheduler) from error
    whole = _ADDRESS.fullmatch(found)
    if whole is None or not 0 < int(whole[3]) < 1 << 16:
        raise _no_address(scheduler)
    return found


def _no_address(scheduler: str) -> JobError:
    return JobError(
        f"'{scheduler}' names no scheduler.",
        "Give local, an address such as tcp://10.0.0.5:8786, or the file that the scheduler has written.",
        "CLUSTER_ADDRESS",
    )


def _import_distributed() -> Any:
    try:
        # The certificates of `local` are made with it.
        importlib.import_module("cryptography.x509")
        return importlib.import_module("distributed")
    except ImportError as error:
        missing = f"Dask is not installed in this environment ({error}), so the work cannot be shared by a cluster."
        raise JobError(missing, f"{INSTALL} Or leave the scheduler out.", "CLUSTER_MISSING") from error


@contextlib.contextmanager
def _local_cluster(distributed: Any, count: int, gpus: int) -> Iterator[Any]:
    """Worker processes of one thread of tasks each, on the loopback address; they know each other by a key that only
    they have, so that another user of the machine cannot give them work."""
    dask = importlib.import_module("dask")
    security = distributed.Security.temporary()
    # Nothing is told over HTTP either: Dask's own pages and figures are left out.
    quiet: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    with tempfile.TemporaryDirectory(prefix="geopeft-", ignore_cleanup_errors=True) as folder, dask.config.set(quiet):
        shared = {"host": "127.0.0.1", "protocol": "tls://", "security": security, "dashboard": False,
                  "dashboard_address": "127.0.0.1:0"}  # fmt: skip
        alone = {"nthreads": 1, "memory_limit": 0, "local_directory": folder, "silence_logs": logging.CRITICAL}
        workers = {
            number: {"cls": distributed.Nanny,
                     "options": {**shared, **alone, "env": environment_of(number, count, gpus)}}
            for number in range(count)
        }  # fmt: skip
        scheduler = {"cls": distributed.Scheduler, "options": {**shared, "port": 0}}
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        cluster = distributed.SpecCluster(
            workers, scheduler, security=security, silence_logs=logging.CRITICAL, name=f"geopeft-{secrets.token_hex(4)}"
        )
        try:
            yield cluster
        finally:
            cluster.close(timeout=10)


def environment_of(slot: int, processes: int, gpus: int) -> dict[str, str]:
    """What the libraries of one of several processes are told: its GPU, and its part of the cores."""
    found: dict[str, str] = {}
    if processes > 1:
        found["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // processes))
    if gpus > 1:
        seen = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
        found["CUDA_VISIBLE_DEVICES"] = seen[slot % len(seen)] if seen else str(slot % gpus)
    return found


def count_gpus(device: str) -> int:
    """How many GPUs a job of this `device` may share out."""
    if device not in ("auto", "cuda"):
        return 0
    return sum(1 for found in devices.describe()["devices"] if found["device"] == "cuda" and found["usable"])


@contextlib.contextmanager
def _client(make: Callable[[], Any]) -> Iterator[Any]:
    client = make()
    try:
        yield client
    finally:
        client.close(timeout=ANSWER_S)


def _connect(distributed: Any, address: str, reporter: Reporter) -> Any:
    """A client of an existing scheduler; JobError where it does not answer, or not this version of Dask."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        # Dask itself waits for ever for a program that takes the connection and then keeps silent.
        return watched(
            lambda: distributed.Client(address, timeout=ANSWER_S, set_as_default=False),
            _Deadline(reporter, 2 * ANSWER_S),
        )
    except ImportError as error:
        message = f"The scheduler at {address} has another version of Dask than this process: {error}."
        raise JobError(message, f"Install the same version here and there. {INSTALL}", "CLUSTER_VERSION") from error
    except (OSError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise _unreachable(address) from error


class _Deadline(Reporter):
    """Cancels as another reporter does; raises TimeoutError after some seconds."""

    def __init__(self, whole: Reporter, seconds: float) -> None:
        super().__init__()
        self._whole, self._latest = whole, time.monotonic() + seconds

    def check_canceled(self) -> None:
        self._whole.check_canceled()
        if time.monotonic() > self._latest:
            raise TimeoutError


def _unreachable(address: str) -> JobError:
    return JobError(
        f"No Dask scheduler answers at {address}.",
        "Check the address and that the scheduler runs; or set the scheduler to local.",
        "CLUSTER_UNREACHABLE",
    )


def _wait_for_workers(client: Any, count: int, address: str, reporter: Reporter) -> None:
    """Waits for `count` workers; those of a cluster of our own (`address` is empty) may have to load Python first."""
    wait_s = WORKER_S if address else START_S
    try:
        watched(lambda: client.wait_for_workers(count, timeout=wait_s), reporter)
    except TimeoutError as error:
        if address:
            message = f"The scheduler at {address} has had no worker for {wait_s:g} s."
            hint = f"Start some with: dask worker {address} --nworkers auto --nthreads 1; then run the job again."
        else:
            message = f"Not all of {count} worker processes have begun within {wait_s:g} s."
            hint = "Set the scheduler to local:N with a smaller number."
        raise JobError(message, hint, "CLUSTER_WORKERS") from error


def _check_versions(client: Any) -> int:
    """How many workers there are; JobError where one of them would compute with something else than this process."""
    asked: Sequence[tuple[str, Callable[[], str], tuple[Any, ...]]] = (
        # Nothing of the engine is called before it is known to be the same.
        ("GeoPEFT", lambda: __version__, (pkgutil.resolve_name, "geopeft:__version__")),
        ("Python", platform.python_version, (platform.python_version,)),
        ("torch", lambda: importlib.metadata.version("torch"), (importlib.metadata.version, "torch")),
    )
    workers = 0
    for name, here, question in asked:
        own = here()
        answers = client.run(*question, on_error="return")
        workers = len(answers)
        for worker, found in answers.items():
            if isinstance(found, BaseException):
                raise other_version(worker, f"has no {name} ({type(found).__name__}: {found})", own)
            if _release(name, found) != _release(name, own):
                raise other_version(worker, f"has {name} {found}", own)
    return workers


def _release(name: str, version: str) -> str:
    """The part of a version that decides: a build for GPUs computes as one for CPUs does, and so do fixes of Python."""
    return ".".join(version.split(".")[:2]) if name == "Python" else version.partition("+")[0]


class Cluster:
    """A cluster at work; see `open_cluster`."""

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address

    @property
    def threads(self) -> int:
        """Tasks that can be worked on at the same time; workers may come and go."""
        if self._client.status != "running":
            return 1
        return sum(worker["nthreads"] for worker in self._client.scheduler_info(n_workers=-1)["workers"].values()) or 1

    def run(self, work: Work, take: Callable[[], Order | None], look: Callable[[], None]) -> Iterator[Answer]:
        """Has the work of orders done, anywhere, and gives each answer as soon as it is there.

        A worker that dies loses nothing: what it had is done elsewhere. An order that has been the end of several
        workers fails.

        Args:
            work: a function of a module, called with an order and a reporter. It must not mind being called twice
                with one order. The reporter raises Canceled as soon as the order's folder is gone, and keeps the
                progress there; see `progress_of`.
            take: gives the next order, None where there is none at the moment. An order is plain data, with `folder`,
                one that all machines see, and `task`, a name that no other order with this folder has.
            look: called several times a second; may raise, which ends everything.

        Raises:
            JobError: CLUSTER_UNREACHABLE where the scheduler is lost.
        """
        ended: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        running: dict[str, tuple[Order, Any]] = {}
        token, count = secrets.token_hex(6), 0
        ahead = AHEAD * self.threads + 1
        try:
            while True:
                while len(running) < ahead and (order := take()) is not None:
                    count += 1
                    key = f"geopeft-{token}-{count}"
                    running[key] = (order, self._submit(work, order, key, ended))
                if not running:
                    return
                look()
                try:
                    key, future = ended.get(timeout=LOOK_S)
                except queue.Empty:
                    ahead = AHEAD * self.threads + 1
                    continue
                order, _ = running.pop(key)
                yield self._answer(order, future)
        finally:
            if running:
                with contextlib.suppress(Exception):
                    self._client.cancel([future for _, future in running.values()], force=True)

    def _submit(self, work: Work, order: Order, key: str, ended: queue.SimpleQueue[Any]) -> Any:
        try:
            future = self._client.submit(do, work, dict(order), __version__, key=key, pure=False)
        except (OSError, RuntimeError) as error:
            raise _unreachable(self._address) from error
        future.add_done_callback(lambda done: ended.put((key, done)))
        return future

    def _answer(self, order: Order, future: Any) -> Answer:
        if future.status in ("cancelled", "lost"):
            raise JobError(
                f"The connection to the scheduler at {self._address} was lost.",
                "Run the job again when it is there; what is finished is kept.",
                "CLUSTER_UNREACHABLE",
            )
        error = future.exception()
        if error is None:
            told: dict[str, Any] = future.result()
            print(told["trace"], end="", file=sys.stderr)
            failed: GeopeftError | Canceled | None = Canceled() if told["canceled"] else None
            if told["error"] is not None:
                failed = GeopeftError(*told["error"])
            return Answer(order, told["value"], failed, told["said"])
        if type(error).__name__ == "KilledWorker":
            killed = DeviceError(
                "Several worker processes ended by themselves over the same part of the work.",
                "Give each worker more memory, or start fewer on a machine.",
                "CLUSTER_WORKERS",
            )
            return Answer(order, error=killed)
        traceback.print_exception(error, file=sys.stderr)
        return Answer(order, error=unknown_error(error, PART))
