"""Exported files in eight bits: what they cost and gain, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import MakeRaster  # type: ignore[import-not-found]
from geopeft.errors import GeopeftError
from geopeft.onnx import export, quantise
from geopeft.onnx import graph as onnx_graph
from onnx import TensorProto
from west_coast import Heard, export_job, exported, scene, trained  # type: ignore[import-not-found]


@pytest.mark.parametrize("with_raster", [True, False])
def test_eight_bits_cost_what_is_said(
    make_raster: MakeRaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_raster: bool
) -> None:
    source = str(exported().path)
    monkeypatch.setattr(export, "_graph", lambda *_: onnx.load(source))
    monkeypatch.setattr(export, "MOST_CHIPS", 4)
    raster = make_raster(scene(), names=("red", "nir"))
    out, heard = tmp_path / "small.onnx", Heard()
    rasters = [str(raster)] if with_raster else []
    loss = export_job(trained(), out, heard, int8=True, rasters=rasters)["int8"]
    small, whole = onnx.load(str(out)), onnx.load(source)
    told = {entry.key: entry.value for entry in small.metadata_props}
    assert json.loads(told["int8"]) == loss and "model_type" in told and heard.says("of the pixels keep their class")
    assert heard.says("of the time in eight bits goes into the trees") is with_raster
    assert loss["method"] == ("static" if with_raster else "weights") and loss["real_chips"] is with_raster
    assert out.stat().st_size < 0.8 * Path(source).stat().st_size
    # The forest is not touched.
    for op in ("TreeEnsembleRegressor", "Gemm"):
        assert [n for n in small.graph.node if n.op_type == op] == [n for n in whole.graph.node if n.op_type == op]
    chips = scene(exported().side_px, exported().side_px)[None].astype(np.float32)
    one, other = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"raster": chips}
        )[0]
        for m in (whole, small)
    )
    assert (one.argmax(1) == other.argmax(1)).mean() > 0.9 and 0 < np.abs(one - other).mean() < 0.05
    onnx_graph.read_graph(out)


def test_eight_bits_that_change_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(exported().path)
    monkeypatch.setattr(export, "_graph", lambda *_: onnx.load(source))
    monkeypatch.setattr(quantise, "LEAST_AGREEMENT", 1.01)
    with pytest.raises(GeopeftError) as told:
        export_job(trained(), tmp_path / "small.onnx", int8=True)
    assert told.value.code == "ONNX_INT8_LOSS" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("losses", "spared"), [((0.97, 0.995), 0.25), ((0.97, 0.98, 0.96), 0.25), ((0.992,), 0.0)])
def test_the_first_products_are_left_as_they_are_until_few_enough_pixels_change(
    losses: Sequence[float], spared: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, tried = [*losses], []

    def calibrated(model: onnx.ModelProto, network: str, chips: np.ndarray, spared: float) -> onnx.ModelProto:
        tried.append(spared)
        return onnx.ModelProto(doc_string=str(spared))

    monkeypatch.setattr(quantise, "calibrated", calibrated)
    monkeypatch.setattr(quantise, "measure", lambda *_, **__: quantise.Loss("static", left.pop(0), 0.01, 4, True, 2.0))
    small, loss = quantise.with_least_loss(onnx.ModelProto(), "y", np.zeros((8, 1, 4, 4)))
    assert small.doc_string == str(spared) and loss.agreement == max(losses) and len(tried) == len(losses)


def test_eight_bits_that_are_not_worth_it_are_called_so() -> None:
    def doubt(method: str, agreement: float, speed: float) -> str:
        return quantise.Loss(method, agreement, 0.01, 4, True, speed).doubt()

    assert doubt("static", 0.995, 1.8) == ""
    assert "change the class of 2.0% of the pixels" in doubt("static", 0.98, 1.8)
    assert doubt("static", 0.98, 1.2).count(" and ") == 1 and "only 1.2 times as fast" in doubt("static", 0.995, 1.2)
    # Nobody expects weights alone to be faster.
    assert doubt("weights", 0.995, 1.0) == ""


def test_half_of_the_products_stay_as_they_are_where_that_is_asked() -> None:
    whole = onnx.load(str(exported().path))
    chips = scene(exported().side_px, exported().side_px)[None].astype(np.float32).repeat(2, 0)
    counts = []
    for spared in (0.0, 0.5):
        small = quantise.calibrated(whole, "network", chips, spared)
        floats = {tensor.name for tensor in small.graph.initializer if tensor.data_type == TensorProto.FLOAT}
        convolutions = [node for node in small.graph.node if node.op_type == "Conv"]
        counts.append(sum(node.input[1] in floats for node in convolutions))
    assert counts[0] == 0 < counts[1] < len(convolutions)
    assert convolutions[0].input[1] in floats and convolutions[-1].input[1] not in floats
