"""Networks pretrained on SSL4EO-S12 (arXiv 2211.07044), in timm's layout as torchgeo publishes them, and a ResNet-50
without pretrained weights."""

from __future__ import annotations

from typing import Any

from geopeft.models.registry import (
    SAR_UM,
    TRANSFORMER_ADAPTERS,
    WEIGHT_ADAPTERS,
    BackboneCard,
    CardBand,
    WeightsSource,
)

# All 13 bands of Sentinel-2 L1C. Networks see values / 10 000; mean and standard deviation are those of the data set
# (SSL4EO-S12 1.0, "S2C", of the authors' code), for rasters whose values are no reflectances.
SENTINEL2_BANDS = (
    CardBand("B01", "coastal", 0.443, 1605.57504906, 786.78685367),
    CardBand("B02", "blue", 0.493, 1390.78157673, 850.34818441),
    CardBand("B03", "green", 0.560, 1314.8729939, 875.06484736),
    CardBand("B04", "red", 0.665, 1363.52445545, 1138.84957046),
    CardBand("B05", "rededge1", 0.704, 1549.44374991, 1122.17775652),
    CardBand("B06", "rededge2", 0.740, 2091.74883118, 1161.59187054),
    CardBand("B07", "rededge3", 0.783, 2371.7172463, 1274.39184232),
    CardBand("B08", "nir", 0.842, 2299.90463006, 1248.42891965),
    CardBand("B8A", "nir08", 0.865, 2560.29504086, 1345.52684884),
    CardBand("B09", "nir09", 0.945, 830.06605044, 577.31607053),
    CardBand("B10", "cirrus", 1.373, 22.10351321, 51.15431158),
    CardBand("B11", "swir16", 1.610, 2177.07172323, 1336.09932639),
    CardBand("B12", "swir22", 2.190, 1524.06546312, 1136.53823676),
)
# Of SSL4EO-S12's Sentinel-1 scenes, in decibels.
SENTINEL1_BANDS = (
    CardBand("VV", "vv", SAR_UM, -12.59, 5.26, unit="decibel"),
    CardBand("VH", "vh", SAR_UM, -20.26, 5.91, unit="decibel"),
)
RESNET18 = {"architecture": "resnet18", "layers": (2, 2, 2, 2), "channels": (64, 128, 256, 512)}
RESNET50 = {"architecture": "resnet50", "layers": (3, 4, 6, 3), "channels": (64, 128, 256, 512)}
VIT_SMALL = {"architecture": "vit_small_patch16_224", "dim": 384, "depth": 12, "heads": 6}
SSL4EO, DECUR = "https://arxiv.org/abs/2211.07044", "https://arxiv.org/abs/2309.05300"


def _sentinel2(
    name: str, title: str, paper: str, options: dict[str, Any], parameters_m: float, repo: str, revision: str, file: str
) -> BackboneCard:
    """A row for all optical bands. Of the files only the first digits of the checksums are known, so they are taken
    from the user's folder only. The licence is that of the authors' own release."""
    transformer = "dim" in options
    return BackboneCard(
        name=name,
        title=f"{title}: Sentinel-2, up to 13 bands, 10 to 20 m",
        builder="geopeft.models.backbones.timm_backbone:build",
        licence="CC-BY-4.0",
        paper=paper,
        bands=SENTINEL2_BANDS,
        unit="reflectance10000",
        normalize="reflectance",
        patch_size_px=16 if transformer else 32,
        chip_size_px=224 if transformer else 128,
        gsd_m=(5.0, 40.0),
        parameters_m=parameters_m,
        weights=WeightsSource(file=file, repo=repo, revision=revision, path=file),
        adapters=TRANSFORMER_ADAPTERS if transformer else WEIGHT_ADAPTERS,
        options=options,
    )


ROWS = (
    _sentinel2(
        "decur_resnet50",
        "ResNet-50, DeCUR",
        DECUR,
        RESNET50,
        23.5,
        "torchgeo/decur",
        "eba7ae5945d482a4319be046d34b552db5dd9950",  # pragma: allowlist secret
        "rn50_ssl4eo-s12_ms_decur_ep100-fc6b09ff.pth",
    ),
    BackboneCard(
        name="decur_resnet50_s1",
        title="ResNet-50, DeCUR: Sentinel-1, VV and VH, 10 to 20 m",
        builder="geopeft.models.backbones.timm_backbone:build",
        licence="CC-BY-4.0",
        paper=DECUR,
        bands=SENTINEL1_BANDS,
        unit="reflectance10000",
        normalize="zscore",
        patch_size_px=32,
        chip_size_px=128,
        gsd_m=(5.0, 40.0),
        parameters_m=23.5,
        weights=WeightsSource(
            file="rn50_ssl4eo-s12_sar_decur_ep100-f0e69ba2.pth",
            repo="torchgeo/decur",
            revision="9328eeb90c686a88b30f8526ed757b4bc0f12027",  # pragma: allowlist secret
            path="rn50_ssl4eo-s12_sar_decur_ep100-f0e69ba2.pth",
        ),
        options=RESNET50,
    ),
    _sentinel2(
        "ssl4eo_resnet18_moco",
        "ResNet-18, MoCo on SSL4EO-S12",
        SSL4EO,
        RESNET18,
        11.2,
        "torchgeo/resnet18_sentinel2_all_moco",
        "5b8cddc9a14f3844350b7f40b85bcd32aed75918",  # pragma: allowlist secret
        "resnet18_sentinel2_all_moco-59bfdff9.pth",
    ),
    _sentinel2(
        "ssl4eo_resnet50_moco",
        "ResNet-50, MoCo on SSL4EO-S12",
        SSL4EO,
        RESNET50,
        23.5,
        "torchgeo/resnet50_sentinel2_all_moco",
        "da4f3c9dbe09272eb902f3b37f46635fa4726879",  # pragma: allowlist secret
        "resnet50_sentinel2_all_moco-df8b932e.pth",
    ),
    _sentinel2(
        "ssl4eo_resnet50_dino",
        "ResNet-50, DINO on SSL4EO-S12",
        SSL4EO,
        RESNET50,
        23.5,
        "torchgeo/resnet50_sentinel2_all_dino",
        "d7f14bf5530d70ac69d763e58e77e44dbecfec7c",  # pragma: allowlist secret
        "resnet50_sentinel2_all_dino-d6c330e9.pth",
    ),
    _sentinel2(
        "ssl4eo_vits16_dino",
        "ViT-S/16, DINO on SSL4EO-S12",
        SSL4EO,
        VIT_SMALL,
        22.6,
        "torchgeo/vit_small_patch16_224_sentinel2_all_dino",
        "5b41dd418a79de47ac9f5be3e035405a83818a62",  # pragma: allowlist secret
        "vit_small_patch16_224_sentinel2_all_dino-36bcc127.pth",
    ),
    _sentinel2(
        "ssl4eo_vits16_moco",
        "ViT-S/16, MoCo on SSL4EO-S12",
        SSL4EO,
        VIT_SMALL,
        22.6,
        "torchgeo/vit_small_patch16_224_sentinel2_all_moco",
        "1cb683f6c14739634cdfaaceb076529adf898c74",  # pragma: allowlist secret
        "vit_small_patch16_224_sentinel2_all_moco-67c9032d.pth",
    ),
    BackboneCard(
        name="unet_resnet50",
        title="ResNet-50 without pretrained weights: every input band, the study's baseline with the decoder unet",
        builder="geopeft.models.backbones.timm_backbone:build",
        licence="Apache-2.0",
        paper="https://arxiv.org/abs/2504.17397",
        bands=(),
        unit="display",
        normalize="zscore",
        patch_size_px=32,
        chip_size_px=128,
        gsd_m=None,
        parameters_m=23.5,
        weights=WeightsSource(),
        adapters=("full",),
        options=RESNET50,
    ),
)
