"""Which labels teach and which are held out, in separate places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geopeft.data.chips import Site

VALIDATION_SHARE = 0.25
# A class may give up to this part of its labels, so that a block that one class needs is not refused by another.
MOST_HELD_OUT = 0.4
_MAX_BLOCKS_PER_SIDE = 8
TAUGHT, HELD = "taught", "held"


@dataclass(frozen=True)
class Split:
    """Sites for training and for validation, and which block each validation site lies in."""

    training: tuple[Site, ...]
    validation: tuple[Site, ...]
    sentence: str


def split_by_blocks(
    sites: Sequence[Site], chip_size_px: int, seed: int, enough: int = 3, earlier: Sequence[str] = ()
) -> Split:
    """Holds out whole blocks of the ground with about a quarter of each class's labels.

    The ground is cut into squares at least one chip wide and at most an eighth of the labels' extent; a place belongs
    to the square of its centre and is never cut. A place counts by the root of its pixels. Squares are drawn one after
    another; one is held out while a class in it still needs validation and no class in it loses more than 40 % of its
    labels. A class with fewer than `enough` places is not validated: it needs all of them to be learned.

    Args:
        sites: all labelled places.
        chip_size_px: side of a chip.
        seed: of the drawing.
        enough: places that a class needs before one is held out.
        earlier: for each place what it was to the model that this training starts from: TAUGHT, HELD or neither. What
            was held out stays so, and no square is held out in which that model has learned.
    """
    blocks = _blocks(sites, chip_size_px)
    classes = max(site.class_index for site in sites) + 1
    places = np.bincount([site.class_index for site in sites], minlength=classes)
    keys = sorted(set(blocks))
    roles = list(earlier) or [""] * len(sites)
    weights, held = np.zeros((len(keys), classes)), np.zeros(classes)
    for site, block, role in zip(sites, blocks, roles, strict=True):
        own = held if role == HELD else weights[keys.index(block)]
        own[site.class_index] += np.sqrt(site.pixels)
    totals = np.where(places >= enough, weights.sum(0) + held, 0.0)
    learned = {block for block, role in zip(blocks, roles, strict=True) if role == TAUGHT}
    chosen: set[tuple[int, int, int]] = set()
    for index in np.random.default_rng(seed).permutation(len(keys)):
        there = weights[index] > 0
        useful = ((held < VALIDATION_SHARE * totals) & there).any()
        spared = (held + weights[index] <= MOST_HELD_OUT * totals)[there].all()
        if keys[index] not in learned and useful and spared:
            chosen.add(keys[index])
            held += weights[index]
    out = [role == HELD or block in chosen for block, role in zip(blocks, roles, strict=True)]
    training = tuple(site for site, is_out in zip(sites, out, strict=True) if not is_out)
    validation = tuple(site for site, is_out in zip(sites, out, strict=True) if is_out)
    squares = len({block for block, is_out in zip(blocks, out, strict=True) if is_out})
    held_out = f"{len(validation)} of {len(sites)} labelled places, in {squares} blocks,"
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
