"""The command line: `run JOB.json` and `worker` speak events, the other commands are the jobs for people."""

from __future__ import annotations

import _thread
import argparse
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import sys
import time
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from geopeft import PROTOCOL, __version__
from geopeft.errors import (
    Canceled,
    GeopeftError,
    JobError,
    has_memory,
    is_out_of_memory,
    out_of_memory,
    unknown_error,
)
from geopeft.events import Reporter, terminal_reporter
from geopeft.holding import hold
from geopeft.job import JOB_TYPES, AnyJob, Job, load, parse

# The module that runs each job: `run(job, reporter) -> outputs`.
JOBS = {
    "fit": "geopeft.fit",
    "pretrain": "geopeft.pretrain",
    "distil": "geopeft.distil.distil",
    "predict": "geopeft.predict",
    "preview": "geopeft.preview",
    "average": "geopeft.averaging.average",
    "evaluate": "geopeft.evaluate",
    "suspects": "geopeft.advice.suspects",
    "suggest": "geopeft.advice.suggest",
    "sample": "geopeft.sampling.sample",
    "area": "geopeft.sampling.area",
    "compare": "geopeft.comparison.compare",
    "study": "geopeft.study.study",
    "export": "geopeft.onnx.export",
    "inspect": "geopeft.inspecting",
    "report": "geopeft.report",
    "models": "geopeft.models.catalogue",
    "probe": "geopeft.probe",
    "schema": "geopeft.schema",
}
# What the jobs of a worker need, imported before the first one comes: somebody waits for each of them.
WORKER_IMPORTS = (
    "torch", "rasterio", "pyogrio", "scipy.optimize", "sklearn.ensemble", "sklearn.linear_model", "geopeft.preview",
)  # fmt: skip
WORKER_GDAL_CACHE_MB = "128"
# The number that malloc.h gives to this option, and what counts as large.
M_MMAP_THRESHOLD, LARGE_BYTES = -3, 1 << 20
# What a process does that follows another, and the only job that several processes share.
FOLLOW, SHARED_JOB = "geopeft.training.following", "fit"
PRINTED = ("inspect", "models", "probe", "schema")
EXIT_FAILED, EXIT_CANCELED = 1, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    # Threads that spin while they wait make a busy machine several times slower; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = _parser().parse_args(argv)
    if arguments.command == "run":
        return _run_file(Path(arguments.job_file), _claim_stdout())
    if arguments.command == "worker":
        return _work(_claim_stdout())
    return _run_command(arguments)


def execute(job: AnyJob, reporter: Reporter) -> int:
    """Runs a job and reports exactly one terminal event; returns the exit code."""
    run: Callable[[Job, Reporter], dict[str, Any]]
    try:
        reporter.check_canceled()
        follows = isinstance(reporter, _FollowerReporter)
        run = importlib.import_module(FOLLOW if follows else JOBS[job.job]).run
        with contextlib.nullcontext() if follows else _held_output(job):
            outputs = run(job, reporter)
        reporter.completed(outputs)
    except Canceled:
        return _tell(reporter.canceled, EXIT_CANCELED)
    except GeopeftError as error:
        if reporter.keeps_log:
            traceback.print_exc(file=sys.stderr)
        return _fail(reporter, error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # The panic of a library that is written in Rust is no Exception.
        return _fail(reporter, _unexpected(error, reporter))
    if job.job in PRINTED and not reporter.keeps_log:
        print(json.dumps(outputs, indent=2, ensure_ascii=False))
    return 0


def _held_output(job: AnyJob) -> contextlib.AbstractContextManager[None]:
    """What a job writes is its own until it ends; predict, which may write many files, holds each by itself."""
    out = getattr(job, "out", "") or getattr(job, "onnx", "")
    if not out or job.job == "predict":
        return contextlib.nullcontext()
    beside = [f"{out}.resume", getattr(job, "json_file", "")]
    return hold(Path(out), *(Path(path) for path in beside if path))


def _unexpected(error: BaseException, reporter: Reporter) -> GeopeftError:
    reporter.make_room()
    if is_out_of_memory(error) or not has_memory():
        return out_of_memory("job")
    traceback.print_exc(file=sys.stderr)
    return unknown_error(error, "job", "engine.log" if reporter.keeps_log else "the lines above")


def _fail(reporter: Reporter, error: GeopeftError) -> int:
    reporter.make_room()
    return _tell(functools.partial(reporter.failed, error), EXIT_FAILED)


def _tell(say: Callable[[], None], code: int) -> int:
    """The last event. When nobody listens any more there is nobody to tell."""
    try:
        say()
    except Canceled:
        return EXIT_CANCELED
    return code


def _run_file(path: Path, events: IO[str]) -> int:
    reporter = Reporter(events, folder=path.parent)
    try:
        _watch_parent()
    except (RuntimeError, MemoryError):
        # A thread's stack is the first large piece of memory that is asked for.
        reporter.make_room()
        return _fail(reporter, out_of_memory("job"))
    return _execute_file(path, reporter)


def _device_of(job: AnyJob) -> str:
    """The device that a job will compute on; jobs that compute nothing run on the CPU and load no torch."""
    name = getattr(job, "device", "cpu")
    if name != "auto":
        return str(name)
    return str(importlib.import_module("geopeft.runtime").choose_device(name).type)


def _execute_file(path: Path, reporter: Reporter) -> int:
    try:
        job = load(path)
        reporter.emit("started", protocol=PROTOCOL, engine=__version__, device=_device_of(job))
    except Canceled:
        return EXIT_CANCELED
    except GeopeftError as error:
        return _fail(reporter, error)
    except Exception as error:
        return _fail(reporter, _unexpected(error, reporter))
    return execute(job, reporter)


class _WorkerReporter(Reporter):
    """Every event names its job, by the path that came in."""

    def __init__(self, events: IO[str], job_file: str) -> None:
        super().__init__(events, folder=Path(job_file).parent)
        self._job_file = job_file

    def emit(self, event: str, **fields: Any) -> None:
        super().emit(event, job=self._job_file, **fields)


def _work(events: IO[str]) -> int:
    """The warm loop: one job path a line on stdin, in UTF-8; the end of stdin ends it, a job that fails does not.

    All jobs share one log, stderr, where each begins with a line that names it.
    """
    _watch_parent()
    # A twentieth of the memory, as GDAL takes by itself, is too much for a process that stays.
    os.environ.setdefault("GDAL_CACHEMAX", WORKER_GDAL_CACHE_MB)
    _keep_memory_low()
    for module in WORKER_IMPORTS:
        importlib.import_module(module)
    # What imports have left stays for good: the collector need not look at it after every job.
    gc.collect()
    gc.freeze()
    reporter = Reporter(events)
    if _tell(functools.partial(reporter.emit, "ready", protocol=PROTOCOL, engine=__version__), 0):
        return EXIT_CANCELED
    for line in sys.stdin.buffer:
        job_file = line.decode("utf-8", "replace").strip()
        if not job_file:
            continue
        print(f"== {job_file}", file=sys.stderr, flush=True)
        reporter = _WorkerReporter(events, job_file)
        _execute_file(Path(job_file), reporter)
        _give_memory_back()
        if not reporter.keeps_log:
            return EXIT_CANCELED
    return 0


def _keep_memory_low() -> None:
    """Large arrays get pages of their own, which go back to the system as soon as they are free (glibc)."""
    if sys.platform == "linux":
        option = getattr(ctypes.CDLL(None), "mallopt", None)
        if option is not None:
            option(M_MMAP_THRESHOLD, LARGE_BYTES)


def _give_memory_back() -> None:
    """What a job has used and left free goes back to the system, where the C library keeps it by itself (glibc)."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _claim_stdout() -> IO[str]:
    """Reserves stdout for events: what a library prints from here on lands on stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    return events


def _watch_parent() -> None:
    """Ends this process and its children when the process that started it is gone.

    The parent's id changes when it dies (it becomes the id of a reaper). Windows keeps the id, so there the plugin
    ends the tree itself; a broken stdout ends the job on every system.
    """
    parent = os.getppid()

    def watch() -> None:
        while True:
            time.sleep(0.5)
            if os.getppid() != parent:
                if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
                    os.killpg(0, 9)
                os._exit(EXIT_CANCELED)

    if os.name == "posix":
        # A Thread waits for ever until it has begun, which it never does where its first allocation fails.
        _thread.start_new_thread(watch, ())


def _run_command(arguments: argparse.Namespace) -> int:
    """A job given as options. `--events` sends the JSON lines to stdout, else people read stderr."""
    values = {k: v for k, v in vars(arguments).items() if k not in ("command", "events") and v is not None}
    reporter = Reporter(_claim_stdout()) if arguments.events else terminal_reporter()
    rank, size = _processes()
    if rank:
        reporter = _FollowerReporter(rank)
    try:
        if size > 1 and arguments.command != SHARED_JOB:
            raise JobError(
                f"{arguments.command} was started on {size} processes, of which each would do all of it.",
                f"Start it without torchrun; what several processes can share is {SHARED_JOB}.",
            )
        job = parse({"job": arguments.command, **values})
    except GeopeftError as error:
        return _fail(reporter, error)
    try:
        return execute(job, reporter)
    except KeyboardInterrupt:
        return _tell(reporter.canceled, EXIT_CANCELED)


def _processes() -> tuple[int, int]:
    """The number of this process and how many there are, as torchrun has told them."""
    told = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    known = "MASTER_ADDR" in os.environ and all(value.isdecimal() for value in told.values())
    return (int(told["RANK"]), int(told["WORLD_SIZE"])) if known else (0, 1)


class _FollowerReporter(Reporter):
    """One process speaks for all. Of those that follow, one tells that it is gone, and each why it failed itself."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def failed(self, error: GeopeftError) -> None:
        if self._rank == 1 or error.code != "PROCESS_LOST":
            terminal_reporter().failed(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="geopeft", description="Fine-tune geospatial foundation models, map rasters.")
    parser.add_argument("--version", action="version", version=f"geopeft {__version__}, protocol {PROTOCOL}")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a job file; events on stdout")
    run.add_argument("job_file")
    commands.add_parser("worker", help="run job files named on stdin; events on stdout")
    for name, kind in JOB_TYPES.items():
        command = commands.add_parser(name, help=kind.help, description=kind.__doc__)
        command.add_argument("--events", action="store_true", help="events as JSON lines on stdout")
        for field_name in kind.model_fields:
            if field_name not in ("job", "protocol"):
                _add_field(command, kind, field_name)
    return parser


def _add_field(command: argparse.ArgumentParser, kind: type[Job], name: str) -> None:
    """One option from one field; its type decides how it is read."""
    field = kind.model_fields[name]
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    annotation: Any = field.annotation
    if name == "classes":
        return
    options: dict[str, Any] = {"help": (field.description or "").replace("%", "%%")}
    many = typing.get_origin(annotation) is tuple
    if annotation is bool:
        options["action"] = argparse.BooleanOptionalAction
        options["default"] = None
    elif typing.get_origin(annotation) is typing.Literal:
        options["choices"] = typing.get_args(annotation)
    if extra.get("positional"):
        command.add_argument(
            name,
            nargs=("+" if field.is_required() else "*") if many else None,
            metavar=name.upper().rstrip("S"),
            **options,
        )
        return
    flag = "--json" if name == "json_file" else "--" + name.replace("_", "-")
    if many:
        options["type"] = lambda text: [part.strip() for part in text.split(",") if part.strip()]
    command.add_argument(flag, dest=name, required=field.is_required(), **_with_default(options))


def _with_default(options: dict[str, Any]) -> dict[str, Any]:
    return options if "default" in options else {**options, "default": None}


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
