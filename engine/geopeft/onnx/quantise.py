"""Networks in eight bits: what an ONNX graph multiplies by, and with chips of a raster also what it multiplies."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from geopeft.errors import OutputError

LEAST_AGREEMENT = 0.9
# From here on eight bits are worth what they cost.
WORTH_AGREEMENT, WORTH_SPEED = 0.99, 1.7
# Shares of a network's products that are left as they are, from the input on, until few enough pixels change: what
# comes first is what all the others build on.
SPARED = (0.0, 0.25, 0.5)
# Smaller constants cost next to nothing as they are.
_FEWEST_WEIGHTS = 256
# The operator that a forest is.
TREES = "TreeEnsembleRegressor"
# The axis along which each output of an operator has its weights.
_OUTPUT_AXIS = {"Conv": 0, "MatMul": -1, "Gemm": -1}


@dataclass(frozen=True)
class Loss:
    """What eight bits cost.

    Args:
        method: "static" (calibrated on a raster) or "weights" (only what is stored is in eight bits).
        agreement: share of pixels whose class stays.
        mean_difference: mean absolute difference in probability.
        chips: chips that both were measured on, which took no part in the calibration.
        real: whether these come from a raster, and not from noise.
        speed: how many times as fast it was on this processor, chip by chip.
    """

    method: str
    agreement: float
    mean_difference: float
    chips: int
    real: bool
    speed: float

    def as_json(self) -> dict[str, Any]:
        """For the metadata of the file and the figures of the job."""
        return {
            "method": self.method,
            "agreement": round(self.agreement, 5),
            "mean_difference": round(self.mean_difference, 6),
            "chips": self.chips,
            "real_chips": self.real,
            "speed": round(self.speed, 2),
        }

    def sentence(self) -> str:
        """For people."""
        where = f"{self.chips} other chips of the rasters" if self.real else f"{self.chips} chips of noise"
        return (
            f"In eight bits {self.agreement:.2%} of the pixels keep their class, and probabilities differ by "
            f"{self.mean_difference:.2g} on average (measured on {where}). On this processor it is {self.speed:.1f} "
            "times as fast."
        )

    def doubt(self) -> str:
        """Why the model is better left as it was; empty: it is not."""
        reasons = []
        if self.agreement < WORTH_AGREEMENT:
            reasons.append(f"they change the class of {1 - self.agreement:.1%} of the pixels")
        if self.method == "static" and self.speed < WORTH_SPEED:
            reasons.append(f"they make it only {self.speed:.1f} times as fast")
        if not reasons:
            return ""
        return f"Eight bits are hardly worth it for this model: {' and '.join(reasons)}. Without int8 the map stays."


def with_least_loss(model: onnx.ModelProto, network: str, chips: np.ndarray) -> tuple[onnx.ModelProto, Loss]:
    """The first model in eight bits that changes few enough pixels, else the one that changes the fewest.

    Args:
        network: see `calibrated`.
        chips: (n, C, side, side) float32, n at least 2: one half to calibrate on, one to judge on.
    """
    found: list[tuple[onnx.ModelProto, Loss]] = []
    before = model.SerializeToString()
    for spared in SPARED:
        small = calibrated(model, network, chips[::2], spared)
        loss = measure(before, small.SerializeToString(), chips[1::2], method="static", is_real=True)
        found.append((small, loss))
        if loss.agreement >= WORTH_AGREEMENT:
            break
    return max(found, key=lambda pair: pair[1].agreement)


def calibrated(model: onnx.ModelProto, network: str, chips: np.ndarray, spared: float = 0.0) -> onnx.ModelProto:
    """The same model with the network's products in eight bits.

    Args:
        network: the value up to which the graph is a network; what else there is (texture, trees) stays as it is.
        chips: (n, C, side, side) float32 to find the ranges of all values on.
        spared: share of the products, from the input on, that stay as they are.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inside = {node.output[0] for node in _upstream(model.graph, network)}
    nodes = [
        node.name
        for node in model.graph.node
        # Products of two computed values (attention) gain little and lose most.
        if node.output[0] in inside and node.op_type in _OUTPUT_AXIS and node.input[1] in constants
    ]
    nodes = nodes[round(spared * len(nodes)) :]
    if not nodes:
        same = onnx.ModelProto()
        same.CopyFrom(model)
        return same
    with tempfile.TemporaryDirectory(prefix="geopeft") as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        # As a file, since a model in memory is changed.
        onnx.save_model(model, str(source))
        # It asks for preparations that an exported graph has had.
        logging.disable(logging.WARNING)
        try:
            quantize_static(
                str(source),
                str(target),
                _Chips(model.graph.input[0].name, chips),
                quant_format=QuantFormat.QDQ,
                nodes_to_quantize=nodes,
                per_channel=True,
                # Processors without 8-bit dot products add pairs in 16 bits, where full 8-bit weights overflow.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(str(target))


def weights_only(model: onnx.ModelProto, network: str) -> onnx.ModelProto:
    """The same model with the network's weights stored in eight bits, each output with a scale of its own."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    axes = {node.input[1]: _axis(node) for node in _upstream(graph, network) if node.op_type in _OUTPUT_AXIS}
    others = {name for node in graph.node for at, name in enumerate(node.input) if at != 1 or name not in axes}
    nodes = []
    for tensor in [*graph.initializer]:
        if tensor.name in others or tensor.name not in axes or tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.ndim < 2 or values.size < _FEWEST_WEIGHTS:
            continue
        axis = axes[tensor.name] % values.ndim
        rest = tuple(at for at in range(values.ndim) if at != axis)
        scale = np.maximum(np.abs(values).max(rest, keepdims=True) / 127, 1e-12).astype(np.float32)
        stored = np.rint(values / scale).clip(-127, 127).astype(np.int8)
        name = tensor.name
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [
                numpy_helper.from_array(stored, f"{name}_int8"),
                numpy_helper.from_array(scale.reshape(-1), f"{name}_scale"),
                numpy_helper.from_array(np.zeros(scale.size, np.int8), f"{name}_zero"),
            ]
        )
        inputs = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}_dequantize", axis=axis))
    kept = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(kept)
    return result


def measure(before: bytes, after: bytes, chips: np.ndarray, *, method: str, is_real: bool) -> Loss:
    """Compares two models on chips (n, C, side, side) float32."""
    sessions = [onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]) for model in (before, after)]
    same = difference = 0.0
    seconds: list[list[float]] = [[], []]
    for chip in chips:
        found = []
        for session, taken in zip(sessions, seconds, strict=True):
            begun = time.perf_counter()
            found.append(session.run(None, {session.get_inputs()[0].name: chip[None]})[0])
            taken.append(time.perf_counter() - begun)
        one, other = found
        same += float((one.argmax(1) == other.argmax(1)).mean()) / len(chips)
        difference += float(np.abs(one - other).mean()) / len(chips)
    # The shortest of each: whatever else the machine did has made no run shorter.
    speed = min(seconds[0]) / min(seconds[1])
    return Loss(method, same, difference, len(chips), is_real, speed)


def require_likeness(loss: Loss) -> None:
    """OutputError where too many pixels change."""
    if not loss.agreement >= LEAST_AGREEMENT:
        raise OutputError(
            f"In eight bits only {loss.agreement:.1%} of the pixels keep their class (at least {LEAST_AGREEMENT:.0%}).",
            "Export without int8, or give rasters like those the model is used on with --rasters.",
            "ONNX_INT8_LOSS",
        )


def share_of_trees(model: bytes, chip: np.ndarray) -> float:
    """Part of a model's time that its trees take, which no eight bits make shorter; 0 without trees.

    Args:
        chip: (C, side, side) float32 to time it on.
    """
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="geopeft") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(3):
            session.run(None, {session.get_inputs()[0].name: chip[None]})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent = [(event["args"]["op_name"], event["dur"]) for event in events if event["name"].endswith("_kernel_time")]
    total = sum(duration for _, duration in spent)
    return sum(duration for name, duration in spent if name == TREES) / total if total else 0.0


class _Chips(CalibrationDataReader):  # type: ignore[misc]
    """One chip after another."""

    def __init__(self, name: str, chips: Sequence[np.ndarray] | np.ndarray) -> None:
        self._left: Iterator[dict[str, np.ndarray]] = iter([{name: chip[None]} for chip in chips])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input; None at the end."""
        return next(self._left, None)


def _upstream(graph: onnx.GraphProto, value: str) -> list[onnx.NodeProto]:
    """The operators that a value is made by, in no order."""
    makers = {name: node for node in graph.node for name in node.output}
    found: dict[str, onnx.NodeProto] = {}
    left = [value]
    while left:
        node = makers.get(left.pop())
        if node is not None and node.output[0] not in found:
            found[node.output[0]] = node
            left.extend(node.input)
    return list(found.values())


def _axis(node: onnx.NodeProto) -> int:
    is_turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if is_turned else _OUTPUT_AXIS[node.op_type]
