"""Reads what a model package says of itself. Standard library only.

A package comes from anywhere, so nothing in it is believed: the zip is never extracted, only its manifest is read, each
size is limited before anything is read, and every text is short and free of control characters.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Optional, Union

from .language import tr

# The newest manifest that this plugin understands.
SCHEMA_VERSION = 4
SUFFIX = ".geopeft"
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
MEMBERS = frozenset((MANIFEST, WEIGHTS, "forest.onnx", "start.safetensors", "model.onnx"))
MAX_MANIFEST_BYTES = 4 << 20
MAX_TEXT = 300
MAX_NAME = 80
MAX_CLASSES = 254
MAX_BANDS = 1024
_MAX_DIRECTORY_BYTES = 64 << 10
_MAX_DIGITS = 400
_ZIP_ERRORS = (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, struct.error)
_END = b"PK\x05\x06"
_END_BYTES = 22
_COLOR = re.compile(r"#[0-9a-fA-F]{6}\Z")
# Joiners are part of words in some scripts; other invisible characters only deceive.
_JOINERS = "\u200c\u200d"


class PackageError(Exception):
    """A file is no package that can be used. `message` is a sentence, `hint` a next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class ClassEntry(NamedTuple):
    """A class of the map: its value in the class raster, name, colour (#rrggbb) and IoU on held-out labels."""

    value: int
    name: str
    color: str
    iou: Optional[float]


class BandEntry(NamedTuple):
    """A band that the model needs: its name, its role (red, nir, ...; empty: none) and its centre in micrometres."""

    name: str
    common: str
    wavelength_um: Optional[float]


class Accuracy(NamedTuple):
    """Mean IoU with its 95 % interval, and how it was measured; None and empty where that is not known."""

    value: Optional[float]
    low: Optional[float]
    high: Optional[float]
    measured_on: str

    @property
    def text(self) -> str:
        """For example `mIoU 0.74 (0.66–0.80)`; empty where it was not measured."""
        if self.value is None:
            return ""
        interval = f" ({self.low:.2f}–{self.high:.2f})" if self.low is not None and self.high is not None else ""
        return f"mIoU {self.value:.2f}{interval}"


class Summary(NamedTuple):
    """What people want to know of a model package. Texts are plain: escape them where HTML is shown.

    Args:
        sensor: kind and type of the values the model was trained on, such as `reflectance, uint16`.
        gsd_m: pixel size in metres.
        backbone, licence, revision: of the pretrained weights that the model builds on.
        created: when it was trained, ISO 8601.
        size_bytes: of the file; 0 where that is not known.
    """

    name: str
    classes: tuple[ClassEntry, ...]
    bands: tuple[BandEntry, ...]
    gsd_m: float
    sensor: str
    accuracy: Accuracy
    backbone: str
    licence: str
    revision: str
    paper: str
    adapter: str
    decoder: str
    created: str
    engine_version: str
    size_bytes: int


def read_manifest(path: Union[str, Path]) -> dict[str, Any]:
    """The manifest of a model package, as plain data of which `summary` can be made; PackageError for anything else."""
    path = Path(path)
    choose = tr("Choose a file that ends with .geopeft.")
    try:
        # A pipe or a device would keep the reader waiting for ever.
        if path.exists() and not path.is_file():
            raise PackageError(tr("{path} is no file that holds a model.").format(path=path), choose)
        with path.open("rb") as file:
            manifest = _manifest(path, file)
    except FileNotFoundError as error:
        text = tr("There is no file {path}. It may have been moved or deleted.")
        raise PackageError(text.format(path=path), choose) from error
    except (OSError, ValueError) as error:
        text = tr("{path} cannot be read: {reason}.")
        reason = getattr(error, "strerror", None) or plain(str(error), MAX_NAME)
        raise PackageError(text.format(path=path, reason=reason), tr("Check the file and its folder.")) from error
    try:
        summary(manifest)
    except PackageError as error:
        raise _broken(path, error.message) from error
    return manifest


def summary(manifest: Mapping[str, Any], size_bytes: int = 0) -> Summary:
    """The manifest in the words of the user; PackageError where it is not a manifest of a package."""
    spec, base = _mapping(manifest, "spec"), _mapping(manifest, "base_weights")
    metrics = manifest.get("metrics")
    metrics = metrics if isinstance(metrics, Mapping) else {}
    gsd_m = _number(spec.get("gsd_m"))
    if gsd_m is None or not 0 < gsd_m < 1e7:
        raise PackageError(tr("its pixel size is missing"))
    values = [_text(manifest.get(key), key, MAX_NAME) for key in ("radiometry", "dtype")]
    return Summary(
        name=_text(manifest.get("name"), "name", MAX_NAME),
        classes=_classes(manifest, metrics),
        bands=_bands(spec),
        gsd_m=gsd_m,
        sensor=", ".join(value for value in values if value),
        accuracy=_accuracy(metrics),
        backbone=_text(base.get("backbone"), "backbone", MAX_NAME),
        licence=_text(base.get("licence"), "licence", MAX_NAME),
        revision=_text(base.get("revision", ""), "revision", MAX_NAME),
        paper=_text(base.get("paper", ""), "paper"),
        adapter=_text(spec.get("adapter"), "adapter", MAX_NAME),
        decoder=_text(spec.get("decoder"), "decoder", MAX_NAME),
        created=_text(manifest.get("created"), "created", MAX_NAME),
        engine_version=_text(manifest.get("engine_version"), "engine_version", MAX_NAME),
        size_bytes=max(0, size_bytes),
    )


def plain(text: str, limit: int = MAX_TEXT) -> str:
    """One short line without control characters, for texts that come from a file."""
    kept = (c if c in _JOINERS or unicodedata.category(c)[0] != "C" else " " for c in text[: 4 * limit])
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


# The zip file


def _manifest(path: Path, file: IO[bytes]) -> dict[str, Any]:
    _check_directory(path, file)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            _check_names(path, [info.filename for info in infos])
            (info,) = (info for info in infos if info.filename == MANIFEST)
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise _broken(path, tr("its manifest is compressed or encrypted"))
            if info.file_size > MAX_MANIFEST_BYTES:
                raise _broken(path, tr("its manifest is larger than {size} MB").format(size=MAX_MANIFEST_BYTES >> 20))
            body = archive.read(info)
    except _ZIP_ERRORS as error:
        raise _unreadable(path, tr("it cannot be read as a zip file ({reason})"), error) from error
    manifest = _json(path, body)
    version = manifest.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _broken(path, tr("its manifest has no version"))
    if version > SCHEMA_VERSION:
        raise PackageError(tr("{path} was made by a newer GeoPEFT.").format(path=path), tr("Update GeoPEFT."))
    names = {info.filename for info in infos}
    if names - MEMBERS:
        raise _foreign(path, min(names - MEMBERS))
    if WEIGHTS not in names:
        raise _broken(path, tr("it holds no {name}").format(name=WEIGHTS))
    return manifest


def _check_directory(path: Path, file: IO[bytes]) -> None:
    """Refuses a zip with a huge list of members before Python's reader takes it into memory."""
    size = os.fstat(file.fileno()).st_size
    length = min(size, _END_BYTES + 65535)
    file.seek(size - length)
    tail = file.read(length)
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise _broken(path, tr("it is no zip file, or its end is missing"))
    entries, directory_bytes = struct.unpack("<HL", tail[at + 10 : at + 16])
    large = tail[at - 20 : at - 16] == b"PK\x06\x07" if at >= 20 else False
    if large:
        entries, directory_bytes = _large_directory(file, tail[at - 20 : at])
    if entries > 2 * len(MEMBERS):
        raise _broken(path, tr("it holds too many files ({count})").format(count=entries))
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise _broken(path, tr("its list of files is too long"))
    file.seek(0)


def _large_directory(file: IO[bytes], locator: bytes) -> tuple[int, int]:
    """Entries and size of the directory of a zip of more than 4 GB."""
    file.seek(struct.unpack("<Q", locator[8:16])[0])
    record = file.read(56)
    if len(record) < 56 or record[:4] != b"PK\x06\x06":
        return 0, 0  # Python's reader will refuse it with its own words
    entries, directory_bytes = struct.unpack("<QQ", record[32:48])
    return entries, directory_bytes


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise _broken(path, tr("it holds a file twice"))
    if MANIFEST not in names:
        raise _broken(path, tr("it holds no {name}").format(name=MANIFEST))


def _broken(path: Path, reason: str) -> PackageError:
    text = tr("{path} is not a whole model package: {reason}.")
    return PackageError(
        text.format(path=path, reason=reason), tr("Copy it again from where it came, or train it again.")
    )


def _foreign(path: Path, name: str) -> PackageError:
    return _broken(path, tr("it holds a file that does not belong there ({name})").format(name=plain(name, MAX_NAME)))


def _unreadable(path: Path, text: str, error: Exception) -> PackageError:
    return _broken(path, text.format(reason=plain(str(error), MAX_NAME) or type(error).__name__))


# The manifest


def _json(path: Path, body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_number,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_once,
        )
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _unreadable(path, tr("its manifest is not valid ({reason})"), error) from error
    if not isinstance(data, dict):
        raise _broken(path, tr("its manifest is not valid"))
    return data


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text) if len(text) <= _MAX_DIGITS else math.inf
    return value if math.isfinite(value) else _refuse_number(plain(text, MAX_NAME))


def _whole(text: str) -> int:
    # A number of many digits would take minutes to read.
    return int(text) if len(text) <= _MAX_DIGITS else int(_refuse_number(plain(text, MAX_NAME)))


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(found, Mapping):
        raise PackageError(tr("its manifest has no {name}").format(name=key))
    return found


def _text(value: Any, key: str, limit: int = MAX_TEXT) -> str:
    if not isinstance(value, str):
        raise PackageError(tr("in its manifest, {name} is no text").format(name=key))
    return plain(value, limit)


def _number(value: Any) -> Optional[float]:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _share(value: Any) -> Optional[float]:
    number = _number(value)
    return number if number is not None and 0 <= number <= 1 else None


def _rows(data: Any, key: str, at_most: int) -> list[Mapping[str, Any]]:
    found = data.get(key)
    if not isinstance(found, list) or not 1 <= len(found) <= at_most:
        raise PackageError(tr("its manifest has no {name}").format(name=key))
    if not all(isinstance(row, Mapping) for row in found):
        raise PackageError(tr("in its manifest, {name} is not valid").format(name=key))
    return found


def _classes(manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> tuple[ClassEntry, ...]:
    scored = metrics.get("classes")
    scores = {
        row["name"]: _share(row.get("iou"))
        for row in (scored if isinstance(scored, list) else [])
        if isinstance(row, Mapping) and isinstance(row.get("name"), str)
    }
    entries = []
    for row in _rows(manifest, "classes", MAX_CLASSES):
        value, color = row.get("value"), row.get("color")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_CLASSES:
            raise PackageError(tr("a class has no value from 1 to 254"))
        if not isinstance(color, str) or not _COLOR.match(color):
            raise PackageError(tr("a class has no colour"))
        name = _text(row.get("name"), "classes", MAX_NAME)
        entries.append(ClassEntry(value, name, color.lower(), scores.get(row["name"])))
    return tuple(entries)


def _bands(spec: Mapping[str, Any]) -> tuple[BandEntry, ...]:
    entries = []
    for row in _rows(spec, "bands", MAX_BANDS):
        wavelength = _number(row.get("wavelength_um"))
        name, common = _text(row.get("name"), "bands", MAX_NAME), _text(row.get("common", ""), "bands", MAX_NAME)
        entries.append(BandEntry(name, common, wavelength if wavelength is not None and wavelength > 0 else None))
    return tuple(entries)


def _accuracy(metrics: Mapping[str, Any]) -> Accuracy:
    figure = metrics.get("miou")
    figure = figure if isinstance(figure, Mapping) else {}
    how = metrics.get("split")
    value, low, high = (_share(figure.get(key)) for key in ("value", "low", "high"))
    return Accuracy(value, low, high, plain(how) if isinstance(how, str) else "")
