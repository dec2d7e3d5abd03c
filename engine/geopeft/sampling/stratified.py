"""Area and accuracy from a stratified random sample: how many points, and what they say (Olofsson et al. 2014).

Olofsson, Foody, Herold, Stehman, Woodcock, Wulder: Good practices for estimating area and assessing accuracy of land
change, Remote Sensing of Environment 148. Strata are mapped classes; a reference class need not be mapped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

CONFIDENCE = 0.95
_Z = float(special.ndtri(0.5 + CONFIDENCE / 2))
# A stratum's spread needs so many points, unless they are all of its pixels.
FEWEST_POINTS = 2
# Up to here the share of the pixels that are in the sample does not count (Cochran 1977, section 2.6).
_SMALL_SHARE = 0.05


@dataclass(frozen=True)
class Estimate:
    """A figure, its standard error, and the ends of its 95 % interval."""

    value: float
    se: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Estimates:
    """What a sample says; None where it says nothing.

    Args:
        overall: share of the area that is mapped right.
        areas: (K) of each class, in the strata's unit.
        users, producers: (K) accuracy of each class.
        counts, shares: (H, K) points of each stratum by reference class, and the share of the area that they stand for.
        judged: (H,) whether a stratum has points enough.
    """

    overall: Estimate | None
    areas: tuple[Estimate | None, ...]
    users: tuple[Estimate | None, ...]
    producers: tuple[Estimate | None, ...]
    counts: np.ndarray
    shares: np.ndarray
    judged: np.ndarray


def points_needed(areas: np.ndarray, pixels: np.ndarray, standard_error: float, expected: float | np.ndarray) -> int:
    """Points for a standard error of the overall accuracy (Cochran 1977, eq. 5.25; Olofsson et al. 2014, eq. 13).

    Args:
        areas, pixels: (H,) of the strata.
        standard_error: what is wanted.
        expected: user's accuracy that is expected of the strata, or of each (H,).
    """
    share, spread = areas / areas.sum(), np.sqrt(expected * (1 - np.asarray(expected)))
    need = float((share * spread).sum()) ** 2
    return math.ceil(need / (standard_error**2 + float((share * spread**2).sum()) / float(pixels.sum())))


def allocate(total: int, areas: np.ndarray, pixels: np.ndarray, fewest: int) -> np.ndarray:
    """(H,) points of each stratum: in proportion to area, but no fewer than `fewest` and no more than its pixels.

    Small strata get `fewest`, and the others share the rest. Where `total` does not suffice for that, it is exceeded.
    """
    least = np.asarray(np.minimum(fewest, pixels), np.int64)
    given: np.ndarray = least.copy()
    free = np.ones(len(areas), bool)
    while free.any():
        rest = max(total - int(given[~free].sum()), 0)
        wanted = _rounded(rest * areas[free] / areas[free].sum(), rest)
        at = np.flatnonzero(free)
        short, over = wanted < least[at], wanted > pixels[at]
        if not (short | over).any():
            given[at] = wanted
            break
        # One kind at a time: what is cut from full strata may lift the small ones.
        fixed = short if short.any() else over
        given[at[fixed]] = np.where(short, least[at], pixels[at])[fixed]
        free[at[fixed]] = False
    return given


def _rounded(parts: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers with this sum, next to the parts (largest remainders)."""
    whole: np.ndarray = np.floor(parts).astype(np.int64)
    most = np.argsort(-(parts - whole), kind="stable")[: total - int(whole.sum())]
    whole[most] += 1
    return whole


def estimate(
    strata: np.ndarray,
    reference: np.ndarray,
    point_areas: np.ndarray,
    areas: np.ndarray,
    pixels: np.ndarray,
    mapped: Sequence[int],
    num_classes: int,
) -> Estimates:
    """The stratified estimators of Olofsson et al. (2014), equations 1 to 11.

    Where pixels differ in area, a stratum's shares are ratios of areas (Cochran 1977, section 6.11), which for equal
    pixels are those of the paper; standard errors carry the correction for a finite population where more than 5 % of
    a stratum's pixels are in the sample. Intervals are not the value and 1.96 standard errors on both sides, which hold
    too rarely where a stratum shows no error or few: each stratum has Wilson's interval (1927), and those of sums and
    ratios are recovered from them (MOVER: Zou and Donner 2008, Statistics in Medicine 27; Donner and Zou 2012,
    Statistical Methods in Medical Research 21).

    Args:
        strata, reference, point_areas: (n,) stratum, reference class and pixel area of each labelled point.
        areas, pixels: (H,) of the strata; areas in any unit.
        mapped: (H) class that each stratum is mapped as; -1 for none.
        num_classes: reference classes, those without points too.
    """
    shape = (len(areas), num_classes)
    cell = strata * num_classes + reference

    def summed(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.bincount(cell, values, shape[0] * num_classes).reshape(shape))

    sample = _Sample(summed(np.ones(len(cell))), summed(point_areas), summed(point_areas**2), areas, pixels)
    own = np.array(mapped)[:, None] == np.arange(num_classes)
    users = tuple(sample.within(k, own[:, k]) for k in range(num_classes))
    nothing: tuple[Estimate | None, ...] = (None,) * num_classes
    complete = bool(sample.judged.all())
    seen = sample.counts.sum(0) > 0
    total = float(areas.sum())
    return Estimates(
        overall=sample.total(own) if complete else None,
        areas=tuple(_scaled(sample.total(_column(shape, k)), total) if seen[k] else None for k in range(num_classes))
        if complete
        else nothing,
        users=users,
        producers=tuple(sample.found(k, own[:, k]) if seen[k] and own[:, k].any() else None for k in range(num_classes))
        if complete
        else nothing,
        counts=sample.counts.astype(np.int64),
        shares=sample.shares * sample.weights[:, None],
        judged=sample.judged,
    )


def wilson(share: Any, inverse: Any) -> tuple[Any, Any]:
    """Wilson's 95 % interval (1927, Journal of the American Statistical Association 22) of shares; numbers or arrays.

    Args:
        inverse: one over the number of independent points; 0 where all is known.
    """
    narrowing = 1 + _Z**2 * inverse
    middle = (share + _Z**2 * inverse / 2) / narrowing
    half = _Z / narrowing * np.sqrt(share * (1 - share) * inverse + (_Z * inverse / 2) ** 2)
    return np.clip(np.minimum(middle - half, share), 0, 1), np.clip(np.maximum(middle + half, share), 0, 1)


def _column(shape: tuple[int, int], number: int) -> np.ndarray:
    chosen = np.zeros(shape, bool)
    chosen[:, number] = True
    return chosen


def _scaled(one: Estimate, factor: float) -> Estimate:
    return Estimate(one.value * factor, one.se * factor, one.low * factor, one.high * factor)


class _Sample:
    """Sums over the points of each stratum and class, all (H, K): their number, areas, and squared areas."""

    def __init__(
        self, counts: np.ndarray, sums: np.ndarray, squares: np.ndarray, areas: np.ndarray, pixels: np.ndarray
    ) -> None:
        self.counts, self._sums, self._squares = counts, sums, squares
        self._points, self._total = counts.sum(1), sums.sum(1)
        self.weights = areas / areas.sum()
        self.judged = (self._points >= FEWEST_POINTS) | ((self._points >= pixels) & (self._points > 0))
        self.shares = sums / np.maximum(self._total, 1e-300)[:, None]
        taken = np.minimum(self._points / pixels, 1.0)
        self._unseen = np.where(taken > _SMALL_SHARE, 1 - taken, 1.0)

    def total(self, chosen: np.ndarray) -> Estimate:
        """Share of the whole area that chosen cells (H, K) have."""
        return self._sum(chosen, self.weights)

    def within(self, number: int, strata: np.ndarray) -> Estimate | None:
        """Share of one class within some strata (H,); None where one of them has too few points."""
        if not strata.any() or not self.judged[strata].all():
            return None
        weights = np.where(strata, self.weights, 0)
        return self._sum(_column(self.counts.shape, number), weights / weights.sum())

    def found(self, number: int, strata: np.ndarray) -> Estimate:
        """Share of one class that lies within some strata (H,); the class must have been seen.

        What lies inside and what lies outside come from different strata, so they are independent.
        """
        column = _column(self.counts.shape, number)
        inside = self._sum(column, np.where(strata, self.weights, 0))
        outside = self._sum(column, np.where(strata, 0, self.weights))
        whole = inside.value + outside.value
        value = inside.value / whole
        se = math.hypot((1 - value) * inside.se, value * outside.se) / whole

        def gap(share: float, one: float, other: float) -> float:
            ends = math.hypot((1 - share) * (inside.value - one), share * (outside.value - other))
            return (1 - share) * inside.value - share * outside.value + math.copysign(ends, one - inside.value)

        low = _root(lambda share: gap(share, inside.low - 1e-12, outside.high), 0.0, value)
        high = _root(lambda share: gap(share, inside.high + 1e-12, outside.low), value, 1.0)
        return Estimate(value, se, low, high)

    def _sum(self, chosen: np.ndarray, weights: np.ndarray) -> Estimate:
        share, variance, low, high = self._of_strata(chosen)
        value = float((weights * share).sum())
        down = math.sqrt(float(((weights * (share - low)) ** 2).sum()))
        up = math.sqrt(float(((weights * (high - share)) ** 2).sum()))
        se = math.sqrt(float((weights**2 * variance).sum()))
        ends = [max(value - down, 0.0), min(value + up, float(weights.sum()))]
        if se > 0:
            # Where all strata are near the same end, what moves their intervals adds up, which MOVER does not see.
            whole = float(weights.sum())
            part = value / whole
            low_all, high_all = wilson(part, (se / whole) ** 2 / (part * (1 - part)))
            ends = [min(ends[0], low_all * whole), max(ends[1], high_all * whole)]
        return Estimate(value, se, *ends)

    def _of_strata(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(H,) share of chosen cells in each stratum, its variance, and its interval."""
        points, total = np.maximum(self._points, 1), np.maximum(self._total, 1e-300)
        share = (self._sums * chosen).sum(1) / total
        squares, hits = self._squares.sum(1), (self._squares * chosen).sum(1)
        spread = np.maximum(hits * (1 - 2 * share) + share**2 * squares, 0) / total**2
        variance = spread * points / np.maximum(points - 1, 1) * self._unseen
        # One over the points of equal area that these are worth (Kish 1965).
        inverse = squares / total**2 * self._unseen
        return share, variance, *wilson(share, inverse)


def _root(function: object, low: float, high: float) -> float:
    """Where a falling function crosses zero; the end that is nearest where it does not."""
    at_low, at_high = function(low), function(high)  # type: ignore[operator]
    if at_low <= 0:
        return low
    return high if at_high >= 0 else float(optimize.brentq(function, low, high))
