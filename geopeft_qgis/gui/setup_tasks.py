"""Setting up, repairing, removing and looking at the engine, in threads: what panel and options page share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional

from qgis.core import QgsApplication, QgsTask
from qgis.PyQt.QtCore import QCoreApplication, QObject, pyqtSignal

from .. import device_text, diagnostics, engine_environment, engine_install, engine_state, qgis_network, settings
from ..engine_steps import InstallCanceled, InstallError, Progress

END_WAIT_MS = 9000
SET_UP, REPAIR, UPDATE, REMOVE = "set_up repair update remove".split()


class Machine(NamedTuple):
    """What the panel tells before anything is installed."""

    card: str  # name of the NVIDIA card, or empty
    download_gb: float
    disk_gb: float
    free_gb: float


class BackgroundTask(QgsTask):
    """Calls `work(task)` in a thread; `ended` comes once, in the main thread: result, error sentence, canceled."""

    ended = pyqtSignal(object, str, bool)
    said = pyqtSignal(str)
    told = pyqtSignal(object)

    def __init__(self, title: str, work: Callable[[BackgroundTask], Any], hidden: bool = False) -> None:
        flags = QgsTask.Flag.CanCancel
        if hidden:
            # Small looks at the machine are nothing to tell the user of; QGIS before 3.26 shows them all the same.
            with contextlib.suppress(AttributeError):
                flags = flags | QgsTask.Flag.Hidden | QgsTask.Flag.Silent
        super().__init__(title, flags)
        self._work = work
        self._result: Any = None
        self._error = ""
        self._canceled = False

    def run(self) -> bool:
        """In a thread of its own."""
        try:
            self._result = self._work(self)
        except InstallCanceled:
            self._canceled = True
        except InstallError as error:
            self._error = f"{error.message} {error.hint}".strip()
        except Exception as error:  # an exception must never leave a task
            text = QCoreApplication.translate("GeoPEFT", "This could not be done ({reason}). Report it, please.")
            self._error = text.format(reason=f"{type(error).__name__}: {error}")
        return not self._error and not self._canceled

    def tell(self, progress: Progress) -> None:
        """Progress, from the thread."""
        self.setProgress(100 * progress.done)
        self.told.emit(progress)

    def finished(self, result: bool) -> None:
        """In the main thread."""
        canceled = self._canceled or (self.isCanceled() and not self._error)
        self.ended.emit(self._result, self._error, canceled)


class EngineSetup(QObject):
    """The engine of this QGIS: its state, and the one thing that is being done to it.

    Signals: `changed` when state, machine, probe or what runs is another; `progressed` with a Progress; `said` with
    level and text for log and message bar; `ready` when an engine has become usable; `about_to_change` before the
    environment is replaced or removed, so that whatever runs in it can end.
    """

    changed = pyqtSignal()
    progressed = pyqtSignal(object)
    said = pyqtSignal(str, str)
    ready = pyqtSignal()
    about_to_change = pyqtSignal()

    def __init__(self, parent: Optional[QObject] = None) -> None:
        super().__init__(parent)
        self.error = ""  # why the last attempt failed, a sentence with a next step
        self.stopped = False  # True after a cancel or a failure: what was downloaded is kept
        self.machine: Optional[Machine] = None
        self.told: dict[str, Any] = {}  # what the engine's probe told
        self.action = ""
        self._task: Optional[BackgroundTask] = None
        self._looks: list[BackgroundTask] = []

    @property
    def busy(self) -> bool:
        """True while the engine is set up, repaired or removed."""
        return self._task is not None

    @property
    def state(self) -> engine_state.EngineState:
        """The engine as it is now."""
        return engine_state.state()

    @property
    def device(self) -> str:
        """What the engine computes on, a sentence; empty until it was asked."""
        return device_text.summary(self.told, settings.device())

    # What can be done

    def set_up(self, action: str = SET_UP) -> None:
        """Makes, updates or (REPAIR) renews the plugin's own environment; from the offline kit where one is chosen."""
        if self.busy:
            return
        if action != SET_UP:
            self.about_to_change.emit()
        kit = settings.get("kit_folder")
        choices = engine_install.Choices(
            folder=engine_state.home(),
            wheels=Path(kit) if kit else None,
            own_cache=True,
            network=qgis_network.for_installer(),
        )

        def work(task: BackgroundTask) -> Path:
            repair = action == REPAIR
            return engine_install.ensure(None, task.said.emit, task.isCanceled, repair, choices, task.tell)

        self._start(action, self.tr("GeoPEFT: setting up the engine"), work, self._set_up_ended)

    def remove(self) -> None:
        """Takes the plugin's own environment away; models and weights stay."""
        if self.busy:
            return
        self.about_to_change.emit()
        place = engine_state.home()
        title = self.tr("GeoPEFT: removing the engine")
        self._start(REMOVE, title, lambda task: engine_install.remove(None, place, task.isCanceled), self._remove_ended)

    def use_own(self, python: str) -> None:
        """Takes a Python of the user's own, and looks at it; the plugin's own engine again where it is empty."""
        settings.put("engine_python", python)
        self._forget()
        self.check()

    def use_folder(self, folder: str) -> str:
        """Where the plugin's own environment shall live; why not, or empty."""
        problem = engine_state.folder_problem(Path(folder)) if folder else ""
        if not problem:
            settings.put("engine_folder", folder)
            self._forget()
            self.look()
        return problem

    def cancel(self) -> None:
        """Asks what runs to end; it takes a moment."""
        if self._task is not None:
            self._task.cancel()

    def end(self) -> None:
        """Ends everything and waits for it; for when the plugin goes away."""
        for task in [*self._looks, *([self._task] if self._task else [])]:
            task.ended.disconnect()
            task.cancel()
            task.waitForFinished(END_WAIT_MS)
        self._looks, self._task = [], None

    # Looking, in the background

    def look(self) -> None:
        """Finds out about the machine: card, sizes, free space."""
        place = engine_state.home()

        def work(task: BackgroundTask) -> Machine:
            card = engine_install.nvidia_card()
            download, disk = engine_install.expected_gb(engine_install.variant_here())
            return Machine(card, download, disk, engine_environment.free_bytes(place) / 1e9)

        self._look(work, self._looked)

    def measure(self, then: Callable[[float], None]) -> None:
        """Calls `then` with the GB that `remove` would give back."""
        place = engine_state.home()

        def work(task: BackgroundTask) -> float:
            return engine_environment.freed_bytes(engine_install.removable(None, place)) / 1e9

        self._look(work, then)

    def diagnose(self, then: Callable[[str], None]) -> None:
        """Calls `then` with the diagnostics report."""
        gathered = diagnostics.in_main_thread(self.error)
        self._look(lambda task: diagnostics.report(gathered), then)

    def check(self) -> None:
        """Starts the engine that there is, and asks it for version and devices."""
        state = self.state
        own = engine_state.own_python()
        python = state.python or (Path(own) if own and Path(own).is_file() else None)
        if python is None:
            self.told = {}
            self.changed.emit()
        else:
            self._look(lambda task: engine_state.check(python), self._checked)

    def _look(self, work: Callable[[BackgroundTask], Any], ended: Callable[..., None]) -> None:
        task = BackgroundTask(self.tr("GeoPEFT: looking at the engine"), work, hidden=True)
        self._looks.append(task)

        def done(result: Any, error: str, canceled: bool) -> None:
            if task in self._looks:
                self._looks.remove(task)
                if result is not None:
                    ended(result)
                elif error:
                    self.said.emit("log", error)

        task.ended.connect(done)
        QgsApplication.taskManager().addTask(task)

    def _looked(self, machine: Machine) -> None:
        self.machine = machine
        self.changed.emit()

    def _checked(self, told: Mapping[str, Any]) -> None:
        self.told = dict(told)
        state = self.state
        self.changed.emit()
        if state.kind == engine_state.READY:
            self.ready.emit()
        elif state.sentence:
            self.said.emit("warning", state.sentence)

    # Starting and ending

    def _start(self, action: str, title: str, work: Callable[[BackgroundTask], Any], ended: Any) -> None:
        self.action, self.error, self.stopped = action, "", False
        task = BackgroundTask(title, work)
        task.told.connect(self.progressed)
        task.said.connect(lambda text: self.said.emit("log", text))
        task.ended.connect(ended)
        self._task = task
        QgsApplication.taskManager().addTask(task)
        self.changed.emit()

    def _set_up_ended(self, python: Optional[Path], error: str, canceled: bool) -> None:
        self._task = None
        if error or canceled:
            self._stop(error)
            return
        weights = engine_state.home() / "weights"
        if settings.get("kit_folder") and weights.is_dir() and not settings.weights_folder():
            settings.put("weights_folder", str(weights))
        self._forget()
        self.said.emit("success", self.tr("The engine is ready."))
        self.changed.emit()
        self.look()
        self.check()

    def _remove_ended(self, freed: Optional[int], error: str, canceled: bool) -> None:
        self._task = None
        if error or canceled:
            self._stop(error)
            return
        self._forget()
        self.told = {}
        text = self.tr("The engine is removed; {size} GB are free again. Models and weights are kept.")
        self.said.emit("success", text.format(size=f"{(freed or 0) / 1e9:.1f}"))
        self.changed.emit()
        self.look()

    def _stop(self, error: str) -> None:
        self.error, self.stopped = error, True
        if error:
            self.said.emit("error", error)
        self.changed.emit()
        self.look()

    def _forget(self) -> None:
        engine_state.forget()
        self.error, self.stopped = "", False


def has_own_python() -> bool:
    """Whether jobs run in a Python of the user's own."""
    return bool(settings.get("engine_python") or os.environ.get("GEOPEFT_ENGINE_PYTHON"))
