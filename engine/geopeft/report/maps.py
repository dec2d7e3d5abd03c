"""The report's pictures: raster, map and confidence of one window, small enough to travel inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.windows import Window

from geopeft.data.decimated import decimate, open_decimated
from geopeft.data.labels import Labels
from geopeft.data.raster import RasterInfo, open_raster
from geopeft.events import Reporter
from geopeft.mapping.strips import map_raster
from geopeft.package import ClassInfo
from geopeft.runtime import Runtime

# Side of the window that is mapped at most, and of the pictures at least and at most.
WINDOW_PX, SMALLEST_PX = 720, 420
OVERVIEW_PX = 180
# A larger picture is shown smaller than it is, where a line of one pixel would break.
FINE_LINES_PX = 500
_BLACK = 255
# From low to high confidence: dark violet, blue-green, yellow; readable with any colour vision.
RAMP = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class RasterMaps:
    """Pictures of a raster, as data URIs.

    Args:
        info: the raster.
        window: what the pictures show.
        colors: what the colours of the scene are, for the caption.
        scene, classes, confidence: the pictures.
        overview: the whole raster with the window's frame; empty where the window is all of it.
        outlined: whether labels are drawn.
        mean_confidence: 0..1, over what was mapped; None where nothing was.
    """

    info: RasterInfo
    window: Window
    colors: str
    scene: str
    classes: str
    confidence: str
    overview: str
    outlined: bool
    mean_confidence: float | None


def draw(
    runtime: Runtime,
    info: RasterInfo,
    bands: Sequence[str],
    labels: Labels | None,
    raster_index: int,
    reporter: Reporter,
) -> RasterMaps:
    """Maps the window of a raster that holds most labels, exactly as `predict` does, and draws it.

    Args:
        bands: which bands are meant, where their names do not say it.
        labels: their outlines are drawn; None: the middle of the raster is shown.

    Raises:
        PackageError, RasterError: the model cannot map this raster.
    """
    window = _window(info, labels, raster_index)
    best, sure, mapped = _mapped(runtime, info, bands, window, reporter)
    indexes, colors = _natural(info)
    with open_raster(info, indexes) as reader:
        values, valid = reader.read(window)
    zoom = max(1, round(SMALLEST_PX / max(best.shape)))
    outlines = _outlines(labels, raster_index, window, zoom, runtime.manifest.classes) if labels is not None else []
    edges = np.logical_or.reduce([edge for edge, _ in outlines]) if outlines else False
    classes = np.where(edges, _BLACK, _zoomed(np.where(mapped, best + 1, 0), zoom)).astype(np.uint8)
    confidence = _with_alpha(ramp_colors(sure.astype(np.float64)), mapped)
    scene = _with_alpha(stretched(values, valid), valid)
    return RasterMaps(
        info=info,
        window=window,
        colors=colors,
        scene=_webp(_outlined(_zoomed(scene, zoom), outlines)),
        classes=_png(classes, runtime.manifest.classes),
        confidence=_webp(_zoomed(confidence, zoom)),
        overview=_overview(info, indexes, window),
        outlined=bool(outlines),
        mean_confidence=float(sure[mapped].mean()) if mapped.any() else None,
    )


def ramp_colors(share: NDArray[np.float64]) -> Picture:
    """Colours for values 0..1: (..., 3)."""
    stops = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(share, stops, RAMP[:, i]) for i in range(3)], axis=-1).astype(np.uint8)


def stretched(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> Picture:
    """Three bands (3, h, w) as colours (h, w, 3), each from its 2nd to its 98th percentile."""
    bands = []
    for band in values.astype(np.float64):
        low, high = np.percentile(band[valid], (2, 98)) if valid.any() else (0.0, 1.0)
        bands.append(np.clip((band - low) / max(high - low, 1e-9), 0, 1) * 255)
    return np.stack(bands, axis=-1).astype(np.uint8)


def _window(info: RasterInfo, labels: Labels | None, raster_index: int) -> Window:
    """The window of at most WINDOW_PX that holds most labelled shapes, with a rim around them."""
    boxes = [shape.bounds_px for shape in labels.shapes if shape.raster_index == raster_index] if labels else []
    middle = np.array(boxes or [(0, 0, info.height, info.width)], np.float64).reshape(-1, 2, 2).mean(1)
    size = np.array([info.height, info.width], np.float64)
    low, high = middle.min(0), middle.max(0)
    if boxes:
        corners = np.array(boxes, np.float64)
        low, high = corners[:, :2].min(0), corners[:, 2:].max(0)
    rim = 0.08 * (high - low).max() + 16
    side = np.minimum(np.minimum(WINDOW_PX, size), np.maximum(high - low + 2 * rim, 240) if boxes else WINDOW_PX)
    starts = np.unique(np.clip(np.concatenate([middle, [(low + high) / 2]]) - side / 2, 0, size - side), axis=0)
    inside = [((middle >= start) & (middle <= start + side)).all(1).sum() for start in starts]
    row, col = starts[int(np.argmax(inside))].astype(int)
    return Window(int(col), int(row), int(side[1]), int(side[0]))


def _mapped(
    runtime: Runtime, info: RasterInfo, bands: Sequence[str], window: Window, reporter: Reporter
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """(class number, confidence, mapped) of a window, each (h, w)."""
    top, left, height, width = (int(v) for v in (window.row_off, window.col_off, window.height, window.width))
    best, sure = np.zeros((height, width), np.int64), np.zeros((height, width), np.float32)
    mapped = np.zeros((height, width), bool)

    def wanted(other: Window) -> bool:
        down, across = other.row_off - top, other.col_off - left
        return bool(-other.height < down < height and -other.width < across < width)

    for strip in map_raster(runtime, info, bands, reporter, wanted, "report"):
        end = strip.row + strip.mapped.shape[0]
        first, last = max(strip.row, top), min(end, top + height)
        if first < last:
            rows = slice(first - strip.row, last - strip.row)
            said = strip.probabilities[:, rows, left : left + width]
            place = slice(first - top, last - top)
            best[place], sure[place] = said.argmax(0), said.max(0)
            mapped[place] = strip.mapped[rows, left : left + width]
        if end >= top + height:
            break
    return best, sure, mapped


def _natural(info: RasterInfo) -> tuple[list[int], str]:
    """Three bands to show, and what they are."""
    roles = {band.common: band for band in info.bands if band.common}
    for title, names in (
        ("natural colours", "red green blue"),
        ("near infrared, red, green as colours", "nir red green"),
    ):
        if set(names.split()) <= set(roles):
            return [roles[name].index for name in names.split()], title
    first = list(info.bands[:3]) if len(info.bands) >= 3 else [info.bands[0]] * 3
    shown = list(dict.fromkeys(band.name for band in first))
    return [band.index for band in first], f"{', '.join(shown)} as {'colours' if len(shown) > 1 else 'grey'}"


def _outlines(
    labels: Labels, raster_index: int, window: Window, zoom: int, classes: Sequence[ClassInfo]
) -> list[tuple[NDArray[np.bool_], tuple[int, int, int]]]:
    """(edge (h, w), colour) of the labelled places of each class, in pixels of the zoomed picture."""
    numbers, shapes = labels.burn(raster_index, window)
    colors = {known.label: known.color for known in classes} | {known.name: known.color for known in classes}
    found = []
    for number, known in enumerate(labels.classes):
        color = colors.get(known.value, colors.get(known.name))
        inside = numbers == number
        if color is None or number == labels.background or not inside.any():
            continue
        # Neighbouring shapes of one class keep an edge between them.
        keys = np.where(inside, shapes.astype(np.int64) + 2, 0).repeat(zoom, 0).repeat(zoom, 1)
        edge = _edge(keys)
        found.append((_grown(edge) if max(edge.shape) > FINE_LINES_PX else edge, _rgb(color)))
    return found


def _edge(keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels of a region whose right, lower, left or upper neighbour belongs to another."""
    edge = np.zeros(keys.shape, bool)
    padded = np.pad(keys, 1)
    height, width = keys.shape
    for down, across in ((0, 1), (2, 1), (1, 0), (1, 2)):
        edge |= keys != padded[down : down + height, across : across + width]
    return edge & (keys > 0)


def _grown(edge: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(edge, 1)
    height, width = edge.shape
    grown = np.zeros(edge.shape, bool)
    for down in range(3):
        for across in range(3):
            grown |= padded[down : down + height, across : across + width]
    return grown


def _outlined(picture: Picture, outlines: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int]]]) -> Picture:
    """With the labels' edges in their classes' colours, with a dark rim."""
    if not outlines:
        return picture
    result = picture.copy()
    result[np.logical_or.reduce([_grown(edge) for edge, _ in outlines])] = (10, 10, 10, 255)
    for edge, color in outlines:
        result[edge] = (*color, 255)
    return result


def _overview(info: RasterInfo, indexes: Sequence[int], window: Window) -> str:
    """The whole raster, small, with the window's frame."""
    if (int(window.height), int(window.width)) == (info.height, info.width):
        return ""
    factor = max(1, max(info.height, info.width) // OVERVIEW_PX)
    far = decimate(info, factor)
    with open_decimated(info, factor, indexes) as reader:
        values, valid = reader.read(Window(0, 0, far.width, far.height))
    picture = _with_alpha(stretched(values, valid), valid)
    top, left = int(window.row_off) // factor, int(window.col_off) // factor
    bottom = min(top + int(window.height) // factor, far.height - 1)
    right = min(left + int(window.width) // factor, far.width - 1)
    for rim, color in ((1, (0, 0, 0, 255)), (0, (255, 214, 10, 255))):
        for row in (max(top - rim, 0), min(bottom + rim, far.height - 1)):
            picture[row, max(left - rim, 0) : right + rim + 1] = color
        for col in (max(left - rim, 0), min(right + rim, far.width - 1)):
            picture[max(top - rim, 0) : bottom + rim + 1, col] = color
    return _webp(picture)


def _with_alpha(colors: Picture, valid: NDArray[np.bool_]) -> Picture:
    return np.dstack([colors, np.where(valid, 255, 0).astype(np.uint8)])


def _zoomed(picture: NDArray[Any], zoom: int) -> NDArray[Any]:
    return picture.repeat(zoom, 0).repeat(zoom, 1)


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _webp(picture: Picture) -> str:
    body = io.BytesIO()
    Image.fromarray(picture).save(body, format="WEBP", quality=82)
    return _data(body.getvalue(), "webp")


def _png(numbers: Picture, classes: Sequence[ClassInfo]) -> str:
    """Class values with their colours; 0 is transparent."""
    colors = np.zeros((256, 3), np.uint8)
    for known in classes:
        colors[known.value] = _rgb(known.color)
    image = Image.fromarray(numbers)
    image.putpalette(colors.ravel().tolist())
    body = io.BytesIO()
    image.save(body, format="PNG", optimize=True, transparency=0)
    return _data(body.getvalue(), "png")


def _data(body: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(body).decode()}"
