"""ONNX files: what `export` writes as others read it, in eight bits, and files from elsewhere mapped by `predict`."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import torch
from conftest import MakeRaster  # type: ignore[import-not-found]
from geopeft import inspecting, package, predict, stac
from geopeft.errors import GeopeftError
from geopeft.events import Reporter
from geopeft.forest import Pixels, fit_classical
from geopeft.job import parse
from geopeft.models import build
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.models.texture import Texture, describe_texture
from geopeft.onnx import export, quantise
from geopeft.onnx import graph as onnx_graph
from geopeft.onnx.keys import deepness_sentence, write_keys
from geopeft.onnx.model import OnnxModel
from geopeft.onnx.providers import choose_providers, open_session
from geopeft.runtime import Runtime
from onnx import TensorProto, helper, numpy_helper

CLASSES = ("Wasser ü", "forest", "bare soil")
BANDS = (
    InputBand(name="red", common="red", wavelength_um=0.665, scale=1e-4, mean=0.15, std=0.09),
    InputBand(name="nir", common="nir", wavelength_um=0.842, scale=1e-4, mean=0.3, std=0.12),
)
SIDE = 48


class Heard(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[tuple[str, str]] = []

    def message(self, text: str, level: Any = "info") -> None:
        self.texts.append((level, text))

    def warn(self, text: str) -> None:
        self.texts.append(("warning", text))

    def says(self, part: str, level: str = "") -> bool:
        return any(part in text and level in ("", kind) for kind, text in self.texts)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network and a forest that knows a little, blended and sharpened."""
    texture = describe_texture(BANDS, 10)
    made = Texture(texture, BANDS, torch.eye(2))
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=240)
    seen = (rng.normal(size=(240, made.count)) + truth[:, None]).astype(np.float32)
    forest = fit_classical(Pixels(seen, seen[:, :1], truth, np.ones(240), np.arange(240) // 10), 3, 2, seed=0)
    torch.manual_seed(0)
    spec = ModelSpec(backbone="scratch_unet", adapter="full", decoder="unet", bands=BANDS, num_classes=3, gsd_m=10,
                     chip_size_px=SIDE * 2 // 3)  # fmt: skip
    network = build(spec)
    torch.nn.init.normal_(network.head.weight, std=0.5)
    weights = {name: tensor.numpy() for name, tensor in network.trainable_state().items()}
    weights["classical.projection"] = np.eye(2, dtype=np.float32)
    colors = ("#0000ff", "#00aa00", "#c9a27e")
    manifest = package.Manifest(
        engine_version="0.1.0", created="2026-01-01T00:00:00+01:00", name="west coast", spec=spec, dtype="uint16",
        classes=tuple(package.ClassInfo(value=i + 1, name=name, color=colors[i], label=str(i))
                      for i, name in enumerate(CLASSES)),
        base_weights=package.BaseWeights(backbone="scratch_unet", licence="Apache-2.0"), radiometry="reflectance",
        classical=texture, blend=package.Blend(network=0.6, temperature=1.5, sharpness=1.4),
        metrics={"miou": {"value": 0.74}}, hyperparameters={"steps": 5}, environment={"torch": "2.15.0+cpu"},
    )  # fmt: skip
    path: Path = tmp_path_factory.mktemp("onnx") / "west.geopeft"
    package.write(path, manifest, weights, forest)
    return path


def export_job(model: Path, out: Path, reporter: Reporter | None = None, **fields: Any) -> dict[str, Any]:
    job = {"job": "export", "model": str(model), "onnx": str(out)} | fields
    return export.run(parse(job), reporter or Reporter())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exported(model: Path) -> tuple[Path, Heard, dict[str, Any]]:
    path, heard = model.with_suffix(".onnx"), Heard()
    return path, heard, export_job(model, path, heard)


def scene(height: int = 100, width: int = 90) -> np.ndarray:
    """(2, h, w) uint16 reflectances times 10 000, in fields."""
    rng = np.random.default_rng(1)
    fields = rng.uniform(300, 5000, (2, height // 10 + 1, width // 10 + 1)).repeat(10, 1).repeat(10, 2)
    return (fields[:, :height, :width] + rng.normal(0, 100, (2, height, width))).clip(1, 9000).astype(np.uint16)


def map_with(model: Path, raster: Path, out: Path, reporter: Reporter | None = None, **fields: Any) -> dict[str, Any]:
    job = {"job": "predict", "model": str(model), "rasters": [str(raster)], "out": str(out), "device": "cpu"} | fields
    (entry,) = predict.run(parse(job), reporter or Reporter())["rasters"]  # type: ignore[arg-type]
    return entry


class DeepnessReader:
    """What the Deepness plugin (0.6.5) asks of a file, and how it feeds a tile: by the rules of its reader."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (self.input,) = self.session.get_inputs()
        (output,) = self.session.get_outputs()
        self.texts = self.session.get_modelmeta().custom_metadata_map
        batch, self.channels, height, width = self.input.shape
        assert isinstance(batch, str) or batch == 1
        assert isinstance(height, int) and height == width
        assert len(output.shape) == 4 and output.shape[2] == output.shape[3] == height
        assert self.key("model_type").capitalize() == "Segmentor"
        names = self.key("class_names")
        assert [int(number) for number in names] == list(range(output.shape[1]))
        self.names = list(names.values())
        self.mean, self.std = (np.array(self.key(f"standardization_{name}")) for name in ("mean", "std"))
        assert len(self.mean) == len(self.std) == self.channels
        assert int(self.key("tile_size")) == int(self.key("tiles_size")) == width
        assert float(self.key("seg_thresh")) == 0 and int(self.key("seg_small_segment")) == 0

    def key(self, name: str) -> Any:
        return json.loads(self.texts[name])

    def classes(self, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classes and probabilities of tiles (B, side, side, bands) in raster values."""
        fed = (np.float32(tiles * 1.0 / 255.0) - self.mean) / self.std
        found = self.session.run(None, {self.input.name: np.float32(fed.transpose(0, 3, 1, 2))})[0]
        return found.argmax(1), found


def test_a_reader_with_the_rules_of_deepness_maps_a_tile_as_we_do(
    model: Path, exported: tuple[Path, Heard, dict[str, Any]]
) -> None:
    path, heard, outputs = exported
    reader = DeepnessReader(path)
    assert reader.names == list(CLASSES)
    assert reader.key("resolution") == 1000 and reader.key("tiles_overlap") == 33
    tiles = scene(SIDE, 2 * SIDE).reshape(2, SIDE, 2, SIDE).transpose(2, 1, 3, 0)
    runtime = Runtime.open(model, "cpu", "", Reporter())
    expected = runtime.probabilities(tiles.transpose(0, 3, 1, 2).astype(np.float32), np.ones((2, SIDE, SIDE), bool))
    classes, found = reader.classes(tiles)
    assert np.abs(found - expected).max() < 1e-4 and (classes == expected.argmax(1)).mean() > 0.999
    assert len(np.unique(classes)) > 1
    holes = tiles.astype(np.float32)
    holes[:, :4] = np.nan
    assert np.isfinite(reader.classes(holes)[1]).all()
    assert outputs["deepness"] and heard.says("'Load default parameters' and map these bands in this order: red, nir.")


def test_an_exported_file_can_be_read_by_runtimes_of_2022_and_tells_nothing_of_this_machine(
    exported: tuple[Path, Heard, dict[str, Any]],
) -> None:
    proto = onnx.load(str(exported[0]))
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    assert versions == {"": 17, "ai.onnx.ml": 3} and proto.ir_version <= 8
    assert not [node.name for node in proto.graph.node if node.metadata_props or node.doc_string]
    assert b".py" not in exported[0].read_bytes()


def test_our_onnx_file_gives_the_map_of_its_package(
    model: Path, exported: tuple[Path, Heard, dict[str, Any]], make_raster: MakeRaster, tmp_path: Path
) -> None:
    values = scene()
    values[:, :30, :40] = 0
    # The bands in another order, in another data type: what the package knows, the file knows as well.
    raster = make_raster((values[::-1] / 10_000).astype(np.float32), names=("nir", "red"), nodata=0)
    maps, heard = {}, Heard()
    for path in (model, exported[0]):
        out = tmp_path / f"{path.suffix[1:]}.tif"
        entry = map_with(path, raster, out, heard, confidence=True)
        with rasterio.open(out) as found, rasterio.open(entry["confidence"]) as sure:
            maps[path] = (found.read(1), sure.read(1), found.colormap(1), entry["classes"], found.tags())
    (one, sure, *about), (other, other_sure, *about_other) = maps.values()
    assert len(np.unique(one)) > 2 and (one == other).mean() > 0.999
    assert np.abs(sure.astype(int) - other_sure).max() <= 1
    assert about[:2] == about_other[:2] and about[2]["GEOPEFT_ACCURACY"] == about_other[2]["GEOPEFT_ACCURACY"]
    assert heard.says("west.onnx is computed by ONNX Runtime on the CPU.")
    with pytest.raises(GeopeftError) as told:
        map_with(exported[0], raster, tmp_path / "o.tif", outside=True)
    assert told.value.code == "PACKAGE_NO_OUTSIDE"


@pytest.mark.parametrize("with_raster", [True, False])
def test_eight_bits_cost_what_is_said(
    model: Path, exported: tuple[Path, Heard, dict[str, Any]], make_raster: MakeRaster, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, with_raster: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(export, "_graph", lambda *_: onnx.load(str(exported[0])))
    monkeypatch.setattr(export, "MOST_CHIPS", 8)
    raster = make_raster(scene(), names=("red", "nir"))
    out, heard = tmp_path / "small.onnx", Heard()
    rasters = [str(raster)] if with_raster else []
    loss = export_job(model, out, heard, int8=True, rasters=rasters)["int8"]
    small, whole = onnx.load(str(out)), onnx.load(str(exported[0]))
    told = {entry.key: entry.value for entry in small.metadata_props}
    assert json.loads(told["int8"]) == loss and "model_type" in told and heard.says("of the pixels keep their class")
    assert loss["method"] == ("static" if with_raster else "weights") and loss["real_chips"] is with_raster
    assert out.stat().st_size < 0.8 * exported[0].stat().st_size
    # The forest is not touched.
    for op in ("TreeEnsembleRegressor", "Gemm"):
        assert [n for n in small.graph.node if n.op_type == op] == [n for n in whole.graph.node if n.op_type == op]
    chips = scene(SIDE, SIDE)[None].astype(np.float32)
    one, other = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"raster": chips}
        )[0]
        for m in (whole, small)
    )
    assert (one.argmax(1) == other.argmax(1)).mean() > 0.9 and 0 < np.abs(one - other).mean() < 0.05
    onnx_graph.read_graph(out)


def test_eight_bits_that_change_too_much_are_refused(
    model: Path, exported: tuple[Path, Heard, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_graph", lambda *_: onnx.load(str(exported[0])))
    monkeypatch.setattr(quantise, "LEAST_AGREEMENT", 1.01)
    with pytest.raises(GeopeftError) as told:
        export_job(model, tmp_path / "small.onnx", int8=True)
    assert told.value.code == "ONNX_INT8_LOSS" and not list(tmp_path.iterdir())


def test_weights_beyond_one_file_are_refused_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geopeft.onnx.export.MOST_BYTES", 1000)
    with pytest.raises(GeopeftError, match="one ONNX file holds") as told:
        export_job(model, tmp_path / "m.onnx")
    assert told.value.code == "ONNX_TOO_LARGE" and not list(tmp_path.iterdir())


def test_keys_that_deepness_could_not_keep_are_not_written(model: Path) -> None:
    manifest = package.read_manifest(model)
    assert "model_type" in write_keys(manifest, SIDE, 12)
    coarse = manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"gsd_m": 11_000.0})})
    for changed, why in ((manifest.model_copy(update={"dtype": "int32"}), "int32"), (coarse, "11000 m")):
        keys = write_keys(changed, SIDE, 12)
        assert not {"model_type", "resolution", "standardization_std"} & keys.keys() and "geopeft" in keys
        assert why in deepness_sentence(changed) and "cannot use this file" in deepness_sentence(changed)


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


def test_the_fastest_provider_is_taken_and_a_missing_one_is_told() -> None:
    cpu, cuda, apple, windows = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "CoreML", "Dml"))
    assert choose_providers("auto", [cpu]) == [cpu] == choose_providers("cpu", [cuda, cpu])
    assert choose_providers("auto", ["AzureExecutionProvider", cpu, windows, cuda]) == [cuda, windows, cpu]
    assert choose_providers("mps", [apple, cpu]) == [apple, cpu]
    with pytest.raises(GeopeftError) as told:
        choose_providers("cuda", [cpu])
    assert told.value.code == "DEVICE_UNAVAILABLE" and "CUDA" in told.value.message


class Session:
    """Stands for ONNX Runtime's session: opens on the named providers only, or on the CPU in their place."""

    starts: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()

    def __init__(self, model: bytes, options: Any, providers: Sequence[str], **others: Any) -> None:
        assert others == {"enable_fallback": 0}
        if providers[0] not in (*self.starts, *self.silent):
            raise RuntimeError(f"no library for {providers[0]}\nat line 7")
        self.providers = [*providers] if providers[0] in self.starts else ["CPUExecutionProvider"]

    def get_providers(self) -> list[str]:
        return self.providers


@pytest.fixture
def three_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [f"{name}ExecutionProvider" for name in ("CUDA", "Dml", "CPU")]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(Session, "starts", ("CPUExecutionProvider",))


def attempt(session: Any) -> np.ndarray:
    if session.get_providers()[0] == "DmlExecutionProvider":
        raise ValueError("out of memory")
    return np.ones(1)


def test_a_provider_that_fails_is_told_and_the_next_one_taken(
    three_providers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    # The one does not start, the other one fails at work.
    monkeypatch.setattr(Session, "starts", ("DmlExecutionProvider", "CPUExecutionProvider"))
    session, found = open_session(Path("m.onnx"), b"", "auto", heard, attempt)
    assert session.get_providers() == ["CPUExecutionProvider"] and found == 1
    assert heard.texts == [
        ("warning", "ONNX Runtime cannot use CUDA for m.onnx: no library for CUDAExecutionProvider. It goes on with "
         "DirectML."),
        ("warning", "ONNX Runtime cannot use DirectML for m.onnx: out of memory. It goes on with the CPU."),
        ("info", "m.onnx is computed by ONNX Runtime on the CPU."),
    ]  # fmt: skip


def test_a_provider_that_silently_became_the_cpu_is_told_and_one_that_was_named_is_needed(
    three_providers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    monkeypatch.setattr(Session, "silent", ("CUDAExecutionProvider",))
    open_session(Path("m.onnx"), b"", "auto", heard, attempt)
    assert heard.says("cannot use CUDA for m.onnx: it does not start on this machine", "warning")
    with pytest.raises(GeopeftError) as told:
        open_session(Path("m.onnx"), b"", "cuda", heard, attempt)
    assert told.value.code == "DEVICE_UNAVAILABLE" and told.value.hint == "Set the device to auto."
    monkeypatch.setattr(Session, "starts", ())
    with pytest.raises(GeopeftError, match="m.onnx cannot be used: ONNX Runtime says no library for CPU") as told:
        open_session(Path("m.onnx"), b"", "auto", heard, attempt)
    assert told.value.code == "ONNX_BROKEN"


def test_the_runtime_knows_gelu_as_one_operator(exported: tuple[Path, Heard, dict[str, Any]], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(exported[0]), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(str(tmp_path / "o.onnx")).graph.node]
    assert "Gelu" in operators and "Erf" not in operators


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


def test_half_of_the_products_stay_as_they_are_where_that_is_asked(
    exported: tuple[Path, Heard, dict[str, Any]],
) -> None:
    whole = onnx.load(str(exported[0]))
    chips = scene(SIDE, SIDE)[None].astype(np.float32).repeat(2, 0)
    counts = []
    for spared in (0.0, 0.5):
        small = quantise.calibrated(whole, "network", chips, spared)
        floats = {tensor.name for tensor in small.graph.initializer if tensor.data_type == TensorProto.FLOAT}
        convolutions = [node for node in small.graph.node if node.op_type == "Conv"]
        counts.append(sum(node.input[1] in floats for node in convolutions))
    assert counts[0] == 0 < counts[1] < len(convolutions)
    assert convolutions[0].input[1] in floats and convolutions[-1].input[1] not in floats


def test_a_model_for_radar_says_that_it_takes_decibels(model: Path) -> None:
    manifest = package.read_manifest(model)
    assert "decibel" not in deepness_sentence(manifest) and "band_units" not in write_keys(manifest, SIDE, 12)
    red, nir = manifest.spec.bands
    radar = nir.model_copy(update={"name": "VV", "unit": "decibel", "wavelength_um": None})
    mixed = manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"bands": (red, radar)})})
    assert json.loads(write_keys(mixed, SIDE, 12)["band_units"]) == ["", "decibel"]
    assert deepness_sentence(mixed).endswith("VV (radar) must be in decibels: linear power is not converted there.")
    bands = stac.stac_item(model, mixed, SIDE)["assets"]["model"]["bands"]
    assert bands[1] == {"name": "VV", "unit": "dB"} and "unit" not in bands[0]


def test_the_package_of_the_stac_extension_reads_our_items(
    model: Path, exported: tuple[Path, Heard, dict[str, Any]]
) -> None:
    pytest.importorskip("stac_model", reason="stac-model 0.6.1 (MLM 1.5.2) is not installed")
    import pystac  # type: ignore[import-not-found,unused-ignore]
    from stac_model.schema import SCHEMA_URI, MLModelProperties  # type: ignore[import-not-found,unused-ignore]

    for path in (model, exported[0]):
        made = stac.stac_item(path, package.read_manifest(model), SIDE)
        item = pystac.Item.from_dict(made)
        assert SCHEMA_URI in item.stac_extensions or not SCHEMA_URI.endswith("v1.5.2/schema.json")
        read = MLModelProperties.model_validate(item.properties)
        (given,), (result,) = read.input, read.output
        assert {str(task) for task in read.tasks} == {"semantic-segmentation"} and read.name == "west_coast"
        assert [*given.input.shape] == [-1, 2, SIDE, SIDE] and [*result.result.shape] == [-1, SIDE, SIDE]
        assert [known.value for known in result.classes] == [0, 1, 2, 3]


def test_a_stac_item_has_what_the_model_extension_asks_for(
    model: Path, exported: tuple[Path, Heard, dict[str, Any]], tmp_path: Path
) -> None:
    for path, framework in ((model, "PyTorch"), (exported[0], "ONNX")):
        job = parse({"job": "inspect", "model": str(path), "stac": str(tmp_path / "item.json")})
        assert inspecting.run(job, Reporter())["name"] == "west coast"  # type: ignore[arg-type]
        item = json.loads((tmp_path / "item.json").read_text(encoding="utf-8"))
        assert (item["type"], item["stac_version"], item["id"]) == ("Feature", "1.1.0", "west")
        assert item["geometry"] is None and "bbox" not in item and item["links"] == []
        assert "https://stac-extensions.github.io/mlm/v1.5.2/schema.json" in item["stac_extensions"]
        found = item["properties"]
        assert datetime.fromisoformat(found["datetime"]) == datetime.fromisoformat("2026-01-01T00:00:00+01:00")
        assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.-]+[a-zA-Z0-9]", found["mlm:name"]) and found["mlm:architecture"]
        assert found["mlm:framework"] == framework and found["mlm:tasks"] == ["semantic-segmentation"]
        assert found["mlm:accelerator"] is None and found["mlm:hyperparameters"]["steps"] == 5
        assert found["mlm:pretrained"] is False and found["mlm:pretrained_source"] is None
        (given,), (made,) = found["mlm:input"], found["mlm:output"]
        for structure in (given["input"], made["result"]):
            assert len(structure["shape"]) == len(structure["dim_order"]) and structure["data_type"]
        assert given["bands"] == ["red", "nir"] and given["input"]["shape"][1] == 2
        first = given["value_scaling"][0]
        assert first["type"] == "z-score" and abs(first["mean"] - 1500) < 1e-6 and abs(first["stddev"] - 900) < 1e-6
        classes = made["classification:classes"]
        assert [entry["value"] for entry in classes] == [0, 1, 2, 3] and classes[1]["description"] == CLASSES[0]
        assert all(re.fullmatch(r"[0-9A-Za-z_-]+", entry["name"]) for entry in classes)
        assert [entry["color_hint"] for entry in classes[1:]] == ["0000FF", "00AA00", "C9A27E"]
        asset = item["assets"]["model"]
        assert "mlm:model" in asset["roles"] and asset["mlm:artifact_type"] and asset["href"] == f"./{path.name}"
        assert asset["file:checksum"] == "1220" + hashlib.sha256(path.read_bytes()).hexdigest()
        assert asset["file:size"] == path.stat().st_size
        assert asset["bands"][0] == {"name": "red", "eo:center_wavelength": 0.665}
