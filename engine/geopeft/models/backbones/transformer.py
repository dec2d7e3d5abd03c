"""Plain vision transformers: tokens, blocks, and a map after each of four evenly spaced blocks.

A backbone of this kind says how an image becomes tokens and how tokens become a map; what runs between, and what
prompts and side networks add to it, is here once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.backbones.backbone import Backbone, Scene
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
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
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
        x = x + self.attn(self.norm1(x), mask)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class SideNetwork(nn.Module):
    """What runs beside a transformer's blocks and gives the maps in its place, such as a ViT-Adapter."""

    def forward(self, backbone: VitBackbone, x: Tensor, gsd_m: float, scene: Scene | None) -> list[Tensor]:
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
        grid: Tensor = tokens.transpose(1, 2).unflatten(2, (rows, cols))
        return grid

    def spread(self, update: Tensor, tokens: int) -> Tensor:
        """(B, patches, D), a row for each patch -> (B, tokens, D): each token, prefix aside, gets its patch's row."""
        return update.repeat_interleave(tokens // update.shape[1], dim=1)

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        """One block on (B, prefix + N, D), with its prompts where there are any."""
        block = self.blocks[index]
        if self.prompts is None:
            return block(tokens)
        return run_prompted(block, tokens, self.prompts[index], self.prefix, self.prompt_dropout)

    def forward(self, x: Tensor, gsd_m: float = 10.0, scene: Scene | None = None) -> list[Tensor]:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, self.patch_px)
        if self.side is not None:
            maps: list[Tensor] = self.side(self, x, gsd_m, scene)
        else:
            maps = self._maps(x, gsd_m, scene)
        return [crop_map(m, height, width, stride) for m, stride in zip(maps, self.strides, strict=True)]

    def _maps(self, x: Tensor, gsd_m: float, scene: Scene | None) -> list[Tensor]:
        rows, cols = x.shape[-2] // self.patch_px, x.shape[-1] // self.patch_px
        tokens = self.embed(x, gsd_m, scene)
        maps = []
        for i in range(len(self.blocks)):
            tokens = self.run_block(i, tokens)
            if i in self.taps:
                done = self.finish(tokens) if i == len(self.blocks) - 1 else tokens
                maps.append(self.to_map(done[:, self.prefix :], rows, cols))
        return maps


def run_prompted(
    block: Callable[[Tensor], Tensor], tokens: Tensor, prompts: Tensor, prefix: int, dropout: nn.Module
) -> Tensor:
    """A block on tokens (B, prefix + N, D) that sees prompts (P, D) behind the prefix; what they become is dropped."""
    own = dropout(prompts.to(tokens.dtype).expand(tokens.shape[0], -1, -1))
    seen = block(torch.cat([tokens[:, :prefix], own, tokens[:, prefix:]], dim=1))
    return torch.cat([seen[:, :prefix], seen[:, prefix + len(prompts) :]], dim=1)


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
