"""Looks for rasters in a folder without keeping the window waiting."""

from __future__ import annotations

import queue
import threading

from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal

from ..raster_files import split_patterns, walk, without_maps

MAX_FOUND = 20_000
POLL_MS = 50


class FolderScan(QObject):
    """Looks for rasters in a folder, in a thread; `found` comes once with their paths."""

    found = pyqtSignal(list)

    def __init__(self, folder: str, recursive: bool, parent: QObject) -> None:
        super().__init__(parent)
        self._folder, self._recursive = folder, recursive
        self._results: queue.Queue[list[str]] = queue.Queue()
        self._is_wanted = True
        self._poll = QTimer(self)
        self._poll.setInterval(POLL_MS)
        self._poll.timeout.connect(self._take)

    def start(self) -> None:
        """Begins to look."""
        threading.Thread(target=self._look, daemon=True, name="GeoPEFT rasters").start()
        self._poll.start()

    def end(self) -> None:
        """Stops looking."""
        self._is_wanted = False
        self._poll.stop()

    def _look(self) -> None:
        paths: list[str] = []
        for path in walk(self._folder, split_patterns(""), self._recursive):
            if not self._is_wanted or len(paths) >= MAX_FOUND:
                break
            paths.append(path)
        self._results.put(without_maps(paths))

    def _take(self) -> None:
        if not self._results.empty():
            self._poll.stop()
            self.found.emit(self._results.get_nowait())
            self.deleteLater()
