"""The classical part of a model: randomised trees on texture features and a linear model on the bands, kept as ONNX.

Both are fitted in a second, need few labels and fail in other ways than a network: their mean is what an analyst would
use today, and the network's map is blended with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from geopeft.data.chips import SQUARE_PX, ChipReader, Site
from geopeft.errors import PackageError
from geopeft.models.spec import InputBand
from geopeft.models.texture import Texture, describe_texture, principal_components

PIXELS_PER_CLASS = 2000
MOST_PLACES = 200
TREES = 64
MOST_LEAVES = 32
LEAST_IN_LEAF = 3
FOREST_SHARE = 0.5
INPUT, OUTPUT = "features", "classical_probabilities"
OPSET, ML_OPSET, IR_VERSION = 18, 3, 10
_OPERATORS = {"TreeEnsembleRegressor", "Gemm", "Softmax", "Mul", "Add"}


@dataclass(frozen=True)
class Pixels:
    """Labelled pixels.

    Args:
        features: (n, F) float32.
        classes: (n,) int64.
        weights: (n,) float64, how much each counts.
        sites: (n,) int64, the labelled place that each belongs to.
    """

    features: np.ndarray
    classes: np.ndarray
    weights: np.ndarray
    sites: np.ndarray

    def of(self, sites: np.ndarray) -> Pixels:
        """Those of these places."""
        kept = np.isin(self.sites, sites)
        return Pixels(self.features[kept], self.classes[kept], self.weights[kept], self.sites[kept])


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
    reader: ChipReader, sites: Sequence[Site], texture: Texture, fill: np.ndarray, num_classes: int, seed: int
) -> Pixels:
    """A sample of the labelled pixels with their features.

    Every class weighs the same, and within it a place by the root of its size, as chips are drawn in training.

    Args:
        sites: the labelled places; `Pixels.sites` are positions in this list.
        fill: (C,) values for pixels that are not valid.
    """
    rng = np.random.default_rng(seed)
    chosen = _sample(sites, num_classes, rng)
    squares: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
    for number, points in chosen.items():
        for row, col in points:
            key = (sites[number].raster_index, int(row) // SQUARE_PX, int(col) // SQUARE_PX)
            squares.setdefault(key, []).append((number, int(row), int(col)))
    features, owners = [], []
    for (raster, square_row, square_col), members in sorted(squares.items()):
        own = np.array(members)
        rows, cols = reader.infos[raster].geobox.shape
        reach = texture.radius_px
        top, left = max(square_row * SQUARE_PX - reach, 0), max(square_col * SQUARE_PX - reach, 0)
        bottom, right = min((square_row + 1) * SQUARE_PX + reach, rows), min((square_col + 1) * SQUARE_PX + reach, cols)
        chip = reader.read(raster, top, left, bottom - top, right - left)
        raw = np.where(chip.valid, chip.values, fill[:, None, None]).astype(np.float32)
        with torch.inference_mode():
            maps = texture(torch.from_numpy(raw)[None])[0].numpy()
        features.append(maps[:, own[:, 1] - top, own[:, 2] - left].T)
        owners.append(own[:, 0])
    owner = np.concatenate(owners)
    classes = np.array([site.class_index for site in sites])[owner]
    roots = np.sqrt([site.pixels for site in sites])
    weights = roots[owner] / np.bincount(owner, minlength=len(sites))[owner]
    weights /= np.bincount(classes, weights, num_classes)[classes]
    return Pixels(np.concatenate(features), classes, weights * len(weights) / weights.sum(), owner)


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


class Classical:
    """Raw chips in, probabilities out; the trees run on the CPU."""

    def __init__(self, texture: Texture, model: bytes, num_classes: int) -> None:
        """PackageError unless the graph is one that `fit_classical` makes, for these features and classes."""
        _check(model, texture.count, num_classes)
        self.texture = texture
        self.model = model
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # Threads that spin while they wait take the processor from the network.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises a dozen kinds of its own
            raise _broken(str(error).splitlines()[0]) from error

    def probabilities(self, raw: Tensor) -> np.ndarray:
        """(B, K, h, w) float32 from raw chips (B, C, h, w) float32, invalid pixels filled."""
        features = self._features(raw)
        found = self._run(features.reshape(-1, features.shape[-1]))
        return np.moveaxis(found.reshape(*features.shape[:-1], -1), -1, 1)

    def probabilities_at(self, raw: Tensor, chips: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """(n, K) of single pixels of raw chips (B, C, h, w): their chip, row and column, (n,) each."""
        return self._run(self._features(raw)[chips, rows, cols])

    def _features(self, raw: Tensor) -> np.ndarray:
        with torch.inference_mode():
            features: np.ndarray = self.texture(raw).movedim(1, -1).cpu().contiguous().numpy()
        return features

    def _run(self, features: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._session.run([OUTPUT], {INPUT: features})[0]
        return found


def fit_classical(pixels: Pixels, num_classes: int, bands: int, seed: int) -> bytes:
    """Fits both models and gives them as one ONNX graph: features (n, F) float32 -> probabilities (n, K) float32.

    Extremely randomised trees (Geurts et al. 2006) see all features, multinomial logistic regression the first `bands`
    of them. On nine real scenes their mean was better than either, and trees with random thresholds better than a
    random forest where labels are few.
    """
    from sklearn.ensemble import ExtraTreesClassifier

    trees = ExtraTreesClassifier(
        TREES, max_leaf_nodes=MOST_LEAVES, min_samples_leaf=LEAST_IN_LEAF, n_jobs=1, random_state=seed
    )
    trees.fit(pixels.features, pixels.classes, sample_weight=pixels.weights)
    node = _trees_node([tree.tree_ for tree in trees.estimators_], trees.classes_, num_classes)
    weights, offsets = _fit_linear(pixels, num_classes, bands)
    model: bytes = _graph(node, weights, offsets, pixels.features.shape[1], num_classes).SerializeToString()
    return model


def _fit_linear(pixels: Pixels, num_classes: int, bands: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, F) weights and (K,) offsets of the logits; a class without pixels gets -30."""
    from sklearn.linear_model import LogisticRegression

    seen = pixels.features[:, :bands].astype(np.float64)
    mean = np.average(seen, axis=0, weights=pixels.weights)
    spread = np.sqrt(np.average((seen - mean) ** 2, axis=0, weights=pixels.weights)) + 1e-2
    model = LogisticRegression(C=1.0, max_iter=300)
    model.fit((seen - mean) / spread, pixels.classes, sample_weight=pixels.weights)
    coefficients = model.coef_ / spread
    offsets = model.intercept_ - coefficients @ mean
    if len(model.classes_) == 2:
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        offsets = np.concatenate([np.zeros_like(offsets), offsets])
    weights = np.zeros((num_classes, pixels.features.shape[1]), np.float32)
    biases = np.full(num_classes, -30.0, np.float32)
    weights[model.classes_, :bands] = coefficients
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


def _check(model: bytes, features: int, num_classes: int) -> None:
    """A file from a stranger runs nothing but these few operators, on data inside the file."""
    try:
        graph = onnx.load_model_from_string(model).graph
    except Exception as error:  # protobuf's errors
        raise _broken("it is no ONNX model") from error
    foreign = {node.op_type for node in graph.node} - _OPERATORS
    if foreign or len(graph.node) > 16 or any(tensor.external_data for tensor in graph.initializer):
        raise _broken(f"it holds {', '.join(sorted(foreign)) or 'more than trees and a linear model'}")
    for node in graph.node:
        numbers = next((a.ints for a in node.attribute if a.name == "nodes_featureids"), ())
        if any(not 0 <= number < features for number in numbers):
            raise _broken("its trees ask for features that there are not")
    shapes = [
        (value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in (*graph.input, *graph.output)
    ]
    if shapes != [(INPUT, [0, features]), (OUTPUT, [0, num_classes])]:
        raise _broken("it is made for other features or classes")


def _broken(why: str) -> PackageError:
    return PackageError(
        f"The forest of this model package cannot be used: {why}.",
        "Copy the package again from where it came, or train it again.",
        "PACKAGE_BROKEN",
    )
