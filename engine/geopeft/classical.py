"""The classical part of a model: randomised trees on texture features and a linear model on the bands, kept as ONNX.

Both are fitted in a second, need few labels and fail in other ways than a network: their mean is what an analyst would
use today, and the network's map is blended with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from geopeft.errors import PackageError
from geopeft.models.texture import Texture
from geopeft.watched import side_by_side

INPUT, OUTPUT = "features", "classical_probabilities"
OPSET, ML_OPSET, IR_VERSION = 18, 3, 10
_CONSTANTS = (
    "classical_linear_weights", "classical_linear_offsets", "classical_forest_share", "classical_linear_share",
)  # fmt: skip
# Operator, its domain, inputs and outputs; the first are the trees.
_WIRING = [
    ("TreeEnsembleRegressor", "ai.onnx.ml", [INPUT], ["classical_trees"]),
    ("Gemm", "", [INPUT, *_CONSTANTS[:2]], ["classical_linear_logits"]),
    ("Softmax", "", ["classical_linear_logits"], ["classical_linear"]),
    ("Mul", "", ["classical_trees", _CONSTANTS[2]], ["classical_weighted_trees"]),
    ("Mul", "", ["classical_linear", _CONSTANTS[3]], ["classical_weighted_linear"]),
    ("Add", "", ["classical_weighted_trees", "classical_weighted_linear"], [OUTPUT]),
]
_NODES = (
    "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values", "nodes_truenodeids", "nodes_falsenodeids",
)  # fmt: skip
_TARGETS = ("target_treeids", "target_nodeids", "target_ids", "target_weights")
_FLOATS = ("nodes_values", "target_weights")


class Classical:
    """Raw chips in, probabilities out; the trees run on the CPU."""

    def __init__(self, texture: Texture, model: bytes, num_classes: int) -> None:
        """PackageError unless the graph is one that `fit_classical` makes, for these features and classes."""
        self.texture = texture
        self.model = model = _safe(model, texture.count, num_classes)
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
        return self.of_chips(self.features(raw))

    def features(self, raw: Tensor) -> np.ndarray:
        """(B, h, w, F) float32 from raw chips (B, C, h, w) float32, invalid pixels filled."""
        with torch.inference_mode():
            found: np.ndarray = self.texture(raw).movedim(1, -1).cpu().contiguous().numpy()
        return found

    def sparse_features(self, raw: Tensor, rows: slice, cols: slice) -> np.ndarray:
        """(r, c, F) float32, of one raw chip (C, h, w), at some rows and columns (start, stop, step)."""
        shape = tuple(len(range(part.start, part.stop, part.step)) for part in (rows, cols))
        if 0 in shape:
            return np.zeros((*shape, self.texture.count), np.float32)
        with torch.inference_mode():
            found: np.ndarray = self.texture.sparse(raw[None], rows, cols)[0].movedim(0, -1).cpu().contiguous().numpy()
        return found

    def of_chips(self, features: np.ndarray) -> np.ndarray:
        """(B, K, h, w) float32 from what `features` gives; in pieces, since the trees run on one core for each."""
        threads = torch.get_num_threads()
        pieces = np.array_split(features.reshape(-1, features.shape[-1]), threads)
        found = np.concatenate(side_by_side(self.of_features, pieces, threads))
        return np.moveaxis(found.reshape(*features.shape[:-1], -1), -1, 1)

    def of_features(self, features: np.ndarray) -> np.ndarray:
        """(n, K) float32 from what `texture` gives, (n, F) float32."""
        found: np.ndarray = self._session.run([OUTPUT], {INPUT: features})[0]
        return found


def classical_graph(
    trees: Sequence[Any],
    classes: np.ndarray,
    weights: np.ndarray,
    offsets: np.ndarray,
    linear_share: float,
    factors: np.ndarray | None = None,
) -> bytes:
    """The ONNX graph of trees and linear model: features (n, F) float32 -> probabilities (n, K) float32.

    Args:
        trees: scikit-learn's fitted trees (`tree_`), of which the mean counts.
        classes: class numbers of the trees' outputs.
        weights, offsets: (K, F) and (K,) of the linear model's logits.
        linear_share: part of the linear model in the blend.
        factors: (K,) of the classes' shares in every leaf of the trees, which are brought to a sum of 1 again;
            None: all 1.
    """
    factors = np.ones(len(weights)) if factors is None else factors
    shares = np.array([[1 - linear_share], [linear_share]], np.float32)
    constants = (weights.T.astype(np.float32), offsets.astype(np.float32), *shares)
    return _graph(_trees(trees, classes, factors).node(), dict(zip(_CONSTANTS, constants, strict=True)))


def _trees(trees: Sequence[Any], classes: np.ndarray, factors: np.ndarray) -> _Trees:
    """scikit-learn's trees, of whose leaves each class has its share, divided by the number of trees."""
    nodes: dict[str, list[np.ndarray]] = {name: [] for name in _NODES}
    targets: dict[str, list[np.ndarray]] = {name: [] for name in _TARGETS}
    leaves = []
    for number, tree in enumerate(trees):
        count, leaf = tree.node_count, tree.children_left < 0
        share = tree.value[:, 0, :] * factors[classes]
        share /= share.sum(1, keepdims=True)
        rows, cols = np.nonzero(leaf[:, None] & (share > 0))
        leaves.append(leaf)
        columns = (np.full(count, number), np.arange(count), np.where(leaf, 0, tree.feature),
                   np.where(leaf, 0.0, _rounded_down(tree.threshold)), np.where(leaf, 0, tree.children_left),
                   np.where(leaf, 0, tree.children_right))  # fmt: skip
        weights = (np.full(len(rows), number), rows, classes[cols], share[rows, cols] / len(trees))
        for table, arrays in ((nodes, columns), (targets, weights)):
            for name, array in zip(table, arrays, strict=True):
                table[name].append(array)
    joined = ({name: np.concatenate(parts) for name, parts in table.items()} for table in (nodes, targets))
    own_nodes, own_targets = joined
    return _Trees(own_nodes, np.concatenate(leaves), own_targets, len(factors))


def _rounded_down(thresholds: np.ndarray) -> np.ndarray:
    """float32 values not above the float64 thresholds, so that `x <= threshold` is the same for every float32 x."""
    near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)


def _safe(model: bytes, features: int, num_classes: int) -> bytes:
    """The same graph, made anew of nothing but the numbers in it.

    A file from a stranger runs nothing but trees and a linear model: whatever else it holds (other operators, data in
    other files, functions, fields that this version of ONNX does not know) does not reach the runtime.
    """
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:  # protobuf's errors
        raise _broken("it is no ONNX model") from error
    graph = proto.graph
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    if proto.functions or graph.sparse_initializer or any(t.external_data or t.data_location for t in tensors):
        raise _unsafe("it holds functions, or its data are in another file")
    wiring = [(node.op_type, node.domain, list(node.input), list(node.output)) for node in graph.node]
    if wiring != _WIRING:
        foreign = sorted({node.op_type for node in graph.node} - {row[0] for row in _WIRING})
        raise _unsafe(f"it holds {foreign[0][:40]!r}" if foreign else "it is more than trees and a linear model")
    shapes = [
        (value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in (*graph.input, *graph.output)
    ]
    if shapes != [(INPUT, [0, features]), (OUTPUT, [0, num_classes])]:
        raise _broken("it is made for other features or classes", "PACKAGE_KEYS")
    trees = _Trees.of(graph.node[0], features, num_classes)
    return _graph(trees.node(), _constants(graph.initializer, features, num_classes))


def _constants(initializers: Iterable[onnx.TensorProto], features: int, num_classes: int) -> dict[str, np.ndarray]:
    """The numbers of the linear model and of the blend, in the order of `_SHAPES`."""
    shapes = {"weights": (features, num_classes), "offsets": (num_classes,), "forest": (1,), "linear": (1,)}
    expected = dict(zip(_CONSTANTS, shapes.values(), strict=True))
    found: dict[str, np.ndarray] = {}
    for tensor in initializers:
        shape = expected.get(tensor.name)
        # Before anything is made of it: a tensor may ask for terabytes.
        if shape is None or tuple(tensor.dims) != shape or tensor.data_type != TensorProto.FLOAT:
            raise _broken(f"its constant {tensor.name[:40]!r} is not known", "PACKAGE_KEYS")
        try:
            found[tensor.name] = np.array(numpy_helper.to_array(tensor), np.float32)
        except (ValueError, TypeError, KeyError) as error:
            raise _broken(f"its constant {tensor.name} cannot be read") from error
    if found.keys() != expected.keys():
        raise _broken("a constant is missing", "PACKAGE_KEYS")
    if not all(np.isfinite(array).all() for array in found.values()):
        raise _broken("it holds values that are not finite", "PACKAGE_VALUES")
    return {name: found[name] for name in expected}


def _graph(trees: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> bytes:
    features, num_classes = constants[_CONSTANTS[0]].shape
    axis: dict[str, Any] = {"axis": 1}
    linear = [
        helper.make_node(op, inputs, outputs, **(axis if op == "Softmax" else {}))
        for op, _, inputs, outputs in _WIRING[1:]
    ]
    graph = helper.make_graph(
        [trees, *linear],
        "classical",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["pixels", features])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["pixels", num_classes])],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    return model


@dataclass(frozen=True)
class _Trees:
    """The numbers of a TreeEnsembleRegressor: `nodes` and `targets` by the names of its attributes."""

    nodes: Mapping[str, np.ndarray]
    leaf: np.ndarray
    targets: Mapping[str, np.ndarray]
    num_classes: int

    @classmethod
    def of(cls, node: onnx.NodeProto, features: int, num_classes: int) -> _Trees:
        """From an operator in a file; PackageError unless every walk from a root ends at a leaf with known classes."""
        known = {name: a for a in node.attribute if (name := a.name)}
        if known.keys() != {*_NODES, *_TARGETS, "nodes_modes", "n_targets"} or len(node.attribute) != len(known):
            raise _unsafe("its trees have attributes that are not known")
        numbers = {
            name: np.array(known[name].floats if name in _FLOATS else known[name].ints, np.float64 if name in _FLOATS
                           else np.int64)
            for name in (*_NODES, *_TARGETS)
        }  # fmt: skip
        modes = np.array(known["nodes_modes"].strings)
        nodes, targets = ({name: numbers[name] for name in names} for names in (_NODES, _TARGETS))
        trees = cls(nodes, modes == b"LEAF", targets, num_classes)
        if known["n_targets"].i != num_classes or not trees._are_sound(modes, features):
            raise _broken("its trees do not hold together")
        return trees

    def _are_sound(self, modes: np.ndarray, features: int) -> bool:
        nodes, targets = self.nodes, self.targets
        count, leaves = len(modes), len(targets["target_ids"])
        if not count or any(len(a) != count for a in nodes.values()) or any(len(a) != leaves for a in targets.values()):
            return False
        tree, number = nodes["nodes_treeids"], nodes["nodes_nodeids"]
        # Trees one after another, each with its nodes numbered from 0 on.
        starts = np.flatnonzero(number == 0)
        if not len(starts) or starts[0] != 0 or not np.array_equal(tree, np.cumsum(number == 0) - 1):
            return False
        sizes = np.diff(np.append(starts, count))
        own_size = np.repeat(sizes, sizes)
        if not np.array_equal(number, np.arange(count) - np.repeat(starts, sizes)):
            return False
        branch = ~self.leaf
        # A child lies behind its parent, so no walk is endless.
        for child in (nodes["nodes_truenodeids"][branch], nodes["nodes_falsenodeids"][branch]):
            if not ((child > number[branch]) & (child < own_size[branch])).all():
                return False
        feature = nodes["nodes_featureids"]
        if not np.isin(modes, (b"LEAF", b"BRANCH_LEQ")).all() or not ((feature >= 0) & (feature < features)).all():
            return False
        in_tree, at, target = (targets[name] for name in ("target_treeids", "target_nodeids", "target_ids"))
        if not ((in_tree >= 0) & (in_tree < len(sizes)) & (target >= 0) & (target < self.num_classes)).all():
            return False
        if not ((at >= 0) & (at < sizes[in_tree])).all() or not self.leaf[starts[in_tree] + at].all():
            return False
        weight = targets["target_weights"]
        return bool(np.isfinite(nodes["nodes_values"]).all() and ((weight >= 0) & (weight <= 1)).all())

    def node(self) -> onnx.NodeProto:
        """The operator: features -> the classes' probabilities, averaged over the trees."""
        (op, domain, inputs, outputs), *_ = _WIRING
        return helper.make_node(
            op,
            inputs,
            outputs,
            domain=domain,
            n_targets=self.num_classes,
            nodes_modes=np.where(self.leaf, "LEAF", "BRANCH_LEQ").tolist(),
            **{name: array.tolist() for name, array in (*self.nodes.items(), *self.targets.items())},
        )


def _broken(why: str, code: str = "PACKAGE_BROKEN") -> PackageError:
    hint = "Copy the package again from where it came, or train it again."
    return PackageError(f"The forest of this model package cannot be used: {why}.", hint, code)


def _unsafe(why: str) -> PackageError:
    message = f"The forest of this model package is not one that GeoPEFT makes: {why}."
    return PackageError(message, "Do not use this package; ask where it came from.", "PACKAGE_UNSAFE")
