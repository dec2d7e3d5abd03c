"""Maps and chips of any size: a map of stride s has ceil(H / s) rows, its last cell may reach beyond the chip.

Every pixel keeps its place: an image is resized by its factor, never stretched to a size, so that a window of a raster
and the whole raster give the same.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeats the last row and column of x (B, C, H, W) until both sides are multiples."""
    bottom, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def crop_map(feature_map: Tensor, height: int, width: int, stride: int) -> Tensor:
    """The part of a map (B, D, h, w) that covers height x width pixels: ceil(height / stride) rows."""
    rows, cols = -(-height // stride), -(-width // stride)
    return feature_map if feature_map.shape[-2:] == (rows, cols) else feature_map[..., :rows, :cols]


def resized(length: int, factor: float) -> int:
    """Pixels of a side after `resize`. A product that is whole but for rounding does not gain a pixel."""
    return math.ceil(length * factor - 1e-9)


def resize(x: Tensor, factor: float) -> Tensor:
    """Bilinear, antialiased when it shrinks: (B, C, H, W) -> (B, C, ceil(H * factor), ceil(W * factor))."""
    if factor == 1:
        return x
    if factor == round(factor):
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    # As products with fixed matrices: in ONNX the antialiased operator takes its factor from the rounded sizes.
    down = torch.tensor(_resize_matrix(x.shape[-2], factor), dtype=x.dtype, device=x.device)
    across = torch.tensor(_resize_matrix(x.shape[-1], factor), dtype=x.dtype, device=x.device)
    return down @ x @ across.T


def resize_to_grid(x: Tensor, factor: float, rows: int, cols: int) -> Tensor:
    """`resize`, then the upper left rows x cols; what reaches beyond the chip is cut off."""
    return resize(x, factor)[..., :rows, :cols]


@functools.lru_cache(maxsize=64)
def _resize_matrix(size: int, factor: float) -> np.ndarray:
    """(ceil(size * factor), size) weights of a triangle filter, one pixel wide in the coarser of the two grids."""
    count = resized(size, factor)
    centres = (np.arange(count) + 0.5) / factor
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) * min(1.0, factor)
    weights = np.maximum(0.0, 1.0 - distance)
    normalised: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return normalised
