"""The preview in a real QGIS: a label changes the map without a click, nothing waits, nothing stays behind."""

import contextlib
import math
import os
import sys
import time
from pathlib import Path

import pytest
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsFeature,
    QgsGeometry,
    QgsMapLayer,
    QgsPointXY,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsLayerTreeMapCanvasBridge, QgsMapCanvas
from qgis.PyQt.QtCore import QCoreApplication, QEvent

UTM = QgsCoordinateReferenceSystem("EPSG:32632")


def wait_until(condition, seconds=20):
    """Lets Qt work until something is so."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        QCoreApplication.processEvents()
        time.sleep(0.005)
    assert condition(), "this did not happen in time"


def settle(seconds=0.6):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QCoreApplication.processEvents()
        time.sleep(0.005)


@pytest.fixture
def slots(monkeypatch):
    """The longest time that each slot has kept the window waiting, by name; and its processor time, as `NAME cpu`."""
    from geopeft_qgis import settings
    from geopeft_qgis.gui.preview import Preview

    with contextlib.suppress(settings.EngineMissing):
        settings.engine_command()  # the plugin's dock has asked for it before
    longest = {}

    def timed(name):
        real = getattr(Preview, name)

        def slot(*arguments):
            start, cpu = time.monotonic(), time.thread_time()
            try:
                return real(*arguments)
            finally:
                longest[name] = max(longest.get(name, 0.0), time.monotonic() - start)
                longest[f"{name} cpu"] = max(longest.get(f"{name} cpu", 0.0), time.thread_time() - cpu)

        monkeypatch.setattr(Preview, name, slot)

    for name in ("set_sources", "set_enabled", "_labels_change", "_change", "_refresh", "_poll", "_raster_goes"):
        timed(name)
    return longest


@pytest.fixture
def canvas(project, raster_layer):
    """A map canvas that follows the project; as in QGIS's window, other layers mean a changed project."""
    canvas = QgsMapCanvas()
    canvas.resize(600, 400)
    bridge = QgsLayerTreeMapCanvasBridge(project.layerTreeRoot(), canvas)
    bridge.setAutoSetupOnFirstLayer(False)
    canvas.setDestinationCrs(UTM)
    canvas.setExtent(raster_layer.extent())
    settle(0.05)
    canvas.layersChanged.connect(lambda: project.setDirty(True))
    yield canvas
    bridge.deleteLater()
    canvas.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    # QGIS does so before it ends, this process does not; at its end the cache would need a PROJ that has gone.
    QgsCoordinateTransform.invalidateCache()


@pytest.fixture
def preview(canvas, fake_engine, raster_layer, label_layer):
    """A preview of the small scene by the fake engine, not switched on yet."""
    from geopeft_qgis.gui.preview import Preview

    preview = Preview(canvas)
    preview.texts, preview.logged = [], []
    preview.status.connect(preview.texts.append)
    preview.said.connect(lambda level, text: preview.logged.append((level, text)))
    preview.set_sources(raster_layer, label_layer, "class", {})
    yield preview
    folder = preview._folder
    preview.end()
    assert folder is None or not folder.exists()
    assert not [layer for layer in QgsProject.instance().mapLayers().values() if layer.name() == "GeoPEFT preview"]
    preview.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def shown(preview):
    return preview.layer.source() if preview.layer is not None else ""


def switch_on(preview):
    preview.set_enabled(True)
    wait_until(lambda: shown(preview))


def pids(preview):
    return (preview._folder / "pids").read_text().split()


def add_label(layer, name, x=500300.0, y=5399650.0, side=40.0):
    feature = QgsFeature(layer.fields())
    feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(x, y, x + side, y + side)))
    feature.setAttribute("class", name)
    assert layer.addFeature(feature)
    return feature


def test_nothing_happens_before_it_is_switched_on(preview, label_layer):
    label_layer.startEditing()
    add_label(label_layer, "water")
    settle()
    assert preview.layer is None and preview._worker is None and preview.texts == []


def test_the_map_is_a_private_layer_between_raster_and_labels(preview, project, canvas):
    settle(0.1)
    project.setDirty(False)
    switch_on(preview)
    layer = preview.layer
    assert layer.name() == "GeoPEFT preview" and layer.opacity() == pytest.approx(0.7)
    assert layer.flags() & QgsMapLayer.LayerFlag.Private
    assert [c.label for c in layer.renderer().classes()] == ["water", "Forêt", "built up"]
    names = [node.name() for node in project.layerTreeRoot().children()]
    assert names == ["labels", "GeoPEFT preview", "scene"]
    settle(0.1)
    assert canvas.layers() == [project.mapLayersByName(name)[0] for name in names]
    assert not project.isDirty()
    assert preview.texts[0] == "Preview: updating ..." and preview.texts[-1].endswith(" s")
    assert ("info", "Values up to 2 are taken as reflectances.") in preview.logged


def test_a_new_label_changes_the_map_of_the_same_layer(preview, label_layer):
    switch_on(preview)
    layer, files = preview.layer, [shown(preview)]
    label_layer.startEditing()
    feature = add_label(label_layer, "water")
    for change in (
        lambda: None,
        lambda: label_layer.changeGeometry(feature.id(), QgsGeometry.fromRect(QgsRectangle(0, 0, 50, 50))),
        lambda: label_layer.changeAttributeValue(feature.id(), 0, "forest"),
        lambda: label_layer.deleteFeature(feature.id()),
        lambda: label_layer.rollBack(),
        lambda: label_layer.setSubsetString("\"class\" <> 'forest'"),
    ):
        change()
        wait_until(lambda: shown(preview) != files[-1])
        files.append(shown(preview))
        assert preview.layer is layer
        assert not Path(files[-2]).exists()
    assert len(pids(preview)) == 1
    assert len(preview.logged) == 1, "what is said once need not be said at every label"


def test_the_job_tells_the_labels_as_they_are_drawn(preview, label_layer, monkeypatch):
    jobs = []
    switch_on(preview)
    monkeypatch.setattr(preview._worker, "submit", lambda job, *others: jobs.append(job))
    label_layer.startEditing()
    add_label(label_layer, "snow")
    wait_until(lambda: jobs)
    assert [c["name"] for c in jobs[0]["classes"]] == ["Forest", "Water", "Built Up", "Snow"]
    assert jobs[0]["classes"][3]["color"] == "#ffffff"
    file, _, layer = jobs[0]["labels"].rpartition(":")
    written = QgsVectorLayer(f"{file}|layername={layer}", "written")
    assert written.featureCount() == 5
    label_layer.rollBack()


def test_many_changes_make_one_job(preview, label_layer, monkeypatch):
    switch_on(preview)
    jobs = []
    monkeypatch.setattr(preview._worker, "submit", lambda job, *others: jobs.append(job))
    label_layer.startEditing()
    for number in range(30):
        add_label(label_layer, "water", 500100 + number)
        QCoreApplication.processEvents()
    settle()
    assert len(jobs) == 1
    label_layer.rollBack()


def test_a_move_of_the_map_asks_again_with_the_same_labels(preview, canvas, monkeypatch):
    switch_on(preview)
    jobs = []
    monkeypatch.setattr(preview._worker, "submit", lambda job, *others: jobs.append(job))
    before = preview._label_file.spec
    canvas.setExtent(QgsRectangle(500100, 5399700, 500250, 5399800))
    wait_until(lambda: jobs)
    left, bottom, right, top = jobs[0]["extent"]
    assert left <= 500100 < 500250 <= right <= 500600 and bottom <= 5399700 < 5399800 <= top
    assert jobs[0]["labels"] == before


def test_a_map_in_another_crs_is_asked_for_in_the_rasters(preview, canvas, monkeypatch):
    switch_on(preview)
    jobs = []
    monkeypatch.setattr(preview._worker, "submit", lambda job, *others: jobs.append(job))
    canvas.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:4326"))
    # The scene's middle third in degrees.
    canvas.setExtent(QgsRectangle(9.0027, 48.7532, 9.0054, 48.7546))
    wait_until(lambda: jobs and jobs[-1]["extent"][0] > 500100)
    left, bottom, right, top = jobs[-1]["extent"]
    assert 500150 < left < right < 500450 and 5399600 <= bottom < top <= 5400000


def test_outside_the_raster_there_is_nothing_to_do(preview, canvas):
    switch_on(preview)
    before = shown(preview)
    canvas.setExtent(QgsRectangle(600000, 5399700, 600100, 5399800))
    wait_until(lambda: preview.texts[-1] == "Preview: the raster is outside the view.")
    assert shown(preview) == before
    canvas.setExtent(QgsRectangle(500000, 5399700, 500100, 5399800))
    wait_until(lambda: shown(preview) != before)


def test_a_view_of_the_whole_world_shows_the_whole_raster(preview, canvas, monkeypatch):
    switch_on(preview)
    jobs = []
    monkeypatch.setattr(preview._worker, "submit", lambda job, *others: jobs.append(job))
    canvas.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:3857"))
    canvas.setExtent(QgsRectangle(-3e7, -3e7, 3e7, 3e7))
    wait_until(lambda: jobs)
    assert jobs[-1]["extent"] == pytest.approx([500000, 5399600, 500600, 5400000])


def test_switched_off_everything_goes(preview, project):
    switch_on(preview)
    (pid,) = pids(preview)
    project.setDirty(False)
    preview.set_enabled(False)
    assert preview.layer is None and preview.texts[-1] == ""
    settle(0.1)
    assert not project.isDirty()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 3)
    switch_on(preview)
    assert len(pids(preview)) == 2


def test_another_raster_takes_the_old_map_away(preview, project, raster_file, label_layer, monkeypatch):
    switch_on(preview)
    other = QgsRasterLayer(str(raster_file), "other")
    project.addMapLayer(other)
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.01")
    preview.set_sources(other, label_layer, "class", {})
    assert preview.layer is None
    wait_until(lambda: shown(preview))


@pytest.mark.parametrize("which", ["raster", "labels", "all"])
def test_layers_may_leave_the_project(preview, project, raster_layer, label_layer, which):
    switch_on(preview)
    if which == "all":
        project.clear()
    else:
        project.removeMapLayer({"raster": raster_layer, "labels": label_layer}[which].id())
    wait_until(lambda: preview.texts[-1].startswith("Preview: choose"))
    assert preview.layer is None


def test_labels_may_leave_while_they_are_written(preview, project, label_layer):
    switch_on(preview)
    label_layer.startEditing()
    add_label(label_layer, "water")
    wait_until(lambda: preview._snapshot is not None)
    project.removeMapLayer(label_layer.id())
    wait_until(lambda: preview.texts[-1] == "Preview: choose a layer with labels.")


def test_no_label_at_all_is_a_sentence(preview, label_layer):
    label_layer.dataProvider().truncate()
    preview.set_enabled(True)
    wait_until(lambda: preview.texts)
    assert preview.texts[-1].startswith("There is no labelled feature.")
    assert preview._worker is None


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("LABELS_ONE_CLASS", "Preview: label a second class."),
        ("LABELS_TOO_SMALL", "Preview: zoom in; from this far the labels run together."),
        ("BANDS_UNKNOWN", "Preview: The raster has no band 'nir'."),
    ],
)
def test_what_the_engine_refuses_is_a_short_line(preview, fake_engine, monkeypatch, code, text):
    monkeypatch.setenv("GEOPEFT_FAKE_CODE", code)
    fake_engine("fail")
    preview.set_enabled(True)
    wait_until(lambda: preview.texts and preview.texts[-1] == text)
    assert preview.layer is None
    said = [text for level, text in preview.logged if level == "warning"]
    assert said == (["The raster has no band 'nir'. Name the bands."] if code == "BANDS_UNKNOWN" else [])


def test_a_service_is_no_raster_to_map(preview, label_layer):
    service = QgsRasterLayer("type=xyz&url=http://localhost:1/{z}/{x}/{y}.png&zmin=0&zmax=1", "tiles", "wms")
    preview.set_sources(service, label_layer, "class", {})
    preview.set_enabled(True)
    wait_until(lambda: preview.texts)
    assert "comes from a service" in preview.texts[-1]


def test_without_an_engine_it_says_so(preview, monkeypatch):
    from geopeft_qgis import settings

    def missing():
        raise settings.EngineMissing("The engine is not set up yet.")

    monkeypatch.setattr(settings, "engine_command", missing)
    preview.set_enabled(True)
    wait_until(lambda: preview.texts and preview.texts[-1] == "Preview: The engine is not set up yet.")


@pytest.mark.parametrize("mode", ["crash_once", "noise"])
def test_a_crash_and_noise_are_survived(preview, fake_engine, mode):
    fake_engine(mode)
    switch_on(preview)
    assert len(pids(preview)) == (2 if mode == "crash_once" else 1)


def test_an_engine_that_crashes_all_the_time_is_told_once(preview, fake_engine):
    fake_engine("crash")
    preview.set_enabled(True)
    wait_until(lambda: "4 times within a minute" in (preview.texts or [""])[-1])
    assert [level for level, _ in preview.logged] == ["log", "warning"]
    assert preview.layer is None


def test_a_hanging_engine_is_replaced_at_the_next_label(preview, fake_engine, label_layer, monkeypatch):
    from geopeft_qgis import engine_worker

    monkeypatch.setattr(engine_worker, "CANCEL_GRACE_S", 0.5)
    fake_engine("hang")
    preview.set_enabled(True)
    wait_until(lambda: preview._worker is not None and preview._worker._running is not None)
    fake_engine("ok")
    label_layer.startEditing()
    add_label(label_layer, "water")
    wait_until(lambda: shown(preview))
    label_layer.rollBack()


@pytest.mark.parametrize("mode", ["ok", "hang", "mute"])
def test_the_end_leaves_no_process(canvas, fake_engine, raster_layer, label_layer, mode):
    from geopeft_qgis.gui.preview import Preview

    fake_engine(mode)
    preview = Preview(canvas)
    preview.set_sources(raster_layer, label_layer, "class", {})
    preview.set_enabled(True)
    wait_until(lambda: preview._folder is not None and (preview._folder / "pids").exists() and pids(preview))
    (pid,) = pids(preview)
    start = time.monotonic()
    preview.end()
    assert time.monotonic() - start < 5
    assert not Path(f"/proc/{pid}").exists()
    preview.end()


def test_a_saved_project_knows_nothing_of_it(preview, project, tmp_path):
    switch_on(preview)
    id_ = preview.layer.id()
    project.setFileName(str(tmp_path / "project.qgs"))
    assert project.write()
    text = (tmp_path / "project.qgs").read_text(encoding="utf-8")
    assert id_ not in text and "GeoPEFT preview" not in text and "scene" in text
    wait_until(lambda: project.mapLayer(id_) is not None)
    names = [node.name() for node in project.layerTreeRoot().children()]
    assert names == ["labels", "GeoPEFT preview", "scene"]
    settle(0.1)
    assert not project.isDirty()


def test_the_file_is_not_in_the_temporary_folder(preview):
    switch_on(preview)
    assert Path(shown(preview)).is_relative_to(Path(QgsApplication.qgisSettingsDirPath()) / "geopeft" / "preview")


def circle(x, y, radius, points=30):
    angles = [2 * math.pi * number / points for number in range(points)]
    return QgsGeometry.fromPolygonXY([[QgsPointXY(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]])


def test_no_slot_keeps_the_window_waiting(slots, canvas, fake_engine, raster_layer, label_layer, monkeypatch):
    """With 300 polygons; times are those of a busy machine too, so the best of some tries counts."""
    from geopeft_qgis.gui.preview import Preview

    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.01")
    features = []
    for number in range(300):
        feature = QgsFeature(label_layer.fields())
        feature.setGeometry(circle(500010 + 29 * (number % 20), 5399990 - 25 * (number // 20), 9))
        feature.setAttributes([("water", "forest", "built up")[number % 3], "n"])
        features.append(feature)
    label_layer.dataProvider().addFeatures(features)
    tries = []
    for _ in range(3):
        slots.clear()
        preview = Preview(canvas)
        preview.set_sources(raster_layer, label_layer, "class", {})
        switch_on(preview)
        label_layer.startEditing()
        for _ in range(3):
            before = shown(preview)
            add_label(label_layer, "water")
            wait_until(lambda preview=preview, before=before: shown(preview) != before)
        label_layer.rollBack()
        canvas.zoomByFactor(0.5)
        settle(0.5)
        preview.set_enabled(False)
        settle(0.5)
        preview.end()
        tries.append(dict(slots))
        if max(slots.values()) < 0.1:
            break
    assert max(tries[-1].values()) < 0.1, tries


@pytest.fixture(scope="module")
def real_engine():
    """How to start the real engine; skips where there is none."""
    python = os.environ.get("GEOPEFT_ENGINE_PYTHON", "")
    if not Path(python).is_file():
        pytest.skip("no engine's Python: set GEOPEFT_ENGINE_PYTHON")


@pytest.mark.slow
def test_the_real_engine_follows_the_labels(real_engine, slots, canvas, raster_layer, label_layer, tmp_path):
    """A 10-band scene of 1000 x 1000 pixels with two halves; a third class appears where it is drawn."""
    import numpy
    from osgeo import gdal

    from geopeft_qgis.gui.preview import Preview

    path, size = tmp_path / "large.tif", 1000
    target = gdal.GetDriverByName("GTiff").Create(str(path), size, size, 10, gdal.GDT_UInt16)
    target.SetGeoTransform((500000, 10, 0, 5400000, 0, -10))
    target.SetProjection(gdal.Open(raster_layer.source()).GetProjection())
    rng = numpy.random.default_rng(0)
    for band in range(10):
        values = numpy.full((size, size), 500 + 200 * band)
        values[:, 500:] = 2500 - 150 * band
        values[600:, :300] = 1200 + 800 * (band % 2)
        target.GetRasterBand(band + 1).WriteArray((values + rng.normal(0, 80, values.shape)).astype("u2"))
    target = None
    layer = QgsRasterLayer(str(path), "large")
    QgsProject.instance().addMapLayer(layer)
    label_layer.dataProvider().truncate()
    canvas.setExtent(layer.extent())
    preview, texts = Preview(canvas), []
    preview.status.connect(texts.append)
    preview.set_sources(layer, label_layer, "class", {})
    label_layer.startEditing()
    add_label(label_layer, "water", 501000, 5397000, 150)
    preview.set_enabled(True)
    try:
        wait_until(lambda: texts and texts[-1] == "Preview: label a second class.", 90)
        add_label(label_layer, "forest", 507000, 5397000, 150)
        wait_until(lambda: shown(preview), 90)
        assert classes_at(preview, [(1000, 3000), (7000, 3000)]) == [2, 1]
        before = shown(preview)
        start = time.monotonic()
        add_label(label_layer, "built up", 501000, 5392000, 150)
        wait_until(lambda: shown(preview) != before, 60)
        print(f"next preview after {time.monotonic() - start:.2f} s; {texts[-1]}", file=sys.stderr)
        assert classes_at(preview, [(1000, 3000), (7000, 3000), (1000, 8000)]) == [2, 1, 3]
        assert preview.layer.width() == size
    finally:
        label_layer.rollBack()
        preview.end()
    print({name: round(seconds, 3) for name, seconds in slots.items()}, file=sys.stderr)
    assert max(seconds for name, seconds in slots.items() if name.endswith(" cpu")) < 0.1, slots


def classes_at(preview, places):
    """Class values at metres right of and below the upper left corner."""
    provider = preview.layer.dataProvider()
    return [round(provider.sample(QgsPointXY(500000 + x, 5400000 - y), 1)[0]) for x, y in places]
