"""Whether a layer fits a model is said before a run, and only where QGIS really knows it."""

import numpy
import pytest
from model_files import MANIFEST
from osgeo import gdal, osr
from qgis.core import QgsPalettedRasterRenderer, QgsRasterLayer
from qgis.PyQt.QtGui import QColor

from geopeft_qgis.model_match import match, pixel_size_m
from geopeft_qgis.model_package import summary


def model(*bands, gsd_m=10.0):
    rows = [{"name": name, "common": common} for name, common in bands]
    return summary({**MANIFEST, "spec": {**MANIFEST["spec"], "bands": rows, "gsd_m": gsd_m}})


@pytest.fixture
def layer(qgis_app, tmp_path):
    """Makes a raster layer with these band names."""

    def make(names, pixel=10.0, epsg=32632):
        path = str(tmp_path / f"{len(list(tmp_path.iterdir()))}.tif")
        target = gdal.GetDriverByName("GTiff").Create(path, 20, 20, len(names), gdal.GDT_UInt16)
        target.SetGeoTransform((9, pixel, 0, 48, 0, -pixel))
        system = osr.SpatialReference()
        system.ImportFromEPSG(epsg)
        target.SetProjection(system.ExportToWkt())
        for number, name in enumerate(names, 1):
            target.GetRasterBand(number).WriteArray(numpy.ones((20, 20), "u2"))
            target.GetRasterBand(number).SetDescription(name)
        target.FlushCache()
        del target
        made = QgsRasterLayer(path, "scene")
        assert made.isValid()
        return made

    return make


RED_NIR = (("B4", "red"), ("B8", "nir"))


def test_a_layer_with_the_bands_fits(layer):
    assert match(model(*RED_NIR), layer(["B4", "B8", "B3"])) == ("", "")
    assert match(model(*RED_NIR), layer(["NIR", "Red"])) == ("", "")


def test_too_few_bands_are_refused(layer):
    refusal, _ = match(model(*RED_NIR), layer(["B4"]))
    assert refusal == "The model needs 2 bands (B4, B8), the layer has 1."


def test_a_band_that_is_surely_missing_is_doubted(layer):
    refusal, doubt = match(model(*RED_NIR), layer(["B4", "B3"]))
    assert refusal == "" and doubt == "No band is called B8; the model needs B4, B8."


@pytest.mark.parametrize("names", [["B04_10m", "B08_10m"], ["", ""], ["B4", ""]])
def test_names_that_qgis_cannot_compare_are_left_to_the_engine(layer, names):
    assert match(model(*RED_NIR), layer(names)) == ("", "")


def test_a_class_raster_is_no_raster_to_map(layer):
    classes = layer(["B4"])
    rows = [QgsPalettedRasterRenderer.Class(1, QColor("red"), "water")]
    classes.setRenderer(QgsPalettedRasterRenderer(classes.dataProvider(), 1, rows))
    assert "shows classes" in match(model(("B4", "red")), classes).refusal


def test_pixels_of_another_size_are_doubted(layer):
    assert match(model(*RED_NIR), layer(["B4", "B8"], pixel=19)).doubt == ""
    doubt = match(model(*RED_NIR), layer(["B4", "B8"], pixel=0.25)).doubt
    assert "25 cm" in doubt and "10 m" in doubt
    assert match(model(*RED_NIR), layer(["B4", "B8"], pixel=10 / 111320, epsg=4326)).doubt == ""
    assert pixel_size_m(layer(["a"], pixel=10, epsg=2263)) == pytest.approx(3.048, rel=1e-3), "US feet"


def test_a_layer_that_is_gone_says_nothing(qgis_app):
    assert match(model(*RED_NIR), None) == ("", "")
    assert match(model(*RED_NIR), QgsRasterLayer("/nowhere.tif", "gone")) == ("", "")
