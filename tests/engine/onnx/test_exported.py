"""What `export` writes: as other programs read it, and as `predict` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
from conftest import MakeRaster  # type: ignore[import-not-found]
from geopeft import package, stac
from geopeft.errors import GeopeftError
from geopeft.events import Reporter
from geopeft.onnx.export import largest_but_strays
from geopeft.onnx.keys import deepness_sentence, write_keys
from geopeft.runtime import Runtime
from west_coast import CHIP_PX, CLASSES, Heard, export_job, exported, map_with, scene, trained  # type: ignore[import-not-found]


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


def test_a_reader_with_the_rules_of_deepness_maps_a_tile_as_we_do() -> None:
    path, heard, side = exported().path, exported().heard, exported().side_px
    reader = DeepnessReader(path)
    assert reader.names == list(CLASSES)
    tiles = scene(side, 2 * side).reshape(2, side, 2, side).transpose(2, 1, 3, 0)
    runtime = Runtime.open(trained(), "cpu", "", Reporter())
    assert reader.key("resolution") == 1000
    assert reader.key("tiles_overlap") == round(100 * runtime.overlap_px / runtime.window_px) > 0
    expected = runtime.probabilities(tiles.transpose(0, 3, 1, 2).astype(np.float32), np.ones((2, side, side), bool))
    classes, found = reader.classes(tiles)
    apart = np.abs(found - expected).max(1)
    # A value at the threshold of a tree may fall on either side of it.
    assert (apart < 1e-4).mean() > 0.999 and apart.max() < 0.02
    assert (classes == expected.argmax(1)).mean() > 0.999
    assert len(np.unique(classes)) > 1
    holes = tiles.astype(np.float32)
    holes[:, :4] = np.nan
    assert np.isfinite(reader.classes(holes)[1]).all()
    assert exported().outputs["deepness"] and heard.says(
        "'Load default parameters' and map these bands in this order: red, nir."
    )


def test_an_exported_file_can_be_read_by_runtimes_of_2022_and_tells_nothing_of_this_machine() -> None:
    proto = onnx.load(str(exported().path))
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    assert versions == {"": 17, "ai.onnx.ml": 3} and proto.ir_version <= 8
    assert not [node.name for node in proto.graph.node if node.metadata_props or node.doc_string]
    assert b".py" not in exported().path.read_bytes()


def test_our_onnx_file_gives_the_map_of_its_package(make_raster: MakeRaster, tmp_path: Path) -> None:
    runtime = Runtime.open(trained(), "cpu", "", Reporter())
    # So large that the windows of both are the same: those of a package may be smaller, those of a file may not.
    length = 2 * runtime.window_px - runtime.overlap_px
    values = scene(length, length)
    values[:, :30, :40] = 0
    # The bands in another order, in another data type: what the package knows, the file knows as well.
    raster = make_raster((values[::-1] / 10_000).astype(np.float32), names=("nir", "red"), nodata=0)
    maps, heard = {}, Heard()
    for path in (trained(), exported().path):
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
        map_with(exported().path, raster, tmp_path / "o.tif", outside=True)
    assert told.value.code == "PACKAGE_NO_OUTSIDE"


def test_weights_beyond_one_file_are_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geopeft.onnx.export.MOST_BYTES", 1000)
    with pytest.raises(GeopeftError, match="one ONNX file holds") as told:
        export_job(trained(), tmp_path / "m.onnx")
    assert told.value.code == "ONNX_TOO_LARGE" and not list(tmp_path.iterdir())


def test_the_runtime_knows_gelu_as_one_operator(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(exported().path), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(str(tmp_path / "o.onnx")).graph.node]
    assert "Gelu" in operators and "Erf" not in operators


def test_keys_that_deepness_could_not_keep_are_not_written() -> None:
    manifest = package.read_manifest(trained())
    assert "model_type" in write_keys(manifest, CHIP_PX, 12)
    coarse = manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"gsd_m": 11_000.0})})
    for changed, why in ((manifest.model_copy(update={"dtype": "int32"}), "int32"), (coarse, "11000 m")):
        keys = write_keys(changed, CHIP_PX, 12)
        assert not {"model_type", "resolution", "standardization_std"} & keys.keys() and "geopeft" in keys
        assert why in deepness_sentence(changed) and "cannot use this file" in deepness_sentence(changed)


def test_a_model_for_radar_says_that_it_takes_decibels() -> None:
    manifest = package.read_manifest(trained())
    assert "decibel" not in deepness_sentence(manifest) and "band_units" not in write_keys(manifest, CHIP_PX, 12)
    red, nir = manifest.spec.bands
    radar = nir.model_copy(update={"name": "VV", "unit": "decibel", "wavelength_um": None})
    mixed = manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"bands": (red, radar)})})
    assert json.loads(write_keys(mixed, CHIP_PX, 12)["band_units"]) == ["", "decibel"]
    assert deepness_sentence(mixed).endswith("VV (radar) must be in decibels: linear power is not converted there.")
    bands = stac.stac_item(trained(), mixed, CHIP_PX)["assets"]["model"]["bands"]
    assert bands[1] == {"name": "VV", "unit": "dB"} and "unit" not in bands[0]


@pytest.mark.parametrize(
    ("strays", "by", "has_trees", "is_kept"),
    [(1, 0.03, True, True), (2, 0.03, True, False), (1, 0.2, True, False), (1, 0.03, False, False)],
)
def test_only_a_pixel_in_a_thousand_may_come_to_another_leaf(
    strays: int, by: float, has_trees: bool, is_kept: bool
) -> None:
    differences = np.full(1000, 1e-6, np.float32)
    differences[:strays] = by
    assert largest_but_strays(differences, has_trees) == pytest.approx(1e-6 if is_kept else by)
