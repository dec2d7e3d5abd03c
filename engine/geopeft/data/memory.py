"""Where on the ground labels taught a model and where they were held out, for the training that goes on from it.

The ground is remembered as checksums of small cells in the raster's CRS: enough to know a place again, in another
raster of the same place too, and nothing that could be drawn on a map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopeft.data.chips import Site
from geopeft.data.raster import RasterInfo
from geopeft.data.split import HELD, TAUGHT

CELL_PX = 16
MOST_CELLS = 50_000
_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Memory:
    """Cells in which a model's labels lay.

    Args:
        sides: sides of the cells, in units of the CRS.
        taught, held: checksums of the cells, sorted.
    """

    sides: NDArray[np.float64]
    taught: NDArray[np.int64]
    held: NDArray[np.int64]

    @classmethod
    def of(
        cls, infos: Sequence[RasterInfo], taught: Sequence[Site], held: Sequence[Site], earlier: Memory | None = None
    ) -> Memory:
        """What these sites leave behind, after what is remembered from before."""
        side_px = CELL_PX
        while True:
            sides = np.array([side_px * _pixel_side(info) for info in infos])
            cells = [_all_cells(infos, sites, sides) for sites in (taught, held)]
            if max(map(len, cells)) <= MOST_CELLS:
                break
            side_px *= 2
        if earlier is not None:
            cells = [np.union1d(cells[0], earlier.taught), np.union1d(cells[1], earlier.held)]
            sides = np.concatenate([sides, earlier.sides])
        return cls(np.unique(sides), *cells)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Memory | None:
        """Takes what `arrays` gave out of a mapping; None where it is not there."""
        parts = [arrays.get(name) for name in ("memory.sides", "memory.taught", "memory.held")]
        if any(part is None or part.ndim != 1 or len(part) > 20 * MOST_CELLS for part in parts):
            return None
        sides, taught, held = (np.asarray(part) for part in parts)
        return cls(sides.astype(np.float64), taught.astype(np.int64), held.astype(np.int64))

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays by name."""
        return {"memory.sides": self.sides, "memory.taught": self.taught, "memory.held": self.held}

    def roles(self, infos: Sequence[RasterInfo], sites: Iterable[Site]) -> list[str]:
        """What each place was: TAUGHT where any part of it has taught, HELD where it was held out, else ""."""
        found = []
        for site in sites:
            cells = np.concatenate([_cells(infos[site.raster_index], site, float(side)) for side in self.sides])
            taught, held = np.isin(cells, self.taught).any(), np.isin(cells, self.held).any()
            found.append(TAUGHT if taught else HELD if held else "")
        return found


def _all_cells(infos: Sequence[RasterInfo], sites: Sequence[Site], sides: NDArray[np.float64]) -> NDArray[np.int64]:
    found = [_cells(infos[site.raster_index], site, float(sides[site.raster_index])) for site in sites]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _cells(info: RasterInfo, site: Site, side: float) -> NDArray[np.int64]:
    """Checksums of the cells that a place's points lie in."""
    rows, cols = site.points.T + 0.5
    affine = info.geobox.affine
    x = affine.a * cols + affine.b * rows + affine.c
    y = affine.d * cols + affine.e * rows + affine.f
    start = hashlib.blake2b(f"{info.crs.to_wkt()} {side:.9g}".encode(), digest_size=8).digest()
    value = np.full(len(x), np.frombuffer(start, np.uint64)[0])
    with np.errstate(over="ignore"):
        for axis in (x, y):
            value = _mixed(value ^ np.floor(axis / side).astype(np.int64).view(np.uint64))
    cells: NDArray[np.int64] = np.unique(value).view(np.int64)
    return cells


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014)."""
    value = value + _MIX[0]
    value = (value ^ (value >> np.uint64(30))) * _MIX[1]
    value = (value ^ (value >> np.uint64(27))) * _MIX[2]
    return value ^ (value >> np.uint64(31))


def _pixel_side(info: RasterInfo) -> float:
    affine = info.geobox.affine
    return float(abs(affine.a * affine.e - affine.b * affine.d) ** 0.5)
