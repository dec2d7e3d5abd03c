from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from geopeft.data.raster import band_statistics, describe, lacking_band, open_raster, still_same
from geopeft.errors import RasterError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.windows import Window

pytestmark = pytest.mark.usefixtures("folder_unchanged")

Make = Callable[..., Path | str]
MakeRaster = Callable[..., Path]


def ramp(bands: int = 2, height: int = 30, width: int = 40, dtype: str = "float32") -> np.ndarray:
    return np.arange(1, bands * height * width + 1).reshape(bands, height, width).astype(dtype)


def read(path: Path, window: Window | None = None, indexes: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    info = describe(str(path))
    with open_raster(info, indexes or [band.index for band in info.bands]) as reader:
        return reader.read(window or Window(0, 0, info.width, info.height))


def vrt(width: int, height: int, source: str = "") -> str:
    band = f"<SimpleSource><SourceFilename>{source}</SourceFilename></SimpleSource>" if source else ""
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>EPSG:32633</SRS>'
        "<GeoTransform>300000, 10, 0, 5800000, 0, -10</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1">{band}</VRTRasterBand></VRTDataset>'
    )


def test_a_raster_is_described(make_raster: MakeRaster) -> None:
    path = make_raster(ramp(), names=["Red", "B8A"], nodata=-1, tags={"Sensor": "MSI"}, tiled=False)
    info = describe(str(path))
    assert (info.path, info.driver, info.height, info.width) == (str(path), "GTiff", 30, 40)
    assert [band.common for band in info.bands] == ["red", "nir08"]
    assert info.nodata == -1 and info.dtype == "float32" and info.gsd_m == 10
    assert info.tags["sensor"] == "MSI"
    assert info.geobox.affine == Affine(10, 0, 300_000, 0, -10, 5_800_000)
    assert pickle.loads(pickle.dumps(info)) == info


def test_a_window_beyond_the_edge_is_invalid_there(make_raster: MakeRaster) -> None:
    values, valid = read(make_raster(ramp()), Window(-5, -3, 50, 40))
    assert values.shape == (2, 40, 50) and valid.shape == (40, 50)
    inside = np.zeros((40, 50), bool)
    inside[3:33, 5:45] = True
    assert (valid == inside).all()
    assert (values[:, 3:33, 5:45] == ramp()).all()
    assert not values[:, ~inside].any()
    assert not read(make_raster(ramp()), Window(900, 900, 8, 8))[1].any()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(missing=hnp.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))),
       kind=st.sampled_from(["value", "nan", "inf", "huge"]))  # fmt: skip
@pytest.mark.fault("R06", "R07")
def test_a_pixel_is_valid_where_every_band_is(make_raster: MakeRaster, missing: np.ndarray, kind: str) -> None:
    values = ramp(*missing.shape)
    values[missing] = {"value": -99999, "nan": np.nan, "inf": -np.inf, "huge": 1e38}[kind]
    got, valid = read(make_raster(values, nodata=-99999 if kind == "value" else None))
    assert (valid == ~missing.any(axis=0)).all()
    assert np.isfinite(got).all() and not got[:, ~valid].any()
    assert (got[:, valid] == values[:, valid]).all()


def test_a_nodata_that_the_type_cannot_hold_hides_nothing(make_raster: MakeRaster, tmp_path: Path) -> None:
    make_raster(np.zeros((1, 4, 4), np.uint8))
    path = tmp_path / "x.vrt"
    path.write_text(vrt(4, 4, str(tmp_path / "raster.tif")).replace(">Byte", ">Byte").replace(
        'band="1">', 'band="1"><NoDataValue>-9999</NoDataValue>'))  # fmt: skip
    assert read(path)[1].all()


def test_bands_of_several_types_are_read_together(make_raster: MakeRaster, tmp_path: Path) -> None:
    """A VRT may have a band of whole numbers beside one of fractions; each keeps its own nodata."""
    whole, parts = ramp(1, dtype="uint16"), ramp(1) / 7
    whole[0, 0, 0], parts[0, 0, 1] = 65535, -9999
    names = [make_raster(whole, "a.tif", nodata=65535), make_raster(parts, "b.tif", nodata=-9999)]
    bands = [
        f'<VRTRasterBand dataType="{kind}" band="{number}"><NoDataValue>{nodata}</NoDataValue><SimpleSource>'
        f"<SourceFilename>{name}</SourceFilename></SimpleSource></VRTRasterBand>"
        for number, (name, kind, nodata) in enumerate(zip(names, ("UInt16", "Float32"), (65535, -9999), strict=True), 1)
    ]
    path = tmp_path / "x.vrt"
    path.write_text(re.sub("<VRTRasterBand.*</VRTRasterBand>", "".join(bands), vrt(40, 30)))
    values, valid = read(path)
    expected = np.ones((30, 40), bool)
    expected[0, :2] = False
    assert (valid == expected).all()
    assert (values[:, expected] == np.concatenate([whole.astype("float32"), parts])[:, expected]).all()


def test_a_mask_band_hides_pixels(make_raster: MakeRaster) -> None:
    mask = np.full((30, 40), 255, np.uint8)
    mask[:5] = 0
    assert (read(make_raster(ramp(), mask=mask))[1] == (mask > 0)).all()


def test_alpha_hides_pixels_and_is_no_band(make_raster: MakeRaster) -> None:
    values = ramp(4, dtype="uint8")
    values[3] = 255
    values[3, :, :7] = 0
    path = make_raster(values, colors=["red", "green", "blue", "alpha"])
    info = describe(str(path))
    assert [band.common for band in info.bands] == ["red", "green", "blue"] and info.alpha == 4
    assert (read(path)[1] == (values[3] > 0)).all()


@pytest.mark.parametrize("named", [True, False])
def test_near_infrared_that_gdal_takes_for_alpha_is_a_band(make_raster: MakeRaster, named: bool) -> None:
    values = np.random.default_rng(0).integers(0, 255, (4, 64, 64), dtype=np.uint8)
    names = ["red", "green", "blue", "nir"] if named else []
    path = make_raster(values, colors=["red", "green", "blue", "alpha"], names=names)
    assert len(describe(str(path)).bands) == 4
    got, valid = read(path)
    assert valid.all() and (got == values).all()


@pytest.mark.fault("R30")
def test_overviews_are_not_read_for_pixels(make_raster: MakeRaster) -> None:
    path = make_raster(ramp(1, 256, 256))
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([2])
    with rasterio.open(path, "r+", overview_level=0) as overview:
        overview.write(np.full((128, 128), 7, np.float32), 1)
    assert (read(path)[0] == ramp(1, 256, 256)).all()


@pytest.mark.fault("R14")
def test_a_rotated_grid_keeps_its_transform(make_raster: MakeRaster) -> None:
    rotated = Affine(10, 2, 300_000, 2, -10, 5_800_000)
    assert describe(str(make_raster(ramp(), transform=rotated))).geobox.affine == rotated


@pytest.mark.parametrize(
    ("crs", "transform", "gsd_m"),
    [
        ("EPSG:32633", Affine(10, 0, 300_000, 0, -10, 5_800_000), 10.0),
        ("EPSG:4326", Affine(1e-4, 0, 12, 0, -1e-4, 60), 7.9),
        ("EPSG:3857", Affine(10, 0, 1_500_000, 0, -10, 8_400_000), 5.0),
        ("EPSG:2264", Affine(10, 0, 2_000_000, 0, -10, 700_000), 3.048),
    ],
)
def test_pixel_size_is_metres_on_the_ground(make_raster: MakeRaster, crs: str, transform: Affine, gsd_m: float) -> None:
    assert describe(str(make_raster(ramp(), crs=crs, transform=transform))).gsd_m == pytest.approx(gsd_m, rel=0.02)


def bad_inputs() -> list[pytest.ParameterSet]:
    def case(name: str, make: Make, code: str, text: str = "") -> pytest.ParameterSet:
        return pytest.param(make, code, text, id=name)

    def text_file(content: bytes, name: str = "x.tif") -> Make:
        def make(tmp_path: Path, make_raster: MakeRaster) -> Path:
            (tmp_path / name).write_bytes(content)
            return tmp_path / name

        return make

    def raster(**options: Any) -> Make:
        return lambda tmp_path, make_raster: make_raster(options.pop("values", ramp()), **options)

    def folder(tmp_path: Path, make_raster: MakeRaster) -> Path:
        return tmp_path

    def dangling(tmp_path: Path, make_raster: MakeRaster) -> Path:
        (tmp_path / "link.tif").symlink_to(tmp_path / "gone.tif")
        return tmp_path / "link.tif"

    def missing_source(tmp_path: Path, make_raster: MakeRaster) -> Path:
        (tmp_path / "x.vrt").write_text(vrt(10, 10, "gone_source.tif"))
        return tmp_path / "x.vrt"

    def itself(tmp_path: Path, make_raster: MakeRaster) -> Path:
        (tmp_path / "x.vrt").write_text(vrt(10, 10, str(tmp_path / "x.vrt")))
        return tmp_path / "x.vrt"

    def palette(tmp_path: Path, make_raster: MakeRaster) -> Path:
        path = make_raster(ramp(1, dtype="uint8"), photometric="palette")
        with rasterio.open(path, "r+") as out:
            out.write_colormap(1, {value: (value, 0, 0) for value in range(256)})
        return path

    return [
        case("missing", lambda tmp_path, _: tmp_path / "gone.tif", "RASTER_MISSING"),
        case("no path", lambda *_: "", "RASTER_MISSING"),
        case("dangling link", dangling, "RASTER_MISSING"),
        case("folder", folder, "RASTER_OPEN", "folder"),
        case("empty file", text_file(b""), "RASTER_OPEN", "0 bytes"),
        case("one byte", text_file(b"I"), "RASTER_OPEN"),
        case("eight bytes", text_file(b"II*\0\x08\0\0\0"), "RASTER_OPEN"),
        case("html", text_file(b"<html>404</html>"), "RASTER_OPEN", "not a raster GDAL can read"),
        case("zip", text_file(b"PK\x03\x04" + b"\0" * 60), "RASTER_OPEN"),
        case("no CRS", raster(crs=None), "RASTER_NO_CRS"),
        case("no geotransform", raster(transform=Affine.identity()), "RASTER_NO_GEOREFERENCE"),
        case("complex", raster(values=ramp().astype("complex64")), "RASTER_DTYPE"),
        case("huge", text_file(vrt(2_000_000_000, 2_000_000_000).encode(), "x.vrt"), "RASTER_TOO_BIG", "GB"),
        case("colour table", palette, "RASTER_PALETTE"),
        case("vrt without its source", missing_source, "RASTER_READ", "gone_source.tif"),
        case("vrt of itself", itself, "RASTER_READ"),
    ]


@pytest.mark.parametrize(("make", "code", "text"), bad_inputs())
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.fault("R01", "R02", "R21", "R22", "R23", "R29")
def test_a_raster_that_cannot_be_used_is_refused(
    tmp_path: Path, make_raster: MakeRaster, make: Make, code: str, text: str
) -> None:
    with pytest.raises(RasterError) as caught:
        describe(str(make(tmp_path, make_raster)))
    assert caught.value.code == code
    assert text in caught.value.message
    assert caught.value.hint and "Traceback" not in caught.value.message


@pytest.mark.fault("R35")
def test_a_path_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RasterError) as caught:
        describe(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xe9.tif"))
    assert caught.value.code == "PATH_ENCODING"
    caught.value.message.encode("utf-8")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("compress", ["none", "deflate", "lzw"])
@pytest.mark.fault("R03")
def test_a_truncated_file_is_noticed_at_once(make_raster: MakeRaster, part: float, compress: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (2, 300, 300), dtype=np.uint8)
    path = make_raster(noise, compress=compress, tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(RasterError) as caught:
        describe(str(path))
    # The last thousandth of a file may hold nothing but its georeference.
    assert caught.value.code in ("RASTER_READ", "RASTER_OPEN", *(["RASTER_NO_CRS"] if part == 0.999 else []))
    assert caught.value.code != "RASTER_READ" or "row" in caught.value.message


@pytest.mark.fault("R03", "R04")
def test_damage_between_the_probed_blocks_is_an_error_when_read(make_raster: MakeRaster) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (1, 640, 640), dtype=np.uint8)
    path = make_raster(noise, compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    info = describe(str(path))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 + 700
    data[middle : middle + 600] = b"\xff" * 600
    path.write_bytes(bytes(data))
    with open_raster(info, [1]) as reader, pytest.raises(RasterError) as caught:
        for row in range(0, 640, 16):
            reader.read(Window(0, row, 640, 16))
    assert caught.value.code == "RASTER_READ" and "row" in caught.value.message


def test_python_in_a_vrt_never_runs(make_raster: MakeRaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    source = make_raster(ramp(1, 10, 10, "uint8"))
    function = f"<![CDATA[\ndef go(i, o, *a, **k):\n    open({str(canary)!r}, 'w').close()\n    o[:] = 1\n]]>"
    text = vrt(10, 10, str(source)).replace(
        '<VRTRasterBand dataType="Byte" band="1">',
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand"><PixelFunctionType>go'
        f"</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>"
        f"<PixelFunctionCode>{function}</PixelFunctionCode>",
    )
    (tmp_path / "x.vrt").write_text(text)
    monkeypatch.setenv("GDAL_VRT_ENABLE_PYTHON", "YES")
    with pytest.raises(RasterError):
        describe(str(tmp_path / "x.vrt"))
    assert not canary.exists()


@pytest.mark.fault("R39", "R31")
def test_a_crs_in_a_sidecar_file_is_found_and_the_sidecar_kept(tmp_path: Path) -> None:
    values = ramp(3, dtype="uint8")
    path = tmp_path / "photo.png"
    with rasterio.open(path, "w", driver="PNG", count=3, height=30, width=40, dtype="uint8", crs="EPSG:32633",
                       transform=Affine(10, 0, 300_000, 0, -10, 5_800_000)) as out:  # fmt: skip
        out.write(values)
    sidecar = tmp_path / "photo.png.aux.xml"
    before = sidecar.read_bytes()
    info = describe(str(path))
    band_statistics(info, [1, 2, 3])
    assert info.crs.to_epsg() == 32633
    assert sidecar.read_bytes() == before
    sidecar.unlink()


@pytest.mark.parametrize("change", ["touch", "overwrite", "replace", "remove"])
@pytest.mark.fault("R36", "R37")
def test_a_raster_that_changes_is_noticed(make_raster: MakeRaster, tmp_path: Path, change: str) -> None:
    path = make_raster(ramp())
    info = describe(str(path))
    still_same(info)
    if change == "touch":
        os.utime(path, ns=(1, 1))
    elif change == "overwrite":
        with rasterio.open(path, "r+") as raster:
            raster.write(ramp() * 2)
        os.utime(path, ns=(1, 1))
    elif change == "replace":
        os.replace(make_raster(ramp() + 5, "other.tif"), path)
    else:
        path.unlink()
    with pytest.raises(RasterError) as caught:
        still_same(info)
    assert caught.value.code == "RASTER_CHANGED"


def test_a_change_of_a_vrts_source_is_noticed(make_raster: MakeRaster, tmp_path: Path) -> None:
    source = make_raster(ramp(1, 10, 10, "uint8"))
    (tmp_path / "x.vrt").write_text(vrt(10, 10, str(source)))
    info = describe(str(tmp_path / "x.vrt"))
    still_same(info)
    os.utime(source, ns=(1, 1))
    with pytest.raises(RasterError):
        still_same(info)


def test_statistics_that_qgis_writes_beside_the_raster_are_no_change(make_raster: MakeRaster) -> None:
    path = make_raster(ramp())
    beside = path.with_name(path.name + ".aux.xml")
    beside.write_text("<PAMDataset/>")
    info = describe(str(path))
    beside.write_text("<PAMDataset></PAMDataset>")
    still_same(info)
    beside.unlink()


def test_statistics_are_of_valid_pixels_of_each_band(make_raster: MakeRaster) -> None:
    values = np.random.default_rng(2).normal(100, 10, (2, 200, 200)).astype("float32")
    values[1, :50] = -99999
    info = describe(str(make_raster(values, nodata=-99999, names=["red", "swir2"])))
    stats = band_statistics(info, [1, 2])
    assert stats.mean == pytest.approx([100, 100], abs=1)
    assert stats.std == pytest.approx([10, 10], abs=1)
    assert stats.low == pytest.approx([76.7, 76.7], abs=2)
    assert stats.valid_fraction == pytest.approx([1, 0.75], abs=0.02)
    sentence = lacking_band(info, [1, 2], stats)
    assert "'swir2' (25%)" in sentence and "red" not in sentence
    assert not lacking_band(info, [1], band_statistics(info, [1]))


def test_statistics_read_a_small_part_of_a_large_raster(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    with rasterio.open(path, "w", driver="GTiff", width=200_000, height=200_000, count=1, dtype="uint8", nodata=0,
                       crs="EPSG:32633", transform=Affine(1, 0, 9, 0, -1, 9), sparse_ok=True, tiled=True,
                       BIGTIFF="YES") as out:  # fmt: skip
        out.write(np.full((512, 512), 9, np.uint8), 1, window=Window(0, 0, 512, 512))
    stats = band_statistics(describe(str(path)), [1])
    assert stats.mean[0] == 9 and 0 < stats.valid_fraction[0] < 0.2


@pytest.mark.fault("R05")
def test_a_raster_of_nodata_is_empty(make_raster: MakeRaster) -> None:
    info = describe(str(make_raster(np.zeros((2, 50, 50), np.uint8), nodata=0)))
    with pytest.raises(RasterError) as caught:
        band_statistics(info, [1, 2])
    assert caught.value.code == "RASTER_EMPTY"


@pytest.mark.fault("R27")
def test_scale_and_offset_are_told_and_not_applied(make_raster: MakeRaster) -> None:
    path = make_raster(ramp(), scales=[0.5, 0.5], offsets=[-1, -1])
    info = describe(str(path))
    assert info.scales == (0.5, 0.5) and info.offsets == (-1.0, -1.0)
    assert (read(path)[0] == ramp()).all()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
@pytest.mark.fault("R11")
def test_every_real_type_is_read(make_raster: MakeRaster, dtype: str) -> None:
    values = (np.arange(600).reshape(1, 20, 30) % 120).astype(dtype)
    got, valid = read(make_raster(values))
    assert got.dtype == np.float32 and (got == values).all() and valid.all()
