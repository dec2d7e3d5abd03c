"""The plugin's windows on real Qt 6: every module is imported, everything is shown, clicked, chosen and typed into."""

import importlib
import inspect
import sys
import traceback
from pathlib import Path

import pytest
from PyQt6.QtCore import QCoreApplication, QEvent, Qt
from PyQt6.QtGui import QAction, QColor, QPalette
from PyQt6.QtTest import QTest
from PyQt6.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QDialog,
    QDockWidget,
    QFileDialog,
    QLineEdit,
    QMainWindow,
    QMenu,
    QMessageBox,
    QPushButton,
    QToolButton,
    QWidget,
)
from qgis import utils
from qgis.gui import QgsMapCanvas, QgsMessageBar

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "geopeft_qgis").rglob("*.py")
)


@pytest.fixture(scope="session")
def application():
    application = QApplication.instance() or QApplication([])
    yield application
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


@pytest.fixture(autouse=True)
def slots_must_not_fail(monkeypatch):
    """PyQt ends the process where an exception leaves a slot; here it fails the test."""
    raised = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: raised.append("".join(traceback.format_exception(*error))))
    yield
    assert not raised, "\n".join(raised)


@pytest.fixture(autouse=True)
def nothing_waits_for_an_answer(monkeypatch):
    """Dialogs that would wait for a person say at once that they were canceled."""
    for dialog in (QDialog, QMessageBox, QFileDialog, QMenu):
        monkeypatch.setattr(dialog, "exec", lambda *arguments: 0)
    for name in ("getOpenFileName", "getSaveFileName", "getOpenFileNames"):
        monkeypatch.setattr(QFileDialog, name, lambda *arguments, **named: ("", ""))
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *arguments, **named: "")
    for name in ("question", "information", "warning", "critical"):
        monkeypatch.setattr(QMessageBox, name, lambda *arguments, **named: QMessageBox.StandardButton.Cancel)


class Iface:
    """QGIS's window, as far as a plugin asks for it; keeps what is added."""

    def __init__(self):
        self.window = QMainWindow()
        self.bar = QgsMessageBar(self.window)
        self.canvas = QgsMapCanvas(self.window)
        self.there = []

    def mainWindow(self):
        return self.window

    def messageBar(self):
        return self.bar

    def mapCanvas(self):
        return self.canvas

    def addDockWidget(self, area, dock):
        self.window.addDockWidget(area, dock)

    def removeDockWidget(self, dock):
        self.window.removeDockWidget(dock)

    def registerOptionsWidgetFactory(self, factory):
        self.there.append(factory)

    def unregisterOptionsWidgetFactory(self, factory):
        self.there.remove(factory)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments, **named: None


@pytest.fixture
def plugin(application, monkeypatch):
    """The plugin in a window; afterwards it is taken away again."""
    from geopeft_qgis import classFactory

    iface = Iface()
    monkeypatch.setattr(utils, "iface", iface)
    plugin = classFactory(iface)
    plugin.initGui()
    iface.window.resize(1200, 900)
    iface.window.show()
    QCoreApplication.processEvents()
    yield iface
    plugin.unload()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    assert iface.there == []
    assert [dock.objectName() for dock in iface.window.findChildren(QDockWidget)] == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_imported(application, name):
    importlib.import_module(name)


def dock_of(iface):
    [dock] = iface.window.findChildren(QDockWidget)
    dock.show()
    return dock


def use(widget):
    """Does to a widget what a person can do to it."""
    if isinstance(widget, QComboBox):
        for index in range(min(widget.count(), 8)):
            widget.setCurrentIndex(index)
            widget.activated.emit(index)
    elif isinstance(widget, QAbstractSpinBox):
        widget.stepUp()
    elif isinstance(widget, QLineEdit):
        if not widget.isReadOnly():
            QTest.keyClicks(widget, "ab 1")
            QTest.keyClick(widget, Qt.Key.Key_Return)
    elif isinstance(widget, (QPushButton, QToolButton)) and widget.menu() is not None:
        # A menu would wait for a choice.
        widget.menu().aboutToShow.emit()
        use_actions(widget.menu())
    elif isinstance(widget, QAbstractButton):
        QTest.mouseClick(widget, Qt.MouseButton.LeftButton)
    else:
        QTest.mouseClick(widget, Qt.MouseButton.LeftButton)
        QTest.keyClick(widget, Qt.Key.Key_Down)
    QCoreApplication.processEvents()


def use_everything(window):
    """Every widget below a window that a person could use, one after the other; how many there were."""
    used = 0
    for widget in window.findChildren(QWidget):
        if widget.isVisible() and widget.isEnabled() and widget.focusPolicy() != Qt.FocusPolicy.NoFocus:
            use(widget)
            used += 1
    use_actions(window)
    return used


def use_actions(window):
    """Every action below a window or menu."""
    for action in window.findChildren(QAction):
        if action.isEnabled() and action.menu() is None:
            action.trigger()
            QCoreApplication.processEvents()


def test_the_dock_is_shown_and_everything_in_it_used(plugin):
    dock = dock_of(plugin)
    assert use_everything(dock) >= 5
    # What was unfolded, or became usable, by the first round.
    use_everything(dock)
    assert not dock.grab().isNull()


def widgets_of(name, iface):
    """An instance of each widget class of a module that needs nothing but QGIS's window."""
    module = importlib.import_module(name)
    for kind in [one for one in vars(module).values() if inspect.isclass(one) and one.__module__ == name]:
        if not issubclass(kind, QWidget) or issubclass(kind, QDockWidget):
            continue
        parameters = inspect.signature(kind.__init__).parameters
        if all(one.default is not one.empty or one.kind == one.VAR_POSITIONAL for one in list(parameters.values())[1:]):
            yield kind(iface) if "iface" in parameters else kind()


@pytest.mark.parametrize("name", [name for name in MODULES if ".gui." in name])
def test_a_widget_by_itself_is_shown_used_and_drawn(plugin, name):
    for widget in widgets_of(name, plugin):
        widget.resize(340, 600)
        widget.show()
        QCoreApplication.processEvents()
        use_everything(widget)
        # What is hidden until something happens must be drawn on Qt 6 too.
        for part in widget.findChildren(QWidget):
            if not part.isWindow():
                part.setVisible(True)
        QCoreApplication.processEvents()
        assert not widget.grab().isNull()
        getattr(widget, "end", lambda: None)()
        widget.deleteLater()


def test_the_dock_is_drawn_in_a_dark_theme(plugin, application):
    before = application.palette()
    dark = QPalette()
    for role in (QPalette.ColorRole.Window, QPalette.ColorRole.Base, QPalette.ColorRole.Button):
        dark.setColor(role, QColor("#202020"))
    application.setPalette(dark)
    try:
        QCoreApplication.processEvents()
        assert not dock_of(plugin).grab().isNull()
    finally:
        application.setPalette(before)


def test_the_options_page_is_shown_used_and_stored(plugin):
    [factory] = plugin.there
    page = factory.createWidget(plugin.window)
    page.resize(700, 500)
    page.show()
    assert use_everything(page) >= 3
    page.apply()
    assert not page.grab().isNull()


def test_algorithms_come_without_a_window(application):
    from qgis.core import QgsApplication

    from geopeft_qgis import classFactory

    plugin = classFactory(None)
    plugin.initProcessing()
    [provider] = QgsApplication.processingRegistry().providers()
    assert {algorithm.name() for algorithm in provider.algorithms()} >= {"fit", "predict", "evaluate", "export"}
    plugin.unload()
    assert QgsApplication.processingRegistry().providers() == []
