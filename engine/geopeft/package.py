"""The model package: one zip file with everything but the frozen backbone, read member by member, never extracted.

manifest.json         what the model is, what it expects, how good it is (Manifest)
weights.safetensors   adapter, decoder and head
forest.onnx           the classical part, where one is blended with the network
start.safetensors     for a training that goes on from this model: where its labels were, what those held out have said
                      of the blend, and the weights before the last steps
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import stat
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import numpy as safetensors_numpy

from geopeft.errors import PackageError
from geopeft.job import Radiometry
from geopeft.models.spec import SHARPNESS_RANGE, ModelSpec, TextureSpec
from geopeft.tensors import read_tensors
from geopeft.writing import check_target, write_bytes

SCHEMA_VERSION = 4
MANIFEST, WEIGHTS, FOREST, START = "manifest.json", "weights.safetensors", "forest.onnx", "start.safetensors"
_LIMITS = {MANIFEST: 4 << 20, WEIGHTS: 8 << 30, FOREST: 64 << 20, START: 64 << 20}
_OPTIONAL = {FOREST, START}
_MAX_DIRECTORY_BYTES = 64 << 10
_MAX_TENSORS = 4096
# Larger weights, however finite, make a map of nothing but overflow.
_LARGEST_WEIGHT = 1e8
# From here on the manifest vouches for itself as well.
_SELF_CHECKED_SINCE = 4
_END, _END_BYTES = b"PK\x05\x06", 22
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
    """One map of two parts: (network * softmax(logits / temperature) + (1 - network) * classical) ** sharpness, which
    is brought to a sum of 1 again."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    network: float = Field(default=1.0, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0.01, le=100)
    sharpness: float = Field(default=1.0, ge=SHARPNESS_RANGE[0], le=SHARPNESS_RANGE[1])

    def sharpen(self, mixed: np.ndarray) -> np.ndarray:
        """Probabilities (n, K, ...) of the two parts together as those of the map; the likeliest class stays that."""
        if self.sharpness == 1:
            return mixed
        raised = mixed**self.sharpness
        result: np.ndarray = raised / raised.sum(1, keepdims=True)
        return result


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
    outside_beyond: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="dissimilarity index (Meyer and Pebesma 2021) beyond which a pixel lies outside what the model has "
        "seen; null: not known",
    )
    radiometry: str = Field(description="what the training rasters' values are: reflectance, display or unknown")
    radiometry_rule: Radiometry = Field(default="auto", description="how that was found, or what the user said")
    dtype: str
    assumptions: tuple[str, ...] = ()
    metrics: dict[str, Any] = Field(default_factory=dict)
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    warnings: tuple[str, ...] = Field(default=(), description="those of the assumptions that must not be missed")
    job: dict[str, Any] = Field(default_factory=dict, description="the fit job, with file names for paths")
    environment: dict[str, Any] = Field(default_factory=dict, description="versions and device of the training")
    sha256: dict[str, str] = Field(
        default_factory=dict, description="of every member; of the manifest without this field"
    )


@dataclass(frozen=True)
class Package:
    """An opened package: manifest, weights as name -> array, the classical part as ONNX (empty: none), and what a
    further training starts from (see `starting`; empty: it cannot)."""

    path: Path
    manifest: Manifest
    weights: dict[str, np.ndarray]
    forest: bytes = b""
    start: dict[str, np.ndarray] = field(default_factory=dict)


def target(out: str) -> Path:
    """Where a package named `out` goes, its suffix added where it lacks; OutputError where nothing can be written."""
    path = Path(out)
    path = path if path.suffix == ".geopeft" else path.with_name(path.name + ".geopeft")
    check_target(path)
    return path


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
    text = manifest_text(manifest.model_copy(update={"sha256": checksums}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST, _EPOCH), text)
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
    whole = buffer.getvalue()
    check_target(path, len(whole))
    write_bytes(path, whole)


def manifest_text(manifest: Manifest) -> bytes:
    """A manifest as JSON that vouches for itself; `parse_manifest` reads it."""
    data = _plain(manifest.model_dump(mode="json"))
    data["sha256"][MANIFEST] = _own_checksum(data)
    return json.dumps(data, indent=1, ensure_ascii=False).encode()


def _plain(value: Any) -> Any:
    """As JSON gives it back; what is no number (JSON has none such) is not known."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _body(arrays: Mapping[str, np.ndarray]) -> bytes:
    body: bytes = safetensors_numpy.save({name: np.asarray(array, order="C") for name, array in sorted(arrays.items())})
    return body


def read(path: Path) -> Package:
    """Opens a package and checks it throughout; PackageError in one sentence where anything is not as it should be."""
    members = _members(path)
    manifest = parse_manifest(path, members[MANIFEST])
    for name, what in ((WEIGHTS, "weights are not the ones"), (FOREST, "forest is not the one"),
                       (START, "weights to go on from are not the ones")):  # fmt: skip
        found = hashlib.sha256(members[name]).hexdigest() if name in members else None
        if found != manifest.sha256.get(name):
            raise _changed(path, f"its {what} that were saved")
    if (FOREST in members) != (manifest.classical is not None):
        raise _broken(path, "its forest is missing or is not spoken of")
    start = _tensors(path, members[START]) if START in members else {}
    weights = _tensors(path, members[WEIGHTS])
    for name, array in weights.items():
        if np.issubdtype(array.dtype, np.floating) and float(np.abs(array).max(initial=0)) > _LARGEST_WEIGHT:
            raise _absurd(path, f"its tensor {name} holds values beyond {_LARGEST_WEIGHT:g}")
    return Package(path, manifest, weights, members.get(FOREST, b""), start)


def read_manifest(path: Path) -> Manifest:
    """Only the manifest, without touching the weights."""
    return parse_manifest(path, _members(path, only=MANIFEST)[MANIFEST])


def _members(path: Path, only: str = "") -> dict[str, bytes]:
    """The members as bytes, each once, each within its limit."""
    try:
        if path.exists() and not path.is_file():
            what = "folder" if path.is_dir() else "pipe or a device"
            raise PackageError(f"{path} is a {what}, not a model package.", "Choose a .geopeft file.")
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            _check_members(path, infos)
            return {info.filename: archive.read(info) for info in infos if only in ("", info.filename)}
    except FileNotFoundError as error:
        raise PackageError(f"There is no model package {path}.", "Check its path.", "PACKAGE_MISSING") from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise _broken(path, f"it cannot be read as a zip file ({error})") from error
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}.", "Check the file and its folder.") from error


def _check_directory(path: Path) -> None:
    """Begins and ends as `write` made it, with a short list of members: Python's reader takes any list into memory."""
    with path.open("rb") as stream:
        start, size = stream.read(4), stream.seek(0, 2)
        stream.seek(max(0, size - _END_BYTES))
        end = stream.read()
    if start != b"PK\x03\x04" or end[:4] != _END or len(end) != _END_BYTES:
        raise _broken(path, "it is no zip file, or its beginning or end is missing")
    entries, directory_bytes = struct.unpack("<HL", end[10:16])
    if entries > len(_LIMITS) or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise _too_large(path, f"it lists {entries} files")


def _check_members(path: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    """Only files that belong there, plain and stored as they are: so that no size is a surprise."""
    names = [info.filename for info in infos]
    foreign = sorted(set(names) - _LIMITS.keys())
    if foreign:
        raise _unsafe(path, f"it holds a file that does not belong there ({foreign[0][:80]!r})")
    if len(set(names)) < len(names) or not _LIMITS.keys() - _OPTIONAL <= set(names):
        raise _broken(path, f"it holds {', '.join(sorted(names)[:5]) or 'nothing'}")
    for info in infos:
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _unsafe(path, f"its member {info.filename} is no plain file")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise _broken(path, f"its member {info.filename} is compressed or encrypted")
        if info.file_size > _LIMITS[info.filename]:
            raise _too_large(path, f"its member {info.filename} has {info.file_size / 1e6:.0f} MB")


def parse_manifest(path: Path, text: bytes) -> Manifest:
    """A manifest from `manifest_text`; PackageError that names `path` where it is not valid or was changed."""
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_number, parse_float=_number)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            message = f"The model package {path} was made by a newer engine (package version {version})."
            raise PackageError(message, "Update GeoPEFT.", "PACKAGE_NEWER")
        # From JSON, since only then a list may stand for a tuple and nothing else for anything.
        manifest = Manifest.model_validate_json(text, strict=True)
        json.dumps(data, ensure_ascii=False).encode()
    except (UnicodeError, ValueError, RecursionError) as error:
        raise _odd_manifest(path, _why(error)) from error
    own = manifest.sha256.get(MANIFEST)
    if own != _own_checksum(data) and (own or manifest.schema_version >= _SELF_CHECKED_SINCE):
        raise _changed(path, "its manifest is not the one that was saved")
    if len(manifest.classes) != manifest.spec.num_classes:
        raise _odd_manifest(path, "it names another number of classes than its model has")
    if [known.value for known in manifest.classes] != list(range(1, len(manifest.classes) + 1)):
        raise _odd_manifest(path, "its classes are not numbered from 1 on")
    return manifest


def _own_checksum(data: Mapping[str, Any]) -> str:
    """Of a manifest without its checksums, whatever the order and layout of its JSON."""
    rest = {key: value for key, value in data.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _why(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)[:200]
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a name is there twice, since readers differ in which of them they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _number(text: str) -> float:
    value = float(text) if len(text) < 400 else math.inf
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number")
    return value


def _tensors(path: Path, body: bytes) -> dict[str, np.ndarray]:
    """Arrays from safetensors, all of them finite."""
    try:
        tensors = read_tensors(body, _MAX_TENSORS)
    except OverflowError as error:
        raise _too_large(path, str(error)) from error
    except ValueError as error:
        raise _broken(path, f"its weights cannot be read ({error})") from error
    for name, array in tensors.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise _absurd(path, f"its tensor {name[:80]} holds values that are not finite")
    return tensors


_AGAIN = "Copy it again from where it came, or train it again."
_DISTRUST = "Do not use this file; ask where it came from."


def _broken(path: Path, reason: str) -> PackageError:
    return PackageError(f"{path} is not a whole model package: {reason}.", _AGAIN, "PACKAGE_BROKEN")


def _changed(path: Path, reason: str) -> PackageError:
    return PackageError(f"{path} was changed since it was made: {reason}.", _AGAIN, "PACKAGE_CHECKSUM")


def _odd_manifest(path: Path, reason: str) -> PackageError:
    return PackageError(f"The manifest of the model package {path} is not valid: {reason}.", _AGAIN, "PACKAGE_MANIFEST")


def _absurd(path: Path, reason: str) -> PackageError:
    return PackageError(f"The model package {path} cannot be used: {reason}.", _AGAIN, "PACKAGE_VALUES")


def _too_large(path: Path, reason: str) -> PackageError:
    return PackageError(f"{path} is larger than a model package can be: {reason}.", _DISTRUST, "PACKAGE_TOO_LARGE")


def _unsafe(path: Path, reason: str) -> PackageError:
    return PackageError(f"{path} is not a safe model package: {reason}.", _DISTRUST, "PACKAGE_UNSAFE")
