"""Which labels teach and which are held out, in separate places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geopeft.data.chips import Site

VALIDATION_SHARE = 0.25
_MAX_BLOCKS_PER_SIDE = 8


@dataclass(frozen=True)
class Split:
    """Sites for training and for validation, and which block each validation site lies in."""

    training: tuple[Site, ...]
    validation: tuple[Site, ...]
    sentence: str


def split_by_blocks(sites: Sequence[Site], chip_size_px: int, seed: int, enough: int = 3) -> Split:
    """Holds out whole blocks of the ground with about a quarter of each class's shapes.

    The ground is cut into squares at least one chip wide and at most an eighth of the labels' extent, a shape belongs
    to the square of its centre and is never cut. Squares are drawn one after another; one is held out while every
    class in it still needs validation and keeps at least two thirds of its shapes for training. A class with fewer
    than `enough` shapes is not validated: it needs all of them to be learned.

    Args:
        sites: all labelled places.
        chip_size_px: side of a chip.
        seed: of the drawing.
        enough: shapes that a class needs before one is held out.
    """
    blocks = _blocks(sites, chip_size_px)
    totals: dict[int, int] = {}
    for site in sites:
        totals[site.class_index] = totals.get(site.class_index, 0) + 1
    wanted = {c: round(n * VALIDATION_SHARE) if n >= enough else 0 for c, n in totals.items()}
    wanted = {c: max(1, n) if totals[c] >= enough else 0 for c, n in wanted.items()}
    limit = {c: max(wanted[c], totals[c] // 3) if wanted[c] else 0 for c in totals}
    held = dict.fromkeys(totals, 0)
    chosen: set[tuple[int, int, int]] = set()
    keys = sorted(set(blocks))
    for index in np.random.default_rng(seed).permutation(len(keys)):
        counts: dict[int, int] = {}
        for site, block in zip(sites, blocks, strict=True):
            if block == keys[index]:
                counts[site.class_index] = counts.get(site.class_index, 0) + 1
        useful = any(held[c] < wanted[c] for c in counts)
        if useful and all(held[c] + n <= limit[c] for c, n in counts.items()):
            chosen.add(keys[index])
            for c, n in counts.items():
                held[c] += n
    training = tuple(site for site, block in zip(sites, blocks, strict=True) if block not in chosen)
    validation = tuple(site for site, block in zip(sites, blocks, strict=True) if block in chosen)
    held_out = f"{len(validation)} of {len(sites)} labelled places, in {len(chosen)} blocks,"
    return Split(training, validation, f"{held_out} are held out for validation.")


def _blocks(sites: Sequence[Site], chip_size_px: int) -> list[tuple[int, int, int]]:
    """(raster, block row, block column) of every site."""
    centres = np.array([site.points.mean(0) for site in sites])
    rasters = np.array([site.raster_index for site in sites])
    result = []
    for site, centre in zip(sites, centres, strict=True):
        own = centres[rasters == site.raster_index]
        extent = float((own.max(0) - own.min(0)).max())
        side = max(chip_size_px, extent / _MAX_BLOCKS_PER_SIDE)
        result.append((site.raster_index, int(centre[0] // side), int(centre[1] // side)))
    return result
