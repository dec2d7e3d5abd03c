"""Layers of services become GeoTIFFs: the right pixels in the right place, or a sentence and no file."""

import time

import pytest
from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsPointXY,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
)
from qgis_session import Feedback
from web_service import CORNER, PIXEL_M, SQUARE_M, Service, extent, is_right, pixels


@pytest.fixture
def service(qgis_app):
    served = Service()
    yield served
    served.stop()


def render(layer, path, box=None, resolution=0.0, feedback=None):
    """Runs the algorithm; box: None the usual squares, "" no extent, a rectangle of web Mercator or a text."""
    import processing

    box = extent() if box is None else box
    if not isinstance(box, str):
        box = f"{box.xMinimum()!r},{box.xMaximum()!r},{box.yMinimum()!r},{box.yMaximum()!r} [EPSG:3857]"
    parameters = {"LAYER": layer, "EXTENT": box or None, "RESOLUTION": resolution, "OUTPUT": str(path)}
    return processing.run("geopeft:renderlayer", parameters, feedback=feedback or Feedback())


def refusal(*arguments, **options):
    """What is said when it fails."""
    feedback = Feedback()
    with pytest.raises(QgsProcessingException) as caught:
        render(*arguments, **options, feedback=feedback)
    return " ".join([str(caught.value), *feedback.said])


@pytest.mark.parametrize("kind", ["xyz", "wms", "arcgis"])
def test_a_web_map_becomes_a_picture_in_its_place(provider, service, tmp_path, kind):
    layer = getattr(service, kind)()
    assert layer.isValid()
    result = render(layer, tmp_path / "out.tif", resolution=PIXEL_M)
    values, dataset = pixels(result["OUTPUT"])
    assert (result["WIDTH"], result["HEIGHT"]) == (768, 512) == (dataset.RasterXSize, dataset.RasterYSize)
    assert is_right(result["OUTPUT"])
    assert dataset.GetGeoTransform() == pytest.approx((CORNER[0], PIXEL_M, 0, CORNER[1], 0, -PIXEL_M))
    assert QgsCoordinateReferenceSystem(dataset.GetProjection()) == QgsCoordinateReferenceSystem("EPSG:3857")
    names = [dataset.GetRasterBand(b).GetColorInterpretation() for b in (1, 2, 3, 4)]
    assert names == [3, 4, 5, 6], "red, green, blue, alpha"
    assert dataset.GetRasterBand(1).GetBlockSize() == [256, 256]
    assert dataset.GetMetadataItem("COMPRESSION", "IMAGE_STRUCTURE") == "DEFLATE"
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]


def test_the_pixels_of_tiles_are_copied_exactly(provider, service, tmp_path):
    """A whole number of the service's own pixels, although the extent cuts through them."""
    result = render(service.xyz(), tmp_path / "out.tif", extent(inset_px=10.4), PIXEL_M)
    values, dataset = pixels(result["OUTPUT"])
    assert values.shape == (4, 512 - 20, 768 - 20)
    assert values[0, 0, 245] != values[0, 0, 246], "the edge between two tiles is one pixel sharp"
    assert len(set(values[0, 0, :246])) == 1 and (values[3] == 255).all()


def test_a_large_extent_is_copied_in_pieces(provider, service, tmp_path):
    feedback = Feedback()
    render(service.wms(), tmp_path / "out.tif", extent(9, 5), PIXEL_M, feedback)
    maps = [path for path in service.requests if "GetMap" in path]
    assert len(maps) == 6, "1024 x 1024 pixels at a time"
    assert is_right(tmp_path / "out.tif", 9, 5)
    assert feedback.percents == sorted(feedback.percents) and feedback.percents[-1] == 100
    assert any("2304 x 1280 pixels" in text and "12 MB" in text for text in feedback.said)


def test_an_extent_in_another_crs_is_understood(provider, service, tmp_path):
    result = render(service.xyz(), tmp_path / "out.tif", "7.87,7.90,49.55,49.56 [EPSG:4326]", PIXEL_M)
    left, _, _, top, _, _ = pixels(result["OUTPUT"])[1].GetGeoTransform()
    to_mercator = QgsCoordinateTransform(
        QgsCoordinateReferenceSystem("EPSG:4326"), QgsCoordinateReferenceSystem("EPSG:3857"), QgsProject.instance()
    )
    corner = to_mercator.transform(QgsPointXY(7.87, 49.56))
    assert 0 <= corner.x() - left < 1.01 * PIXEL_M and 0 <= top - corner.y() < 1.01 * PIXEL_M


@pytest.mark.parametrize(("columns", "pixel"), [(1, 0.5971642835), (64, 19.109257071294063), (2000, 611.49622628141)])
def test_the_proposed_pixel_is_the_zoom_level_that_keeps_the_raster_small(provider, service, columns, pixel):
    from geopeft_qgis.copy_plan import PROPOSED_PIXELS, plan, proposed_size

    layer = service.xyz()
    source = layer.dataProvider()
    box = extent(columns, columns)
    assert proposed_size(source, box) == pytest.approx(pixel)
    grid = plan(source, box)
    assert grid.width * grid.height <= PROPOSED_PIXELS * 1.01


def test_what_is_seen_on_the_map_decides_the_proposal(provider, service):
    from geopeft_qgis.copy_plan import proposed_size

    layer, other = service.xyz(zoom=17), service.wms()
    source = layer.dataProvider()
    assert proposed_size(source, extent(), seen=5.0) == pytest.approx(4.777314267823516)
    assert proposed_size(source, extent(), seen=0.01) == pytest.approx(1.194328566955879), "no finer than zoom 17"
    assert proposed_size(other.dataProvider(), extent(), seen=3.3) == 3.3


def test_places_without_a_tile_are_transparent(provider, service, tmp_path):
    service.mode = "holes"
    values, _ = pixels(render(service.xyz(), tmp_path / "out.tif", extent(4, 2), PIXEL_M)["OUTPUT"])
    opaque = values[3, 100].reshape(4, 256)[:, 1:-1]
    assert opaque.min(axis=1).tolist() == opaque.max(axis=1).tolist()
    assert sorted(opaque[:, 0]) == [0, 0, 255, 255]


def test_a_failure_that_passes_leaves_no_hole(provider, service, tmp_path):
    """QGIS shows a failed tile as nothing: the piece is asked for again."""
    service.fail_next = 1
    render(service.wms(), tmp_path / "out.tif", resolution=PIXEL_M)
    assert service.fail_next == 0 and is_right(tmp_path / "out.tif")


@pytest.mark.parametrize("kind", ["xyz", "wms", "arcgis"])
def test_a_server_that_fails_is_said_and_leaves_nothing(provider, service, tmp_path, kind):
    layer = getattr(service, kind)()
    service.mode = "error"
    said = refusal(layer, tmp_path / "out.tif", resolution=PIXEL_M)
    assert "The server of the layer failed" in said and "at piece 1 of 1" in said and "run again" in said
    assert "http" not in said, "an address may hold a key"
    if kind == "wms":
        assert "it sent application/vnd.ogc.se_xml instead of a map" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["xyz", "wms", "arcgis"])
def test_a_server_that_does_not_answer_is_given_up(provider, service, tmp_path, monkeypatch, kind):
    from geopeft_qgis import raster_copy

    assert raster_copy.ANSWER_S == 30
    monkeypatch.setattr(raster_copy, "ANSWER_S", 1.0)
    layer = getattr(service, kind)()
    service.mode = "hang"
    start = time.monotonic()
    assert "did not answer within 1 seconds" in refusal(layer, tmp_path / "out.tif", resolution=PIXEL_M)
    assert time.monotonic() - start < 5
    assert not list(tmp_path.iterdir())


def test_a_slow_server_is_waited_for(provider, service, tmp_path, monkeypatch):
    """The limit is for the silence between answers, not for a piece as a whole."""
    from geopeft_qgis import raster_copy

    monkeypatch.setattr(raster_copy, "ANSWER_S", 1.0)
    service.wait_s = 0.4
    render(service.xyz(), tmp_path / "out.tif", extent(4, 4), PIXEL_M)
    assert is_right(tmp_path / "out.tif", 4, 4)


def test_too_many_pixels_are_refused_with_their_number(provider, service, tmp_path):
    said = refusal(service.xyz(), tmp_path / "out.tif", extent(100, 100), 0.1)
    assert "pixels (" in said and "MB)" in said and "268 million are the most" in said
    assert "larger pixels or a smaller extent" in said
    assert not service.requests


def test_a_web_map_needs_an_extent(provider, service, tmp_path):
    assert "needs an extent" in refusal(service.xyz(), tmp_path / "out.tif", "")


def test_an_extent_without_anything_is_said(provider, service, tmp_path):
    service.mode = "holes"
    odd = QgsRectangle(CORNER[0] + SQUARE_M, CORNER[1] - SQUARE_M, CORNER[0] + 1.9 * SQUARE_M, CORNER[1])
    assert "shows nothing in this extent" in refusal(service.xyz(), tmp_path / "out.tif", odd, PIXEL_M)


def test_only_geotiff_is_written(provider, service):
    algorithm = provider.algorithm("renderlayer").create()
    ok, message = algorithm.checkParameterValues(
        {"LAYER": service.xyz(), "OUTPUT": "/tmp/a.png"}, QgsProcessingContext()
    )
    assert not ok and "must end with .tif" in message


def test_a_place_that_cannot_be_written_is_said(provider, service, tmp_path):
    assert "cannot be written" in refusal(service.xyz(), tmp_path / "no folder" / "out.tif", resolution=PIXEL_M)


def test_a_full_disk_is_said(provider, memory_layer, tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        said = refusal(memory_layer, tmp_path / "out.tif", "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in said and "Free space" in said
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


@pytest.fixture
def memory_layer(qgis_app, raster_file):
    from osgeo import gdal

    gdal.FileFromMemBuffer("/vsimem/scene.tif", raster_file.read_bytes())
    dataset = gdal.Open("/vsimem/scene.tif", gdal.GA_Update)
    for band in (1, 2, 3, 4):
        dataset.GetRasterBand(band).SetDescription(f"B0{band}")
        dataset.GetRasterBand(band).SetNoDataValue(7)
    dataset = None
    layer = QgsRasterLayer("/vsimem/scene.tif", "kept in memory")
    yield layer
    gdal.Unlink("/vsimem/scene.tif")


def test_values_stay_values(provider, memory_layer, raster_file, tmp_path):
    """A layer that only QGIS can read, but that has values: bands, type, nodata and grid stay."""
    result = render(memory_layer, tmp_path / "out.tif", "")
    values, dataset = pixels(result["OUTPUT"])
    wanted, original = pixels(raster_file)
    assert values.dtype == wanted.dtype == "uint16" and (values == wanted).all()
    assert dataset.GetGeoTransform() == original.GetGeoTransform()
    assert [dataset.GetRasterBand(b).GetDescription() for b in (1, 4)] == ["B01", "B04"]
    assert dataset.GetRasterBand(2).GetNoDataValue() == 7


def test_a_part_of_values_stays_on_their_grid(provider, memory_layer, raster_file, tmp_path):
    box = "500103,500297,5399704,5399898 [EPSG:32632]"
    result = render(memory_layer, tmp_path / "out.tif", box)
    values, dataset = pixels(result["OUTPUT"])
    assert dataset.GetGeoTransform() == (500100, 10, 0, 5399900, 0, -10)
    assert (values == pixels(raster_file)[0][:, 10:30, 10:30]).all()


def test_a_canceled_copy_leaves_nothing(provider, service, tmp_path):
    """In a task, as the panel runs it; the window stays alive, and the copy ends soon after."""
    from qgis.core import QgsApplication, QgsProcessingAlgRunnerTask
    from qgis.PyQt.QtCore import QCoreApplication

    feedback, context = Feedback(), QgsProcessingContext()
    box = extent(30, 30)
    parameters = {
        "LAYER": service.xyz(),
        "EXTENT": f"{box.xMinimum()},{box.xMaximum()},{box.yMinimum()},{box.yMaximum()} [EPSG:3857]",
        "RESOLUTION": PIXEL_M,
        "OUTPUT": str(tmp_path / "out.tif"),
    }
    task = QgsProcessingAlgRunnerTask(provider.algorithm("renderlayer"), parameters, context, feedback)
    ended = []
    task.executed.connect(lambda ok, results: ended.append((ok, results)))
    QgsApplication.taskManager().addTask(task)
    end = time.monotonic() + 30
    while not feedback.percents and time.monotonic() < end:
        QCoreApplication.processEvents()
        time.sleep(0.01)
    service.mode = "hang"
    time.sleep(0.3)
    asked = time.monotonic()
    feedback.cancel()
    while not ended and time.monotonic() < end:
        QCoreApplication.processEvents()
        time.sleep(0.01)
    assert ended and time.monotonic() - asked < 2
    assert not list(tmp_path.iterdir())


def test_a_layer_that_goes_during_the_copy_does_not_matter(provider, service, project, tmp_path):
    from qgis.core import QgsApplication, QgsProcessingAlgRunnerTask
    from qgis.PyQt.QtCore import QCoreApplication

    service.wait_s = 0.2
    layer = service.xyz()
    project.addMapLayer(layer)
    context = QgsProcessingContext()
    context.setProject(project)
    box = extent(4, 4)
    parameters = {
        "LAYER": layer.id(),
        "EXTENT": f"{box.xMinimum()},{box.xMaximum()},{box.yMinimum()},{box.yMaximum()} [EPSG:3857]",
        "RESOLUTION": PIXEL_M,
        "OUTPUT": str(tmp_path / "out.tif"),
    }
    feedback = Feedback()
    task = QgsProcessingAlgRunnerTask(provider.algorithm("renderlayer"), parameters, context, feedback)
    ended = []
    task.executed.connect(lambda ok, results: ended.append(ok))
    QgsApplication.taskManager().addTask(task)
    project.removeAllMapLayers()
    end = time.monotonic() + 30
    while not ended and time.monotonic() < end:
        QCoreApplication.processEvents()
        time.sleep(0.01)
    assert ended == [True] and is_right(tmp_path / "out.tif", 4, 4)


def test_local_tiles_work_as_well(provider, tmp_path):
    """An XYZ template of files, as many people keep them."""
    from web_service import picture

    for col in range(3):
        for row in range(2):
            folder = tmp_path / "tiles" / "15" / str(17100 + col)
            folder.mkdir(parents=True, exist_ok=True)
            left, top = CORNER[0] + col * SQUARE_M, CORNER[1] - row * SQUARE_M
            data = picture(left, top - SQUARE_M, left + SQUARE_M, top, 256, 256)
            (folder / f"{11200 + row}.png").write_bytes(data)
    layer = QgsRasterLayer(
        f"type=xyz&url=file://{tmp_path}/tiles/%7Bz%7D/%7Bx%7D/%7By%7D.png&zmax=15&zmin=15", "t", "wms"
    )
    render(layer, tmp_path / "out.tif", resolution=PIXEL_M)
    assert is_right(tmp_path / "out.tif")


def test_the_engine_can_read_what_was_saved(provider, service, tmp_path):
    from geopeft_qgis.sources import describe, needs_rendering

    layer = service.xyz()
    assert needs_rendering(layer)
    saved = QgsRasterLayer(render(layer, tmp_path / "out.tif", resolution=PIXEL_M)["OUTPUT"], "saved")
    assert describe(saved).kind == "file" and not needs_rendering(saved)
    assert saved.dataProvider().dataType(1) == Qgis.DataType.Byte
    assert saved.dataProvider().sample(QgsPointXY(CORNER[0] + 1, CORNER[1] - 1), 1)[1]
