"""Low-rank updates: LoRA and its relatives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from geopeft.models.adapters.reparametrized import Reparametrized, Update, flat, through
from geopeft.models.adapters.targets import Layer
from geopeft.models.recompute import autocast_kind
from geopeft.models.spec import ModelSpec

# The iterations of the randomised decomposition: the paper's fast one needs few for the leading directions.
SVD_ITERATIONS, SVD_MORE = 8, 8


class LowRank(Update):
    """W + scale * up @ down. Computed on the activations, so that no gradient as large as W is ever made."""

    scale = 1.0

    def factors(self) -> tuple[Tensor, Tensor]:
        """up (rows, r) and down (r, cols)."""
        raise NotImplementedError

    def matrix(self, weight: Tensor) -> Tensor:
        up, down = self.factors()
        return weight + self.scale * (up @ down)

    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
            return low_rank_linear(x, layer, *self.factors(), self.scale)
        y: Tensor = layer(x) + self.added(layer, x)
        return y

    def added(self, layer: Layer, x: Tensor) -> Tensor:
        """What the update alone makes of x."""
        up, down = self.factors()
        inner = self.scale * through(layer, x, down)
        return F.linear(inner, up) if isinstance(layer, nn.Linear) else F.conv2d(inner, up[:, :, None, None])


class _LowRankLinear(torch.autograd.Function):
    """x W^T + b + scale * (x down^T) up^T, W and b frozen. Sums are made in place: no second output is ever made."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor, scale: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        inner = rows @ down.T
        y = F.linear(rows, weight, bias).addmm_(inner, up.T, alpha=scale)
        ctx.save_for_backward(x, weight, up, down, inner)
        ctx.scale = scale
        whole: Tensor = y.unflatten(0, x.shape[:-1])
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, up, down, inner = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        through_up = ctx.scale * (rows @ up)
        for_up = ctx.scale * (rows.T @ inner) if ctx.needs_input_grad[3] else None
        for_down = through_up.T @ x.flatten(0, -2) if ctx.needs_input_grad[4] else None
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = (rows @ weight).addmm_(through_up, down).view_as(x)
        return for_x, None, None, for_up, for_down, None


def low_rank_linear(x: Tensor, layer: nn.Linear, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """A frozen layer with a low-rank update: x (..., cols), up (rows, r), down (r, cols) -> (..., rows)."""
    weight: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    kind = autocast_kind(x.device.type)
    if kind is not None:
        x, weight, up, down = (tensor.to(kind) for tensor in (x, weight, up, down))
        bias = bias.to(kind) if bias is not None else None
    y: Tensor = _LowRankLinear.apply(x, weight, bias, up, down, scale)
    return y


class LoraUpdate(LowRank):
    """W + scale * B A, with A drawn at random and B zero."""

    def __init__(self, layer: Layer, rank: int, scale: float) -> None:
        super().__init__()
        weight = layer.weight
        rows, cols, *kernel = weight.shape
        self.scale = scale
        self.lora_A = nn.ParameterDict({"weight": nn.Parameter(weight.new_zeros(rank, cols, *kernel))})
        self.lora_B = nn.ParameterDict({"weight": nn.Parameter(weight.new_zeros(rows, rank, *kernel))})

    def start(self, layer: Layer) -> None:
        nn.init.kaiming_uniform_(self.lora_A["weight"], a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_B["weight"].flatten(1), self.lora_A["weight"].flatten(1)


class PissaUpdate(LoraUpdate):
    """W + scale * (B A - B0 A0), with B A = B0 A0 = the principal part of W at the start.

    That is the paper's residual matrix plus B A, with W left as published. The first factors are stored, so that a
    model opens alike wherever a decomposition would come out otherwise.
    """

    def __init__(self, layer: Layer, rank: int, scale: float) -> None:
        super().__init__(layer, min(rank, *layer.weight.shape[:2]), scale)
        self.first_A: Tensor
        self.first_B: Tensor
        self.register_buffer("first_A", torch.zeros_like(self.lora_A["weight"].data))
        self.register_buffer("first_B", torch.zeros_like(self.lora_B["weight"].data))

    def start(self, layer: Layer) -> None:
        matrix = flat(layer).detach()
        rank = len(self.first_A)
        u, s, v = torch.svd_lowrank(matrix, min(rank + SVD_MORE, *matrix.shape), niter=SVD_ITERATIONS)
        root = (s[:rank] / self.scale).sqrt()
        with torch.no_grad():
            for factor, value in ((self.first_A, (v[:, :rank] * root).T), (self.first_B, u[:, :rank] * root)):
                factor.copy_(value.reshape(factor.shape))
            self.lora_A["weight"].copy_(self.first_A)
            self.lora_B["weight"].copy_(self.first_B)

    def factors(self) -> tuple[Tensor, Tensor]:
        up, down = super().factors()
        return torch.cat([up, -self.first_B.flatten(1)], 1), torch.cat([down, self.first_A.flatten(1)])


class DoraUpdate(LoraUpdate):
    """m * V / |V| for each row, V = W + scale * B A; the gradient takes |V| as a constant, as in the paper's 4.3."""

    def __init__(self, layer: Layer, rank: int, scale: float) -> None:
        super().__init__(layer, rank, scale)
        self.magnitude = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))

    def start(self, layer: Layer) -> None:
        super().start(layer)
        with torch.no_grad():
            self.magnitude.copy_(flat(layer).norm(dim=1))

    def matrix(self, weight: Tensor) -> Tensor:
        return self._gain(weight)[:, None] * super().matrix(weight)

    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        gain = self._gain(flat(layer))
        turned = through(layer, x, flat(layer)) + self.added(layer, x)
        shape = (-1,) if isinstance(layer, nn.Linear) else (-1, 1, 1)
        y = gain.view(shape) * turned
        return y if layer.bias is None else y + layer.bias.view(shape)

    def _gain(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            up, down = self.factors()
            # A row of zeros has no direction: its magnitude is zero, and so it stays.
            turned = weight + self.scale * (up @ down)
            norm: Tensor = turned.norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
        return self.magnitude / norm


class Lora(Reparametrized):
    """LoRA (arXiv 2106.09685): W + alpha / r * B A, without dropout, as in the study."""

    update = LoraUpdate

    def updates(self, layers: Mapping[str, Layer], spec: ModelSpec) -> tuple[dict[str, Update], nn.Module | None]:
        scale = self.scale(spec.alpha or spec.rank, spec.rank)
        return {name: self.update(layer, spec.rank, scale) for name, layer in layers.items()}, None

    def scale(self, alpha: float, rank: int) -> float:
        """What the product of the factors is multiplied by."""
        return alpha / rank


class RsLora(Lora):
    """Rank-stabilised LoRA (arXiv 2312.03732): alpha / sqrt(r) in place of alpha / r."""

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / math.sqrt(rank)


class Pissa(Lora):
    """PiSSA (arXiv 2404.02948): LoRA that starts from the principal singular directions of W and moves those."""

    update = PissaUpdate


class Dora(Lora):
    """DoRA (arXiv 2402.09353): length and direction of each row of W are trained apart, the direction by LoRA."""

    update = DoraUpdate
