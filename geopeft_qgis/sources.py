"""What a raster layer is made of, and whether the engine can read that itself."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple, Optional

from qgis.core import Qgis, QgsMapLayer, QgsProviderRegistry, QgsRasterLayer
from qgis.PyQt import sip

from .language import tr

FILE, REMOTE, SERVICE, MEMORY, UNUSABLE = "file", "remote", "service", "memory", "unusable"
# The engine's own list: engine/geopeft/data/raster_sources.py.
ARCHIVES = ("/vsizip/", "/vsitar/", "/vsigzip/", "/vsi7z/", "/vsirar/")
SERVICE_NAMES = re.compile(r"(WMS|WCS|WMTS|AGS|IIP|EEDAI?|PLMOSAIC|STACTA|STACIT|PG|POSTGRESRASTER):", re.IGNORECASE)
SERVICE_FILE = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<(GDAL_WMS|WCS_GDAL|GDAL_WMTS)\b")
PROVIDERS = {
    "wcs": "WCS",
    "arcgismapserver": "ArcGIS",
    "postgresraster": "PostgreSQL",
    "virtualraster": "raster calculator",
}
RENDER_TITLE = "Save a web layer as a raster"
STACK_TITLE = "Stack single-band rasters"
PICTURES = (Qgis.DataType.ARGB32, Qgis.DataType.ARGB32_Premultiplied)


class Source(NamedTuple):
    """Where the pixels of a layer are.

    Args:
        kind: file (of this computer, or a part of one), remote (a file behind an http(s) address), service (pixels
            that only QGIS can get), memory (kept by QGIS alone) or unusable.
        path: what the engine opens; empty unless kind is file or remote.
        sentence: for people: what it is and, unless the engine can read it, the next step.
    """

    kind: str
    path: str
    sentence: str


def describe(layer: Optional[QgsMapLayer]) -> Source:
    """What a layer is made of; asks no server and reads no pixels."""
    if layer is None or sip.isdeleted(layer):
        return _unusable(tr("The raster layer is not in the project any more. Choose another one."))
    if not isinstance(layer, QgsRasterLayer):
        return _unusable(tr("'{name}' is no raster layer. Choose a raster layer.").format(name=layer.name()))
    provider = layer.dataProvider()
    if provider is None or not layer.isValid():
        return _invalid(layer)
    if provider.name() == "gdal":
        return _of_gdal(layer)
    return _service(layer, _service_name(layer))


def needs_rendering(layer: Optional[QgsMapLayer]) -> bool:
    """True where the layer can be used once 'Save a web layer as a raster' has made a file of it."""
    return describe(layer).kind in (SERVICE, MEMORY)


def gdal_python() -> Any:
    """GDAL for Python, which comes with QGIS; ImportError where it does not."""
    from osgeo import gdal  # not at the top: the plugin must load without it

    return gdal


def is_picture(provider: Any) -> bool:
    """True where a provider gives coloured pictures rather than values."""
    return provider.dataType(1) in PICTURES


def _of_gdal(layer: QgsRasterLayer) -> Source:
    source, name = gdal_name(layer.source()), layer.name()
    if "authcfg=" in layer.source() or "|credential:" in layer.source():
        return _service(layer, tr("file behind a sign-in"))
    if source.startswith("/vsimem/"):
        text = tr(
            "The layer '{name}' is kept in memory only. Save it with '{title}' (toolbox, GeoPEFT), then use the file."
        )
        return Source(MEMORY, "", text.format(name=name, title=tr(RENDER_TITLE)))
    if layer.dataProvider().bandCount() == 0:
        text = tr("The layer '{name}' holds several rasters. Add the one that you want as a layer.")
        return _unusable(text.format(name=name))
    address = re.match(r"(?:/vsicurl/)?(https?://.+)$", source, re.IGNORECASE)
    if address:
        return Source(REMOTE, f"/vsicurl/{address[1]}", tr("'{name}' is a file on a web server.").format(name=name))
    if _is_service_file(source):
        return _service(layer, "GDAL")
    if source.startswith("/vsi"):
        return _in_archive(layer, source)
    file = _file_of(source)
    if file and not os.path.exists(file):
        return _gone(name, file)
    path = os.path.abspath(source) if os.path.exists(source) else source
    return Source(FILE, path, tr("'{name}' is a file.").format(name=name))


def _in_archive(layer: QgsRasterLayer, source: str) -> Source:
    """/vsizip/... and the like; every other virtual file system is QGIS's alone (keys, encryption, pipes)."""
    handlers = re.findall(r"/vsi[a-z0-9_]+[/?]", source)
    if not all(handler in ARCHIVES or handler == "/vsicurl/" for handler in handlers):
        return _service(layer, handlers[0].strip("/?") if handlers else "GDAL")
    if "/vsicurl/" in source:
        is_web = re.search(r"/vsicurl/https?://", source, re.IGNORECASE)
        if not is_web:
            return _service(layer, "vsicurl")
        return Source(REMOTE, source, tr("'{name}' is a file on a web server.").format(name=layer.name()))
    archive = str(QgsProviderRegistry.instance().decodeUri("gdal", source).get("path") or "")
    if os.path.isabs(archive) and not os.path.exists(archive):
        return _gone(layer.name(), archive)
    return Source(FILE, source, tr("'{name}' is a file in an archive.").format(name=layer.name()))


def gdal_name(source: str) -> str:
    """What GDAL opens, without QGIS's own options behind it."""
    return re.split(r"\|(?:option|credential):| authcfg=", str(source), maxsplit=1)[0]


def _file_of(source: str) -> str:
    """The file behind a plain path or DRIVER:"file":part; "" where that cannot be told."""
    quoted = re.match(r'[A-Za-z][\w.+-]+:"([^"]+)"', source)
    if quoted:
        return quoted[1]
    table = re.match(r"GPKG:(.+\.gpkg)(?::.*)?$", source, re.IGNORECASE)
    if table:
        return table[1]
    return "" if re.match(r"[A-Za-z][\w.+-]+:", source) or source.lstrip()[:1] == "<" else source


def _is_service_file(source: str) -> bool:
    """True for GDAL's own ways to services, as a name or as a small XML file."""
    if SERVICE_NAMES.match(source):
        return True
    if source.lstrip()[:1] == "<":
        return bool(SERVICE_FILE.match(source.encode()))
    try:
        with open(source, "rb") as file:
            return bool(SERVICE_FILE.match(file.read(512)))
    except OSError:
        return False


def _service_name(layer: QgsRasterLayer) -> str:
    provider = layer.dataProvider().name()
    if provider != "wms":
        return tr(PROVIDERS[provider]) if provider in PROVIDERS else provider
    source = layer.source()
    if "type=xyz" in source:
        return "XYZ"
    return "WMTS" if "tileMatrixSet=" in source else "WMS"


def _service(layer: QgsRasterLayer, what: str) -> Source:
    text = tr(
        "The layer '{name}' comes from a service ({what}), and the engine needs a file. "
        "Save it with '{title}' (toolbox, GeoPEFT), then use the file."
    )
    return Source(SERVICE, "", text.format(name=layer.name(), what=what, title=tr(RENDER_TITLE)))


def _invalid(layer: QgsRasterLayer) -> Source:
    file = _file_of(gdal_name(layer.source())) if layer.providerType() == "gdal" else ""
    if file and not file.startswith("/vsi") and not os.path.exists(file):
        return _gone(layer.name(), file)
    text = tr("The raster layer '{name}' cannot be read. Check its source in the layer's properties.")
    return _unusable(text.format(name=layer.name()))


def _gone(name: str, file: str) -> Source:
    text = tr("The file of the layer '{name}' is not there any more ({file}). Bring it back, or choose another one.")
    return _unusable(text.format(name=name, file=file))


def _unusable(sentence: str) -> Source:
    return Source(UNUSABLE, "", sentence)
