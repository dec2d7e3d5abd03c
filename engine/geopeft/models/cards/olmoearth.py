"""OlmoEarth v1 (https://github.com/allenai/olmoearth_pretrain)."""

from __future__ import annotations

from geopeft.models.registry import SAR_UM, TRANSFORMER_ADAPTERS, BackboneCard, CardBand, WeightsSource

# Mean and standard deviation of the pre-training data (computed.json of olmoearth-pretrain-minimal): Sentinel-2 as
# reflectance x 10 000, Sentinel-1 in decibels.
OLMOEARTH_BANDS = (
    CardBand("B02", "blue", 0.493, 1188.9412572078477, 1859.1923971769581),
    CardBand("B03", "green", 0.560, 1407.7739105458452, 1727.7387413631088),
    CardBand("B04", "red", 0.665, 1513.0573882432757, 1740.7758297757895),
    CardBand("B08", "nir", 0.842, 2755.481305028308, 1612.2565699990187),
    CardBand("B05", "rededge1", 0.704, 1890.9893042634167, 1754.7320388511766),
    CardBand("B06", "rededge2", 0.740, 2483.7812315422448, 1622.1172720635755),
    CardBand("B07", "rededge3", 0.783, 2722.728248756412, 1621.8226170190276),
    CardBand("B8A", "nir08", 0.865, 2885.570263047681, 1611.3587521042082),
    CardBand("B11", "swir16", 1.610, 2562.852607796968, 1441.5471830655151),
    CardBand("B12", "swir22", 2.190, 1914.1383249044113, 1328.8914382756407),
    CardBand("B01", "coastal", 0.443, 1115.8494388252218, 1955.6991794280914),
    CardBand("B09", "nir09", 0.945, 3269.812554170875, 2651.088425085525),
    CardBand("VV", "vv", SAR_UM, -11.648990747328444, 10.840350299936597, unit="decibel"),
    CardBand("VH", "vh", SAR_UM, -17.745436133270044, 10.216274681392647, unit="decibel"),
)


def _olmoearth(size: str, dim: int, depth: int, heads: int, parameters_m: float) -> BackboneCard:
    return BackboneCard(
        name=f"olmoearth_v1_{size}",
        title=f"OlmoEarth v1 {size}: Sentinel-2, Sentinel-1 or both, about 10 m",
        builder="geopeft.models.backbones.olmoearth:build",
        licence="OlmoEarth Artifact License",
        paper="https://github.com/allenai/olmoearth_pretrain",
        bands=OLMOEARTH_BANDS,
        unit="reflectance10000",
        normalize="mean2std",
        patch_size_px=4,
        chip_size_px=32,
        gsd_m=(5.0, 40.0),
        parameters_m=parameters_m,
        # Neither revisions nor checksums are known: the files are taken from the user's folder only.
        weights=WeightsSource(
            file="weights.pth",
            repo=f"allenai/OlmoEarth-v1-{size.capitalize()}",
            path="weights.pth",
        ),
        adapters=TRANSFORMER_ADAPTERS,
        options={"dim": dim, "depth": depth, "heads": heads, "patch_size_px": 4, "month": 6},
        metadata=("time",),
    )


# Millions of parameters that follow from the sizes: encoder and the embeddings of Sentinel-2 and Sentinel-1.
ROWS = (
    _olmoearth("nano", 128, 4, 8, 0.91),
    _olmoearth("tiny", 192, 12, 3, 5.51),
    _olmoearth("base", 768, 12, 12, 85.75),
)
