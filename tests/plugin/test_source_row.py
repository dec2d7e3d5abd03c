"""The row below the raster box: web layers are fetched, selected bands are stacked, the result is in the project."""

import time
from pathlib import Path

import pytest
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsLayerTreeModel,
    QgsRasterLayer,
    QgsRectangle,
)
from qgis.gui import QgsLayerTreeView, QgsMapCanvas
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QCoreApplication, QItemSelectionModel
from raster_scenes import S2, make, ramp
from web_service import CORNER, SQUARE_M, WORLD, Service


@pytest.fixture
def service(qgis_app):
    served = Service()
    yield served
    served.stop()


@pytest.fixture
def canvas(qgis_app):
    canvas = QgsMapCanvas()
    canvas.resize(400, 300)
    canvas.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:3857"))
    canvas.setExtent(QgsRectangle(CORNER[0], CORNER[1] - 3 * SQUARE_M, CORNER[0] + 4 * SQUARE_M, CORNER[1]))
    yield canvas
    canvas.deleteLater()


@pytest.fixture
def row(provider, project, canvas, tmp_path, monkeypatch):
    from geopeft_qgis import settings
    from geopeft_qgis.gui.source_row import SourceRow

    monkeypatch.setattr(settings, "new_raster_folder", lambda: tmp_path / "rasters")
    row = SourceRow()
    row.set_canvas(canvas)
    row.resize(340, 400)
    row.got, row.failures = [], []
    row.fetched.connect(row.got.append)
    row.failed.connect(row.failures.append)
    yield row
    row.end()
    row.deleteLater()


def wait(done, seconds=20.0):
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        QCoreApplication.processEvents()
        time.sleep(0.005)
    assert done()


def shown(row):
    """What of the row can be seen, as if its parent were."""
    return [name for name in ("web", "stack", "error_label", "run_row") if not getattr(row, name).isHidden()]


def test_there_is_nothing_to_see_for_files(row, raster_layer):
    assert row.isHidden()
    row.set_layer(raster_layer)
    assert row.isHidden() and shown(row) == []
    row.set_layer(None)
    assert row.isHidden()


def test_a_web_layer_offers_what_is_seen_on_the_map(row, service, project):
    layer = service.xyz()
    project.addMapLayer(layer)
    row.set_layer(layer)
    assert not row.isHidden() and shown(row) == ["web"]
    assert "This is a web map" in row.web.text_label.text()
    seen = row.web._canvas.extent().width() / 400
    assert row.web.size_box.size() in (seen, pytest.approx(seen, rel=0.5)), "the zoom level nearest to the map's"
    assert row.web.size_box.size() in layer.dataProvider().nativeResolutions()
    estimate = row.web.estimate_label.text()
    assert "pixels" in estimate and "MB" in estimate and "on the ground" in estimate
    assert row.web.size_box.suffix() == " m" and row.web.button.isEnabled()


def test_the_raster_is_fetched_added_and_announced(row, service, project):
    layer = service.xyz()
    other = service.xyz(name="below")
    project.addMapLayer(other)
    project.addMapLayer(layer)
    row.set_layer(layer)
    row.web.button.click()
    assert row.is_busy and shown(row) == ["run_row"]
    wait(lambda: not row.is_busy)
    assert row.failures == [] and len(row.got) == 1
    fetched = row.got[0]
    assert fetched.isValid() and fetched.bandCount() == 4 and fetched.crs().authid() == "EPSG:3857"
    assert Path(fetched.source()).parent.name == "rasters" and Path(fetched.source()).suffix == ".tif"
    order = [node.layerId() for node in project.layerTreeRoot().findLayers()]
    assert order == [fetched.id(), layer.id(), other.id()], "just above the layer that it was made of"
    canvas = row.web._canvas.extent()
    assert fetched.extent().buffered(1e-3).contains(canvas) and fetched.extent().width() < canvas.width() * 1.1
    row.set_layer(fetched)
    assert row.isHidden()


def test_two_fetches_do_not_overwrite_each_other(row, service, project):
    layer = service.xyz()
    project.addMapLayer(layer)
    row.set_layer(layer)
    for _ in range(2):
        row.web.button.click()
        wait(lambda: not row.is_busy)
    assert len({fetched.source() for fetched in row.got}) == 2


def test_the_labels_extent_can_be_fetched(row, service, project, label_layer):
    layer = service.xyz()
    project.addMapLayer(layer)
    row.set_layer(layer)
    assert row.web.area_box.findText("Labels' extent") < 0
    row.set_labels(label_layer)
    row.web.area_box.setCurrentIndex(row.web.area_box.findText("Labels' extent"))
    row.web.size_box.setValue(9.555)
    extent = row.web.parameters()["EXTENT"]
    assert extent.crs().authid() == "EPSG:3857" and row.web.parameters()["RESOLUTION"] == pytest.approx(9.554628535)
    width = label_layer.extent().width()
    assert width * 1.2 < extent.width() < (width + 3 * 64 * 9.6) * 2, "with a margin, in the layer's own CRS"
    project.removeMapLayer(label_layer.id())
    row.web._propose()
    assert row.web.estimate_label.text(), "a label layer that has gone is no trouble"


def test_a_chosen_size_stays_when_the_map_moves(row, service, project, canvas):
    layer = service.xyz()
    project.addMapLayer(layer)
    row.set_layer(layer)
    row.web.size_box.setValue(2.0)
    canvas.setExtent(canvas.extent().buffered(3 * SQUARE_M))
    wait(lambda: not row.web._settle.isActive())
    assert row.web.size_box.value() == 2.0
    row.set_layer(layer)
    assert row.web.size_box.value() == 2.0, "the panel may tell the same layer often"
    other = service.xyz()
    project.addMapLayer(other)
    row.set_layer(other)
    assert row.web.size_box.value() != 2.0, "another layer gets a proposal again"


def test_the_arrows_go_from_zoom_level_to_zoom_level(row, service, project):
    layer = service.xyz(zoom=17)
    project.addMapLayer(layer)
    row.set_layer(layer)
    box = row.web.size_box
    box.setValue(1.194328566955879)
    box.stepBy(1)
    assert box.size() == pytest.approx(2.388657133911758, abs=1e-12)
    box.stepBy(-5)
    assert box.size() == pytest.approx(1.194328566955879, abs=1e-12), "no finer than the finest level"


def test_too_much_is_said_before_the_button_is_pressed(row, service, project, canvas):
    layer = service.xyz()
    project.addMapLayer(layer)
    row.set_layer(layer)
    row.web.size_box.setValue(0.6)
    canvas.setExtent(QgsRectangle(-WORLD, -WORLD, WORLD, WORLD))
    wait(lambda: not row.web._settle.isActive())
    assert "268 million are the most" in row.web.estimate_label.text()
    assert not row.web.button.isEnabled()
    assert service.requests == [] or all("xyz" in path for path in service.requests)


def test_a_failure_is_a_sentence_in_the_row(row, service, project):
    layer = service.xyz()
    project.addMapLayer(layer)
    service.mode = "error"
    row.set_layer(layer)
    row.web.button.click()
    wait(lambda: not row.is_busy)
    assert row.got == [] and "The server of the layer failed" in row.failures[0]
    assert shown(row) == ["web", "error_label"] and row.error_label.text() == row.failures[0]
    row.set_layer(None)
    row.set_layer(layer)
    assert shown(row) == ["web"]


def test_cancel_leaves_everything_as_it_was(row, service, project, tmp_path):
    layer = service.xyz()
    project.addMapLayer(layer)
    service.wait_s = 0.5
    row.set_layer(layer)
    row.web.button.click()
    row.run_row.cancel_button.click()
    wait(lambda: not row.is_busy)
    assert row.got == row.failures == [] and shown(row) == ["web"]
    assert list((tmp_path / "rasters").iterdir()) == []


def test_the_end_of_the_plugin_ends_a_fetch(row, service, project, tmp_path):
    layer = service.xyz()
    project.addMapLayer(layer)
    service.mode = "hang"
    row.set_layer(layer)
    row.web.button.click()
    start = time.monotonic()
    row.end()
    assert time.monotonic() - start < 5 and not row.is_busy
    assert QgsApplication.taskManager().countActiveTasks() == 0
    assert not list((tmp_path / "rasters").iterdir())


def test_a_layer_that_goes_meanwhile_is_said(row, service, project):
    layer = service.xyz()
    project.addMapLayer(layer)
    row.set_layer(layer)
    project.removeMapLayer(layer.id())
    row.web._propose()
    row.web.button.click()
    assert "not in the project any more" in row.failures[0] and not row.is_busy


def test_no_slot_takes_long(row, service, project, canvas):
    layer = service.xyz()
    project.addMapLayer(layer)
    for work in (lambda: row.set_layer(layer), row.web._propose, row.web._estimate):
        start = time.monotonic()
        work()
        assert time.monotonic() - start < 0.1


@pytest.fixture
def tree(project):
    model = QgsLayerTreeModel(project.layerTreeRoot())
    view = QgsLayerTreeView()
    view.setModel(model)
    view.keep = model
    yield view
    sip.delete(view)
    sip.delete(model)


def select(view, layers):
    view.selectionModel().clear()
    for layer in layers:
        node = view.keep.rootGroup().findLayer(layer.id())
        index = view.node2index(node) if hasattr(view, "node2index") else view.keep.node2index(node)
        view.selectionModel().select(index, QItemSelectionModel.SelectionFlag.Select)


@pytest.fixture
def bands(project, tmp_path):
    layers = []
    for name in ("B8A", "B02", "B04", "B03"):
        path = make(tmp_path / "scene" / S2.format(name, 10), ramp(40, 60))
        layers.append(QgsRasterLayer(str(path), name))
    project.addMapLayers(layers)
    return layers


def test_selected_bands_become_a_stack(row, tree, bands, project):
    row.watch(tree)
    select(tree, bands[:1])
    assert row.isHidden()
    select(tree, bands)
    assert shown(row) == ["stack"]
    assert row.stack.button.text() == "Use the 4 selected layers as one stack"
    assert "B02, B03, B04, B8A" in row.stack.text_label.text()
    row.stack.button.click()
    wait(lambda: not row.is_busy)
    stack = row.got[0]
    assert row.failures == [] and stack.bandCount() == 4 and Path(stack.source()).suffix == ".vrt"
    assert [stack.bandName(band) for band in (1, 4)] == ["Band 1: B02", "Band 4: B8A"]
    assert stack.name() == "T32UMU_20230601T101031"
    renderer = stack.renderer()
    assert (renderer.redBand(), renderer.greenBand(), renderer.blueBand()) == (3, 2, 1), "natural colours"
    limits = renderer.redContrastEnhancement()
    assert limits.minimumValue() < limits.maximumValue() and limits.maximumValue() > 1000


def test_what_cannot_be_stacked_is_not_offered(row, tree, bands, project, label_layer, raster_layer, service):
    tiles = service.xyz()
    project.addMapLayer(tiles)
    row.watch(tree)
    for other in (label_layer, raster_layer, tiles):
        select(tree, [*bands, other])
        assert shown(row) == [], other.name()
    select(tree, bands)
    assert shown(row) == ["stack"]
    row.watch(None)
    assert shown(row) == []


def test_a_failed_stack_is_a_sentence(row, tree, bands, tmp_path):
    row.watch(tree)
    select(tree, bands)
    for path in (tmp_path / "scene").iterdir():
        path.write_bytes(b"")
    row.stack.button.click()
    wait(lambda: not row.is_busy)
    assert "cannot be read as a raster" in row.failures[0] and row.got == []


def test_the_row_fits_into_the_panel_and_can_be_used_by_keyboard(row, service, project):
    layer = service.xyz(name="A rather long name of a layer of orthophotos of some state in 2023")
    project.addMapLayer(layer)
    row.set_layer(layer)
    row.show()
    QCoreApplication.processEvents()
    assert row.minimumSizeHint().width() <= 340
    for widget in (row.web.size_box, row.web.area_box, row.web.button, row.stack.button, row.run_row.cancel_button):
        assert widget.objectName() and widget.toolTip(), widget
    row.hide()
