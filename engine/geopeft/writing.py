"""Files that appear whole at their final name or not at all.

A temporary name in the target folder, closed, read back, fsynced, moved with os.replace, folder fsynced: a kill or a
full disk at any moment leaves the old file or the new one. GDAL through rasterio keeps a full disk to itself, so its
log is watched and every window is read back and compared.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from geopeft.errors import OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_SPARE_BYTES = 8 << 20


def check_target(path: Path, expected_bytes: int = 0) -> None:
    """OutputError before the work begins, where the result could not be written after it."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(6)}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _output_error(error, path) from error
    if path.is_dir():
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
    part = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield part
        _publish(part, path)
    except OSError as error:
        raise _output_error(error, path) from error
    finally:
        for leftover in (part, Path(f"{part}-journal"), Path(f"{part}.aux.xml")):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


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
            _read_back(part, checksums)
        except rasterio.errors.RasterioError as error:
            raise _raster_failed(path, str(error)) from error
        if found:
            raise _raster_failed(path, found[0])


def _key(window: Window) -> tuple[int, int, int, int]:
    return int(window.col_off), int(window.row_off), int(window.width), int(window.height)


def _read_back(part: Path, checksums: dict[tuple[int, int, int, int], int]) -> None:
    with rasterio.open(part) as source:
        for key, expected in checksums.items():
            if zlib.crc32(np.ascontiguousarray(source.read(1, window=Window(*key))).tobytes()) != expected:
                raise _raster_failed(part, "it read back differently from what was written")


def _raster_failed(path: Path, reason: str) -> OutputError:
    full = "space" in reason.lower() or shutil.disk_usage(path.parent).free < _SPARE_BYTES
    code = "DISK_FULL" if full else "OUTPUT_FAILED"
    return OutputError(f"The raster {path} could not be written whole: {reason}.", "Free some space, run again.", code)


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
    os.replace(part, path)
    if os.name == "posix":
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _output_error(error: OSError, path: Path) -> OutputError:
    if error.errno in _FULL:
        return OutputError(f"The disk is full: {path} could not be written.", "Free some space.", "DISK_FULL")
    if error.errno in _FORBIDDEN:
        message = f"There is no permission to write {path}."
        return OutputError(message, "Choose a folder that you may write to.", "NO_PERMISSION")
    return OutputError(f"{path} could not be written: {error.strerror or error}.", "Choose another folder.")
