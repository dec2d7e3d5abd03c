"""TerraMind v1 (arXiv 2504.11171)."""

from __future__ import annotations

from geopeft.models.registry import SAR_UM, TRANSFORMER_ADAPTERS, BackboneCard, CardBand, WeightsSource

# Mean and standard deviation of the pre-training data as TerraTorch lists them for S2L2A (reflectance x 10 000) and
# S1GRD (decibels).
TERRAMIND_BANDS = (
    CardBand("B01", "coastal", 0.443, 1390.458, 2106.761),
    CardBand("B02", "blue", 0.493, 1503.317, 2141.107),
    CardBand("B03", "green", 0.560, 1718.197, 2038.973),
    CardBand("B04", "red", 0.665, 1853.91, 2134.138),
    CardBand("B05", "rededge1", 0.704, 2199.1, 2085.321),
    CardBand("B06", "rededge2", 0.740, 2779.975, 1889.926),
    CardBand("B07", "rededge3", 0.783, 2987.011, 1820.257),
    CardBand("B08", "nir", 0.842, 3083.234, 1871.918),
    CardBand("B8A", "nir08", 0.865, 3132.22, 1753.829),
    CardBand("B09", "nir09", 0.945, 3162.988, 1797.379),
    CardBand("B11", "swir16", 1.610, 2424.884, 1434.261),
    CardBand("B12", "swir22", 2.190, 1857.648, 1334.311),
    CardBand("VV", "vv", SAR_UM, -12.599, 5.195, unit="decibel"),
    CardBand("VH", "vh", SAR_UM, -20.293, 5.890, unit="decibel"),
)


def _terramind(size: str, dim: int, depth: int, heads: int, gated: bool, parameters_m: float) -> BackboneCard:
    return BackboneCard(
        name=f"terramind_v1_{size}",
        title=f"TerraMind v1 {size}: Sentinel-2, Sentinel-1 or both, about 10 m",
        builder="geopeft.models.backbones.terramind:build",
        licence="Apache-2.0",
        paper="https://arxiv.org/abs/2504.11171",
        bands=TERRAMIND_BANDS,
        unit="reflectance10000",
        normalize="zscore",
        patch_size_px=16,
        chip_size_px=224,
        gsd_m=(5.0, 40.0),
        parameters_m=parameters_m,
        # Neither revisions nor checksums have been published: the files are taken from the user's folder only.
        weights=WeightsSource(
            file=f"TerraMind_v1_{size}.pt",
            repo=f"ibm-esa-geospatial/TerraMind-1.0-{size}",
            path=f"TerraMind_v1_{size}.pt",
        ),
        adapters=TRANSFORMER_ADAPTERS,
        options={"dim": dim, "depth": depth, "heads": heads, "gated": gated},
    )


# Millions of parameters that follow from the sizes: encoder and the embeddings of Sentinel-2 and Sentinel-1.
ROWS = (
    _terramind("tiny", 192, 12, 3, False, 6.0),
    _terramind("small", 384, 12, 6, False, 22.7),
    _terramind("base", 768, 12, 12, True, 87.7),
    _terramind("large", 1024, 24, 16, True, 305.7),
)
