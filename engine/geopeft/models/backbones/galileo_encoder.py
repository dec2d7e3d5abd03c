"""The Galileo encoder (arXiv 2502.09356): one token per channel group, patch and time step.

Only tokens that exist are computed: a group that is missing everywhere is left out of the sequence, and attention needs
a mask only where the samples of a batch differ. Key names are those of the published state dict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.backbones.transformer import Block

MAX_PATCH_PX = 8
MAX_STEPS = 24
MONTHS = 12

# Channel groups in the order of their tokens: name -> channels of the input array.
SPACE_TIME = {
    "S1": (0, 1),
    "S2_RGB": (2, 3, 4),
    "S2_Red_Edge": (5, 6, 7),
    "S2_NIR_10m": (8,),
    "S2_NIR_20m": (9,),
    "S2_SWIR": (10, 11),
    "NDVI": (12,),
}
SPACE = {"SRTM": (0, 1), "DW": tuple(range(2, 11)), "WC": tuple(range(11, 16))}
TIME = {"ERA5": (0, 1), "TC": (2, 3, 4), "VIIRS": (5,)}
STATIC = {
    "LS": (0,),
    "location": (1, 2, 3),
    "DW_static": tuple(range(4, 13)),
    "WC_static": tuple(range(13, 18)),
}


class PatchEmbed(nn.Module):
    """Patches of any size up to 8 px to tokens: the 8 px kernel is resized by the pseudo-inverse (FlexiViT)."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, MAX_PATCH_PX, MAX_PATCH_PX)

    def forward(self, x: Tensor, patch_px: int, resize: Tensor) -> Tensor:
        """x (B, C, H, W), resize from `kernel_resize(patch_px)` -> (B, D, H / patch_px, W / patch_px)."""
        weight = self.proj.weight
        if patch_px != MAX_PATCH_PX:
            weight = (weight.flatten(2) @ resize.T).unflatten(-1, (patch_px, patch_px))
        return F.conv2d(x, weight, self.proj.bias, stride=patch_px)


def kernel_resize(patch_px: int) -> Tensor:
    """(patch_px**2, 64) matrix: a flattened 8 px kernel to the one that answers alike on images resized to patch_px."""
    size = MAX_PATCH_PX**2
    unit = torch.eye(size, dtype=torch.float64).view(size, 1, MAX_PATCH_PX, MAX_PATCH_PX)
    resized = F.interpolate(unit, (patch_px, patch_px), mode="bicubic", antialias=True, align_corners=False)
    inverse: Tensor = torch.linalg.pinv(resized.view(size, patch_px**2))
    return inverse.float()


def spatial_encoding(rows: int, cols: int, patch_m: float, dim: int) -> Tensor:
    """(rows, cols, dim) sines and cosines of the position in units of 10 m: first half by column, second by row."""

    def axis(count: int) -> Tensor:
        # The exponent divides by dim / 2 and again by 2, as the published network was trained.
        order = torch.arange(dim // 4, dtype=torch.float64)
        angle = (torch.arange(count, dtype=torch.float64) * patch_m / 10)[:, None] * 10000 ** (-order / (dim // 2) / 2)
        return torch.cat([angle.sin(), angle.cos()], dim=1).float()

    across = axis(cols)[None, :].expand(rows, cols, -1)
    down = axis(rows)[:, None].expand(rows, cols, -1)
    return torch.cat([across, down], dim=-1)


@dataclass(frozen=True)
class GalileoInput:
    """Normalised arrays, channels last, and masks by group at pixel resolution (0 seen, >= 1 missing).

    s_t_x (B, H, W, T, 13), s_t_m (B, H, W, T, 7), months (B, T) from 0; optional space (B, H, W, 16), time (B, T, 6)
    and static (B, 18) arrays with masks of 3, 3 and 4 groups.
    """

    s_t_x: Tensor
    s_t_m: Tensor
    months: Tensor
    sp_x: Tensor | None = None
    sp_m: Tensor | None = None
    t_x: Tensor | None = None
    t_m: Tensor | None = None
    st_x: Tensor | None = None
    st_m: Tensor | None = None


@dataclass
class GalileoTokens:
    """Tokens of the four kinds with their masks (True: seen).

    s_t (B, h, w, T, 7, D), sp (B, h, w, 3, D), t (B, T, 3, D), st (B, 4, D). `embedded` is s_t before the encodings,
    `blocks` s_t after each block, `prenorm` s_t before the last normalisation.
    """

    s_t: Tensor
    sp: Tensor
    t: Tensor
    st: Tensor
    seen: dict[str, Tensor]
    embedded: Tensor
    prenorm: Tensor
    blocks: list[Tensor] = field(default_factory=list)


class GalileoEncoder(nn.Module):
    """All modalities, any number of time steps, and masks that may differ from sample to sample."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.dim = dim
        part = dim // 4
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.pos_embed = nn.Parameter(torch.randn(MAX_STEPS, part) * 0.02)
        self.month_embed = nn.Embedding(MONTHS, part)
        self.s_t_channel_embed = nn.Parameter(torch.randn(len(SPACE_TIME), part) * 0.02)
        self.sp_channel_embed = nn.Parameter(torch.randn(len(SPACE), part) * 0.02)
        self.t_channel_embed = nn.Parameter(torch.randn(len(TIME), part) * 0.02)
        self.st_channel_embed = nn.Parameter(torch.randn(len(STATIC), part) * 0.02)
        self.space_time_embed = nn.ModuleDict({k: PatchEmbed(len(c), dim) for k, c in SPACE_TIME.items()})
        self.space_embed = nn.ModuleDict({k: PatchEmbed(len(c), dim) for k, c in SPACE.items()})
        self.time_embed = nn.ModuleDict({k: nn.Linear(len(c), dim) for k, c in TIME.items()})
        self.static_embed = nn.ModuleDict({k: nn.Linear(len(c), dim) for k, c in STATIC.items()})

    def forward(self, x: GalileoInput, patch_px: int, gsd_m: float) -> GalileoTokens:
        """Encodes a batch. H and W must be multiples of `patch_px`; pixels are `gsd_m` wide."""
        resize = kernel_resize(patch_px)
        seen, tokens = self._embed(x, patch_px, resize)
        embedded = tokens["s_t"]
        encoded = self._encode(tokens, x.months, patch_px * gsd_m)
        flat, flat_seen = _flatten(encoded), torch.cat([m.flatten(1) for m in seen.values()], dim=1)
        used = flat_seen.any(dim=0)
        sequence, present = flat[:, used], flat_seen[:, used]
        mask = None if bool(present.all()) else present[:, None, None, :]

        def scatter(values: Tensor) -> Tensor:
            full = torch.zeros_like(flat)
            full[:, used] = values * present[..., None]
            return full

        blocks = []
        for block in self.blocks:
            sequence = block(sequence, mask)
            blocks.append(_unflatten(scatter(sequence), encoded)["s_t"])
        prenorm = scatter(sequence)
        parts = _unflatten(self.norm(prenorm), encoded)
        return GalileoTokens(
            **parts, seen=seen, embedded=embedded, prenorm=_unflatten(prenorm, encoded)["s_t"], blocks=blocks
        )

    def _embed(self, x: GalileoInput, patch_px: int, resize: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        batch, height, width, steps = x.s_t_x.shape[:4]
        rows, cols = height // patch_px, width // patch_px

        def mask(given: Tensor | None, shape: tuple[int, ...]) -> Tensor:
            return torch.zeros(shape, dtype=torch.bool, device=x.s_t_x.device) if given is None else given < 1

        # The mask of a patch is that of its top-left pixel.
        seen = {
            "s_t": mask(x.s_t_m[:, ::patch_px, ::patch_px], ()),
            "sp": mask(None if x.sp_m is None else x.sp_m[:, ::patch_px, ::patch_px], (batch, rows, cols, len(SPACE))),
            "t": mask(x.t_m, (batch, steps, len(TIME))),
            "st": mask(x.st_m, (batch, len(STATIC))),
        }

        def patches(group: PatchEmbed, values: Tensor) -> Tensor:
            embedded: Tensor = group(values.permute(0, 3, 1, 2), patch_px, resize)
            return embedded.permute(0, 2, 3, 1)

        def steps_of_patches(group: PatchEmbed, values: Tensor) -> Tensor:
            flat = patches(group, values.permute(0, 3, 1, 2, 4).flatten(0, 1))
            by_step: Tensor = flat.unflatten(0, (batch, steps))
            return by_step.permute(0, 2, 3, 1, 4)

        def linear(group: nn.Linear, values: Tensor) -> Tensor:
            projected: Tensor = group(values)
            return projected

        kinds: dict[str, tuple[nn.ModuleDict, Mapping[str, tuple[int, ...]], Tensor | None, Callable[..., Tensor]]] = {
            "s_t": (self.space_time_embed, SPACE_TIME, x.s_t_x, steps_of_patches),
            "sp": (self.space_embed, SPACE, x.sp_x, patches),
            "t": (self.time_embed, TIME, x.t_x, linear),
            "st": (self.static_embed, STATIC, x.st_x, linear),
        }
        tokens = {}
        for kind, (modules, layout, given, embed) in kinds.items():
            tokens[kind] = x.s_t_x.new_zeros(*seen[kind].shape, self.dim)
            for i, (name, channels) in enumerate(layout.items()):
                if given is not None and bool(seen[kind][..., i].any()):
                    tokens[kind][..., i, :] = embed(modules[name], given[..., list(channels)])
        return seen, tokens

    def _encode(self, tokens: dict[str, Tensor], months: Tensor, patch_m: float) -> dict[str, Tensor]:
        """Adds [channel group | time step | month | position], a quarter of the dimensions each."""
        steps, rows, cols = tokens["s_t"].shape[3], tokens["s_t"].shape[1], tokens["s_t"].shape[2]
        part = self.dim // 4
        where = spatial_encoding(rows, cols, patch_m, part).to(tokens["s_t"])
        when = self.pos_embed[:steps]
        month = self.month_embed(months)

        def encoded(kind: str, *quarters: Tensor | None) -> Tensor:
            lead = tokens[kind].shape[:-1]
            blank = tokens[kind].new_zeros(*lead, part)
            return tokens[kind] + torch.cat([blank if q is None else q.expand(*lead, part) for q in quarters], dim=-1)

        in_space_time = (when[:, None], month[:, None, None, :, None], where[:, :, None, None])
        return {
            "s_t": encoded("s_t", self.s_t_channel_embed, *in_space_time),
            "sp": encoded("sp", self.sp_channel_embed, None, None, where[:, :, None]),
            "t": encoded("t", self.t_channel_embed, when[:, None], month[:, :, None], None),
            "st": encoded("st", self.st_channel_embed, None, None, None),
        }


def _flatten(tokens: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten(1, -2) for part in tokens.values()], dim=1)


def _unflatten(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sizes = [part[0].numel() // part.shape[-1] for part in like.values()]
    return {k: piece.view_as(part) for (k, part), piece in zip(like.items(), flat.split(sizes, 1), strict=True)}
