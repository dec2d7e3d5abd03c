"""What a running job says: one JSON object a line, ended by exactly one of completed, canceled, failed."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

from geopeft.errors import Canceled, GeopeftError

Level = Literal["info", "warning"]
RESERVE_BYTES = 1 << 18
TERMINAL = ("completed", "canceled", "failed")


class Reporter:
    """Sends events. A file `folder/cancel` asks the job to end without its result; `folder/stop` asks it to end early
    with the best result so far.

    Args:
        stream: where the JSON lines go; None says nothing (library use, tests).
        folder: the job's folder, watched for files called `cancel` and `stop`.
        progress_stream: a terminal for people: progress and messages as text.

    Attributes:
        can_stop: set by a job as soon as it has something that is worth keeping; before that a stop is a cancel.
    """

    def __init__(
        self, stream: IO[str] | None = None, folder: Path | None = None, progress_stream: IO[str] | None = None
    ) -> None:
        self._stream = stream
        self._cancel = folder / "cancel" if folder else None
        self._stop = folder / "stop" if folder else None
        self.can_stop = False
        self._terminal = progress_stream
        self._stage_start: dict[str, tuple[float, int]] = {}
        self._last_progress = 0.0
        self._on_progress_line = False
        self.messages: list[str] = []
        self.warnings: list[str] = []
        # Given back when a job has failed, so that it can be said where no memory is left to say it.
        self._reserve = bytearray(RESERVE_BYTES) if stream is not None else bytearray()

    def make_room(self) -> None:
        """Gives memory back that was kept for the last event."""
        self._reserve = bytearray()

    @property
    def keeps_log(self) -> bool:
        """True where a program listens and stderr is a log file."""
        return self._stream is not None

    def emit(self, event: str, **fields: Any) -> None:
        """One event. A broken stream means that nobody listens any more, which is a cancel."""
        if self._stream is not None:
            line = json.dumps({"event": event, **fields}, ensure_ascii=False, allow_nan=False)
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (BrokenPipeError, OSError) as error:
                self._stream = None
                raise Canceled from error

    def check_canceled(self) -> None:
        """Raises Canceled when the user asked for it; call at least once a second."""
        if self._cancel is not None and self._cancel.exists():
            raise Canceled
        if not self.can_stop and self.stop_requested():
            self.message("Stopped before there was anything to keep.")
            raise Canceled

    def stop_requested(self) -> bool:
        """Whether the user asked the job to end early and to keep the best result so far."""
        return self._stop is not None and self._stop.exists()

    def progress(self, stage: str, current: int, total: int, at_most_s: float = math.inf) -> None:
        """`current` of `total` steps of `stage` are done. Also the point where a cancel takes effect.

        Args:
            at_most_s: seconds after which the stage ends anyway, which bounds the time that is told to be left.
        """
        self.check_canceled()
        now = time.monotonic()
        start, first = self._stage_start.setdefault(stage, (now, current))
        if current < total and now - self._last_progress < 0.1:
            return
        self._last_progress = now
        done = current - first
        eta_s = round(min((now - start) / done * (total - current), max(at_most_s, 0.0)), 1) if done > 0 else None
        self.emit("progress", stage=stage, current=current, total=total, eta_s=eta_s)
        if self._terminal is not None:
            eta = f", {eta_s:.0f} s left" if eta_s else ""
            self._terminal.write(f"\r{stage}: {current}/{total}{eta}\x1b[K" if self._terminal.isatty() else "")
            self._terminal.flush()
            self._on_progress_line = self._terminal.isatty()

    def metric(self, stage: str, step: int, values: Mapping[str, float], total: int | None = None) -> None:
        """Figures of one step, for a live curve. Figures that are not finite are left out.

        Args:
            total: the step at which the curve will end, where that is known.
        """
        finite = {name: round(float(v), 6) for name, v in values.items() if abs(float(v)) < float("inf")}
        self.emit("metric", stage=stage, step=step, values=finite, **({} if total is None else {"total": total}))

    def message(self, text: str, level: Level = "info") -> None:
        """A sentence for the user: what was assumed, what was left out."""
        self.messages.append(text)
        if level == "warning":
            self.warnings.append(text)
        self.emit("message", level=level, text=text)
        self._say(f"warning: {text}" if level == "warning" else text)

    def warn(self, text: str) -> None:
        """A message that the user should not miss."""
        self.message(text, "warning")

    def preview(self, **fields: Any) -> None:
        """An early result that can be shown while the job goes on."""
        self.emit("preview", **fields)

    def completed(self, outputs: Mapping[str, Any]) -> None:
        """The job is done and its outputs are there."""
        self.emit("completed", outputs=outputs)

    def canceled(self) -> None:
        """The job has stopped because the user asked for it."""
        self.emit("canceled")
        self._say("Canceled.")

    def failed(self, error: GeopeftError) -> None:
        """The job has ended without its result."""
        self.emit("failed", code=error.code, message=error.message, hint=error.hint)
        self._say(f"error [{error.code}]: {error.message} {error.hint}".rstrip())

    def _say(self, text: str) -> None:
        if self._terminal is None:
            return
        start = "\n" if self._on_progress_line else ""
        self._on_progress_line = False
        self._terminal.write(f"{start}{text}\n")
        self._terminal.flush()


def terminal_reporter() -> Reporter:
    """For the command line: sentences and a progress line on stderr."""
    return Reporter(progress_stream=sys.stderr)
