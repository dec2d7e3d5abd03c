"""The classical part of a model: randomised trees on texture features and a linear model on the bands, kept as ONNX.

Both are fitted in a second, need few labels and fail in other ways than a network: their mean is what an analyst would
use today, and the network's map is blended with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from geopeft.errors import PackageError
from geopeft.models.texture import Texture

INPUT, OUTPUT = "features", "classical_probabilities"
OPSET, ML_OPSET, IR_VERSION = 18, 3, 10
_OPERATORS = {"TreeEnsembleRegressor", "Gemm", "Softmax", "Mul", "Add"}


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
        with torch.inference_mode():
            features = self.texture(raw).movedim(1, -1).cpu().contiguous().numpy()
        found = self.of_features(features.reshape(-1, features.shape[-1]))
        return np.moveaxis(found.reshape(*features.shape[:-1], -1), -1, 1)

    def of_features(self, features: np.ndarray) -> np.ndarray:
        """(n, K) float32 from what `texture` gives, (n, F) float32."""
        found: np.ndarray = self._session.run([OUTPUT], {INPUT: features})[0]
        return found


def classical_graph(
    trees: Sequence[Any], classes: np.ndarray, weights: np.ndarray, offsets: np.ndarray, linear_share: float
) -> bytes:
    """The ONNX graph of trees and linear model: features (n, F) float32 -> probabilities (n, K) float32.

    Args:
        trees: scikit-learn's fitted trees (`tree_`), of which the mean counts.
        classes: class numbers of the trees' outputs.
        weights, offsets: (K, F) and (K,) of the linear model's logits.
        linear_share: part of the linear model in the blend.
    """
    num_classes, features = weights.shape
    constants = {
        "classical_linear_weights": weights.T.astype(np.float32),
        "classical_linear_offsets": offsets.astype(np.float32),
        "classical_forest_share": np.array([1 - linear_share], np.float32),
        "classical_linear_share": np.array([linear_share], np.float32),
    }
    nodes = [
        _trees_node(trees, classes, num_classes),
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
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    return model


def _trees_node(trees: Sequence[Any], classes: np.ndarray, num_classes: int) -> onnx.NodeProto:
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
