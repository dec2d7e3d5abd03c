"""Copernicus-FM (arXiv 2503.11849): as DOFA, but told bandwidths, place, day and pixel size too.

Layout and encodings follow the published checkpoint as torchgeo 0.8 reads it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from geopeft.data.bands import ROLES
from geopeft.models.backbones.backbone import Scene, load_exactly
from geopeft.models.backbones.days import days_since_1970
from geopeft.models.backbones.dynamic_embed import DynamicVit, KernelGenerator, own_names, require_optical
from geopeft.models.backbones.transformer import Block, split_qkv
from geopeft.models.registry import BackboneCard

SPECTRAL, VARIABLE = "patch_embed_spectral.", "patch_embed_variable."
# Parts of a classifier, which not every published file holds.
HEAD = ("fc_norm.", "head.")
NM_PER_UM = 1000
# Width of Sentinel-2's bands by role in nanometres (ESA's handbook), and of a band that is near none of them.
WIDTH_NM = {
    "coastal": 20.0, "blue": 65.0, "green": 35.0, "red": 30.0, "rededge1": 15.0, "rededge2": 15.0, "rededge3": 20.0,
    "nir": 115.0, "nir08": 20.0, "nir09": 20.0, "cirrus": 30.0, "swir16": 90.0, "swir22": 180.0,
}  # fmt: skip
USUAL_WIDTH_NM = 30.0
LANGUAGE_DIM = 2048
# Shortest and longest period of the expansion of each number: degrees, days, square kilometres, nanometres.
DEGREES = (0.0001, 720.0)
DAYS = (1.0, 365.25)
AREA_KM2 = (0.001, 5.1e8)
CENTRE_NM = (100.0, 1e9)
BANDWIDTH_NM = (1.0, 1e9)
# Of the cubic convolution kernel of antialiased resizing.
CUBIC_A = -0.5


def build(
    card: BackboneCard,
    band_names: tuple[str, ...],
    *,
    dim: int,
    depth: int,
    heads: int,
    patch_size_px: int = 16,
    native_patch_px: int = 16,
    image_px: int = 224,
    wave_dim: int = 128,
    wavelengths_um: Sequence[float],
) -> CopernicusFm:
    """An encoder with random weights for bands of these wavelengths; BandError where there is none.

    Args:
        patch_size_px: of the patches in use; kernels are resized where it is not that of pre-training.
        native_patch_px, image_px: of pre-training.
        wave_dim: of the tokens that kernels are made from.
    """
    require_optical(card, wavelengths_um)
    pixels = (patch_size_px, native_patch_px, image_px)
    made = CopernicusFm(card.network, (dim, depth, heads), pixels, wave_dim)
    made.set_wavelengths(wavelengths_um)
    return made


class CopernicusFm(DynamicVit):
    """(B, C, H, W) normalised -> four maps (B, D, H / patch, W / patch), as the blocks give them.

    Args:
        sizes: channels, blocks, heads.
        pixels: sides of a patch in use, of a patch and of an image of pre-training.
        told_in_words: the network's other embedding takes the place of that for bands: each channel is a variable that
            a text's embedding tells, see `set_words`.

    Attributes:
        pos_embed: (1, 1 + grid * grid, D) fixed position table, CLS first.
    """

    # As in DOFA: patches are seen one pixel further up and left.
    padding_px = 1
    pos_embed: Tensor
    resizing: Tensor

    def __init__(
        self,
        title: str,
        sizes: tuple[int, int, int],
        pixels: tuple[int, int, int],
        wave_dim: int,
        told_in_words: bool = False,
    ) -> None:
        (dim, depth, heads), (patch_px, native_px, image_px) = sizes, pixels
        super().__init__(KernelGenerator(wave_dim, dim, native_px), patch_px, depth, lambda: Block(dim, heads))
        self.title = title
        self.wave_dim = wave_dim
        self.grid = image_px // native_px
        self.register_buffer("pos_embed", torch.zeros(1, 1 + self.grid**2, dim))
        # The pseudo-inverse of what resizes an image the other way (FlexiViT, arXiv 2212.08013).
        inverse = np.linalg.pinv(cubic_matrix(native_px, patch_px).T)
        self.register_buffer("resizing", torch.tensor(inverse, dtype=torch.float32), persistent=False)
        self.coord_token, self.scale_token, self.time_token = (nn.Parameter(torch.zeros(1, dim)) for _ in range(3))
        self.coord_fc, self.scale_fc, self.time_fc = (nn.Linear(dim, dim) for _ in range(3))
        self.language_proj = nn.Linear(LANGUAGE_DIM, wave_dim) if told_in_words else None

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """With or without the classifier's parts; of the two embeddings the one in use is taken."""
        used, unused = (SPECTRAL, VARIABLE) if self.language_proj is None else (VARIABLE, SPECTRAL)
        own = own_names({k: v for k, v in state.items() if not k.startswith((*HEAD, unused))}, used)
        for name in ("coord_token", "scale_token", "time_token"):
            if name in own:
                own[name] = own[name].flatten(0, 1)
        for kind in ("weight", "bias"):
            if f"generator.language_proj.{kind}" in own:
                own[f"language_proj.{kind}"] = own.pop(f"generator.language_proj.{kind}")
        load_exactly(self, split_qkv(own), self.title)

    def encode_wavelengths(self, wavelengths_um: Sequence[float]) -> Tensor:
        return self.encode_bands([um * NM_PER_UM for um in wavelengths_um], [width_nm(um) for um in wavelengths_um])

    def encode_bands(self, wavelengths_nm: Sequence[float], bandwidths_nm: Sequence[float]) -> Tensor:
        """(C, width) tokens of bands with their own widths, on the CPU."""
        centres = expansion(torch.tensor(wavelengths_nm), self.wave_dim, CENTRE_NM)
        return centres + expansion(torch.tensor(bandwidths_nm), self.wave_dim, BANDWIDTH_NM)

    def set_words(self, words: Tensor) -> None:
        """The variables of the next calls, (C, 2048); of a network that is told in words."""
        self.waves = words.to(self.cls_token.device)

    def make_kernel(self) -> tuple[Tensor, Tensor]:
        waves = self.waves if self.language_proj is None else self.language_proj(self.waves)
        kernel, bias = self.generator(waves)
        if self.patch_px != kernel.shape[-1]:
            kernel = self.resizing @ kernel @ self.resizing.T
        return kernel, bias

    def embed(self, x: Tensor, gsd_m: float, scene: Scene | None) -> Tensor:
        return self.embed_with(x, self._facts(gsd_m, scene, x.shape[0]))

    def embed_with(self, x: Tensor, facts: Tensor) -> Tensor:
        """x (B, C, H, W), whole patches -> the first block's input (B, 1 + N, D).

        Args:
            facts: (B, 4) longitude and latitude in degrees, days since 1970-01-01, area of a patch in km2; what is
                NaN is not known, and a learned token takes its place.
        """
        told = self._told(facts)[:, None]
        where = self._positions(x.shape[-2] // self.patch_px, x.shape[-1] // self.patch_px)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), self.patches(x)], dim=1)
        return tokens + torch.cat([self.pos_embed[:, :1], where], dim=1) + told

    def _facts(self, gsd_m: float, scene: Scene | None, batch: int) -> Tensor:
        facts = torch.full((batch, 4), torch.nan)
        if scene is not None and scene.place is not None:
            facts[:, :2] = scene.place.float().cpu().flip(1)
        if scene is not None and scene.time is not None:
            facts[:, 2] = days_since_1970(scene.time[:, 0].float().cpu())
        facts[:, 3] = (gsd_m * self.patch_px / 1000) ** 2
        return facts

    def _told(self, facts: Tensor) -> Tensor:
        """(B, D). Unlike in the reference, a sample without a fact leaves it to the others of its batch."""
        lon, lat, days, area = facts.unbind(1)
        place = torch.cat([expansion(a, self.dim // 2, DEGREES) for a in (lon + 180, lat + 90)], dim=1)
        terms = (
            (place, self.coord_token, self.coord_fc),
            (expansion(area, self.dim, AREA_KM2), self.scale_token, self.scale_fc),
            (expansion(days, self.dim, DAYS), self.time_token, self.time_fc),
        )
        told = self.pos_embed.new_zeros(facts.shape[0], self.dim)
        for term, token, layer in terms:
            known = torch.isfinite(term).all(dim=1, keepdim=True).to(token.device)
            told = told + layer(torch.where(known, torch.nan_to_num(term).to(token), token))
        return told

    def _positions(self, rows: int, cols: int) -> Tensor:
        """(1, rows * cols, D): the table of pre-training, stretched over the grid at hand."""
        table = self.pos_embed[:, 1:]
        if (rows, cols) == (self.grid, self.grid):
            return table
        down, across = (torch.tensor(cubic_matrix(self.grid, n)).to(table) for n in (rows, cols))
        grid = table.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        resized: Tensor = down @ grid @ across.T
        return resized.flatten(2).transpose(1, 2)


def width_nm(wavelength_um: float) -> float:
    """The usual width of a band at this wavelength: that of Sentinel-2's band there."""
    near = [
        (abs(centre - wavelength_um), role)
        for role, (centre, low, high) in ROLES.items()
        if role in WIDTH_NM and low <= wavelength_um < high
    ]
    return WIDTH_NM[min(near)[1]] if near else USUAL_WIDTH_NM


def expansion(values: Tensor, dim: int, periods: tuple[float, float]) -> Tensor:
    """(N,) -> (N, dim) float32: sines, then cosines, at dim / 2 periods evenly spaced in their logarithm (Aurora,
    arXiv 2405.13063). NaN stays NaN. On the CPU, because the shortest periods need double precision."""
    low, high = (math.log10(period) for period in periods)
    lengths = torch.logspace(low, high, dim // 2, dtype=torch.float64)
    angles = values.detach().cpu().double()[:, None] * (2 * math.pi / lengths)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


@functools.lru_cache(maxsize=16)
def cubic_matrix(size: int, count: int) -> np.ndarray:
    """(count, size) float32 weights of antialiased cubic resizing, centre on centre (Keys 1981)."""
    step = size / count
    wide = max(step, 1.0)
    centres = (np.arange(count)[:, None] + 0.5) * step
    places = np.arange(size) + 0.5
    weights = _cubic(np.abs(places - centres) / wide)
    normalised: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1
    far = CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
