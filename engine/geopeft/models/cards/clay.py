"""Clay v1 and v1.5 (clay-foundation.github.io): any optical bands at any pixel size."""

from __future__ import annotations

from geopeft.models.registry import TRANSFORMER_ADAPTERS, BackboneCard, CardBand, WeightsSource

# Name, common name, centre, mean and standard deviation of Sentinel-2's bands, reflectance x 10 000: the authors'
# configs/metadata.yaml, which is of the time of version 1.5. Bands of other wavelengths are standardised.
_SENTINEL_2 = (
    CardBand("blue", "blue", 0.493, 1105.0, 1809.0),
    CardBand("green", "green", 0.560, 1355.0, 1757.0),
    CardBand("red", "red", 0.665, 1552.0, 1888.0),
    CardBand("rededge1", "rededge1", 0.704, 1887.0, 1870.0),
    CardBand("rededge2", "rededge2", 0.740, 2422.0, 1732.0),
    CardBand("rededge3", "rededge3", 0.783, 2630.0, 1697.0),
    CardBand("nir", "nir", 0.842, 2743.0, 1742.0),
    CardBand("nir08", "nir08", 0.865, 2785.0, 1648.0),
    CardBand("swir16", "swir16", 1.610, 2388.0, 1470.0),
    CardBand("swir22", "swir22", 2.190, 1835.0, 1379.0),
)


def _clay(version: str, dim: int, depth: int, heads: int, parameters_m: float, repo: str, path: str) -> BackboneCard:
    return BackboneCard(
        name=f"clay_v{version.replace('.', '_')}",
        title=f"Clay v{version}: any optical bands, 0.5 to 500 m",
        builder="geopeft.models.backbones.clay:build",
        licence="Apache-2.0",
        paper="https://clay-foundation.github.io/model/",
        bands=_SENTINEL_2,
        unit="reflectance10000",
        normalize="zscore",
        patch_size_px=8,
        chip_size_px=256,
        # Of the aerial imagery of New Zealand and of MODIS.
        gsd_m=(0.5, 500.0),
        parameters_m=parameters_m,
        weights=WeightsSource(file=path.rpartition("/")[2], repo=repo, path=path),
        adapters=TRANSFORMER_ADAPTERS,
        options={"dim": dim, "depth": depth, "heads": heads, "patch_size_px": 8},
        any_optical=True,
        metadata=("time", "place"),
    )


ROWS = (
    _clay("1", 768, 12, 12, 92.1, "made-with-clay/Clay-legacy", "v1/clay-v1-base.ckpt"),
    _clay("1.5", 1024, 24, 16, 311.4, "made-with-clay/Clay", "v1.5/clay-v1.5.ckpt"),
)
