"""Patch embeddings whose kernels a small network makes from the bands' wavelengths (DOFA, arXiv 2403.15356).

Clay and Copernicus-FM have the same network; they differ in how a wavelength becomes a token, and in small numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.errors import BandError
from geopeft.models.backbones.transformer import Block, VitBackbone
from geopeft.models.registry import BackboneCard

WEIGHT_TOKENS = 128
GENERATOR_HEADS = 4
GENERATOR_HIDDEN = 2048

# Published parts of names and ours, in the order in which they are replaced.
_RENAMED = (
    ("fclayer.l1.", "first."),
    ("fclayer.l2.", "second."),
    ("fclayer.w1.", "first."),
    ("fclayer.w2.", "second."),
    ("weight_generator.", ""),
    ("transformer_encoder.layers.0.", "layer."),
    ("encoder.layers.0.", "layer."),
    ("layer.self_attn.in_proj_", "layer.in_proj."),
    ("layer.self_attn.out_proj.", "layer.out_proj."),
    ("fc_weight.", "to_kernel."),
    ("fc_bias.", "to_bias."),
)


class KernelGenerator(nn.Module):
    """A token for each band -> the convolution that embeds patches of these bands.

    No layer has a name that LoRA looks for: the kernels stay as published unless everything is trained.

    Args:
        width: of the tokens.
        dim: channels that the convolution gives.
        patch_px: side of its kernels.
        activation: behind both layers that a token passes first.
        channels_last: a kernel's values are stored row, column, channel; else channel, row, column.
        kernel_scale, bias_scale: what the made values are multiplied by.
    """

    def __init__(
        self,
        width: int,
        dim: int,
        patch_px: int,
        *,
        activation: Callable[[Tensor], Tensor] = F.relu,
        channels_last: bool = True,
        kernel_scale: float = 0.01,
        bias_scale: float = 0.01,
    ) -> None:
        super().__init__()
        self.dim, self.patch_px, self.channels_last = dim, patch_px, channels_last
        self.activation, self.kernel_scale, self.bias_scale = activation, kernel_scale, bias_scale
        self.weight_tokens = nn.Parameter(torch.randn(WEIGHT_TOKENS, width) * 0.02)
        self.bias_token = nn.Parameter(torch.randn(1, width) * 0.02)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.layer = PostNormLayer(width)
        self.to_kernel = nn.Linear(width, patch_px**2 * dim)
        self.to_bias = nn.Linear(width, dim)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """waves (C, width) -> kernel (dim, C, patch, patch) and bias (dim,)."""
        waves = waves + self.activation(self.second(self.activation(self.first(waves))))
        mixed = self.layer(torch.cat([self.weight_tokens, waves, self.bias_token]))
        flat = self.to_kernel(mixed[WEIGHT_TOKENS:-1] + waves) * self.kernel_scale
        if self.channels_last:
            kernel = flat.unflatten(1, (self.patch_px, self.patch_px, self.dim)).permute(3, 0, 1, 2)
        else:
            kernel = flat.unflatten(1, (self.dim, self.patch_px, self.patch_px)).transpose(0, 1)
        return kernel, self.to_bias(mixed[-1]) * self.bias_scale


class PostNormLayer(nn.Module):
    """A transformer layer on one sequence (N, D), normalised behind each addition (arXiv 1706.03762), with GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, GENERATOR_HIDDEN)
        self.linear2 = nn.Linear(GENERATOR_HIDDEN, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.in_proj(x).unflatten(-1, (3, GENERATOR_HEADS, -1)).permute(1, 2, 0, 3)[:, None]
        mixed = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
        x = self.norm1(x + self.out_proj(mixed))
        y: Tensor = self.norm2(x + self.linear2(F.gelu(self.linear1(x))))
        return y


class DynamicVit(VitBackbone):
    """A transformer with CLS behind such an embedding; the bands are those of the last `set_wavelengths`.

    A network of this kind says how a wavelength becomes a token, and what is added to the tokens of patches.

    Attributes:
        padding_px: zeros around the image.
        waves: (C, width) the bands' tokens.
        baked_kernel, baked_bias: what `kernel` gives once nothing changes it any more; None: it is made at each
            call, which takes as long as a chip of some 30 px.
    """

    padding_px = 0
    waves: Tensor
    baked_kernel: Tensor | None
    baked_bias: Tensor | None

    def __init__(self, generator: KernelGenerator, patch_px: int, depth: int, block: Callable[[], Block]) -> None:
        super().__init__(patch_px, generator.dim, depth, prefix=1)
        self.generator = generator
        self.cls_token = nn.Parameter(torch.randn(1, 1, generator.dim) * 0.02)
        self.layers = nn.ModuleList(block() for _ in range(depth))
        self.register_buffer("waves", torch.zeros(0), persistent=False)
        self.register_buffer("baked_kernel", None, persistent=False)
        self.register_buffer("baked_bias", None, persistent=False)

    def encode_wavelengths(self, wavelengths_um: Sequence[float]) -> Tensor:
        """(C, width) tokens of bands, on the CPU."""
        raise NotImplementedError

    def set_wavelengths(self, wavelengths_um: Sequence[float]) -> None:
        self.waves = self.encode_wavelengths(wavelengths_um).to(self.cls_token.device)

    @property
    def blocks(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return list(self.layers)

    def bake(self) -> None:
        """Leaves the kernel and drops what makes it."""
        with torch.no_grad():
            kernel, bias = self.make_kernel()
        self.baked_kernel, self.baked_bias = kernel.contiguous(), bias
        del self.generator

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Kernel (D, C, patch, patch) and bias (D,) for the bands."""
        if self.baked_kernel is not None and self.baked_bias is not None:
            return self.baked_kernel, self.baked_bias
        return self.make_kernel()

    def make_kernel(self) -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] = self.generator(self.waves)
        return made

    def patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W), whole patches -> (B, patches, D) tokens without encodings."""
        # In half precision, wavelengths would be rounded to a few per cent.
        with torch.autocast(x.device.type, enabled=False):
            kernel, bias = self.kernel()
        grid = F.conv2d(x, kernel.to(x.dtype), bias.to(x.dtype), stride=self.patch_px, padding=self.padding_px)
        return grid.flatten(2).transpose(1, 2)


def require_optical(card: BackboneCard, wavelengths_um: Sequence[float]) -> None:
    """BandError where there is no band to make a kernel for."""
    if not wavelengths_um:
        raise BandError(
            f"{card.title} needs at least one optical band whose wavelength is known.",
            "Name the bands (red, nir, ...) or tag their wavelengths, or choose the backbone scratch_unet.",
            "BANDS_MISSING",
        )


def sines(values: Tensor, width: int, steps: int) -> Tensor:
    """(C,) -> (C, width): sines, then cosines, of the values times 10 000^(-i / steps), i = 0 .. width / 2 - 1."""
    # In single precision, as in pre-training: a wavelength in nanometres times a frequency is rounded.
    frequencies = 1 / 10_000 ** (torch.arange(width // 2, dtype=torch.float32) / steps)
    angles = values[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def own_names(state: Mapping[str, Tensor], embedding: str) -> dict[str, Tensor]:
    """A state dict with the published names below EMBEDDING as those of a `generator` and `blocks.` as `layers.`"""
    own = {}
    for key, value in state.items():
        name = key
        if key.startswith(embedding):
            name = f"generator.{_renamed(key.removeprefix(embedding))}"
        elif key.startswith("blocks."):
            name = f"layers.{key.removeprefix('blocks.')}"
        own[name] = value
    return own


def _renamed(name: str) -> str:
    for published, ours in _RENAMED:
        if name.startswith(published):
            name = ours + name.removeprefix(published)
    return name
