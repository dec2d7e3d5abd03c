"""Fits what needs no training loop: the classical part and the probe, from a sample of the labelled pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from geopeft.classical import INPUT, IR_VERSION, ML_OPSET, OPSET, OUTPUT
from geopeft.data.chips import SQUARE_PX, ChipReader, Site
from geopeft.models import SegmentationModel
from geopeft.models.spec import InputBand
from geopeft.models.texture import Texture, describe_texture, principal_components
from geopeft.runtime import fill_invalid

PIXELS_PER_CLASS = 2000
MOST_PLACES = 200
# Pixels of all windows that are looked at for features: some seconds' work.
WINDOW_PIXELS = 2_000_000
TREES = 32
# Of a tree, where labels are few; of more pixels a tree may have a leaf for every 16.
FEWEST_LEAVES, PIXELS_PER_LEAF = 32, 16
LEAST_IN_LEAF = 3
FOREST_SHARE = 0.5
# How little the coefficients of standardised features are held back: bands are few, a backbone's features hundreds. The
# probe is held back the same whatever the number of pixels, so that its logits do not shrink to nothing where they are
# few.
LINEAR_C, PROBE_C_PIXELS = 1.0, 5.0


@dataclass(frozen=True)
class Pixels:
    """Labelled pixels.

    Args:
        features: (n, F) float32, bands and texture.
        deep: (n, D) float32, the backbone's features; D is 0 where there is no probe.
        classes: (n,) int64.
        weights: (n,) float64, how much each counts.
        sites: (n,) int64, the labelled place that each belongs to.
    """

    features: np.ndarray
    deep: np.ndarray
    classes: np.ndarray
    weights: np.ndarray
    sites: np.ndarray

    def of(self, sites: np.ndarray) -> Pixels:
        """Those of these places."""
        kept = np.isin(self.sites, sites)
        arrays = (self.features, self.deep, self.classes, self.weights, self.sites)
        return Pixels(*(array[kept] for array in arrays))


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
) -> Pixels:
    """A sample of the labelled pixels with their features.

    Every class weighs the same, and within it a place by the root of its size, as chips are drawn in training.

    Args:
        sites: the labelled places; `Pixels.sites` are positions in this list.
        model: with a probe, its backbone's features are gathered too, each seen from the middle of a chip.
        fill: (C,) values for pixels that are not valid.
    """
    rng = np.random.default_rng(seed)
    size = model.spec.chip_size_px
    reach = max(texture.radius_px, size // 4 if model.probe is not None else 0)
    most = WINDOW_PIXELS // (size + 2 * reach) ** 2
    squares = _squares(sites, _sample(sites, model.spec.num_classes, rng), size, most, rng)
    features, deep, owners = [], [], []
    for (raster, top, left), own in squares:
        rows, cols = reader.infos[raster].geobox.shape
        row, col = max(top - reach, 0), max(left - reach, 0)
        height, width = min(top + size + reach, rows) - row, min(left + size + reach, cols) - col
        chip = reader.read(raster, row, col, height, width)
        raw = torch.from_numpy(fill_invalid(chip.values[None], chip.valid[None], fill))
        at = (own[:, 1] - row, own[:, 2] - col)
        with torch.inference_mode():
            features.append(texture(raw)[0].numpy()[:, *at].T)
            if model.probe is not None:
                maps, _ = model.encode(raw.to(model.scale.device))
                deep.append(model.probe.features(maps, height, width)[0].cpu().numpy()[:, *at].T)
        owners.append(own[:, 0])
    owner = np.concatenate(owners)
    classes = np.array([site.class_index for site in sites])[owner]
    roots = np.sqrt([site.pixels for site in sites])
    weights = roots[owner] / np.bincount(owner, minlength=len(sites))[owner]
    weights /= np.bincount(classes, weights)[classes]
    found = np.concatenate(deep) if deep else np.zeros((len(owner), 0), np.float32)
    return Pixels(np.concatenate(features), found, classes, weights * len(weights) / weights.sum(), owner)


def _squares(
    sites: Sequence[Site], chosen: dict[int, np.ndarray], side: int, most: int, rng: np.random.Generator
) -> list[tuple[tuple[int, int, int], np.ndarray]]:
    """((raster, row, col), points (n, 3) of place, row, column) of at most about `most` squares; every class stays."""
    squares: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
    for number, points in chosen.items():
        for row, col in points:
            key = (sites[number].raster_index, int(row) // side * side, int(col) // side * side)
            squares.setdefault(key, []).append((number, int(row), int(col)))
    keys = sorted(squares)
    kept: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    for key in (keys[i] for i in rng.permutation(len(keys))):
        classes = {sites[number].class_index for number, _, _ in squares[key]}
        if len(kept) < most or classes - seen:
            kept.append(key)
            seen |= classes
    return [(key, np.array(squares[key])) for key in sorted(kept)]


def _sample(sites: Sequence[Site], num_classes: int, rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Number of a place -> the points of it to use: few from many places rather than many from few."""
    chosen = {}
    for index in range(num_classes):
        own = [number for number, site in enumerate(sites) if site.class_index == index]
        if len(own) > MOST_PLACES:
            own = sorted(rng.choice(own, MOST_PLACES, replace=False).tolist())
        roots = np.sqrt([sites[number].pixels for number in own])
        for number, root in zip(own, roots, strict=True):
            points = sites[number].points
            count = min(len(points), math.ceil(PIXELS_PER_CLASS * root / roots.sum()))
            chosen[number] = points[rng.choice(len(points), count, replace=False)]
    return chosen


def fit_classical(pixels: Pixels, num_classes: int, bands: int, seed: int) -> bytes:
    """Fits both models and gives them as one ONNX graph: features (n, F) float32 -> probabilities (n, K) float32.

    Extremely randomised trees (Geurts et al. 2006) see all features, multinomial logistic regression the first `bands`
    of them. On nine real scenes their mean was better than either, and trees with random thresholds better than a
    random forest where labels are few.
    """
    from sklearn.ensemble import ExtraTreesClassifier

    leaves = max(FEWEST_LEAVES, len(pixels.classes) // PIXELS_PER_LEAF)
    trees = ExtraTreesClassifier(
        TREES, max_leaf_nodes=leaves, min_samples_leaf=LEAST_IN_LEAF, n_jobs=1, random_state=seed
    )
    trees.fit(pixels.features, pixels.classes, sample_weight=pixels.weights)
    node = _trees_node([tree.tree_ for tree in trees.estimators_], trees.classes_, num_classes)
    weights = np.zeros((num_classes, pixels.features.shape[1]), np.float32)
    weights[:, :bands], offsets = _fit_linear(pixels.features[:, :bands], pixels, num_classes, LINEAR_C)
    model: bytes = _graph(node, weights, offsets, pixels.features.shape[1], num_classes).SerializeToString()
    return model


def fit_probe(pixels: Pixels, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The linear probe of the backbone's features: (K, D) weights and (K,) offsets of the logits."""
    return _fit_linear(pixels.deep, pixels, num_classes, PROBE_C_PIXELS / len(pixels.classes))


def _fit_linear(
    seen: np.ndarray, pixels: Pixels, num_classes: int, inverse_penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression on standardised features (n, F): (K, F) weights and (K,) offsets of the logits.

    A class without pixels gets an offset of -30.
    """
    from sklearn.linear_model import LogisticRegression

    seen = seen.astype(np.float64)
    mean = np.average(seen, axis=0, weights=pixels.weights)
    spread = np.sqrt(np.average((seen - mean) ** 2, axis=0, weights=pixels.weights))
    # A feature that hardly varies where labels are may vary a lot elsewhere.
    spread = spread + 1e-2 * spread.mean() + 1e-6
    model = LogisticRegression(C=inverse_penalty, max_iter=300)
    model.fit((seen - mean) / spread, pixels.classes, sample_weight=pixels.weights)
    coefficients = model.coef_ / spread
    offsets = model.intercept_ - coefficients @ mean
    if len(model.classes_) == 2:
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        offsets = np.concatenate([np.zeros_like(offsets), offsets])
    weights = np.zeros((num_classes, seen.shape[1]), np.float32)
    biases = np.full(num_classes, -30.0, np.float32)
    weights[model.classes_] = coefficients
    biases[model.classes_] = offsets
    return weights, biases


def _trees_node(trees: list[Any], classes: np.ndarray, num_classes: int) -> onnx.NodeProto:
    """Trees as one operator whose targets are the classes' probabilities, averaged over the trees."""
    parts: dict[str, list[np.ndarray]] = {key: [] for key in ("tree", "node", "feature", "value", "yes", "no", "leaf")}
    targets: dict[str, list[np.ndarray]] = {key: [] for key in ("tree", "node", "id", "weight")}
    for number, tree in enumerate(trees):
        count = tree.node_count
        leaf = tree.children_left < 0
        parts["tree"].append(np.full(count, number))
        parts["node"].append(np.arange(count))
        parts["feature"].append(np.where(leaf, 0, tree.feature))
        parts["value"].append(np.where(leaf, 0.0, _rounded_down(tree.threshold)))
        parts["yes"].append(np.where(leaf, 0, tree.children_left))
        parts["no"].append(np.where(leaf, 0, tree.children_right))
        parts["leaf"].append(leaf)
        share = tree.value[:, 0, :] / tree.value[:, 0, :].sum(1, keepdims=True)
        rows, cols = np.nonzero(leaf[:, None] & (share > 0))
        targets["tree"].append(np.full(len(rows), number))
        targets["node"].append(rows)
        targets["id"].append(classes[cols])
        targets["weight"].append(share[rows, cols] / len(trees))
    nodes = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    leaves = {key: np.concatenate(arrays) for key, arrays in targets.items()}
    return helper.make_node(
        "TreeEnsembleRegressor",
        [INPUT],
        ["classical_trees"],
        domain="ai.onnx.ml",
        n_targets=num_classes,
        nodes_treeids=nodes["tree"].tolist(),
        nodes_nodeids=nodes["node"].tolist(),
        nodes_featureids=nodes["feature"].tolist(),
        nodes_modes=np.where(nodes["leaf"], "LEAF", "BRANCH_LEQ").tolist(),
        nodes_values=nodes["value"].tolist(),
        nodes_truenodeids=nodes["yes"].tolist(),
        nodes_falsenodeids=nodes["no"].tolist(),
        target_treeids=leaves["tree"].tolist(),
        target_nodeids=leaves["node"].tolist(),
        target_ids=leaves["id"].tolist(),
        target_weights=leaves["weight"].tolist(),
    )


def _rounded_down(thresholds: np.ndarray) -> np.ndarray:
    """float32 values not above the float64 thresholds, so that `x <= threshold` is the same for every float32 x."""
    near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)


def _graph(
    trees: onnx.NodeProto, weights: np.ndarray, offsets: np.ndarray, features: int, num_classes: int
) -> onnx.ModelProto:
    constants = {
        "classical_linear_weights": weights.T,
        "classical_linear_offsets": offsets,
        "classical_forest_share": np.array([FOREST_SHARE], np.float32),
        "classical_linear_share": np.array([1 - FOREST_SHARE], np.float32),
    }
    nodes = [
        trees,
        helper.make_node(
            "Gemm", [INPUT, "classical_linear_weights", "classical_linear_offsets"], ["classical_linear_logits"]
        ),
        helper.make_node("Softmax", ["classical_linear_logits"], ["classical_linear"], axis=1),
        helper.make_node("Mul", ["classical_trees", "classical_forest_share"], ["classical_weighted_trees"]),
        helper.make_node("Mul", ["classical_linear", "classical_linear_share"], ["classical_weighted_linear"]),
        helper.make_node("Add", ["classical_weighted_trees", "classical_weighted_linear"], [OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        "classical",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["pixels", features])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["pixels", num_classes])],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
