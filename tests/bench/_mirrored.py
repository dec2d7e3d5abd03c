"""A small labelled Sentinel-2 patch, mirrored to a scene of any size, and polygons drawn in its areas.

Mirroring keeps what a sensor sees of real land cover, edges included; but a copy of a labelled pixel is the same pixel,
so what is scored has to lie apart from the labels in the patch itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy import ndimage

PATCHES = ("train_433D_629L", "train_38D_378R", "unseen_282D_485L")
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
# Polygons are discs of this radius; pixels nearer to their edges are not scored.
RADIUS_PX, APART_PX = 4, 16
# Classes on fewer of the patch's pixels are not drawn, and not scored.
LEAST_SHARE = 0.02


@dataclass(frozen=True, eq=False)
class Mirrored:
    """A scene on disk, and what is known of it.

    Args:
        raster: GeoTIFF, tiled.
        labels: FILE:layer of the polygons, field `class`.
        truth: (n, n) uint8 classes of the patch's map, 0 where they are not drawn.
        apart: (n, n) bool, pixels whose original is far from every polygon.
    """

    raster: Path
    labels: str
    truth: NDArray[np.uint8]
    apart: NDArray[np.bool_]


def make(patch: Path, folder: Path, side_px: int, polygons: int, seed: int) -> Mirrored:
    """Writes the scene and its polygons, of each class as many, inside of areas of one class.

    Args:
        patch: folder with s2l2a.tif and lulc.tif.
        folder: where they are written.
    """
    with rasterio.open(patch / "s2l2a.tif") as raster:
        part = raster.read([raster.descriptions.index(name) + 1 for name in BANDS])
        profile, tags = raster.profile, raster.tags()
    with rasterio.open(patch / "lulc.tif") as raster:
        classes = raster.read(1)
    common = [c for c in np.unique(classes) if (classes == c).mean() > LEAST_SHARE]
    rows, cols, names = _centres(classes, common, polygons, seed)
    scene, labels = folder / "scene.tif", folder / "labels.gpkg"
    profile.update(height=side_px, width=side_px, count=len(BANDS), driver="GTiff", tiled=True, blockxsize=256,
                   blockysize=256, compress="deflate", interleave="pixel")  # fmt: skip
    with rasterio.open(scene, "w", **profile) as raster:
        raster.write(mirror(part, side_px))
        raster.descriptions = BANDS
        raster.update_tags(**tags)
    write_discs(labels, rows, cols, [f"class {name}" for name in names], profile["transform"], str(profile["crs"]))
    far = np.ones(classes.shape, np.bool_)
    far[rows, cols] = False
    apart = ndimage.distance_transform_edt(far) > RADIUS_PX + APART_PX
    truth = np.where(np.isin(classes, common), classes, 0).astype(np.uint8)
    return Mirrored(scene, f"{labels}:labels", mirror(truth, side_px), mirror(apart, side_px))


def mirror(values: NDArray[Any], side_px: int) -> NDArray[Any]:
    """(..., h, w) -> (..., side, side)."""
    wide = [(0, 0)] * (values.ndim - 2) + [(0, max(side_px - length, 0)) for length in values.shape[-2:]]
    return np.pad(values, wide, mode="symmetric")[..., :side_px, :side_px]


def burned(scene: Mirrored) -> NDArray[np.uint8]:
    """(n, n) numbers of the classes of the polygons, 0 where there are none; a pixel counts where its centre does."""
    path, _, layer = scene.labels.rpartition(":")
    _, _, shapes, (names,) = pyogrio.raw.read(path, layer=layer, columns=["class"])
    numbers = [int(name.split()[1]) for name in names]
    with rasterio.open(scene.raster) as raster:
        pairs = zip(shapely.from_wkb(shapes), numbers, strict=True)
        found: NDArray[np.uint8] = rasterize(pairs, raster.shape, transform=raster.transform, dtype="uint8")
    return found


def write_discs(
    path: Path, rows: NDArray[np.int64], cols: NDArray[np.int64], names: list[str], transform: Affine, crs: str
) -> None:
    """A GeoPackage of discs around pixels, layer `labels`, field `class`."""
    x, y = rasterio.transform.xy(transform, rows, cols)
    discs = shapely.buffer(shapely.points(x, y), RADIUS_PX * abs(transform.a))
    pyogrio.raw.write(path, shapely.to_wkb(discs), [np.array(names, object)], ["class"], layer="labels",
                      driver="GPKG", geometry_type="Polygon", crs=crs)  # fmt: skip


def _centres(
    classes: NDArray[np.uint8], common: list[int], polygons: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int]]:
    """Rows, columns and classes of discs that hold one class only, the classes in turn."""
    rng = np.random.default_rng(seed)
    disc = np.hypot(*np.mgrid[-RADIUS_PX : RADIUS_PX + 1, -RADIUS_PX : RADIUS_PX + 1]) <= RADIUS_PX
    inside = {c: np.argwhere(ndimage.binary_erosion(classes == c, disc)) for c in common}
    roomy = [c for c in common if len(inside[c])]
    names = [roomy[at % len(roomy)] for at in range(polygons)]
    chosen = np.array([rng.choice(inside[c]) for c in names])
    return chosen[:, 0], chosen[:, 1], names
