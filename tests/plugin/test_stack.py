"""Single-band rasters become one: names that the engine knows, one grid, every band's own nodata."""

import json
import os
import subprocess
from pathlib import Path

import numpy
import pytest
from osgeo import gdal
from qgis.core import QgsProcessingContext, QgsProcessingException, QgsRasterLayer
from qgis_session import ROOT, Feedback
from raster_scenes import LEFT, S2, TOP, make, ramp

ENGINE_PYTHON = os.environ.get("GEOPEFT_ENGINE_PYTHON", "")


@pytest.fixture
def scene(tmp_path):
    """Two bands of 10 m, one of 20 m and the classes of a Sentinel-2 scene, 600 x 400 m."""
    folder = tmp_path / "scene"
    return [
        make(folder / S2.format("B04", 10), ramp(40, 60), nodata=0, scale=1e-4, wavelength="665 nm"),
        make(folder / S2.format("B08", 10), ramp(40, 60) + 1, nodata=0, scale=1e-4),
        make(folder / S2.format("B8A", 20), ramp(20, 30, 20), 20.0, nodata=0, scale=1e-4),
        make(folder / S2.format("SCL", 20), (numpy.arange(600).reshape(20, 30) % 12).astype("uint8"), 20.0),
    ]


def run(layers, path, feedback=None, **parameters):
    import processing

    parameters = {"LAYERS": [str(layer) for layer in layers], "OUTPUT": str(path), **parameters}
    return processing.run("geopeft:stack", parameters, feedback=feedback or Feedback())


def refusal(layers, path, **parameters):
    feedback = Feedback()
    with pytest.raises(QgsProcessingException) as caught:
        run(layers, path, feedback, **parameters)
    return " ".join([str(caught.value), *feedback.said])


def read(path):
    dataset = gdal.Open(str(path))
    return dataset.ReadAsArray(), dataset


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("T32TQM_20230601T101031_B02_10m.jp2", "B02"),
        ("T32TQM_20230601T101031_B8A_20m.jp2", "B8A"),
        ("T32TQM_20170101T101402_B12.jp2", "B12"),
        ("T32TQM_20230601T101031_SCL_20m.jp2", "SCL"),
        ("LC08_L2SP_193026_20200601_20200825_02_T1_SR_B4.TIF", "SR_B4"),
        ("LC09_L2SP_193026_20220601_20220825_02_T1_ST_B10.TIF", "ST_B10"),
        ("LC08_L1TP_193026_20200601_20200825_02_T1_B11.TIF", "B11"),
        ("LE07_L1TP_193026_20000601_20200825_02_T1_B6_VCID_1.TIF", "B6_VCID_1"),
        ("LC08_L2SP_193026_20200601_20200825_02_T1_QA_PIXEL.TIF", "QA_PIXEL"),
        ("HLS.S30.T32TQM.2023152T101031.v2.0.B8A.tif", "B8A"),
        ("HLS.L30.T32TQM.2023152T101031.v2.0.Fmask.tif", "Fmask"),
        ("MOD09A1.A2020001.h18v04.006.sur_refl_b02.tif", "sur_refl_b02"),
        ("/vsizip//data/scene.zip/scene_B03.tif", "B03"),
        ("/vsicurl/https://h.org/s/B04.tif?sig=a.b", "B04"),
        ("B8A.tif", "B8A"),
        ("s2_b2.tif", "B2"),
        ("ortho_nir.tif", "nir"),
        ("ortho nDSM.tif", "nDSM"),
        ("plot-red edge 1.tif", "red edge 1"),
        ("area_band 4.tif", "band 4"),
        ("C:\\data\\S1_2020_VV.tif", "VV"),
        ("bib12.tif", "bib12"),
        ("january.tif", "january"),
    ],
)
def test_file_names_say_the_band(qgis_app, file, name):
    from geopeft_qgis.stack_bands import band_name

    assert band_name(file) == name
    assert band_name("january.tif", "Soil moisture") == "Soil moisture"
    assert band_name("january.tif", "Band 1") == "january"


@pytest.mark.parametrize(
    ("files", "sensor"),
    [
        (["T32TQM_20230601T101031_B02_10m.jp2", "dem.tif"], "sentinel-2"),
        (["S2A_MSIL2A_20230601_B02.tif"], "sentinel-2"),
        (["LC08_L2SP_193026_SR_B4.TIF", "LC09_L2SP_193026_SR_B5.TIF"], "landsat-8"),
        (["LT05_L2SP_193026_SR_B4.TIF"], "landsat-5"),
        (["HLS.L30.T32TQM.2023152T101031.v2.0.B05.tif"], "landsat-8"),
        (["MOD09A1.A2020001.sur_refl_b02.tif"], "modis"),
        (["LC08_L2SP_SR_B4.TIF", "LT05_L2SP_SR_B4.TIF"], ""),
        (["a.tif", "b.tif"], ""),
    ],
)
def test_file_names_say_the_sensor(qgis_app, files, sensor):
    from geopeft_qgis.stack_bands import sensor_of

    assert sensor_of(files) == sensor


def test_bands_sort_as_people_count_them(qgis_app):
    from geopeft_qgis.stack_bands import by_band

    files = ["x_B11.tif", "x_B8A.tif", "x_B02.tif", "x_dem.tif", "x_B08.tif", "x_SR_B9.tif"]
    assert sorted(files, key=by_band) == [
        "x_B02.tif", "x_B08.tif", "x_B8A.tif", "x_SR_B9.tif", "x_B11.tif", "x_dem.tif",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".vrt", ".tif"])
def test_a_scene_becomes_one_raster(provider, scene, tmp_path, suffix):
    result = run(scene, tmp_path / f"stack{suffix}")
    assert result["BANDS"] == "B04, B08, B8A, SCL"
    values, dataset = read(result["OUTPUT"])
    assert values.shape == (4, 40, 60) and dataset.GetGeoTransform() == (LEFT, 10, 0, TOP, 0, -10)
    assert QgsRasterLayer(result["OUTPUT"]).crs().authid() == "EPSG:32632"
    bands = [dataset.GetRasterBand(number) for number in (1, 2, 3, 4)]
    assert [band.GetDescription() for band in bands] == ["B04", "B08", "B8A", "SCL"]
    assert [band.GetScale() or 1.0 for band in bands] == [1e-4, 1e-4, 1e-4, 1.0]
    assert bands[0].GetOffset() == -0.1 and bands[0].GetMetadataItem("wavelength") == "665 nm"
    assert (values[0] == ramp(40, 60)).all() and (values[1] == ramp(40, 60) + 1).all()
    inside = (slice(1, -1), slice(1, -1))
    assert abs(values[2][inside].astype(int) - ramp(40, 60)[inside]).max() <= 1, "slopes between the pixels of 20 m"
    classes = numpy.arange(600).reshape(20, 30) % 12
    assert (values[3] == classes.repeat(2, 0).repeat(2, 1)).all(), "no class between two classes"


def test_a_vrt_keeps_each_bands_nodata_and_moves_with_its_files(provider, scene, tmp_path):
    scene[1] = make(tmp_path / "scene" / "x_B09.tif", ramp(40, 60).astype("float32"), nodata=-9999)
    run(scene, tmp_path / "stack.vrt")
    moved = tmp_path.parent / f"{tmp_path.name} moved"
    tmp_path.rename(moved)
    try:
        values, dataset = read(moved / "stack.vrt")
        nodata = [dataset.GetRasterBand(number).GetNoDataValue() for number in (1, 2, 3, 4)]
        types = [gdal.GetDataTypeName(dataset.GetRasterBand(number).DataType) for number in (1, 2, 3, 4)]
        assert nodata == [0, -9999, 0, None] and types == ["UInt16", "Float32", "UInt16", "Byte"]
        assert (values[0] == ramp(40, 60)).all()
    finally:
        moved.rename(tmp_path)


def test_one_nodata_value_that_no_band_holds(provider, tmp_path):
    """A GeoTIFF has one nodata value for all bands: 0 is nodata in one band and a value in the other."""
    first, second = ramp(40, 60), ramp(40, 60)
    first[:5], second[-5:] = 0, 0
    scene = [make(tmp_path / "a_B02.tif", first, nodata=0), make(tmp_path / "a_B03.tif", second)]
    values, dataset = read(run(scene, tmp_path / "stack.tif")["OUTPUT"])
    assert dataset.GetRasterBand(1).GetNoDataValue() == 65535
    assert (values[0][:5] == 65535).all() and (values[0][5:] == first[5:]).all()
    assert (values[1] == second).all()


def test_nodata_does_not_bleed_into_its_neighbours(provider, tmp_path):
    coarse = numpy.full((20, 30), 1000, "uint16")
    coarse[:, 15:] = 0
    scene = [make(tmp_path / "a_B02.tif", ramp(40, 60), nodata=0), make(tmp_path / "a_B05.tif", coarse, 20.0, nodata=0)]
    for suffix in (".vrt", ".tif"):
        values, _ = read(run(scene, tmp_path / f"stack{suffix}")["OUTPUT"])
        assert set(numpy.unique(values[1])) == {0, 1000}, suffix


@pytest.mark.parametrize("suffix", [".vrt", ".tif"])
def test_a_mask_hides_pixels(provider, tmp_path, suffix):
    mask = numpy.full((40, 60), 255, "uint8")
    mask[:, :7] = 0
    options = gdal.GetConfigOption("GDAL_TIFF_INTERNAL_MASK")
    gdal.SetConfigOption("GDAL_TIFF_INTERNAL_MASK", "YES")
    try:
        masked = make(tmp_path / "a_B02.tif", ramp(40, 60), mask=mask)
    finally:
        gdal.SetConfigOption("GDAL_TIFF_INTERNAL_MASK", options)
    other = make(tmp_path / "a_B03.tif", ramp(40, 60))
    values, dataset = read(run([masked, other], tmp_path / f"stack{suffix}")["OUTPUT"])
    hidden = values[0] == dataset.GetRasterBand(1).GetNoDataValue()
    assert (hidden == (mask == 0)).all() and (values[1] == ramp(40, 60)).all()


def test_the_common_extent_or_all_of_it(provider, tmp_path):
    scene = [
        make(tmp_path / "a_B02.tif", ramp(40, 60)),
        make(tmp_path / "a_B03.tif", ramp(40, 60, left=LEFT + 200, top=TOP - 100), left=LEFT + 200, top=TOP - 100),
    ]
    values, dataset = read(run(scene, tmp_path / "i.vrt")["OUTPUT"])
    assert values.shape == (2, 30, 40) and dataset.GetGeoTransform()[::3] == (LEFT + 200, TOP - 100)
    assert (values[0] == values[1]).all()
    values, dataset = read(run(scene, tmp_path / "u.vrt", EXTENT="union")["OUTPUT"])
    assert values.shape == (2, 50, 80) and dataset.GetGeoTransform()[::3] == (LEFT, TOP)
    nodata = [dataset.GetRasterBand(number).GetNoDataValue() for number in (1, 2)]
    assert nodata == [65535, 65535], "what a band does not cover must not look like a value"
    assert (values[0] != 65535).sum() == (values[1] != 65535).sum() == 2400
    assert (values[1][10:, 20:] == ramp(40, 60, left=LEFT + 200, top=TOP - 100)).all()


def test_the_pixel_size_can_be_chosen(provider, scene, tmp_path):
    values, dataset = read(run(scene, tmp_path / "s.vrt", RESOLUTION=20)["OUTPUT"])
    assert values.shape == (4, 20, 30) and dataset.GetGeoTransform()[1] == 20
    means = ramp(40, 60).reshape(20, 2, 30, 2).mean(axis=(1, 3))
    assert abs(values[0] - means).max() <= 1, "larger pixels are means"


@pytest.mark.parametrize("suffix", [".vrt", ".tif"])
def test_other_reference_systems_are_brought_to_the_first(provider, scene, tmp_path, suffix):
    gdal.Warp(str(tmp_path / "x_B11.tif"), str(scene[1]), dstSRS="EPSG:4326", resampleAlg="bilinear", dstNodata=0)
    feedback = Feedback()
    path = tmp_path / f"stack{suffix}"
    values, dataset = read(run([scene[0], tmp_path / "x_B11.tif"], path, feedback, EXTENT="union")["OUTPUT"])
    assert QgsRasterLayer(str(path)).crs().authid() == "EPSG:32632"
    left, top = dataset.GetGeoTransform()[::3]
    row, col = round((top - TOP) / 10), round((LEFT - left) / 10)
    here = values[:, row : row + 40, col : col + 60].astype(int)
    inside = (slice(2, -2), slice(2, -2))
    assert (here[0] == ramp(40, 60)).all()
    assert abs(here[1][inside] - (ramp(40, 60)[inside] + 1)).max() <= 20, "within a pixel's slope of its place"
    if suffix == ".vrt":
        assert (tmp_path / "stack_data.tif").is_file() and any("stack_data.tif" in text for text in feedback.said)


def test_rotated_rasters_are_straightened(provider, tmp_path):
    turned = make(tmp_path / "a_B02.tif", ramp(40, 60) + 1000, turn=3.0)
    values, dataset = read(run([turned, make(tmp_path / "a_B03.tif", ramp(40, 60))], tmp_path / "s.vrt")["OUTPUT"])
    left, _, turn, top = dataset.GetGeoTransform()[:4]
    rows, columns = numpy.mgrid[5:25, 25:45]
    x, y = left + 10 * (columns + 0.5) - LEFT, TOP - top + 10 * (rows + 0.5)
    # Where that is in the turned raster: x = 10 c + 3 r, y = 10 r - 3 c.
    c, r = (10 * x - 3 * y) / 109, (3 * x + 10 * y) / 109
    assert turn == 0 and abs(values[0][5:25, 25:45] - (1100 + 5 * c + 20 * r)).max() < 8
    assert abs(values[1][rows, columns] - (100 + x * 0.5 + y * 2)).max() <= 1


def test_two_dates_of_a_band_keep_apart(provider, tmp_path):
    scene = [make(tmp_path / f"{month}_B02.tif", ramp(40, 60)) for month in ("june", "july")]
    assert run(scene, tmp_path / "s.vrt")["BANDS"] == "june_B02, july_B02"


DATED = (
    ("T32UPU_20240612T101031_B02_10m.jp2", "2024-06-12T10:10:31"),
    ("LC08_L2SP_193026_20200619_20200824_02_T1_SR_B4.TIF", "2020-06-19"),
    ("HLS.S30.T32UPU.2024164T101031.v2.0.B04.tif", "2024-06-12T10:10:31"),
    ("MOD09A1.A2020001.h18v04.006.sur_refl_b02.tif", "2020-01-01"),
    ("/data/20010101/field 2024-06-12_B02.tif", "2024-06-12"),
    ("a_20240230_20240301.tif", "2024-03-01"),
    ("a_20241345.tif", ""),
    ("tile_2012345.tif", ""),
    ("june_B02.tif", ""),
)


@pytest.mark.parametrize(("file", "time"), DATED)
def test_file_names_say_the_date(qgis_app, file, time):
    from geopeft_qgis.stack_dates import time_in

    assert time_in(file) == time


@pytest.mark.parametrize("suffix", [".vrt", ".tif"])
def test_bands_of_several_dates_are_called_by_them(provider, tmp_path, suffix):
    scene = [
        make(tmp_path / f"T32UPU_{date}T101031_{band}_10m.tif", ramp(40, 60))
        for date in ("20240612", "20240702")
        for band in ("B04", "B08")
    ]
    scene.append(make(tmp_path / "dem.tif", ramp(40, 60)))
    result = run(scene, tmp_path / f"s{suffix}")
    assert result["BANDS"] == "B04 2024-06-12, B08 2024-06-12, B04 2024-07-02, B08 2024-07-02, dem"
    dataset = read(result["OUTPUT"])[1]
    assert dataset.GetRasterBand(3).GetDescription() == "B04 2024-07-02"
    assert dataset.GetMetadataItem("DATETIME") is None
    names = run(scene, tmp_path / f"plain{suffix}", DATES=False)["BANDS"]
    assert names.split(", ")[0] == "T32UPU_20240612T101031_B04_10m"


def test_a_stack_of_one_date_says_it_once(provider, scene, tmp_path):
    result = run(scene, tmp_path / "s.vrt")
    assert result["BANDS"] == "B04, B08, B8A, SCL"
    assert read(result["OUTPUT"])[1].GetMetadataItem("DATETIME").startswith("20")


def test_rasters_of_several_bands_are_taken_whole(provider, tmp_path):
    several = numpy.stack([ramp(40, 60), ramp(40, 60) + 5])
    scene = [make(tmp_path / "ortho.tif", several), make(tmp_path / "dsm.tif", ramp(40, 60).astype("float32"))]
    result = run(scene, tmp_path / "s.vrt")
    assert result["BANDS"] == "ortho 1, ortho 2, dsm"
    assert (read(result["OUTPUT"])[0][1] == ramp(40, 60) + 5).all()
    scene[0] = make(tmp_path / "ortho_B02.tif", several, names=["Red", "NIR"])
    assert run(scene, tmp_path / "s.vrt")["BANDS"] == "Red, NIR, dsm"


@pytest.mark.skipif(not ENGINE_PYTHON, reason="needs the engine's Python: GEOPEFT_ENGINE_PYTHON")
@pytest.mark.parametrize("suffix", [".vrt", ".tif"])
def test_the_engine_knows_the_bands_and_reads_the_same_in_parts(provider, scene, tmp_path, suffix):
    path = run(scene, tmp_path / f"stack{suffix}")["OUTPUT"]
    code = """
import json, sys
import numpy as np
from rasterio.windows import Window
from geopeft.data.raster import describe, open_raster
info = describe(sys.argv[1])
with open_raster(info, [1, 2, 3]) as reader:
    whole = reader.read(Window(0, 0, 60, 40))[0]
    parts = [reader.read(Window(col, row, 13, 11))[0] for row in range(0, 40, 11) for col in range(0, 60, 13)]
rows = [np.concatenate(parts[at:at + 5], axis=2) for at in range(0, 20, 5)]
same = np.abs(np.concatenate(rows, axis=1)[:, :40, :60] - whole).max()
print(json.dumps([[[b.name, b.common, b.wavelength_um] for b in info.bands], float(same), info.tags.get("sensor"),
    len(info.files)]))
"""
    ran = subprocess.run(
        [ENGINE_PYTHON, "-c", code, path],
        env={"PYTHONPATH": str(ROOT / "engine"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    bands, difference, sensor, files = json.loads(ran.stdout)
    assert bands == [["B04", "red", 0.665], ["B08", "nir", None], ["B8A", "nir08", None], ["SCL", "", None]]
    assert difference <= 1 and sensor == "sentinel-2"
    assert files == (5 if suffix == ".vrt" else 1), "a change of any band is noticed"


def test_what_cannot_be_stacked_is_said(provider, tmp_path):
    here = make(tmp_path / "a_B02.tif", ramp(40, 60))
    far = make(tmp_path / "b_B02.tif", ramp(40, 60), left=LEFT + 1e5)
    lost = make(tmp_path / "c_B02.tif", ramp(40, 60), crs=0)
    alpha = make(tmp_path / "d.tif", numpy.zeros((4, 40, 60), "uint8"), options=["PHOTOMETRIC=RGB", "ALPHA=YES"])
    out = tmp_path / "s.vrt"
    assert "no pixel in common" in refusal([here, far], out)
    assert "no coordinate reference system" in refusal([here, lost], out)
    assert "alpha band" in refusal([here, alpha], out)
    assert "Incorrect parameter value for LAYERS" in refusal([here], out)
    assert "larger pixels" in refusal([here, far], out, EXTENT="union", RESOLUTION=1e-3)
    assert "cannot be written" in refusal([here, here], tmp_path / "no folder" / "s.vrt")
    assert "cannot be written" in refusal([here, here], tmp_path / "no folder" / "s.tif")
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")] and not out.exists()


def test_a_layer_of_a_service_is_named_with_its_remedy(provider, project, tmp_path):
    tiles = QgsRasterLayer("type=xyz&url=http://localhost:1/{z}/{x}/{y}.png&zmax=1&zmin=0", "tiles", "wms")
    project.addMapLayer(tiles)
    here = QgsRasterLayer(str(make(tmp_path / "a_B02.tif", ramp(40, 60))), "a")
    project.addMapLayer(here)
    feedback = Feedback()
    with pytest.raises(QgsProcessingException) as caught:
        import processing

        context = QgsProcessingContext()
        context.setProject(project)
        parameters = {"LAYERS": [here.id(), tiles.id()], "OUTPUT": str(tmp_path / "s.vrt")}
        processing.run("geopeft:stack", parameters, feedback=feedback, context=context)
    assert "'tiles' comes from a service" in " ".join([str(caught.value), *feedback.said])


def test_a_full_disk_is_said(provider, tmp_path):
    import resource

    noise = numpy.random.default_rng(0).integers(0, 60000, (300, 300)).astype("uint16")
    scene = [make(tmp_path / f"a_B0{number}.tif", noise) for number in (2, 3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        said = refusal(scene, tmp_path / "s.tif")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in said and not list(tmp_path.glob("s.tif*"))


def test_a_canceled_stack_leaves_nothing(provider, scene, tmp_path):
    from geopeft_qgis.stack_bands import plan, read_bands
    from geopeft_qgis.stack_file import StackCanceled, write_stack

    bands = read_bands([str(path) for path in scene])
    asked = []
    with pytest.raises(StackCanceled):
        write_stack(bands, plan(bands), tmp_path / "s.tif", lambda percent: bool(asked.append(percent)))
    assert len(asked) == 1, "GDAL stops at once"
    assert not list(tmp_path.glob("s.tif*"))


def test_gdals_way_of_failing_is_left_as_it_was(provider, scene, tmp_path):
    """Other plugins share GDAL: with exceptions switched on it works the same, and they stay on."""
    before = gdal.GetUseExceptions()
    gdal.UseExceptions()
    try:
        assert "cannot be read as a raster" in _bad(tmp_path)
        run(scene, tmp_path / "s.tif")
        assert gdal.GetUseExceptions()
    finally:
        gdal.UseExceptions() if before else gdal.DontUseExceptions()


def _bad(tmp_path):
    from geopeft_qgis.stack_bands import StackError, read_bands

    (tmp_path / "bad.tif").write_bytes(b"II*\0nothing")
    with pytest.raises(StackError) as caught:
        read_bands([str(tmp_path / "bad.tif")])
    return str(caught.value)


def test_without_gdal_for_python_there_is_a_sentence(provider, scene, tmp_path, monkeypatch):
    import sys

    import osgeo

    monkeypatch.delattr(osgeo, "gdal")
    monkeypatch.setitem(sys.modules, "osgeo.gdal", None)
    assert "without GDAL for Python" in refusal(scene, tmp_path / "s.vrt")


def test_a_temporary_stack_is_a_vrt_that_processing_loads(provider, scene, project):
    import processing

    parameters = {"LAYERS": [str(path) for path in scene], "OUTPUT": "TEMPORARY_OUTPUT"}
    result = processing.runAndLoadResults("geopeft:stack", parameters)
    assert Path(result["OUTPUT"]).suffix == ".vrt"
    assert [layer.source() for layer in project.mapLayers().values()] == [result["OUTPUT"]]


def test_only_vrt_and_geotiff_are_written(provider, scene):
    algorithm = provider.algorithm("stack").create()
    parameters = {"LAYERS": [str(path) for path in scene], "OUTPUT": "/tmp/a.png"}
    ok, message = algorithm.checkParameterValues(parameters, QgsProcessingContext())
    assert not ok and ".vrt / .tif" in message
    destination = algorithm.parameterDefinition("OUTPUT")
    assert destination.supportedOutputRasterLayerExtensions() == ["vrt", "tif"]
    assert "*.vrt" in destination.createFileFilter()
