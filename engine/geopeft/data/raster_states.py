"""What tells one state of a raster from another: its files, and where it lies in a store, what it holds.

A web server says when a file was changed. Of a store GDAL keeps that to itself, so a few places of the raster are
looked at: where its blocks lie, which moves with whatever is written before them, its coarsest overview, and three
blocks.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rasterio.windows import Window

from geopeft.data.raster_sources import archive_of, is_remote

HEADER_BYTES = 1 << 16
MOST_FILES, MOST_REMOTE, MOST_PLACES = 256, 16, 64
# An overview, or a block, of more pixels is not read for this.
MOST_PIXELS = 1 << 20


def own_files(path: str, dataset: Any) -> tuple[str, ...]:
    """The files whose change changes the pixels; of a VRT also its sources (the first 256)."""
    files = [name for name in [path, archive_of(path), *dataset.files] if os.path.isfile(name)]
    kept = [name for name in dict.fromkeys(files) if not name.lower().endswith((".aux.xml", ".ovr"))]
    return tuple(kept[:MOST_FILES])


def remote_files(path: str, dataset: Any) -> tuple[str, ...]:
    """The raster itself where it is a remote one; of a VRT the remote ones among its sources (the first 16)."""
    if is_remote(path):
        return (path,)
    return tuple([name for name in dataset.files if is_remote(name)][:MOST_REMOTE])


def fingerprint(files: Sequence[str], remote_states: Sequence[str]) -> str:
    """Size, time of change and a hash of the first bytes, of each file; of remote ones their states."""
    digest = hashlib.sha256("".join(remote_states).encode())
    for name in files:
        try:
            stat = os.stat(name)
            with open(name, "rb") as file:
                digest.update(f"{stat.st_size} {stat.st_mtime_ns} ".encode() + file.read(HEADER_BYTES))
        except OSError:
            digest.update(b"gone")
    return digest.hexdigest()


def content_of(dataset: Any) -> str:
    """A checksum of a raster's header, of where up to 64 of its blocks lie, of its coarsest overview and of its first,
    middle and last block.

    A change that leaves all of these as they were is not seen: other values in a few blocks of a file that is not
    compressed and has no overviews.

    Args:
        dataset: rasterio's, open.

    Raises:
        rasterio.errors.RasterioError: a block cannot be read.
    """
    about = (dataset.driver, dataset.shape, dataset.dtypes, tuple(dataset.transform), str(dataset.crs), dataset.tags())
    digest = hashlib.sha256(repr((*about, dataset.nodatavals, list(_places(dataset)))).encode())
    for values in _pixels(dataset):
        digest.update(values.tobytes())
    return digest.hexdigest()


def _blocks(dataset: Any, count: int) -> list[tuple[int, int]]:
    """(row, col) of so many of the first band's blocks, the first and the last among them."""
    rows, cols = dataset.block_shapes[0]
    down, across = math.ceil(dataset.height / rows), math.ceil(dataset.width / cols)
    numbers = np.unique(np.linspace(0, down * across - 1, count).astype(np.int64)).tolist()
    return [(number // across, number % across) for number in numbers]


def _places(dataset: Any) -> Iterator[str | None]:
    """Where blocks lie in a TIFF, and their bytes."""
    if dataset.driver in ("GTiff", "COG"):
        for row, col in _blocks(dataset, MOST_PLACES):
            for band in {1, dataset.count}:
                for what in ("OFFSET", "SIZE"):
                    yield dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=band)


def _pixels(dataset: Any) -> Iterator[Any]:
    """Values of the first band."""
    factor = max(dataset.overviews(1), default=0)
    if factor:
        shape = (math.ceil(dataset.height / factor), math.ceil(dataset.width / factor))
        if math.prod(shape) <= MOST_PIXELS:
            yield dataset.read(1, out_shape=shape)
    rows, cols = dataset.block_shapes[0]
    if rows * cols <= MOST_PIXELS:
        for row, col in _blocks(dataset, 3):
            top, left = row * rows, col * cols
            yield dataset.read(
                1, window=Window(left, top, min(cols, dataset.width - left), min(rows, dataset.height - top))
            )
