"""Counts follow each edit, cost little, and say what is missing."""

import time

import pytest
from drawing import longest_slot_s, settle
from qgis.core import (
    QgsFeature,
    QgsGeometry,
    QgsPointXY,
    QgsRectangle,
    QgsVectorFileWriter,
    QgsVectorLayer,
)


def rectangle(left, bottom, width=100, height=100):
    return QgsGeometry.fromRect(QgsRectangle(left, bottom, left + width, bottom + height))


@pytest.fixture
def counts(qgis_app):
    from geopeft_qgis.label_counts import LabelCounts

    counts = LabelCounts()
    yield counts
    counts.end()


@pytest.fixture
def grid(raster_layer):
    from geopeft_qgis.label_shapes import raster_grid

    return raster_grid(raster_layer)


def follow(counts, layer, grid, field="class"):
    counts.follow(layer, field, grid, 3.0)
    settle(lambda: counts.summary.complete)
    return counts.summary


def shown(summary):
    return {
        key: (count.shapes, None if count.pixels is None else round(count.pixels))
        for key, count in summary.classes.items()
    }


def test_shapes_and_pixels_of_each_class(counts, label_layer, grid):
    summary = follow(counts, label_layer, grid)
    assert shown(summary) == {"water": (2, 320), "forest": (1, 160), "built up": (1, 160)}
    assert summary.shapes == 4 and summary.without_class == 0 and summary.outside == 0


def test_without_a_raster_there_are_no_pixels(counts, label_layer):
    assert shown(follow(counts, label_layer, None))["water"] == (2, None)


def test_labels_in_another_crs_are_measured_in_the_rasters(counts, project, label_layer, grid):
    from geopeft_qgis.label_shapes import transform_to, transformed

    layer = QgsVectorLayer("Polygon?crs=EPSG:3857&field=class:string", "mercator", "memory")
    feature = QgsFeature(layer.fields())
    feature.setGeometry(transformed(rectangle(500100, 5399700), transform_to(grid.crs, layer.crs())))
    feature.setAttributes(["a"])
    layer.dataProvider().addFeatures([feature])
    assert shown(follow(counts, layer, grid)) == {"a": (1, 100)}


def test_each_kind_of_edit_is_followed(counts, label_layer, grid):
    from geopeft_qgis.label_shapes import add_shape, delete_shapes, set_class

    follow(counts, label_layer, grid)
    edits = []
    counts.edited.connect(lambda: edits.append(shown(counts.summary)))
    fid = add_shape(label_layer, "class", "snow", rectangle(500100, 5399700))
    settle(lambda: len(edits) == 1)
    label_layer.changeGeometry(fid, rectangle(500100, 5399700, 50))
    settle(lambda: len(edits) == 2)
    set_class(label_layer, "class", "forest", [fid])
    settle(lambda: len(edits) == 3)
    delete_shapes(label_layer, [fid])
    settle(lambda: len(edits) == 4)
    assert [edit.get("snow") for edit in edits] == [(1, 100), (1, 50), None, None]
    assert [edit["forest"] for edit in edits] == [(1, 160), (1, 160), (2, 210), (1, 160)]
    label_layer.undoStack().undo()
    settle(lambda: shown(counts.summary)["forest"] == (2, 210))
    old = min(number for number in label_layer.allFeatureIds() if number > 0)
    set_class(label_layer, "class", "snow", [old])
    label_layer.changeGeometry(old, rectangle(500100, 5399700, 50))
    settle(lambda: shown(counts.summary)["snow"] == (1, 50))
    number = len(edits)
    label_layer.rollBack()
    settle(lambda: len(edits) == number + 1)
    assert edits[-1] == {"water": (2, 320), "forest": (1, 160), "built up": (1, 160)}


def test_a_class_is_in_one_spot_again_when_its_far_shape_is_deleted(counts, label_layer, grid):
    from geopeft_qgis.label_counts import hints
    from geopeft_qgis.label_shapes import add_shape, delete_shapes

    add_shape(label_layer, "class", "forest", rectangle(500010, 5399610, 20, 20))
    near = [add_shape(label_layer, "class", "snow", rectangle(500100 + 10 * i, 5399900, 5, 5)) for i in range(3)]
    far = add_shape(label_layer, "class", "snow", rectangle(500550, 5399650, 5, 5))
    names = {"snow": "snow"}
    spot = "All shapes of 'snow' are in one spot"
    assert spot not in " ".join(hints(follow(counts, label_layer, grid), names, True))
    delete_shapes(label_layer, [far])
    settle(lambda: counts.summary.classes["snow"].shapes == len(near))
    assert spot in " ".join(hints(counts.summary, names, True))
    label_layer.rollBack()


def test_other_fields_are_no_edit_of_labels(counts, label_layer, grid):
    follow(counts, label_layer, grid)
    edits = []
    counts.edited.connect(lambda: edits.append(1))
    label_layer.startEditing()
    label_layer.changeAttributeValue(min(label_layer.allFeatureIds()), label_layer.fields().lookupField("note"), "x")
    settle()
    assert not edits
    label_layer.rollBack()


def test_saving_counts_nothing_twice(counts, project, raster_layer, grid, tmp_path):
    from geopeft_qgis.label_layer import create_label_layer
    from geopeft_qgis.label_shapes import add_shape
    from geopeft_qgis.label_style import default_classes

    layer = create_label_layer(tmp_path / "labels.gpkg", raster_layer, default_classes())
    follow(counts, layer, grid)
    for place in range(3):
        add_shape(layer, "class", "class 1", rectangle(500100 + 100 * place, 5399700))
    assert layer.commitChanges(False)
    settle(lambda: shown(counts.summary) == {"class 1": (3, 300)})
    add_shape(layer, "class", "class 2", rectangle(500100, 5399800))
    settle(lambda: shown(counts.summary) == {"class 1": (3, 300), "class 2": (1, 100)})
    layer.rollBack()


def test_shapes_without_class_and_outside_are_counted_apart(counts, label_layer, grid):
    from geopeft_qgis.label_shapes import add_shape, set_class

    set_class(label_layer, "class", None, [min(label_layer.allFeatureIds())])
    add_shape(label_layer, "class", "water", rectangle(0, 0))
    summary = follow(counts, label_layer, grid)
    assert summary.without_class == 1 and summary.outside == 1
    assert shown(summary)["water"] == (2, 160)
    label_layer.rollBack()


def many(number, values=5):
    layer = QgsVectorLayer("Polygon?crs=EPSG:32632&field=class:string", "many", "memory")
    features = []
    for index in range(number):
        feature = QgsFeature(layer.fields())
        # A circle of 64 corners, as a hand would draw it.
        middle = QgsPointXY(500000 + 10 * (index % 60), 5399600 + 10 * (index // 60 % 40))
        feature.setGeometry(QgsGeometry.fromPointXY(middle).buffer(8, 16))
        feature.setAttributes([f"class {index % values}"])
        features.append(feature)
    layer.dataProvider().addFeatures(features)
    return layer


def test_a_thousand_shapes_never_hold_up_the_window(counts, project, grid):
    from geopeft_qgis.label_shapes import add_shape

    layer = many(1000)
    start = time.process_time()
    counts.follow(layer, "class", grid, 3.0)
    first = time.process_time() - start
    longest = longest_slot_s(lambda: counts.summary.complete)
    print(f"1000 shapes: {time.process_time() - start:.3f} s, longest slot {max(first, longest):.3f} s")
    assert max(first, longest) < 0.1
    edits = []
    counts.edited.connect(lambda: edits.append(1))
    start = time.process_time()
    add_shape(layer, "class", "class 0", rectangle(500100, 5399700))
    added = time.process_time() - start
    longest = longest_slot_s(lambda: edits)
    print(f"one more: {time.process_time() - start:.3f} s, longest slot {max(added, longest):.3f} s")
    assert time.process_time() - start < 0.1
    assert counts.summary.classes["class 0"].shapes == 201
    layer.rollBack()


def test_ten_thousand_shapes_are_counted_in_small_steps(counts, project, grid):
    layer = many(10_000)
    counts.follow(layer, "class", grid, 3.0)
    assert longest_slot_s(lambda: counts.summary.complete) < 0.1
    assert counts.summary.shapes == 10_000


def test_editing_may_begin_while_a_file_is_being_counted(counts, project, grid, tmp_path):
    path = str(tmp_path / "many.gpkg")
    options = QgsVectorFileWriter.SaveVectorOptions()
    QgsVectorFileWriter.writeAsVectorFormatV3(many(1000), path, project.transformContext(), options)
    layer = QgsVectorLayer(path, "many", "ogr")
    counts.follow(layer, "class", grid, 3.0)
    assert not counts.summary.complete
    assert layer.startEditing()
    settle(lambda: counts.summary.complete)
    assert counts.summary.shapes == 1000
    layer.rollBack()
    edits = []
    counts.edited.connect(lambda: edits.append(counts.summary.shapes))
    layer.setSubsetString("\"class\" = 'class 0'")
    settle(lambda: edits)
    assert edits == [200], "what a filter hides is not learned from"


def test_very_many_shapes_are_counted_in_part_which_is_told(counts, project, grid, monkeypatch):
    from geopeft_qgis import label_counts

    monkeypatch.setattr(label_counts, "MAX_SHAPES", 100)
    summary = follow(counts, many(101), grid)
    assert summary.cut and summary.shapes == 100
    assert "Only the first 100 shapes" in " ".join(label_counts.hints(summary, {"class 0": "a", "class 1": "b"}, False))
    assert not follow(counts, many(100), grid).cut


def test_a_field_that_holds_no_classes_ends_the_count(counts, project, grid):
    layer = many(2000, values=2000)
    summary = follow(counts, layer, grid)
    assert summary.too_many_classes and summary.shapes < 500


def test_a_layer_that_goes_is_let_go(counts, project, label_layer, grid):
    follow(counts, label_layer, grid)
    project.removeMapLayer(label_layer.id())
    settle()
    assert counts.summary.shapes == 0


def summary_of(**classes):
    from geopeft_qgis.label_counts import ClassCount, Summary

    counted = {key: ClassCount(shapes, 10.0, box) for key, (shapes, box) in classes.items()}
    return Summary(counted, {key: key for key in classes}, 0, 0, True, False)


WIDE, SPOT, THIN = (0, 0, 100, 100), (90, 90, 99, 99), (90, 0, 95, 100)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ({"water": (5, WIDE), "forest": (5, WIDE)}, []),
        ({"water": (5, WIDE)}, ["Only 'Water' has labels: draw a second class"]),
        ({"water": (5, WIDE), "forest": (2, WIDE)}, ["'Forest' has 2 of the 3 shapes"]),
        ({"water": (1, WIDE), "forest": (2, WIDE)}, ["'Water', 'Forest' have fewer than 3 shapes"]),
        ({"water": (1, SPOT), "forest": (5, WIDE)}, ["'Water' has 1 of the 3 shapes"]),
        ({"water": (5, SPOT), "forest": (5, WIDE)}, ["All shapes of 'Water' are in one spot"]),
        ({"water": (5, THIN), "forest": (5, WIDE)}, []),  # a river is no spot
    ],
)
def test_hints_name_the_class_and_the_next_step(qgis_app, classes, expected):
    from geopeft_qgis.label_counts import hints

    found = hints(summary_of(**classes), {"water": "Water", "forest": "Forest", "unused": "Unused"}, False)
    assert len(found) == len(expected)
    for hint, start in zip(found, expected, strict=True):
        assert hint.startswith(start)


def test_one_class_is_enough_with_a_background(qgis_app):
    from geopeft_qgis.label_counts import hints

    assert hints(summary_of(water=(5, WIDE)), {"water": "Water"}, True) == []
