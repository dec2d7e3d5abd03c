"""Few windows for many draws: where the features of chips are kept, chips must come again.

Windows lie on a grid, so that neighbouring places share them, and which of them are taken follows from where they are:
a place that is added leaves the others' windows as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geopeft.data.scattered import scattered

# Windows begin at multiples of this part of their side.
STEPS = 4
TURNS = 8
_BITS = 24


@dataclass(frozen=True)
class Few:
    """From how few windows chips come, and for how long.

    Args:
        windows: how many there may be, each with a turn; more where a place would have none.
        chips: so many of the first chips come from them; None: all.
    """

    windows: int
    chips: int | None = None


def few_windows(
    points: Sequence[np.ndarray],
    rasters: Sequence[int],
    odds: np.ndarray,
    shapes: Sequence[Sequence[int]],
    size_px: int,
    count: int,
) -> list[np.ndarray]:
    """For each place some windows that hold pixels of it: (n, 3) int64 rows, columns and turns (D4), n at least 1.

    Args:
        points: (p, 2) rows and columns of each place's pixels.
        rasters: the raster that each place lies in.
        odds: (places,) how often each is drawn; the sum is 1. A place has windows accordingly.
        shapes: rows and columns of each raster.
        size_px: side of the windows, which stay inside their raster where that is possible.
        count: so many different windows in all, about.
    """
    orders = [
        _ordered(own, raster, shapes[raster], size_px)[:count] for own, raster in zip(points, rasters, strict=True)
    ]
    taken, wanted = _firsts(orders, odds, count), 2 * count
    # Neighbours share windows, so that each can have more than its part.
    while any(len(own) < len(order) for own, order in zip(taken, orders, strict=True)):
        more = _firsts(orders, odds, wanted)
        if len(np.unique(np.concatenate(more))) > count:
            break
        taken, wanted = more, 2 * wanted
    return [_unpacked(own) for own in taken]


def _firsts(orders: Sequence[np.ndarray], odds: np.ndarray, count: int) -> list[np.ndarray]:
    return [order[: max(1, int(np.ceil(part * count)))] for order, part in zip(orders, odds, strict=True)]


def _ordered(points: np.ndarray, raster: int, shape: Sequence[int], size: int) -> np.ndarray:
    """Numbers of all windows with pixels of a place, each with every turn, in an order that scatters them; the more
    pixels a window holds, the likelier it comes early (Efraimidis and Spirakis 2006)."""
    rows, cols = (_begins(points[:, axis], size, shape[axis]) for axis in (0, 1))
    there = (rows >= 0)[:, :, None] & (cols >= 0)[:, None, :]
    keys = ((rows[:, :, None] << _BITS) | cols[:, None, :])[there]
    windows, pixels = np.unique(keys, return_counts=True)
    every = (windows[:, None] << 3 | np.arange(TURNS)).ravel()
    chance = (scattered(every >> _BITS, every & ((1 << _BITS) - 1)) >> np.uint64(11)) / 2.0**53
    race = -np.log(np.maximum(chance, 1e-300)) / np.repeat(pixels, TURNS)
    ordered: np.ndarray = (raster << (2 * _BITS + 3)) | every[np.argsort(race, kind="stable")]
    return ordered


def _begins(at: np.ndarray, size: int, length: int) -> np.ndarray:
    """(p, n) where windows of the grid begin that hold these places, -1 for none; inside the raster."""
    step = max(1, size // STEPS)
    begins = at[:, None] // step * step - step * np.arange(-(-size // step))
    holds = begins + size > at[:, None]
    if length < size:
        return np.where(holds[:, :1], 0, -1)
    return np.where(holds, begins.clip(0, length - size), -1)


def _unpacked(numbers: np.ndarray) -> np.ndarray:
    mask = (1 << _BITS) - 1
    return np.stack([(numbers >> (_BITS + 3)) & mask, (numbers >> 3) & mask, numbers & (TURNS - 1)], axis=1)
