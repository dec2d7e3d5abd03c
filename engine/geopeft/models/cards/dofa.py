"""DOFA v1 (arXiv 2403.15356): any optical bands."""

from __future__ import annotations

from geopeft.models.registry import TRANSFORMER_ADAPTERS, BackboneCard, WeightsSource


def _dofa(size: str, dim: int, depth: int, heads: int, parameters_m: float, file: str) -> BackboneCard:
    return BackboneCard(
        name=f"dofa_v1_{size}",
        title=f"DOFA v1 {size}: any optical bands, 1 to 30 m",
        builder="geopeft.models.backbones.dofa:build",
        licence="CC-BY-4.0",
        paper="https://arxiv.org/abs/2403.15356",
        # The file fixes no statistics: every sensor's bands were standardised by its own.
        bands=(),
        unit="display",
        normalize="zscore",
        patch_size_px=16,
        chip_size_px=224,
        # Of NAIP and of EnMAP.
        gsd_m=(1.0, 30.0),
        parameters_m=parameters_m,
        weights=WeightsSource(
            file=file,
            repo="torchgeo/dofa",
            revision="b8db318b64a90b9e085ec04ba8851233c5893666",  # pragma: allowlist secret
            path=file,
        ),
        adapters=TRANSFORMER_ADAPTERS,
        options={"dim": dim, "depth": depth, "heads": heads, "patch_size_px": 16},
        any_optical=True,
    )


ROWS = (
    _dofa("base", 768, 12, 12, 111.2, "dofa_base_patch16_224-a0275954.pth"),
    _dofa("large", 1024, 24, 16, 336.9, "dofa_large_patch16_224-0ff904d3.pth"),
)
