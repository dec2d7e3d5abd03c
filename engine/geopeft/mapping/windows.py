"""The overlapping windows that a raster is mapped in, and how much each counts where several see a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# A convolutional network is cheapest in windows of this side: the maps of wider ones leave the processor's cache.
WIDE_PX = 320
# Of tokens along a side; with more of them, attention takes more time than the overlaps of smaller windows.
MOST_TOKENS = 32
# At most what is looked at twice, which is as much as others take of windows of 224 px.
WIDEST_OVERLAP_PX = 32


@dataclass(frozen=True)
class Sizes:
    """Of the windows for a network, in pixels.

    Args:
        window_px: side of a window, at most.
        overlap_px: what neighbours share at least.
        grain_px: side of what the network sees as one. Windows, and steps between them, are multiples of it, so that
            neighbours cut the ground into the same pieces, and their maps fit each other.
    """

    window_px: int
    overlap_px: int
    grain_px: int


def sizes_for(chip_px: int, patch_px: int, is_transformer: bool, reach_px: int = 0) -> Sizes:
    """The windows that take least time for a map, with at least as much context as the chips of the training had.

    For a transformer windows are half as wide again as the chips, unless attention becomes too dear, and neighbours
    share at least two patches. For others they are up to two and a half times as wide.

    Args:
        chip_px, patch_px: sides of the training's chips and of a patch.
        reach_px: of a texture: where a window counts for as much as its neighbour, it is not cut off.
    """
    wide, wider = chip_px * 3 // 2, chip_px * 5 // 2
    window = min(wide, max(chip_px, MOST_TOKENS * patch_px)) if is_transformer else min(wider, max(wide, WIDE_PX))
    grain = min(patch_px, window)
    window -= window % grain
    wanted = max(min(window // 8, WIDEST_OVERLAP_PX) // grain * grain, grain * (2 if is_transformer else 1))
    wanted = max(wanted, -(-2 * reach_px // grain) * grain)
    return Sizes(window, min(wanted, window // 2), grain)


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
        window_px: of a window.
        overlap_px: what neighbours share at least.
    """

    length: int
    window_px: int
    overlap_px: int

    @classmethod
    def of(cls, length: int, window_px: int, overlap_px: int, grain_px: int) -> Axis:
        """For windows of this size at most: of the raster's where that is smaller, else a multiple of the grain.

        No more of them are needed if each is so much smaller that the last one fits, and less is looked at twice.
        """
        if length <= window_px:
            return cls(length, length, overlap_px)
        count = len(window_starts(length, window_px, overlap_px))
        least = -(-(length + (count - 1) * overlap_px) // count)
        return cls(length, min(-(-least // grain_px) * grain_px, window_px), overlap_px)

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
