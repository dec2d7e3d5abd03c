"""The plugin comes and goes without a trace."""

# ruff: noqa: N802, the names are QGIS's

import configparser
from pathlib import Path

import pytest
from qgis.core import QgsApplication
from qgis.gui import QgsMapCanvas, QgsMessageBar
from qgis.PyQt.QtWidgets import QMainWindow

ROOT = Path(__file__).resolve().parents[2]


class FakeIface:
    """Counts what a plugin adds to QGIS's window."""

    def __init__(self):
        self.window = QMainWindow()
        self.bar = QgsMessageBar(self.window)
        self.canvas = QgsMapCanvas(self.window)
        self.there = []

    def mainWindow(self):
        return self.window

    def mapCanvas(self):
        return self.canvas

    def layerTreeView(self):
        return None

    def activeLayer(self):
        return None

    def messageBar(self):
        return self.bar

    def addDockWidget(self, area, dock):
        self.window.addDockWidget(area, dock)
        self.there.append(dock)

    def removeDockWidget(self, dock):
        self.window.removeDockWidget(dock)
        self.there.remove(dock)

    def addToolBarIcon(self, action):
        self.there.append(("toolbar", action))

    def removeToolBarIcon(self, action):
        self.there.remove(("toolbar", action))

    def addPluginToRasterMenu(self, menu, action):
        self.there.append((menu, action))

    def removePluginRasterMenu(self, menu, action):
        self.there.remove((menu, action))

    def registerOptionsWidgetFactory(self, factory):
        self.there.append(factory)

    def unregisterOptionsWidgetFactory(self, factory):
        self.there.remove(factory)

    def registerCustomDropHandler(self, handler):
        self.there.append(handler)

    def unregisterCustomDropHandler(self, handler):
        self.there.remove(handler)


def provider_ids():
    return [p.id() for p in QgsApplication.processingRegistry().providers()]


def test_loading_and_unloading_twice_leaves_nothing(qgis_app):
    from geopeft_qgis import classFactory

    before = provider_ids()
    for _ in range(2):
        iface = FakeIface()
        plugin = classFactory(iface)
        plugin.initGui()
        assert provider_ids() == [*before, "geopeft"] or set(provider_ids()) == {*before, "geopeft"}
        assert len(iface.there) == 5
        plugin.unload()
        assert iface.there == [] and provider_ids() == before


def test_qgis_process_needs_no_window(qgis_app):
    from geopeft_qgis import classFactory

    before = provider_ids()
    plugin = classFactory(None)
    plugin.initProcessing()
    assert "geopeft" in provider_ids()
    plugin.unload()
    assert provider_ids() == before


@pytest.mark.fault("E15")
def test_an_own_engine_that_is_gone_is_named(qgis_app, tmp_path):
    from geopeft_qgis import settings

    settings.put("engine_python", str(tmp_path / "gone"))
    try:
        with pytest.raises(settings.EngineMissing, match="gone"):
            settings.engine_command()
    finally:
        settings.put("engine_python", "")


def test_the_engine_command_starts_the_plugins_own_engine(qgis_app, monkeypatch):
    from geopeft_qgis import engine_state, settings

    monkeypatch.setattr(engine_state, "needs_check", lambda: False)
    settings.put("engine_python", "/usr/bin/python3")
    try:
        command = settings.engine_command()
    finally:
        settings.put("engine_python", "")
    assert command[:3] == ["/usr/bin/python3", "-I", "-u"]
    assert (Path(command[-1]) / "geopeft" / "__main__.py").is_file()


def test_the_manifest_has_what_qgis_and_the_store_need():
    manifest = configparser.ConfigParser()
    manifest.read(ROOT / "metadata.txt", encoding="utf-8")
    general = manifest["general"]
    required = "name description version qgisMinimumVersion author email about tracker repository homepage".split()
    assert all(general[key].strip() for key in required)
    assert (general["qgisMinimumVersion"], general["qgisMaximumVersion"]) == ("3.22", "4.99")
    assert general["hasProcessingProvider"] == "yes"
    assert "3 GB" in general["about"] and "environment" in general["about"]
    assert "/" not in general["author"] and "plugin" not in general["name"].lower()
    assert (ROOT / general["icon"]).is_file()
