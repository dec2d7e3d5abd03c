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

from geopeft import __version__
from geopeft.errors import OutputError
from geopeft.events import Reporter
from geopeft.job import ExportJob
from geopeft.models import SegmentationModel
from geopeft.runtime import Runtime, fill_values
from geopeft.writing import check_target, whole_file, write_bytes

TOLERANCE = 1e-3
OPSET = 18


class _Probabilities(torch.nn.Module):
    """Raster values to probabilities: what a reader of the file expects."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, raster: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) raster values -> (B, K, H, W) probabilities."""
        probabilities: torch.Tensor = self.model(raster).softmax(1)
        return probabilities


def run(job: ExportJob, reporter: Reporter) -> dict[str, Any]:
    """Runs an export job."""
    out = Path(job.onnx)
    check_target(out)
    runtime = Runtime.open(Path(job.model), "cpu", job.weights_dir, reporter)
    model = _Probabilities(runtime.model).eval()
    size = runtime.window_px
    example = _example(runtime, 2, size)
    with whole_file(out) as part:
        _write(model, example, part, runtime)
        difference = _compare(model, part, runtime, size)
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


def _write(model: _Probabilities, example: torch.Tensor, part: Path, runtime: Runtime) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        input_names=["raster"],
        output_names=["probabilities"],
        dynamic_shapes={"raster": {0: torch.export.Dim("batch", min=1, max=4096)}},
        opset_version=OPSET,
        verbose=False,
    )
    if program is None:
        raise OutputError("The model could not be written as ONNX.", "Please report this model.", "ONNX_DIFFERS")
    proto = program.model_proto
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


def _compare(model: _Probabilities, part: Path, runtime: Runtime, size: int) -> float:
    """Largest difference in probability between torch and ONNX Runtime, over batches of 1 and 3."""
    session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (1, 3):
        example = _example(runtime, batch, size)
        with torch.inference_mode():
            expected = model(example).numpy()
        worst = max(worst, float(np.abs(session.run(None, {"raster": example.numpy()})[0] - expected).max()))
    return worst
