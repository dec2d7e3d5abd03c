"""Arrays on the disk by a name that tells what they follow from: a bounded cache that several processes share.

A file is a line of JSON with the arrays' makes, then their values; in front a checksum of all that. It appears whole
under its name or not at all. What is damaged is deleted and counts as not there; where nothing can be written, work
goes on without it. The files that were used the longest ago go first.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import mmap
import os
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from geopeft.events import Reporter

MOST_BYTES = 8 << 30
# Of what would be free without the cache.
MOST_OF_DISK = 0.5
# With less than this, files would be deleted before they are used again.
LEAST_BYTES = 64 << 20
# Files are looked through again when so much of the bound has been written since.
CHECK_EVERY = 1 / 16
# When there are too many, so much of the bound stays.
KEPT = 0.9
SUFFIX, PART = ".features", ".part"
# What a process that was killed had begun to write.
PART_AGE_S = 3600.0
# How exactly it is known when a file was last used.
TOUCH_S = 60.0
_MAGIC = b"geopeft1"
_HEAD, _LENGTH = struct.Struct("<8sI"), struct.Struct("<I")
_ALIGNED = 64


class Store:
    """A folder of such files.

    Args:
        folder: made where it is missing.
        reporter: is told once where nothing can be kept.
        most_bytes: of all files together, and never more than half of what would be free on the disk without them.
    """

    def __init__(self, folder: Path, reporter: Reporter, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._reporter, self._most = folder, reporter, most_bytes
        self._writes = True
        self._written = 0
        self._bound = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
        except OSError as error:
            self._give_up(error)

    def get(self, name: str) -> list[np.ndarray] | None:
        """The arrays of this name, mapped into memory; None where they are not there or damaged."""
        path = self._path(name)
        try:
            with path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                # A private map: what is written to the arrays stays in this process.
                whole = status.st_size > _HEAD.size + _LENGTH.size
                view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) if whole else None
            arrays = _read(view) if view is not None else None
            if arrays is None:
                path.unlink()
            elif time.time() - status.st_mtime > TOUCH_S:
                os.utime(path)
        except OSError:
            return None
        return arrays

    def put(self, name: str, arrays: Sequence[np.ndarray]) -> None:
        """Keeps arrays of float16 or float32 under this name, if that is possible."""
        if not self._writes:
            return
        data = _packed(arrays)
        part = self._folder / f".{secrets.token_hex(8)}{PART}"
        try:
            try:
                with part.open("wb") as stream:
                    stream.writelines(data)
                os.replace(part, self._path(name))
            finally:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
            self._written += sum(map(len, data))
            if self._written > self._bound * CHECK_EVERY:
                self._make_room()
        except OSError as error:
            # Windows does not replace a file that another process reads; what that one holds is the same.
            if not self._path(name).exists():
                self._give_up(error)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"

    def _make_room(self) -> None:
        """Deletes what is too much, and finds how much may be there."""
        self._written = 0
        files = sorted(self._files())
        there = sum(size for _, size, _ in files)
        free = shutil.disk_usage(self._folder).free
        self._bound = min(self._most, int((free + there) * MOST_OF_DISK))
        if self._bound < min(self._most, LEAST_BYTES):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if there > self._bound:
            for _, size, path in files:
                with contextlib.suppress(OSError):
                    path.unlink()
                there -= size
                if there <= KEPT * self._bound:
                    break

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When a file was last used, its bytes and its path; takes away what nobody goes on writing."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    if entry.name.endswith(SUFFIX):
                        yield status.st_mtime, status.st_size, Path(entry.path)
                    elif entry.name.endswith(PART) and time.time() - status.st_mtime > PART_AGE_S:
                        os.unlink(entry.path)

    def _give_up(self, error: OSError) -> None:
        self._writes = False
        self._reporter.message(
            f"Features cannot be kept in {self._folder} ({error.strerror or error}): the training goes on without, "
            "more slowly."
        )


def _packed(arrays: Sequence[np.ndarray]) -> list[bytes]:
    """What a file of these arrays holds, in parts."""
    makes = json.dumps([[array.dtype.name, list(array.shape)] for array in arrays]).encode()
    makes += b" " * (-(_HEAD.size + _LENGTH.size + len(makes)) % _ALIGNED)
    parts = [_LENGTH.pack(len(makes)), makes]
    for array in arrays:
        values = array.tobytes()
        parts += [values, bytes(-len(values) % _ALIGNED)]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return [_HEAD.pack(_MAGIC, checksum), *parts]


def _read(view: mmap.mmap) -> list[np.ndarray] | None:
    """The arrays of a file; None unless it is just what was written."""
    magic, checksum = _HEAD.unpack_from(view)
    if magic != _MAGIC or zlib.crc32(memoryview(view)[_HEAD.size :]) != checksum:
        return None
    begin = _HEAD.size + _LENGTH.size
    at, arrays = begin + _LENGTH.unpack_from(view, _HEAD.size)[0], []
    for dtype, shape in json.loads(view[begin:at]):
        array = np.frombuffer(view, dtype, math.prod(shape), at).reshape(shape)
        arrays.append(array)
        at += array.nbytes + -array.nbytes % _ALIGNED
    return arrays
