"""Fetching and stacking in the modeler and by qgis_process."""

import json
from pathlib import Path

import pytest
from process_runs import QGIS_PROCESS, qgis_process
from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingParameterExtent,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterRasterLayer,
)
from qgis_session import Feedback
from raster_scenes import make as make_raster
from raster_scenes import ramp
from test_processing_ways import profile  # noqa: F401
from web_service import PIXEL_M, Service, extent, is_right

Source = QgsProcessingModelChildParameterSource


@pytest.fixture
def service(qgis_app):
    served = Service()
    yield served
    served.stop()


def mapping_model(name, inputs, sources):
    """A model: one of our algorithms, and a map of its raster."""
    model = QgsProcessingModelAlgorithm("prepare and map", "")
    for parameter in inputs:
        model.addModelParameter(parameter, QgsProcessingModelParameter(parameter.name()))
    first = QgsProcessingModelChildAlgorithm(f"geopeft:{name}")
    first.setChildId("first")
    for parameter, source in sources.items():
        first.addParameterSources(parameter, [source])
    predict = QgsProcessingModelChildAlgorithm("geopeft:predict")
    predict.setChildId("predict")
    predict.addParameterSources("MODEL", [Source.fromExpression("@project_folder || '/m.geopeft'")])
    predict.addParameterSources("RASTER", [Source.fromChildOutput("first", "OUTPUT")])
    output = QgsProcessingModelOutput("map", "map")
    output.setChildOutputName("OUTPUT")
    output.setChildId("predict")
    predict.setModelOutputs({"map": output})
    model.addChildAlgorithm(first)
    model.addChildAlgorithm(predict)
    model.updateDestinationParameters()
    return model


def run(model, parameters, project, tmp_path):
    (tmp_path / "m.geopeft").write_bytes(b"PK")
    project.setFileName(str(tmp_path / "p.qgz"))
    context, feedback = QgsProcessingContext(), Feedback()
    context.setProject(project)
    target = next(p.name() for p in model.parameterDefinitions() if p.isDestination())
    parameters = {**parameters, target: str(tmp_path / "map.tif")}
    ok, message = model.checkParameterValues(parameters, context)
    assert ok, message
    results, ok = model.run(parameters, context, feedback)
    assert ok, feedback.said
    from osgeo import gdal

    return gdal.Open(results[target])


def test_a_model_fetches_and_maps(provider, fake_engine, service, project, tmp_path):
    layer = service.xyz()
    project.addMapLayer(layer)
    inputs = (QgsProcessingParameterRasterLayer("layer", "L"), QgsProcessingParameterExtent("extent", "E"))
    sources = {
        "LAYER": Source.fromModelParameter("layer"),
        "EXTENT": Source.fromModelParameter("extent"),
        "RESOLUTION": Source.fromStaticValue(PIXEL_M),
    }
    box = extent()
    text = f"{box.xMinimum()!r},{box.xMaximum()!r},{box.yMinimum()!r},{box.yMaximum()!r} [EPSG:3857]"
    model = mapping_model("renderlayer", inputs, sources)
    mapped = run(model, {"layer": layer.id(), "extent": text}, project, tmp_path)
    assert (mapped.RasterXSize, mapped.RasterYSize) == (768, 512)


def test_a_model_stacks_and_maps(provider, fake_engine, project, tmp_path):
    bands = [str(make_raster(tmp_path / f"a_B0{number}.tif", ramp(40, 60))) for number in (2, 3)]
    inputs = (QgsProcessingParameterMultipleLayers("bands", "B", QgsProcessing.SourceType.TypeRaster),)
    model = mapping_model("stack", inputs, {"LAYERS": Source.fromModelParameter("bands")})
    mapped = run(model, {"bands": bands}, project, tmp_path)
    assert (mapped.RasterXSize, mapped.RasterYSize) == (60, 40)


@pytest.mark.skipif(not QGIS_PROCESS.is_file(), reason=f"{QGIS_PROCESS} is not here")
def test_qgis_process_stacks(profile, tmp_path):  # noqa: F811
    bands = [str(make_raster(tmp_path / f"a_B0{number}.tif", ramp(40, 60))) for number in (2, 3)]
    layers = [f"LAYERS={band}" for band in bands]
    done = qgis_process(profile, "geopeft:stack", "--", *layers, "EXTENT=union", f"OUTPUT={tmp_path / 's.vrt'}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"]["BANDS"] == "B02, B03"
    assert "a_B03.tif" in (tmp_path / "s.vrt").read_text()


@pytest.mark.skipif(not QGIS_PROCESS.is_file(), reason=f"{QGIS_PROCESS} is not here")
def test_qgis_process_fetches(profile, service, tmp_path):  # noqa: F811
    box, path = extent(), tmp_path / "out.tif"
    arguments = (
        "geopeft:renderlayer",
        "--",
        f"LAYER=wms://{service.xyz().source()}",
        f"EXTENT={box.xMinimum()!r},{box.xMaximum()!r},{box.yMinimum()!r},{box.yMaximum()!r} [EPSG:3857]",
        f"RESOLUTION={PIXEL_M!r}",
        f"OUTPUT={path}",
    )
    done = qgis_process(profile, *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"]["WIDTH"] == 768 and is_right(path)
    Path(path).unlink()
    service.mode = "error"
    failed = qgis_process({**profile, "HOME": str(tmp_path / "other")}, *arguments[:2], *arguments[2:])
    assert failed.returncode == 1 and "The server of the layer failed" in failed.stderr
    assert not path.exists()
