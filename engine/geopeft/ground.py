"""What ground without labels says to a classifier of few labels: where it is sure it teaches on, and no class starves.

Both count the less the more places are labelled, and use no label beside those that teach.
"""

from __future__ import annotations

import numpy as np
import torch

from geopeft.data.chips import ChipReader, read_around
from geopeft.models.texture import Texture
from geopeft.runtime import fill_invalid

# Windows over all rasters, their side, and pixels of each: enough to tell how much ground looks like a class.
WINDOWS, WINDOW_PX, PIXELS_OF_A_WINDOW = 64, 32, 64
# Windows without data that are looked at, to one with.
TRIES = 3
# All ground counts at most as much as so much of the labels, and half of that where a class has so many places.
MOST_TRUST, HALF_PLACES = 0.7, 8.0
# Of the pixels that look like a class, the part that teaches on.
SUREST = 0.5
# A class counts as if at least so much of its even share of the ground looked like it: one that is rare gains little.
LEAST_SHARE = 0.25


def gather_ground(reader: ChipReader, texture: Texture, fill: np.ndarray, seed: int) -> np.ndarray:
    """(m, F) features of pixels with data, from windows drawn evenly over the ground of all rasters.

    Args:
        fill: (C,) values for pixels that are not valid.
    """
    rng = np.random.default_rng(seed)
    shapes = np.array([info.geobox.shape for info in reader.infos])
    area = shapes.prod(1).astype(np.float64)
    found = [np.zeros((0, texture.count), np.float32)]
    for _ in range(TRIES * WINDOWS):
        raster = int(rng.choice(len(area), p=area / area.sum()))
        row, col = (int(rng.integers(max(side - WINDOW_PX, 0) + 1)) for side in shapes[raster])
        pixels = _window(reader, raster, row, col, texture, fill, rng)
        if len(pixels):
            found.append(pixels)
        if len(found) > WINDOWS:
            break
    return np.concatenate(found)


def _window(
    reader: ChipReader, raster: int, row: int, col: int, texture: Texture, fill: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(m, F) of some pixels of a window, seen with as much around it as a texture reaches."""
    chip, top, left = read_around(reader, raster, row, col, WINDOW_PX, texture.radius_px)
    inside = np.zeros_like(chip.valid)
    inside[row - top : row - top + WINDOW_PX, col - left : col - left + WINDOW_PX] = True
    at = np.argwhere(chip.valid & inside)
    at = at[rng.permutation(len(at))[:PIXELS_OF_A_WINDOW]]
    if not len(at):
        return np.zeros((0, texture.count), np.float32)
    with torch.inference_mode():
        seen = texture(torch.from_numpy(fill_invalid(chip.values[None], chip.valid[None], fill)))[0].numpy()
    features: np.ndarray = seen[:, at[:, 0], at[:, 1]].T
    return features


def trust(classes: np.ndarray, places: np.ndarray) -> float:
    """How much ground without labels counts beside labels: the less the more places a class has.

    Args:
        classes, places: (n,) of the labelled pixels.
    """
    of_a_class = len(np.unique(places)) / max(len(np.unique(classes)), 1)
    return MOST_TRUST * HALF_PLACES / (of_a_class + HALF_PLACES)


def surest(said: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, classes and weights of the pixels that a classifier is surest of, its own labels for the next one.

    Self-training (Scudder 1965) with a share of each class's pixels, as in class-balanced self-training (Zou et al.
    2018): a bound for all classes would take hardly any of the difficult ones.

    Args:
        said: (m, K) probabilities.

    Returns:
        Three arrays (n,); every class weighs the same, and all pixels together 1.
    """
    likely, sure = said.argmax(1), said.max(1)
    kept = []
    for index in np.unique(likely):
        own = np.flatnonzero(likely == index)
        kept.append(own[np.argsort(-sure[own], kind="stable")[: max(1, int(SUREST * len(own)))]])
    at = np.concatenate(kept)
    weights = 1 / np.bincount(likely[at])[likely[at]]
    return at, likely[at], weights / weights.sum()


def evening(said: np.ndarray, there: np.ndarray, power: float) -> np.ndarray:
    """(K,) factors of the probabilities that bring the ground some of the way to equal parts of every class.

    A classifier of few labels that hardly ever says a class has most often put its border in the wrong place; and the
    mean over the classes of the IoU is highest where a class counts by the inverse of its area (Nowozin 2014), as
    distribution alignment does in training (Berthelot et al. 2020).

    Args:
        said: (m, K) probabilities of pixels all over the ground.
        there: the classes that have labels; others keep a factor of 1.
        power: 0 leaves all as it is, 1 goes all the way.
    """
    factors: np.ndarray = np.ones(said.shape[1])
    share = said.mean(0)[there] * len(there)
    factors[there] = np.maximum(share, LEAST_SHARE) ** -power
    return factors
