"""Labels leave QGIS as the user sees them."""

import time

import pytest
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsFeature,
    QgsFeatureRequest,
    QgsGeometry,
    QgsPointXY,
    QgsProcessingContext,
    QgsProject,
    QgsRectangle,
    QgsVectorFileWriter,
    QgsVectorLayer,
    QgsVectorLayerJoinInfo,
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


@pytest.mark.fault("L27")
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


@pytest.mark.fault("L27", "L29")
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


@pytest.mark.fault("L09")
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


@pytest.mark.fault("S03")
@pytest.mark.parametrize("name", ["color", "fid", "geom", "it's", 'the "class"', "a]b[c", "x; DROP TABLE labels --"])
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


@pytest.mark.fault("L25")
def test_five_thousand_labels_take_seconds(project, tmp_path):
    layer = QgsVectorLayer("Polygon?crs=EPSG:32632&field=class:string", "many", "memory")
    layer.dataProvider().addFeatures([square(layer, f"c{i % 7}", 500000 + 60 * i) for i in range(5000)])
    start = time.monotonic()
    assert write(layer, tmp_path).features == 5000
    assert time.monotonic() - start < 5.0


def layer_of(kind, wkt, value="a", crs="EPSG:32632"):
    """A memory layer with one feature."""
    layer = QgsVectorLayer(f"{kind}?crs={crs}&field=class:string", "shapes", "memory")
    feature = QgsFeature(layer.fields())
    feature.setGeometry(QgsGeometry.fromWkt(wkt))
    feature.setAttributes([value])
    assert layer.dataProvider().addFeatures([feature])[0]
    return layer


def refusal(layer, tmp_path, class_field="class"):
    from geopeft_qgis.layers import LayerError

    with pytest.raises(LayerError) as caught:
        write(layer, tmp_path, class_field)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "wkt", "written"),
    [
        ("PointZM", "PointZM (1 2 3 4)", "MultiPoint ((1 2))"),
        ("MultiPointM", "MultiPointM ((1 2 3),(4 5 6))", "MultiPoint ((1 2),(4 5))"),
        ("LineStringM", "LineStringM (1 2 3, 4 5 6)", "MultiLineString ((1 2, 4 5))"),
        (
            "CompoundCurveZ",
            "CompoundCurveZ ((0 0 1, 5 0 1),CircularStringZ (5 0 1, 6 1 1, 7 0 1))",
            "MultiLineString ((0 0",
        ),
        ("MultiCurve", "MultiCurve ((0 0, 5 0),CircularString (5 0, 6 1, 7 0))", "MultiLineString ((0 0"),
        (
            "MultiSurfaceZM",
            "MultiSurfaceZM (((0 0 1 1, 9 0 1 1, 9 9 1 1, 0 0 1 1)))",
            "MultiPolygon (((0 0, 9 0, 9 9, 0 0)))",
        ),
    ],
)
def test_every_kind_of_shape_becomes_a_plain_one(project, tmp_path, kind, wkt, written):
    layer = layer_of(kind, wkt)
    shape = next(read(write(layer, tmp_path))[2].getFeatures()).geometry()
    assert shape.asWkt(0).startswith(written)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:2154", "PROJ:+proj=laea +lat_0=10 +lon_0=20 +ellps=WGS84 +units=m"])
@pytest.mark.fault("L35", "L13")
def test_labels_keep_their_own_crs_and_places(project, tmp_path, crs):
    """The engine brings them to the raster: here nothing is moved."""
    layer = layer_of("Polygon", "Polygon ((1 2, 3 2, 3 5, 1 2))", crs=crs)
    _, _, written = read(write(layer, tmp_path))
    assert next(written.getFeatures()).geometry().asWkt(0) == "MultiPolygon (((1 2, 3 2, 3 5, 1 2)))"
    globe, context = QgsCoordinateReferenceSystem("EPSG:4326"), QgsProject.instance()
    places = [QgsCoordinateTransform(one.crs(), globe, context).transform(QgsPointXY(1, 2)) for one in (layer, written)]
    assert written.crs().isValid() and places[0].distance(places[1]) < 1e-9


def test_a_scratch_layer_in_edit_mode_is_written_as_it_is_seen(project, tmp_path):
    layer = layer_of("Polygon", "Polygon ((0 0, 10 0, 10 10, 0 0))")
    layer.startEditing()
    layer.addFeature(square(layer, "new", 500))
    first = next(feature for feature in layer.getFeatures() if feature["class"] == "a")
    layer.changeAttributeValue(first.id(), 0, "changed")
    assert [row[0] for row in read(write(layer, tmp_path))[0]] == ["changed", "new"]
    assert layer.isEditable()
    layer.rollBack()


def test_a_field_that_is_joined_to_the_layer_works(label_layer, project, tmp_path):
    table = QgsVectorLayer("None?field=name:string&field=kind:string", "kinds", "memory")
    rows = []
    for name, kind in (("water", "wet"), ("forest", "dry"), ("built up", "dry")):
        row = QgsFeature(table.fields())
        row.setAttributes([name, kind])
        rows.append(row)
    table.dataProvider().addFeatures(rows)
    project.addMapLayer(table)
    join = QgsVectorLayerJoinInfo()
    join.setJoinLayer(table)
    join.setJoinFieldName("name")
    join.setTargetFieldName("class")
    join.setUsingMemoryCache(True)
    label_layer.addJoin(join)
    labels = write(label_layer, tmp_path, "kinds_kind")
    assert [row[0] for row in read(labels)[0]] == ["dry", "dry", "wet", "wet"]


def test_a_virtual_layer_works(label_layer, tmp_path):
    layer = QgsVectorLayer("?query=select class, geometry from labels where class <> 'forest'", "view", "virtual")
    assert layer.isValid()
    rows, crs, _ = read(write(layer, tmp_path))
    assert [row[0] for row in rows] == ["built up", "water", "water"] and crs == "EPSG:32632"


def test_text_tables_with_coordinates_work(project, tmp_path):
    (tmp_path / "points.csv").write_text("x,y,class\n500000,5399900,water\n500100,5399900,forest\n")
    uri = f"file://{tmp_path}/points.csv?type=csv&xField=x&yField=y&crs=EPSG:32632"
    layer = QgsVectorLayer(uri, "points", "delimitedtext")
    assert [row[0] for row in read(write(layer, tmp_path))[0]] == ["forest", "water"]


def test_what_processing_makes_of_a_layer_works(label_layer, tmp_path):
    """A source with a filter and 'selected only', and invalid shapes in it."""
    from qgis.core import QgsProcessingFeatureSource

    from geopeft_qgis.layers import write_labels

    bow_tie = QgsFeature(label_layer.fields())
    bow_tie.setGeometry(QgsGeometry.fromWkt("Polygon ((0 0, 10 10, 10 0, 0 10, 0 0))"))
    bow_tie.setAttribute("class", "snow")
    label_layer.dataProvider().addFeatures([bow_tie])
    context = QgsProcessingContext()
    context.setInvalidGeometryCheck(QgsFeatureRequest.InvalidGeometryCheck.GeometryAbortOnInvalid)
    source = QgsProcessingFeatureSource(label_layer, context)
    labels = write_labels(source, None, "class", tmp_path / "labels.gpkg")
    assert labels.features == 5 and [c["value"] for c in labels.classes] == ["built up", "forest", "snow", "water"]


@pytest.mark.fault("L14")
def test_labels_without_a_crs_are_refused_with_the_remedy(project, tmp_path):
    layer = layer_of("Polygon", "Polygon ((0 0, 10 0, 10 10, 0 0))")
    layer.setCrs(QgsCoordinateReferenceSystem())
    said = refusal(layer, tmp_path)
    assert "'shapes' has no coordinate reference system" in said and "Set CRS of Layer(s)" in said


def test_a_field_that_is_empty_everywhere_is_named(label_layer, tmp_path):
    label_layer.startEditing()
    for feature in label_layer.getFeatures():
        label_layer.changeAttributeValue(feature.id(), 1, None)
    said = refusal(label_layer, tmp_path, "note")
    assert "field 'note' is empty in all of them (4)" in said and "Give each its class" in said
    label_layer.rollBack()


def test_features_without_a_shape_are_left_out(label_layer, tmp_path):
    empty = QgsFeature(label_layer.fields())
    empty.setAttribute("class", "snow")
    label_layer.dataProvider().addFeatures([empty])
    labels = write(label_layer, tmp_path)
    assert labels.features == 4 and "snow" not in [c["value"] for c in labels.classes]


def test_labels_that_are_no_shapes_at_all_are_said(project, tmp_path):
    table = QgsVectorLayer("None?field=class:string", "table", "memory")
    assert "'table' is a table without shapes" in refusal(table, tmp_path)
    hollow = QgsVectorLayer("Polygon?crs=EPSG:32632&field=class:string", "hollow", "memory")
    assert "no labelled feature" in refusal(hollow, tmp_path)
    hollow.dataProvider().addFeatures([QgsFeature(hollow.fields())])
    assert "No label has a shape" in refusal(hollow, tmp_path)


def test_a_label_file_that_has_gone_is_said(file_layer, label_layer, tmp_path):
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GeoJSON"
    path = str(tmp_path / "gone.geojson")
    QgsVectorFileWriter.writeAsVectorFormatV3(label_layer, path, QgsProject.instance().transformContext(), options)
    layer = QgsVectorLayer(path, "gone", "ogr")
    layer.dataProvider().leaveUpdateMode()
    (tmp_path / "gone.geojson").unlink()
    layer.dataProvider().reloadData()
    said = refusal(layer, tmp_path)
    assert "'gone' is not there any more" in said and "gone.geojson" in said


def test_a_label_layer_that_left_the_project_is_said(label_layer, project, tmp_path):
    project.removeMapLayer(label_layer.id())
    assert "not in the project any more" in refusal(label_layer, tmp_path)
