"""Prithvi-EO 1.0 (arXiv 2310.18660) and 2.0 (arXiv 2412.02732), for six bands of HLS, Landsat or Sentinel-2."""

from __future__ import annotations

from geopeft.models.registry import TRANSFORMER_ADAPTERS, BackboneCard, CardBand, WeightsSource

# Name, common name and centre of the bands, in the order of the published patch embedding.
_BANDS = (
    ("BLUE", "blue", 0.490),
    ("GREEN", "green", 0.560),
    ("RED", "red", 0.665),
    ("NIR_NARROW", "nir08", 0.865),
    ("SWIR_1", "swir16", 1.610),
    ("SWIR_2", "swir22", 2.190),
)
# Mean and standard deviation of the pre-training data (config.json beside the weights), reflectance x 10 000.
_V1 = ((775, 1081, 1229, 2497, 2204, 1611), (1282, 1270, 1399, 1368, 1292, 1155))
_V2 = ((1087, 1342, 1433, 2734, 1958, 1363), (2248, 2179, 2178, 1850, 1242, 1049))


def _prithvi(
    version: int,
    size: str,
    dim: int,
    depth: int,
    heads: int,
    parameters_m: float,
    *,
    patch_px: int = 16,
    tl: bool = False,
    sha256: str = "",
) -> BackboneCard:
    """A row; `tl` networks take time and location."""
    means, deviations = _V1 if version == 1 else _V2
    label = f"{size}M" if size.isdigit() else size
    published = f"Prithvi-EO-{version}.0-{label}{'-TL' * tl}"
    return BackboneCard(
        name=f"prithvi_eo_v{version}_{size}{'_tl' * tl}",
        title=f"Prithvi-EO-{version}.0 {label}{' TL' * tl}: HLS, Landsat and Sentinel-2, 10 to 30 m",
        builder="geopeft.models.backbones.prithvi:build",
        licence="Apache-2.0",
        paper=f"https://arxiv.org/abs/{'2310.18660' if version == 1 else '2412.02732'}",
        bands=tuple(
            CardBand(*band, float(mean), float(std)) for band, mean, std in zip(_BANDS, means, deviations, strict=True)
        ),
        unit="reflectance10000",
        normalize="zscore",
        patch_size_px=patch_px,
        chip_size_px=224,
        # Pre-trained at 30 m; its authors fine-tune it on Sentinel-2 at 10 m as it is.
        gsd_m=(8.0, 60.0),
        parameters_m=parameters_m,
        weights=WeightsSource(
            file=f"Prithvi_EO_V{version}_{label}{'_TL' * tl}.pt",
            sha256=sha256,
            repo=f"ibm-nasa-geospatial/{published}",
            path=f"Prithvi_EO_V{version}_{label}{'_TL' * tl}.pt",
        ),
        adapters=TRANSFORMER_ADAPTERS,
        options={"dim": dim, "depth": depth, "heads": heads, "patch_size_px": patch_px},
        metadata=("time", "place") if tl else (),
        # As many dates as in pre-training.
        frames=3 if version == 1 else 4,
    )


ROWS = (
    _prithvi(1, "100", 768, 12, 12, 86.2),
    _prithvi(2, "tiny", 192, 12, 3, 5.6, tl=True),
    _prithvi(2, "100", 768, 12, 12, 86.2, tl=True),
    _prithvi(2, "300", 1024, 24, 16, 304.1),
    _prithvi(2, "300", 1024, 24, 16, 304.1, tl=True),
    _prithvi(2, "600", 1280, 32, 16, 631.2, patch_px=14),
    _prithvi(
        2,
        "600",
        1280,
        32,
        16,
        631.2,
        patch_px=14,
        tl=True,
        sha256="7b92c53b0204a76bb775bd8930f045e05776251caa8c83f7367ed0b75b594702",  # pragma: allowlist secret
    ),
)
