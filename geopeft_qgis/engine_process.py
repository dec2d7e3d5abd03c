"""One run of the engine: a job file in, JSON lines out. Standard library only, not even qgis."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess  # nosec B404, the engine is a process of its own
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Callable, Optional

from .language import tr

PROTOCOL = 1
EVENTS = frozenset(("started", "progress", "metric", "message", "preview", "ready", "completed", "canceled", "failed"))
MAX_LINE_BYTES = 4 << 20
MAX_LOG_BYTES = 8 << 20
LOG_TAIL_BYTES = 4000
CANCEL_GRACE_S = 3.0
TERMINATE_GRACE_S = 2.0
EXIT_GRACE_S = 20.0
POLL_S = 0.1
# Windows only, so not known to Python elsewhere.
NO_WINDOW: int = getattr(subprocess, "CREATE_NO_WINDOW", 0)
NEW_GROUP: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)

# What the engine may see of QGIS's environment. Everything else (PYTHON*, GDAL_*, PROJ_*, LD_*, QT_*) would make it
# run on the wrong libraries, and GDAL_VRT_ENABLE_PYTHON would let a raster run code.
ALLOWED = frozenset(
    "PATH HOME USER LOGNAME USERNAME USERPROFILE HOMEDRIVE HOMEPATH APPDATA LOCALAPPDATA PROGRAMDATA SYSTEMROOT "
    "SYSTEMDRIVE WINDIR COMSPEC PATHEXT NUMBER_OF_PROCESSORS PROCESSOR_ARCHITECTURE TEMP TMP TMPDIR LANG TZ "
    "CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY OMP_NUM_THREADS".split()
)
# Keys and addresses of the stores that rasters may lie in: s3://, az://, gs://, oss:// and swift.
STORES = ("AWS_", "AZURE_STORAGE_", "AZURE_NO_SIGN_REQUEST", "GS_", "GOOGLE_APPLICATION_CREDENTIALS", "OSS_", "SWIFT_")
ALLOWED_PREFIXES = ("LC_", "XDG_", "GEOPEFT_", *STORES)
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


class EngineError(Exception):
    """A run that brought no result. `message` is a sentence, `hint` a next step, `code` a stable name."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.code = code
        self.message = message
        self.hint = hint


class EngineFailed(EngineError):
    """The engine said why it cannot do the job."""


class EngineCrashed(EngineError):
    """The engine ended without a word, or without its results; `log_tail` is the end of its log."""

    def __init__(self, message: str, hint: str, log_tail: str) -> None:
        super().__init__("ENGINE_CRASHED", message, hint)
        self.log_tail = log_tail


class EngineCanceled(Exception):
    """The user stopped the run."""


def run(
    command: Sequence[str],
    job: Mapping[str, Any],
    folder: Path,
    on_event: Callable[[dict[str, Any]], None],
    canceled: Callable[[], bool],
    env: Optional[Mapping[str, str]] = None,
    stop: Optional[Callable[[], bool]] = None,
) -> dict[str, Any]:
    """Runs a job and returns its outputs.

    Args:
        command: how to start the engine; `run <folder>/job.json` is added.
        job: the job as plain data.
        folder: an own folder of this run; `job.json`, `engine.log`, `cancel` and `stop` go there.
        on_event: called in this thread with every event but the last.
        canceled: asked ten times a second; True ends the run within about five seconds.
        env: the whole environment of the engine; None: the allowed part of this process's own.
        stop: asked ten times a second; True ends a training early with the best model so far. Where there is nothing
            to keep yet, and in other jobs, it is a cancel.

    Raises:
        EngineFailed, EngineCrashed, EngineCanceled; OSError where the folder cannot be written.
    """
    job_file = write_job(job, folder)
    log = Log(folder / "engine.log")
    try:
        process = start([*command, "run", str(job_file)], folder, env)
        last, exit_code = _Run(process, folder, log, on_event, canceled, stop).follow()
    finally:
        log.close()
    return _outcome(job, last, exit_code, log)


def child_environment(parent: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that the engine may see."""
    child = {name: value for name, value in parent.items() if _is_allowed(name, value)}
    if _is_windows() and "PATH" in child:
        child["PATH"] = os.pathsep.join(p for p in child["PATH"].split(os.pathsep) if not _belongs_to_qgis(p))
    child.update(PYTHONUTF8="1", PYTHONNOUSERSITE="1")
    return child


def _is_windows() -> bool:
    return os.name == "nt"


def _is_allowed(name: str, value: str) -> bool:
    upper = name.upper()
    if upper in CERTIFICATES:
        return os.path.exists(value)
    return upper in ALLOWED or upper.startswith(ALLOWED_PREFIXES)


def _belongs_to_qgis(folder: str) -> bool:
    lower = folder.lower()
    return "qgis" in lower or "osgeo4w" in lower or (bool(folder) and lower.startswith(sys.prefix.lower()))


def write_job(job: Mapping[str, Any], folder: Path) -> Path:
    """Writes `job.json` into the folder of a run, and takes an earlier run's cancel and stop away."""
    folder.mkdir(parents=True, exist_ok=True)
    job_file, partial = folder / "job.json", folder / "job.json.part"
    partial.write_text(json.dumps(job, ensure_ascii=False, allow_nan=False, indent=1), encoding="utf-8")
    os.replace(partial, job_file)
    for name in ("cancel", "stop"):
        (folder / name).unlink(missing_ok=True)
    return job_file


def start(
    command: Sequence[str], folder: Path, env: Optional[Mapping[str, str]] = None, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """The engine as a process with a group of its own; stdout and stderr have to be read.

    Args:
        folder: where it runs.
        env: the whole environment of the engine; None: the allowed part of this process's own.

    Raises:
        EngineFailed: ENGINE_NOT_STARTED.
    """
    options: dict[str, Any] = {"start_new_session": True}
    if _is_windows():
        options = {"creationflags": NEW_GROUP | NO_WINDOW}
    try:
        return subprocess.Popen(  # nosec B603, no shell
            list(command),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=child_environment(os.environ) if env is None else dict(env),
            **options,
        )
    except OSError as error:
        raise EngineFailed(
            "ENGINE_NOT_STARTED",
            tr("The engine's Python {python} cannot be started ({reason}).").format(
                python=command[0], reason=error.strerror or error
            ),
            tr("Set up the engine again, or correct its path in Settings > Options > GeoPEFT."),
        ) from error


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Asks a process and all that it started to end; on Windows there is no such way."""
    if not _is_windows():
        _signal_group(process.pid, signal.SIGTERM)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started."""
    if _is_windows():
        taskkill = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
        subprocess.run(taskkill, capture_output=True, check=False, creationflags=NO_WINDOW)  # nosec B603, no shell
    else:
        _signal_group(process.pid, signal.SIGKILL)


class _Run:
    """The life of one engine process, from its start until nothing of it is left."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        folder: Path,
        log: Log,
        on_event: Callable[[dict[str, Any]], None],
        canceled: Callable[[], bool],
        stop: Optional[Callable[[], bool]],
    ) -> None:
        self._process = process
        self._cancel_file, self._stop_file = folder / "cancel", folder / "stop"
        self._stop = stop
        self._log = log
        self._on_event = on_event
        self._canceled = canceled
        self._lines: queue.Queue[Optional[bytes]] = queue.Queue(maxsize=10000)
        self._last: Optional[dict[str, Any]] = None
        self._asked_at: Optional[float] = None
        self._terminated_at: Optional[float] = None
        self._threads = [
            threading.Thread(target=self._read_stdout, daemon=True, name="engine events"),
            threading.Thread(target=log.drain, args=(process.stderr,), daemon=True, name="engine log"),
        ]

    def follow(self) -> tuple[Optional[dict[str, Any]], Optional[int]]:
        """The last event and the exit code; the exit code is None where the engine had to be killed."""
        for thread in self._threads:
            thread.start()
        killed = True
        try:
            self._read_events()
            killed = not self._wait(self._exit_grace_s())
        finally:
            if killed or self._process.returncode != 0:
                self._kill()
            self._close()
        if self._asked_at is not None and (self._last or {}).get("event") != "completed":
            raise EngineCanceled
        return self._last, None if killed else self._process.returncode

    def _read_events(self) -> None:
        """Until the end of stdout, or until a process that ended leaves its stdout to a child of its own."""
        ended_at = None
        while True:
            try:
                line = self._lines.get(timeout=POLL_S)
            except queue.Empty:
                if self._process.poll() is not None:
                    ended_at = ended_at or time.monotonic()
                    if time.monotonic() - ended_at > 1.0:
                        return
            else:
                if line is None:
                    return
                self._handle(line)
            if self._stop is not None and self._stop():
                self._stop = None
                self._stop_file.touch()
            if self._cancel_is_overdue():
                return

    def _exit_grace_s(self) -> float:
        """How long a process may take to end once there is nothing more to read."""
        if self._terminated_at is not None:
            return 0.0
        return EXIT_GRACE_S if self._last else TERMINATE_GRACE_S

    def _handle(self, line: bytes) -> None:
        event = parse_event(line)
        if event is None:
            self._log.write(b"[stdout] " + line.rstrip(b"\r\n") + b"\n")
        elif event["event"] == "started" and event.get("protocol") != PROTOCOL:
            raise protocol_mismatch(event)
        elif event["event"] in ("completed", "canceled", "failed"):
            self._last = self._last or event
        else:
            self._on_event(event)

    def _cancel_is_overdue(self) -> bool:
        """Passes a cancel on: a file, then a signal. True when only killing is left."""
        if self._asked_at is None:
            if self._canceled():
                self._cancel_file.touch()
                self._asked_at = time.monotonic()
            return False
        waited_s = time.monotonic() - self._asked_at
        if waited_s > CANCEL_GRACE_S and self._terminated_at is None:
            self._terminated_at = time.monotonic()
            if _is_windows():
                return True
            terminate(self._process)
        return self._terminated_at is not None and time.monotonic() - self._terminated_at > TERMINATE_GRACE_S

    def _wait(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _kill(self) -> None:
        kill(self._process)
        self._wait(TERMINATE_GRACE_S)

    def _close(self) -> None:
        deadline = time.monotonic() + 2.0
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < deadline:
            try:
                self._lines.get(timeout=0.05)
            except queue.Empty:
                pass
        for stream, thread in zip((self._process.stdout, self._process.stderr), self._threads):
            if stream is not None and not thread.is_alive():
                stream.close()

    def _read_stdout(self) -> None:
        for line in bounded_lines(self._process.stdout):
            self._lines.put(line)
        self._lines.put(None)


class Log:
    """`engine.log`: what the engine wrote to stderr, and lines on stdout that are no events. Its size is bounded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("wb")
        self._lock = threading.Lock()
        self._size = 0

    def write(self, data: bytes) -> None:
        """Adds to the log; a log that grew too large starts again, its end tells more than its start."""
        with self._lock:
            if self._file.closed:
                return
            if self._size + len(data) > MAX_LOG_BYTES:
                self._file.seek(0)
                self._file.truncate()
                self._size = self._file.write(b"[the log before this line was dropped]\n")
            self._size += self._file.write(data[-MAX_LOG_BYTES:])
            self._file.flush()

    def drain(self, stream: IO[bytes]) -> None:
        """Reads a stream to its end, so that its writer never blocks."""
        while True:
            try:
                data = os.read(stream.fileno(), 65536)
            except (OSError, ValueError):
                return
            if not data:
                return
            self.write(data)

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def tail(self) -> str:
        """The end of the log as text."""
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace").strip()


def parse_event(line: bytes) -> Optional[dict[str, Any]]:
    """An event, or None for anything else that appears on stdout."""
    try:
        event = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and event.get("event") in EVENTS else None


def protocol_mismatch(event: Mapping[str, Any]) -> EngineFailed:
    """The failure of an engine whose first event names another protocol."""
    return EngineFailed(
        "PROTOCOL_MISMATCH",
        tr("The engine speaks protocol {theirs}, this plugin speaks {ours}.").format(
            theirs=event.get("protocol"), ours=PROTOCOL
        ),
        tr("Set up the engine again so that both have the same version."),
    )


def bounded_lines(stream: Optional[IO[bytes]]) -> Iterator[bytes]:
    """Lines of a stream; of a line longer than MAX_LINE_BYTES only the start is given."""
    while stream is not None:
        try:
            line = stream.readline(MAX_LINE_BYTES)
            if not line:
                return
            rest = line
            while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = stream.readline(MAX_LINE_BYTES)
        except (OSError, ValueError):
            return
        yield line


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def _outcome(
    job: Mapping[str, Any], last: Optional[dict[str, Any]], exit_code: Optional[int], log: Log
) -> dict[str, Any]:
    """Outputs of a finished run. Done means: the completed line, exit code 0, and the outputs are there."""
    kind = last["event"] if last else ""
    if last and kind == "failed":
        code, message, hint = (str(last.get(key) or "") for key in ("code", "message", "hint"))
        raise EngineFailed(code or "INTERNAL", message or tr("The engine failed without saying why."), hint)
    if kind == "canceled":
        raise EngineCanceled
    hint = tr("The end of its log: {path}").format(path=log.path)
    if not last or exit_code != 0:
        raise EngineCrashed(_ended_too_soon(bool(last), exit_code), hint, log.tail())
    outputs = last.get("outputs")
    outputs = outputs if isinstance(outputs, dict) else {}
    missing = [path for path in promised(job, outputs) if not os.path.exists(path)]
    if missing:
        text = tr("The engine said that it was done, but {path} is not there.").format(path=missing[0])
        raise EngineCrashed(text, hint, log.tail())
    return outputs


def _ended_too_soon(said_done: bool, exit_code: Optional[int]) -> str:
    if exit_code is None:
        if said_done:
            return tr("The engine said that it was done, but did not end and had to be stopped.")
        return tr("The engine ended before it was done and had to be stopped.")
    if said_done:
        return tr("The engine ended after it said that it was done with exit code {code}.").format(code=exit_code)
    return tr("The engine ended before it was done with exit code {code}.").format(code=exit_code)


# What a predict job may write of a raster, by its names in the outputs.
WRITTEN = ("class_raster", "confidence", "entropy", "outside", "polygons")


def promised(job: Mapping[str, Any], outputs: Mapping[str, Any]) -> list[str]:
    """Paths that must exist when a job is done: those that it was asked for, and those that it says it wrote."""
    asked = [job.get(key) for key in ("out", "onnx", "json_file")]
    rasters = outputs.get("rasters")
    entries = [entry for entry in rasters if isinstance(entry, dict)] if isinstance(rasters, list) else []
    wrote = [entry.get(key) for entry in entries for key in WRITTEN]
    wrote += [outputs.get(key) for key in ("model", "json", "onnx")]
    return [path for path in asked + wrote if isinstance(path, str) and path]
