"""Plain vision transformers: tokens, blocks, and a map after each of four evenly spaced blocks.

A backbone of this kind says how an image becomes tokens and how tokens become a map; what runs between, and what
prompts and side networks add to it, is here once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.backbones.backbone import Backbone, Scene, resting
from geopeft.models.recompute import autocast_kind, computed_again, wholly_again
from geopeft.models.sizes import crop_map, pad_to_multiple

MAPS = 4


class Attention(nn.Module):
    """Multi-head self-attention with separate q, k and v, so that each can be adapted by itself."""

    def __init__(self, dim: int, heads: int, head_dim: int = 0, qkv_bias: bool = True, proj_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * (head_dim or dim // heads)
        self.q = nn.Linear(dim, inner, bias=qkv_bias)
        self.k = nn.Linear(dim, inner, bias=qkv_bias)
        self.v = nn.Linear(dim, inner, bias=qkv_bias)
        self.proj = nn.Linear(inner, dim, bias=proj_bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, N, D); mask (B, 1, 1, N), True where a token may be looked at."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """fc1, GELU, fc2."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.fc1(x)
        active = F.gelu(inner)
        kept = inner.detach()
        with computed_again(active, lambda: F.gelu(kept)):
            y: Tensor = self.fc2(active)
        return y


class Block(nn.Module):
    """A pre-norm transformer block. `eps` is of its normalisations."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        hidden: int = 0,
        head_dim: int = 0,
        eps: float = 1e-5,
        qkv_bias: bool = True,
        proj_bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, head_dim, qkv_bias, proj_bias)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp: nn.Module = Mlp(dim, hidden or 4 * dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + after_norm(self.norm1, x, lambda normed: self.attn(normed, mask))
        return x + after_norm(self.norm2, x, self.mlp)


def after_norm(norm: nn.Module, x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
    """layer(norm(x)), for whose gradient only x is kept. Under autocast the layer gets what its products take: cast
    once, not by each of them."""

    def made(tokens: Tensor) -> Tensor:
        normed: Tensor = norm(tokens)
        kind = autocast_kind(tokens.device.type)
        return normed if kind is None else normed.to(kind)

    normed, kept = made(x), x.detach()
    with computed_again(normed, lambda: made(kept)):
        return layer(normed)


class Transformer(Protocol):
    """What a side network needs of a transformer; see `VitBackbone`, which has it."""

    patch_px: int
    prefix: int
    taps: list[int]

    @property
    def blocks(self) -> Sequence[Callable[[Tensor], Tensor]]: ...

    def embed(self, x: Tensor, gsd_m: float, scene: Scene | None) -> Tensor: ...

    def to_map(self, tokens: Tensor, rows: int, cols: int) -> Tensor: ...

    def spread(self, update: Tensor, tokens: int) -> Tensor: ...


class SideNetwork(nn.Module):
    """What runs beside a transformer's blocks and gives the maps in its place, such as a ViT-Adapter."""

    def forward(self, backbone: Transformer, x: Tensor, gsd_m: float, scene: Scene | None) -> list[Tensor]:
        """As `Backbone.forward`; x is padded to whole patches, and maps may cover the padding."""
        raise NotImplementedError


class VitBackbone(Backbone):
    """(B, C, H, W) -> four maps (B, D, H / patch, W / patch), of evenly spaced blocks.

    Attributes:
        patch_px: side of a patch in pixels.
        prefix: tokens in front of those of the patches, such as CLS; they are in no map.
        prompts: (depth, P, D) tokens that each block sees behind the prefix and that go with it (deep VPT); None: none.
        prompt_dropout: what the prompts pass in training.
        side: takes over the way from image to maps; None: none.
        low_memory: in training, blocks run again in the backward pass and keep nothing for it.
    """

    adapter_targets = ("q", "v", "fc1", "fc2")
    prompts: nn.Parameter | None
    side: SideNetwork | None

    def __init__(self, patch_px: int, dim: int, depth: int, prefix: int) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.dim = dim
        self.prefix = prefix
        maps = min(MAPS, depth)
        self.taps = [(i + 1) * depth // maps - 1 for i in range(maps)]
        self.out_channels = [dim] * maps
        self.strides = [patch_px] * maps
        self.prompts = None
        self.prompt_dropout: nn.Module = nn.Identity()
        self.side = None
        self.low_memory = False

    @property
    def blocks(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """The transformer's blocks, each (B, N, D) -> (B, N, D)."""
        raise NotImplementedError

    def embed(self, x: Tensor, gsd_m: float, scene: Scene | None) -> Tensor:
        """x (B, C, H, W), whole patches -> the first block's input (B, prefix + N, D), encodings added."""
        raise NotImplementedError

    def finish(self, tokens: Tensor) -> Tensor:
        """What is done to the last block's output, such as the final normalisation."""
        return tokens

    def to_map(self, tokens: Tensor, rows: int, cols: int) -> Tensor:
        """(B, N, D) tokens without the prefix -> (B, D, rows, cols)."""
        return token_grid(tokens, rows, cols)

    def spread(self, update: Tensor, tokens: int) -> Tensor:
        """(B, patches, D), a row for each patch -> (B, tokens, D): each token, prefix aside, gets its patch's row."""
        return update.repeat_interleave(tokens // update.shape[1], dim=1)

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        """One block on (B, prefix + N, D), with its prompts where there are any."""
        block, prompts = self.blocks[index], self.prompts

        def run(tokens: Tensor) -> Tensor:
            if prompts is None:
                return block(tokens)
            return run_prompted(block, tokens, prompts[index], self.prefix, self.prompt_dropout)

        return wholly_again(run, tokens) if self.low_memory and torch.is_grad_enabled() else run(tokens)

    def forward(self, x: Tensor, gsd_m: float = 10.0, scene: Scene | None = None) -> list[Tensor]:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, self.patch_px)
        if self.side is not None:
            maps: list[Tensor] = self.side(self, x, gsd_m, scene)
        else:
            rows, cols = x.shape[-2] // self.patch_px, x.shape[-1] // self.patch_px
            maps = self._run(self.embed(x, gsd_m, scene), range(len(self.blocks)), rows, cols)[1]
        return [crop_map(m, height, width, stride) for m, stride in zip(maps, self.strides, strict=True)]

    def resting_blocks(self) -> int:
        # A network beside the blocks reads what none of them gives.
        blocks = [block for block in self.blocks if isinstance(block, nn.Module)]
        return resting(self, blocks) if self.side is None and len(blocks) == len(self.blocks) else 0

    def begin(self, x: Tensor, gsd_m: float, scene: Scene | None, blocks: int) -> list[Tensor]:
        x = pad_to_multiple(x, self.patch_px)
        rows, cols = x.shape[-2] // self.patch_px, x.shape[-1] // self.patch_px
        tokens, maps = self._run(self.embed(x, gsd_m, scene), range(blocks), rows, cols)
        return [tokens, *maps]

    def go_on(self, begun: Sequence[Tensor], blocks: int, height: int, width: int) -> list[Tensor]:
        rows, cols = -(-height // self.patch_px), -(-width // self.patch_px)
        maps = [*begun[1:], *self._run(begun[0], range(blocks, len(self.blocks)), rows, cols)[1]]
        return [crop_map(m, height, width, stride) for m, stride in zip(maps, self.strides, strict=True)]

    def _run(self, tokens: Tensor, blocks: range, rows: int, cols: int) -> tuple[Tensor, list[Tensor]]:
        """These blocks on (B, prefix + N, D): what the next one gets, and the maps (B, D, rows, cols) on the way."""
        maps = []
        for i in blocks:
            tokens = self.run_block(i, tokens)
            if i in self.taps:
                done = self.finish(tokens) if i == len(self.blocks) - 1 else tokens
                maps.append(self.to_map(done[:, self.prefix :], rows, cols))
        return tokens, maps


def token_grid(tokens: Tensor, rows: int, cols: int) -> Tensor:
    """(B, rows * cols, D) -> (B, D, rows, cols)."""
    grid: Tensor = tokens.transpose(1, 2).unflatten(2, (rows, cols))
    return grid


def run_prompted(
    block: Callable[[Tensor], Tensor], tokens: Tensor, prompts: Tensor, prefix: int, dropout: nn.Module
) -> Tensor:
    """A block on tokens (B, prefix + N, D) that sees prompts (P, D) behind the prefix; what they become is dropped."""
    own = dropout(prompts.to(tokens.dtype).expand(tokens.shape[0], -1, -1))
    seen = block(torch.cat([tokens[:, :prefix], own, tokens[:, prefix:]], dim=1))
    return torch.cat([seen[:, :prefix], seen[:, prefix + len(prompts) :]], dim=1)


def keep_little(backbone: Backbone, low_memory: bool) -> None:
    """Sets `VitBackbone.low_memory`; other networks have no such blocks and stay as they are."""
    if isinstance(backbone, VitBackbone):
        backbone.low_memory = low_memory


def split_qkv(state: Mapping[str, Tensor], fused: str = "qkv") -> dict[str, Tensor]:
    """A state dict with every fused `...FUSED.weight` and `.bias` (rows: q, k, v) as `...q.`, `...k.`, `...v.`"""
    parts: dict[str, Tensor] = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        if stem.rpartition(".")[2] == fused:
            stem = stem.removesuffix(fused)
            parts.update(zip((f"{stem}{part}.{kind}" for part in "qkv"), value.chunk(3), strict=True))
        else:
            parts[key] = value
    return parts
