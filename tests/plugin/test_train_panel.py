"""The training panel, offscreen: one press from labels to a styled map, with the fake engine."""

import time
from pathlib import Path

import pytest
from qgis.core import QgsApplication, QgsPalettedRasterRenderer, QgsProcessingUtils
from qgis.PyQt.QtCore import QCoreApplication, QEvent


def wait_until(condition, seconds=30):
    """Lets Qt work until something is so."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        QCoreApplication.processEvents()
        time.sleep(0.01)
    assert condition(), "this did not happen in time"


@pytest.fixture
def panel(provider, fake_engine, raster_layer, label_layer, monkeypatch, tmp_path):
    from geopeft_qgis import settings
    from geopeft_qgis.gui.train_panel import TrainPanel

    monkeypatch.setattr(settings, "engine_python", lambda: Path("/usr/bin/python3"))
    monkeypatch.setattr(settings, "models_folder", lambda: tmp_path / "models")
    panel = TrainPanel()
    panel.set_engine_ready(True)
    yield panel
    panel.end()
    panel.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def test_the_obvious_choices_are_made(panel, tmp_path):
    assert panel.form.raster_box.currentLayer().name() == "scene"
    assert panel.form.labels.layer().name() == "labels"
    assert panel.form.labels.class_field() == "class"
    assert panel.form.backbone_box.currentText() == "auto"
    assert panel.run_button.isEnabled() and panel.run_button.text() == "Train and map"
    assert Path(panel.form.model_file.filePath()).parent == tmp_path / "models"


def test_one_press_trains_maps_and_styles(panel, project):
    panel.start()
    assert not panel.run_button.isEnabled() and not panel.form.raster_box.isEnabled()
    wait_until(lambda: panel._training is None)
    assert panel.result_label.text() == "mIoU 0.74 (0.66–0.80) on held-out labels"
    assert len(panel.curve.lines("miou")[0].points) == 20
    assert {line.title for line in panel.curve.lines("loss")} == {"training", "validation"}
    names = [node.name() for node in project.layerTreeRoot().children()]
    assert names == ["labels", Path(panel._model).stem, "scene"]
    group = project.layerTreeRoot().children()[1]
    layers = [node.layer() for node in group.findLayers()]
    assert isinstance(layers[0].renderer(), QgsPalettedRasterRenderer)
    assert [c.label for c in layers[0].renderer().classes()] == ["water", "Forêt", "built up"]
    assert layers[1].renderer().classificationMax() == 100
    assert Path(layers[0].customProperty("geopeft/model")).is_file()
    assert "warning: 2 labels are outside the raster." in panel.messages.toPlainText()
    assert panel.run_button.isEnabled() and not panel.progress.isVisibleTo(panel)


def test_a_second_run_overwrites_nothing(panel, project):
    for _ in range(2):
        panel.start()
        wait_until(lambda: panel._training is None)
    assert len(list(Path(panel.form.model_file.filePath()).parent.glob("*.geopeft"))) == 2
    assert len(project.layerTreeRoot().children()) == 4


def test_a_name_that_the_user_typed_is_kept_and_numbered(panel, tmp_path):
    panel.form.model_file.setFilePath(str(tmp_path / "mine"))
    for _ in range(3):
        panel.start()
        wait_until(lambda: panel._training is None)
    assert sorted(path.name for path in tmp_path.glob("mine*.geopeft")) == [
        "mine-2.geopeft",
        "mine-3.geopeft",
        "mine.geopeft",
    ]


def test_a_failure_is_shown_and_leaves_everything_usable(panel, fake_engine, project):
    fake_engine("fail")
    before = set(project.mapLayers())
    panel.start()
    wait_until(lambda: panel._training is None)
    assert panel.result_label.text() == "The raster has no band 'nir'. Name the bands."
    assert panel.run_button.isEnabled() and set(project.mapLayers()) == before


def test_a_map_that_fails_leaves_the_model(panel, fake_engine, project):
    panel.start()
    panel._training.trained.connect(lambda _: fake_engine("fail"))
    wait_until(lambda: panel._training is None)
    model = panel._model
    assert model.is_file()
    assert panel.result_label.text().startswith("The raster has no band 'nir'. Name the bands. The model is kept:")
    assert Path(panel.form.model_file.filePath()) not in (model, Path())


def test_a_raster_that_leaves_the_project_during_training_is_mapped_all_the_same(panel, project, raster_layer):
    panel.start()
    project.removeMapLayer(raster_layer.id())
    wait_until(lambda: panel._training is None)
    assert [layer.name() for layer in project.mapLayers().values() if layer.name() == "map"]


def test_labels_that_cannot_be_used_are_told_at_once(panel):
    layer = panel.form.labels.layer()
    layer.dataProvider().truncate()
    panel.start()
    assert panel._training is None
    assert "no labelled feature" in panel.result_label.text()
    assert panel.run_button.isEnabled()


def test_cancel_ends_a_hanging_engine(panel, fake_engine):
    fake_engine("hang")
    panel.start()
    wait_until(lambda: "Training" in panel.stage_label.text())
    start = time.monotonic()
    panel.cancel()
    wait_until(lambda: panel._training is None)
    assert time.monotonic() - start < 8
    assert panel.result_label.text().startswith("Canceled")
    assert QgsApplication.taskManager().countActiveTasks() == 0


def test_what_a_canceled_training_had_learned_is_spoken_of(panel, fake_engine):
    fake_engine("hang")
    panel.start()
    wait_until(lambda: "Training" in panel.stage_label.text())
    panel._model.parent.mkdir(exist_ok=True)
    panel._model.with_name(panel._model.name + ".resume").write_bytes(b"a checkpoint")
    panel.cancel()
    wait_until(lambda: panel._training is None)
    assert panel.result_label.text() == "Canceled. What it has learned is kept: start it again to go on."
    assert panel.options.resume_box.isVisibleTo(panel)


def test_closing_the_plugin_waits_for_the_end_of_its_engine(panel, fake_engine):
    fake_engine("polite")
    panel.start()
    wait_until(lambda: "Training" in panel.stage_label.text())
    folders = Path(QgsProcessingUtils.tempFolder()).glob("geopeft-*/pid")
    pid = max(folders, key=lambda path: path.stat().st_mtime).read_text()
    assert Path(f"/proc/{pid}").exists()
    panel.end()
    assert not Path(f"/proc/{pid}").exists()
    wait_until(lambda: QgsApplication.taskManager().countActiveTasks() == 0, 5)


def test_the_window_never_blocks_while_the_engine_works(panel, monkeypatch):
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.02")
    panel.start()
    longest, last = 0.0, time.monotonic()
    while panel._training is not None:
        QCoreApplication.processEvents()
        time.sleep(0.005)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 1.0


def test_the_curve_is_drawn_light_and_dark(panel):
    from qgis.PyQt.QtGui import QColor, QImage, QPalette

    for step in range(1, 6):
        panel.curve.add({"step": step * 20, "values": {"loss": 1.5 / step, "miou": 0.15 * step}})
    panel.curve.resize(320, 220)
    pictures = []
    for base, text in (("#ffffff", "#000000"), ("#202020", "#000000")):
        palette = QPalette()
        palette.setColor(QPalette.ColorRole.Base, QColor(base))
        palette.setColor(QPalette.ColorRole.Text, QColor(text))
        panel.curve.setPalette(palette)
        picture = QImage(320, 220, QImage.Format.Format_RGB32)
        panel.curve.render(picture)
        assert picture.pixelColor(2, 2).name() == base
        colors = {picture.pixelColor(x, y).name() for x in range(320) for y in range(220)}
        assert len(colors) > 20
        ink = max(abs(QColor(name).lightness() - QColor(base).lightness()) for name in colors)
        assert ink > 120, "the axis would be illegible"
        pictures.append(picture)
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(("value", "expected"), [(0.03, 0.05), (0.7, 1), (1.2, 2), (2, 2), (7, 10), (43, 50), (0, 1)])
def test_the_loss_axis_ends_at_a_round_number(value, expected):
    from geopeft_qgis.gui.curve import nice_ceiling

    assert nice_ceiling(value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ({"MIOU": 0.741, "MIOU_LOW": 0.66, "MIOU_HIGH": 0.8}, "mIoU 0.74 (0.66–0.80) on held-out labels"),
        (
            {"MIOU": 0.741, "MIOU_LOW": 0.4, "MIOU_HIGH": 0.9},
            "mIoU 0.74 (0.40–0.90) on held-out labels. Labels in more places make the interval narrower.",
        ),
        ({"MIOU": 0.741, "MIOU_LOW": None, "MIOU_HIGH": None}, "mIoU 0.74 on held-out labels"),
    ],
)
def test_an_accuracy_that_says_little_comes_with_advice(qgis_app, results, text):
    from geopeft_qgis.gui.train_panel import accuracy_text

    assert accuracy_text(results) == text


@pytest.fixture
def restricted(monkeypatch):
    """A table in which one backbone's licence limits its use."""
    from geopeft_qgis import model_tables, settings

    rows = (model_tables.Row("theirs", "Theirs", "CC-BY-NC-4.0", True, "https://example.org/terms", ("lora",)),)
    kept = model_tables.tables()
    monkeypatch.setattr(model_tables, "tables", lambda: {**kept, "backbones": (*kept["backbones"], *rows)})
    yield rows[0]
    settings.put("licence/theirs", "")


def test_a_licence_that_limits_the_use_is_asked_for_once(panel, restricted, monkeypatch):
    from qgis.PyQt.QtWidgets import QMessageBox

    asked = []
    answers = [QMessageBox.StandardButton.No, QMessageBox.StandardButton.Yes]
    monkeypatch.setattr(QMessageBox, "exec", lambda box: (asked.append(box.text()), answers[len(asked) - 1])[1])
    panel.form.backbone_box.setCurrentText("theirs")
    panel.start()
    assert not panel.busy and "CC-BY-NC-4.0" in asked[0] and "https://example.org/terms" in asked[0]
    assert panel.form.request({}, False).fit["ACCEPT_LICENCE"] is False
    panel.start()
    assert panel.busy
    wait_until(lambda: panel._training is None)
    assert panel.form.request({}, False).fit["ACCEPT_LICENCE"] is True
    panel.start()
    assert len(asked) == 2
    wait_until(lambda: panel._training is None)
