"""Which files of a folder are rasters to map. Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

PATTERNS = "*.tif;*.tiff;*.vrt;*.jp2;*.img"
# The names that the engine gives to the maps of a raster.
_MAP = re.compile(r"(.+)_map(_\d+)?(_confidence|_entropy|_outside)?")


def split_patterns(text: str) -> tuple[str, ...]:
    """The parts of `*.tif; *.vrt`; empty text means the usual formats."""
    parts = [part.strip().casefold() for part in re.split("[;,]", text or PATTERNS)]
    return tuple(part for part in parts if part)


def walk(folder: str, patterns: Sequence[str], recursive: bool, leave_out: str = "") -> Iterator[str]:
    """Files in a folder whose names fit, without order; folders that cannot be read are passed over.

    Args:
        folder: where to look.
        patterns: as from `split_patterns`; upper and lower case are the same.
        recursive: in the folders below, too. Links to folders are not followed, they may lead in a circle.
        leave_out: a folder below `folder` whose files are not meant, such as that of the maps.
    """
    out = os.path.realpath(leave_out) if leave_out else ""
    for place, folders, names in os.walk(folder):
        if os.path.realpath(place) == out and place != folder:
            folders.clear()
            continue
        for name in names:
            if not name.startswith(".") and any(fnmatchcase(name.casefold(), pattern) for pattern in patterns):
                yield os.path.join(place, name)
        if not recursive:
            return


def without_maps(paths: Iterable[str]) -> list[str]:
    """The paths in the order of their names, without maps of rasters that are among them."""
    listed = sorted(set(paths), key=_natural)
    stems = {Path(path).stem.casefold() for path in listed}

    def is_map(path: str) -> bool:
        match = _MAP.fullmatch(Path(path).stem)
        return match is not None and match[1].casefold() in stems

    return [path for path in listed if not is_map(path)]


def _natural(path: str) -> list[tuple[int, int, str]]:
    """A sort key that puts tile 2 before tile 10."""
    parts = re.split(r"(\d+)", path.casefold())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
