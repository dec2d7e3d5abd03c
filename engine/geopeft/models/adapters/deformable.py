"""Deformable attention over several grids (arXiv 2010.04159) from PyTorch's own operators, so that it runs anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Grid = tuple[int, int]


class DeformableAttention(nn.Module):
    """Each query looks at a few places near its own, which it chooses itself, in every grid.

    Args:
        dim: channels of queries and values.
        heads: must divide dim * ratio.
        levels: number of grids.
        points: places per head and grid.
        ratio: width of the values inside, as part of dim.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int = 4, ratio: float = 0.5) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        inner = int(dim * ratio)
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, inner)
        self.output_proj = nn.Linear(inner, dim)
        self._start()

    def forward(self, query: Tensor, reference: Tensor, values: Tensor, grids: Sequence[Grid]) -> Tensor:
        """query (B, Q, D); reference (Q, 2) their places as x, y in 0..1; values (B, sum of h * w, D), grid after
        grid with `grids` of (h, w) -> (B, Q, D)."""
        places = self._places(query, reference, grids)
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        # (B * heads, levels, points, 1, Q)
        weights = weights.permute(0, 2, 3, 1).flatten(0, 1).unflatten(1, (self.levels, self.points)).unsqueeze(3)
        projected = self.value_proj(values).split([h * w for h, w in grids], dim=1)
        parts = []
        for level, ((rows, cols), value) in enumerate(zip(grids, projected, strict=True)):
            # (B * heads, D / heads, h, w), in single precision: half of it cannot tell the places of a large grid.
            image = value.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (rows, cols))
            seen = F.grid_sample(image.float(), places[level], "bilinear", "zeros", align_corners=False)
            parts.append((seen.transpose(1, 2) * weights[:, level].float()).sum(1))
        joined = sum(parts[1:], parts[0]).unflatten(0, (-1, self.heads)).flatten(1, 2).transpose(1, 2)
        out: Tensor = self.output_proj(joined.to(query.dtype))
        return out

    def _places(self, query: Tensor, reference: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """For each grid the places as `grid_sample` counts them, (B * heads, points, Q, 2) in -1..1."""
        offsets = self.sampling_offsets(query).float().unflatten(-1, (self.heads, self.levels, self.points, 2))
        # (B * heads, levels, points, Q, 2)
        offsets = offsets.permute(0, 2, 3, 4, 1, 5).flatten(0, 1)
        sizes = [torch.tensor([cols, rows], dtype=torch.float32, device=query.device) for rows, cols in grids]
        return [2 * (reference + offsets[:, level] / size) - 1 for level, size in enumerate(sizes)]

    def _start(self) -> None:
        """As published: each head looks in a direction of its own, its points one cell further each, all alike."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack([angles.cos(), angles.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((ring.view(-1, 1, 1, 2) * steps).expand(-1, self.levels, -1, -1).flatten())
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def cell_centres(grids: Sequence[Grid], device: torch.device) -> Tensor:
    """(sum of h * w, 2): x and y of every cell's centre in 0..1, row by row, grid after grid."""
    parts = []
    for rows, cols in grids:
        y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) / rows
        x = (torch.arange(cols, device=device, dtype=torch.float32) + 0.5) / cols
        parts.append(torch.stack([x.expand(rows, cols), y[:, None].expand(rows, cols)], -1).flatten(0, 1))
    return torch.cat(parts)
