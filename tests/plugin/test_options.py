"""The page in Settings > Options."""

from pathlib import Path

import pytest
from qgis.PyQt.QtCore import QCoreApplication, QEvent

NAMES = "engine_python kit_folder package_index weights_folder models_folder preview device engine_folder".split()


@pytest.fixture
def page(qgis_app, monkeypatch, tmp_path):
    from geopeft_qgis import engine_state, settings
    from geopeft_qgis.gui.options import OptionsFactory
    from geopeft_qgis.gui.setup_tasks import EngineSetup, Machine

    monkeypatch.delenv("GEOPEFT_ENGINE_PYTHON", raising=False)
    monkeypatch.setenv("GEOPEFT_HOME", str(tmp_path / "home"))
    for name in NAMES:
        settings.put(name, "")
    engine_state.forget()
    setup = EngineSetup()
    setup.machine = Machine("", 2.7, 5.3, 50.0)
    page = OptionsFactory(setup).createWidget(None)
    yield page
    setup.end()
    page.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    for name in NAMES:
        settings.put(name, "")


def test_what_was_chosen_is_kept(page, tmp_path):
    from geopeft_qgis import settings

    page.weights_folder.setFilePath(str(tmp_path / "weights"))
    page.models_folder.setFilePath(str(tmp_path / "models"))
    page.kit_folder.setFilePath(str(tmp_path / "kit"))
    page.index_edit.setText(" https://packages.example/all ")
    page.device_box.setCurrentIndex(page.device_box.findData("cpu"))
    page.preview_box.setChecked(False)
    page.apply()
    assert settings.weights_folder() == str(tmp_path / "weights")
    assert settings.models_folder() == tmp_path / "models"
    assert settings.get("kit_folder") == str(tmp_path / "kit")
    assert settings.get("package_index") == "https://packages.example/all"
    assert settings.device() == "cpu" and not settings.preview_is_on()


def test_emptied_fields_go_back_to_what_it_is_by_default(page):
    from geopeft_qgis import settings

    page.apply()
    assert settings.weights_folder() == "" and settings.models_folder() == settings.default_models_folder()
    assert settings.device() == "auto" and settings.preview_is_on()


@pytest.mark.parametrize("text", ["intranet/simple", "ftp://x.example", "https://"])
def test_an_index_that_is_no_address_is_told_and_not_kept(page, text):
    from geopeft_qgis import settings

    page.index_edit.setText(text)
    assert "https://" in page.problem.text() and page.problem.isVisibleTo(page)
    page.apply()
    assert settings.get("package_index") == ""
    page.index_edit.setText("")
    assert not page.problem.isVisibleTo(page)


def test_a_python_that_is_not_there_is_told_while_typing(page, tmp_path):
    page.python_file.setFilePath(str(tmp_path / "gone"))
    assert page.problem.text() == f"There is no Python at {tmp_path / 'gone'}."


def test_an_own_python_is_looked_at_when_it_is_applied(page):
    from geopeft_qgis import settings

    seen = []
    page.setup.use_own = seen.append
    page.python_file.setFilePath("/usr/bin/python3")
    page.apply()
    page.python_file.setFilePath(settings.get("engine_python"))
    page.apply()
    assert seen == ["/usr/bin/python3"]


def test_going_back_to_geopefts_engine_empties_the_field(page):
    from geopeft_qgis import settings

    settings.put("engine_python", "/nowhere/python")
    page.setup.changed.emit()
    assert page.python_file.filePath() == "/nowhere/python"
    page.panel.main_button.click()
    assert page.python_file.filePath() == "" and settings.get("engine_python") == ""


def test_detection_follows_the_chosen_device(page):
    page.setup.told = {"devices": [{"device": "cpu", "cores": 4, "usable": True}], "gpu_reason": "NO_DRIVER"}
    page.setup.changed.emit()
    assert page.device_label.text() == "Computes on the CPU (4 cores): no NVIDIA driver was found"
    page.device_box.setCurrentIndex(page.device_box.findData("cuda"))
    assert page.device_label.text() == "CUDA is chosen in the options, but no NVIDIA driver was found"


def test_every_field_has_a_name_and_a_tooltip(page):
    fields = (page.python_file, page.kit_folder, page.index_edit, page.device_box, page.preview_box)
    for field in (*fields, page.weights_folder, page.models_folder):
        assert field.objectName().startswith("Options") and field.toolTip().endswith(".")


@pytest.mark.fault("S05")
def test_a_project_cannot_say_which_engine_runs(page, project, tmp_path):
    """Only the profile's settings do; a project may come from a stranger."""
    from qgis.core import QgsExpressionContextUtils, QgsProject

    from geopeft_qgis import engine_state, settings

    names = ("engine_python", "engine_folder", "kit_folder", "package_index", "weights_folder", "models_folder")
    known = {name: settings.get(name) for name in names}
    for name in names:
        for scope in ("geopeft", "GeoPEFT", "/geopeft"):
            project.writeEntry(scope, f"/{name}", "/tmp/evil")
        QgsExpressionContextUtils.setProjectVariable(project, f"geopeft_{name}", "/tmp/evil")
    project.write(str(tmp_path / "stranger.qgz"))
    project.clear()
    assert QgsProject.instance().read(str(tmp_path / "stranger.qgz"))
    assert {name: settings.get(name) for name in names} == known
    assert "evil" not in f"{engine_state.own_python()} {engine_state.home()} {settings.models_folder()}"


def test_nothing_is_stored_in_the_project(page, project):
    page.index_edit.setText("https://packages.example/all")
    page.apply()
    assert not project.isDirty() and "packages.example" not in str(project.entryList("geopeft", ""))
    assert Path(project.fileName()) == Path()
