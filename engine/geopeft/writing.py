"""Files that appear whole at their final name or not at all.

A temporary name in the target folder, closed, read back, fsynced, moved with os.replace, folder fsynced: a kill or a
full disk at any moment leaves the old file or the new one. GDAL through rasterio keeps a full disk to itself, so its
log is watched and every window is read back and compared; so is every feature of a layer, since SQLite too keeps a
failed write to itself now and then.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import shutil
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
from rasterio.windows import Window

from geopeft.errors import GeopeftError, JobError, OutputError, is_out_of_memory, out_of_memory
from geopeft.holding import part_of

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_SPARE_BYTES = 8 << 20
# Windows refuses to replace a file while another program has it open: access denied, sharing, locked.
_IN_USE, _IN_USE_WAIT_S = {5, 32, 33}, 2.5
_UMASK = os.umask(0o022)
os.umask(_UMASK)


def identity(path: str | Path) -> tuple[int, int] | None:
    """What tells a file from all others, whatever it is called; None where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def identities(specs: Iterable[str]) -> set[tuple[int, int]]:
    """Those of files, perhaps given as FILE:layer."""
    found = (identity(name) for spec in specs for name in (spec, spec.rpartition(":")[0]) if name)
    return {one for one in found if one is not None}


def keep_inputs(outputs: Iterable[Path], inputs: Iterable[str], what: str = "The result") -> None:
    """JobError where a file to be written is one that the job reads.

    Args:
        inputs: files, perhaps as FILE:layer; empty ones do not count.
        what: would be written, for the sentence.
    """
    read = identities(inputs)
    for path in outputs:
        if identity(path) in read:
            message = f"{what} would overwrite {path}, which the job reads."
            raise JobError(message, "Choose another output.", "OUTPUT_IS_INPUT")


def check_target(path: Path, expected_bytes: int = 0) -> None:
    """OutputError before the work begins, where the result could not be written after it."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(6)}.probe"
        probe.touch()
        probe.unlink()
        is_folder = path.exists() and path.is_dir()
    except (OSError, ValueError) as error:
        raise _output_error(error, path) from error
    if is_folder:
        raise OutputError(f"{path} is a folder.", "Give the name of a file.", "OUTPUT_IS_FOLDER")
    free = shutil.disk_usage(folder).free
    if free < expected_bytes + _SPARE_BYTES:
        need = expected_bytes + _SPARE_BYTES
        message = f"There is not enough room in {folder}: {free >> 20} MiB are free, about {need >> 20} MiB are needed."
        raise OutputError(message, "Free some space or choose another folder.", "DISK_FULL")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; on success it becomes `path`.

    Raises:
        OutputError: DISK_FULL, NO_PERMISSION or OUTPUT_FAILED; nothing is left behind.
    """
    part = part_of(path)
    try:
        yield part
        _publish(part, path)
    except OSError as error:
        raise _output_error(error, path) from error
    finally:
        for leftover in (part, Path(f"{part}-journal"), Path(f"{part}.aux.xml")):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Checksum of a file, lower-case hex; OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a small file whole."""
    with whole_file(path) as part:
        part.write_bytes(data)
        if part.read_bytes() != data:
            raise OutputError(f"{path} read back differently from what was written.", "Check the disk.")


@contextlib.contextmanager
def whole_raster(
    path: Path, finish: Callable[[Path], None] | None = None, **profile: Any
) -> Iterator[Callable[[np.ndarray, Window], None]]:
    """Yields `write(array (h, w), window)` for a one-band raster; on success it becomes `path`.

    Args:
        path: final name.
        finish: called with the closed temporary file, to add tags or overviews, before it is read back.
        profile: rasterio's profile.
    """
    checksums: dict[tuple[int, int, int, int], int] = {}
    with whole_file(path) as part, _gdal_errors() as found:
        try:
            with rasterio.open(part, "w", **profile) as target:

                def write(array: np.ndarray, window: Window) -> None:
                    array = np.ascontiguousarray(array, dtype=profile["dtype"])
                    target.write(array, 1, window=window)
                    checksums[_key(window)] = zlib.crc32(array.tobytes())

                yield write
            if finish is not None:
                finish(part)
            _read_back(part, checksums, bool(profile.get("SPARSE_OK")))
        except rasterio.errors.RasterioError as error:
            raise _raster_failed(path, str(error)) from error
        except TypeError as error:  # what rasterio says of a file that lacks its header
            if "supported file format" not in str(error):
                raise
            raise _raster_failed(path, "it cannot be opened again") from error
        if found:
            raise _raster_failed(path, found[0])


@contextlib.contextmanager
def whole_layer(
    path: Path, layer: str, fields: Sequence[str], crs: str, geometry_type: str = "Polygon"
) -> Iterator[Callable[[np.ndarray, Sequence[np.ndarray]], None]]:
    """Yields `write(geometries as WKB (n,), columns [(n,), ...])` for a GeoPackage; on success it becomes `path`.

    Args:
        path: final name.
        layer: name of its one layer.
        fields: names of the columns.
        crs: WKT.
        geometry_type: OGR's name of it.
    """
    checksums: list[tuple[int, int]] = []
    with whole_file(path) as part:

        def write(shapes: np.ndarray, columns: Sequence[np.ndarray]) -> None:
            pyogrio.raw.write(
                part, shapes, list(columns), list(fields), layer=layer, driver="GPKG", geometry_type=geometry_type,
                crs=crs, append=bool(checksums),
            )  # fmt: skip
            checksums.append((len(shapes), _features_checksum(shapes, columns)))

        try:
            yield write
            if not checksums:
                write(np.array([], object), [np.array([], object) for _ in fields])
            _read_layer_back(part, checksums)
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError,
                RuntimeWarning) as error:  # fmt: skip
            raise write_failed("layer", path, str(error)) from error


def _features_checksum(shapes: np.ndarray, columns: Sequence[np.ndarray]) -> int:
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return zlib.crc32(repr([tuple(row) for row in rows]).encode(), zlib.crc32(b"".join(map(bytes, shapes))))


def _read_layer_back(part: Path, checksums: Sequence[tuple[int, int]]) -> None:
    first = 0
    with warnings.catch_warnings():
        # What GDAL only warns of when it opens the file: a header or a CRS that is not there.
        warnings.simplefilter("error", RuntimeWarning)
        for count, expected in checksums:
            meta, _, shapes, columns = pyogrio.raw.read(part, skip_features=first, max_features=max(count, 1))
            if meta["crs"] is None or len(shapes) != count or _features_checksum(shapes, columns) != expected:
                raise write_failed("layer", part, "it read back differently from what was written")
            first += count
        # The number of features is kept apart from them, and programs believe it.
        if pyogrio.read_info(part)["features"] != first:
            raise write_failed("layer", part, "its features are not all counted")


def _key(window: Window) -> tuple[int, int, int, int]:
    return int(window.col_off), int(window.row_off), int(window.width), int(window.height)


def _read_back(part: Path, checksums: dict[tuple[int, int, int, int], int], may_lack_blocks: bool) -> None:
    with rasterio.open(part) as source:
        for key, expected in checksums.items():
            if zlib.crc32(np.ascontiguousarray(source.read(1, window=Window(*key))).tobytes()) != expected:
                raise _raster_failed(part, "it read back differently from what was written")
        levels = len(source.overviews(1))
    for level in range(levels):
        with rasterio.open(part, overview_level=level) as source:
            for (row, col), window in source.block_windows(1):
                # A block that was never written would be read as one without data.
                if source.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1) is None:
                    if may_lack_blocks:
                        continue
                    raise _raster_failed(part, "a part of its overviews is missing")
                source.read(1, window=window)


def _raster_failed(path: Path, reason: str) -> OutputError:
    return write_failed("raster", path, reason)


def write_failed(what: str, path: Path, reason: str) -> OutputError:
    """The error for what a library could not write: DISK_FULL where that is why, else OUTPUT_FAILED."""
    full = "disk is full" in reason or "space" in reason.lower() or shutil.disk_usage(path.parent).free < _SPARE_BYTES
    code = "DISK_FULL" if full else "OUTPUT_FAILED"
    return OutputError(f"The {what} {path} could not be written whole: {reason}.", "Free some space, run again.", code)


@contextlib.contextmanager
def _gdal_errors() -> Iterator[list[str]]:
    """Collects what GDAL signals and rasterio swallows."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "GDAL signalled an error" in record.getMessage():
                found.append(record.getMessage())

    log, handler = logging.getLogger("rasterio._err"), Collect(logging.INFO)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield found
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _publish(part: Path, path: Path) -> None:
    handle = os.open(part, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    # Some libraries write files that nobody else may read.
    os.chmod(part, 0o666 & ~_UMASK)
    _replace(part, path)
    if os.name == "posix":
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(part: Path, path: Path) -> None:
    """os.replace, which waits a little while another program has the old file open."""
    until = time.monotonic() + _IN_USE_WAIT_S
    while True:
        try:
            os.replace(part, path)
            return
        except OSError as error:
            if getattr(error, "winerror", None) not in _IN_USE:
                raise
            if time.monotonic() > until:
                message = f"{path} is open in another program, so it cannot be replaced."
                hint = "Close it there (remove the layer in QGIS), or choose another output."
                raise OutputError(message, hint, "OUTPUT_IN_USE") from error
        time.sleep(0.05)


def _output_error(error: OSError | ValueError, path: Path) -> GeopeftError:
    if isinstance(error, ValueError):
        return OutputError(f"{path!r} is no name that a file can have ({error}).", "Choose another name.")
    if error.errno == errno.ENAMETOOLONG:
        return OutputError(f"The name of {path.name[:60]}... is too long for a file.", "Choose a shorter name.")
    if is_out_of_memory(error):
        return out_of_memory("file")
    if error.errno in _FULL:
        return OutputError(f"The disk is full: {path} could not be written.", "Free some space.", "DISK_FULL")
    if error.errno in _FORBIDDEN:
        message = f"There is no permission to write {path}."
        return OutputError(message, "Choose a folder that you may write to.", "NO_PERMISSION")
    return OutputError(f"{path} could not be written: {error.strerror or error}.", "Choose another folder.")
