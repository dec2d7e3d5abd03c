"""Networks of our own: the model in the box, and two without pretrained weights, a small U-Net and a student."""

from __future__ import annotations

from geopeft.models.registry import BackboneCard, WeightsSource

ROWS = (
    BackboneCard(
        name="geopeft_small",
        title="GeoPEFT small, the model in the box: any optical bands at any pixel size",
        builder="geopeft.models.backbones.geopeft_small:build",
        licence="Apache-2.0",
        paper="https://arxiv.org/abs/2302.04476",
        bands=(),
        unit="display",
        normalize="zscore",
        patch_size_px=32,
        chip_size_px=128,
        gsd_m=None,
        parameters_m=2.98,
        weights=WeightsSource(
            file="geopeft_small.safetensors",
            sha256="1090336730576a3b1221c90ba36904edd2e413004a9076ffc50fdbe692a583dd",  # pragma: allowlist secret
            resource="backbones/geopeft_small.safetensors",
            own_names=True,
        ),
        any_optical=True,
    ),
    BackboneCard(
        name="scratch_unet",
        title="A small U-Net without pretrained weights: every input band, the baseline",
        builder="geopeft.models.backbones.scratch:build",
        licence="GPL-2.0-or-later",
        paper="https://arxiv.org/abs/1505.04597",
        bands=(),
        unit="display",
        normalize="zscore",
        patch_size_px=16,
        chip_size_px=128,
        gsd_m=None,
        parameters_m=0.64,
        weights=WeightsSource(),
        adapters=("full",),
    ),
    BackboneCard(
        name="student",
        title="A small, fast network without pretrained weights: what `distil` teaches, every input band",
        builder="geopeft.models.backbones.student:build",
        licence="GPL-2.0-or-later",
        paper="https://arxiv.org/abs/1503.02531",
        bands=(),
        unit="display",
        normalize="zscore",
        patch_size_px=16,
        chip_size_px=128,
        gsd_m=None,
        parameters_m=1.46,
        weights=WeightsSource(),
        adapters=("full",),
        options={"widths": (32, 48, 96, 160), "blocks": (1, 1, 2)},
    ),
)
