"""ONNX files from elsewhere: mapped as their keys say, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rasterio
from conftest import MakeRaster  # type: ignore[import-not-found]
from geopeft.errors import GeopeftError
from geopeft.events import Reporter
from geopeft.onnx import graph as onnx_graph
from geopeft.onnx.model import OnnxModel
from onnx import TensorProto, helper, numpy_helper
from west_coast import Heard, map_with  # type: ignore[import-not-found]


def foreign(
    path: Path, keys: Mapping[str, Any], *, classes: int = 2, channels: int = 3, side: int = 32, op: str = "Softmax",
    margin: int = 0, batch: int | str = "batch",
) -> Path:  # fmt: skip
    """A file from elsewhere: class k looks at band k, and a head makes of it what `op` says."""
    weight = np.zeros((classes, channels, 2 * margin + 1, 2 * margin + 1), np.float32)
    for number in range(classes):
        weight[number, number, margin, margin] = 1
    last = {"Softmax": {"axis": 1}}.get(op, {})
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node(op, ["y"], ["z"], **last),  # type: ignore[arg-type]
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, side, side])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [batch, classes, side - 2 * margin, side - 2 * margin])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(proto, {name: json.dumps(value) for name, value in keys.items()})
    onnx.save(proto, str(path))
    return path


KEYS = {
    "model_type": "Segmentor", "class_names": {"0": "roof", "1": "tree"}, "resolution": 10, "tiles_overlap": 10,
    "standardization_mean": [0.2, 0.4, 0.5], "standardization_std": [0.1, 0.2, 0.1],
}  # fmt: skip


def rgb() -> np.ndarray:
    return np.random.default_rng(3).integers(1, 250, (4, 70, 75)).astype(np.uint8)


@pytest.mark.parametrize(("batch", "op", "margin"), [("batch", "Softmax", 0), (3, "Identity", 0), (1, "Softmax", 1)])
def test_a_file_from_elsewhere_maps_as_its_keys_say(
    make_raster: MakeRaster, tmp_path: Path, batch: int | str, op: str, margin: int
) -> None:
    values, heard = rgb(), Heard()
    raster = make_raster(values)
    path = foreign(tmp_path / "roofs.onnx", KEYS, batch=batch, op=op, margin=margin)
    entry = map_with(path, raster, tmp_path / "map.tif", heard)
    fed = (values[:2] / 255 - np.array([0.2, 0.4])[:, None, None]) / np.array([0.1, 0.2])[:, None, None]
    with rasterio.open(tmp_path / "map.tif") as found:
        classes = found.read(1)
        assert json.loads(found.tags(1)["CLASSES"]) == {"1": "roof", "2": "tree"}
    inner = slice(margin, -margin or None)
    assert (classes == fed.argmax(0) + 1)[inner, inner].all()
    assert [c["color"] for c in entry["classes"]] == ["#c8553d", "#1f7a3d"]
    # Pixels of the raster are a hundred times as wide.
    assert heard.says("made for pixels of 0.1 m", "warning") and heard.says("does not come from GeoPEFT")
    assert heard.says("taken as logits") is (op == "Identity")


def test_one_probability_becomes_two_classes_at_its_threshold(make_raster: MakeRaster, tmp_path: Path) -> None:
    values = rgb()
    raster = make_raster(values)
    keys = {"model_type": "segmentor", "class_names": {"0": "roof"}, "seg_thresh": 0.6}
    path = foreign(tmp_path / "roof.onnx", keys, classes=1, op="Sigmoid")
    map_with(path, raster, tmp_path / "map.tif")
    share = 1 / (1 + np.exp(-(values[0].astype(float)) / 255))
    with rasterio.open(tmp_path / "map.tif") as found:
        assert np.array_equal(found.read(1), 1 + (share > 0.6))
        assert json.loads(found.tags(1)["CLASSES"]) == {"1": "background", "2": "roof"}


def test_values_unlike_what_a_file_takes_are_told_and_too_few_bands_refused(
    make_raster: MakeRaster, tmp_path: Path
) -> None:
    path, heard = foreign(tmp_path / "roofs.onnx", KEYS), Heard()
    map_with(path, make_raster(rgb().astype(np.uint16) * 40), tmp_path / "map.tif", heard)
    assert heard.says("lies far from what the model was trained on", "warning")
    with pytest.raises(GeopeftError) as told:
        map_with(path, make_raster(rgb()[:2]), tmp_path / "map.tif")
    assert told.value.code == "BANDS_UNKNOWN" and "has 2 bands, and roofs.onnx takes 3" in told.value.message


def spoiled(path: Path, how: str) -> Path:
    """A file from elsewhere with one thing wrong."""
    wrong: dict[str, Any] = {
        "a detector": {"model_type": "Detector"}, "names with a gap": {"class_names": {"0": "a", "2": "b"}},
        "two means": {"standardization_mean": [1, 2]}, "std 0": {"standardization_std": [0, 1, 1]},
        "a text": {"resolution": "wide"},
    }  # fmt: skip
    foreign(path, KEYS | wrong.get(how, {}))
    proto = onnx.load(str(path))
    graph = proto.graph
    if how == "external data":
        graph.initializer[0].data_location = TensorProto.EXTERNAL
        graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    elif how == "a foreign operator":
        graph.node[0].domain = "com.evil"
    elif how == "no such operator":
        graph.node[1].op_type = "RunProgram"
    elif how == "a loop inside a branch":
        loop = helper.make_graph([helper.make_node("Loop", ["n"], ["o"])], "b", [], [])
        graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=loop, else_branch=loop))
    elif how == "a function":
        node = helper.make_node("Neg", ["a"], ["b"])
        proto.functions.append(helper.make_function("d", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 13)]))
    elif how == "a huge constant":
        graph.initializer[0].dims[:] = [1 << 20, 1 << 20]
    elif how == "huge values":
        shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "s")
        graph.initializer.append(shape)
        graph.node.append(helper.make_node("ConstantOfShape", ["s"], ["big"]))
    elif how == "two inputs":
        graph.input.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, [1]))
    elif how == "no square":
        graph.input[0].type.tensor_type.shape.dim[3].dim_value = 16
    elif how == "whole numbers":
        graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    elif how == "wires that are not there":
        graph.node[0].input[0] = "nowhere"
    body = proto.SerializeToString()
    path.write_bytes(body[: len(body) // 2] if how == "half of it" else b"PK not this" if how == "a zip" else body)
    return path


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("external data", "ONNX_UNSAFE"), ("a foreign operator", "ONNX_UNSAFE"), ("no such operator", "ONNX_UNSAFE"),
        ("a loop inside a branch", "ONNX_UNSAFE"), ("a function", "ONNX_UNSAFE"), ("huge values", "ONNX_TOO_LARGE"),
        ("a huge constant", "ONNX_BROKEN"), ("two inputs", "ONNX_BROKEN"), ("no square", "ONNX_BROKEN"),
        ("whole numbers", "ONNX_BROKEN"), ("wires that are not there", "ONNX_BROKEN"), ("half of it", "ONNX_BROKEN"),
        ("a zip", "ONNX_BROKEN"), ("a detector", "ONNX_BROKEN"), ("names with a gap", "ONNX_BROKEN"),
        ("two means", "ONNX_BROKEN"), ("std 0", "ONNX_BROKEN"), ("a text", "ONNX_BROKEN"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_safe_or_no_segmentation_is_refused(tmp_path: Path, how: str, code: str) -> None:
    with pytest.raises(GeopeftError) as told:
        OnnxModel.open(spoiled(tmp_path / "x.onnx", how), "cpu", Reporter())
    assert told.value.code == code and told.value.hint and "\n" not in told.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path, code in ((tmp_path / "none.onnx", "PACKAGE_MISSING"), (tmp_path, "PACKAGE_BROKEN")):
        with pytest.raises(GeopeftError) as told:
            onnx_graph.read_graph(path)
        assert told.value.code == code and str(path) in told.value.message
