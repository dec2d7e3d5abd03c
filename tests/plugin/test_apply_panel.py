"""Applying a model to many rasters from the panel, offscreen, with the fake engine."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from model_files import MANIFEST, Iface, members, models_folder, wait_until, write
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsFeature,
    QgsGeometry,
    QgsPalettedRasterRenderer,
    QgsProcessingUtils,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QCoreApplication, QEvent, QSize, Qt

UTM = QgsCoordinateReferenceSystem("EPSG:32632")


@pytest.fixture
def models(tmp_path, monkeypatch, qgis_app):
    yield from models_folder(tmp_path, monkeypatch)


@pytest.fixture
def scenes(raster_file, tmp_path):
    """Two rasters and, between them, a file that is none."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name in ("a.tif", "c.tif"):
        shutil.copy(raster_file, folder / name)
    (folder / "b.tif").write_text("no raster")
    return [folder / name for name in ("a.tif", "b.tif", "c.tif")]


@pytest.fixture
def canvas(qgis_app):
    canvas = QgsMapCanvas()
    canvas.resize(QSize(300, 200))
    canvas.setDestinationCrs(UTM)
    canvas.setExtent(QgsRectangle(500100, 5399700, 500400, 5399900))
    yield canvas
    canvas.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


@pytest.fixture
def panel(provider, fake_engine, models, project, canvas, tmp_path):
    from geopeft_qgis import settings
    from geopeft_qgis.gui.apply_panel import ApplyPanel
    from geopeft_qgis.gui.model_catalogue import read_entry

    for name in ("maps_folder", "apply_confidence", "apply_polygons", "apply_load", "apply_entropy", "apply_outside",
                 "apply_unknown"):  # fmt: skip
        settings.put(name, "")
    panel = ApplyPanel(Iface(canvas))
    panel.set_model(read_entry(str(models / "new.geopeft")))
    panel.folder.setFilePath(str(tmp_path / "maps"))
    yield panel
    panel.end()
    panel.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def add(panel, scenes):
    panel.rasters.list.add_files([str(path) for path in scenes])


def run(panel):
    panel.start()
    return finish(panel)


def finish(panel):
    return wait_until(lambda: not panel.is_busy)


def states(panel, scenes):
    from geopeft_qgis.gui import raster_list

    names = {
        getattr(raster_list, name): name for name in ("UNTRIED", "QUEUED", "RUNNING", "DONE", "FAILED", "CANCELED")
    }
    return [names[panel.rasters.list.state(str(path))] for path in scenes]


def row(panel, text):
    (item,) = panel.rasters.list.findItems(text, Qt.MatchFlag.MatchExactly)
    return item


def group_names(project):
    from qgis.core import QgsLayerTreeGroup

    return [node.name() for node in project.layerTreeRoot().children() if isinstance(node, QgsLayerTreeGroup)]


def job_of_the_last_run():
    folders = Path(QgsProcessingUtils.tempFolder()).glob("geopeft-*/job.json")
    return json.loads(max(folders, key=lambda path: path.stat().st_mtime_ns).read_text(encoding="utf-8"))


def test_a_raster_that_fails_is_told_and_the_others_become_layers(panel, scenes, project):
    add(panel, scenes)
    panel.confidence_box.setChecked(True)
    panel.polygons_box.setChecked(True)
    run(panel)
    wait_until(lambda: panel._iface.bar.said)
    assert states(panel, scenes) == ["DONE", "FAILED", "DONE"]
    assert panel.summary_label.text() == "Rasters mapped: 2. Failed: 1 (b.tif)."
    assert panel.reasons_label.text().startswith("b.tif: ") and panel.reasons_label.text().endswith("Check the file.")
    assert "cannot be opened" in row(panel, "b.tif").toolTip(1)
    assert panel._iface.bar.said == [(panel.summary_label.text(), 1)]
    assert group_names(project) == ["a, new", "c, new"]
    group = project.layerTreeRoot().children()[0]
    layers = [node.layer() for node in group.findLayers()]
    assert [layer.name() for layer in layers] == ["map", "polygons", "confidence"]
    assert isinstance(layers[0].renderer(), QgsPalettedRasterRenderer)
    assert [c.label for c in layers[0].renderer().classes()] == ["water", "Forêt", "built up"]
    assert layers[0].customProperty("geopeft/model").endswith("new.geopeft")
    assert panel.apply_button.isEnabled() and not panel.cancel_button.isVisibleTo(panel)


def test_the_bar_of_each_raster_goes_from_0_to_100(panel, scenes, monkeypatch):
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.05")
    add(panel, scenes)
    seen = {}
    panel.start()
    assert states(panel, scenes) == ["QUEUED"] * 3
    panel._run.running.connect(lambda place, percent: seen.setdefault(place, []).append(percent))
    finish(panel)
    assert sorted(seen) == [0, 1, 2]
    for percents in seen.values():
        assert percents == sorted(percents) and percents[0] == 0 and percents[-1] > 50


def test_a_cancel_keeps_what_is_finished_and_shows_it(panel, scenes, project, monkeypatch, tmp_path):
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.05")
    add(panel, [scenes[0], scenes[2]])
    panel.start()
    wait_until(lambda: panel._maps)
    panel.cancel()
    finish(panel)
    assert states(panel, scenes) == ["DONE", "UNTRIED", "CANCELED"]
    assert panel.summary_label.text() == "Canceled. Rasters mapped: 1."
    assert group_names(project) == ["a, new"] and not (tmp_path / "maps" / "c_map.tif").exists()


def test_an_engine_that_dies_takes_nothing_along(panel, scenes, project, monkeypatch):
    monkeypatch.setenv("GEOPEFT_FAKE_CRASH_AT", "3")
    add(panel, scenes)
    run(panel)
    assert states(panel, scenes) == ["DONE", "FAILED", "UNTRIED"]
    assert "ended before it was done" in panel.summary_label.text()
    assert "Rasters mapped: 1. Failed: 1 (b.tif)." in panel.summary_label.text()
    assert group_names(project) == ["a, new"] and panel.apply_button.isEnabled()


def test_when_all_fail_the_reason_is_the_summary(panel, scenes, project):
    add(panel, scenes[1:2])
    run(panel)
    assert states(panel, scenes[1:2]) == ["FAILED"]
    assert panel.summary_label.text().endswith("cannot be opened as a raster. Check the file.")
    assert not project.mapLayers()


def test_an_engine_that_is_not_set_up_is_said(panel, scenes, monkeypatch):
    from geopeft_qgis import settings

    def missing():
        raise settings.EngineMissing("The engine is not set up yet. Press 'Set up the engine' in the GeoPEFT panel.")

    monkeypatch.setattr(settings, "engine_command", missing)
    add(panel, scenes)
    run(panel)
    assert panel.summary_label.text().startswith("The engine is not set up yet.")
    assert states(panel, scenes) == ["UNTRIED"] * 3 and panel.apply_button.isEnabled()


def test_layers_of_the_project_are_listed_and_can_be_chosen(panel, raster_layer, project, scenes):
    from geopeft_qgis.result_metadata import MODEL_PROPERTY

    made = QgsRasterLayer(str(scenes[0]), "map of before")
    made.setCustomProperty(MODEL_PROPERTY, "m")
    project.addMapLayer(made)
    assert panel.rasters.list.topLevelItemCount() == 1
    assert not panel.rasters.list.chosen() and "Choose the rasters" in panel.stage_label.text()
    panel.set_model(panel._model)
    assert panel.rasters.list.chosen() == [raster_layer.source()], "the only raster is the obvious choice"
    project.removeMapLayer(raster_layer.id())
    assert panel.rasters.list.topLevelItemCount() == 0


def test_a_layer_that_does_not_fit_cannot_be_chosen_and_says_why(panel, raster_layer, project, models):
    from geopeft_qgis.gui.model_catalogue import read_entry

    project.addMapLayer(QgsRasterLayer("type=xyz&url=file:///nowhere/%7Bz%7D.png", "web map", "wms"))
    bands = [{"name": f"b{number}", "common": ""} for number in range(9)]
    path = write(models / "nine.geopeft", members({**MANIFEST, "spec": {**MANIFEST["spec"], "bands": bands}}))
    panel.set_model(read_entry(str(path)))
    panel.rasters.list.choose_all(True)
    assert panel.rasters.list.chosen() == []
    assert "needs 9 bands" in row(panel, "scene").toolTip(1)
    assert "web map" in row(panel, "web map").toolTip(1)
    panel.set_model(read_entry(str(models / "new.geopeft")))
    panel.rasters.list.choose_all(True)
    assert panel.rasters.list.chosen() == [raster_layer.source()]


def test_layers_that_leave_the_project_during_a_run_are_mapped_all_the_same(panel, raster_layer, project, monkeypatch):
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.02")
    source = raster_layer.source()
    panel.rasters.list.choose_all(True)
    panel.start()
    project.removeMapLayer(raster_layer.id())
    finish(panel)
    assert states(panel, [source]) == ["DONE"] and group_names(project) == ["scene ä, new"]


def test_maps_do_not_go_into_another_project(panel, scenes, project, monkeypatch, tmp_path):
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.02")
    add(panel, scenes)
    panel.start()
    project.clear()
    finish(panel)
    assert not project.mapLayers() and (tmp_path / "maps" / "a_map.tif").is_file()
    assert panel.summary_label.text().startswith("Rasters mapped: 2.")
    run(panel)
    assert len(group_names(project)) == 2


def test_a_map_that_is_in_the_project_already_is_shown_anew(panel, scenes, project):
    add(panel, scenes[:1])
    run(panel)
    (layer,) = project.mapLayers().values()
    repaints = []
    layer.repaintRequested.connect(lambda *_: repaints.append(1))
    run(panel)
    assert list(project.mapLayers().values()) == [layer] and repaints
    panel.confidence_box.setChecked(True)
    run(panel)
    assert len(project.mapLayers()) == 3, "the confidence was not in the project yet"


def test_where_not_to_trust_the_map_comes_with_it_on_request(panel, scenes, project):
    add(panel, scenes[:1])
    panel.entropy_box.setChecked(True)
    panel.outside_box.setChecked(True)
    panel.unknown_box.setValue(60)
    run(panel)
    job = job_of_the_last_run()
    assert (job["confidence"], job["entropy"], job["outside"], job["unknown_below"]) == (False, True, True, 60)
    assert {layer.name() for layer in project.mapLayers().values()} == {
        "map", "entropy", "outside what the model has seen"
    }  # fmt: skip


def test_the_maps_stay_out_of_the_project_on_request(panel, scenes, project, tmp_path):
    panel.load_box.setChecked(False)
    add(panel, scenes)
    run(panel)
    assert not project.mapLayers() and (tmp_path / "maps" / "c_map.tif").is_file()


def test_the_visible_extent_is_the_area(panel, scenes, canvas):
    panel.area.kind_box.setCurrentIndex(1)
    add(panel, scenes[:1])
    run(panel)
    area = read_area(job_of_the_last_run())
    assert area.crs() == UTM and area.featureCount() == 1
    visible = canvas.mapSettings().visibleExtent()
    assert area.extent().xMinimum() == pytest.approx(visible.xMinimum())
    assert area.extent().yMaximum() == pytest.approx(visible.yMaximum())


def test_the_visible_extent_of_a_turned_map_in_another_crs_is_still_what_is_seen(panel, scenes, canvas):
    web = QgsCoordinateReferenceSystem("EPSG:3857")
    here = QgsCoordinateTransform(UTM, web, QgsProject.instance())
    canvas.setDestinationCrs(web)
    canvas.setExtent(here.transformBoundingBox(QgsRectangle(500100, 5399700, 500400, 5399900)))
    canvas.setRotation(30)
    panel.area.kind_box.setCurrentIndex(1)
    add(panel, scenes[:1])
    run(panel)
    area = read_area(job_of_the_last_run())
    (feature,) = area.getFeatures()
    seen = QgsGeometry.fromPolygonXY([[*map(_point, canvas.mapSettings().visiblePolygon())]])
    assert area.crs() == web and feature.geometry().area() == pytest.approx(seen.area(), rel=1e-6)
    assert sum(1 for _ in feature.geometry().vertices()) > 40, "straight edges bend on the way to another CRS"


def _point(corner):
    from qgis.core import QgsPointXY

    return QgsPointXY(corner)


def read_area(job):
    path, _, name = job["aoi"].rpartition(":")
    return QgsVectorLayer(f"{path}|layername={name}", "area", "ogr")


def test_polygons_of_a_layer_are_the_area(panel, scenes, label_layer):
    panel.area.kind_box.setCurrentIndex(2)
    assert panel.area.layer_box.currentLayer() == label_layer
    panel.area.selected_box.setChecked(True)
    add(panel, scenes[:1])
    panel.start()
    assert panel.summary_label.text().startswith("No polygon of 'labels' is selected.") and not panel.is_busy
    label_layer.selectByExpression("\"class\" = 'forest'")
    run(panel)
    assert read_area(job_of_the_last_run()).featureCount() == 1
    QgsProject.instance().removeMapLayer(label_layer.id())
    panel.start()
    assert panel.summary_label.text().startswith("There is no layer with polygons.")


def test_an_area_that_was_drawn_but_not_saved_counts(panel, scenes, label_layer):
    label_layer.startEditing()
    feature = QgsFeature(label_layer.fields())
    feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(500000, 5399800, 500050, 5399850)))
    label_layer.addFeature(feature)
    panel.area.kind_box.setCurrentIndex(2)
    add(panel, scenes[:1])
    run(panel)
    assert read_area(job_of_the_last_run()).featureCount() == 5 and label_layer.isEditable()
    label_layer.rollBack()


def test_a_folder_is_searched_without_its_maps(panel, scenes):
    (scenes[0].parent / "below").mkdir()
    shutil.copy(scenes[0], scenes[0].parent / "below" / "d.tif")
    shutil.copy(scenes[0], scenes[0].parent / "a_map.tif")
    panel.rasters.list.add_folder(str(scenes[0].parent), recursive=False)
    wait_until(lambda: not panel.rasters.list.is_scanning())
    assert [os.path.basename(path) for path in panel.rasters.list.chosen()] == ["a.tif", "b.tif", "c.tif"]
    panel.rasters.list.add_folder(str(scenes[0].parent), recursive=True)
    wait_until(lambda: not panel.rasters.list.is_scanning())
    assert len(panel.rasters.list.chosen()) == 4
    assert panel.rasters.title.text() == "Rasters to map: 4"


def test_the_same_raster_is_listed_once_and_can_be_taken_out(panel, scenes, raster_layer):
    panel.rasters.list.add_files([raster_layer.source(), str(scenes[0]), str(scenes[0])])
    assert panel.rasters.list.chosen() == [raster_layer.source(), str(scenes[0])]
    row(panel, "a.tif").setSelected(True)
    panel.rasters.remove_button.click()
    assert panel.rasters.list.chosen() == [raster_layer.source()]


def test_thousands_of_files_are_added_without_a_pause(panel, tmp_path):
    start = time.monotonic()
    panel.rasters.list.add_files(str(tmp_path / f"tile {number}.tif") for number in range(3000))
    at_first = time.monotonic() - start
    longest = max(at_first, wait_until(lambda: not panel.rasters.list.is_scanning()))
    assert len(panel.rasters.list.chosen()) == 3000 and longest < 0.2


def test_the_window_never_waits(panel, scenes, monkeypatch):
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.01")
    for number in range(30):
        shutil.copy(scenes[0], scenes[0].with_name(f"t{number}.tif"))
    panel.confidence_box.setChecked(True)
    add(panel, sorted(scenes[0].parent.glob("t*.tif")))
    start = time.monotonic()
    panel.start()
    assert time.monotonic() - start < 0.2
    assert finish(panel) < 0.2


def test_nothing_can_be_changed_during_a_run(panel, scenes, fake_engine, raster_layer):
    fake_engine("polite")
    add(panel, scenes)
    panel.start()
    before = panel.rasters.list.chosen()
    panel.rasters.list.choose_all(False)
    row(panel, "a.tif").setSelected(True)
    panel.rasters.list.remove_selected()
    panel.set_model(None)
    panel.start()
    assert panel.rasters.list.chosen() == before and panel._model is not None
    assert not panel.options.isEnabled() and not panel.model_button.isEnabled() and panel.cancel_button.isEnabled()
    panel.cancel()
    finish(panel)
    assert panel.options.isEnabled()
    panel.rasters.list.choose_all(False)
    assert panel.rasters.list.chosen() == []


def test_the_end_during_a_run_leaves_no_process(panel, scenes, fake_engine):
    fake_engine("polite")
    add(panel, scenes)
    panel.start()
    wait_until(lambda: "of 6000" in panel.stage_label.text())
    folders = Path(QgsProcessingUtils.tempFolder()).glob("geopeft-*/pid")
    pid = max(folders, key=lambda path: path.stat().st_mtime_ns).read_text()
    assert Path(f"/proc/{pid}").exists()
    panel.end()
    assert not Path(f"/proc/{pid}").exists()
    wait_until(lambda: QgsApplication.taskManager().countActiveTasks() == 0, 5)
    panel.end = lambda: None


def test_a_folder_that_cannot_be_made_is_told(panel, scenes, tmp_path):
    (tmp_path / "file").write_text("x")
    panel.folder.setFilePath(str(tmp_path / "file" / "maps"))
    add(panel, scenes)
    panel.start()
    assert "cannot be made" in panel.summary_label.text() and not panel.is_busy
    panel.folder.setFilePath("")
    panel.start()
    assert panel.summary_label.text() == "No folder for the maps is chosen. Choose one."


def test_maps_go_beside_the_project_unless_another_folder_was_chosen(provider, fake_engine, models, project, tmp_path):
    from geopeft_qgis import settings
    from geopeft_qgis.gui.apply_panel import ApplyPanel

    settings.put("maps_folder", "")
    panel = ApplyPanel()
    assert Path(panel.folder.filePath()) == tmp_path / "maps"
    (tmp_path / "home").mkdir()
    project.setFileName(str(tmp_path / "home" / "p.qgs"))
    assert Path(panel.folder.filePath()) == tmp_path / "home" / "maps"
    panel.folder.setFilePath(str(tmp_path / "mine"))
    project.setFileName(str(tmp_path / "q.qgs"))
    assert Path(panel.folder.filePath()) == tmp_path / "mine"
    panel.end()


def test_the_panel_fits_into_a_narrow_dock(panel, scenes):
    panel.rasters.list.add_files([str(scenes[0].parent / ("a very long name of a raster " * 6 + ".tif"))])
    panel.area.kind_box.setCurrentIndex(2)
    panel.resize(340, 640)
    assert panel.minimumSizeHint().width() <= 340
    content = panel.options.parentWidget()
    assert content.minimumSizeHint().width() <= 340


def test_in_the_tab_a_model_leads_to_its_rasters_and_back(provider, fake_engine, models, project, scenes):
    from geopeft_qgis.gui.apply_tab import ApplyTab

    tab = ApplyTab()
    wait_until(lambda: tab.models.list.count() == 3)
    tab.models.apply_button.click()
    assert tab.pages.currentIndex() == 1 and "new" in tab.apply.model_label.text()
    fake_engine("polite")
    add(tab.apply, scenes)
    tab.apply.start()
    tab.open_model(str(models / "old.geopeft"))
    assert tab.pages.currentIndex() == 0 and tab.back_to_run_button.isVisibleTo(tab) and tab.is_busy
    tab.apply_model(str(models / "old.geopeft"))
    assert tab.pages.currentIndex() == 1 and "new" in tab.apply.model_label.text(), "the run's model stays"
    tab.apply.cancel()
    wait_until(lambda: not tab.is_busy)
    assert not tab.back_to_run_button.isVisibleTo(tab)
    tab.apply.model_button.click()
    assert tab.pages.currentIndex() == 0
    tab.end()
