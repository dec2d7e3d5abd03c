"""The list of models, offscreen: what it finds, what it shows, and what it does not believe."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from model_files import Iface, changed, members, models_folder, wait_until, write
from qgis.core import QgsProject
from qgis.PyQt.QtCore import QCoreApplication, QEvent, QMimeData, QPointF, Qt, QUrl
from qgis.PyQt.QtGui import QDropEvent
from qgis.PyQt.QtWidgets import QApplication


@pytest.fixture
def models(tmp_path, monkeypatch, qgis_app):
    yield from models_folder(tmp_path, monkeypatch)


@pytest.fixture
def make_panel(models, project):
    """Makes panels that have read everything, and ends them."""
    from geopeft_qgis.gui.models_panel import ModelsPanel

    made = []

    def make(iface=None):
        panel = ModelsPanel(iface)
        made.append(panel)
        ready(panel)
        return panel

    yield make
    for panel in made:
        panel.end()
        panel.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


@pytest.fixture
def panel(make_panel):
    return make_panel(Iface())


def ready(panel):
    wait_until(lambda: not panel.catalogue.is_reading())


def shown(panel):
    from geopeft_qgis.gui.model_view import ENTRY_ROLE

    return [panel.list.item(row).data(ENTRY_ROLE).name for row in range(panel.list.count())]


def choose(panel, name):
    panel.list.setCurrentRow(shown(panel).index(name))


def test_models_are_listed_newest_first_and_damaged_ones_last(panel):
    assert shown(panel) == ["new", "old", "damaged"]
    panel.sort_box.setCurrentIndex(2)
    assert shown(panel) == ["old", "new", "damaged"]
    panel.sort_box.setCurrentIndex(1)
    assert shown(panel) == ["damaged", "new", "old"]


def test_the_details_say_everything_about_a_model(panel):
    choose(panel, "new")
    text = panel.details.toPlainText().replace("\u200b", "").replace("\xa0", " ")
    for part in (
        "mIoU 0.74 (0.66–0.80)", "Measured on blocks of the labels held out", "water 0.90", "Forêt",
        "B3 (red, 0.655 µm), slope", "30 m", "reflectance, uint16", "galileo_nano", "MIT", "lora, unet", "0.1.0",
        panel.current().path,
    ):  # fmt: skip
        assert part in text
    assert "#3b7dd8" in panel.details.toHtml()
    assert panel.apply_button.isEnabled() and panel.export_action.isEnabled()


def test_a_damaged_file_is_shown_with_its_sentence_and_cannot_be_applied(panel):
    asked = []
    panel.apply_requested.connect(asked.append)
    choose(panel, "damaged")
    assert "is not a whole model package" in panel.details.toPlainText()
    assert not panel.apply_button.isEnabled() and not panel.export_action.isEnabled()
    panel.list.itemActivated.emit(panel.list.currentItem())
    assert asked == []
    choose(panel, "old")
    panel.apply_button.click()
    assert [Path(path).name for path in asked] == ["old.geopeft"]


@pytest.mark.fault("S02")
def test_nothing_in_a_file_is_taken_as_html(models, make_panel):
    evil = '<img src="file:///etc/passwd"><b>x</b>'
    manifest = changed(name=evil, radiometry=evil, dtype=evil)
    manifest["classes"] = [{**manifest["classes"][0], "name": evil}]
    manifest["base_weights"] = {**manifest["base_weights"], "licence": evil, "paper": "javascript:alert(1)"}
    write(models / "evil.geopeft", members(manifest))
    panel = make_panel()
    choose(panel, "evil")
    assert panel.details.toPlainText().replace("\xa0", " ").count(evil) == 4
    assert "<img" not in panel.details.toHtml()


def test_the_filter_looks_at_names_classes_and_bands(models, make_panel):
    other = changed(classes=[{"value": 1, "name": "Kelp", "color": "#112233", "label": "k"}])
    write(models / "sea.geopeft", members(other))
    panel = make_panel()
    for text, expected in (("SEA", ["sea"]), ("kelp", ["sea"]), ("forêt ne", ["new"]), ("slope", 3), ("nothing", [])):
        panel.filter_edit.setText(text)
        assert len(shown(panel)) == expected if isinstance(expected, int) else shown(panel) == expected
    assert panel.empty_label.text() == "No model fits this filter."


def test_a_model_from_elsewhere_stays_in_the_list(models, make_panel, tmp_path):
    path = write(tmp_path / "mailed.geopeft", members())
    panel = make_panel()
    panel.filter_edit.setText("old")
    panel.open_model(str(path))
    ready(panel)
    assert panel.current().name == "mailed", "a filter must not hide what was just opened"
    assert "mailed" in shown(make_panel())
    panel.remove_action.trigger()
    assert "mailed" not in shown(panel) and path.is_file()
    assert "mailed" not in shown(make_panel())


def test_a_model_that_was_removed_from_its_folders_list_comes_back_when_it_is_opened(models, make_panel):
    panel = make_panel()
    choose(panel, "old")
    panel.remove_action.trigger()
    assert shown(panel) == ["new", "damaged"] and (models / "old.geopeft").is_file()
    again = make_panel()
    assert shown(again) == ["new", "damaged"]
    again.open_model(str(models / "old.geopeft"))
    ready(again)
    assert sorted(shown(again)) == ["damaged", "new", "old"] and again.current().name == "old"


def test_a_file_that_is_opened_and_is_no_model_is_told_in_the_message_bar(panel, tmp_path):
    (tmp_path / "page.geopeft").write_text("<html>not found</html>")
    panel.open_model(str(tmp_path / "page.geopeft"))
    ready(panel)
    ((text, level),) = panel._iface.bar.said
    assert "page.geopeft is not a whole model package" in text and level == 1
    panel.open_model(str(tmp_path / "gone.geopeft"))
    ready(panel)
    assert "There is no file" in panel._iface.bar.said[1][0]


def test_a_new_model_appears_by_itself_and_one_that_is_gone_goes(panel, models):
    write(models / "fresh.geopeft", members())
    wait_until(lambda: "fresh" in shown(panel))
    (models / "old.geopeft").unlink()
    wait_until(lambda: "old" not in shown(panel))


def test_a_model_that_is_trained_again_is_read_again(panel, models):
    choose(panel, "new")
    time.sleep(0.02)
    write(models / "part", members(changed(metrics={"miou": {"value": 0.99}})))
    (models / "part").replace(models / "new.geopeft")
    wait_until(lambda: "mIoU 0.99" in panel.details.toPlainText())
    assert panel.current().name == "new"


def test_models_beside_the_project_are_listed(make_panel, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    write(home / "beside.geopeft", members())
    panel = make_panel()
    QgsProject.instance().setFileName(str(home / "p.qgs"))
    wait_until(lambda: "beside" in shown(panel))
    QgsProject.instance().clear()
    wait_until(lambda: "beside" not in shown(panel))


def test_files_are_read_in_a_thread_so_that_a_slow_disk_keeps_nobody_waiting(models, make_panel, monkeypatch):
    from geopeft_qgis.gui import model_catalogue

    real, threads = model_catalogue.read_manifest, set()

    def slow(path):
        threads.add(threading.current_thread())
        time.sleep(0.3)
        return real(path)

    panel = make_panel()
    for number in range(4):
        shutil.copy(models / "new.geopeft", models / f"copy {number}.geopeft")
    monkeypatch.setattr(model_catalogue, "read_manifest", slow)
    start = time.monotonic()
    panel.catalogue.refresh()
    longest = wait_until(lambda: panel.list.count() == 7)
    assert time.monotonic() - start > 1
    assert threading.main_thread() not in threads and longest < 0.2


def test_hundreds_of_models_are_listed_without_a_pause(models, make_panel):
    for number in range(300):
        shutil.copy(models / "new.geopeft", models / f"copy {number}.geopeft")
    panel = make_panel()
    panel.filter_edit.setText("x")
    start = time.monotonic()
    panel.filter_edit.setText("")
    QCoreApplication.processEvents()
    assert panel.list.count() == 303 and time.monotonic() - start < 0.3


def test_a_model_is_exported_and_that_is_told(provider, fake_engine, panel, tmp_path):
    choose(panel, "new")
    panel.export(panel.current().path, str(tmp_path / "new.onnx"))
    assert panel.export_row.isVisibleTo(panel) and not panel.export_action.isEnabled()
    wait_until(lambda: not panel.export_row.is_busy)
    assert (tmp_path / "new.onnx").is_file() and not panel.export_row.isVisibleTo(panel)
    assert panel._iface.bar.said == [(f"Exported to {tmp_path / 'new.onnx'}", 3)]
    assert panel.export_action.isEnabled()


def test_an_export_that_fails_or_is_canceled_leaves_the_panel_usable(provider, fake_engine, panel, tmp_path):
    choose(panel, "new")
    fake_engine("fail")
    panel.export(panel.current().path, str(tmp_path / "new.onnx"))
    wait_until(lambda: not panel.export_row.is_busy)
    assert panel._iface.bar.said == [("The raster has no band 'nir'. Name the bands.", 2)]
    fake_engine("polite")
    panel.export(panel.current().path, str(tmp_path / "new.onnx"))
    panel.export_row.cancel_button.click()
    wait_until(lambda: not panel.export_row.is_busy)
    assert len(panel._iface.bar.said) == 1 and panel.export_action.isEnabled()
    assert not (tmp_path / "new.onnx").exists()


def test_the_path_can_be_copied(panel):
    choose(panel, "old")
    panel.copy_action.trigger()
    assert QApplication.clipboard().text() == panel.current().path


def test_a_list_without_models_says_what_to_do(models, make_panel):
    for path in models.iterdir():
        path.unlink()
    panel = make_panel()
    assert panel.list.count() == 0 and "drop one here" in panel.empty_label.text()
    assert not panel.apply_button.isEnabled() and not panel.more_button.isEnabled()


def test_each_row_shows_the_colours_of_its_classes(panel):
    panel.resize(340, 640)
    picture = panel.list.grab().toImage()
    colors = {picture.pixelColor(x, y).name() for x in range(picture.width()) for y in range(picture.height())}
    assert {"#3b7dd8", "#1f7a3d"} <= colors
    assert panel.minimumSizeHint().width() <= 340


def test_settings_that_somebody_broke_do_no_harm(models, make_panel):
    from geopeft_qgis import settings

    for broken in ("{", "7", '{"a": 1}', "[1, null]"):
        settings.put("models_opened", broken)
        settings.put("models_hidden", broken)
        assert len(shown(make_panel())) == 3


def dropped(*paths):
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    return mime


def test_a_model_can_be_dropped_on_the_panel(panel, tmp_path):
    path = write(tmp_path / "dropped.geopeft", members())
    mime = dropped(tmp_path / "no.txt", path)
    event = QDropEvent(
        QPointF(5, 5), Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    )
    panel.dropEvent(event)
    ready(panel)
    assert panel.current().name == "dropped" and event.isAccepted()


def test_a_model_that_is_dropped_on_qgis_is_taken_and_other_files_are_not(qgis_app):
    from geopeft_qgis.gui.package_drop import PackageDropHandler

    opened = []
    handler = PackageDropHandler(opened.append)
    assert handler.handleFileDrop("/a/Model.GEOPEFT") is True
    assert handler.handleFileDrop("/a/scene.tif") is False
    assert opened == ["/a/Model.GEOPEFT"]


def test_the_end_leaves_nothing_that_listens(models, make_panel):
    panel = make_panel()
    panel.end()
    before = panel.list.count()
    write(models / "late.geopeft", members())
    QgsProject.instance().clear()
    end = time.monotonic() + 1
    while time.monotonic() < end:
        QCoreApplication.processEvents()
    assert panel.list.count() == before
    panel.end = lambda: None
