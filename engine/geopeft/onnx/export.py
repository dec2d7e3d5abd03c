"""The `export` job: a model package as one ONNX file, checked against the model before it is kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import optimizer
from rasterio.windows import Window

from geopeft import __version__
from geopeft.classical import INPUT, ML_OPSET, OPSET, OUTPUT
from geopeft.data.raster import describe, open_raster
from geopeft.errors import OutputError, RasterError
from geopeft.events import Reporter
from geopeft.job import ExportJob
from geopeft.onnx.keys import deepness_sentence, why_not_deepness, write_keys
from geopeft.onnx.quantise import (
    Loss,
    measure,
    require_likeness,
    share_of_trees,
    weights_only,
    with_least_loss,
)
from geopeft.onnx.translations import translations
from geopeft.runtime import Runtime, fill_invalid, fill_values
from geopeft.writing import check_target, whole_file, write_bytes

# A protobuf message ends at 2 GiB; the graph needs some of it.
MOST_BYTES = 2_100_000_000
TOLERANCE = 1e-3
# Where a feature lies on a tree's threshold, its last digit decides which leaf is taken: in so many of the pixels at
# most, and by so much.
MOST_STRAYS, FURTHEST_STRAY = 1e-3, 0.1
# Values of a constant that is computed from others once for all: kernels are smaller, spread encodings may be larger.
MOST_FOLDED = 1 << 18
# Chips that an eight-bit model is calibrated and judged on: one half each.
MOST_CHIPS, NOISE_CHIPS = 48, 8
# What ONNX Runtime 1.12 reads, and what 1.17 reads: Deepness takes these and what lies between.
OLD_OPSET, OLD_IR, NEW_IR = 17, 8, 9
_NETWORK, _PROBABILITIES = "network", "probabilities"
# Attributes that came with opset 18, at the values that mean what was before.
_DEFAULTS_SINCE_18 = {
    "Resize": (("antialias", 0, b""), ("keep_aspect_ratio_policy", 0, b"stretch")),
    "ReduceMean": (("noop_with_empty_axes", 0, b""),),
    "ReduceMax": (("noop_with_empty_axes", 0, b""),),
}
# Operators whose axes were an attribute before opset 18.
_AXES_SINCE_18 = ("ReduceMean", "ReduceMax")


class _Network(torch.nn.Module):
    """Raster values to probabilities: what a reader of the file expects. It is told neither time nor place: a model
    with metadata works as where they are not known."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.model = runtime.model
        self.texture = (
            runtime.classical.texture if runtime.classical is not None and runtime.network_share < 1 else None
        )
        self.blend = runtime.manifest.blend
        self.fill: torch.Tensor
        self.register_buffer("fill", torch.from_numpy(fill_values(runtime.manifest.spec.bands))[:, None, None])

    def forward(self, raster: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """(B, C, H, W) raster values -> (B, K, H, W) probabilities, and (B * H * W, F) features for the trees."""
        # Other programs know no nodata: they feed what is there.
        raster = torch.where(raster.isnan(), self.fill, raster)
        logits = self.model(raster) / self.blend.temperature
        if self.texture is None:
            probabilities: torch.Tensor = (logits * self.blend.sharpness).softmax(1)
            return probabilities
        probabilities = logits.softmax(1)
        features = self.texture(raster)
        return probabilities, features.movedim(1, -1).reshape(-1, features.shape[1])


def run(job: ExportJob, reporter: Reporter) -> dict[str, Any]:
    """Runs an export job."""
    out = Path(job.onnx)
    check_target(out)
    runtime = Runtime.open(Path(job.model), "cpu", job.weights_dir, reporter)
    size = runtime.window_px
    if runtime.manifest.spec.metadata:
        reporter.warn("The model is told when and where chips were taken; an ONNX file is not, and works without.")
    if job.rasters and not job.int8:
        reporter.warn("Rasters are only needed for int8: they are not looked at.")
    chips = _chips_of(job.rasters, runtime, reporter) if job.int8 else None
    _fits_one_file(runtime)
    outputs: dict[str, Any] = {"onnx": str(out), "input_px": size, "int8": None}
    with whole_file(out) as part:
        proto = _graph(_example(runtime, 2, size), runtime)
        onnx.save_model(proto, part, save_as_external_data=False)
        difference = _compare(part, runtime, size)
        if difference > TOLERANCE:
            raise OutputError(
                f"The ONNX file differs from the model by {difference:.2g} in probability (at most {TOLERANCE:g}).",
                "It was not kept; please report this model.",
                "ONNX_DIFFERS",
            )
        if chips is not None:
            proto, loss = _in_eight_bits(proto, runtime, chips, reporter)
            outputs["int8"] = loss.as_json()
            onnx.save_model(proto, part, save_as_external_data=False)
    reporter.message(f"ONNX written; largest difference from the model {difference:.1g} in probability.")
    reporter.message(deepness_sentence(runtime.manifest))
    outputs["max_difference"] = difference
    outputs["deepness"] = not why_not_deepness(runtime.manifest)
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(outputs, indent=1).encode())
    return outputs


def _fits_one_file(runtime: Runtime) -> None:
    """OutputError where the weights exceed what one ONNX file, a protobuf message, can hold."""
    size = sum(t.numel() * t.element_size() for t in (*runtime.model.parameters(), *runtime.model.buffers()))
    if size > MOST_BYTES:
        raise OutputError(
            f"The weights of this model take {size / 1e9:.1f} GB, and one ONNX file holds {MOST_BYTES / 1e9:.1f} GB.",
            "Use the model package itself, or train with a smaller backbone.",
            "ONNX_TOO_LARGE",
        )


def _in_eight_bits(
    proto: onnx.ModelProto, runtime: Runtime, chips: np.ndarray, reporter: Reporter
) -> tuple[onnx.ModelProto, Loss]:
    """The same model in eight bits, with what that costs among its keys; OutputError where it costs too much.

    Args:
        chips: (n, C, side, side) float32 of the rasters; none of them: the weights alone are stored in eight bits.
    """
    network = _NETWORK if any(_NETWORK in node.output for node in proto.graph.node) else _PROBABILITIES
    before = proto.SerializeToString()
    if len(chips):
        small, loss = with_least_loss(proto, network, chips)
    else:
        small = weights_only(proto, network)
        noise = _example(runtime, NOISE_CHIPS, runtime.window_px).numpy()
        loss = measure(before, small.SerializeToString(), noise, method="weights", is_real=False)
    require_likeness(loss)
    del small.metadata_props[:]
    small.metadata_props.extend(proto.metadata_props)
    _add_keys(small, {"int8": json.dumps(loss.as_json())})
    reporter.message(f"{loss.sentence()} The file has {small.ByteSize() / len(before):.0%} of its size before.")
    if doubt := loss.doubt():
        reporter.warn(doubt)
    if len(chips) and (share := share_of_trees(small.SerializeToString(), chips[-1])):
        reporter.message(f"{share:.0%} of the time in eight bits goes into the trees, which stay as they are.")
    if not len(chips):
        reporter.message("Without rasters to calibrate on, the file is smaller, not faster.")
    return small, loss


def _chips_of(rasters: Sequence[str], runtime: Runtime, reporter: Reporter) -> np.ndarray:
    """(n, C, side, side) float32 from all over the rasters, in the model's units, invalid pixels filled."""
    bands = runtime.manifest.spec.bands
    side, fill = runtime.window_px, fill_values(bands)
    chips: list[np.ndarray] = []
    for path in rasters:
        info = describe(path)
        own = runtime.bands_of(info, ())
        scale, offset = runtime.to_model_units(info, own, reporter)
        height, width = (min(side, length) for length in info.geobox.shape)
        rng = np.random.default_rng(0)
        with open_raster(info, [band.index for band in own]) as reader:
            taken = 0
            for _ in range(4 * MOST_CHIPS):
                row, col = (
                    int(rng.integers(0, n - s + 1)) for n, s in zip(info.geobox.shape, (height, width), strict=True)
                )
                values, valid = reader.read(Window(col, row, width, height))
                if valid.mean() > 0.5:
                    values = fill_invalid(values * scale[:, None, None] + offset[:, None, None], valid, fill)
                    chips.append(np.pad(values, [(0, 0), (0, side - height), (0, side - width)], mode="edge"))
                    taken += 1
                if taken * len(rasters) >= MOST_CHIPS:
                    break
    if rasters and len(chips) < 2:
        raise RasterError("The rasters hold too few values to calibrate on.", "Choose others.", "RASTER_EMPTY")
    return np.stack(chips) if chips else np.zeros((0, len(bands), side, side), np.float32)


def _example(runtime: Runtime, batch: int, size: int) -> torch.Tensor:
    """Random raster values of the kind the model was fitted on."""
    bands = runtime.manifest.spec.bands
    rng = np.random.default_rng(0)
    spread = np.array([band.std / band.scale for band in bands], np.float32)
    noise = rng.standard_normal((batch, len(bands), size, size), np.float32)
    return torch.from_numpy(noise * spread[:, None, None] + fill_values(bands)[:, None, None])


def _graph(example: torch.Tensor, runtime: Runtime) -> onnx.ModelProto:
    """The whole model with its keys."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    network = _Network(runtime).eval()
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        input_names=["raster"],
        output_names=[_PROBABILITIES] if network.texture is None else [_NETWORK, INPUT],
        dynamic_shapes={"raster": {0: torch.export.Dim("batch", min=1, max=4096)}},
        opset_version=OPSET,
        custom_translation_table=translations(),
        verbose=False,
    )
    if program is None:
        raise OutputError("The model could not be written as ONNX.", "Please report this model.", "ONNX_DIFFERS")
    # Kernels made for a patch size or for wavelengths: the exporter computes only small ones beforehand.
    optimizer.fold_constants(program.model, input_size_limit=MOST_FOLDED, output_size_limit=MOST_FOLDED)
    proto = program.model_proto
    if runtime.classical is not None and network.texture is not None:
        _blend(proto, runtime.classical.model, runtime.network_share, runtime.manifest.blend.sharpness, example)
    proto = _for_older_readers(proto)
    keys = write_keys(runtime.manifest, runtime.window_px, runtime.overlap_px)
    _add_keys(proto, keys | {"producer": f"geopeft {__version__}"})
    return proto


def _add_keys(proto: onnx.ModelProto, keys: Mapping[str, str]) -> None:
    for key, value in keys.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value


def _for_older_readers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model as files of 2022 were, which Deepness' runtime reads, where it needs no newer operator.

    What the exporter says of itself in every operator (paths of this machine among it) is left out.
    """
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]
    proto.producer_name, proto.producer_version = "geopeft", __version__
    older = onnx.ModelProto()
    older.CopyFrom(proto)
    older.ir_version = OLD_IR
    for entry in older.opset_import:
        if entry.domain == "":
            entry.version = OLD_OPSET
    constants = {tensor.name: tensor for tensor in older.graph.initializer}
    for node in older.graph.node:
        if node.op_type in _AXES_SINCE_18 and len(node.input) > 1 and node.input[1] in constants:
            axes = numpy_helper.to_array(constants[node.input.pop()]).tolist()
            node.attribute.append(helper.make_attribute("axes", axes))
        news = [a for a in node.attribute if (a.name, a.i, a.s) in _DEFAULTS_SINCE_18.get(node.op_type, ())]
        for attribute in news:
            node.attribute.remove(attribute)
    try:
        onnx.checker.check_model(older)
    except onnx.checker.ValidationError:
        proto.ir_version = NEW_IR
        return proto
    return older


def _blend(
    proto: onnx.ModelProto, classical: bytes, network_share: float, sharpness: float, example: torch.Tensor
) -> None:
    """Adds the classical part to a graph that gives `network` and the features, and makes `probabilities` of both."""
    graph, other = proto.graph, onnx.load_model_from_string(classical).graph
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    height, width = example.shape[-2:]
    constants: dict[str, np.ndarray] = {
        "blend_grid": np.array([-1, height, width, classes], np.int64),
        "network_share": np.array([network_share], np.float32),
        "classical_share": np.array([1 - network_share], np.float32),
        "sharpness": np.array([sharpness], np.float32),
        "class_axis": np.array([1], np.int64),
    }
    graph.node.extend(other.node)
    graph.initializer.extend(other.initializer)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    graph.node.extend(
        [
            helper.make_node("Reshape", [OUTPUT, "blend_grid"], ["classical_rows"]),
            helper.make_node("Transpose", ["classical_rows"], ["classical_maps"], perm=[0, 3, 1, 2]),
            helper.make_node("Mul", ["classical_maps", "classical_share"], ["classical_weighted"]),
            helper.make_node("Mul", [_NETWORK, "network_share"], ["network_weighted"]),
            helper.make_node("Add", ["network_weighted", "classical_weighted"], ["mixed"]),
            helper.make_node("Pow", ["mixed", "sharpness"], ["raised"]),
            helper.make_node("ReduceSum", ["raised", "class_axis"], ["raised_sum"], keepdims=1),
            helper.make_node("Div", ["raised", "raised_sum"], [_PROBABILITIES]),
        ]
    )
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param
    del graph.output[:]
    shape = [batch, classes, height, width]
    graph.output.append(helper.make_tensor_value_info(_PROBABILITIES, TensorProto.FLOAT, shape))
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))


def _compare(part: Path, runtime: Runtime, size: int) -> float:
    """Largest difference in probability between torch and ONNX Runtime, over batches of 1 and 3; of a model with trees
    but for the few pixels in which they take another leaf."""
    session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
    found = []
    for batch in (1, 3):
        example = _example(runtime, batch, size).numpy()
        expected = runtime.probabilities(example, np.ones((batch, size, size), bool))
        found.append(np.abs(session.run(None, {"raster": example})[0] - expected).max(1).ravel())
    return largest_but_strays(np.concatenate(found), has_trees=runtime.network_share < 1)


def largest_but_strays(differences: np.ndarray, has_trees: bool) -> float:
    """The largest of the pixels' differences, (n,); of all of them if too many, or too large ones, are strays."""
    within = differences <= TOLERANCE
    few = has_trees and (~within).mean() <= MOST_STRAYS and differences.max() <= FURTHEST_STRAY
    return float(differences[within].max() if few else differences.max())
