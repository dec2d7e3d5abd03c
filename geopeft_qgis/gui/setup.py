"""The panel that sets the engine up: what will be installed, one button, progress, and what can be done afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from qgis.core import QgsApplication
from qgis.PyQt.QtCore import QLocale, Qt, pyqtSignal
from qgis.PyQt.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from .. import engine_state, settings
from ..engine_kit import is_kit
from ..engine_steps import Progress
from .setup_labels import anchor, breakable, captions, link, short, text_label, time_left
from .setup_tasks import REMOVE, REPAIR, SET_UP, UPDATE, EngineSetup, has_own_python

OWN_ENGINE = "Use GeoPEFT's own engine"
STAGE_TEXTS = {
    "wait": "Another QGIS is setting the engine up; waiting for it",
    "clear": "Clearing away what a stopped installation left",
    "kit": "Checking the files of the offline kit",
    "uv": "Fetching the installer",
    "packages": "Fetching and unpacking the packages",
    "compile": "Preparing the packages for a quick start",
    "check": "Starting the engine once",
}


class SetupPanel(QWidget):
    """Shows one EngineSetup. The dock shows it while the engine is not ready, the options page always.

    Signals: `ready` when jobs can run; `said` with level and text for log and message bar.

    Args:
        setup: what is shown; None makes one that ends with the panel.
        manages: whether Repair and Remove are offered, as on the options page.
    """

    ready = pyqtSignal()
    said = pyqtSignal(str, str)

    def __init__(
        self, setup: Optional[EngineSetup] = None, manages: bool = False, parent: Optional[QWidget] = None
    ) -> None:
        super().__init__(parent)
        self.setObjectName("GeopeftSetupPanel")
        self.setup = setup or EngineSetup(self)
        self._owns_setup = setup is None
        self._manages = manages
        self._build()
        self._arrange()
        self._connect()
        self.refresh()
        if self.setup.machine is None:
            self.setup.look()

    @property
    def busy(self) -> bool:
        """True while something is being done to the engine."""
        return self.setup.busy

    def end(self) -> None:
        """Ends what this panel started; for when the plugin goes away."""
        if self._owns_setup:
            self.setup.end()

    # What is in the panel

    def _build(self) -> None:
        self.title = text_label("EngineTitle")
        font = self.title.font()
        font.setBold(True)
        self.title.setFont(font)
        self.text, self.problem, self.device = (
            text_label("EngineText"),
            text_label("EngineProblem"),
            text_label("EngineDevice"),
        )
        self.what, self.size_label, self.place = (
            text_label("EngineWhat"),
            text_label("EngineSize"),
            text_label("EnginePlace"),
        )
        self.kit = text_label("EngineKit")
        self.progress = QProgressBar()
        self.progress.setObjectName("EngineProgress")
        self.progress.setRange(0, 1000)
        self.stage = text_label("EngineStage")
        self.main_button = QPushButton()
        self.main_button.setObjectName("EngineButton")
        self.main_button.setMinimumHeight(36)
        self.main_button.setFont(font)
        self.cancel_button = self._button("EngineCancel", self.tr("Cancel"))
        self.cancel_button.setToolTip(self.tr("Stops; what was downloaded is kept for the next time."))
        self.folder_link = link("EngineFolder", self.tr("Change folder …"))
        self.folder_link.setToolTip(self.tr("Another place for the engine's environment, such as a larger disk."))
        self.own_link = link("EngineOwn", self.tr("Use my own Python environment …"))
        self.own_link.setToolTip(
            self.tr("A Python with PyTorch and the other packages, such as one with another build of CUDA.")
        )
        self.kit_link = link("EngineKitLink", self.tr("Install from an offline kit …"))
        self.kit_link.setToolTip(
            self.tr("A folder made by 'python3 build.py kit' on a machine with a network; none is used here.")
        )
        self.back_link = link("EngineBack", "")
        self.copy_link = link("EngineCopy", self.tr("Copy diagnostics"))
        self.copy_link.setToolTip(
            self.tr("Copies a report for a bug report, without passwords, names and home folders.")
        )
        self.repair_button = self._button("EngineRepair", self.tr("Repair"))
        self.repair_button.setToolTip(self.tr("Makes the environment anew; damaged packages are fetched again."))
        self.remove_button = self._button("EngineRemove", self.tr("Remove …"))
        self.remove_button.setToolTip(self.tr("Deletes the engine's environment; models and weights stay."))

    def _button(self, name: str, text: str) -> QPushButton:
        button = QPushButton(text)
        button.setObjectName(name)
        return button

    def _arrange(self) -> None:
        self.facts, self.offer = QWidget(), QWidget()
        rows = ((self.tr("Installs"), self.what), (self.tr("Size"), self.size_label))
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        warning = QHBoxLayout()
        self.icon = QLabel()
        self.icon.setPixmap(QgsApplication.getThemeIcon("/mIconWarning.svg").pixmap(16, 16))
        warning.addWidget(self.icon, 0, Qt.AlignmentFlag.AlignTop)
        warning.addWidget(self.problem, 1)
        captions(self.offer, rows)
        captions(self.facts, ((self.tr("Folder"), self.place), ("", self.folder_link)))
        for widget in (self.title, self.text, self.device, self.offer, self.facts, self.kit):
            column.addWidget(widget)
        column.addLayout(warning)
        buttons = QHBoxLayout()
        for button in (self.repair_button, self.remove_button):
            buttons.addWidget(button)
        buttons.addStretch(1)
        for widget in (self.main_button, self.progress, self.stage, self.cancel_button):
            column.addWidget(widget)
        column.addLayout(buttons)
        for way in (self.back_link, self.own_link, self.kit_link, self.copy_link):
            column.addWidget(way)

    def _connect(self) -> None:
        self.setup.changed.connect(self.refresh)
        self.setup.progressed.connect(self._show_progress)
        self.setup.said.connect(self.said)
        self.setup.ready.connect(self.ready)
        self.main_button.clicked.connect(self.start)
        self.cancel_button.clicked.connect(self._cancel)
        self.folder_link.linkActivated.connect(self._choose_folder)
        self.own_link.linkActivated.connect(self._choose_own)
        self.kit_link.linkActivated.connect(self._choose_kit)
        self.back_link.linkActivated.connect(self._go_back)
        self.repair_button.clicked.connect(lambda: self.setup.set_up(REPAIR))
        self.remove_button.clicked.connect(self._measure_and_remove)
        self.copy_link.linkActivated.connect(self.copy_diagnostics)

    # What is shown

    def refresh(self) -> None:
        """Brings everything up to date with the engine and what runs."""
        state = self.setup.state
        busy, ready = self.setup.busy, state.kind == engine_state.READY
        own, kit = has_own_python(), settings.get("kit_folder")
        self.title.setText(self._title(state.kind))
        text = self._text(state.kind)
        self.text.setText(text)
        self.text.setVisible(bool(text))
        self.device.setText(self.setup.device)
        self.device.setVisible(ready and bool(self.setup.device) and not self._manages)
        refused = state.kind in (engine_state.OWN_GONE, engine_state.OWN_REFUSED, engine_state.BROKEN)
        problem = "" if busy else self.setup.error or (state.sentence if refused else "")
        self.problem.setText(problem)
        for part in (self.problem, self.icon):
            part.setVisible(bool(problem))
        self._show_facts()
        self.facts.setVisible(not own and not (busy and self.setup.action == REMOVE))
        self.offer.setVisible(not own and not ready and self.setup.action != REMOVE)
        self.folder_link.setVisible(not busy)
        self.kit.setText(self.tr("From the offline kit {path}").format(path=kit))
        self.kit.setVisible(bool(kit) and not own and not ready)
        self.main_button.setText(self._action_text(state.kind))
        self.main_button.setVisible(not busy and not ready and (not own or bool(settings.get("engine_python"))))
        self.cancel_button.setVisible(busy)
        self.cancel_button.setEnabled(busy)
        self.progress.setVisible(busy)
        self.stage.setVisible(busy)
        back = self.tr(OWN_ENGINE) if own else self.tr("Download instead of using the kit")
        self.back_link.setText(anchor(back))
        leaves_own = ready and bool(settings.get("engine_python"))
        self.back_link.setVisible(not busy and (leaves_own or bool(kit and not ready)))
        # The options page has fields for these two.
        self.own_link.setVisible(not busy and not self._manages)
        self.kit_link.setVisible(not busy and not ready and not own and not self._manages)
        self.repair_button.setVisible(self._manages and not busy and ready and not own)
        self.remove_button.setVisible(self._manages and not busy and not own and (ready or self.setup.stopped))
        self.copy_link.setVisible(self._manages or bool(problem))

    def _title(self, kind: str) -> str:
        if self.setup.busy:
            removing = self.setup.action == REMOVE
            return self.tr("Removing the engine") if removing else self.tr("Setting up the engine")
        if self.setup.stopped:
            return self.tr("The engine is not set up yet")
        return {
            engine_state.READY: self.tr("The engine is ready"),
            engine_state.OUTDATED: self.tr("The engine needs an update"),
            engine_state.BROKEN: self.tr("The engine is damaged"),
            engine_state.OWN_GONE: self.tr("Your Python cannot be used"),
            engine_state.OWN_REFUSED: self.tr("Your Python cannot be used"),
        }.get(kind, self.tr("One step before the first map"))

    def _text(self, kind: str) -> str:
        if self.setup.busy:
            return self.tr("You can go on working in QGIS meanwhile.") if self.setup.action != REMOVE else ""
        if self.setup.stopped and not self.setup.error:
            return self.tr("Stopped. What was downloaded so far is kept.")
        if kind == engine_state.READY:
            own = self.tr("Jobs run with your Python {path}.")
            return own.format(path=engine_state.own_python()) if has_own_python() else ""
        if kind == engine_state.OUTDATED:
            return self.tr(
                "It was made for another version of GeoPEFT and is not used. Packages that stay the same are kept."
            )
        if kind == engine_state.MISSING:
            return self.tr(
                "GeoPEFT computes in a Python environment of its own, made once. QGIS and its Python stay as they are."
            )
        return ""

    def _action_text(self, kind: str) -> str:
        if self.setup.stopped:
            return self.tr("Resume")
        if kind == engine_state.OUTDATED:
            return self.tr("Update the engine")
        if has_own_python():
            return self.tr(OWN_ENGINE)
        return self.tr("Repair the engine") if kind == engine_state.BROKEN else self.tr("Set up the engine")

    def _show_facts(self) -> None:
        machine = self.setup.machine
        card = machine.card if machine else ""
        if not machine:
            device = self.tr("looking at this machine …")
        else:
            device = self.tr("for the GPU {name}").format(name=card) if card else self.tr("for the CPU: no NVIDIA GPU")
        self.what.setText(self.tr("PyTorch and what it needs, {device}").format(device=device))
        if machine:
            number = QLocale()
            sizes = (machine.download_gb, 1), (machine.disk_gb, 1), (machine.free_gb, 0)
            download, disk, free = (number.toString(size, "f", digits) for size, digits in sizes)
            if settings.get("kit_folder"):
                text = self.tr("{disk} GB on disk ({free} GB are free), nothing to download")
            else:
                text = self.tr("{download} GB to download, {disk} GB on disk ({free} GB are free)")
            self.size_label.setText(text.format(download=download, disk=disk, free=free))
        self.place.setText(breakable(short(engine_state.home())))
        self.place.setToolTip(str(engine_state.home()))

    def _show_progress(self, progress: Progress) -> None:
        self.progress.setRange(0, 0 if progress.stage == "wait" else 1000)
        self.progress.setValue(round(1000 * progress.done))
        unpacks = progress.stage == "packages" and bool(settings.get("kit_folder"))
        parts = [self.tr("Unpacking the packages") if unpacks else self.tr(STAGE_TEXTS[progress.stage])]
        if progress.total_bytes and progress.stage == "packages":
            text = self.tr("{done} of {total} GB")
            number = QLocale()
            done, total = progress.done_bytes / 1e9, progress.total_bytes / 1e9
            parts.append(text.format(done=number.toString(done, "f", 2), total=number.toString(total, "f", 2)))
        if progress.eta_s is not None and progress.done < 1:
            parts.append(time_left(progress.eta_s))
        self.stage.setText(", ".join(parts))

    # What can be done

    def start(self) -> None:
        """The big button."""
        if has_own_python():
            self._go_back()
            return
        kind = self.setup.state.kind
        self.stage.setText(self.tr("Starting …"))
        self.progress.setValue(0)
        self.setup.set_up(
            {engine_state.OUTDATED: UPDATE, engine_state.BROKEN: REPAIR}.get(kind, self._again() or SET_UP)
        )

    def _again(self) -> str:
        """A repair that was stopped goes on as one."""
        return REPAIR if self.setup.stopped and self.setup.action == REPAIR else ""

    def _cancel(self) -> None:
        self.cancel_button.setEnabled(False)
        self.stage.setText(self.tr("Stopping …"))
        self.setup.cancel()

    def _choose_folder(self) -> None:
        title = self.tr("Folder for the engine's environment")
        folder = QFileDialog.getExistingDirectory(self, title, str(engine_state.home()))
        if folder:
            self.take_folder(folder)

    def take_folder(self, folder: str) -> None:
        """The engine's environment shall live there."""
        self._tell(self.setup.use_folder(folder))

    def _choose_own(self) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, self.tr("The Python of your environment"), engine_state.own_python()
        )
        if path:
            self.setup.use_own(path)

    def _choose_kit(self) -> None:
        folder = QFileDialog.getExistingDirectory(
            self, self.tr("Folder of the offline kit"), settings.get("kit_folder")
        )
        if folder:
            self.take_kit(folder)

    def take_kit(self, folder: str) -> None:
        """Installs from an offline kit from now on."""
        if not is_kit(Path(folder)):
            text = self.tr("There is no offline kit in {path}: it holds the file kit.json. Choose another folder.")
            self._tell(text.format(path=folder))
            return
        settings.put("kit_folder", folder)
        self.refresh()
        self.start()

    def _go_back(self) -> None:
        if has_own_python():
            self.setup.use_own("")
        else:
            settings.put("kit_folder", "")
        self.refresh()

    def _tell(self, problem: str) -> None:
        """Shows what is wrong with a choice, in the panel."""
        self.setup.error = problem
        if problem:
            self.said.emit("warning", problem)
        self.refresh()

    def _measure_and_remove(self) -> None:
        self.remove_button.setEnabled(False)
        self.setup.measure(self._ask_and_remove)

    def _ask_and_remove(self, size_gb: float) -> None:
        self.remove_button.setEnabled(True)
        text = self.tr("Remove the engine? This gives {size} GB back; models and weights are kept.")
        if self.confirm(text.format(size=QLocale().toString(size_gb, "f", 1))):
            self.setup.remove()

    def confirm(self, question: str) -> bool:
        """Asks before something is deleted."""
        return bool(QMessageBox.question(self, "GeoPEFT", question) == QMessageBox.StandardButton.Yes)

    def copy_diagnostics(self) -> None:
        """Puts the report on the clipboard, after the seconds that it takes."""
        self.copy_link.setEnabled(False)
        self.copy_link.setText(self.tr("Collecting …"))
        self.setup.diagnose(self._copy)

    def _copy(self, text: str) -> None:
        QgsApplication.clipboard().setText(text)
        self.copy_link.setText(anchor(self.tr("Diagnostics copied; copy again")))
        self.copy_link.setEnabled(True)
