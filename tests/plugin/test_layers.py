"""Labels leave QGIS as the user sees them; rasters leave it as files."""

import time

import pytest
from qgis.core import (
    QgsFeature,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorFileWriter,
    QgsVectorLayer,
)


def square(layer, name, left, top=5399900):
    feature = QgsFeature(layer.fields())
    feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(left, top - 50, left + 50, top)))
    feature.setAttribute("class", name)
    return feature


def write(layer, tmp_path, class_field="class", **options):
    from geopeft_qgis.layers import write_labels

    return write_labels(layer, layer, class_field, tmp_path / "labels.gpkg", **options)


def read(labels):
    """What another program finds in the snapshot: (class, colour, rounded area) of each feature, and the CRS."""
    path, name = labels.spec.rsplit(":", 1)
    layer = QgsVectorLayer(f"{path}|layername={name}", "read", "ogr")
    assert layer.isValid()
    rows = sorted((f[labels.class_field], f["color"], round(f.geometry().area())) for f in layer.getFeatures())
    return rows, layer.crs().authid(), layer


@pytest.fixture
def file_layer(label_layer, tmp_path):
    """The labels as a GeoPackage layer, in edit mode, with one feature added, one changed and one deleted."""
    path = str(tmp_path / "original.gpkg")
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG"
    context = QgsProject.instance().transformContext()
    QgsVectorFileWriter.writeAsVectorFormatV3(label_layer, path, context, options)
    layer = QgsVectorLayer(path, "saved labels", "ogr")
    layer.setRenderer(label_layer.renderer().clone())
    ids = {f["class"]: f.id() for f in layer.getFeatures()}
    layer.startEditing()
    layer.addFeature(square(layer, "snow", 500400))
    layer.addFeature(square(layer, "snow", 500460))
    layer.changeAttributeValue(ids["forest"], layer.fields().lookupField("class"), "water")
    layer.changeGeometry(ids["built up"], QgsGeometry.fromRect(QgsRectangle(500300, 5399700, 500310, 5399710)))
    layer.deleteFeature(min(f.id() for f in layer.getFeatures() if f.id() > 0))
    yield layer
    assert layer.isEditable(), "the snapshot must not end the user's editing"
    layer.rollBack()


def test_unsaved_edits_are_in_the_snapshot(file_layer, tmp_path):
    labels = write(file_layer, tmp_path)
    rows, crs, _ = read(labels)
    assert rows == [
        ("built up", "#c0392b", 100),
        ("snow", "#ffffff", 2500),
        ("snow", "#ffffff", 2500),
        ("water", "#3b7dd8", 16000),
        ("water", "#3b7dd8", 16000),
    ]
    assert crs == "EPSG:32632" and labels.features == 5
    assert [c["value"] for c in labels.classes] == ["water", "built up", "snow"]


def test_the_saved_file_and_the_edit_buffer_stay_as_they_are(file_layer, tmp_path):
    before = (file_layer.featureCount(), file_layer.undoStack().count(), (tmp_path / "original.gpkg").read_bytes())
    write(file_layer, tmp_path)
    after = (file_layer.featureCount(), file_layer.undoStack().count(), (tmp_path / "original.gpkg").read_bytes())
    assert before == after


def test_a_memory_layer_keeps_the_names_and_colours_of_its_legend(label_layer, tmp_path):
    labels = write(label_layer, tmp_path)
    assert labels.classes == [
        {"value": "forest", "name": "Forest", "color": "#2f8f4e"},
        {"value": "water", "name": "Water", "color": "#3b7dd8"},
        {"value": "built up", "name": "Built Up", "color": "#c0392b"},
    ]


def test_a_filter_is_obeyed(file_layer, label_layer, tmp_path):
    path = str(tmp_path / "filtered.gpkg")
    options = QgsVectorFileWriter.SaveVectorOptions()
    QgsVectorFileWriter.writeAsVectorFormatV3(label_layer, path, QgsProject.instance().transformContext(), options)
    layer = QgsVectorLayer(path, "filtered", "ogr")
    layer.setSubsetString("\"class\" <> 'water'")
    assert [row[0] for row in read(write(layer, tmp_path))[0]] == ["built up", "forest"]


def test_only_the_selection_if_so_wished(label_layer, tmp_path):
    label_layer.selectByExpression("\"class\" = 'forest'")
    assert [row[0] for row in read(write(label_layer, tmp_path, selected_only=True))[0]] == ["forest"]


def test_features_without_a_class_are_left_out_and_counted(label_layer, tmp_path):
    label_layer.startEditing()
    label_layer.addFeature(square(label_layer, None, 500400))
    label_layer.addFeature(square(label_layer, "  ", 500460))
    labels = write(label_layer, tmp_path)
    assert (labels.features, labels.without_class) == (4, 2)
    label_layer.rollBack()


def test_integer_classes_are_sorted_by_number_without_a_legend(project, tmp_path):
    layer = QgsVectorLayer("Point?crs=EPSG:4326&field=class:integer", "points", "memory")
    features = []
    for value in (10, 2, 1, 10):
        feature = QgsFeature(layer.fields())
        feature.setGeometry(QgsGeometry.fromPointXY(QgsPointXY(value, value)))
        feature.setAttributes([value])
        features.append(feature)
    layer.dataProvider().addFeatures(features)
    labels = write(layer, tmp_path)
    assert [c["value"] for c in labels.classes] == ["1", "2", "10"]
    assert all(c["color"] == "" for c in labels.classes)


def test_curves_and_heights_become_plain_shapes(project, tmp_path):
    layer = QgsVectorLayer("CurvePolygonZ?crs=EPSG:32632&field=class:string", "round", "memory")
    feature = QgsFeature(layer.fields())
    feature.setGeometry(
        QgsGeometry.fromWkt("CurvePolygonZ (CircularStringZ (0 0 5, 10 10 5, 20 0 5, 10 -10 5, 0 0 5))")
    )
    feature.setAttributes(["lake"])
    assert layer.dataProvider().addFeatures([feature])[0]
    rows, _, written = read(write(layer, tmp_path))
    assert rows[0][2] == pytest.approx(314, abs=1)
    assert next(written.getFeatures()).geometry().asWkt(0).startswith("MultiPolygon ((")


@pytest.mark.parametrize("name", ["color", "fid", "geom"])
def test_class_fields_with_reserved_names_survive(project, tmp_path, name):
    layer = QgsVectorLayer(f"Polygon?crs=EPSG:32632&field={name}:string", "odd", "memory")
    feature = QgsFeature(layer.fields())
    feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(0, 0, 10, 10)))
    feature.setAttributes(["a"])
    layer.dataProvider().addFeatures([feature])
    assert read(write(layer, tmp_path, name))[0] == [("a", "", 100)]


def test_a_field_that_is_not_there_is_told_with_those_that_are(label_layer, tmp_path):
    from geopeft_qgis.layers import LayerError

    with pytest.raises(LayerError, match="no field 'klass'.*class, note"):
        write(label_layer, tmp_path, "klass")


def test_five_thousand_labels_take_seconds(project, tmp_path):
    layer = QgsVectorLayer("Polygon?crs=EPSG:32632&field=class:string", "many", "memory")
    layer.dataProvider().addFeatures([square(layer, f"c{i % 7}", 500000 + 60 * i) for i in range(5000)])
    start = time.monotonic()
    assert write(layer, tmp_path).features == 5000
    assert time.monotonic() - start < 5.0


def test_a_raster_layer_becomes_its_file(raster_layer, raster_file):
    from geopeft_qgis.layers import raster_path

    assert raster_path(raster_layer) == str(raster_file)


def test_a_web_layer_is_refused_in_a_sentence(project):
    from geopeft_qgis.layers import LayerError, raster_path

    source = "type=xyz&url=http://localhost:1/{z}/{x}/{y}.png&zmax=1&zmin=0"
    with pytest.raises(LayerError, match="comes from a service .*Export it as GeoTIFF"):
        raster_path(QgsRasterLayer(source, "tiles", "wms"))


def test_a_broken_raster_layer_is_refused_in_a_sentence(project):
    from geopeft_qgis.layers import LayerError, raster_path

    with pytest.raises(LayerError, match="cannot be read"):
        raster_path(QgsRasterLayer("/no/such.tif", "gone"))
