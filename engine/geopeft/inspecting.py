"""The `inspect` job: what a model says of itself, and the same as a STAC item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from geopeft import package
from geopeft.events import Reporter
from geopeft.job import InspectJob
from geopeft.stac import stac_item
from geopeft.writing import write_bytes


def run(job: InspectJob, reporter: Reporter) -> dict[str, Any]:
    """Runs an inspect job; the outputs are the manifest."""
    path = Path(job.model)
    if path.suffix.lower() == ".onnx":
        # A package is told of without any of the libraries that this needs.
        from geopeft.onnx.model import OnnxModel

        model = OnnxModel.open(path, "cpu", Reporter())
        manifest, side_px = model.manifest, model.window_px
    else:
        manifest = package.read_manifest(path)
        side_px = manifest.spec.chip_size_px
    if job.stac:
        item = stac_item(path, manifest, side_px)
        write_bytes(Path(job.stac), json.dumps(item, indent=1, ensure_ascii=False, allow_nan=False).encode())
        reporter.message(f"STAC item written: {job.stac}.")
    return manifest.model_dump(mode="json")
