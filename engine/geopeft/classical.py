"""The classical part of a model: randomised trees on texture features and a linear model on the bands, kept as ONNX.

Both are fitted in a second, need few labels and fail in other ways than a network: their mean is what an analyst would
use today, and the network's map is blended with it.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
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
