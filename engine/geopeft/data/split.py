"""Which labels teach and which are held out, in separate places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import KDTree

from geopeft.data.chips import Site

VALIDATION_SHARE = 0.25
# A class may give up to this part of its labels, so that a block that one class needs is not refused by another.
MOST_HELD_OUT = 0.4
_MAX_BLOCKS_PER_SIDE = 8
# Squares that a class is to lie in, and the steps in which squares are made smaller for it.
_ENOUGH_BLOCKS, _SMALLER = 4, 0.8
# Places no farther apart than this part of a square's side lie close together.
_NEAR = 0.5
# Places that are compared pair by pair, distances that are told apart, and pairs that say something of one of them.
_MOST_PLACES, _DISTANCES, _FEWEST_PAIRS = 400, 10, 40
# Places of one class beyond chance, as a share of all there could be, from which on they count as alike.
_ALIKE = 0.1
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

    The ground is cut into squares as wide as labels of one class keep together, and at least one chip
    (`block_side_px`); a place belongs to one square and is never cut, nor is a spot of places close together
    (`squares_of`). A place counts by the root of its pixels. Squares are drawn one after another; one is held out while
    a class in it still needs validation and no class in it loses more than 40 % of its labels. A class with fewer than
    `enough` places is not validated: it needs all of them to be learned.

    Args:
        sites: all labelled places.
        chip_size_px: side of a chip.
        seed: of the drawing.
        enough: places that a class needs before one is held out.
        earlier: for each place what it was to the model that this training starts from: TAUGHT, HELD or neither. What
            was held out stays so, and no square is held out in which that model has learned.
    """
    blocks = blocks_of(sites, chip_size_px)
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


def blocks_of(sites: Sequence[Site], least_px: float) -> list[tuple[int, int, int]]:
    """(raster, block row, block column) of every site, in squares of `block_side_px` (see `squares_of`)."""
    centres = np.array([site.points.mean(0) for site in sites])
    rasters = np.array([site.raster_index for site in sites])
    classes = np.array([site.class_index for site in sites])
    squares = np.zeros((len(sites), 2), np.int64)
    for raster in np.unique(rasters).tolist():
        own = rasters == raster
        squares[own] = squares_of(centres[own], block_side_px(centres[own], classes[own], least_px))
    return [(site.raster_index, row, col) for site, (row, col) in zip(sites, squares.tolist(), strict=True)]


def squares_of(centres: np.ndarray, side: float) -> np.ndarray:
    """(n, 2) row and column of the square that each place belongs to: that of its centre.

    Places that lie close together, with free ground around them, belong to the square of their common middle: a line of
    the grid through such a group would set neighbours against each other, and count one spot as several.

    Args:
        centres: (n, 2) row and column of the places of a raster, whose extent is at most some tens of squares.
        side: of the squares.
    """
    homes = centres.astype(np.float64)
    if not len(homes):
        return homes.astype(np.int64)
    pairs = KDTree(homes).query_pairs(side * _NEAR, output_type="ndarray")
    links = sparse.coo_array((np.ones(len(pairs), bool), pairs.T), (len(homes), len(homes)))
    group = csgraph.connected_components(links, directed=False)[1]
    for number in np.flatnonzero(np.bincount(group) > 1):
        own = group == number
        low, high = centres[own].min(0), centres[own].max(0)
        if (high - low).max() <= side:
            homes[own] = (low + high) / 2
    return (homes // side).astype(np.int64)


def block_side_px(centres: np.ndarray, classes: np.ndarray, least_px: float) -> float:
    """Side of the squares of ground that are held out, or counted, as one (Roberts et al. 2017, Ecography 40).

    As far as labels of one class keep together, but at least `least_px` and an eighth of the labels' extent; smaller
    than they keep together where a class would lie in fewer than four squares and need not.

    Args:
        centres: (n, 2) row and column of the labelled places of a raster.
        classes: (n,) their classes.
        least_px: what lies nearer can see each other.
    """
    extent = float((centres.max(0) - centres.min(0)).max()) if len(centres) else 0.0
    least = max(least_px, extent / _MAX_BLOCKS_PER_SIDE)
    wanted = min(correlation_range_px(centres, classes), extent)
    enough = np.minimum(_squares_of_classes(centres, classes, least), _ENOUGH_BLOCKS)
    side = max(wanted, least)
    while side > least and (_squares_of_classes(centres, classes, side) < enough).any():
        side = max(side * _SMALLER, least)
    return side


def _squares_of_classes(centres: np.ndarray, classes: np.ndarray, side: float) -> np.ndarray:
    """(K,) in how many squares each class lies."""
    found = np.unique(np.column_stack([classes, squares_of(centres, side)]), axis=0)
    return np.bincount(found[:, 0])


def correlation_range_px(centres: np.ndarray, classes: np.ndarray) -> float:
    """The distance within which places are of one class clearly more often than by chance.

    A correlogram of the classes (join counts, Cliff and Ord 1981) over distances with as many pairs each, made to fall
    (isotonic regression); 0 where even neighbours do not resemble each other, infinite where all places do.
    """
    some = np.random.default_rng(0).permutation(len(classes))[:_MOST_PLACES]
    centres, classes = centres[some], classes[some]
    by_chance = float(((np.bincount(classes) / max(len(classes), 1)) ** 2).sum())
    first, second = np.triu_indices(len(classes), 1)
    if len(first) < _FEWEST_PAIRS or by_chance > 0.999:
        return 0.0
    distances = np.hypot(*(centres[first] - centres[second]).T)
    order = np.argsort(distances, kind="stable")
    alike = (classes[first] == classes[second])[order]
    bins = np.array_split(np.arange(len(order)), min(_DISTANCES, len(order) // (_FEWEST_PAIRS // 2)))
    excess = _falling(np.array([(alike[own].mean() - by_chance) / (1 - by_chance) for own in bins]))
    below = np.flatnonzero(excess < _ALIKE)
    if not below.size:
        return float("inf")
    return float(distances[order[bins[below[0]][0]]]) if below[0] else 0.0


def _falling(values: np.ndarray) -> np.ndarray:
    """The nearest sequence that never rises, by pooling neighbours that do."""
    pools: list[tuple[float, int]] = []
    for value in values.tolist():
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (one, few), (other, more) = pools[-2:]
            pools[-2:] = [((one * few + other * more) / (few + more), few + more)]
    return np.concatenate([np.full(count, value) for value, count in pools])
