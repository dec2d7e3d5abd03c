"""One run of `geopeft:predictmany`, told raster by raster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Optional

from qgis.PyQt.QtCore import QObject, pyqtSignal

from .runs import AlgorithmRun, RunFeedback

ALGORITHM = "geopeft:predictmany"
# No more often than the eye sees, whatever the engine says.
TELL_EVERY_S = 0.1


class ApplyRun(QObject):
    """Maps rasters and says how each fares.

    Signals: `running` the raster (its place among those of the run) and its percent, `mapped` its place and what the
    engine wrote, `failed` its place and the reason as a sentence, `progressed` percent of the whole, `stepped` text
    with the time left, `said` level and text, and once `ended`: error text (empty: none) and whether it was canceled.

    Args:
        parameters: of the algorithm; the rasters are FILES.
        rasters: what the engine will be told to open, in this order.
    """

    running = pyqtSignal(int, float)
    mapped = pyqtSignal(int, dict)
    failed = pyqtSignal(int, str)
    progressed = pyqtSignal(float)
    stepped = pyqtSignal(str)
    said = pyqtSignal(str, str)
    ended = pyqtSignal(str, bool)

    def __init__(self, parameters: dict[str, Any], rasters: Sequence[str], parent: QObject) -> None:
        super().__init__(parent)
        self._places = {raster: place for place, raster in enumerate(rasters)}
        self._shares: list[float] = []
        self._finished = 0
        self._told_s = 0.0
        feedback = RunFeedback()
        feedback.said.connect(self.said)
        feedback.stepped.connect(self.stepped)
        feedback.measured.connect(self._measured)
        feedback.progressChanged.connect(self._progressed)
        self._run: Optional[AlgorithmRun] = AlgorithmRun(ALGORITHM, parameters, feedback, self)
        self._run.ended.connect(self._ended)

    def start(self) -> None:
        """Begins; `ended` may come before this returns, where the run cannot be prepared."""
        if self._run is not None:
            self._run.start()

    def cancel(self) -> None:
        """Asks the run to end; maps that are finished stay."""
        if self._run is not None:
            self._run.cancel()

    def end(self) -> None:
        """Ends the run and waits for it."""
        if self._run is not None:
            self._run.end()
            self._run = None

    def _measured(self, event: dict[str, Any]) -> None:
        if event.get("stage") != "raster":
            return
        if isinstance(event.get("shares"), list):
            self._shares = [float(share) for share in event["shares"] if isinstance(share, (int, float))]
            self.running.emit(0, 0.0)
            return
        self._finished += 1
        place = self._places.get(str(event.get("raster")), self._finished - 1)
        if isinstance(event.get("outputs"), dict):
            self.mapped.emit(place, event["outputs"])
        else:
            failure = event.get("failure")
            failure = failure if isinstance(failure, dict) else {}
            self.failed.emit(place, f"{failure.get('message', '')} {failure.get('hint', '')}".strip())
        if self._finished < len(self._places):
            self.running.emit(self._finished, 0.0)

    def _progressed(self, percent: float) -> None:
        """Percent of the whole; from it, that of the raster at work."""
        now = time.monotonic()
        if now - self._told_s < TELL_EVERY_S and percent < 100:
            return
        self._told_s = now
        self.progressed.emit(percent)
        if self._finished < len(self._shares):
            start = self._shares[self._finished - 1] if self._finished else 0.0
            width = self._shares[self._finished] - start
            part = (percent / 100 - start) / width if width > 0 else 1.0
            self.running.emit(self._finished, 100 * min(1.0, max(0.0, part)))

    def _ended(self, results: dict[str, Any], error: str, canceled: bool) -> None:
        self._run = None
        self.ended.emit(error, canceled)
