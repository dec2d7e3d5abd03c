"""A warm engine for interactive work: one process runs one job after another, and the newest wins.

Standard library only, not even qgis.
"""

from __future__ import annotations

import os
import queue
import subprocess  # nosec B404, the engine is a process of its own
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Optional

from . import engine_process
from .engine_process import EngineCanceled, EngineCrashed, EngineError, EngineFailed
from .language import tr

OnEvent = Callable[[dict[str, Any]], None]
# Gets the outputs, or what came instead of them: EngineFailed, EngineCrashed or EngineCanceled.
OnDone = Callable[[Optional[dict[str, Any]], Optional[Exception]], None]

MOST_RESTARTS, RESTARTS_WITHIN_S = 3, 60.0
# A busy machine may take minutes to load the engine's libraries.
START_LIMIT_S = 300.0
# A job that says nothing for so long is stuck.
SILENCE_LIMIT_S = 120.0
CANCEL_GRACE_S = 3.0
STOP_GRACE_S, TERMINATE_GRACE_S = 2.0, 1.0
CLOSE_LIMIT_S = 5.0
# More lines than this wait for the next look, so that a look stays short.
LINES_PER_POLL = 200
# Of a line that is no event.
MOST_NOISE_BYTES = 4096


@dataclass(eq=False)
class _Task:
    job: Mapping[str, Any]
    job_file: Path
    on_event: OnEvent
    on_done: OnDone
    canceled_at: Optional[float] = None


class EngineWorker:
    """`<command> worker` as a process that is started when it is needed, and again when it has crashed.

    Everything happens in the thread that calls the methods. `poll` has to be called a few times a second while the
    worker is `active`; callbacks are called from there. Two threads of its own do nothing but read.

    Args:
        command: gives how to start the engine, each time it is started; may raise EngineError.
        folder: where the engine runs, and where its `engine.log` is.
        env: the whole environment of the engine; None: the allowed part of this process's own.
    """

    def __init__(
        self, command: Callable[[], Sequence[str]], folder: Path, env: Optional[Mapping[str, str]] = None
    ) -> None:
        self._command = command
        self._folder = folder
        self._env = env
        self._process: Optional[_Process] = None
        self._running: Optional[_Task] = None
        self._next: Optional[_Task] = None
        self._crashes: list[float] = []
        self._log_tail = ""
        self._stopped_at: Optional[float] = None

    @property
    def active(self) -> bool:
        """Whether there is something to wait for: a job, or the end of a process."""
        return self._running is not None or self._next is not None or self._stopped_at is not None

    @property
    def pid(self) -> Optional[int]:
        """The process, where there is one."""
        return self._process.pid if self._process is not None else None

    def submit(self, job: Mapping[str, Any], folder: Path, on_event: OnEvent, on_done: OnDone) -> None:
        """Runs a job; one that runs or waits is canceled.

        Args:
            job: the job as plain data.
            folder: an own folder of this job; `job.json` and `cancel` go there.
            on_event: called with every event but the last.
            on_done: called once, when the job has ended in whatever way.

        Raises:
            OSError: the folder cannot be written.
        """
        task = _Task(job, engine_process.write_job(job, folder), on_event, on_done)
        self.cancel()
        self._next = task
        self.poll()

    def cancel(self) -> None:
        """Cancels the job that runs, and the one that waits for it."""
        if self._next is not None:
            waiting, self._next = self._next, None
            waiting.on_done(None, EngineCanceled())
        if self._running is not None and self._running.canceled_at is None:
            self._running.canceled_at = time.monotonic()
            try:
                (self._running.job_file.parent / "cancel").touch()
            except OSError:
                pass  # the grace time ends it

    def stop(self) -> None:
        """Ends the process, politely at first; `active` until it is gone. A later job starts another one."""
        self.cancel()
        if self._process is not None and self._stopped_at is None:
            self._stopped_at = time.monotonic()
            self._process.end_input()
            if not self._process.ready:
                self._process.kill()  # it would not look at its input before it has loaded everything

    def close(self) -> None:
        """As `stop`, and waits for it: at most five seconds."""
        self.stop()
        end = time.monotonic() + CLOSE_LIMIT_S
        while self.active and time.monotonic() < end:
            self.poll()
            time.sleep(0.01)
        if self._process is not None:
            self._process.kill()
            self._gone(self._process)

    def poll(self) -> None:
        """Hands on what the engine has said since the last time, and sees to its life."""
        if self._process is not None:
            self._read(self._process)
        if self._process is not None:
            self._watch(self._process)
        if self._next is not None and self._running is None and self._stopped_at is None:
            self._send(self._next)

    def _read(self, process: _Process) -> None:
        for _ in range(LINES_PER_POLL):
            line = process.next_line()
            if line is None:
                return
            event = engine_process.parse_event(line)
            if event is None:
                process.log.write(b"[stdout] " + line[:MOST_NOISE_BYTES].rstrip(b"\r\n") + b"\n")
            elif event["event"] == "ready":
                if event.get("protocol") != engine_process.PROTOCOL:
                    self._refuse(process, engine_process.protocol_mismatch(event))
                    return
                process.ready = True
            elif self._running is not None and event.get("job") == str(self._running.job_file):
                process.heard_at = time.monotonic()
                self._hear(self._running, event)

    def _hear(self, task: _Task, event: dict[str, Any]) -> None:
        if event["event"] == "completed":
            outputs = event.get("outputs")
            outputs = outputs if isinstance(outputs, dict) else {}
            missing = [path for path in engine_process.promised(task.job, outputs) if not os.path.exists(path)]
            if missing:
                text = tr("The engine said that it was done, but {path} is not there.").format(path=missing[0])
                self._done(None, EngineCrashed(text, self._log_hint(), ""))
            else:
                self._done(outputs, None)
        elif event["event"] == "canceled":
            self._done(None, EngineCanceled())
        elif event["event"] == "failed":
            code, message, hint = (str(event.get(key) or "") for key in ("code", "message", "hint"))
            self._done(None, EngineFailed(code or "INTERNAL", message, hint))
        else:
            task.on_event(event)

    def _done(self, outputs: Optional[dict[str, Any]], error: Optional[Exception]) -> None:
        task, self._running = self._running, None
        if task is not None:
            task.on_done(outputs, error)

    def _watch(self, process: _Process) -> None:
        """Notices an end, and brings it about where the process does not react."""
        now = time.monotonic()
        if process.has_ended(now):
            self._gone(process)
        elif self._stopped_at is not None:
            if now - self._stopped_at > STOP_GRACE_S + TERMINATE_GRACE_S:
                process.kill()
            elif now - self._stopped_at > STOP_GRACE_S:
                process.terminate()
        elif self._running is not None and self._running.canceled_at is not None:
            if now - self._running.canceled_at > CANCEL_GRACE_S:
                process.kill()
        elif now - process.heard_at > (SILENCE_LIMIT_S if process.ready else START_LIMIT_S) and self.active:
            process.kill()

    def _gone(self, process: _Process) -> None:
        """After the end of the process: whether it was wanted, and what becomes of its job."""
        tail = process.collect()
        wanted, self._process, self._stopped_at = self._stopped_at is not None, None, None
        task, self._running = self._running, None
        if not wanted:
            now = time.monotonic()
            self._crashes = [at for at in self._crashes if now - at < RESTARTS_WITHIN_S] + [now]
            self._log_tail = tail
        if task is None:
            return
        if wanted or task.canceled_at is not None:
            task.on_done(None, EngineCanceled())
        elif self._next is None:
            self._next = task
        else:
            task.on_done(None, EngineCanceled())

    def _send(self, task: _Task) -> None:
        if self._process is None:
            self._start()
        elif self._process.ready and self._process.write(f"{task.job_file}\n"):
            self._process.heard_at = time.monotonic()
            self._running, self._next = task, None

    def _start(self) -> None:
        now = time.monotonic()
        recent = [at for at in self._crashes if now - at < RESTARTS_WITHIN_S]
        try:
            if len(recent) > MOST_RESTARTS:
                text = tr("The engine of the preview has ended {count} times within a minute.").format(
                    count=len(recent)
                )
                raise EngineCrashed(text, self._log_hint(), self._log_tail)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._process = _Process([*self._command(), "worker"], self._folder, self._env)
        except (EngineError, OSError) as error:
            task, self._next = self._next, None
            if task is not None:
                task.on_done(None, error)

    def _refuse(self, process: _Process, error: EngineFailed) -> None:
        process.kill()
        process.collect()
        self._process = None
        task, self._next = self._next, None
        if task is not None:
            task.on_done(None, error)

    def _log_hint(self) -> str:
        return tr("The end of its log: {path}").format(path=self._folder / "engine.log")


class _Process:
    """One life of the engine."""

    def __init__(self, command: Sequence[str], folder: Path, env: Optional[Mapping[str, str]]) -> None:
        self.log = engine_process.Log(folder / "engine.log")
        try:
            self._process = engine_process.start(command, folder, env, stdin=subprocess.PIPE)
        except EngineError:
            self.log.close()
            raise
        self.pid = self._process.pid
        self.ready = False
        self.heard_at = time.monotonic()
        self._lines: queue.Queue[Optional[bytes]] = queue.Queue(maxsize=10000)
        self._ended = threading.Event()
        self._exit_at: Optional[float] = None
        self._threads = [
            threading.Thread(target=self._read_stdout, daemon=True, name="engine events"),
            threading.Thread(target=self.log.drain, args=(self._process.stderr,), daemon=True, name="engine log"),
        ]
        for thread in self._threads:
            thread.start()

    def next_line(self) -> Optional[bytes]:
        """A line of its stdout, or None where there is none now."""
        try:
            return self._lines.get_nowait()
        except queue.Empty:
            return None

    def write(self, text: str) -> bool:
        """Puts text into its stdin; False where it does not take any more."""
        stdin = self._process.stdin
        try:
            if stdin is None:
                return False
            stdin.write(text.encode("utf-8"))
            stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def end_input(self) -> None:
        """The end of its stdin is its sign to end."""
        _close(self._process.stdin)

    def has_ended(self, now: float) -> bool:
        """True once it is gone and all that it said has been taken; a child of its own may keep its stdout open."""
        if self._process.poll() is None:
            return False
        self._exit_at = self._exit_at or now
        return (self._ended.is_set() and self._lines.empty()) or now - self._exit_at > 1.0

    def terminate(self) -> None:
        """Asks it to end."""
        engine_process.terminate(self._process)

    def kill(self) -> None:
        """Ends it, with all that it started."""
        engine_process.kill(self._process)

    def collect(self) -> str:
        """Frees what is left of it, its children included; gives the end of its log."""
        engine_process.kill(self._process)
        try:
            self._process.wait(TERMINATE_GRACE_S)
        except subprocess.TimeoutExpired:
            pass  # the system will end it
        for thread in self._threads:
            thread.join(0.2)
        _close(self._process.stdin)
        for stream, thread in zip((self._process.stdout, self._process.stderr), self._threads):
            if not thread.is_alive():
                _close(stream)
        self.log.close()
        return self.log.tail()

    def _read_stdout(self) -> None:
        for line in engine_process.bounded_lines(self._process.stdout):
            self._lines.put(line)
        self._ended.set()


def _close(stream: Optional[IO[bytes]]) -> None:
    try:
        if stream is not None:
            stream.close()
    except OSError:
        pass  # what was not written has no reader any more
