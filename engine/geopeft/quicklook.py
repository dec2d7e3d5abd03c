"""One picture of a result: scene, labels, map and confidence side by side, with a legend.

`python -I -m geopeft.quicklook SCENE --map FILE [--confidence FILE] [--labels FILE:layer --class-field NAME] --out PNG`
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyogrio
import rasterio
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import transform_geom

from geopeft.data.raster import describe
from geopeft.errors import GeopeftError
from geopeft.report.maps import ramp_colors

PANEL_PX = 620
GAP_PX, STRIP_PX, TEXT_PX = 8, 34, 18
INK, PAPER = (32, 36, 40), (255, 255, 255)

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Legend:
    """Class names with their values in the class raster and their colours."""

    values: dict[str, int]
    colors: dict[str, Color]


def stretched(path: Path, shape: tuple[int, int]) -> Picture:
    """The scene in natural colours where it has them, each band from its 2nd to its 98th percentile: (h, w, 3)."""
    roles = {band.common: band.index for band in describe(str(path)).bands}
    natural = [roles[name] for name in ("red", "green", "blue") if name in roles]
    with rasterio.open(path) as scene:
        indexes = natural if len(natural) == 3 else list(scene.indexes[:3]) if scene.count >= 3 else [1, 1, 1]
        values = scene.read(indexes, out_shape=(3, *shape), masked=True, resampling=Resampling.average)
    bands = []
    for band in np.ma.masked_invalid(values.astype(np.float64)):
        low, high = np.percentile(band.compressed(), (2, 98)) if band.count() else (0.0, 1.0)
        bands.append(np.clip((band.filled(low) - low) / max(high - low, 1e-9), 0, 1) * 255)
    return np.stack(bands, axis=-1).astype(np.uint8)


def mapped(path: Path, shape: tuple[int, int]) -> tuple[Picture, Legend]:
    """The class raster in its own colours, and its legend."""
    with rasterio.open(path) as raster:
        classes = raster.read(1, out_shape=shape, resampling=Resampling.nearest)
        table = raster.colormap(1)
        names = json.loads(raster.tags(1).get("CLASSES", "{}"))
    palette = np.full((256, 3), 255, dtype=np.uint8)
    for value, color in table.items():
        palette[value] = color[:3] if color[3] else PAPER
    values = {name: int(value) for value, name in names.items()}
    return palette[classes], Legend(values, {name: table[value][:3] for name, value in values.items()})


def ramped(path: Path, shape: tuple[int, int]) -> Picture:
    """The confidence in percent as colours; nodata stays white."""
    with rasterio.open(path) as raster:
        percent = raster.read(1, out_shape=shape, resampling=Resampling.nearest)
        nodata = raster.nodata
    picture = ramp_colors(percent.astype(np.float64) / 100)
    picture[percent == nodata] = PAPER
    return picture


def labelled(scene: Path, base: Picture, labels: str, field: str, legend: Legend) -> Picture:
    """The scene in grey with the labelled polygons in the colours of their classes."""
    file, _, layer = (labels, "", "") if Path(labels).exists() else labels.rpartition(":")
    meta, _, shapes, fields = pyogrio.raw.read(file, layer=layer or None, columns=[field])
    grey: Picture = (base.mean(axis=-1, keepdims=True) * 0.5 + 96).repeat(3, axis=-1).astype(np.uint8)
    with rasterio.open(scene) as raster:
        scale = Affine.scale(raster.width / base.shape[1], raster.height / base.shape[0])
        transform, crs = raster.transform * scale, raster.crs
    burnt = []
    for geometry, value in zip(shapely.from_wkb(shapes), fields[0], strict=True):
        if geometry is not None and str(value) in legend.values:
            mapping = transform_geom(meta["crs"], crs, shapely.geometry.mapping(geometry))
            burnt.append((mapping, legend.values[str(value)]))
    if burnt:
        ids = rasterize(burnt, out_shape=base.shape[:2], transform=transform, dtype="uint8")
        for name, value in legend.values.items():
            grey[ids == value] = legend.colors[name]
    return grey


def compose(panels: Sequence[tuple[str, Picture]], legend: Legend, with_ramp: bool) -> Image.Image:
    """Panels beside each other below their titles, the legend below them."""
    height, width = panels[0][1].shape[:2]
    font = ImageFont.load_default(TEXT_PX)
    canvas = Image.new("RGB", (len(panels) * (width + GAP_PX) + GAP_PX, height + 2 * STRIP_PX), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (title, picture) in enumerate(panels):
        left = GAP_PX + number * (width + GAP_PX)
        draw.text((left, 6), title, INK, font)
        canvas.paste(Image.fromarray(picture), (left, STRIP_PX))
    left, top = GAP_PX, STRIP_PX + height + 9
    for name, color in legend.colors.items():
        draw.rectangle((left, top, left + TEXT_PX, top + TEXT_PX - 2), color, INK)
        draw.text((left + TEXT_PX + 6, top - 3), name.replace("_", " "), INK, font)
        left += TEXT_PX + 30 + int(draw.textlength(name, font))
    if with_ramp:
        left = GAP_PX + (len(panels) - 1) * (width + GAP_PX)
        bar = ramp_colors(np.tile(np.linspace(0, 1, 200), (TEXT_PX - 2, 1)))
        draw.text((left, top - 3), "0 %", INK, font)
        canvas.paste(Image.fromarray(bar), (left + 40, top))
        draw.text((left + 248, top - 3), "100 %", INK, font)
    return canvas


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the picture; see the module's first lines."""
    parser = argparse.ArgumentParser(prog="geopeft.quicklook", description="One picture of a result.")
    parser.add_argument("scene", type=Path)
    parser.add_argument("--map", type=Path, required=True)
    parser.add_argument("--confidence", type=Path)
    parser.add_argument("--labels", default="", help="FILE or FILE:layer")
    parser.add_argument("--class-field", default="class")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(argv)
    with rasterio.open(chosen.scene) as raster:
        scale = min(1.0, PANEL_PX / raster.width)
        shape = (max(1, round(raster.height * scale)), max(1, round(raster.width * scale)))
    base = stretched(chosen.scene, shape)
    classes, legend = mapped(chosen.map, shape)
    panels = [("Scene", base)]
    if chosen.labels:
        panels.append(("Labels", labelled(chosen.scene, base, chosen.labels, chosen.class_field, legend)))
    panels.append(("Map", classes))
    if chosen.confidence:
        panels.append(("Confidence", ramped(chosen.confidence, shape)))
    compose(panels, legend, bool(chosen.confidence)).save(chosen.out, format="PNG")


if __name__ == "__main__":
    try:
        main()
    except GeopeftError as error:
        raise SystemExit(f"error [{error.code}]: {error.message} {error.hint}") from error
