"""The tab of advice and proofs, offscreen: places as a list and a layer, the report, and what is missing for them."""

from pathlib import Path

import pytest
from model_files import wait_until
from qgis.PyQt.QtCore import QCoreApplication, QEvent


class Canvas:
    """A map that keeps what it is asked to show."""

    def __init__(self):
        from qgis.core import QgsCoordinateReferenceSystem, QgsMapSettings

        self.settings = QgsMapSettings()
        self.settings.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:4326"))
        self.extent = None
        self.flashed = []

    def mapSettings(self):  # noqa: N802
        return self.settings

    def setExtent(self, extent):  # noqa: N802
        self.extent = extent

    def refresh(self):
        pass

    def flashGeometries(self, geometries, crs):  # noqa: N802
        self.flashed.append((geometries[0], crs))


class Window:
    def __init__(self):
        self.canvas = Canvas()

    def mapCanvas(self):  # noqa: N802
        return self.canvas


@pytest.fixture
def opened(monkeypatch):
    """The pages that are opened in the browser."""
    from geopeft_qgis.gui import check_panel

    pages = []
    monkeypatch.setattr(
        check_panel.QDesktopServices, "openUrl", lambda url: pages.append(Path(url.toLocalFile())) is None
    )
    return pages


@pytest.fixture
def panel(provider, fake_engine, project, raster_layer, label_layer, monkeypatch, tmp_path):
    from geopeft_qgis import settings
    from geopeft_qgis.gui.check_panel import CheckPanel
    from geopeft_qgis.gui.form import TrainingForm
    from geopeft_qgis.gui.model_catalogue import ModelCatalogue

    (tmp_path / "models").mkdir()
    monkeypatch.setattr(settings, "models_folder", lambda: tmp_path / "models")
    form, catalogue = TrainingForm(), ModelCatalogue()
    form.set_layers(raster_layer, label_layer)
    panel = CheckPanel(form, catalogue, Window())
    panel.set_engine_ready(True)
    panel.heard = []
    panel.noticed.connect(lambda level, text: panel.heard.append((level, text)))
    wait_until(lambda: not form.missing())
    yield panel
    panel.end()
    form.end()
    catalogue.end()
    for widget in (panel, form):
        widget.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def advice(panel, button):
    button.click()
    wait_until(lambda: not panel.is_busy)
    assert panel.heard == []
    return panel._places


def model_in(panel, folder):
    """A model of the fake engine that the panel can choose."""
    from fake_engine import write_package

    path = folder / "m.geopeft"
    write_package(path)
    panel._catalogue.add(str(path))
    wait_until(lambda: panel.model() == str(path))
    return path


def map_in(project, raster_file):
    """A class raster of ours below another of somebody else."""
    from qgis.core import QgsPalettedRasterRenderer, QgsRasterLayer

    from geopeft_qgis.result_metadata import MODEL_PROPERTY

    layers = [QgsRasterLayer(str(raster_file), "map") for _ in range(2)]
    for layer in layers:
        layer.setRenderer(QgsPalettedRasterRenderer(layer.dataProvider(), 1, []))
        project.addMapLayer(layer)
    layers[0].setCustomProperty(MODEL_PROPERTY, "m.geopeft")
    return layers[0]


def points_in(project):
    """A random sample that a map is judged by."""
    from qgis.core import QgsVectorLayer

    fields = "field=number:integer&field=stratum:integer&field=weight:double&field=class:string"
    points = QgsVectorLayer(f"Point?crs=EPSG:32632&{fields}", "sample", "memory")
    project.addMapLayer(points)
    return points


def test_points_of_a_sample_are_not_taken_for_labels(panel, project, label_layer):
    points_in(project)
    project.removeMapLayer(label_layer.id())
    points_in(project)
    assert panel._form.labels.layer() is None


def test_places_come_as_a_list_and_as_a_layer_that_leaves_no_file(panel, project):
    layer = advice(panel, panel.suggest_button)
    assert [panel.places_list.item(row).text()[0] for row in range(panel.places_list.count())] == ["1", "2", "3"]
    assert "hesitates" in panel.places_list.item(0).text()
    assert layer.dataProvider().name() == "memory" and layer.labelsEnabled()
    assert layer.customProperty("skipMemoryLayersCheck"), "QGIS would ask about it when it is closed"
    assert project.mapLayer(layer.id()) is layer
    assert panel._form.labels.layer() is not layer


def test_places_to_label_are_taken_for_labels_by_nobody(panel, project, label_layer):
    layer = advice(panel, panel.suspects_button)
    project.removeMapLayer(label_layer.id())
    assert project.mapLayer(layer.id()) is layer
    assert panel._form.labels.layer() is None
    assert not panel.suspects_button.isEnabled() and panel.label_hint.text()


def test_other_advice_takes_the_place_of_the_last(panel, project):
    first = advice(panel, panel.suggest_button).id()
    second = advice(panel, panel.suspects_button)
    assert project.mapLayer(first) is None and second.name() == panel.suspects_button.text()


def test_a_layer_that_the_user_removes_empties_the_list(panel, project):
    layer = advice(panel, panel.suggest_button)
    project.removeMapLayer(layer.id())
    assert panel.places_list.count() == 0 and panel.places_list.isHidden()
    advice(panel, panel.suggest_button)
    assert panel.places_list.count() == 3


def test_a_click_moves_the_map_to_the_place(panel):
    from qgis.core import QgsCoordinateTransform, QgsProject

    layer = advice(panel, panel.suggest_button)
    panel.places_list.itemClicked.emit(panel.places_list.item(1))
    canvas = panel._iface.canvas
    (place,) = [feature for feature in layer.getFeatures() if feature["rank"] == 2]
    middle = place.geometry().boundingBox().center()
    turn = QgsCoordinateTransform(layer.crs(), canvas.settings.destinationCrs(), QgsProject.instance())
    assert canvas.extent.contains(turn.transform(middle))
    assert canvas.flashed[0][0].equals(place.geometry())


def test_the_report_of_the_chosen_model_is_opened(panel, opened, tmp_path):
    assert not panel.report_button.isEnabled()
    model = model_in(panel, tmp_path)
    panel.report_button.click()
    wait_until(lambda: opened)
    assert opened == [model.with_name("m_report.html")] and opened[0].read_text(encoding="utf-8")


def test_what_goes_wrong_is_told_and_the_buttons_come_back(panel, fake_engine, opened, tmp_path):
    model = model_in(panel, tmp_path)
    fake_engine("fail")
    panel.report(str(model))
    assert not panel.suggest_button.isEnabled()
    wait_until(lambda: not panel.is_busy)
    assert opened == [] and panel.heard[0][0] == "error" and "nir" in panel.heard[0][1]
    assert panel.suggest_button.isEnabled() and panel.report_button.isEnabled()


def test_a_new_model_is_the_one_that_is_checked(panel, tmp_path):
    old = model_in(panel, tmp_path)
    new = tmp_path / "new.geopeft"
    new.write_bytes(old.read_bytes())
    panel.set_model(str(new))
    assert panel.model() == str(old), "the new one is not read yet"
    panel._catalogue.add(str(new))
    wait_until(lambda: panel.model() == str(new))


@pytest.mark.parametrize("name", ["evaluate", "compare", "sample", "area"])
def test_the_others_open_the_dialog_of_the_toolbox_with_what_is_chosen(
    panel, project, monkeypatch, tmp_path, name, raster_file
):
    import qgis.processing
    from qgis.core import QgsApplication
    from qgis.PyQt.QtWidgets import QDialog

    model = model_in(panel, tmp_path)
    mapped = map_in(project, raster_file)
    points = points_in(project)
    asked = []

    def dialog(algorithm, parameters):
        asked.append((algorithm, parameters))
        return QDialog()

    monkeypatch.setattr(qgis.processing, "createAlgorithmDialog", dialog, raising=False)
    (button,) = [button for button in panel.dialog_buttons if button.objectName() == f"Geopeft{name.title()}"]
    button.click()
    ((algorithm, parameters),) = asked
    known = QgsApplication.processingRegistry().algorithmById(algorithm)
    assert {part.name() for part in known.parameterDefinitions()} >= set(parameters)
    wanted = {
        "evaluate": {"MODEL": str(model), "RASTERS": [str(raster_file)]},
        "compare": {"FIRST": str(model), "RASTERS": [str(raster_file)]},
        "sample": {"MAP": mapped.id()},
        "area": {"POINTS": points.id()},
    }
    assert parameters == wanted[name]


def test_without_an_engine_nothing_can_be_pressed(panel):
    panel.set_engine_ready(False)
    buttons = [panel.suggest_button, panel.suspects_button, panel.report_button, *panel.dialog_buttons]
    assert not any(button.isEnabled() for button in buttons)
