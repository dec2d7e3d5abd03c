"""A model package and its ONNX file as STAC items."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from pathlib import Path

import pytest
from geopeft import inspecting, package, stac
from geopeft.events import Reporter
from geopeft.job import parse
from west_coast import CHIP_PX, CLASSES, exported, trained  # type: ignore[import-not-found]


def test_the_package_of_the_stac_extension_reads_our_items() -> None:
    pytest.importorskip("stac_model", reason="stac-model 0.6.1 (MLM 1.5.2) is not installed")
    import pystac  # type: ignore[import-not-found,unused-ignore]
    from stac_model.schema import SCHEMA_URI, MLModelProperties  # type: ignore[import-not-found,unused-ignore]

    for path in (trained(), exported().path):
        made = stac.stac_item(path, package.read_manifest(trained()), CHIP_PX)
        item = pystac.Item.from_dict(made)
        assert SCHEMA_URI in item.stac_extensions or not SCHEMA_URI.endswith("v1.5.2/schema.json")
        read = MLModelProperties.model_validate(item.properties)
        (given,), (result,) = read.input, read.output
        assert {str(task) for task in read.tasks} == {"semantic-segmentation"} and read.name == "west_coast"
        assert [*given.input.shape] == [-1, 2, CHIP_PX, CHIP_PX] and [*result.result.shape] == [-1, CHIP_PX, CHIP_PX]
        assert [known.value for known in result.classes] == [0, 1, 2, 3]


def test_a_stac_item_has_what_the_model_extension_asks_for(tmp_path: Path) -> None:
    for path, framework in ((trained(), "PyTorch"), (exported().path, "ONNX")):
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
