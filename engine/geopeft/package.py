"""The model package: one zip file with everything but the frozen backbone, read member by member, never extracted.

manifest.json         what the model is, what it expects, how good it is (Manifest)
weights.safetensors   adapter, decoder and head
forest.onnx           the classical part, where one is blended with the network
start.safetensors     for a training that goes on from this model: where its labels were, and the weights before the
                      last steps
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from geopeft.errors import PackageError
from geopeft.events import Reporter
from geopeft.job import InspectJob, Radiometry
from geopeft.models.spec import ModelSpec, TextureSpec
from geopeft.writing import check_target, write_bytes

SCHEMA_VERSION = 3
MANIFEST, WEIGHTS, FOREST, START = "manifest.json", "weights.safetensors", "forest.onnx", "start.safetensors"
_LIMITS = {MANIFEST: 4 << 20, WEIGHTS: 8 << 30, FOREST: 64 << 20, START: 64 << 20}
_OPTIONAL = {FOREST, START}
_MAX_HEADER_BYTES = 1 << 20
_MAX_TENSORS = 4096
_EPOCH = (1980, 1, 1, 0, 0, 0)


class ClassInfo(BaseModel):
    """A class of the map: its value in the class raster, its name, its colour, and its value in the labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: int = Field(ge=1, le=254)
    name: str
    color: str = Field(pattern=r"^#[0-9a-fA-F]{6}$")
    label: str = Field(description="the value in the class field of the labels")


class BaseWeights(BaseModel):
    """The frozen backbone that the package builds on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    licence: str
    revision: str = ""
    sha256: str = ""
    paper: str = ""


class Blend(BaseModel):
    """One map of two parts: network * softmax(logits / temperature) + (1 - network) * classical."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    network: float = Field(default=1.0, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0.01, le=100)


class Manifest(BaseModel):
    """What a package says of itself. Field names follow the STAC MLM extension where it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = SCHEMA_VERSION
    engine_version: str
    created: str
    name: str
    spec: ModelSpec
    classes: tuple[ClassInfo, ...] = Field(min_length=2)
    base_weights: BaseWeights
    classical: TextureSpec | None = Field(default=None, description="features of the classical part; null: none")
    blend: Blend = Blend()
    radiometry: str = Field(description="what the training rasters' values are: reflectance, display or unknown")
    radiometry_rule: Radiometry = Field(default="auto", description="how that was found, or what the user said")
    dtype: str
    assumptions: tuple[str, ...] = ()
    metrics: dict[str, Any] = Field(default_factory=dict)
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    sha256: dict[str, str] = Field(default_factory=dict, description="of every other member")


@dataclass(frozen=True)
class Package:
    """An opened package: manifest, weights as name -> array, the classical part as ONNX (empty: none), and what a
    further training starts from (see `starting`; empty: it cannot)."""

    path: Path
    manifest: Manifest
    weights: dict[str, np.ndarray]
    forest: bytes = b""
    start: dict[str, np.ndarray] = field(default_factory=dict)


def write(
    path: Path,
    manifest: Manifest,
    weights: Mapping[str, np.ndarray],
    forest: bytes = b"",
    start: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a package whole; OutputError where that is not possible."""
    members = (
        {WEIGHTS: _body(weights)} | ({FOREST: forest} if forest else {}) | ({START: _body(start)} if start else {})
    )
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = manifest.model_copy(update={"sha256": checksums})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
        archive.writestr(zipfile.ZipInfo(MANIFEST, _EPOCH), text.encode())
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
    whole = buffer.getvalue()
    check_target(path, len(whole))
    write_bytes(path, whole)


def _body(arrays: Mapping[str, np.ndarray]) -> bytes:
    body: bytes = safetensors_numpy.save({name: np.asarray(array, order="C") for name, array in sorted(arrays.items())})
    return body


def read(path: Path) -> Package:
    """Opens a package and checks it throughout; PackageError in one sentence where anything is not as it should be."""
    members = _members(path)
    manifest = _manifest(path, members[MANIFEST])
    for name, what in ((WEIGHTS, "weights are not the ones"), (FOREST, "forest is not the one"),
                       (START, "weights to go on from are not the ones")):  # fmt: skip
        found = hashlib.sha256(members[name]).hexdigest() if name in members else None
        if found != manifest.sha256.get(name):
            raise _broken(path, f"its {what} that were saved")
    if (FOREST in members) != (manifest.classical is not None):
        raise _broken(path, "its forest is missing or is not spoken of")
    start = _tensors(path, members[START]) if START in members else {}
    return Package(path, manifest, _tensors(path, members[WEIGHTS]), members.get(FOREST, b""), start)


def read_manifest(path: Path) -> Manifest:
    """Only the manifest, without touching the weights."""
    return _manifest(path, _members(path, only=MANIFEST)[MANIFEST])


def run(job: InspectJob, reporter: Reporter) -> dict[str, Any]:
    """The `inspect` job."""
    return read_manifest(Path(job.model)).model_dump(mode="json")


def _members(path: Path, only: str = "") -> dict[str, bytes]:
    """The members as bytes, each once, each within its limit."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            if len(set(names)) < len(names) or not _LIMITS.keys() - _OPTIONAL <= set(names) <= _LIMITS.keys():
                raise _broken(path, f"it holds {', '.join(sorted(names)[:5]) or 'nothing'}")
            for info in infos:
                if info.file_size > _LIMITS[info.filename] or info.compress_type != zipfile.ZIP_STORED:
                    raise _broken(path, f"its member {info.filename} is too large or compressed")
            return {name: archive.read(name) for name in names if only in ("", name)}
    except FileNotFoundError as error:
        raise PackageError(f"There is no model package {path}.", "Check its path.", "PACKAGE_MISSING") from error
    except IsADirectoryError as error:
        raise PackageError(f"{path} is a folder, not a model package.", "Choose a .geopeft file.") from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise _broken(path, f"it cannot be read as a zip file ({error})") from error
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}.", "Check the file and its folder.") from error


def _manifest(path: Path, text: bytes) -> Manifest:
    try:
        data = json.loads(text.decode("utf-8"))
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            message = f"The model package {path} was made by a newer engine (package version {version})."
            raise PackageError(message, "Update GeoPEFT.", "PACKAGE_NEWER")
        manifest = Manifest.model_validate(data)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise _broken(path, f"its manifest is not valid ({reason})") from error
    if len(manifest.classes) != manifest.spec.num_classes:
        raise _broken(path, "its manifest names another number of classes than its model has")
    return manifest


def _tensors(path: Path, body: bytes) -> dict[str, np.ndarray]:
    """Arrays from safetensors, after a look at the header: a huge one or many empty tensors would stall the reader."""
    if len(body) < 8 or struct.unpack("<Q", body[:8])[0] > min(_MAX_HEADER_BYTES, len(body) - 8):
        raise _broken(path, "the header of its weights is too large")
    try:
        tensors = safetensors_numpy.load(body)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"its weights cannot be read ({error})") from error
    if len(tensors) > _MAX_TENSORS:
        raise _broken(path, f"it holds {len(tensors)} tensors")
    for name, array in tensors.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise _broken(path, f"its tensor {name} holds values that are not finite")
    return tensors


def _broken(path: Path, reason: str) -> PackageError:
    hint = "Copy it again from where it came, or train it again."
    return PackageError(f"{path} is not a whole model package: {reason}.", hint, "PACKAGE_BROKEN")
