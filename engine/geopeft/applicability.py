"""What a model has seen: how far a pixel's features lie from those of the labelled pixels (its area of applicability).

Meyer and Pebesma 2021 (Methods in Ecology and Evolution 12, Predicting into unknown space?): the distance to the
nearest training pixel in the standardised features, weighted by their importance, as a part of the mean distance
between training pixels. A pixel lies outside where that is more than it is from one block of the labels to the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

MOST_POINTS = 400
# Training pixels whose distance to other blocks is looked at.
_MOST_JUDGED = 1500
# Rows of distances that are in memory at once; they stay in the cache of a core.
_CHUNK = 1024
# However alike the blocks are, something this near is not outside.
_SMALLEST = 1e-3


@dataclass(frozen=True, eq=False)
class Applicability:
    """Training pixels in feature space.

    Args:
        scale: (F,) float32, feature -> coordinate; the mean distance between the points is 1.
        points: (n, F) float32, coordinates of the pixels.
        threshold: the distance beyond which a pixel lies outside.
    """

    scale: np.ndarray
    points: np.ndarray
    threshold: float

    def dissimilarity(self, features: np.ndarray) -> np.ndarray:
        """(n,) float32 from features (n, F) float32: 0 as a training pixel, above 1 outside."""
        return nearest(features * self.scale, self.points) / np.float32(self.threshold)


def find_applicability(
    features: np.ndarray, scale: np.ndarray, classes: np.ndarray, places: np.ndarray, blocks: np.ndarray, seed: int
) -> Applicability | None:
    """From labelled pixels; None where no class lies in two blocks, so that nothing tells how unlike blocks may be.

    The threshold is the largest distance of a training pixel to those of other blocks, without outliers: beyond the
    upper quartile by more than 1.5 times the range between the quartiles, as in the paper.

    Args:
        features: (n, F) float32.
        scale: (F,) what brings each to the unit that distances are measured in.
        classes, places, blocks: (n,) int64, the class, labelled place and block of ground that a pixel belongs to.
        seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)
    found = (features * scale).astype(np.float32)
    chosen = found[balanced(classes, places, MOST_POINTS, rng)]
    unit = mean_distance(chosen)
    between = _between_blocks(found, classes, places, blocks, rng)
    if not len(between) or unit <= 0:
        return None
    low, high = np.quantile(between, [0.25, 0.75])
    threshold = float(between[between <= high + 1.5 * (high - low)].max()) / unit
    return Applicability((scale / unit).astype(np.float32), chosen / np.float32(unit), max(threshold, _SMALLEST))


def _between_blocks(
    found: np.ndarray, classes: np.ndarray, places: np.ndarray, blocks: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Distances of pixels to the nearest one of other blocks, of the classes that lie in several."""
    pairs = np.unique(np.stack([classes, blocks], 1), axis=0)
    several = np.flatnonzero(np.bincount(pairs[:, 0]) > 1)
    there = np.flatnonzero(np.isin(classes, several))
    judged = there[balanced(classes[there], places[there], _MOST_JUDGED, rng)]
    distances = [np.zeros(0, np.float32)]
    for block in np.unique(blocks[judged]):
        others = np.flatnonzero(blocks != block)
        # As many as a map is compared with: to more of them, something would always be nearer.
        others = others[balanced(classes[others], places[others], MOST_POINTS, rng)]
        distances.append(nearest(found[judged[blocks[judged] == block]], found[others]))
    return np.concatenate(distances)


def balanced(classes: np.ndarray, places: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of at most `most` pixels: about as many of every class, and of a class of every place."""
    order = rng.permutation(len(classes))
    for keys in (np.stack([classes, places], 1), classes[:, None]):
        order = order[np.argsort(_rank(keys[order]), kind="stable")]
    return order[:most]


def _rank(keys: np.ndarray) -> np.ndarray:
    """(n,) how many rows before a row of keys (n, d) are equal to it."""
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.ravel()
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - starts
    return rank


def mean_distance(points: np.ndarray) -> float:
    """The mean distance of points (n, F) to each other."""
    apart = np.sqrt(np.maximum(_squares(points, points), 0))
    return float(apart.sum() / max(len(points) * (len(points) - 1), 1))


def nearest(found: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n,) float32, the distance of each of (n, F) to the nearest of (m, F)."""
    result = np.empty(len(found), np.float32)
    # What depends on the pixel alone does not say which point is the nearest, and is added at the end. By torch: the
    # threads of NumPy's products wait for each other in loops, which on a busy machine takes ten times as long.
    against, own = torch.from_numpy(-2 * points.T), torch.from_numpy((points * points).sum(1))
    for start in range(0, len(found), _CHUNK):
        part = found[start : start + _CHUNK]
        squares = torch.addmm(own, torch.from_numpy(part), against)
        least = squares.amin(1).numpy() + np.einsum("nf,nf->n", part, part)
        result[start : start + _CHUNK] = np.sqrt(np.maximum(least, 0))
    return result


def _squares(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n, m) squared distances of (n, F) and (m, F)."""
    result: np.ndarray = (one * one).sum(1)[:, None] + (other * other).sum(1) - 2 * (one @ other.T)
    return result
