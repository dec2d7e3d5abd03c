"""Map services on the loopback address: XYZ tiles, WMS, ArcGIS and WCS, all showing the same coloured squares."""

import http.server
import json
import threading
import time
from urllib.parse import parse_qs, quote, urlsplit

from qgis.core import QgsRasterLayer, QgsRectangle
from qgis.PyQt.QtCore import QBuffer, QByteArray, QIODevice
from qgis.PyQt.QtGui import QColor, QImage, QPainter

WORLD = 20037508.342789244
SQUARE_M = 256 * 2 * WORLD / 256 / 2**15  # a tile of zoom 15
PIXEL_M = SQUARE_M / 256
CORNER = (-WORLD + 17100 * SQUARE_M, WORLD - 11200 * SQUARE_M)
CAPABILITIES = """<?xml version="1.0"?><WMT_MS_Capabilities version="1.1.1"><Service>
<Name>OGC:WMS</Name><Title>t</Title>
<OnlineResource xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="{url}/wms?"/></Service>
<Capability><Request><GetCapabilities><Format>text/xml</Format><DCPType><HTTP><Get><OnlineResource xmlns:xlink="http://www.w3.org/1999/xlink"
xlink:href="{url}/wms?"/></Get></HTTP></DCPType></GetCapabilities><GetMap><Format>image/png</Format><DCPType><HTTP><Get>
<OnlineResource xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="{url}/wms?"/></Get></HTTP></DCPType></GetMap>
</Request><Exception><Format>application/vnd.ogc.se_xml</Format></Exception><Layer><Title>root</Title><SRS>EPSG:3857</SRS>
<LatLonBoundingBox minx="-180" miny="-85" maxx="180" maxy="85"/><BoundingBox SRS="EPSG:3857" minx="-20037508.34"
miny="-20037508.34" maxx="20037508.34" maxy="20037508.34"/><Layer queryable="0"><Name>squares</Name>
<Title>squares</Title><SRS>EPSG:3857</SRS></Layer></Layer></Capability></WMT_MS_Capabilities>"""
EXCEPTION = """<?xml version="1.0"?><ServiceExceptionReport version="1.1.1"><ServiceException code="LayerNotDefined">
The database is down</ServiceException></ServiceExceptionReport>"""


def extent(columns=3, rows=2, inset_px=0):
    """Squares from the corner on, without some pixels at the edges."""
    inset = inset_px * PIXEL_M
    left, top = CORNER
    return QgsRectangle(left + inset, top - rows * SQUARE_M + inset, left + columns * SQUARE_M - inset, top - inset)


def pixels(path):
    """The bands of a GeoTIFF as arrays, and its dataset."""
    from osgeo import gdal

    dataset = gdal.Open(str(path))
    return dataset.ReadAsArray(), dataset


def is_right(path, columns=3, rows=2):
    """True where the middle of every square has its colour."""
    values, dataset = pixels(path)
    left, across, _, top, _, down = dataset.GetGeoTransform()
    for col in range(columns):
        for row in range(rows):
            x, y = CORNER[0] + (col + 0.5) * SQUARE_M, CORNER[1] - (row + 0.5) * SQUARE_M
            got = values[:, int((y - top) / down), int((x - left) / across)]
            if tuple(got) != color(x, y).getRgb():
                return False
    return True


def color(x, y):
    """The colour of the square that holds a point of web Mercator."""
    col, row = int((x + WORLD) // SQUARE_M), int((WORLD - y) // SQUARE_M)
    return QColor(col * 37 % 256, row * 53 % 256, (col + row) * 11 % 256)


def picture(left, bottom, right, top, width, height):
    """The squares of an extent as PNG."""
    image = QImage(width, height, QImage.Format.Format_ARGB32)
    image.fill(QColor(0, 0, 0, 0))
    painter = QPainter(image)
    across, down = width / (right - left), height / (top - bottom)
    x = left - (left + WORLD) % SQUARE_M
    while x < right:
        y = top + (WORLD - top) % SQUARE_M
        while y > bottom:
            middle = color(x + SQUARE_M / 2, y - SQUARE_M / 2)
            col, row = round((x - left) * across), round((top - y) * down)
            end_col, end_row = round((x + SQUARE_M - left) * across), round((top - y + SQUARE_M) * down)
            painter.fillRect(col, row, end_col - col, end_row - row, middle)
            y -= SQUARE_M
        x += SQUARE_M
    painter.end()
    return as_png(image)


def as_png(image):
    data = QByteArray()
    buffer = QBuffer(data)
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    image.save(buffer, "PNG")
    return bytes(data)


class Service(http.server.ThreadingHTTPServer):
    """All services in one server. `mode`: ok | hang | error | holes (no tile in every second column)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode = "ok"
        self.wait_s = 0.0
        self.requests = []
        self.fail_next = 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self):
        """Answers what waits, and ends."""
        self._released.set()
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request, client_address):
        """A client that went away is what some tests want."""

    def hang(self):
        self._released.wait(60)

    def xyz(self, zoom=18, name="tiles"):
        """A layer of tiles; each call has another address, so that nothing comes out of a cache."""
        address = quote(f"{self.url}/xyz/{time.monotonic_ns()}/{{z}}/{{x}}/{{y}}.png", safe=":/{}")
        return QgsRasterLayer(f"type=xyz&url={quote(address, safe=':/')}&zmax={zoom}&zmin=0", name, "wms")

    def wms(self):
        address = quote(f"{self.url}/wms?n={time.monotonic_ns()}", safe="")
        uri = f"contextualWMSLegend=0&crs=EPSG:3857&dpiMode=7&format=image/png&layers=squares&styles&url={address}"
        return QgsRasterLayer(uri, "map", "wms")

    def arcgis(self):
        uri = f"crs='EPSG:3857' format='PNG32' layer='0' url='{self.url}/arcgis/{time.monotonic_ns()}/MapServer'"
        return QgsRasterLayer(uri, "esri", "arcgismapserver")


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append(self.path)
        address = urlsplit(self.path)
        query = {key.lower(): values[0] for key, values in parse_qs(address.query).items()}
        parts = address.path.strip("/").split("/")
        if query.get("request") == "GetCapabilities":
            self._send(CAPABILITIES.format(url=self.server.url).encode(), "text/xml")
            return
        if parts[0] == "arcgis" and parts[-1] != "export":
            self._send(json.dumps(self._arcgis(parts[-1])).encode(), "application/json")
            return
        if not self._spoiled(parts):
            self._send(self._picture(parts, query), "image/png")

    def _spoiled(self, parts):
        server = self.server
        if server.mode == "hang":
            server.hang()
        elif server.mode == "error" or server.fail_next > 0:
            server.fail_next -= 1
            if parts[0] == "wms" and server.mode == "error":
                self._send(EXCEPTION.encode(), "application/vnd.ogc.se_xml")
            else:
                self.send_error(503)
        elif server.mode == "holes" and parts[0] == "xyz" and int(parts[3]) % 2:
            self.send_error(404)
        else:
            time.sleep(server.wait_s)
            return False
        return True

    def _picture(self, parts, query):
        if parts[0] == "xyz":
            zoom, col, row = int(parts[2]), int(parts[3]), int(parts[4].split(".")[0])
            side = 2 * WORLD / 2**zoom
            left, top = col * side - WORLD, WORLD - row * side
            return picture(left, top - side, left + side, top, 256, 256)
        box = [float(part) for part in query["bbox"].split(",")]
        if parts[0] == "wms":
            return picture(*box, int(query["width"]), int(query["height"]))
        width, height = query["size"].split(",")
        return picture(*box, int(float(width)), int(float(height)))

    def _arcgis(self, last):
        extent = {"xmin": -WORLD, "ymin": -WORLD, "xmax": WORLD, "ymax": WORLD, "spatialReference": {"wkid": 3857}}
        layer = {"id": 0, "name": "squares", "extent": extent}
        return {
            "mapName": "squares",
            "layers": [layer],
            "extent": extent,
            "fullExtent": extent,
            "spatialReference": {"wkid": 3857},
            "supportedImageFormatTypes": "PNG32,PNG",
            "name": "squares",
            "copyrightText": "",
            **({"defaultVisibility": True} if last == "0" else {}),
        }

    def _send(self, data, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
