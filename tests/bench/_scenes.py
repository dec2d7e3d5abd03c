"""Made scenes whose truth is known everywhere, and labels on them as an analyst draws them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import _sets  # type: ignore[import-not-found]
import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from scipy import ndimage

SIDE_PX, BANDS = 512, 4
CRS, TRANSFORM = "EPSG:32633", Affine(10, 0, 300_000, 0, -10, 5_800_000)
# How far classes and what varies within them keep together: the deviation of the Gaussian that smooths them.
PATCH_PX, VARIATION_PX = (10.0, 20.0, 40.0), (8.0, 16.0, 32.0)
CLASSES = (2, 3, 4, 5)
# Distance of a class's spectrum from the nearest other one, in deviations of what varies within a class: the mIoU of a
# map is mostly 0.5 to 0.9 then. And what no neighbours share.
APART, NOISE = (2.5, 4.5), 0.4
LABEL_PX = (3, 8)
LABELS = (8, 60)
# So many labels of a class at least lie anywhere, and spots that labels are drawn in are so wide.
FEWEST_OF_CLASS, SPOT_PX = 2, 40
SPOTS = (4, 8)
PLACEMENTS = ("scattered", "clustered", "balanced")


@dataclass(frozen=True)
class Scene:
    """A map of classes and what a sensor sees of it.

    Args:
        truth: (h, w) int64 classes from 0.
        values: (BANDS, h, w) float32.
        patch_px, variation_px: how far classes, and the variation within them, keep together.
    """

    truth: NDArray[np.int64]
    values: NDArray[np.float32]
    patch_px: float
    variation_px: float

    @property
    def classes(self) -> int:
        return int(self.truth.max()) + 1


def make_scene(rng: np.random.Generator, side_px: int = SIDE_PX) -> Scene:
    """Classes where the highest of smooth fields lies; spectra of them with smooth variation, and noise."""
    count, patch, variation = (int(rng.choice(CLASSES)), float(rng.choice(PATCH_PX)), float(rng.choice(VARIATION_PX)))
    fields = smooth_fields(rng, count, patch, side_px) + rng.uniform(0, 0.7, (count, 1, 1))
    truth = fields.argmax(0)
    _, truth = np.unique(truth, return_inverse=True)
    truth = truth.reshape(side_px, side_px)
    spectra = rng.standard_normal((count, BANDS))
    apart = np.sqrt(((spectra[:, None] - spectra[None]) ** 2).sum(2)) + np.diag(np.full(count, np.inf))
    spectra *= rng.uniform(*APART) / apart.min(1).mean()
    common = smooth_fields(rng, BANDS, variation, side_px)
    # Each class varies in its own way: crops and soils do not brighten alike.
    mixes = np.linalg.qr(rng.standard_normal((count, BANDS, BANDS)))[0]
    values = np.zeros((BANDS, side_px, side_px))
    for index in range(truth.max() + 1):
        there = truth == index
        values[:, there] = spectra[index][:, None] + mixes[index] @ common[:, there]
    values += NOISE * rng.standard_normal(values.shape)
    return Scene(truth, (1000 + 200 * values).astype(np.float32), patch, variation)


def smooth_fields(rng: np.random.Generator, count: int, smooth_px: float, side_px: int) -> NDArray[np.float64]:
    """(count, side, side) Gaussian noise smoothed by a Gaussian, with mean 0 and deviation 1, without edges."""
    wave = np.fft.fftfreq(side_px)[:, None] ** 2 + np.fft.rfftfreq(side_px) ** 2
    white = np.fft.rfft2(rng.standard_normal((count, side_px, side_px)))
    fields = np.fft.irfft2(white * np.exp(-2 * (np.pi * smooth_px) ** 2 * wave), (side_px, side_px))
    result: NDArray[np.float64] = fields / np.sqrt(_variance(smooth_px, side_px))
    return result


def _variance(smooth_px: float, side_px: int) -> float:
    """Of white noise that was smoothed so; a field's own would hide how high or low a small scene lies on the whole."""
    wave = np.fft.fftfreq(side_px)[:, None] ** 2 + np.fft.fftfreq(side_px) ** 2
    return float(np.exp(-4 * (np.pi * smooth_px) ** 2 * wave).mean())


def how_many(scene: Scene, rng: np.random.Generator) -> int:
    """Labels on a scene: few as often as many, and three for each class at least."""
    fewest = max(LABELS[0], 3 * scene.classes)
    return round(float(np.exp(rng.uniform(np.log(fewest), np.log(LABELS[1])))))


def draw_labels(scene: Scene, placement: str, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(h, w) number of the label that a pixel lies in, -1 for none.

    Each is a disc or a square of 3 to 8 px, cut where another class begins. `scattered`: anywhere, so that large
    classes get more; `clustered`: in a few spots; `balanced`: as many of each class. Drawn anew until every class has
    at least two.
    """
    while True:
        owner = np.full(scene.truth.shape, -1, np.int64)
        drawn = np.zeros(scene.classes, int)
        for row, col in _centres(scene, placement, number, rng):
            if drawn.sum() == number:
                break
            if _add(owner, scene.truth, row, col, int(drawn.sum()), rng):
                drawn[scene.truth[row, col]] += 1
        if drawn.sum() == number and drawn.min() >= FEWEST_OF_CLASS:
            return owner


def _centres(scene: Scene, placement: str, number: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """More centres than are needed: some are taken already."""
    side = len(scene.truth)
    if placement == "scattered":
        for row, col in rng.integers(0, side, (4 * number, 2)).tolist():
            yield row, col
    elif placement == "clustered":
        spots = rng.integers(0, side - SPOT_PX, (rng.integers(SPOTS[0], SPOTS[1] + 1), 2))
        for turn in range(8 * number):
            row, col = (spots[turn % len(spots)] + rng.integers(0, SPOT_PX, 2)).tolist()
            yield row, col
    else:
        places = [rng.permutation(np.argwhere(scene.truth == index))[: 4 * number] for index in range(scene.classes)]
        for turn in range(4 * number):
            own = places[turn % scene.classes]
            if len(own):
                row, col = own[turn // scene.classes % len(own)].tolist()
                yield row, col


def _add(
    owner: NDArray[np.int64], truth: NDArray[np.int64], row: int, col: int, number: int, rng: np.random.Generator
) -> bool:
    """Draws a label around a centre; False where it would touch another or the scene's edge."""
    side = int(rng.integers(LABEL_PX[0], LABEL_PX[1] + 1))
    top, left = row - side // 2, col - side // 2
    if min(top, left) < 1 or max(top, left) + side >= len(truth):
        return False
    if (owner[top - 1 : top + side + 1, left - 1 : left + side + 1] >= 0).any():
        return False
    window = (slice(top, top + side), slice(left, left + side))
    steps = np.arange(side) - (side - 1) / 2
    inside = truth[window] == truth[row, col]
    if rng.random() < 0.5:
        inside &= steps[:, None] ** 2 + steps**2 <= (side / 2) ** 2
    parts, _ = ndimage.label(inside)
    whole = parts == parts[side // 2, side // 2]
    owner[window][whole & inside] = number
    return bool((whole & inside).any())


def write_scene(scene: Scene, owner: NDArray[np.int64], folder: Path) -> tuple[str, str]:
    """The scene as a GeoTIFF and its labels as FILE:layer."""
    path = folder / "scene.tif"
    count, height, width = scene.values.shape
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, dtype="float32", crs=CRS,
                       transform=TRANSFORM) as out:  # fmt: skip
        out.write(scene.values)
    outlines = [
        (shapely.geometry.shape(outline), int(number))
        for outline, number in shapes(owner.astype(np.int32), mask=owner >= 0, transform=TRANSFORM)
    ]
    classes = np.zeros(owner.max() + 1, int)
    classes[owner[owner >= 0]] = scene.truth[owner >= 0]
    names = [f"class {classes[number]}" for _, number in outlines]
    return str(path), _sets.write_labels(folder / "labels.gpkg", [(CRS, [shape for shape, _ in outlines], names)])
