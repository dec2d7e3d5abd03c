"""The dock, offscreen: setup or tabs, and where a dropped model goes."""

from pathlib import Path

import pytest
from qgis.PyQt.QtCore import QCoreApplication, QEvent


@pytest.fixture
def engine(monkeypatch):
    """A list: with a path in it there is an engine."""
    from geopeft_qgis import settings

    there = [Path("/usr/bin/python3")]
    monkeypatch.setattr(settings, "engine_python", lambda: there[0] if there else None)
    return there


@pytest.fixture
def dock(provider, fake_engine, engine, raster_layer, label_layer, monkeypatch, tmp_path):
    from geopeft_qgis import settings
    from geopeft_qgis.gui.dock import GeopeftDock

    monkeypatch.setattr(settings, "models_folder", lambda: tmp_path / "models")
    dock = GeopeftDock()
    yield dock
    dock.end()
    dock.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def test_with_an_engine_there_is_no_talk_of_setting_up(dock):
    assert dock.setup_panel.isHidden()
    assert dock.train.run_button.isEnabled()


def test_without_an_engine_labels_can_be_drawn_but_nothing_is_trained(dock, engine):
    engine.clear()
    dock.setup_panel.setup.changed.emit()
    assert not dock.setup_panel.isHidden()
    assert not dock.train.run_button.isEnabled()
    assert dock.train.form.isEnabled()
    dock.train.start()
    assert not dock.train.busy
    engine.append(Path("/usr/bin/python3"))
    dock.setup_panel.setup.changed.emit()
    assert dock.setup_panel.isHidden() and dock.train.run_button.isEnabled()


def test_a_warm_engine_is_let_go_before_it_is_replaced(dock):
    dock.setup_panel.setup.about_to_change.emit()
    assert not dock.train.run_button.isEnabled()


def test_a_model_that_is_dropped_opens_in_its_tab(dock, tmp_path):
    dropped = tmp_path / "dropped.geopeft"
    dropped.write_bytes(b"no zip")
    assert dock.tabs.currentWidget() is dock.train
    dock.open_model(str(dropped))
    assert dock.tabs.currentWidget() is dock.apply
