"""An order of places that looks random and is always the same."""

from __future__ import annotations

import numpy as np


def scattered(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """(n,) uint64 that order places as if at random, but always the same way (the mixer of splitmix64)."""
    mixed = (rows.astype(np.uint64) << np.uint64(32)) ^ cols.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    result: np.ndarray = mixed ^ (mixed >> np.uint64(31))
    return result
