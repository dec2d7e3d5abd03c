"""Rasters that are no plain files: archives, subdatasets, web servers; and names that GDAL must never see."""

from __future__ import annotations

import http.server
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.enums
import rasterio.shutil
from geopeft.data import raster_sources
from geopeft.data.raster import describe, open_raster, still_same
from geopeft.data.raster_sources import archive_of, check_source, is_plain, is_remote, url_of
from geopeft.errors import RasterError
from rasterio.windows import Window

MakeRaster = Callable[..., Path]


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder's files in parts, as web servers do; `mode` spoils it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.mode = "ok"
        self.requests: list[str] = []
        self.busy_answers = 0
        self.redirect_to = ""
        self.released = threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}")
        if self.server.mode == "hang":
            self.server.released.wait(20)
            return
        if self.server.mode == "redirect":
            self.send_response(302)
            self.send_header("Location", self.server.redirect_to)
            self.end_headers()
            return
        if self.server.busy_answers > 0:
            self.server.busy_answers -= 1
            self.send_error(503)
            return
        file = self.server.folder / self.path.split("?")[0].lstrip("/")
        if self.server.mode == "missing" or not file.is_file():
            self.send_error(404)
            return
        data, wanted = file.read_bytes(), self.headers.get("Range")
        total, status, part = len(data), 200, ""
        if wanted and self.server.mode != "whole":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1 if last else total, total)
            status, part = 206, f"bytes {first}-{end - 1}/{total}"
            data = data[int(first) : end]
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if with_body else total))
        self.send_header("Last-Modified", self.date_time_string(int(file.stat().st_mtime)))
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        if with_body:
            self.wfile.write(data)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = Server(tmp_path)
    thread = threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield served
    served.released.set()
    served.shutdown()
    served.server_close()
    thread.join()


def scene(size: int = 600) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3000, (2, size, size)).astype("uint16")


def read(path: str) -> np.ndarray:
    info = describe(path)
    with open_raster(info, [band.index for band in info.bands]) as reader:
        return reader.read(Window(0, 0, info.width, info.height))[0]


def cog(make_raster: MakeRaster, size: int = 600) -> Path:
    return make_raster(scene(size), names=["B02", "B8A"], tiled=True, blockxsize=256, blockysize=256)


@pytest.mark.parametrize("prefix", ["", "/vsicurl/"])
def test_a_raster_on_a_web_server_is_read_in_parts(make_raster: MakeRaster, server: Server, prefix: str) -> None:
    cog(make_raster)
    path = prefix + server.url("raster.tif")
    info = describe(path)
    assert [band.name for band in info.bands] == ["B02", "B8A"] and info.path == path
    assert (read(path) == scene()).all()
    still_same(info)
    beside = [line for line in server.requests if "raster.tif " not in line]
    assert not beside, "nothing but the raster itself is asked for"


def test_only_what_is_needed_of_a_large_remote_raster_is_fetched(make_raster: MakeRaster, server: Server) -> None:
    size = cog(make_raster, 3000).stat().st_size
    info = describe(server.url("raster.tif"))
    server.requests.clear()
    with open_raster(info, [1]) as reader:
        reader.read(Window(2600, 2600, 200, 200))
    ranges = [line.rsplit("=", 1)[1].split("-") for line in server.requests if "bytes=" in line]
    assert 0 < sum(int(last) - int(first) + 1 for first, last in ranges) < size / 4
    assert len(server.requests) <= 6


def test_a_map_of_a_remote_raster_fetches_it_about_once_in_large_parts(make_raster: MakeRaster, server: Server) -> None:
    size = cog(make_raster, 1500).stat().st_size
    path = server.url("raster.tif")
    with open_raster(describe(path), [1, 2]) as reader:
        for row in range(-16, 1500, 192):
            for col in range(-16, 1500, 192):
                reader.read(Window(col, row, 224, 224))
    ranges = [line.rsplit("=", 1)[1].split("-") for line in server.requests if "bytes=" in line]
    assert size <= sum(min(int(last), size - 1) - int(first) + 1 for first, last in ranges) <= 1.2 * size
    assert len(server.requests) <= size / 200_000


def test_a_server_that_is_busy_for_a_moment_is_asked_again(
    make_raster: MakeRaster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert raster_sources.HTTP_OPTIONS["GDAL_HTTP_RETRY_DELAY"] == "1"
    monkeypatch.setitem(raster_sources.HTTP_OPTIONS, "GDAL_HTTP_RETRY_DELAY", "0.1")
    cog(make_raster, 1500)
    info = describe(server.url("raster.tif"))
    with open_raster(info, [1, 2]) as reader:
        reader.read(Window(0, 0, 64, 64))
        server.busy_answers = 6
        assert (reader.read(Window(700, 700, 200, 200))[0] == scene(1500)[:, 700:900, 700:900]).all()
    assert server.busy_answers == 0


def test_a_server_that_goes_midway_is_said(
    make_raster: MakeRaster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(raster_sources.HTTP_OPTIONS, "GDAL_HTTP_RETRY_DELAY", "0.1")
    cog(make_raster, 1500)
    info = describe(server.url("raster.tif"))
    with open_raster(info, [1, 2]) as reader:
        reader.read(Window(0, 0, 64, 64))
        server.busy_answers = 1000
        with pytest.raises(RasterError, match="cannot be read on at row 700, column 700") as caught:
            reader.read(Window(700, 700, 200, 200))
    assert caught.value.code == "RASTER_REMOTE" and "Run again when the network is back" in caught.value.hint


def in_store(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment in which the server is where s3:// leads."""
    store = {"S3_ENDPOINT": f"127.0.0.1:{server.server_port}", "HTTPS": "NO", "VIRTUAL_HOSTING": "FALSE",
             "NO_SIGN_REQUEST": "YES"}  # fmt: skip
    for key, value in store.items():
        monkeypatch.setenv(f"AWS_{key}", value)


@pytest.mark.parametrize("name", ["s3://bucket/raster.tif", "/vsis3/bucket/raster.tif"])
def test_a_raster_in_a_store_is_read_as_the_environment_says(
    make_raster: MakeRaster, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    in_store(server, monkeypatch)
    (tmp_path / "bucket").mkdir()
    cog(make_raster).rename(tmp_path / "bucket" / "raster.tif")
    assert (read(name) == scene()).all()
    beside = [line for line in server.requests if " /bucket/raster.tif " not in line]
    assert server.requests and not beside


def test_a_store_that_has_no_such_raster_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    in_store(server, monkeypatch)
    with pytest.raises(RasterError, match="cannot be opened over the network") as caught:
        describe("s3://bucket/none.tif")
    assert caught.value.code == "RASTER_REMOTE"


def test_a_remote_raster_that_is_replaced_is_noticed(make_raster: MakeRaster, server: Server) -> None:
    file = cog(make_raster)
    info = describe(server.url("raster.tif"))
    os.utime(file, (1, 1))
    with pytest.raises(RasterError, match="changed while the job ran"):
        still_same(info)


def replaced(file: Path, values: np.ndarray) -> None:
    """The same raster with other values: of the same size and date, as it is not compressed."""
    stat = file.stat()
    with rasterio.open(file, "r+") as target:
        target.write(values)
    assert file.stat().st_size == stat.st_size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_raster_in_a_store_that_is_replaced_is_noticed(
    make_raster: MakeRaster, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_store(server, monkeypatch)
    (tmp_path / "bucket").mkdir()
    file = cog(make_raster).rename(tmp_path / "bucket" / "raster.tif")
    info = describe("s3://bucket/raster.tif")
    assert describe("s3://bucket/raster.tif").fingerprint == info.fingerprint
    with open_raster(info, [1, 2]) as reader:
        reader.read(Window(0, 0, 600, 600))
        still_same(info)
        replaced(file, scene() + 1)
        with pytest.raises(RasterError, match="changed while the job ran"):
            still_same(info)
    assert (read("s3://bucket/raster.tif") == scene() + 1).all(), "nothing of it was kept from before"
    server.mode = "missing"
    still_same(info)


def test_a_change_shows_in_where_the_blocks_lie_and_in_the_overview(
    make_raster: MakeRaster, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Values change in one block only, which is none of those that are looked at."""
    in_store(server, monkeypatch)
    (tmp_path / "bucket").mkdir()
    file, found = tmp_path / "bucket" / "raster.tif", []
    for compress, factors, value in (("deflate", [], 0), ("deflate", [], 9), ("none", [4], 0), ("none", [4], 9)):
        values = scene()
        values[:, 256:300, :40] = value
        made = make_raster(values, tiled=True, blockxsize=256, blockysize=256, compress=compress)
        with rasterio.open(made, "r+") as target:
            target.build_overviews(factors, rasterio.enums.Resampling.average)
        made.rename(file)
        found.append(describe("s3://bucket/raster.tif").fingerprint)
    assert len(set(found)) == 4


def test_a_vrt_watches_the_remote_rasters_that_it_points_to(
    make_raster: MakeRaster, server: Server, tmp_path: Path
) -> None:
    file = cog(make_raster)
    path = tmp_path / "x.vrt"
    source = f"<SourceFilename>/vsicurl/{server.url('raster.tif')}</SourceFilename><SourceBand>2</SourceBand>"
    path.write_text(vrt(f"<SimpleSource>{source}</SimpleSource>"))
    info = describe(str(path))
    still_same(info)
    os.utime(file, (1, 1))
    with pytest.raises(RasterError, match="changed while the job ran"):
        still_same(info)


def test_a_remote_raster_that_is_replaced_between_two_jobs_is_read_anew(
    make_raster: MakeRaster, server: Server
) -> None:
    """A worker lives for many jobs, and GDAL would keep what it has read."""
    file = cog(make_raster)
    before = describe(server.url("raster.tif"))
    assert (read(server.url("raster.tif")) == scene()).all()
    with rasterio.open(file, "r+") as target:
        target.write(scene() + 1)
    os.utime(file, (1, 1))
    assert describe(server.url("raster.tif")).fingerprint != before.fingerprint
    assert (read(server.url("raster.tif")) == scene() + 1).all()


def test_a_server_that_goes_at_the_end_costs_no_result(make_raster: MakeRaster, server: Server) -> None:
    cog(make_raster)
    info = describe(server.url("raster.tif"))
    server.mode = "missing"
    still_same(info)


def test_a_server_that_does_not_answer_is_given_up_in_time(
    make_raster: MakeRaster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert raster_sources.TIMEOUT_S == 30
    monkeypatch.setattr(raster_sources, "TIMEOUT_S", 1.0)
    cog(make_raster)
    server.mode = "hang"
    start = time.monotonic()
    with pytest.raises(RasterError, match="did not answer within 1 seconds") as caught:
        describe(server.url("raster.tif"))
    assert caught.value.code == "RASTER_REMOTE" and "Check the address" in caught.value.hint
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("mode", "text"), [("missing", "answers 404"), ("whole", "sends whole files only"), ("redirect", "it redirects to")]
)
def test_what_a_server_refuses_is_said(make_raster: MakeRaster, server: Server, mode: str, text: str) -> None:
    cog(make_raster)
    server.mode, server.redirect_to = mode, "ftp://127.0.0.1/a.tif"
    with pytest.raises(RasterError, match=text) as caught:
        describe(server.url("raster.tif?key=abc"))
    assert caught.value.code == "RASTER_REMOTE"
    assert "abc" not in caught.value.message + caught.value.hint, "a key in an address is not repeated"


def test_a_server_that_is_not_there_is_said(server: Server) -> None:
    url = server.url("a.tif")
    server.shutdown()
    server.server_close()
    with pytest.raises(RasterError, match="cannot be reached"):
        describe(url)


@pytest.mark.fault("R31")
def test_a_raster_in_an_archive_is_read_and_watched(make_raster: MakeRaster, tmp_path: Path) -> None:
    file = cog(make_raster)
    archive = tmp_path / "scenes.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.write(file, "deep/raster.tif")
    path = f"/vsizip/{archive}/deep/raster.tif"
    info = describe(path)
    assert (read(path) == scene()).all()
    assert info.files == (str(archive),)
    os.utime(archive, (1, 1))
    with pytest.raises(RasterError, match="changed while"):
        still_same(info)


def test_a_raster_in_an_archive_on_a_web_server_is_read(
    make_raster: MakeRaster, server: Server, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as target:
        target.write(cog(make_raster), "raster.tif")
    assert (read(f"/vsizip//vsicurl/{server.url('scenes.zip')}/raster.tif") == scene()).all()


def tables(make_raster: MakeRaster, path: Path, *names: str) -> None:
    """A GeoPackage with a raster of that name each."""
    with rasterio.open(cog(make_raster)) as source:
        profile = {**source.profile, "driver": "GPKG", "count": 1, "dtype": "uint8"}
    for key in ("tiled", "blockxsize", "blockysize", "interleave"):
        profile.pop(key, None)
    for name in names:
        more = {"append_subdataset": "yes"} if path.exists() else {}
        with rasterio.open(path, "w", raster_table=name, **profile, **more, TILE_FORMAT="PNG") as target:
            target.write((scene() % 255).astype("uint8")[:1])


@pytest.mark.fault("R31")
def test_subdatasets_are_read_and_watched(make_raster: MakeRaster, tmp_path: Path) -> None:
    tables(make_raster, tmp_path / "r.gpkg", "scene")
    path = f"GPKG:{tmp_path / 'r.gpkg'}:scene"
    info = describe(path)
    assert (read(path)[0] == scene()[0] % 255).all()
    assert info.files == (str(tmp_path / "r.gpkg"),)


@pytest.mark.fault("R31")
def test_a_file_of_several_rasters_asks_for_one_of_them(make_raster: MakeRaster, tmp_path: Path) -> None:
    tables(make_raster, tmp_path / "r.gpkg", "first", "second")
    with pytest.raises(RasterError) as refused:
        describe(str(tmp_path / "r.gpkg"))
    assert refused.value.code == "RASTER_SUBDATASETS"
    assert ":first" in refused.value.hint
    assert ":second" in refused.value.hint


@pytest.mark.fault("R31")
def test_a_netcdf_variable_is_read(make_raster: MakeRaster, tmp_path: Path) -> None:
    file = make_raster(scene(64)[:1].astype("float32"))
    rasterio.shutil.copy(file, tmp_path / "v.nc", driver="netCDF")
    path = f'NETCDF:"{tmp_path / "v.nc"}":Band1'
    assert (read(path)[0] == scene(64)[0]).all()
    assert describe(path).files == (str(tmp_path / "v.nc"),)


@pytest.mark.parametrize(
    "name",
    [
        "/vsicurl?header_file=/etc/passwd&url=http://127.0.0.1:1/a.tif",
        "/vsizip//vsicurl?header_file=/etc/passwd&url=http%3A%2F%2F127.0.0.1/a.zip/a.tif",
        "/vsicurl/file:///etc/passwd",
        "/vsicurl/ftp://127.0.0.1/a.tif",
        "/vsistdin/",
        "/vsimem/a.tif",
        "/vsicrypt/key=abc,file=/a.tif",
        "/vsisubfile/0_100,/etc/passwd",
        'NETCDF:"/vsistdin/":v',
        "WMS:http://127.0.0.1:1/?SERVICE=WMS",
        "WCS:http://127.0.0.1:1/?SERVICE=WCS",
        "PG:dbname=x",
        "vrt:///etc/passwd?bands=1",
        "ftp://127.0.0.1/a.tif",
        "<GDAL_WMS><Service/></GDAL_WMS>",
    ],
)
@pytest.mark.parametrize("inside_a_vrt", [False, True])
@pytest.mark.fault("S12")
def test_names_that_are_more_than_files_are_refused(name: str, inside_a_vrt: bool, tmp_path: Path) -> None:
    path = name
    if inside_a_vrt:
        path = str(tmp_path / "x.vrt")
        quoted = name.replace("&", "&amp;").replace("<", "&lt;")
        Path(path).write_text(vrt(f"<SimpleSource><SourceFilename>{quoted}</SourceFilename></SimpleSource>"))
    with pytest.raises(RasterError, match="neither a file nor a file behind") as caught:
        describe(path)
    assert caught.value.code == "RASTER_SOURCE" and "Save that raster as GeoTIFF" in caught.value.hint


def vrt(band: str) -> str:
    return (
        '<VRTDataset rasterXSize="600" rasterYSize="600"><SRS>EPSG:32633</SRS>'
        "<GeoTransform>300000, 10, 0, 5800000, 0, -10</GeoTransform>"
        f'<VRTRasterBand dataType="UInt16" band="1">{band}</VRTRasterBand></VRTDataset>'
    )


def test_a_vrt_in_a_vrt_is_looked_into(make_raster: MakeRaster, tmp_path: Path) -> None:
    inner = tmp_path / "inner" / "i.vrt"
    inner.parent.mkdir()
    inner.write_text(vrt("<ComplexSource><SourceFilename>PG:dbname=x</SourceFilename></ComplexSource>"))
    source = '<SourceFilename relativeToVRT="1">inner/i.vrt</SourceFilename>'
    outer = tmp_path / "outer.vrt"
    outer.write_text(vrt(f"<SimpleSource>{source}</SimpleSource>"))
    with pytest.raises(RasterError, match=r"outer.vrt points to 'PG:dbname=x'"):
        describe(str(outer))
    inner.write_text(vrt(f"<SimpleSource><SourceFilename>{cog(make_raster)}</SourceFilename></SimpleSource>"))
    assert (read(str(outer))[0] == scene()[0]).all()


def test_a_vrt_of_remote_rasters_is_read(make_raster: MakeRaster, server: Server, tmp_path: Path) -> None:
    cog(make_raster)
    path = tmp_path / "x.vrt"
    source = f"<SourceFilename>/vsicurl/{server.url('raster.tif')}</SourceFilename><SourceBand>2</SourceBand>"
    path.write_text(vrt(f"<SimpleSource>{source}</SimpleSource>"))
    assert (read(str(path))[0] == scene()[1]).all()


@pytest.mark.parametrize("text", ["<SourceFilename>a.tif", "<!DOCTYPE x><VRTDataset"])
def test_a_broken_vrt_is_said(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.vrt"
    path.write_text(f"<VRTDataset>{text}")
    with pytest.raises(RasterError, match="not a VRT that can be read"):
        describe(str(path))


BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "ha"}">' for n in range(10))


@pytest.mark.fault("S13")
@pytest.mark.parametrize("name", ["x.vrt", "x.tif"])
def test_xml_that_explodes_does_not(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    source = "<SimpleSource><SourceFilename>&a9;</SourceFilename></SimpleSource>"
    for text in (
        f"<!DOCTYPE x [{BOMB}]>{vrt(source)}",
        f"{vrt(source)}<!DOCTYPE x [{BOMB}]>",
        "<VRTDataset>" * 200_000,
    ):
        path.write_text(text)
        with pytest.raises(RasterError) as caught:
            describe(str(path))
        assert len(str(caught.value)) < 2000


@pytest.mark.fault("S13")
@pytest.mark.parametrize("name", ["x.tif", "x.tif.gz", "x"])
def test_a_vrt_under_another_name_is_taken_for_what_it_is(make_raster: MakeRaster, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    raster = cog(make_raster)
    path.write_text(vrt(f"<SimpleSource><SourceFilename>{raster}</SourceFilename></SimpleSource>"))
    assert describe(str(path)).driver == "VRT" and Path(raster) in map(Path, describe(str(path)).files)
    path.write_text(vrt("<SimpleSource><SourceFilename>PG:dbname=x</SourceFilename></SimpleSource>"))
    with pytest.raises(RasterError, match="points to 'PG:dbname=x'"):
        describe(str(path))


@pytest.mark.fault("S13")
@pytest.mark.parametrize("root", ["GDALTileIndexDataset", "GDAL_WMS", "WCS_GDAL", "WMTSDocument"])
def test_xml_of_other_drivers_is_no_raster(root: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_text(f"<{root}><IndexDataset>/etc/passwd</IndexDataset><Service name='WMS'></Service></{root}>")
    with pytest.raises(RasterError):
        describe(str(path))


@pytest.mark.fault("E10")
def test_python_in_a_vrt_is_named_and_never_run(make_raster: MakeRaster, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    code = f"<PixelFunctionCode><![CDATA[open(r'{canary}', 'w')\ndef f(*a, **k): pass]]></PixelFunctionCode>"
    source = f"<SimpleSource><SourceFilename>{cog(make_raster)}</SourceFilename></SimpleSource>"
    language = "<PixelFunctionLanguage>Python</PixelFunctionLanguage>"
    band = f"<PixelFunctionType>f</PixelFunctionType>{language}{code}{source}"
    path = tmp_path / "x.vrt"
    path.write_text(vrt(band).replace('band="1"', 'band="1" subClass="VRTDerivedRasterBand"'))
    with pytest.raises(RasterError, match="Python code, which is never run"):
        describe(str(path))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("path", "plain", "remote", "url", "archive"),
    [
        ("/data/a.tif", True, False, "", ""),
        ("C:\\data\\a.tif", True, False, "", ""),
        ("/data/vsicurl/http.tif", True, False, "", ""),
        ("https://h.org/a.tif?x=1", False, True, "https://h.org/a.tif?x=1", ""),
        ("/vsicurl/http://h/a.tif", False, True, "http://h/a.tif", ""),
        ("/vsizip//vsicurl/https://h/a.zip/b.tif", False, True, "https://h/a.zip", ""),
        ('NETCDF:"/vsicurl/https://h/a.nc":v', False, True, "https://h/a.nc", ""),
        ("/vsis3/bucket/a.tif", False, True, "", ""),
        ("/vsizip/{here}/b.zip/c.tif", False, False, "", "{here}/b.zip"),
        ("/vsitar/{{here}/b.zip}/c.tif", False, False, "", "{here}/b.zip"),
    ],
)
@pytest.mark.fault("S12")
def test_names_are_understood(path: str, plain: bool, remote: bool, url: str, archive: str, tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(b"PK")
    path, archive = path.replace("{here}", str(tmp_path)), archive.replace("{here}", str(tmp_path))
    assert (is_plain(path), is_remote(path), url_of(path), archive_of(path)) == (plain, remote, url, archive)
    check_source(path)
