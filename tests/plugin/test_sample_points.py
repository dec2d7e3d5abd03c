"""A random sample in QGIS: drawn and styled, labelled in its form, and turned into areas, with the real engine."""

import csv
import json
import os
from pathlib import Path

import pytest
from qgis.core import QgsProcessingException, QgsVectorLayer
from qgis_session import Feedback

needs_engine = pytest.mark.skipif(
    not os.environ.get("GEOPEFT_ENGINE_PYTHON"),
    reason="GEOPEFT_ENGINE_PYTHON does not name the engine's Python (build.py engine)",
)
NAMES = {1: "forest", 2: "open water"}
CLASSES = [{"name": "forest", "color": "#117733"}, {"name": "open water", "color": "#3b7dd8"}]


def run(name, parameters, feedback=None):
    import processing

    return processing.run(name, parameters, feedback=feedback or Feedback())


@pytest.fixture
def map_file(tmp_path):
    """A map of 60 x 40 pixels: forest left, water right, with names."""
    import numpy
    from osgeo import gdal, osr

    target = gdal.GetDriverByName("GTiff").Create(str(tmp_path / "map.tif"), 60, 40, 1, gdal.GDT_Byte)
    target.SetGeoTransform((500000, 10, 0, 5400000, 0, -10))
    system = osr.SpatialReference()
    system.ImportFromEPSG(32632)
    target.SetProjection(system.ExportToWkt())
    values = numpy.ones((40, 60), "u1")
    values[:, 40:] = 2
    target.GetRasterBand(1).WriteArray(values)
    target.GetRasterBand(1).SetMetadataItem("CLASSES", json.dumps({str(value): NAMES[value] for value in NAMES}))
    target.FlushCache()
    del target
    return tmp_path / "map.tif"


@needs_engine
def test_a_sample_is_labelled_from_a_list_and_becomes_areas(provider, project, map_file, tmp_path):
    points = str(tmp_path / "points.gpkg")
    drawn = run("geopeft:sample", {"MAP": str(map_file), "POINTS": 80, "OUTPUT": points})
    assert (drawn["OUTPUT"], drawn["COUNT"]) == (points, 80) and "80 were asked for" in drawn["WHY"]
    assert [row["name"] for row in json.loads(drawn["CLASSES"])] == list(NAMES.values())
    layer = QgsVectorLayer(points, "points", "ogr")
    project.addMapLayer(layer)
    assert layer.isValid() and layer.featureCount() == 80
    fields = layer.fields()
    setup = layer.editorWidgetSetup(fields.lookupField("class"))
    assert (setup.type(), setup.config()["map"]) == ("ValueMap", [{name: name} for name in NAMES.values()])
    # Whoever labels must not see what the map says.
    assert all(layer.editorWidgetSetup(fields.lookupField(n)).type() == "Hidden" for n in ("stratum", "weight"))
    hidden = {column.name for column in layer.attributeTableConfig().columns() if column.hidden}
    assert {"stratum", "weight"} <= hidden and "class" not in hidden
    assert [c.label() for c in layer.renderer().categories()][:2] == list(NAMES.values())

    assert layer.startEditing()
    for feature in layer.getFeatures():
        layer.changeAttributeValue(feature.id(), fields.lookupField("class"), NAMES[feature["stratum"]])
    parameters = {"POINTS": layer, "TABLE": str(tmp_path / "a.csv"), "FIGURES": str(tmp_path / "a.json")}
    with pytest.raises(QgsProcessingException):
        run("geopeft:area", parameters, feedback := Feedback())
    assert any("edits that are not saved" in text for text in feedback.said)
    assert layer.commitChanges()
    feedback = Feedback()
    found = run("geopeft:area", parameters, feedback)
    assert found["OVERALL_ACCURACY"] == 1 and 0.9 < found["OVERALL_ACCURACY_LOW"] < 1
    rows = list(csv.DictReader(Path(found["TABLE"]).read_text(encoding="utf-8").splitlines()))
    assert [(row["class"], round(float(row["area_ha"]))) for row in rows] == [("forest", 16), ("open water", 8)]
    assert "forest covers 16.0" in found["SENTENCES"] and any("forest covers" in text for text in feedback.said)


@needs_engine
def test_points_of_somebody_else_give_no_area(provider, label_layer, tmp_path):
    from qgis.core import QgsProject, QgsVectorFileWriter

    layer = QgsVectorLayer("Point?crs=EPSG:32632&field=class:string", "mine", "memory")
    with pytest.raises(QgsProcessingException):
        run("geopeft:area", {"POINTS": layer, "TABLE": str(tmp_path / "a.csv")}, feedback := Feedback())
    assert any("is no file of a sample" in text for text in feedback.said)
    options, context = QgsVectorFileWriter.SaveVectorOptions(), QgsProject.instance().transformContext()
    QgsVectorFileWriter.writeAsVectorFormatV3(layer, str(tmp_path / "mine.gpkg"), context, options)
    with pytest.raises(QgsProcessingException, match="does not say how its points were drawn"):
        run("geopeft:area", {"POINTS": str(tmp_path / "mine.gpkg"), "TABLE": str(tmp_path / "a.csv")})


def test_only_a_geopackage_is_taken_for_the_points(provider, fake_engine, raster_layer, tmp_path):
    feedback = Feedback()
    with pytest.raises(QgsProcessingException):
        run("geopeft:sample", {"MAP": raster_layer, "OUTPUT": str(tmp_path / "p.shp")}, feedback)
    assert any("must end with .gpkg" in text for text in feedback.said)
