"""Which model packages there are: found in folders or opened by the user, read in a thread, watched for changes."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Optional

from qgis.core import QgsProject
from qgis.PyQt.QtCore import QFileSystemWatcher, QObject, QTimer, pyqtSignal

from .. import settings
from ..model_package import SUFFIX, PackageError, Summary, read_manifest, summary

OPENED, HIDDEN = "models_opened", "models_hidden"
MAX_REMEMBERED = 50
MAX_IN_FOLDER = 2000
POLL_MS, CALM_MS = 30, 400


class Entry(NamedTuple):
    """A file that is or claims to be a model package. `error` is a sentence where it cannot be used."""

    path: str
    modified: float
    size_bytes: int
    summary: Optional[Summary]
    error: str

    @property
    def name(self) -> str:
        """What people call it: the name of the file, which they can change."""
        return Path(self.path).stem

    @property
    def accuracy(self) -> float:
        """For sorting; models without one come last."""
        value = self.summary.accuracy.value if self.summary else None
        return -1.0 if value is None else value


class ModelCatalogue(QObject):
    """The model packages of the models' folder and the project's folder, and those that the user has opened.

    `changed` comes when the entries have changed, `finished` when all files have been looked at. No file is read in
    the thread that asks.
    """

    changed = pyqtSignal()
    finished = pyqtSignal()

    def __init__(self, parent: Optional[QObject] = None) -> None:
        super().__init__(parent)
        self._entries: dict[str, Entry] = {}
        self._found: queue.Queue[tuple[int, dict[str, Entry]]] = queue.Queue()
        self._round = 0
        self._watcher = QFileSystemWatcher(self)
        self._watcher.directoryChanged.connect(self._folder_changed)
        self._poll = QTimer(self)
        self._poll.setInterval(POLL_MS)
        self._poll.timeout.connect(self._take)
        self._calm = QTimer(self)
        self._calm.setSingleShot(True)
        self._calm.setInterval(CALM_MS)
        self._calm.timeout.connect(self.refresh)
        QgsProject.instance().homePathChanged.connect(self.refresh)

    def entries(self) -> list[Entry]:
        """What is known now, without order."""
        return list(self._entries.values())

    def entry(self, path: str) -> Optional[Entry]:
        """The entry of a file, or None."""
        return self._entries.get(_key(path))

    def is_reading(self) -> bool:
        """True until all files have been looked at."""
        return self._poll.isActive()

    def refresh(self) -> None:
        """Looks at all folders and files again; returns at once."""
        self._round += 1
        folders = [os.path.abspath(folder) for folder in self._folders()]
        self._watch(folders)
        work = (self._round, folders, _remembered(OPENED), set(_remembered(HIDDEN)), dict(self._entries))
        threading.Thread(target=self._read, args=work, daemon=True, name="GeoPEFT models").start()
        self._poll.start()

    def add(self, path: str) -> None:
        """Remembers a file that the user has opened or made."""
        path = os.path.abspath(path)
        _remember(OPENED, [path, *(other for other in _remembered(OPENED) if _key(other) != _key(path))])
        _remember(HIDDEN, [key for key in _remembered(HIDDEN) if key != _key(path)])
        self.refresh()

    def remove(self, path: str) -> None:
        """Takes a file out of the list; the file stays where it is."""
        _remember(OPENED, [other for other in _remembered(OPENED) if _key(other) != _key(path)])
        if any(_key(os.path.dirname(path)) == _key(folder) for folder in self._folders()):
            _remember(HIDDEN, [_key(path), *_remembered(HIDDEN)])
        if self._entries.pop(_key(path), None) is not None:
            self.changed.emit()

    def end(self) -> None:
        """Stops watching; for when the plugin goes away."""
        self._round += 1
        self._poll.stop()
        self._calm.stop()
        QgsProject.instance().homePathChanged.disconnect(self.refresh)
        if self._watcher.directories():
            self._watcher.removePaths(self._watcher.directories())

    def _folders(self) -> list[str]:
        folders = [str(settings.models_folder()), QgsProject.instance().homePath()]
        return [folder for folder in folders if folder]

    def _watch(self, folders: Iterable[str]) -> None:
        wanted = {folder for folder in folders if os.path.isdir(folder)}
        watched = set(self._watcher.directories())
        if watched - wanted:
            self._watcher.removePaths(sorted(watched - wanted))
        if wanted - watched:
            self._watcher.addPaths(sorted(wanted - watched))

    def _folder_changed(self, _: str) -> None:
        # A training writes many files in a row: one look after the last is enough.
        self._calm.start()

    def _read(
        self, number: int, folders: list[str], opened: list[str], hidden: set[str], known: Mapping[str, Entry]
    ) -> None:
        """In a thread: all entries, those of files that have not changed from before."""
        found: dict[str, Entry] = {}
        for path in [*(path for folder in folders for path in _packages_in(folder)), *opened]:
            key = _key(path)
            if self._round != number:
                return
            if key not in found and key not in hidden:
                found[key] = read_entry(path, known.get(key))
        self._found.put((number, found))

    def _take(self) -> None:
        while not self._found.empty():
            number, entries = self._found.get_nowait()
            if number == self._round:
                self._poll.stop()
                if entries != self._entries:
                    self._entries = entries
                    self.changed.emit()
                self.finished.emit()


def read_entry(path: str, known: Optional[Entry] = None) -> Entry:
    """Reads what a file says of itself, unless it is the one that is known already."""
    try:
        status = os.stat(path)
        modified, size = status.st_mtime, status.st_size
    except (OSError, ValueError):
        modified, size = 0.0, 0
    if known is not None and (known.path, known.modified, known.size_bytes) == (path, modified, size):
        return known
    try:
        return Entry(path, modified, size, summary(read_manifest(path), size), "")
    except PackageError as error:
        return Entry(path, modified, size, None, str(error))


def _packages_in(folder: str) -> list[str]:
    try:
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIX) and name[0] != ".")
    except OSError:
        return []
    return [os.path.join(folder, name) for name in names[:MAX_IN_FOLDER]]


def _key(path: str) -> str:
    return os.path.normcase(os.path.abspath(path))


def _remembered(name: str) -> list[str]:
    try:
        found = json.loads(settings.get(name) or "[]")
    except ValueError:
        return []
    return [path for path in found if isinstance(path, str)] if isinstance(found, list) else []


def _remember(name: str, paths: Iterable[str]) -> None:
    kept = list(dict.fromkeys(paths))[:MAX_REMEMBERED]
    settings.put(name, json.dumps(kept, ensure_ascii=False) if kept else "")
