"""What a raster layer is made of, and what of it the engine can read itself."""

import zipfile

import pytest
from qgis.core import QgsProcessingContext, QgsRasterDataProvider, QgsRasterLayer, QgsVectorLayer


def describe(layer):
    from geopeft_qgis.sources import describe

    return describe(layer)


def raster_path(layer):
    from geopeft_qgis.layers import raster_path

    return raster_path(layer)


def refusal(layer):
    from geopeft_qgis.layers import LayerError

    with pytest.raises(LayerError) as caught:
        raster_path(layer)
    assert str(caught.value) == describe(layer).sentence
    return str(caught.value)


def test_a_file_is_its_path(raster_layer, raster_file):
    assert describe(raster_layer)[:2] == ("file", str(raster_file))
    assert raster_path(raster_layer) == str(raster_file)


def test_options_of_qgis_are_no_part_of_the_path(project, raster_file):
    """QGIS writes a layer's opening options behind its path."""
    from geopeft_qgis.sources import gdal_name

    assert gdal_name(f"{raster_file}|option:OVERVIEW_LEVEL=0|option:X=1") == str(raster_file)
    layer = QgsRasterLayer(f"{raster_file}|option:NUM_THREADS=2", "scene")
    assert layer.isValid() and raster_path(layer) == str(raster_file)


def test_parts_of_files_and_archives_are_files(project, raster_file, tmp_path):
    from osgeo import gdal

    table = tmp_path / "rasters.gpkg"
    for name, options in (("one", []), ("two", ["APPEND_SUBDATASET=YES"])):
        options = [*options, f"RASTER_TABLE={name}"]
        gdal.Translate(str(table), str(raster_file), format="GPKG", bandList=[1], outputType=1, creationOptions=options)
    gdal.Translate(str(tmp_path / "v.nc"), str(raster_file), format="netCDF", bandList=[1])
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(raster_file, "deep/a.tif")
    for source in (f"GPKG:{table}:two", f'NETCDF:"{tmp_path}/v.nc":Band1', f"/vsizip/{tmp_path}/z.zip/deep/a.tif"):
        layer = QgsRasterLayer(source, "part")
        assert layer.isValid(), source
        assert describe(layer)[:2] == ("file", source)


def test_a_container_asks_for_one_of_its_rasters(project, raster_file, tmp_path):
    from osgeo import gdal

    target = gdal.GetDriverByName("netCDF").CreateMultiDimensional(str(tmp_path / "v.nc"))
    assert target is not None
    root = target.GetRootGroup()
    sides = [root.CreateDimension(name, None, None, 20) for name in ("y", "x")]
    for name in ("a", "b"):
        root.CreateMDArray(name, sides, gdal.ExtendedDataType.Create(gdal.GDT_Float32))
    root = target = sides = None
    layer = QgsRasterLayer(str(tmp_path / "v.nc"), "container")
    assert not describe(layer).path
    assert "'container'" in refusal(layer)


def test_algorithms_take_parts_of_files_on_every_qgis(provider, project, label_layer, raster_file, tmp_path):
    """QGIS 3.22 finds archives and parts of files only as layers; what is chosen in the panel must reach the job."""
    from geopeft_qgis.layers import raster_parameter

    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(raster_file, "a.tif")
    packed = QgsRasterLayer(f"/vsizip/{tmp_path}/z.zip/a.tif", "packed")
    plain = QgsRasterLayer(str(raster_file), "plain")
    project.addMapLayers([packed, plain])
    names = [raster_parameter(packed), raster_parameter(plain)]
    assert names == [packed.id(), str(raster_file)]
    parameters = {"RASTERS": names, "LABELS": label_layer.id(), "CLASS_FIELD": "class", "MODEL": "TEMPORARY_OUTPUT"}
    context = QgsProcessingContext()
    context.setProject(project)
    algorithm = provider.algorithm("fit").create()
    assert algorithm.checkParameterValues(parameters, context) == (True, "")
    made = algorithm.job(parameters, context, tmp_path)
    assert made["rasters"] == [packed.source(), str(raster_file)]


class Layer(QgsRasterLayer):
    """A layer of a place that is not here: what QGIS says of it is given."""

    def __init__(self, source, file):
        super().__init__(str(file), "far away")
        self._source = source

    def source(self):
        return self._source


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("/vsicurl/https://h.org/a.tif", "/vsicurl/https://h.org/a.tif"),
        ("https://h.org/a.tif?sig=x&y=1", "/vsicurl/https://h.org/a.tif?sig=x&y=1"),
        ("/vsicurl/http://h.org/a.tif|option:NUM_THREADS=2", "/vsicurl/http://h.org/a.tif"),
        ("/vsizip//vsicurl/https://h.org/a.zip/b.tif", "/vsizip//vsicurl/https://h.org/a.zip/b.tif"),
    ],
)
def test_files_on_web_servers_go_to_the_engine_as_they_are(project, raster_file, source, path):
    from geopeft_qgis.sources import needs_rendering

    layer = Layer(source, raster_file)
    assert describe(layer)[:2] == ("remote", path) and raster_path(layer) == path
    assert not needs_rendering(layer)


@pytest.mark.parametrize(
    "source",
    [
        "/vsicurl/https://h.org/a.tif authcfg='abc1234'",
        "/vsis3/bucket/a.tif|credential:AWS_SECRET_ACCESS_KEY=x",
        "/vsis3/bucket/a.tif",
        "/vsigs/bucket/a.tif",
        "/vsicurl/ftp://h.org/a.tif",
        "/vsicurl?header_file=/x&url=https://h.org/a.tif",
        "/vsicrypt/key=x,file=/a.tif",
        "WMS:https://h.org/?SERVICE=WMS",
        "<GDAL_WMS><Service name='TMS'/></GDAL_WMS>",
    ],
)
def test_what_only_qgis_can_read_names_the_algorithm(provider, project, raster_file, source):
    from geopeft_qgis.sources import needs_rendering

    layer = Layer(source, raster_file)
    assert describe(layer).kind == "service" and needs_rendering(layer)
    said = refusal(layer)
    assert f"'{provider.algorithm('renderlayer').displayName()}'" in said
    assert "abc1234" not in said and "SECRET" not in said, "no key is repeated"


def test_a_file_that_describes_a_service_is_one(project, raster_file, tmp_path):
    path = tmp_path / "tiles.xml"
    path.write_text("<?xml version='1.0'?>\n<GDAL_WMS><Service name='TMS'/></GDAL_WMS>")
    assert describe(Layer(str(path), raster_file)).kind == "service"


@pytest.mark.parametrize(
    ("source", "provider_name", "words"),
    [
        ("type=xyz&url=http://localhost:1/{z}/{x}/{y}.png&zmax=1&zmin=0", "wms", "service (XYZ)"),
        ("crs=EPSG:3857&format=image/png&layers=a&styles&url=http://localhost:1/wms", "wms", "cannot be read"),
    ],
)
def test_web_maps_are_services(provider, project, source, provider_name, words):
    layer = QgsRasterLayer(source, "web", provider_name)
    assert words in refusal(layer)
    if layer.isValid():
        assert provider.algorithm("renderlayer").displayName() in refusal(layer)


def test_rasters_that_qgis_computes_are_services(project, raster_layer):
    parameters = QgsRasterDataProvider.VirtualRasterParameters()
    parameters.crs = raster_layer.crs()
    parameters.extent = raster_layer.extent()
    parameters.width, parameters.height = raster_layer.width(), raster_layer.height()
    parameters.formula = '"scene@1" * 2'
    entry = QgsRasterDataProvider.VirtualRasterInputLayers()
    entry.name, entry.provider, entry.uri = "scene", "gdal", raster_layer.source()
    parameters.rInputLayers = [entry]
    uri = QgsRasterDataProvider.encodeVirtualRasterProviderUri(parameters)
    layer = QgsRasterLayer(uri, "computed", "virtualraster")
    assert layer.isValid() and describe(layer).kind == "service"


def test_a_layer_in_memory_names_the_algorithm(provider, project, raster_file):
    from osgeo import gdal

    from geopeft_qgis.sources import needs_rendering

    gdal.FileFromMemBuffer("/vsimem/x.tif", raster_file.read_bytes())
    layer = QgsRasterLayer("/vsimem/x.tif", "kept")
    try:
        assert describe(layer).kind == "memory" and needs_rendering(layer)
        assert provider.algorithm("renderlayer").displayName() in refusal(layer)
    finally:
        del layer
        gdal.Unlink("/vsimem/x.tif")


def test_a_file_that_has_gone_is_said(project, raster_file, raster_layer):
    raster_file.unlink()
    said = refusal(raster_layer)
    assert "not there any more" in said and raster_file.name in said
    assert "not there any more" in refusal(QgsRasterLayer("/no/such.tif", "gone"))


def test_an_archive_that_has_gone_is_said(project, raster_file, tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(raster_file, "a.tif")
    layer = QgsRasterLayer(f"/vsizip/{tmp_path}/z.zip/a.tif", "packed")
    (tmp_path / "z.zip").unlink()
    assert "not there any more" in refusal(layer) and "z.zip" in refusal(layer)


def test_a_layer_that_left_the_project_is_said(project, raster_layer):
    project.removeMapLayer(raster_layer.id())
    assert "not in the project any more" in refusal(raster_layer)
    assert "not in the project any more" in refusal(None)


def test_other_kinds_of_layers_are_said(project, label_layer):
    assert "no raster layer" in refusal(label_layer)
    assert "no raster layer" in refusal(QgsVectorLayer("Point", "points", "memory"))
