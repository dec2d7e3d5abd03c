"""Networks of our own: the model in the box, two without pretrained weights, and what stands for no network at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geopeft.models.registry import BackboneCard, WeightsSource


def _untaught(
    *,
    name: str,
    title: str,
    builder: str,
    paper: str,
    parameters_m: float,
    options: Mapping[str, Any] | None = None,
    classical_alone: bool = False,
) -> BackboneCard:
    """A network without weights, for every input band, trained whole."""
    return BackboneCard(
        name=name,
        title=title,
        builder=builder,
        licence="GPL-2.0-or-later",
        paper=paper,
        bands=(),
        unit="display",
        normalize="zscore",
        patch_size_px=16,
        chip_size_px=128,
        gsd_m=None,
        parameters_m=parameters_m,
        weights=WeightsSource(),
        adapters=("full",),
        options=options or {},
        classical_alone=classical_alone,
    )


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
    _untaught(
        name="scratch_unet",
        title="A small U-Net without pretrained weights: every input band, the baseline",
        builder="geopeft.models.backbones.scratch:build",
        paper="https://arxiv.org/abs/1505.04597",
        parameters_m=0.64,
    ),
    _untaught(
        name="random-forest",
        title="Forest and linear model on bands and texture, without a network: fitted in seconds",
        builder="geopeft.models.backbones.scratch:build",
        paper="https://doi.org/10.1007/s10994-006-6226-1",
        parameters_m=0.01,
        options={"widths": (8, 8, 8, 8)},
        classical_alone=True,
    ),
    _untaught(
        name="student",
        title="A small, fast network without pretrained weights: what `distil` teaches, every input band",
        builder="geopeft.models.backbones.student:build",
        paper="https://arxiv.org/abs/1503.02531",
        parameters_m=1.46,
        options={"widths": (32, 48, 96, 160), "blocks": (1, 1, 2)},
    ),
)
