"""A model as a STAC item of the Machine Learning Model extension, version 1.5."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geopeft.models.spec import InputBand
from geopeft.package import ClassInfo, Manifest
from geopeft.writing import sha256_of

_EXTENSIONS = "https://stac-extensions.github.io"
MLM = f"{_EXTENSIONS}/mlm/v1.5.2/schema.json"
_CLASSES, _FILE = (f"{_EXTENSIONS}/{name}/schema.json" for name in ("classification/v2.0.0", "file/v2.1.0"))
_EO = f"{_EXTENSIONS}/eo/v2.0.0/schema.json"
_TASK = "semantic-segmentation"
# By the file's ending: how the asset is made, and its media type.
_ARTIFACTS = {
    ".onnx": ("onnx", "ONNX", "application/octet-stream; application=onnx"),
    ".geopeft": ("geopeft", "PyTorch", "application/zip; application=geopeft"),
}
# A multihash begins with the kind of its hash and the length: SHA-256, 32 bytes.
_SHA256 = "1220"
_VERSION = re.compile(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.-]+)?")


def stac_item(path: Path, manifest: Manifest, side_px: int) -> dict[str, Any]:
    """The item of a model file.

    Where the training labels lay is not kept in a model, so the item has no geometry, as STAC allows.

    Args:
        path: the file, which the item's asset names beside itself.
        side_px: of the chips that the model is fed.
    """
    artifact, framework, media_type = _ARTIFACTS.get(path.suffix.lower(), _ARTIFACTS[".geopeft"])
    base, spec = manifest.base_weights, manifest.spec
    has_wavelengths = any(band.wavelength_um is not None for band in spec.bands)
    version = str(manifest.environment.get("torch") or "")
    properties: dict[str, Any] = {
        "datetime": _date(path, manifest.created),
        "title": manifest.name,
        "description": f"Land cover in {len(manifest.classes)} classes, mapped from {len(spec.bands)} bands. "
        f"{_accuracy(manifest)}",
        "gsd": spec.gsd_m,
        "mlm:name": _slug(manifest.name, "model"),
        "mlm:architecture": f"{spec.backbone} with {spec.adapter} and the decoder {spec.decoder}",
        "mlm:tasks": [_TASK],
        "mlm:framework": framework,
        "mlm:accelerator": None,
        "mlm:accelerator_constrained": False,
        "mlm:accelerator_summary": "Runs on the CPU; a graphics card (CUDA, Apple's) makes it faster.",
        "mlm:batch_size_suggestion": 4,
        "mlm:pretrained": bool(base.sha256),
        "mlm:pretrained_source": " ".join(filter(None, (base.backbone, base.revision))) if base.sha256 else None,
        "mlm:input": [_input(spec.bands, side_px)],
        "mlm:output": [_output(manifest.classes, side_px)],
        "mlm:hyperparameters": _hyperparameters(manifest),
        "geopeft:base_weights_licence": base.licence,
        "geopeft:radiometry": manifest.radiometry,
        "geopeft:data_type": manifest.dtype,
    }
    if framework == "PyTorch" and _VERSION.fullmatch(version):
        properties["mlm:framework_version"] = version
    asset = {
        "href": f"./{path.name}",
        "title": path.name,
        "type": media_type,
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": artifact,
        "file:size": path.stat().st_size,
        "file:checksum": _SHA256 + sha256_of(path),
        "bands": [_band(band) for band in spec.bands],
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM, _CLASSES, _FILE, *([_EO] if has_wavelengths else [])],
        "id": _slug(path.stem, "model"),
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": {"model": asset},
    }


def _input(bands: Sequence[InputBand], side_px: int) -> dict[str, Any]:
    """Raster values, in the units of the training; they are standardised inside the model."""
    scaling = [
        {"type": "z-score", "mean": (band.mean - band.offset) / band.scale, "stddev": abs(band.std / band.scale)}
        for band in bands
    ]
    return {
        "name": "raster",
        "bands": [band.name for band in bands],
        "input": {
            "shape": [-1, len(bands), side_px, side_px],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": scaling,
        "resize_type": None,
        "pre_processing_function": None,
    }


def _output(classes: Sequence[ClassInfo], side_px: int) -> dict[str, Any]:
    """The class raster that predict writes, 0 where nothing was mapped."""
    slugs: list[str] = []
    for known in classes:
        slug = _slug(known.name, f"class_{known.value}")
        slugs.append(slug if slug not in slugs else f"{slug}_{known.value}")
    return {
        "name": "class raster",
        "tasks": [_TASK],
        "result": {"shape": [-1, side_px, side_px], "dim_order": ["batch", "height", "width"], "data_type": "uint8"},
        "classification:classes": [
            {"value": 0, "name": "nodata", "description": "nothing was mapped"},
            *(
                {"value": c.value, "name": slug, "description": c.name, "color_hint": c.color.removeprefix("#").upper()}
                for c, slug in zip(classes, slugs, strict=True)
            ),
        ],
        "post_processing_function": None,
    }


def _band(band: InputBand) -> dict[str, Any]:
    wavelength = {} if band.wavelength_um is None else {"eo:center_wavelength": band.wavelength_um}
    unit = {"unit": "dB"} if band.unit == "decibel" else {}
    return {"name": band.name, **wavelength, **unit}


def _hyperparameters(manifest: Manifest) -> dict[str, Any]:
    known = {name: value for name, value in manifest.hyperparameters.items() if re.fullmatch(r"[0-9a-zA-Z_.-]+", name)}
    return {**known, "rank": manifest.spec.rank, "chip_size_px": manifest.spec.chip_size_px, "seed": manifest.seed}


def _accuracy(manifest: Manifest) -> str:
    figure = manifest.metrics.get("miou")
    value = figure.get("value") if isinstance(figure, dict) else None
    if not isinstance(value, int | float):
        return "Its accuracy was not measured."
    return f"mIoU {value:.2f} on labels held out."


def _date(path: Path, created: str) -> str:
    """The date of the training, else that of the file."""
    try:
        date = datetime.fromisoformat(created)
    except ValueError:
        date = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return date.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _slug(name: str, otherwise: str) -> str:
    """A name of letters, digits and a few signs, as the extensions ask for."""
    slug = re.sub(r"[^0-9A-Za-z_-]+", "_", name).strip("_-")
    return slug if re.fullmatch(r"[A-Za-z][0-9A-Za-z_-]+[0-9A-Za-z]", slug) else otherwise
