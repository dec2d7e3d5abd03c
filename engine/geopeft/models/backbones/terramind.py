"""TerraMind's encoder (arXiv 2504.11171) for Sentinel-2, Sentinel-1 or both, as TerraTorch's TerraMindViT computes it.

Each modality has a token for each patch; all tokens go through the blocks together, and a map is their mean over the
modalities. A modality takes part where one of its bands is there; bands that are missing add nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.errors import BandError
from geopeft.models.backbones.backbone import Scene, load_exactly
from geopeft.models.backbones.transformer import Block, VitBackbone, split_qkv
from geopeft.models.registry import BackboneCard

# Modality -> the published name and its bands, in the order of the published patch embedding.
MODALITIES = {
    "s2": ("untok_sen2l2a@224", ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")),
    "s1": ("untok_sen1grd@224", ("VV", "VH")),
}
PATCH_PX = 16
GRID = 14
EPS = 1e-6
# Parts of a published file that the encoder has no use for; so are the embeddings of all other modalities.
_NOT_ENCODER = ("decoder", "mask_token")


def build(
    card: BackboneCard, band_names: tuple[str, ...], *, dim: int, depth: int, heads: int, gated: bool
) -> TerraMindBackbone:
    """A TerraMind encoder with random weights; `gated`: SwiGLU without biases, as base and large have it."""
    return TerraMindBackbone(band_names, dim, depth, heads, gated)


class GatedMlp(nn.Module):
    """fc2(SiLU(fc1 x) * fc3 x) without biases, two thirds as wide as a plain one (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * 4 * dim)
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        self.fc3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.silu(self.fc1(x)) * self.fc3(x))
        return y


class Embedding(nn.Module):
    """Patches of one modality to tokens, with its position table and its own vector added.

    The weight's columns run over rows of the patch, columns of the patch and bands, the band fastest.
    """

    def __init__(self, bands: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(PATCH_PX * PATCH_PX * bands, dim, bias=False)
        # Published as a fixed table whose order is not that of its formula: it is loaded, never computed.
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", torch.randn(1, GRID * GRID, dim) * 0.02)
        self.mod_embed = nn.Parameter(torch.randn(1, 1, dim) * 0.02)

    def forward(self, x: Tensor, bands: Sequence[int]) -> Tensor:
        """x (B, len(bands), H, W), whole patches; bands: place of each in the published order -> (B, N, D)."""
        projected = self.project(x, bands)
        rows, cols = projected.shape[-2:]
        return projected.flatten(2).transpose(1, 2) + self._positions(rows, cols) + self.mod_embed

    def project(self, x: Tensor, bands: Sequence[int]) -> Tensor:
        """As `forward`, without encodings and as a map: (B, D, rows, cols)."""
        kernel = self.proj.weight.unflatten(1, (PATCH_PX, PATCH_PX, -1))[..., list(bands)].permute(0, 3, 1, 2)
        return F.conv2d(x, kernel, stride=PATCH_PX)

    def _positions(self, rows: int, cols: int) -> Tensor:
        if (rows, cols) == (GRID, GRID):
            return self.pos_embed
        table = self.pos_embed.transpose(1, 2).unflatten(2, (GRID, GRID))
        resized = F.interpolate(table, (rows, cols), mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2)


class TerraMindBackbone(VitBackbone):
    """(B, bands, H, W) normalised -> four maps (B, D, H / 16, W / 16) after evenly spaced blocks.

    The last map has passed the final normalisation.
    """

    def __init__(self, band_names: tuple[str, ...], dim: int, depth: int, heads: int, gated: bool) -> None:
        super().__init__(PATCH_PX, dim, depth, prefix=0)
        self.embeddings = nn.ModuleDict({name: Embedding(len(bands), dim) for name, (_, bands) in MODALITIES.items()})
        self.encoder = nn.ModuleList(_block(dim, heads, gated) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        # Modality -> for each of its bands that is there: its channel in x, and its place in the published order.
        self._channels = {
            name: [(band_names.index(band), at) for at, band in enumerate(bands) if band in band_names]
            for name, (_, bands) in MODALITIES.items()
        }
        self.modalities = tuple(name for name, channels in self._channels.items() if channels)
        if not self.modalities:
            known = ", ".join(band for _, bands in MODALITIES.values() for band in bands)
            raise BandError(
                f"TerraMind uses none of the bands {', '.join(band_names) or '(none)'}.",
                f"Name bands that match one of {known}, or choose another backbone.",
                "BANDS_MISSING",
            )
        absent = tuple(f"embeddings.{name}." for name in MODALITIES if name not in self.modalities)
        self.never_trained = frozenset(n for n, _ in self.named_parameters() if absent and n.startswith(absent))

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """The published file: the encoder's tensors are taken, its decoder and other modalities left."""
        load_exactly(self, _translated(state), "TerraMind")

    @property
    def blocks(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return list(self.encoder)

    def embed(self, x: Tensor, gsd_m: float, scene: Scene | None) -> Tensor:
        # Patch by patch; the order of tokens means nothing to the blocks.
        tokens = [self.embeddings[name](*self.seen(name, x)) for name in self.modalities]
        return torch.stack(tokens, dim=2).flatten(1, 2)

    def seen(self, modality: str, x: Tensor) -> tuple[Tensor, list[int]]:
        """The channels of x that are one modality's, and the place of each in the published order."""
        channels = self._channels[modality]
        return x[:, [channel for channel, _ in channels]], [place for _, place in channels]

    def finish(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.norm(tokens)
        return normed

    def to_map(self, tokens: Tensor, rows: int, cols: int) -> Tensor:
        grid: Tensor = tokens.unflatten(1, (rows, cols, len(self.modalities))).mean(dim=3)
        return grid.permute(0, 3, 1, 2)


def _block(dim: int, heads: int, gated: bool) -> Block:
    block = Block(dim, heads, eps=EPS, qkv_bias=not gated, proj_bias=not gated)
    if gated:
        block.mlp = GatedMlp(dim)
    return block


def _translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names to ours."""
    named = {}
    ours = {f"encoder_embeddings.{published}": name for name, (published, _) in MODALITIES.items()}
    for key, value in state.items():
        modality = next((start for start in ours if key.startswith(f"{start}.")), "")
        if modality:
            part = key.removeprefix(modality).replace("pos_emb", "pos_embed").replace("mod_emb", "mod_embed")
            named[f"embeddings.{ours[modality]}{part}"] = value
        elif not key.startswith((*_NOT_ENCODER, "encoder_embeddings.")):
            named[key.replace("encoder_norm.", "norm.", 1)] = value
    return split_qkv(named)
