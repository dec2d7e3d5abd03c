"""The labelling part of the dock: what is chosen, what is shown, and what happens when layers come and go."""

import pytest
from drawing import NONE, RIGHT, Hand, settle
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsMapToolPan
from qgis.PyQt.QtCore import QCoreApplication, QEvent, Qt
from qgis.PyQt.QtGui import QColor, QKeyEvent


class Bar:
    def __init__(self):
        self.said = []

    def pushMessage(self, title, text, level=0, seconds=0):  # noqa: N802
        self.said.append(text)


class Window:
    """QGIS's window, as far as the panel knows it."""

    def __init__(self):
        self.hand = Hand()
        self.bar = Bar()
        self.active = None

    def mapCanvas(self):  # noqa: N802
        return self.hand.canvas

    def messageBar(self):  # noqa: N802
        return self.bar

    def setActiveLayer(self, layer):  # noqa: N802
        self.active = layer


@pytest.fixture
def window(qgis_app):
    window = Window()
    window.pan = QgsMapToolPan(window.hand.canvas)
    window.hand.canvas.setMapTool(window.pan)
    yield window
    window.hand.canvas.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


@pytest.fixture
def make(window, project, tmp_path, monkeypatch):
    """Makes panels and ends them."""
    from geopeft_qgis import settings
    from geopeft_qgis.gui.label_panel import LabelPanel

    monkeypatch.setattr(settings, "models_folder", lambda: tmp_path / "user" / "models")
    made = []

    def panel(raster=None):
        made.append(LabelPanel(window))
        made[-1].set_raster(raster)
        settle(lambda: made[-1].counts.summary.complete)
        return made[-1]

    yield panel
    for panel in made:
        panel.end()
        panel.deleteLater()
    for layer in QgsProject.instance().mapLayers().values():
        if isinstance(layer, QgsVectorLayer):
            layer.rollBack()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def table(panel):
    """What the table shows: name, key, shapes, pixels."""
    model = panel.table.model
    return [tuple(model.data(model.index(row, column)) for column in range(1, 5)) for row in range(model.rowCount())]


def press(widget, key):
    QCoreApplication.sendEvent(widget, QKeyEvent(QEvent.Type.KeyPress, key, Qt.KeyboardModifier.NoModifier))


def rectangle(left, bottom=5399700, size=100):
    return QgsGeometry.fromRect(QgsRectangle(left, bottom, left + size, bottom + size))


def test_one_press_makes_a_layer_that_is_drawn_into_at_once(make, window, project, raster_layer, tmp_path):
    panel = make(raster_layer)
    assert panel.layer() is None and panel.missing().startswith("Press 'New label layer'")
    assert panel.choice.first_button.isVisibleTo(panel) and not panel.body.isVisibleTo(panel)
    panel.choice.first_button.click()
    settle()
    layer = panel.layer()
    assert layer.name() == "labels" and layer.source().startswith(str(tmp_path / "user" / "labels" / "labels.gpkg"))
    assert panel.class_field() == "class" and not panel.choice.field_row.isVisibleTo(panel)
    assert project.layerTreeRoot().children()[0].layer() is layer
    assert table(panel) == [("class 1", "1", "0", "0"), ("class 2", "2", "0", "0")]
    assert "draw a few shapes" in panel.missing()
    panel.toolbar.tool_buttons["rectangle"].click()
    assert window.active is layer
    window.hand.drag((100, 100), (200, 200))
    window.hand.key(Qt.Key.Key_2)
    window.hand.drag((300, 100), (350, 200))
    settle(lambda: panel.counts.summary.shapes == 2)
    assert [row[2] for row in table(panel)] == ["1", "1"]
    pixels = [int(row[3]) for row in table(panel)]
    assert pixels == pytest.approx([100, 50], abs=3)
    assert panel.missing() == "" and "have fewer than 3 shapes" in panel.hint()


def test_a_second_new_layer_overwrites_nothing(make, project, raster_layer):
    panel = make(raster_layer)
    panel.new_layer()
    panel.new_layer()
    assert panel.layer().name() == "labels-2" and len(project.mapLayers()) == 3


def test_a_new_layer_that_cannot_be_made_is_told(make, window, raster_layer, tmp_path):
    (tmp_path / "user").write_text("a file where the folder should be")
    panel = make(raster_layer)
    panel.new_layer()
    assert panel.layer() is None and "cannot be made" in window.bar.said[0]


def test_a_raster_without_crs_is_told(make, window, project, tmp_path):
    from osgeo import gdal
    from qgis.core import QgsRasterLayer

    gdal.GetDriverByName("GTiff").Create(str(tmp_path / "bare.tif"), 10, 10)
    raster = QgsRasterLayer(str(tmp_path / "bare.tif"), "bare")
    raster.setCrs(QgsCoordinateReferenceSystem())
    project.setCrs(QgsCoordinateReferenceSystem("EPSG:3857"))
    panel = make(raster)
    panel.new_layer()
    assert "EPSG:3857" in window.bar.said[0] and panel.layer().crs().authid() == "EPSG:3857"


def test_labels_are_found_but_not_any_layer(make, project, raster_layer, label_layer):
    project.addMapLayer(QgsVectorLayer("Polygon?crs=EPSG:32632&field=name:string", "a borders", "memory"))
    panel = make(raster_layer)
    assert panel.layer() is label_layer and panel.class_field() == "class"
    assert panel.choice.field_row.isVisibleTo(panel)
    project.removeMapLayer(label_layer.id())
    assert panel.layer() is None and panel.class_field() == ""


def test_a_map_as_polygons_is_not_taken_for_labels(make, project, raster_layer):
    from geopeft_qgis.result_metadata import describe

    polygons = QgsVectorLayer("Polygon?crs=EPSG:32632&field=class:string", "polygons", "memory")
    describe(polygons, "polygons", "model.geopeft")
    project.addMapLayer(polygons)
    panel = make(raster_layer)
    assert panel.layer() is None
    panel.set_layer(polygons)
    assert panel.layer() is polygons, "whoever chooses it has it"


def test_labels_that_come_later_are_found(make, project, raster_layer):
    panel = make(raster_layer)
    borders = QgsVectorLayer("Polygon?crs=EPSG:32632&field=name:string", "borders", "memory")
    project.addMapLayer(borders)
    assert panel.layer() is None
    labels = QgsVectorLayer("Polygon?crs=EPSG:32632&field=Class:string", "x", "memory")
    project.addMapLayer(labels)
    assert panel.layer() is labels and panel.class_field() == "Class"


def test_an_existing_layer_shows_its_legend_and_counts(make, raster_layer, label_layer):
    panel = make(raster_layer)
    assert table(panel) == [
        ("Forest", "1", "1", "160"),
        ("Water", "2", "2", "320"),
        ("Built Up", "3", "1", "160"),
        ("Snow", "4", "0", "0"),
    ]
    panel.set_raster(None)
    settle()
    assert table(panel)[0] == ("Forest", "1", "1", "–")
    panel.choice.set_field("note")
    settle()
    assert [row[0] for row in table(panel)] == ["n"]


def test_a_layer_of_points_counts_with_its_width(make, project, raster_layer):
    layer = QgsVectorLayer("Point?crs=EPSG:32632&field=class:integer", "points", "memory")
    feature = QgsFeature(layer.fields())
    feature.setGeometry(QgsGeometry.fromPointXY(QgsPointXY(500300, 5399800)))
    feature.setAttributes([7])
    layer.dataProvider().addFeatures([feature])
    project.addMapLayer(layer)
    panel = make(raster_layer)
    assert table(panel) == [("7", "1", "1", "7")]
    assert panel.toolbar.tool_buttons["point"].isEnabled() and not panel.toolbar.tool_buttons["polygon"].isEnabled()
    panel.toolbar.width_box.setValue(10)
    settle()
    assert table(panel)[0][3] == "79" and panel.line_width_px() == 10


def test_points_are_drawn_as_wide_as_the_panel_says(make, window, raster_layer):
    panel = make(raster_layer)
    panel.new_layer()
    panel.toolbar.width_box.setValue(5)
    panel.toolbar.tool_buttons["point"].click()
    window.hand.click((300, 200))
    [feature] = panel.layer().getFeatures()
    assert feature.geometry().boundingBox().width() == pytest.approx(50, abs=1)


def test_a_field_without_classes_is_told_in_a_sentence(make, project, raster_layer):
    layer = QgsVectorLayer("Polygon?crs=EPSG:32632&field=class:string", "many", "memory")
    features = []
    for number in range(60):
        feature = QgsFeature(layer.fields())
        feature.setGeometry(rectangle(500000 + number))
        feature.setAttributes([f"name {number}"])
        features.append(feature)
    layer.dataProvider().addFeatures(features)
    project.addMapLayer(layer)
    panel = make(raster_layer)
    assert "more than 50 different values" in panel.missing() and table(panel) == []


def test_shapes_without_class_are_shown_and_given_one(make, raster_layer, label_layer):
    from geopeft_qgis.label_shapes import set_class

    set_class(label_layer, "class", None, sorted(label_layer.allFeatureIds())[:3])
    panel = make(raster_layer)
    assert "Shapes without class, left out: 3." in panel.hint_label.text()
    panel.hint_label.linkActivated.emit("select")
    assert label_layer.selectedFeatureCount() == 3 and panel.editor.kind == "pick"
    panel._key_pressed(4)
    settle()
    assert panel.counts.summary.classes["snow"].shapes == 3 and "without class" not in panel.hint_label.text()


def test_nothing_has_a_class(make, raster_layer, label_layer):
    from geopeft_qgis.label_shapes import set_class

    set_class(label_layer, "class", None, label_layer.allFeatureIds())
    panel = make(raster_layer)
    assert panel.missing().startswith("No shape has a class.")


def test_digits_choose_a_class_in_the_table_too(make, raster_layer, label_layer):
    panel = make(raster_layer)
    seen = []
    panel.table.current_changed.connect(lambda: seen.append(panel.table.current))
    press(panel.table.view, Qt.Key.Key_3)
    press(panel.table.view, Qt.Key.Key_9)
    assert panel.table.current == 2 and panel.table.current_class.name == "Built Up" and seen[-1] == 2


def test_sketch_keys_reach_the_tool_from_the_table(make, window, raster_layer, label_layer):
    panel = make(raster_layer)
    panel.toolbar.tool_buttons["polygon"].click()
    window.hand.click((100, 100), (200, 100))
    press(panel.table.view, Qt.Key.Key_Escape)
    assert not window.hand.canvas.mapTool().is_drawing and not window.hand.bands()


def test_a_class_is_renamed_in_place_and_refusals_are_told(make, window, raster_layer):
    panel = make(raster_layer)
    panel.new_layer()
    model = panel.table.model
    assert model.flags(model.index(0, 1)) & Qt.ItemFlag.ItemIsEditable
    assert not model.flags(model.index(0, 3)) & Qt.ItemFlag.ItemIsEditable
    model.setData(model.index(0, 1), "water")
    model.setData(model.index(1, 1), "Water")
    assert [row[0] for row in table(panel)] == ["water", "class 2"]
    assert "There is a class 'Water' already" in window.bar.said[0]


def test_adding_opens_the_name_for_typing(make, raster_layer):
    panel = make(raster_layer)
    panel.new_layer()
    panel.table.add_button.click()
    view = panel.table.view
    assert view.state() == view.State.EditingState and panel.table.current == 2


def test_a_class_with_shapes_is_only_removed_after_a_second_press(make, raster_layer, label_layer):
    panel = make(raster_layer)
    panel.table.choose(1)
    panel.table.remove_button.click()
    assert panel.table.question.isVisibleTo(panel) and "Shapes of 'Water': 2." in panel.table.question_label.text()
    panel.table.keep_button.click()
    assert not panel.table.question.isVisibleTo(panel) and label_layer.featureCount() == 4
    panel.table.remove_button.click()
    panel.table.choose(0)
    assert not panel.table.question.isVisibleTo(panel), "the question is about the class that was current"
    panel.table.choose(1)
    panel.table.remove_button.click()
    panel.table.remove_all_button.click()
    settle()
    assert [row[0] for row in table(panel)] == ["Forest", "Built Up", "Snow"] and label_layer.featureCount() == 2
    panel.table.choose(2)
    panel.table.remove_button.click()
    assert [row[0] for row in table(panel)] == ["Forest", "Built Up"], "nothing to ask about"


def test_a_colour_is_changed_while_the_window_stays_usable(make, raster_layer, label_layer):
    panel = make(raster_layer)
    panel.table.edit_color(1)
    dialog = panel.table._dialog
    assert not dialog.isModal()
    dialog.currentColorChanged.emit(QColor("#00ffff"))
    assert [category.symbol().color().name() for category in label_layer.renderer().categories()][1] == "#00ffff"
    panel.table.choose(0)
    panel.choice.layer_box.setLayer(None)
    settle(lambda: panel.table._dialog is None)
    assert panel.table.model.rowCount() == 0


def test_the_colour_of_the_table_is_that_of_the_map(make, raster_layer, label_layer):
    panel = make(raster_layer)
    model = panel.table.model
    colors = [model.data(model.index(row, 0), Qt.ItemDataRole.DecorationRole).name() for row in range(4)]
    assert colors == [category.symbol().color().name() for category in label_layer.renderer().categories()]


def test_the_tools_buttons_follow_the_tool(make, window, raster_layer, label_layer):
    panel = make(raster_layer)

    def pressed():
        return [kind for kind, button in panel.toolbar.tool_buttons.items() if button.isChecked()]

    panel.toolbar.tool_buttons["freehand"].click()
    assert pressed() == ["freehand"]
    panel.toolbar.tool_buttons["point"].click()
    assert pressed() == ["point"]
    panel.toolbar.tool_buttons["point"].click()
    assert pressed() == [] and window.hand.canvas.mapTool() is window.pan
    panel.toolbar.tool_buttons["polygon"].click()
    window.hand.canvas.setMapTool(window.pan)
    assert pressed() == []


def test_a_read_only_layer_is_told_and_the_button_comes_up_again(make, window, raster_layer, label_layer):
    label_layer.setReadOnly(True)
    panel = make(raster_layer)
    panel.toolbar.tool_buttons["polygon"].click()
    assert "cannot be edited" in window.bar.said[0] and not panel.toolbar.tool_buttons["polygon"].isChecked()


def test_the_layer_is_removed_in_the_middle_of_a_sketch(make, window, project, raster_layer, label_layer):
    panel = make(raster_layer)
    changes = []
    panel.changed.connect(lambda: changes.append(panel.missing()))
    panel.toolbar.tool_buttons["polygon"].click()
    window.hand.click((100, 100), (200, 100), (200, 200))
    project.removeMapLayer(label_layer.id())
    settle()
    assert window.hand.canvas.mapTool() is window.pan and not window.hand.bands()
    assert panel.layer() is None and table(panel) == [] and changes[-1].startswith("Press 'New label layer'")


def test_a_project_that_is_closed_takes_everything_along(make, window, project, raster_layer, label_layer):
    panel = make(raster_layer)
    panel.toolbar.tool_buttons["polygon"].click()
    window.hand.click((100, 100), (200, 100))
    panel.set_raster(None)
    project.clear()
    settle()
    assert panel.layer() is None and not window.hand.bands()


def test_unsaved_edits_are_counted_saved_and_undone(make, window, raster_layer):
    panel = make(raster_layer)
    panel.new_layer()
    layer = panel.layer()
    assert not panel.toolbar.save_button.isEnabled() and not panel.toolbar.undo_button.isEnabled()
    panel.toolbar.tool_buttons["rectangle"].click()
    window.hand.drag((100, 100), (200, 200))
    window.hand.drag((300, 100), (350, 200))
    settle()
    assert panel.toolbar.save_button.isEnabled() and panel.toolbar.undo_button.isEnabled()
    panel.toolbar.undo_button.click()
    settle(lambda: panel.counts.summary.shapes == 1)
    panel.toolbar.save_button.click()
    settle()
    assert layer.dataProvider().featureCount() == 1 and not panel.toolbar.save_button.isEnabled()
    assert table(panel)[0][2] == "1"


def test_edited_comes_with_each_change_that_learning_would_see(make, window, raster_layer, label_layer):
    panel = make(raster_layer)
    settle()
    edits = []
    panel.edited.connect(lambda: edits.append(1))
    panel.toolbar.tool_buttons["polygon"].click()
    window.hand.move(100, 100, NONE)
    label_layer.selectAll()
    settle()
    assert not edits
    window.hand.click((100, 100), (200, 100), (200, 200))
    window.hand.click((0, 0), button=RIGHT)
    settle(lambda: len(edits) == 1)
    panel._classes.recolor(0, QColor("#010203"))
    assert len(edits) == 2


def test_the_choice_of_a_field_outlives_a_change_of_the_fields(make, raster_layer, label_layer):
    from qgis.core import QgsDefaultValue

    panel = make(raster_layer)
    panel.choice.set_field("note")
    label_layer.setDefaultValueDefinition(0, QgsDefaultValue("'x'"))
    assert panel.class_field() == panel.choice.field_box.currentField() == "note"
    label_layer.startEditing()
    label_layer.deleteAttribute(label_layer.fields().lookupField("note"))
    assert panel.class_field() == panel.choice.field_box.currentField() == "class"


def test_a_foreign_layer_stays_as_it_is_until_it_is_changed(make, window, project, raster_layer):
    layer = QgsVectorLayer("Polygon?crs=EPSG:32632&field=class:string", "foreign", "memory")
    feature = QgsFeature(layer.fields())
    feature.setGeometry(rectangle(500100))
    feature.setAttributes(["a"])
    layer.dataProvider().addFeatures([feature])
    project.addMapLayer(layer)
    panel = make(raster_layer)
    panel.table.choose(0)
    assert layer.renderer().type() == "singleSymbol" and not layer.isEditable()
    panel.toolbar.tool_buttons["rectangle"].click()
    window.hand.drag((300, 100), (350, 200))
    assert layer.renderer().type() == "categorizedSymbol"


def test_a_thousand_shapes_pasted_are_shown_at_once(make, raster_layer, label_layer):
    import time

    panel = make(raster_layer)
    pasted = []
    for number in range(1000):
        feature = QgsFeature(label_layer.fields())
        feature.setGeometry(rectangle(500000 + number % 400))
        feature.setAttributes(["snow", ""])
        pasted.append(feature)
    label_layer.startEditing()
    label_layer.beginEditCommand("paste")
    shown = []
    show = panel.toolbar.refresh
    panel.toolbar.refresh = lambda *state: (shown.append(state), show(*state))
    start = time.process_time()
    label_layer.addFeatures(pasted)
    label_layer.endEditCommand()
    settle(lambda: panel.counts.summary.complete)
    print(f"1000 pasted: {time.process_time() - start:.3f} s")
    assert time.process_time() - start < 1.0 and len(shown) < 50
    assert table(panel)[3][2] == "1,000"
    for fid in label_layer.allFeatureIds():
        label_layer.changeAttributeValue(fid, 0, "forest")
    settle(lambda: table(panel)[0][2] == "1,004")
    assert len(shown) < 50


def test_names_with_markup_are_shown_as_they_are(make, raster_layer, label_layer):
    panel = make(raster_layer)
    panel.table.model.setData(panel.table.model.index(1, 1), "<b>wet</b>")
    assert "&lt;b&gt;wet" in panel.hint_label.text()


def test_a_changed_class_makes_the_project_one_to_save(make, project, raster_layer, label_layer):
    panel = make(raster_layer)
    project.setDirty(False)
    panel.table.model.setData(panel.table.model.index(0, 1), "wood")
    assert project.isDirty()


def test_it_fits_into_a_narrow_dock(make, raster_layer, label_layer):
    label_layer.setName("a label layer with a very long name that nobody can read")
    panel = make(raster_layer)
    assert panel.minimumSizeHint().width() <= 320


def test_the_end_lets_everything_go(make, window, project, raster_layer, label_layer):
    panel = make(raster_layer)
    panel.toolbar.tool_buttons["polygon"].click()
    window.hand.click((100, 100))
    panel.end()
    changes = []
    panel.changed.connect(lambda: changes.append(1))
    panel.edited.connect(lambda: changes.append(1))
    label_layer.startEditing()
    label_layer.addFeature(QgsFeature(label_layer.fields()))
    label_layer.rollBack()
    label_layer.setRenderer(label_layer.renderer().clone())
    settle()
    project.removeMapLayer(label_layer.id())
    project.addMapLayer(QgsVectorLayer("Polygon?crs=EPSG:32632&field=class:string", "late", "memory"))
    settle()
    assert not changes and not window.hand.bands() and window.hand.canvas.mapTool() is window.pan
