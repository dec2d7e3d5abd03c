"""The `export` job: a model package as one ONNX file, checked against the model before it is kept."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from geopeft import __version__
from geopeft.classical import INPUT, ML_OPSET, OPSET, OUTPUT
from geopeft.errors import OutputError
from geopeft.events import Reporter
from geopeft.job import ExportJob
from geopeft.runtime import Runtime, fill_values
from geopeft.writing import check_target, whole_file, write_bytes

TOLERANCE = 1e-3


class _Network(torch.nn.Module):
    """Raster values to probabilities: what a reader of the file expects."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.model = runtime.model
        self.texture = (
            runtime.classical.texture if runtime.classical is not None and runtime.network_share < 1 else None
        )
        self.temperature = runtime.manifest.blend.temperature

    def forward(self, raster: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """(B, C, H, W) raster values -> (B, K, H, W) probabilities, and (B * H * W, F) features for the trees."""
        probabilities: torch.Tensor = (self.model(raster) / self.temperature).softmax(1)
        if self.texture is None:
            return probabilities
        features = self.texture(raster)
        return probabilities, features.movedim(1, -1).reshape(-1, features.shape[1])


def run(job: ExportJob, reporter: Reporter) -> dict[str, Any]:
    """Runs an export job."""
    out = Path(job.onnx)
    check_target(out)
    runtime = Runtime.open(Path(job.model), "cpu", job.weights_dir, reporter)
    size = runtime.window_px
    example = _example(runtime, 2, size)
    with whole_file(out) as part:
        _write(example, part, runtime)
        difference = _compare(part, runtime, size)
        if difference > TOLERANCE:
            raise OutputError(
                f"The ONNX file differs from the model by {difference:.2g} in probability (at most {TOLERANCE:g}).",
                "It was not kept; please report this model.",
                "ONNX_DIFFERS",
            )
    reporter.message(f"ONNX written; largest difference from the model {difference:.1g} in probability.")
    outputs: dict[str, Any] = {"onnx": str(out), "max_difference": difference, "input_px": size}
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(outputs, indent=1).encode())
    return outputs


def _example(runtime: Runtime, batch: int, size: int) -> torch.Tensor:
    """Random raster values of the kind the model was fitted on."""
    bands = runtime.manifest.spec.bands
    rng = np.random.default_rng(0)
    spread = np.array([band.std / band.scale for band in bands], np.float32)
    noise = rng.standard_normal((batch, len(bands), size, size), np.float32)
    return torch.from_numpy(noise * spread[:, None, None] + fill_values(bands)[:, None, None])


def _write(example: torch.Tensor, part: Path, runtime: Runtime) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    network = _Network(runtime).eval()
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        input_names=["raster"],
        output_names=["probabilities"] if network.texture is None else ["network", INPUT],
        dynamic_shapes={"raster": {0: torch.export.Dim("batch", min=1, max=4096)}},
        opset_version=OPSET,
        verbose=False,
    )
    if program is None:
        raise OutputError("The model could not be written as ONNX.", "Please report this model.", "ONNX_DIFFERS")
    proto = program.model_proto
    if runtime.classical is not None and network.texture is not None:
        _blend(proto, runtime.classical.model, runtime.network_share, example)
    manifest = runtime.manifest
    values = {
        "class_names": json.dumps({str(i): c.name for i, c in enumerate(manifest.classes)}),
        "bands": json.dumps([band.name for band in manifest.spec.bands]),
        "gsd_m": json.dumps(manifest.spec.gsd_m),
        "producer": f"geopeft {__version__}",
        "base_weights_licence": manifest.base_weights.licence,
    }
    for key, value in values.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save_model(proto, part, save_as_external_data=False)


def _blend(proto: onnx.ModelProto, classical: bytes, network_share: float, example: torch.Tensor) -> None:
    """Adds the classical part to a graph that gives `network` and the features, and makes `probabilities` of both."""
    graph, other = proto.graph, onnx.load_model_from_string(classical).graph
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    height, width = example.shape[-2:]
    constants: dict[str, np.ndarray] = {
        "blend_grid": np.array([-1, height, width, classes], np.int64),
        "network_share": np.array([network_share], np.float32),
        "classical_share": np.array([1 - network_share], np.float32),
    }
    graph.node.extend(other.node)
    graph.initializer.extend(other.initializer)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    graph.node.extend(
        [
            helper.make_node("Reshape", [OUTPUT, "blend_grid"], ["classical_rows"]),
            helper.make_node("Transpose", ["classical_rows"], ["classical_maps"], perm=[0, 3, 1, 2]),
            helper.make_node("Mul", ["classical_maps", "classical_share"], ["classical_weighted"]),
            helper.make_node("Mul", ["network", "network_share"], ["network_weighted"]),
            helper.make_node("Add", ["network_weighted", "classical_weighted"], ["probabilities"]),
        ]
    )
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param
    del graph.output[:]
    shape = [batch, classes, height, width]
    graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape))
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))


def _compare(part: Path, runtime: Runtime, size: int) -> float:
    """Largest difference in probability between torch and ONNX Runtime, over batches of 1 and 3."""
    session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (1, 3):
        example = _example(runtime, batch, size).numpy()
        expected = runtime.probabilities(example, np.ones((batch, size, size), bool))
        worst = max(worst, float(np.abs(session.run(None, {"raster": example})[0] - expected).max()))
    return worst
