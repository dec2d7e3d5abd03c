"""Copernicus-FM (arXiv 2503.11849): any optical bands."""

from __future__ import annotations

from geopeft.models.registry import TRANSFORMER_ADAPTERS, BackboneCard, WeightsSource

_FILE = "CopernicusFM_ViT_base_varlang-085350e4.pth"

ROWS = (
    BackboneCard(
        name="copernicus_fm_base",
        title="Copernicus-FM base: any optical bands, 10 to 1000 m",
        builder="geopeft.models.backbones.copernicus_fm:build",
        licence="CC-BY-4.0",
        paper="https://arxiv.org/abs/2503.11849",
        # The file fixes no statistics: every sensor's bands were standardised by its own.
        bands=(),
        unit="display",
        normalize="zscore",
        patch_size_px=16,
        chip_size_px=224,
        # Of Sentinel-2 and of Sentinel-5P.
        gsd_m=(10.0, 1000.0),
        parameters_m=112.9,
        weights=WeightsSource(
            file=_FILE,
            repo="torchgeo/copernicus-fm",
            revision="f395812cc990ba25a451dbb9c9e6d95c8482947e",  # pragma: allowlist secret
            path=_FILE,
        ),
        adapters=TRANSFORMER_ADAPTERS,
        options={"dim": 768, "depth": 12, "heads": 12, "patch_size_px": 16},
        any_optical=True,
        metadata=("time", "place"),
    ),
)
