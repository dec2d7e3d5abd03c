"""The overlapping windows that a raster is mapped in, and how much each counts where several see a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """First pixels of the windows that cover `length`; the last one ends at the end."""
    if length <= window:
        return [0]
    step = window - overlap
    starts = list(range(0, length - window, step))
    return [*starts, length - window]


def blend_weights(window: int, overlap: int, at_start: bool, at_end: bool) -> np.ndarray:
    """(window,) weights of one axis: a raised cosine over the overlap, zero in its outer quarter; flat at raster edges.

    The outer quarter of an overlap belongs to the neighbour alone, since a network sees least context there.
    """
    distance = np.arange(window, dtype=np.float64) + 0.5
    dead = overlap / 4
    ramp = np.clip((distance - dead) / max(overlap - 2 * dead, 1e-9), 0, 1) if overlap else np.ones(window)
    ramp = 0.5 - 0.5 * np.cos(np.pi * ramp)
    start = np.ones(window) if at_start else ramp
    end = np.ones(window) if at_end else ramp[::-1]
    return (start * end).astype(np.float32)


@dataclass(frozen=True)
class Axis:
    """The windows along the rows, or the columns, of a raster.

    Args:
        length: of the raster, in pixels.
        window_px: of a window; of the raster where that is shorter.
        overlap_px: what neighbours share at least.
    """

    length: int
    window_px: int
    overlap_px: int

    @classmethod
    def of(cls, length: int, window_px: int, overlap_px: int) -> Axis:
        """For windows of this size, or less where the raster is smaller."""
        return cls(length, min(window_px, length), overlap_px)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First pixel of each window."""
        return tuple(window_starts(self.length, self.window_px, self.overlap_px))

    def __len__(self) -> int:
        return len(self.starts)

    def weights(self, number: int) -> np.ndarray:
        """(window_px,) float32, how much each pixel of a window counts."""
        return self._weights[number == 0, number == len(self) - 1]

    def begin(self, number: int) -> int:
        """First pixel of the raster that a window counts for."""
        return self.starts[number] + self._spans[number == 0, number == len(self) - 1][0]

    def end(self, number: int) -> int:
        """Behind the last pixel of the raster that a window counts for."""
        return self.starts[number] + self._spans[number == 0, number == len(self) - 1][1]

    def final(self, number: int) -> int:
        """Pixels before this one are finished once this window and those before it are there."""
        return self.begin(number + 1) if number + 1 < len(self) else self.length

    def touching(self, first: int, last: int) -> range:
        """The windows that count for pixels from `first` to before `last`."""
        found = [n for n in range(len(self)) if self.begin(n) < last and self.end(n) > first]
        return range(found[0], found[-1] + 1)

    @cached_property
    def _weights(self) -> dict[tuple[bool, bool], np.ndarray]:
        sides = (False, True)
        return {(a, b): blend_weights(self.window_px, self.overlap_px, a, b) for a in sides for b in sides}

    @cached_property
    def _spans(self) -> dict[tuple[bool, bool], tuple[int, int]]:
        counts = {key: np.flatnonzero(weights) for key, weights in self._weights.items()}
        return {key: (int(where[0]), int(where[-1]) + 1) for key, where in counts.items() if len(where)}
