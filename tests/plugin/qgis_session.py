"""One QGIS for a whole test session, with a profile folder of its own, and small layers to work on."""

import os
import sys
from pathlib import Path

import pytest
from qgis.core import QgsProcessingFeedback

ROOT = Path(__file__).resolve().parents[2]
FAKE_ENGINE = ROOT / "tests" / "fake_engine.py"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

_application = None


class Feedback(QgsProcessingFeedback):
    """Keeps what an algorithm says."""

    def __init__(self):
        super().__init__(False)
        self.said = []
        self.metrics = []
        self.percents = []
        self.progressChanged.connect(self.percents.append)

    def pushInfo(self, text):  # noqa: N802
        self.said.append(text)

    def pushWarning(self, text):  # noqa: N802
        self.said.append("warning: " + text)

    def reportError(self, text, fatalError=False):  # noqa: N802
        self.said.append("error: " + text)

    def metric(self, event):
        self.metrics.append(event)


def start_qgis(profile):
    """The one QgsApplication of this process, with Processing; kept for ever, since ending it twice crashes."""
    global _application
    if _application is None:
        # QGIS's temporary folders outlive its process; here pytest clears them away.
        os.environ["TMPDIR"] = str(profile)
        from qgis.core import QgsApplication
        from qgis.PyQt.QtCore import QCoreApplication, QSettings

        QCoreApplication.setOrganizationName("GeopeftTests")
        QCoreApplication.setApplicationName("GeopeftTests")
        QSettings.setDefaultFormat(QSettings.Format.IniFormat)
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(profile))
        _application = QgsApplication([], True, str(profile))
        _application.initQgis()
        sys.path.append(str(Path(QgsApplication.pkgDataPath()) / "python" / "plugins"))
        from processing.core.Processing import Processing

        Processing.initialize()
    return _application


@pytest.fixture(scope="session")
def qgis_app(tmp_path_factory):
    """A running QGIS without a window."""
    return start_qgis(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def provider(qgis_app):
    """The provider, registered."""
    from qgis.core import QgsApplication

    from geopeft_qgis.provider import GeopeftProvider

    provider = GeopeftProvider()
    QgsApplication.processingRegistry().addProvider(provider)
    yield provider
    QgsApplication.processingRegistry().removeProvider(provider)


@pytest.fixture
def project(qgis_app):
    """The empty project."""
    from qgis.core import QgsProject

    QgsProject.instance().clear()
    yield QgsProject.instance()
    QgsProject.instance().clear()


@pytest.fixture
def fake_engine(monkeypatch):
    """Makes the plugin start the fake engine; call it with a mode."""
    from geopeft_qgis import settings

    def use(mode="ok"):
        command = ["/usr/bin/python3", "-I", "-u", str(FAKE_ENGINE), mode]
        monkeypatch.setattr(settings, "engine_command", lambda: command)
        return command

    use()
    return use


@pytest.fixture
def raster_file(tmp_path):
    """A four-band GeoTIFF of 60 x 40 pixels of 10 m in UTM 32 N."""
    import numpy
    from osgeo import gdal, osr

    path = tmp_path / "scene ä.tif"
    target = gdal.GetDriverByName("GTiff").Create(str(path), 60, 40, 4, gdal.GDT_UInt16)
    target.SetGeoTransform((500000, 10, 0, 5400000, 0, -10))
    system = osr.SpatialReference()
    system.ImportFromEPSG(32632)
    target.SetProjection(system.ExportToWkt())
    values = numpy.random.default_rng(0).integers(0, 3000, (4, 40, 60)).astype("u2")
    for band in range(4):
        target.GetRasterBand(band + 1).WriteArray(values[band])
    target.FlushCache()
    del target
    return path


@pytest.fixture
def label_layer(project, raster_file):
    """A memory layer with four squares in three classes, with colours, added to the project."""
    from qgis.core import (
        QgsCategorizedSymbolRenderer,
        QgsFeature,
        QgsFillSymbol,
        QgsGeometry,
        QgsRectangle,
        QgsRendererCategory,
        QgsVectorLayer,
    )

    layer = QgsVectorLayer("Polygon?crs=EPSG:32632&field=class:string(20)&field=note:string", "labels", "memory")
    features = []
    for index, name in enumerate(("water", "forest", "built up", "water")):
        feature = QgsFeature(layer.fields())
        left = 500050 + 120 * index
        feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(left, 5399700, left + 80, 5399900)))
        feature.setAttributes([name, "n"])
        features.append(feature)
    layer.dataProvider().addFeatures(features)
    layer.updateExtents()
    colors = {"forest": "#2f8f4e", "water": "#3b7dd8", "built up": "#c0392b", "snow": "#ffffff"}
    categories = [
        QgsRendererCategory(name, QgsFillSymbol.createSimple({"color": color}), name.title())
        for name, color in colors.items()
    ]
    layer.setRenderer(QgsCategorizedSymbolRenderer("class", categories))
    project.addMapLayer(layer)
    return layer


@pytest.fixture
def raster_layer(project, raster_file):
    """The raster, added to the project."""
    from qgis.core import QgsRasterLayer

    layer = QgsRasterLayer(str(raster_file), "scene")
    assert layer.isValid()
    project.addMapLayer(layer)
    return layer
