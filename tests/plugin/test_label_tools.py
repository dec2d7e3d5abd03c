"""The drawing tools, with the mouse and keys of a real map canvas, into a real layer."""

import math

import pytest
from drawing import NONE, RIGHT, Hand
from qgis.core import QgsCoordinateReferenceSystem, QgsProject, QgsVectorLayer
from qgis.gui import QgsMapToolPan
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QCoreApplication, QEvent, Qt


class Window:
    """What the editor needs of QGIS's window."""

    def __init__(self):
        self.active = None

    def setActiveLayer(self, layer):  # noqa: N802
        self.active = layer


class Drawing:
    """An editor on a canvas, drawing class 'water' into a layer."""

    def __init__(self, layer, raster, crs="EPSG:32632"):
        from geopeft_qgis.gui.label_editor import LabelEditor
        from geopeft_qgis.label_shapes import raster_grid
        from geopeft_qgis.label_style import LabelClass

        self.layer = layer
        self.hand = Hand(crs)
        self.window = Window()
        self.pan = QgsMapToolPan(self.hand.canvas)
        self.hand.canvas.setMapTool(self.pan)
        self.editor = LabelEditor(self.window, self.hand.canvas)
        self.said, self.digits, self.kinds = [], [], []
        self.editor.said.connect(self.said.append)
        self.editor.class_key.connect(self.digits.append)
        self.editor.tool_changed.connect(self.kinds.append)
        self.editor.set_layer(layer, "class")
        self.editor.set_grid(raster_grid(raster))
        self.editor.set_class(LabelClass("water", "water", "#0000ff"))

    @property
    def tool(self):
        return self.hand.canvas.mapTool()

    def shapes(self):
        """(class, area in m2 to 500, corner in m from the raster's) of what was drawn; a pixel of the screen is 1 m."""
        found = []
        for feature in self.layer.getFeatures():
            box = feature.geometry().boundingBox()
            corner = (box.xMinimum() - 500000, box.yMinimum() - 5399600)
            found.append(
                (feature["class"], 500 * round(feature.geometry().area() / 500), tuple(round(c) for c in corner))
            )
        return found

    def end(self):
        self.editor.end()
        if not sip.isdeleted(self.layer):
            self.layer.rollBack()
        self.hand.canvas.deleteLater()
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def memory_layer(kind, crs="EPSG:32632"):
    layer = QgsVectorLayer(f"{kind}?crs={crs}&field=class:string", "drawn", "memory")
    QgsProject.instance().addMapLayer(layer)
    return layer


@pytest.fixture
def draw(project, raster_layer):
    """Drawing into a new layer of a kind."""
    made = []

    def into(kind="MultiPolygon", crs="EPSG:32632", canvas_crs="EPSG:32632"):
        made.append(Drawing(memory_layer(kind, crs), raster_layer, canvas_crs))
        return made[-1]

    yield into
    for drawing in made:
        drawing.end()


CORNERS = ((100, 100), (200, 100), (200, 200), (100, 200))


def test_a_polygon_is_clicked_and_ended_with_the_right_button(draw):
    drawing = draw()
    drawing.editor.start("polygon")
    assert not drawing.layer.undoStack().count()
    drawing.hand.click(*CORNERS)
    assert drawing.tool.is_drawing and len(drawing.hand.bands()) == 1
    assert drawing.hand.bands()[0].strokeColor().name() == "#0000ff"
    drawing.hand.click((150, 350), button=RIGHT)
    assert drawing.shapes() == [("water", 10000, (100, 100))]
    assert not drawing.tool.is_drawing and not drawing.hand.bands()
    assert drawing.layer.undoStack().count() == 1 and drawing.layer.undoStack().undoText() == "Add label"
    drawing.layer.undoStack().undo()
    assert drawing.shapes() == []


def test_the_sketch_shows_where_the_next_corner_would_be(draw):
    drawing = draw()
    drawing.editor.start("polygon")
    drawing.hand.click(*CORNERS[:2])
    drawing.hand.move(150, 180, NONE)
    assert drawing.hand.bands()[0].asGeometry().boundingBox().yMaximum() == pytest.approx(5399780, abs=1)


def test_backspace_takes_corners_back_and_escape_the_whole(draw):
    drawing = draw()
    drawing.editor.start("polygon")
    drawing.hand.click((300, 300), *CORNERS, (400, 20))
    drawing.hand.key(Qt.Key.Key_Backspace)
    drawing.hand.click((0, 0), button=RIGHT)
    assert drawing.layer.featureCount() == 1 and drawing.shapes()[0][2] == (100, 100)
    drawing.hand.click(*CORNERS)
    drawing.hand.key(Qt.Key.Key_Escape)
    drawing.hand.click((0, 0), button=RIGHT)
    assert drawing.layer.featureCount() == 1 and not drawing.said
    drawing.hand.click((10, 10))
    drawing.hand.key(Qt.Key.Key_Backspace)
    assert not drawing.hand.bands()


@pytest.mark.parametrize("key", [Qt.Key.Key_Backspace, Qt.Key.Key_Delete])
def test_keys_that_qgis_would_delete_the_selection_with_are_left_ignored(draw, key):
    """QGIS deletes the selected features of its active layer where a tool accepts one of these two keys."""
    drawing = draw()
    drawing.editor.start("polygon")
    assert drawing.hand.key(key) is False
    drawing.hand.click(*CORNERS)
    assert drawing.hand.key(key) is False


def test_a_polygon_of_two_corners_is_told(draw):
    drawing = draw()
    drawing.editor.start("polygon")
    drawing.hand.click(*CORNERS[:2])
    drawing.hand.click((0, 0), button=RIGHT)
    assert drawing.said == ["A polygon needs three corners."] and drawing.layer.featureCount() == 0


def test_a_double_click_ends_a_polygon_and_begins_no_other(draw):
    drawing = draw()
    drawing.editor.start("polygon")
    drawing.hand.click(*CORNERS)
    drawing.tool.canvasDoubleClickEvent(drawing.hand.event(QEvent.Type.MouseButtonDblClick, 100, 200))
    drawing.hand.release(100, 200)
    assert drawing.shapes() == [("water", 10000, (100, 100))] and not drawing.tool.is_drawing


def test_a_freehand_outline_is_thinned_and_repaired(draw):
    drawing = draw()
    drawing.editor.start("freehand")
    circle = [(300 + 100 * math.cos(t / 50), 200 + 100 * math.sin(t / 50)) for t in range(315)]
    drawing.hand.drag(*circle)
    assert drawing.shapes()[0][1] == pytest.approx(math.pi * 100**2, rel=0.02)
    corners = next(drawing.layer.getFeatures()).geometry().constGet().vertexCount()
    assert 20 < corners < 120
    eight = [(300 + 100 * math.sin(t / 25), 200 + 50 * math.sin(2 * t / 25)) for t in range(158)]
    drawing.hand.drag(*eight)
    shapes = [feature.geometry() for feature in drawing.layer.getFeatures()]
    assert len(shapes) == 2 and all(shape.isGeosValid() for shape in shapes)
    assert sorted(shape.constGet().partCount() for shape in shapes) == [1, 2]


def test_a_freehand_click_is_told(draw):
    drawing = draw()
    drawing.editor.start("freehand")
    drawing.hand.drag((100, 100), (100, 100))
    assert drawing.said == ["Hold the mouse button down while you draw around the area."]
    assert not drawing.tool.is_drawing


def test_a_rectangle_is_dragged(draw):
    drawing = draw()
    drawing.editor.start("rectangle")
    drawing.hand.drag((300, 300), (250, 250), (200, 180))
    assert drawing.shapes() == [("water", 12000, (200, 180))]
    drawing.hand.drag((300, 300), (301, 300))
    assert drawing.layer.featureCount() == 1 and "opposite" in drawing.said[0]


def test_a_rectangle_follows_the_edges_of_a_rotated_window(draw):
    drawing = draw()
    drawing.hand.canvas.setRotation(30)
    drawing.editor.start("rectangle")
    drawing.hand.drag((200, 200), (300, 250))
    shape = next(drawing.layer.getFeatures()).geometry()
    box, angle, *_ = shape.orientedMinimumBoundingBox()
    assert box.area() == pytest.approx(shape.area(), rel=0.01)
    assert shape.boundingBox().area() > 1.2 * shape.area()


def test_a_point_is_a_disc_in_a_layer_of_polygons(draw):
    drawing = draw()
    drawing.editor.start("point")
    drawing.hand.move(100, 100, NONE)
    assert drawing.hand.bands()[0].asGeometry().boundingBox().width() == pytest.approx(30, abs=1)
    drawing.hand.click((100, 100))
    drawing.editor.width_px = 5
    drawing.hand.click((200, 200))
    areas = sorted(feature.geometry().area() for feature in drawing.layer.getFeatures())
    assert areas == pytest.approx([math.pi * 15**2, math.pi * 25**2], rel=0.03)


@pytest.mark.parametrize(
    ("kind", "tools"),
    [
        ("MultiPolygon", {"polygon", "freehand", "rectangle", "point", "pick"}),
        ("LineString", {"polygon", "freehand", "pick"}),
        ("MultiPoint", {"point", "pick"}),
    ],
)
def test_layers_of_other_shapes_take_their_own(draw, kind, tools):
    drawing = draw(kind)
    assert {
        name for name in ("polygon", "freehand", "rectangle", "point", "pick") if drawing.editor.takes(name)
    } == tools
    if kind == "LineString":
        drawing.editor.start("polygon")
        drawing.hand.click((100, 100), (200, 100))
        drawing.hand.click((0, 0), button=RIGHT)
        drawing.editor.start("freehand")
        drawing.hand.drag((100, 100), (150, 100), (200, 200))
        assert drawing.layer.featureCount() == 2
    if kind == "MultiPoint":
        drawing.editor.start("point")
        drawing.hand.click((100, 100))
        assert next(drawing.layer.getFeatures()).geometry().asWkt(0).startswith("MultiPoint")


def test_a_layer_in_another_crs_gets_the_shape_where_it_was_drawn(draw):
    from geopeft_qgis.label_shapes import transform_to, transformed

    drawing = draw(crs="EPSG:4326")
    drawing.editor.start("rectangle")
    drawing.hand.drag((100, 100), (200, 200))
    shape = next(drawing.layer.getFeatures()).geometry()
    assert 8 < shape.boundingBox().center().x() < 10
    back = transformed(shape, transform_to(drawing.layer.crs(), QgsCoordinateReferenceSystem("EPSG:32632")))
    assert back.area() == pytest.approx(10000, rel=0.01)


def test_digits_choose_the_class_and_the_rest_is_left_to_qgis(draw):
    drawing = draw()
    for kind in ("polygon", "freehand", "rectangle", "point", "pick"):
        drawing.editor.start(kind)
        drawing.hand.key(Qt.Key.Key_3)
    drawing.hand.key(Qt.Key.Key_0)
    assert drawing.digits == [3] * 5
    assert drawing.hand.key(Qt.Key.Key_F) is False


def test_the_sketch_takes_the_colour_of_the_new_class(draw):
    from geopeft_qgis.label_style import LabelClass

    drawing = draw()
    drawing.editor.start("polygon")
    drawing.hand.click(*CORNERS[:3])
    drawing.editor.set_class(LabelClass("forest", "forest", "#00ff00"))
    assert drawing.hand.bands()[0].strokeColor().name() == "#00ff00"
    drawing.hand.click((0, 0), button=RIGHT)
    assert drawing.shapes()[0][0] == "forest"


def test_the_layer_is_put_into_edit_mode_and_made_qgiss_active_one(draw):
    drawing = draw()
    drawing.editor.start("polygon")
    assert drawing.window.active is drawing.layer and drawing.layer.isEditable()
    drawing.layer.commitChanges()
    drawing.hand.click(*CORNERS)
    drawing.hand.click((0, 0), button=RIGHT)
    assert drawing.layer.isEditable() and drawing.layer.featureCount() == 1


def test_the_previous_tool_comes_back(draw):
    drawing = draw()
    drawing.editor.start("polygon")
    drawing.editor.start("point")
    drawing.hand.move(100, 100, NONE)
    drawing.editor.stop()
    assert drawing.tool is drawing.pan and not drawing.hand.bands()
    assert drawing.kinds == ["polygon", "point", ""]


def test_another_tool_of_qgis_stays_when_it_is_taken(draw):
    drawing = draw()
    drawing.editor.start("polygon")
    drawing.hand.click(*CORNERS[:2])
    other = QgsMapToolPan(drawing.hand.canvas)
    drawing.hand.canvas.setMapTool(other)
    assert drawing.editor.kind == "" and drawing.tool is other and not drawing.hand.bands()
    drawing.editor.stop()
    assert drawing.tool is other


def test_a_layer_that_goes_in_the_middle_of_a_sketch_takes_the_tool_along(draw, project):
    drawing = draw()
    drawing.editor.start("polygon")
    drawing.hand.click(*CORNERS[:3])
    drawing.editor.set_layer(None, "")
    project.removeMapLayer(drawing.layer.id())
    assert drawing.tool is drawing.pan and not drawing.hand.bands()


def test_a_read_only_layer_is_told_before_anything_is_drawn(draw):
    drawing = draw()
    drawing.layer.setReadOnly(True)
    drawing.editor.start("polygon")
    assert drawing.tool is drawing.pan and "cannot be edited" in drawing.said[0]


@pytest.mark.parametrize("step", [1, -1])
def test_picking_takes_the_smallest_shape_and_adds_with_shift(draw, step):
    drawing = draw()
    drawing.editor.start("rectangle")
    for corners in (((100, 100), (300, 300)), ((150, 150), (200, 200)), ((400, 100), (500, 200)))[::step]:
        drawing.hand.drag(*corners)
    drawing.editor.start("pick")
    drawing.hand.click((170, 170))
    assert [500 * round(f.geometry().area() / 500) for f in drawing.layer.selectedFeatures()] == [2500]
    drawing.hand.click((450, 150), modifiers=Qt.KeyboardModifier.ShiftModifier)
    assert drawing.layer.selectedFeatureCount() == 2
    drawing.hand.click((170, 170), modifiers=Qt.KeyboardModifier.ShiftModifier)
    assert [500 * round(f.geometry().area() / 500) for f in drawing.layer.selectedFeatures()] == [10000]
    drawing.hand.click((550, 390))
    assert drawing.layer.selectedFeatureCount() == 0


def test_delete_takes_the_selected_shapes_else_the_last_one(draw):
    drawing = draw()
    drawing.editor.start("rectangle")
    for left in (100, 200, 300):
        drawing.hand.drag((left, 100), (left + 50, 150))
    drawing.hand.key(Qt.Key.Key_Delete)
    assert sorted(corner for _, _, corner in drawing.shapes()) == [(100, 100), (200, 100)]
    drawing.editor.start("pick")
    drawing.hand.click((120, 120))
    drawing.hand.key(Qt.Key.Key_Delete)
    assert [corner for _, _, corner in drawing.shapes()] == [(200, 100)]
    drawing.editor.delete()
    drawing.editor.delete()
    assert drawing.shapes() == [] and drawing.said == ["Select a shape with the arrow first."]
    drawing.layer.undoStack().undo()
    assert drawing.layer.featureCount() == 1


def test_the_selected_shapes_get_the_current_class(draw):
    from geopeft_qgis.label_style import LabelClass

    drawing = draw()
    drawing.editor.start("rectangle")
    drawing.hand.drag((100, 100), (200, 200))
    drawing.editor.start("pick")
    drawing.hand.click((150, 150))
    drawing.editor.set_class(LabelClass("forest", "forest", "#00ff00"))
    drawing.editor.give_class()
    assert drawing.shapes()[0][0] == "forest" and drawing.layer.undoStack().undoText() == "Change class"


def test_edits_are_saved_and_editing_goes_on(draw, tmp_path):
    drawing = draw()
    drawing.editor.start("rectangle")
    drawing.hand.drag((100, 100), (200, 200))
    drawing.editor.save()
    assert drawing.layer.dataProvider().featureCount() == 1 and drawing.layer.isEditable()
    drawing.hand.drag((100, 100), (200, 200))
    assert drawing.layer.featureCount() == 2


def test_edits_that_cannot_be_saved_are_told_and_kept(draw):
    drawing = draw()
    drawing.editor.start("rectangle")
    drawing.hand.drag((100, 100), (200, 200))
    drawing.layer.commitChanges = lambda stop: False
    drawing.layer.commitErrors = lambda: ["The disk is full."]
    drawing.editor.save()
    assert "The disk is full." in drawing.said[0] and drawing.layer.featureCount() == 1


def test_without_a_class_nothing_is_drawn_in_silence(draw):
    drawing = draw()
    drawing.editor.set_class(None)
    drawing.editor.start("rectangle")
    drawing.hand.drag((100, 100), (200, 200))
    assert drawing.said == ["Add a class first, then draw."] and drawing.layer.featureCount() == 0


def test_the_end_leaves_no_tool_and_no_band(draw):
    drawing = draw()
    drawing.editor.start("polygon")
    drawing.hand.click(*CORNERS)
    drawing.editor.end()
    assert drawing.tool is drawing.pan and not drawing.hand.bands()
    drawing.hand.canvas.setMapTool(QgsMapToolPan(drawing.hand.canvas))
    assert drawing.kinds == ["polygon", ""]
