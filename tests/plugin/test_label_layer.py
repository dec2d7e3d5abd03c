"""Label layers: the file, its style, and its classes."""

import pytest
from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.PyQt.QtGui import QColor


def square(layer, left=500050, size=80):
    return QgsGeometry.fromRect(QgsRectangle(left, 5399700, left + size, 5399700 + size))


def values(layer, field="class"):
    return sorted(str(feature[field]) for feature in layer.getFeatures())


def names(classes):
    return [row.name for row in classes.rows]


@pytest.fixture
def ours(project, raster_layer, tmp_path):
    """A label layer of ours with three shapes, two of class 1 and one of class 2, in edit mode."""
    from geopeft_qgis.label_layer import create_label_layer
    from geopeft_qgis.label_shapes import add_shape
    from geopeft_qgis.label_style import default_classes

    layer = create_label_layer(tmp_path / "new folder" / "labels.gpkg", raster_layer, default_classes())
    project.addMapLayer(layer)
    for place, name in enumerate(("class 1", "class 1", "class 2")):
        add_shape(layer, "class", name, square(layer, 500050 + 100 * place))
    yield layer
    layer.rollBack()


@pytest.fixture
def classes_of(qgis_app):
    """Classes of a layer, let go at the end."""
    from geopeft_qgis.label_classes import LabelClasses

    made = []

    def of(layer, field="class"):
        made.append(LabelClasses(layer, field))
        return made[-1]

    yield of
    for classes in made:
        classes.end()


def test_a_new_layer_is_ready_to_draw_into(ours, raster_layer, tmp_path):
    assert ours.isValid() and ours.name() == "labels"
    assert ours.crs() == raster_layer.crs()
    assert isinstance(ours.renderer(), QgsCategorizedSymbolRenderer)
    assert [c.value() for c in ours.renderer().categories()] == ["class 1", "class 2"]
    index = ours.fields().lookupField("class")
    setup = ours.editorWidgetSetup(index)
    assert setup.type() == "ValueMap"
    assert setup.config()["map"] == [{"class 1": "class 1"}, {"class 2": "class 2"}]
    assert int(ours.editFormConfig().suppress()) == 1, "no form may stand in the way of drawing"
    assert (tmp_path / "new folder" / "labels.gpkg").is_file()


def test_the_engine_gets_the_names_and_colours_of_the_table(ours, classes_of, tmp_path):
    from geopeft_qgis.layers import write_labels

    classes = classes_of(ours)
    classes.rename(0, "water")
    classes.recolor(0, QColor("#123456"))
    written = write_labels(ours, ours, "class", tmp_path / "out.gpkg")
    assert written.classes[0] == {"value": "water", "name": "water", "color": "#123456"}
    assert written.features == 3


def test_the_raster_without_crs_gets_labels_in_the_projects(project, tmp_path):
    from geopeft_qgis.label_layer import create_label_layer
    from geopeft_qgis.label_style import default_classes
    from geopeft_qgis.layers import LayerError

    project.setCrs(QgsCoordinateReferenceSystem("EPSG:3857"))
    layer = create_label_layer(tmp_path / "a.gpkg", QgsRasterLayer(), default_classes())
    assert layer.crs().authid() == "EPSG:3857"
    project.setCrs(QgsCoordinateReferenceSystem())
    with pytest.raises(LayerError, match="Set the raster's"):
        create_label_layer(tmp_path / "b.gpkg", None, default_classes())
    assert not (tmp_path / "b.gpkg").exists()


def test_a_folder_that_cannot_be_written_is_told(raster_layer, tmp_path):
    from geopeft_qgis.label_layer import create_label_layer
    from geopeft_qgis.label_style import default_classes
    from geopeft_qgis.layers import LayerError

    (tmp_path / "file").write_text("")
    with pytest.raises(LayerError, match=r"cannot be made in .*Save the project in a folder of yours"):
        create_label_layer(tmp_path / "file" / "labels.gpkg", raster_layer, default_classes())


def test_new_layers_go_beside_the_project_and_overwrite_nothing(project, tmp_path, monkeypatch):
    from geopeft_qgis import settings
    from geopeft_qgis.label_layer import new_label_path

    monkeypatch.setattr(settings, "models_folder", lambda: tmp_path / "user" / "models")
    assert new_label_path() == tmp_path / "user" / "labels" / "labels.gpkg"
    project.write(str(tmp_path / "project.qgz"))
    (tmp_path / "labels.gpkg").write_text("somebody's")
    assert new_label_path() == tmp_path / "labels-2.gpkg"


def test_renaming_changes_the_shapes_and_is_undone_with_its_name(ours, classes_of):
    classes = classes_of(ours)
    classes.rename(0, "water")
    assert values(ours) == ["class 2", "water", "water"]
    assert names(classes) == ["water", "class 2"]
    assert ours.undoStack().undoText() == "Rename class"
    ours.undoStack().undo()
    classes.learn({"class 1": "class 1", "class 2": "class 2"})
    assert values(ours) == ["class 1", "class 1", "class 2"]
    assert names(classes) == ["class 1", "class 2"]
    ours.undoStack().redo()
    classes.learn({"water": "water", "class 2": "class 2"})
    assert names(classes) == ["water", "class 2"]
    assert [c.value() for c in ours.renderer().categories()] == ["water", "class 2"]


@pytest.mark.parametrize("name", ["", "  ", "class 2", "CLASS 2"])
def test_names_that_would_confuse_are_refused_and_change_nothing(ours, classes_of, name):
    from geopeft_qgis.layers import LayerError

    classes = classes_of(ours)
    with pytest.raises(LayerError):
        classes.rename(0, name)
    assert names(classes) == ["class 1", "class 2"] and values(ours) == ["class 1", "class 1", "class 2"]


def test_a_name_longer_than_the_field_is_refused(label_layer, classes_of):
    from geopeft_qgis.layers import LayerError

    with pytest.raises(LayerError, match="up to 20 letters"):
        classes_of(label_layer).add("a class with a very long name")


def test_classes_are_added_moved_and_removed(ours, classes_of):
    classes = classes_of(ours)
    assert classes.add() == 2 and classes.rows[2].name == "class 3"
    assert len({row.color for row in classes.rows}) == 3
    assert classes.move(2, -1) == 1 and classes.move(1, -5) == 0 and classes.move(0, -1) == 0
    assert names(classes) == ["class 3", "class 1", "class 2"]
    classes.remove(1)
    assert names(classes) == ["class 3", "class 2"] and values(ours) == ["class 2"]
    assert [c.value() for c in ours.renderer().categories()] == ["class 3", "class 2"]


def test_an_undone_removal_brings_back_the_class_in_its_colour(ours, classes_of):
    classes = classes_of(ours)
    classes.recolor(0, QColor("#abcdef"))
    classes.remove(0)
    ours.undoStack().undo()
    classes.learn({"class 1": "class 1", "class 2": "class 2"})
    assert [(row.name, row.color) for row in classes.rows][1] == ("class 1", "#abcdef")


def test_the_classes_come_along_with_the_file(ours, classes_of):
    classes = classes_of(ours)
    classes.rename(0, "water")
    assert ours.commitChanges()
    classes.recolor(1, QColor("#010203"))
    again = QgsVectorLayer(ours.source(), "again", "ogr")
    from geopeft_qgis.label_style import is_label_layer

    assert is_label_layer(again)
    assert names(classes_of(again)) == ["water", "class 2"]


def test_the_style_is_saved_twice_without_a_question(ours, classes_of):
    classes = classes_of(ours)
    for name in ("water", "lake"):
        classes.rename(0, name)
        assert ours.commitChanges(False)
    count, _, styles, *_ = ours.listStylesInDatabase()
    assert count == 1 and styles == ["labels"]
    assert names(classes_of(QgsVectorLayer(ours.source(), "again", "ogr"))) == ["lake", "class 2"]


def test_what_qgis_itself_draws_gets_the_current_class(ours, classes_of):
    from qgis.core import QgsVectorLayerUtils

    classes_of(ours).set_current(1)
    assert QgsVectorLayerUtils.createFeature(ours, square(ours))["class"] == "class 2"


def test_an_existing_legend_is_read_and_keeps_its_symbols(label_layer, classes_of):
    before = {c.value(): c.symbol().dump() for c in label_layer.renderer().categories()}
    classes = classes_of(label_layer)
    assert [(row.value, row.name, row.color) for row in classes.rows] == [
        ("forest", "Forest", "#2f8f4e"),
        ("water", "Water", "#3b7dd8"),
        ("built up", "Built Up", "#c0392b"),
        ("snow", "Snow", "#ffffff"),
    ]
    classes.recolor(1, QColor("#0000ff"))
    after = {c.value(): c.symbol().dump() for c in label_layer.renderer().categories()}
    assert {value for value in before if before[value] != after[value]} == {"water"}
    assert not label_layer.isEditable(), "a colour is no edit of the data"


@pytest.mark.parametrize("kind", ["Polygon", "LineString", "Point"])
def test_a_symbol_made_here_takes_the_new_colour_everywhere(project, classes_of, kind):
    from geopeft_qgis.label_style import class_symbol

    layer = QgsVectorLayer(f"{kind}?crs=EPSG:32632&field=class:string", "plain", "memory")
    classes = classes_of(layer)
    classes.add("a")
    for color in ("#112233", "#445566"):
        classes.recolor(0, QColor(color))
    [category] = layer.renderer().categories()
    symbol = category.symbol()
    assert symbol.color().name() == "#445566"
    assert symbol.dump() == class_symbol(layer.geometryType(), "#445566").dump()


def test_a_name_of_the_legend_only_is_changed_in_the_legend_only(label_layer, classes_of):
    classes = classes_of(label_layer)
    classes.rename(0, "Wood")
    assert names(classes)[0] == "Wood"
    assert values(label_layer) == ["built up", "forest", "water", "water"] and not label_layer.isEditable()


def test_other_values_of_a_legend_stay(label_layer, classes_of):
    from qgis.core import QgsFillSymbol, QgsRendererCategory

    label_layer.renderer().addCategory(QgsRendererCategory(None, QgsFillSymbol.createSimple({}), "other"))
    classes_of(label_layer).recolor(0, QColor("#00ff00"))
    assert label_layer.renderer().categories()[-1].label() == "other"


def test_a_legend_changed_in_qgis_is_followed(label_layer, classes_of):
    classes = classes_of(label_layer)
    seen = []
    classes.changed.connect(lambda: seen.append(names(classes)))
    renderer = label_layer.renderer().clone()
    renderer.updateCategoryLabel(0, "Trees")
    label_layer.setRenderer(renderer)
    assert seen == [["Trees", "Water", "Built Up", "Snow"]]


def plain_layer(kind, field, contents):
    layer = QgsVectorLayer(f"{kind}?crs=EPSG:32632&field=class:{field}", "plain", "memory")
    features = []
    for value in contents:
        feature = QgsFeature(layer.fields())
        feature.setGeometry(QgsGeometry.fromPointXY(QgsPointXY(500100, 5399800)))
        feature.setAttributes([value])
        features.append(feature)
    assert layer.dataProvider().addFeatures(features)[0]
    QgsProject.instance().addMapLayer(layer)
    return layer


def test_a_layer_without_legend_is_only_restyled_when_a_class_is_changed(project, classes_of):
    from geopeft_qgis.label_style import PALETTE

    layer = plain_layer("Point", "integer", [10, 2, None])
    classes = classes_of(layer)
    classes.learn({"10": 10, "2": 2})
    assert [(row.value, row.name) for row in classes.rows] == [(2, "2"), (10, "10")]
    assert [row.color for row in classes.rows] == list(PALETTE[:2])
    assert layer.renderer().type() == "singleSymbol"
    classes.rename(0, "forest")
    assert [(c.value(), c.label()) for c in layer.renderer().categories()] == [(2, "forest"), (10, "10")]
    assert not layer.isEditable() and layer.editorWidgetSetup(0).type() != "ValueMap"
    assert classes.add("water") == 2 and classes.rows[2].value == 11


def test_drawing_shows_the_classes_of_a_plain_layer_but_replaces_no_other_legend(project, label_layer, classes_of):
    layer = plain_layer("Point", "string", ["a"])
    classes = classes_of(layer)
    classes.learn({"a": "a"})
    classes.adopt()
    assert layer.renderer().type() == "categorizedSymbol"
    before = label_layer.renderer()
    classes_of(label_layer, "note").adopt()
    assert label_layer.renderer().classAttribute() == before.classAttribute() == "class"


def test_shapes_without_class_are_found(project, classes_of):
    layer = plain_layer("Point", "string", ["a", None, " "])
    assert len(classes_of(layer).without_class()) == 2


def test_a_value_that_goes_leaves_a_layer_without_legend(project, classes_of):
    classes = classes_of(plain_layer("Point", "string", ["a"]))
    classes.learn({"a": "a", "b": "b"})
    classes.learn({"a": "a"})
    assert names(classes) == ["a"]


def test_a_layer_that_cannot_be_edited_says_so(ours, classes_of):
    from geopeft_qgis.label_shapes import add_shape
    from geopeft_qgis.layers import LayerError

    assert ours.commitChanges()
    ours.setReadOnly(True)
    for change in (lambda: add_shape(ours, "class", "class 1", square(ours)), lambda: classes_of(ours).rename(0, "x")):
        with pytest.raises(LayerError, match="cannot be edited. Press 'New'"):
            change()
    assert values(ours) == ["class 1", "class 1", "class 2"]


def test_the_palette_is_told_apart_without_red_and_green(qgis_app):
    """Simulated deuteranopia (Viénot 1999): the first eight colours differ by brightness or by blue against yellow."""
    from geopeft_qgis.label_style import PALETTE, palette_color

    def seen(color):
        red, green, blue = (QColor(color).redF() ** 2.2, QColor(color).greenF() ** 2.2, QColor(color).blueF() ** 2.2)
        mixed = 0.29275 * red + 0.70725 * green
        return [round(255 * max(value, 0) ** (1 / 2.2)) for value in (mixed, -0.02234 * red + 0.02234 * green + blue)]

    first = [seen(color) for color in PALETTE[:8]]
    gaps = [
        max(abs(a - b) for a, b in zip(one, other, strict=True)) for i, one in enumerate(first) for other in first[:i]
    ]
    assert min(gaps) > 20
    many = []
    for _ in range(50):
        many.append(palette_color(many))
    assert len(set(many)) == 50
