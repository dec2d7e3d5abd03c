"""A small model package, made and exported once for all the tests of ONNX files, and what they ask of it."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from geopeft import package, predict
from geopeft.events import Reporter
from geopeft.forest import Pixels, fit_classical
from geopeft.job import parse
from geopeft.models import build
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.models.texture import Texture, describe_texture
from geopeft.onnx import export

CLASSES = ("Wasser ü", "forest", "bare soil")
BANDS = (
    InputBand(name="red", common="red", wavelength_um=0.665, scale=1e-4, mean=0.15, std=0.09),
    InputBand(name="nir", common="nir", wavelength_um=0.842, scale=1e-4, mean=0.3, std=0.12),
)
CHIP_PX = 32
# Removed when the interpreter ends.
_FOLDER = tempfile.TemporaryDirectory(prefix="geopeft_onnx")


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


@dataclass(frozen=True)
class Exported:
    """The file, what was said on the way, and the figures of the job."""

    path: Path
    heard: Heard
    outputs: dict[str, Any]

    @property
    def side_px(self) -> int:
        """Of its input."""
        return int(self.outputs["input_px"])


@functools.cache
def trained() -> Path:
    """A random network and a forest that knows a little, blended and sharpened."""
    texture = describe_texture(BANDS, 10)
    made = Texture(texture, BANDS, torch.eye(2))
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=240)
    seen = (rng.normal(size=(240, made.count)) + truth[:, None]).astype(np.float32)
    forest = fit_classical(Pixels(seen, seen[:, :1], truth, np.ones(240), np.arange(240) // 10), 3, 2, seed=0)
    torch.manual_seed(0)
    spec = ModelSpec(backbone="scratch_unet", adapter="full", decoder="unet", bands=BANDS, num_classes=3, gsd_m=10,
                     chip_size_px=CHIP_PX)  # fmt: skip
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
    path = Path(_FOLDER.name) / "west.geopeft"
    package.write(path, manifest, weights, forest)
    return path


@functools.cache
def exported() -> Exported:
    """`trained` as an ONNX file."""
    path, heard = trained().with_suffix(".onnx"), Heard()
    return Exported(path, heard, export_job(trained(), path, heard))


def export_job(model: Path, out: Path, reporter: Reporter | None = None, **fields: Any) -> dict[str, Any]:
    job = {"job": "export", "model": str(model), "onnx": str(out)} | fields
    return export.run(parse(job), reporter or Reporter())  # type: ignore[arg-type]


def scene(height: int = 100, width: int = 90) -> np.ndarray:
    """(2, h, w) uint16 reflectances times 10 000, in fields."""
    rng = np.random.default_rng(1)
    fields = rng.uniform(300, 5000, (2, height // 10 + 1, width // 10 + 1)).repeat(10, 1).repeat(10, 2)
    return (fields[:, :height, :width] + rng.normal(0, 100, (2, height, width))).clip(1, 9000).astype(np.uint16)


def map_with(model: Path, raster: Path, out: Path, reporter: Reporter | None = None, **fields: Any) -> dict[str, Any]:
    job = {"job": "predict", "model": str(model), "rasters": [str(raster)], "out": str(out), "device": "cpu"} | fields
    (entry,) = predict.run(parse(job), reporter or Reporter())["rasters"]  # type: ignore[arg-type]
    return entry
