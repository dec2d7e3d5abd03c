"""Folds of labelled places: every place that can be judged is held out once, with its whole block."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from geopeft.data.chips import Site


def deal_blocks(
    sites: Sequence[Site], blocks: Sequence[Hashable], held: Sequence[bool], count: int, seed: int
) -> list[list[int]]:
    """Deals the blocks that were not held out yet into folds, so that each holds about as much of every class.

    A block goes into one fold with all its places, and a shape that several blocks share keeps these together. The only
    block of a class always teaches, and so does one of a class's blocks in every fold.

    Args:
        sites: all labelled places.
        blocks: the block of each.
        held: whether a place was held out in an earlier fold; its block is dealt no more.
        count: how many folds at most.
        seed: of the order in which equal blocks are dealt.

    Returns:
        For each fold the positions of its places; folds without any are left out.
    """
    unit = _units(sites, blocks)
    there = np.zeros((unit.max() + 1, max(site.class_index for site in sites) + 1))
    for site, own in zip(sites, unit, strict=True):
        there[own, site.class_index] += 1
    spread: np.ndarray = (there > 0).sum(0)
    used = set(unit[np.flatnonzero(held)].tolist())
    alone: np.ndarray = np.any(there[:, spread == 1] > 0, axis=1)
    free = [number for number in range(len(there)) if number not in used and not alone[number]]
    random = np.random.default_rng(seed).permutation(len(there))
    # Blocks with a rare class first, while every fold has room for them.
    free.sort(key=lambda number: (spread[there[number] > 0].min(), -there[number].sum(), random[number]))
    share, members = np.zeros((count, there.shape[1])), np.zeros((count, there.shape[1]))
    dealt: dict[int, int] = {}
    for number in free:
        own = there[number] / np.maximum(there.sum(0), 1)
        fits = [fold for fold in range(count) if ((members[fold] + (own > 0))[own > 0] < spread[own > 0]).all()]
        if fits:
            fold = min(fits, key=lambda f: (float((share[f] + own)[own > 0].max()), float(share[f].sum()), f))
            share[fold] += own
            members[fold] += own > 0
            dealt[number] = fold
    folds = [[at for at, own in enumerate(unit.tolist()) if dealt.get(own) == fold] for fold in range(count)]
    return [fold for fold in folds if fold]


def _units(sites: Sequence[Site], blocks: Sequence[Hashable]) -> np.ndarray:
    """(n,) the number of each place's unit: places in one block, or of one shape or square of the background."""
    parent = list(range(len(sites)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    first: dict[Hashable, int] = {}
    for at, (site, block) in enumerate(zip(sites, blocks, strict=True)):
        for key in (("block", block), ("group", site.raster_index, site.group)):
            parent[root(at)] = root(first.setdefault(key, at))
    return np.unique([root(at) for at in range(len(sites))], return_inverse=True)[1]
