"""From a sketch to a feature: repaired, with the width of a point, in the layer's CRS, as one step to undo."""

import math

import pytest
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsGeometry,
    QgsPointXY,
    QgsRasterLayer,
    QgsVectorLayer,
    QgsWkbTypes,
)


def outline(*points):
    from geopeft_qgis.label_shapes import outline_polygon

    return outline_polygon([QgsPointXY(x, y) for x, y in points])


@pytest.fixture
def grid(raster_layer):
    from geopeft_qgis.label_shapes import raster_grid

    return raster_grid(raster_layer)


def test_a_clean_outline_stays_as_it_is(qgis_app):
    assert outline((0, 0), (10, 0), (10, 10)).asWkt(0) == "Polygon ((0 0, 10 0, 10 10, 0 0))"


def test_an_outline_that_crosses_itself_becomes_both_its_parts(qgis_app):
    shape = outline((0, 0), (10, 10), (10, 0), (0, 10))
    assert shape.isGeosValid() and shape.area() == pytest.approx(50)
    assert shape.constGet().partCount() == 2


def test_what_is_run_around_twice_is_no_hole(qgis_app):
    turns = [(math.cos(t / 10) * (10 + t / 50), math.sin(t / 10) * (10 + t / 50)) for t in range(140)]
    shape = outline(*turns)
    assert shape.isGeosValid() and shape.area() > math.pi * 10**2
    assert shape.contains(QgsGeometry.fromPointXY(QgsPointXY(10.5, 5)))


@pytest.mark.parametrize("points", [(), ((0, 0), (1, 1)), ((0, 0), (5, 5), (10, 10)), ((3, 3), (3, 3), (3, 3))])
def test_an_outline_around_nothing_is_nothing(qgis_app, points):
    assert outline(*points).isNull()


def test_a_point_is_three_pixels_wide_in_any_crs(grid):
    from geopeft_qgis.label_shapes import disc, measure, transform_to, transformed

    utm, mercator = grid.crs, QgsCoordinateReferenceSystem("EPSG:3857")
    here = transformed(QgsGeometry.fromPointXY(QgsPointXY(500300, 5399800)), transform_to(utm, mercator)).asPoint()
    shape = disc(here, mercator, grid, 3.0, 1.0)
    assert measure(shape, transform_to(mercator, utm), grid, 1.0).pixels == pytest.approx(9 * math.pi / 4, rel=0.03)
    box = transformed(shape, transform_to(mercator, utm)).boundingBox()
    assert box.width() == pytest.approx(30, abs=0.5) and box.center().x() == pytest.approx(500300, abs=0.5)


def test_a_point_without_raster_is_three_pixels_of_the_screen(qgis_app):
    from geopeft_qgis.label_shapes import disc

    shape = disc(QgsPointXY(100, 100), QgsCoordinateReferenceSystem("EPSG:32632"), None, 3.0, 2.0)
    assert shape.boundingBox().width() == pytest.approx(6)


def test_a_place_that_does_not_exist_in_the_rasters_crs_gives_no_disc(grid):
    from geopeft_qgis.label_shapes import disc

    assert disc(QgsPointXY(0, 95), QgsCoordinateReferenceSystem("EPSG:4326"), grid, 3.0, 1.0).isNull()


def test_services_have_no_grid(project):
    from geopeft_qgis.label_shapes import raster_grid

    tiles = QgsRasterLayer("type=xyz&url=http://localhost:1/{z}/{x}/{y}.png&zmax=1&zmin=0", "tiles", "wms")
    assert raster_grid(tiles) is None and raster_grid(None) is None


@pytest.mark.parametrize(
    ("wkt", "pixels"),
    [
        ("Polygon ((500100 5399700, 500200 5399700, 500200 5399800, 500100 5399800, 500100 5399700))", 100),
        (
            "Polygon ((499900 5399700, 500100 5399700, 500100 5399800, 499900 5399800, 499900 5399700))",
            100,
        ),  # half of it outside
        ("LineString (500100 5399700, 500200 5399700)", 30 + 9 * math.pi / 4),
        ("MultiPoint ((500100 5399700), (500200 5399700))", 2 * 9 * math.pi / 4),
        ("Point (1 1)", 0),
    ],
)
def test_pixels_are_those_that_training_will_use(grid, wkt, pixels):
    from geopeft_qgis.label_shapes import measure, transform_to

    size = measure(QgsGeometry.fromWkt(wkt), transform_to(grid.crs, grid.crs), grid, 3.0)
    assert size.pixels == pytest.approx(pixels)
    assert (size.box is None) == (pixels == 0)


@pytest.mark.parametrize(
    ("kind", "drawn", "stored"),
    [
        ("MultiPolygon", "Polygon ((0 0, 1 0, 1 1, 0 0))", QgsWkbTypes.Type.MultiPolygon),
        ("PolygonZ", "Polygon ((0 0, 1 0, 1 1, 0 0))", QgsWkbTypes.Type.PolygonZ),
        ("MultiLineString", "LineString (0 0, 1 1)", QgsWkbTypes.Type.MultiLineString),
        ("Point", "Point (1 1)", QgsWkbTypes.Type.Point),
    ],
)
def test_shapes_become_what_the_layer_stores(project, kind, drawn, stored):
    from geopeft_qgis.label_shapes import add_shape

    layer = QgsVectorLayer(f"{kind}?crs=EPSG:32632&field=class:string", "any", "memory")
    fid = add_shape(layer, "class", "a", QgsGeometry.fromWkt(drawn))
    feature = layer.getFeature(fid)
    assert feature["class"] == "a" and feature.geometry().wkbType() == stored
    assert layer.undoStack().count() == 1
    layer.undoStack().undo()
    assert layer.featureCount() == 0
    layer.rollBack()


def test_a_shape_that_the_layer_cannot_hold_is_told_and_leaves_nothing(project):
    from geopeft_qgis.label_shapes import add_shape
    from geopeft_qgis.layers import LayerError

    layer = QgsVectorLayer("LineString?crs=EPSG:32632&field=class:string", "lines", "memory")
    with pytest.raises(LayerError, match="does not take this shape"):
        add_shape(layer, "class", "a", QgsGeometry.fromWkt("Point (1 1)"))
    assert layer.undoStack().count() == 0


def test_a_step_that_fails_is_taken_back(label_layer):
    from geopeft_qgis.label_shapes import edit_command

    with pytest.raises(ValueError), edit_command(label_layer, "half"):
        label_layer.deleteFeature(min(label_layer.allFeatureIds()))
        raise ValueError
    assert label_layer.featureCount() == 4 and label_layer.undoStack().count() == 0
    label_layer.rollBack()


def test_classes_are_changed_and_shapes_deleted_in_one_step_each(label_layer):
    from geopeft_qgis.label_shapes import delete_shapes, set_class

    ids = sorted(label_layer.allFeatureIds())
    set_class(label_layer, "class", "snow", ids[:3])
    delete_shapes(label_layer, ids[3:])
    assert sorted(f["class"] for f in label_layer.getFeatures()) == ["snow", "snow", "snow"]
    assert label_layer.undoStack().count() == 2
    label_layer.rollBack()
