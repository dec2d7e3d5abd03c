"""Where rasters may come from: files, archives, subdatasets, cloud stores and web servers, and nothing else.

A raster's name is more to GDAL than a path: it can be a call to a service, a file of request headers that is sent to a
server, or a VRT that holds such names. What is not on the lists here is refused before GDAL sees it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET  # nosec B405, expat refuses entity bombs and reads no other file
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from geopeft.errors import RasterError

ARCHIVES = frozenset(("zip", "tar", "gzip", "7z", "rar"))
CLOUD_STORES = frozenset(("s3", "gs", "az", "adls", "oss", "swift"))
SCHEMES = frozenset(("file", "http", "https", "zip", "tar", "gzip", "s3", "gs", "az", "oss"))
# Drivers whose names for parts of a file look like DRIVER:"file":part.
SUBDATASETS = frozenset(
    "netcdf hdf5 hdf5image hdf4 hdf4image hdf4_sds hdf4_eos hdf4_grid hdf4_swath gpkg gtiff_dir gtiff_raw zarr bag "
    "nitf_im nitf_toc_entry rasterlite s102 s104 s111 snap_tiff sentinel1_calib sentinel1_dual sentinel2_l1b "
    "sentinel2_l1b_with_geoloc sentinel2_l1c sentinel2_l1c_tile sentinel2_l2a derived_subdataset dimap coasp rrd "
    "jpeg_subdataset sqlite mbtiles grib heif".split()
)
TIMEOUT_S = 30.0
HEADER_BYTES = 1 << 16
MAX_VRT_BYTES = 64 << 20
MAX_VRT_FILES = 4096
# Few large reads, and an end to every wait: a server that sends less than 1 kB/s for 30 s is given up.
HTTP_OPTIONS: dict[str, str] = {
    "GDAL_HTTP_CONNECTTIMEOUT": "15",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    "GDAL_HTTP_MAX_RETRY": "2",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "65536",
    "CPL_VSIL_CURL_CHUNK_SIZE": "262144",
    "CPL_VSIL_CURL_CACHE_SIZE": "134217728",
}

_HANDLER = re.compile(r"/vsi([a-z0-9_]+)([/?])")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9_+.-]+):")
_URL = re.compile(r"https?://[^\"'<>\s]+", re.IGNORECASE)
_ARCHIVE_END = re.compile(r"^.+?\.(?:zip|tar|tar\.gz|tgz|gz|7z|rar)(?=[/}]|$)", re.IGNORECASE)
# What may hold the name of another file in a VRT.
_NAMES = frozenset(("sourcefilename", "sourcedataset", "sourcevrtband"))


def is_plain(path: str) -> bool:
    """True for a path of the file system, not for /vsizip/..., URLs and DRIVER:... strings (drive letters are fine)."""
    return not (path.startswith("/vsi") or _SCHEME.match(path) or path.lstrip()[:1] == "<")


def is_remote(path: str) -> bool:
    """True where reading needs a network."""
    if is_plain(path):
        return False
    stores = any(name in CLOUD_STORES for name, _ in _HANDLER.findall(path))
    return stores or bool(_URL.search(path)) or path.lower().startswith(("s3://", "gs://", "az://", "oss://"))


def url_of(path: str) -> str:
    """The web address behind a raster's name, of an archive the archive's; "" where there is none."""
    found = None if is_plain(path) else _URL.search(path)
    if not found:
        return ""
    if any(name in ARCHIVES for name, _ in _HANDLER.findall(path)):
        whole = _ARCHIVE_END.match(found[0])
        return whole[0] if whole else found[0]
    return found[0]


def archive_of(path: str) -> str:
    """The archive file of this computer that a raster's name points into; "" where there is none."""
    handlers = _HANDLER.findall(path)
    if is_plain(path) or not any(name in ARCHIVES for name, _ in handlers) or is_remote(path):
        return ""
    inside = re.sub(r"^(?:/vsi[a-z0-9_]+/)+\{?", "", path).replace("}", "")
    while inside and not os.path.isfile(inside):
        shorter = os.path.dirname(inside)
        if shorter == inside:
            return ""
        inside = shorter
    return inside


def check_source(path: str) -> None:
    """Refuses names of rasters that are neither files nor plain downloads, and VRTs that hold such names.

    Raises:
        RasterError: RASTER_SOURCE.
    """
    _check_name(path)
    if path.lstrip()[:1] == "<":
        check_vrt(path, path)
    elif is_plain(path) and _looks_like_vrt(path):
        with open(path, "rb") as file:
            check_vrt(path, file.read(MAX_VRT_BYTES).decode("utf-8", "replace"))


def check_vrt(path: str, text: str) -> None:
    """As `check_source`, for the text of a VRT: everything it points to, and what those point to in turn.

    Args:
        path: where the text comes from; relative names in it start there.
        text: XML.
    """
    waiting = [(path, text)]
    seen: set[str] = set()
    while waiting:
        at, content = waiting.pop()
        for name in _sources(path, at, content):
            _check_name(name, path)
            if name in seen or len(seen) >= MAX_VRT_FILES:
                continue
            seen.add(name)
            if name.lstrip()[:1] == "<":
                waiting.append((at, name))
            elif is_plain(name) and _looks_like_vrt(name):
                with open(name, "rb") as file:
                    waiting.append((name, file.read(MAX_VRT_BYTES).decode("utf-8", "replace")))


def identity(path: str) -> str:
    """What tells one state of a remote raster from another: its size, date and first bytes; asks the server.

    Raises:
        RasterError: RASTER_REMOTE where the server does not give the file, or not in parts.
    """
    url = url_of(path)
    return _first_bytes(url) if url else ""


def _check_name(name: str, vrt: str = "") -> None:
    """Refuses a name that GDAL would take for more than a file or a download."""
    if is_plain(name):
        return
    if name.lstrip()[:1] == "<":
        if not re.match(r"\s*(<\?xml[^>]*>\s*)?<VRTDataset\b", name):
            raise _refused(name, vrt)
        return
    handlers = _HANDLER.findall(name)
    for handler, separator in handlers:
        known = handler == "curl" or handler in ARCHIVES or handler in CLOUD_STORES
        # With options (/vsicurl?header_file=...) a server could be sent a file of this computer.
        if not known or separator != "/":
            raise _refused(name, vrt)
    for after in re.findall(r"/vsicurl/(.*)", name):
        if not re.match(r"https?://[^/]", after, re.IGNORECASE):
            raise _refused(name, vrt)
    scheme = _SCHEME.match(name)
    if scheme:
        parts = scheme[1].lower().split("+")
        is_address = name[scheme.end() :].startswith("//")
        allowed = all(part in SCHEMES for part in parts) if is_address else parts[0] in SUBDATASETS
        if not allowed:
            raise _refused(name, vrt)


def _refused(name: str, vrt: str) -> RasterError:
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    where = f"{vrt} points to '{shown}', which is" if vrt and vrt != name else f"'{shown}' is"
    return RasterError(
        f"{where} neither a file nor a file behind an http(s) address.",
        "Save that raster as GeoTIFF, in QGIS with 'Save a web layer as a raster', and choose the file.",
        "RASTER_SOURCE",
    )


def _looks_like_vrt(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return b"<VRTDataset" in file.read(1024)
    except OSError:
        return False


def _sources(path: str, at: str, text: str) -> Iterator[str]:
    """The names of files in a VRT's text; relative ones from the folder of `at`."""
    try:
        root = ET.fromstring(text.lstrip("\ufeff \t\r\n"))  # nosec B314, see the import
    except ET.ParseError as error:
        raise RasterError(
            f"{path} is not a VRT that can be read: {error}.", "Make the VRT again.", "RASTER_OPEN"
        ) from error
    for element in root.iter():
        if element.tag.lower() == "pixelfunctionlanguage" and "python" in (element.text or "").lower():
            raise RasterError(
                f"{path} computes its pixels with Python code, which is never run.",
                "Save it as GeoTIFF with the program that made it, and choose that file.",
                "RASTER_SOURCE",
            )
        if element.tag.lower() in _NAMES and (element.text or "").strip():
            name = str(element.text).strip()
            attributes = {key.lower(): value for key, value in element.attrib.items()}
            relative = attributes.get("relativetovrt", attributes.get("relativetosource", "0")) == "1"
            if relative and is_plain(name) and not os.path.isabs(name) and is_plain(at):
                name = os.path.join(os.path.dirname(os.path.abspath(at)), name)
            yield name


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme.lower() not in ("http", "https"):
            raise urllib.error.URLError(f"it redirects to {newurl[:80]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    try:
        import certifi

        context.load_verify_locations(certifi.where())
    except ImportError:
        pass
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _WebOnly(),
    ):
        opener.add_handler(handler)
    return opener


def _first_bytes(url: str) -> str:
    """Asks for the first bytes of a file; a hash of its size, date and those bytes."""
    end = time.monotonic() + TIMEOUT_S
    headers = {"Range": f"bytes=0-{HEADER_BYTES - 1}", "User-Agent": "geopeft", "Accept-Encoding": "identity"}
    try:
        with _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
            if answer.status != 206:
                raise RasterError(
                    f"The server of {_shown(url)} sends whole files only, not parts of them.",
                    "Download the file and choose it on this computer.",
                    "RASTER_REMOTE",
                )
            size = (answer.headers.get("Content-Range") or "").rsplit("/", 1)[-1]
            stamp = answer.headers.get("Last-Modified") or answer.headers.get("ETag") or ""
            digest = hashlib.sha256(f"{size} {stamp} ".encode())
            left = HEADER_BYTES
            while left > 0 and (block := answer.read1(min(left, 1 << 14))):
                digest.update(block)
                left -= len(block)
                if time.monotonic() > end:
                    raise TimeoutError
    except urllib.error.HTTPError as error:
        raise _unreachable(url, f"answers {error.code} {error.reason}") from error
    except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        is_timeout = isinstance(reason, TimeoutError) or isinstance(error, TimeoutError)
        what = f"did not answer within {TIMEOUT_S:.0f} seconds" if is_timeout else f"cannot be reached ({reason})"
        raise _unreachable(url, what) from error
    return digest.hexdigest()


def _unreachable(url: str, what: str) -> RasterError:
    return RasterError(
        f"The server of {_shown(url)} {what}.",
        "Check the address and the network, then run again; or download the file and choose it on this computer.",
        "RASTER_REMOTE",
    )


def _shown(url: str) -> str:
    """An address without what may be a key: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
