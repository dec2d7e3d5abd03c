"""Fits what needs no training loop, from a sample of the labelled pixels: the classical part, the probe, and what the
model has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from geopeft.applicability import Applicability, find_applicability
from geopeft.classical import classical_graph
from geopeft.data.chips import SQUARE_PX, ChipReader, Site, read_around
from geopeft.data.scattered import scattered
from geopeft.features.kept import KeptFeatures
from geopeft.ground import evening, surest, trust
from geopeft.models import SegmentationModel
from geopeft.models.metadata import scene_of
from geopeft.models.spec import InputBand
from geopeft.models.texture import Texture, describe_texture, principal_components
from geopeft.objective import fit_blend, softmax
from geopeft.runtime import fill_invalid

PIXELS_PER_CLASS = 2000
# Of all classes: what a pixel costs grows with the number of classes too.
MOST_PIXELS = 20 * PIXELS_PER_CLASS
MOST_PLACES = 200
# Pixels of all windows that are looked at for features: some seconds' work.
WINDOW_PIXELS = 2_000_000
TREES = 32
# Of a tree, where labels are few; of more pixels a tree may have a leaf for every 16.
FEWEST_LEAVES, PIXELS_PER_LEAF = 32, 16
LEAST_IN_LEAF = 6
# The linear model's share of the classical part before held-out places have spoken; they speak in so many folds, with
# fewer trees.
LINEAR_PRIOR = 0.5
FOLDS, FOLD_TREES = 3, 16
# How little the coefficients of standardised features are held back: bands are few, a backbone's features hundreds. The
# probe is held back the same whatever the number of pixels, so that its logits do not shrink to nothing where they are
# few.
LINEAR_C, PROBE_C_PIXELS = 1.0, 5.0
# Logit of a class without pixels.
ABSENT = -30.0
# The labelled place of pixels that nobody labelled.
NO_PLACE = -1


@dataclass(frozen=True)
class Pixels:
    """Labelled pixels.

    Args:
        features: (n, F) float32, bands and texture.
        deep: (n, D) float32, the backbone's features; D is 0 where there is no probe.
        classes: (n,) int64.
        weights: (n,) float64, how much each counts.
        sites: (n,) int64, the labelled place that each belongs to.
        ground: (m, F) float32, features of pixels of all the ground, labelled or not; m is 0 where none were drawn.
    """

    features: np.ndarray
    deep: np.ndarray
    classes: np.ndarray
    weights: np.ndarray
    sites: np.ndarray
    ground: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def of(self, sites: np.ndarray) -> Pixels:
        """Those of these places."""
        return self.where(np.isin(self.sites, sites))

    def where(self, kept: np.ndarray) -> Pixels:
        """Those for which `kept`, (n,) bool, is true."""
        arrays = (self.features, self.deep, self.classes, self.weights, self.sites)
        features, deep, classes, weights, sites = (array[kept] for array in arrays)
        return Pixels(features, deep, classes, weights, sites, self.ground)


def fit_texture(
    reader: ChipReader, sites: Sequence[Site], bands: Sequence[InputBand], gsd_m: float, fill: np.ndarray, seed: int
) -> Texture:
    """The features for these bands; many bands' principal components are found on squares around labelled places."""
    spec = describe_texture(bands, gsd_m)
    plain = Texture(spec, bands, torch.eye(spec.components, len(bands)))
    if spec.components == len(bands):
        return plain
    rng = np.random.default_rng(seed)
    pixels = []
    for number in rng.permutation(len(sites))[:MOST_PLACES]:
        row, col = sites[number].points[0] // SQUARE_PX * SQUARE_PX
        chip = reader.read(sites[number].raster_index, int(row), int(col), SQUARE_PX, SQUARE_PX)
        seen = plain.standardise(torch.from_numpy(chip.values)[None])[0][:, torch.from_numpy(chip.valid)].T
        pixels.append(seen[torch.from_numpy(rng.permutation(len(seen))[:200])])
    return Texture(spec, bands, principal_components(torch.cat(pixels), spec.components))


def gather_pixels(
    reader: ChipReader,
    sites: Sequence[Site],
    texture: Texture,
    model: SegmentationModel,
    fill: np.ndarray,
    seed: int,
    kept: KeptFeatures | None = None,
) -> Pixels:
    """A sample of the labelled pixels with their features.

    Every class weighs the same, and within it a place by the root of its size, as chips are drawn in training.

    Args:
        sites: the labelled places; `Pixels.sites` are positions in this list.
        model: with a probe, its backbone's features are gathered too, each seen from the middle of a chip.
        fill: (C,) values for pixels that are not valid.
        kept: where the backbone's features are kept; None: they are computed.
    """
    rng = np.random.default_rng(seed)
    size = model.spec.chip_size_px
    reach = max(texture.radius_px, size // 4 if model.probe is not None else 0)
    most = WINDOW_PIXELS // (size + 2 * reach) ** 2
    squares = _squares(sites, _sample(sites, model.spec.num_classes, rng), size, most)
    features, deep, owners = [], [], []
    for (raster, top, left), own in squares:
        chip, row, col = read_around(reader, raster, top, left, size, reach)
        raw = torch.from_numpy(fill_invalid(chip.values[None], chip.valid[None], fill))
        at = (own[:, 1] - row, own[:, 2] - col)
        with torch.inference_mode():
            features.append(texture(raw)[0].numpy()[:, *at].T)
            if model.probe is not None:
                scene = scene_of(chip.taken, model.spec, model.scale.device)
                raw = raw.to(model.scale.device)
                maps = kept.maps(raw, scene, whole=True) if kept is not None else model.encode(raw, scene)[0]
                deep.append(model.probe.features(maps, *chip.valid.shape)[0].cpu().numpy()[:, *at].T)
        owners.append(own[:, 0])
    owner = np.concatenate(owners)
    classes = np.array([site.class_index for site in sites])[owner]
    roots = np.sqrt([site.pixels for site in sites])
    weights = roots[owner] / np.bincount(owner, minlength=len(sites))[owner]
    weights /= np.bincount(classes, weights)[classes]
    found = np.concatenate(deep) if deep else np.zeros((len(owner), 0), np.float32)
    return Pixels(np.concatenate(features), found, classes, weights * len(weights) / weights.sum(), owner)


def _squares(
    sites: Sequence[Site], chosen: dict[int, np.ndarray], side: int, most: int
) -> list[tuple[tuple[int, int, int], np.ndarray]]:
    """((raster, row, col), points (n, 3) of place, row, column) of at most about `most` squares; every class stays.

    Which are taken follows from where they are, so that a label that is added leaves most of the others'.
    """
    squares: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
    for number, points in chosen.items():
        for row, col in points:
            key = (sites[number].raster_index, int(row) // side * side, int(col) // side * side)
            squares.setdefault(key, []).append((number, int(row), int(col)))
    keys = sorted(squares)
    corners = np.array(keys)
    kept: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    for key in (keys[i] for i in np.argsort(scattered(corners[:, 1] // side, corners[:, 2] // side), kind="stable")):
        classes = {sites[number].class_index for number, _, _ in squares[key]}
        if len(kept) < most or classes - seen:
            kept.append(key)
            seen |= classes
    return [(key, np.array(squares[key])) for key in sorted(kept)]


def _sample(sites: Sequence[Site], num_classes: int, rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Number of a place -> the points of it to use: few from many places rather than many from few."""
    chosen = {}
    per_class = min(PIXELS_PER_CLASS, MOST_PIXELS / max(len({site.class_index for site in sites}), 1))
    for index in range(num_classes):
        own = [number for number, site in enumerate(sites) if site.class_index == index]
        if len(own) > MOST_PLACES:
            own = sorted(rng.choice(own, MOST_PLACES, replace=False).tolist())
        roots = np.sqrt([sites[number].pixels for number in own])
        for number, root in zip(own, roots, strict=True):
            points = sites[number].points
            count = min(len(points), math.ceil(per_class * root / roots.sum()))
            chosen[number] = points[rng.choice(len(points), count, replace=False)]
    return chosen


def fit_classical(pixels: Pixels, num_classes: int, bands: int, seed: int) -> bytes:
    """Fits both models and gives them as one ONNX graph: features (n, F) float32 -> probabilities (n, K) float32.

    Extremely randomised trees (Geurts et al. 2006) see all features, multinomial logistic regression the first `bands`
    of them. On nine real scenes their mean was better than either, and trees with random thresholds better than a
    random forest where labels are few; where they are many, the trees are often the better part. Ground without labels,
    where there is some, teaches the trees on and evens the classes out (see `ground`).
    """
    share, temperature = linear_share(pixels, num_classes, bands, seed)
    coefficients, offsets = _fit_linear(pixels.features[:, :bands], pixels, num_classes, LINEAR_C)
    weights = np.zeros((num_classes, pixels.features.shape[1]), np.float32)
    weights[:, :bands] = coefficients / temperature
    there, factors = np.unique(pixels.classes), np.ones(num_classes)
    offsets[there] /= temperature
    trees = _fit_trees(pixels, TREES, seed)
    if len(pixels.ground) and len(there) > 1:
        counts, linear = trust(pixels.classes, pixels.sites), softmax(pixels.ground @ weights.T + offsets)
        both = share * linear + (1 - share) * _said(trees, pixels.ground, num_classes)
        trees = _fit_trees(_taught_on(pixels, both, counts), TREES, seed)
        # Each part by itself: then nothing but its own numbers changes.
        factors = evening(_said(trees, pixels.ground, num_classes), there, counts)
        offsets += np.log(evening(linear, there, counts))
    return classical_graph([t.tree_ for t in trees.estimators_], trees.classes_, weights, offsets, share, factors)


def _said(trees: Any, features: np.ndarray, num_classes: int) -> np.ndarray:
    """(m, K) probabilities by trees that may not know all classes."""
    result = np.zeros((len(features), num_classes))
    result[:, trees.classes_] = trees.predict_proba(features)
    return result


def _taught_on(pixels: Pixels, said: np.ndarray, counts: float) -> Pixels:
    """With the surest pixels of the ground, which together count so much of what the labelled ones do."""
    at, classes, weights = surest(said)
    return Pixels(
        np.concatenate([pixels.features, pixels.ground[at]]),
        np.zeros((len(pixels.classes) + len(at), 0), np.float32),
        np.concatenate([pixels.classes, classes]),
        np.concatenate([pixels.weights, weights * counts * pixels.weights.sum()]),
        np.concatenate([pixels.sites, np.full(len(at), NO_PLACE)]),
    )


def linear_share(pixels: Pixels, num_classes: int, bands: int, seed: int) -> tuple[float, float]:
    """The linear model's share and temperature, from places that are held out in turn.

    A class's only place always teaches. All places count, unlike for a network: the two parts differ in how much they
    can learn, which shows in one region too.
    """
    fold = _folds(pixels, np.random.default_rng(seed))
    logits, probabilities = cross_fit(pixels, fold, num_classes, bands, seed)
    seen = fold >= 0
    truth, places = pixels.classes[seen], pixels.sites[seen]
    return fit_blend(logits[seen], probabilities[seen], truth, places, LINEAR_PRIOR, math.inf)


def cross_fit(
    pixels: Pixels, fold: np.ndarray, num_classes: int, bands: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The linear model's logits and the trees' probabilities, each (n, K), by models that have not seen the pixel.

    Args:
        fold: (n,) the part that a pixel is held out in, -1 for never; zeros are given for these.
    """
    logits, probabilities = np.zeros((2, len(fold), num_classes))
    for number in range(fold.max(initial=-1) + 1):
        held, taught = fold == number, pixels.where(fold != number)
        trees = _fit_trees(taught, FOLD_TREES, seed)
        probabilities[held] = _said(trees, pixels.features[held], num_classes)
        weights, offsets = _fit_linear(taught.features[:, :bands], taught, num_classes, LINEAR_C)
        logits[held] = pixels.features[held, :bands] @ weights.T + offsets
    return logits, probabilities


def _folds(pixels: Pixels, rng: np.random.Generator) -> np.ndarray:
    """(n,) the part that a pixel's place is held out in, -1 for never; each has about as many places of every class."""
    fold_of_site = np.full(pixels.sites.max(initial=0) + 1, -1)
    for index in np.unique(pixels.classes):
        own = rng.permutation(np.unique(pixels.sites[pixels.classes == index]))
        if len(own) > 1:
            fold_of_site[own] = np.arange(len(own)) % FOLDS
    folds: np.ndarray = fold_of_site[pixels.sites]
    return folds


def fit_applicability(pixels: Pixels, blocks: np.ndarray, seed: int) -> Applicability | None:
    """What these pixels have shown, in features that count as much as they decide between classes.

    Args:
        blocks: block of ground of every place that `Pixels.sites` speaks of.
    """
    if len(np.unique(pixels.classes)) < 2:
        return None
    importance = _fit_trees(pixels, FOLD_TREES, seed).feature_importances_
    mean = np.average(pixels.features, axis=0, weights=pixels.weights)
    spread = _spread(pixels.features, mean, pixels.weights)
    scale = importance / max(importance.max(), 1e-12) / spread
    return find_applicability(pixels.features, scale, pixels.classes, pixels.sites, blocks[pixels.sites], seed)


def _spread(seen: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Deviation of features; one that hardly varies where labels are may vary a lot elsewhere."""
    spread = np.sqrt(np.average((seen - mean) ** 2, axis=0, weights=weights))
    result: np.ndarray = spread + 1e-2 * spread.mean() + 1e-6
    return result


def _fit_trees(pixels: Pixels, count: int, seed: int) -> Any:
    from sklearn.ensemble import ExtraTreesClassifier

    leaves = max(FEWEST_LEAVES, len(pixels.classes) // PIXELS_PER_LEAF)
    trees = ExtraTreesClassifier(
        count, max_leaf_nodes=leaves, min_samples_leaf=LEAST_IN_LEAF, n_jobs=1, random_state=seed
    )
    return trees.fit(pixels.features, pixels.classes, sample_weight=pixels.weights)


def fit_probe(pixels: Pixels, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The linear probe of the backbone's features: (K, D) weights and (K,) offsets of the logits."""
    return _fit_linear(pixels.deep, pixels, num_classes, PROBE_C_PIXELS / len(pixels.classes))


def _fit_linear(
    seen: np.ndarray, pixels: Pixels, num_classes: int, inverse_penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression on standardised features (n, F): (K, F) weights and (K,) offsets of the logits.

    A class without pixels gets an offset of -30. Of a single class nothing is to be learned but that it is there.
    """
    from sklearn.linear_model import LogisticRegression

    weights = np.zeros((num_classes, seen.shape[1]), np.float32)
    biases = np.full(num_classes, ABSENT, np.float32)
    there = np.unique(pixels.classes)
    if len(there) < 2:
        biases[there] = 0
        return weights, biases
    seen = seen.astype(np.float64)
    mean = np.average(seen, axis=0, weights=pixels.weights)
    spread = _spread(seen, mean, pixels.weights)
    model = LogisticRegression(C=inverse_penalty, max_iter=300)
    model.fit((seen - mean) / spread, pixels.classes, sample_weight=pixels.weights)
    coefficients = model.coef_ / spread
    offsets = model.intercept_ - coefficients @ mean
    if len(model.classes_) == 2:
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        offsets = np.concatenate([np.zeros_like(offsets), offsets])
    weights[model.classes_] = coefficients
    biases[model.classes_] = offsets
    return weights, biases
